"""Inputs, guard zones, and the comparison with the reference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tuning_cases import relu, row_sums

from tilewright.autotune import checking, evaluating
from tilewright.autotune.comparing import Comparison, Difference, comparison
from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import (
    Tensor,
)
from tilewright.dsl.target import Shape
from tilewright.runtime import Context


def test_inputs_are_the_same_every_time_and_guarded() -> None:
    program = relu(100)
    first = checking.input_bytes(program, program.inputs[0], 64)
    assert np.array_equal(first, checking.input_bytes(program, program.inputs[0], 64))
    offset, total = checking.guarded_bytes(400, 64)
    assert (first.size, offset % 64) == (total, 0)
    values = checking.elements(first[offset:], program.inputs[0])
    assert np.all((np.abs(values) >= 0.25) & (np.abs(values) <= 1.0))
    assert {-1.0, 1.0} == set(np.sign(values))
    assert np.isnan(first[:offset].view(np.float32)).all()


@pytest.mark.parametrize("dtype", list(DType))
def test_inputs_exist_for_every_type(dtype: DType) -> None:
    program = relu(64, dtype=dtype)
    whole = checking.input_bytes(program, program.inputs[0], 64)
    offset, _ = checking.guarded_bytes(64 * dtype.itemsize, 64)
    values = checking.elements(whole[offset:], program.inputs[0])
    assert values.shape == (64,)
    assert values.min() < values.max() <= 8


def test_writes_beside_a_tensor_are_found() -> None:
    view = Tensor("y", DType.F32, (3, 2), strides=(4, 1), offset=1)
    offset, total = checking.guarded_bytes(view.span * 4, 64)
    clean = np.full(total, checking.pattern(DType.F32), np.uint8)
    checking.elements(clean[offset:], view)[...] = 7.0
    assert checking.overrun(clean, offset, view) is None
    for place, complaint in (
        (offset - 1, "wrote 1 bytes before y"),
        (offset + view.span * 4, "wrote 1 bytes after y"),
        (offset, "wrote between the elements of y"),
        (offset + 3 * 4, "wrote between the elements of y"),
    ):
        spoilt = clean.copy()
        spoilt[place] = 0
        assert checking.overrun(spoilt, offset, view) == complaint


def test_tolerance_grows_with_the_reduction_and_is_zero_for_integers() -> None:
    short, long = row_sums(4, 16), row_sums(4, 1600)
    assert checking.reduction_length(long) == 1600
    assert checking.tolerance(long, long.outputs[0]) > 5 * checking.tolerance(short, short.outputs[0])
    assert checking.tolerance(long, long.outputs[0]) < 1e-3
    whole = relu(dtype=DType.I32)
    assert checking.tolerance(whole, whole.outputs[0]) == 0.0


def _difference(actual: list[float], expected: list[float]) -> tuple[float | None, str | None]:
    program = relu(len(expected))
    return checking.difference(
        program, program.outputs[0], np.array(actual, np.float32), np.array(expected, np.float32)
    )


def test_differences_of_floats() -> None:
    inf, nan = math.inf, math.nan
    assert _difference([1.0, 2.0], [1.0, 2.0]) == (0.0, None)
    assert _difference([1.0, nan, inf], [1.0, nan, inf]) == (0.0, None)
    assert _difference([0.0], [0.0]) == (0.0, None)
    error, problem = _difference([1.0, 2.5], [1.0, 2.0])
    assert error == pytest.approx(0.25)
    assert problem is not None
    assert "error 0.25" in problem
    assert "worst at [1]: 2.5 instead of 2.0" in problem
    for bad in ([nan, 2.0], [inf, 2.0]):
        error, problem = _difference(bad, [1.0, 2.0])
        assert error is None
        assert problem is not None
        assert "not finite where it should be" in problem
    assert "should be NaN or infinite" in str(_difference([1.0, -inf], [1.0, inf])[1])
    assert "should be NaN or infinite" in str(_difference([1.0, 0.0], [1.0, nan])[1])


def test_differences_of_integers() -> None:
    program = relu(2000, dtype=DType.I32)
    expected = np.zeros(2000, np.int32)
    actual = expected.copy()
    actual[5] = 1
    assert "1 wrong elements of 2000" in str(checking.difference(program, program.outputs[0], actual, expected)[1])
    rounded = replace(program, inputs=(Tensor("x", DType.F32, (2000,)),))
    assert checking.difference(rounded, program.outputs[0], actual, expected) == (1.0, None)
    actual[6] = 2
    assert checking.difference(rounded, program.outputs[0], actual, expected)[1] is not None


def test_work_on_constants_is_not_timed() -> None:
    pack = Launch("pack", "", (1,), None, ("w", "packed"), ("packed",))
    main = Launch("main", "", (1,), None, ("x", "packed", "table", "y"), ("y",))
    lowering = Lowering((pack, main), (Scratch("packed", DType.F32, 8), Scratch("table", DType.F32, 8, 0.0)))
    assert evaluating.run_once(lowering, frozenset({"w"})) == (pack,)
    assert evaluating.run_once(lowering, frozenset()) == ()
    assert evaluating.run_once(lowering, frozenset({"x"})) == ()


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("size", [2, 7, 1000, 70_001])
def test_differences_are_found_on_the_device(ctx: Context, dtype: DType, size: int) -> None:
    wanted = np.linspace(-3.0, 2.0, size + size % 2).astype(dtype.numpy)  # whole multiples of 4 bytes
    found = wanted.copy()
    buffers = [ctx.allocate(wanted.nbytes) for _ in range(2)]
    comparison = Comparison(ctx, dtype, *buffers)

    def compared() -> Difference:
        for buffer, values in zip(buffers, (found, wanted), strict=True):
            ctx.write(buffer, values)
        return comparison.run()

    assert compared() == Difference(0.0, False)
    found[-1] = 1.0
    off = compared()
    assert off.error == pytest.approx(abs(float(wanted[-1]) - 1.0) / 3.0, rel=1e-6)
    assert not off.is_odd
    wanted[0] = found[0] = np.nan
    assert not compared().is_odd
    found[0] = 1.0
    assert compared().is_odd
    found[0] = np.inf
    assert compared().is_odd
    wanted[0] = np.inf
    assert not compared().is_odd


@pytest.mark.parametrize("dtype", [DType.I32, DType.U8, DType.F64, DType.BOOL])
def test_other_types_are_compared_bit_by_bit(ctx: Context, dtype: DType) -> None:
    values = np.arange(64).astype(np.uint8 if dtype is DType.BOOL else dtype.numpy)
    buffers = [ctx.allocate(values.nbytes) for _ in range(2)]
    for buffer in buffers:
        ctx.write(buffer, values)
    comparison = Comparison(ctx, dtype, *buffers)
    assert comparison.run() == Difference(0.0, False)
    values[63] = 1
    ctx.write(buffers[0], values)
    assert comparison.run() == Difference(0.0, True)


def test_gpus_compare_side_by_side(ctx: Context) -> None:
    launch = comparison(replace(ctx.device.target, shape=Shape.GPU), DType.F32)
    values = np.arange(100_000, dtype=np.float32)
    buffers = {name: ctx.allocate(4 * values.size) for name in ("found", "wanted")}
    for buffer in buffers.values():
        ctx.write(buffer, values)
    ctx.write(buffers["found"], np.array([7.0], np.float32), 4 * 99_998)
    buffers |= {"size": ctx.allocate(8), "parts": ctx.allocate(12 * launch.global_size[0])}
    ctx.write(buffers["size"], np.array([values.size], np.uint64))
    ctx.enqueue([ctx.bind(launch, buffers)])
    parts = ctx.read(buffers["parts"], (launch.global_size[0], 3), np.float32)
    assert parts.max(axis=0).tolist() == [99_991.0, 99_999.0, 0.0]


def test_large_inputs_repeat_but_not_along_a_dimension() -> None:
    program = relu(2 * checking.PERIOD + 5)
    offset, _ = checking.guarded_bytes(4 * program.inputs[0].size, 64)
    values = checking.elements(checking.input_bytes(program, program.inputs[0], 64)[offset:], program.inputs[0])
    assert np.array_equal(values[: checking.PERIOD], values[checking.PERIOD : 2 * checking.PERIOD])
    assert np.unique(values[: checking.PERIOD]).size > 0.9 * checking.PERIOD
    assert all(checking.PERIOD % n for n in range(2, 1001))
