"""Augmentation: what is drawn, what it does, and that the fast way equals the reference."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.data.augmentation import COLUMNS, REFUSED, SafeAugmentation, refuse
from kerasseg.data.rng import permutation, uniforms
from kerasseg_tfrecords.errors import UsageError

NOTHING = np.array([0, 0, 1, 1], np.float32)
TOLERANCE = 5e-5  # float32


def plain(image, mask, row):
    """One slice in float64, pixel by pixel, from the three steps in the module's docstring."""
    flip, brightness, contrast, zoom = row.astype(float)
    height, width = image.shape[:2]

    sizes = round(height * zoom), round(width * zoom)
    if sizes == (height, width):
        zoom = 1.0
    tops = round(height * (zoom - 1) / 2), round(width * (zoom - 1) / 2)
    if flip:
        image, mask = image[:, ::-1], mask[:, ::-1]

    def read(values, y, x):
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        total = 0.0
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            value = values[min(max(y0 + i, 0), height - 1), min(max(x0 + j, 0), width - 1)]
            total = total + value * (1 - abs(y - y0 - i)) * (1 - abs(x - x0 - j))
        return total

    out, out_mask = np.zeros(image.shape), np.zeros(mask.shape)
    for v in range(height):
        for u in range(width):
            row, column = v + tops[0], u + tops[1]
            if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                y, x = (row + 0.5) / zoom - 0.5, (column + 0.5) / zoom - 0.5
                out[v, u], out_mask[v, u] = read(image.astype(float), y, x), read(mask.astype(float), y, x)
    mean = out.mean()
    return np.clip(mean + contrast * (out - mean) + brightness, 0, 1), out_mask


def batch(n=6, height=20, width=17, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, height, width, 1), np.uint8)
    for i in range(n - 1):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        masks[i, y : y + 5, x : x + 4] = 1
    return rng.random((n, height, width, channels), np.float32), masks


def strong(n=6):
    return SafeAugmentation(0.5, 0.3, 0.5, 0.4).parameters(2, 0, np.arange(n))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", ["apply", "apply_numpy"])
def test_equals_the_three_steps(channels, way):
    images, masks = batch(channels=channels)
    table = strong()
    assert set(table[:, 0]) == {0, 1}
    got, got_masks = (np.asarray(a) for a in getattr(SafeAugmentation(), way)(images, masks, table))
    for i in range(len(images)):
        expected, expected_mask = plain(images[i], masks[i], table[i])
        np.testing.assert_allclose(got[i], expected, atol=TOLERANCE)
        clear = np.abs(expected_mask - 0.5) > TOLERANCE
        np.testing.assert_array_equal(got_masks[i][clear], (expected_mask > 0.5)[clear])
    assert got.dtype == got_masks.dtype == np.float32
    assert set(np.unique(got_masks)) <= {0, 1}


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    channels=st.sampled_from([1, 3]),
    whole=st.booleans(),
    amounts=st.tuples(*[st.sampled_from([0.0, 0.1, 0.5])] * 4),
)
def test_fast_equals_reference(seed, height, width, channels, whole, amounts):
    images, masks = batch(3, height, width, channels, seed)
    if whole:
        images = (images * 255).astype(np.uint8)
    augmentation = SafeAugmentation(*amounts)
    table = augmentation.parameters(seed, 1, np.arange(3))
    a, a_masks = (np.asarray(x) for x in augmentation.apply(images, masks, table))
    b, b_masks = augmentation.apply_numpy(images, masks, table)
    np.testing.assert_allclose(b, a, atol=TOLERANCE)
    # Pixels at a tie, where rounding decides, are few.
    assert (a_masks != b_masks).sum() <= 2


def test_at_full_size():
    images, masks = batch(8, 256, 256)
    images = np.stack([cv2.GaussianBlur(i[..., 0], (0, 0), 2)[..., None] for i in images])
    augmentation = SafeAugmentation()
    table = augmentation.parameters(0, 0, np.arange(8))
    a, a_masks = (np.asarray(x) for x in augmentation.apply(images, masks, table))
    b, b_masks = augmentation.apply_numpy(images, masks, table, channels=3)
    np.testing.assert_allclose(b, np.repeat(a, 3, axis=-1), atol=TOLERANCE)
    assert (a_masks != b_masks).mean() < 1e-5


@pytest.mark.parametrize("way", ["apply", "apply_numpy"])
def test_nothing_and_flip_alone_are_exact(way):
    images, masks = batch()
    apply = getattr(SafeAugmentation(), way)
    got, got_masks = apply(images, masks, np.tile(NOTHING, (6, 1)))
    np.testing.assert_allclose(got, images, atol=2e-7)
    np.testing.assert_array_equal(got_masks, masks)
    table = np.tile(NOTHING, (6, 1))
    table[:, 0] = 1
    got, got_masks = apply(images, masks, table)
    np.testing.assert_allclose(got, images[:, :, ::-1], atol=2e-6)
    np.testing.assert_array_equal(got_masks, masks[:, :, ::-1])


@pytest.mark.parametrize("way", ["apply", "apply_numpy"])
def test_image_and_mask_move_together(way):
    # The mask as the image: wherever it goes, both go.
    _, masks = batch(6, 64, 64)
    got, got_masks = getattr(SafeAugmentation(), way)(
        masks.astype(np.float32), masks, strong() * [1, 0, 0, 1] + [0, 0, 1, 0]
    )
    np.testing.assert_array_equal(np.asarray(got) > 0.5 + TOLERANCE, np.asarray(got_masks) > 0.5)


def test_zoom_above_1_enlarges_about_the_centre():
    masks = np.zeros((1, 101, 101, 1), np.float32)
    masks[0, 40:61, 40:61] = 1
    _, larger = SafeAugmentation().apply_numpy(masks, masks, np.array([[0, 0, 1, 1.4]]))
    rows = np.flatnonzero(larger[0, :, 50, 0])
    assert (rows.min(), rows.max()) == (36, 64)  # 21 pixels -> 29, centre at 50


def test_inputs_are_left_alone():
    images, masks = batch()
    copies = images.copy(), masks.copy()
    SafeAugmentation().apply_numpy(images, masks, strong())
    np.testing.assert_array_equal(images, copies[0])
    np.testing.assert_array_equal(masks, copies[1])


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6), indices=st.lists(st.integers(0, 300), max_size=20))
def test_parameters_depend_on_seed_epoch_and_slice_alone(seed, epoch, indices):
    augmentation = SafeAugmentation()
    everything = augmentation.parameters(seed, epoch, np.arange(301))
    np.testing.assert_array_equal(
        augmentation.parameters(seed, epoch, np.array(indices, int)), everything[indices].reshape(-1, 4)
    )


def test_parameters_are_as_described():
    table = SafeAugmentation().parameters(1, 2, np.arange(20_000))
    assert table.dtype == np.float32
    flip, brightness, contrast, zoom = table.T
    assert set(flip) == {0, 1}
    assert flip.mean() == pytest.approx(0.5, abs=0.02)
    for values, middle, reach in ((brightness, 0, 0.1), (contrast, 1, 0.1), (zoom, 1, 0.05)):
        assert np.abs(values - middle).max() <= reach + 1e-6
        assert values.mean() == pytest.approx(middle, abs=0.02 * reach)
        assert values.std() == pytest.approx(reach / np.sqrt(3), rel=0.02)  # uniform
    assert np.abs(np.corrcoef(table.T) - np.eye(4)).max() < 0.03


def test_epochs_seeds_and_slices_differ():
    augmentation = SafeAugmentation()
    tables = [augmentation.parameters(s, e, np.arange(50)) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    values = np.concatenate(tables)[:, 1]
    assert len(np.unique(values)) == len(values)


def test_turning_one_off_leaves_the_others():
    everything = SafeAugmentation().parameters(1, 1, np.arange(30))
    for column, (name, neutral) in enumerate(zip(COLUMNS, NOTHING, strict=True)):
        table = SafeAugmentation(**{name: 0}).parameters(1, 1, np.arange(30))
        assert (table[:, column] == neutral).all()
        others = [i for i in range(4) if i != column]
        np.testing.assert_array_equal(table[:, others], everything[:, others])


def test_same_numbers_on_every_machine():
    # Written down once: a change of these would change every stored run.
    np.testing.assert_allclose(
        uniforms(1, 2, "augmentation", 1, 4)[0],
        [0.9730891501020035, 0.49158217921581304, 0.5233201672615978, 0.9173887476615373],
        rtol=0,
        atol=1e-15,
    )


def test_uniforms_and_permutations():
    assert (uniforms(1, 2, "a", 5, 3) != uniforms(1, 2, "b", 5, 3)).all()
    assert sorted(permutation(1, 2, "a", 50).tolist()) == list(range(50))
    for seed in (-1, 2**64, 1.0, True, "1"):
        with pytest.raises(UsageError, match="invalid seed"):
            uniforms(seed, 0, "a", 1, 1)


@pytest.mark.parametrize("indices", [[-1], [0.5], [[1]], ["a"]])
def test_refuses_slice_numbers(indices):
    with pytest.raises(UsageError, match="slice numbers"):
        SafeAugmentation().parameters(0, 0, indices)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rotation", "rotation"),
        ("RandomRotation", "rotation"),
        ("rotate", "rotation"),
        ("vertical_flip", "vertical_flip"),
        ("VerticalFlip", "vertical_flip"),
        ("vertical-flip", "vertical_flip"),
        ("elastic", "elastic"),
        ("Elastic Deformation", "elastic"),
        ("ElasticTransform", "elastic"),
        ("colour_jitter", "color_jitter"),
        ("ColorJitter", "color_jitter"),
        ("CLAHE", "equalize"),
        ("MixUp", "mixup"),
    ],
)
def test_refused_by_name_with_the_reason(name, key):
    with pytest.raises(UsageError) as caught:
        refuse(name)
    assert repr(name) in str(caught.value)
    assert REFUSED[key] in str(caught.value)
    assert "Safe ones are flip, brightness, contrast, zoom" in str(caught.value)


def test_unknown_ones_are_refused_too():
    with pytest.raises(UsageError, match="'sparkle' is not one of the safe ones"):
        SafeAugmentation(sparkle=1)
    with pytest.raises(UsageError, match="heads lie in the scanner"):
        SafeAugmentation(rotation=10)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan"), "0.5", True])
@pytest.mark.parametrize("name", COLUMNS)
def test_refuses_amounts(name, amount):
    with pytest.raises(UsageError, match=f"amount of {name}"):
        SafeAugmentation(**{name: amount})


def test_refuses_shapes():
    images, masks = batch()
    augmentation = SafeAugmentation()
    for way in (augmentation.apply, augmentation.apply_numpy):
        for wrong in ((images[:2], masks, strong()), (images, masks[..., 0], strong()), (images, masks, strong(5))):
            with pytest.raises(ValueError, match="expected images"):
                way(*wrong)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        augmentation.apply_numpy(np.repeat(images, 2, axis=-1), masks, strong())
    with pytest.raises(ValueError, match="1 or 3 channels"):
        augmentation.apply_numpy(np.repeat(images, 3, axis=-1), masks, strong(), channels=1)


def test_results_stay_what_they_are_while_anybody_holds_them():
    images, masks = batch(4, 16, 16)
    augmentation = SafeAugmentation()
    held, expected = [], []
    for epoch in range(30):
        got, got_masks = augmentation.apply_numpy(images, masks, augmentation.parameters(0, epoch, np.arange(4)))
        expected.append(got.copy())
        # Whole, a view of a view, a tensor: all of them hold the memory; the masks are let go.
        held.append([got, got[1:][:2], tf.constant(got)][epoch % 3])
        if epoch % 3 == 1:
            expected[-1] = expected[-1][1:3]
        del got, got_masks
    for a, b in zip(held, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tensorflow_holds_the_memory_of_its_tensors():
    images, masks = batch(4, 32, 32)
    augmentation = SafeAugmentation()
    tables = np.stack([augmentation.parameters(0, epoch, np.arange(4)) for epoch in range(60)])
    expected = [tuple(a.copy() for a in SafeAugmentation().apply_numpy(images, masks, t)) for t in tables]

    def fast(table):
        return tf.numpy_function(lambda t: augmentation.apply_numpy(images, masks, t), [table], [tf.float32] * 2)

    data = tf.data.Dataset.from_tensor_slices(tables).map(fast, num_parallel_calls=3).prefetch(4)
    held = []
    for number, found in enumerate(data):
        held = [*held[-5:], (number, found)]
        for i, (image, mask) in held:
            np.testing.assert_array_equal(image, expected[i][0])
            np.testing.assert_array_equal(mask, expected[i][1])


def test_memory_is_used_again_and_does_not_pile_up():
    images, masks = batch(2, 64, 64)
    augmentation, table = SafeAugmentation(), strong(2)
    places = set()
    for _ in range(10):
        got, got_masks = augmentation.apply_numpy(images, masks, table)
        places |= {got.ctypes.data, got_masks.ctypes.data}
        assert all(place % 64 == 0 for place in places)
        del got, got_masks
    assert len(places) <= 4
    held = [augmentation.apply_numpy(images[:n], masks[:n], table[:n]) for n in (1, 2) * 30]
    assert len({a.ctypes.data for pair in held for a in pair}) == 120
    assert len(augmentation._fast._results.kept) <= 16


def test_threads_that_come_and_go_share_their_buffers():
    """TensorFlow calls Python from threads that forget what is theirs: nothing may be made anew in each."""
    images, masks = batch(2, 64, 64)
    augmentation, table = SafeAugmentation(), strong(2)
    for _ in range(10):
        thread = threading.Thread(target=augmentation.apply_numpy, args=(images, masks, table))
        thread.start()
        thread.join()
    assert len(augmentation._fast._movers) == 1


def test_many_threads_get_what_one_gets():
    images, masks = batch(6, 64, 64, 3)
    augmentation = SafeAugmentation()
    tables = [augmentation.parameters(1, epoch, np.arange(6)) for epoch in range(40)]
    expected = [tuple(a.copy() for a in SafeAugmentation().apply_numpy(images, masks, t)) for t in tables]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda t: augmentation.apply_numpy(images, masks, t), tables))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_opencv_has_as_many_threads_as_before(monkeypatch):
    images, masks = batch(6, 64, 64)
    seen = set()
    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda *a, **k: (seen.add(cv2.getNumThreads()), resize(*a, **k))[1])
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: SafeAugmentation().apply_numpy(images, masks, strong()), range(20)))
        assert (seen, cv2.getNumThreads()) == ({1}, 3)
        monkeypatch.setattr(cv2, "resize", None)
        with pytest.raises(TypeError):
            SafeAugmentation().apply_numpy(images, masks, strong())
        assert cv2.getNumThreads() == 3  # after an error, too
    finally:
        cv2.setNumThreads(before)


def test_can_be_sent_to_worker_processes():
    assert pickle.loads(pickle.dumps(SafeAugmentation(zoom=0.2))) == SafeAugmentation(zoom=0.2)


def test_slices_without_tumour_at_the_ends_of_the_zoom():
    images, masks = np.ones((2, 8, 9, 1), np.float32), np.zeros((2, 8, 9, 1))
    got, got_masks = SafeAugmentation().apply_numpy(images, masks, np.array([[0, 0, 1, 0.5], [1, 0, 1, 1.5]]))
    assert (got_masks == 0).all()
    assert (got[0].sum(), got[1].min()) == (16, 1)  # 4 x 4 pixels amid zeros; and all is picture


def test_empty_batch():
    images, masks = SafeAugmentation().apply_numpy(np.zeros((0, 8, 8, 1)), np.zeros((0, 8, 8, 1)), np.zeros((0, 4)), 3)
    assert images.shape == (0, 8, 8, 3)
    assert masks.shape == (0, 8, 8, 1)


def test_serialises_as_json():
    augmentation = SafeAugmentation(0.1, 0.2, 0.3, 0.4)
    text = json.dumps(keras.saving.serialize_keras_object(augmentation))
    assert keras.saving.deserialize_keras_object(json.loads(text)) == augmentation
    assert repr(augmentation) == "SafeAugmentation(flip=0.1, brightness=0.2, contrast=0.3, zoom=0.4)"


def test_in_somebodys_tf_data_whatever_the_batches():
    images, masks = batch(7)
    augmentation = SafeAugmentation()
    table = augmentation.parameters(3, 4, np.arange(7))
    results = []
    for size in (2, 7):
        data = tf.data.Dataset.from_tensor_slices((images, masks, table)).batch(size).map(augmentation)
        results.append(np.concatenate([x for x, _ in data.as_numpy_iterator()]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], augmentation.apply_numpy(images, masks, table)[0], atol=TOLERANCE)
