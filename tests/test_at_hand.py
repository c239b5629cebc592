"""Small integers that the host holds stay there: which work that is, its numbers, and that nothing waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from networks import by_onnxruntime, model, random

from tilewright.graph.at_hand import MOST_ELEMENTS, deciding_inputs
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.onnx_import import import_model
from tilewright.graph.passes import simplify
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, asarray
from tilewright.runtime.transfers import Transfers

CHOICE = """
    y = If (c) <
        then_branch = t () => (float[n] o) { o = Exp(x) },
        else_branch = f () => (float[n] u) { u = Neg(x) }
    >"""
"""What makes a network one of several parts, of which its condition is the host's to read."""


def by_rate(rate: str) -> str:
    return f"g (float[n] x, {rate} rate) => (float[n] y) {{ c = Equal(rate, wanted) {CHOICE} }}"


def on_host(session: InferenceSession, feeds: Mapping[str, Any]) -> list[str]:
    """The operators that the host computes in a run, those of one row together."""
    return [row.op.split()[0] for row in session.profile(feeds) if row.family == "host"]


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The sizes of what is read from the device from now on, those of one wait together."""
    reads: list[list[tuple[int, ...]]] = []
    receive = Transfers.receive

    def received(self: Transfers, parts: Sequence[Any], *rest: int) -> list[np.ndarray]:
        reads.append([tuple(shape) for _, shape, _ in parts])
        return receive(self, parts, *rest)

    monkeypatch.setattr(Transfers, "receive", received)
    return reads


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_condition_of_a_number_that_is_fed(device: Device, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(by_rate("int64"), wanted=np.array(16000))
    session = InferenceSession(proto, device, store=False)
    feeds = {"x": random(7), "rate": np.array(rate)}
    assert on_host(session, feeds) == ["Equal", "If"]
    reads = counted_reads(monkeypatch)
    (found,) = session.run(None, feeds)
    assert reads == [[(7,)]]
    np.testing.assert_allclose(found, by_onnxruntime(proto, feeds)[0], rtol=1e-5)


def test_numbers_on_the_device_stay_there(device: Device) -> None:
    proto = model(by_rate("int64"), wanted=np.array(16000))
    session = InferenceSession(proto, device, store=False)
    feeds = {"x": random(7), "rate": np.array(16000)}
    there = {"x": feeds["x"], "rate": asarray(feeds["rate"], device)}
    for _ in range(2):
        assert on_host(session, there) == ["If"]
        assert on_host(session, feeds) == ["Equal", "If"]
        np.testing.assert_allclose(session.run(None, there)[0], np.exp(feeds["x"]), rtol=1e-5)


def test_floats_and_large_tensors_are_for_the_device(device: Device) -> None:
    session = InferenceSession(model(by_rate("float"), wanted=np.array(2, np.float32)), device, store=False)
    assert on_host(session, {"x": random(3), "rate": np.array(2, np.float32)}) == ["If"]
    text = f"g (float[n] x, bool c, int64[m] i) => (float[n] y, int64[m] j) {{ {CHOICE} j = Mul(i, i) }}"
    session = InferenceSession(model(text), device, store=False)
    for size, expected in ((MOST_ELEMENTS, ["Mul", "If"]), (MOST_ELEMENTS + 1, ["If"])):
        feeds = {"x": random(3), "c": np.array(True), "i": np.arange(size)}
        assert sorted(on_host(session, feeds)) == sorted(expected)
        np.testing.assert_array_equal(session.run(["j"], feeds)[0], np.arange(size) ** 2)


EVERY_OPERATOR = f"""g (float[n] x, bool c, int32[3] a, int32[3] b, bool[2, 1] p, bool[2] q, int64[1, 3, 1] r) => (
    float[n] y, int32[3] add, bool[2, 2] both, int32[1, 3, 1] cast, bool[1, 3, 1] truth, bool[3] equal, bool[3] greater,
    bool[3] not_less, bool[3] less, bool[3] not_greater, int32[3] most, int32[3] fewest, int32[3] times, bool[2] no,
    bool[2, 2] either, int32[3] minus, int32[2, 3] chosen, bool[2, 2] one, int64[3] flat, int64[1, 3] matrix,
    int64[1, 1, 3, 1] more, int64[3, 1] shaped, int64[1, 3, 1] same
) {{ {CHOICE}
    add = Add(a, b) both = And(p, q) cast = Cast <to = 6> (r) truth = Cast <to = 9> (r) equal = Equal(a, b)
    greater = Greater(a, b) not_less = GreaterOrEqual(a, b) less = Less(a, b) not_greater = LessOrEqual(a, b)
    most = Max(a, b, three) fewest = Min(a, b, three) times = Mul(a, b) no = Not(q) either = Or(p, q) minus = Sub(a, b)
    chosen = Where(p, a, b) one = Xor(p, q) flat = Squeeze(r, ends) matrix = Flatten <axis = 1> (r)
    more = Unsqueeze(r, first) shaped = Reshape(r, open) same = Identity(r)
}}"""


def test_every_operator(device: Device) -> None:
    """Sums and products beyond the type's range among them, which wrap."""
    constants = {"three": np.array(3, np.int32), "first": np.array([0]), "open": np.array([-1, 1])}
    proto = model(EVERY_OPERATOR, ends=np.array([0, 2]), **constants)
    session = InferenceSession(proto, device, store=False)
    feeds = {
        "x": random(4),
        "c": np.array(False),
        "a": np.array([2**31 - 1, -5, 7], np.int32),
        "b": np.array([2**31 - 1, 4, 7], np.int32),
        "p": np.array([[True], [False]]),
        "q": np.array([False, True]),
        "r": np.array([[[2**32 + 5], [0], [-1]]]),
    }
    assert len(on_host(session, feeds)[0].split("+")) == 22
    for ours, theirs in zip(session.run(None, feeds), by_onnxruntime(proto, feeds), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_results_are_the_callers_own(device: Device) -> None:
    text = f"g (float[n] x, bool c, int64[2] i) => (float[n] y, int64[2] j) {{ {CHOICE} j = Identity(i) }}"
    feeds = {"x": random(3), "c": np.array(True), "i": np.array([1, 2])}
    _, j = InferenceSession(model(text), device, store=False).run(None, feeds)
    j[:] = 7
    assert feeds["i"].tolist() == [1, 2]


def test_what_the_device_reads_too_is_there_as_well(device: Device) -> None:
    text = f"""g (float[n] x, int64 i) => (float[n] y, float[n] z) {{
        j = Add(i, i) c = Less(j, wanted) f = Cast <to = 1> (j) z = Mul(x, f) {CHOICE}
    }}"""
    proto = model(text, wanted=np.array(5))
    session = InferenceSession(proto, device, store=False)
    for i in (2, 3):
        feeds = {"x": random(6), "i": np.array(i)}
        for ours, theirs in zip(session.run(None, feeds), by_onnxruntime(proto, feeds), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_conditions_of_loops_read_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[2, 3] x, int64 m, int64 most) => (float[2, 3] y) {
        yes = Constant <value = bool {1}> ()
        y = Loop (m, yes, x) <
            body = b (int64 i, bool c, float[2, 3] s) => (bool d, float[2, 3] t) {
                one = Constant <value = int64 {1}> ()
                next = Add(i, one)
                d = Less(next, most)
                t = Sin(s)
            }
        >
    }"""
    proto = model(text)
    session = InferenceSession(proto, device, store=False)
    feeds = {"x": random(2, 3), "m": np.array(9), "most": np.array(4)}
    session.run(None, feeds)
    reads = counted_reads(monkeypatch)
    (found,) = session.run(None, feeds)
    assert reads == [[(2, 3)]]
    np.testing.assert_allclose(found, by_onnxruntime(proto, feeds)[0], rtol=1e-5, atol=1e-6)


def test_what_is_read_is_waited_for_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of a host node, and results of the network."""
    text = """g (float[n, 4] b, float[n] s, float[n] w) => (int64[k, 3] y, float[n] z, float[n] e) {
        scores = Exp(s) boxes = Abs(b) z = Neg(w) e = Identity(scores)
        many = Unsqueeze(scores, ends) all = Unsqueeze(boxes, first)
        y = NonMaxSuppression(all, many, most)
    }"""
    proto = model(text, ends=np.array([0, 1]), first=np.array([0]), most=np.array([5]))
    session = InferenceSession(proto, device, store=False)
    feeds = {"b": random(6, 4), "s": random(6), "w": random(6)}
    session.run(None, feeds)
    reads = counted_reads(monkeypatch)
    found = session.run(None, feeds)
    assert reads == [[(1, 6, 4), (1, 1, 6)], [(6,), (6,)]]
    for ours, theirs in zip(found, by_onnxruntime(proto, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_inputs_from_which_such_outputs_follow() -> None:
    text = """g (float[n] x, int64 a, int64 b, int64 d) => (bool c, float[n] y, int64 e) {
        s = Size(x) t = Mul(s, a) c = Equal(t, b) f = Cast <to = 1> (d) y = Mul(x, f) g = Abs(d) e = Add(g, a)
    }"""
    graph = with_simple_bodies(simplify(import_model(model(text), hosted=True)))
    assert deciding_inputs(graph) == {"a", "b"}
