"""If, Loop, Scan and SequenceMap against onnxruntime, with bodies that read the graph around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, random

from tilewright.errors import ModelError
from tilewright.graph import control
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.ir import verify
from tilewright.graph.onnx_import import import_model
from tilewright.graph.passes import simplify
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device


def agrees(device: Device, text: str, feeds: dict[str, Any], opset: int = 17, **constants: np.ndarray) -> None:
    """Every output is onnxruntime's, in type, sizes and numbers."""
    proto = model(text, opset, **constants)
    found = InferenceSession(proto, device, store=False).run(None, feeds)
    for ours, theirs in zip(found, by_onnxruntime(proto, feeds), strict=True):
        same(ours, theirs)


def same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
        return
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


CHOICE = """g (float[n, 5] x, bool c) => (float[a, b] y, float[d, e] z) {
    w = Exp(x)
    y, z = If (c) <
        then_branch = t () => (float[a, b] o, float[d, e] p) { o = Add(w, x) p = Identity(w) },
        else_branch = f () => (float[a, b] q, float[d, e] r) { q = Transpose(w) r = MatMul(x, k) }
    >
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_see_the_graph_around_them(device: Device, condition: bool) -> None:
    feeds = {"x": random(3, 5), "c": np.array(condition)}
    agrees(device, CHOICE, feeds, k=random(5, 2))


@pytest.mark.parametrize("condition", [True, False])
def test_a_known_condition_leaves_its_branch_alone(device: Device, condition: bool) -> None:
    text = CHOICE.replace(", bool c", "")
    proto = model(text, c=np.array(condition), k=random(5, 2))
    graph = with_simple_bodies(simplify(import_model(proto, hosted=True)))
    verify(graph)
    assert "If" not in graph.op_counts
    agrees(device, text, {"x": random(3, 5)}, c=np.array(condition), k=random(5, 2))


def test_branches_of_branches(device: Device) -> None:
    text = """g (float[n] x, bool c, bool d) => (float[n] y) {
        two = Constant <value = float {2.0}> ()
        y = If (c) <
            then_branch = t () => (float[n] o) {
                o = If (d) <
                    then_branch = tt () => (float[n] p) { p = Mul(x, two) },
                    else_branch = tf () => (float[n] q) { h = Exp(x) q = Mul(h, two) }
                >
            },
            else_branch = f () => (float[n] r) { r = Neg(x) }
        >
    }"""
    for c, d in ((True, True), (True, False), (False, True)):
        agrees(device, text, {"x": random(4), "c": np.array(c), "d": np.array(d)})


NESTED = """g (float[1, n] x, int64 rate) => (float[a, b] y, float[d, e] z) {
    c = Equal(rate, wanted)
    y, z = If (c) <
        then_branch = t () => (float[a, b] o, float[d, e] p) {
            h = Exp(x)
            size = Size(h)
            is_four = Equal(size, four)
            o, p = If (is_four) <
                then_branch = tt () => (float[a, b] q, float[d, e] r) { q = Squeeze(h, first) r = Identity(x) },
                else_branch = tf () => (float[a, b] u, float[d, e] v) { u = Identity(h) v = Unsqueeze(h, first) }
            >
        },
        else_branch = f () => (float[a, b] k, float[d, e] l) { k = Identity(x) m = Neg(x) l = Identity(m) }
    >
}"""


def without_types(graph: onnx.GraphProto) -> None:
    """Take the types of what bodies give away, as exporters leave them out."""
    for body in (a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH):
        without_types(body)
        for output in body.output:
            output.ClearField("type")


@pytest.mark.parametrize("rate", [8, 16])
@pytest.mark.parametrize("size", [4, 6])
def test_branches_whose_results_have_no_types(device: Device, rate: int, size: int) -> None:
    """They are no reason to compute anything on the host: the inner If is decided by sizes, the outer by the host."""
    proto = model(NESTED, wanted=np.array(16), four=np.array(4), first=np.array([0]))
    without_types(proto.graph)
    session = InferenceSession(proto, device, store=False)
    feeds = {"x": random(1, size), "rate": np.array(rate)}
    for ours, theirs in zip(session.run(None, feeds), by_onnxruntime(proto, feeds), strict=True):
        same(ours, theirs)
    assert [r.op.split()[0] for r in session.profile(feeds) if r.family == "host"] == ["Equal", "If"]


@pytest.mark.parametrize("condition", [True, False])
def test_results_without_types_may_be_sequences(device: Device, condition: bool) -> None:
    text = """g (float[3] x, bool c) => (seq(float[3]) s) {
        both = SequenceConstruct(x, x)
        s = If (c) <
            then_branch = t () => (seq(float[3]) o) { o = Identity(both) },
            else_branch = f () => (seq(float[3]) p) { e = Exp(x) p = SequenceInsert(both, e) }
        >
    }"""
    proto = model(text)
    without_types(proto.graph)
    (found,) = InferenceSession(proto, device, store=False).run(None, {"x": random(3), "c": np.array(condition)})
    same(found, by_onnxruntime(model(text), {"x": random(3), "c": np.array(condition)})[0])


LOOP = """g (float[2, 3] x, int64 m, bool go) => (float[2, 3] y, float[k, 2, 3] z) {
    y, z = Loop (m, go, x) <
        body = b (int64 i, bool c, float[2, 3] s) => (bool d, float[2, 3] t, float[2, 3] u) {
            r = ReduceMax <keepdims = 0> (s)
            d = Less(r, most)
            f = Cast <to = 1> (i)
            a = Add(s, x)
            t = Add(a, f)
            u = Exp(s)
        }
    >
}"""
MOST = np.array(20, np.float32)


@pytest.mark.parametrize(("count", "go"), [(3, True), (100, True), (0, True), (5, False), (1, True)])
def test_loops_end_by_count_or_condition(device: Device, count: int, go: bool) -> None:
    feeds = {"x": np.abs(random(2, 3)) / 4, "m": np.array(count), "go": np.array(go)}
    agrees(device, LOOP, feeds, most=MOST)


def test_counts_beyond_32_bits(device: Device) -> None:
    agrees(device, LOOP, {"x": np.abs(random(2, 3)), "m": np.array(2**40), "go": np.array(True)}, most=MOST)


def test_carried_values_may_grow(device: Device) -> None:
    text = """g (float[2, 3] x, int64 m) => (float[k, 3] y) {
        yes = Constant <value = bool {1}> ()
        y = Loop (m, yes, x) <
            body = b (int64 i, bool c, float[a, 3] s) => (bool d, float[e, 3] t) {
                d = Identity(c)
                n = Neg(x)
                t = Concat <axis = 0> (s, n)
            }
        >
        }"""
    agrees(device, text, {"x": random(2, 3), "m": np.array(3)})


def test_bodies_plans_are_kept_between_iterations_and_runs(device: Device) -> None:
    session = InferenceSession(model(LOOP, most=MOST), device, store=False)
    feeds = {"x": np.abs(random(2, 3)) / 4, "m": np.array(4), "go": np.array(True)}
    first = session.plans(feeds)
    assert len(first) > len(set(map(id, first)))
    assert set(map(id, session.plans(feeds))) == set(map(id, first))


def test_sequences_are_carried(device: Device) -> None:
    text = """g (float[4, 3] x, int64 m) => (seq(float[3]) s, float[k, 3] y) {
        yes = Constant <value = bool {1}> ()
        empty = SequenceEmpty <dtype = 1> ()
        s = Loop (m, yes, empty) <
            body = b (int64 i, bool c, seq(float[3]) p) => (bool d, seq(float[3]) q) {
                d = Identity(c)
                row = Gather <axis = 0> (x, i)
                e = Exp(row)
                q = SequenceInsert(p, e)
            }
        >
        y = ConcatFromSequence <axis = 0, new_axis = 1> (s)
    }"""
    agrees(device, text, {"x": random(4, 3), "m": np.array(3)})


SCAN = """g (float[2] s, float[5, 2] x, float[2, 5] w) => (float[2] t, float[5, 2] y, float[2, 5] z) {
    t, y, z = Scan <num_scan_inputs = 2, scan_input_directions = [0, 1], scan_input_axes = [0, 1],
                    scan_output_directions = [1, 0], scan_output_axes = [0, -1],
        body = b (float[2] a, float[2] p, float[2] q) => (float[2] c, float[2] e, float[2] f) {
            h = Mul(a, k)
            c = Add(h, p)
            e = Exp(q)
            f = Sub(c, q)
        }
    > (s, x, w)
}"""


def test_scan_walks_in_both_directions_and_along_axes(device: Device) -> None:
    agrees(device, SCAN, {"s": random(2), "x": random(5, 2), "w": random(2, 5)}, k=random(2, seed=3))


def test_scan_needs_lengths_that_agree(device: Device) -> None:
    text = SCAN.replace("float[2, 5] w", "float[2, n] w")
    session = InferenceSession(model(text, k=random(2)), device, store=False)
    with pytest.raises(ModelError, match="walks along have different lengths"):
        session.run(None, {"s": random(2), "x": random(5, 2), "w": random(2, 4)})


SCAN_8 = """g (int64[3] lengths, float[3, 2] s, float[3, 5, 2] x, float[3, 5, 1] w)
    => (float[3, 2] t, float[3, 5, 2] y) {
    t, y = Scan <num_scan_inputs = 2, directions = [0, 1],
        body = b (float[2] a, float[2] p, float[1] q) => (float[2] c, float[2] e) {
            c = Add(a, p)
            e = Mul(c, q)
        }
    > (lengths, s, x, w)
}"""


def test_scan_of_batches_with_lengths(device: Device) -> None:
    feeds = {"s": random(3, 2), "x": random(3, 5, 2), "w": random(3, 5, 1)}
    agrees(device, SCAN_8, {"lengths": np.array([2, 5, 4]), **feeds}, opset=8)
    session = InferenceSession(model(SCAN_8, 8), device, store=False)
    with pytest.raises(ModelError, match="lengths that do not fit sequences of 5"):
        session.run(None, {"lengths": np.array([2, 6, 4]), **feeds})


ENDLESS = """g (float[2] x, bool go) => (float[2] y, float[n, 2] all) { y, all = Loop (, go, x) <
    body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e, float[2] f) {
        d = CONDITION
        e = Neg(a)
        f = Identity(a)
    }>
}"""


@pytest.mark.parametrize("condition", ["Identity(c)", "Constant <value = bool {1}> ()"])
def test_loops_whose_condition_never_changes(condition: str, device: Device) -> None:
    session = InferenceSession(model(ENDLESS.replace("CONDITION", condition)), device, store=False)
    with pytest.raises(ModelError, match="has no trip count, and its condition never changes: it has no end"):
        session.run(None, {"x": random(2), "go": np.array(True)})
    assert np.array_equal(session.run(["y"], {"x": random(2), "go": np.array(False)})[0], random(2))


def test_what_iterations_give_fits_in_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ENDLESS.replace("CONDITION", "Greater(limit, i)")
    session = InferenceSession(model(text, limit=np.array(1000)), device, store=False)
    monkeypatch.setattr(control, "_memory", lambda: 100)
    with pytest.raises(ModelError, match=r"what 13 iterations of node .* give is more than this machine's memory"):
        session.run(None, {"x": random(2), "go": np.array(True)})


def test_iterations_whose_results_cannot_be_stacked(device: Device) -> None:
    text = """g (float[n] x, int64 m) => (float[n] y, float[k, l] z) {
        yes = Constant <value = bool {1}> ()
        y, z = Loop (m, yes, x) <
            body = b (int64 i, bool c, float[a] s) => (bool d, float[e] t, float[f] u) {
                d = Identity(c)
                t = Concat <axis = 0> (s, s)
                u = Identity(t)
            }
        >
    }"""
    session = InferenceSession(model(text), device, store=False)
    with pytest.raises(ModelError, match=r"\(Loop\) give has different shapes, \(4,\) and \(8,\)"):
        session.run(None, {"x": random(2), "m": np.array(2)})


def test_maps_over_sequences(device: Device) -> None:
    text = """g (float[a, 2] x, float[2] w) => (seq(float[b, 2]) y) {
        two = Constant <value = int64[2] {1, 2}> ()
        s = SplitToSequence <axis = 0> (x, two)
        y = SequenceMap <body = b (float[c, 2] p, float[2] q) => (float[c, 2] r) { t = Add(p, q) r = Mul(t, k) }> (s, w)
    }"""
    proto = model(text, k=random(2, seed=5))
    x, w = random(3, 2), random(2, seed=1)
    (found,) = InferenceSession(proto, device, store=False).run(None, {"x": x, "w": w})
    expected = (x + w) * random(2, seed=5)
    same(found, [expected[:1], expected[1:]])
