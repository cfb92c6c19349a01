"""Fusion of normalisation arithmetic (`batch_norm`, `group_norm`, `moments_norm`, `rms_norm`) and scaling (`rescale`).

`gamma * (x - mean) / sqrt(variance + e) + beta` can be written in a dozen ways. Expanded to a sum of products (`expand`),
they are all equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kerasseg.checkpoints.savedmodel.arithmetic import line
from kerasseg.checkpoints.savedmodel.graph import VARIABLES, Node, Tensor, scope, sort_from
from kerasseg.checkpoints.savedmodel.patterns import View, made

MAX_TERMS = 8
MAX_DEPTH = 12


class Root(NamedTuple):
    """1 / sqrt(`inside` + `epsilon`)."""

    inside: Tensor
    epsilon: float


Factor = Tensor | Root
Polynomial = Mapping[tuple[Factor, ...], float]  # sorted factors of each product -> its coefficient


def expand(view: View, tensor: Tensor, depth: int = 0) -> Polynomial | None:
    """Expand a tensor, or return None if it is not a short sum of products.

    Variables are factors whatever their shape, because `(1, 1, 1, 8)` and `(8,)` mean the same along channels.
    """
    node = view.node(tensor)
    number = view.scalar(tensor)
    if number is not None:
        return {(): number}
    leaf = view.leaf(tensor)
    if leaf is not None:
        return {(leaf,): 1.0}
    if depth < MAX_DEPTH and tensor.output == 0:
        inputs = dict.fromkeys(node.inputs if node.op in _EXPANDED else ())  # each once, also of `x + x`
        parts = {t: expand(view, t, depth + 1) for t in inputs}
        known = [p for t in node.inputs if (p := parts.get(t)) is not None]
        if known and len(known) == len(node.inputs):
            result = _combine(node.op, known)
            if result is not None and len(result) <= MAX_TERMS and not (depth and _is_data(view, tensor, result)):
                return result
        root = _root(view, tensor)
        if root is not None:
            return {(root,): 1.0}
        if node.op == "RealDiv":
            return _quotient(view, node.inputs[0], node.inputs[1], depth)
    return {(tensor,): 1.0}


def _is_data(view: View, tensor: Tensor, polynomial: Polynomial) -> bool:
    """Return whether a sum is the data to normalise, such as a residual connection, rather than part of the formula."""
    factors = [f for product in polynomial for f in product]
    data = [f for f in factors if not isinstance(f, Root) and view.leaf(f) is None]
    if not data:
        return False
    # The difference from a mean is part of a normalisation. So is a term with a root or a variable, unless other nodes
    # read it too, as they do for sums between blocks.
    about_mean = any(view.node(f).op == "Mean" for f in data)
    if len(data) == len(factors):
        return not (about_mean and view.node(tensor).op in {"Mul", "Neg", "Sub"})
    return not (about_mean or view.once(tensor))


_EXPANDED = frozenset({"Add", "AddN", "AddV2", "BiasAdd", "Mul", "Neg", "Sub"})


def _combine(op: str, parts: list[Polynomial]) -> Polynomial | None:
    if op == "Mul":
        return _product(parts[0], parts[1])
    signs = {"Neg": (-1.0,), "Sub": (1.0, -1.0)}.get(op, (1.0,) * len(parts))
    total = _collected((f, sign * n) for part, sign in zip(parts, signs, strict=True) for f, n in part.items())
    return {f: n for f, n in total.items() if n != 0.0}


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    if len(a) * len(b) > MAX_TERMS:
        return None
    return _collected((tuple(sorted((*fa, *fb), key=repr)), na * nb) for fa, na in a.items() for fb, nb in b.items())


def _collected(terms: Iterable[tuple[tuple[Factor, ...], float]]) -> Polynomial:
    total: dict[tuple[Factor, ...], float] = {}
    for factors, number in terms:
        total[factors] = total.get(factors, 0.0) + number
    return total


def _root(view: View, tensor: Tensor) -> Root | None:
    node = view.node(tensor)
    if node.op == "Rsqrt":
        return _shifted(view, node.inputs[0])
    if node.op == "Reciprocal" and view.node(node.inputs[0]).op == "Sqrt":
        return _shifted(view, view.node(node.inputs[0]).inputs[0])
    return None


def _quotient(view: View, above: Tensor, below: Tensor, depth: int) -> Polynomial | None:
    numerator = expand(view, above, depth + 1)
    if numerator is None:
        return None
    divisor = view.scalar(below)
    if divisor:
        return {f: n / divisor for f, n in numerator.items()}
    node = view.node(below)
    if node.op == "Sqrt":
        return _product(numerator, {(_shifted(view, node.inputs[0]),): 1.0})
    return None


def _shifted(view: View, tensor: Tensor) -> Root:
    for inside, number in view.pairs(view.made_by(tensor, "Add", "AddV2")):
        epsilon = view.scalar(number)
        if epsilon is not None:
            return Root(view.leaf(inside) or inside, epsilon)
    return Root(view.leaf(tensor) or tensor, 0.0)


_SHORT = 20  # maximum number of operations between variables and a scale or shift

_ENDS = frozenset({"Add", "AddV2", "BiasAdd", "Sub", "Mul", "RealDiv", "AddN"})


@dataclass(frozen=True)
class _Form:
    """x * gamma * root - mean * gamma * root + beta."""

    x: Tensor
    root: Root
    mean: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


def normalisation(view: View, node: Node) -> Node | None:
    """Match a normalisation that ends at this node, with its variables."""
    if node.op not in _ENDS:
        return None
    form = _form(view, Tensor(node.key))
    if form is None:
        return None
    inside = form.root.inside
    parameters = {"epsilon": form.root.epsilon, "scale": form.gamma is not None, "center": form.beta is not None}
    extra = tuple(t for t in (form.gamma, form.beta) if t is not None)
    if view.leaf(inside) is not None:
        if form.mean is None or view.leaf(form.mean) is None or not _grows(view, node, form):
            return None
        return made(node, "batch_norm", (form.x, *extra, form.mean, inside), parameters)
    axes = _variance_axes(view, inside, form)
    if axes is None or not _grows(view, node, form):
        return None
    op = "rms_norm" if form.mean is None else "moments_norm"
    return made(node, op, (form.x, *extra), {**parameters, "axes": axes})


def _form(view: View, end: Tensor) -> _Form | None:
    polynomial = expand(view, end) or {}
    roots = {f for factors in polynomial for f in factors if isinstance(f, Root)}
    if len(roots) != 1:
        return None
    (root,) = roots
    parts: dict[str, list[Factor]] = {"x": [], "mean": [], "beta": []}
    for factors, number in polynomial.items():
        role = "beta" if root not in factors else "x" if number > 0 else "mean"
        if parts[role] or number != (-1.0 if role == "mean" else 1.0):
            return None
        parts[role] = [*factors]
        if role != "beta":
            parts[role].remove(root)
    x, beta = [f for f in parts["x"] if not _is_leaf(view, f)], parts["beta"]
    gamma = [f for f in parts["x"] if f not in x]
    mean = [f for f in parts["mean"] if f not in gamma]
    if len(x) != 1 or len(gamma) > 1 or len(beta) > 1 or not all(_is_leaf(view, f) for f in beta):
        return None
    if parts["mean"] and (len(mean) != 1 or len(parts["mean"]) != 1 + len(gamma)):
        return None
    if any(isinstance(f, Root) for f in (*x, *mean)):
        return None
    return _Form(x[0], root, *(next(iter(part), None) for part in (mean, gamma, beta)))  # type: ignore[arg-type]


def _is_leaf(view: View, factor: Factor) -> bool:
    return not isinstance(factor, Root) and view.leaf(factor) is not None


def _grows(view: View, node: Node, form: _Form) -> bool:
    """Return False if a reader of this node only adds a shift or scale of the same normalisation."""
    for key, other in view.nodes.items():
        if Tensor(node.key) in other.inputs and other.op in _ENDS:
            longer = _form(view, Tensor(key))
            if longer is not None and longer.x == form.x and longer.root == form.root:
                return False
    return True


def _variance_axes(view: View, variance: Tensor, form: _Form) -> tuple[int, ...] | None:
    """Return the axes if `variance` is that of `form.x` about `form.mean` (about zero without one)."""
    mean = view.made_by(variance, "Mean")
    if mean is None:
        return None
    axes = _axes(view, mean.inputs[1])
    squares = view.node(mean.inputs[0])
    if form.mean is None:
        return axes if squares.op == "Square" and squares.inputs[0] == form.x else None
    centre = view.made_by(form.mean, "Mean")
    if centre is None or centre.inputs[0] != form.x or _axes(view, centre.inputs[1]) != axes:
        return None
    if squares.op == "SquaredDifference":
        return axes if set(squares.inputs) == {form.x, form.mean} else None
    difference = view.made_by(squares.inputs[0], "Sub") if squares.op == "Square" else None
    return axes if difference is not None and set(difference.inputs) == {form.x, form.mean} else None


def _axes(view: View, tensor: Tensor) -> tuple[int, ...] | None:
    array = view.array(tensor)
    return None if array is None else tuple(int(a) for a in np.atleast_1d(array))


def fused_batch_norm(view: View, node: Node) -> Node | None:
    """Match TensorFlow's own operation, as used by Keras 2; a scale of ones or a shift of zeros is left out."""
    if not node.op.startswith("FusedBatchNorm") or node.attrs.get("is_training", True) or len(node.inputs) != 5:
        return None
    x, gamma, beta, mean, variance = (view.leaf(t) or t if i else t for i, t in enumerate(node.inputs))
    scale = not _all(view, gamma, 1.0)
    center = not _all(view, beta, 0.0)
    extra = ((gamma,) if scale else ()) + ((beta,) if center else ())
    epsilon = float(node.attrs.get("epsilon") or 1e-4)
    return made(node, "batch_norm", (x, *extra, mean, variance), {"epsilon": epsilon, "scale": scale, "center": center})


def _all(view: View, tensor: Tensor, value: float) -> bool:
    array = view.array(tensor)
    return array is not None and bool((array == value).all())


def fused_layer_norm(view: View, node: Node) -> Node | None:
    """Match layer normalisation of Keras 2, which is batch normalisation of a reshaped tensor in training mode."""
    if node.op != "Reshape":
        return None
    flat, fused = view.chain(node.inputs[0], "Reshape", ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"))
    if fused is None or flat is None or not fused.attrs.get("is_training", True):
        return None
    sizes = _sizes(view, flat.inputs[1])
    scale_and_shift = zip(fused.inputs[1:3], (1.0, 0.0), strict=True)
    unit = all(view.node(t).op == "Fill" and view.is_number(view.node(t).inputs[1], v) for t, v in scale_and_shift)
    if sizes is None or len(sizes) != 4 or (sizes[0], sizes[3]) != (1, 1) or not unit:
        return None
    epsilon = float(fused.attrs.get("epsilon") or 1e-4)
    attrs = {"epsilon": epsilon, "scale": False, "center": False, "axes": (-1,)}
    return made(node, "moments_norm", (flat.inputs[0],), attrs)


def with_scale(view: View, node: Node) -> Node | None:
    """Match a scale or shift after a normalisation without one."""
    if node.op not in {"Add", "AddV2", "Mul"}:
        return None
    part = "scale" if node.op == "Mul" else "center"
    for x, other in view.pairs(node):
        norm, leaf = view.made_by(x, "moments_norm"), view.per_channel(other)
        if norm is not None and leaf is not None and view.once(x) and not norm.attrs["center"] and not norm.attrs[part]:
            return made(node, norm.op, (*norm.inputs, leaf), {**norm.attrs, part: True}, norm.name)
    return None


def weighted_mean(view: View, node: Node) -> Node | None:
    """Match a mean in which all weights are one, as in Keras 2's GroupNormalization -> `Mean`."""
    if node.op != "DivNoNan":
        return None
    total, weights = (view.made_by(t, "Sum") for t in node.inputs)
    product = view.made_by(total.inputs[0], "Mul") if total is not None else None
    if total is None or weights is None or product is None or not _all_ones(view, weights.inputs[0]):
        return None
    axes, same = view.array(total.inputs[1]), view.array(weights.inputs[1])
    if axes is None or same is None or not np.array_equal(axes, same):
        return None
    for ones, x in view.pairs(product):
        if _all_ones(view, ones):
            return made(node, "Mean", (x, total.inputs[1]), {"keep_dims": bool(total.attrs.get("keep_dims"))})
    return None


def _all_ones(view: View, tensor: Tensor) -> bool:
    """Return whether a tensor is ones of some shape, reshaped or with zeros added."""
    for first, second in view.pairs(view.made_by(tensor, "Add", "AddV2")):
        if view.made_by(second, "ZerosLike"):
            return _all_ones(view, first)
    while view.made_by(tensor, "Reshape"):
        tensor = view.node(tensor).inputs[0]
    return view.node(tensor).op == "OnesLike"


def group_norm(view: View, node: Node) -> Node | None:
    """Match moments over part of the axes of a tensor split into groups, between two reshapes."""
    if node.op != "Reshape":
        return None
    split, inner = view.chain(node.inputs[0], "Reshape", "moments_norm")
    if inner is None or split is None or len(inner.attrs["axes"]) < 2:
        return None
    groups = _sizes(view, split.inputs[1])
    if groups is None or len(groups) < 3 or groups[-2] is None:
        return None
    if sorted(a % len(groups) for a in inner.attrs["axes"]) != [*range(1, len(groups) - 2), len(groups) - 1]:
        return None
    attrs = {k: inner.attrs[k] for k in ("epsilon", "scale", "center")}
    return made(node, "group_norm", (split.inputs[0], *inner.inputs[1:]), {**attrs, "groups": groups[-2]}, inner.name)


def _sizes(view: View, tensor: Tensor) -> list[int | None] | None:
    """Return the entries of a shape, None for computed ones."""
    array = view.array(tensor)
    if array is not None:
        return [int(n) for n in np.atleast_1d(array)]
    node = view.node(tensor)
    if node.op == "Pack":
        numbers = [view.scalar(t) for t in node.inputs]
        return [None if n is None else int(n) for n in numbers]
    return None


def rescale(view: View, node: Node) -> Node | None:
    """Match `x * a + b` with constants a and b, each a number or one number per channel."""
    if node.op not in {"Add", "AddV2", "BiasAdd", "Div", "Mul", "Neg", "RealDiv", "Sub"}:
        return None
    if node.op == "Neg":
        x, op, first = node.inputs[0], "Mul", False
        constant: np.ndarray | None = np.array(-1, np.float32)
    else:
        left, right = (_per_channel(view, t) for t in node.inputs)
        if (left is None) == (right is None):
            return None
        first = right is None
        x, op, constant = node.inputs[1] if first else node.inputs[0], node.op, left if first else right
        if op in {"Div", "RealDiv"} and (first or not np.all(constant)):
            return None
    a, b = line(op, np.asarray(constant, np.float32), first=first)
    cast = view.made_by(x, "Cast")
    if cast is not None and cast.attrs.get("DstT") == "float32":
        x = cast.inputs[0]  # the layer casts its input itself
    before = view.node(x)
    if before.op == "rescale" and view.once(x) and scope(before.name) == scope(node.name):
        x, a, b = before.inputs[0], before.attrs["scale"] * a, before.attrs["offset"] * a + b
    return made(node, "rescale", (x,), {"scale": np.asarray(a, np.float32), "offset": np.asarray(b, np.float32)})


def leading(view: View, node: Node) -> Node | None:
    """Match a variable that scales or shifts the network's input -> `fixed`, preprocessing that is not trained."""
    if node.op not in {"Add", "AddV2", "Div", "Mul", "RealDiv", "Sub"}:
        return None
    for place, (x, other) in enumerate(view.pairs(node)):
        if place and node.op in {"Div", "RealDiv"}:
            return None
        if _is_input(view, x) and _from_variables(view, other):
            return made(node, "fixed", (x, other), {"kind": node.op, "swapped": bool(place)})
    return None


def _is_input(view: View, tensor: Tensor) -> bool:
    """Return whether a tensor is the network's input, possibly cast or rescaled."""
    node = view.node(tensor)
    while node.op in {"Cast", "rescale", "fixed"}:
        node = view.node(node.inputs[0])
    return node.op == "Placeholder"


def _from_variables(view: View, tensor: Tensor) -> bool:
    """Return whether a tensor is computed only from variables and constants, with at least one variable."""
    keys = sort_from([tensor.node], lambda key: (t.node for t in view.nodes[key].inputs))
    ops = [view.nodes[key].op for key in keys]
    data = any(op.startswith("Placeholder") for op in ops)
    return not data and len(ops) <= _SHORT and any(op in VARIABLES for op in ops)


def _per_channel(view: View, tensor: Tensor) -> np.ndarray | None:
    """Return a floating-point constant that is one number or one per channel."""
    array = view.array(tensor)
    if array is None or array.dtype.kind != "f" or any(n != 1 for n in array.shape[:-1]):
        return None
    return array.reshape(-1) if array.size > 1 else array.reshape(())


def channelwise(view: View, node: Node) -> Node | None:
    """Match remaining scales or shifts of channels by a variable -> `channelwise`, a trainable scale or shift."""
    if node.op not in {"Add", "AddV2", "BiasAdd", "Mul", "Sub"}:
        return None
    left, right = (view.per_channel(t) for t in node.inputs)
    x, leaf = (node.inputs[0], right) if left is None else (node.inputs[1], left)
    both, swapped = left is not None and right is not None, left is not None and node.op == "Sub"
    if leaf is None or both or swapped or view.array(leaf) is not None:
        return None
    return made(node, "channelwise", (x, leaf), {"kind": {"Mul": "scale", "Sub": "minus"}.get(node.op, "shift")})
