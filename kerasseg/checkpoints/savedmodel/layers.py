"""Keras layers for nodes with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.savedmodel.arithmetic import Dim
from kerasseg.checkpoints.savedmodel.graph import Node
from kerasseg.checkpoints.savedmodel.rebuild import Builder, refuse

_L = keras.layers


def _window(node: Node, name: str) -> tuple[int, int]:
    """Return height and width of an attribute with one entry per axis."""
    if (node.attrs.get("data_format") or "NHWC") != "NHWC":
        remedy = "Open the .keras or .h5 file of the network, which kerasseg converts, or export it with channels last"
        raise refuse(node, "it is channels-first", remedy=remedy)
    four = node.attrs.get(name) or (1, 1, 1, 1)
    if len(four) != 4 or four[0] != 1 or four[3] != 1:
        raise refuse(node, f"its {name} are {four}")
    return int(four[1]), int(four[2])


def _padding(node: Node) -> str:
    padding = str(node.attrs.get("padding", "")).lower()
    if padding not in {"same", "valid"}:
        raise refuse(node, f"its padding is {padding!r}")
    return padding


def _common(node: Node) -> dict[str, Any]:
    return {"use_bias": bool(node.attrs.get("bias")), "activation": node.attrs.get("activation")}


def _windowed(node: Node) -> dict[str, Any]:
    strides, dilations = _window(node, "strides"), _window(node, "dilations")
    return {"strides": strides, "dilation_rate": dilations, "padding": _padding(node), **_common(node)}


def _weights(node: Node, *names: str) -> dict[str, Any]:
    """Return attribute -> tensor for one or more kernels and the bias, if any."""
    wanted = (*names, "bias") if node.attrs.get("bias") else names
    if len(node.inputs) - 1 != len(wanted):
        raise refuse(node, f"it has {len(node.inputs) - 1} weights, not {len(wanted)}")
    return dict(zip(wanted, node.inputs[1:], strict=True))


def _conv(b: Builder, node: Node) -> Any:
    x, kernel = b.data(node), b.shape_of(node.inputs[1])
    if len(kernel) != 4 or len(x.shape) != 4 or not x.shape[-1] or x.shape[-1] % kernel[2]:
        raise refuse(node, f"a kernel of shape {kernel} on a tensor of shape {x.shape}")
    config = {"filters": kernel[3], "kernel_size": kernel[:2], "groups": x.shape[-1] // kernel[2]}
    return b.layer(node, _L.Conv2D, x, _weights(node, "kernel"), **config, **_windowed(node))


def _depthwise(b: Builder, node: Node) -> Any:
    kernel = b.shape_of(node.inputs[1])
    config = {"kernel_size": kernel[:2], "depth_multiplier": kernel[3], **_windowed(node)}
    return b.layer(node, _L.DepthwiseConv2D, b.data(node), _weights(node, "kernel"), **config)


def _separable(b: Builder, node: Node) -> Any:
    depth, point = b.shape_of(node.inputs[1]), b.shape_of(node.inputs[2])
    weights = _weights(node, "depthwise_kernel", "pointwise_kernel")
    config = {"filters": point[3], "kernel_size": depth[:2], "depth_multiplier": depth[3], **_windowed(node)}
    return b.layer(node, _L.SeparableConv2D, b.data(node), weights, **config)


def _transposed(b: Builder, node: Node) -> Any:
    x, kernel = b.data(node, 2), b.shape_of(node.inputs[1])
    strides, padding = _window(node, "strides"), _padding(node)
    if _window(node, "dilations") != (1, 1):
        raise refuse(node, "it is dilated")
    sizes = np.atleast_1d(b.array(node, 0))
    if len(kernel) != 4 or sizes.shape != (4,) or kernel[3] != x.shape[-1]:
        raise refuse(node, f"a kernel of shape {kernel} on a tensor of shape {x.shape}")
    extra = [_extra(node, x, axis, sizes[axis], strides[axis - 1]) for axis in (1, 2)]
    usual = [max(k - s, 0) if padding == "valid" else 0 for k, s in zip(kernel, strides, strict=False)]
    base = [(k - 2 * (k // 2) if padding == "same" else k) - s for k, s in zip(kernel, strides, strict=False)]
    output = None if extra == usual else tuple(e - o for e, o in zip(extra, base, strict=True))
    config = {"filters": kernel[2], "kernel_size": kernel[:2], "output_padding": output, **_common(node)}
    weights = {"kernel": node.inputs[1]} | ({"bias": node.inputs[3]} if node.attrs.get("bias") else {})
    return b.layer(node, _L.Conv2DTranspose, x, weights, strides=strides, padding=padding, **config)


def _extra(node: Node, x: Any, axis: int, size: Any, stride: int) -> int:
    """Return how much larger the output is than input times stride."""
    if isinstance(size, Dim):
        if size.source != str(id(x)):
            return 0  # the size of a skip, usually the same; the comparison of outputs would show a difference
        if size.axis != axis or size.factor != stride:
            raise refuse(node, "the size of its output has no fixed relation to that of its input")
        return size.offset
    if x.shape[axis] is None:
        raise refuse(node, "the size of its output is fixed but that of its input is not")
    return int(size) - int(x.shape[axis]) * stride


def _dense(b: Builder, node: Node) -> Any:
    kernel = b.shape_of(node.inputs[1])
    if len(kernel) != 2 or node.attrs.get("transpose_a") or node.attrs.get("transpose_b"):
        raise refuse(node, f"a matrix of shape {kernel}, perhaps transposed")
    return b.layer(node, _L.Dense, b.data(node), _weights(node, "kernel"), units=kernel[1], **_common(node))


def _einsum(b: Builder, node: Node) -> Any:
    """Translate a product with a kernel to `Dense` or `EinsumDense`, and one of two data tensors to `ops.einsum`."""
    left, _, result = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    x, _, kernel = left.partition(",")
    if isinstance(b.value(node.inputs[1]), keras.KerasTensor):
        return keras.ops.einsum(f"{left}->{result}", b.data(node), b.data(node, 1))
    if not result or any(len(set(t)) != len(t) for t in (x, kernel, result)) or x[:1] != result[:1] or "." in left:
        raise refuse(node, f"the product {node.attrs.get('equation')!r}")
    if len(kernel) == 2 and x[-1:] == kernel[0] and result == x[:-1] + kernel[1]:
        return _dense(b, node)
    data = b.data(node)
    sizes = dict(zip(x, data.shape, strict=True)) | dict(zip(kernel, b.shape_of(node.inputs[1]), strict=True))
    config: dict[str, Any] = {"equation": f"{x},{kernel}->{result}", "activation": node.attrs.get("activation")}
    if node.attrs.get("bias"):
        shape = [n for n in b.shape_of(node.inputs[2]) if n != 1]
        axes = result[len(result) - len(shape) :]
        if shape != [sizes[c] for c in axes]:
            raise refuse(node, f"a shift of shape {b.shape_of(node.inputs[2])}")
        config["bias_axes"] = axes or None
    weights = _weights(node, "kernel")
    return b.layer(node, _L.EinsumDense, data, weights, output_shape=[sizes[c] for c in result[1:]], **config)


def _norm(b: Builder, node: Node, kind: Any, *more: str, **config: Any) -> Any:
    options = {k: node.attrs[k] for k in ("epsilon", "scale", "center")}
    wanted = [*(["gamma"] if options["scale"] else []), *(["beta"] if options["center"] else []), *more]
    return b.layer(node, kind, b.data(node), dict(zip(wanted, node.inputs[1:], strict=True)), **options, **config)


def _group_norm(b: Builder, node: Node) -> Any:
    groups = int(node.attrs["groups"])
    instance = groups == b.data(node).shape[-1]  # one group per channel
    return _norm(b, node, _L.GroupNormalization, groups=-1 if instance else groups)


def _moments_norm(b: Builder, node: Node) -> Any:
    rank = len(b.data(node).shape)
    axes = sorted(a % rank for a in node.attrs["axes"])
    if axes == [rank - 1]:
        return _norm(b, node, _L.LayerNormalization)
    if axes in (list(range(1, rank - 1)), list(range(1, rank))):
        return _norm(b, node, _L.GroupNormalization, groups=-1 if axes[-1] == rank - 2 else 1)
    raise refuse(node, f"it normalises over the axes {axes} of {rank}")


def _rms_norm(b: Builder, node: Node) -> Any:
    x = b.data(node)
    if [a % len(x.shape) for a in node.attrs["axes"]] != [len(x.shape) - 1] or node.attrs["center"]:
        raise refuse(node, f"it normalises over the axes {node.attrs['axes']}")
    weights = {"scale": node.inputs[1]} if node.attrs["scale"] else {}
    return b.layer(node, _L.RMSNormalization, x, weights, epsilon=node.attrs["epsilon"])


def _prelu(b: Builder, node: Node) -> Any:
    x, alpha = b.data(node), b.shape_of(node.inputs[1])
    alpha = (1,) * (len(x.shape) - 1 - len(alpha)) + tuple(alpha[-(len(x.shape) - 1) :])
    shared = [i + 1 for i, n in enumerate(alpha) if n == 1 and x.shape[i + 1] != 1]
    return b.layer(node, _L.PReLU, x, {"alpha": node.inputs[1]}, shared_axes=shared or None)


def _channelwise(b: Builder, node: Node) -> Any:
    """Translate a trainable scale or shift of channels to a depthwise 1x1 convolution."""
    x, kind = b.data(node), node.attrs["kind"]
    if len(x.shape) != 4:
        raise refuse(node, "a variable scales or shifts a tensor that is not an image")
    if kind == "scale":
        return b.layer(node, _L.DepthwiseConv2D, x, {"kernel": node.inputs[1]}, kernel_size=1, use_bias=False)
    config = {"kernel_size": 1, "depthwise_initializer": "ones"}
    output = b.layer(node, _L.DepthwiseConv2D, x, {"bias": node.inputs[1]}, **config)
    if kind == "minus":
        layer = output._keras_history.operation
        b.assign(layer.bias, node.inputs[1], f"{layer.name}/bias", lambda a: -a)
    return output


WEIGHTED: Mapping[str, Callable[[Builder, Node], Any]] = {
    "Conv2D": _conv,
    "Conv2DBackpropInput": _transposed,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
    "MatMul": _dense,
    "batch_norm": lambda b, node: _norm(b, node, _L.BatchNormalization, "moving_mean", "moving_variance"),
    "channelwise": _channelwise,
    "dense": _dense,
    "group_norm": _group_norm,
    "moments_norm": _moments_norm,
    "prelu": _prelu,
    "rms_norm": _rms_norm,
    "separable": _separable,
}
"""Operation -> function that makes its layer."""
