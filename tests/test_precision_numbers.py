"""How exact each precision is: ops and small networks beside double precision, on every device."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, random

import tilewright as tw
from tilewright.dsl.precision import PRECISIONS
from tilewright.errors import InputError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

FACTOR = {"fp32": 0.0, "tf32": 2.0**-9, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""Largest relative error of a product of two narrow factors: twice half a unit in the last of 11 or 8 bits, twice a
whole unit where instructions for TF32 cut bits off."""
ROUNDED = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
F32 = 2.0**-24

GEMM = "op gemm(a[M,K], b[K,N]) -> c[M,N]: c[m,n] = sum(k) a[m,k] * b[k,n]"
CONV = """op conv(x[N,C,H,W], w[O,C,R,S]) -> y[N,O,P,Q]:
    P = H
    Q = W
    y[n,o,p,q] = sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s]
"""


def normal(*shape: int) -> np.ndarray:
    return random(*shape, seed=7)


def exact(text: str, arrays: list[np.ndarray], device: Device) -> np.ndarray:
    """The op's result in double precision."""
    result: np.ndarray = tw.op(text)(*(a.astype(np.float64) for a in arrays), device=device)
    return result


CASES = [
    (GEMM, [(65, 70), (70, 33)], 70),
    (GEMM, [(1, 300), (300, 17)], 300),
    (GEMM, [(5, 1), (1, 7)], 1),
    (GEMM, [(0, 4), (4, 3)], 4),
    (GEMM, [(3, 0), (0, 2)], 0),
    (CONV, [(2, 5, 9, 7), (6, 5, 3, 3)], 45),
]


@pytest.mark.parametrize(("text", "shapes", "length"), CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_contractions_stay_within_their_bound(
    text: str, shapes: list[tuple[int, ...]], length: int, precision: str, device: Device
) -> None:
    arrays = [normal(*shape) for shape in shapes]
    result = tw.op(text, precision=precision)(*arrays, device=device)
    assert result.dtype == np.float32
    wanted = exact(text, arrays, device)
    magnitude = exact(text, [np.abs(a) for a in arrays], device)
    if text == CONV and precision in ("fp32", "tf32"):  # fewer multiplications cost a few bits
        assert np.abs(result - wanted).max() <= (FACTOR[precision] + 1.6e-5) * np.abs(wanted).max()
        return
    allowed = (FACTOR[precision] + FACTOR[precision] ** 2 + length * F32) * magnitude
    assert np.all(np.abs(result - wanted) <= allowed)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sums_of_rounded_factors_are_f32(precision: str, device: Device) -> None:
    a, b = normal(33, 500), normal(500, 18)
    near = [x.astype(ROUNDED[precision]).astype(np.float32) for x in (a, b)]
    result = tw.op(GEMM, precision=precision)(a, b, device=device)
    magnitude = exact(GEMM, [np.abs(x) for x in near], device)
    assert np.all(np.abs(result - exact(GEMM, near, device)) <= 500 * F32 * magnitude)
    assert np.abs(result - exact(GEMM, [a, b], device)).max() > FACTOR[precision] / 16  # it did round


def test_devices_without_tf32_compute_it_as_fp32(device: Device) -> None:
    if device.target.matrix is not None:
        pytest.skip("this device has matrix instructions")
    a, b = normal(33, 500), normal(500, 18)
    plain, allowed = (tw.op(GEMM, precision=p)(a, b, device=device) for p in ("fp32", "tf32"))
    np.testing.assert_array_equal(plain, allowed)


def test_arrays_of_sixteen_bits_need_no_policy(device: Device) -> None:
    a, b = (x.astype(np.float16) for x in (normal(9, 64), normal(64, 5)))
    results = [tw.op(GEMM, precision=p)(a, b, device=device) for p in PRECISIONS]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_an_unknown_precision_lists_the_known_ones() -> None:
    message = "a precision is fp32, tf32, fp16 or bf16, not 'half'"
    with pytest.raises(InputError, match=message):
        tw.op(GEMM, precision="half")
    with pytest.raises(InputError, match=message):
        InferenceSession(model("g (float[1] x) => (float[1] y) { y = Relu (x) }"), precision="half")


# --- networks ---------------------------------------------------------------------------------------------------------

STORAGE = {"fp32": 2.0**-22, "tf32": 2.0**-10, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Unit rounding of what lies between two kernels."""


def convolutions() -> onnx.ModelProto:
    """Two convolutions with a residual sum and squeeze-and-excite, a mean and a classifier."""
    text = """g (float[2,3,11,9] x) => (float[2,10] y) {
        a = Conv <pads = [1,1,1,1]> (x, w0, b0)
        r = Relu (a)
        c = Conv <pads = [1,1,1,1], group = 8> (r, w1)
        m = GlobalAveragePool (c)
        e = Conv (m, w2)
        s = Sigmoid (e)
        d = Mul (c, s)
        t = Add (d, r)
        f = MaxPool <kernel_shape = [2,2], strides = [2,2]> (t)
        p = GlobalAveragePool (f)
        q = Flatten (p)
        y = Gemm <transB = 1> (q, w3, b3)
    }"""
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (10, 8), "b3": (10,)}
    return model(text, **{n: random(*s, seed=3) * np.float32(0.4) for n, s in shapes.items()})


def transformer() -> onnx.ModelProto:
    """Attention with a mask of the smallest f32, layer normalisation, and a feed-forward part."""
    text = """g (float[2,12,16] x, int64[2,12] mask) => (float[2,12,16] y) {
        q = MatMul (x, wq)
        k = MatMul (x, wk)
        v = MatMul (x, wv)
        kt = Transpose <perm = [0,2,1]> (k)
        s = MatMul (q, kt)
        scaled = Mul (s, quarter)
        m = Cast <to = 1> (mask)
        off = Sub (one, m)
        far = Mul (off, lowest)
        row = Unsqueeze (far, axis)
        masked = Add (scaled, row)
        p = Softmax <axis = -1> (masked)
        o = MatMul (p, v)
        z = Add (o, x)
        n = LayerNormalization <axis = -1> (z, scale, shift)
        h = MatMul (n, w1)
        g = Gelu (h)
        f = MatMul (g, w2)
        y = Add (f, n)
    }"""
    weights = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "w1": (16, 48), "w2": (48, 16)}
    constants = {n: random(*s, seed=5) * np.float32(0.25) for n, s in weights.items()}
    constants |= {"scale": np.ones(16, np.float32), "shift": random(16, seed=6), "axis": np.array([1])}
    constants |= {"quarter": np.float32(0.25), "one": np.float32(1), "lowest": np.finfo(np.float32).min}
    return model(text, 20, **{n: np.asarray(a) for n, a in constants.items()})


def feeds_of(name: str) -> dict[str, np.ndarray]:
    if name == "convolutions":
        return {"x": random(2, 3, 11, 9, seed=1)}
    mask = np.ones((2, 12), np.int64)
    mask[0, 7:] = 0
    mask[1] = 0  # a row that is masked altogether is a plain mean
    return {"x": random(2, 12, 16, seed=1), "mask": mask}


NETWORKS = {"convolutions": (convolutions, 6), "transformer": (transformer, 9)}
"""Each with the number of values that lie between its kernels, its input among them."""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_networks_stay_within_their_bound(name: str, precision: str, device: Device) -> None:
    make, values = NETWORKS[name]
    proto, feeds = make(), feeds_of(name)
    expected = by_onnxruntime(proto, feeds)[0]
    result = InferenceSession(proto, device, store=False, precision=precision).run(None, feeds)[0]
    assert result.dtype == expected.dtype
    error = np.abs(result - expected).max() / np.abs(expected).max()
    assert error <= values * (STORAGE[precision] + FACTOR[precision])
    if precision in ROUNDED:
        assert error > STORAGE[precision] / 16  # it did round


def test_other_element_types_are_left_alone(device: Device) -> None:
    text = """g (double[4,5] x, int32[4,5] n, float16[4,5] h) => (double[4,4] y, int32[4,5] m, float16[4,5] k) {
        t = Transpose <perm = [1,0]> (x)
        y = MatMul (x, t)
        m = Add (n, n)
        k = Relu (h)
    }"""
    feeds = {"x": random(4, 5).astype(np.float64), "n": np.full((4, 5), 70_001, np.int32)}
    feeds["h"] = random(4, 5, seed=2).astype(np.float16)
    proto = model(text)
    results = [InferenceSession(proto, device, store=False, precision=p).run(None, feeds) for p in ("fp32", "bf16")]
    for plain, narrow in zip(*results, strict=True):
        assert plain.dtype == narrow.dtype
        np.testing.assert_array_equal(plain, narrow)


def test_numbers_past_the_range_stay_what_they_are(device: Device) -> None:
    text = """g (float[3,4] x) => (float[3,4] y, float[3,4] z) {
        big = Mul (x, scale)
        t = Transpose <perm = [1,0]> (big)
        u = Transpose <perm = [1,0]> (t)
        y = Div (u, scale)
        s = Pow (x, two)
        r = ReduceMean <axes = [1], keepdims = 1> (s)
        z = Div (x, r)
    }"""
    constants = {"scale": np.float32(1e30), "two": np.float32(2)}
    proto = model(text, **{n: np.asarray(a) for n, a in constants.items()})
    x = random(3, 4) * np.float32(1000)
    expected = by_onnxruntime(proto, {"x": x})
    found = InferenceSession(proto, device, store=False, precision="fp16").run(None, {"x": x})
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 2.0**-10 * np.abs(theirs).max()
