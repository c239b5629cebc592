"""Positions that depend on data: those outside of what they count are errors, wherever they come from."""

from __future__ import annotations

import numpy as np
import pytest
from networks import model, random

from tilewright.errors import InputError
from tilewright.graph import passes
from tilewright.graph.intervals import Interval, Intervals
from tilewright.graph.onnx_import import import_model
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, asarray

TABLE = random(4, 3)


def ids(*numbers: int, shape: tuple[int, ...] = (-1,), dtype: type = np.int64) -> np.ndarray:
    return np.array(numbers, dtype).reshape(shape)


FED = {
    "Gather": ("g (float[4, 3] x, int64[2] i) => (float[2, 3] y) { y = Gather(x, i) }", (2,)),
    "converted": (
        "g (float[4, 3] x, int32[2] i) => (float[1, 2, 3] y) {"
        " j = Cast<to = 7>(i) s = Constant<value_ints = [1, 2]>() k = Reshape(j, s) y = Gather(x, k) }",
        (2,),
    ),
    "GatherND": ("g (float[4, 3] x, int64[2, 1] i) => (float[2, 3] y) { y = GatherND(x, i) }", (2, 1)),
    "ScatterND": (
        "g (float[4, 3] x, int64[2, 1] i) => (float[4, 3] y) <float[2, 3] u> { y = ScatterND(x, i, u) }",
        (2, 1),
    ),
    "computed": ("g (float[4, 3] x, int64[2] i) => (float[2, 3] y) { j = Neg(i) k = Neg(j) y = Gather(x, k) }", (2,)),
    "in a loop": (
        "g (float[4, 3] x, int64[2] i) => (float[1, 2, 3] y) <int64 once = {1}> { y = Loop(once, ,) <"
        "body = step (int64 n, bool go) => (bool still, float[2, 3] z) { still = Identity(go) z = Gather(x, i) }> }",
        (2,),
    ),
}


@pytest.mark.parametrize("case", FED)
def test_positions_outside_are_errors(case: str, device: Device) -> None:
    text, shape = FED[case]
    constants = {"u": random(2, 3)} if case == "ScatterND" else {}
    session = InferenceSession(model(text, 18, **constants), device, store=False)
    dtype = np.int32 if case == "converted" else np.int64
    (found,) = session.run(None, {"x": TABLE, "i": ids(-4, 3, shape=shape, dtype=dtype)})
    rows = (constants["u"],) if constants else (TABLE[0], TABLE[3])
    chosen = found[[0, 3]] if constants else found
    assert np.array_equal(chosen.reshape(-1, 3), np.concatenate([np.atleast_2d(r) for r in rows]))
    for outside in (4, -5):
        feeds = {"x": TABLE, "i": ids(0, outside, shape=shape, dtype=dtype)}
        with pytest.raises(InputError, match=f"is given the position {outside}, but positions from -4 to 3"):
            session.run(None, feeds)
        with pytest.raises(InputError, match=f"is given the position {outside}"):
            session.run_on_device(None, {name: asarray(a, device) for name, a in feeds.items()})


def test_targets_may_be_ignored(device: Device) -> None:
    text = """g (float[2, 3] x, int64[2] t) => (float y) {
        y = NegativeLogLikelihoodLoss<ignore_index = -100, reduction = "sum">(x, t) }"""
    session = InferenceSession(model(text), device, store=False)
    x = random(2, 3)
    assert session.run(None, {"x": x, "t": ids(-100, 2)})[0] == pytest.approx(-x[1, 2])
    with pytest.raises(InputError, match="position -99, but positions from 0 to 2"):
        session.run(None, {"x": x, "t": ids(0, -99)})


# --- what is proven ---------------------------------------------------------------------------------------------------

PROVEN: dict[str, tuple[str, Interval | None]] = {
    "an input": ("z = Identity(i)", None),
    "narrow types": ("z = Cast<to = 7>(b)", (0, 255)),
    "positions of largest elements": ("z = ArgMax<axis = 0>(x)", (0, 3)),
    "positions in order": ("k = Constant<value_ints = [2]>() v, z = TopK<axis = -1>(x, k)", (0, 2)),
    "limits": ("l = Constant<value_int = -1>() h = Constant<value_int = 5>() z = Clip(i, l, h)", (-1, 5)),
    "remainders": ("d = Constant<value_int = 6>() z = Mod(i, d)", (0, 5)),
    "remainders by fmod": ("d = Constant<value_int = 6>() z = Mod<fmod = 1>(i, d)", None),
    "sums": ("a = Cast<to = 7>(b) d = Constant<value_int = -6>() z = Add(a, d)", (-6, 249)),
    "differences": ("a = Cast<to = 7>(b) d = Constant<value_int = 6>() z = Sub(d, a)", (-249, 6)),
    "products": ("a = Cast<to = 7>(b) d = Constant<value_int = -2>() z = Mul(a, d)", (-510, 0)),
    "quotients": ("a = Cast<to = 7>(b) d = Constant<value_int = 10>() z = Div(a, d)", (0, 25)),
    "wrapped sums": ("z = Add(b, b)", (0, 255)),
    "one or the other": (
        "a = ArgMax<axis = 0>(x) d = Constant<value_int = 9>() e = Cast<to = 9>(a) z = Where(e, a, d)",
        (0, 9),
    ),
    "side by side": ("a = Cast<to = 7>(b) d = Constant<value_ints = [-3]>() z = Concat<axis = 0>(a, d)", (-3, 255)),
    "a part": (
        "a = Cast<to = 7>(b) s = Constant<value_ints = [1]>() e = Constant<value_ints = [2]>() z = Slice(a, s, e)",
        (0, 255),
    ),
}


@pytest.mark.parametrize("case", PROVEN)
def test_intervals(case: str) -> None:
    body, expected = PROVEN[case]
    dtype = "uint8" if case == "wrapped sums" else "int64"
    text = f"g (float[4, 3] x, int64[2] i, uint8[2] b) => ({dtype}[a] z) {{ {body} }}"
    graph = passes.simplify(import_model(model(text, 18)))
    sized = passes.specialise(graph, {"x": (4, 3), "i": (2,), "b": (2,)})
    assert Intervals(sized).of("z") == expected


def test_what_is_proven_is_not_looked_at(device: Device) -> None:
    text = "g (float[4, 3] x) => (float[3, 3] y) { i = ArgMax<axis = 0, keepdims = 0>(x) y = Gather(x, i) }"
    session = InferenceSession(model(text, 18), device, store=False)
    checks = session.plan({"x": TABLE}).checks
    assert not checks.fed
    assert not checks.made
    assert np.array_equal(session.run(None, {"x": TABLE})[0], TABLE[TABLE.argmax(0)])
