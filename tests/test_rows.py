"""Chains over shared rows in one kernel, against float64: uneven sizes, layouts, configurations, both lowerings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import by_numpy, by_onnxruntime, model, planned, random
from oracle import reference
from running import compare, laid_out, relative, run, shaped, values
from targets import CPU, GPU

from tilewright.dsl.compose import hoist, inline
from tilewright.dsl.families import fitting
from tilewright.dsl.families.rows import ROWS
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
    space, rng = ROWS.space(made, target), Random(seed)
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


NAMES = [f"{n}-{text.split()[1].split('(')[0]}" for n, (text, _) in enumerate(CASES)]


@pytest.mark.devices_in_turn
@BOTH_SHAPES
@pytest.mark.parametrize(("text", "shapes"), CASES, ids=NAMES)
def test_chains_in_every_layout(ctx: Context, shape: Shape, text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    for seed, layout in enumerate(LAYOUTS):
        check(ctx, chain(text, shapes, layout), shape, count=1, seed=seed)


@BOTH_SHAPES
@settings(max_examples=3)
@given(st.tuples(*[st.integers(1, n) for n in (5, 40, 9, 20)]), st.sampled_from(LAYOUTS), st.integers(0, 99))
def test_channels_of_any_size(ctx: Context, shape: Shape, sizes: tuple[int, ...], layout: str, seed: int) -> None:
    made = chain(CHANNEL_SOFTMAX, {"x": sizes}, layout)
    if sizes[1] > 1:
        check(ctx, made, shape, seed=seed)
    else:
        assert "no reduction over more than one element" in str(ROWS.refusal(made, CPU))


@BOTH_SHAPES
@pytest.mark.parametrize(("dtype", "out"), [("f16", "f16"), ("bf16", "f32"), ("f64", "f64"), ("i32", "f32")])
def test_element_types(ctx: Context, shape: Shape, dtype: str, out: str) -> None:
    text = f"""op normed(x[R,K]: {dtype}) -> y[R,K]: {out}:
    m[r] = (sum(k) f32(x[r,k])) / K
    v[r] = (sum(k) (f32(x[r,k]) - m[r])^2) / K
    y[r,k] = {out}((f32(x[r,k]) - m[r]) / sqrt(v[r] + 1e-5))"""
    made = chain(text, {"x": (5, 136)})
    arrays = values(made, 4)
    x = arrays["x"].astype(np.float64)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    target = shaped(ctx.device.target, shape)
    for configuration in configurations(made, target, 3, 1):
        found = run(ctx, ROWS, made, target, configuration, arrays)["y"]
        compare(found, expected, 1e-2 if out == "f16" else 2e-5, str(configuration))


@BOTH_SHAPES
@pytest.mark.parametrize("text", [SOFTMAX, CHANNEL_SOFTMAX], ids=["along", "across"])
def test_nan_and_infinities_as_in_numpy(ctx: Context, shape: Shape, text: str) -> None:
    sizes = (7, 45) if text is SOFTMAX else (2, 9, 3, 5)
    made = chain(text, {"x": sizes})
    arrays = values(made, 2)
    x = np.moveaxis(arrays["x"], 1, -1)
    x[0, ...] = -np.inf
    x[1, ..., 3] = np.nan
    if text is SOFTMAX:
        x[2, 4] = np.inf
        x[3, 5] = -np.inf
    found = check(ctx, made, shape, count=1, arrays=arrays)["y"]
    assert np.isnan(found[0]).all()


@BOTH_SHAPES
def test_first_of_equal_extremes(ctx: Context, shape: Shape) -> None:
    made = chain(ARG_MAX, {"x": (6, 70)})
    x = np.zeros((6, 70), np.float32)
    x[1, [9, 40]] = 2.3
    x[2, 69] = 1e-3
    target = shaped(ctx.device.target, shape)
    for configuration in configurations(made, target, 1, 2):
        found = run(ctx, ROWS, made, target, configuration, {"x": x})["y"]
        assert found.tolist() == [0, 9, 69, 0, 0, 0], configuration


@BOTH_SHAPES
def test_long_sums_keep_their_accuracy(ctx: Context, shape: Shape) -> None:
    text = """op centred(x[R,A,K]) -> y[R], m[R]:
    m[r] = (sum(a,k) x[r,a,k]) / (A * K)
    y[r] = (sum(a,k) (x[r,a,k] - m[r])^2) / (A * K)"""
    rng = np.random.default_rng(5)
    x = (rng.random((3, 310, 1023)) + 100).astype(np.float32)
    wide = x.astype(np.float64)
    for layout in ("rows", "last"):
        made = chain(text, {"x": x.shape}, layout)
        target = replace(shaped(ctx.device.target, shape), compute_units=1)
        for configuration in configurations(made, target, 8, 1):
            found = run(ctx, ROWS, made, target, configuration, {"x": x})
            # One sum after the other of all 317130 elements would be off by about 1e-5.
            np.testing.assert_allclose(found["m"], wide.mean((1, 2)), rtol=2e-6, err_msg=str(configuration))
            np.testing.assert_allclose(found["y"], wide.var((1, 2)), rtol=1e-5, err_msg=str(configuration))


def test_gather_of_a_row_s_own_element(ctx: Context) -> None:
    text = """op picked(x[R,K], label[R]: i32) -> loss[R]:
    m[r] = max(k) x[r,k]
    loss[r] = m[r] + log(sum(k) exp(x[r,k] - m[r])) - x[r,label[r]]"""
    made = chain(text, {"x": (9, 53), "label": (9,)})
    x = np.random.default_rng(1).standard_normal((9, 53)).astype(np.float32)
    label = np.arange(9, dtype=np.int32) * 5
    expected = np.log(np.exp(x.astype(np.float64)).sum(1)) - x[np.arange(9), label]
    for shape in Shape:
        target = shaped(ctx.device.target, shape)
        for configuration in configurations(made, target, 2, 1):
            found = run(ctx, ROWS, made, target, configuration, {"x": x, "label": label})["loss"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=str(configuration))


# --- without a device -------------------------------------------------------------------------------------------------

WHOLE_GPU = replace(GPU, compute_units=132, local_memory=227 << 10)


@pytest.mark.parametrize("target", [CPU, WHOLE_GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("text", "shapes"), CASES, ids=NAMES)
def test_one_stage_each(text: str, shapes: dict[str, tuple[int, ...]], target: Target) -> None:
    (stage,) = split(parse_op(text).specialise(shapes), target)
    assert fitting(stage, target)[0] is ROWS


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        ("op f(x[R,K]) -> y[R]:\n    y[r] = sum(k) x[r,k]", {"x": (4, 5)}, "one statement only"),
        (SOFTMAX, {"x": (4, 0)}, "empty range"),
        (SOFTMAX, {"x": (4, 1)}, "no reduction over more than one element"),
        (SOFTMAX, {"x": (1, 1 << 20)}, "a few long rows only"),
        (
            "op f(x[R,K]) -> y[R,K]:\n    s[r] = sum(k) x[r,k]\n    y[r,k] = x[r,k] - s[r] + s[0]",
            {"x": (4, 5)},
            "another place than its own",
        ),
        (
            "op f(x[R,K]) -> y[R]:\n    s[r] = sum(k) x[r,k]\n    t[k] = sum(r) (x[r,k] - s[r])\n"
            "    y[r] = sum(k) x[r,k] * t[k]",
            {"x": (4, 5)},
            "range",
        ),
        (
            "op f(a[M,K], b[K,N]) -> c[M,N]:\n    s[m,n] = sum(k) a[m,k] * b[k,n]\n"
            "    c[m,n] = sum(k) a[m,k] * b[k,n] * s[m,n]",
            {"a": (8, 9), "b": (9, 7)},
            "many rows read the same elements",
        ),
        (
            "op f(x[R,K]) -> y[R,K], z[R]:\n    y[r,k] = sum(j <= k) x[r,j]\n    z[r] = max(k) y[r,k]",
            {"x": (4, 5)},
            "prefix",
        ),
        (
            "op f(x[R,K], z[R,K]) -> y[R,K], s[R]:\n    s[r] = sum(k) x[r,k]\n    y[r,k] = z[r,k]",
            {"x": (4, 5), "z": (4, 5)},
            "no statement reads what another one writes",
        ),
    ],
)
def test_refusals_say_why(text: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    assert reason in str(ROWS.refusal(chain(text, shapes), WHOLE_GPU))


def test_rows_need_a_type_that_the_device_has() -> None:
    made = chain(SOFTMAX.replace("x[R,K]) -> y[R,K]", "x[R,K]: f64) -> y[R,K]: f64"), {"x": (4, 5)})
    assert ROWS.refusal(made, replace(CPU, has_f64=False)) == "the device has no f64"


@pytest.mark.parametrize(
    ("text", "shapes", "expected"),
    [
        (SOFTMAX, {"x": (16384, 4096)}, {"work_group": 256, "rows": 1, "keep": "registers", "lanes": 4}),
        (SOFTMAX, {"x": (1 << 18, 256)}, {"work_group": 128, "rows": 8, "keep": "registers", "lanes": 4}),
        (MOMENTS, {"x": (64, 512, 24, 24)}, {"work_group": 1024, "rows": 1, "keep": "registers", "lanes": 4}),
        (SOFTMAX, {"x": (8192, 50257)}, {"work_group": 1024, "rows": 1, "keep": "local", "lanes": 1}),
        (SOFTMAX, {"x": (8192, 200000)}, {"work_group": 1024, "rows": 1, "keep": "nothing", "lanes": 4}),
        (CHANNEL_SOFTMAX, {"x": (64, 256, 32, 32)}, {"rows": 32, "keep": "registers", "lanes": 1}),
    ],
)
def test_defaults_on_a_large_gpu(
    text: str, shapes: dict[str, tuple[int, ...]], expected: Mapping[str, int | str]
) -> None:
    made = chain(text, shapes)
    chosen = ROWS.default(made, WHOLE_GPU)
    assert {name: chosen[name] for name in expected} == expected
    assert ROWS.space(made, WHOLE_GPU).violated(chosen) is None


def test_a_softmax_reads_memory_once_on_a_gpu() -> None:
    made = chain(SOFTMAX, {"x": (1024, 4096)})
    (launch,) = ROWS.lower(made, WHOLE_GPU, ROWS.default(made, WHOLE_GPU)).launches
    assert launch.source.count("g_x +") == 1
    assert launch.source.count("exp(") == 2  # the statement in the banner, and the one that is computed
    assert launch.source.count("barrier(") == 4


# --- networks ---------------------------------------------------------------------------------------------------------

ROW = "g (float[4,6,40] x) => (float[4,6,40] y)"
NETWORKS = {
    "softmax": (f"{ROW} {{ y = Softmax <axis = -1> (x) }}", 17, {}),
    "softmax along channels": ("g (float[2,30,8,7] x) => (float[2,30,8,7] y) { y = Softmax <axis = 1> (x) }", 17, {}),
    "old softmax": ("g (float[2,30,8,7] x) => (float[2,30,8,7] y) { y = Softmax <axis = 1> (x) }", 11, {}),
    "log softmax": (f"{ROW} {{ y = LogSoftmax <axis = -1> (x) }}", 17, {}),
    "masked softmax": (
        """g (float[2,3,8,40] x, float[2,1,1,40] m) => (float[2,3,8,40] y) {
            c = Constant <value = float {0.5}> () s = Mul(x, c) t = Add(s, m) y = Softmax <axis = -1> (t) }""",
        17,
        {},
    ),
    "layer normalisation": (f"{ROW} {{ y = LayerNormalization <axis = -1> (x, w, b) }}", 17, {"w": 40, "b": 40}),
    "layer normalisation of a sum, and an activation": (
        """g (float[4,6,40] x, float[4,6,40] z) => (float[4,6,40] y) {
            a = Add(x, z) n = LayerNormalization <axis = -1> (a, w, b) g = Gelu(n) y = Add(g, z) }""",
        20,
        {"w": 40, "b": 40},
    ),
    "layer normalisation by hand": (
        """g (float[4,6,40] x) => (float[4,6,40] y) {
            m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) two = Constant <value = float {2.0}> () q = Pow(d, two)
            v = ReduceMean <axes = [-1]> (q) e = Constant <value = float {0.00001}> () f = Add(v, e) s = Sqrt(f)
            n = Div(d, s) g = Mul(n, w) y = Add(g, b) }""",
        17,
        {"w": 40, "b": 40},
    ),
    "softmax by hand": (
        """g (float[4,6,40] x) => (float[4,6,40] y) {
            m = ReduceMax <axes = [-1]> (x) d = Sub(x, m) e = Exp(d) s = ReduceL1 <axes = [-1]> (e) y = Div(e, s) }""",
        17,
        {},
    ),
    "instance normalisation": (
        "g (float[2,5,8,7] x) => (float[2,5,8,7] y) { n = InstanceNormalization (x, w, b) y = Relu(n) }",
        17,
        {"w": 5, "b": 5},
    ),
    "group normalisation": (
        "g (float[2,6,8,7] x) => (float[2,6,8,7] y) { n = GroupNormalization <num_groups = 3> (x, w, b) y = Relu(n) }",
        21,
        {"w": 6, "b": 6},
    ),
    "rms normalisation": (f"{ROW} {{ y = RMSNormalization <axis = -1> (x, w) }}", 23, {"w": 40}),
    "log sum exp": ("g (float[4,6,40] x) => (float[1,6,1] y) { y = ReduceLogSumExp <axes = [0,2]> (x) }", 17, {}),
    "position of the largest": ("g (float[4,6,40] x) => (int64[4,6,1] y) { y = ArgMax <axis = -1> (x) }", 17, {}),
    "largest": (f"{ROW} {{ y = Hardmax <axis = -1> (x) }}", 17, {}),
    "length": (f"{ROW} {{ y = LpNormalization <axis = -1> (x) }}", 17, {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_rows_are_one_kernel(name: str) -> None:
    text, opset, sizes = NETWORKS[name]
    proto = model(text, opset, **{constant: random(n) for constant, n in sizes.items()})
    feeds = {
        i.name: random(*(d.dim_value for d in i.type.tensor_type.shape.dim))
        for i in proto.graph.input
        if i.name not in sizes
    }
    network = planned(proto, feeds)
    assert [fitting(call.program, CPU)[0].name for call in network.calls] == ["rows"]
    assert [ROWS.refusal(call.program, WHOLE_GPU) for call in network.calls] == [None]
    (found,) = by_numpy(network, feeds).values()
    if opset <= 22:
        np.testing.assert_allclose(found, by_onnxruntime(proto, feeds)[0], rtol=2e-4, atol=2e-5)


def test_steps_that_others_read_stay_apart() -> None:
    text = """g (float[4,40] x) => (float[4,40] y, float[4,40] d) {
        m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean <axes = [-1]> (q) y = Div(d, v) }"""
    feeds = {"x": random(4, 40)}
    network = planned(model(text), feeds)
    assert len(network.calls) == 2
    found = by_numpy(network, feeds)
    d = feeds["x"] - feeds["x"].mean(1, keepdims=True)
    np.testing.assert_allclose(found["d"], d, atol=1e-6)
    np.testing.assert_allclose(found["y"], d / (d * d).mean(1, keepdims=True), rtol=1e-4, atol=1e-6)
