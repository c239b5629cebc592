"""Layout, memory plans and sessions: what shares memory, what is copied, what is run once, and what callers may do."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import by_numpy, by_onnxruntime, copies, model, planned, random
from numpy.lib.stride_tricks import as_strided
from targets import CPU

from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Tensor, contiguous_strides
from tilewright.errors import DeviceError, InputError, ModelError, UnsupportedOperatorError
from tilewright.graph import passes, running
from tilewright.graph.calls import Network, Role, network_of
from tilewright.graph.footprint import footprint, place, temporaries
from tilewright.graph.layout import channels_last_strides
from tilewright.graph.memory import Lifetime, Spot, assign, assign_apart, most_alive
from tilewright.graph.onnx_import import import_model
from tilewright.graph.plan import SharedConstants, build_plan, plan_program
from tilewright.graph.session import MAX_PLANS, InferenceSession
from tilewright.graph.steps import steps_of
from tilewright.graph.views import reshaped_strides, seen
from tilewright.ops import Permuted, Sliced
from tilewright.runtime import Array, Buffer, Context, Device, asarray
from tilewright.runtime.pool import GRANULE, block_size
from tilewright.runtime.transfers import Transfers
from tilewright.tuning_db import Store

# --- memory -----------------------------------------------------------------------------------------------------------


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    found = []
    for n in range(draw(st.integers(1, 25))):
        first = draw(st.integers(0, 20))
        found.append(Lifetime(f"b{n}", draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 8))))
    return found


@given(lifetimes(), st.sampled_from([16, 128, 1024]), st.sampled_from([6000, 1 << 40]))
def test_what_lives_at_the_same_time_never_overlaps(buffers: list[Lifetime], alignment: int, limit: int) -> None:
    arenas = assign(buffers, alignment, limit)
    assert all(size <= limit for size in arenas.sizes)
    if limit > sum(b.nbytes + alignment for b in buffers):
        assert len(arenas.sizes) == 1
    for n, a in enumerate(buffers):
        spot = arenas.spots[a.name]
        assert spot.offset % alignment == 0
        assert spot.offset + a.nbytes <= arenas.sizes[spot.arena]
        for b in buffers[:n]:
            other = arenas.spots[b.name]
            if spot.arena == other.arena and a.meets(b) and a.nbytes and b.nbytes:
                assert spot.offset + a.nbytes <= other.offset or other.offset + b.nbytes <= spot.offset


@given(lifetimes(), st.sampled_from([16, 512]))
def test_parts_that_must_not_overlap_never_do(buffers: list[Lifetime], alignment: int) -> None:
    arenas = assign_apart(buffers, alignment)
    parts: dict[Spot, int] = {}
    for b in buffers:
        spot = arenas.spots[b.name]
        assert spot.offset % alignment == 0
        assert spot.offset + b.nbytes <= arenas.sizes[spot.arena]
        if spot.offset:
            parts[spot] = max(parts.get(spot, 1), b.nbytes)
        for other in buffers:
            at = arenas.spots[other.name]
            if other is not b and b.meets(other) and at.arena == spot.arena:
                assert spot != at
                low, high = sorted([(spot.offset, b.nbytes), (at.offset, other.nbytes)])
                assert low[0] + low[1] <= high[0]
    for spot, size in parts.items():
        for other, length in parts.items():
            if other is not spot and other.arena == spot.arena:
                assert spot.offset + size <= other.offset or other.offset + length <= spot.offset


@given(lifetimes())
def test_no_placement_takes_less_than_what_is_alive(buffers: list[Lifetime]) -> None:
    moments = range(max(b.last for b in buffers) + 1)
    least = max(sum(b.nbytes for b in buffers if b.first <= t <= b.last) for t in moments)
    assert most_alive(buffers) == least
    assert sum(assign_apart(buffers, 1).sizes) >= least
    assert sum(assign(buffers, 1, 1 << 40).sizes) >= least


@pytest.mark.parametrize(
    ("buffers", "expected"),
    [
        ([(8, 0, 1), (8, 1, 2), (2, 2, 3), (4, 3, 4), (4, 4, 5)], 16),
        ([(12, 0, 1), (4, 1, 4), (4, 2, 3), (4, 3, 5), (4, 4, 5)], 16),  # three parts of what the first has left
        ([(6, 0, 1), (2, 0, 2), (1, 0, 3), (3, 2, 3)], 9),
        ([(0, 0, 1), (0, 1, 2), (4, 0, 2)], 6),
        ([], 0),
    ],
)
def test_parts_come_close_to_the_least(buffers: list[tuple[int, int, int]], expected: int) -> None:
    found = [Lifetime(f"b{n}", *b) for n, b in enumerate(buffers)]
    assert sum(assign_apart(found, 1).sizes) == expected


def test_memory_is_reused_along_a_chain() -> None:
    chain = [Lifetime(f"b{n}", 1000, n, n + 1) for n in range(10)]
    assert assign(chain, 8, 1 << 40).sizes == (2000,)


# --- views ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_reshaped_strides_agree_with_numpy(shape: list[int], order: list[int], wanted: list[int]) -> None:
    order = [d for d in order if d < len(shape)]
    size = int(np.prod(shape))
    rest = size
    target = []
    for n in wanted:
        target.append(n if rest % n == 0 else 1)
        rest //= target[-1]
    target.append(rest)
    memory = np.arange(size)
    array = memory.reshape([shape[d] for d in order]).transpose(np.argsort(order))
    strides = reshaped_strides(array.shape, tuple(s // 8 for s in array.strides), tuple(target))
    if strides is not None:
        found = as_strided(memory, target, [8 * s for s in strides])
        np.testing.assert_array_equal(found, array.reshape(target))
    else:
        assert not np.shares_memory(array.reshape(target), memory)


def test_views_of_views() -> None:
    tensor = Tensor("x", DType.F32, (2, 3, 4))
    moved = seen(tensor, Permuted((2, 0, 1)))
    assert moved is not None
    part = seen(moved, Sliced((1, 0, 0), (2, 1, 1), (2, 1, 3)))
    assert part is not None
    assert (part.shape, part.strides, part.offset) == ((2, 1, 3), (2, 12, 4), 1)


# --- layout -----------------------------------------------------------------------------------------------------------


def check(text: str, feeds: Mapping[str, np.ndarray], opset: int = 17, **constants: np.ndarray) -> Network:
    """The planned network, interpreted by NumPy, gives onnxruntime's numbers."""
    proto = model(text, opset, **constants)
    network = planned(proto, feeds)
    found = by_numpy(network, feeds)
    for value, expected in zip(proto.graph.output, by_onnxruntime(proto, feeds), strict=True):
        np.testing.assert_allclose(found[value.name], expected, rtol=1e-4, atol=1e-4)
    return network


def strides_of(network: Network, value: str) -> set[tuple[int, ...]]:
    """The strides under which a buffer is used."""
    return {t.strides for c in network.calls for t in c.program.tensors.values() if c.buffers[t.name] == value}


CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w)"
IMAGE = "float[2, 3, 6, 8] x"
X = {"x": random(2, 3, 6, 8)}


def test_activations_are_channels_last_and_ends_row_major() -> None:
    network = check(
        f"g ({IMAGE}) => (float[2, 4, 6, 8] y) {{ {CONV}\n y = MaxPool <kernel_shape = [1, 1]> (c) }}", X,
        w=random(4, 3, 3, 3),
    )  # fmt: skip
    assert strides_of(network, "x") == {contiguous_strides((2, 3, 6, 8))}
    assert strides_of(network, "c") == {channels_last_strides((2, 4, 6, 8))}
    assert strides_of(network, "y") == {contiguous_strides((2, 4, 6, 8))}


def test_depthwise_weights_and_channel_constants_follow_the_activations() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 3, 6, 8] y) {{
            c = Conv <pads = [1, 1, 1, 1], group = 3> (x, w)
            a = Mul(c, k)
            y = MaxPool <kernel_shape = [1, 1]> (a)
        }}""",
        X, w=random(3, 1, 3, 3), k=random(1, 3, 6, 8),
    )  # fmt: skip
    constants = [s for s in network.buffers.values() if s.role is Role.CONSTANT]
    weights = next(t for t in network.calls[0].program.inputs if t.shape == (3, 3, 3))
    factors = next(t for t in network.calls[0].program.inputs if t.shape == (1, 3, 6, 8))
    assert len(constants) == 2
    assert weights.strides == (1, 9, 3)
    assert factors.strides == channels_last_strides((1, 3, 6, 8))


def test_weights_within_groups_have_their_outputs_innermost_on_cpus() -> None:
    """Groups, depth, outputs of a group: (3, 2 of 4, 3x3) here, so that a tap's weights are one vector."""
    network = check(
        "g (float[2, 12, 6, 8] x) => (float[2, 6, 6, 8] y) { y = Conv <pads = [1, 1, 1, 1], group = 3> (x, w) }",
        {"x": random(2, 12, 6, 8)}, w=random(6, 4, 3, 3),
    )  # fmt: skip
    weights = next(t for t in network.calls[0].program.inputs if t.shape == (3, 2, 4, 3, 3))
    assert weights.strides == (72, 1, 18, 6, 2)


def test_joins_are_written_in_place() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 9, 6, 8] y) {{
            {CONV}
            p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
            r = Relu(c)
            i = Concat <axis = 1> (r, p)
            q = Conv(x, v)
            j = Concat <axis = 1> (i, q)
            y = Sigmoid(j)
        }}""",
        X, w=random(4, 3, 3, 3), v=random(2, 3, 1, 1),
    )  # fmt: skip
    assert copies(network) == 0
    assert len(network.calls) == 4


def test_dense_blocks_share_one_buffer() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 9, 6, 8] y) {{
            {CONV}
            j1 = Concat <axis = 1> (c, c)
            k1 = Concat <axis = 1> (c)
            d = Conv(k1, v1)
            k2 = Concat <axis = 1> (c, d)
            e = Conv(k2, v2)
            k3 = Concat <axis = 1> (c, d, e)
            s = Relu(k3)
            y = Sigmoid(s)
            z = Exp(j1)
        }}""",
        X, w=random(4, 3, 3, 3), v1=random(2, 4, 1, 1), v2=random(3, 6, 1, 1),
    )  # fmt: skip
    assert copies(network) == 0
    assert {c.buffers[t.name] for c in network.calls[:2] for t in c.program.outputs} == {"k3"}


def test_joins_copy_what_is_elsewhere() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 11, 6, 8] y, float[2, 8, 6, 8] z) {{
            {CONV}
            y = Concat <axis = 1> (c, x, c)
            z = Concat <axis = 1> (c, k)
        }}""",
        X, w=random(4, 3, 3, 3), k=random(2, 4, 6, 8),
    )  # fmt: skip
    assert copies(network) >= 3


def test_flatten_after_convolutions_needs_no_copy() -> None:
    network = check(
        f"g ({IMAGE}) => (float[2, 5] y) {{ {CONV}\n f = Flatten(c)\n y = Gemm(f, v) }}", X,
        w=random(4, 3, 3, 3), v=random(192, 5),
    )  # fmt: skip
    assert copies(network) == 0
    assert strides_of(network, "c") == {contiguous_strides((2, 4, 6, 8)), (192, 1)}


def test_reshapes_that_strides_cannot_say_are_copied() -> None:
    network = check(
        f"g ({IMAGE}) => (float[2, 5] y, float[2, 4, 6, 8] r) {{ {CONV}\n f = Flatten(c)\n y = Gemm(f, v)\n"
        " p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)\n r = Relu(p) }",
        X, w=random(4, 3, 3, 3), v=random(192, 5),
    )  # fmt: skip
    assert copies(network) == 1


def test_channel_shuffles_stay_channels_last() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 4, 6, 8] y) {{
            {CONV}
            a = Constant <value = int64[5] {{2, 2, 2, 6, 8}}> ()
            b = Constant <value = int64[4] {{2, 4, 6, 8}}> ()
            five = Reshape(c, a)
            moved = Transpose <perm = [0, 2, 1, 3, 4]> (five)
            back = Reshape(moved, b)
            p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (back)
            y = Relu(p)
        }}""",
        X, w=random(4, 3, 3, 3),
    )  # fmt: skip
    assert copies(network) == 1
    read = next(t for c in network.calls if "MaxPool" in c.ops for t in c.program.inputs)
    assert read.strides == channels_last_strides((2, 4, 6, 8))


def test_outputs_that_are_views_constants_or_inputs_of_others() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 4, 6, 8] c, float[2, 192] f, float[2, 6, 8, 4] t, float[2] k) {{
            {CONV}
            f = Flatten(c)
            t = Transpose <perm = [0, 2, 3, 1]> (c)
        }}""",
        X, w=random(4, 3, 3, 3), k=random(2),
    )  # fmt: skip
    assert copies(network) == 3


def test_outputs_that_are_views_may_be_joined() -> None:
    check("g (float[4, 6] x) => (float[1, 6] a, float[4, 6] y) { a, b = Split(x, sizes) y = Concat <axis = 0> (b, a) }",
          {"x": random(4, 6)}, sizes=np.array([1, 3]))  # fmt: skip


def test_an_output_that_is_a_flat_view_is_written_directly() -> None:
    network = check(f"g ({IMAGE}) => (float[2, 3] y) {{ p = GlobalAveragePool(x)\n y = Flatten(p) }}", X)
    assert copies(network) == 0
    assert len(network.calls) == 1


def test_outputs_without_elements_are_there() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y, float[N, 0] z) {
        y = Relu(x)
        starts = Constant <value = int64[1] {4}> ()
        ends = Constant <value = int64[1] {4}> ()
        axes = Constant <value = int64[1] {1}> ()
        z = Slice(x, starts, ends, axes)
    }"""
    network = planned(model(text), {"x": random(2, 4)})
    assert network.buffers["z"].shape == (2, 0)


# --- fusion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ("s = Sigmoid(c)\n y = Mul(c, s)", 1),  # both readers of c are absorbed
        ("a = Relu(c)\n b = Exp(c)\n y = Add(a, b)", 1),
        ("a = Relu(c)\n b = Add(a, x4)\n y = Relu(b)", 1),  # the residual sum
        ("d = Conv(c, v)\n y = Add(c, d)", 2),  # into the convolution that comes later
        ("a = Relu(c)\n d = Conv(a, v)\n y = Add(a, d)", 2),
        ("p = GlobalAveragePool(c)\n y = Mul(c, p)", 2),  # the pool and the product are a chain over rows
        ("r = Relu(x4)\n y = GlobalAveragePool(r)", 1),  # a prologue: each element is read once
        ("r = Exp(x4)\n y = MaxPool <kernel_shape = [3, 3]> (r)", 2),  # each element is read nine times
        ("r = Exp(x4)\n y = Conv(r, v)", 2),
        ("y = Add(c, row)", 1),
    ],
)
def test_what_fuses(body: str, calls: int) -> None:
    text = f"g ({IMAGE}, float[2, 4, 6, 8] x4) => (float[A, B, C, D] y) {{ {CONV}\n {body} }}"
    feeds = X | {"x4": random(2, 4, 6, 8)}
    network = check(text, feeds, w=random(4, 3, 3, 3), v=random(4, 4, 1, 1), row=random(8))
    assert len(network.calls) == calls


def test_graph_outputs_are_not_absorbed() -> None:
    network = check(
        f"g ({IMAGE}) => (float[2, 4, 6, 8] c, float[2, 4, 6, 8] y) {{ {CONV}\n y = Relu(c) }}", X,
        w=random(4, 3, 3, 3),
    )  # fmt: skip
    assert len(network.calls) == 2


def test_grouped_convolutions_absorb_what_follows() -> None:
    network = check(
        f"""g ({IMAGE}) => (float[2, 6, 6, 8] y) {{
            c = Conv <pads = [1, 1, 1, 1], group = 3> (x, w)
            s = Sigmoid(c)
            m = Mul(c, s)
            a = Add(m, k)
            y = Relu(a)
        }}""",
        X, w=random(6, 1, 3, 3), k=random(6, 1, 1),
    )  # fmt: skip
    assert len(network.calls) == 1


def test_nodes_that_cannot_be_run_with_these_sizes_are_listed() -> None:
    text = """g (float[N, 4] x, float[N, H] w) => (float[A, B] y, float[A, C] z) {
        y, i = TopK(x, two)
        z, j = TopK(w, two)
    }"""
    graph = passes.simplify(import_model(model(text, two=np.array([2]))))
    with pytest.raises(UnsupportedOperatorError, match=r"1 node cannot be run with these sizes(?s:.*)'z'.* ranking"):
        steps_of(passes.specialise(graph, {"x": (1, 4), "w": (1, 2**20)}))


# --- plans on a device ------------------------------------------------------------------------------------------------

SOFTMAX = """
op softmax(x[R, K]) -> y[R, K]:
    m[r] = max(k) x[r, k]
    s[r] = sum(k) exp(x[r, k] - m[r])
    y[r, k] = exp(x[r, k] - m[r]) / s[r]
"""
BOTH_WAYS = """
op both_ways(x[R, K]) -> y[R, K]:
    m[r] = max(k) x[r, k]
    s[r] = sum(k) exp(x[r, k] - m[r])
    z[r, k] = exp(x[r, k] - m[r]) / s[r]
    n[k] = max(r) z[r, k]
    t[k] = sum(r) exp(z[r, k] - n[k])
    y[r, k] = exp(z[r, k] - n[k]) / t[k]
"""


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    result: np.ndarray = e / e.sum(1, keepdims=True)
    return result


def test_a_program_alone(device: Device, ctx: Context) -> None:
    program = parse_op(BOTH_WAYS).specialise({"x": (4, 9)})
    plan = plan_program(program, device)
    assert len(plan.launches) == 2
    assert plan.arena_bytes > 0
    for seed in range(2):
        x = random(4, 9, seed=seed)
        np.testing.assert_allclose(plan.run({"x": x})["y"], softmax(softmax(x).T).T, rtol=1e-5)


def test_device_buffers_in_and_out(device: Device, ctx: Context) -> None:
    plan = plan_program(parse_op(SOFTMAX).specialise({"x": (4, 9)}), device)
    x = random(4, 9)
    given = ctx.allocate(x.nbytes)
    ctx.write(given, x)
    first = plan.run_on_device({"x": given})["y"]
    second = plan.run_on_device({"x": first})["y"]
    assert isinstance(second, Buffer)
    np.testing.assert_allclose(ctx.read(first, (4, 9), "float32"), softmax(x), rtol=1e-5)
    np.testing.assert_allclose(ctx.read(second, (4, 9), "float32"), softmax(softmax(x)), rtol=1e-5)
    np.testing.assert_allclose(plan.run({"x": x})["y"], softmax(x), rtol=1e-5)
    with pytest.raises(DeviceError, match="input x needs 144 bytes, but its buffer has 4"):
        plan.run({"x": ctx.allocate(4)})
    with pytest.raises(DeviceError, match="input x lies in memory of another device"):
        plan.run({"x": Context(device).allocate(x.nbytes)})


def test_runs_hold_no_memory_for_inputs_and_outputs(device: Device, ctx: Context) -> None:
    plan = plan_program(parse_op(SOFTMAX).specialise({"x": (64, 90)}), device)
    x = random(64, 90)
    gc.collect()
    ctx.trim()  # what waits for reuse may be larger than what is asked for
    before = ctx.pool.in_use
    result = plan.run({"x": x})["y"]
    assert ctx.pool.in_use == before
    kept = plan.run_on_device({"x": x})["y"]
    inputs = 2 if ctx.transfers.overlap else 0  # copied while the run before computes
    assert ctx.pool.in_use <= before + (1 + inputs) * block_size(x.nbytes)
    for seed in range(5):
        plan.run_on_device({"x": random(64, 90, seed=seed)})
    np.testing.assert_array_equal(ctx.read(kept, (64, 90), "float32"), result)
    assert before + block_size(x.nbytes) <= ctx.pool.in_use <= before + (1 + inputs) * block_size(x.nbytes)
    assert plan.io_bytes == 2 * x.nbytes


def test_only_the_named_outputs_are_copied(device: Device, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "op f(x[N]) -> y[N], z[N]:\n    y[n] = x[n] + 1\n    z[n] = x[n] * 2"
    plan = plan_program(parse_op(text).specialise({"x": (5,)}), device)
    x = random(5)
    copied: list[int] = []
    receive = Transfers.receive
    monkeypatch.setattr(
        Transfers, "receive", lambda self, parts, offset=0: copied.append(len(parts)) or receive(self, parts, offset)
    )
    found = plan.run({"x": x}, ["z"])
    assert list(found) == ["z"]
    np.testing.assert_array_equal(found["z"], x * 2)
    np.testing.assert_array_equal(plan.run({"x": x})["y"], x + 1)
    assert copied == [1, 2]


def test_programs_without_elements(device: Device) -> None:
    program = parse_op("op f(x) -> y: y = x + 1").specialise({"x": (0, 3)})
    assert plan_program(program, device).run({"x": np.zeros((0, 3), np.float32)})["y"].shape == (0, 3)


def test_a_sum_over_nothing(device: Device) -> None:
    program = parse_op("op f(x[N, K]) -> y[N]:\n    y[n] = sum(k) x[n, k]").specialise({"x": (3, 0)})
    found = plan_program(program, device).run({"x": np.zeros((3, 0), np.float32)})["y"]
    np.testing.assert_array_equal(found, np.zeros(3, np.float32))


def test_profile_and_description(device: Device) -> None:
    plan = plan_program(parse_op(SOFTMAX).specialise({"x": (4, 9)}), device)
    rows = plan.profile({"x": random(4, 9)})
    assert len(rows) == len(plan.launches)
    assert all(r.op == "softmax softmax" and r.microseconds >= 0 and r.origin == "default" for r in rows)
    assert f"launches on {device.name}" in plan.describe()
    assert all(s > 0 for s in plan.time({"x": random(4, 9)}, 2))


SMALL = f"g ({IMAGE.replace('2', 'N')}) => (float[N, 5] y) {{ {CONV}\n r = Relu(c)\n f = Flatten(r)\n y = Gemm(f, v) }}"
WEIGHTS = {"w": random(4, 3, 3, 3), "v": random(192, 5)}


@pytest.mark.usefixtures("one_by_one")
def test_constants_are_prepared_once_and_shared_between_plans(device: Device) -> None:
    network = planned(model(SMALL, **WEIGHTS), X)
    shared = SharedConstants()
    first = build_plan(network, device, None, shared)
    second = build_plan(planned(model(SMALL, **WEIGHTS), X), device, None, SharedConstants())
    again = build_plan(network, device, None, shared)
    assert {id(b) for b in first.constants} == {id(b) for b in again.constants}
    assert not {id(b) for b in first.constants} & {id(b) for b in second.constants}
    for plan in (first, second, again):
        np.testing.assert_allclose(
            plan.run(X)["y"], by_onnxruntime(model(SMALL, **WEIGHTS), X)[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.usefixtures("one_by_one")
def test_a_footprint_is_what_a_plan_takes(device: Device, ctx: Context) -> None:
    rest = "r = MaxPool <kernel_shape = [2, 2]> (c)\n f = Flatten(r)\n y = Gemm(f, v)"
    text = f"g ({IMAGE}) => (float[2, 5] y) {{ {CONV}\n {rest} }}"
    network = planned(model(text, w=random(4, 3, 3, 3), v=random(140, 5)), X)
    gc.collect()
    ctx.trim()  # what waits for reuse may be larger than what is asked for
    before = ctx.pool.in_use
    plan = build_plan(network, device)
    found = footprint(network, plan.calls, ctx.splits_buffers, ctx.alignment, device.max_allocation)
    assert (found.constants, found.temporaries) == (plan.constant_bytes, plan.arena_bytes)
    assert found.inputs + found.outputs == plan.io_bytes
    assert found.least <= found.temporaries
    assert found.total == plan.constant_bytes + plan.arena_bytes + plan.io_bytes
    arenas = place(temporaries(network, plan.calls), ctx.splits_buffers, ctx.alignment, device.max_allocation)
    slack = GRANULE * (len(plan.constants) + len(arenas.sizes) + 1)
    assert (
        found.constants + found.temporaries <= ctx.pool.in_use - before <= found.constants + found.temporaries + slack
    )
    assert any(c.ahead for c in plan.calls) <= (ctx.pool.kept == 0), "constants that were packed are not kept as well"


def test_equal_stages_are_lowered_once(device: Device) -> None:
    text = (
        f"g ({IMAGE}) => (float[2, 3, 6, 8] y) {{ a = Conv(x, w)\n b = Conv(a, v)\n c = Conv(b, u)\n y = Conv(c, t) }}"
    )
    weights = {name: random(3, 3, 1, 1, seed=n) for n, name in enumerate("wvut")}
    plan = build_plan(planned(model(text, **weights), X), device)
    assert plan.calls[1].program is plan.calls[2].program or plan.calls[1].program == plan.calls[2].program
    assert plan.calls[1].lowering is plan.calls[2].lowering


@pytest.mark.usefixtures("one_by_one")
def test_parts_lie_apart_where_the_driver_needs_it(
    device: Device, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = "\n".join(
        f"{y} = MaxPool <kernel_shape = [{k}, {k}], pads = {[k // 2] * 4}, strides = [{s}, {s}]> ({x})"
        for x, y, k, s in (("x", "a", 3, 1), ("a", "b", 3, 2), ("b", "c", 3, 1), ("b", "d", 5, 1), ("b", "e", 7, 1))
    )
    sums = "p = AveragePool <kernel_shape = [1, 1]> (b)\n s = Add(p, c)\n t = Add(s, d)\n y = Add(t, e)"
    text = f"g (float[1, 8, 16, 16] x) => (float[1, 8, 8, 8] y) {{ {pools}\n {sums} }}"
    views: list[tuple[int, int]] = []
    view = Context.view
    monkeypatch.setattr(ctx, "splits_buffers", False)
    monkeypatch.setattr(Context, "view", lambda self, b, at, n: views.append((at, at + n)) or view(self, b, at, n))
    gc.collect()
    before = ctx.pool.in_use
    session = InferenceSession(model(text), device, store=False)
    assert len(views) >= 2
    assert all(a[1] <= b[0] or b[1] <= a[0] for n, a in enumerate(views) for b in views[:n])
    x = {"x": random(1, 8, 16, 16)}
    np.testing.assert_allclose(session.run(None, x)[0], by_onnxruntime(model(text), x)[0], rtol=1e-6)
    kept = ctx.pool.kept
    del session
    gc.collect()
    assert (ctx.pool.in_use, ctx.pool.kept) == (before, kept), "its memory goes back to the driver"


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(device: Device) -> InferenceSession:
    return InferenceSession(model(SMALL, **WEIGHTS), device, store=False)


def test_session_like_onnxruntimes(session: InferenceSession, device: Device) -> None:
    import onnxruntime

    theirs = onnxruntime.InferenceSession(model(SMALL, **WEIGHTS).SerializeToString())
    for ours, other in ((session.get_inputs(), theirs.get_inputs()), (session.get_outputs(), theirs.get_outputs())):
        assert [(a.name, a.shape, a.type) for a in ours] == [(a.name, a.shape, a.type) for a in other]
    assert session.device == device
    for batch in (1, 2, 5):
        x = {"x": random(batch, 3, 6, 8)}
        np.testing.assert_allclose(session.run(["y"], x)[0], theirs.run(None, x)[0], rtol=1e-4, atol=1e-4)


def test_wrong_feeds_are_named(session: InferenceSession) -> None:
    x = X["x"]
    for feeds, message in (
        ({}, "the input 'x' is missing"),
        ({"z": x}, "there is no input 'z'; the inputs are 'x'"),
        ({"x": x.astype(np.float64)}, "the input 'x' should be float32, found float64"),
        ({"x": x[0]}, r"the input 'x' should have 4 dimensions \(Nx3x6x8\), found 3 \(3x6x8\)"),
        ({"x": x[:, :2]}, r"the input 'x' should have size 3 in dimension 1 \(Nx3x6x8\), found 2 \(2x2x6x8\)"),
    ):
        with pytest.raises(InputError, match=message):
            session.run(None, feeds)
    with pytest.raises(InputError, match="there is no output 'q'; the outputs are 'y'"):
        session.run(["q"], X)
    with pytest.raises(InputError, match="output names are a list"):
        session.run("y", X)


def test_arrays_in_and_out_of_a_session(session: InferenceSession, device: Device) -> None:
    batches = [random(2, 3, 6, 8, seed=n) for n in range(6)]
    expected = [session.run(None, {"x": x})[0] for x in batches]
    given = [asarray(x, device) for x in batches]
    results = [session.run_on_device(["y"], {"x": x})[0] for x in given]  # held: none may be overwritten by a later one
    for x, y, wanted in zip(given, results, expected, strict=True):
        assert (y.shape, y.dtype, y.device) == ((2, 5), np.float32, device)
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)
    for x, wanted in zip(batches, expected, strict=True):
        (y,) = session.run_on_device(None, {"x": x})
        x[:] = np.nan  # the caller may do so once the call has returned
        np.testing.assert_array_equal(y, wanted)
    assert [r.op for r in session.profile({"x": given[0]})] == [r.op for r in session.profile({"x": batches[0]})]


def test_uploads_overlap_runs_where_the_device_has_memory_of_its_own(
    session: InferenceSession, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [random(2, 3, 6, 8, seed=n) for n in range(12)]
    expected = [session.run(None, {"x": x})[0] for x in batches]
    staged = Transfers(ctx._context, ctx._queue, False, ctx._synchronising)
    monkeypatch.setattr(ctx, "transfers", staged)
    assert staged.overlap
    results = []
    for x in batches:
        results += session.run_on_device(None, {"x": x})
        x[:] = np.nan
    for y, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(y, wanted)
    assert len(session.plan(batch=2)._own) <= 2


@pytest.mark.usefixtures("one_by_one")
def test_runs_wait_when_they_are_far_ahead(session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = len(session.plan(batch=2).launches)
    waits: list[object] = []
    wait = Transfers.wait
    monkeypatch.setattr(Transfers, "wait", lambda self, mark: waits.append(mark) or wait(self, mark))
    monkeypatch.setattr(running, "MOST_LAUNCHES_AHEAD", 6)
    x = {"x": random(2, 3, 6, 8)}
    for _ in range(10):
        (y,) = session.run_on_device(None, x)
    assert len(waits) == 10 - max(2, 6 // launches)
    np.testing.assert_array_equal(y, session.run(None, x)[0])


@pytest.mark.usefixtures("one_by_one")
def test_short_runs_share_a_mark(session: InferenceSession, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = len(session.plan(batch=2).launches)
    marks: list[object] = []
    mark = Transfers.mark
    monkeypatch.setattr(Transfers, "mark", lambda self: marks.append(None) or mark(self))
    monkeypatch.setattr(running, "LAUNCHES_PER_MARK", 3 * launches)
    x = random(2, 3, 6, 8)
    resident = {"x": asarray(x, device)}
    for _ in range(9):
        (y,) = session.run_on_device(None, resident)
    assert len(marks) == 3
    np.testing.assert_array_equal(y, session.run(None, {"x": x})[0])


def test_wrong_arrays_are_named(session: InferenceSession, device: Device) -> None:
    for array, message in (
        (random(2, 3, 6, 8).astype(np.float64), "the input 'x' should be float32, found float64"),
        (random(2, 3, 6), r"the input 'x' should have 4 dimensions \(Nx3x6x8\), found 3 \(2x3x6\)"),
        (random(2, 3, 6, 7), r"should have size 8 in dimension 3 \(Nx3x6x8\), found 7"),
    ):
        with pytest.raises(InputError, match=message):
            session.run_on_device(None, {"x": asarray(array, device)})
    with pytest.raises(InputError, match="there is no output 'q'"):
        session.run_on_device(["q"], {"x": asarray(X["x"], device)})


def test_arrays_of_another_device_are_refused(session: InferenceSession, device: Device) -> None:
    elsewhere = Array(Buffer.__new__(Buffer), (2, 3, 6, 8), DType.F32, replace(device, name="other"))
    with pytest.raises(InputError, match=f"'x' lies on other, but the session runs on {device.name}; move it with"):
        session.run(None, {"x": elsewhere})


def test_results_on_the_device_from_many_threads(session: InferenceSession, device: Device) -> None:
    inputs = [random(1, 3, 6, 8, seed=n) for n in range(6)]
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    wrong = []

    def work(n: int) -> None:
        found = [session.run_on_device(None, {"x": inputs[n]})[0] for _ in range(10)]
        wrong.extend(n for y in found if not np.array_equal(y, expected[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_one_name_one_size(device: Device) -> None:
    text = "g (float[N, 3] a, float[N, 3] b) => (float[N, 3] y) { y = Add(a, b) }"
    session = InferenceSession(model(text), device, store=False)
    with pytest.raises(InputError, match=r"dimension 0 of 'b' should be N = 2 \(from dimension 0 of 'a'\), found 1"):
        session.run(None, {"a": random(2, 3), "b": random(1, 3)})


@pytest.mark.parametrize("text", ["?", "-1", "None", " "])
def test_texts_that_name_no_size_tie_no_sizes(device: Device, text: str) -> None:
    proto = model("g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }")
    for value in (*proto.graph.input, *proto.graph.output):
        for d in value.type.tensor_type.shape.dim:
            d.dim_param = text
    x = random(2, 3)
    found = InferenceSession(proto, device, store=False).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, np.maximum(x, 0))


def test_plans_are_kept_and_forgotten(session: InferenceSession) -> None:
    first = session.plan(batch=1)
    assert session.plan(batch=1) is first
    for batch in range(2, MAX_PLANS + 2):
        session.plan(batch=batch)
    assert session.plan(batch=1) is not first


def test_sessions_run_in_threads(session: InferenceSession) -> None:
    inputs = [random(1, 3, 6, 8, seed=n) for n in range(8)]
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    wrong = []

    def work(n: int) -> None:
        for _ in range(5):
            if not np.array_equal(session.run(None, {"x": inputs[n]})[0], expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_inputs_that_are_outputs_and_inputs_that_decide_sizes(device: Device) -> None:
    text = "g (float[2, 6] x, int64[R] s) => (float[2, 6] x, float[A, B] y) { r = Relu(x)\n y = Reshape(r, s) }"
    session = InferenceSession(model(text), device, store=False)
    x = random(2, 6)
    for shape in ([3, 4], [4, -1], [3, 4]):
        same, y = session.run(None, {"x": x, "s": np.array(shape)})
        np.testing.assert_array_equal(same, x)
        np.testing.assert_array_equal(y, np.maximum(x, 0).reshape(shape))
        given = {"x": asarray(x, device), "s": asarray(np.array(shape), device)}
        same_array, y_array = session.run_on_device(None, given)
        assert same_array is given["x"]
        np.testing.assert_array_equal(y_array, y)
    with pytest.raises(InputError, match="the input 's' decides sizes; give feeds"):
        session.plan()


def test_sizes_that_do_not_fit_the_network(device: Device) -> None:
    text = "g (float[N, M] x) => (float[N, 5] y) { y = MatMul(x, w) }"
    session = InferenceSession(model(text, w=random(4, 5)), device, store=False)
    with pytest.raises(ModelError, match="does not fit its inputs"):
        session.run(None, {"x": random(2, 3)})


def test_tuning_a_session(device: Device, tmp_path: Path) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { a = Relu(x)\n y = MatMul(a, w) }"
    proto = model(text, w=random(64, 64))
    session = InferenceSession(proto, device, store=Store.open(tmp_path / "t.sqlite"))
    x = {"x": random(16, 64)}
    report = session.tune(evaluations=4, feeds=x)
    assert len(report.stages) == 2
    assert report.evaluations <= 4
    np.testing.assert_allclose(session.run(None, x)[0], by_onnxruntime(proto, x)[0], rtol=1e-4, atol=1e-4)
    rows = session.profile(x)
    assert {r.op.split()[0] for r in rows} == {"Relu", "MatMul"}
    with pytest.raises(InputError, match="no tuning database"):
        InferenceSession(proto, device, store=False).tune(evaluations=1, feeds=x)


def test_network_of_a_program_keeps_its_tensors() -> None:
    network = network_of(parse_op(BOTH_WAYS).specialise({"x": (4, 9)}), CPU)
    assert {n: b.role for n, b in network.buffers.items()} == {
        "x": Role.INPUT, "z": Role.TEMPORARY, "y": Role.OUTPUT,
    }  # fmt: skip
