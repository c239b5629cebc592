"""Networks in several parts: where they are cut, values on the host, and what a session says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import by_onnxruntime, model, random
from onnx import TensorProto, helper

from tilewright.errors import InputError, ModelError, UnsupportedOperatorError
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.onnx_import import import_model
from tilewright.graph.parts import DevicePart, cut
from tilewright.graph.passes import simplify
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, asarray


def kinds(text: str, opset: int = 17, **constants: np.ndarray) -> list[str]:
    """The parts in order: how many nodes the device computes, or the operator of a host node."""
    graph = with_simple_bodies(simplify(import_model(model(text, opset, **constants), hosted=True)))
    return [str(len(p.graph.nodes)) if isinstance(p, DevicePart) else p.node.op for p in cut(graph)]


def agrees(device: Device, text: str, feeds: dict[str, Any], opset: int = 17, **constants: np.ndarray) -> None:
    proto = model(text, opset, **constants)
    session = InferenceSession(proto, device, store=False)
    for _ in range(2):
        for ours, theirs in zip(session.run(None, feeds), by_onnxruntime(proto, feeds), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# --- cutting ----------------------------------------------------------------------------------------------------------

TWO_SEARCHES = """g (float[n, 4] x, float[n, 4] w) => (float[a] y, float[b] z) {
    i = Exp(x)
    p = NonZero(i)
    q = Transpose(p)
    h = GatherND(i, q)
    y = Relu(h)
    j = Neg(w)
    r = NonZero(j)
    s = Transpose(r)
    k = GatherND(j, s)
    z = Relu(k)
}"""


def test_what_the_device_can_do_alone_is_one_part() -> None:
    assert kinds("g (float[n, 4] x) => (float[n, 4] y) { a = Exp(x) y = Relu(a) }") == ["2"]


def test_host_nodes_that_can_run_together_do() -> None:
    assert kinds(TWO_SEARCHES) == ["2", "NonZero", "NonZero", "6"]


def test_results_whose_size_depends_on_data(device: Device) -> None:
    agrees(device, TWO_SEARCHES, {"x": random(3, 4), "w": np.round(random(3, 4))})
    agrees(device, TWO_SEARCHES, {"x": random(0, 4), "w": random(0, 4)})


FROM_DATA = """g (float[2, 6] x) => (float[a, b] y) {
    r = ReduceMax <keepdims = 0> (x)
    s = Cast <to = 7> (r)
    rest = Constant <value = int64[1] {-1}> ()
    one = Constant <value = int64[1] {1}> ()
    t = Reshape(s, one)
    u = Concat <axis = 0> (t, rest)
    v = Exp(x)
    y = Reshape(v, u)
}"""


def test_sizes_that_are_computed_from_data(device: Device) -> None:
    assert kinds(FROM_DATA) == ["5", "1"]
    for size in (1, 3, 4):
        x = np.where(random(2, 6) < 0, np.float32(0.5), np.float32(size))
        agrees(device, FROM_DATA, {"x": x})


def test_shape_arithmetic_needs_no_part_of_its_own() -> None:
    text = """g (float[n, 4] x) => (float[a, b] y) {
        s = Shape(x)
        h = Exp(x)
        z = NonZero(h)
        f = Cast <to = 1> (z)
        rest = Constant <value = int64[1] {-1}> ()
        n = Slice(s, first, second)
        t = Concat <axis = 0> (two, rest)
        g1 = Reshape(f, t)
        u = Shape(g1)
        y = Reshape(g1, u)
    }"""
    one = {"first": np.array([0]), "second": np.array([1]), "two": np.array([2])}
    assert kinds(text, **one)[1] == "NonZero"
    assert len(kinds(text, **one)) == 3


BY_SIZE = """g (float[n, 1, 4] x) => (float[a, b] y) {
    s = Shape <start = 0, end = 1> (x)
    c = Equal(s, one)
    h = Exp(x)
    r = If (c) <
        then_branch = t () => (float[d, e] o) { o = Squeeze(h, middle) },
        else_branch = f () => (float[j, k] p) { q = Reshape(h, flat) p = Mul(q, w) }
    >
    y = Relu(r)
}"""


def test_an_if_that_sizes_decide_is_no_part_of_its_own(device: Device) -> None:
    constants = {"one": np.array([1]), "middle": np.array([1]), "flat": np.array([-1, 4]), "w": random(4)}
    assert kinds(BY_SIZE, **constants) == ["5"]
    session = InferenceSession(model(BY_SIZE, **constants), device, store=False)
    for n in (1, 3):
        x = {"x": random(n, 1, 4)}
        (expected,) = by_onnxruntime(model(BY_SIZE, **constants), x)
        np.testing.assert_allclose(session.run(None, x)[0], expected, rtol=1e-5)
        assert len(session.plan(x).launches) >= 1


def test_a_node_that_the_device_refuses_is_for_the_host(device: Device) -> None:
    text = "g (float[n, 3] x) => (float[n, 3] y, int64[m] i) { a = Exp(x) u, i = Unique <sorted = 1> (a) y = Neg(a) }"
    agrees(device, text, {"x": random(2, 3)})


def test_values_pass_between_parts_on_the_device(device: Device) -> None:
    text = """g (float[64, 64] x) => (float[64, 64] y) {
        a = Exp(x)
        m = ReduceMax <keepdims = 1> (a)
        z = NonZero(m)
        f = Cast <to = 1> (z)
        s = ReduceSum <keepdims = 0> (f)
        y = Add(a, s)
    }"""
    x = asarray(random(64, 64), device)
    (found,) = InferenceSession(model(text), device, store=False).run_on_device(None, {"x": x})
    np.testing.assert_allclose(found.numpy(), np.exp(random(64, 64)), rtol=1e-5)


# --- values of other types --------------------------------------------------------------------------------------------


def test_texts_go_in_and_out(device: Device) -> None:
    text = "g (string[n] s, float[n] x) => (string[n] t, float[n] y) { t = StringConcat(s, s) y = Exp(x) }"
    session = InferenceSession(model(text, 20), device, store=False)
    assert [v.type for v in session.get_inputs()] == ["tensor(string)", "tensor(float)"]
    texts, numbers = session.run(None, {"s": np.array(["a", "bc"]), "x": random(2)})
    assert texts.tolist() == ["aa", "bcbc"]
    np.testing.assert_allclose(numbers, np.exp(random(2)), rtol=1e-5)
    with pytest.raises(InputError, match="the input 's' should be texts, found float32"):
        session.run(None, {"s": random(2), "x": random(2)})
    with pytest.raises(InputError, match="should have 1 dimensions, found 2"):
        session.run(None, {"s": np.array([["a"]]), "x": random(2)})
    with pytest.raises(InputError, match="the output 't' cannot lie on the device"):
        session.run_on_device(None, {"s": np.array(["a", "bc"]), "x": random(2)})


def test_sequences_go_in_and_out(device: Device) -> None:
    text = """g (seq(float[n]) s, int64 at, float[m] x) => (seq(float[n]) t, float[n] y, int64 k) {
        h = Exp(x)
        t = SequenceInsert(s, h, at)
        e = SequenceAt(t, at)
        y = Neg(e)
        k = SequenceLength(t)
    }"""
    session = InferenceSession(model(text), device, store=False)
    assert session.get_inputs()[0].type == "seq(tensor(float))"
    feeds = {"s": [random(2), random(3)], "at": np.array(-1), "x": random(4)}
    sequence, last, count = session.run(None, feeds)
    assert [a.shape for a in sequence] == [(2,), (4,), (3,)]
    assert count == 3
    np.testing.assert_allclose(last, -sequence[-1], rtol=1e-6)
    with pytest.raises(InputError, match=r"the input 's' is a seq\(tensor\(float\)\): give a list"):
        session.run(None, feeds | {"s": random(2)})
    with pytest.raises(InputError, match="the input 's' should be float32, found int64"):
        session.run(None, feeds | {"s": [np.arange(3)]})


@pytest.mark.parametrize(("count", "place"), [(40, 4), (300, 4), (300, 40)])
def test_boxes_are_suppressed_as_onnxruntime_does(device: Device, count: int, place: int) -> None:
    """Few boxes, many, and many of which most are apart."""
    text = """g (float[b, n, 4] x, float[b, c, n] s) => (int64[k, 3] y) {
        y = NonMaxSuppression <center_point_box = 1> (x, s, most, overlap, lowest)
    }"""
    rng = np.random.default_rng(0)
    boxes = np.concatenate((rng.uniform(1, place, (2, count, 2)), rng.uniform(1, 4, (2, count, 2))), -1).astype(
        np.float32
    )
    for most, overlap, lowest in ((5, 0.3, 0.4), (100, 0.0, -1.0), (0, 0.5, 0.0), (100, 0.9, 2.0)):
        constants = {"most": np.array(most), "overlap": np.float32([overlap]), "lowest": np.float32(lowest)}
        scores = rng.uniform(0, 1, (2, 3, count)).astype(np.float32)
        proto = model(text, **{n: np.asarray(a) for n, a in constants.items()})
        (found,) = InferenceSession(proto, device, store=False).run(None, {"x": boxes, "s": scores})
        (expected,) = by_onnxruntime(proto, {"x": boxes, "s": scores})
        np.testing.assert_array_equal(found, expected)


def test_places_outside_of_sequences_are_errors(device: Device) -> None:
    text = """g (seq(float[n]) s, int64 at) => (float[n] y) { y = SequenceAt(s, at) }"""
    session = InferenceSession(model(text), device, store=False)
    with pytest.raises(ModelError, match=r"\(SequenceAt\) asks for position 2 of a sequence of 2"):
        session.run(None, {"s": [random(2), random(3)], "at": np.array(2)})
    with pytest.raises(ModelError, match=r"asks for position 0 of a sequence of 0"):
        session.run(None, {"s": [], "at": np.array(0)})


def test_optionals_go_in(device: Device) -> None:
    text = """g (optional(float[n]) o) => (bool y) { y = OptionalHasElement(o) }"""
    session = InferenceSession(model(text, 18), device, store=False)
    assert session.get_inputs()[0].type == "optional(tensor(float))"
    assert session.run(None, {"o": None})[0] == np.array(False)
    assert session.run(None, {"o": random(2)})[0] == np.array(True)


def test_values_that_only_pass_through(device: Device) -> None:
    text = """g (string[n] s, seq(float[n]) q, float[n] x) => (string[n] t, string[1] k, float[n] y) {
        t = Identity(s)
        k = Constant <value_strings = ["text"]> ()
        y = Exp(x)
    }"""
    session = InferenceSession(model(text), device, store=False)
    texts, constant, numbers = session.run(None, {"s": np.array(["a", "b"]), "q": [], "x": random(2)})
    assert texts.tolist() == ["a", "b"]
    assert constant.tolist() == ["text"]
    np.testing.assert_allclose(numbers, np.exp(random(2)), rtol=1e-5)


def test_bodies_whose_results_are_their_inputs(device: Device) -> None:
    text = """g (float[n] x, string[n] s, bool c) => (float[n] y, string[n] t) {
        e = Exp(x)
        y, t = If (c) <
            then_branch = a () => (float[n] o, string[n] r) { o = Identity(e) r = Identity(s) },
            else_branch = b () => (float[n] p, string[n] q) { p = Neg(e) q = StringConcat(s, s) }
        >
    }"""
    session = InferenceSession(model(text, 20), device, store=False)
    for c, sign, texts in ((True, 1, ["a", "b"]), (False, -1, ["aa", "bb"])):
        y, t = session.run(None, {"x": random(2), "s": np.array(["a", "b"]), "c": np.array(c)})
        np.testing.assert_allclose(y, sign * np.exp(random(2)), rtol=1e-5)
        assert t.tolist() == texts


# --- what a session says ----------------------------------------------------------------------------------------------


def test_profiles_show_host_nodes_in_order(device: Device) -> None:
    session = InferenceSession(model(TWO_SEARCHES), device, store=False)
    feeds = {"x": random(3, 4), "w": random(3, 4)}
    rows = session.profile(feeds)
    families = [r.family for r in rows]
    assert families.count("host") == 2
    assert families.index("host") > 0
    assert [r.op for r in rows if r.family == "host"] == ["NonZero p", "NonZero r"]
    assert all(r.microseconds > 0 for r in rows if r.family == "host")
    assert len(session.plans(feeds)) == 2
    with pytest.raises(InputError, match="runs in several parts, some of them on the host; use plans or profile"):
        session.plan(feeds)


def test_stages_of_all_parts_are_tuned_together(device: Device) -> None:
    session = InferenceSession(model(TWO_SEARCHES), device, store=False)
    stages = session.stages({"x": random(3, 4), "w": random(3, 4)})
    assert {2, 12, 24} >= {t.size for s in stages for t in s.program.outputs}
    assert sum(stages.values()) == sum(len(p.calls) for p in session.plans({"x": random(3, 4), "w": random(3, 4)}))


def test_nodes_that_cannot_be_folded_are_refused_once(device: Device) -> None:
    """The evaluator raises for such sizes, whenever it is asked."""
    text = "g (float[n] x) => (float[a] y) { r = Compress <axis = 7> (numbers, chosen) y = Add(x, r) }"
    constants = {"numbers": random(3), "chosen": np.array([True, False, True])}
    session = InferenceSession(model(text, **constants), device, store=False)
    with pytest.raises(ModelError, match=r"\(Compress\) (cannot be computed from|does not fit) its inputs"):
        session.run(None, {"x": random(2)})


def test_a_limit_of_what_the_host_computes(device: Device) -> None:
    session = InferenceSession(model(TWO_SEARCHES), device, store=False, host_limit=12)
    assert session.run(None, {"x": random(3, 4), "w": random(3, 4)})[0].shape == (12,)
    with pytest.raises(InputError, match=r"node 'p' \(NonZero\) would compute 16 floats on the host, more than the 12"):
        session.run(None, {"x": random(4, 4), "w": random(4, 4)})
    text = TWO_SEARCHES.replace("[n, 4]", "[5, 4]")
    with pytest.raises(UnsupportedOperatorError, match=r"2 nodes that cannot be run(?s:.*)'p': NonZero .*20 floats"):
        InferenceSession(model(text), device, store=False, host_limit=12)
    assert len(InferenceSession(model(text), device, store=False, host_limit=20).get_outputs()) == 2


def test_a_limit_is_looked_at_before_anything_is_computed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (int64 bins) => (float[a, b] y)
        <int64 length = {16}, int64 rate = {8000}, float low = {0}, float high = {4000}>
        { y = MelWeightMatrix(bins, length, rate, low, high) }"""
    session = InferenceSession(model(text), device, store=False, host_limit=40)
    assert session.run(None, {"bins": np.array(4)})[0].shape == (9, 4)
    monkeypatch.setattr("tilewright.graph.runner.evaluate_any", None)
    with pytest.raises(InputError, match="would compute 45 floats on the host, more than the 40 of host_limit"):
        session.run(None, {"bins": np.array(5)})


@pytest.mark.parametrize("step", ["0", "0.0", "nan"])
def test_ranges_without_an_end(step: str) -> None:
    kind, dtype = ("int64", np.int64) if step == "0" else ("float", np.float32)
    session = InferenceSession(model(f"g ({kind} a, {kind} b, {kind} s) => ({kind}[n] y) {{ y = Range(a, b, s) }}"))
    ends = {"a": np.array(0, dtype), "b": np.array(4, dtype)}
    with pytest.raises(InputError, match=r"\(Range\) has no end: it goes from 0 to 4 in steps of"):
        session.run(None, {**ends, "s": np.array(float(step)).astype(dtype)})


def test_all_nodes_that_nothing_can_run_are_listed() -> None:
    text = """g (float[n] x, bool c) => (float[n] y) {
        a = com.example.Fancy(x)
        y = If (c) <
            then_branch = t () => (float[n] o) { o = com.example.Plain(a) },
            else_branch = f () => (float[n] p) { p = Neg(a) }
        >
    }"""
    proto = model(text)
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedOperatorError, match=r"2 nodes that cannot be run(?s:.*)Fancy(?s:.*)Plain"):
        InferenceSession(proto, store=False)


def test_narrow_types_are_computed_on_the_host(device: Device) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN)
    back = helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT8E4M3FN, ["n"]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"]),
    ]
    graph = helper.make_graph([node, back], "g", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = InferenceSession(proto, device, store=False)
    narrow, wide = session.run(None, {"x": np.array([1, 1.1, 500, -3], np.float32)})
    assert session.get_outputs()[0].type == "tensor(float8e4m3fn)"
    assert narrow.dtype.name == "float8_e4m3fn"
    np.testing.assert_array_equal(wide, np.array([1, 1.125, 448, -3], np.float32))
