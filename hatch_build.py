"""Build hook: the package's page on an index shows README.md, with absolute links to the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute_links(text: str) -> str:
    """Point links to files of the repository at its address, which is that of `git clone` in the text."""
    found = re.search(r"git clone (https://\S+)", text)
    if found is None:
        msg = "README.md has no `git clone https://...`, which its links need on the package index"
        raise ValueError(msg)

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}({found[1]}/{kind}/main/{link[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)]+)\)", absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Gives the project its long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text)}
