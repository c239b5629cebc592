"""Orders in memory and views pushed into the steps before them: no copies, fewer steps, equal numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from networks import by_numpy, by_onnxruntime, copies, model, planned, random

from tilewright.dsl.program import Tensor, contiguous_strides
from tilewright.graph.calls import Network
from tilewright.graph.orders import ordered_strides

ATTENTION = """g (float[2, 7, 12] x) => (float[2, 7, 12] y) {
    turned = Transpose <perm = [1, 0, 2]> (x)
    both = MatMul (turned, wq)
    heads = Reshape (both, by_head)
    merged = Transpose <perm = [1, 0, 2]> (heads)
    q = Reshape (merged, split_shape)
    k = Transpose <perm = [0, 1, 3, 2]> (q)
    product = MatMul (q, k)
    scores = Softmax <axis = 3> (product)
    found = MatMul (scores, q)
    back = Transpose <perm = [2, 0, 1, 3]> (found)
    rows = Reshape (back, row_shape)
    out = Gemm (rows, wo, bias)
    apart = Reshape (out, apart_shape)
    home = Transpose <perm = [1, 0, 2]> (apart)
    y = Add (home, x)
}"""
"""Self-attention as exporters write it: positions outermost, heads merged with the batch and split again."""


def check(text: str, feeds: Mapping[str, np.ndarray], **constants: np.ndarray) -> Network:
    """The planned network, interpreted by NumPy, gives onnxruntime's numbers."""
    proto = model(text, 17, **constants)
    network = planned(proto, feeds)
    found = by_numpy(network, feeds)
    for value, expected in zip(proto.graph.output, by_onnxruntime(proto, feeds), strict=True):
        np.testing.assert_allclose(found[value.name], expected, rtol=1e-4, atol=1e-4)
    return network


def attention() -> Network:
    shapes = {"by_head": (7, 6, 4), "split_shape": (2, 3, 7, 4), "row_shape": (14, 12), "apart_shape": (7, 2, 12)}
    return check(
        ATTENTION,
        {"x": random(2, 7, 12)},
        wq=random(12, 12),
        wo=random(12, 12),
        bias=random(12),
        **{name: np.array(shape, np.int64) for name, shape in shapes.items()},
    )


def test_heads_take_no_copies() -> None:
    assert copies(attention()) == 0


def test_a_residual_sum_behind_views_is_an_epilogue() -> None:
    network = attention()
    assert network.calls[-1].ops == ("Gemm", "Add")


def test_rows_keep_the_order_of_what_they_are_made_from() -> None:
    """Batch and position are one run of rows although the model names them the other way round."""
    first = attention().calls[0].program
    (x,) = (t for t in first.inputs if t.shape == (7, 2, 12))
    assert x.strides == (12, 84, 1)
    assert first.outputs[0].strides == (12, 84, 1)


def test_orders_and_strides() -> None:
    assert ordered_strides((2, 3, 5), (0, 1, 2)) == contiguous_strides((2, 3, 5))
    assert ordered_strides((2, 3, 5), (1, 0, 2)) == (5, 10, 1)
    assert ordered_strides((2, 3, 5), (2, 0, 1)) == (3, 1, 6)


def test_views_stay_where_the_value_itself_is_wanted() -> None:
    """A value that is read beside the view, or given out, is made as it is."""
    text = """g (float[6, 4] x, float[3, 2, 4] z) => (float[3, 2, 4] y{more}) {{
        m = MatMul (x, w)
        r = Reshape (m, shape)
        y = Add (r, z)
        {also}
    }}"""
    feeds = {"x": random(6, 4), "z": random(3, 2, 4)}
    constants = {"w": random(4, 4), "shape": np.array([3, 2, 4], np.int64)}
    alone = check(text.format(more="", also=""), feeds, **constants)
    assert [c.ops for c in alone.calls] == [("MatMul", "Add")]
    given = check(text.format(more=", float[6, 4] m", also=""), feeds, **constants)
    assert [c.ops for c in given.calls] == [("MatMul",), ("Add",)]
    shared = check(text.format(more=", float[6, 4] o", also="o = Relu (m)"), feeds, **constants)
    assert len(shared.calls) == 3


def test_a_convolution_behind_a_reshape_keeps_its_windows() -> None:
    """An index that a window slides along cannot be split; the numbers stay right."""
    text = """g (float[2, 3, 6, 8] x, float[2, 4, 3, 2, 8] z) => (float[2, 4, 3, 2, 8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Reshape (c, shape)
        y = Add (r, z)
    }"""
    feeds = {"x": random(2, 3, 6, 8), "z": random(2, 4, 3, 2, 8)}
    network = check(text, feeds, w=random(4, 3, 3, 3), shape=np.array([2, 4, 3, 2, 8], np.int64))
    assert network.calls[0].ops == ("Conv",)


def test_tensor_of_a_step_that_splits_a_row() -> None:
    """Splitting the rows of a product reads its operand under the split shape."""
    text = """g (float[6, 4] x, float[2, 3, 4] z) => (float[2, 3, 4] y) {
        m = MatMul (x, w)
        r = Reshape (m, shape)
        t = Transpose <perm = [1, 0, 2]> (r)
        y = Add (t, z)
    }"""
    feeds = {"x": random(6, 4), "z": random(2, 3, 4)}
    network = check(text, feeds, w=random(4, 4), shape=np.array([3, 2, 4], np.int64))
    (call,) = network.calls
    x: Tensor = call.program.inputs[0]
    assert (x.shape, x.strides) == ((3, 2, 4), (8, 4, 1))


def test_windows_of_different_sizes_are_no_chain() -> None:
    """Two depthwise convolutions of one input that are added: each is a kernel, the sum an epilogue."""
    text = """g (float[2, 8, 9, 10] x) => (float[2, 8, 9, 10] y) {
        a = Conv <group = 8> (x, w1)
        b = Conv <group = 8, pads = [1, 1, 1, 1]> (x, w3)
        y = Add (a, b)
    }"""
    network = check(text, {"x": random(2, 8, 9, 10)}, w1=random(8, 1, 1, 1), w3=random(8, 1, 3, 3))
    assert [c.ops for c in network.calls] == [("Conv",), ("Conv", "Add")]
