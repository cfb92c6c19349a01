"""The schedule inside Keras' own fit."""

import json

import keras
import numpy as np
import pytest

from kerasseg.callbacks import Drop, PlateauSchedule, Stop
from kerasseg_tfrecords.errors import UsageError


class Scripted(keras.callbacks.Callback):
    """Puts the next score of a script into the logs, and notes each epoch's rate."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.rates = list(scores), []

    def on_epoch_begin(self, epoch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        logs["val_dice"] = self.scores.pop(0)


def model(rate=1e-4, policy=None):
    source = keras.Input((2,))
    network = keras.Model(source, keras.layers.Dense(1, dtype=policy)(source))
    network.compile(keras.optimizers.Adam(rate), "mse")
    return network


def fit(network, script, schedule, epochs=40, **kwargs):
    data = np.ones((2, 2), "float32")
    return network.fit(data, data[:, :1], epochs=epochs, verbose=0, callbacks=[script, schedule], **kwargs)


@pytest.mark.slow
def test_recipe_in_fit():
    script, schedule = Scripted([0.5] * 40), PlateauSchedule(baseline=0.6)
    history = fit(model(), script, schedule)
    np.testing.assert_allclose(script.rates, [1e-4] * 5 + [1e-5] * 3 + [1e-6] * 7, rtol=1e-6)
    np.testing.assert_allclose(history.history["learning_rate"], script.rates, rtol=1e-6)
    assert isinstance(schedule.events[0], Stop)
    assert (schedule.state.best, schedule.state.best_epoch) == (0.6, 0)


@pytest.mark.rest
@pytest.mark.slow
def test_a_second_fit_and_a_resumed_one_keep_the_counters():
    undisturbed = Scripted([0.5] * 40)
    fit(model(), undisturbed, PlateauSchedule(baseline=0.6))

    network, schedule, first, second = model(), PlateauSchedule(baseline=0.6), Scripted([0.5] * 3), Scripted([0.5] * 40)
    fit(network, first, schedule, epochs=3)
    fit(network, second, schedule, initial_epoch=3)
    assert first.rates + second.rates == undisturbed.rates

    first, second = Scripted([0.5] * 6), Scripted([0.5] * 40)
    schedule = PlateauSchedule(baseline=0.6)
    fit(model(), first, schedule, epochs=6)
    resumed = PlateauSchedule(baseline=0.6)
    resumed.set_state(json.loads(json.dumps(schedule.get_state())))
    fit(model(), second, resumed, initial_epoch=6)  # a new process: a new model at the first rate
    assert first.rates + second.rates == undisturbed.rates

    resumed.reset()
    assert resumed.get_state() is None


def test_given_rate_wins_over_the_optimizers():
    script = Scripted([0.5])
    fit(model(0.3), script, PlateauSchedule(rate=1e-3), epochs=1)
    assert script.rates == pytest.approx([1e-3])


def test_thaws_before_it_drops():
    seen = []
    schedule = PlateauSchedule(baseline=0.6, thaws=2, thaw_patience=2, on_thaw=lambda _, depth: seen.append(depth))
    script = Scripted([0.5] * 40)
    fit(model(), script, schedule)
    assert seen == [1, 2]
    np.testing.assert_allclose(script.rates, [1e-4] * 9 + [1e-5] * 3 + [1e-6] * 7, rtol=1e-6)


def test_loss_scaled_optimizer():
    network = model()
    network.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-4)), "mse")
    schedule = PlateauSchedule(baseline=0.6, stages=[(1, 1e-5)])
    fit(network, Scripted([0.5]), schedule, epochs=1)
    assert schedule.events == (Drop(1e-5),)
    assert float(network.optimizer.learning_rate) == pytest.approx(1e-5)


def test_serialises_as_json():
    schedule = PlateauSchedule("val_iou", 1e-3, [(2, 1e-4)], 4, "total", baseline=0.1, thaws=1, thaw_patience=2)
    data = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    again = keras.saving.deserialize_keras_object(data)
    assert type(again) is PlateauSchedule
    assert again.get_config() == schedule.get_config()
    with pytest.raises(UsageError, match="nothing to thaw with"):
        fit(model(), Scripted([0.5]), again, epochs=1)


def test_says_which_scores_there_are():
    with pytest.raises(UsageError, match=r"found loss.*expected val_dice"):
        model().fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0, callbacks=[PlateauSchedule()])


def test_two_schedules_are_one_too_many():
    network = model(keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.9))
    with pytest.raises(UsageError, match="already a schedule"):
        fit(network, Scripted([0.5]), PlateauSchedule(), epochs=1)
