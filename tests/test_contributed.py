"""Operators of com.microsoft against onnxruntime, which defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, random
from onnx import helper, numpy_helper

from tilewright.errors import UnsupportedOperatorError
from tilewright.graph.onnx_import import import_model
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device


@dataclass(frozen=True)
class Case:
    """A node: attributes, inputs in order (None where left out), which of them are constants, and its outputs."""

    op: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    opset: int = 13
    step: float = 0.0
    """One quantum of a quantised result, by which halves may differ."""


def model_of(case: Case) -> onnx.ModelProto:
    names = ["" if a is None else f"i{n}" for n, a in enumerate(case.inputs)]
    node = helper.make_node(case.op, names, case.outputs, "node", domain="com.microsoft", **case.attributes)
    given = [(name, a) for name, a in zip(names, case.inputs, strict=True) if a is not None]
    fixed = {names[n] for n in case.constants}
    types = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in given}
    inputs = [helper.make_tensor_value_info(n, types[n], [None] * a.ndim) for n, a in given if n not in fixed]
    outputs = [helper.make_empty_tensor_value_info(o) for o in case.outputs if o]
    weights = [numpy_helper.from_array(a, name) for name, a in given if name in fixed]
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def u8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int, seed: int = 0) -> np.ndarray:
    """Of 7 bits: onnxruntime's products of u8 and i8 saturate in 16 bits on some processors."""
    return np.random.default_rng([seed, *shape]).integers(-64, 64, shape).astype(np.int8)


def f(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def b(value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array(value, dtype)


def ints(*values: int, dtype: type = np.int32) -> np.ndarray:
    return np.array(values, dtype)


ANGLES = np.outer(np.arange(16), 1 / 100 ** (np.arange(4) / 4))
COSINES, SINES = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
WIDE_ANGLES = np.outer(np.arange(16), 1 / 100 ** (np.arange(8) / 8))
WIDE_COSINES, WIDE_SINES = np.cos(WIDE_ANGLES).astype(np.float32), np.sin(WIDE_ANGLES).astype(np.float32)
HIDDEN = 24
X = random(2, 5, HIDDEN)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
NORM = (random(HIDDEN), random(HIDDEN, seed=1))
QUANTISED = (u8(2, 3, 4, 5), f(0.05), b(120))
ATTENTION = (X, random(HIDDEN, 72), random(72))

CASES: dict[str, Case] = {
    "FusedMatMul": Case("FusedMatMul", (random(2, 5, 3), random(2, 7, 5)), {"transA": 1, "transB": 1, "alpha": 0.25}),
    "FusedGemm": Case(
        "FusedGemm", (random(3, 4), random(4, 5), random(5)), {"alpha": 0.5, "beta": 2.0, "activation": "Relu"}
    ),
    "FusedConv": Case(
        "FusedConv",
        (random(1, 3, 7, 8), random(4, 3, 3, 3), random(4), random(1, 4, 7, 8)),
        {"pads": [1, 1, 1, 1], "activation": "LeakyRelu", "activation_params": [0.1]},
        (1, 2),
    ),
    "FusedConv, clipped": Case(
        "FusedConv",
        (random(1, 4, 7, 8), random(4, 2, 3, 3)),
        {"strides": [2, 2], "group": 2, "activation": "Clip", "activation_params": [0.0, 0.5]},
        (1,),
    ),
    "BiasGelu": Case("BiasGelu", (X, random(HIDDEN))),
    "FastGelu": Case("FastGelu", (X, random(HIDDEN))),
    "Gelu": Case("Gelu", (X,)),
    "QuickGelu": Case("QuickGelu", (X,), {"alpha": 1.5}),
    "SkipLayerNormalization": Case(
        "SkipLayerNormalization", (X, random(2, 5, HIDDEN, seed=2), *NORM, random(HIDDEN, seed=3)), {"epsilon": 1e-3},
        outputs=("y", "", "", "s"),
    ),
    "SkipSimplifiedLayerNormalization": Case(
        "SkipSimplifiedLayerNormalization", (X, random(2, 5, HIDDEN, seed=2), NORM[0]), outputs=("y", "", "", "s")
    ),
    "EmbedLayerNormalization": Case(
        "EmbedLayerNormalization",
        (
            ints(1, 2, 3, 4, 5, 6).reshape(2, 3), ints(0, 1, 1, 0, 0, 1).reshape(2, 3),
            random(9, HIDDEN), random(8, HIDDEN), random(2, HIDDEN), *NORM, MASK[:, 1:4],
        ),
        {"epsilon": 1e-5}, (2, 3, 4, 5, 6), ("y", "m"),
    ),
    "Attention": Case("Attention", ATTENTION, {"num_heads": 3}, (1, 2)),
    "Attention, masked": Case("Attention", (*ATTENTION, MASK), {"num_heads": 3, "mask_filter_value": -5.0}, (1, 2)),
    "Attention, lengths": Case("Attention", (*ATTENTION, ints(3, 5)), {"num_heads": 3}, (1, 2)),
    "Attention, causal": Case("Attention", ATTENTION, {"num_heads": 3, "unidirectional": 1}, (1, 2)),
    "Attention, past": Case(
        "Attention", (*ATTENTION, None, random(2, 2, 3, 4, 8)), {"num_heads": 3, "unidirectional": 1}, (1, 2),
        ("y", "p"),
    ),
    "MultiHeadAttention": Case(
        "MultiHeadAttention",
        (X, random(2, 6, HIDDEN), random(2, 6, HIDDEN, seed=4), random(72), None, random(2, 3, 5, 6)),
        {"num_heads": 3, "scale": 0.5},
    ),
    "MultiHeadAttention, masked": Case(
        "MultiHeadAttention", (X, random(2, 5, HIDDEN, seed=5), random(2, 5, HIDDEN, seed=4), None, MASK),
        {"num_heads": 3},
    ),
    "MultiHeadAttention, past": Case(
        "MultiHeadAttention",
        (X, X, X, None, None, None, random(2, 3, 4, 8), random(2, 3, 4, 8, seed=1)),
        {"num_heads": 3}, outputs=("y", "k", "v"),
    ),
    "RotaryEmbedding": Case(
        "RotaryEmbedding", (X, ints(*range(5), *range(3, 8), dtype=np.int64).reshape(2, 5), COSINES, SINES), {}, (2, 3)
    ),
    "RotaryEmbedding, from": Case(
        "RotaryEmbedding", (random(2, 3, 5, 8), ints(4, dtype=np.int64), COSINES, SINES), {"interleaved": 1}, (2, 3)
    ),
    "GroupQueryAttention, first": Case(
        "GroupQueryAttention",
        (
            random(2, 5, 64), random(2, 5, 32), random(2, 5, 32, seed=1), random(2, 2, 0, 16), random(2, 2, 0, 16),
            ints(4, 4), b(5, np.int32), WIDE_COSINES, WIDE_SINES,
        ),
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, (7, 8), ("y", "k", "v"),
    ),
    "GroupQueryAttention, next": Case(
        "GroupQueryAttention",
        (
            random(2, 1, 128), None, None, random(2, 2, 6, 16), random(2, 2, 6, 16, seed=1),
            ints(6, 6), b(7, np.int32), WIDE_COSINES, WIDE_SINES,
        ),
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 3},
        (7, 8), ("y", "k", "v"),
    ),
    "GroupQueryAttention, without old keys": Case(
        "GroupQueryAttention",
        (random(1, 3, 32), random(1, 3, 16), random(1, 3, 16, seed=1), None, None, ints(2), b(3, np.int32)),
        {"num_heads": 2, "kv_num_heads": 1, "scale": 0.3, "softcap": 2.0}, (), ("y", "k", "v"),
    ),
    "MatMulNBits": Case(
        "MatMulNBits", (random(2, 3, 40), u8(6, 3, 8), random(18)),
        {"K": 40, "N": 6, "bits": 4, "block_size": 16}, (1, 2),
    ),
    "MatMulNBits, zeros": Case(
        "MatMulNBits", (random(3, 48), u8(6, 3, 8), random(18), u8(12), None, random(6)),
        {"K": 48, "N": 6, "bits": 4, "block_size": 16}, (1, 2, 3, 5),
    ),
    "QLinearAdd": Case("QLinearAdd", (*QUANTISED, u8(4, 5), f(0.03), b(100), f(0.1), b(128)), step=1),
    "QLinearMul": Case("QLinearMul", (*QUANTISED, u8(4, 5), f(0.03), b(100), f(0.1), b(128)), step=1),
    "QLinearAdd of i8": Case(
        "QLinearAdd",
        (i8(4, 5), f(0.05), b(3, np.int8), i8(4, 5, seed=1), f(0.03), b(-5, np.int8), f(0.1), b(1, np.int8)), step=1,
    ),
    "QLinearSigmoid": Case("QLinearSigmoid", (*QUANTISED, f(0.004), b(0)), {}, (1, 2, 3, 4), step=1),
    "QLinearLeakyRelu": Case("QLinearLeakyRelu", (*QUANTISED, f(0.05), b(60)), {"alpha": 0.2}, (1, 2, 3, 4), step=1),
    "QLinearGlobalAveragePool": Case("QLinearGlobalAveragePool", (*QUANTISED, f(0.02), b(128)), step=1),
    "QLinearGlobalAveragePool, last": Case(
        "QLinearGlobalAveragePool", (*QUANTISED, f(0.02), b(128)), {"channels_last": 1}, step=1
    ),
    "QLinearConcat": Case(
        "QLinearConcat", (f(0.1), b(120), *QUANTISED, u8(2, 1, 4, 5), f(0.2), b(50)), {"axis": 1},
        (0, 1, 3, 4, 6, 7), step=1,
    ),
    "QGemm": Case(
        "QGemm", (u8(3, 4), f(0.05), b(100), i8(5, 4), f(0.02), b(0, np.int8), ints(9, -50, 3, 0, 7), f(0.2), b(130)),
        {"transB": 1}, (4, 5), step=1,
    ),
    "QGemm to floats": Case(
        "QGemm", (u8(3, 4), f(0.05), b(100), i8(4, 5), random(5) ** 2, np.zeros(5, np.int8)), {"alpha": 0.5}
    ),
    "DynamicQuantizeMatMul": Case("DynamicQuantizeMatMul", (random(3, 8), i8(8, 5), f(0.02), b(3, np.int8), random(5))),
    "MatMulIntegerToFloat": Case(
        "MatMulIntegerToFloat", (u8(3, 8), i8(8, 5), f(0.02), random(5) ** 2, b(120), np.zeros(5, np.int8))
    ),
    "DequantizeLinear": Case("DequantizeLinear", (np.arange(6, dtype=np.uint16), f(0.5), b(3, np.uint16))),
    "Trilu": Case("Trilu", (random(4, 5), b(1, np.int64)), {"upper": 0}),
    "QLinearConv, last": Case(
        "QLinearConv",
        (u8(2, 7, 8, 4), f(0.02), b(120), i8(6, 2, 3, 3), random(6) ** 2 + 0.01, np.zeros(6, np.int8), f(0.5), b(100),
         ints(9, -50, 3, 0, 7, 1)),
        {"channels_last": 1, "group": 2, "pads": [1, 1, 0, 1], "strides": [2, 1]}, (1, 2, 3, 4, 5, 6, 7, 8), step=1,
    ),
    "NhwcMaxPool": Case(
        "NhwcMaxPool", (u8(2, 7, 8, 3),), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "strides": [2, 1]}
    ),
    "QLinearAveragePool": Case(
        "QLinearAveragePool", (u8(2, 3, 7, 8), f(0.05), b(120), f(0.03), b(128)),
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}, (1, 2, 3, 4), step=1,
    ),
    "QLinearAveragePool, last": Case(
        "QLinearAveragePool", (u8(2, 7, 8, 3), f(0.05), b(120), f(0.03), b(128)),
        {"kernel_shape": [3, 2], "strides": [2, 2], "channels_last": 1}, (1, 2, 3, 4), step=1,
    ),
    "QLinearWhere": Case(
        "QLinearWhere", (random(4, 5) > 0, u8(3, 4, 5), f(0.05), b(120), u8(5), f(0.03), b(100), f(0.06), b(110)),
        {}, (2, 3, 5, 6, 7, 8), step=1,
    ),
    "QAttention": Case(
        "QAttention", (u8(2, 5, HIDDEN), i8(HIDDEN, 72), random(72), f(0.01), f(0.01), MASK, b(130), b(2, np.int8)),
        {"num_heads": 3}, (1, 2),
    ),
    "QAttention, scales by column": Case(
        "QAttention",
        (u8(2, 5, HIDDEN), i8(HIDDEN, 72), random(72), f(0.01), 0.02 * random(72) ** 2, None, b(130),
         np.zeros(72, np.int8)),
        {"num_heads": 3, "unidirectional": 1}, (1, 2),
    ),
}  # fmt: skip


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("name", CASES)
def test_contributed_operators(name: str, device: Device) -> None:
    case = CASES[name]
    proto = model_of(case)
    names = [i.name for i in proto.graph.input]
    feeds = {f"i{n}": a for n, a in enumerate(case.inputs) if f"i{n}" in names}
    session = InferenceSession(proto, device, store=False)
    for ours, theirs in zip(session.run(None, feeds), by_onnxruntime(proto, feeds), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        largest = np.abs(theirs).max(initial=1) if theirs.dtype.kind == "f" else 1
        np.testing.assert_allclose(
            ours.astype(np.float64), theirs.astype(np.float64), rtol=1e-4, atol=case.step or 1e-5 * largest
        )


def quantised_lstm(steps: int, scale: np.ndarray, zero: np.ndarray, **attributes: Any) -> Case:
    """Both directions of 6 inputs and 4 hidden states, with or without one scale per gate."""
    x = random(steps, 3, 6)
    weights = (i8(2, 6, 16), i8(2, 4, 16, seed=1), random(2, 32))
    states = (np.zeros((2, 3, 4), np.float32), random(2, 3, 4))
    inputs = (x, *weights, None, *states, random(2, 12), scale, zero, scale, zero)
    attributes = {"hidden_size": 4, "direction": "bidirectional", **attributes}
    return Case("DynamicQuantizeLSTM", inputs, attributes, (1, 2, 3, 8, 9, 10, 11), ("y", "h", "c"))


LSTMS = {
    "one step": (quantised_lstm(1, 0.01 + random(2, 16) ** 2 / 50, np.zeros((2, 16), np.int8)), 1e-5),
    "one step, one scale": (quantised_lstm(1, np.array([0.01, 0.02], np.float32), ints(3, -2, dtype=np.int8)), 1e-5),
    # states within 1 are rounded to steps of 1 / 127 or less there; four products with weights below 0.64
    "steps": (quantised_lstm(5, np.array([0.01, 0.005], np.float32), ints(0, 0, dtype=np.int8)), 4 * 0.64 / 254),
}


@pytest.mark.parametrize("name", LSTMS)
def test_quantised_recurrences(name: str, device: Device) -> None:
    """Exact for a first step from nothing; later ones differ as much as onnxruntime's rounding of states."""
    case, allowed = LSTMS[name]
    proto, feeds = model_of(case), {f"i{n}": case.inputs[n] for n in (0, 5, 6, 7)}
    found = InferenceSession(proto, device, store=False).run(None, feeds)
    for ours, theirs in zip(found, by_onnxruntime(proto, feeds), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=allowed)


def test_queries_keys_and_values_side_by_side(device: Device) -> None:
    """A form that onnxruntime's CPU kernels lack."""
    packed = random(2, 5, 3, 3, 8)
    whole = model_of(Case("MultiHeadAttention", (packed,), {"num_heads": 3}))
    apart = [np.ascontiguousarray(packed[:, :, :, n]).reshape(2, 5, HIDDEN) for n in range(3)]
    parts = model_of(Case("MultiHeadAttention", tuple(apart), {"num_heads": 3}))
    (found,) = InferenceSession(whole, device, store=False).run(None, {"i0": packed})
    (expected,) = by_onnxruntime(parts, {f"i{n}": a for n, a in enumerate(apart)})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_normalisations_in_onnx_own_domain() -> None:
    """Where onnxruntime's optimiser puts them."""
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["y"], epsilon=1e-3)
    infos = [helper.make_tensor_value_info(n, 1, [2, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(random(4), "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = random(2, 4)
    found = InferenceSession(proto, store=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-3) * random(4), rtol=1e-5)


def test_what_an_expansion_cannot_do_is_refused() -> None:
    proto = model_of(Case("Attention", ATTENTION, {"num_heads": 3, "do_rotary": 1}))
    with pytest.raises(UnsupportedOperatorError, match=r"com\.microsoft::Attention"):
        InferenceSession(proto, store=False)
    assert [n.op for n in import_model(model_of(CASES["BiasGelu"]), hosted=True).nodes] == ["Add", "Gelu"]
