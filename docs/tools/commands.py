"""For `mkdocs build`: the command reference, written from the commands themselves."""

from __future__ import annotations

import sys
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

    from kerasseg_cli.help import argument_metavar, option_names, usage

    context = parent if name == "kerasseg" else typer.Context(command, info_name=name.split()[-1], parent=parent)
    lines = [f"## `{name}`", "", _plain(command.help or ""), "", "```text", usage(command, context), "```", ""]
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        is_argument = parameter.param_type_name == "argument"
        panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
        names = argument_metavar(parameter) if is_argument else option_names(parameter)
        panels.setdefault(panel, []).append(_row(names, parameter))
    for panel, rows in panels.items():
        first = "argument" if panel == "Arguments" else "option"
        lines += [f"**{panel}**", "", f"| {first} | meaning | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _row(names: str, parameter: Any) -> str:
    from kerasseg_cli.help import default_text

    default = default_text(parameter)
    shown = "required" if parameter.required else f"`{default}`" if default else ""
    return f"| `{names.replace('|', chr(92) + '|')}` | {_plain(parameter.help or '')} | {shown} |"


def _plain(text: str) -> str:
    """One paragraph that Markdown takes as it is: help texts hold `*`, `|`, `<` and `[`."""
    for character in "|*_<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
