"""Products between DequantizeLinear and QuantizeLinear as products of integers.

Quantisers write networks in floats around the integers: dequantise, multiply, quantise again. Such a product is one of
integers times a product of scales (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, section 2.2):

    sum((a - za) sa * (b - zb) sb) = sa * sb * sum((a - za) * (b - zb))

The integers' sum is exact, so the results are those of the floats up to their rounding. Conv and MatMul that are
quantised again become QLinearConv and QLinearMatMul; other MatMul and Gemm by weights become MatMulInteger, a bias of
i32, and one factor. The weights stay in 8 bits then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from tilewright.dsl.dtypes import DType
from tilewright.graph.ir import Graph, Node
from tilewright.graph.rules import Replacement, Rule, apply, dead_code_removed, fresh, type_of

FROM = frozenset({"DequantizeLinear"})
"""Operators whose constants must not be folded before this: weights would be floats then."""
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
MADE = frozenset({"MatMulInteger", "QLinearConv", "QLinearMatMul"})
"""What products become."""
_QUANTISED_SINCE = 10
"""The opset of the operators written here."""
_CLOSE = 1e-5
"""By how much, relatively, a bias's scale may differ from the product of scales that it stands for."""


@dataclass(frozen=True)
class Stored:
    """What quantised numbers stand for: ``(value - zero) * scale``, each of one element or one per index of `axis`."""

    value: str
    scale: np.ndarray
    zero: np.ndarray
    axis: int

    @property
    def is_uniform(self) -> bool:
        """Whether the scale is one number."""
        return self.scale.size == 1


def in_integers(graph: Graph) -> Graph:
    """The graph with all products of 8-bit numbers written as such."""
    if not FROM & set(graph.op_counts):
        return graph
    for rule in RULES:
        graph, _ = apply(rule, graph)
    return dead_code_removed(graph)


# --- what is around a product -----------------------------------------------------------------------------------------


def _parameters(graph: Graph, node: Node, dtype: DType | None) -> tuple[np.ndarray, np.ndarray] | None:
    """A node's constant scale in f32 and its zero point, zeros of `dtype` where it has none; None for other nodes."""
    scale = graph.constants.get(node.inputs[1])
    if scale is None or scale.dtype != np.float32 or node.integer("block_size", 0):
        return None
    if len(node.inputs) > 2 and node.inputs[2]:
        zero = graph.constants.get(node.inputs[2])
    else:
        zero = None if dtype is None else np.zeros(scale.shape, dtype.numpy)
    if zero is None or zero.size != scale.size or scale.ndim > 1:
        return None
    return (scale, zero) if scale.size > 1 else (scale.reshape(()), zero.reshape(()))


def _stored(graph: Graph, name: str, *types: type[np.generic]) -> Stored | None:
    """The quantised numbers behind a value of the graph if they are of one of these types."""
    node = graph.producers.get(name)
    if node is None or node.op not in FROM or node.integer("output_dtype", TensorProto.FLOAT) != TensorProto.FLOAT:
        return None
    source = type_of(graph, node.inputs[0])
    found = _parameters(graph, node, None if source is None else source.dtype)
    if found is None or found[1].dtype.type not in types:
        return None
    return Stored(node.inputs[0], *found, node.integer("axis", 1))


def _bytes(graph: Graph, name: str) -> Stored | None:
    return _stored(graph, name, np.int8, np.uint8)


def _quantised(graph: Graph, node: Node) -> tuple[Node, np.ndarray, np.ndarray] | None:
    """The product that nothing but a QuantizeLinear to 8 bits reads, with its scale and zero point.

    A Relu between them does nothing that saturation does not do if the zero point is the type's lowest number.
    """
    found = _parameters(graph, node, DType.U8)
    if found is None or found[0].size > 1 or found[1].dtype not in (np.int8, np.uint8):
        return None
    if any(node.integer(name, 0) for name in ("output_dtype", "precision")):
        return None
    source = node.inputs[0]
    product = graph.producers.get(source)
    if product is not None and product.op == "Relu" and graph.used_once(source):
        if int(found[1]) != np.iinfo(found[1].dtype).min:
            return None
        source = product.inputs[0]
        product = graph.producers.get(source)
    return (product, *found) if product is not None and graph.used_once(source) else None


def _bias(graph: Graph, name: str, scale: np.ndarray) -> str | None:
    """The i32 numbers of a bias that counts in the products' scale, else None."""
    bias = _stored(graph, name, np.int32)
    if bias is None or bias.zero.any() or not (bias.is_uniform or _rank(graph, bias) == 1):
        return None
    fits = bias.scale.size in (1, scale.size) and np.allclose(bias.scale, scale, rtol=_CLOSE, atol=0)
    return bias.value if fits else None


# --- the rules --------------------------------------------------------------------------------------------------------


def _convolution(graph: Graph, quantise: Node) -> Replacement | None:
    around = _quantised(graph, quantise)
    if around is None or around[0].op != "Conv":
        return None
    conv, scale, zero = around
    image, weights = _bytes(graph, conv.inputs[0]), _bytes(graph, conv.inputs[1])
    if image is None or weights is None or not image.is_uniform or not (weights.is_uniform or weights.axis == 0):
        return None
    bias = _bias(graph, conv.inputs[2], image.scale * weights.scale) if any(conv.inputs[2:]) else ""
    if bias is None:
        return None
    node = replace(conv, op="QLinearConv", version=max(conv.version, _QUANTISED_SINCE))
    return _linear(graph, node, quantise, (image, weights), (scale, zero), (bias,) if bias else ())


def _linear(
    graph: Graph,
    node: Node,
    quantise: Node,
    operands: tuple[Stored, Stored],
    result: tuple[np.ndarray, np.ndarray],
    more: tuple[str, ...] = (),
) -> Replacement:
    """A QLinear operator in place of a product and what quantises it."""
    output = quantise.outputs[0]
    constants: dict[str, np.ndarray] = {}
    inputs: list[str] = []
    for part, (scale, zero) in zip("abc", (*((o.scale, o.zero) for o in operands), result), strict=True):
        names = [fresh(graph, f"{output}.{part}_{kind}") for kind in ("scale", "zero")]
        constants |= dict(zip(names, (scale, zero), strict=True))
        inputs += names if part == "c" else [operands["ab".index(part)].value, *names]
    sources = (*node.sources, *quantise.sources)
    return Replacement((replace(node, inputs=(*inputs, *more), outputs=(output,), origins=sources),), constants)


def _matrices(graph: Graph, node: Node, columns: int) -> tuple[Stored, Stored] | None:
    """The operands of a product of matrices whose scales are per tensor and per tensor or column."""
    a, b = _bytes(graph, node.inputs[0]), _bytes(graph, node.inputs[1])
    if a is None or b is None or not a.is_uniform:
        return None
    rank = _rank(graph, b)
    if min(_rank(graph, a), rank) < 2:
        return None
    return (a, b) if b.is_uniform or (rank == 2 and b.axis in (columns, columns - 2)) else None


def _rank(graph: Graph, operand: Stored) -> int:
    """Its number of dimensions, 0 where that is not known."""
    found = type_of(graph, operand.value)
    return 0 if found is None or found.shape is None else len(found.shape)


def _matmul(graph: Graph, quantise: Node) -> Replacement | None:
    around = _quantised(graph, quantise)
    if around is None or around[0].op != "MatMul":
        return None
    product, scale, zero = around
    found = _matrices(graph, product, 1)
    if found is None:
        return None
    node = replace(product, op="QLinearMatMul", version=max(product.version, _QUANTISED_SINCE))
    return _linear(graph, node, quantise, found, (scale, zero))


def _to_floats(graph: Graph, node: Node) -> Replacement | None:
    """A product by constant weights whose result stays a float: an exact one of integers, times one factor.

    Products of two values that are computed stay as they are: attention in floats has kernels of its own.
    """
    if node.integer("transA", 0) or any(node.attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    turned = bool(node.integer("transB", 0))
    found = _matrices(graph, node, 0 if turned else 1)
    if found is None or found[1].value not in graph.constants:
        return None
    a, b = found
    scale = a.scale * b.scale
    output = node.outputs[0]
    names = {part: fresh(graph, f"{output}.{part}") for part in _PARTS}
    constants = {names["scale"]: scale, names["a_zero"]: a.zero, names["b_zero"]: b.zero}
    if turned:
        constants[names["turned"]] = np.ascontiguousarray(graph.constants[b.value].T)
    added = node.inputs[2] if any(node.inputs[2:]) else ""
    bias = _bias(graph, added, scale) if added else None
    weights = names["turned"] if turned else b.value
    steps: list[tuple[str, tuple[str, ...], str]] = [
        ("MatMulInteger", (a.value, weights, names["a_zero"], names["b_zero"]), "product")
    ]
    if bias:
        steps.append(("Add", (names["product"], bias), "sum"))
    steps += [("Cast", (names[steps[-1][2]],), "float"), ("Mul", (names["float"], names["scale"]), "scaled")]
    if added and not bias:
        steps.append(("Add", (names["scaled"], added), ""))
    written = [names[part] for _, _, part in steps[:-1]] + [output]
    plain = Node("", (), (), name=node.name, origins=node.sources, version=max(node.version, _TYPED_SINCE))
    nodes = (
        replace(plain, op=op, inputs=inputs, outputs=(to,), attributes=_TO_FLOAT if op == "Cast" else {})
        for (op, inputs, _), to in zip(steps, written, strict=True)
    )
    return Replacement(tuple(nodes), constants)


_TO_FLOAT = {"to": int(TensorProto.FLOAT)}
_PARTS = ("scale", "a_zero", "b_zero", "turned", "product", "sum", "float", "scaled")
_TYPED_SINCE = 13
"""The opset in which the operators of `_to_floats` have the form that they are written in."""

RULES = (
    Rule(
        "convolution between quantised numbers",
        frozenset({"QuantizeLinear"}),
        "its sum is one of integers times a product of scales, its bias one of integers",
        _convolution,
    ),
    Rule(
        "matrix product between quantised numbers",
        frozenset({"QuantizeLinear"}),
        "its sum is one of integers times a product of scales",
        _matmul,
    ),
    Rule(
        "matrix product of quantised numbers",
        frozenset({"MatMul", "Gemm"}),
        "its sum is one of integers times a product of scales",
        _to_floats,
    ),
)
"""In the order in which they are applied."""

__all__ = ["FROM", "MADE", "PRODUCTS", "in_integers"]
