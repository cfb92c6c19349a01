"""`kerasseg compare` as typed: table, page with pictures, JSON, and what it says where something is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import kerasseg
from evaluations import evaluation
from factories import write_figshare
from kerasseg.evaluation.per_slice import SliceRow, StageScores, to_csv
from kerasseg_cli.app import app
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions, load_manifest
from kerasseg_tfrecords.records.shards import read_records

pytestmark = pytest.mark.slow


def rows_of(shards: Path, better: float) -> list[SliceRow]:
    classes = ("meningioma", "glioma", "pituitary")
    rng = np.random.default_rng(0)
    found = []
    for record in read_records(shards, "test"):
        dice = float(np.clip(rng.uniform(0.3, 0.6) + better * rng.uniform(0.5, 1.5), 0, 1))
        scores = StageScores(9, 5, dice, dice / (2 - dice), dice, dice, 2.0, 1.0)
        label = classes[record.label]
        found.append(
            SliceRow(
                *(record.slice_id, record.patient, record.group, "", label, 48, 48, 0.0, 0.0),
                int(record.mask_native.sum()),
                *(scores,) * 3,
            )
        )
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated runs and their shards: `runs/a`, `runs/b`, of which b is better, and `runs/c`, not evaluated."""
    folder = tmp_path_factory.mktemp("desk")
    shards = folder / "shards"
    raw = write_figshare(folder / "raw", patients=30, slices_each=2, size=48)
    prepare(raw, shards, PrepareOptions(size=32, split="60/20/20"), jobs=1)
    for i, name in enumerate("abc"):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=i).save(run / "model.keras")
        if name == "c":
            continue
        rows = rows_of(shards, 0.2 * i)
        figures = evaluation(rows, whole=False)
        data = figures.data.model_copy(update={"fingerprint": load_manifest(shards).fingerprint})
        figures = figures.model_copy(update={"run": name, "shards": "shards", "data": data})
        (run / "evaluation" / "test").mkdir(parents=True)
        (run / "evaluation" / "test" / "metrics.json").write_text(figures.model_dump_json())
        to_csv(rows, run / "evaluation" / "test" / "per_slice.csv")
    return folder


@pytest.fixture
def typed(desk: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["compare", *arguments])

    return run


def test_the_table_and_the_page(typed, desk: Path) -> None:  # type: ignore[no-untyped-def]
    done = typed("a", "runs/b")
    assert done.exit_code == 0, done.output
    assert "b is better than a: +0." in done.output
    for word in ("all slices", "glioma", "B better / worse / same", "changed most", "raw/"):
        assert word in done.output
    page = (desk / "runs" / "compare-a-b.html").read_text()
    # Eight of the slices that changed are shown, each whole and in two close-ups.
    assert page.count("<img ") == 3 * 8
    assert page.count("data:image/jpeg;base64,") == 3 * 8
    assert "Not for clinical use" in page


def test_json_is_one_document_and_nothing_else(typed, desk: Path) -> None:  # type: ignore[no-untyped-def]
    done = typed("a", "b", "--json", "--out", "x.html", "--most", "2", "--no-pictures")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["all"]["wins"] == 12
    assert len(document["changed"]) == 2
    assert document["page"] == "x.html"
    assert "<img" not in (desk / "x.html").read_text()


def test_quiet_says_nothing(typed) -> None:  # type: ignore[no-untyped-def]
    assert typed("a", "b", "--quiet", "--no-pictures").output == ""


def test_without_shards_there_are_no_pictures_and_a_warning(typed, desk: Path) -> None:  # type: ignore[no-untyped-def]
    (desk / "shards").rename(desk / "away")
    try:
        done = typed("a", "b", "--out", "y.html")
    finally:
        (desk / "away").rename(desk / "shards")
    assert done.exit_code == 0, done.output
    assert "Warning: the page has no pictures" in done.stderr
    assert "the evaluated shards were not found" in done.stderr.replace("\n", " ")
    assert "<img" not in (desk / "y.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a", "c"), 3, "the run was not evaluated on its test slices. Evaluate it: kerasseg evaluate runs/c"),
        (("a", "b", "--split", "validation"), 3, "not evaluated on its validation slices (found figures of test)"),
        (("a", "bb"), 3, "no such run"),
    ],
)
def test_what_is_missing_is_said(typed, arguments: tuple[str, ...], code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    done = typed(*arguments)
    assert done.exit_code == code
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.output


@pytest.mark.parametrize("columns", [60, 80, 99, 200])
@pytest.mark.parametrize("name", ["b", "20260101-000000-conservative"])
def test_no_figure_is_cut_at_any_width(
    typed,  # type: ignore[no-untyped-def]
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    name: str,
) -> None:
    if not (desk / "runs" / name).exists():
        shutil.copytree(desk / "runs" / "b", desk / "runs" / name)
    monkeypatch.setenv("COLUMNS", str(columns))
    done = typed("a", name, "--no-pictures", "--out", "p.html")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "…" not in done.stdout
    figures = json.loads(typed("a", name, "--no-pictures", "--out", "p.html", "--json").stdout)
    for difference in (figures["all"], *figures["classes"].values()):
        gain = difference["dice"]
        limits = "too few patients" if gain["low"] is None else f"{gain['low']:+.4f} to {gain['high']:+.4f}"
        means = f"{difference['first']['mean']:.4f}", f"{difference['second']['mean']:.4f}", f"{gain['mean']:+.4f}"
        assert re.search(r"\s+".join(map(re.escape, (*means, limits))), done.stdout)
    assert name in done.stdout
    # Nothing is left out on a narrow screen, and the runs have one pair of names.
    assert "B better / worse / same" in done.stdout
    assert "missed, A / B" in done.stdout
    assert not {"before", "now"} & set(done.stdout.split())
