"""Attention and its kin against ONNX's own evaluator on uneven shapes, and that attention stays one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import planned, random
from onnx.reference import ReferenceEvaluator
from test_ops_quantised import one_node

from tilewright.dsl.families.attention_form import Attention, recognise
from tilewright.errors import TilewrightError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Case = tuple[dict[str, np.ndarray[Any, Any] | None], list[str], dict[str, Any]]
"""Inputs in the operator's order, wanted outputs, attributes."""


def qkv(batch: int, heads: tuple[int, int], lengths: tuple[int, int], sizes: tuple[int, int]) -> dict[str, Any]:
    """Queries, keys and values of four dimensions; pairs are of queries and keys, sizes of keys and values."""
    return {
        "q": random(batch, heads[0], lengths[0], sizes[0], seed=1),
        "k": random(batch, heads[1], lengths[1], sizes[0], seed=2),
        "v": random(batch, heads[1], lengths[1], sizes[1], seed=3),
    }


def past(batch: int, heads: int, length: int, sizes: tuple[int, int]) -> dict[str, Any]:
    return {"pk": random(batch, heads, length, sizes[0], seed=4), "pv": random(batch, heads, length, sizes[1], seed=5)}


def packed(feeds: dict[str, Any]) -> dict[str, Any]:
    """The same with heads beside each other in the last dimension."""
    return {n: a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1) for n, a in feeds.items()}


def truth(*shape: int) -> np.ndarray[Any, Any]:
    return random(*shape, seed=7) > -0.3


PRESENT = ["y", "present_k", "present_v"]
NO_MASK: dict[str, Any] = {"mask": None}
CASES: dict[str, Case] = {
    "plain": (qkv(2, (3, 3), (5, 7), (8, 6)), ["y"], {}),
    "heads share keys, scaled, capped": (qkv(2, (6, 2), (5, 7), (9, 4)), ["y"], {"scale": 0.3, "softcap": 2.0}),
    "packed heads, causal": (
        packed(qkv(2, (4, 2), (6, 6), (8, 3))),
        ["y"],
        {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1},
    ),
    "bias per head": ({**qkv(2, (3, 3), (5, 7), (8, 8)), "m": random(3, 5, 7, seed=6)}, ["y"], {}),
    "truth per batch, shorter than the keys": ({**qkv(2, (3, 1), (5, 7), (8, 8)), "m": truth(2, 1, 5, 4)}, ["y"], {}),
    "bias shorter than the keys": ({**qkv(1, (2, 2), (3, 9), (4, 4)), "m": random(3, 5)}, ["y"], {"is_causal": 1}),
    "rows that see nothing": ({**qkv(1, (2, 2), (3, 4), (4, 4)), "m": np.zeros((3, 4), bool)}, ["y"], {}),
    "past": ({**qkv(2, (4, 2), (3, 5), (8, 6)), **NO_MASK, **past(2, 2, 4, (8, 6))}, PRESENT, {"is_causal": 1}),
    "empty past": ({**qkv(2, (2, 2), (3, 3), (8, 6)), **NO_MASK, **past(2, 2, 0, (8, 6))}, PRESENT, {"is_causal": 1}),
    "packed, past and weights": (
        {**packed(qkv(2, (2, 2), (3, 5), (4, 4))), **NO_MASK, **past(2, 2, 3, (4, 4))},
        [*PRESENT, "w"],
        {"q_num_heads": 2, "kv_num_heads": 2, "qk_matmul_output_mode": 3},
    ),
    "scores with bias": (
        {**qkv(1, (2, 2), (3, 5), (4, 4)), "m": truth(3, 5)},
        ["y", "", "", "w"],
        {"qk_matmul_output_mode": 2, "softcap": 1.5},
    ),
    "one of each": (qkv(1, (1, 1), (1, 1), (1, 1)), ["y"], {}),
    "no batch": (qkv(0, (2, 2), (3, 4), (4, 4)), ["y"], {}),
    "no queries": (qkv(2, (2, 2), (0, 4), (4, 4)), ["y"], {"is_causal": 1}),
    "long rows": (qkv(1, (1, 1), (3, 4), (5, 300)), ["y"], {}),
    "softmax in f64": (qkv(1, (2, 2), (3, 4), (5, 6)), ["y"], {"softmax_precision": 11}),
    "filled caches": (
        {**qkv(2, (2, 2), (3, 8), (4, 4)), **NO_MASK, "pk": None, "pv": None, "n": np.array([5, 2], np.int64)},
        ["y"],
        {"is_causal": 1},
    ),
}
WINDOWED: dict[str, Case] = {
    "window": (qkv(2, (2, 2), (7, 9), (4, 4)), ["y"], {"left_window_size": 2, "right_window_size": 1}),
    "window behind a past": (
        {**qkv(1, (2, 2), (4, 4), (4, 4)), **NO_MASK, **past(1, 2, 6, (4, 4))},
        PRESENT,
        {"left_window_size": 3, "is_causal": 1},
    ),
}


def compare(device: Device, op: str, case: Case, opset: int, tolerance: float = 2e-5) -> onnx.ModelProto:
    """Run one node here and by ONNX's evaluator."""
    feeds, outputs, attributes = case
    types: dict[str, type] = {n: np.float32 for n in outputs if n}
    proto = one_node(op, feeds, types, opset=opset, **attributes)  # type: ignore[arg-type]
    proto.graph.node[0].output[:] = outputs
    given = {n: a for n, a in feeds.items() if a is not None}
    wanted = ReferenceEvaluator(proto).run(None, given)
    found = InferenceSession(proto, device, store=False).run(None, given)
    for name, result, expected in zip(types, found, wanted, strict=True):
        assert result.shape == expected.shape, name
        np.testing.assert_allclose(result, expected, tolerance, tolerance, err_msg=name)
    return proto


@pytest.mark.parametrize("name", [*CASES, *WINDOWED])
def test_attention(name: str, device: Device) -> None:
    if name in WINDOWED:
        compare(device, "Attention", WINDOWED[name], 25)
    else:
        compare(device, "Attention", CASES[name], 24)


SEVERAL_STEPS = ("no batch", "no queries", "long rows", "softmax in f64")


@pytest.mark.parametrize("name", [n for n in [*CASES, *WINDOWED] if n not in SEVERAL_STEPS])
def test_attention_is_one_pass(name: str) -> None:
    feeds, _, attributes = {**CASES, **WINDOWED}[name]
    proto = one_node("Attention", feeds, {"y": np.float32}, opset=25, **attributes)  # type: ignore[arg-type]
    calls = planned(proto, {n: a for n, a in feeds.items() if a is not None}).calls
    assert len(calls) == 1
    assert isinstance(recognise(calls[0].program), Attention)


def test_heads_that_do_not_divide_are_an_error(device: Device) -> None:
    proto = one_node("Attention", qkv(1, (3, 2), (4, 4), (4, 4)), {"y": np.float32}, opset=24)
    with pytest.raises(TilewrightError, match="Attention"):
        InferenceSession(proto, device, store=False).run(None, qkv(1, (3, 2), (4, 4), (4, 4)))


CACHE = {"c": np.cos(random(9, 3)), "s": np.sin(random(9, 3))}
IDS = {"ids": np.array([[8, 0, 3, 3, 1], [2, 7, 5, 4, 6]], np.int64)}
ROTATED: dict[str, Case] = {
    "halves": ({"x": random(2, 3, 5, 6), **CACHE, **IDS}, ["y"], {}),
    "neighbours": ({"x": random(2, 3, 5, 6), **CACHE, **IDS}, ["y"], {"interleaved": 1}),
    "some": ({"x": random(2, 3, 5, 11), **CACHE, **IDS}, ["y"], {"rotary_embedding_dim": 6}),
    "some neighbours": (
        {"x": random(2, 3, 5, 11), **CACHE, **IDS},
        ["y"],
        {"rotary_embedding_dim": 6, "interleaved": 1},
    ),
    "packed, angles in order": (
        {"x": random(2, 5, 18), "c": random(2, 5, 3, seed=1), "s": random(2, 5, 3, seed=2)},
        ["y"],
        {"num_heads": 3},
    ),
    "no positions": ({"x": random(2, 3, 0, 6), "c": random(2, 0, 3), "s": random(2, 0, 3)}, ["y"], {}),
}


@pytest.mark.parametrize("name", ROTATED)
def test_rotary_embedding(name: str, device: Device) -> None:
    compare(device, "RotaryEmbedding", ROTATED[name], 23)


def test_scores_changed_by_a_graph(device: Device) -> None:
    """FlexAttention is computed by the host; its graph sees the scores."""
    proto = onnx.parser.parse_model(
        """<ir_version: 13, opset_import: ["" : 26, "ai.onnx.preview" : 1]>
        g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v) => (float[1, 2, 3, 4] y) {
            y = ai.onnx.preview.FlexAttention <score_mod = twice (float[B, H, L, S] s) => (float[B, H, L, S] t) {
                t = Add (s, s)
            }> (q, k, v)
        }"""
    )
    feeds = qkv(1, (2, 2), (3, 5), (4, 4))
    scores = feeds["q"] @ feeds["k"].transpose(0, 1, 3, 2)  # twice a quarter's root
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ feeds["v"]
    found = InferenceSession(proto, device, store=False).run(None, feeds)[0]
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-5)
