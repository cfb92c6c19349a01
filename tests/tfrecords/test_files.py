"""Atomic writing: the old file or the new one, whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import explain_os_error, lock, temporary_space, write_atomically

WRITER = """
import sys, itertools
from pathlib import Path
from kerasseg_tfrecords.files import write_atomically
for number in itertools.count():
    write_atomically(Path(sys.argv[1]), bytes([number % 256]) * 3_000_000, durable=False)
    print(number, flush=True)
"""


def test_killed_writers_leave_a_whole_file(python: str, child_environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "state"
    for pause in (0.0, 0.003, 0.007):
        child = subprocess.Popen(
            [python, "-c", WRITER, str(path)], env=child_environment, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


def test_a_failed_rename_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KerassegError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output"),
    ],
)
def test_system_errors_become_sentences(code: int, words: str) -> None:
    message = str(explain_os_error(OSError(code, os.strerror(code)), Path("shards")))
    assert message.startswith("shards: ")
    assert words in message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_folder_for_temporary_files_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(KerassegError, match=rf"^{tmp_path}: .*for temporary files.*bytes free.*TMPDIR"),
        temporary_space(),
    ):
        raise OSError(code, os.strerror(code))
    with pytest.raises(PermissionError), temporary_space():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_no_folder_for_temporary_files_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of which not one byte is left is passed over, and in the end there is none."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(KerassegError, match=rf"^{tmp_path}: no space left.*TMPDIR"), temporary_space():
        tempfile.mkdtemp()
    with pytest.raises(FileNotFoundError), temporary_space():
        (tmp_path / "gone").read_bytes()


HOLDER = """
import sys, time
from pathlib import Path
from kerasseg_tfrecords.files import lock
with lock(Path(sys.argv[1]), "shards"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(python: str, child_environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = subprocess.Popen(
        [python, "-c", HOLDER, str(path)], env=child_environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(KerassegError, match="another process"), lock(path, "shards"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with lock(path, "shards"):
        pass
