"""Contractions by matrix instructions against float64, with NVIDIA's fragments emulated where a device has none."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from emulated_matrix import with_matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from running import run, shaped
from targets import GPU
from test_contract import CONVOLUTION, convolution, normal

from tilewright.dsl.families.matrix import MATRIX
from tilewright.dsl.matrix import Fragment
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context
from tilewright.runtime.nvidia import matrix_unit

LOADS = pytest.mark.parametrize("loads", [True, False], ids=["matrix-loads", "plain-loads"])


def target_of(ctx: Context, loads: bool) -> Target:
    """The device's own instructions, or emulated ones with limits that a CPU compiles quickly."""
    target = ctx.device.target
    if target.matrix is not None:
        return target if loads else replace(target, matrix=replace(target.matrix, load=None))
    small = replace(shaped(target, Shape.GPU), local_memory=96 << 10, compute_units=4, max_work_group=128)
    return with_matrix(small, loads)


def check(
    ctx: Context,
    target: Target,
    program: Program,
    arrays: dict[str, np.ndarray],
    expected: np.ndarray,
    seed: int,
    bound: float,
    count: int = 1,
) -> None:
    """The default and `count` random configurations differ from `expected` by at most `bound` of its largest value."""
    assert MATRIX.refusal(program, target) is None
    space = MATRIX.space(program, target)
    rng = random.Random(seed)
    configurations = [MATRIX.default(program, target)]
    configurations += [c for c in (space.sample(rng, 4000) for _ in range(count)) if c is not None]
    for configuration in configurations:
        assert space.violated(configuration) is None
        found = run(ctx, MATRIX, program, target, configuration, arrays)[program.outputs[0].name]
        error = np.abs(found.astype(np.float64) - expected).max(initial=0)
        assert error <= bound * np.abs(expected).max(), f"{configuration}: off by {error}"


@LOADS
@given(
    m=st.integers(8, 80), n=st.integers(8, 80), k=st.integers(8, 80), vectors=st.booleans(),
    kind=st.sampled_from(["fp32", "tf32", "f16", "bf16"]), seed=st.integers(0, 10**6),
    a=st.sampled_from(["a[m,k]", "a[k,m]"]), b=st.sampled_from(["b[k,n]", "b[n,k]"]),
)  # fmt: skip
@settings(max_examples=5)
def test_gemm_of_every_type_and_transposition(
    plainly: Context, loads: bool, m: int, n: int, k: int, vectors: bool, kind: str, seed: int, a: str, b: str
) -> None:
    if vectors:  # sizes that copies of 16 bytes divide
        m, n, k = (max(8, size // 8 * 8) for size in (m, n, k))
    rng = np.random.default_rng(seed)
    dtype = {"f16": np.dtype(np.float16)}.get(kind, np.dtype(np.float32))
    if kind == "bf16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    left, right = normal(rng, m, k).astype(dtype), normal(rng, k, n).astype(dtype)
    typed = f": {kind}" if kind in ("f16", "bf16") else ""
    header = ", ".join(x.upper().replace("A[", "a[").replace("B[", "b[") + typed for x in (a, b))
    text = f"op gemm({header}, bias[N]) -> c[M,N]: f32:\n    c[m,n] = relu(sum(k) f32({a}) * f32({b}) + bias[n])"
    arrays = {
        "a": np.ascontiguousarray(left if a == "a[m,k]" else left.T),
        "b": np.ascontiguousarray(right if b == "b[k,n]" else right.T),
        "bias": normal(rng, n),
    }
    program = parse_op(text).specialise({name: x.shape for name, x in arrays.items()})
    program = replace(program, precision="tf32" if kind == "tf32" else "fp32")
    expected = np.maximum(left.astype(np.float64) @ right.astype(np.float64) + arrays["bias"], 0)
    check(plainly, target_of(plainly, loads), program, arrays, expected, seed, 2e-3 if kind == "tf32" else 2e-6)


@given(data=st.data())
@settings(max_examples=6)
def test_convolution_of_any_stride_dilation_padding_groups_and_layout(plainly: Context, data: st.DataObject) -> None:
    draw = data.draw
    n, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    c, o = draw(st.sampled_from([3, 8, 12, 17])), draw(st.sampled_from([8, 11, 32, 40]))
    r, s = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride, dilation = draw(st.tuples(*[st.integers(1, 2)] * 2)), draw(st.tuples(*[st.integers(1, 2)] * 2))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    h, w = draw(st.integers(7, 14)), draw(st.integers(7, 14))
    channels_last, seed = draw(st.booleans()), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    x, weights, bias = normal(rng, n, groups * c, h, w), normal(rng, groups * o, c, r, s), normal(rng, groups * o)
    expected = convolution(x, weights, stride, pads, dilation, groups)
    expected = np.maximum(expected + bias[:, None, None].astype(np.float64), 0)
    names = ("sh", "sw", "dh", "dw", "top", "left", "bottom", "right")
    parameters = dict(zip(names, (*stride, *dilation, *pads), strict=True))
    arrays = {
        "x": x.reshape(n, groups, c, h, w),
        "w": weights.reshape(groups, o, c, r, s),
        "b": bias.reshape(groups, o),
    }
    shapes = {name: a.shape for name, a in arrays.items()}
    program = parse_op(CONVOLUTION).specialise(shapes, parameters=parameters)
    expected = expected.reshape(program.outputs[0].shape)
    if channels_last:
        program, arrays = last(program, arrays)
    target = target_of(plainly, True)
    if MATRIX.refusal(program, target) is not None:
        return
    check(plainly, target, program, arrays, expected, seed, 2e-6)


def last(program: Program, arrays: dict[str, np.ndarray]) -> tuple[Program, dict[str, np.ndarray]]:
    """The image and the output with channels next to one another in memory, seen through strides."""

    def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
        _, g, c, h, w = shape
        return (g * c * h * w, c, 1, w * g * c, g * c)

    moved = tuple(replace(t, strides=strides(t.shape)) if t.name == "x" else t for t in program.inputs)
    outputs = tuple(replace(t, strides=strides(t.shape)) for t in program.outputs)
    return replace(program, inputs=moved, outputs=outputs), arrays


def test_sums_with_infinities_are_what_floats_give(plainly: Context) -> None:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 40, 48), normal(rng, 48, 36)
    a[3, 5], a[7, 1], b[9, 4] = np.inf, np.nan, -np.inf
    a[11, 2] = np.finfo(np.float32).max  # rounding its upper part overflows
    b[2] = 0.5
    program = parse_op("op g(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]").specialise(
        {"a": a.shape, "b": b.shape}
    )
    target = target_of(plainly, True)
    found = run(plainly, MATRIX, program, target, MATRIX.default(program, target), {"a": a, "b": b})["c"]
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_refusals_name_the_reason() -> None:
    text = "op g(a[M,K]{t}, b[K,N]{t}) -> c[M,N]{t}:\n    c[m,n] = sum(k) a[m,k] * b[k,n]"
    shapes = {"a": (64, 64), "b": (64, 64)}
    plain = parse_op(text.format(t="")).specialise(shapes)
    assert MATRIX.refusal(plain, GPU) == "the device has no matrix instructions"
    target = replace(GPU, matrix=matrix_unit((8, 0)))
    doubles = parse_op(text.format(t=": f64")).specialise(shapes)
    assert "f64" in (MATRIX.refusal(doubles, target) or "")
    small = parse_op(text.format(t="")).specialise({"a": (4, 64), "b": (64, 64)})
    assert "fewer than 8" in (MATRIX.refusal(small, target) or "")
    assert matrix_unit((7, 5)) is None


def test_a_default_for_every_size_is_in_the_space() -> None:
    target = replace(GPU, matrix=matrix_unit((9, 0)), local_memory=227 << 10, compute_units=132)
    text = "op g(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]"
    for m, n, k in ((8, 8, 8), (197, 768, 3072), (4096, 4096, 4096), (49, 2048, 512), (50176, 64, 147)):
        program = parse_op(text).specialise({"a": (m, k), "b": (k, n)})
        configuration = MATRIX.default(program, target)
        assert MATRIX.space(program, target).violated(configuration) is None
        assert isinstance(configuration, Configuration)


def test_fragments_say_where_elements_lie() -> None:
    fragment = Fragment(((8, 0), (0, 8)), ((0, 2), (0, 4), (1, 0), (2, 0), (4, 0)), ((0, 1),))
    assert fragment.count == 4
    assert fragment.offset(3, 1) == (8, 9)
    assert (fragment.lane_text("lane", 0), fragment.lane_text("lane", 1)) == ("(lane >> 2)", "(lane & 3) * 2")
