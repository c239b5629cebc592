"""Every family against float64, for uneven sizes, layouts, offsets and configurations, on both lowerings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import depthwise, max_pool, reference
from running import compare, laid_out, relative, run, shaped, values
from targets import CPU
from wgmma_cases import H100

from tilewright.dsl.families import FAMILIES, Family, by_name, fitting
from tilewright.dsl.families.map import MAP
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.window import WINDOW
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Tensor, contiguous_strides, rename_tensors
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.errors import UnsupportedError
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])

PLAIN_TARGET = Target(Shape.CPU, 4, 32, 16, 4096, 32 << 10, False, 1, "fma(a, b, c)", True, True)

BIAS_RELU = "op bias_relu(x[N,C,H,W], b[C]) -> y[N,C,H,W]:\n    y[n,c,h,w] = relu(x[n,c,h,w] + b[c])"
PAD_COPY = "op pad_copy(x[H,W] pad 2.5) -> y[P,Q]:\n    y[p:13,q:37] = x[p-2,q-3]"
MASKED = """op masked(x[N,C], z[C]) -> y[N,C], m[N,C]: bool:
    y[n,c] = where(x[n,c] > z[c] and not isnan(z[c]), x[n,c] ^ 2, exp(z[c]))
    m[n,c] = x[n,c] <= z[c]"""
MOMENTS = """op moments(x[N,C,H,W]) -> s[C], q[C]:
    s[c] = sum(n,h,w) x[n,c,h,w]
    q[c] = sum(n,h,w) x[n,c,h,w]^2"""
POOLED = "op pooled(x[N,C,H,W], b[C]) -> y[N,C]:\n    y[n,c] = (sum(h,w) x[n,c,h,w]) / H + b[c]"
LARGEST = "op largest(x[R,K]) -> y[R]:\n    y[r] = max(k) x[r,k]"
SMALLEST = "op smallest(x[K,R]) -> y[R]:\n    y[r] = min(k) x[k,r]"
DEPTHWISE = """op depthwise(x[N,C,H,W], w[C,R,S]; stride: int, pad: int) -> y[N,C,P,Q]:
    P = (H + 2*pad - R) / stride + 1
    Q = (W + 2*pad - S) / stride + 1
    y[n,c,p,q] = sum(r,s) x[n,c,p*stride+r-pad,q*stride+s-pad] * w[c,r,s]"""
MAX_POOL = """op max_pool(x[N,C,H,W] pad -inf; k: int, stride: int, pad: int) -> y[N,C,P,Q]:
    P = (H + 2*pad - k) / stride + 1
    Q = (W + 2*pad - k) / stride + 1
    y[n,c,p,q] = max(r:k,s:k) x[n,c,p*stride+r-pad,q*stride+s-pad]"""
MEAN_POOL = """op mean_pool(x[N,C,H,W], b[C], z[N,C,P,Q]; k: int, stride: int, pad: int) -> y[N,C,P,Q]:
    P = (H + 2*pad - k) / stride + 1
    Q = (W + 2*pad - k) / stride + 1
    y[n,c,p,q] = relu(sum(r:k,s:k) x[n,c,p*stride+r-pad,q*stride+s-pad]
        / sum(r:k,s:k) f32(inside(x[n,c,p*stride+r-pad,q*stride+s-pad])) + b[c] + z[n,c,p,q])"""
ACROSS = "op across(x[N,C,W]) -> y[N,C,W]:\n    y[n,c,w] = x[n,c,w] / (1 + sum(k:5) x[n,c+k-2,w]^2)"
SOFTMAX = """op softmax(x[R,K]) -> y[R,K]:
    m[r] = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]"""


def program(text: str, shapes: Mapping[str, tuple[int, ...]], layout: str = "rows", **parameters: int) -> Program:
    """A program with its tensors in row-major order, channels last, or scattered with gaps and offsets."""
    made = parse_op(text).specialise(shapes, parameters=parameters)
    return laid_out(made, layout)


def configurations(family: Family, made: Program, target: Target, seed: int, count: int) -> list[Configuration]:
    """The default and some at random, all legal."""
    assert family.refusal(made, target) is None
    space, rng = family.space(made, target), random.Random(seed)
    found = [family.default(made, target), *(space.sample(rng) for _ in range(count))]
    chosen = list(dict.fromkeys(c for c in found if c is not None))
    assert [space.violated(c) for c in chosen] == [None] * len(chosen)
    return chosen


def check(
    ctx: Context,
    family: Family,
    made: Program,
    shape: Shape,
    seed: int = 0,
    count: int = 1,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The default and `count` random configurations agree with float64; returns the last result."""
    target = shaped(ctx.device.target, shape)
    arrays = values(made, seed) if arrays is None else arrays
    expected = reference(made, arrays)
    found: dict[str, np.ndarray] = {}
    for configuration in configurations(family, made, target, seed, count):
        found = run(ctx, family, made, target, configuration, arrays)
        for t in made.outputs:
            compare(found[t.name], expected[t.name], relative(made, t), f"{family.name}: {configuration}, {t.name}")
    return found


# --- map ------------------------------------------------------------------------------------------------------------


@BOTH_SHAPES
@settings(max_examples=6)
@given(
    st.tuples(*[st.integers(1, n) for n in (3, 40, 9, 40)]),
    st.sampled_from(["rows", "last", "scattered"]),
    st.integers(),
)
def test_map_bias_relu(ctx: Context, shape: Shape, sizes: tuple[int, ...], layout: str, seed: int) -> None:
    check(ctx, MAP, program(BIAS_RELU, {"x": sizes, "b": sizes[1:2]}, layout), shape, seed & 0xFFFF)


@BOTH_SHAPES
@pytest.mark.parametrize("layouts", [("rows", "last"), ("last", "rows")])
def test_map_changes_the_layout(ctx: Context, shape: Shape, layouts: tuple[str, str]) -> None:
    sizes = (2, 35, 7, 11)
    read, written = (program(BIAS_RELU, {"x": sizes, "b": (35,)}, layout) for layout in layouts)
    check(ctx, MAP, replace(read, outputs=written.outputs), shape, count=2)


@BOTH_SHAPES
def test_map_pads_along_the_vector(ctx: Context, shape: Shape) -> None:
    check(ctx, MAP, program(PAD_COPY, {"x": (9, 31)}), shape, count=3)


@BOTH_SHAPES
def test_map_truth_values_and_nan(ctx: Context, shape: Shape) -> None:
    made = program(MASKED, {"x": (5, 29), "z": (29,)})
    arrays = values(made, 1)
    arrays["z"][::4] = np.nan
    check(ctx, MAP, made, shape, count=2, arrays=arrays)


@BOTH_SHAPES
@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "i32", "i64", "f16", "f64", "bool"])
def test_map_element_types(ctx: Context, shape: Shape, dtype: str) -> None:
    text = f"op convert(x[N,C]: {dtype}, z[C]) -> y[N,C], back[N,C]: {dtype}:\n"
    text += f"    y[n,c] = f32(x[n,c]) * z[c]\n    back[n,c] = {dtype}(abs(z[c]) + f32(x[n,c]))"
    check(ctx, MAP, program(text, {"x": (3, 37), "z": (37,)}), shape, count=1)


def test_map_f16_rounds_and_overflows_like_storage(ctx: Context) -> None:
    text = "op through(x[N]) -> y[N]:\n    y[n] = f32(f16(x[n]))"
    made = program(text, {"x": (21,)})
    x = np.array([1e5, -1e5, 1.0001, 65504, 1e-7, np.nan, 0.1] * 3, np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    for family in (MAP, NAIVE):
        target = ctx.device.target
        found = run(ctx, family, made, target, family.default(made, target), {"x": x})
        np.testing.assert_array_equal(found["y"], expected)


# --- reduce ---------------------------------------------------------------------------------------------------------


@BOTH_SHAPES
@settings(max_examples=6)
@given(
    st.tuples(*[st.integers(1, n) for n in (5, 40, 20, 40)]),
    st.sampled_from(["rows", "last", "scattered"]),
    st.integers(),
)
def test_reduce_moments(ctx: Context, shape: Shape, sizes: tuple[int, ...], layout: str, seed: int) -> None:
    check(ctx, REDUCE, program(MOMENTS, {"x": sizes}, layout), shape, seed & 0xFFFF)


@BOTH_SHAPES
@pytest.mark.parametrize("layout", ["rows", "last", "scattered"])
def test_reduce_with_an_epilogue(ctx: Context, shape: Shape, layout: str) -> None:
    check(ctx, REDUCE, program(POOLED, {"x": (3, 21, 7, 5), "b": (21,)}, layout), shape, count=2)


@BOTH_SHAPES
@pytest.mark.parametrize(("text", "sizes"), [(LARGEST, (7, 1003)), (SMALLEST, (1003, 7)), (LARGEST, (40, 3))])
def test_reduce_extremes_keep_nan(ctx: Context, shape: Shape, text: str, sizes: tuple[int, int]) -> None:
    made = program(text, {"x": sizes})
    arrays = values(made, 3)
    arrays["x"][1, 2] = np.nan
    arrays["x"][-1, -1] = -np.inf
    check(ctx, REDUCE, made, shape, count=2, arrays=arrays)


@BOTH_SHAPES
@pytest.mark.parametrize("size", [1, 31, 100_003])
def test_reduce_to_one_value_in_parts(ctx: Context, shape: Shape, size: int) -> None:
    made = program("op total(x[N]) -> y[1]:\n    y[0] = sum(n) x[n]", {"x": (size,)})
    target = shaped(ctx.device.target, shape)
    split = [c for c in REDUCE.space(made, target) if c.integer("splits") > 1]
    assert bool(split) == (size >= 8)
    check(ctx, REDUCE, made, shape)
    arrays = values(made, 5)
    for configuration in random.Random(1).sample(split, min(3, len(split))):
        found = run(ctx, REDUCE, made, target, configuration, arrays)["y"]
        np.testing.assert_allclose(found, arrays["x"].sum(dtype=np.float64), rtol=1e-5, atol=1e-3)


@BOTH_SHAPES
@pytest.mark.parametrize(
    ("kind", "dtype"), [("sum", "i32"), ("max", "i64"), ("min", "u8"), ("prod", "f64"), ("sum", "f16")]
)
def test_reduce_element_types(ctx: Context, shape: Shape, kind: str, dtype: str) -> None:
    text = f"op one(x[N,C]: {dtype}) -> y[C]: {dtype}:\n    y[c] = {kind}(n) x[n,c]"
    for layout in ("rows", "last"):
        check(ctx, REDUCE, program(text, {"x": (12, 19)}, layout), shape)


# --- window ---------------------------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, int], str]:
    """Sizes of an image, parameters of a window that fits it, and a layout."""
    k, stride, pad = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    sizes = tuple(draw(st.integers(low, high)) for low, high in ((1, 2), (1, 20), (k, 14), (k, 40)))
    return (
        sizes,
        {"k": k, "stride": stride, "pad": min(pad, k // 2)},
        draw(st.sampled_from(["rows", "last", "scattered"])),
    )


def check_window(ctx: Context, made: Program, shape: Shape, seed: int) -> None:
    """Check with `window` where it fits (outputs of one element do not slide), else with the first family that does."""
    target = shaped(ctx.device.target, shape)
    family = WINDOW if WINDOW.refusal(made, target) is None else fitting(made, target)[0]
    check(ctx, family, made, shape, seed)


@BOTH_SHAPES
@settings(max_examples=8)
@given(windows(), st.integers(0, 999))
def test_window_depthwise(
    ctx: Context, shape: Shape, case: tuple[tuple[int, ...], dict[str, int], str], seed: int
) -> None:
    sizes, parameters, layout = case
    k = parameters.pop("k")
    made = program(DEPTHWISE, {"x": sizes, "w": (sizes[1], k, k)}, layout, **parameters)
    check_window(ctx, made, shape, seed)


@BOTH_SHAPES
@settings(max_examples=8)
@given(windows(), st.integers(0, 999))
def test_window_mean_pool(
    ctx: Context, shape: Shape, case: tuple[tuple[int, ...], dict[str, int], str], seed: int
) -> None:
    sizes, parameters, layout = case
    out = [(n + 2 * parameters["pad"] - parameters["k"]) // parameters["stride"] + 1 for n in sizes[2:]]
    made = program(MEAN_POOL, {"x": sizes, "b": sizes[1:2], "z": (*sizes[:2], *out)}, layout, **parameters)
    check_window(ctx, made, shape, seed)


@BOTH_SHAPES
@pytest.mark.parametrize("layout", ["rows", "last"])
@pytest.mark.parametrize("stride", [1, 2])
def test_window_operators_as_written_out(ctx: Context, shape: Shape, layout: str, stride: int) -> None:
    x = np.random.default_rng(2).standard_normal((2, 19, 13, 33)).astype(np.float32)
    w = np.random.default_rng(3).standard_normal((19, 3, 3)).astype(np.float32)
    made = program(DEPTHWISE, {"x": x.shape, "w": w.shape}, layout, stride=stride, pad=1)
    found = check(ctx, WINDOW, made, shape, arrays={"x": x, "w": w})["y"]
    np.testing.assert_allclose(found, depthwise(x, w, stride, 1), atol=1e-5)
    x[0, 3, 5, 7] = np.nan
    made = program(MAX_POOL, {"x": x.shape}, layout, k=3, stride=stride, pad=1)
    found = check(ctx, WINDOW, made, shape, arrays={"x": x})["y"]
    np.testing.assert_array_equal(found, max_pool(x, 3, stride, 1))


@BOTH_SHAPES
@pytest.mark.parametrize("layout", ["rows", "last"])
def test_window_across_channels(ctx: Context, shape: Shape, layout: str) -> None:
    check(ctx, WINDOW, program(ACROSS, {"x": (2, 11, 17)}, layout), shape, count=2)


def test_window_loops_over_many_taps(ctx: Context) -> None:
    made = program(DEPTHWISE, {"x": (1, 9, 40, 40), "w": (9, 31, 31)}, "last", stride=1, pad=15)
    check(ctx, WINDOW, made, Shape.CPU, count=0)


# --- naive ----------------------------------------------------------------------------------------------------------


@BOTH_SHAPES
@pytest.mark.parametrize("layout", ["rows", "scattered"])
def test_naive_runs_whatever_the_others_run(ctx: Context, shape: Shape, layout: str) -> None:
    sizes = (2, 5, 7, 6)
    for text, shapes, parameters in (
        (BIAS_RELU, {"x": sizes, "b": (5,)}, {}),
        (MASKED, {"x": (3, 5), "z": (5,)}, {}),
        (MOMENTS, {"x": sizes}, {}),
        (MAX_POOL, {"x": sizes}, {"k": 3, "stride": 2, "pad": 1}),
        (SOFTMAX, {"x": (5, 300)}, {}),
    ):
        check(ctx, NAIVE, program(text, shapes, layout, **parameters), shape)


@BOTH_SHAPES
def test_naive_reduces_over_nothing(ctx: Context, shape: Shape) -> None:
    check(ctx, NAIVE, program(LARGEST, {"x": (4, 0)}), shape)
    check(ctx, NAIVE, program("op total(x[R,K]) -> y[R]:\n    y[r] = sum(k) x[r,k]", {"x": (4, 0)}), shape)


# --- which family takes what, without a device ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes", "parameters", "name"),
    [
        (BIAS_RELU, {"x": (1, 4, 5, 6), "b": (4,)}, {}, "map"),
        (MOMENTS, {"x": (1, 4, 5, 6)}, {}, "reduce"),
        (LARGEST, {"x": (4, 5)}, {}, "reduce"),
        (DEPTHWISE, {"x": (1, 4, 9, 9), "w": (4, 3, 3)}, {"stride": 1, "pad": 1}, "window"),
        (MAX_POOL, {"x": (1, 4, 9, 9)}, {"k": 3, "stride": 2, "pad": 0}, "window"),
        (LARGEST, {"x": (4, 0)}, {}, "naive"),
        (
            "op gemm(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]",
            {"a": (8, 9), "b": (9, 7)},
            {},
            "contract",
        ),
    ],
)
def test_first_fitting_family(
    text: str, shapes: dict[str, tuple[int, ...]], parameters: dict[str, int], name: str
) -> None:
    found = fitting(program(text, shapes, **parameters), PLAIN_TARGET)
    assert found[0].name == name
    assert found[-1] is NAIVE


@pytest.mark.parametrize(
    ("family", "text", "shapes", "reason"),
    [
        (MAP, LARGEST, {"x": (4, 5)}, "has a reduction"),
        (REDUCE, BIAS_RELU, {"x": (1, 4, 5, 6), "b": (4,)}, "has no reduction"),
        (REDUCE, LARGEST, {"x": (4, 0)}, "empty range"),
        (WINDOW, BIAS_RELU, {"x": (1, 4, 5, 6), "b": (4,)}, "no reduction"),
        (WINDOW, MOMENTS, {"x": (1, 4, 5, 6)}, "several statements"),
        (WINDOW, LARGEST, {"x": (4, 5)}, "slides along"),
        (REDUCE, SOFTMAX, {"x": (4, 5)}, "reduction"),
    ],
)
def test_refusals_say_why(family: Family, text: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    assert reason in str(family.refusal(program(text, shapes), PLAIN_TARGET))


def test_f64_needs_a_device_that_has_it() -> None:
    made = program("op f(x[N]: f64) -> y[N]: f64:\n    y[n] = x[n] + 1", {"x": (4,)})
    with pytest.raises(UnsupportedError, match="no f64; cast to a type the device has"):
        fitting(made, replace(PLAIN_TARGET, has_f64=False))


def test_parts_of_a_reduction_with_many_outputs_take_bounded_memory() -> None:
    """64 images of 197 tokens in 3,072 columns: in 512 parts they would be 80 GB of partial results."""
    sizes = {"a": (64 * 197, 2048), "b": (2048, 3072)}
    made = program("op product(a[M,K], b[K,N]) -> y[M,N]:\n    y[m,n] = sum(k) a[m,k] * b[k,n]", sizes)
    seen = set()
    for target in (CPU, H100):
        for family in fitting(made, target):
            values = {p.name: p.values for p in family.space(made, target).parameters}
            for name in ("splits", "split_k"):
                if name in values:
                    seen.add(family.name)
                    assert values[name] == (1,), (family.name, name)
    assert seen >= {"reduce", "contract", "matrix", "wgmma"}


def test_families_by_name() -> None:
    assert [by_name(f.name) for f in FAMILIES] == list(FAMILIES)
    with pytest.raises(UnsupportedError, match="no family 'wide'; the families are attention, window"):
        by_name("wide")


def test_nothing_from_names_reaches_the_kernel() -> None:
    made = parse_op(BIAS_RELU).specialise({"x": (1, 4, 5, 6), "b": (4,)})
    x = replace(made.inputs[0], name='a b"*/\\\n#')
    value = made.statements[0].value
    odd = replace(
        made,
        name="half;\\",
        inputs=(x, made.inputs[1]),
        statements=(replace(made.statements[0], value=rename_tensors(value, {"x": x.name})),),
    )
    for family in (MAP, NAIVE):
        (launch,) = family.lower(odd, PLAIN_TARGET, family.default(odd, PLAIN_TARGET)).launches
        code = [line for line in launch.source.splitlines() if not line.startswith("//")]
        assert not any(sign in line for line in code for sign in ('"', "\\", "#"))
        assert "\\" not in launch.source
        assert launch.arguments == (x.name, "b", "y")


# --- grouped convolutions -------------------------------------------------------------------------------------------

GROUPED = """op grouped(x[N,G,C,H,W]: T, w[G,O,C,R,S]: T, b[G,O]; stride: int, pad: int) -> y[N,G,O,P,Q]: T:
    P = (H + 2*pad - R) / stride + 1
    Q = (W + 2*pad - S) / stride + 1
    y[n,g,o,p,q] = relu(sum(c,r,s) f32(x[n,g,c,p*stride+r-pad,q*stride+s-pad]) * f32(w[g,o,c,r,s]) + b[g,o])"""


def grouped(sizes: tuple[int, ...], dtype: str, stride: int) -> Program:
    """A convolution of `sizes` = (images, groups, channels in, out, height, width, window), channels last in memory."""
    n, g, c, o, high, wide, k = sizes
    shapes = {"x": (n, g, c, high, wide), "w": (g, o, c, k, k), "b": (g, o)}
    made = parse_op(GROUPED.replace(": T", f": {dtype}")).specialise(
        shapes, parameters={"stride": stride, "pad": k // 2}
    )
    orders = {"x": (0, 3, 4, 1, 2), "y": (0, 3, 4, 1, 2), "w": (2, 3, 4, 0, 1), "b": (0, 1)}

    def placed(t: Tensor) -> Tensor:
        moved = contiguous_strides(tuple(t.shape[d] for d in orders[t.name]))
        return replace(t, strides=tuple(moved[orders[t.name].index(d)] for d in range(len(t.shape))))

    return replace(made, inputs=tuple(map(placed, made.inputs)), outputs=tuple(map(placed, made.outputs)))


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((2, 5, 4, 4, 7, 9, 3), "f32"),
        ((1, 3, 8, 8, 6, 5, 3), "f16"),
        ((1, 2, 24, 24, 5, 4, 3), "f32"),
        ((2, 3, 1, 2, 8, 7, 5), "f32"),
        ((1, 4, 3, 5, 6, 6, 3), "bf16"),
        ((1, 2, 32, 16, 4, 5, 3), "f16"),
    ],
)
def test_window_convolves_within_narrow_groups(ctx: Context, sizes: tuple[int, ...], dtype: str, stride: int) -> None:
    made = grouped(sizes, dtype, stride)
    assert fitting(made, shaped(ctx.device.target, Shape.GPU))[0] is WINDOW
    check(ctx, WINDOW, made, Shape.GPU, count=2)


def test_window_leaves_wide_groups_to_contractions(ctx: Context) -> None:
    wide = grouped((1, 2, 40, 40, 5, 5, 3), "f32", 1)
    reason = WINDOW.refusal(wide, shaped(ctx.device.target, Shape.GPU))
    assert reason == "it is a contraction: its operands have output indices of their own"
    cpu = shaped(ctx.device.target, Shape.CPU)
    wider = cpu.lanes(4) + 1
    assert WINDOW.refusal(grouped((1, 2, wider, wider, 5, 5, 3), "f32", 1), cpu) == reason


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("part", [1, 2])
def test_window_convolves_within_groups_no_wider_than_a_vector(ctx: Context, stride: int, part: int) -> None:
    cpu = shaped(ctx.device.target, Shape.CPU)
    channels = cpu.lanes(4) // part
    made = grouped((2, 5, channels, channels, 7, 9, 3), "f32", stride)
    assert fitting(made, cpu)[0] is WINDOW
    check(ctx, WINDOW, made, Shape.CPU, count=2)


@pytest.mark.parametrize("cached", [True, False])
def test_window_walks_over_groups_within_a_tile_while_their_weights_stay_in_the_cache(
    ctx: Context, cached: bool
) -> None:
    cpu = shaped(ctx.device.target, Shape.CPU)
    cpu = cpu if cached else replace(cpu, l2_bytes=1024)
    made = grouped((2, 5, 4, 3, 7, 9, 3), "f32", 1)
    (launch,) = WINDOW.lower(made, cpu, WINDOW.default(made, cpu)).launches
    assert ("for (int i_g = " in launch.source) == cached
    arrays = values(made, 3)
    found = run(ctx, WINDOW, made, cpu, WINDOW.default(made, cpu), arrays)
    compare(found["y"], reference(made, arrays)["y"], relative(made, made.outputs[0]), f"in the cache: {cached}")
