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
from attention_texts import DOT, TEXTS, program_of, scored
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


@pytest.mark.devices_in_turn
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
