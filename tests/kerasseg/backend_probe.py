"""What the backend-neutral parts compute on fixed inputs, on whatever backend runs this file; written to an .npz."""

import sys

import keras
import numpy as np
from keras import ops

from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.losses import DiceBCELoss
from kerasseg.metrics import ClassScores, DiceScore, SoftDice, slice_scores
from kerasseg.optimizers import DecayedAdam, set_l2


def inputs():
    rng = np.random.default_rng(5)
    images = rng.random((6, 32, 24, 3), np.float32)
    masks = np.zeros((6, 32, 24, 1), np.float32)
    for i in range(5):  # the last has no tumour
        masks[i, 4 + i : 14 + 2 * i, 3 : 9 + i] = 1
    predictions = rng.random((6, 32, 24, 1), np.float32)
    predictions[4] *= 0.4  # a miss
    predictions[5] *= 0.4  # both empty
    return images, masks, predictions


def network():
    keras.utils.set_random_seed(0)
    x = source = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    x = keras.layers.GroupNormalization(1)(x)
    x = keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x)
    model = keras.Model(source, x)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.3, w.shape).astype("float32") + (w.ndim == 1) for w in model.get_weights()])
    return model


def probe():
    images, masks, predictions = inputs()
    found = {
        "loss": DiceBCELoss(reduction="none")(masks, predictions),
        "loss_weighted": DiceBCELoss(0.5, 2.0, positive_weight=3.0, squared=True)(masks, predictions, np.arange(6.0)),
        "loss_logits": DiceBCELoss(from_logits=True, reduction="none")(masks, predictions * 6 - 3),
        **slice_scores(masks, predictions)._asdict(),
    }
    weights = np.array([1, 1, 0, 1, 2, 1], "float32")
    for metric in (DiceScore(), DiceScore(subset="tumour"), SoftDice()):
        state = metric.stateless_reset_state()
        for rows in (slice(0, 2), slice(2, 6)):
            state = metric.stateless_update_state(state, masks[rows], predictions[rows], weights[rows])
        found[f"metric_{metric.name}"] = metric.stateless_result(state)
    per_class = ClassScores(["a", "b", "c"], ["dice", "recall"])
    per_class.update_state(masks, predictions, labels=np.array([0, 1, 0, 1, 1, -1]))
    found |= {f"class_{name}": value for name, value in per_class.result().items()}

    augmentation = SafeAugmentation(zoom=0.2)
    table = augmentation.parameters(3, 1, np.arange(6))
    found["augmented"], found["augmented_masks"] = augmentation.apply(images, masks, table)

    model = network()
    set_l2(model, 1e-3)
    model.compile(
        DecayedAdam(1e-2, 0.1, global_clipnorm=1.0), DiceBCELoss(), weighted_metrics=[DiceScore()], jit_compile=False
    )
    history = model.fit(
        images[:, :16, :16, :1], masks[:, :16, :16], batch_size=3, epochs=2, shuffle=False, verbose=0
    ).history
    found["history"] = np.array([history["loss"], history["dice"]])
    found |= {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in found.items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], backend=keras.backend.backend(), **probe())
