"""Copies that move data: transpositions through tiles, vectors of every width, gathers; on both lowerings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import compare, relative, run, shaped, values
from targets import CPU, GPU

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.map import MAP, Plan
from tilewright.dsl.families.shared import is_aligned
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import LANE
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
LETTERS = "abcd"


def transposition(sizes: tuple[int, ...], order: tuple[int, ...], dtype: str = "f32") -> Program:
    """``y[permuted] = x[a,b,..]`` in the order of dimensions given."""
    names = LETTERS[: len(sizes)]
    upper, indices = ",".join(names.upper()), ",".join(names)
    turned = [names[d] for d in order]
    text = f"op turn(x[{upper}]: {dtype}) -> y[{','.join(turned).upper()}]: {dtype}:\n"
    text += f"    y[{','.join(turned)}] = x[{indices}]"
    return parse_op(text).specialise({"x": sizes})


def chosen(made: Program, target: Target, seed: int, count: int) -> list[Configuration]:
    """The default and some at random."""
    assert MAP.refusal(made, target) is None
    space, rng = MAP.space(made, target), random.Random(seed)
    found = [MAP.default(made, target), *(space.sample(rng) for _ in range(count))]
    unique = list(dict.fromkeys(c for c in found if c is not None))
    assert [space.violated(c) for c in unique] == [None] * len(unique)
    return unique


def check(
    ctx: Context,
    made: Program,
    shape: Shape,
    arrays: Mapping[str, np.ndarray],
    expected: np.ndarray,
    seed: int = 0,
    count: int = 2,
) -> None:
    """The only output is `expected` in the default and some other configurations."""
    target = shaped(ctx.device.target, shape)
    (output,) = made.outputs
    for configuration in chosen(made, target, seed, count):
        found = run(ctx, MAP, made, target, configuration, arrays)[output.name]
        compare(found, expected, relative(made, output), str(configuration))


@BOTH_SHAPES
@settings(max_examples=8)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70)),
    st.permutations(range(3)),
    st.sampled_from(["f32", "f16", "u8", "f64", "bool"]),
    st.integers(0, 999),
)
def test_transpositions(
    ctx: Context, shape: Shape, sizes: tuple[int, ...], order: list[int], dtype: str, seed: int
) -> None:
    made = transposition(sizes, tuple(order), dtype)
    arrays = values(made, seed)
    check(ctx, made, shape, arrays, arrays["x"].transpose(order), seed, 1)


@BOTH_SHAPES
@pytest.mark.parametrize("sizes", [(64, 128), (130, 3), (3, 257), (100, 96)])
@pytest.mark.parametrize("dtype", ["f32", "u8", "f16"])
def test_large_transpositions(ctx: Context, shape: Shape, sizes: tuple[int, int], dtype: str) -> None:
    made = transposition(sizes, (1, 0), dtype)
    arrays = values(made, 3)
    check(ctx, made, shape, arrays, arrays["x"].T, 3)


@BOTH_SHAPES
def test_transposition_with_arithmetic_and_further_operands(ctx: Context, shape: Shape) -> None:
    text = """op mixed(x[N,C,H,W], z[C,N,H,W], v[N,H,W,C], b[C], s[N,H,W]) -> y[N,H,W,C]:
        y[n,h,w,c] = relu(x[n,c,h,w] * 2 + b[c]) * s[n,h,w] - z[c,n,h,w] + v[n,h,w,c] + x[n,c,h,w]"""
    n, c, h, w = 2, 37, 5, 9
    shapes = {"x": (n, c, h, w), "z": (c, n, h, w), "v": (n, h, w, c), "b": (c,), "s": (n, h, w)}
    made = parse_op(text).specialise(shapes)
    a = values(made, 4)
    x, z = (v.astype(np.float64) for v in (a["x"].transpose(0, 2, 3, 1), a["z"].transpose(1, 2, 3, 0)))
    expected = np.maximum(x * 2 + a["b"], 0) * a["s"][..., None] - z + a["v"] + x
    check(ctx, made, shape, a, expected, 4, 3)


@BOTH_SHAPES
def test_transposition_that_pads(ctx: Context, shape: Shape) -> None:
    text = "op turned(x[H,W] pad 2.5) -> y[Q,P]:\n    y[q:40,p:21] = x[p-2,q-3]"
    made = parse_op(text).specialise({"x": (17, 35)})
    arrays = values(made, 5)
    expected = np.full((21, 40), 2.5)
    expected[2:19, 3:38] = arrays["x"]
    check(ctx, made, shape, arrays, expected.T, 5, 3)


@BOTH_SHAPES
@pytest.mark.parametrize("size", [1, 7, 4096, 70_001])
@pytest.mark.parametrize("dtype", ["f32", "u8", "f16", "i64"])
def test_long_vectors(ctx: Context, shape: Shape, size: int, dtype: str) -> None:
    made = parse_op(f"op twice(x[N]: {dtype}) -> y[N]: {dtype}:\n    y[n] = x[n] + x[n]").specialise({"x": (size,)})
    arrays = values(made, 6)
    check(ctx, made, shape, arrays, arrays["x"].astype(np.float64) * 2, 6)


@BOTH_SHAPES
@pytest.mark.parametrize("columns", [1, 13, 64, 2_052])
def test_rows_beside_a_broadcast_operand(ctx: Context, shape: Shape, columns: int) -> None:
    made = parse_op("op add(x[R,K], b[R], c[K]) -> y[R,K]:\n    y[r,k] = x[r,k] + b[r] * c[k]").specialise(
        {"x": (19, columns), "b": (19,), "c": (columns,)}
    )
    a = values(made, 7)
    expected = a["x"].astype(np.float64) + a["b"][:, None].astype(np.float64) * a["c"]
    check(ctx, made, shape, a, expected, 7, 3)


@BOTH_SHAPES
@pytest.mark.parametrize("columns", [24, 33])
def test_rows_of_an_embedding(ctx: Context, shape: Shape, columns: int) -> None:
    text = "op embed(w[V,D], ids[N]: i32) -> y[N,D]:\n    y[n,d] = w[ids[n],d]"
    made = parse_op(text).specialise({"w": (50, columns), "ids": (29,)})
    arrays = values(made, 8)
    arrays["ids"] = np.random.default_rng(8).integers(-3, 55, 29).astype(np.int32)
    inside = (arrays["ids"] >= 0) & (arrays["ids"] < 50)
    expected = np.where(inside[:, None], arrays["w"][arrays["ids"].clip(0, 49)], 0)
    check(ctx, made, shape, arrays, expected, 8)


# --- without a device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "lanes"), [("f32", 4), ("f64", 2), ("f16", 8), ("u8", 16)])
def test_gpu_items_move_16_bytes(dtype: str, lanes: int) -> None:
    made = parse_op(f"op copy(x[N]: {dtype}) -> y[N]: {dtype}:\n    y[n] = x[n]").specialise({"x": (1 << 24,)})
    configuration = MAP.default(made, GPU)
    assert configuration["lanes"] == lanes
    (launch,) = MAP.lower(made, GPU, configuration).launches
    kind = {"f32": "float4*)", "f64": "double2*)", "f16": "vloada_half8", "u8": "uchar16*)"}[dtype]
    assert kind in launch.source


def test_gpu_transpositions_go_through_local_memory() -> None:
    for order, tiled in (((1, 0, 2), False), ((0, 2, 1), True), ((2, 1, 0), True)):
        made = transposition((64, 80, 96), order)
        (launch,) = MAP.lower(made, GPU, MAP.default(made, GPU)).launches
        assert ("__local" in launch.source) == tiled == bool(Plan.of(made).crossing)


def test_tiles_of_short_dimensions_are_long() -> None:
    plan = Plan.of(transposition((3, 5000), (1, 0)))
    assert plan.tile(32) == (4, 128)
    assert plan.tile_bytes(32) == 4 * 129 * 4
    assert Plan.of(transposition((700, 900), (1, 0))).tile(64) == (64, 64)


def test_alignment_is_proved() -> None:
    lane, row, column = Affine.index(LANE), Affine.index("r"), Affine.index("k")
    for pitch, offset, columns_at, aligned in (
        (32, 0, 4, True),
        (30, 0, 4, False),
        (32, 2, 4, False),
        (32, 0, 1, False),
    ):
        x = Tensor("x", DType.F32, (6, 30), (pitch, 1), offset)
        assert is_aligned(x, x.address((row, column + lane)), 4, {"k": columns_at}) == aligned
        assert not is_aligned(x, x.address((row + lane, column)), 4, {"k": columns_at})


@pytest.mark.parametrize("streams", [False, True])
def test_large_outputs_are_written_past_the_caches(streams: bool) -> None:
    target = replace(CPU, streaming_stores=streams)
    made = {n: parse_op("op copy(x[N]) -> y[N]:\n    y[n] = x[n]").specialise({"x": (n,)}) for n in (1 << 24, 1 << 12)}
    found = {n: MAP.lower(p, target, MAP.default(p, target)).launches[0].source for n, p in made.items()}
    assert ("__builtin_nontemporal_store" in found[1 << 24]) == streams
    assert "__builtin_nontemporal_store" not in found[1 << 12]
