"""Run directories: made, found, locked, and cleared of what a killed process left."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from kerasseg.evaluation.test_use_log import LOOKS, record_look
from kerasseg.runs.directory import RUNS, RunDirectory
from kerasseg.runs.history import append_log
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(root: Path | None = None, strategy: str = "conservative") -> RunDirectory:
    run = RunDirectory.create(root, strategy)
    run.config_file.write_text("{}")
    return run


def test_names_are_dates_and_strategies_and_never_taken_twice() -> None:
    first, second = made(), made()
    assert first.root.parent == RUNS
    assert first.root.name.endswith("-conservative")
    assert first.root != second.root


def test_a_run_is_found_by_folder_name_or_as_the_latest() -> None:
    one, other = made(RUNS / "one"), made(Path("elsewhere"))
    one.point_latest()
    assert RunDirectory.find("one").root.samefile(one.root)
    assert RunDirectory.find(RUNS / "one").root.samefile(one.root)
    assert RunDirectory.find(other.root).root.samefile(other.root)
    for latest in (None, "latest"):
        assert RunDirectory.find(latest).root.samefile(one.root)
    assert one.is_latest()
    assert not other.is_latest()
    other.point_latest()
    assert RunDirectory.find().root.samefile(other.root)
    assert (RUNS / "latest").read_text() == "../elsewhere\n"


def test_a_run_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"no run found.*kerasseg train"):
        RunDirectory.find()
    for name in ("monday", "tuesday"):
        made(RUNS / name)
    with pytest.raises(DataError, match=r"no such run.*monday, tuesday.*Did you mean 'monday'"):
        RunDirectory.find("munday")
    (RUNS / "latest").write_text("gone\n")
    with pytest.raises(DataError, match="the latest run was deleted"):
        RunDirectory.find()
    with pytest.raises(DataError, match="not a run directory"):
        RunDirectory.open("nowhere")


def test_a_folder_with_something_else_is_not_taken() -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter-1.tex").write_text("")
    with pytest.raises(UsageError, match=r"new or empty folder.*chapter-1.tex"):
        RunDirectory.create(Path("thesis"), "scratch")
    Path("file").write_text("")
    with pytest.raises(UsageError, match="new or empty folder"):
        RunDirectory.create(Path("file"), "scratch")
    made(Path("run"))
    with pytest.raises(UsageError, match="--resume --out run"):
        RunDirectory.create(Path("run"), "scratch")


def test_what_a_killed_beginning_left_is_no_hindrance_and_is_cleared() -> None:
    run = RunDirectory.create(Path("run"), "scratch")
    run.baseline_file.write_bytes(b"half")
    for folder in (run.root, run.state_folder):
        (folder / ".tmp-file").write_bytes(b"half a file")
        (folder / ".tmp-folder").mkdir()
        (folder / ".tmp-folder" / "model.keras").write_bytes(b"half a network")
    again = RunDirectory.create(Path("run"), "scratch")
    with again.locked():
        assert not list(again.root.rglob(".tmp-*"))
        assert again.baseline_file.exists()


def test_one_process_at_a_time() -> None:
    run = made()
    assert not run.is_running()
    with run.locked():
        assert run.is_running()
        with (
            pytest.raises(KerassegError, match="another process is training in this run"),
            RunDirectory(run.root).locked(),
        ):
            pass
    assert not run.is_running()
    with run.locked():
        pass


def test_best_weights_that_no_state_names_are_deleted() -> None:
    run = made()
    for tag in ("0-00001", "0-00002", "1-00001"):
        run.best_file(tag).write_bytes(b"")
    run.prune_best({"0-00002", "1-00001"})
    assert sorted(p.name for p in run.state_folder.iterdir()) == ["best-0-00002.keras", "best-1-00001.keras"]


def test_a_device_is_no_name_of_the_latest_run() -> None:
    Path("runs").mkdir()
    Path("runs/latest").symlink_to("/dev/null")
    with pytest.raises(DataError, match="no run found"):
        RunDirectory.find()


def test_nothing_is_appended_through_a_link() -> None:
    for name, append in (("log.jsonl", lambda: append_log(Path("log.jsonl"), {})), (LOOKS, lambda: look(Path()))):
        Path(name).symlink_to("elsewhere")
        with pytest.raises((OSError, KerassegError), match="symbolic links"):
            append()
    assert not Path("elsewhere").exists()


def look(shards: Path) -> int:
    return record_look(shards, None, run_id="", fingerprint="f")


# --- log -----------------------------------------------------------------------------------------------------------------


def test_a_torn_line_costs_itself_alone() -> None:
    log = Path("log.jsonl")
    append_log(log, {"event": "began", "rate": float("nan"), "facts": {"a": (1, 2)}})
    with log.open("ab") as stream:
        stream.write(b'{"event": "torn", "te')
    append_log(log, {"event": "ended"})
    with log.open("ab") as stream:
        stream.write(b"[1]\n\xff\xfe\n")
    entries = []
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            entries += [entry] if isinstance(entry, dict) else []
    assert [entry["event"] for entry in entries] == ["began", "ended"]
    assert entries[0]["rate"] is None
    assert entries[0]["facts"] == {"a": [1, 2]}
    assert all("time" in entry for entry in entries)
    json.loads(log.read_text(errors="replace").splitlines()[0], parse_constant=pytest.fail)


def test_a_log_that_cannot_be_written_does_not_end_a_training() -> None:
    from kerasseg.training.events import Message
    from kerasseg.training.recorder import log_to

    run = made()
    listen = log_to(run)
    listen(Message("note", "first", "Heard."))
    run.log_file.unlink()
    run.log_file.mkdir()
    listen(Message("note", "second", "Not heard."))
