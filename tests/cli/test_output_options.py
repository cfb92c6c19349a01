"""Every command behaves alike: the same options, one JSON document, exit codes, suggestions, completion."""

from __future__ import annotations

import inspect as introspection
import io
import json
import logging
import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from kerasseg.runs.settings import Strategy
from kerasseg_cli import completion
from kerasseg_cli.app import app
from kerasseg_cli.errors import Commands, guarded
from kerasseg_cli.help import Command
from kerasseg_cli.options import ADVANCED, COMMON, output_options
from kerasseg_tfrecords.errors import BadInputError, CheckpointError, DataError, KerassegError, Problem, UsageError

GROUP: Any = get_command(app)
NAMES = sorted(GROUP.commands)


def run(*typed: str, columns: int = 100, **environment: str) -> Any:
    return CliRunner().invoke(app, list(typed), env={"COLUMNS": str(columns), "NO_COLOR": "1", **environment})


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the same options everywhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_the_common_options(name: str) -> None:
    declared = {
        frozenset(parameter.opts): (parameter.help, parameter.default)
        for parameter in GROUP.commands[name].params
        if parameter.param_type_name == "option"
    }
    for annotation in COMMON.values():
        option = annotation.__metadata__[0]
        assert declared[frozenset((option.default, *option.param_decls))] == (option.help, False)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_holds_every_name_on_every_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kerasseg_cli.console import print_json

    name = "\N{LATIN SMALL LETTER O WITH DIAERESIS}\udcf6"  # the latter is a byte that is not UTF-8
    output = io.BytesIO()
    with io.TextIOWrapper(output, encoding, errors="strict") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        print_json({"path": name})
        stdout.flush()
        assert json.loads(output.getvalue().decode(encoding)) == {"path": name}
        monkeypatch.undo()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal(name: str, columns: int) -> None:
    shown = run(name, "-h", columns=columns)
    assert shown.exit_code == 0
    assert shown.output == run(name, "--help", columns=columns).output
    assert max(map(len, shown.output.splitlines())) <= columns
    assert "\x1b" not in shown.output


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [50, 80])
def test_help_breaks_no_word(name: str, columns: int) -> None:
    def words(width: int) -> list[str]:
        return run(name, "--help", columns=width).output.replace("|", " ").split()

    assert words(columns) == words(120)


def several(
    seed: Annotated[int, typer.Option(help="Random seed.")] = 3,
    ema: Annotated[float, typer.Option(help="Decay of the average.", rich_help_panel=f"{ADVANCED}: weights")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Output folder.", rich_help_panel=ADVANCED)] = None,
) -> None:
    """A command with advanced options."""
    typer.echo(f"{seed} {ema} {out}")


def test_advanced_options_are_shown_by_help_all_alone_and_work() -> None:
    application = made(several)
    short, long = type_into(application, "several", "--help").output, type_into(application, "several", "--help-all")
    assert long.exit_code == 0
    assert "--seed N" in short
    assert "--ema" not in short
    assert "--help-all" in short
    assert "--ema NUMBER" in long.output
    assert "--out PATH" in long.output
    assert "Advanced: weights:" in long.output
    assert type_into(application, "several", "--ema", "0.5").output == "3 0.5 None\n"
    assert "--help-all" not in type_into(made(plain), "plain", "--help").output


def test_version() -> None:
    from kerasseg_tfrecords._version import __version__

    assert run("--version").output == f"kerasseg {__version__}\n"


# --- a command of one's own ----------------------------------------------------------------------------------------------


def made(*commands: Any) -> typer.Typer:
    """An application with these commands, registered as the real one registers its own."""
    application = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    application.callback()(lambda: None)
    for command in commands:
        application.command(cls=Command)(guarded(command))
    return application


def plain(number: int = 3) -> None:
    """Knows nothing of common options."""
    from kerasseg_cli.console import screen

    logging.getLogger("kerasseg").info("the number is %d", number)
    screen().print(f"number {number}, {output_options()}")


def type_into(application: typer.Typer, *typed: str) -> Any:
    return CliRunner().invoke(application, list(typed), env={"COLUMNS": "400", "NO_COLOR": "1"})


def names() -> None:
    """Shows names from untrusted files."""
    from kerasseg_cli.console import figures_table, screen

    table = figures_table("name", ["number"])
    for name in ("[/red]", "[link=file:x]", ":skull:", "\x1b[31m", "\u202e", "b\nc"):
        table.add_row(name, "1")
        screen().print(f"|{name}|")
    screen().print(table)


def test_names_are_shown_as_they_are_and_without_control_characters() -> None:
    lines = type_into(made(names), "names").stdout.splitlines()
    shown = ["[/red]", "[link=file:x]", ":skull:", r"\x1b[31m", r"\u202e"]
    assert lines[:5] == [f"|{name}|" for name in shown]
    assert [line.split()[0] for line in lines[-7:-2]] == shown


def test_a_new_command_gets_them_without_knowing() -> None:
    application = made(plain)
    shown = type_into(application, "plain", "--number", "4", "--debug")
    assert shown.exit_code == 0
    assert "number 4" in shown.stdout
    assert "debug=True" in shown.stdout
    for option in ("--quiet", "-q", "--json"):
        assert type_into(application, "plain", option).output == ""
    assert introspection.signature(guarded(plain)).parameters.keys() == {"number", *COMMON}


def test_verbose_shows_what_the_library_logs_and_nothing_else_does() -> None:
    application = made(plain)
    assert "the number is" not in type_into(application, "plain").output
    told = type_into(application, "plain", "--verbose", "--json")
    assert told.stdout == ""
    assert told.stderr.endswith("the number is 3\n")
    assert not logging.getLogger("kerasseg").handlers
    assert logging.getLogger("kerasseg").level == logging.NOTSET


ENDS = [
    (KerassegError("it failed", remedy="Wait."), 1, "failed"),
    (UsageError("an invalid option", found=3, expected=4), 2, "usage"),
    (DataError("these are bad", path="x.mat"), 3, "data"),
    (BadInputError([Problem("1.mat", "unreadable", "cut off")]), 3, "data"),
    (CheckpointError("it is a picture"), 1, "checkpoint"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (ZeroDivisionError("a [bold]fault"), 1, "fault"),
    (typer.Exit(4), 4, None),
]


@pytest.mark.parametrize(("error", "code", "kind"), ENDS, ids=[type(e).__name__ for e, _, _ in ENDS])
def test_every_kind_of_end_has_its_exit_code(error: BaseException, code: int, kind: str | None) -> None:
    def fails() -> None:
        raise error

    application = made(fails)
    shown = type_into(application, "fails")
    assert (shown.exit_code, shown.stdout) == (code, "")
    assert "Traceback" not in shown.stderr
    machine = type_into(application, "fails", "--json")
    assert (machine.exit_code, machine.stderr) == (code, "")
    if kind is None:
        return
    assert shown.stderr
    document = json.loads(machine.stdout)
    assert (document["exit_code"], document["kind"]) == (code, kind)
    if isinstance(error, KerassegError):
        assert document["error"] == str(error)
        assert document["remedy"] == error.remedy
    if isinstance(error, BadInputError):
        assert document["problems"] == [{"name": "1.mat", "kind": "unreadable", "message": "cut off"}]
        assert "  1.mat: cut off" in shown.stderr
    if kind == "fault":
        assert "a [bold]fault" in shown.stderr
        assert "Traceback" in type_into(application, "fails", "--debug").stderr


def test_the_page_lists_the_exit_codes() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text()
    for code in (0, 1, 2, 3, 4, 130):
        assert f"| {code} |" in page


# --- output that nobody takes ---------------------------------------------------------------------------------------------

LOST = "Error: write error on standard output: No space left on device.\n"


def print_much() -> None:
    """More than a buffer holds, so that it fails in the middle."""
    for _ in range(3000):
        typer.echo("many words")


def print_a_little() -> None:
    """Stands in a buffer till the end."""
    from kerasseg_cli.console import print_json

    print_json({"few": "words"})


def print_and_fail() -> None:
    """Nothing is written before the command has ended otherwise."""
    print_a_little()
    raise typer.Exit(3)


def test_matplotlib_warns_of_no_home_folder_that_cannot_be_written() -> None:
    def draws() -> None:
        assert not logging.getLogger("matplotlib").isEnabledFor(logging.WARNING)

    assert type_into(made(draws), "draws").exit_code == 0
    assert logging.getLogger("matplotlib").level == logging.NOTSET


def test_a_name_is_shown_on_a_terminal_without_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows() -> None:
        from kerasseg_cli.console import screen

        screen().print("\N{GREEK SMALL LETTER MU}.mat")

    output = io.BytesIO()
    with io.TextIOWrapper(output, "ascii") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            made(shows)(["shows"], standalone_mode=True)
        monkeypatch.undo()
        assert output.getvalue() == b"\\u03bc.mat\n"
    assert ended.value.code == 0


@pytest.mark.parametrize(("command", "code"), [(plain, 0), (print_a_little, 0), (print_and_fail, 3)])
def test_a_closed_standard_output_changes_no_exit_code(
    command: Any, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit) as ended:
        made(command)([command.__name__.replace("_", "-")], standalone_mode=True)
    monkeypatch.undo()
    assert ended.value.code == code
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("command", [plain, print_much, print_a_little, print_and_fail], ids=lambda c: c.__name__)
def test_a_full_disk_below_the_output_is_told_in_one_line(
    command: Any, unbuffered: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    application = made(command)
    raw = open("/dev/full", "wb", buffering=0 if unbuffered else -1)  # noqa: PTH123, SIM115
    with io.TextIOWrapper(raw, write_through=unbuffered) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as ended:
            application([command.__name__.replace("_", "-")], standalone_mode=True)
        monkeypatch.undo()
    assert ended.value.code == 1
    assert capfd.readouterr() == ("", LOST)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "Error: no space left on the disk."),
        (RuntimeError("variables; No space left on device [Op:SaveV2]"), "Error: no space left on the disk."),
        (OSError(28, "No space left on device", "out/spool"), "Error: out/spool: no space left on the disk."),
        (OSError(30, "Read-only file system", "out"), "Error: out: the file system is read-only."),
        (MemoryError(), "Error: out of memory. Use a machine with more memory"),
        (RuntimeError("OOM when allocating tensor with shape[2,65536]"), "Error: out of memory."),
    ],
)
def test_a_full_disk_or_memory_is_neither_lost_output_nor_a_bug(empty: Path, error: Exception, text: str) -> None:
    def fails() -> None:
        raise error

    shown = type_into(made(fails), "fails")
    assert shown.stderr.startswith(text)
    assert "bug in kerasseg" not in shown.stderr
    assert LOST not in shown.stderr
    assert "standard output" not in shown.stderr


@pytest.mark.slow
def test_nothing_more_is_said_when_the_interpreter_ends(
    python: str, child_environment: dict[str, str], empty: Path
) -> None:
    """As typed into a shell: `> /dev/full`, and a pipe whose reader leaves."""
    ours = f"{shlex.quote(python)} -m kerasseg_cli"
    for typed, unbuffered in (("--help", ""), ("--json", "1")):
        environment = {**child_environment, "PYTHONUNBUFFERED": unbuffered}
        full = subprocess.run(
            ["bash", "-c", f"{ours} {typed} > /dev/full"], env=environment, capture_output=True, text=True
        )
        assert (full.returncode, full.stderr) == (1, LOST), typed
        left = subprocess.run(
            ["bash", "-c", f"{{ sleep 0.2; {ours} {typed}; echo $? >&2; }} | true"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert left.stderr == "1\n", typed


# --- what is mistyped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--epoch", "3"], "Did you mean --epochs?"),
        (["train", "--strategy", "agressive"], "Did you mean 'aggressive'?"),
        (["train", "--augment", "flipp"], "Did you mean 'flip'?"),
        (["train", "--precision", "mixed_float61"], "Did you mean 'mixed_float16'?"),
        (["cross-validate", "--strategy", "moderat"], "Did you mean 'moderate'?"),
        (["prepare", ".", "--intensity", "minmx"], "Did you mean 'minmax'?"),
        (["prepare", ".", "--format", "figshar"], "Did you mean 'figshare'?"),
        (["evaluate", "--resolution", "nativ"], "Did you mean 'native'?"),
        (["evaluate", "--split", "tests"], "Did you mean 'test'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_is_met_with_what_is_near(typed: list[str], near: str, empty: Path) -> None:
    shown = run(*typed)
    assert shown.exit_code == 2
    assert near in shown.stderr
    assert shown.stdout == ""
    machine = run(*typed, "--json")
    assert (machine.exit_code, machine.stderr) == (2, "")
    document = json.loads(machine.stdout)
    assert (document["kind"], document["exit_code"]) == ("usage", 2)
    assert near in document["error"]


def test_values_of_the_wrong_kind_are_usage(empty: Path) -> None:
    for typed in (["train", "--epochs", "many"], ["prepare"], ["compare", "one"]):
        shown = run(*typed)
        assert shown.exit_code == 2, typed
        assert shown.stderr.startswith("Error: "), typed
    misplaced = run("--json", "train")
    assert misplaced.exit_code == 2
    assert "kerasseg train --json" in json.loads(misplaced.stdout)["error"]


SYNONYMS = {
    "train": {
        "--lr": "--learning-rate",
        "--learning_rate": "--learning-rate",
        "-lr": "--learning-rate",
        "--bs": "--batch-size",
        "--gpu": "--devices",
        "--gpus=2": "--devices",
        "--max_epochs": "--epochs",
        "--patience": "--stop-after",
        "--pateince": "--stop-after",
        "--weights": "--checkpoint",
        "--data": "--shards",
        "--output": "--out",
        "--amp": "--precision",
        "--momentum": "--batchnorm-momentum",
        "--learn": "--learning-rate",
        "--random-state": "--seed",
    },
    "predict": {"--weights": "--model", "--tta": "--flip-average", "--save_probabilities": "--probabilities"},
    "prepare": {"--num-workers": "--jobs", "--img-size": "--size", "--normalize": "--intensity"},
    "evaluate": {"--thresold": "--threshold"},
}


@pytest.mark.parametrize(
    ("command", "typed", "meant"), [(name, *pair) for name, pairs in SYNONYMS.items() for pair in pairs.items()]
)
def test_an_option_of_another_tool_is_met_with_ours(command: str, typed: str, meant: str, empty: Path) -> None:
    shown = run(command, typed, "1")
    assert shown.exit_code == 2
    assert f"Did you mean {meant}" in shown.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("eval", "'evaluate'"), ("fit", "'train'"), ("segment", "'predict'"), ("infer", "'predict'")),
        *(("Train", "'train'"), ("fine_tune", "'train'"), ("cross_validate", "'cross-validate'")),
        *(("preprocess", "'prepare'"), ("version", "kerasseg --version"), ("help", "kerasseg --help")),
    ],
)
def test_a_command_of_another_tool_is_met_with_ours(typed: str, meant: str, empty: Path) -> None:
    shown = run(typed)
    assert shown.exit_code == 2
    assert f"Did you mean {meant}?" in shown.stderr


def test_an_option_of_another_command_names_that_command(empty: Path) -> None:
    assert "kerasseg train or kerasseg cross-validate has this option" in run("evaluate", "--epochs", "3").stderr


def test_every_synonym_leads_to_an_option_or_command_that_exists() -> None:
    from kerasseg_cli import suggest

    options = {name.removeprefix("--") for c in GROUP.commands.values() for p in c.params for name in p.opts}
    planned = {"encoder", "encoder-weights", "track", "app", "checkpoints"}
    assert set(suggest._OPTIONS) <= options | {"help"} | planned
    assert set(suggest._COMMANDS) <= {*NAMES, "--help", "--version"} | planned


# --- completion ----------------------------------------------------------------------------------------------------------


def proposed(*typed: str) -> list[str]:
    """What bash is told for the last word."""
    environment = {
        "_KERASSEG_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("kerasseg", *typed)),
        "COMP_CWORD": str(len(typed)),
    }
    shown = CliRunner().invoke(app, [], prog_name="kerasseg", env=environment)
    return shown.output.split()


def test_completion_proposes(empty: Path) -> None:
    for name in ("20260101-000000-moderate", "20260102-000000-auto"):
        (empty / "runs" / name).mkdir(parents=True)
        (empty / "runs" / name / "config.json").write_text("{}")
    assert proposed("tu") == ["tune-threshold"]
    assert proposed("train", "--strategy", "a") == ["aggressive", "auto"]
    assert proposed("train", "--freeze", "encoder_1,dec")[0] == "encoder_1,decoder_5"
    assert "bottleneck" in proposed("train", "--freeze", "b")
    assert proposed("inspect", "x.keras", "--strategy", "cons") == ["conservative"]
    assert proposed("evaluate", "") == ["latest", "20260102-000000-auto", "20260101-000000-moderate"]
    assert proposed("tune-threshold", "20260101") == ["20260101-000000-moderate"]
    assert proposed("compare", "latest", "20260102") == ["20260102-000000-auto"]
    assert proposed("prepare", ".", "--format", "n") == ["nifti"]


def test_the_shells_script_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    shown = CliRunner().invoke(app, ["--show-completion"], prog_name="kerasseg")
    assert shown.exit_code == 0
    assert "_KERASSEG_COMPLETE=complete_bash" in shown.output


def test_what_is_proposed_is_what_the_library_knows() -> None:
    from typing import get_args

    from kerasseg.data.augmentation import COLUMNS
    from kerasseg_tfrecords.sources import SOURCES

    assert tuple(completion.STRATEGIES) == get_args(Strategy)
    assert set(completion.AUGMENTATIONS) == {*COLUMNS, "none"}
    assert set(completion.FORMATS) == set(SOURCES)
