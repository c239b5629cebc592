"""Element types, shapes and attributes of pointwise operators, reductions, scans, selections and losses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from networks import random
from one_node import check

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.operator import OPERATORS, Application, Operand
from tilewright.runtime import Device

RNG = np.random.default_rng(5)
SIGNED = [np.int8, np.int16, np.int32, np.int64]
INTEGERS = [*SIGNED, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
BOOL = onnx.TensorProto.BOOL
INT64 = onnx.TensorProto.INT64


def whole(dtype: type, *shape: int) -> np.ndarray:
    """Integers from the whole range of a type, small ones among them, none of them 0."""
    info = np.iinfo(dtype)
    found = RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    found[..., ::3] = RNG.integers(1, 9, found[..., ::3].shape)
    return np.where(found == 0, dtype(3), found).astype(dtype)


def tolerance(dtype: type) -> float:
    """The relative error that rounding to a type allows."""
    return {np.float16: 2e-3, ml_dtypes.bfloat16: 2e-2}.get(dtype, 1e-5)


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_quotients_and_remainders_are_exact(device: Device, dtype: type) -> None:
    a, b = whole(dtype, 3, 37), whole(dtype, 37)
    if dtype in SIGNED:
        b = np.where((b == -1), dtype(5), b)
    exact = [int(x) // int(y) if (x < 0) == (y < 0) else -(abs(int(x)) // abs(int(y))) for x, y in pairs(a, b)]
    wanted = np.array(exact, object).reshape(a.shape).astype(dtype)
    check(device, "Div", [a, b], wanted=[wanted])
    check(device, "Mod", [a, b], wanted=[np.mod(a, b)])
    check(device, "Mod", [a, b], wanted=[np.fmod(a, b)], fmod=1)
    check(device, "Div", [a, np.array(7, dtype)], (1,), wanted=[(wanted * 0 + cut(a, 7)).astype(dtype)])


def pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Elements of two broadcast arrays side by side."""
    left, right = np.broadcast_arrays(a, b)
    return list(zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True))


def cut(a: np.ndarray, b: int) -> np.ndarray:
    """Quotients cut towards zero."""
    return np.array([abs(x) // b * (1 if x > 0 else -1) for x in a.reshape(-1).tolist()], object).reshape(a.shape)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_whole_powers_are_exact(device: Device, dtype: type) -> None:
    base = np.array([0, 1, -1, 2, -2, 3, -7, 10, 5], dtype)
    for kind in (np.int32, np.int64, np.uint8):
        n = np.array([[0], [1], [2], [5], [8]], kind)
        check(device, "Pow", [base, n], wanted=[base ** n.astype(dtype)])
    for n in (0, 1, 3, 9):
        check(device, "Pow", [base, np.array(n, dtype)], (1,), wanted=[base**n])
        check(device, "Pow", [base, np.array(n, np.float32)], wanted=[base**n])
    check(
        device, "Pow", [np.array([1, -1, 2, -3], dtype), np.array(-3, dtype)], wanted=[np.array([1, -1, 0, 0], dtype)]
    )
    check(
        device,
        "Pow",
        [np.array(3, dtype), np.arange(19, dtype=dtype)],
        (0,),
        wanted=[dtype(3) ** np.arange(19, dtype=dtype)],
    )
    check(
        device, "Pow", [np.array([9, 16, 2], dtype), np.float32([0.5, 0.25, 1.5])], wanted=[np.array([3, 2, 2], dtype)]
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bits(device: Device, dtype: type) -> None:
    a, b = whole(dtype, 5, 7), whole(dtype, 7)
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        check(device, op, [a, b])
    check(device, "BitwiseNot", [a])
    if dtype not in SIGNED:
        n = RNG.integers(0, np.iinfo(dtype).bits, (5, 1)).astype(dtype)
        check(device, "BitShift", [a, n], direction="LEFT")
        check(device, "BitShift", [a, n], direction="RIGHT")


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_pointwise_of_every_type(device: Device, dtype: type) -> None:
    a, b = (RNG.integers(1, 9, (4, 3)).astype(dtype) for _ in range(2))
    c = RNG.integers(1, 9, (2, 1, 3)).astype(dtype)
    for op in ("Max", "Min"):
        check(
            device,
            op,
            [a, b, c],
            wanted=[
                {"Max": np.maximum, "Min": np.minimum}[op](np.maximum(a, b) if op == "Max" else np.minimum(a, b), c)
            ],
        )
    check(
        device,
        "Clip",
        [a, np.array(3, dtype), np.array(5, dtype)],
        wanted=[np.clip(a, dtype(3), dtype(5)).astype(dtype)],
    )
    check(device, "Clip", [a, None, np.array(5, dtype)], (2,), wanted=[np.minimum(a, dtype(5))])
    check(device, "Clip", [a, np.array(6, dtype), np.array(2, dtype)], wanted=[np.full_like(a, 2)])
    check(device, "Where", [a > b, a, c], wanted=[np.where(a > b, a, c)], types=[kind(dtype)])
    check(
        device,
        "Where",
        [a > b, np.array(5, dtype), np.array(7, dtype)],
        (1, 2),
        [np.where(a > b, dtype(5), dtype(7)).astype(dtype)],
        types=[kind(dtype)],
    )
    check(device, "Expand", [c, np.array([3, 2, 4, 1])], (1,), wanted=[np.broadcast_to(c, (3, 2, 4, 3))])
    check(device, "Equal", [a, b], wanted=[a == b], types=[BOOL])
    check(device, "Sign", [a - b], wanted=[np.sign(a - b)])


def kind(dtype: type) -> int:
    """ONNX's number of an element type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def test_conversions(device: Device) -> None:
    dtypes = [*INTEGERS, *FLOATS, np.bool_]
    x = RNG.integers(0, 100, 23)
    for number, source in enumerate(dtypes):
        for target in dtypes[number % 4 :: 4]:
            wanted = x.astype(source).astype(target)
            check(device, "Cast", [x.astype(source)], wanted=[wanted], to=kind(target), types=[kind(target)])
    wide = np.array([-1, 300, 65537, -(2**40) + 5])
    for target in INTEGERS:
        check(device, "Cast", [wide], wanted=[wide.astype(target)], to=kind(target), types=[kind(target)])


def test_literals_keep_their_type(device: Device) -> None:
    x = random(9) > 0
    for a, b in [(0.1, 1 / 3), (-1e300, 1e-300)]:
        operands = [x, np.array(a), np.array(b)]
        check(device, "Where", operands, (1, 2), [np.where(x, a, b)], rtol=1e-15, types=[onnx.TensorProto.DOUBLE])
    big = np.iinfo(np.int64)
    check(device, "Where", [x, np.array(big.min), np.array(big.max)], (1, 2), types=[INT64])
    check(device, "Clip", [whole(np.int64, 9), np.array(big.min), np.array(big.max)], (1, 2))
    top = np.array(np.iinfo(np.uint64).max)
    check(device, "Min", [whole(np.uint64, 9), top], (1,))


# --- reductions, scans, ranks -----------------------------------------------------------------------------------------

REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp"]


@pytest.mark.devices_in_turn
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, np.float32) for name in REDUCTIONS), *((n, d) for n in ("Mean", "L2", "LogSumExp") for d in FLOATS)],
)
def test_reductions_of_floats(device: Device, name: str, dtype: type) -> None:
    x = (np.abs(random(3, 5, 1, 4)) + 0.5).astype(dtype)
    wide = x.astype(np.float64)
    for axes, keep in (((1,), 0), ((-1, 0), 1), ((2,), 1), ((0, 1, 2, 3), 0)):
        wanted = reduced(name, wide, axes, bool(keep)).astype(dtype)
        check(device, f"Reduce{name}", [x, np.array(axes)], (1,), [wanted], tolerance(dtype), keepdims=keep)


def reduced(name: str, x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    """A reduction in float64."""
    before = {"SumSquare": np.square, "L1": np.abs, "L2": np.square, "LogSumExp": np.exp}.get(name, lambda v: v)
    over = {"Mean": np.mean, "Max": np.max, "Min": np.min, "Prod": np.prod}.get(name, np.sum)
    after = {"L2": np.sqrt, "LogSum": np.log, "LogSumExp": np.log}.get(name, lambda v: v)
    return np.asarray(after(over(before(x), axis=axes, keepdims=keep)))


@pytest.mark.parametrize("name", REDUCTIONS[:8])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_reductions_of_integers(device: Device, name: str, dtype: type) -> None:
    x = RNG.integers(1, 200, (3, 5, 4)).astype(dtype)
    if name != "Prod":
        x[0, 0, 0] = 40_000
    if name == "Prod":
        wanted = np.prod(x, axis=1, keepdims=True, dtype=dtype)
    else:
        wanted = np.trunc(reduced(name, x.astype(np.float64), (1,), True)).astype(dtype)
    if name not in {"L2", "SumSquare"} or dtype in (np.int64, np.uint64):  # 40,000 squared leaves 32 signed bits
        check(device, f"Reduce{name}", [x, np.array([1])], (1,), [wanted])


@pytest.mark.parametrize("name", ["Sum", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp", "Max", "Min"])
def test_reductions_over_nothing(device: Device, name: str) -> None:
    x = np.zeros((2, 0, 4), np.float32)
    value = {"Prod": 1, "LogSum": -np.inf, "LogSumExp": -np.inf, "Max": -np.inf, "Min": np.inf}.get(name, 0)
    check(device, f"Reduce{name}", [x, np.array([1])], (1,), [np.full((2, 1, 4), value, np.float32)])
    check(device, f"Reduce{name}", [x, np.array([0])], (1,), [np.zeros((1, 0, 4), np.float32)])


def test_reductions_without_axes(device: Device) -> None:
    x, none = random(3, 4), np.zeros(0, np.int64)
    check(device, "ReduceSum", [x, none], wanted=[x.sum(keepdims=True)])
    check(device, "ReduceSum", [x, none], wanted=[x], noop_with_empty_axes=1)
    check(device, "ReduceSum", [x], wanted=[x], noop_with_empty_axes=1)
    check(device, "ReduceL2", [x, none], wanted=[np.abs(x)], noop_with_empty_axes=1)
    check(device, "ReduceSumSquare", [x, none], wanted=[x * x], noop_with_empty_axes=1)
    check(device, "ReduceMax", [x], opset=11, axes=[-2], keepdims=0)


def test_logarithms_of_sums_of_infinities(device: Device) -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 1], [-np.inf, 3], [1000, 1000]], np.float32)
    wanted = np.array([-np.inf, np.inf, 3, 1000 + np.log(2)], np.float32)
    check(device, "ReduceLogSumExp", [x, np.array([1])], (1,), [wanted], keepdims=0)


def test_truth_is_reduced(device: Device) -> None:
    x = RNG.random((4, 5)) > 0.3
    check(device, "ReduceMax", [x, np.array([1])], (1,), [x.any(1, keepdims=True)], types=[BOOL])
    check(device, "ReduceMin", [x, np.array([1])], (1,), [x.all(1, keepdims=True)], types=[BOOL])


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_places_of_extremes(device: Device, op: str, last: int) -> None:
    for dtype in (np.float32, np.float16, np.int8, np.uint8, np.int64):
        x = RNG.integers(0, 4, (5, 6, 1)).astype(dtype)
        for axis in (0, -1, 1):
            check(device, op, [x], types=[INT64], axis=axis, select_last_index=last, keepdims=last)
    x = np.array([[1, np.nan, 3, np.nan], [4, 3, 4, 3]], np.float32)
    check(device, op, [x], types=[INT64], axis=1, select_last_index=last)


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_running_sums_and_products(device: Device, reverse: int, exclusive: int) -> None:
    for dtype in (np.float32, np.int64):
        for shape in [(1, 5), (4, 0), (2, 3, 4)]:
            x = (random(*shape) * 3).astype(dtype)
            for axis in (0, -1):
                wanted = [running(x, axis, reverse, exclusive, np.cumsum)]
                flags = {"reverse": reverse, "exclusive": exclusive}
                check(device, "CumSum", [x, np.array(axis)], (1,), wanted, **flags)
    x = random(3, 5)
    wanted = [running(x, 1, reverse, exclusive, np.cumprod)]
    check(device, "CumProd", [x, np.array(1)], (1,), wanted, opset=26, reverse=reverse, exclusive=exclusive)


def running(x: np.ndarray, axis: int, reverse: int, exclusive: int, scan: object) -> np.ndarray:
    """A scan in NumPy."""
    x = np.moveaxis(x, axis, 0)
    x = x[::-1] if reverse else x
    found = scan(x.astype(np.float64) if x.dtype.kind == "f" else x, axis=0)  # type: ignore[operator]
    if exclusive:
        first = np.full_like(found[:1], 0 if scan is np.cumsum else 1)
        found = np.concatenate([first, found])[: len(x)]
    return np.moveaxis(found[::-1] if reverse else found, 0, axis).astype(x.dtype)


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
def test_first_elements_in_order(device: Device, largest: int, dtype: type) -> None:
    x = RNG.integers(0, 20, (3, 17, 2)).astype(dtype)
    for axis, k in ((1, 5), (-1, 2), (0, 1), (1, 17), (1, 0)):
        order = np.argsort(-x.astype(np.int64) if largest else x, axis=axis, kind="stable")
        chosen = np.take(order, range(k), axis=axis)
        wanted = [np.take_along_axis(x, chosen, axis), chosen]
        types = [kind(dtype), INT64]
        check(device, "TopK", [x, np.array([k])], (1,), wanted, outputs=2, types=types, axis=axis, largest=largest)


def test_nan_is_largest(device: Device) -> None:
    x = np.array([1, np.nan, np.inf, -np.inf, np.nan, 0], np.float32)
    for largest, places in ((1, [1, 4, 2, 0]), (0, [3, 5, 0, 2])):
        wanted = [x[places], np.array(places)]
        types = [kind(np.float32), INT64]
        check(device, "TopK", [x, np.array([4])], wanted=wanted, outputs=2, types=types, largest=largest)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_determinants(device: Device, size: int) -> None:
    check(device, "Det", [random(3, size, size)], rtol=1e-4)
    check(device, "Det", [random(size, size)], rtol=1e-4)


def test_long_rows_are_ranked_by_the_host() -> None:
    x, k = Operand(DType.F32, (3, 2000)), Operand(DType.I64, (1,), np.array([5]))
    first = Operand(DType.F32, (3, 5))
    with pytest.raises(UnsupportedError, match="ranking 2,000 elements"):
        OPERATORS["TopK"].build(Application("TopK", 11, {}, (x, k), (first, first)))
