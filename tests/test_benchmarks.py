"""The page of benchmarks holds what was printed, and nothing else."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import h5py
import numpy as np
import pytest

import kerasseg
from benchmarks.__main__ import DOCS, PARTS, RESULTS
from benchmarks.freezing import counted_saving, multiply_adds
from benchmarks.measure import ROOT, Cost, costs, rounds_of
from benchmarks.page import CHART, HEADLINES, TITLES, chart, page, slower, tables
from benchmarks.real.__main__ import Effort, Job, collect, train_long, train_on_all
from benchmarks.real.figures import Figures, difference, looks
from benchmarks.real.keeping import joined, with_earlier
from benchmarks.real.knows import KnowsPlan, best_trial, collect_knows, train_knows
from benchmarks.real.page import page_text
from benchmarks.real.pictures import draw_curves
from benchmarks.real.plan import trials_on_few
from benchmarks.real.unseen import another_scanner, both_annotators, other_heads
from benchmarks.real.workshop import Workshop
from benchmarks.result import Result, compared, sized
from benchmarks.turns import contenders
from kerasseg.runs.settings import TrainSettings
from kerasseg.workflows.cross_validate import CrossValidation


def test_the_page_is_made_from_the_results() -> None:
    document = json.loads(RESULTS.read_text())
    assert (DOCS / "benchmarks.md").read_text() == page(document)
    assert (DOCS / "benchmarks-tables.md").read_text() == tables(document)
    if "job" in document["parts"]:
        assert (DOCS / CHART).read_text() == chart(document)
    assert page(document).count("\n| ") == 2 + len(HEADLINES)  # every headline is there


def test_the_page_of_results_is_made_from_its_document() -> None:
    found = Figures.model_validate_json((ROOT / "benchmarks" / "real.json").read_text())
    assert not found.quick
    assert (ROOT / "docs" / "results.md").read_text() == page_text(found)


def test_curves_are_drawn_from_the_document_alone(tmp_path: Path) -> None:
    found = Figures.model_validate_json((ROOT / "benchmarks" / "real.json").read_text())
    draw_curves(found, tmp_path)
    one = cv2.imread(str(tmp_path / "results-curves.png"))
    (plain,) = (judgement for judgement in found.judgements if judgement.name == "scratch")
    fewer = plain.model_copy(update={"name": "10", "heads": 10})
    draw_curves(found.model_copy(update={"judgements": (fewer, plain)}), tmp_path)
    two = cv2.imread(str(tmp_path / "results-curves.png"))
    assert one.shape == two.shape
    assert np.any(one != two)


def test_a_page_keeps_what_earlier_runs_found() -> None:
    whole = Figures.model_validate_json((ROOT / "benchmarks" / "real.json").read_text())
    names = [trial.name for trial in whole.trials]
    one, other = whole.trials[0], whole.trials[-1]
    changed = other.model_copy(update={"best": 0.123})
    found = whole.model_copy(
        update={
            "dates": ("2030-01-01",),
            "trials": (changed,),
            "counts": {other.data: whole.counts[other.data]},
            "crossed": (),
            "compared": (),
            "looks": {other.data: ("new",)},
        }
    )
    joined = with_earlier(found, whole, names)
    assert joined.trials == (*whole.trials[:-1], changed)
    assert (joined.crossed, joined.compared, joined.counts) == (whole.crossed, whole.compared, whole.counts)
    assert set(joined.looks[other.data]) == {*whole.looks[other.data], "new"}
    assert joined.dates == (*whole.dates, "2030-01-01")
    # Again, with the same runs: nothing is counted twice.
    assert with_earlier(found, joined, names) == joined
    # What the plan has no more goes, and figures of other software are not mixed with these.
    assert one not in with_earlier(found, whole, names[1:]).trials
    for update in ({"software": {"keras": "4.0"}}, {"checkpoint": "another"}, {"counts": {other.data: {}}}):
        elsewhere = found.model_copy(update=update)
        assert with_earlier(elsewhere, whole, names) == elsewhere
    # Nothing new: the page was not printed today.
    assert with_earlier(whole.model_copy(update={"dates": ("2030-01-01",)}), whole, names) == whole


def test_recipes_of_earlier_days_stay_beside_those_of_another_size() -> None:
    whole = Figures.model_validate_json((ROOT / "benchmarks" / "real.json").read_text())
    first, *others = whole.best
    again, larger = first.model_copy(update={"minutes": 1.0}), first.model_copy(update={"size": 1000})
    found = joined(whole.best, (again, larger), lambda best: (best.crossed.label, best.size))
    assert found == (again, *others, larger)
    text = page_text(whole.model_copy(update={"best": found}))
    assert text.count(f"\n| {first.crossed.label.split(' --')[0]} --") == sum(
        b.crossed.label == first.crossed.label for b in found
    )
    assert "| 1000x1000 |" in text
    assert "Ensembles on both1000: 1." in text


def test_no_training_here_takes_nothing_from_the_page(tmp_path: Path) -> None:
    whole = Figures.model_validate_json((ROOT / "benchmarks" / "real.json").read_text())
    shop = Workshop(tmp_path / "work", tmp_path / "nowhere", tmp_path / "unet")
    assert collect(Job(shop, Effort(), whole)) == whole
    with pytest.raises(SystemExit, match="`few` comes first"):
        collect(Job(shop, Effort(), None))
    with pytest.raises(SystemExit, match="`knows` comes first"):
        train_on_all(Job(shop, Effort(), whole))
    few = tuple(trial for trial in whole.trials if trial.data == "mat128")
    job = Job(shop, Effort(), whole.model_copy(update={"trials": few}))
    with pytest.raises(SystemExit, match="`many` comes first"):
        train_long(job)


def test_what_is_missing_is_named_with_the_option_that_names_it(tmp_path: Path) -> None:
    trial = trials_on_few(128)[0]
    shop = Workshop(tmp_path / "work", tmp_path / "nowhere", tmp_path / "unet")
    with pytest.raises(SystemExit, match=r"unet is missing.*--checkpoint"):
        shop.train(trial)
    shop.checkpoint.mkdir()
    with pytest.raises(SystemExit, match=r"figshare-mat is missing.*--data"):
        shop.train(trial)
    assert not shop.folder.exists()


def test_heads_of_another_folder_are_left_out_by_head_and_not_by_id(tmp_path: Path) -> None:
    source, seen = tmp_path / "png", tmp_path / "mat"
    source.mkdir()
    seen.mkdir()
    with h5py.File(seen / "7.mat", "w") as file:
        file["cjdata/PID"] = np.array([[ord(c)] for c in "MR0400"], np.uint16)
    patients = ["MR0400", "MR0400B", "MR04001", "101"]
    table = "".join(f"images/{k}.png,masks/{k}.png,glioma,{patient}\n" for k, patient in enumerate(patients))
    (source / "index.csv").write_text("image,mask,label,patient\n" + table)
    out = other_heads(source, seen, tmp_path / "others")
    with (out / "index.csv").open() as file:
        assert [row["patient"] for row in csv.DictReader(file)] == ["MR04001", "101"]
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["2.png", "3.png"]
    assert (out / "images" / "3.png").readlink() == source / "images" / "3.png"


def test_a_smaller_share_of_the_heads_holds_no_other_heads(tmp_path: Path) -> None:
    source, seen = tmp_path / "png", tmp_path / "mat"
    source.mkdir()
    seen.mkdir()
    table = "".join(
        f"images/{k}.png,masks/{k}.png,{label},{label[0]}{k % 10}\n"
        for label in ("glioma", "meningioma")
        for k in range(40)
    )
    (source / "index.csv").write_text("image,mask,label,patient\n" + table)
    heads = []
    for share in (0.1, 0.5, 1):
        out = other_heads(source, seen, tmp_path / str(share), share)
        with (out / "index.csv").open() as file:
            rows = list(csv.DictReader(file))
        heads.append({row["patient"] for row in rows})
        assert len(rows) == 4 * len(heads[-1])  # whole heads
    assert [len(some) for some in heads] == [2, 10, 20]
    assert heads[0] < heads[1] < heads[2]
    assert {head[0] for head in heads[0]} == {"g", "m"}


def test_every_slice_has_the_masks_of_both_annotators(tmp_path: Path) -> None:
    source, second = tmp_path / "first", tmp_path / "second"
    for folder in (source / "images", source / "masks", second):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("7", "8"):
        for folder in ("images", "masks"):
            cv2.imwrite(str(source / folder / f"{name}.png"), rng.integers(0, 255, (16, 20), np.uint8))
    large = np.kron(rng.integers(0, 2, (16, 20), np.uint8) * 255, np.ones((2, 2), np.uint8))
    cv2.imwrite(str(second / "8.png"), large)
    lines = "".join(f"images/{name}.png,masks/{name}.png,glioma,{name}\n" for name in ("7", "8"))
    (source / "index.csv").write_text("image,mask,label,patient\n" + lines)
    out = both_annotators(source, second, tmp_path / "out")
    with (out / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == ["7", "7", "8", "8"]
    images, masks = (
        [cv2.imread(str(out / row[column]), cv2.IMREAD_GRAYSCALE) for row in rows] for column in ("image", "mask")
    )
    assert np.array_equal(images[2], images[3])
    assert np.array_equal(masks[0], masks[1])  # no second mask of this slice
    assert not np.array_equal(masks[2], masks[3])
    assert np.array_equal(masks[3], large[::2, ::2])
    assert len({row["image"] for row in rows}) == 4


def test_another_scanner_changes_every_image_and_no_mask(tmp_path: Path) -> None:
    source = tmp_path / "mat"
    source.mkdir()
    grey = np.add.outer(np.arange(64), np.arange(32)).astype(np.int16) * 40
    mask = np.zeros((64, 32), np.uint8)
    mask[10:20, 5:9] = 1
    for name, patient in (("1", "MR0400"), ("2", "101")):
        with h5py.File(source / f"{name}.mat", "w") as file:
            # MATLAB stores column by column.
            file["cjdata/image"], file["cjdata/tumorMask"] = grey.T, mask.T
            file["cjdata/PID"] = np.array([[ord(c)] for c in patient], np.uint16)
            file["cjdata/label"] = np.array([[2.0]])
    out = another_scanner(source, tmp_path / "out")
    with (out / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"], row["patient"]) for row in rows] == [("glioma", "MR0400"), ("glioma", "101")]
    plain = grey / grey.max()
    for row in rows:
        assert np.array_equal(cv2.imread(str(out / row["mask"]), cv2.IMREAD_GRAYSCALE), mask * 255)
        image = cv2.imread(str(out / row["image"]), cv2.IMREAD_GRAYSCALE) / 255
        assert image.shape == plain.shape
        # Still the same anatomy, in other grey levels.
        assert np.corrcoef(image.ravel(), plain.ravel())[0, 1] > 0.8
        assert np.abs(image - plain).mean() > 0.03


def test_a_part_whose_raw_data_are_missing_says_which_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "figshare-mat").mkdir()
    shop = Workshop(tmp_path / "work", tmp_path, tmp_path / "unet")
    with pytest.raises(SystemExit, match=r"figshare-png is missing.*--data"):
        train_knows(shop, KnowsPlan())
    assert collect_knows(shop, KnowsPlan()) is None
    assert best_trial(shop, KnowsPlan()) is None
    assert not shop.folder.exists()


def test_a_cross_validation_killed_before_its_figures_goes_on(tmp_path: Path) -> None:
    trial = trials_on_few(128)[0]
    shop = Workshop(tmp_path, tmp_path, tmp_path)
    root = tmp_path / "runs" / f"cv-{trial.name}"
    (root / "ensemble").mkdir(parents=True)
    (root / "ensemble" / "config.json").write_text("{}")
    assert not shop.crossed(trial)
    state = CrossValidation(
        kerasseg="1", created="", folds=2, fingerprint="f", settings=TrainSettings(checkpoint="unet")
    )
    (root / "cross-validation.json").write_text(state.model_dump_json())
    assert not shop.crossed(trial)


def test_a_look_that_was_cut_off_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test-looks.jsonl").write_text('{"look": "a"}\n{"look": "a"}\n{"look": "b", "ru')
    assert len(looks(tmp_path)) == 2


def test_a_difference_is_paired_and_of_the_same_slices() -> None:
    one = {"a": (0.1, "p"), "b": (0.9, "q"), "c": (0.5, "r")}
    other = {"c": (0.7, "r"), "a": (0.4, "p"), "b": (1.0, "q")}
    assert difference(one, other).mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="different slices"):
        difference(one, {"a": (0.4, "p")})


def test_a_ratio_is_taken_a_round_and_not_of_medians() -> None:
    ours = [Cost(1, 1), Cost(4, 1), Cost(2, 2)]
    peer = [Cost(2, 3), Cost(4, 4), Cost(10, 10)]
    result = compared("training", "step", "peer", ours, peer, slices=8)
    assert (result.ratio.low, result.ratio.median, result.ratio.high) == (1, 2, 5)
    assert result.processor is not None
    assert (result.processor.low, result.processor.median, result.processor.high) == (3, 4, 5)
    assert (result.ours, result.peer, result.unit) == (4, 2, "slices/s")
    assert Result.read(json.loads(json.dumps(result.document()))) == result


@pytest.mark.parametrize(
    ("time", "processor", "goal", "behind"),
    [(2, 2, None, False), (2, 0.5, None, True), (0.5, 2, None, False), (0.5, 0, None, True), (2, 2, 3.0, True)],
)
def test_processor_time_says_who_is_behind(time: float, processor: float, goal: float | None, behind: bool) -> None:
    result = compared("training", "step", "peer", [Cost(1, 1)], [Cost(time, processor)], goal=goal)
    assert slower(result) is behind


def test_what_freezing_saves_is_counted_on_the_graph_of_the_network() -> None:
    # Saved are the gradients of two kernels, of the second one's input, and (at half the size) of the bottleneck's.
    model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0)
    kerasseg.freeze(model, "aggressive")
    forward, backward = multiply_adds(model)
    assert forward < backward < 2 * forward  # the image needs no gradient
    assert counted_saving(["encoder_1"], model) == pytest.approx(256 * 9 * (2 + 4 + 4 + 8 / 4) / (forward + backward))


def test_the_chart_of_the_whole_job_has_a_bar_a_stage_for_both() -> None:
    lines = [sized("job", "the whole job", "script", 100, 60, unit="s")]
    for number, stage in enumerate(("prepare", "train", "tune-threshold", "evaluate"), start=1):
        lines.append(sized("job", f"of it kerasseg {stage}", "script", 10 * number, 6 * number, unit="s"))
    drawn = ElementTree.fromstring(chart({"parts": {"job": {"results": [line.document() for line in lines]}}}))  # noqa: S314
    widths = [float(bar.attrib["width"]) for bar in drawn if bar.tag.endswith("rect") and bar.attrib["height"] == "30"]
    assert widths == pytest.approx([48, 96, 144, 192, 28.8, 57.6, 86.4, 115.2])
    texts = [text.text for text in drawn if text.tag.endswith("text")]
    assert texts[:4] == ["kerasseg", "100 s", "a plain Keras script", "60.0 s"]


def test_a_line_without_a_goal_of_its_own_is_never_behind() -> None:
    result = compared("roofline", "layer", "bound", [Cost(2, 0)], [Cost(1, 0)], slices=1, unit="GFLOP/s", goal=0.0)
    assert not slower(result)
    assert (result.ours, result.unit) == (0.5, "GFLOP/s")
    assert "goal" not in str(result)


def test_a_line_behind_is_named_at_the_end_of_the_page() -> None:
    machine = {
        "date": "2026-01-01",
        "processor": "P",
        "cores": 2,
        "instruction_sets": ["avx2"],
        "memory_gib": 8,
        "load": 0.1,
        "system": "S",
        "versions": {"keras": "3.15"},
    }
    results = [sized("training", "fine", "peer", 1, 2), sized("training", "bad", "peer", 2, 1)]
    found = {"machine": machine, "seconds": 90, "results": [r.document() for r in results]}
    made = page({"parts": {"training": found}})
    end = made.split("## What is behind")[1]
    assert "bad, against peer" in end
    assert "fine" not in end
    assert "2026-01-01: P, 2 cores (avx2), 8 GiB; S; keras 3.15." in made
    measured = "2026-01-01: P, 2 cores (avx2), 8 GiB, load 0.1 at the end; S; keras 3.15."
    assert f"{measured} It took 1.5 minutes." in tables({"parts": {"training": found}})


def test_contenders_take_turns_and_slow_ones_come_once() -> None:
    order: list[str] = []

    def action(name: str) -> Cost:
        order.append(name)
        return Cost(1, 1)

    found = rounds_of({name: lambda n=name: action(n) for name in "abc"}, 3, once="b")
    assert order == list("abcacac")
    assert [len(found[name]) for name in "abc"] == [3, 1, 3]


def test_contenders_say_what_they_cost_and_one_that_cannot_be_made_is_left_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # A Mock is an action that does nothing.
    makers = {"there": ("unittest.mock:Mock",), "missing": ("unittest.mock:no_such_thing",)}
    with contenders(makers) as running:
        assert list(running) == ["there"]
        cost = running["there"]()
    assert 0 < cost.time < 60
    assert 1 < running["there"].base <= running["there"].peak < 10_000  # MB
    told = capfd.readouterr()
    assert "without missing" in told.out
    assert "no_such_thing" in told.err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_processor_time_of_children_counts_once_alive_or_ended() -> None:
    busy = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    children = []

    def start() -> None:
        child = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()

    alive = costs(start)
    ended = costs(children[0].communicate)
    assert alive.processor > 0.2 > ended.processor


def test_every_part_gives_results() -> None:
    for part in PARTS:
        assert callable(importlib.import_module(f"benchmarks.{part}").results)
        assert part in TITLES
