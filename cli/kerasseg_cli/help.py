"""`--help` and `--help-all` of every command: options in panels, with choices, and wrapped between words."""

from __future__ import annotations

import copy
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from kerasseg_cli.options import ADVANCED, COMMON_PANEL

_METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}

_NAMES = 28
"""Columns for options and their metavars; the help of a longer one starts on the next line."""


def _show_all(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        typer.echo(help_text(context.command, context, advanced=True))
        raise typer.Exit


HELP_ALL = typer.Option(
    "--help-all",
    is_eager=True,
    callback=_show_all,
    rich_help_panel=COMMON_PANEL,
    help="Show this help with the advanced options.",
)
"""Added by `guarded` to each command that has options in a panel named `ADVANCED`."""


class Command(TyperCommand):
    """A command with the help of this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help without advanced options; see click."""
        formatter.write(help_text(self, ctx, advanced=False))


def help_text(command: Any, context: Any, *, advanced: bool) -> str:
    """Return what `--help` or, with `advanced`, `--help-all` prints."""
    width = min(context.terminal_width or shutil.get_terminal_size().columns, 120)
    parameters = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    commands = [command.get_command(context, name) for name in getattr(command, "commands", ())]
    lines = [f"Usage: {usage(command, context)}", ""]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [*_wrapped(paragraph, width), ""]
    listed = [(c.name, c.get_short_help_str(limit=400)) for c in commands if c is not None and not c.hidden]
    lines += _panel("Commands", listed, width)
    lines += _panel("Arguments", [(argument_metavar(p), _meaning(p)) for p in arguments], width)
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if parameter.param_type_name == "option":
            panel = _panel_of(parameter, context)
            panels.setdefault(panel, []).append((option_names(parameter), _meaning(parameter)))
    # The options that every command has come last.
    for panel in sorted(panels, key=lambda name: name == COMMON_PANEL):
        if advanced or not panel.startswith(ADVANCED):
            lines += _panel(panel, panels[panel], width)
    return "\n".join(lines).rstrip("\n") + "\n"


def _panel_of(parameter: Any, context: Any) -> str:
    if set(parameter.opts) & set(context.help_option_names):
        return COMMON_PANEL
    return getattr(parameter, "rich_help_panel", None) or "Options"


def _panel(title: str, rows: list[tuple[str, str]], width: int) -> list[str]:
    if not rows:
        return []
    column = min(_NAMES, max(len(names) for names, _ in rows) + 4, width // 2)
    lines = [f"{title}:"]
    for names, meaning in rows:
        text = _wrapped(meaning, width - column)
        if len(names) + 4 <= column and text:
            lines.append(f"  {names}".ljust(column) + text[0])
            text = text[1:]
        else:
            lines += _folded(names, width)
        lines += [" " * column + line for line in text]
    return [*lines, ""]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def _folded(names: str, width: int) -> Iterator[str]:
    """Yield the lines of an option and its choices, broken after a `|` if needed."""
    line = "  "
    for part in re.findall(r"[^|]+\|?", names):
        if len(line) + len(part) > width:
            yield line
            line = " " * 6
        line += part
    yield line


def usage(command: Any, context: Any) -> str:
    """Return the usage line: `kerasseg predict [OPTIONS] INPUT...`."""
    arguments = [p for p in command.get_params(context) if p.param_type_name == "argument"]
    words = [argument_metavar(p) if p.required else f"[{argument_metavar(p)}]" for p in arguments]
    if getattr(command, "commands", None):
        words.append("COMMAND ...")
    return " ".join((context.command_path, "[OPTIONS]", *words))


def option_names(parameter: Any) -> str:
    """Return the names of an option and its metavar: `-o, --out PATH`."""
    # The short name first, as in most manuals.
    names = ", ".join(sorted(parameter.opts, key=len))
    names += "".join(f" / {name}" for name in parameter.secondary_opts)
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def with_metavar(annotation: Any) -> Any:
    """Return the annotation of an option or argument, with a metavar from its type if it has none."""
    kind, *infos = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not infos or infos[0].metavar is not None:
        return annotation
    info = copy.copy(infos[0])
    if isinstance(info, OptionInfo):
        types = [one for part in _members(kind) for one in _members(part)]
        info.metavar = next((_METAVARS[one] for one in types if one in _METAVARS), None)
    return Annotated[kind, info]


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types in `int | None` or `list[int]`; a single type is returned as it is."""
    return get_args(kind) or (kind,)


def is_advanced(annotation: Any) -> bool:
    """Return whether an option belongs to a panel that only `--help-all` shows."""
    infos = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return any((getattr(info, "rich_help_panel", None) or "").startswith(ADVANCED) for info in infos)


def argument_metavar(argument: Any) -> str:
    """Return the name of an argument in usage lines."""
    return str(argument.metavar or argument.name.upper())


def _meaning(parameter: Any) -> str:
    extra = []
    if getattr(parameter, "show_default", True) and (default := default_text(parameter)):
        extra.append(f"default: {default}")
    if parameter.required and parameter.param_type_name == "option":
        extra.append("required")
    return " ".join(((parameter.help or "").strip(), f"[{'; '.join(extra)}]" if extra else "")).strip()


def default_text(parameter: Any) -> str:
    """Return the default as text to type; "" if there is none to show."""
    default = parameter.default
    if isinstance(default, bool):
        # A default of False needs no mention.
        return "on" if default else ""
    if default is None or callable(default) or default in ((), []):
        return ""
    return " ".join(map(str, default)) if isinstance(default, tuple | list) else str(getattr(default, "value", default))
