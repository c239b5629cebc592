"""Linear attention and the convolution ahead of it against ONNX's own evaluator, on the device and uneven shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import random
from test_ops_attention import Case, compare
from test_ops_quantised import one_node

from tilewright.errors import TilewrightError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device


def layer(
    batch: int, length: int, heads: tuple[int, int], sizes: tuple[int, int], **more: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    """Queries, keys and values of so many heads of queries and keys, with keys and values of these sizes."""
    return {
        "q": random(batch, length, heads[0] * sizes[0], seed=1),
        "k": random(batch, length, heads[1] * sizes[0], seed=2) / 3,
        "v": random(batch, length, heads[1] * sizes[1], seed=3),
        "past": more.get("past"),
        "g": more.get("g"),
        "beta": more.get("beta"),
    }


def rule(name: str, heads: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {"update_rule": name, "q_num_heads": heads[0], "kv_num_heads": heads[1], **more}


def decay(*shape: int) -> np.ndarray[Any, Any]:
    return -np.abs(random(*shape, seed=4))


def rate(*shape: int) -> np.ndarray[Any, Any]:
    return np.abs(np.tanh(random(*shape, seed=5)))


BOTH = ["y", "present"]
CASES: dict[str, Case] = {
    "linear": (layer(2, 5, (3, 3), (4, 6)), BOTH, rule("linear", (3, 3))),
    "gated, heads share keys": (layer(2, 4, (4, 2), (3, 5), g=decay(2, 4, 2)), BOTH, rule("gated", (4, 2))),
    "gated per element, with a past": (
        layer(1, 3, (2, 1), (4, 4), g=decay(1, 3, 4), past=random(1, 1, 4, 4)),
        BOTH,
        rule("gated", (2, 1), scale=0.7),
    ),
    "delta": (layer(2, 3, (2, 2), (4, 3), beta=rate(2, 3, 2)), BOTH, rule("delta", (2, 2))),
    "gated delta, more positions than one stack": (
        layer(1, 19, (2, 2), (3, 2), g=decay(1, 19, 2), beta=rate(1, 19, 1), past=random(1, 2, 3, 2)),
        BOTH,
        rule("gated_delta", (2, 2)),
    ),
    "one of each": (layer(1, 1, (1, 1), (1, 1)), BOTH, rule("linear", (1, 1))),
    "no batch": (layer(0, 2, (1, 1), (2, 2)), BOTH, rule("linear", (1, 1))),
}
CONVOLUTIONS: dict[str, Case] = {
    "plain": ({"x": random(2, 3, 7), "w": random(3, 1, 4)}, ["y", "present"], {}),
    "bias, past, activation": (
        {"x": random(2, 3, 7), "w": random(3, 1, 4), "b": random(3), "past": random(2, 3, 3, seed=1)},
        ["y", "present"],
        {"activation": "silu"},
    ),
    "fewer elements than are carried": (
        {"x": random(1, 2, 2), "w": random(2, 1, 5), "b": None, "past": random(1, 2, 4, seed=1)},
        ["y", "present"],
        {},
    ),
    "kernels of one": ({"x": random(2, 3, 5), "w": random(3, 1, 1)}, ["y", "present"], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_linear_attention(name: str, device: Device) -> None:
    compare(device, "LinearAttention", CASES[name], 27)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_causal_convolution(name: str, device: Device) -> None:
    compare(device, "CausalConvWithState", CONVOLUTIONS[name], 27)


def test_positions_share_their_kernels(device: Device) -> None:
    feeds, outputs, attributes = CASES["gated delta, more positions than one stack"]
    given = {n: a for n, a in feeds.items() if a is not None}
    proto = one_node("LinearAttention", given, dict.fromkeys(outputs, np.float32), opset=27, **attributes)
    calls = InferenceSession(proto, device, store=False).plan(given).calls
    assert len(calls) >= 2 * 19
    assert len({call.program for call in calls}) < 10


def test_a_rule_without_its_decay_is_named(device: Device) -> None:
    feeds = {n: a for n, a in layer(1, 2, (1, 1), (2, 2)).items() if a is not None}
    proto = one_node(
        "LinearAttention", feeds, {"y": np.float32, "present": np.float32}, opset=27, **rule("gated", (1, 1))
    )
    with pytest.raises(TilewrightError, match="decay"):
        InferenceSession(proto, device, store=False).run(None, feeds)
