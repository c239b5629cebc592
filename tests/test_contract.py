"""GEMM and convolution against float64, for random shapes, layouts and configurations, on both lowerings."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import run, shaped

from tilewright.dsl import families
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contract import CONTRACT
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape
from tilewright.errors import KernelError
from tilewright.runtime import Context, Device

THIN = "it uses every element of a matrix once: a reduction reads it as fast"
"""Products with a vector are left to `reduce`, but their kernels are right all the same."""
BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])


def check(
    ctx: Context,
    program: Program,
    shape: Shape,
    arrays: dict[str, np.ndarray],
    expected: np.ndarray,
    seed: int,
    count: int = 1,
) -> None:
    """The default and `count` random configurations give `expected` within the accumulated rounding."""
    if shape is Shape.CPU and ctx.device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    target = shaped(ctx.device.target, shape)
    assert CONTRACT.refusal(program, target) in (None, THIN)
    space = CONTRACT.space(program, target)
    rng = random.Random(seed)
    configurations = [CONTRACT.default(program, target)]
    configurations += [c for c in (space.sample(rng) for _ in range(count)) if c is not None]
    output = program.outputs[0]
    scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
    tolerance = {DType.F32: 2e-6, DType.F64: 1e-14, DType.F16: 2e-3, DType.BF16: 2e-3}.get(output.dtype, 0) * scale * 8
    for configuration in configurations:
        assert space.violated(configuration) is None
        try:
            found = run(ctx, CONTRACT, program, target, configuration, arrays)[output.name]
        except KernelError as error:
            # How many registers a kernel takes is the compiler's secret; a tuner records such a configuration as
            # out of resources, but the default must run.
            if "work-items in a work-group" in str(error) and configuration != configurations[0]:
                continue
            raise
        error = np.abs(found.astype(np.float64) - expected).max(initial=0)
        assert error <= tolerance, f"{configuration}: off by {error}"


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@BOTH_SHAPES
@given(
    m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 70),
    a=st.sampled_from(["a[m,k]", "a[k,m]"]), b=st.sampled_from(["b[k,n]", "b[n,k]"]), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=4)
def test_gemm_in_every_transposition(
    ctx: Context, shape: Shape, m: int, n: int, k: int, a: str, b: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"a[m,k]": (m, k), "a[k,m]": (k, m), "b[k,n]": (k, n), "b[n,k]": (n, k)}
    header = ", ".join(x.upper().replace("A[", "a[").replace("B[", "b[") for x in (a, b))
    text = f"op gemm({header}, bias[N]) -> c[M,N]:\n    c[m,n] = relu(sum(k) {a} * {b} + bias[n])"
    program = parse_op(text).specialise({"a": sizes[a], "b": sizes[b], "bias": (n,)})
    x, y, bias = normal(rng, *sizes[a]), normal(rng, *sizes[b]), normal(rng, n)
    left = (x if a == "a[m,k]" else x.T).astype(np.float64)
    right = (y if b == "b[k,n]" else y.T).astype(np.float64)
    expected = np.maximum(left @ right + bias, 0)
    check(ctx, program, shape, {"a": x, "b": y, "bias": bias}, expected, seed)


def convolution(
    x: np.ndarray,
    w: np.ndarray,
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """2-D convolution in float64; x is N,C,H,W, w is O,C/groups,R,S, pads are top, left, bottom, right."""
    top, left, bottom, right = pads
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, c, h, width = x.shape
    o, _, r, s = w.shape
    p = (h - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (width - dilation[1] * (s - 1) - 1) // stride[1] + 1
    y = np.zeros((n, groups, o // groups, p, q))
    grouped = x.reshape(n, groups, c // groups, h, width)
    weights = w.astype(np.float64).reshape(groups, o // groups, c // groups, r, s)
    for i in range(r):
        for j in range(s):
            rows = slice(i * dilation[0], i * dilation[0] + (p - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (q - 1) * stride[1] + 1, stride[1])
            y += np.einsum("ngchw,goc->ngohw", grouped[:, :, :, rows, columns], weights[:, :, :, i, j])
    return y.reshape(n, o, p, q)


CONVOLUTION = """
op conv(x[N,G,C,H,W], w[G,O,C,R,S], b[G,O]; sh: int, sw: int, dh: int, dw: int,
        top: int, left: int, bottom: int, right: int) -> y[N,G,O,P,Q]:
    P = (H + top + bottom - dh*(R-1) - 1) / sh + 1
    Q = (W + left + right - dw*(S-1) - 1) / sw + 1
    y[n,g,o,p,q] = max(sum(c,r,s) x[n,g,c, p*sh+r*dh-top, q*sw+s*dw-left] * w[g,o,c,r,s] + b[g,o], 0)
"""


@BOTH_SHAPES
@given(data=st.data())
@settings(max_examples=6)
def test_convolution_of_any_stride_dilation_padding_groups_and_layout(
    ctx: Context, shape: Shape, data: st.DataObject
) -> None:
    draw = data.draw
    n, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    c, o = draw(st.integers(1, 19)), draw(st.integers(1, 37))
    r, s = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    h = draw(st.integers(max(1, dilation[0] * (r - 1) + 1 - pads[0] - pads[2]), 14))
    w = draw(st.integers(max(1, dilation[1] * (s - 1) + 1 - pads[1] - pads[3]), 14))
    channels_last, seed = draw(st.booleans()), draw(st.integers(0, 10**6))
    names = ("sh", "sw", "dh", "dw", "top", "left", "bottom", "right")
    program = parse_op(CONVOLUTION).specialise(
        {"x": (n, groups, c, h, w), "w": (groups, o, c, r, s), "b": (groups, o)},
        parameters=dict(zip(names, (*stride, *dilation, *pads), strict=True)),
    )
    if channels_last:
        program = replace(
            program,
            inputs=tuple(replace(t, strides=last(t.shape)) if t.name == "x" else t for t in program.inputs),
            outputs=tuple(replace(t, strides=last(t.shape)) for t in program.outputs),
        )
    rng = np.random.default_rng(seed)
    arrays = {t.name: normal(rng, *t.shape) for t in program.inputs}
    refused = CONTRACT.refusal(program, ctx.device.target)
    if refused not in (None, THIN):
        assert refused is not None
        assert "two operands" in refused, refused
        return
    x, weights = arrays["x"].reshape(n, groups * c, h, w), arrays["w"].reshape(groups * o, c, r, s)
    expected = convolution(x, weights, stride, pads, dilation, groups) + arrays["b"].reshape(1, -1, 1, 1)
    check(ctx, program, shape, arrays, np.maximum(expected, 0).reshape(program.outputs[0].shape), seed)


@pytest.mark.parametrize("images", ["last", "first", "large"])
def test_groups_that_share_cache_lines_are_walked_first(ctx: Context, device: Device, images: str) -> None:
    """Where neighbouring groups read neighbouring channels, and all their weights stay in the cache."""
    if device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    groups, channels = (64, 96) if images == "large" else (3, 19)
    sizes = {"x": (2, groups, channels, 7, 5), "w": (groups, channels, channels, 3, 3), "b": (groups, channels)}
    names = ("sh", "sw", "dh", "dw", "top", "left", "bottom", "right")
    program = parse_op(CONVOLUTION).specialise(
        sizes, parameters=dict(zip(names, (2, 2, 1, 1, 1, 1, 1, 1), strict=True))
    )
    if images != "first":
        inputs = tuple(replace(t, strides=last(t.shape)) if t.name == "x" else t for t in program.inputs)
        outputs = tuple(replace(t, strides=last(t.shape)) for t in program.outputs)
        program = replace(program, inputs=inputs, outputs=outputs)
    configuration = CONTRACT.default(program, device.target)
    assert configuration["order"] == ("g" if images == "last" else "m")
    if images == "large":
        return
    rng = np.random.default_rng(12)
    arrays = {name: normal(rng, *size) for name, size in sizes.items()}
    found = run(ctx, CONTRACT, program, device.target, configuration, arrays)["y"]
    x, w = arrays["x"].reshape(2, -1, 7, 5), arrays["w"].reshape(-1, channels, 3, 3)
    expected = convolution(x, w, (2, 2), (1, 1, 1, 1), (1, 1), groups) + arrays["b"].reshape(1, -1, 1, 1)
    np.testing.assert_allclose(found, np.maximum(expected, 0).reshape(found.shape), rtol=0, atol=1e-4)


def last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of N,G,C,H,W with channels innermost."""
    _, g, c, h, w = shape
    return (g * c * h * w, c, 1, w * g * c, g * c)


@BOTH_SHAPES
def test_other_contractions(ctx: Context, shape: Shape) -> None:
    rng = np.random.default_rng(5)
    cases = [
        ("x[K], w[N,K]) -> y[N]: y[n] = sum(k) x[k] * w[n,k]", "k,nk->n", ((301,), (33, 301))),
        ("a[B,M,K],b[B,K,N]) -> y[B,M,N]: y[g,m,n] = sum(k) a[g,m,k]*b[g,k,n]", "bmk,bkn->bmn", ((3, 7, 9), (3, 9, 8))),
        ("a[B,M,K], b[K,N]) -> y[N,B,M]: y[n,g,m] = sum(k) a[g,m,k]*b[k,n]", "bmk,kn->nbm", ((3, 7, 9), (9, 24))),
        ("a[M,K,L], b[L,N,K]) -> y[M,N]: y[m,n] = sum(k,l) a[m,k,l]*b[l,n,k]", "mkl,lnk->mn", ((7, 5, 9), (9, 24, 5))),
    ]  # fmt: skip
    for text, formula, sizes in cases:
        definition = parse_op(f"op f({text}")
        names = [d.name for d in definition.inputs]
        program = definition.specialise(dict(zip(names, sizes, strict=True)))
        arrays = {name: normal(rng, *size) for name, size in zip(names, sizes, strict=True)}
        expected = np.einsum(formula, *(arrays[name].astype(np.float64) for name in names))
        check(ctx, program, shape, arrays, expected, seed=1, count=4)


@BOTH_SHAPES
def test_operands_may_be_expressions_and_the_epilogue_may_read_more(ctx: Context, shape: Shape) -> None:
    rng = np.random.default_rng(6)
    text = """op f(a[M,K], s[K], b[K,N], r[M,N]) -> y[M,N]:
    y[m,n] = tanh(sum(k) max(a[m,k] * s[k], 0) * (b[k,n] + 1)) + r[m,n]"""
    program = parse_op(text).specialise({"a": (13, 21), "s": (21,), "b": (21, 19), "r": (13, 19)})
    arrays = {t.name: normal(rng, *t.shape) / 4 for t in program.inputs}
    a, s, b, r = (arrays[n].astype(np.float64) for n in "asbr")
    check(ctx, program, shape, arrays, np.tanh(np.maximum(a * s, 0) @ (b + 1)) + r, seed=2, count=4)


@BOTH_SHAPES
@pytest.mark.parametrize("dtype", [DType.F64, DType.I32, DType.I64])
def test_other_element_types(ctx: Context, device: Device, shape: Shape, dtype: DType) -> None:
    if dtype is DType.F64 and not device.target.has_f64:
        pytest.skip("the device has no f64")
    rng = np.random.default_rng(7)
    program = parse_op("op f(a[M,K], b[K,N]) -> y[M,N]: y[m,n] = sum(k) a[m,k] * b[k,n]").specialise(
        {"a": (17, 29), "b": (29, 23)}, {"a": dtype, "b": dtype}
    )
    arrays = {t.name: (rng.standard_normal(t.shape) * 9).astype(dtype.numpy) for t in program.inputs}
    expected = arrays["a"].astype(np.float64) @ arrays["b"].astype(np.float64)
    check(ctx, program, shape, arrays, expected, seed=3, count=3)


@BOTH_SHAPES
@pytest.mark.parametrize("view", [0, 1])
def test_the_depth_in_parts(ctx: Context, device: Device, shape: Shape, view: int) -> None:
    text = """op linear(a[M,K], b[K,N], bias[N]) -> c[M,N]:
        c[m,n] = relu(sum(k) a[m,k] * b[k,n] + bias[n])"""
    if shape is Shape.CPU and device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    rng = np.random.default_rng(9)
    arrays = {"a": normal(rng, 17, 512), "b": normal(rng, 512, 23), "bias": normal(rng, 23)}
    program = parse_op(text).specialise({name: x.shape for name, x in arrays.items()})
    target = shaped(device.target, shape)
    space, default = CONTRACT.space(program, target), CONTRACT.default(program, target)
    assert next(p.values for p in space.parameters if p.name == "split_k") == (1, 2, 4, 8)
    configuration = Configuration.of({**default, "view": view, "split_k": 8})
    assert len(CONTRACT.lower(program, target, configuration).launches) >= 2
    found = run(ctx, CONTRACT, program, target, configuration, arrays)["c"]
    a, b, bias = (x.astype(np.float64) for x in arrays.values())
    np.testing.assert_allclose(found, np.maximum(a @ b + bias, 0), rtol=0, atol=1e-4)


@BOTH_SHAPES
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
@pytest.mark.parametrize("columns", [32, 37])
def test_half_precision_is_stored_and_single_precision_computed(
    ctx: Context, device: Device, shape: Shape, dtype: DType, columns: int
) -> None:
    text = """op linear(a[M,K], b[K,N], bias[N], skip[M,N]) -> c[M,N]:
        c[m,n] = relu(sum(k) a[m,k] * b[k,n] + bias[n]) + skip[m,n]"""
    rng = np.random.default_rng(3)
    sizes = {"a": (19, 300), "b": (300, columns), "bias": (columns,), "skip": (19, columns)}
    arrays = {name: normal(rng, *size).astype(dtype.numpy) for name, size in sizes.items()}
    a, b, bias, skip = (arrays[name].astype(np.float64) for name in sizes)
    program = parse_op(text).specialise(sizes, dict.fromkeys(sizes, dtype))
    assert program.outputs[0].dtype is dtype
    check(ctx, program, shape, arrays, np.maximum(a @ b + bias, 0) + skip, 5)


@BOTH_SHAPES
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_half_precision_convolution(ctx: Context, device: Device, shape: Shape, dtype: DType) -> None:
    text = """op conv(x[N,C,H,W], w[O,C,R,S]) -> y[N,O,P,Q]:
        y[n,o,p,q] = sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s]"""
    rng = np.random.default_rng(4)
    x, w = normal(rng, 2, 5, 9, 7).astype(dtype.numpy), normal(rng, 6, 5, 3, 3).astype(dtype.numpy)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("ncpqrs,ocrs->nopq", windows, w.astype(np.float64))
    program = parse_op(text).specialise({"x": x.shape, "w": w.shape}, {"x": dtype, "w": dtype})
    check(ctx, program, shape, {"x": x, "w": w}, expected, 6)


def test_refusals_say_why(device: Device) -> None:
    cases = {
        "op f(x[N]) -> y[N]: y[n] = x[n]": "no reduction",
        "op f(x[N,K]) -> y[N]: y[n] = max(k) x[n,k]": "max, not a sum",
        "op f(x[N,K]) -> y[N]: y[n] = sum(k) x[n,k]": "two operands",
        "op f(x[N,K], w[N,K]) -> y[N]: y[n] = sum(k) x[n,k] * w[n,k]": "two operands",
        "op f(x[N,K]) -> y[N]: y[n] = (sum(k) x[n,k]) / (sum(k) x[n,k] * x[n,k])": "several reductions",
    }
    for text, reason in cases.items():
        definition = parse_op(text)
        program = definition.specialise({d.name: (5, 6)[: len(d.shape or ())] for d in definition.inputs})
        assert reason in str(CONTRACT.refusal(program, device.target))


def test_tile_lines_narrow_the_space(device: Device) -> None:
    text = """op gemm(a[M,K], b[K,N]) -> c[M,N]:
    c[m,n] = sum(k) a[m,k] * b[k,n]
    tile m: 32, 64 per item 2, 4
    tile k: 16"""
    program = parse_op(text).specialise({"a": (128, 64), "b": (64, 128)})
    space = families.space(CONTRACT, program, shaped(device.target, Shape.GPU))
    values = {p.name: p.values for p in space.parameters}
    assert values["tile_m"] == (32, 64)
    assert values["item_m"] == (2, 4)
    assert values["tile_k"] == (16,)
    assert space.violated(families.default(CONTRACT, program, shaped(device.target, Shape.GPU))) is None


@pytest.mark.parametrize(("k", "transposed"), [(515, False), (1026, False), (515, True)])
def test_long_rows_are_packed_first(ctx: Context, k: int, transposed: bool) -> None:
    """Rows that do not divide evenly into tiles, and a depth that does not into what is turned at a time."""
    if ctx.device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    m, n = (67, 8192) if k == 515 else (45, 6144)
    a, header = ("a[k,m]", "a[K,M]") if transposed else ("a[m,k]", "a[M,K]")
    program = parse_op(f"op gemm({header}, b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) {a} * b[k,n]").specialise(
        {"a": (k, m) if transposed else (m, k), "b": (k, n)}
    )
    assert bool(CONTRACT.default(program, ctx.device.target)["pack_a"]) is not transposed
    rng = np.random.default_rng(k)
    x, y = normal(rng, m, k), normal(rng, k, n)
    expected = x.astype(np.float64) @ y.astype(np.float64)
    check(ctx, program, Shape.CPU, {"a": x.T if transposed else x, "b": y}, expected, k, count=0)


@pytest.mark.parametrize("rows", [5, 6, 7, 8, 14])
@pytest.mark.parametrize("sizes", [(23, 37, 9), (18, 16, 3), (1, 20, 5), (40, 5, 4)])
def test_rows_are_turned_into_panels_of_any_height(ctx: Context, rows: int, sizes: tuple[int, int, int]) -> None:
    if ctx.device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    m, k, n = sizes
    program = parse_op("op gemm(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]").specialise(
        {"a": (m, k), "b": (k, n)}
    )
    target = ctx.device.target
    changed = {"item_m": rows, "item_n": 1, "tiles_m": 2, "pack_a": 1, "pack_b": 1, "unroll_k": 4}
    configuration = Configuration.of({**dict(CONTRACT.default(program, target)), **changed})
    rng = np.random.default_rng(rows)
    x, y = normal(rng, m, k), normal(rng, k, n)
    found = run(ctx, CONTRACT, program, target, configuration, {"a": x, "b": y})["c"]
    expected = x.astype(np.float64) @ y.astype(np.float64)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())
