"""Winograd convolution: its matrices in exact arithmetic, its kernels against float64, what it takes and when."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import targets
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import reference
from running import laid_out, run, shaped, values

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import fitting
from tilewright.dsl.families.winograd import WINOGRAD
from tilewright.dsl.families.winograd_transforms import Matrix, filtering, filtering_at, points, straight_line
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
SIZES = [(m, r) for m in range(1, 9) for r in range(1, 9) if 2 <= m + r - 1 <= 8]

CONVOLUTION = """op conv(x[N,C,H,W], w[O,C,R,S], b[O], z[N,O,P,Q];
        top: int, left: int, bottom: int, right: int) -> y[N,O,P,Q]:
    P = H + top + bottom - R + 1
    Q = W + left + right - S + 1
    y[n,o,p,q] = max(sum(c,r,s) x[n,c,p+r-top,q+s-left] * w[o,c,r,s] + b[o] + z[n,o,p,q], 0)"""
PADDED = {"top": 1, "left": 1, "bottom": 1, "right": 1}
GROUPED = """op grouped(x[N,G,C,H,W] pad 0.5, w[G,O,C,R,S]) -> y[N,G,O,H,W]:
    y[n,g,o,p,q] = sum(c,r,s) x[n,g,c,p+r-1,q+s-1] * w[g,o,c,r,s]"""
SCALED = """op scaled(x[N,C,H,W], k[C], w[O,C,R,S]) -> y[N,O,P,Q]:
    P = H - R + 1
    Q = W - S + 1
    y[n,o,p,q] = tanh(sum(c,r,s) max(x[n,c,p+r,q+s] - 0.5, 0) * k[c] * w[o,c,r,s])"""
LINE = """op line(x[N,C,W], w[O,C,S]; pad: int) -> y[N,O,Q]:
    Q = W + 2*pad - S + 1
    y[n,o,q] = sum(c,s) x[n,c,q+s-pad] * w[o,c,s]"""
VOLUME = """op volume(x[N,C,D,H,W], w[O,C,T,R,S]) -> y[N,O,D,H,W]:
    y[n,o,d,p,q] = sum(c,t,r,s) x[n,c,d+t-1,p+r-1,q+s-1] * w[o,c,t,r,s]"""


# --- the matrices ---------------------------------------------------------------------------------------------------


def product(matrix: Matrix, vector: Sequence[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_the_matrices_are_an_exact_filter(m: int, r: int) -> None:
    f = filtering(m, r)
    data = [Fraction(7 * k * k + 3 * k - 5, k + 2) for k in range(m + r - 1)]
    taps = [Fraction(2 * k - 3, 5 + k) for k in range(r)]
    products = [a * b for a, b in zip(product(f.taps, taps), product(f.data, data), strict=True)]
    expected = [sum((data[i + k] * taps[k] for k in range(r)), Fraction(0)) for i in range(m)]
    assert product(f.outputs, products) == expected


def test_any_different_points_will_do() -> None:
    at = [
        Fraction(3),
        Fraction(-1, 7),
        Fraction(0),
        Fraction(5, 2),
        Fraction(11),
        Fraction(-4),
        Fraction(1),
        Fraction(9),
    ]
    f = filtering_at(at, 5, 5)
    for i in range(5):
        for k in range(5):
            unit = [Fraction(int(j == k)) for j in range(5)]
            taps = product(f.taps, unit)
            for d in range(9):
                data = product(f.data, [Fraction(int(j == d)) for j in range(9)])
                got = product(f.outputs, [a * b for a, b in zip(taps, data, strict=True)])[i]
                assert got == (d == i + k)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_straight_line_code_is_the_product_with_shared_work(m: int, r: int) -> None:
    f = filtering(m, r)
    for matrix in (f.outputs, f.taps, f.data):
        line = straight_line(matrix)
        vector = [Fraction(5 * k * k + 1, k + 3) for k in range(len(matrix[0]))]
        known = {f"x{k}": value for k, value in enumerate(vector)}
        for step in line.steps:
            assert step.name not in known
            known[step.name] = sum((c * known[name] for c, name in step.terms), Fraction(0))
        assert [known[name] for name in line.results] == product(matrix, vector)
        plain = sum(sum(c != 0 for c in row) - any(abs(c) == 1 for c in row) for row in matrix)
        assert line.operations <= plain
    if (m, r) == (4, 3):
        assert [straight_line(matrix).operations for matrix in (f.outputs, f.taps, f.data)] == [12, 10, 12]


def test_sizes_and_points_that_do_not_work_are_named() -> None:
    with pytest.raises(ValueError, match=r"F\(0, 3\) computes nothing"):
        filtering(0, 3)
    with pytest.raises(ValueError, match="points for 1 to 7 evaluations, not for 8"):
        filtering(7, 3)
    with pytest.raises(ValueError, match="takes 3 different points, not 0, 1, 1"):
        filtering_at([Fraction(0), Fraction(1), Fraction(1)], 2, 3)
    assert len(set(points(7))) == 7


# --- the numbers ----------------------------------------------------------------------------------------------------


def made(
    text: str, shapes: dict[str, tuple[int, ...]], layout: str = "rows", parameters: Mapping[str, int] | None = None
) -> Program:
    return laid_out(parse_op(text).specialise(shapes, parameters=parameters or {}), layout)


def check(
    ctx: Context, program: Program, shape: Shape, seed: int, sizes: Sequence[int] = (), scale: float = 1.0
) -> None:
    """The default and random configurations against float64, within the bound of other contractions.

    One configuration is drawn for each tile size of `sizes`, one of any size if there are none.
    """
    target = shaped(ctx.device.target, shape)
    assert WINOGRAD.refusal(program, target) is None
    space = WINOGRAD.space(program, target)
    rng = random.Random(seed)
    spaces = [space.restricted({"m": (m,)}) for m in sizes] or [space]
    configurations = [WINOGRAD.default(program, target), *(s.sample(rng) for s in spaces)]
    arrays = {name: (a * scale).astype(a.dtype) for name, a in values(program, seed).items()}
    output = program.outputs[0]
    expected = reference(program, arrays)[output.name].astype(np.float64)
    bound = {DType.F32: 1.6e-5, DType.F64: 8e-14, DType.F16: 1.6e-2, DType.BF16: 1.6e-2}[output.dtype]
    for k in configurations:
        assert k is not None
        assert space.violated(k) is None
        found = run(ctx, WINOGRAD, program, target, k, arrays)[output.name]
        error = np.abs(found.astype(np.float64) - expected).max()
        assert error <= bound * max(np.abs(expected).max(), 1e-6), f"{k}: off by {error}"


@BOTH_SHAPES
@given(data=st.data())
@settings(max_examples=2)
def test_convolution_of_any_size_padding_and_layout(ctx: Context, shape: Shape, data: st.DataObject) -> None:
    draw = data.draw
    taps = draw(st.sampled_from([3, 3, 5]))
    pads = dict(zip(("top", "left", "bottom", "right"), draw(st.tuples(*[st.integers(0, 2)] * 4)), strict=True))
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(20, 35)), draw(st.integers(20, 35))
    h = draw(st.integers(max(1, taps - pads["top"] - pads["bottom"]), 13))
    w = draw(st.integers(max(1, taps - pads["left"] - pads["right"]), 13))
    p, q = h + pads["top"] + pads["bottom"] - taps + 1, w + pads["left"] + pads["right"] - taps + 1
    shapes = {"x": (n, c, h, w), "w": (o, c, taps, taps), "b": (o,), "z": (n, o, p, q)}
    program = made(CONVOLUTION, shapes, draw(st.sampled_from(["rows", "last", "scattered"])), pads)
    check(ctx, program, shape, draw(st.integers(0, 10**6)))


@BOTH_SHAPES
@pytest.mark.parametrize("layout", ["rows", "last"])
def test_every_tile_size(ctx: Context, shape: Shape, layout: str) -> None:
    shapes = {"x": (1, 24, 13, 15), "w": (32, 24, 3, 3), "b": (32,), "z": (1, 32, 13, 15)}
    program = made(CONVOLUTION, shapes, layout, PADDED)
    check(ctx, program, shape, seed=1, sizes=(2, 4))


@BOTH_SHAPES
def test_groups_and_pad_values(ctx: Context, shape: Shape) -> None:
    program = made(GROUPED, {"x": (2, 3, 20, 6, 7), "w": (3, 21, 20, 3, 3)}, "last")
    check(ctx, program, shape, seed=2)


@BOTH_SHAPES
def test_operands_may_be_expressions(ctx: Context, shape: Shape) -> None:
    program = made(SCALED, {"x": (1, 22, 9, 8), "k": (22,), "w": (23, 22, 3, 3)})
    check(ctx, program, shape, seed=3, scale=0.2)


@BOTH_SHAPES
@pytest.mark.parametrize("taps", [2, 3, 7])
def test_one_dimension(ctx: Context, shape: Shape, taps: int) -> None:
    program = made(LINE, {"x": (2, 72, 19), "w": (70, 72, taps)}, "rows", {"pad": 1})
    check(ctx, program, shape, seed=4, sizes=(6,) if taps < 4 else (2,))


@BOTH_SHAPES
def test_three_dimensions(ctx: Context, shape: Shape) -> None:
    check(ctx, made(VOLUME, {"x": (1, 21, 3, 4, 5), "w": (24, 21, 3, 3, 3)}), shape, seed=5)


@pytest.mark.devices_in_turn
@BOTH_SHAPES
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F64])
def test_other_element_types(ctx: Context, shape: Shape, dtype: DType) -> None:
    if dtype is DType.F64 and not ctx.device.target.has_f64:
        pytest.skip("the device has no f64")
    definition = parse_op(CONVOLUTION)
    shapes = {"x": (1, 24, 7, 6), "w": (25, 24, 3, 3), "b": (25,), "z": (1, 25, 5, 4)}
    pads = {"top": 0, "left": 0, "bottom": 0, "right": 0}
    program = definition.specialise(shapes, dict.fromkeys(shapes, dtype), parameters=pads)
    assert program.outputs[0].dtype is dtype
    check(ctx, program, shape, seed=6, scale=0.3)


@pytest.mark.devices_in_turn
@BOTH_SHAPES
@pytest.mark.parametrize("extent", [1, 2, 3])
def test_images_smaller_than_a_tile(ctx: Context, shape: Shape, extent: int) -> None:
    shapes = {"x": (1, 20, extent, 1), "w": (20, 20, 3, 3), "b": (20,), "z": (1, 20, extent, 1)}
    program = made(CONVOLUTION, shapes, "last", PADDED)
    check(ctx, program, shape, seed=7)


def test_rounding_errors_are_those_that_are_promised(ctx: Context) -> None:
    """Of 256 channels, relative to the largest output; docs/architecture.md states them."""
    shapes = {"x": (1, 256, 12, 12), "w": (32, 256, 3, 3), "b": (32,), "z": (1, 32, 12, 12)}
    plane = made(CONVOLUTION, shapes, "last", PADDED)
    line = made(LINE, {"x": (2, 256, 72), "w": (32, 256, 3)}, "rows", {"pad": 1})
    for program, m, promised in ((plane, 2, 1e-6), (plane, 4, 4e-6), (line, 6, 4e-6)):
        arrays, target = values(program, 8), ctx.device.target
        expected = reference(program, arrays)["y"].astype(np.float64)
        k = Configuration.of({**WINOGRAD.default(program, target), "m": m})
        found = run(ctx, WINOGRAD, program, target, k, arrays)["y"]
        assert np.abs(found - expected).max() < promised * np.abs(expected).max()


# --- what it takes --------------------------------------------------------------------------------------------------

IMAGE = {"x": (1, 32, 9, 9), "w": (32, 32, 3, 3), "b": (32,), "z": (1, 32, 9, 9)}


def test_weights_are_transformed_by_a_launch_of_their_own() -> None:
    program = made(CONVOLUTION, IMAGE, "rows", PADDED)
    for target in (targets.CPU, targets.GPU):
        lowering = WINOGRAD.lower(program, target, WINOGRAD.default(program, target))
        first, *others = lowering.launches
        assert set(first.arguments) - set(first.writes) == {"w"}
        assert not any("w" in launch.arguments or set(first.writes) & set(launch.writes) for launch in others)


def test_it_is_the_first_choice_on_cpus_and_a_candidate_on_gpus() -> None:
    program = made(CONVOLUTION, IMAGE, "rows", PADDED)
    assert [f.name for f in fitting(program, targets.CPU)][:2] == ["winograd", "contract"]
    assert [f.name for f in fitting(program, targets.GPU)][:2] == ["contract", "winograd"]


def test_refusals_say_why() -> None:
    strided = "op f(x[C,H], w[O,C,R]) -> y[O,P]:\n    y[o,p:4] = sum(c,r) x[c,2*p+r] * w[o,c,r]"
    dilated = "op f(x[C,H], w[O,C,R]) -> y[O,P]:\n    y[o,p:4] = sum(c,r) x[c,p+2*r] * w[o,c,r]"
    counted = "op f(x[C,H], w[O,C,R]) -> y[O,P]:\n    y[o,p:4] = sum(c,r) x[c,p+r-1] * w[o,c,r]"
    line = {"x": (64, 11), "w": (64, 64, 3)}
    cases: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
        (strided, line, "no window of stride and dilation 1"),
        (dilated, line, "no window of stride and dilation 1"),
        (counted, {"x": (64, 11), "w": (64, 64, 8)}, "window of 8 taps is too long"),
        (counted, {"x": (3, 11), "w": (64, 3, 3)}, "3 to 64 channels do not pay"),
        (counted.replace("x[c,p+r-1]", "x[c-1,p+r-1]"), line, "input channels need range checks"),
        (counted, {"x": (64, 11), "w": (0, 64, 3)}, "an index has extent 0"),
        ("op f(x[N]) -> y[N]: y[n] = x[n]", {"x": (4,)}, "no reduction"),
        (
            "op f(x[C,D,H], w[O,C,D,R]) -> y[O,P]:\n    y[o,p:4] = sum(c,d,r) x[c,d,p+r-1] * w[o,c,d,r]",
            {"x": (64, 2, 11), "w": (64, 64, 2, 3)},
            "its channels have several indices",
        ),
        (counted + "\n    tile o: 32", line, "tuning lines"),
    ]
    for text, shapes, reason in cases:
        assert reason in str(WINOGRAD.refusal(made(text, shapes), targets.CPU)), text
    integers = parse_op(counted).specialise(line, {"x": DType.I32, "w": DType.I32})
    assert "sums are i32" in str(WINOGRAD.refusal(integers, targets.CPU))
    wide = parse_op(counted).specialise(line, {"x": DType.F64, "w": DType.F64})
    assert "no f64" in str(WINOGRAD.refusal(wide, replace(targets.CPU, has_f64=False)))
