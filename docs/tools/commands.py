"""For `mkdocs build`: the command reference, written from the commands themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for each page."""
    return markdown.replace(_PLACE, reference()) if _PLACE in markdown else markdown


def reference() -> str:
    """A section for each command: what it does, how it is typed, its arguments and options."""
    sys.path[:0] = [str(_ROOT / part) for part in (".", "cli", "tfrecords") if str(_ROOT / part) not in sys.path]
    import typer
    from typer.main import get_command

    from kerasseg_cli.app import app

    group: Any = get_command(app)
    context = typer.Context(group, info_name="kerasseg", **group.context_settings)
    commands = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    parts = [_section("kerasseg", group, context)]
    parts += [_section(f"kerasseg {name}", command, context) for name, command in commands if not command.hidden]
    return "\n".join(parts)


def _section(name: str, command: Any, parent: Any) -> str:
    import typer

    context = parent if name == "kerasseg" else typer.Context(command, info_name=name.split()[-1], parent=parent)
    given = [
        _metavar(parameter) if parameter.required else f"[{_metavar(parameter)}]"
        for parameter in command.get_params(context)
        if parameter.param_type_name == "argument"
    ]
    usage = " ".join([name, "[OPTIONS]", *(given or ["COMMAND ..."] * (name == "kerasseg"))])
    lines = [f"## `{name}`", "", _plain(command.help or ""), "", "```text", usage, "```", ""]
    panels: dict[str, list[Any]] = {}
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False):
            panel = getattr(parameter, "rich_help_panel", None)
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(panel or kind, []).append(parameter)
    for panel, parameters in panels.items():
        lines += [
            f"**{panel}**",
            "",
            f"| {panel.rstrip('s').lower() if panel in ('Arguments', 'Options') else 'option'} | meaning | default |",
            "| --- | --- | --- |",
        ]
        lines += [row for parameter in parameters for row in _rows(parameter)]
        lines.append("")
    return "\n".join(lines)


def _rows(parameter: Any) -> Iterator[str]:
    if parameter.param_type_name == "argument":
        names = f"`{_metavar(parameter)}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    shown = "required" if parameter.required else "" if _nothing(default) else f"`{_text(default)}`"
    yield f"| {names} | {_plain(parameter.help or '')} | {shown} |"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _nothing(default: Any) -> bool:
    return (
        default is None
        or default is False
        or default == ()
        or default == []
        or not isinstance(default, str | int | float | tuple | list | Path)
    )


def _text(default: Any) -> str:
    if default is True:
        return "on"
    return " ".join(map(str, default)) if isinstance(default, tuple | list) else str(getattr(default, "value", default))


def _plain(text: str) -> str:
    """One paragraph that Markdown takes as it is: help texts hold `*`, `|`, `<` and `[`."""
    for character in "|*_<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
