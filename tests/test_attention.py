"""Softmax-weighted sums against float64: every spelling, mask, layout and type, on both lowerings; and in networks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx
import pytest
import targets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from oracle import reference
from running import compare, laid_out, run, shaped, values

import tilewright as tw
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import fitting
from tilewright.dsl.families.attention import ATTENTION
from tilewright.dsl.families.attention_algebra import bounds_of
from tilewright.dsl.families.attention_form import recognise
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape
from tilewright.errors import KernelError
from tilewright.graph import passes
from tilewright.graph.fusion import fuse
from tilewright.graph.onnx_import import import_model
from tilewright.graph.steps import Item, steps_of
from tilewright.runtime import Context, Device

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])

HEAD = "op attention(q[B,H,M,D], k[B,H,N,D], v[B,H,N,E]{more}) -> o[B,H,M,E]:\n"
SUMS = """
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    o[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j])"""
DOT = "sum(d) q[b,h,i,d] * k[b,h,j,d]"


def scored(score: str, more: str = "") -> str:
    """The text with these scores."""
    return HEAD.format(more=more) + f"    s[b,h,i,j] = {score}" + SUMS


TEXTS = {
    "plain": scored(DOT),
    "scaled in the product": scored("sum(d) (0.3 * q[b,h,i,d]) * (k[b,h,j,d] / 2)"),
    "added mask": scored(f"0.25 * ({DOT}) + mask[b,0,i,j]", ", mask[B,1,M,N]"),
    "mask of keys": scored(f"({DOT}) / 4 + mask[b,j]", ", mask[B,N]"),
    "truth values": scored(f"where(mask[b,0,i,j], ({DOT}) / 4, -1e30)", ", mask[B,1,M,N]: bool"),
    "soft cap": scored(f"5 * tanh(({DOT}) / 5)"),
    "causal": scored(f"where(j <= i + N - M, ({DOT}) / 4, -inf)"),
    "window": scored(f"where(j <= i and i - j < 9, {DOT}, -inf) / 4"),
    "divided first": HEAD.format(more="")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    l[b,h,i] = sum(j) exp(s[b,h,i,j] - m[b,h,i])
    p[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i]) / l[b,h,i]
    o[b,h,i,c] = sum(j) p[b,h,i,j] * v[b,h,j,c]""",
    "guarded": HEAD.format(more=", mask[B,1,M,N]: bool")
    + f"""    s[b,h,i,j] = where(mask[b,0,i,j], {DOT}, -inf)
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    p[b,h,i,j] = e[b,h,i,j] / sum(t) e[b,h,i,t]
    o[b,h,i,c] = sum(j) where(isnan(p[b,h,i,j]), 0, p[b,h,i,j]) * v[b,h,j,c]""",
    "base two": HEAD.format(more="")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp2(s[b,h,i,j] * 1.4426950408889634 - m[b,h,i] * 1.4426950408889634)
    o[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j])""",
    "with what follows": HEAD.format(more=", r[B,H,M,E], g[E]")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    l[b,h,i] = sum(j) e[b,h,i,j]
    a[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / l[b,h,i]
    o[b,h,i,c] = a[b,h,i,c] * g[c] + r[b,h,i,c] + 0.1 * (m[b,h,i] + log(l[b,h,i]))""",
    "values computed": scored(DOT).replace("v[b,h,j,c]", "max(v[b,h,j,c], 0)"),
    "shared keys": scored(DOT).replace("k[b,h,j,d]", "k[b,0,j,d]").replace("v[b,h,j,c]", "v[b,0,j,c]"),
    "grouped heads": scored(DOT, "; R: int")
    .replace("k[b,h,j,d]", "k[b,h/R,j,d]")
    .replace("v[b,h,j,c]", "v[b,h/R,j,c]")
    .replace("[B,H,N,", "[B,G,N,"),
    "flat heads": """op attention(q[S,M,D], k[S,N,D], v[S,N,E]) -> o[M,S,E]:
    s[b,i,j] = 0.25 * sum(d) q[b,i,d] * k[b,j,d]
    m[b,i] = max(j) s[b,i,j]
    e[b,i,j] = exp(s[b,i,j] - m[b,i])
    o[i,b,c] = (sum(j) e[b,i,j] * v[b,j,c]) / (sum(j) e[b,i,j])""",
}


def program_of(text: str, sizes: Mapping[str, int], dtype: DType = DType.F32) -> Program:
    """The text for sizes of B, H, M, N, D and E; two heads share keys where the text groups them."""
    known = {**sizes, "1": 1, "S": sizes["B"] * sizes["H"], "G": sizes["H"] // 2}
    shapes = {}
    definition = parse_op(text)
    for d in definition.inputs:
        dims = text.split(f"{d.name}[", 1)[1].split("]", 1)[0].split(",")
        shapes[d.name] = tuple(known[letter] for letter in dims)
    dtypes = {name: dtype for name in shapes if name != "mask" or ": bool" not in text}
    return definition.specialise(shapes, dtypes, parameters={"R": 2} if "/R" in text else {})


def check(
    ctx: Context, made: Program, shape: Shape, seed: int, count: int, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """The default and `count` random configurations give what the program says in float64."""
    if shape is Shape.CPU and ctx.device.kind != "cpu":
        pytest.skip("kernels for CPUs are for CPUs")
    target = shaped(ctx.device.target, shape)
    assert ATTENTION.refusal(made, target) is None
    given_arrays = values(made, seed) if arrays is None else arrays
    expected = reference(made, given_arrays)[made.outputs[0].name]
    space = ATTENTION.space(made, target)
    rng = random.Random(seed)
    default = ATTENTION.default(made, target)
    assert space.violated(default) is None
    output = made.outputs[0]
    allowed = {DType.F16: 2e-3, DType.BF16: 1.6e-2, DType.F32: 2e-5}[output.dtype]
    sampled = (space.sample(rng) for _ in range(99))
    for configuration in (default, *islice((c for c in sampled if c is not None and _compiles_soon(c)), count)):
        try:
            found = run(ctx, ATTENTION, made, target, configuration, given_arrays)[output.name]
        except KernelError as error:
            # How many registers a kernel takes is the compiler's secret; the default must run.
            if "work-items in a work-group" in str(error) and configuration != default:
                continue
            raise
        compare(found, expected, allowed, str(configuration))


def _compiles_soon(c: Configuration) -> bool:
    """Whether CPU drivers compile a GPU's kernel within seconds: they copy its unrolled loops for every work-item."""
    return "item_m" not in c or c.integer("item_m") * c.integer("item_n") <= 16


@BOTH_SHAPES
@pytest.mark.parametrize("name", TEXTS)
def test_every_spelling(ctx: Context, shape: Shape, name: str) -> None:
    sizes = {"B": 2, "H": 4, "M": 19, "N": 37, "D": 12, "E": 10}
    check(ctx, program_of(TEXTS[name], sizes), shape, seed=1, count=1 if shape is Shape.CPU else 0)


@BOTH_SHAPES
def test_other_configurations(ctx: Context, shape: Shape) -> None:
    sizes = {"B": 1, "H": 2, "M": 40, "N": 75, "D": 24, "E": 20}
    check(ctx, program_of(TEXTS["added mask"], sizes), shape, seed=8, count=6)


@BOTH_SHAPES
@given(data=st.data())
@settings(max_examples=5)
def test_any_sizes_and_layouts(ctx: Context, shape: Shape, data: st.DataObject) -> None:
    draw = data.draw
    sizes = {"B": draw(st.integers(1, 2)), "H": draw(st.sampled_from([2, 4]))}
    sizes |= {"M": draw(st.sampled_from([1, 2, 7, 33])), "N": draw(st.sampled_from([1, 5, 16, 31, 70]))}
    sizes |= {"D": draw(st.integers(1, 40)), "E": draw(st.integers(1, 40))}
    text = TEXTS[draw(st.sampled_from(sorted(TEXTS)))]
    made = laid_out(program_of(text, sizes), draw(st.sampled_from(["rows", "scattered"])))
    check(ctx, made, shape, seed=draw(st.integers(0, 99)), count=1 if shape is Shape.CPU else 0)


@BOTH_SHAPES
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_half_precision_is_storage(ctx: Context, shape: Shape, dtype: DType) -> None:
    sizes = {"B": 1, "H": 2, "M": 21, "N": 45, "D": 16, "E": 24}
    check(ctx, program_of(TEXTS["added mask"], sizes, dtype), shape, seed=2, count=0)
    check(ctx, laid_out(program_of(TEXTS["causal"], sizes, dtype), "scattered"), shape, seed=3, count=0)


@BOTH_SHAPES
def test_the_longest_rows(ctx: Context, shape: Shape) -> None:
    sizes = {"B": 1, "H": 2, "M": 18, "N": 21, "D": 256, "E": 256}
    check(ctx, program_of(TEXTS["plain"], sizes), shape, seed=4, count=0)


@BOTH_SHAPES
def test_rows_that_are_masked_as_a_whole_are_nan_as_in_numpy(ctx: Context, shape: Shape) -> None:
    """Blocks that are provably masked are left out; a row of which nothing is left is NaN, its neighbours are not."""
    sizes = {"B": 1, "H": 2, "M": 40, "N": 100, "D": 8, "E": 8}
    made = program_of(scored(f"where(j < i - 5 and j > i - 60, {DOT}, -inf)"), sizes)
    expected = reference(made, values(made, 5))["o"]
    assert np.isnan(expected[0, 0, :6]).all()
    assert np.isfinite(expected[0, 0, 7:]).all()
    check(ctx, made, shape, seed=5, count=1)


@BOTH_SHAPES
def test_infinite_and_undefined_inputs_go_where_they_go_in_numpy(ctx: Context, shape: Shape) -> None:
    made = program_of(TEXTS["added mask"], {"B": 1, "H": 2, "M": 18, "N": 70, "D": 8, "E": 8})
    arrays = values(made, 6)
    arrays["q"][0, 0, 3, 2] = np.nan
    arrays["mask"][0, 0, 5, :] = -np.inf
    arrays["mask"][0, 0, 6, 66] = np.inf
    arrays["mask"][0, 0, 7, :68] = -np.inf
    arrays["v"][0, 1, 40, 3] = np.inf
    found = reference(made, arrays)["o"]
    assert np.isnan(found[0, 0, [3, 5, 6]]).all()
    assert np.isinf(found[0, 1, 9, 3])
    check(ctx, made, shape, seed=6, count=0, arrays=arrays)


def test_a_stage_is_the_whole_chain() -> None:
    sizes = {"B": 1, "H": 2, "M": 20, "N": 30, "D": 8, "E": 8}
    for text in TEXTS.values():
        for target in (targets.CPU, targets.GPU):
            stages = split(program_of(text, sizes), target)
            assert len(stages) == 1
            assert fitting(stages[0], target)[0] is ATTENTION


def test_heads_that_share_keys_are_rows_where_there_are_few() -> None:
    sizes = {"B": 2, "H": 8, "M": 1, "N": 30, "D": 8, "E": 8}
    for name, rows, groups in (("grouped heads", [2], 8), ("shared keys", [8], 2), ("plain", [], 16)):
        found = recognise(program_of(TEXTS[name], sizes))
        assert not isinstance(found, str)
        assert [i.extent for i in found.rows] == rows
        assert found.g == groups
    many = recognise(program_of(TEXTS["grouped heads"], {**sizes, "M": 100}))
    assert not isinstance(many, str)
    assert [i.extent for i in many.rows] == [100]


@BOTH_SHAPES
def test_one_row_of_grouped_heads(ctx: Context, shape: Shape) -> None:
    text = TEXTS["grouped heads"].replace("s[b,h,i,j] = ", "s[b,h,i,j] = 0.1 * j + h - i + ")
    for m in (1, 3):
        sizes = {"B": 2, "H": 6, "M": m, "N": 77, "D": 16, "E": 16}
        check(ctx, laid_out(program_of(text, sizes), "scattered"), shape, seed=7, count=0)


def test_masks_bound_the_keys() -> None:
    sizes = {"B": 1, "H": 2, "M": 20, "N": 30, "D": 8, "E": 8}

    def bounds(score: str) -> tuple[list[str], list[str]]:
        found = recognise(program_of(scored(score), sizes))
        assert not isinstance(found, str)
        b = bounds_of(found.score)
        return [str(a) for a in b.last], [str(a) for a in b.first]

    assert bounds(f"where(j <= i + N - M, {DOT}, -inf)") == (["i + 10"], [])
    assert bounds(f"where(not (j >= i), {DOT}, -inf)") == (["i - 1"], [])
    assert bounds(f"where(j > i or i - j > 4, -inf, {DOT}) * 2") == (["i"], ["i - 4"])
    assert bounds(f"where(j <= i or j < 3, {DOT}, -inf)") == ([], [])
    assert bounds(f"where(j <= i, {DOT}, -1e30)") == ([], [])


REFUSED = {
    "the maximum": (scored(DOT).replace("max(j) s[b,h,i,j]", "max(j) abs(s[b,h,i,j])"), "not of scores less their"),
    "no exponential": (scored(DOT).replace("exp(", "abs("), "no exponential"),
    "another weight": (scored(DOT).replace("(sum(j) e[b,h,i,j])", "(sum(j) k[b,h,j,0])"), "not weighted"),
    "two products": (scored(f"{DOT} + sum(x) q[b,h,i,x] * k[b,h,j,0]"), "several reductions"),
    "falling weights": (scored(DOT).replace("exp(s[b,h,i,j] - m[b,h,i])", "exp(-1 * (s[b,h,i,j] - m[b,h,i]))"), "fall"),
    "several outputs": (scored(DOT).replace("-> o[B,H,M,E]", "-> o[B,H,M,E], m[B,H,M]"), "several outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    text, reason = REFUSED[name]
    made = program_of(text, {"B": 1, "H": 2, "M": 12, "N": 12, "D": 8, "E": 8})
    refused = ATTENTION.refusal(made, targets.CPU)
    assert reason in str(refused)


def test_what_does_not_fit_is_refused() -> None:
    sizes = {"B": 1, "H": 2, "M": 12, "N": 12, "D": 8, "E": 8}
    long = program_of(TEXTS["plain"], {**sizes, "D": 257})
    assert "do not stay on the chip" in str(ATTENTION.refusal(long, targets.CPU))
    for letter in "BHMNDE":
        empty = program_of(TEXTS["plain"], {**sizes, letter: 0})
        assert ATTENTION.refusal(empty, targets.CPU) is not None
    wide = program_of(TEXTS["plain"], sizes, DType.F64)
    assert "f64" in str(ATTENTION.refusal(wide, targets.CPU))
    decoding = program_of(TEXTS["plain"], {**sizes, "M": 1, "N": 4096})
    assert "leave the device idle" in str(ATTENTION.refusal(decoding, targets.GPU))
    assert ATTENTION.refusal(decoding, targets.CPU) is None
    small = replace(targets.GPU, local_memory=1 << 10)
    assert "local memory" in str(ATTENTION.refusal(program_of(TEXTS["plain"], sizes), small))


def test_defaults_lie_in_their_spaces() -> None:
    wide = replace(targets.CPU, vector_bytes=64, vector_registers=32)
    for target in (targets.CPU, wide, targets.GPU):
        for m, n, d, e in ((1, 1, 1, 1), (1, 300, 64, 64), (197, 197, 64, 64), (3, 50, 256, 7), (1000, 17, 20, 256)):
            made = program_of(TEXTS["plain"], {"B": 1, "H": 2, "M": m, "N": n, "D": d, "E": e})
            assert ATTENTION.refusal(made, target) is None
            assert ATTENTION.space(made, target).violated(ATTENTION.default(made, target)) is None


# --- networks ---------------------------------------------------------------------------------------------------------


def network(show_weights: bool = False, spelled_out: bool = False) -> onnx.ModelProto:
    """One layer as PyTorch exports it: a packed projection taken apart, two scaled operands, a mask, a guard."""
    node, rng = helper.make_node, np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((24, 72)).astype(np.float32) / 5,
        "split": np.array([8, 8, 8], np.int64),
        "heads": np.array([2, 11, 3, 3, 8], np.int64),
        "joined": np.array([2, 11, 24], np.int64),
        "root": np.array(0.6, np.float32),
        "parts": np.array([1, 1, 1], np.int64),
        "axis": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["packed"]),
        node("Reshape", ["packed", "heads"], ["five"]),
        node("Transpose", ["five"], ["turned"], perm=[2, 0, 3, 1, 4]),
        node("Split", ["turned", "parts"], ["q1", "k1", "v1"], axis=0),
        *(node("Squeeze", [f"{t}1", "axis"], [t]) for t in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("Mul", ["q", "root"], ["qs"]),
        node("Mul", ["kt", "root"], ["ks"]),
        node("MatMul", ["qs", "ks"], ["s"]),
        node("Add", ["s", "mask"], ["masked"]),
    ]
    if spelled_out:
        nodes += [
            node("ReduceMax", ["masked"], ["top"], axes=[-1], keepdims=1),
            node("Sub", ["masked", "top"], ["less"]),
            node("Exp", ["less"], ["e"]),
            node("ReduceSum", ["e", "last"], ["total"], keepdims=1),
            node("Div", ["e", "total"], ["p"]),
        ]
    else:
        nodes += [
            node("Softmax", ["masked"], ["p0"], axis=-1),
            node("IsNaN", ["p0"], ["bad"]),
            node("Where", ["bad", "zero", "p0"], ["p"]),
        ]
    nodes += [
        node("MatMul", ["p", "v"], ["o"]),
        node("Transpose", ["o"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "joined"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 11, 24])]
    if show_weights:
        outputs.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, [2, 3, 11, 11]))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 11, 24]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, [2, 1, 1, 11]),
    ]
    kept = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def fused_steps(model: onnx.ModelProto) -> list[Item]:
    """Those of the network's steps that compute attention."""
    graph = passes.specialise(passes.simplify(import_model(model)), {"x": (2, 11, 24), "mask": (2, 1, 1, 11)}, {})
    items = [s for s in fuse(steps_of(graph)).steps if isinstance(s, Item)]
    return [i for i in items if not isinstance(recognise(i.program), str)]


def expected_layer(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    w = numpy_helper.to_array(network().graph.initializer[0]).astype(np.float64)
    q, k, v = (x.astype(np.float64) @ w).reshape(2, 11, 3, 3, 8).transpose(2, 0, 3, 1, 4)
    s = 0.36 * q @ k.swapaxes(-1, -2) + mask
    with np.errstate(invalid="ignore"):
        e = np.exp(s - s.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
    return (np.where(np.isnan(p), 0, p) @ v).transpose(0, 2, 1, 3).reshape(2, 11, 24)


@pytest.mark.parametrize("spelled_out", [False, True], ids=["softmax", "spelled out"])
def test_a_layer_is_one_step(device: Device, spelled_out: bool) -> None:
    model = network(spelled_out=spelled_out)
    (item,) = fused_steps(model)
    assert item.ops.count("MatMul") == 2
    assert item.ops.count("Mul") == 2
    rng = np.random.default_rng(1)
    x, mask = rng.standard_normal((2, 11, 24)).astype(np.float32), np.zeros((2, 1, 1, 11), np.float32)
    mask[0, 0, 0, 7:] = -np.inf
    if not spelled_out:
        mask[1] = -np.inf
    (found,) = tw.InferenceSession(model, device=device, store=False).run(None, {"x": x, "mask": mask})
    compare(found, expected_layer(x, mask), 1e-5, "layer")


def test_weights_that_are_wanted_are_computed() -> None:
    assert not fused_steps(network(show_weights=True))
