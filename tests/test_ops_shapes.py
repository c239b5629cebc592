"""Operators that move or make elements, contractions in index notation, normalisations and losses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import random
from one_node import check

from tilewright.ops.matmul import Term, _order
from tilewright.runtime import Device

RNG = np.random.default_rng(11)
INT64 = onnx.TensorProto.INT64


def shaped(*numbers: int) -> np.ndarray:
    """An index tensor of one dimension."""
    return np.array(numbers, np.int64)


# --- frames -----------------------------------------------------------------------------------------------------------


def framed(x: np.ndarray, pads: list[tuple[int, int]], mode: str, value: float = 0) -> np.ndarray:
    """Crop by the negative pads, then frame by the others."""
    cropped = x[tuple(slice(-min(b, 0), n + min(e, 0)) for n, (b, e) in zip(x.shape, pads, strict=True))]
    widths = [(max(b, 0), max(e, 0)) for b, e in pads]
    return np.pad(cropped, widths, mode, **({"constant_values": value} if mode == "constant" else {}))  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [[(0, 0), (2, 1)], [(2, 1), (0, 3)], [(7, 9), (11, 6)], [(0, 0), (0, 0)]])
def test_frames(device: Device, mode: str, pads: list[tuple[int, int]]) -> None:
    x = random(4, 5)
    flat = shaped(*(b for b, _ in pads), *(e for _, e in pads))
    check(device, "Pad", [x, flat], (1,), [framed(x, pads, mode)], mode=mode)
    rows = pads[0]
    check(device, "Pad", [x, shaped(*rows), None, shaped(-2)], (1, 3), [framed(x, [rows, (0, 0)], mode)], mode=mode)


def test_frames_of_values(device: Device) -> None:
    pads, flat = [(1, -1), (-2, 3)], shaped(1, -2, -1, 3)
    big = np.iinfo(np.int64).min + 3
    for x, value in [
        (random(4, 5), -np.inf),
        (random(4, 5), 0.1),
        (random(4, 5) > 0, True),
        (np.arange(20).reshape(4, 5), big),
        (np.arange(20, dtype=np.uint8).reshape(4, 5), 255),
        (random(4, 5).astype(np.float16), -3.5),
    ]:
        for constant in ((1, 2), (1,)):
            fill = np.array(value, x.dtype)
            check(device, "Pad", [x, flat, fill], constant, [framed(x, pads, "constant", fill)])
    check(device, "Pad", [random(0, 3), shaped(2, 0, 1, 0)], (1,), [np.zeros((3, 3), np.float32)])


# --- moving -----------------------------------------------------------------------------------------------------------


def test_slices(device: Device) -> None:
    x = random(7, 6, 1)
    for cut in [
        np.s_[::-1],
        np.s_[5:1:-2],
        np.s_[:, ::-3],
        np.s_[100:-100:-1, -1:0:-1],
        np.s_[2:2],
        np.s_[-3:, 1:-1:2],
        np.s_[::-1, ::-1, ::-1],
    ]:
        parts = cut if isinstance(cut, tuple) else (cut,)
        ranges = [s.indices(n) for s, n in zip(parts, x.shape, strict=False)]
        ends = shaped(*(-100 if step < 0 and end < 0 else end for _, end, step in ranges))
        operands = [
            x,
            shaped(*(r[0] for r in ranges)),
            ends,
            shaped(*range(len(parts))),
            shaped(*(r[2] for r in ranges)),
        ]
        check(device, "Slice", operands, (1, 2, 3, 4), [x[cut]])


def test_parts_and_joins(device: Device) -> None:
    x = random(7, 3)
    check(device, "Split", [x], wanted=np.split(x, [3, 6]), outputs=3, num_outputs=3, axis=0)
    check(device, "Split", [x, shaped(0, 5, 2)], (1,), np.split(x, [0, 5]), outputs=3, axis=-2)
    check(device, "Split", [x], wanted=np.split(x, 3, 1), outputs=3, opset=11, axis=1)
    for parts in ([(2, 3), (0, 3), (4, 3)], [(0, 3), (0, 3)], [(1, 3)]):
        arrays = [random(*shape) for shape in parts]
        check(device, "Concat", arrays, wanted=[np.concatenate(arrays)], axis=-2)
    for dtype in (np.bool_, np.int8, np.float64, np.uint64):
        arrays = [(random(2, n) * 3).astype(dtype) for n in (1, 3)]
        check(device, "Concat", arrays, wanted=[np.concatenate(arrays, 1)], axis=1)


def test_repetition(device: Device) -> None:
    for repeats in ((2, 1, 3), (1, 1, 1), (0, 2, 1)):
        check(device, "Tile", [random(2, 3, 1), shaped(*repeats)], (1,))
    for shape in ((3, 2, 1, 4), (1,), (2, 5, 4)):
        check(device, "Expand", [random(2, 1, 4), shaped(*shape)], (1,))
    check(device, "Expand", [random(1, 1), shaped(0, 3)], (1,))


def test_triangles_and_diagonals(device: Device) -> None:
    for shape in ((4, 5), (2, 3, 3), (0, 3), (1, 1)):
        for k in (0, -2, 1, 100):
            for upper in (0, 1):
                check(device, "Trilu", [random(*shape), np.array(k)], (1,), upper=upper)
    for k in (0, 2, -3, 9):
        for dtype in (np.float32, np.int64, np.bool_):
            kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            check(device, "EyeLike", [random(4, 6)], wanted=[np.eye(4, 6, k, dtype)], types=[kind], k=k, dtype=kind)


def test_made_of_run_time_sizes(device: Device) -> None:
    for value in (np.array([2.5], np.float32), np.array([True]), np.array([-7])):
        tensor = onnx.numpy_helper.from_array(value)
        wanted = [np.full((3, 0, 2), value[0]), np.full((2, 5), value[0])]
        check(device, "ConstantOfShape", [shaped(3, 0, 2)], wanted=wanted[:1], types=[tensor.data_type], value=tensor)
        check(device, "ConstantOfShape", [shaped(2, 5)], wanted=wanted[1:], types=[tensor.data_type], value=tensor)
    for dtype, parts in ((np.float32, (1, 9.5, 0.75)), (np.int64, (10, -3, -4)), (np.int32, (3, 3, 1))):
        check(device, "Range", [np.array(p, dtype) for p in parts], wanted=[np.arange(*parts, dtype=dtype)])


def test_one_hot(device: Device) -> None:
    for dtype in (np.int64, np.float32, np.uint8):
        at = np.array([[0, 2, 4], [1, 7, 3]], dtype)
        values = np.array([-1.5, 2], np.float32)
        for axis in (-1, 0, 1):
            wanted = np.where(np.expand_dims(at, axis) == along(5, axis), values[1], values[0])
            check(device, "OneHot", [at, shaped(5), values], (1,), [wanted], types=[1], axis=axis)


def along(size: int, axis: int) -> np.ndarray:
    """Positions along a new axis of three."""
    shape = [1, 1, 1]
    shape[axis] = size
    return np.arange(size).reshape(shape)


# --- contractions -----------------------------------------------------------------------------------------------------

EQUATIONS = [
    ("ij->", [(3, 4)]),
    ("ij->ji", [(3, 4)]),
    ("ii->i", [(5, 5)]),
    ("ii", [(5, 5)]),
    ("...ii->...i", [(2, 3, 4, 4)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (1, 5, 4, 6)]),
    ("b...,b->...", [(3, 2, 4), (3,)]),
    ("i,j->ij", [(3,), (4,)]),
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
    ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 2)]),
    ("i,ij,j->", [(3,), (3, 4), (4,)]),
    ("ab,bc,cd,da->", [(2, 3), (3, 4), (4, 5), (5, 2)]),
    (",ij->ij", [(), (2, 3)]),
    ("ij,j->i", [(3, 0), (0,)]),
    ("iij,jk->ik", [(3, 3, 4), (4, 2)]),
    (" i j , j k -> i k ", [(1, 4), (4, 3)]),
    ("aBc,Bc->a", [(2, 3, 4), (3, 4)]),
    ("...,...->...", [(2, 3), (1, 3)]),
    ("i...->...", [(2, 3, 4)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_index_notation(device: Device, equation: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [random(*shape) for shape in shapes]
    wanted = np.asarray(np.einsum(equation, *(a.astype(np.float64) for a in arrays))).astype(np.float32)
    check(device, "Einsum", arrays, wanted=[wanted], equation=equation)


def test_index_notation_of_sizes_one(device: Device) -> None:
    a, b = random(3, 1), random(4, 5)
    check(device, "Einsum", [a, b[:1]], wanted=[a @ b[:1]], equation="ij,jk->ik")
    whole = RNG.integers(-5, 5, (2, 3, 4))
    check(device, "Einsum", [whole, whole], wanted=[np.einsum("abc,abc->b", whole, whole)], equation="abc,abc->b")


def test_many_operands_are_contracted_two_by_two() -> None:
    terms = [Term("a", ("i", "j")), Term("b", ("j", "k")), Term("c", ("k",))]
    assert _order(terms, ["i"], {"i": 50, "j": 60, "k": 70}) == [(1, 2), (0, 1)]


# --- normalisations and losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5), (1, 2, 3, 1, 2)])
def test_batch_normalization_in_training(device: Device, shape: tuple[int, ...]) -> None:
    parameters = [np.abs(random(shape[1], seed=n)) for n in range(4)]
    check(
        device, "BatchNormalization", [random(*shape), *parameters], opset=15, outputs=3, training_mode=1, momentum=0.7
    )
    check(device, "BatchNormalization", [random(*shape), *parameters], opset=15, training_mode=0)


def test_mean_and_variance_normalization(device: Device) -> None:
    x = random(3, 4, 5, 6)
    for axes in ((0, 2, 3), (-1,), (1, 2)):
        wide = x.astype(np.float64)
        wanted = (wide - wide.mean(axes, keepdims=True)) / (wide.std(axes, keepdims=True) + 1e-9)
        operands = {} if axes == (0, 2, 3) else {"axes": list(axes)}
        check(device, "MeanVarianceNormalization", [x], wanted=[wanted.astype(np.float32)], opset=13, **operands)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_local_response_normalization(device: Device, rank: int) -> None:
    x = random(*(2, 7, 3, 4, 2)[:rank])
    for size in (1, 3, 4):
        squares = np.zeros_like(x)
        for c in range(7):
            window = slice(max(0, c - (size - 1) // 2), c + size // 2 + 1)
            squares[:, c] = (x[:, window] ** 2).sum(1)
        wanted = x / (1.5 + 0.3 / size * squares) ** 0.6
        check(device, "LRN", [x], wanted=[wanted], size=size, alpha=0.3, beta=0.6, bias=1.5)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("spatial", [(), (4,), (2, 3)])
def test_losses(device: Device, reduction: str, spatial: tuple[int, ...]) -> None:
    scores, weights = random(5, 7, *spatial), np.abs(random(7)) + 0.1
    target = RNG.integers(0, 7, (5, *spatial))
    for ignore, weight in ((None, None), (2, weights), (-100, weights), (-1, None)):
        chosen = np.where(RNG.random(target.shape) < 0.3, ignore, target) if ignore is not None else target.copy()
        chosen.flat[0] = 3  # one that counts: a mean over none divides by zero
        attributes = {"reduction": reduction} | ({"ignore_index": ignore} if ignore is not None else {})
        operands = [scores, chosen, *([weight] if weight is not None else [])]
        logs = (scores - np.log(np.exp(scores.astype(np.float64)).sum(1, keepdims=True))).astype(np.float32)
        wanted = [loss(logs, chosen, weight, ignore, reduction), logs]
        check(device, "SoftmaxCrossEntropyLoss", operands, wanted=wanted, opset=13, outputs=2, **attributes)
        check(device, "NegativeLogLikelihoodLoss", [logs, *operands[1:]], wanted=wanted[:1], opset=13, **attributes)


def loss(
    logs: np.ndarray, target: np.ndarray, weights: np.ndarray | None, ignore: int | None, reduction: str
) -> np.ndarray:
    """The negative log likelihood in float64."""
    counts = np.ones(target.shape) if ignore is None else (target != ignore).astype(float)
    safe = np.where(counts > 0, target, 0)
    counts = counts * (1 if weights is None else weights[safe])
    each = -np.take_along_axis(logs.astype(np.float64), safe[:, None], 1)[:, 0] * counts
    total = {"none": each, "sum": each.sum(), "mean": each.sum() / counts.sum()}[reduction]
    return np.asarray(total, np.float32)
