"""Reductions of many shapes: split, wide, several in one pass; their accuracy, and that they repeat bit by bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from running import compare, relative, run, shaped, values
from targets import CPU, GPU

from tilewright.dsl.families.reduce import REDUCE, Plan
from tilewright.dsl.families.reduce_kernels import far_groups
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])

COLUMNS = """op columns(x[R,K]) -> s[K], m[K]:
    s[k] = (sum(r) x[r,k]) / R
    m[k] = max(r) x[r,k]"""
MIDDLE = "op middle(x[N,K,C]) -> y[N,C]:\n    y[n,c] = sum(k) x[n,k,c]^2"
MOMENTS = """op moments(x[N,C,H,W]) -> s[C], q[C]:
    s[c] = sum(n,h,w) x[n,c,h,w]
    q[c] = sum(n,h,w) x[n,c,h,w]^2"""


def sampled(made: Program, target: Target, seed: int, count: int) -> list[Configuration]:
    """The default, some at random, and one that splits where there is one."""
    space, rng = REDUCE.space(made, target), random.Random(seed)
    drawn = [c for c in (space.sample(rng) for _ in range(20)) if c is not None]
    split = [c for c in drawn if c.integer("splits") > 1][:1]
    chosen = list(dict.fromkeys((REDUCE.default(made, target), *drawn[:count], *split)))
    assert [space.violated(c) for c in chosen] == [None] * len(chosen)
    return chosen


@BOTH_SHAPES
@pytest.mark.parametrize("sizes", [(300, 700), (1_030, 33), (40, 1_024)])
def test_columns(ctx: Context, shape: Shape, sizes: tuple[int, int]) -> None:
    made = parse_op(COLUMNS).specialise({"x": sizes})
    arrays, target = values(made, 1), shaped(ctx.device.target, shape)
    wide = arrays["x"].astype(np.float64)
    for configuration in sampled(made, target, 1, 3):
        found = run(ctx, REDUCE, made, target, configuration, arrays)
        compare(found["s"], wide.mean(0), relative(made, made.outputs[0]), str(configuration))
        compare(found["m"], wide.max(0), 0, str(configuration))


@BOTH_SHAPES
def test_the_middle(ctx: Context, shape: Shape) -> None:
    made = parse_op(MIDDLE).specialise({"x": (3, 130, 50)})
    arrays, target = values(made, 2), shaped(ctx.device.target, shape)
    expected = (arrays["x"].astype(np.float64) ** 2).sum(1)
    for configuration in sampled(made, target, 2, 3):
        found = run(ctx, REDUCE, made, target, configuration, arrays)["y"]
        compare(found, expected, relative(made, made.outputs[0]), str(configuration))


@BOTH_SHAPES
def test_results_repeat_bit_by_bit(ctx: Context, shape: Shape) -> None:
    made = parse_op(MOMENTS).specialise({"x": (8, 5, 24, 24)})
    arrays, target = values(made, 3), shaped(ctx.device.target, shape)
    for configuration in sampled(made, target, 3, 1):
        first, second = (run(ctx, REDUCE, made, target, configuration, arrays) for _ in range(2))
        for name, found in first.items():
            np.testing.assert_array_equal(found, second[name])
        compare(first["q"], (arrays["x"].astype(np.float64) ** 2).sum((0, 2, 3)), 3e-5, str(configuration))


# --- without a device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [(MOMENTS, (64, 128, 24, 24)), (COLUMNS, (1 << 20, 64)), ("op all(x[N]) -> y[1]: y[0] = sum(n) x[n]", (1 << 26,))],
)
def test_few_outputs_still_fill_a_gpu(text: str, sizes: tuple[int, ...]) -> None:
    made = parse_op(text).specialise({"x": sizes})
    first, second = REDUCE.lower(made, GPU, REDUCE.default(made, GPU)).launches
    assert first.local_size == (256,)
    assert first.global_size[0] // 256 >= 8 * GPU.compute_units
    assert "*(__global const float4*)" in first.source
    assert "atomic" not in first.source + second.source
    assert second.kernel.endswith("_combine")


def test_a_cpu_walks_over_long_pieces_of_columns() -> None:
    made = parse_op("op columns(x[R,K]) -> s[K]: s[k] = sum(r) x[r,k]").specialise({"x": (8_192, 4_096)})
    assert not Plan.of(made).rows
    configuration = REDUCE.default(made, CPU)
    assert 4 * configuration.integer("vectors") * configuration.integer("lanes") >= 1024


@pytest.mark.parametrize(("positions", "launches"), [(784, 1), (3136, 2)])
def test_a_cpu_splits_columns_that_are_worth_another_launch(positions: int, launches: int) -> None:
    """The mean over an image of 120 channels: 367 KiB, and four times as much."""
    made = parse_op(MIDDLE).specialise({"x": (1, positions, 120)})
    assert len(REDUCE.lower(made, CPU, REDUCE.default(made, CPU)).launches) == launches


@pytest.mark.parametrize("rows", [8, 9, 21])
def test_rows_taken_together_cover_all(ctx: Context, rows: int) -> None:
    made = parse_op("op product(a[M,N], x[N]) -> y[M]:\n    y[m] = sum(n) a[m,n] * x[n]").specialise(
        {"a": (rows, 37), "x": (37,)}
    )
    for together in (2, 4, 8):
        groups, places = far_groups(Plan.of(made), together)
        assert len(set(places)) == together
        assert {first + place for first in range(groups[-1].extent) for place in places} == set(range(rows))
    arrays, target = values(made, 5), shaped(ctx.device.target, Shape.CPU)
    configuration = Configuration.of({**REDUCE.default(made, target), "outputs": 8, "unroll": 1, "grain": 2})
    found = run(ctx, REDUCE, made, target, configuration, arrays)["y"]
    expected = arrays["a"].astype(np.float64) @ arrays["x"].astype(np.float64)
    compare(found, expected, relative(made, made.outputs[0]), str(configuration))
