"""Import the public names of a package lazily, as listed in its `__init__.pyi`."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


class Names:
    """The public names of a package, each imported on first use.

    Args:
        namespace: The `globals()` of the package's `__init__.py`.

    Attributes:
        homes: Name -> module that defines it.
        all: Sorted names, including `__version__`.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        stub = ast.parse(Path(namespace["__file__"]).with_name("__init__.pyi").read_text(encoding="utf-8"))
        imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
        self.homes = {alias.name: str(node.module) for node in imports for alias in node.names}
        self.all = sorted([*self.homes, "__version__"])

    def get(self, name: str) -> Any:
        """Import a name and keep it in the package."""
        home = self.homes.get(name)
        if home is None:
            raise AttributeError(f"module {self._namespace['__name__']!r} has no attribute {name!r}")
        value = self._namespace[name] = getattr(import_module(home), name)
        return value
