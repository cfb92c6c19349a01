"""Atomic writing: the old file or the new one, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from kerasseg_tfrecords import files
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.files import (
    atomic_folder,
    explain_os_error,
    lock,
    remove_leftovers,
    scratch_folder,
    system_error,
    temporary_space,
    write_atomically,
)

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
    with pytest.raises(KerassegError, match=rf"^{tmp_path}: .*TMPDIR"), temporary_space():
        raise RuntimeError(f"h5py writes: errno = {code}, error message = '{os.strerror(code)}'")
    with pytest.raises(KerassegError, match=rf"bytes free, {1 << 60:,} needed"), temporary_space(needed=1 << 60):
        pytest.fail("there is not so much space")
    other = tmp_path / "other"  # where the process that started this one found room
    with pytest.raises(KerassegError, match=rf"^{other}: .*TMPDIR"), temporary_space(other):
        raise OSError(code, os.strerror(code))
    with pytest.raises(PermissionError), temporary_space():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_temporary_files_of_libraries_are_told_from_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    full, inside = os.strerror(errno.ENOSPC), str(tmp_path / "scratch" / "tmpx" / "variables")
    quoted = system_error(RuntimeError(f"{{{{node}}}} {inside}; {full} [Op:SaveV2]"))
    assert quoted is not None
    out = tmp_path / "model.keras"
    for error in (OSError(errno.ENOSPC, full, inside), quoted):
        assert re.match(rf"{tmp_path}/scratch: no space.*TMPDIR", str(explain_os_error(error, out)))
        own = tmp_path / "scratch" / "model.keras"
        assert str(explain_os_error(error, own)).startswith(f"{own}: no space")
    for error in (OSError(errno.ENOSPC, full, str(out)), OSError(errno.ENOSPC, full)):
        assert str(explain_os_error(error, out)).startswith(f"{out}: no space")


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


def test_a_lock_waits_for_a_child_that_outlives_its_process_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerasseg_tfrecords.files._RELEASE", 900.0)
    path = tmp_path / "lock"
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "0.3"], pass_fds=[stream.fileno()])
    with lock(path, "shards"):
        child.wait()


# --- folders -------------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("swap", [True, False])
def test_a_folder_is_replaced_whole_or_not_at_all(swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swap:
        monkeypatch.setattr(files, "_swap", lambda *_: False)
    target = tmp_path / "made"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1")
        assert not target.exists()
    with pytest.raises(KerassegError, match="cannot be written"), atomic_folder(target, replace=True) as folder:
        (folder / "new" / "without a folder").mkdir()
    assert names(tmp_path) == ["made", "made/old"]
    with pytest.raises(KerassegError, match="already exists"), atomic_folder(target):
        pass

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KerassegError, match="no space left"), atomic_folder(target, replace=True, check=full):
        pass
    assert names(tmp_path) == ["made", "made/old"]
    with atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("2")
    assert names(tmp_path) == ["made", "made/new"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("1")
    monkeypatch.setattr(files, "_swap", lambda *_: False)
    replace = os.replace

    def fails_for_the_new(source: Path, destination: Path) -> None:
        if "/new/" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fails_for_the_new)
    with pytest.raises(KerassegError, match="Input/output"), atomic_folder(target, replace=True):
        pass
    assert names(tmp_path) == ["made", "made/old"]


KILLED = """
import os, signal, sys
from pathlib import Path
from kerasseg_tfrecords import files
target = Path(sys.argv[1])
if sys.argv[2] == "between":
    files._swap = lambda *_: False
    replace = os.replace
    def once(a, b):
        replace(a, b)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = once
with files.atomic_folder(target, replace=True) as folder:
    (folder / "new").write_bytes(bytes(1000))
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["within", "between"])
def test_leftovers_of_a_killed_process_are_removed(
    python: str, child_environment: dict[str, str], tmp_path: Path, when: str
) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("1")
    (tmp_path / ".tmp-of-somebody-else").mkdir()
    done = subprocess.run([python, "-c", KILLED, str(target), when], env=child_environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".tmp-kerasseg-*"))) == 1
    with scratch_folder(tmp_path) as mine:
        remove_leftovers(tmp_path)  # not that of a process at work
        assert mine.is_dir()
    assert names(tmp_path) == [".tmp-of-somebody-else", "made", "made/old"]


def test_the_next_write_removes_the_file_of_a_killed_one(
    python: str, child_environment: dict[str, str], tmp_path: Path
) -> None:
    for _ in range(3):
        command = [python, "-c", WRITER, str(tmp_path / "state")]
        child = subprocess.Popen(command, env=child_environment, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
    write_atomically(tmp_path / "state", "new")
    assert names(tmp_path) == ["state"]


def test_used_up_inodes_are_not_called_missing_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = os.statvfs(tmp_path)
    values = list(state)
    values[6] = values[7] = 0  # f_ffree, f_favail
    values[5] = 1000  # f_files
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    error = explain_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path / "gone" / "file")
    assert "inodes" in str(error)
    assert "no space" not in str(error)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KerassegError) as caught, temporary_space():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "inodes" in str(caught.value)
    assert "free)" not in str(caught.value).replace("free bytes)", "")
    # The temporary folder occupies inodes that are free again when the error is explained.
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values if ".tmp-" in str(path) else state))
    with pytest.raises(KerassegError, match=rf"^{tmp_path}/made: .*inodes"), atomic_folder(tmp_path / "made"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_errors_name_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(KerassegError) as caught, scratch_folder(tmp_path) as scratch:
        write_atomically(scratch / "none" / "file", "")
    assert caught.value.path == str(tmp_path)


def test_a_limit_on_the_size_of_files_is_not_a_full_disk() -> None:
    with pytest.raises(KerassegError, match=r"size limit for temporary files\. Raise the limit"), temporary_space():
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(KerassegError, match="size limit"), temporary_space(needed=1 << 21):
            pytest.fail("the file may not be so large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lock_is_neither_a_pipe_nor_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(KerassegError, match="cannot be written"), lock(tmp_path / name, "shards"):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_told_with_the_name_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KerassegError, match="no space left") as told, atomic_folder(tmp_path / "made") as folder:  # noqa: PT012
        monkeypatch.setattr(os, "fsync", full)
        write_atomically(folder / "report.html", "x")
    assert str(told.value).startswith(f"{tmp_path / 'made'}: no space left")
