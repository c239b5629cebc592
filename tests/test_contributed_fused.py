"""Operators of com.microsoft that onnxruntime's optimiser writes for other devices, and old ones.

Those that its processor has kernels for are compared with these, the others with NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, random
from test_contributed import Case, b, f, ints, model_of, u8

from tilewright.errors import UnsupportedOperatorError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

TABLE = (u8(7, 48), random(7, 3))
WORDS = (u8(9, 24), u8(11, 24, seed=1), u8(2, 24, seed=2), u8(24, seed=3), u8(24, seed=4))
IDS = ints(3, 1, 8, 0, 2, 2).reshape(2, 3)
PARTS = np.stack((np.tile(ints(0, 1, 1), 2).reshape(2, 3),))[0]

BY_ONNXRUNTIME = {
    "rows of 4 bits": Case(
        "GatherBlockQuantized", (u8(7, 24), IDS % 7, *TABLE[1:]), {"bits": 4, "block_size": 16}, (0, 2)
    ),
    "rows of 4 bits with zero points": Case(
        "GatherBlockQuantized", (u8(7, 24), IDS % 7, TABLE[1], u8(7, 2)), {"bits": 4, "block_size": 16}, (0, 2, 3)
    ),
    "rows of 8 bits": Case(
        "GatherBlockQuantized", (TABLE[0], ints(6, 0, 5), TABLE[1]), {"bits": 8, "block_size": 16}, (0, 2)
    ),
    "quantised embeddings": Case(
        "QEmbedLayerNormalization",
        (
            IDS, PARTS, *WORDS, ints(1, 1, 0, 1, 1, 1).reshape(2, 3),
            *(f(0.01 * n) for n in range(1, 6)), *(b(100 + n) for n in range(5)),
        ),
        {"epsilon": 1e-6}, tuple(range(2, 7)), ("y", "counts"),
    ),
    "ExpandDims": Case("ExpandDims", (random(3, 5), np.array(-1, np.int32)), {}, (1,)),
    "Pad": Case("Pad", (random(3, 5), np.array([1, 0, 0, 2]), f(0.5)), {}, (1, 2)),
    "Pad, reflected": Case("Pad", (random(3, 5), np.array([1, 0, 0, 2])), {"mode": "reflect"}, (1,)),
    "GatherND": Case("GatherND", (random(3, 5, 2), ints(2, 4, 0, 1).reshape(2, 2))),
    "GridSample": Case(
        "GridSample", (random(2, 3, 5, 7), random(2, 4, 3, 2)), {"mode": "bilinear", "align_corners": 1}
    ),
    "GridSample, bicubic": Case("GridSample", (random(1, 2, 5, 7), random(1, 4, 3, 2)), {"mode": "bicubic"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_ONNXRUNTIME)
def test_as_by_onnxruntime(name: str, device: Device) -> None:
    case = BY_ONNXRUNTIME[name]
    proto = model_of(case)
    feeds = {f"i{n}": a for n, a in enumerate(case.inputs) if a is not None and n not in case.constants}
    for found, wanted in zip(
        InferenceSession(proto, device, store=False).run(None, feeds), by_onnxruntime(proto, feeds), strict=True
    ):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


# --- by NumPy ---------------------------------------------------------------------------------------------------------

Reference = Callable[..., np.ndarray]
erf = np.vectorize(math.erf)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def grouped(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int, last: bool = True) -> np.ndarray:
    """Normalised by groups of channels."""
    first = np.moveaxis(x, -1, 1) if last else x
    parts = first.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    result = parts.reshape(first.shape) * scale[:, None, None] + bias[:, None, None]
    return np.moveaxis(result, 1, -1) if last else result


def convolved(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Images with channels last by 3x3 windows of stride 1, padded by 1."""
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
    return np.einsum("nhwcrs,ocrs->nhwo", windows, w) + bias


def halves(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    left, right = np.split(x + bias, 2, -1)
    return left * right * (1 + erf(right / math.sqrt(2))) / 2


def fast_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


IMAGE, KERNEL = random(2, 5, 7, 6), random(4, 6, 3, 3)
PAD = {"pads": [1, 1, 1, 1]}
BY_NUMPY: dict[str, tuple[Case, Reference]] = {
    "NhwcConv": (Case("NhwcConv", (IMAGE, KERNEL, random(4)), PAD, (1, 2)), convolved),
    "NhwcFusedConv": (
        Case("NhwcFusedConv", (IMAGE, KERNEL, random(4), random(2, 5, 7, 4)), PAD | {"activation": "Relu"}, (1, 2)),
        lambda x, w, c, z: np.maximum(convolved(x, w, c) + z, 0),
    ),
    "GroupNorm": (
        Case("GroupNorm", (IMAGE, random(6), random(6)), {"groups": 3, "activation": 1}),
        lambda x, s, c: silu(grouped(x, s, c, 3)),
    ),
    "GroupNorm, channels first": (
        Case("GroupNorm", (random(2, 6, 5, 3), random(6), random(6)), {"groups": 2, "channels_last": 0}),
        lambda x, s, c: grouped(x, s, c, 2, last=False),
    ),
    "SkipGroupNorm": (
        Case("SkipGroupNorm", (IMAGE, random(6), random(6), random(2, 6), random(6)), {"groups": 2}),
        lambda x, s, c, skip, added: grouped(x + skip[:, None, None] + added, s, c, 2),
    ),
    "BiasAdd": (Case("BiasAdd", (random(2, 5, 6), random(6), random(2, 5, 6, seed=1))), lambda x, c, s: x + c + s),
    "BiasSplitGelu": (Case("BiasSplitGelu", (random(2, 5, 14), random(14))), halves),
    "BiasSoftmax": (
        Case("BiasSoftmax", (random(2, 3, 5, 7), random(2, 1, 1, 7)), {"axis": 3, "is_inner_broadcast": 1}),
        lambda x, c: softmax(x + c),
    ),
    "GemmFastGelu": (
        Case("GemmFastGelu", (random(2, 5, 6), random(6, 3), random(3))), lambda x, w, c: fast_gelu(x @ w + c)
    ),
    "FusedMatMulActivation": (
        Case(
            "FusedMatMulActivation",
            (random(5, 6), random(3, 6)),
            {"transB": 1, "alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.125},
        ),
        lambda x, w: np.where(x @ w.T < 0, 0.125, 1) * (x @ w.T) / 2,
    ),
    "GatedRMSNorm": (
        Case("GatedRMSNorm", (random(2, 5, 6), random(6), random(2, 5, 6, seed=1))),
        lambda x, s, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * s * silu(g),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NUMPY)
def test_as_documented(name: str, device: Device) -> None:
    case, reference = BY_NUMPY[name]
    feeds = {f"i{n}": a for n, a in enumerate(case.inputs) if a is not None and n not in case.constants}
    found = InferenceSession(model_of(case), device, store=False).run(None, feeds)[0]
    wanted = reference(*(a.astype(np.float64) for a in case.inputs if a is not None))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "case",
    [
        Case("BiasSoftmax", (random(2, 3, 5), random(1, 3, 5)), {"axis": 1}),
        Case("GroupNorm", (IMAGE, random(6), random(6)), {"groups": 2, "activation": 2}),
        Case("GatherBlockQuantized", (u8(7, 12), ints(1), random(7, 3)), {"bits": 2, "block_size": 16}),
        Case("FusedMatMulActivation", (random(5, 6), random(6, 3)), {"activation": "Selu"}),
    ],
    ids=lambda case: str(case.op),
)
def test_what_is_not_supported_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedOperatorError, match=case.op):
        InferenceSession(model_of(case), store=False)


def test_ranges(device: Device) -> None:
    """Their size is data, which makes it the host's affair."""
    node = onnx.helper.make_node("Range", ["a", "b"], ["y"], domain="com.microsoft")
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        [node], "g", [value("a", kind, []), value("b", kind, [1])], [value("y", kind, [None])]
    )
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = InferenceSession(proto, device, store=False).run(None, {"a": np.array(2), "b": np.array([6])})[0]
    np.testing.assert_array_equal(found, np.arange(2, 6))
