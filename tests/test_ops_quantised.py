"""Quantised operators against ONNX's definitions in NumPy, bit for bit, and a quantised network by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, planned, random
from onnx import TensorProto, helper, numpy_helper
from targets import CPU

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.winograd import WINOGRAD
from tilewright.dsl.parse import parse_op
from tilewright.errors import TilewrightError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Arrays = dict[str, np.ndarray[Any, Any]]


def one_node(op: str, feeds: Arrays, outputs: dict[str, type], opset: int = 21, **attributes: Any) -> onnx.ModelProto:
    """A model of one node whose inputs are the feeds, in their order; a feed that is None is left out."""
    node = helper.make_node(op, [n if a is not None else "" for n, a in feeds.items()], list(outputs), **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
        if a is not None
    ]
    results = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), None) for n, t in outputs.items()
    ]
    graph = helper.make_graph([node], "g", inputs, results)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def run(
    device: Device, op: str, feeds: Arrays, outputs: dict[str, type], **attributes: Any
) -> list[np.ndarray[Any, Any]]:
    """What the session makes of one node."""
    proto = one_node(op, feeds, outputs, **attributes)
    session = InferenceSession(proto, device, store=False)
    return session.run(None, {n: a for n, a in feeds.items() if a is not None})


def integers(dtype: Any, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Uniform integers over the whole range of a type."""
    info = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def saturated(value: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Whole numbers in f64 as integers."""
    info = np.iinfo(dtype)
    return np.clip(value, info.min, info.max).astype(dtype)


# --- to and from integers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantise_per_tensor(dtype: Any, device: Device) -> None:
    """Ties go to even, what lies outside is cut, infinities too."""
    x = np.concatenate([random(300) * 1e3, np.arange(-9, 10) * 0.25, [np.inf, -np.inf, 1e38]]).astype(np.float32)
    scale, zero = np.array(0.5, np.float32), np.array(3, dtype)
    found = run(device, "QuantizeLinear", {"x": x, "s": scale, "z": zero}, {"y": dtype})[0]
    np.testing.assert_array_equal(found, saturated(np.rint(np.float64(x / scale)) + 3, dtype))


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 7), 1), ((4, 9), -1), ((0, 3), 1), ((1, 1, 6), 0)])
def test_quantise_along_an_axis_and_back(shape: tuple[int, ...], axis: int, device: Device) -> None:
    size = shape[axis]
    scale, zero = np.abs(random(size, seed=1)) + 0.01, integers(np.int8, size, seed=2) // 4
    wide = [1] * len(shape)
    wide[axis] = size
    s, z = scale.reshape(wide), zero.reshape(wide)
    x = random(*shape) * 9
    found = run(device, "QuantizeLinear", {"x": x, "s": scale, "z": zero}, {"y": np.int8}, axis=axis)[0]
    np.testing.assert_array_equal(found, saturated(np.rint(np.float64(x / s)) + z, np.int8))
    back = run(device, "DequantizeLinear", {"x": found, "s": scale, "z": zero}, {"y": np.float32}, axis=axis)[0]
    np.testing.assert_array_equal(back, (found.astype(np.float32) - z) * s)


@pytest.mark.parametrize(("shape", "axis", "block"), [((4, 10, 3), 1, 4), ((6, 5), 0, 2), ((3, 7), 1, 7)])
def test_blocks(shape: tuple[int, ...], axis: int, block: int, device: Device) -> None:
    few = tuple(-(-n // block) if d == axis else n for d, n in enumerate(shape))
    scale, zero = np.abs(random(*few, seed=1)) + 0.01, integers(np.uint8, *few, seed=2)
    s, z = (np.repeat(a, block, axis).take(range(shape[axis]), axis) for a in (scale, zero))
    x = random(*shape) * 9
    more: Any = {"axis": axis, "block_size": block}
    found = run(device, "QuantizeLinear", {"x": x, "s": scale, "z": zero}, {"y": np.uint8}, **more)[0]
    np.testing.assert_array_equal(found, saturated(np.rint(np.float64(x / s)) + z, np.uint8))
    back = run(device, "DequantizeLinear", {"x": found, "s": scale, "z": zero}, {"y": np.float32}, **more)[0]
    np.testing.assert_array_equal(back, (found.astype(np.float32) - z) * s)


def test_precision_of_the_quotient(device: Device) -> None:
    """An f16 scale rounds the quotient to f16, unless `precision` says otherwise."""
    x, scale = (random(500) * 900).astype(np.float16), np.array(0.7, np.float16)
    feeds = {"x": x, "s": scale, "z": np.array(0, np.int16)}
    found = run(device, "QuantizeLinear", feeds, {"y": np.int16}, opset=23)[0]
    np.testing.assert_array_equal(found, np.rint(x / scale).astype(np.int16))
    found = run(device, "QuantizeLinear", feeds, {"y": np.int16}, opset=23, precision=TensorProto.FLOAT)[0]
    np.testing.assert_array_equal(found, np.rint(x.astype(np.float32) / np.float32(scale)).astype(np.int16))


def test_dequantised_i32_and_other_outputs(device: Device) -> None:
    x = np.array([0, -5, 123456789, -(2**31), 2**31 - 1], np.int32)
    scale = np.array(0.3, np.float32)
    found = run(device, "DequantizeLinear", {"x": x, "s": scale}, {"y": np.float32})[0]
    np.testing.assert_array_equal(found, x.astype(np.float32) * scale)
    half = integers(np.uint16, 50)
    feeds = {"x": half, "s": np.array(1e-3, np.float32), "z": np.array(30000, np.uint16)}
    more: Any = {"opset": 23, "output_dtype": TensorProto.FLOAT16}
    found = run(device, "DequantizeLinear", feeds, {"y": np.float16}, **more)[0]
    wanted = (half.astype(np.float32) - 30000) * np.float32(1e-3)
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_scales_that_do_not_fit_are_an_error(device: Device) -> None:
    with pytest.raises(TilewrightError, match="QuantizeLinear"):
        run(device, "QuantizeLinear", {"x": random(3, 4), "s": np.abs(random(5))}, {"y": np.uint8}, axis=1)


@pytest.mark.parametrize("low", [-3.0, 2.0, -9.0])
def test_dynamic_quantisation(low: float, device: Device) -> None:
    x = (np.abs(random(7, 9)) + np.float32(low)).astype(np.float32)
    outputs = {"y": np.uint8, "s": np.float32, "z": np.uint8}
    found = run(device, "DynamicQuantizeLinear", {"x": x}, outputs)
    high, below = max(x.max(), np.float32(0)), min(x.min(), np.float32(0))
    scale = np.float32(high - below) / np.float32(255)
    zero = np.rint(np.clip(-below / scale, 0, 255))
    np.testing.assert_allclose(found[1], scale, rtol=3e-7, atol=0)  # OpenCL lets division be off by 2.5 units
    np.testing.assert_array_equal(found[2], np.uint8(zero))
    np.testing.assert_array_equal(found[0], saturated(np.rint(np.float64(x / scale)) + zero, np.uint8))


def test_dynamic_quantisation_of_zeros(device: Device) -> None:
    outputs = {"y": np.uint8, "s": np.float32, "z": np.uint8}
    found = run(device, "DynamicQuantizeLinear", {"x": np.zeros(4, np.float32)}, outputs)
    np.testing.assert_array_equal(found[0], np.zeros(4, np.uint8))
    assert found[1] == np.float32(1) / np.float32(255)
    assert found[2] == 0


# --- products ---------------------------------------------------------------------------------------------------------

MATRICES = {
    "per tensor": ((37, 50), (50, 21), (), ()),
    "rows and columns": ((5, 8), (8, 3), (5,), (3,)),
    "batches, one of them repeated": ((4, 3, 6, 7), (3, 7, 9), (1,), (3, 1, 9)),
    "rows of batches": ((2, 5, 4), (2, 4, 6), (2, 5, 1), ()),
    "nothing to sum": ((3, 0), (0, 2), (), ()),
    "one of each": ((1, 1), (1, 1), (), ()),
}
"""Shapes of a, b and of their scales and zero points."""


def wide(a: np.ndarray[Any, Any], along: int) -> np.ndarray[Any, Any]:
    """Zero points or scales per row (along 0) or column, so that they broadcast over matrices."""
    if a.ndim == 1 and a.size > 1:
        return a[:, None] if along == 0 else a
    return a.reshape(()) if a.size == 1 else a


@pytest.mark.parametrize("name", MATRICES)
def test_integer_products(name: str, device: Device) -> None:
    left, right, per_row, per_column = MATRICES[name]
    a, b = integers(np.uint8, *left), integers(np.int8, *right)
    za, zb = integers(np.uint8, *per_row, seed=1), integers(np.int8, *per_column, seed=2)
    found = run(device, "MatMulInteger", {"a": a, "b": b, "za": za, "zb": zb}, {"y": np.int32})[0]
    wanted = (a.astype(np.int32) - wide(za, 0)) @ (b.astype(np.int32) - wide(zb, 1))
    np.testing.assert_array_equal(found, wanted)
    found = run(device, "MatMulInteger", {"a": a, "b": b}, {"y": np.int32})[0]
    np.testing.assert_array_equal(found, a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("name", MATRICES)
def test_quantised_products(name: str, dtype: Any, device: Device) -> None:
    left, right, per_row, per_column = MATRICES[name]
    a, b = integers(dtype, *left), integers(np.int8, *right)
    za, zb = integers(dtype, *per_row, seed=1), integers(np.int8, *per_column, seed=2)
    sa, sb = np.float32(0.01) + np.abs(random(*per_row)), np.float32(0.01) + np.abs(random(*per_column))
    sy, zy = np.array(3.7, np.float32), np.array(11, dtype)
    sa, sb = np.asarray(sa, np.float32), np.asarray(sb, np.float32)
    feeds = {"a": a, "sa": sa, "za": za, "b": b, "sb": sb, "zb": zb, "sy": sy, "zy": zy}
    found = run(device, "QLinearMatMul", feeds, {"y": dtype}, opset=21)[0]
    total = (a.astype(np.int32) - wide(za, 0)) @ (b.astype(np.int32) - wide(zb, 1))
    factor = (wide(sa, 0) * wide(sb, 1)).astype(np.float32) / sy
    np.testing.assert_array_equal(found, saturated(np.rint(total * np.float64(factor)) + 11, dtype))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 5, 9, 8), (7, 5, 3, 3), {}),
    "padded on one side, strided": ((1, 3, 7, 10), (4, 3, 3, 2), {"pads": [2, 0, 1, 3], "strides": [1, 2]}),
    "groups": ((2, 6, 6, 5), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise, dilated": ((1, 4, 9, 9), (4, 1, 3, 3), {"group": 4, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    "one dimension": ((2, 3, 11), (2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2]}),
    "no image": ((0, 3, 5, 5), (2, 3, 2, 2), {}),
}


def float_convolution(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], attributes: dict[str, Any]) -> Any:
    """A convolution of small whole numbers by onnxruntime; exact, as every sum is below 2^24."""
    n = "a, b, c, d"[: 3 * x.ndim - 2]
    proto = model(
        f"g (float[{', '.join(map(str, x.shape))}] x, float[{', '.join(map(str, w.shape))}] w) => (float[{n}] y) "
        "{ y = Conv(x, w) }"
    )
    proto.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return by_onnxruntime(proto, {"x": x.astype(np.float32), "w": w.astype(np.float32)})[0].astype(np.int32)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_integer_convolutions(name: str, device: Device) -> None:
    """What lies in the frame counts as the zero point."""
    image, weights, attributes = CONVOLUTIONS[name]
    x, w = integers(np.uint8, *image), integers(np.int8, *weights)
    zx, zw = np.array(77, np.uint8), integers(np.int8, weights[0], seed=3)
    column = zw.reshape(-1, *[1] * (len(weights) - 1))
    found = run(device, "ConvInteger", {"x": x, "w": w, "zx": zx, "zw": zw}, {"y": np.int32}, **attributes)[0]
    wanted = float_convolution(x.astype(np.int32) - 77, w.astype(np.int32) - column, attributes)
    np.testing.assert_array_equal(found, wanted)
    found = run(device, "ConvInteger", {"x": x, "w": w}, {"y": np.int32}, **attributes)[0]
    np.testing.assert_array_equal(found, float_convolution(x, w, attributes))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_with_constant_zero_points(name: str, device: Device) -> None:
    """The frame is then what reads outside the image give."""
    image, weights, attributes = CONVOLUTIONS[name]
    x, w, zx = integers(np.int8, *image), integers(np.int8, *weights), np.array([-5], np.int8)
    proto = one_node("ConvInteger", {"x": x, "w": w, "zx": zx}, {"y": np.int32}, **attributes)
    proto.graph.initializer.extend([numpy_helper.from_array(zx, "zx"), numpy_helper.from_array(w, "w")])
    found = InferenceSession(proto, device, store=False).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, float_convolution(x.astype(np.int32) + 5, w, attributes))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_quantised_convolutions(name: str, device: Device) -> None:
    image, weights, attributes = CONVOLUTIONS[name]
    filters = weights[0]
    x, w, bias = integers(np.uint8, *image), integers(np.int8, *weights), integers(np.int16, filters).astype(np.int32)
    zx, zw = np.array(77, np.uint8), np.zeros(filters, np.int8)
    sx, sw, sy = np.array(0.02, np.float32), np.abs(random(filters)) + np.float32(0.01), np.array(2.5, np.float32)
    feeds = {"x": x, "sx": sx, "zx": zx, "w": w, "sw": sw, "zw": zw, "sy": sy, "zy": np.array(9, np.uint8), "b": bias}
    found = run(device, "QLinearConv", feeds, {"y": np.uint8}, opset=21, **attributes)[0]
    channel = (-1, *[1] * (len(image) - 2))
    total = float_convolution(x.astype(np.int32) - 77, w, attributes) + bias.reshape(channel)
    factor = np.float64(sx * sw / sy).reshape(channel)
    np.testing.assert_array_equal(found, saturated(np.rint(total * factor) + 9, np.uint8))


NETWORK = """g (float[N, 6, 9, 10] x) => (float[N, 4] y) {
    zero = Constant <value = uint8 {120}> ()
    signed = Constant <value = int8 {0}> ()
    one = Constant <value = float {0.03}> ()
    two = Constant <value = float {0.05}> ()
    three = Constant <value = float {0.02}> ()
    q = QuantizeLinear (x, one, zero)
    d = DequantizeLinear (q, one, zero)
    w = DequantizeLinear <axis = 0> (kernel, scales, zeros)
    c = Conv <pads = [1, 1, 1, 1]> (d, w, b)
    r = Relu (c)
    q2 = QuantizeLinear (r, two, zero)
    d2 = DequantizeLinear (q2, two, zero)
    p = GlobalAveragePool (d2)
    f = Flatten (p)
    q3 = QuantizeLinear (f, three, zero)
    d3 = DequantizeLinear (q3, three, zero)
    v = DequantizeLinear (matrix, three, signed)
    m = MatMul (d3, v)
    q4 = QuantizeLinear (m, two, zero)
    y = DequantizeLinear (q4, two, zero)
}"""


def test_quantised_network_runs_as_by_onnxruntime(device: Device) -> None:
    """Sums of another order may tip a number that lies at the middle of two steps, by one step."""
    proto = model(
        NETWORK,
        13,
        kernel=integers(np.int8, 8, 6, 3, 3),
        scales=np.abs(random(8)) / 100 + np.float32(1e-3),
        zeros=np.zeros(8, np.int8),
        b=random(8),
        matrix=integers(np.int8, 8, 4),
    )
    x = {"x": random(2, 6, 9, 10)}
    wanted = by_onnxruntime(proto, x)[0]
    found = InferenceSession(proto, device, store=False).run(None, x)[0]
    assert np.abs(found - wanted).max() <= 0.05 * 1.001
    assert (found != wanted).mean() <= 0.25
    ops = [op for call in planned(proto, x).calls for op in call.ops]
    assert ops.count("DequantizeLinear") == 3  # weights are folded; the matrices are multiplied as integers
    assert "QLinearMatMul" in ops


@pytest.mark.parametrize(
    "kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2]
)
def test_weights_of_types_that_only_files_have_are_folded(kind: int, device: Device) -> None:
    """Weights of 4 or 8 bits become floats when the network is read; nothing of it is left to compute."""
    proto = model(
        """g (float[N, 6] x) => (float[N, 5] y) {
            d = DequantizeLinear <axis = 1> (w, s)
            y = MatMul (x, d)
        }""",
        21,
        s=np.abs(random(5)),
    )
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    w = (np.arange(30).reshape(6, 5) % 8).astype(dtype)
    proto.graph.initializer.append(helper.make_tensor("w", kind, w.shape, w.astype(np.float32)))
    x = {"x": random(3, 6)}
    session = InferenceSession(proto, device, store=False)
    np.testing.assert_allclose(session.run(None, x)[0], x["x"] @ (w.astype(np.float32) * np.abs(random(5))), 1e-5, 1e-5)
    assert len(session.plan(x).calls) == 1


@pytest.mark.parametrize("depth", [60, 1501])
def test_products_are_exact_in_floats_or_past_them(depth: int, device: Device) -> None:
    """Sums that f32 holds are made in f32; the others reach odd numbers of 26 bits, which it lacks."""
    a = np.full((3, depth), 255, np.uint8)
    b = np.full((depth, 5), 127, np.int8)
    b[0] = np.arange(5)
    found = run(device, "MatMulInteger", {"a": a, "b": b}, {"y": np.int32})[0]
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64))


def test_exact_convolutions_are_not_computed_by_tiles() -> None:
    """What Winograd's tiles sum is rounded; a sum that becomes an integer at once is meant to be exact."""
    text = """op conv(x[1,16,20,20]: u8, w[16,16,3,3]: i8) -> y[1,16,18,18]: f32:
        y[n,o,p,q] = 0.5 * KIND(sum(c,r,s) f32(x[n,c,p+r,q+s]) * f32(w[o,c,r,s]))"""
    shapes, types = {"x": (1, 16, 20, 20), "w": (16, 16, 3, 3)}, {"x": DType.U8, "w": DType.I8}
    whole, floats = (parse_op(text.replace("KIND", t)).specialise(shapes, types) for t in ("i32", "f32"))
    assert "whole numbers" in str(WINOGRAD.refusal(whole, CPU))
    assert WINOGRAD.refusal(floats, CPU) is None
