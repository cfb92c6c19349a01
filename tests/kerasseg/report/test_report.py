"""`report.html`: says what the figures say, shows what the masks show, and is whole in a browser without a network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import cv2
import jinja2
import numpy as np
import pytest

from browser import Page, browser
from evaluations import CLASSES, HOSTILE, Slices, evaluation
from kerasseg.evaluation.joined import SlicePicture
from kerasseg.evaluation.schema import Evaluation, Figures, Mean, NetworkFigures
from kerasseg.report.charts import Line, Span, interval_chart, line_chart, strip_chart, ticks
from kerasseg.report.evaluation import choose, write_report
from kerasseg.report.overlays import close_up, outline_path
from kerasseg.report.page import render
from kerasseg.report.sections import ThresholdCurve, group_table
from kerasseg.report.wording import gain_sentence, share, stages_with_effect
from kerasseg_tfrecords.errors import UsageError, one_line


class Text(HTMLParser):
    """The text that a reader sees, and the elements with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def slices() -> Slices:
    return Slices()


@pytest.fixture(scope="module")
def figures(slices: Slices) -> Evaluation:
    return evaluation(slices.rows())


@pytest.fixture(scope="module")
def curve() -> ThresholdCurve:
    thresholds = np.linspace(0.01, 0.99, 99)
    dice = 0.8 - (thresholds - 0.42) ** 2
    return ThresholdCurve(thresholds, dice, 0.42, dice - 0.03, dice + 0.03, dice - 0.1, 0.31)


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, slices: Slices, figures: Evaluation, curve: ThresholdCurve
) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(figures, slices.rows(), slices, path, threshold_curve=curve)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def words(path: Path) -> Text:
    return Text(path.read_text(encoding="utf-8"))


# --- what it says --------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_holds_the_figures(report: Path, figures: Evaluation) -> None:
    text = words(report).text
    dice = figures.final_stage().all.measures["dice"]
    assert text.index("Verdict") < text.index(f"Dice {dice.mean:.3f}") < text.index("By stage")
    assert f"{dice.low:.3f} to {dice.high:.3f}" in text
    gain = figures.gain["postprocessing"]
    assert f"{gain.mean:.3f} Dice higher than the checkpoint before training (95 % CI {gain.low:+.3f}" in text
    for mark in ("✓ met", "? open", "✗ missed"):
        assert mark in text
    assert text.count("Not for clinical use") >= 3


def test_every_part_is_there_and_only_where_it_was_asked_for(
    report: Path, slices: Slices, curve: ThresholdCurve, tmp_path: Path
) -> None:
    text = words(report).text
    parts = ("Threshold", "Calibration", "Robustness", "Second annotator", "Speed", "Best, median and worst")
    headings = {part: f" {part}" in text for part in parts}
    assert all(headings.values()), headings
    for fact in ("80/10/10", "3, including this one", "keras 3.15.1", "no patient in more than one split", "0.043"):
        assert fact in text
    bare = tmp_path / "bare.html"
    write_report(evaluation(slices.rows(), whole=False), (), None, bare)
    found = words(bare)
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", bare.read_text())
    assert titles == [
        "Verdict",
        "By stage",
        "All measures",
        "By class",
        "By size of the tumour",
        "Details",
        "Limits",
    ]
    assert "checkpoint before training" not in found.text.lower()


def test_stages_that_change_nothing_are_left_out(figures: Evaluation) -> None:
    stages = figures.model.stages
    same = [stage.model_copy(update={"rule": stages[0].rule}) for stage in stages]
    network = figures.model.model_copy(update={"stages": tuple(same)})
    without = figures.model_copy(update={"model": network, "baseline": None})
    assert [stage.name for stage in stages_with_effect(without)] == ["raw"]
    assert stages_with_effect(figures)[0] == stages[0]


def test_numbers_of_the_tables_are_those_of_the_document(report: Path, figures: Evaluation) -> None:
    text = words(report).text
    for stage in figures.model.stages:
        assert f"{stage.all.measures['dice'].mean:.3f}" in text
    for name in CLASSES:
        its = figures.final_stage().classes[name].measures["dice"]
        assert re.search(rf"{name}6 slices, 6 patients ?{its.mean:.3f}", text)
    found = figures.final_stage().all
    half = sum(row.dice > 0.5 for row in Slices().rows())
    assert f"{18 - found.untouched} of 18 tumours touched, {half} of them with Dice above 0.5" in text


def test_hostile_names_are_text(report: Path) -> None:
    found = words(report)
    assert HOSTILE in found.text
    assert "script" not in {tag for tag, _ in found.elements}
    assert not any("onerror" in attributes for _, attributes in found.elements)


def test_nothing_is_fetched_from_elsewhere(report: Path) -> None:
    raw = report.read_text(encoding="utf-8")
    addresses = [v for _, a in words(report).elements for k, v in a.items() if k in ("src", "href") and v]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\((?!#)", raw)
    assert "@import" not in raw


def test_pictures_and_charts_have_words(report: Path) -> None:
    found = words(report)
    images = [a for tag, a in found.elements if tag == "img"]
    assert len(images) == 2 * 3 * len(CLASSES)
    assert all(len(a["alt"] or "") > 20 for a in images)
    charts = [a for tag, a in found.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 1 + 2 + 1 + 1 + 4 + 1
    assert all(len(a["aria-label"] or "") > 20 and a["role"] == "img" for a in charts)


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (Mean(mean=0.02, low=0.01, high=0.03, slices=9, patients=6, clear=True), "6 patients): beyond chance"),
        (Mean(mean=-0.02, low=-0.03, high=-0.01, slices=9, patients=6), "0.020 Dice lower than x (95 % CI"),
        (Mean(mean=0.02, low=0.01, high=0.03, slices=9, patients=5, clear=False), "may be chance"),
        (Mean(mean=0.02, low=-0.01, high=0.05, slices=9, patients=5), "may be chance"),
        (Mean(mean=0.02, low=None, high=None, slices=9, patients=4), "4 patients: too few for a conclusion"),
        # A file of an earlier version, which had intervals over few patients.
        (Mean(mean=0.02, low=0.01, high=0.03, slices=9, patients=3), "3 patients: too few for a conclusion"),
        (Mean(mean=None, low=None, high=None, slices=0, patients=0), ""),
    ],
)
def test_a_gain_is_called_what_its_interval_says(mean: Mean, said: str) -> None:
    assert said in gain_sentence(mean, "x")
    assert bool(gain_sentence(mean, "x")) == bool(said)


def test_a_curve_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"one low per threshold \(found shape \(2,\), expected shape \(3,\)\)"):
        ThresholdCurve([0.1, 0.2, 0.3], [1, 1, 1], 0.1, low=[0, 0])


# --- what it shows -------------------------------------------------------------------------------------------------------


def test_the_best_median_and_worst_are_chosen(slices: Slices) -> None:
    rows = [row for row in slices.rows() if row.label == "glioma"]
    scores = sorted(row.dice for row in rows)
    best, median, worst = (row.dice for _, row in choose(rows))
    assert (best, worst) == (scores[-1], scores[0])
    assert median == scores[len(scores) - 1 - len(scores) // 2]
    assert [place for place, _ in choose(rows[:2])] == ["best", "worst"]
    assert [place for place, _ in choose(rows[:1])] == ["best"]
    assert choose([]) == []


def fill(path: str, shape: tuple[int, int], scale: int) -> np.ndarray:
    """The area inside a path by the even-odd rule, drawn by OpenCV."""
    area = np.zeros((shape[0] * scale, shape[1] * scale), np.uint8)
    rings = []
    for ring in path.strip("MZ").split("ZM"):
        numbers = np.array([float(x) for x in re.findall(r"[\d.]+", ring)]).reshape(-1, 2)
        rings.append(np.round(numbers - 0.5).astype(np.int32))
    cv2.fillPoly(area, rings, 1)
    return area.astype(bool)


def test_an_outline_encloses_its_mask_and_leaves_out_its_holes() -> None:
    rows, columns = np.mgrid[:40, :40]
    radius = np.hypot(rows - 20, columns - 18)
    mask = (radius < 12) & (radius > 5) | ((rows == 2) & (columns == 37))
    large = np.kron(mask, np.ones((8, 8), bool))
    drawn = fill(outline_path(mask, 8), mask.shape, 8)
    # An outline runs an eighth of a pixel inside or outside of the border.
    assert (drawn != large).mean() < 0.02
    assert drawn[20 * 8 + 4, 18 * 8 + 4] == large[20 * 8 + 4, 18 * 8 + 4] == False  # noqa: E712
    assert drawn[2 * 8 + 4, 37 * 8 + 4]
    assert outline_path(np.zeros((4, 4), bool)) == ""


def test_hits_misses_and_false_alarms_are_told_apart() -> None:
    reference, prediction = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    reference[20:30, 20:30] = True
    prediction[20:30, 25:35] = True
    image = np.zeros((64, 64, 1), np.uint8)
    both = close_up(image, reference, prediction, "x")
    assert all(f'class="{name}"' in both for name in ("hit", "miss", "alarm"))
    assert "alarm" not in close_up(image, reference, reference, "x")
    assert 'class="miss"' in close_up(image, reference, ~reference & False, "x")
    nothing = close_up(image, ~reference & False, ~reference & False, "x")
    assert "path" not in nothing
    assert 'width="64"' in nothing
    corner = np.zeros((64, 64), bool)
    corner[0, 0] = corner[63, 63] = True
    assert 'width="64"' in close_up(image, corner, corner, "x")


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{svg}</div>")  # noqa: S314 - ours


def test_charts_are_sound_svg_with_places_that_fit_the_values() -> None:
    chart = line_chart(
        [Line("<a>", [0, 1, 2, 3], [0.2, None, float("nan"), 0.8]), Line("b", [0, 3], [0.4, 0.4])],
        describe='a "chart" & more',
        x_label="x",
        y_label="y",
        y=(0, 1),
    )
    tree = parsed(chart)
    marks = [e for e in tree.iter() if e.get("class") == "mark s0" and e.get("cx") != "17"]
    assert len(marks) == 2
    low, high = (float(e.get("cy", "nan")) for e in marks)
    assert low > high
    texts = [e.text for e in tree.iter() if e.text]
    assert "<a>" in "".join(tree.itertext())
    assert "0.5" in texts or "0.4" in texts
    spans = interval_chart(
        [("c", [Span(0.5, 0.4, 0.6)]), ("d", [Span(None, None, None)])], ("n",), describe="d", x_label="x"
    )
    assert "none" in "".join(parsed(spans).itertext())
    empty = line_chart([Line("a", [], [])], describe="nothing", x_label="x", y_label="y")
    assert parsed(empty)[0].tag == "svg"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.83, 0.97), (0.5, 0.504), (-0.2, 0.31), (0, 4000)])
def test_ticks_are_round_ascending_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 11
    assert found == sorted(set(found))
    assert min(found) >= low - 1e-9
    assert max(found) <= high + 1e-9
    assert all(len(f"{value:g}") <= 6 for value in found)


def test_a_minus_nought_is_none() -> None:
    assert share(-1e-9) == "0.000"


# --- in a browser --------------------------------------------------------------------------------------------------------

MISSING = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
COLOUR = "getComputedStyle(document.body).backgroundColor"
WIDE = """[...document.querySelectorAll('main *, header *, footer *')].filter(e =>
  !e.closest('.scroll') && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.slow
def test_the_page_is_whole_in_a_browser(page: Page, report: Path) -> None:
    page.open(report)
    assert page.value("document.title") == "shards, test slices, 2026-01-02"
    assert page.value("document.images.length") == 18
    assert page.value(MISSING) == 0
    assert page.value("document.querySelectorAll('svg.chart').length") == 10
    assert page.value("Math.min(...[...document.querySelectorAll('svg.chart')].map(e => e.clientHeight))") > 100
    elsewhere = [address for address in page.requests if not address.startswith("data:")]
    assert elsewhere == [report.as_uri()]
    assert page.problems == []


def test_distances_are_in_millimetres_where_the_spacing_is_known(figures: Evaluation) -> None:
    def with_mm(one: Figures) -> Figures:
        return one.model_copy(update={"measures": {**one.measures, "hd95_mm": one.measures["hd95"]}})

    unknown, final = group_table(figures, "classes"), figures.final_stage()
    assert unknown is not None
    assert unknown.columns[-1] == "HD95, pixels"
    classes = {name: with_mm(one) for name, one in final.classes.items()}
    final = final.model_copy(update={"all": with_mm(final.all), "classes": classes})
    network = NetworkFigures(stages=(*figures.model.stages[:-1], final))
    known = group_table(figures.model_copy(update={"model": network}), "classes")
    assert known is not None
    assert known.columns[-1] == "HD95, mm"
    assert [row[-1] for row in known.rows] == [row[-1] for row in unknown.rows]


class WithProbabilities:
    """The slices with probabilities that fall off around the prediction."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def picture(self, slice_id: str) -> SlicePicture:
        shown = self.slices.picture(slice_id)
        soft = cv2.GaussianBlur(shown.prediction.astype(np.float32), (0, 0), 2)
        return dataclasses.replace(shown, prediction=soft >= 0.4, probability=soft, threshold=0.4)


@pytest.mark.slow
def test_example_slices_have_a_threshold_slider(
    page: Page, slices: Slices, figures: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "sliders.html"
    pictures = WithProbabilities(slices)
    write_report(figures, slices.rows(), pictures, path)
    page.open(path, width=390)
    page.wait("document.querySelectorAll('.slider input').length === 9")
    first = choose([row for row in slices.rows() if row.label == CLASSES[0]])[0][1]
    shown = pictures.picture(first.slice_id)
    page.click(".slider input")  # in the middle
    page.wait("document.querySelector('.slider output').innerText.startsWith('0.5')")
    page.press("ArrowLeft", 37, times=20)
    page.wait("document.querySelector('.slider output').innerText.startsWith('0.4')")
    level = int(page.value("document.querySelector('.slider input').value"))
    assert shown.probability is not None
    found = np.rint(shown.probability * 255) >= level
    dice = 2 * (found & shown.reference).sum() / (found.sum() + shown.reference.sum())
    assert page.value("document.querySelector('.slider output').innerText") == f"{level / 255:.2f}: Dice {dice:.3f}"
    assert page.value("document.querySelectorAll('.slice canvas').length") == 1
    assert page.value("document.documentElement.scrollWidth") <= 390
    assert page.problems == []
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.open(path)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.value("[...document.querySelectorAll('.slider')].every(e => getComputedStyle(e).display === 'none')")


def test_only_a_page_with_sliders_has_a_script(
    slices: Slices, figures: Evaluation, report: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sliders.html"
    write_report(figures, slices.rows(), WithProbabilities(slices), path)
    text = path.read_text()
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text
    assert "script-src" not in report.read_text()


def test_the_strip_plot_has_a_dot_per_slice(report: Path) -> None:
    dots = [a["d"] or "" for _, a in words(report).elements if (a.get("class") or "").startswith("dots")]
    assert [d.count("h0") for d in dots] == [6, 6, 6]
    chart = strip_chart([("a", [0.0, 1.0, float("nan")])], describe="x", x_label="Dice")
    left, right = re.findall(r"M([\d.]+) [\d.]+h0", chart)
    assert float(left) < 20 < 460 < float(right)


@pytest.mark.slow
def test_the_browser_test_would_see_a_broken_page(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<main><img src='gone.png'><div style='width:2000px'>x</div></main><script>nothing()</script>")
    page.open(broken, width=390)
    assert page.value(MISSING) == 1
    assert any(address.endswith("gone.png") for address in page.requests)
    assert page.value("document.documentElement.scrollWidth") > 390
    assert page.value(WIDE)
    assert page.problems
    page.problems.clear()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone(page: Page, report: Path, dark: bool) -> None:
    page.open(report, width=390, height=800, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= 390
    assert page.value(WIDE) == []
    # What is wider stands in a frame of its own that scrolls, and that the keyboard reaches.
    assert page.value("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")


@pytest.mark.slow
def test_light_dark_and_paper(page: Page, report: Path) -> None:
    page.open(report)
    assert page.value(COLOUR) == "rgb(255, 255, 255)"
    page.open(report, dark=True)
    assert page.value(COLOUR) == "rgb(20, 24, 28)"
    page.open(report, dark=True, media="print", width=800)
    assert page.value(COLOUR) == "rgb(255, 255, 255)"
    assert page.value("document.documentElement.scrollWidth") <= 800


def test_a_page_has_no_control_or_direction_characters() -> None:
    name = "a\u202eb\x1b[31m\udcff"
    drawn = interval_chart([(name, [Span(0.5, 0.4, 0.6)])], ("n",), describe=name, x_label="x")
    template = jinja2.Template("{{ a }}")
    with patch.object(jinja2.Environment, "get_template", lambda *_: template):
        page = render("x", {"a": drawn})
    assert r"a\u202eb\x1b[31m\udcff" in page
    assert page == one_line(page)
