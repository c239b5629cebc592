"""Gathers, scatters and reversed sequences: every attribute, positions from the end, sizes of 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from networks import random
from one_node import check, one_node

from tilewright.dsl.dtypes import DType
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.session import InferenceSession
from tilewright.ops.operator import OPERATORS, Application, Operand
from tilewright.runtime import Device

RNG = np.random.default_rng(7)
DTYPES = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.uint64, np.bool_]


def places(size: int, *shape: int) -> np.ndarray:
    """Positions from both ends of an axis."""
    return RNG.integers(-size, size, shape)


def distinct(size: int, *shape: int) -> np.ndarray:
    """Rows of positions without repetition along the last dimension."""
    return np.stack([RNG.permutation(size)[: shape[-1]] for _ in range(int(np.prod(shape[:-1])))]).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathers_of_every_type(device: Device, dtype: type) -> None:
    x = (random(5, 3, 4) * 9).astype(dtype) if dtype is not np.bool_ else random(5, 3, 4) > 0
    check(device, "Gather", [x, places(3, 2, 3)], axis=1)
    at = places(4, 2, 3, 5)
    check(device, "GatherElements", [x, at], wanted=[np.take_along_axis(x[:2], at, 2)], axis=-1)


@pytest.mark.parametrize("axis", [-3, -1, 0, 1])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_gather(device: Device, axis: int, constant: tuple[int, ...]) -> None:
    x = random(5, 3, 4)
    size = x.shape[axis]
    for shape in [(), (1,), (2, 3), (0,)]:
        check(device, "Gather", [x, places(size, *shape)], constant, axis=axis)
    check(device, "Gather", [random(2, 0, 3), places(2, 2).astype(np.int32)], constant, axis=0)


@pytest.mark.parametrize(("batch", "shape"), [(0, (2, 3, 2)), (0, (4, 3)), (1, (5, 2, 1)), (1, (5, 2)), (2, (5, 3, 1))])
def test_gather_nd(device: Device, batch: int, shape: tuple[int, ...]) -> None:
    x = random(5, 3, 4)
    columns = [places(x.shape[batch + n], *shape[:-1]) for n in range(shape[-1])]
    check(device, "GatherND", [x, np.stack(columns, -1)], batch_dims=batch)
    check(device, "GatherND", [x, np.stack(columns, -1)], (1,), batch_dims=batch)


def test_positions_outside_are_refused_where_they_are_known(device: Device) -> None:
    for op in ("Gather", "GatherElements"):
        proto, feeds = one_node(op, [random(3, 2), np.array([[0, 3]])], (1,))
        with pytest.raises(ModelError, match=f"{op} has constant positions from 0 to 3 on an axis of 3"):
            InferenceSession(proto, device, store=False).run(None, feeds)
    updates = np.zeros((1, 2), np.float32)
    for op, at in (("ScatterElements", [[-4, 0]]), ("ScatterND", [[-4]])):
        proto, feeds = one_node(op, [random(3, 2), np.array(at), updates], (1,), opset=18)
        with pytest.raises(ModelError, match="positions from -4"):
            InferenceSession(proto, device, store=False).run(None, feeds)


REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("constant", [(), (1,)])
def test_scatter_elements(device: Device, reduction: str, constant: tuple[int, ...]) -> None:
    x, u = random(5, 7), random(4, 3)
    repeated = places(7, 4, 3) if reduction != "none" else distinct(7, 4, 3)
    for dtype in (np.float32, np.float64, np.int32):
        operands = [(x * 4).astype(dtype), repeated, (u * 4).astype(dtype)]
        check(device, "ScatterElements", operands, constant, opset=18, axis=-1, reduction=reduction)
    check(device, "ScatterElements", [x, np.zeros((0, 3), np.int64), random(0, 3)], constant, opset=18, axis=0)
    check(device, "ScatterElements", [x, distinct(5, 1, 2).T, random(2, 1)], constant, opset=18, axis=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("constant", [(), (1,)])
def test_scatter_nd(device: Device, reduction: str, constant: tuple[int, ...]) -> None:
    x = random(5, 3, 4)
    pairs = np.stack(np.unravel_index(distinct(15, 1, 6)[0], (5, 3)), -1).reshape(2, 3, 2)
    if reduction != "none":
        pairs = np.concatenate([pairs, pairs[::-1] - [5, 3]])
    updates = random(*pairs.shape[:2], 4)
    for dtype in (np.float32, np.int64):
        operands = [(x * 4).astype(dtype), pairs, (updates * 4).astype(dtype)]
        check(device, "ScatterND", operands, constant, opset=18, reduction=reduction)
    check(device, "ScatterND", [x, np.zeros((0, 2), np.int64), random(0, 4)], constant, opset=18, reduction=reduction)


def test_the_last_of_repeated_updates_stays(device: Device) -> None:
    at = np.array([[1, 1, -2, 0]])
    x, u = np.zeros((1, 3), np.float32), np.array([[1, 2, 3, 4]], np.float32)
    for constant in ((), (1,)):
        check(device, "ScatterElements", [x, at, u], constant, [np.array([[4, 3, 0]], np.float32)], axis=1)
        check(device, "ScatterND", [x[0], at.T, u[0]], constant, [np.array([4, 3, 0], np.float32)])


def test_large_scatters_are_left_to_the_host() -> None:
    size = 1 << 15
    x, at = operand(np.float32, size), operand(np.int64, size)
    build = OPERATORS["ScatterElements"].build
    with pytest.raises(UnsupportedError, match="1,073,741,824 comparisons"):
        build(Application("ScatterElements", 18, {}, (x, at, x), (x,)))
    known = Operand(at.dtype, at.shape, np.arange(size))
    assert build(Application("ScatterElements", 18, {}, (x, known, x), (x,)))
    table, rows, updates = operand(np.float32, size, 64), operand(np.int64, 128, 1), operand(np.float32, 128, 64)
    with pytest.raises(UnsupportedError, match="128 updates"):
        OPERATORS["ScatterND"].build(
            Application("ScatterND", 18, {"reduction": "add"}, (table, rows, updates), (table,))
        )
    assert OPERATORS["ScatterND"].build(Application("ScatterND", 18, {}, (table, rows, updates), (table,)))


def operand(dtype: type, *shape: int) -> Operand:
    """An operand that only the device knows."""
    return Operand(DType.from_numpy(dtype), shape)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1])
def test_tensor_scatter(device: Device, mode: str, axis: int) -> None:
    x, u = random(3, 5, 4, 2), random(3, 3 if axis == 1 else 5, 4 if axis == 1 else 3, 2)
    first = np.array([0, 1, 1]) if mode == "linear" else np.array([0, 3, 2])
    check(device, "TensorScatter", [x, u, first], axis=axis, mode=mode)
    check(device, "TensorScatter", [x, u], axis=axis, mode=mode)


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reverse_sequence(device: Device, time: int, batch: int) -> None:
    x = random(5, 5, 3)
    check(device, "ReverseSequence", [x, np.array([1, 5, 2, 0, 3])], time_axis=time, batch_axis=batch, opset=17)
