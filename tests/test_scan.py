"""Prefix reductions against float64: both forms, directions, parts, kinds and layouts, on both lowerings."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import reference
from running import compare, laid_out, relative, run, shaped, values
from targets import CPU, GPU

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import by_name, fitting
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.families.scan import SCAN, Plan
from tilewright.dsl.program import Call, Cast, Const, Expr, Index, Program, Read, Reduce, Statement, Tensor
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
NAMES = "abcd"


def prefix(
    kind: str,
    body: Expr,
    sizes: tuple[int, ...],
    along: int,
    exclusive: bool = False,
    reverse: bool = False,
) -> Reduce:
    """The scan of `body`, a function of the indices a, b, ... with `j` for the one numbered `along`."""
    extent, k = sizes[along], Affine.index(NAMES[along])
    until = k * -1 + (extent - 1) if reverse else k
    return Reduce(kind, (Index("j", extent),), body, body.dtype, until + (-1 if exclusive else 0))


def place(sizes: tuple[int, ...], along: int, reverse: bool = False) -> tuple[Affine, ...]:
    """The position of an element that enters the scan."""
    j = Affine.of({"j": -1}, sizes[along] - 1) if reverse else Affine.index("j")
    return tuple(j if d == along else Affine.index(NAMES[d]) for d in range(len(sizes)))


def scan(
    sizes: tuple[int, ...],
    along: int,
    kind: str = "sum",
    dtype: DType = DType.F32,
    exclusive: bool = False,
    reverse: bool = False,
) -> Program:
    """``y[a,b,..] = kind(j <= index) x[.., j, ..]`` along one dimension."""
    x, y = Tensor("x", dtype, sizes), Tensor("y", dtype, sizes)
    value = prefix(kind, Read("x", place(sizes, along, reverse), dtype), sizes, along, exclusive, reverse)
    indices = tuple(Index(NAMES[d], n) for d, n in enumerate(sizes))
    return Program("scan", (x,), (y,), (Statement("y", indices, value),))


def weighted(sizes: tuple[int, ...], along: int) -> Program:
    """Two outputs with arithmetic on either side: ``y = sum(x * w) / 2 + b``, ``z = max(x) - x``."""
    x, w = Tensor("x", DType.F32, sizes), Tensor("w", DType.F32, (sizes[along],))
    b = Tensor("b", DType.F32, sizes)
    y, z = Tensor("y", DType.F32, sizes), Tensor("z", DType.F32, sizes)
    here = tuple(Affine.index(NAMES[d]) for d in range(len(sizes)))
    entering = Read("x", place(sizes, along), DType.F32)
    product = Call("mul", (entering, Read("w", (Affine.index("j"),), DType.F32)), DType.F32)
    total = prefix("sum", product, sizes, along)
    half = Call("mul", (total, Const(0.5, DType.F32)), DType.F32)
    first = Call("add", (half, Read("b", here, DType.F32)), DType.F32)
    second = Call("sub", (prefix("max", entering, sizes, along), Read("x", here, DType.F32)), DType.F32)
    indices = tuple(Index(NAMES[d], n) for d, n in enumerate(sizes))
    return Program("weighted", (x, w, b), (y, z), (Statement("y", indices, first), Statement("z", indices, second)))


def chosen(made: Program, target: Target, seed: int, count: int) -> list[Configuration]:
    """The default and some at random, all legal, one of them in parts if there are such."""
    assert SCAN.refusal(made, target) is None
    space, rng = SCAN.space(made, target), random.Random(seed)
    found = [SCAN.default(made, target), *(space.sample(rng) for _ in range(count))]
    split = [c for c in (space.sample(rng) for _ in range(20)) if c is not None and c.integer("splits") > 1]
    unique = list(dict.fromkeys(c for c in (*found, *split[:1]) if c is not None))
    assert [space.violated(c) for c in unique] == [None] * len(unique)
    return unique


def accumulated(
    x: np.ndarray, along: int, kind: str = "sum", exclusive: bool = False, reverse: bool = False
) -> np.ndarray:
    """The scan of an array in float64."""
    functions = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
    turned = np.flip(x, along) if reverse else x
    found = functions[kind].accumulate(turned, along, np.float64)
    if exclusive:
        found = np.concatenate([np.zeros_like(found.take([0], along)), found], along).take(range(x.shape[along]), along)
    return np.flip(found, along) if reverse else found


def check(
    ctx: Context, made: Program, shape: Shape, seed: int, count: int = 1, expected: np.ndarray | None = None
) -> None:
    """The default and some other configurations agree with `expected`, or with the program in float64."""
    target = shaped(ctx.device.target, shape)
    arrays = values(made, seed)
    wanted = reference(made, arrays) if expected is None else {made.outputs[0].name: expected}
    for configuration in chosen(made, target, seed, count):
        found = run(ctx, SCAN, made, target, configuration, arrays)
        for t in made.outputs:
            compare(found[t.name], wanted[t.name], relative(made, t), f"{configuration}, {t.name}")


@BOTH_SHAPES
@settings(max_examples=8)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 90)),
    st.integers(0, 2),
    st.sampled_from(["rows", "last", "scattered"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 999),
)
def test_sums_along_any_dimension(
    ctx: Context,
    shape: Shape,
    sizes: tuple[int, ...],
    along: int,
    layout: str,
    exclusive: bool,
    reverse: bool,
    seed: int,
) -> None:
    made = scan(sizes, along, exclusive=exclusive, reverse=reverse)
    x = values(made, seed)["x"]
    check(ctx, laid_out(made, layout), shape, seed, 1, accumulated(x, along, "sum", exclusive, reverse))


@BOTH_SHAPES
@pytest.mark.parametrize(("sizes", "exclusive"), [((1, 70_003), False), ((2, 16_384), True), ((3, 4_100), False)])
def test_long_rows(ctx: Context, shape: Shape, sizes: tuple[int, int], exclusive: bool) -> None:
    made = scan(sizes, 1, exclusive=exclusive)
    check(ctx, made, shape, 5, 1, accumulated(values(made, 5)["x"], 1, exclusive=exclusive))


@BOTH_SHAPES
@pytest.mark.parametrize("sizes", [(2_500, 3), (700, 130), (2, 900, 17)])
def test_long_columns(ctx: Context, shape: Shape, sizes: tuple[int, ...]) -> None:
    along = len(sizes) - 2
    made = scan(sizes, along)
    check(ctx, made, shape, 6, 2, accumulated(values(made, 6)["x"], along))


@BOTH_SHAPES
@pytest.mark.parametrize(("sizes", "along"), [((5, 300), 1), ((300, 37), 0), ((1, 1_100), 1)])
def test_several_scans_with_arithmetic_around_them(
    ctx: Context, shape: Shape, sizes: tuple[int, ...], along: int
) -> None:
    check(ctx, weighted(sizes, along), shape, 7, count=3)


@pytest.mark.devices_in_turn
@BOTH_SHAPES
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("sum", "i32"), ("max", "i64"), ("min", "u8"), ("prod", "f64"), ("sum", "f16"), ("max", "bool"), ("min", "bool")],
)
@pytest.mark.parametrize("along", [0, 1])
def test_kinds_and_element_types(ctx: Context, shape: Shape, kind: str, dtype: str, along: int) -> None:
    made = scan((19, 260) if along else (130, 19), along, kind, DType(dtype))
    target = shaped(ctx.device.target, shape)
    arrays = values(made, 8)
    if dtype == "f64":
        arrays["x"] = 1 + arrays["x"] / 50
    expected = {"sum": np.cumsum, "prod": np.cumprod, "max": np.maximum.accumulate, "min": np.minimum.accumulate}[kind](
        arrays["x"].astype(np.float64), along
    )
    for configuration in chosen(made, target, 8, 2):
        found = run(ctx, SCAN, made, target, configuration, arrays)["y"]
        compare(found, expected, relative(made, made.outputs[0]), str(configuration))


@BOTH_SHAPES
@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_nan_stays_from_where_it_enters(ctx: Context, shape: Shape, kind: str) -> None:
    made = scan((3, 301), 1, kind)
    target = shaped(ctx.device.target, shape)
    arrays = values(made, 9)
    arrays["x"][1, 77] = np.nan
    arrays["x"][2, 0] = -np.inf
    for configuration in chosen(made, target, 9, 3):
        found = run(ctx, SCAN, made, target, configuration, arrays)["y"]
        assert np.isnan(found[1, 77:]).all()
        assert not np.isnan(found[1, :77]).any()
        assert not np.isnan(found[[0, 2]]).any()


@BOTH_SHAPES
def test_long_sums_stay_accurate(ctx: Context, shape: Shape) -> None:
    made = scan((1, 1 << 20), 1)
    target = shaped(ctx.device.target, shape)
    arrays = {"x": np.random.default_rng(10).random((1, 1 << 20), np.float32)}
    expected = np.cumsum(arrays["x"], 1, np.float64)
    for configuration in (SCAN.default(made, target), *chosen(made, target, 10, 0)):
        found = run(ctx, SCAN, made, target, configuration, arrays)["y"]
        assert np.abs(found / expected - 1)[0, 1000:].max() < 2e-6, configuration


def test_naive_agrees_on_prefixes_that_do_not_fit(ctx: Context) -> None:
    made = scan((4, 30), 1)
    value = made.statements[0].value
    assert isinstance(value, Reduce)
    assert value.until is not None
    far = replace(value, until=value.until + 2)
    made = replace(made, statements=(replace(made.statements[0], value=far),))
    assert "next to it" in str(SCAN.refusal(made, CPU))
    arrays = values(made, 11)
    found = run(ctx, NAIVE, made, ctx.device.target, NAIVE.default(made, ctx.device.target), arrays)["y"]
    compare(found, reference(made, arrays)["y"], 1e-5, "naive")


# --- without a device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [CPU, GPU], ids=["cpu", "gpu"])
def test_scans_come_to_this_family(target: Target) -> None:
    found = fitting(scan((5, 64), 1), target)
    assert [f.name for f in found] == ["scan", "naive"]
    assert by_name("scan") is SCAN


def test_refusals_say_why() -> None:
    plain = scan((5, 64), 1)
    (statement,) = plain.statements
    value = statement.value
    assert isinstance(value, Reduce)
    own = Read("x", (Affine.index("a"), Affine.index("b")), DType.F32)
    other = Read("x", (Affine.index("i"), Affine.index("b")), DType.F32)
    odd = {
        "no prefix": own,
        "next to it": replace(value, until=Affine.of({"b": 2})),
        "within a reduction": replace(value, body=replace(value, indices=(Index("i", 64),))),
        "different indices": Call(
            "add", (value, Reduce("sum", (Index("i", 5),), other, DType.F32, Affine.index("a"))), DType.F32
        ),
    }
    body = Call("mul", (value.body, own), DType.F32)
    odd["an output index or next"] = replace(value, body=body)
    for reason, changed in odd.items():
        made = replace(plain, statements=(replace(statement, value=changed),))
        assert reason in str(SCAN.refusal(made, CPU)), reason
    assert "no elements" in str(SCAN.refusal(scan((5, 0), 1), CPU))
    double = scan((5, 4), 1, dtype=DType.F64)
    assert "no f64" in str(SCAN.refusal(double, replace(CPU, has_f64=False)))


def test_rows_and_columns_follow_the_memory() -> None:
    assert Plan.of(scan((5, 64), 1)).rows
    assert not Plan.of(scan((64, 5), 0)).rows
    assert Plan.of(scan((3, 64, 1), 1)).rows


def test_defaults_split_only_few_scans() -> None:
    splits = {
        sizes: SCAN.default(scan(sizes, 1), GPU).integer("splits") for sizes in [(1, 1 << 26), (65_536, 4096), (64, 64)]
    }
    assert splits[1, 1 << 26] >= 256
    assert splits[65_536, 4096] == splits[64, 64] == 1
    made = scan((1, 1 << 26), 1)
    lowering = SCAN.lower(made, GPU, SCAN.default(made, GPU))
    names = [launch.kernel for launch in lowering.launches]
    assert names == [
        "tw_scan_scan_sums",
        "tw_scan_scan_carries",
        "tw_scan_scan",
    ]


def test_a_cast_ahead_of_the_scan_is_part_of_it() -> None:
    made = scan((4, 32), 1)
    value = made.statements[0].value
    assert isinstance(value, Reduce)
    wide = Reduce(value.kind, value.indices, Cast(value.body, DType.F64), DType.F64, value.until)
    y = replace(made.outputs[0], dtype=DType.F64)
    made = replace(made, outputs=(y,), statements=(replace(made.statements[0], value=wide),))
    assert SCAN.refusal(made, CPU) is None
