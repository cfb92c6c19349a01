"""Two runs paired slice by slice: figures against plain NumPy, what is in common, and the page in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from browser import browser
from evaluations import CLASSES, HOSTILE, Slices, evaluation
from kerasseg.evaluation.bootstrap import bootstrap_interval
from kerasseg.evaluation.compare import TIE, Evaluated, compare, evaluated
from kerasseg.evaluation.per_slice import to_csv
from kerasseg.report.comparison import write_comparison
from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import DataError, UsageError

# Of the same slices, the higher with a larger shift; every third slice changes more than its neighbours.
SHIFT = 0.06


def make(slices: Slices, name: str, shift: float = 0.0, **changes: object) -> Evaluated:
    rows = slices.rows(shift)
    figures = evaluation(rows, whole=False).model_copy(update={"run": f"runs/{name}", **changes})
    return Evaluated(run=Path("runs") / name, figures=figures, rows=tuple(rows))


@pytest.fixture(scope="module")
def slices() -> Slices:
    return Slices()


@pytest.fixture(scope="module")
def first(slices: Slices) -> Evaluated:
    return make(slices, "a")


@pytest.fixture(scope="module")
def second(slices: Slices) -> Evaluated:
    return make(slices, "b", SHIFT)


def test_figures_agree_with_a_plain_computation(first: Evaluated, second: Evaluated) -> None:
    found = compare(first, second)
    before, after = (np.array([row.dice for row in run.rows]) for run in (first, second))
    change = after - before
    assert found.all.dice.mean == pytest.approx(change.mean())
    assert (found.all.first.mean, found.all.second.mean) == (
        pytest.approx(before.mean()),
        pytest.approx(after.mean()),
    )
    assert found.all.wins == sum(change >= TIE)
    assert found.all.losses == sum(change <= -TIE)
    assert found.all.wins + found.all.losses + found.all.ties == len(change)
    assert found.all.ties > 0
    labels = np.array([row.label for row in first.rows])
    for name in CLASSES:
        assert found.classes[name].dice.mean == pytest.approx(change[labels == name].mean())
    interval = bootstrap_interval(change, [row.group for row in first.rows])
    assert (found.all.dice.low, found.all.dice.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.all.dice.patients == 9
    assert found.verdict.startswith("b is better than a: +")


@pytest.mark.parametrize(("unknown", "unit", "mean"), [(0, "mm", "+1.5"), (2, "pixels", "+3.0")])
def test_distances_are_in_millimetres_if_the_spacing_of_all_slices_is_known(
    unknown: int, unit: str, mean: str, first: Evaluated, tmp_path: Path
) -> None:
    def moved(pixels: float, unknown: int) -> Evaluated:
        rows = list(first.rows)
        for k, row in enumerate(rows):
            distance = row.postprocessing.hd95 + pixels
            metric = math.nan if k >= len(rows) - unknown else distance / 2
            scores = dataclasses.replace(row.postprocessing, hd95=distance, hd95_mm=metric)
            rows[k] = dataclasses.replace(row, postprocessing=scores)
        return Evaluated(run=Path(f"moved-{pixels}"), figures=first.figures, rows=tuple(rows))

    found = compare(moved(0, 0), moved(3, unknown))
    assert (found.all.in_mm, found.all.hd95.mean) == (unit == "mm", pytest.approx(3))
    write_comparison(found, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"HD95 difference, {unit}" in page
    assert mean in page


def test_the_largest_changes_come_first_in_either_direction(slices: Slices, first: Evaluated) -> None:
    rows = slices.rows()
    worse = dataclasses.replace(rows[3], postprocessing=dataclasses.replace(rows[3].postprocessing, dice=0.0))
    better = dataclasses.replace(rows[5], postprocessing=dataclasses.replace(rows[5].postprocessing, dice=1.0))
    other = Evaluated(run=Path("b"), figures=first.figures, rows=(*rows[:3], worse, rows[4], better, *rows[6:]))
    found = compare(first, other)
    expected = sorted(
        [(rows[3].slice_id, -rows[3].dice), (rows[5].slice_id, 1 - rows[5].dice)], key=lambda pair: -abs(pair[1])
    )
    assert [(c.slice_id, pytest.approx(c.dice)) for c in found.changed] == expected
    assert (found.all.wins, found.all.losses, found.all.ties) == (1, 1, 16)
    assert len(compare(first, other, most=1).changed) == 1


def test_turned_round_it_says_the_opposite(first: Evaluated, second: Evaluated) -> None:
    there, back = compare(first, second), compare(second, first)
    assert back.all.dice.mean == pytest.approx(-(there.all.dice.mean or 0))
    assert (back.all.wins, back.all.losses) == (there.all.losses, there.all.wins)
    assert back.verdict.startswith("a is worse than b: -")
    same = compare(first, first)
    assert same.changed == ()
    assert same.verdict.startswith("The difference may be chance")


def test_a_verdict_needs_patients_and_tumours(first: Evaluated, second: Evaluated) -> None:
    few = [
        Evaluated(
            run=run.run,
            figures=run.figures,
            rows=tuple(row for row in run.rows if row.group in ("p0", "p1", "p2", "p3")),
        )
        for run in (first, second)
    ]
    assert compare(*few).verdict.startswith("4 patients: too few for a conclusion (+0.")
    five = [
        Evaluated(run=run.run, figures=run.figures, rows=tuple(row for row in run.rows if row.group < "p5"))
        for run in (first, second)
    ]
    # The interval excludes 0, and a sign-flip test over five patients cannot agree.
    found = compare(*five)
    assert found.all.dice.low is not None
    assert found.all.dice.low > 0
    assert found.verdict.startswith("The difference may be chance")
    empty = [
        Evaluated(
            run=run.run,
            figures=run.figures,
            rows=tuple(dataclasses.replace(row, reference_pixels=0) for row in run.rows),
        )
        for run in (first, second)
    ]
    assert compare(*empty).verdict == "No slice has a tumour: there is no verdict."


def test_only_slices_in_common_are_compared_and_it_is_said(slices: Slices, first: Evaluated) -> None:
    rows = slices.rows(SHIFT)
    other_mask = dataclasses.replace(rows[0], reference_pixels=1)
    data = first.figures.data.model_copy(update={"fingerprint": "0" * 64})
    other = Evaluated(
        run=Path("b"), figures=first.figures.model_copy(update={"data": data}), rows=(other_mask, *rows[1:10])
    )
    found = compare(first, other)
    assert found.all.dice.slices == 9
    assert "9 slices are in both; 9 of the first run and 1 of the second are left out." in found.remarks
    assert any("different shard directories" in remark for remark in found.remarks)
    alien = Evaluated(run=Path("b"), figures=first.figures, rows=(other_mask,))
    with pytest.raises(UsageError, match="no slice in common .*expected the same slices.*kerasseg evaluate"):
        compare(first, alien)
    model = first.figures.model_copy(update={"resolution": "model"})
    with pytest.raises(UsageError, match=r"different resolutions \(found native and model\).*--resolution"):
        compare(first, Evaluated(run=Path("b"), figures=model, rows=first.rows))


def test_test_slices_are_not_for_choosing(first: Evaluated, second: Evaluated) -> None:
    assert any("on validation slices" in remark for remark in compare(first, second).remarks)
    validation = [
        Evaluated(run=run.run, figures=run.figures.model_copy(update={"split": "val"}), rows=run.rows)
        for run in (first, second)
    ]
    assert not any("on validation slices" in remark for remark in compare(*validation).remarks)


def test_what_evaluate_left_is_read(first: Evaluated, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a")
    folder = run.root / "evaluation" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(first.figures.model_dump_json())
    to_csv(first.rows, folder / "per_slice.csv")
    read = evaluated(run)
    assert read.figures == first.figures
    assert [row.dice for row in read.rows] == [row.dice for row in first.rows]
    with pytest.raises(DataError, match=r"not evaluated on its validation slices \(found figures of test\)") as caught:
        evaluated(run, "validation")
    assert f"kerasseg evaluate {run.root} --split validation" in str(caught.value)


def test_runs_of_one_name_are_told_apart(slices: Slices) -> None:
    found = compare(make(slices, "x/fold-1"), make(slices, "y/fold-1", SHIFT))
    assert (found.first, found.second) == ("x-fold-1", "y-fold-1")


def test_the_document_for_machines_is_json(first: Evaluated, second: Evaluated) -> None:
    document = json.loads(compare(first, second).model_dump_json())
    assert document["all"]["wins"] + document["all"]["losses"] + document["all"]["ties"] == 18
    assert document["changed"][0].keys() == {"slice_id", "label", "first", "second"}


@pytest.mark.slow
def test_the_page_is_whole_in_a_browser(slices: Slices, first: Evaluated, second: Evaluated, tmp_path: Path) -> None:
    found = compare(first, second, most=20)
    assert any(change.slice_id == HOSTILE for change in compare(second, make(slices, "c", -0.3), most=20).changed)
    page = tmp_path / "compare-a-b.html"
    write_comparison(compare(second, make(slices, "c", -0.3), most=20), (slices, slices), page)
    raw = page.read_text()
    assert "<script" not in raw
    assert "&lt;script&gt;" in raw
    with browser(tmp_path / "profile") as shown:
        for width in (1200, 390):
            shown.open(page, width=width)
            assert shown.value("document.title") == "c (B) compared with b (A)"
            assert shown.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert shown.value("document.images.length") % 3 == 0
            assert shown.value("document.images.length") > 0
            assert shown.value("document.documentElement.scrollWidth") <= width
            assert [a for a in shown.requests if not a.startswith("data:")] == [page.as_uri()]
            assert shown.problems == []
    bare = tmp_path / "bare.html"
    write_comparison(found, None, bare)
    assert "<img" not in bare.read_text()
