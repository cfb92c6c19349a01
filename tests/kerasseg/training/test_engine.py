"""One step of training against Keras' own, in parts against the whole, and after memory has run out."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from kerasseg.training.devices import Devices, choose_devices, more_parts, out_of_memory
from kerasseg.training.engine import Engine
from kerasseg_tfrecords.errors import KerassegError, UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 16, 16, 1)).astype("float32")
MASKS = (IMAGES > 0.6).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2, 40).astype("float32")


def network(normalization="batch", dropout=0.0):
    model = kerasseg.unet((16, 16, 1), filters=4, depth=2, normalization=normalization, dropout=dropout, seed=1)
    kerasseg.freeze(model, "conservative")
    return model


def optimizer():
    # eps well above the gradients' last digits: Adam would otherwise turn rounding into steps.
    return kerasseg.DecayedAdam(1e-2, 0.1, epsilon=1e-3, global_clipnorm=1.0)


def engine(model, **options):
    return Engine(model, optimizer(), devices=choose_devices(["CPU:0"], 8), batch_size=8, **options)


def batch(number):
    rows = slice(8 * number, 8 * number + 8)
    return {
        "image": IMAGES[rows],
        "mask": MASKS[rows],
        "weight": WEIGHTS[rows],
        "label": np.arange(8) % 2,
        "slice": np.arange(40)[rows],
    }


def largest_difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.mark.rest
def test_five_steps_are_those_of_keras_fit():
    plain = network()
    kerasseg.set_l2(plain, 1e-3)
    plain.compile(optimizer(), kerasseg.DiceBCELoss(), jit_compile=False)
    losses = [plain.train_on_batch(IMAGES[i : i + 8], MASKS[i : i + 8], WEIGHTS[i : i + 8]) for i in range(0, 40, 8)]

    ours = network()
    kerasseg.set_l2(ours, 1e-3)
    own = engine(ours)
    results = [own.train_step(batch(i)) for i in range(5)]

    assert largest_difference(plain, ours) < 1e-6
    assert [r.loss for r in results] == pytest.approx([float(loss) for loss in losses], abs=1e-5)
    assert results[2].slices.tolist() == list(range(16, 24))


def test_dice_of_a_step_is_that_of_the_network_before_it():
    model = network("none")
    expected = kerasseg.slice_scores(MASKS[:8], model(IMAGES[:8], training=True)).dice.numpy()
    assert engine(model).train_step(batch(0)).dice == pytest.approx(expected)


def test_frozen_blocks_do_not_move():
    model = network()
    before = [layer.get_weights() for layer in model.layers if not layer.trainable]
    own = engine(model)
    for i in range(5):
        own.train_step(batch(i))
    after = [layer.get_weights() for layer in model.layers if not layer.trainable]
    assert before
    assert all((a == b).all() for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))


@pytest.mark.rest
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_give_what_the_whole_gives(parts):
    whole, divided = network("group"), network("group")
    for model in (whole, divided):
        kerasseg.set_l2(model, 1e-3)
    one, other = engine(whole), engine(divided, parts=parts)
    for i in range(5):
        a, b = one.train_step(batch(i)), other.train_step(batch(i))
        assert b.loss == pytest.approx(a.loss, abs=1e-5)
        assert b.slices.tolist() == a.slices.tolist()
        assert b.dice == pytest.approx(a.dice, abs=1e-5)
    assert largest_difference(whole, divided) < 1e-6


class Exhausted:
    """Runs a compiled function, so that all it changes is changed, and then says that memory ran out, so many times."""

    def __init__(self, function, times):
        self.function, self.times = function, times

    def __call__(self, *args):
        result = self.function(*args)
        if self.times:
            self.times -= 1
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,16,16,4]")
        return result


def run_out(own, monkeypatch):
    """The next whole step really runs out of memory after its forward and backward pass, before weights move."""
    move, share = own._move, tf.Variable(0.0)
    size = tf.Variable(1 << 50, dtype=tf.int64)  # a petabyte is more than any machine gives

    def failing(gradients):
        if own.parts == 1:
            with tf.control_dependencies(gradients):
                taken = tf.reduce_sum(tf.random.stateless_uniform([size.read_value()], (1, 2)))
            # Really used: TensorFlow leaves out what is not.
            gradients = [g + share * taken for g in gradients]
        move(gradients)

    monkeypatch.setattr(own, "_move", failing)


@pytest.mark.rest
def test_when_memory_runs_out_the_step_is_done_in_parts_and_nothing_is_lost(monkeypatch):
    told = []
    whole, short = network("group", dropout=0.0), network("group", dropout=0.0)
    one, other = engine(whole), engine(short, on_message=told.append)
    for own in (one, other):
        own.train_step(batch(0))
        own.train_step(batch(1))
    run_out(other, monkeypatch)
    other._compile()  # so that the failing step is traced
    for i in (2, 3, 4):
        one.train_step(batch(i))
        other.train_step(batch(i))
    assert other.parts == 2
    assert [m.kind for m in told] == ["batch-in-2-parts"]
    assert "\n" not in told[0].text
    assert largest_difference(whole, short) < 1e-6
    a, b = one.variables(), other.variables()
    assert [n for n in a if n.startswith("optimizer/")]
    assert max(np.abs(a[name] - b[name]).max() for name in a) < 1e-6  # Adam's averages and counts survive


@pytest.mark.rest
def test_the_failed_step_leaves_no_trace_in_batchnorm_and_dropout(monkeypatch):
    told = []
    model, reference = network("batch", dropout=0.3), network("batch", dropout=0.3)
    own = engine(model, on_message=told.append)
    undisturbed = engine(reference, parts=2)
    before = own.variables()
    assert before.keys() == undisturbed.variables().keys()
    undisturbed.restore(before)
    run_out(own, monkeypatch)
    own._compile()
    own.train_step(batch(0))
    undisturbed.train_step(batch(0))
    assert own.parts == 2
    assert largest_difference(model, reference) == 0.0
    changed = [n for n, v in own.variables().items() if not np.array_equal(v, before[n])]
    assert any("moving_mean" in name for name in changed)


def test_without_memory_for_one_slice_it_says_so(monkeypatch):
    own = engine(network("none"), parts=8)
    monkeypatch.setattr(own, "_part_function", Exhausted(own._part_function, 1))
    with pytest.raises(KerassegError, match=r"out of memory even with one slice at a time.*smaller"):
        own.train_step(batch(0))


def test_evaluation_is_halved_too(monkeypatch):
    model = network("none")
    own = engine(model)
    expected = own.evaluate(validation())
    monkeypatch.setattr(own, "_evaluate_function", Exhausted(own._evaluate_function, 1))
    table = own.evaluate(validation())
    assert own._evaluation_parts == 2
    assert table.dice == pytest.approx(expected.dice)


def validation(count=13):
    """13 slices in batches of 8, the last one filled up."""
    numbers = np.arange(16)
    safe = np.minimum(numbers, count - 1)
    rows = {
        "image": IMAGES[safe],
        "mask": MASKS[safe],
        "weight": (numbers < count).astype("float32"),
        "label": safe % 3,
        "slice": np.where(numbers < count, numbers, -1),
    }
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(8, drop_remainder=True)
    return SimpleNamespace(steps=2, dataset=lambda **_: batches)


def test_evaluation_gives_each_slice_once_with_its_scores():
    model, seen = network(), []
    table = engine(model).evaluate(validation(), lambda step, steps, part: seen.append((step, steps, len(part))))
    assert seen == [(1, 2, 8), (2, 2, 5)]
    assert table.slice.tolist() == list(range(13))
    predicted = model(IMAGES[:13], training=False)
    scores = kerasseg.slice_scores(MASKS[:13], predicted)
    for name in ("dice", "soft_dice", "iou", "precision", "recall"):
        assert getattr(table, name) == pytest.approx(getattr(scores, name).numpy(), abs=1e-6)
    assert table.loss == pytest.approx(kerasseg.DiceBCELoss(reduction="none")(MASKS[:13], predicted).numpy(), abs=1e-5)
    assert table.mean("dice", label=1) == pytest.approx(float(np.mean(scores.dice.numpy()[1::3])))


@pytest.mark.rest
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_restored_variables_go_on_bit_for_bit(dropout):
    def steps(own, numbers):
        return [own.train_step(batch(i)).loss for i in numbers]

    straight = engine(network(dropout=dropout))
    steps(straight, range(2))
    saved = straight.variables()
    expected = steps(straight, (2, 3, 4))

    other = network(dropout=dropout)
    other.set_weights([w * 0 for w in other.get_weights()])
    resumed = engine(other)
    resumed.restore(saved)
    assert steps(resumed, (2, 3, 4)) == expected
    assert largest_difference(straight.model, other) == 0.0


def test_a_state_of_another_network_is_refused():
    saved = engine(network()).variables()
    with pytest.raises(KerassegError, match="belongs to another network"):
        engine(network("none")).restore(saved)


def test_a_broken_loss_is_given_as_it_is():
    own = engine(network())
    poisoned = batch(0)
    poisoned["image"] = np.full_like(poisoned["image"], np.nan)
    assert np.isnan(own.train_step(poisoned).loss)


@pytest.mark.rest
@pytest.mark.slow
def test_xla_gives_the_same():
    plain, compiled = network(), network()
    one, other = engine(plain), engine(compiled, xla=True)
    for i in range(3):
        one.train_step(batch(i))
        other.train_step(batch(i))
    assert largest_difference(plain, compiled) < 1e-4


def test_xla_under_a_strategy_is_refused():
    devices = Devices(tf.distribute.MirroredStrategy(["/CPU:0"]), None, "one", 1)
    with devices.scope():
        model, adam = network(), optimizer()
    with pytest.raises(UsageError, match="XLA does not work under a strategy"):
        Engine(model, adam, devices=devices, batch_size=8, xla=True)


def test_xla_that_cannot_compile_is_left_out_with_a_word():
    told = []
    own = engine(network(), on_message=told.append)
    own._xla = True

    def fails(*_):
        raise tf.errors.InvalidArgumentError(None, None, "Detected unsupported operations when trying to compile graph")

    own._train_function = fails
    assert np.isfinite(own.train_step(batch(0)).loss)
    assert [m.kind for m in told] == ["no-xla"]


def test_other_errors_pass():
    own = engine(network())

    def fails(*_):
        raise tf.errors.InvalidArgumentError(None, None, "shapes do not match")

    own._train_function = fails
    with pytest.raises(tf.errors.InvalidArgumentError):
        own.train_step(batch(0))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), True),
        (tf.errors.InternalError(None, None, "Failed to allocate memory for convolution"), True),
        (tf.errors.UnknownError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (tf.errors.InvalidArgumentError(None, None, "shapes"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_how_memory_says_that_it_ran_out(error, expected):
    assert out_of_memory(error) is expected


def test_parts_of_odd_batches():
    assert [more_parts(p, 6) for p in (1, 2, 3, 6)] == [2, 6, 6, None]
    assert more_parts(1, 1) is None


def test_float16_scales_its_loss_and_learns():
    from kerasseg.training.precision import compute_in

    model = network()
    compute_in(model, "mixed_float16")
    adam = keras.optimizers.LossScaleOptimizer(optimizer(), initial_scale=2.0**10)
    own = Engine(model, adam, devices=choose_devices(["CPU:0"], 8), batch_size=8, parts=2)
    losses = [own.train_step(batch(i % 5)).loss for i in range(10)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(w.dtype == np.float32 for w in model.get_weights())


# --- moving average of the weights ---------------------------------------------------------------------------------------


def test_the_average_follows_a_few_steps_leaves_frozen_weights_alone_and_gives_the_weights_back():
    model = network(dropout=0.1)
    frozen = [w for layer in model.layers if not layer.trainable for w in layer.get_weights()]
    own = engine(model, ema=0.999)
    expected = [w.astype("float64") for w in model.get_weights()]
    for i in range(5):
        own.train_step(batch(i))
        decay = (1 + i) / (10 + i)
        expected = [decay * mean + (1 - decay) * w for mean, w in zip(expected, model.get_weights(), strict=True)]
    raw = model.get_weights()
    with own.averaged():
        averaged = model.get_weights()
        held = [w for layer in model.layers if not layer.trainable for w in layer.get_weights()]
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(averaged, expected, strict=True))
    assert any((a != b).any() for a, b in zip(averaged, raw, strict=True))
    assert all((a == b).all() for a, b in zip(frozen, held, strict=True))
    assert all((a == b).all() for a, b in zip(model.get_weights(), raw, strict=True))


@pytest.mark.rest
def test_the_average_comes_back_exactly_and_an_average_more_or_less_is_refused():
    model = network()
    own = engine(model, ema=0.99)
    for i in range(3):
        own.train_step(batch(i))
    saved = own.variables()
    own.train_step(batch(3))
    expected = own.variables()
    twin = network()
    other = engine(twin, ema=0.99)
    other.restore(saved)
    other.train_step(batch(3))
    assert expected.keys() == other.variables().keys()
    assert all(np.array_equal(expected[name], array) for name, array in other.variables().items())
    with pytest.raises(KerassegError, match="another network"):
        engine(network()).restore(saved)


# --- recalibration of BatchNorm ------------------------------------------------------------------------------------------


def test_recalibrated_statistics_are_the_means_over_batches_and_nothing_else_moves():
    model = network(dropout=0.5)
    kerasseg.freeze(model, "aggressive")
    own = engine(model)
    data = SimpleNamespace(epoch=lambda *_, **__: [batch(i) for i in range(3)])
    weights = [v.numpy() for v in model.trainable_variables]
    own.recalibrate(data, 2)
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = keras.Model(model.inputs[0], layer.input)
    maps = [before(batch(i)["image"]).numpy() for i in range(2)]
    assert np.allclose(layer.moving_mean, np.mean([m.mean((0, 1, 2)) for m in maps], axis=0), atol=1e-6)
    assert np.allclose(layer.moving_variance, np.mean([m.var((0, 1, 2)) for m in maps], axis=0), atol=1e-6)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(weights, model.trainable_variables, strict=True))
    assert "call" not in vars(layer)
    assert layer.momentum == 0.99


def test_a_recalibration_that_is_interrupted_or_has_nothing_to_do_leaves_the_network_alone():
    model = network()
    kerasseg.freeze(model, "aggressive")
    before = model.get_weights()
    data = SimpleNamespace(epoch=lambda *_, **__: [batch(i) for i in range(3)])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(model).recalibrate(data, 3, stop)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    with pytest.raises(UsageError, match="no BatchNorm"):
        engine(network("group")).recalibrate(data, 3)


# --- encoders that learn more slowly -------------------------------------------------------------------------------------


def test_the_encoder_learns_at_a_multiple_of_the_rate():
    """Without decay Adam's steps are proportional to the rate."""
    moved = []
    for factor in (None, 0.1):
        model = network("none")
        kerasseg.freeze(model, "aggressive")
        start = model.get_weights()
        adam = kerasseg.DecayedAdam(1e-3, 0.0)
        if factor is not None:
            adam.scale_rate([v for layer in model.layers if "encoder" in layer.name for v in layer.weights], factor)
        own = Engine(model, adam, devices=choose_devices(["CPU:0"], 8), batch_size=8)
        own.train_step(batch(0))
        moved.append([new - old for new, old in zip(model.get_weights(), start, strict=True)])
    for variable, whole, scaled in zip(model.weights, *moved, strict=True):
        share = 0.1 if "encoder" in variable.path else 1.0
        assert np.allclose(scaled, share * whole, atol=1e-6), variable.path
