"""Trains on one device or on two logical CPU devices and writes what came out; run in a process of its own."""

import sys

import numpy as np
import tensorflow as tf

REPLICAS = int(sys.argv[1])
CPU = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPU[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS)

import keras  # noqa: E402 - the devices must be cut before Keras looks at them

from kerasseg.losses import DiceBCELoss  # noqa: E402
from kerasseg.metrics import ClassScores, DiceScore, Recall, SoftDice  # noqa: E402
from kerasseg.optimizers import DecayedAdam, set_l2  # noqa: E402

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
images = rng.random((40, 12, 12, 1), np.float32)
masks = (images > rng.choice([0.3, 0.8, 2.0], (40, 1, 1, 1))).astype("float32")
weights = (rng.random(40) > 0.2).astype("float32")

names = [f"CPU:{i}" for i in range(REPLICAS)]
strategy = tf.distribute.MirroredStrategy(names) if REPLICAS > 1 else tf.distribute.get_strategy()
with strategy.scope():
    x = source = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = keras.layers.BatchNormalization(synchronized=REPLICAS > 1)(x)
    x = keras.layers.Conv2D(1, 1, activation="sigmoid")(x)
    model = keras.Model(source, x)
    set_l2(model, 1e-3)
    # eps well above the gradients' last digits: Adam would otherwise turn rounding into steps.
    model.compile(
        DecayedAdam(1e-2, 0.1, global_clipnorm=1.0, epsilon=1e-3),
        DiceBCELoss(),
        weighted_metrics=[DiceScore(), DiceScore(subset="tumour"), SoftDice(), Recall()],
        jit_compile=False,
    )
    per_class = ClassScores(["a", "b"])

data = tf.data.Dataset.from_tensor_slices((images, masks, weights)).batch(8)
# 13 slices: shares of the replicas are uneven, and the second of the last batch may be empty.
evaluated = model.evaluate(data.unbatch().take(13).batch(4), verbose=0, return_dict=True)
history = model.fit(data, epochs=1, verbose=0).history


@tf.function
def step(image, mask, label):
    per_class.update_state(mask, model(image), labels=label)


labels = np.arange(40) % 2
rows = tf.data.Dataset.from_tensor_slices((images, masks, labels)).batch(8)
for item in strategy.experimental_distribute_dataset(rows):
    strategy.run(step, args=item)

results = {f"history_{k}": v for k, v in history.items()} | {f"evaluated_{k}": v for k, v in evaluated.items()}
results |= {f"class_{k}": np.asarray(v) for k, v in per_class.result().items()}
results |= {f"weight_{i}": w for i, w in enumerate(model.get_weights())}
np.savez(sys.argv[2], **results)
