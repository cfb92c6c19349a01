"""The schedule against the recipe's timeline and against a simulation written from the sentences."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.callbacks import Drop, PlateauRule, PlateauState, Stop, Thaw, cosine_rate
from kerasseg_tfrecords.errors import UsageError


def timeline(rule, scores, baseline=None):
    """{epoch: event} until the stop."""
    state, found = rule.begin(baseline), {}
    for epoch, score in enumerate(scores, 1):
        state, events = rule.step(state, score)
        assert state.epoch == epoch
        for event in events:
            found[epoch] = ("stop", None) if isinstance(event, Stop) else event
        if state.stopped:
            break
    return found, state


FLAT = [0.5] * 60


@pytest.mark.parametrize(
    ("rule", "scores", "baseline", "expected"),
    [
        # Nothing ever beats the untouched checkpoint: 5 -> 1e-5, 3 more -> 1e-6, 7 more -> stop.
        (PlateauRule(1e-4), FLAT, 0.6, {5: Drop(1e-5), 8: Drop(1e-6), 15: ("stop", None)}),
        # Without a known epoch 0 the first epoch is the first best.
        (PlateauRule(1e-4), FLAT, None, {6: Drop(1e-5), 9: Drop(1e-6), 16: ("stop", None)}),
        # A gain, however small, starts the patience again, and rates do not rise.
        (
            PlateauRule(1e-4),
            [0.6, *[0.5] * 4, 0.6 + 1e-9, *FLAT],
            0.5,
            {11: Drop(1e-5), 14: Drop(1e-6), 21: ("stop", None)},
        ),
        (
            PlateauRule(1e-4),
            [*[0.5] * 6, 0.7, *FLAT],
            0.6,
            {5: Drop(1e-5), 10: Drop(1e-6), 17: ("stop", None)},
        ),
        # An equal score is no gain.
        (PlateauRule(1e-4), [0.6] * 30, 0.6, {5: Drop(1e-5), 8: Drop(1e-6), 15: ("stop", None)}),
        # Counted from the best epoch, the stop comes before the third rate.
        (PlateauRule(1e-4, stop_counter="total"), FLAT, 0.6, {5: Drop(1e-5), 7: ("stop", None)}),
        # Aggressive: the stage at the rate in force is skipped.
        (PlateauRule(1e-5), FLAT, 0.6, {3: Drop(1e-6), 10: ("stop", None)}),
        (PlateauRule(1e-6), FLAT, 0.6, {7: ("stop", None)}),
        # ... also when the rate comes back from a float32, a hair above the stage's.
        (PlateauRule(1.00000001e-5), FLAT, 0.6, {3: Drop(1e-6), 10: ("stop", None)}),
        (PlateauRule(1e-3), FLAT, 0.6, {5: Drop(1e-5), 8: Drop(1e-6), 15: ("stop", None)}),
        (PlateauRule(1e-4, stages=()), FLAT, 0.6, {7: ("stop", None)}),
        (PlateauRule(1e-4, stop_after=None), FLAT, 0.6, {5: Drop(1e-5), 8: Drop(1e-6)}),
        # A patience as long as the stop: the fresh chance comes first; a longer one never comes.
        (PlateauRule(1e-4, stages=((7, 1e-5),)), FLAT, 0.6, {7: Drop(1e-5), 14: ("stop", None)}),
        (PlateauRule(1e-4, stages=((8, 1e-5),)), FLAT, 0.6, {7: ("stop", None)}),
        # Progressive: deeper at each plateau, before the rate drops.
        (
            PlateauRule(1e-4, thaws=2),
            FLAT,
            0.6,
            {5: Thaw(1), 10: Thaw(2), 15: Drop(1e-5), 18: Drop(1e-6), 25: ("stop", None)},
        ),
        (PlateauRule(1e-4, thaws=1, thaw_patience=2, stages=()), FLAT, 0.6, {2: Thaw(1), 9: ("stop", None)}),
        (PlateauRule(1e-4, thaws=2, stop_counter="total"), FLAT, 0.6, {5: Thaw(1), 7: ("stop", None)}),
        # Losses, and gains too small to count.
        (PlateauRule(1e-4, mode="min"), [0.5, 0.4, *[0.45] * 9], 0.6, {7: Drop(1e-5), 10: Drop(1e-6)}),
        (PlateauRule(1e-4, min_delta=0.1), [0.65] * 5, 0.6, {5: Drop(1e-5)}),
    ],
)
def test_timeline(rule, scores, baseline, expected):
    assert timeline(rule, scores, baseline)[0] == expected


def test_epoch_0_can_win():
    _, state = timeline(PlateauRule(1e-4), FLAT, 0.6)
    assert (state.best, state.best_epoch, state.stopped) == (0.6, 0, True)
    _, state = timeline(PlateauRule(1e-4), [0.5, 0.61, 0.5], 0.6)
    assert (state.best, state.best_epoch) == (0.61, 2)


def simulate(scores, baseline, rate, stages, stop_after, total, thaws, thaw_patience):
    """From the sentences, over the whole history at each epoch; shares nothing with the code under test."""
    chances = [0]  # epochs at which a fresh chance began
    thawed, events = 0, {}
    for epoch in range(1, len(scores) + 1):
        history = ([] if baseline is None else [(0, baseline)]) + list(enumerate(scores[:epoch], 1))
        history = [(e, s) for e, s in history if not math.isnan(s)]
        best_epoch = max(history, key=lambda item: (item[1], -item[0]))[0] if history else 0
        if best_epoch == epoch:
            continue
        since_best = epoch - best_epoch
        since_chance = epoch - max(best_epoch, chances[-1])
        if total and stop_after is not None and since_best >= stop_after:
            return {**events, epoch: "stop"}
        below = [stage for stage in stages if stage[1] < rate]
        if thawed < thaws:
            if since_chance >= thaw_patience:
                thawed += 1
                events[epoch] = ("thaw", thawed)
                chances.append(epoch)
                continue
        elif below and since_chance >= below[0][0]:
            rate = below[0][1]
            events[epoch] = ("drop", rate)
            chances.append(epoch)
            continue
        if stop_after is not None and (since_best if total else since_chance) >= stop_after:
            return {**events, epoch: "stop"}
    return events


@given(
    scores=st.lists(st.one_of(st.integers(0, 6).map(lambda i: i / 6), st.just(math.nan)), max_size=60),
    baseline=st.one_of(st.none(), st.integers(0, 6).map(lambda i: i / 6)),
    rate=st.sampled_from([1e-3, 1e-4, 1e-5, 1e-6]),
    patiences=st.lists(st.integers(1, 6), max_size=4),
    stop_after=st.one_of(st.none(), st.integers(1, 8)),
    total=st.booleans(),
    thaws=st.integers(0, 3),
    thaw_patience=st.integers(1, 5),
)
def test_equals_the_simulation(scores, baseline, rate, patiences, stop_after, total, thaws, thaw_patience):
    stages = tuple((p, 10.0 ** -(4 + i)) for i, p in enumerate(patiences))
    counter = "total" if total else "stage"
    rule = PlateauRule(rate, stages, stop_after, counter, thaws=thaws, thaw_patience=thaw_patience)
    found, state = timeline(rule, scores, baseline)
    words = {Drop: lambda e: ("drop", e.rate), Thaw: lambda e: ("thaw", e.depth), tuple: lambda e: e[0]}
    found = {epoch: words[type(event)](event) for epoch, event in found.items()}
    assert found == simulate(scores, baseline, rate, stages, stop_after, total, thaws, thaw_patience)
    if state.stopped:
        assert max(found) == state.epoch


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=40), cut=st.integers(0, 40))
def test_state_survives_json_in_the_middle(scores, cut):
    rule = PlateauRule(1e-4, thaws=1)
    undisturbed = rule.begin(0.5)
    resumed = rule.begin(0.5)
    for epoch, score in enumerate(scores):
        if epoch == cut:
            resumed = PlateauState.from_json(json.loads(json.dumps(resumed.to_json())))
        undisturbed, a = rule.step(undisturbed, score)
        resumed, b = rule.step(resumed, score)
        assert (undisturbed, a) == (resumed, b)


def test_goes_on_after_a_stop_as_long_as_nothing_improves():
    rule = PlateauRule(1e-4, stop_after=2)
    state = rule.begin(0.6)
    for _ in range(2):
        state, events = rule.step(state, 0.5)
    assert isinstance(events[0], Stop)
    again, events = rule.step(state, 0.5)
    assert isinstance(events[0], Stop), "whoever trains on is told again"
    better, events = rule.step(again, 0.7)
    assert not events
    assert not better.stopped


def test_lowered_by_somebody_else():
    rule = PlateauRule(1e-4)
    state = rule.begin(0.6)
    for _ in range(4):
        state, _ = rule.step(state, 0.5)
    state = rule.lower(state, 1e-5)
    events = []
    for _ in range(3):
        state, events = rule.step(state, 0.5)
    assert events == (Drop(1e-6),)
    with pytest.raises(UsageError):
        rule.lower(state, 1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rate": 0},
        {"rate": -1e-4},
        {"rate": float("nan")},
        {"stages": ((0, 1e-5),)},
        {"stages": ((5, 1e-5), (3, 1e-5))},
        {"stages": ((5, 0.0),)},
        {"stages": ((5,),)},
        {"stages": ((2.5, 1e-5),)},
        {"stop_after": 0},
        {"stop_counter": "sometimes"},
        {"thaws": -1},
        {"thaw_patience": 0},
        {"mode": "auto"},
        {"min_delta": -1},
    ],
)
def test_refuses_arguments(arguments):
    with pytest.raises(UsageError):
        PlateauRule(**{"rate": 1e-4, **arguments})


@pytest.mark.parametrize("change", [{"flat": None}, {"extra": 1}])
def test_refuses_a_state_of_another_kind(change):
    data = {**PlateauState(1e-4).to_json(), **change}
    if change.get("flat", 0) is None:
        del data["flat"]
    with pytest.raises(UsageError, match="state of the schedule"):
        PlateauState.from_json(data)


# --- cosine --------------------------------------------------------------------------------------------------------------


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.9), peak=st.floats(1e-6, 1))
def test_a_cosine_rises_once_falls_to_almost_nothing_and_is_never_0(steps, warmup, peak):
    rates = [cosine_rate(peak, step, steps, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates)
    if steps >= 100 and warmup < 0.5:
        assert rates[-1] < 0.001 * peak
