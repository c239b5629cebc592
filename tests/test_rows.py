"""Chains over shared rows in one kernel, against float64: uneven sizes, layouts, configurations, both lowerings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import reference
from running import compare, laid_out, relative, run, shaped, values
from targets import CPU, GPU

from tilewright.dsl.compose import hoist, inline
from tilewright.dsl.families.rows import ROWS
from tilewright.dsl.families.rows_chain import chain_of
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
LAYOUTS = ["rows", "last", "scattered"]

SOFTMAX = """op softmax(x[R,K]) -> y[R,K]:
    m[r] = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]"""
MASKED_SOFTMAX = """op masked_softmax(x[B,H,Q,K], bias[H,K], mask[B,K]: bool) -> y[B,H,Q,K]:
    z[b,h,q,k] = where(mask[b,k], x[b,h,q,k] * 0.125 + bias[h,k], -1e9)
    m[b,h,q] = max(k) z[b,h,q,k]
    e[b,h,q,k] = exp(z[b,h,q,k] - m[b,h,q])
    y[b,h,q,k] = e[b,h,q,k] / sum(j) e[b,h,q,j]"""
CHANNEL_SOFTMAX = """op channel_softmax(x[N,C,H,W]) -> y[N,C,H,W]:
    m[n,h,w] = max(c) x[n,c,h,w]
    s[n,h,w] = sum(c) exp(x[n,c,h,w] - m[n,h,w])
    y[n,c,h,w] = exp(x[n,c,h,w] - m[n,h,w]) / s[n,h,w]"""
LAYER_NORM = """op layer_norm(x[R,K], z[R,K], scale[K], bias[K]) -> y[R,K], mean[R], rstd[R]:
    u[r,k] = x[r,k] + z[r,k]
    mean[r] = (sum(k) u[r,k]) / K
    rstd[r] = 1 / sqrt((sum(k) (u[r,k] - mean[r])^2) / K + 1e-5)
    y[r,k] = relu((u[r,k] - mean[r]) * rstd[r] * scale[k] + bias[k])"""
GROUP_NORM = """op group_norm(x[N,G,C,S], scale[G,C], bias[G,C]) -> y[N,G,C,S]:
    m[n,g] = (sum(c,s) x[n,g,c,s]) / (C * S)
    v[n,g] = (sum(c,s) (x[n,g,c,s] - m[n,g]) * (x[n,g,c,s] - m[n,g])) / (C * S)
    y[n,g,c,s] = (x[n,g,c,s] - m[n,g]) / sqrt(v[n,g] + 1e-5) * scale[g,c] + bias[g,c]"""
MOMENTS = """op moments(x[N,C,H,W]) -> m[C], v[C]:
    m[c] = (sum(n,h,w) x[n,c,h,w]) / (N * H * W)
    v[c] = (sum(n,h,w) (x[n,c,h,w] - m[c])^2) / (N * H * W)"""
LOG_SUM_EXP = """op log_sum_exp(x[R,K]) -> y[R,1]:
    m[r] = max(k) x[r,k]
    y[r,u] = m[r] + log(sum(k) exp(x[r,k] - m[r]))"""
ARG_MAX = """op arg_max(x[R,K]) -> y[R]: i32:
    m[r] = max(k) x[r,k] * 1.7 + 0.3
    y[r] = min(k) where(x[r,k] * 1.7 + 0.3 == m[r], k, K)"""
CROSS_ENTROPY = """op cross_entropy(x[R,K], label[R]: i32) -> loss[R]:
    m[r] = max(k) x[r,k]
    s[r] = sum(k) exp(x[r,k] - m[r])
    loss[r] = m[r] + log(s[r]) - sum(k) where(k == label[r], x[r,k], 0)"""
NORMALISED = """op normalised(x[R,K]) -> y[R,K], n[R]:
    s[r] = sum(k) x[r,k] * x[r,k]
    n[r] = sqrt(s[r])
    y[r,k] = where(n[r] == 0, 0, x[r,k] / n[r])"""
SHIFTED = """op shifted(x[R,K], z[R,K] pad 1.5) -> y[R,K]:
    s[r] = sum(k) x[r,k] * z[r,k-1]
    y[r,k] = z[r,k+2] - s[r] + f32(k)"""

CASES = [
    (SOFTMAX, {"x": (7, 301)}),
    (SOFTMAX, {"x": (3, 5003)}),
    (SOFTMAX, {"x": (301, 4)}),
    (MASKED_SOFTMAX, {"x": (2, 3, 5, 36), "bias": (3, 36), "mask": (2, 36)}),
    (CHANNEL_SOFTMAX, {"x": (2, 21, 5, 7)}),
    (LAYER_NORM, {"x": (5, 260), "z": (5, 260), "scale": (260,), "bias": (260,)}),
    (GROUP_NORM, {"x": (2, 3, 5, 28), "scale": (3, 5), "bias": (3, 5)}),
    (MOMENTS, {"x": (3, 19, 5, 4)}),
    (LOG_SUM_EXP, {"x": (13, 77)}),
    (ARG_MAX, {"x": (11, 130)}),
    (CROSS_ENTROPY, {"x": (9, 53), "label": (9,)}),
    (NORMALISED, {"x": (1, 40)}),
    (SHIFTED, {"x": (6, 41), "z": (6, 41)}),
]


def chain(text: str, shapes: Mapping[str, tuple[int, ...]], layout: str = "rows") -> Program:
    """A program as `split` would try it as one stage."""
    return laid_out(hoist(inline(parse_op(text).specialise(shapes))), layout)


def configurations(made: Program, target: Target, seed: int, count: int) -> list[Configuration]:
    """The default and some at random, all legal."""
    assert ROWS.refusal(made, target) is None
    space, rng = ROWS.space(made, target), random.Random(seed)
    found = [ROWS.default(made, target), *(space.sample(rng) for _ in range(count))]
    chosen = list(dict.fromkeys(c for c in found if c is not None))
    assert [space.violated(c) for c in chosen] == [None] * len(chosen)
    return chosen


def check(
    ctx: Context,
    made: Program,
    shape: Shape,
    count: int = 1,
    arrays: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The default and `count` random configurations agree with float64; returns the last result."""
    target = shaped(ctx.device.target, shape)
    arrays = values(made, seed) if arrays is None else arrays
    expected = reference(made, arrays)
    found: dict[str, np.ndarray] = {}
    for configuration in configurations(made, target, seed, count):
        (launch,) = ROWS.lower(made, target, configuration).launches
        assert launch.source.count("__kernel") == 1
        found = run(ctx, ROWS, made, target, configuration, arrays)
        for t in made.outputs:
            compare(found[t.name], expected[t.name], relative(made, t), f"{configuration}, {t.name}")
    return found


@BOTH_SHAPES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("text", "shapes"), CASES, ids=[f"{n}-{t.split()[1].split('(')[0]}" for n, (t, _) in enumerate(CASES)]
)
def test_chains_in_every_layout(
    ctx: Context, shape: Shape, text: str, shapes: dict[str, tuple[int, ...]], layout: str
) -> None:
    check(ctx, chain(text, shapes, layout), shape, count=3, seed=len(text))
