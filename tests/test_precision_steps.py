"""The mixed-precision pass without a device: what is stored in 16 bits, and what the programs then say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import by_numpy, by_onnxruntime, copies, model, planned, random
from targets import CPU, GPU

from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.precision import factors
from tilewright.dsl.program import Cast, Program
from tilewright.dsl.target import Target
from tilewright.dsl.text import program_text
from tilewright.graph import passes
from tilewright.graph.calls import Network, Role
from tilewright.graph.fusion import fuse
from tilewright.graph.layout import lay_out
from tilewright.graph.onnx_import import import_model
from tilewright.graph.precision import NarrowConstants, narrowed
from tilewright.graph.ranges import Ranges, exceeds
from tilewright.graph.steps import steps_of
from tilewright.runtime.nvidia import matrix_unit

NARROW = pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=["fp16", "bf16"])


def narrow_network(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], dtype: DType, target: Target = CPU
) -> Network:
    graph = passes.simplify(import_model(proto))
    shapes = {v.name: feeds[v.name].shape for v in graph.inputs}
    steps = fuse(steps_of(passes.specialise(graph, shapes)))
    return lay_out(narrowed(steps, NarrowConstants(dtype)), target)


def stored(network: Network, role: Role) -> set[DType]:
    return {spec.dtype for spec in network.buffers.values() if spec.role is role}


def check(text: str, dtype: DType, error: float, opset: int = 17, **constants: np.ndarray) -> Network:
    """The network, within an error relative to the largest output, and with as many calls as in f32."""
    proto = model(text, opset, **constants)
    feeds = {v.name: random(*(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in proto.graph.input}
    network = narrow_network(proto, feeds, dtype)
    assert len(network.calls) == len(planned(proto, feeds).calls)
    assert stored(network, Role.INPUT) | stored(network, Role.OUTPUT) == {DType.F32}
    found = by_numpy(network, feeds)
    for name, expected in zip((o.name for o in proto.graph.output), by_onnxruntime(proto, feeds), strict=True):
        assert np.abs(found[name] - expected).max() <= error * np.abs(expected).max()
    return network


ERROR = {DType.F16: 4 * 2.0**-10, DType.BF16: 4 * 2.0**-7}
"""Of a network with a few values between its input and its output."""


@NARROW
def test_convolutions_store_narrow_and_keep_their_biases(dtype: DType) -> None:
    text = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv <pads = [1,1,1,1]> (x, w0, b0)
        r = Relu (a)
        y = Conv (r, w1)
    }"""
    network = check(text, dtype, ERROR[dtype], w0=random(6, 3, 3, 3), b0=random(6), w1=random(4, 6, 1, 1))
    assert stored(network, Role.TEMPORARY) == {dtype}
    constants = {tuple(s.shape): s.dtype for s in network.buffers.values() if s.role is Role.CONSTANT}
    assert constants == {(6, 3, 3, 3): dtype, (6,): DType.F32, (4, 6, 1, 1): dtype}
    with_tf32 = replace(GPU, matrix=matrix_unit((8, 0)))
    proto = model(text, w0=random(6, 3, 3, 3), b0=random(6), w1=random(4, 6, 1, 1))
    calls = narrow_network(proto, {"x": random(1, 3, 8, 8)}, dtype, with_tf32).calls
    first, second = (c.program for c in calls)
    assert (first.precision, second.precision) == ("tf32", "fp32")  # an input in f32 and nothing in f32
    for program in (first, second):  # what lies in memory is multiplied as it is
        assert f"f32({dtype.value}(" not in program_text(program)


@NARROW
def test_views_of_inputs_and_outputs_stay_f32(dtype: DType) -> None:
    text = """g (float[4,6] x) => (float[6,4] y, float[24] z) {
        a = Transpose <perm = [1,0]> (x)
        b = Relu (a)
        c = Mul (b, b)
        y = Add (c, b)
        t = Sigmoid (y)
        z = Reshape (t, flat)
    }"""
    network = check(text, dtype, ERROR[dtype], flat=np.array([24]))
    assert stored(network, Role.TEMPORARY) <= {dtype}


@NARROW
def test_joins_are_narrow_with_their_constants(dtype: DType) -> None:
    text = """g (float[1,3,8] x) => (float[1,4,5] y) {
        a = MatMul (x, w)
        b = Relu (a)
        c = Concat <axis = 1> (token, b)
        y = MatMul (c, v)
    }"""
    network = check(text, dtype, ERROR[dtype], w=random(8, 6), v=random(6, 5), token=random(1, 1, 6))
    assert stored(network, Role.TEMPORARY) == {dtype}
    assert copies(network) == copies(
        planned(model(text, w=random(8, 6), v=random(6, 5), token=random(1, 1, 6)), {"x": random(1, 3, 8)})
    )


@NARROW
def test_a_join_with_the_input_stays_f32(dtype: DType) -> None:
    text = """g (float[1,3,8] x) => (float[1,6,5] y) {
        a = MatMul (x, w)
        c = Concat <axis = 1> (x, a)
        y = MatMul (c, v)
    }"""
    network = check(text, dtype, ERROR[dtype], w=random(8, 8), v=random(8, 5))
    assert stored(network, Role.TEMPORARY) == {DType.F32}


@NARROW
def test_normalisations_and_softmax_are_f32_within(dtype: DType) -> None:
    text = """g (float[5,40] x) => (float[5,9] y) {
        a = MatMul (x, w)
        n = LayerNormalization <axis = -1> (a, scale, shift)
        s = Softmax <axis = -1> (n)
        y = MatMul (s, v)
    }"""
    constants = {"w": random(40, 30), "scale": random(30), "shift": random(30, seed=1), "v": random(30, 9)}
    network = check(text, dtype, ERROR[dtype], **constants)
    kinds = {t.dtype for c in network.calls for t in c.program.intermediates}
    assert kinds == {DType.F32}
    assert stored(network, Role.TEMPORARY) == {dtype}


@NARROW
def test_what_operators_of_several_kernels_leave_in_memory_is_narrow(dtype: DType) -> None:
    text = """g (float[1,2,6,5] x) => (float[1,2,14,12] y) {
        a = Relu (x)
        b = Resize <mode = "linear"> (a, none, scales)
        y = Pad <mode = "reflect"> (b, pads)
    }"""
    constants = {"none": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    network = check(text, dtype, ERROR[dtype], **constants, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    assert stored(network, Role.TEMPORARY) == {dtype}
    assert len(network.calls) > 3


def test_elements_that_are_only_moved_are_not_converted() -> None:
    text = """g (float[2,6,5] x) => (float[2,5,3] y) {
        a = Sigmoid (x)
        t = Transpose <perm = [0,2,1]> (a)
        f = Reshape (t, flat)
        y = MatMul (f, w)
    }"""
    network = check(text, DType.F16, ERROR[DType.F16], flat=np.array([2, 5, 6]), w=random(6, 3))
    for call in network.calls:
        if call.ops == ("Copy",):
            assert not any(isinstance(s.value, Cast) for s in call.program.statements)


def test_constants_are_converted_once_for_all_plans() -> None:
    narrow = NarrowConstants(DType.F16)
    array = random(4, 5)
    assert narrow.get(array) is narrow.get(array)
    assert narrow.get(array).dtype == np.float16
    assert narrow.get(np.float32([1e5])) is None
    assert narrow.get(np.float32([np.inf, np.nan])) is not None


@pytest.mark.parametrize(
    ("values", "f16", "bf16"),
    [
        ([65504.0], False, False),
        ([65519.0], False, False),
        ([65520.0], True, False),
        ([-1e9, 1.0], True, False),
        ([float(np.finfo(np.float32).min)], True, True),
        ([-np.inf, np.nan], False, False),
        ([], False, False),
    ],
)
def test_what_exceeds_a_type(values: list[float], f16: bool, bf16: bool) -> None:
    array = np.array(values, np.float32)
    assert exceeds(array, DType.F16) is f16
    assert exceeds(array, DType.BF16) is bf16


# --- ranges -----------------------------------------------------------------------------------------------------------


def wide(body: str, wide_inputs: tuple[str, ...] = (), dtype: DType = DType.F16) -> bool:
    text = f"op f(x[N,K], b[N,K], w[K,J], i[N,K]: i64) -> y:\n    {body}"
    program: Program = parse_op(text).specialise({"x": (3, 4), "b": (3, 4), "w": (4, 5), "i": (3, 4)})
    return "y" in Ranges.of(program, wide_inputs, dtype).wide


@pytest.mark.parametrize(
    "body",
    [
        "y = x + -1e9",
        "y = (1 - x) * -3.4e38",
        "y = where(x > 0, x, -1e9)",
        "y = max(x, 1e6)* 1e6",
        "y = f32(i)",
        "y = f32(i) * x",
        "y = x * x",
        "y = exp(x)",
        "y = pow(x, 3.5)",
        "y[n] = sum(k) x[n,k]",
        "y[n] = (sum(k) x[n,k] * x[n,k]) / 4",
        "y[n] = sum(k) where(k < n, x[n,k], 0)",
        "y[n] = sum(k) where(k == n, x[n,k] * 1e9, 0)",
        "t = x * 1e9\n    y = t - 1",
    ],
)
def test_wide_expressions(body: str) -> None:
    assert wide(body)


@pytest.mark.parametrize(
    "body",
    [
        "y = x + b",
        "y = min(max(x, -3.4e38), 3.4e38)",
        "y = x * sigmoid(x)",
        "y = tanh(x * 1e9)",
        "y = x > 1e9",
        "y = relu(x + 65000)",
        "y = f32(x > 0)",
        "y[n] = (sum(k) x[n,k]) / 4",
        "y[n] = max(k) x[n,k]",
        "y[n,j] = sum(k) x[n,k] * w[k,j]",
        "e[n,k] = exp(x[n,k])\n    y[n,k] = e[n,k] / sum(j) e[n,j]",
        "v[n] = sum(k) x[n,k] * x[n,k]\n    y[n,k] = x[n,k] / sqrt(v[n])",
        "v[n] = sum(k) x[n,k] * x[n,k]\n    y[n,k] = x[n,k] * 1e9 * (1 / sqrt(v[n]))",
        "v[n] = sum(k) x[n,k] * x[n,k]\n    y[n,k] = x[n,k] * 1e9 * rsqrt(v[n] + 1)",
        "y[n] = sum(k) where(k == n, x[n,k], 0)",
        "y = where(x < 0, expm1(x), x)",
    ],
)
def test_expressions_that_fit(body: str) -> None:
    assert not wide(body)


def test_wide_inputs_are_followed() -> None:
    assert wide("y = x + b", ("b",))
    assert wide("y = max(x, b)", ("x", "b"))
    assert not wide("y = max(x, b)", ("b",))
    assert not wide("y[n,j] = sum(k) x[n,k] * w[k,j]", ("x",))
    assert not wide("y = x - 1e9", dtype=DType.BF16)
    assert wide("y = x - 3.4e38", dtype=DType.BF16)


def test_wide_factors_are_not_rounded() -> None:
    text = """g (float[3,4] x) => (float[3,5] y) {
        a = Mul (x, big)
        t = Sigmoid (x)
        u = Add (a, t)
        r = ReduceMax <axes = [1], keepdims = 1> (u)
        v = Sub (u, r)
        y = MatMul (v, w)
    }"""
    proto = model(text, big=np.float32(1e8), w=random(4, 5))
    feeds = {"x": random(3, 4)}
    network = narrow_network(proto, feeds, DType.F16)
    product = network.calls[-1].program
    assert [f.dtype for s in product.statements for f in factors(s)] == [DType.F32, DType.F32]
    expected = by_onnxruntime(proto, feeds)[0]
    assert np.abs(by_numpy(network, feeds)["y"] - expected).max() <= 2.0**-10 * np.abs(expected).max()
