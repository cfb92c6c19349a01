"""What a run writes down and reads back: settings, history, progress, curves; and what its figures are made to say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from fake_training import GROUPS, row, table
from kerasseg.callbacks import PlateauState
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import settings_from
from kerasseg.runs.history import EpochRow, read_history, rows_from_json, rows_to_json, to_csv
from kerasseg.runs.settings import TrainSettings, parse_settings
from kerasseg.training.diagnostics import (
    check_intensity,
    clearly_below,
    far_message,
    few_slices_message,
    idle_message,
    overfitting_message,
    sunk_message,
)
from kerasseg.training.recorder import draw_curves
from kerasseg.training.state import EpochSums, Progress, SliceTable
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError

# --- history -------------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(allow_infinity=False)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
KINDS = {"phase": NAMES, "event": st.sampled_from(["", "rate 1e-05", "thaw 1, stop"]), "best": st.booleans()}
KINDS |= {name: st.integers(0, 99) for name in ("epoch", "thawed", "parts")}


def rows_of(classes):
    def named(values):
        return dict(zip(classes, values, strict=True))

    kinds = {f.name: KINDS.get(f.name, NUMBERS) for f in fields(EpochRow)}
    return st.lists(
        # The order of the classes is the same in all lines.
        st.builds(EpochRow, **kinds | {"classes": st.tuples(*[NUMBERS] * len(classes)).map(named)}),
        max_size=4,
    )


HISTORIES = st.lists(NAMES, max_size=3, unique=True).flatmap(rows_of)


@given(history=HISTORIES)
def test_history_comes_back_from_json(history):
    text = json.dumps(rows_to_json(history), allow_nan=False)
    assert [repr(r) for r in rows_from_json(json.loads(text))] == [repr(r) for r in history]


@given(history=HISTORIES)
def test_history_comes_back_from_csv(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("history") / "history.csv"
    path.write_text(to_csv(history), encoding="utf-8")
    assert [repr(r) for r in read_history(path)] == [repr(r) for r in history]


@pytest.mark.parametrize(
    "content", [b"phase,epoch\nx,1\n", b"\xff\xfe\x00", to_csv([row(0)]).replace("0.7", "much").encode()]
)
def test_what_is_no_history_is_said(tmp_path, content):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="history of a run"):
        read_history(path)


# --- progress ------------------------------------------------------------------------------------------------------------


def test_progress_comes_back():
    sums = (
        EpochSums().with_step(0.5, np.array([0.1, 0.9], np.float32), 1.5).with_step(0.7, np.array([0.4], np.float32), 1)
    )
    assert (sums.steps, sums.slices, sums.seconds) == (2, 3, 2.5)
    assert sums.mean_loss == pytest.approx(0.6)
    assert sums.mean_dice == pytest.approx(1.4 / 3)
    progress = Progress(
        phase=1,
        epoch=3,
        sums=sums,
        plateau=PlateauState(1e-5, epoch=3, best=0.7, best_epoch=1, flat=2, thawed=1),
        parts=4,
        history=(row(0), row(1, event="rate 1e-05")),
        best=(1, 2),
        first_table=table(0.5),
        best_table=table(0.7),
        last_table=table(0.6),
        base={3: np.ones(2, np.float32)},
        said=frozenset({"below-epoch-0", "phase"}),
        guarded=1,
        seconds=12.25,
        finished="stopped",
        text="no better score",
    )
    for whole in (progress, Progress()):
        # All fields, so that one that is added and forgotten shows.
        back = Progress.from_saved(json.loads(json.dumps(whole.facts(), allow_nan=False)), whole.arrays())
        for field in fields(Progress):
            one, other = getattr(whole, field.name), getattr(back, field.name)
            if isinstance(one, SliceTable):
                assert all(
                    np.array_equal(a, b) for a, b in zip(one.arrays().values(), other.arrays().values(), strict=True)
                )
            else:
                assert one == other or repr(one) == repr(other)  # a NaN is not equal to itself
    assert progress.best_tag == "1-00002"
    assert all(getattr(progress, f.name) != getattr(Progress(), f.name) for f in fields(Progress))


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "timid"}, "strategy cannot be used .*'timid'.*conservative, .* or scratch"),
        ({"learning_rate": 0}, "learning_rate cannot be used .*found 0.*> 0"),
        ({"learning_rate": float("inf")}, "learning_rate cannot be used"),
        ({"epochs": -1}, "epochs cannot be used .*found -1"),
        ({"batch_size": 0}, "batch_size cannot be used"),
        ({"seed": 1 << 32}, "seed cannot be used"),
        ({"precision": "float8"}, "precision cannot be used .*'float8'.*mixed_bfloat16"),
        ({"schedule": {"stop_counter": "never"}}, "schedule.stop_counter cannot be used .*'never'"),
        ({"schedule": {"stages": [(0, 1e-5)]}}, "schedule.stages"),
        ({"augmentation": {"rotation": 0.1}}, "unknown setting 'augmentation.rotation'"),
        ({"class_weight": {"glioma": "much"}}, "class_weight.*cannot be used .*'much'"),
        ({"learning_rat": 1}, "unknown setting 'learning_rat'"),
        ({"strategy": "auto", "freeze": ("encoder_1",)}, "strategy auto decides itself what is frozen"),
    ],
)
def test_settings_that_cannot_be_used_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        parse_settings(**values)


def test_settings_have_the_recipes_values():
    recipe = TrainSettings()
    assert (recipe.batch_size, recipe.epochs, recipe.weight_decay) == (8, 20, 1e-5)
    assert recipe.schedule.stages == ((5, 1e-5), (3, 1e-6))
    assert (recipe.schedule.stop_after, recipe.schedule.stop_counter) == (7, "stage")
    assert {s: recipe.rate_of(s) for s in ("conservative", "aggressive", "scratch")} == {
        "conservative": 1e-4,
        "aggressive": 1e-5,
        "scratch": 1e-3,
    }
    assert TrainSettings(strategy="auto").phases == ("conservative", "moderate")


def test_settings_come_back_from_json():
    asked = parse_settings(
        strategy="moderate", class_weight={"glioma": 2.0}, schedule={"stages": [(2, 1e-7)]}, devices=("CPU:0",)
    )
    assert TrainSettings.model_validate_json(asked.model_dump_json()) == asked


def test_a_file_of_settings_is_checked(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"epochs": 3, "schedule": {"stop_after": null}}')
    assert settings_from(path) == {"epochs": 3, "schedule": {"kind": "plateau", "stop_after": None}}
    for text, message in [
        ('{"epoch": 3}', r"mine.json: unknown setting 'epoch'. Did you mean 'epochs'"),
        ('{"epochs": "many"}', r"mine.json: epochs cannot be used"),
        ("[1]", "no settings in this file"),
        ("{", "the configuration is damaged"),
        ('{"format_version": 2, "settings": {}}', "newer version"),
    ]:
        path.write_text(text)
        with pytest.raises(KerassegError, match=message):
            settings_from(path)


# --- advice --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fall", "expected"),
    [
        (np.full(12, 0.05), True),
        (np.full(12, 0.009), False),  # not worth a word
        (np.full(12, -0.05), False),
        (np.where(np.arange(12) < 2, 0.6, 0.0), False),  # one patient alone: chance
        (np.linspace(0.0, 0.1, 12), True),
    ],
)
def test_below_epoch_0_is_more_than_chance_and_more_than_a_little(fall, expected):
    first = table(0.7)
    now = replace(first, dice=(first.dice - fall).astype(np.float32))
    assert clearly_below(first, now, GROUPS) is expected
    if expected:
        assert not clearly_below(first, now, np.zeros(12)), "one patient cannot tell"
        assert "--learning-rate 1e-05" in sunk_message(first, now, 1e-4).text


def test_patients_not_slices_decide_what_is_chance():
    """Three of eight slices fall: as slices of eight patients that is chance of a kind, as halves of few it is more so."""
    first = table(0.7)
    fall = np.where(np.arange(12) % 6 == 0, 0.0, 0.04) + np.where(np.arange(12) < 6, 0.03, -0.035)
    now = replace(first, dice=(first.dice - fall).astype(np.float32))
    assert clearly_below(first, now, np.arange(12))
    assert not clearly_below(first, now, np.arange(12) // 6)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([0.8, 0.85, 0.9, 0.92], [0.75, 0.74, 0.73, 0.72], True),
        ([0.8, 0.85, 0.9, 0.92], [0.75, 0.74, 0.73, 0.745], False),  # less than 0.01 below its best
        ([0.8, 0.79, 0.78, 0.77], [0.75, 0.7, 0.65, 0.6], False),  # both fall: no overfitting
        ([0.70, 0.71, 0.72, 0.73], [0.75, 0.74, 0.73, 0.72], False),  # no gap
        ([0.85, 0.9, 0.92], [0.75, 0.74, 0.73], False),  # no trend yet
        ([0.8, 0.85, 0.9, 0.92], [0.70, 0.74, 0.76, 0.74], False),  # validation rose in the same time
    ],
)
def test_parting_ways(train, val, expected):
    history = [row(0, 0.7), *(row(i, v, dice=t) for i, (t, v) in enumerate(zip(train, val, strict=True), 1))]
    assert (overfitting_message(history) is not None) is expected


@pytest.mark.parametrize(
    ("strategy", "counts", "named"),
    [
        ("aggressive", {"glioma": 999, "pituitary": 1000}, "999 of glioma"),
        ("aggressive", {"glioma": 1000, "pituitary": 1000}, None),
        ("conservative", {"glioma": 10}, None),
    ],
)
def test_aggressive_with_few_slices(strategy, counts, named):
    message = few_slices_message(strategy, counts)
    assert (message is None) is (named is None)
    if message is not None:
        assert message.level == "warning"
        assert named in message.text
        assert "pituitary" not in message.text
        assert "likely to overfit" in message.text


@pytest.mark.parametrize(
    ("dice", "rate", "strategy", "said"),
    [
        (0.02, 1e-4, "conservative", True),
        (0.29, 1e-5, "aggressive", True),
        (0.30, 1e-4, "conservative", False),
        (0.02, 1e-3, "conservative", False),
        (0.02, 1e-4, "scratch", False),
        (0.02, 1e-4, "decoder", False),
        (float("nan"), 1e-4, "conservative", False),
    ],
)
def test_a_checkpoint_that_hardly_knows_the_task(dice, rate, strategy, said):
    message = far_message(dice, rate, strategy)
    assert (message is not None) is said
    if message is not None:
        assert message.level == "note"
        assert f"{dice:.3f}" in message.text
        assert "--learning-rate 1e-3" in message.text


@pytest.mark.parametrize(
    ("marks", "losses", "event", "said"),
    [
        ([0.00, 0.01, 0.0], [1.55, 1.30, 1.20], "rate 1e-05", True),
        ([0.00, 0.01, 0.0], [1.55, 1.30, 1.20], "", False),  # nothing is lowered
        ([0.00, 0.01, 0.0], [1.20, 1.20, 1.19], "rate 1e-05", False),  # at rest
        ([0.00, 0.21, 0.0], [1.55, 1.30, 1.20], "rate 1e-05", False),  # it had begun
        ([0.00, 0.01, 0.0], [1.55, 1.30, float("nan")], "rate 1e-05", False),
        ([0.00], [1.20], "rate 1e-05", False),
    ],
)
def test_a_network_that_has_not_begun(marks, losses, event, said):
    rows = [
        row(k, mark, val_dice_tumour=mark, val_loss=loss)
        for k, (mark, loss) in enumerate(zip(marks, losses, strict=True), 1)
    ]
    message = idle_message([row(0, 0.02), *rows[:-1], replace(rows[-1], event=event)])
    assert (message is not None) is said
    if message is not None:
        assert "1.550 to 1.200" in message.text
        assert "--stages 10:1e-5,3:1e-6" in message.text


def test_intensity_rules_must_agree():
    assert check_intensity("minmax", "minmax", checkpoint="x") is None
    assert check_intensity("minmax", None, checkpoint="x").kind == "intensity-unknown"
    with pytest.raises(UsageError, match=r"x: the shards are scaled differently.*minmax.*zscore.*--intensity zscore"):
        check_intensity("minmax", "zscore", checkpoint="x")


# --- curves --------------------------------------------------------------------------------------------------------------


def story() -> list[EpochRow]:
    first = [row(0, 0.6, best=True)]
    first += [row(i, 0.6 + 0.02 * i, best=i < 5, learning_rate=1e-4 if i < 4 else 1e-5) for i in range(1, 8)]
    second = [
        row(i, 0.62 + 0.02 * i, phase="moderate", best=i > 3, event="thaw 1" if i == 2 else "") for i in range(1, 6)
    ]
    return first + second


def test_curves_are_drawn(tmp_path):
    path = tmp_path / "training.png"
    draw_curves(story(), path)
    picture = cv2.imread(str(path))
    assert picture.shape[:2] == (770, 1210)
    for colour in ("0072B2", "D55E00"):  # training and validation
        blue_green_red = [int(colour[i : i + 2], 16) for i in (4, 2, 0)]
        assert (np.abs(picture.astype(int) - blue_green_red).sum(-1) < 12).sum() > 100, colour
    small = len(path.read_bytes())
    draw_curves(story()[:1], path)
    assert 0 < len(path.read_bytes()) < small, "epoch 0 alone can be drawn, too, over the earlier picture"
    draw_curves([replace(r, val_dice=math.nan, classes={}) for r in story()], path)
    assert [p.name for p in Path(tmp_path).iterdir()] == ["training.png"]


def test_curves_show_names_of_classes_as_they_are(tmp_path):
    names = ("$\\frac{$", "_x", "\u202ea")
    first, second = [replace(r, classes=dict.fromkeys(names, 0.5)) for r in story()][:2]
    with patch("matplotlib.axes.Axes.plot", autospec=True, side_effect=Axes.plot) as plot:
        draw_curves([first, second], tmp_path / "training.png")  # a formula ended it with a ValueError
    labels = [call.kwargs.get("label") for call in plot.mock_calls]
    assert [label for label in labels if label][-3:] == [r"\$\frac{\$", " _x", r"\u202ea"]


# --- the schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"schedule": {"stages": [(5, 1e-3)]}}, "0.001 after an initial rate of 0.0001"),
        (
            {"learning_rate": 1e-6, "schedule": {"stages": [(2, 1e-5), (2, 1e-7)]}},
            "1e-05 after an initial rate of 1e-06",
        ),
        ({"strategy": "aggressive", "schedule": {"stages": [(2, 5e-5)]}}, "5e-05 after an initial rate of 1e-05"),
    ],
)
def test_a_stage_that_would_raise_the_rate_is_refused(values, found) -> None:
    with pytest.raises(UsageError, match=re.escape(found)):
        parse_settings(**values)


def test_the_recipes_own_stages_are_passed_over() -> None:
    assert parse_settings(strategy="aggressive").schedule.stages == parse_settings(learning_rate=1e-7).schedule.stages
    assert parse_settings(schedule={"stages": [(3, 1e-4)]}).schedule.stages == ((3, 1e-4),)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 0}, "invalid threshold of a rule .found 0, expected more than 0"),
        ({"min_diameter": "big"}, "invalid min_diameter of a rule .found 'big', expected a number"),
        ({"class_thresholds": {"glioma": 2}}, "class_thresholds.glioma of a rule .*found 2, expected at most 1"),
        ({"treshold": 0.4}, "no 'treshold'.*Did you mean 'threshold'"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_a_usage_error(values, words) -> None:
    with pytest.raises(UsageError, match=words):
        MaskRule(**values)


@pytest.mark.parametrize(
    ("strategy", "schedule", "kind"),
    [
        ("conservative", {}, "plateau"),
        ("scratch", {}, "cosine"),
        ("scratch", {"stop_counter": "total"}, "plateau"),  # also what runs of earlier versions say
        ("scratch", {"warmup": 0.1}, "cosine"),
        ("moderate", {"kind": "cosine"}, "cosine"),
    ],
)
def test_the_schedule_follows_from_the_strategy_unless_it_is_named(strategy, schedule, kind) -> None:
    settings = parse_settings(strategy=strategy, schedule=schedule)
    assert settings.schedule_of(strategy) == kind
    assert TrainSettings.model_validate_json(settings.model_dump_json()).schedule_of(strategy) == kind


@pytest.mark.parametrize("values", [{"stages": [(3, 1e-5)]}, {"stop_after": 3}, {"stop_counter": "total"}])
def test_options_for_plateaus_are_refused_beside_a_cosine(values) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(values)).replace('_', '-')} has no effect"):
        parse_settings(schedule={"kind": "cosine", **values})
