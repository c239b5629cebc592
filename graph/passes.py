"""The rewrites that make a network smaller before it is planned.

`simplify` needs no sizes and runs once per network; `specialise` fixes the inputs' sizes, folds shape arithmetic and
runs the same rules again, once per plan. Every rule is exact up to rounding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx

from tilewright.dsl.dtypes import DType
from tilewright.errors import ModelError
from tilewright.graph import host, host_values, quantised
from tilewright.graph.inlining import taken_branch
from tilewright.graph.ir import Graph, Node, Value, frozen
from tilewright.graph.onnx_import import is_known_ahead
from tilewright.graph.row_scatters import ROW_SCATTERS
from tilewright.graph.rules import Replacement, Rule, apply, dead_code_removed, fresh, type_of

MAX_ROUNDS = 32
"""Rounds after which the graph is left as it is; real networks need three or four."""


def simplify(graph: Graph) -> Graph:
    """Fold constants and apply all rules until none fires, then drop dead code."""
    if quantised.FROM & set(graph.op_counts):
        graph = quantised.in_integers(fold_constants(graph, kept=quantised.FROM))
    graph = fold_constants(graph)
    for _ in range(MAX_ROUNDS):
        before = graph
        for rule in RULES:
            graph, _ = apply(rule, graph)
        graph = dead_code_removed(graph)
        if graph is before:
            break
        graph = fold_constants(graph)
    return graph


def specialise(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, np.ndarray] | None = None
) -> Graph:
    """The graph for inputs of the given sizes: all types known, everything that follows from sizes alone folded.

    ``known`` gives the elements of inputs that decide sizes; they are no inputs afterwards. Raises ModelError if the
    sizes contradict the network, or if a value's size depends on data.
    """
    fixed = {name: frozen(np.array(array)) for name, array in (known or {}).items()}
    inputs = tuple(replace(v, shape=shapes[v.name]) for v in graph.inputs if v.name not in fixed)
    graph = replace(graph, inputs=inputs, values={}, constants={**graph.constants, **fixed})
    graph = fold_constants(graph, sizes=True)
    simple = simplify(graph)
    return simple if simple is graph else fold_constants(simple, sizes=True)


def fold_constants(graph: Graph, sizes: bool = False, kept: Collection[str] = ()) -> Graph:
    """Replace nodes whose inputs are constant by their values, but for operators that are to be kept.

    With `sizes` the inputs' sizes are concrete: all types are inferred on the way, Shape and Size become constants,
    and a value whose sizes stay open raises ModelError.
    """
    constants = dict(graph.constants)
    values = {v.name: v for v in graph.inputs} if sizes else dict(graph.values)
    nodes: list[Node] = []
    pending = deque(graph.nodes)
    while pending:
        node = pending.popleft()
        if sizes and node.op == "If" and node.inputs[0] in constants:
            taken, own = taken_branch(node, constants[node.inputs[0]])
            pending.extendleft(reversed(taken))
            constants.update(own)
            continue
        known = None if node.op in kept else _value_ahead(node, graph.opset, constants, values if sizes else {})
        if known is not None:
            constants.update(zip(node.outputs, known, strict=True))
            continue
        nodes.append(node)
        if sizes:
            values.update((v.name, v) for v in _types(node, graph.opset, constants, values) if v.name)
    if len(nodes) == len(graph.nodes) and not sizes:
        return graph
    for v in graph.outputs:
        if sizes and v.name in constants and host_values.language_type(constants[v.name].dtype) is not None:
            values[v.name] = Value(v.name, *_constant_type(constants[v.name]))
    outputs = tuple(values.get(v.name, v) for v in graph.outputs) if sizes else graph.outputs
    return dead_code_removed(replace(graph, nodes=tuple(nodes), constants=constants, values=values, outputs=outputs))


def _value_ahead(
    node: Node, opset: int, constants: Mapping[str, np.ndarray], values: Mapping[str, Value]
) -> tuple[np.ndarray, ...] | None:
    """The node's outputs if they follow from constants, or from sizes that are known."""
    if node.op in {"Shape", "Size"} and node.inputs[0] not in constants:
        source = values.get(node.inputs[0])
        if source is None or not source.is_concrete:
            return None
        stand_in = np.broadcast_to(np.zeros((), source.dtype.numpy), source.sizes)
        return host.evaluate(node, opset, (stand_in,))
    if not (node.op in {"Shape", "Size"} or is_known_ahead(node, constants.keys())):
        return None
    try:
        return host.evaluate(node, opset, [constants.get(i) for i in node.inputs])
    except ModelError:
        return None  # the reference evaluator has gaps; the device can do it, or the graph's cutting refuses the node


def _types(
    node: Node, opset: int, constants: Mapping[str, np.ndarray], values: Mapping[str, Value]
) -> tuple[Value, ...]:
    if node.bodies:
        raise host.NeedsHostError(
            f"the condition of node {node.label!r} ({node.op}) depends on data; such networks run in parts",
            node.sources,
        )
    foreign = [i for i in node.inputs if i in constants and host_values.language_type(constants[i].dtype) is None]
    if foreign:
        raise host.NeedsHostError(
            f"the constant {foreign[0]!r} has element type {constants[foreign[0]].dtype}, which is not supported",
            node.sources,
        )
    inputs = [Value(i, *_constant_type(constants[i])) if i in constants else values.get(i) for i in node.inputs]
    found = host.infer(node, opset, inputs, constants)
    for value in found:
        if value.name and not value.is_concrete:
            raise host.NeedsHostError(
                f"the size of {value.name!r}, written by node {node.label!r} ({node.op}), depends on data; "
                "only networks whose sizes follow from their inputs' sizes can be planned",
                node.sources,
            )
        if value.name and any(size < 0 for size in value.sizes):
            sizes = ", ".join(map(str, value.sizes))
            raise ModelError(
                f"node {node.label!r} ({node.op}) would write {value.name!r} with the sizes ({sizes}), which cannot "
                "be; look at its attributes and constant inputs"
            )
    return found


def _constant_type(array: np.ndarray) -> tuple[DType, tuple[int, ...]]:
    return DType.from_numpy(array.dtype), array.shape


# --- nodes that change nothing ----------------------------------------------------------------------------------------


def _alias(node: Node) -> Replacement:
    return Replacement(aliases={node.outputs[0]: node.inputs[0]})


def _identity(graph: Graph, node: Node) -> Replacement | None:
    """Identity, and operators that are one for the sizes, types or attributes at hand."""
    if any(node.outputs[1:]) or not node.inputs or node.inputs[0] in graph.constants:
        return None
    if node.op in {"Identity", "Sum", "Max", "Min", "Mean"}:
        return _alias(node) if len(node.inputs) == 1 else None
    if node.op == "Dropout":
        return _alias(node) if _is_inference(graph, node) else None
    if node.op == "Pad":
        pads = _pads(graph, node)
        return _alias(node) if pads is not None and not any(pads) else None
    source, result = type_of(graph, node.inputs[0]), type_of(graph, node.outputs[0])
    if source is None or result is None or not source.is_concrete or not result.is_concrete:
        return None
    if node.op == "Slice" and len(node.inputs) > 4 and node.inputs[4] not in graph.constants:
        return None
    if node.op == "Cast":
        return _alias(node) if source.dtype is result.dtype else None
    if node.op == "Transpose":
        order = node.integers("perm", tuple(reversed(range(len(source.sizes)))))
        moved = [d for d in order if source.sizes[d] != 1]
        return _alias(node) if source.shape == result.shape and moved == sorted(moved) else None
    steps = _host_value(graph, node, 4) if node.op == "Slice" else None
    if steps is not None and (steps < 0).any():
        return None
    return _alias(node) if source.shape == result.shape else None


def _cast_like(graph: Graph, node: Node) -> Replacement | None:
    like = type_of(graph, node.inputs[1])
    if like is None or like.hosted is not None or not like.is_concrete:
        return None
    to = onnx.helper.np_dtype_to_tensor_dtype(like.dtype.numpy)
    return Replacement((replace(node, op="Cast", inputs=node.inputs[:1], attributes={"to": int(to)}),))


def _is_inference(graph: Graph, node: Node) -> bool:
    mode = node.inputs[2] if len(node.inputs) > 2 else ""
    return not mode or (mode in graph.constants and not bool(graph.constants[mode]))


def _host_value(graph: Graph, node: Node, position: int) -> np.ndarray | None:
    """A constant input, or None if it is left out or not constant."""
    return graph.constants.get(node.inputs[position]) if len(node.inputs) > position else None


# --- batch normalisation, scales and biases ---------------------------------------------------------------------------


def _batch_normalization(graph: Graph, node: Node) -> Replacement | None:
    if node.integer("training_mode", 0) or any(node.outputs[1:]):
        return None
    source = type_of(graph, node.inputs[0])
    parameters = [graph.constants.get(i) for i in node.inputs[1:5]]
    if source is None or source.shape is None or len(source.shape) < 2 or any(p is None for p in parameters):
        return None
    scale, bias, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    epsilon = node.attributes.get("epsilon", 1e-5)
    factor = scale / np.sqrt(variance + float(epsilon))  # type: ignore[arg-type]
    shape = (-1,) + (1,) * (len(source.shape) - 2)
    dtype = source.dtype.numpy
    output = node.outputs[0]
    names = [fresh(graph, f"{output}.{part}") for part in ("scaled", "scale", "shift")]
    return Replacement(
        (
            Node("Mul", (node.inputs[0], names[1]), (names[0],), name=f"{node.label}.scale"),
            Node("Add", (names[0], names[2]), (output,), name=f"{node.label}.shift"),
        ),
        {
            names[1]: factor.reshape(shape).astype(dtype),
            names[2]: (bias - mean * factor).reshape(shape).astype(dtype),
        },
    )


def _linear_producer(graph: Graph, node: Node) -> tuple[Node, np.ndarray] | None:
    """The convolution that feeds a Mul or Add (and nothing else), with the node's constant as one value per channel."""
    for value, other in (node.inputs, node.inputs[::-1]):
        producer, constant = graph.producers.get(value), graph.constants.get(other)
        if producer is None or constant is None or producer.op != "Conv" or not graph.used_once(value):
            continue
        weights = graph.constants.get(producer.inputs[1])
        has_bias = len(producer.inputs) > 2 and producer.inputs[2]
        if weights is None or (has_bias and producer.inputs[2] not in graph.constants):
            continue
        per_channel = _per_channel(constant, weights.shape[0], weights.ndim)
        if per_channel is not None:
            return producer, per_channel
    return None


def _per_channel(constant: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """A constant that broadcasts over everything but channels as a vector of them (float64), else None."""
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if shape[1] not in (1, channels) or any(n != 1 for d, n in enumerate(shape) if d != 1):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (channels,))


def _new_convolution(graph: Graph, node: Node, conv: Node, weights: np.ndarray | None, bias: np.ndarray) -> Replacement:
    """`conv` with other weights (None: the same) and bias, writing what `node` wrote."""
    dtype = graph.constants[conv.inputs[1]].dtype
    bias_name = fresh(graph, f"{node.outputs[0]}.bias")
    constants = {bias_name: bias.astype(dtype)}
    weights_name = conv.inputs[1]
    if weights is not None:
        weights_name = fresh(graph, f"{node.outputs[0]}.weights")
        constants[weights_name] = weights.astype(dtype)
    new = replace(
        conv,
        inputs=(conv.inputs[0], weights_name, bias_name),
        outputs=node.outputs,
        origins=(*conv.sources, *node.sources),
    )
    return Replacement((new,), constants)


def _bias_of(graph: Graph, conv: Node) -> np.ndarray:
    if len(conv.inputs) > 2 and conv.inputs[2]:
        return graph.constants[conv.inputs[2]].astype(np.float64)
    return np.zeros(graph.constants[conv.inputs[1]].shape[0])


def _scale_into_convolution(graph: Graph, node: Node) -> Replacement | None:
    found = _linear_producer(graph, node)
    if found is None:
        return None
    conv, scale = found
    weights = graph.constants[conv.inputs[1]]
    scaled = weights * scale.reshape((-1,) + (1,) * (weights.ndim - 1))
    return _new_convolution(graph, node, conv, scaled, _bias_of(graph, conv) * scale)


def _bias_into_convolution(graph: Graph, node: Node) -> Replacement | None:
    found = _linear_producer(graph, node)
    if found is None:
        return None
    conv, bias = found
    return _new_convolution(graph, node, conv, None, _bias_of(graph, conv) + bias)


# --- pads -------------------------------------------------------------------------------------------------------------


def _pads(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """A Pad node's pads for all dimensions (begins, then ends), or None if they or the rank are not known yet."""
    axes = _host_value(graph, node, 3)
    if "pads" in node.attributes or "paddings" in node.attributes:
        return node.integers("pads", node.integers("paddings"))
    pads = _host_value(graph, node, 1)
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] and axes is None):
        return None
    if axes is None:
        return tuple(int(p) for p in pads)
    source = type_of(graph, node.inputs[0])
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    full = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        full[axis % rank] = int(pads[position])
        full[axis % rank + rank] = int(pads[position + len(axes)])
    return tuple(full)


def _pad_value(graph: Graph, node: Node) -> float | None:
    """The constant that a Pad node pads with, or None for other modes and unknown values."""
    if node.attributes.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 2 and node.inputs[2]:
        constant = graph.constants.get(node.inputs[2])
        return None if constant is None else float(constant.reshape(-1)[0])
    value = node.attributes.get("value", 0.0)
    return float(value) if isinstance(value, int | float) else None


def _pad_into_window(graph: Graph, node: Node) -> Replacement | None:
    """Pad before a convolution or pooling becomes its pads, where the padded elements mean the same to it."""
    pad = graph.producers.get(node.inputs[0])
    if pad is None or pad.op != "Pad" or node.attributes.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return None
    pads, value = _pads(graph, pad), _pad_value(graph, pad)
    if pads is None or value is None or any(p < 0 for p in pads):
        return None
    if node.integer("ceil_mode", 0):
        return None  # which windows exist then depends on what is data and what is padding
    rank = len(pads) // 2
    begins, ends = pads[:rank], pads[rank:]
    own = node.integers("pads", (0,) * (2 * (rank - 2)))
    if any(begins[:2]) or any(ends[:2]) or not _pads_alike(node, value, own):
        return None
    if node.attributes.get("auto_pad") == "VALID":
        own = (0,) * len(own)
    merged = tuple(a + b for a, b in zip(own, (*begins[2:], *ends[2:]), strict=True))
    attributes = {k: v for k, v in node.attributes.items() if k != "auto_pad"} | {"pads": merged}
    if node.op == "AveragePool":
        attributes["count_include_pad"] = 1
    inputs = (pad.inputs[0], *node.inputs[1:])
    return Replacement((replace(node, inputs=inputs, attributes=attributes, origins=(*pad.sources, *node.sources)),))


def _pads_alike(node: Node, value: float, own: tuple[int, ...]) -> bool:
    """Whether elements that a Pad adds mean the same to `node` as those that its own pads add."""
    if node.op == "MaxPool":
        return value == -math.inf and not any(node.outputs[1:])
    if node.op == "AveragePool":
        # Padded elements are data to the pool: they count in the divisor, so its own pads must count as well.
        return value == 0 and (not any(own) or node.integer("count_include_pad", 0) == 1)
    return value == 0


Matcher = Callable[[Graph, Node], Replacement | None]

IDENTITIES = Rule(
    "nodes that change nothing",
    frozenset({"Cast", "Dropout", "Expand", "Identity", "Pad", "Slice", "Transpose"})
    | {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
    | {"Concat", "Max", "Mean", "Min", "Sum"},
    "the output has the input's elements, type and sizes",
    _identity,
)
CAST_LIKE = Rule(
    "conversion to a type that is known",
    frozenset({"CastLike"}),
    "of its second input only the element type matters, so that a constant stays one",
    _cast_like,
)
BATCH_NORMALIZATION = Rule(
    "batch normalisation as scale and shift",
    frozenset({"BatchNormalization"}),
    "with constant statistics (x - mean) / sqrt(var + eps) * s + b is x * factor + shift per channel",
    _batch_normalization,
)
SCALE = Rule(
    "scale into convolution",
    frozenset({"Mul"}),
    "a convolution is linear in its weights, so a factor per output channel can be multiplied into them",
    _scale_into_convolution,
)
BIAS = Rule(
    "bias into convolution",
    frozenset({"Add"}),
    "a constant per output channel is what the convolution's bias is",
    _bias_into_convolution,
)
PADS = Rule(
    "pad into convolution or pooling",
    frozenset({"Conv", "AveragePool", "MaxPool"}),
    "the elements that Pad adds mean the same to the window as its own pads",
    _pad_into_window,
)

RULES: tuple[Rule, ...] = (CAST_LIKE, IDENTITIES, PADS, BATCH_NORMALIZATION, SCALE, BIAS, ROW_SCATTERS)
"""All rules in the order in which a round applies them."""
