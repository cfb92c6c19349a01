"""`kerasseg prepare` and `kerasseg verify` as typed: what is shown, what machines get, exit codes, no tracebacks."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from children import PATIENCE
from factories import blob, write_figshare, write_mat

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "scans"
    return write_figshare(folder, patients=30, slices_each=2, size=40)


@pytest.fixture
def kerasseg(python: str, child_environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs the command in `tmp_path`, as a user would, in a process of its own."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "kerasseg_cli", *map(str, arguments)]
        return subprocess.run(
            command, env={**child_environment, **environment}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
def test_prepare_then_verify(kerasseg: Run, raw: Path, tmp_path: Path) -> None:
    done = kerasseg("prepare", raw, "--size", 32, "--split", "60/20/20", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar where nobody watches
    assert "\x1b" not in done.stdout
    for word in (
        "meningioma",
        "glioma",
        "pituitary",
        "train",
        "val",
        "test",
        "patients",
        "60/20/20",
        "kerasseg verify",
    ):
        assert word in done.stdout
    checked = kerasseg("verify")
    assert checked.returncode == 0, checked.stdout
    assert "Sound: 60 records" in checked.stdout
    assert "Next: kerasseg train --checkpoint CHECKPOINT" in checked.stdout
    shard = next((tmp_path / "shards" / "train").glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-3])
    broken = kerasseg("verify", "shards")
    assert broken.returncode == 3
    assert shard.name in broken.stdout
    as_json = kerasseg("verify", "shards", "--json")
    assert as_json.returncode == 3
    document = json.loads(as_json.stdout)
    assert document["sound"] is False
    assert any(shard.name in line for line in document["errors"])


@pytest.mark.slow
def test_json_is_one_document(kerasseg: Run, raw: Path) -> None:
    done = kerasseg("prepare", raw, "--size", 32, "--json", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["out"] == "shards"
    assert document["classes"] == ["meningioma", "glioma", "pituitary"]
    assert sum(entry["slices"] for entry in document["counts"]) == 60


@pytest.mark.slow
def test_bad_files_are_all_named_with_exit_code_3(kerasseg: Run, raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(raw, folder)
    (folder / "1.mat").write_bytes(b"rubbish")
    image, mask = blob(1, 40)
    write_mat(folder / "2.mat", image, mask, 7)
    (folder / "lüc\nke.mat").write_bytes((folder / "3.mat").read_bytes()[:500])
    done = kerasseg("prepare", folder, "--size", 32, "--jobs", 1)
    assert done.returncode == 3
    for name in ("scans/1.mat", "scans/2.mat", "scans/lüc\\nke.mat"):
        assert any(line.strip().startswith(f"{name}:") for line in done.stderr.splitlines()), done.stderr
    assert "--skip-bad" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists()
    document = json.loads(kerasseg("prepare", folder, "--size", 32, "--jobs", 1, "--json").stdout)
    assert [problem["name"] for problem in document["problems"]] == [
        "scans/1.mat",
        "scans/2.mat",
        "scans/lüc\nke.mat",
    ] or len(document["problems"]) == 3
    skipped = kerasseg("prepare", folder, "--size", 32, "--jobs", 1, "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    assert "Skipped 3 bad files" in skipped.stdout


@pytest.mark.slow
def test_raw_data_are_checked_before_any_conversion(kerasseg: Run, raw: Path, tmp_path: Path) -> None:
    good = kerasseg("verify", "--data", raw)
    assert good.returncode == 0, good.stdout + good.stderr
    folder = tmp_path / "scans"
    shutil.copytree(raw, folder)
    image, mask = blob(1, 40)
    write_mat(folder / "2.mat", np.full_like(image, 5), mask, 1)
    bad = kerasseg("verify", "--data", folder)
    assert bad.returncode == 3
    assert "2.mat" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr
    assert not (tmp_path / "shards").exists()


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["prepare", "nowhere"], 3, "nowhere"),
        (["prepare"], 2, "INPUT"),
        (["prepare", "{raw}", "--split", "80/10"], 2, "--split"),
        (["prepare", "{raw}", "--split", "many"], 2, "--split"),
        (["prepare", "{raw}", "--size", "0"], 2, "--size"),
        (["prepare", "{raw}", "--size", "big"], 2, "expected a valid integer."),
        (["prepare", "{raw}", "--format", "bmp"], 2, "figshare"),
        (["prepare", "{raw}", "--foreground", "a"], 2, "--foreground"),
        (["prepare", "{raw}", "--foreground", "1,"], 2, "such as 1,4"),
        (["prepare", "{raw}", "--classes", "lesion,lesion"], 2, "--classes"),
        (["prepare", "{raw}", "--classes", ","], 2, "--classes"),
        (["prepare", "{raw}", "--splits", "nowhere.csv"], 3, "nowhere.csv"),
        (["prepare", "{raw}", "--exclude-overlap", "nowhere"], 3, "nowhere"),
        (["verify", "nowhere"], 3, "nowhere"),
        (["verify", "{raw}"], 3, "kerasseg verify --data"),
        (["verify", "nowhere", "--data", "{raw}"], 2, "not both"),
    ],
)
def test_mistakes_get_one_clear_line(
    kerasseg: Run, raw: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = kerasseg(*[part.format(raw=raw) for part in arguments])
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_debug_shows_the_traceback(kerasseg: Run) -> None:
    assert "Traceback" in kerasseg("verify", "nowhere", "--debug").stderr


def test_version(kerasseg: Run) -> None:
    from kerasseg_tfrecords._version import __version__

    assert kerasseg("--version").stdout == f"kerasseg {__version__}\n"


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_says_how_to_go_on(python: str, child_environment: dict[str, str], tmp_path: Path, presses: int) -> None:
    folder = write_figshare(tmp_path / "scans", patients=200, slices_each=3, size=64)
    command = [python, "-m", "kerasseg_cli", "prepare", str(folder), "--jobs", "2"]
    child = subprocess.Popen(
        command,
        env=child_environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("shards.partial/spool/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(presses):
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: everybody in the group
        time.sleep(0.02)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, said
    assert "Interrupted. Run the same command again to continue." in said
    assert "Traceback" not in said
    assert not (tmp_path / "shards").exists()
    again = subprocess.run(command, env=child_environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_and_the_table_fit_a_terminal(
    python: str, child_environment: dict[str, str], raw: Path, tmp_path: Path, width: int
) -> None:
    """In a pseudo terminal: a bar with a rate is drawn, and no line of the table is wider than the window."""
    main, side = pty.openpty()
    command = [python, "-m", "kerasseg_cli", "prepare", str(raw), "--jobs", "1", "--size", "32"]
    environment = {**child_environment, "COLUMNS": str(width), "TERM": "xterm-256color", "NO_COLOR": "1"}
    child = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=side, text=True)
    os.close(side)
    drawn = b""
    try:
        while chunk := os.read(main, 65536):
            drawn += chunk
    except OSError:  # how Linux says that the other side has closed
        pass
    out, _ = child.communicate()
    assert child.returncode == 0
    assert "Reading slices" in drawn.decode()
    assert "60/60" in drawn.decode()
    assert max(len(line) for line in out.splitlines()) <= width
    os.close(main)
