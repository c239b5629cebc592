"""Squeeze-and-excitation in a launch or two: against float64, on GPU-shaped targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from networks import random
from oracle import reference
from running import compare, laid_out, relative, run, shaped, values
from test_prologues import check as check_network

from tilewright.dsl.families import fitting
from tilewright.dsl.families.squeeze import SQUEEZE
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape
from tilewright.runtime import Context

EXCITE = """op excite(x[N,C,H,W]: T, w1[C,J]: T, b1[J], w2[J,D]: T, b2[D]) -> y[N,D]: T:
    p[n,c] = (sum(h,w) f32(x[n,c,h,w])) / (H * W)
    a[n,j] = max(sum(c) f32(w1[c,j]) * p[n,c] + b1[j], 0)
    y[n,d] = 1 / (1 + exp(-(sum(j) f32(w2[j,d]) * a[n,j] + b2[d])))"""


def program(sizes: tuple[int, ...], dtype: str = "f32") -> Program:
    """The chain for (images, channels, hidden, outputs, height, width), images channels last."""
    n, c, j, d, high, wide = sizes
    shapes = {"x": (n, c, high, wide), "w1": (c, j), "b1": (j,), "w2": (j, d), "b2": (d,)}
    made = parse_op(EXCITE.replace(": T", f": {dtype}")).specialise(shapes)
    last = laid_out(made, "last")
    (x,) = (t for t in last.inputs if t.name == "x")
    return replace(made, inputs=tuple(x if t.name == "x" else t for t in made.inputs))


@pytest.mark.devices_in_turn
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((2, 12, 4, 12, 4, 5), "f32"),
        ((3, 37, 5, 23, 7, 6), "f32"),
        ((1, 64, 8, 64, 9, 9), "f16"),
        ((2, 16, 24, 8, 6, 5), "bf16"),
        ((1, 200, 9, 200, 5, 4), "f32"),
        ((3, 6, 2, 3, 1, 17), "f32"),
    ],
)
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_against_float64(ctx: Context, sizes: tuple[int, ...], dtype: str, splits: int) -> None:
    made = program(sizes, dtype)
    target = shaped(ctx.device.target, Shape.GPU)
    (stage,) = split(made, target)
    assert fitting(stage, target)[0] is SQUEEZE
    arrays = values(stage, 1)
    expected = reference(stage, arrays)
    default = SQUEEZE.default(stage, target)
    groups = (64, 256)
    tried = [
        Configuration.of({**default, "splits": splits, "work_group": g, "lanes": n}) for g in groups for n in (1, 4)
    ]
    for configuration in (default, *tried):
        assert SQUEEZE.space(stage, target).violated(configuration) is None
        found = run(ctx, SQUEEZE, stage, target, configuration, arrays)
        compare(found["y"], expected["y"], relative(stage, stage.outputs[0]), str(configuration))


def test_what_does_not_fit(ctx: Context) -> None:
    target = shaped(ctx.device.target, Shape.GPU)
    fits = split(program((1, 8, 4, 8, 3, 3)), target)[0]
    assert SQUEEZE.refusal(fits, shaped(target, Shape.CPU)) == "it is for GPUs"
    large = program((1, 600, 200, 8, 3, 3))
    assert SQUEEZE.refusal(large, target) == "its products are too large for a work-group each"
    assert len(split(large, target)) == 3
    for empty in ((0, 8, 4, 8, 3, 3), (2, 8, 4, 8, 0, 3)):
        assert SQUEEZE.refusal(program(empty), target) == "it has an empty range"
    product = """op product(x[N,C], v[C,J], w[J,D]) -> y[N,D]:
    a[n,j] = sum(c) x[n,c] * v[c,j]
    y[n,d] = sum(j) a[n,j] * w[j,d]"""
    layers = parse_op(product).specialise({"x": (5, 6), "v": (6, 4), "w": (4, 6)})
    assert "its first step is a product" in str(SQUEEZE.refusal(layers, target))
    text = "op twice(x[N,C], w[C,J]) -> y[N,J]:\n    p[n,c] = x[n,c] * 2\n    y[n,j] = sum(c) w[c,j] * p[n,c] * p[n,c]"
    other = parse_op(text).specialise({"x": (2, 3), "w": (3, 4)})
    assert SQUEEZE.refusal(other, target) is not None


NETWORK = """g (float[2, 16, 6, 5] x) => (float[2, 24, 6, 5] y) {
    p = GlobalAveragePool (x)
    a = Conv (p, down, below)
    b = Relu (a)
    c = Conv (b, up, above)
    s = Sigmoid (c)
    m = Mul (x, s)
    y = Conv (m, w)
}"""


def test_a_networks_chain_is_one_step() -> None:
    constants = {"down": random(4, 16, 1, 1), "up": random(16, 4, 1, 1), "w": random(24, 16, 1, 1)}
    constants |= {"below": random(4), "above": random(16)}
    calls = check_network(NETWORK, {"x": random(2, 16, 6, 5)}, **constants)
    assert calls == ["GlobalAveragePool+Conv+Relu+Conv+Sigmoid", "Mul+Conv"]
