"""Devices to train on: one device, all GPUs of a machine, or several machines."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasseg.training.batchnorm import batchnorms
from kerasseg.training.cluster import breakable, meet, patience
from kerasseg_tfrecords.errors import UsageError

_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's mallopt: the size from which memory is mapped on its own, and unmapped when it is freed."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of a training run.

    Attributes:
        distribution: TensorFlow strategy that distributes the batch; None on a single device.
        device: The single device, such as "/GPU:1"; None with a strategy.
        description: Description for display.
        replicas: Devices that share a batch, over all machines.
        worker: (index of this process, number of processes).
        gpu: Whether the devices are GPUs.
    """

    distribution: Any
    device: str | None
    description: str
    replicas: int = 1
    worker: tuple[int, int] = (0, 1)
    gpu: bool = False

    @property
    def chief(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.worker[0] == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Context in which networks and optimizers are created."""
        if self.distribution is not None:
            scope: AbstractContextManager[Any] = self.distribution.scope()
            return scope
        return tf.device(self.device) if self.device else contextlib.nullcontext()


def choose_devices(names: Sequence[str] = (), batch_size: int = 8) -> Devices:
    """Choose the devices to train on. Call it before TensorFlow uses any device.

    With `TF_CONFIG`, the machines that it lists train together (`MultiWorkerMirroredStrategy`), each with all its GPUs or
    its processor; the call waits up to `KERASSEG_MACHINES_TIMEOUT` seconds for them. Otherwise all GPUs are used
    (`MirroredStrategy`), or the only GPU, or the processor. The choice changes weights, loss and metrics only by rounding.

    Args:
        names: Devices to use, such as "GPU:0" or "CPU:0"; none chooses as above.
        batch_size: Slices in a global batch, which the devices share.
    """
    if os.environ.get("TF_CONFIG"):
        if names:
            raise UsageError(
                "both --devices and TF_CONFIG choose devices",
                found=", ".join(names),
                remedy="Leave --devices out: each machine takes all its GPUs, or those of CUDA_VISIBLE_DEVICES. "
                "Or unset TF_CONFIG.",
            )
        devices = _several_machines()
    else:
        gpus = tf.config.list_logical_devices("GPU") if _grow_memory() else []
        known = [_short(device.name) for device in (*gpus, *tf.config.list_logical_devices("CPU"))]
        chosen = [_checked(name, known) for name in names] or known[: len(gpus)] or ["CPU:0"]
        if len(set(chosen)) < len(chosen):
            raise UsageError("a device is given twice", found=", ".join(chosen))
        gpu = chosen[0].startswith("GPU")
        if len(chosen) == 1:
            return Devices(None, f"/{chosen[0]}", "one GPU" if gpu else "the processor (no GPU)", gpu=gpu)
        # Without NCCL (on processors) TensorFlow needs to be told how to sum gradients.
        add = None if gpu else tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy([f"/{name}" for name in chosen], cross_device_ops=add)
        devices = Devices(strategy, None, f"{len(chosen)} devices: {', '.join(chosen)}", len(chosen), gpu=gpu)
    if batch_size % devices.replicas:
        raise UsageError(
            "the batch size is not a multiple of the number of devices",
            found=f"{batch_size} slices, {devices.replicas} devices",
            expected=f"a multiple of {devices.replicas}",
            remedy="Change --batch-size or --devices.",
        )
    return devices


def _several_machines() -> Devices:
    try:
        told = json.loads(os.environ["TF_CONFIG"])
        workers, task = told["cluster"]["worker"], told["task"]
        number, count = int(task["index"]), len(workers)
        usable = task["type"] == "worker" and set(told["cluster"]) == {"worker"} and 0 <= number < count
        usable = usable and isinstance(workers, list) and all(isinstance(address, str) for address in workers)
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise UsageError(
            "TF_CONFIG cannot be read",
            found=os.environ["TF_CONFIG"],
            expected='{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        )
    if count > 1:
        meet(workers, number, patience())
    gpu = _grow_memory()
    kind = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if gpu else kind.RING)
    with breakable():
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    replicas = strategy.num_replicas_in_sync
    text = f"{count} machines, {replicas} devices; this one is worker {number}"
    return Devices(strategy, None, text, replicas, (number, count), gpu)


def agree(devices: Devices, facts: Mapping[str, str]) -> None:
    """Check that all machines have the same options and data; otherwise they would hang or differ silently."""
    if devices.worker[1] == 1:
        return
    digests = [hashlib.sha256(value.encode()).digest()[:8] for value in facts.values()]
    row = np.array([[int.from_bytes(digest, "big", signed=True) for digest in digests]], np.int64)

    @tf.function
    def gathered() -> Any:
        return tf.distribute.get_replica_context().all_gather(tf.constant(row), axis=0)

    strategy = devices.distribution
    rows = strategy.experimental_local_results(strategy.run(gathered))[0].numpy()
    different = [name for name, column in zip(facts, rows.T, strict=True) if len(set(column.tolist())) > 1]
    if different:
        raise UsageError(
            "the machines of this run have different options or data",
            found=f"different: {', '.join(different)}",
            remedy="Run the same command with the same shards and checkpoint on all of them; --resume needs a run "
            "directory that all of them can read.",
        )


def _grow_memory() -> bool:
    """Let GPUs allocate memory as needed; return whether there are any."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Devices that are already in use keep their setting.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)
    return bool(gpus)


def _short(name: str) -> str:
    """/device:GPU:0, /GPU:0, gpu:0 -> GPU:0."""
    return name.upper().replace("/", "").removeprefix("DEVICE:")


def _checked(name: str, known: Sequence[str]) -> str:
    short = _short(name)
    if short not in known:
        raise UsageError("no such device", found=name, expected=" or ".join(known))
    return short


def enable_determinism() -> None:
    """Make this process compute deterministically, at a cost in speed."""
    tf.config.experimental.enable_op_determinism()


def return_freed_memory() -> None:
    """Give the memory of freed tensors back to the system, at a cost in time. Call it before TensorFlow computes anything.

    Otherwise TensorFlow keeps it for later tensors, and much of it in pieces that fit none of them.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # C libraries without mallopt
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None if there is none or it is unknown."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    found = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
    return None if found is None else (int(found[0]), int(found[1]))


def gpu_names() -> list[str]:
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [str(found.get("device_name") or _short(gpu.name)) for gpu, found in zip(gpus, details, strict=True)]


def peak_memory_mb(devices: Devices) -> float:
    """Return the peak memory so far of the busiest GPU or of this process, in MB (1e6 bytes)."""
    if devices.gpu:
        names = [_short(device.name) for device in tf.config.list_logical_devices("GPU")]
        return float(max(tf.config.experimental.get_memory_info(name)["peak"] for name in names)) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6


@contextlib.contextmanager
def plain_batchnorm(model: keras.Model) -> Iterator[None]:
    """Turn off synchronization of BatchNorm, as in saved networks, while the block runs."""
    layers = [layer for layer in batchnorms(model) if layer.synchronized]
    for layer in layers:
        layer.synchronized = False
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = True


def synchronized_batchnorm(model: keras.Model, replicas: int) -> int:
    """Synchronize trainable BatchNorm layers over replicas, so that they measure the whole batch.

    After five steps on two replicas, results differ from one device by 3e-8; without synchronization by 3e-4.
    """
    count = 0
    for layer in batchnorms(model):
        layer.synchronized = replicas > 1 and layer.trainable
        count += layer.synchronized
    return count


_WORDS = ("out of memory", "out_of_memory", "resource_exhausted", "failed to allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of TensorFlow means out of memory; XLA and CUDA libraries raise other classes.

    >>> out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    True
    """
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    return isinstance(error, tf.errors.OpError) and any(word in str(error).lower() for word in _WORDS)


def more_parts(parts: int, share: int) -> int | None:
    """Return the next number of parts to divide a batch into; None once each part is a single slice.

    Example:
        >>> [more_parts(parts, 8) for parts in (1, 2, 4, 8)], more_parts(1, 3)
        ([2, 4, 8, None], 3)
    """
    return next((n for n in range(2 * parts, share + 1) if share % n == 0), None) if parts < share else None
