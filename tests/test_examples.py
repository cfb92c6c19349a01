"""Every example runs: doctests of all modules, Python blocks and `kerasseg` lines of README and docs."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest

from children import Children
from factories import write_figshare

ROOT = Path(__file__).resolve().parents[1]
HOUSES = {"kerasseg_cli": ROOT / "cli", "kerasseg": ROOT, "kerasseg_tfrecords": ROOT / "tfrecords"}
MODULES = sorted(
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
    for package, base in HOUSES.items()
    for path in (base / package).rglob("*.py")
    if path.stem != "__main__" and ">>> " in path.read_text()
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="session")
def doctest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of docstrings run: `data`, 36 slices of 18 patients, and `shards` made of them."""
    from kerasseg_tfrecords import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("doctests")
    write_figshare(folder / "data", patients=18, slices_each=2, size=48)
    prepare(folder / "data", folder / "shards", PrepareOptions(size=32), jobs=1)
    return folder


@pytest.mark.rest
def test_doctests(doctest_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module's; pytest shows what each failing example printed."""
    monkeypatch.chdir(doctest_folder)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = {name: doctest.testmod(importlib.import_module(name), optionflags=options).failed for name in MODULES}
    assert {name: number for name, number in failed.items() if number} == {}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def python_of(page: Path) -> str:
    return "\n".join(text for language, text in blocks(page) if language == "python")


def commands_of(page: Path) -> list[str]:
    """Lines that begin with `kerasseg`, without what a reader puts in and the comment behind."""
    lines = [line for language, text in blocks(page) if not language for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("kerasseg ")]


WITH_PYTHON = [page for page in PAGES if python_of(page)]
WITH_COMMANDS = [page for page in PAGES if commands_of(page)]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


CHECKPOINTS = """
import kerasseg  # noqa: E402
for network in (kerasseg.unet((32, 32, 3), filters=4, seed=0),):
    network.export("unet-export", verbose=False)
    network.save("unet.keras")
    network.save("unet.h5")
"""

UNREACHABLE = ("fetch",)
"""Commands that need the net, which tests do not reach."""


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    """Types commands in a folder as a reader of the documentation has it: raw data, an exported network, and shards."""
    folder = tmp_path_factory.mktemp("desk")
    write_figshare(folder / "data", patients=30, slices_each=2, size=48)
    (folder / "figshare").symlink_to("data")
    found = Children(folder)
    done = found.python(CHECKPOINTS)
    assert done.returncode == 0, done.stderr
    done = found.run("prepare", "data", "--quiet", "--size", 32)
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.rest
@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_python_of_a_page(children: Children, page: Path) -> None:
    """All blocks of a page in one process, one after another, as a reader would type them."""
    done = children.python(python_of(page).replace('prepare("data", "shards"', f'prepare("data", "shards-{page.stem}"'))
    assert done.returncode == 0, done.stderr


@pytest.mark.rest
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_commands_of_a_page(children: Children, page: Path) -> None:
    trained = False
    for line in commands_of(page):
        words = shlex.split(line.replace("CHECKPOINT", "unet-export"))
        if any("/" in word and word.startswith(("hf:", "https:")) for word in words) or any(w.isupper() for w in words):
            continue  # a name to put in, or a place on the net
        if words[1] in UNREACHABLE:
            continue
        if words[1] in {"prepare", "convert"}:
            words += ["--overwrite"]
        if words[1] == "prepare":
            # Usual sizes and several processes show nothing more, and take long.
            words = [str(min(int(w), 64)) if before == "--size" else w for before, w in pairwise(["", *words])]
            words += ["--jobs", "1"] + ["--size", "32"] * ("--size" not in words)
        if words[1] == "train":
            # What it does is shown elsewhere; of several on a page the later ones only begin.
            words += ["--epochs", "0"] if trained else ["--epochs", "1", "--steps", "1"]
            trained = True
        done = children.run(*words[1:])
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.rest
@pytest.mark.slow
def test_our_parts_in_somebodys_own_fit(tmp_path: Path, python: str, child_environment: dict[str, str]) -> None:
    """The script ends, gains, and the best network opened again, compiled as it was saved, scores what it scored."""
    command = [
        python,
        "-W",
        "error::UserWarning",
        str(ROOT / "docs" / "examples" / "own_fit.py"),
        str(tmp_path / "own"),
    ]
    environment = {**child_environment, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = re.search(r"Dice ([\d.]+) before, ([\d.]+) at best\n.*opened again: ([\d.]+)", done.stdout)
    assert scores is not None, done.stdout
    before, best, again = (float(text) for text in scores.groups())
    assert best > before
    assert again == pytest.approx(best, abs=0.0011)


Script = Callable[..., str]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs an example with arguments, in this process: TensorFlow has been imported long since. Gives what it prints."""

    def run(name: str, *words: object) -> str:
        path = ROOT / "docs" / "examples" / name
        monkeypatch.setattr("sys.argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.rest
@pytest.mark.slow
def test_the_shards_in_plain_tensorflow(script: Script, tmp_path: Path) -> None:
    """It learns; and the same folder of shards serves it again, with the same figures."""
    outputs = [script("plain_tensorflow.py", tmp_path / "out", *words) for words in ([], [tmp_path / "out" / "shards"])]
    first, again = ([float(text) for text in re.findall(r"validation Dice ([\d.]+)", output)] for output in outputs)
    assert len(first) == 4
    assert first[-1] > first[0] + 0.2
    assert again == pytest.approx(first, abs=0.005)


def test_masks_of_another_program(script: Script, tmp_path: Path) -> None:
    """The drawn masks, then NIfTI volumes in millimetres, against figures computed by hand."""
    drawn = script("score_masks.py")
    assert re.search(r"24 slices with tumour, 12 patients\n.*\n.*pixels .* 1 missed\n", drawn)
    for patient in range(3):
        true = np.zeros((20, 20, 3), np.uint8)
        true[5:10, 5:15, 1] = 1
        found = true.copy()
        found[5, :, 1] = 0  # one row of five: Dice 2 * 40 / (40 + 50), and that row is 1.5 mm away
        for name, mask in (("true", true), ("found", found)):
            (tmp_path / name).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(mask, np.diag([1.5, 0.5, 4, 1]))
            nibabel.save(image, tmp_path / name / f"case_{patient}.nii.gz")
    text = script("score_masks.py", tmp_path / "found", tmp_path / "true")
    assert "3 slices with tumour, 3 patients" in text
    assert re.search(r"Dice +0\.889 ", text)
    assert re.search(r"HD95 of found, mm +1\.500 .* 0 missed", text)
    (tmp_path / "found" / "case_1.nii.gz").unlink()
    with pytest.raises(SystemExit, match=r"case_1\.nii\.gz: no prediction for a reference"):
        script("score_masks.py", tmp_path / "found", tmp_path / "true")


def test_the_pages_show_what_they_should() -> None:
    """Nothing that is looked for above has silently gone."""
    assert {page.name for page in WITH_COMMANDS} >= {"README.md", "data.md"}
    assert {page.name for page in WITH_PYTHON} >= {"README.md", "data.md"}
    assert "kerasseg prepare data/" in commands_of(ROOT / "README.md")
    assert len(MODULES) > 20
