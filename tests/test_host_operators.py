"""What the host computes by NumPy, and scatters that are kept from it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, random

from tilewright.errors import ModelError
from tilewright.graph import suppression
from tilewright.graph.host_operators import HOST_OPERATORS, SELECTED_FROM
from tilewright.graph.ir import Node
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Rng = np.random.Generator
Feeds = dict[str, np.ndarray]


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    height, width = (min(a[d + 2], b[d + 2]) - max(a[d], b[d]) for d in (0, 1))
    common = max(height, np.float32(0)) * max(width, np.float32(0))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    with np.errstate(all="ignore"):
        return np.float32(common / (areas[0] + areas[1] - common))


def greedy(boxes: np.ndarray, scores: np.ndarray, most: int, limit: float) -> list[int]:
    """The definition, box by box."""
    left, chosen = list(np.argsort(-scores, kind="stable")), []
    while left and len(chosen) < most:
        chosen.append(int(left.pop(0)))
        left = [n for n in left if not overlap(boxes[chosen[-1]], boxes[n]) > np.float32(limit)]
    return chosen


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_few_of_many_are_those_that_sorting_puts_first(dtype: type, largest: int) -> None:
    """With many equals, infinities, several rows and another axis; NaN counts as the largest."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 40, (SELECTED_FROM + 3, 3)).astype(dtype)
    if dtype is np.float32:
        x[5], x[70], x[9, 0] = np.inf, -np.inf, np.nan
    node = Node("TopK", ("x", "k"), ("v", "i"), {"axis": 0, "largest": largest})
    for part, count in ((x, 90), (x[:, 1:], 90), (x[:, 1:], 1), (x[:, 1:], SELECTED_FROM // 4)):
        is_nan = np.isnan(part.astype(np.float64))
        key = np.where(is_nan, np.inf, part.astype(np.float64)) * (-1 if largest else 1)
        nan = is_nan * (-1 if largest else 1)
        wanted = np.stack([np.lexsort((k, n)) for k, n in zip(key.T, nan.T, strict=True)], 1)[:count]
        values, places = HOST_OPERATORS["TopK"](node, [part, np.array([count])])
        np.testing.assert_array_equal(places, wanted)
        np.testing.assert_array_equal(values, np.take_along_axis(part, wanted, 0))


@pytest.mark.parametrize("spread", [1, 4, 100])
@pytest.mark.parametrize("size", [0.0, 0.2, 0.7])
def test_suppression_is_the_greedy_choice(spread: int, size: float) -> None:
    """With boxes of no area, boxes that touch, equal scores, more boxes than a block, and one or many groups."""
    rng = np.random.default_rng([spread, int(size * 10)])
    for count, most, limit in (
        (0, 5, 0.5),
        (1, 5, 0.5),
        (150, 500, 0.3),
        (300, 500, 0.5),
        (150, 20, 0.5),
        (300, 140, 0.9),
        (150, 500, 0.0),
        (90, 0, 0.5),
    ):
        first = np.round(rng.random((count, 2)) * spread, 1).astype(np.float32)
        boxes = np.concatenate((first, first + np.round(rng.random((count, 2)) * size * 2, 1).astype(np.float32)), 1)
        scores = rng.integers(0, 20, count).astype(np.float32)
        chosen = suppression._suppressed(boxes, scores, most, limit, None)
        assert chosen.tolist() == greedy(boxes, scores, most, limit)


def test_boxes_that_are_no_numbers_are_compared_all_the_same() -> None:
    boxes = np.array([[0, 0, 1, 1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1], [0, 0, 1, 1]], np.float32)
    chosen = suppression._suppressed(boxes, np.float32([4, 3, 2, 1]), 9, 0.5, None)
    assert chosen.tolist() == [0, 1, 2]


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_elements_in_order(axis: int, largest: int) -> None:
    x = np.random.default_rng(0).integers(0, 9, (7, 5)).astype(np.float32)
    node = Node("TopK", ("x", "k"), ("v", "i"), {"axis": axis, "largest": largest})
    text = f"""g (float[7, 5] x, int64[1] k) => (float[a, b] v, int64[a, b] i) {{
        v, i = TopK<axis = {axis}, largest = {largest}>(x, k)
    }}"""
    found = HOST_OPERATORS["TopK"](node, [x, np.array([4])])
    for ours, theirs in zip(found, by_onnxruntime(model(text), {"x": x, "k": np.array([4])}), strict=True):
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    x[2, 2] = np.nan
    places = HOST_OPERATORS["TopK"](node, [x, np.array([x.shape[axis]])])[1].take(2, 1 - axis)
    assert places[0 if largest else -1] == 2
    with pytest.raises(ModelError, match=r"asks for 9 of [57] elements"):
        HOST_OPERATORS["TopK"](node, [x, np.array([9])])


def test_long_rows_are_ordered_on_the_host(device: Device) -> None:
    text = "g (float[2, 9000] x) => (float[2, 6] v, int64[2, 6] i) <int64[1] k = {6}> { v, i = TopK(x, k) }"
    x = random(2, 9000)
    found = InferenceSession(model(text), device, store=False).run(None, {"x": x})
    for ours, theirs in zip(found, by_onnxruntime(model(text), {"x": x}), strict=True):
        assert np.array_equal(ours, theirs)


UNPOOL = """g (float[2, 3, 4, 5] x) => (float[a, b, c, d] y) {
    p, i = MaxPool<kernel_shape = [2, 3], strides = [2, 1], pads = [0, 1, 0, 1]>(x)
    y = MaxUnpool<kernel_shape = [2, 3], strides = [2, 1], pads = [0, 1, 0, 1]>(p, i)
}"""


def test_pooling_is_undone(device: Device) -> None:
    x = random(2, 3, 4, 5)
    (found,) = InferenceSession(model(UNPOOL), device, store=False).run(None, {"x": x})
    (expected,) = by_onnxruntime(model(UNPOOL), {"x": x})
    assert np.array_equal(found, expected)
    node = Node("MaxUnpool", ("x", "i"), ("y",), {"kernel_shape": (2, 2), "strides": (2, 2)})
    with pytest.raises(ModelError, match="writes outside of its 16 elements"):
        HOST_OPERATORS["MaxUnpool"](node, [np.ones((1, 1, 2, 2), np.float32), np.full((1, 1, 2, 2), 16)])


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatters_of_rows(reduction: str, device: Device) -> None:
    """Written as scatters of elements, which the device would look for one by one."""
    text = f"""g (float[90, 7, 40] x, int64[60, 1, 1] rows, float[60, 7, 40] u) => (float[90, 7, 40] y)
        <int64[3] whole = {{60, 7, 40}}> {{
        i = Expand(rows, whole)
        y = ScatterElements<axis = 0, reduction = "{reduction}">(x, i, u)
    }}"""
    session = InferenceSession(model(text, 18), device, store=False)
    rows = np.random.default_rng(1).permutation(90)[:60].reshape(60, 1, 1) - 90
    feeds = {"x": random(90, 7, 40), "rows": rows, "u": random(60, 7, 40)}
    (found,) = session.run(None, feeds)
    np.testing.assert_allclose(found, by_onnxruntime(model(text, 18), feeds)[0], rtol=1e-6)
    assert {r.op.split()[0] for r in session.profile(feeds)} == {"ScatterND"}


def recurrent(op: str, gates: int, attributes: str = "", lens: bool = False) -> tuple[onnx.ModelProto, Feeds]:
    """A layer with more steps than the device is used for."""
    given = {"x": random(4100, 1, 2), "w": random(1, gates * 3, 2) / 4, "r": random(1, gates * 3, 3, seed=1) / 4}
    sizes = ", ".join(f"float[{','.join(map(str, a.shape))}] {name}" for name, a in given.items())
    body = f"y = {op} <hidden_size = 3{attributes}> (x, w, r{', , lens' if lens else ''})"
    proto = model(f"g ({sizes}) => (float[a, b, c, d] y) {{ {body} }}", **({"lens": np.int32([9])} if lens else {}))
    return proto, given


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_long_sequences_are_right_or_refused(op: str, gates: int) -> None:
    usual = {"RNN": '"Tanh"', "GRU": '"Sigmoid", "Tanh"', "LSTM": '"Sigmoid", "Tanh", "Tanh"'}[op]
    for attributes in ("", f", activations = [{usual}]", ', direction = "reverse"'):
        proto, feeds = recurrent(op, gates, attributes)
        y = InferenceSession(proto, store=False).run(None, feeds)[0]
        np.testing.assert_allclose(y, by_onnxruntime(proto, feeds)[0], rtol=1e-4, atol=1e-5)
    for attributes, lens in (
        (", clip = 0.1", False),
        (f", activations = [{usual.replace('Tanh', 'Softsign')}]", False),
        ("", True),
    ):
        proto, feeds = recurrent(op, gates, attributes, lens)
        with pytest.raises(ModelError, match=r"ignores its|activation|cannot be run"):
            InferenceSession(proto, store=False).run(None, feeds)
