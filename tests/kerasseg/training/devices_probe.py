"""Trains on one and on two logical CPU devices and writes what came out; run in a process of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

FOLDER, SHARDS = Path(sys.argv[1]), sys.argv[2]
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import keras  # noqa: E402 - the devices must be cut before Keras looks at them

import kerasseg  # noqa: E402
from kerasseg.runs.settings import parse_settings  # noqa: E402
from kerasseg.training.devices import choose_devices  # noqa: E402
from kerasseg.training.engine import Engine  # noqa: E402
from kerasseg.workflows import train as session  # noqa: E402

ONE, TWO = ("CPU:0",), ("CPU:0", "CPU:1")
# Where two devices compute their halves of a batch in two parts each, one device must find the same slices in its parts.
IN_PARTS = np.array([0, 1, 4, 5, 2, 3, 6, 7])

rng = np.random.default_rng(0)
images = rng.random((40, 16, 16, 1)).astype("float32")
masks = (images > rng.choice([0.4, 0.8, 2.0], (40, 1, 1, 1))).astype("float32")
weights = rng.uniform(0.5, 2, 40).astype("float32")
results = {}


class Data:
    """Rows of the slices above, batches of 8, as `TrainingData` and `EvaluationData` give them."""

    def __init__(self, numbers):
        self.numbers, self.steps = numbers, len(numbers) // 8

    def dataset(self, input_context=None):
        # The filling is the last slice once more, with number -1.
        safe, there = np.minimum(self.numbers, self.numbers.max()), self.numbers >= 0
        rows = {
            "image": images[safe],
            "mask": masks[safe],
            "weight": weights[safe] * there,
            "label": safe % 3,
            "slice": np.where(there, self.numbers, -1),
        }
        replicas = 1 if input_context is None else input_context.num_replicas_in_sync
        return tf.data.Dataset.from_tensor_slices(rows).batch(8 // replicas, drop_remainder=True)

    def epoch(self, epoch, start_step=0, *, input_context=None):
        return self.dataset(input_context).skip(start_step * (1 if input_context is None else 2))


def network():
    keras.utils.set_random_seed(1)
    x = source = keras.Input((16, 16, 1))
    for filters in (3, 4):
        x = keras.layers.Conv2D(filters, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("relu")(x)
    return keras.Model(source, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


def engine(names, optimizer, **options):
    devices = choose_devices(names, 8)
    with devices.scope():
        model = network()
        kerasseg.set_l2(model, 1e-3)
        made = optimizer()
    return Engine(model, made, devices=devices, batch_size=8, **options)


def sgd():
    return keras.optimizers.SGD(0.1)


def adam():
    # eps well above the gradients' last digits: Adam would otherwise turn rounding into steps.
    return kerasseg.DecayedAdam(1e-2, 0.1, epsilon=1e-3, global_clipnorm=0.5)


def steps(own, numbers=None, start=0):
    return [own.train_step(b) for b in own.batches(Data(np.arange(40) if numbers is None else numbers), 0, start)]


def keep(name, own, done):
    results[f"{name}/loss"] = np.array([step.loss for step in done])
    results[f"{name}/dice"] = np.stack([step.dice for step in done])
    results[f"{name}/slices"] = np.stack([step.slices for step in done])
    for variable, value in own.variables().items():
        results[f"{name}/{variable.split('/')[0]}/{variable.split('/')[1]}"] = value


def keep_evaluation(name, own):
    # 13 slices: the second device has nothing but filling at the end of the last batch.
    seen = []
    table = own.evaluate(Data(np.r_[np.arange(13), [-1] * 3]), lambda _step, _steps, part: seen.append(len(part)))
    assert seen == [8, 5]
    results.update({f"{name}/{column}": values for column, values in table.arrays().items()})


def memory_runs_out_on_the_second_device(own):
    """Between the backward pass and the first weight that moves, as long as batches are whole."""
    move, share = own._move, tf.Variable(0.0)
    size = tf.Variable(1 << 50, dtype=tf.int64)  # a petabyte is more than any machine gives

    def failing(gradients):
        context = tf.distribute.get_replica_context()
        if own.parts == 1 and context.replica_id_in_sync_group == 1:
            with tf.control_dependencies(gradients):
                taken = tf.reduce_sum(tf.random.stateless_uniform([size.read_value()], (1, 2)))
            # Really used: TensorFlow leaves out what is not.
            gradients = [g + share * taken for g in gradients]
        move(gradients)

    own._move = failing
    own._compile()  # so that the failing step is traced


for optimizer in (sgd, adam):
    for names in (ONE, TWO):
        own = engine(names, optimizer)
        keep(f"{optimizer.__name__}-{len(names)}", own, steps(own))
        if optimizer is adam:
            keep_evaluation(f"evaluation-{len(names)}", own)

own = engine(TWO, adam)
for layer in own.model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        assert layer.synchronized
        layer.synchronized = False
keep("unsynchronized-2", own, steps(own))

own = engine(ONE, adam)
done = steps(own, np.arange(16))
own.parts = 2
own._compile()
order = np.concatenate([8 * k + IN_PARTS for k in (2, 3, 4)])
keep("memory-1", own, done + steps(own, order))

told = []
own = engine(TWO, adam, on_message=lambda message: told.append(message.kind))
done = steps(own, np.arange(16))
memory_runs_out_on_the_second_device(own)
keep("memory-2", own, done + steps(own, start=2))
results["told"] = np.array(told)

settings = {
    "shards": SHARDS,
    "strategy": "scratch",
    "network": {"filters": 2, "depth": 1},
    "precision": "float32",
    "batch_size": 4,
    "epochs": 2,
    "class_weight": "balanced",
    "l2": 1e-3,
}
histories = {}
for names in (ONE, TWO):
    ended, run = session.train(parse_settings(None, **settings, devices=names), FOLDER / f"run-{len(names)}")
    histories[len(names)] = [[row.loss, row.val_loss, row.val_dice, row.val_soft_dice] for row in ended.history[1:]]
(FOLDER / "histories.json").write_text(json.dumps(histories))
np.savez(FOLDER / "results.npz", **results)
