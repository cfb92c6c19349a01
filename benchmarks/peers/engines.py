"""Other inference engines with the same network: masks from disk to disk, or the network alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.prediction import Answer, batch_of, read, write_masks

THREADS = 2


def available(savedmodel: Path, litert: Path, onnx: Path) -> dict[str, tuple[str, str, bool]]:
    """Return name -> (engine, model file, whether it computes in bfloat16) of the engines installed here."""
    found = {}
    if importlib.util.find_spec("openvino"):
        found["OpenVINO, float32, batches"] = ("openvino", str(savedmodel), False)
        found["OpenVINO, bfloat16, batches"] = ("openvino", str(savedmodel), True)
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        found["OpenVINO, int8, batches"] = ("openvino_int8", str(savedmodel), True)
    if importlib.util.find_spec("ai_edge_litert") and litert.exists():
        found["LiteRT with XNNPACK, float32, batches"] = ("litert", str(litert), False)
    if importlib.util.find_spec("onnxruntime") and onnx.exists():
        found["ONNX Runtime, batches"] = ("onnx_runtime", str(onnx), False)
    return found


def openvino(model: str, bfloat16: bool, files: Sequence[str], *, int8: bool = False) -> Answer:
    """Return OpenVINO's network, with 8-bit weights and activations calibrated on the files if asked."""
    import openvino

    network = openvino.convert_model(model)
    if int8:
        import nncf

        batches = [batch_of([read(Path(file))]) for file in files]
        network = nncf.quantize(network, nncf.Dataset(batches), subset_size=len(batches))
    hints = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(network, "CPU", hints).create_infer_request()
    return lambda batch: np.array(request.infer([batch])[0])


def openvino_int8(model: str, bfloat16: bool, files: Sequence[str]) -> Answer:
    return openvino(model, bfloat16, files, int8=True)


def litert(model: str, bfloat16: bool, files: Sequence[str]) -> Answer:  # noqa: ARG001
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model, num_threads=THREADS)
    entry, out = found.get_input_details()[0]["index"], found.get_output_details()[0]["index"]

    def answer(batch: np.ndarray) -> np.ndarray:
        if tuple(found.get_input_details()[0]["shape"]) != batch.shape:
            found.resize_tensor_input(entry, batch.shape)
            found.allocate_tensors()
        found.set_tensor(entry, batch)
        found.invoke()
        return np.asarray(found.get_tensor(out))

    return answer


def onnx_runtime(model: str, bfloat16: bool, files: Sequence[str]) -> Answer:  # noqa: ARG001
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    entry = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {entry: batch})[0])


def kerasseg(model: str, bfloat16: bool, files: Sequence[str]) -> Answer:  # noqa: ARG001
    """Return the network as `kerasseg predict` runs it; from the same [0, 1]."""
    from kerasseg.prediction.predictor import open_network

    precision = "mixed_bfloat16" if bfloat16 else "float32"
    network = open_network(model, threshold=0.5, intensity="minmax", precision=precision)
    return lambda batch: network.probabilities((batch * 255).astype(np.uint8))


ENGINES = {"openvino": openvino, "openvino_int8": openvino_int8, "litert": litert, "onnx_runtime": onnx_runtime}


def masks(engine: str, model: str, bfloat16: bool, files: Sequence[str], out: str, count: int) -> Callable[[], object]:
    """Write masks of files in batches of `count`, as `benchmarks.prediction.write_masks` does."""
    answer, paths = ENGINES[engine](model, bfloat16, files), [Path(file) for file in files]
    return lambda: write_masks(answer, paths, Path(out), count)


def alone(engine: str, model: str, bfloat16: bool, files: Sequence[str], count: int) -> Callable[[], object]:
    """Run the network alone on one batch."""
    answer = (ENGINES | {"kerasseg": kerasseg})[engine](model, bfloat16, files)
    batch = np.random.default_rng(0).random((count, 256, 256, 3), np.float32)
    return lambda: answer(batch)
