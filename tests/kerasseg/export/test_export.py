"""Exports of a run: opened by other libraries alone, held against the network, refused where they are not it."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import kerasseg
from evaluated_runs import brightness_network
from evaluations import Slices, evaluation
from exported_runs import RULE, SIZE, make_run, set_rule
from kerasseg.checkpoints.conversion import convert_checkpoint
from kerasseg.checkpoints.hub import choose
from kerasseg.checkpoints.provenance import provenance
from kerasseg.data.split import open_split
from kerasseg.evaluation.overlap import dice
from kerasseg.evaluation.schema import Mean, NetworkFigures
from kerasseg.export import atomic_folder, export_run
from kerasseg.export.card import card, interval
from kerasseg.export.export_run import Exported, export_model
from kerasseg.export.metadata import evaluations
from kerasseg.export.parity import (
    LEAST_EQUAL,
    MOST_DIFFERENT,
    Shards,
    check,
    compare,
    comparison_samples,
    find_shards,
    measure_int8,
    native,
    network_images,
)
from kerasseg.export.schema import Comparison, MaskFacts, read_metadata
from kerasseg.export.serving import Network, serving_model
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.runs.directory import RunDirectory
from kerasseg.training.diagnostics import check_intensity
from kerasseg.workflows.evaluate import Extras, evaluate_run
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import _SCRATCH, lock
from kerasseg_tfrecords.intensity import fit_image, intensity_window, restore
from kerasseg_tfrecords.records.manifest import load_manifest

FORMATS = ("keras", "savedmodel", "onnx", "litert")
Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def run(made: Path) -> RunDirectory:
    return RunDirectory(made / "runs" / "first")


@pytest.fixture(scope="module")
def exports(run: RunDirectory) -> dict[str, Exported]:
    """One of each format; the SavedModel does the whole rule."""
    return {name: export_model(run, name, with_postprocessing=name == "savedmodel", slices=8) for name in FORMATS}


@pytest.fixture(scope="module")
def served(exports: dict[str, Exported]) -> Any:
    """The SavedModel, as TensorFlow alone opens it."""
    return tf.saved_model.load(str(exports["savedmodel"].folder))


@pytest.fixture
def export(run: RunDirectory, tmp_path: Path) -> Export:
    """Into a folder of the test's own; by default the cheapest format."""

    def call(format: str = "keras", out: Path | None = None, **options: Any) -> Exported:  # noqa: A002
        return export_model(run, format, out or tmp_path / "out", **{"slices": 2, **options})

    return call


@pytest.fixture(scope="module")
def network(run: RunDirectory) -> keras.Model:
    return keras.saving.load_model(run.model_file, compile=False)


def random_images() -> NDArray[np.float32]:
    return np.random.default_rng(3).random((5, SIZE, SIZE, 3)).astype(np.float32)


def by_tensorflow(served: Any, signature: str, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in served.signatures[signature](image=tf.constant(image)).items()}


def by_its_library(made: Exported, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What a stranger does, who has the library of the format and nothing else."""
    folder = made.folder
    if made.metadata.format == "keras":
        return {"probability": keras.saving.load_model(folder / "model.keras").predict(images, verbose=0)}
    if made.metadata.format == "savedmodel":
        return by_tensorflow(tf.saved_model.load(str(folder)), "kerasseg_network", images)
    if made.metadata.format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"image": images}), strict=True))
    with pytest.warns(UserWarning, match=r"tf\.lite\.Interpreter is deprecated"):
        interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    return {name: value.copy() for name, value in interpreter.get_signature_runner()(image=images).items()}


def our_way(network: keras.Model, image: NDArray[Any], rule: MaskRule) -> NDArray[np.bool_]:
    """A slice as `prepare` and `evaluate` treat it."""
    seen = fit_image(image, intensity_window(image, "percentile"), SIZE)
    probability = network.predict(np.repeat(seen[np.newaxis] / np.float32(255), 3, axis=3), verbose=0)[0, ..., 0]
    return apply_rule(restore(probability, *image.shape[:2]), rule)


def shared_bytes(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and every member of archives."""
    for path in filter(Path.is_file, folder.rglob("*")):
        yield path.name, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path.name}/{name}", archive.read(name)) for name in archive.namelist())


@pytest.mark.parametrize("name", ["keras", "savedmodel"])
def test_nothing_that_is_shared_names_a_folder_or_a_password(tmp_path: Path, made: Path, name: str) -> None:
    home = tmp_path / "home" / "ann secret"
    home.mkdir(parents=True)
    shutil.copytree(made / "runs" / "first", home / "runs" / "first", ignore=shutil.ignore_patterns("export"))
    moved = RunDirectory(home / "runs" / "first")
    document = json.loads(moved.config_file.read_text())
    document["resolved"]["checkpoint"] = "https://ann:secret-word@example.org/unet.keras?X-Amz-Signature=secret-word"
    document["resolved"]["changes"] = [f"read from {home}/nets/unet.keras", "head of /srv/data/bob/unet.h5 kept"]
    moved.config_file.write_text(json.dumps(document))
    kept = export_model(moved, name, tmp_path / "out", slices=1, shards=made / "shards")
    assert kept.metadata.network.checkpoint == "https://example.org/unet.keras"
    assert kept.metadata.training["changes"] == ["read from nets/unet.keras", "head of unet.h5 kept"]
    for member, data in shared_bytes(kept.folder):
        for word in (b"ann secret", b"secret-word", b"/srv/data", str(tmp_path).encode(), str(made).encode()):
            assert word not in data, (member, word)


def test_a_converted_checkpoint_names_no_folder(tmp_path: Path, made: Path) -> None:
    convert_checkpoint(made / "runs" / "first" / "model.keras", tmp_path / "out.keras")
    for member, data in shared_bytes(tmp_path):
        assert str(made).encode() not in data, member
    record = provenance(tmp_path / "out.keras")
    assert record is not None
    assert record.path == "model.keras"


# --- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_library_of_the_format_gives_what_the_network_gives(
    name: str, exports: dict[str, Exported], network: keras.Model
) -> None:
    images = random_images()
    found = by_its_library(exports[name], images)["probability"]
    assert found.shape == (5, SIZE, SIZE, 1)
    assert np.abs(found - network.predict(images, verbose=0)).max() < 1e-5
    comparison = exports[name].metadata.comparison
    assert comparison.source == "validation"
    assert comparison.slices == 8
    assert comparison.largest_difference < 1e-5
    assert comparison.equal_pixels == 1


@pytest.mark.slow
def test_a_saved_model_takes_stored_slices_of_any_size(served: Any, made: Path, network: keras.Model) -> None:
    tidied = False
    for number, cut in ((1, (48, 48)), (2, (48, 31)), (3, (20, 45))):
        with h5py.File(made / "raw" / f"{number}.mat") as file:
            stored = np.asarray(file["cjdata/image"]).T[: cut[0], : cut[1]]
        stored[2:5, 2:5] = stored.max()  # a speck, which the rule removes
        expected = our_way(network, stored, RULE)
        values = stored[np.newaxis, ..., np.newaxis].astype(np.float32)
        found = by_tensorflow(served, "stored_values", values)
        assert found["mask"].shape == (1, *cut)
        assert found["mask"].dtype == np.uint8
        assert np.array_equal(found["mask"][0] > 0, expected)
        tidied |= bool((expected != our_way(network, stored, RULE.without_postprocessing())).any())
        grey = (stored / 16).astype(np.uint8)
        in_bytes = by_tensorflow(served, "serving_default", grey[np.newaxis, ..., np.newaxis])
        assert np.array_equal(in_bytes["mask"][0] > 0, our_way(network, grey, RULE))
    assert tidied


@pytest.mark.slow
def test_a_saved_model_takes_batches_and_volumes(served: Any, network: keras.Model) -> None:
    volume = np.random.default_rng(0).integers(0, 3000, (3, 21, 40, 1)).astype(np.float32)
    volume[1] *= 0.2
    together = by_tensorflow(served, "stored_values", volume)["probability"]
    apart = [by_tensorflow(served, "stored_values", volume[i : i + 1])["probability"][0] for i in range(3)]
    assert np.abs(together - np.stack(apart)).max() < 1e-6
    window = intensity_window(volume, "percentile")
    seen = np.stack([fit_image(image, window, SIZE) for image in volume]) / np.float32(255)
    inner = network.predict(np.repeat(seen, 3, axis=3), verbose=0)[..., 0]
    as_one = by_tensorflow(served, "volume", volume)["probability"]
    assert np.abs(as_one - np.stack([restore(p, 21, 40) for p in inner])).max() < 1e-5
    assert np.abs(as_one - together).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras", "savedmodel"])
def test_an_export_opens_again_and_knows_its_intensity_rule(
    name: str, exports: dict[str, Exported], network: keras.Model
) -> None:
    folder = exports[name].folder
    model = kerasseg.open_checkpoint(folder / "model.keras" if name == "keras" else folder)
    images = random_images()
    assert np.abs(model.predict(images, verbose=0) - network.predict(images, verbose=0)).max() < 1e-6
    assert model.trainable_weights
    record = kerasseg.provenance(model)
    assert record is not None
    assert record.intensity == "percentile"
    assert record.path == "first/model.keras"  # no folder of this machine
    assert check_intensity("percentile", record.intensity, checkpoint="x") is None
    with pytest.raises(UsageError, match="intensity"):
        check_intensity("minmax", record.intensity, checkpoint="x")


def test_the_hub_fetches_what_a_saved_model_needs() -> None:
    files = ["README.md", "metadata.json", "saved_model.pb", "variables/variables.index"]
    assert set(choose(files, None, "me/unet").files) == set(files) - {"README.md"}


@pytest.mark.slow
def test_metadata_say_what_is_inside_and_what_is_left(exports: dict[str, Exported], made: Path) -> None:
    for name, inside in (("keras", ()), ("onnx", ()), ("savedmodel", ("threshold", *RULE_STEPS))):
        found = read_metadata(exports[name].folder)
        assert found == exports[name].metadata
        assert found.mask.rule == RULE
        assert found.mask.inside == inside
        assert set(found.mask.inside) | set(found.mask.left) == {"threshold", *RULE_STEPS}
        assert found.preprocessing.inside == (name == "savedmodel")
        assert found.data.fingerprint == load_manifest(made / "shards").fingerprint
        assert found.data.split["val"].slices == 9
        assert found.tuning is not None
        for file in found.files:
            assert (exports[name].folder / file.path).stat().st_size == file.bytes
    text = (exports["savedmodel"].folder / "metadata.json").read_text()
    assert str(made) not in text
    assert str(made) not in (exports["savedmodel"].folder / "README.md").read_text()


RULE_STEPS = ("min_diameter", "fill_holes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_a_threshold_can_be_inside(name: str, export: Export, network: keras.Model) -> None:
    done = export(name, with_postprocessing=True, threshold=0.3)
    found = by_its_library(done, random_images())
    assert done.metadata.mask.inside == ("threshold",)
    assert done.metadata.mask.source == "given"
    assert found["mask"].dtype == np.uint8
    assert np.array_equal(found["mask"] > 0, found["probability"] >= np.float32(0.3))
    assert 0 < found["mask"].mean() < 1
    assert [port.name for port in done.metadata.calling[0].outputs] == ["probability", "mask"]


@pytest.mark.slow
def test_onnx_carries_its_notes(exports: dict[str, Exported]) -> None:
    onnx = pytest.importorskip("onnx")
    stored = onnx.load(exports["onnx"].folder / "model.onnx")
    notes = {entry.key: entry.value for entry in stored.metadata_props}
    assert notes["intensity"] == "percentile"
    assert MaskRule.model_validate_json(notes["rule"]) == RULE
    assert stored.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


# --- 8 bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cost_of_8_bits_is_the_mean_difference_of_dice(export: Export, made: Path, network: keras.Model) -> None:
    done = export("litert", int8=True, calibration=12, max_loss=1.0)
    facts = done.metadata.int8
    assert facts is not None
    assert facts.calibration == 12
    split = open_split(made / "shards", "val")
    images = network_images(split.pixels(np.arange(len(split)))[0], 3)
    plain = network.predict(images, verbose=0)[..., 0]
    eight = np.concatenate([by_its_library(done, images[i : i + 1])["probability"][..., 0] for i in range(len(images))])
    scores = []
    for i in range(len(split)):
        record = split.record(i)
        masks = [apply_rule(restore(p[i], record.height, record.width), RULE) for p in (plain, eight)]
        scores.append([float(dice(mask, record.mask_native)) for mask in masks])
    mean = np.mean(scores, axis=0)
    assert facts.dice_float.mean == pytest.approx(mean[0])
    assert facts.dice_int8.mean == pytest.approx(mean[1], abs=1e-3)
    assert facts.cost.mean == pytest.approx(mean[0] - mean[1], abs=1e-3)
    assert facts.cost.patients == 3
    assert mean[0] > 0.5
    text = (done.folder / "README.md").read_text()
    assert "Cost of 8 bits" in text
    assert f"{facts.dice_int8.mean:.4f}" in text


def test_8_bits_that_cost_too_much_are_refused(run: RunDirectory, network: keras.Model) -> None:
    shards = find_shards(run, run.config(), None)
    assert shards is not None

    def blind(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"probability": np.zeros(images.shape[:3], np.float32)}

    with pytest.raises(KerassegError, match=r"cost too much Dice on validation .*at most 0\.05"):
        measured(native(network), blind, shards)
    assert measured(blind, native(network), shards) < -0.5


def measured(first: Network, second: Network, shards: Shards) -> float:
    facts = measure_int8(
        first,
        second,
        shards,
        RULE,
        channels=3,
        calibration=1,
        allowed=0.05,
        bytes_float=1,
        path=Path("x"),
    )
    assert facts.cost.mean is not None
    return facts.cost.mean


# --- what is not the network ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_that_is_not_the_network_is_removed(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: keras.Model, size: int, threshold: float | None) -> keras.Model:
        serving = serving_model(model, size, threshold)
        return keras.Model(serving.inputs, {"probability": serving.output["probability"] + 1e-3})

    monkeypatch.setattr(export_run, "serving_model", other)
    with pytest.raises(KerassegError, match="give different probabilities .*a difference") as caught:
        export("litert")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"largest_difference": 2e-4}, "give different probabilities"),
        ({"largest_difference": float("nan")}, "difference of nan"),
        ({"equal_pixels": 0.998}, "99.8000 % of the pixels equal"),
        ({"raw_equal_pixels": 0.9}, "90.0000 % of the pixels equal"),
        ({"raw_equal_pixels": float("nan")}, "nan % of the pixels equal"),
    ],
)
def test_each_bound_holds(found: dict[str, float], message: str) -> None:
    sound = {"largest_difference": 9e-5, "equal_pixels": 0.9995, "raw_equal_pixels": 1.0}
    bounds = {"allowed_difference": MOST_DIFFERENT, "least_equal_pixels": LEAST_EQUAL}
    facts: dict[str, Any] = {"slices": 2, "source": "validation", **bounds}
    check(Comparison(**facts, **sound), Path("x"))
    with pytest.raises(KerassegError, match=message):
        check(Comparison(**facts, **{**sound, **found}), Path("x"))


def test_networks_are_compared_number_by_number(run: RunDirectory, network: keras.Model) -> None:
    samples = comparison_samples(find_shards(run, run.config(), None), run.config(), 5)

    def other(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = native(network)(images)["probability"].copy()
        found[:, 0, 0] = 1 - found[:, 0, 0]
        return {"probability": found}

    found = compare(native(network), other, samples, MaskRule(), channels=3, intensity="percentile")
    values = network.predict(network_images(samples.images, 3), verbose=0)[:, 0, 0, 0]
    assert found.slices == 5
    assert found.largest_difference == pytest.approx(np.abs(1 - 2 * values).max())
    assert found.equal_pixels == pytest.approx(1 - 1 / SIZE**2)


# --- the card -------------------------------------------------------------------------------------------------------------


def front_matter(folder: Path) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard((folder / "README.md").read_text()).data


def test_without_an_evaluation_the_card_says_so(export: Export, tmp_path: Path) -> None:
    done = export()
    text = (done.folder / "README.md").read_text()
    assert "This network was not evaluated." in text
    assert "not for clinical use" in text
    data = front_matter(done.folder)
    assert (data.library_name, data.license, data.license_name) == ("keras", "other", "not-stated")
    assert data.eval_results is None


@pytest.mark.slow
def test_the_card_has_the_figures_with_their_intervals(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("export"))
    shutil.copytree(made / "shards", tmp_path / "shards")
    run = RunDirectory(tmp_path / "runs" / "first")
    quick = Extras(speed=False, calibration=False)
    figures = {name: evaluate_run(run, name, tmp_path / "shards", extras=quick) for name in ("test", "validation")}
    done = export_model(run, "keras", slices=2, license="cc-by-4.0", shards=tmp_path / "shards")
    mean = figures["test"].final_stage().all.measures["dice"]
    text = (done.folder / "README.md").read_text()
    assert "not evaluated" not in text
    assert "newer than these figures" not in text
    assert f"| Dice, all slices | {interval(mean)} |" in text
    assert text.index("### Test split") < text.index("### Validation split")
    assert "This was the first evaluation of the test split." in text
    assert [facts.name for facts in done.metadata.evaluations] == ["test", "val"]
    data = front_matter(done.folder)
    assert data.license == "cc-by-4.0"
    named = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert named["test", "dice"] == pytest.approx(mean.mean, abs=1e-4)
    assert "applied to the file's probabilities" in text
    set_rule(run, MaskRule(threshold=0.9))
    again = export_model(run, "keras", slices=2, overwrite=True, shards=tmp_path / "shards")
    assert "another rule than the export" in (again.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("inside", "stage", "words"),
    [
        (("threshold",), "threshold", "masks of the file: threshold 0.4 only"),
        (
            ("threshold", *RULE_STEPS),
            "postprocessing",
            "masks of the file: threshold 0.4 and post-processing",
        ),
        ((), "postprocessing", "threshold 0.4 and post-processing, applied to the file's probabilities"),
    ],
    ids=["threshold alone", "whole rule", "no masks"],
)
def test_figures_are_of_what_the_file_does(
    inside: tuple[str, ...], stage: str, words: str, export: Export, tmp_path: Path
) -> None:
    """Each stage of the evaluation has a Dice of its own; which one stands in the results that the Hub reads?"""
    made = evaluation(Slices().rows())
    rules = {"raw": MaskRule(), "threshold": RULE.without_postprocessing(), "postprocessing": RULE}
    better = evaluation(Slices().rows(0.1)).model.stages
    stages = (made.model.stages[0], made.model.stages[1], better[2])
    figures = {s.name: s.model_copy(update={"rule": rules[s.name]}) for s in stages}
    made = made.model_copy(update={"model": NetworkFigures(stages=tuple(figures.values()))})
    (tmp_path / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "evaluation" / "test" / "metrics.json").write_text(made.model_dump_json())
    left = tuple(name for name in ("threshold", *RULE_STEPS) if name not in inside)
    mask = MaskFacts(rule=RULE, source="threshold.json", inside=inside, left=left)
    (facts,) = evaluations(RunDirectory(tmp_path), mask, None)
    expected = figures[stage].all.measures["dice"].mean
    assert facts.measures["dice"].mean == expected
    assert len({f.all.measures["dice"].mean for f in figures.values()}) == 3
    assert (facts.whole_rule_dice is None) == (stage == "postprocessing")
    assert not any("another rule" in warning for warning in facts.warnings)
    plain = export().metadata
    shape = plain.preprocessing.model_copy(update={"inside": bool(inside)})
    metadata = plain.model_copy(update={"mask": mask, "evaluations": (facts,), "preprocessing": shape})
    (tmp_path / "README.md").write_text(card(metadata))
    result = next(r for r in front_matter(tmp_path).eval_results if r.metric_type == "dice")
    assert result.metric_value == pytest.approx(expected, abs=1e-4)
    assert result.metric_name.startswith(f"Dice, all slices; {words}")
    assert (f"also applied | {figures['postprocessing'].all.measures['dice'].mean:.4f}" in card(metadata)) == (
        stage == "threshold"
    )


@pytest.mark.parametrize(("gain", "words"), [(0.0, "changed nothing: Dice 0.4"), (0.1, "took Dice from 0.4")])
def test_the_card_says_what_tuning_changed(exports: dict[str, Exported], gain: float, words: str) -> None:
    from kerasseg.export.card import card

    raw, dice, change = (Mean(mean=m, low=None, high=None, slices=9, patients=3) for m in (0.4, 0.4 + gain, gain))
    tuning = {"raw": raw, "dice": dice, "gain": change}
    assert f"on validation {words}" in card(exports["keras"].metadata.model_copy(update={"tuning": tuning}))


def test_names_of_strangers_are_text_on_the_card() -> None:
    from kerasseg.export.card import plain

    assert plain("<img src=x>|**b**\n# c") == r"&lt;img src=x&gt;\|\*\*b\*\* # c"


# --- shards that are gone -----------------------------------------------------------------------------------------------


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the run whose shards lie nowhere any more."""
    shutil.copytree(made / "runs" / "first", tmp_path / "copy", ignore=shutil.ignore_patterns("export"))
    run = RunDirectory(tmp_path / "copy")
    config = run.config()
    gone = config.settings.model_copy(update={"shards": str(tmp_path / "gone")})
    run.write_config(config.model_copy(update={"settings": gone}))
    return run


def test_without_shards_slices_are_made_up_and_that_is_said(moved: RunDirectory) -> None:
    done = export_model(moved, "keras", slices=3)
    assert done.metadata.comparison.source == "synthetic"
    assert done.metadata.comparison.slices == 3
    assert "synthetic slices" in (done.folder / "README.md").read_text()
    assert any("synthetic" in warning for warning in done.metadata.warnings)
    with pytest.raises(DataError, match="needs the run's shards .*--shards"):
        export_model(moved, "litert", int8=True)


def test_shards_that_were_moved_are_taken_from_where_they_lie(moved: RunDirectory, made: Path) -> None:
    done = export_model(moved, "keras", shards=made / "shards", slices=2)
    assert done.metadata.comparison.source == "validation"
    with pytest.raises(DataError, match="not a shard directory"):
        export_model(moved, "keras", shards=made / "raw", overwrite=True)


def test_other_shards_are_refused(moved: RunDirectory, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "shards", tmp_path / "gone")
    path = tmp_path / "gone" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="not the shards that the run was trained on"):
        export_model(moved, "keras")


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pickle"}, "unknown format 'pickle' .*keras, savedmodel, onnx, litert or app"),
        ({"format": "onnx", "int8": True}, "available for LiteRT only"),
        ({"with_postprocessing": True}, "meant for training"),
        (
            {"format": "litert", "with_postprocessing": True},
            "min_diameter, fill_holes cannot be included in litert.*0.4",
        ),
        ({"threshold": 0.0}, "invalid threshold"),
        ({"slices": 0}, "too few slices to compare"),
        ({"format": "litert", "int8": True, "calibration": 0}, "too few slices for calibration"),
        ({"max_loss": float("nan")}, "invalid --max-loss"),
        ({"push_to": "me/unet"}, "not an address on the Hugging Face Hub"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], message: str, export: Export, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export(**options)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else found(name))
    with pytest.raises(UsageError, match=r'needs tf2onnx .*pip install "kerasseg\[onnx\]"'):
        export("onnx")


def test_runs_that_cannot_be_exported(moved: RunDirectory) -> None:
    with (
        lock(moved.root / ".lock", "run"),
        pytest.raises(KerassegError, match="still being trained, and its weights change"),
    ):
        export_model(moved, "keras")
    moved.threshold_file.unlink()
    with pytest.raises(DataError, match="tuned threshold is missing.*kerasseg tune-threshold"):
        export_model(moved)
    done = export_model(moved, "keras", slices=1)  # which makes no masks
    assert done.metadata.mask.source == "default"
    assert "threshold was not tuned" in (done.folder / "README.md").read_text()
    moved.save_model(brightness_network(16), moved.model_file)
    with pytest.raises(DataError, match="different slice sizes"):
        export_model(moved, "keras", overwrite=True)
    moved.model_file.unlink()
    with pytest.raises(DataError, match="no network yet"):
        export_model(moved, "keras", overwrite=True)


def test_weights_that_changed_since_tuning_are_refused(moved: RunDirectory) -> None:
    moved.save_model(brightness_network(SIZE, channels=3), moved.model_file)
    with pytest.raises(DataError, match="tuned for other weights"):
        export_model(moved)


# --- the place ------------------------------------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_only_when_asked(export: Export, tmp_path: Path) -> None:
    first = export()
    (first.folder / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="an export exists already.*--overwrite"):
        export()
    assert (first.folder / "note.txt").exists()
    export(overwrite=True)
    assert {p.name for p in first.folder.iterdir()} == {"model.keras", "README.md", "metadata.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_that_tensorflow_cannot_write_to_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        export(out=tmp_path / "Gr\udcf6\udcdfe")
    assert not list(tmp_path.iterdir())


def test_what_is_no_export_is_never_replaced(export: Export, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(UsageError, match="is not an export"):
            export(out=tmp_path / name, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "x"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_stopped_half_way_the_earlier_export_is_as_it_was(
    stop: BaseException, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export()
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}

    def halt(*_: Any) -> str:
        raise stop

    monkeypatch.setattr(export_run, "card", halt)
    expected = KerassegError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="no space left" if isinstance(stop, OSError) else None):
        export(overwrite=True)
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_too_little_space_is_seen_before_anything_is_written(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(KerassegError, match="too little disk space"):
        export()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["keras", "litert"])
def test_a_full_folder_for_temporary_files_is_named(
    form: str, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras itself writes there, whatever the output folder; its converters only quote the system."""
    scratch = tmp_path / "scratch"

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{scratch}/part")

    def quoted(*_: Any, **__: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, f"{scratch}/part/variables; {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    scratch.mkdir()
    if form == "keras":
        monkeypatch.setattr("keras.src.saving.saving_lib.get_temp_dir", full)
    else:
        monkeypatch.setattr(keras.Model, "export", quoted)
    with pytest.raises(KerassegError, match=rf"^{scratch}: no space.*TMPDIR"):
        export(form)
    assert [p.name for p in tmp_path.iterdir()] == ["scratch"]


def test_what_a_killed_export_left_is_cleared(export: Export, tmp_path: Path) -> None:
    (tmp_path / f"{_SCRATCH}dead" / "export").mkdir(parents=True)
    export()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
