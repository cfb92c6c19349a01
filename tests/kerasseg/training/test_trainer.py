"""The loop with a scripted engine: candidates, schedule, phases, guard, warnings, and going on after any interruption."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_training import Fake, FakePhase, Killed, MemoryRecorder, fake, table
from kerasseg.callbacks import PlateauRule
from kerasseg.training.diagnostics import few_slices_message
from kerasseg.training.events import Ended, Evaluated
from kerasseg.training.trainer import BrokenTrainingError, NothingTrainedError

FLAT = [0.5] * 60


def rows(ended: Ended):
    return [(row.phase, row.epoch, row.event) for row in ended.history if row.event]


# --- candidates ----------------------------------------------------------------------------------------------------------


def test_the_untouched_network_is_a_candidate_and_can_win():
    made = fake([0.6, 0.55, 0.59, 0.6], epochs=3)
    untouched = made.network.get_weights()
    ended = made.trainer.run()
    assert ended.best is ended.first
    assert (ended.best.epoch, ended.best.best) == (0, True)
    assert ended.gain is not None
    assert (ended.gain.estimate, ended.gain.low, ended.gain.high) == (0, 0, 0)
    assert np.array_equal(made.network.get_weights(), untouched)
    assert list(made.recorder.best) == ["0-00000"]


def test_any_gain_counts_and_the_best_weights_remain():
    made = fake([0.6, 0.55, 0.6 + 1e-6, 0.58], epochs=3)
    seen = {}
    made.trainer._observers = (
        lambda event: (
            seen.update({event.row.epoch: made.network.get_weights()}) if isinstance(event, Evaluated) else None
        ),
    )
    ended = made.trainer.run()
    assert [row.best for row in ended.history] == [True, False, True, False]
    assert ended.best.epoch == 2
    assert np.array_equal(made.network.get_weights(), seen[2])
    assert np.array_equal(made.recorder.best["0-00002"], seen[2])
    assert not np.array_equal(seen[2], seen[3])
    assert ended.gain.estimate == pytest.approx(1e-6, abs=1e-7)
    assert set(ended.class_gains) == {"glioma", "meningioma"}


def test_a_network_whose_first_figures_are_missing_can_still_be_beaten():
    first = table(0.5)
    first.dice[3] = np.nan
    made = fake([0.5, 0.4, 0.3], epochs=2, on_engine=lambda engine: patch_first(engine, first))
    ended = made.trainer.run()
    assert math.isnan(ended.first.val_dice)
    assert ended.best.epoch == 1


def patch_first(engine, first):
    evaluate = engine.evaluate

    def once(data, on_batch):
        engine.evaluate = evaluate
        return first

    engine.evaluate = once


# --- schedule ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "expected", "rates"),
    [
        ("stage", [(5, "rate 1e-05"), (8, "rate 1e-06"), (15, "stop")], {5: 1e-4, 6: 1e-5, 8: 1e-5, 9: 1e-6, 15: 1e-6}),
        ("total", [(5, "rate 1e-05"), (7, "stop")], {5: 1e-4, 6: 1e-5, 7: 1e-5}),
    ],
)
def test_five_flat_epochs_then_three_then_the_stop(counter, expected, rates):
    made = fake(FLAT, [FakePhase(rule=PlateauRule(1e-4, stop_counter=counter))])
    used = {}
    made.trainer._observers = (
        lambda event: (
            used.update({event.row.epoch: made.engine.optimizer.rate}) if isinstance(event, Evaluated) else None
        ),
    )
    ended = made.trainer.run()
    assert [(epoch, event) for _, epoch, event in rows(ended)] == expected
    assert {epoch: used[epoch] for epoch in rates} == rates, "what the optimizer really had in these epochs"
    assert {row.epoch: row.learning_rate for row in ended.history if row.epoch in rates} == rates
    assert ended.reason == "stopped"
    assert "no better score for 7 epochs" in ended.text
    # A drop keeps the optimizer's averages: it is made once.
    assert [call for call in made.engine.calls if call[0] == "rebuild"] == [("rebuild", 1e-4)]


def test_all_epochs_done():
    ended = fake(FLAT, epochs=4).trainer.run()
    assert (ended.reason, ended.text) == ("finished", "all 4 epochs are done")
    assert len(ended.history) == 5


def test_no_epoch_at_all_is_epoch_0_alone():
    ended = fake(FLAT, epochs=0).trainer.run()
    assert (ended.reason, len(ended.history), ended.gain) == ("finished", 1, None)


def test_steps_limit_an_epoch():
    made = fake(FLAT, epochs=2, steps=2)
    made.trainer.run()
    assert made.engine.steps == 4


def test_progressive_thaws_deeper_at_each_plateau_before_the_rate_drops():
    made = fake(FLAT, [FakePhase("progressive", PlateauRule(1e-4, thaws=2))], epochs=40)
    ended = made.trainer.run()
    events = [(epoch, event) for _, epoch, event in rows(ended)]
    assert events == [(5, "thaw 1"), (10, "thaw 2"), (15, "rate 1e-05"), (18, "rate 1e-06"), (25, "stop")]
    assert [row.thawed for row in ended.history] == [0] * 5 + [0] + [1] * 5 + [2] * 15
    assert [row.learning_rate for row in ended.history][1:16] == [1e-4] * 15
    # Weights that join late get a fresh optimizer each time.
    assert [call for call in made.engine.calls if call[0] == "rebuild"] == [("rebuild", 1e-4)] * 3
    assert [m.text.rsplit("Frozen: ")[1] for m in made.messages] == ["encoder_1.", "nothing."]


def test_progressive_of_a_real_network_ends_with_everything_trained():
    import kerasseg
    from kerasseg.runs.settings import TrainSettings
    from kerasseg.training.strategies import phases_of

    model = kerasseg.unet((32, 32, 1), filters=2, depth=4, seed=1)
    (phase,) = phases_of(TrainSettings(strategy="progressive"), model)
    assert phase.rule.thaws == 2
    frozen = [phase.freeze(model, depth).frozen_blocks for depth in range(3)]
    assert frozen == [("encoder_1", "encoder_2"), ("encoder_1",), ()]
    conservative = phases_of(TrainSettings(), model)[0]
    assert conservative.freeze(model).frozen_blocks == frozen[0]


# --- phases --------------------------------------------------------------------------------------------------------------


def auto(conservative: list[float], moderate: list[float]) -> Fake:
    short = PlateauRule(1e-4, stages=(), stop_after=2)
    return fake([*conservative, *moderate], [FakePhase("conservative", short), FakePhase("moderate", short)])


@pytest.mark.parametrize(
    ("moderate", "best", "tag"),
    [([0.65, 0.63, 0.62], ("conservative", 1), "0-00001"), ([0.68, 0.71, 0.6, 0.6], ("moderate", 2), "1-00002")],
)
def test_auto_trains_both_from_the_same_network_and_keeps_the_better(moderate, best, tag):
    made = auto([0.6, 0.7, 0.6, 0.6], moderate)
    untouched = made.network.get_weights()
    begun = []
    phase = made.trainer.plan.phases[1]
    steps = made.trainer._train_steps

    def noting():
        if made.trainer.progress.epoch == 0:
            begun.append((made.trainer._phase.strategy, made.network.get_weights(), made.engine.optimizer.momentum))
        steps()

    made.trainer._train_steps = noting
    ended = made.trainer.run()
    assert [name for name, _, _ in begun] == ["conservative", "moderate"]
    assert all(np.array_equal(weights, untouched) and momentum == 0 for _, weights, momentum in begun)
    assert (ended.best.phase, ended.best.epoch) == best
    assert np.array_equal(made.network.get_weights(), made.recorder.best[tag])
    assert {row.phase for row in ended.history} == {"conservative", "moderate"}
    assert made.engine.calls[-1] == ("rebuild", phase.rule.rate)
    assert [m.kind for m in made.messages] == ["phase"]
    assert "Next: moderate" in made.messages[0].text


def test_the_second_stage_continues_from_the_best_of_the_first_with_the_epochs_that_are_left():
    stages = [
        FakePhase("decoder", PlateauRule(1e-3, (), 1), limit=3, watch="soft_dice"),
        FakePhase("conservative", PlateauRule(1e-4, (), None), warmup=0.0, continues=True),
    ]
    made = fake([0.1, 0.5, 0.4, 0.3, 0.6, 0.2, 0.1], stages, epochs=5)
    begun = []
    steps = made.trainer._train_steps

    def noting():
        begun.append((made.trainer._phase.strategy, made.network.get_weights()))
        steps()

    made.trainer._train_steps = noting
    ended = made.trainer.run()
    assert [row.phase for row in ended.history[1:]] == ["decoder"] * 2 + ["conservative"] * 3
    first = next(weights for name, weights in begun if name == "conservative")
    assert np.array_equal(first, made.recorder.best["0-00001"])
    rates = [row.learning_rate for row in ended.history[3:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * 1e-4
    assert (ended.best.phase, ended.best.epoch) == ("conservative", 2)


@pytest.mark.parametrize("better", [True, False])
def test_recalibration_is_kept_where_it_helps_and_all_phases_start_from_it(better):
    script = [0.5, 0.6 if better else 0.4, *[0.3] * 4]
    short = PlateauRule(1e-4, (), 2)
    phases = [
        FakePhase("recalibrated", short, limit=1, recalibrates=True),
        FakePhase("conservative", short),
        FakePhase("moderate", short),
    ]
    made = fake(script, phases)
    untouched = made.network.get_weights()[0]
    begun = []
    steps = made.trainer._train_steps

    def noting():
        if made.trainer.progress.epoch == 0:
            begun.append(made.network.get_weights()[0])
        steps()

    made.trainer._train_steps = noting
    ended = made.trainer.run()
    expected = untouched + np.array([0, 0, 0, 0.3]) * better
    assert len(begun) == 2
    assert all(np.array_equal(weights, expected) for weights in begun)
    assert ended.first.phase == "conservative"
    assert ended.best.phase == ("recalibrated" if better else "conservative")
    assert made.network.get_weights()[0].tolist() == expected.tolist()


def test_recalibration_alone_needs_no_epoch():
    phases = [FakePhase("recalibrated", limit=1, recalibrates=True), FakePhase()]
    ended = fake([0.5, 0.6], phases, epochs=0).trainer.run()
    assert (ended.best.phase, ended.best.epoch, len(ended.history)) == ("recalibrated", 1, 2)


@pytest.mark.parametrize(("first", "second"), [(0.1, "aggressive"), (0.6, "moderate")])
def test_auto_tries_what_the_advice_names_where_the_checkpoint_hardly_knows_the_task(first, second):
    short = PlateauRule(1e-4, (), 1)
    phases = [
        FakePhase("conservative", short),
        FakePhase("moderate", short, when="near"),
        FakePhase("aggressive", short, when="far"),
    ]
    made = fake([first, *[0.0] * 6], phases)
    ended = made.trainer.run()
    assert list(dict.fromkeys(row.phase for row in ended.history)) == ["conservative", second]
    advised = [m.text for m in made.messages if m.kind == "far-checkpoint"]
    assert len(advised) == (first < 0.3)


# --- guard and warnings --------------------------------------------------------------------------------------------------


def test_the_guard_goes_back_and_divides_the_rate():
    made = fake([0.6, 0.4, 0.61, 0.6], epochs=3, guard=True)
    untouched = made.network.get_weights()
    state = []
    made.trainer._observers = (
        lambda event: (
            state.append((made.network.get_weights(), made.engine.optimizer.rate))
            if type(event).__name__ == "Saved"
            else None
        ),
    )
    ended = made.trainer.run()
    weights, rate = state[1]  # after epoch 1
    assert np.array_equal(weights, untouched)
    assert rate == pytest.approx(1e-5)
    assert [row.learning_rate for row in ended.history] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert ended.best.epoch == 2


def test_the_guard_says_so_and_gives_up_after_a_hundredth_of_the_rate():
    made = fake([0.6, *[0.4] * 5], epochs=5, guard=True)
    ended = made.trainer.run()
    assert [m.kind for m in made.messages] == ["guard-0-1", "guard-0-2"]
    assert "clearly below epoch 0" in made.messages[0].text
    assert [row.learning_rate for row in ended.history][1:] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6, 1e-6])


def test_where_the_schedule_stops_the_guard_does_not_promise_to_go_on():
    made = fake([0.6, 0.4], [FakePhase(rule=PlateauRule(1e-4, stop_after=1))], guard=True)
    ended = made.trainer.run()
    assert ended.reason == "stopped"
    assert [m.kind for m in made.messages] == ["below-epoch-0"]


def test_clearly_below_epoch_0_is_said_once_with_the_remedies():
    made = fake([0.6, 0.5, 0.45, 0.4], epochs=3)
    made.trainer.run()
    assert [m.kind for m in made.messages] == ["below-epoch-0"]
    text = made.messages[0].text
    assert all(word in text for word in ("0.5000", "0.6000", "--learning-rate 1e-05", "freeze more", "--guard"))


def test_what_falls_below_later_is_the_schedules_business():
    made = fake([0.6, 0.61, 0.62, 0.63, 0.5, 0.5], epochs=5)
    made.trainer.run()
    assert not [m for m in made.messages if m.kind == "below-epoch-0"]


ADVISED = {"--strategy aggressive", "--learning-rate", "--schedule cosine"}
AGAINST = ("--strategy conservative", "--strategy moderate", "freeze more", "Strategy conservative", "forgetting")


@pytest.mark.parametrize("epoch_0", [0.0, 0.12, 0.29])
@pytest.mark.parametrize("strategy", ["conservative", "moderate", "aggressive", "progressive"])
@pytest.mark.parametrize("later", [-0.2, 0.0, 0.02])
def test_no_message_contradicts_the_advice_for_a_checkpoint_that_hardly_knows_the_task(epoch_0, strategy, later):
    """With the strategy that is advised against, and with the advised one."""
    for rate, advised in ((1e-4, True), (1e-3, False)):
        rising = iter(np.repeat(np.linspace(0.6, 0.95, 10), 3))
        script = [epoch_0, *(max(0.0, epoch_0 + later - 0.01 * i) for i in range(8))]
        few = few_slices_message("aggressive", {"glioma": 90})
        made = fake(
            script,
            [FakePhase(strategy, PlateauRule(rate))],
            epochs=8,
            cautions=(few,),
            on_engine=lambda engine, rising=rising: setattr(engine, "train_dice", rising),
        )
        made.trainer.run()
        texts = [m.text for m in made.messages]
        assert sum(all(word in text for word in ADVISED) for text in texts) == advised
        assert not [text for text in texts if any(word in text for word in AGAINST)]


def test_a_checkpoint_that_knows_the_task_still_gets_the_cautions():
    few = few_slices_message("aggressive", {"glioma": 90})
    made = fake([0.7, 0.7], [FakePhase("aggressive", PlateauRule(1e-5))], epochs=1, cautions=(few,))
    made.trainer.run()
    assert [m.kind for m in made.messages] == ["aggressive-with-few-slices"]


def test_overfitting_is_said_once():
    rising = iter(np.repeat(np.linspace(0.6, 0.95, 10), 3))
    made = fake(
        [0.6, 0.7, 0.7, 0.69, 0.68, 0.67, 0.66, 0.65, 0.64],
        epochs=8,
        on_engine=lambda engine: setattr(engine, "train_dice", rising),
    )
    made.trainer.run()
    assert [m.kind for m in made.messages] == ["overfitting"]


# --- broken networks -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_names_the_slices_and_leaves_the_good_state():
    for loss in (math.nan, math.inf):
        made = fake(FLAT, on_engine=lambda engine, loss=loss: engine.losses.update({5: loss}))
        with pytest.raises(
            BrokenTrainingError, match=r"epoch 2, step 2.*slice-4.mat, slice-5.mat.*--learning-rate 1e-05"
        ):
            made.trainer.run()
        progress, variables, _ = made.recorder.saved()
        assert (progress.epoch, progress.sums.steps) == (1, 0)
        assert np.isfinite(variables["model/weights"]).all()


@pytest.mark.parametrize("save_every", [None, 1])
def test_broken_weights_are_never_saved(save_every):
    """The loss of a step is that of the weights before it: the step that breaks them has a good one."""

    def breaks(engine):
        step = engine.train_step

        def train_step(batch):
            result = step(batch)
            if batch == (1, 1):
                engine.model.weights = engine.model.weights * np.nan
            return result

        engine.train_step = train_step

    made = fake([0.5, 0.5, math.nan], save_every=save_every, on_engine=breaks)
    with pytest.raises(
        BrokenTrainingError, match=r"weights.*slice-4\.mat" if save_every else "output of the network is NaN"
    ):
        made.trainer.run()
    progress, variables, _ = made.recorder.saved()
    assert (progress.epoch, progress.sums.steps) == ((1, 1) if save_every else (1, 0))
    assert np.isfinite(variables["model/weights"]).all()


def test_a_checkpoint_that_puts_out_no_numbers_is_said_before_anything_is_trained():
    made = fake([math.nan])
    with pytest.raises(BrokenTrainingError, match="before the first step"):
        made.trainer.run()
    assert made.recorder.state is None


# --- interruptions -------------------------------------------------------------------------------------------------------

PLANS = {
    "schedule": {"phases": [FakePhase(rule=PlateauRule(1e-3, ((2, 1e-4), (1, 1e-5)), 3))], "epochs": 7},
    "progressive": {
        "phases": [FakePhase("progressive", PlateauRule(1e-3, ((1, 1e-4),), 2, thaws=2, thaw_patience=1))],
        "epochs": 7,
    },
    "auto": {
        "phases": [
            FakePhase("conservative", PlateauRule(1e-3, (), 2)),
            FakePhase("moderate", PlateauRule(1e-3, ((1, 1e-4),), 2)),
        ],
        "epochs": 4,
    },
    "guard": {"phases": [FakePhase(rule=PlateauRule(3e-3, ((2, 1e-5),)))], "epochs": 5, "guard": True},
    "cosine": {"phases": [FakePhase(rule=PlateauRule(1e-3, (), None), warmup=0.2)], "epochs": 4, "save_every": 2},
    "average": {"phases": [FakePhase(rule=PlateauRule(1e-3, ((1, 1e-4),)))], "epochs": 5, "ema": True},
    "two stages": {
        "phases": [
            FakePhase("decoder", PlateauRule(1e-3, (), 2), limit=3, watch="soft_dice"),
            FakePhase("conservative", PlateauRule(1e-4, (), None), warmup=0.1, continues=True),
        ],
        "epochs": 6,
        "guard": True,
    },
    "recalibrated": {
        "phases": [
            FakePhase("recalibrated", PlateauRule(1e-3, (), None), limit=1, recalibrates=True),
            FakePhase("conservative", PlateauRule(1e-3, (), 2)),
            FakePhase("moderate", PlateauRule(1e-3, (), 2)),
        ],
        "epochs": 3,
    },
    "states within epochs": {"phases": [FakePhase(rule=PlateauRule(1e-3))], "epochs": 3, "save_every": 1},
}


def essence(made: Fake, ended: Ended):
    """All of a run but its clock."""
    history = [replace(row, seconds=0, slices_per_second=0, memory_mb=0) for row in ended.history]
    progress = made.trainer.progress
    said = sorted(progress.said)
    progress = replace(progress, history=(), first_table=None, best_table=None, seconds=0, said=frozenset())
    _, variables, _ = made.recorder.saved()
    return (
        ended.reason,
        ended.text,
        [repr(row) for row in history],
        repr(progress),
        said,
        ended.gain,
        made.network.weights.tolist(),
        {name: array.tolist() for name, array in variables.items()},
        made.recorder.best[made.trainer.progress.best_tag][0].tolist(),
    )


UNDISTURBED = {}


def undisturbed(name):
    if name not in UNDISTURBED:
        made = fake(**PLANS[name])
        UNDISTURBED[name] = essence(made, made.trainer.run())
    return UNDISTURBED[name]


def test_the_plans_do_what_they_are_for():
    """Or the next test would show nothing."""
    events = {name: " ".join(undisturbed(name)[2]) for name in PLANS}
    assert "rate 0.0001" in events["schedule"]
    assert "thaw 2" in events["progressive"]
    assert "moderate" in events["auto"]
    assert "val_dice_ema=nan" not in events["average"].split("EpochRow")[-1]
    rates = [row.split("learning_rate=")[1].split(",")[0] for row in undisturbed("cosine")[2]]
    assert len(set(rates[1:])) == 4
    assert "phase='conservative', epoch=3" in events["two stages"]
    assert "phase='moderate'" in events["recalibrated"]
    assert "guarded=0" not in undisturbed("guard")[3]


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(PLANS)),
    stops=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=6),
)
def test_stopped_or_killed_anywhere_it_goes_on_as_if_nothing_had_happened(name, stops):
    recorder = MemoryRecorder()
    for killed, moment in stops:
        left = moment

        def tick(_=None):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        def asked():
            nonlocal left
            left -= 1
            return left <= 0

        made = fake(
            **PLANS[name],
            recorder=recorder,
            observer=tick if killed else lambda _: None,
            interrupted=(lambda: False) if killed else asked,
        )
        recorder.hook = tick if killed else lambda _: None
        saved = recorder.saved()
        if saved is not None:
            if saved[0].finished:
                break
            made.trainer.restore(*saved)
        try:
            ended = made.trainer.run()
        except Killed:
            continue
        except NothingTrainedError:
            continue
        if ended.reason != "interrupted":
            break
        assert np.array_equal(made.network.weights, recorder.best[made.trainer.progress.best_tag][0])
    recorder.hook = lambda _: None
    last = fake(**PLANS[name], recorder=recorder)
    if (saved := recorder.saved()) is not None:
        last.trainer.restore(*saved)
    assert essence(last, last.trainer.run()) == undisturbed(name)


def test_an_interruption_finishes_the_step_and_loses_none():
    asked = iter([False] * 6 + [True])
    made = fake(FLAT, interrupted=lambda: next(asked))  # two batches of epoch 0, three steps and two batches of epoch 1
    ended = made.trainer.run()
    assert ended.reason == "interrupted"
    assert made.recorder.saves[-1] == (0, 3)
    made = fake([0.6], recorder=made.recorder, epochs=1)
    made.trainer.restore(*made.recorder.saved())
    ended = made.trainer.run()
    assert made.engine.steps == 0, "the steps of the epoch are done: only its validation is left"
    assert ended.history[-1].val_dice == pytest.approx(0.6)


def test_an_interruption_before_epoch_0_is_done_says_how_to_go_on():
    made = fake(FLAT, interrupted=lambda: True)
    with pytest.raises(NothingTrainedError, match=r"nothing was trained.*kerasseg train --resume") as raised:
        made.trainer.run()
    assert raised.value.exit_code == 130


def test_states_within_an_epoch_come_as_often_as_asked():
    made = fake(FLAT, epochs=1, save_every=2)
    made.trainer.run()
    assert made.recorder.saves == [(0, 0), (0, 2), (1, 0), (1, 0)]
