"""Is a candidate right? Inputs to try it on, guarded memory around its tensors, and the comparison with the reference.

Every buffer lies between two guard zones:

    | guard | span of the tensor (its elements and, in a view, the gaps between them) | guard |

Guards, gaps and outputs are filled with a pattern before the run. Afterwards the outputs must equal the reference and
everything else must still be the pattern. This does not prove the absence of wild writes beyond the guards.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Call, Cast, Expr, Program, Reduce, Tensor, children, walk

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

GUARD_BYTES = 64 << 10
PERIOD = 1_000_003
"""Elements of an input repeat after so many, because drawing takes longer than computing; a prime, so that they do not
repeat along any dimension."""
FLOAT_PATTERN = 0xFF
"""As bytes of any float type: NaN, so that elements which were never written, or read from outside, show."""
INTEGER_PATTERN = 0xA5

ROUNDING = 64.0
"""Allowed error in units of the accumulator's rounding times the square root of the reduction's length."""
STORING = 4.0
"""Allowed error in units of the output type's rounding."""
BETWEEN = 8.0
"""Allowed error in units of the rounding of values within the program: between two values, candidates differ."""
_EPSILON = {DType.F16: 2.0**-10, DType.BF16: 2.0**-7, DType.F32: 2.0**-23, DType.F64: 2.0**-52}
_TF32 = 2.0**-10
INTEGER_SLACK = 1e-3
"""Share of integer results computed from floats that may be off by one: values that round at a boundary."""


def pattern(dtype: DType) -> int:
    """The byte that fills memory of a type where nothing has been written."""
    return FLOAT_PATTERN if dtype.is_float else INTEGER_PATTERN


def guarded_bytes(span_bytes: int, alignment: int) -> tuple[int, int]:
    """(offset of the span, bytes of the whole allocation, a multiple of 4) for a span between guards."""
    guard = -(-GUARD_BYTES // alignment) * alignment
    return guard, -(-(2 * guard + span_bytes) // 4) * 4


def input_bytes(program: Program, tensor: Tensor, alignment: int) -> Bytes:
    """The whole allocation of an input: guards around deterministic random elements.

    Floats lie in ±[0.25, 1], so that divisions stay tame; integers are small, but where the program also reads floats
    32- and 64-bit ones run up to the largest extent, because they are mostly indices. Large inputs repeat (`PERIOD`).
    """
    offset, total = guarded_bytes(tensor.span * tensor.dtype.itemsize, alignment)
    whole = np.full(total, pattern(tensor.dtype), np.uint8)
    position = program.inputs.index(tensor)
    seed = hashlib.sha256(f"{program.signature}/{position}".encode()).digest()
    values = _random(program, tensor, np.random.default_rng(int.from_bytes(seed[:8], "little")))
    whole[offset : offset + values.nbytes] = values.view(np.uint8)
    return whole


def _random(program: Program, tensor: Tensor, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    values = _drawn(program, tensor.dtype, min(tensor.span, PERIOD), rng)
    return values if values.size == tensor.span else np.resize(values, tensor.span)


def _drawn(program: Program, dtype: DType, size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if dtype.is_float:
        magnitude = rng.random(size, np.float32) * np.float32(0.75) + np.float32(0.25)
        signs = rng.integers(0, 2, size, np.int8) * np.int8(2) - np.int8(1)
        return (magnitude * signs).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, size, np.uint8)
    end = 8
    if dtype.itemsize >= 4 and any(t.dtype.is_float for t in program.inputs):
        end = max([8, *(n for t in program.inputs for n in t.shape)])
    return rng.integers(0, end, size).astype(dtype.numpy)


def elements(span: Bytes, tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's elements as a (writable) view of its span's bytes; bool as u8."""
    dtype = np.dtype(np.uint8) if tensor.dtype is DType.BOOL else tensor.dtype.numpy
    flat = span[: tensor.span * dtype.itemsize].view(dtype)
    strides = tuple(s * dtype.itemsize for s in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)


def overrun(whole: Bytes, offset: int, tensor: Tensor) -> str | None:
    """Where a kernel wrote outside the elements of a tensor, or None; ``whole`` is guard, span and guard."""
    end = offset + tensor.span * tensor.dtype.itemsize
    beside = spoilt(whole[:offset], whole[end:], tensor)
    if beside:
        return beside
    if tensor.size < tensor.span:
        fill = pattern(tensor.dtype)
        found, wanted = whole[offset:end].copy(), np.full(end - offset, fill, np.uint8)
        for span in (found, wanted):
            elements(span, tensor)[...] = 0
        if not np.array_equal(found, wanted):
            return f"wrote between the elements of {tensor.name}"
    return None


def spoilt(before: Bytes, after: Bytes, tensor: Tensor) -> str | None:
    """Where a kernel wrote into the guard zones of a tensor, or None."""
    for zone, place in ((before, "before"), (after, "after")):
        written = int(np.count_nonzero(zone != pattern(tensor.dtype)))
        if written:
            return f"wrote {written} bytes {place} {tensor.name}"
    return None


def reduction_length(program: Program) -> int:
    """Terms of the longest reduction, 1 if there is none; nested reductions multiply."""

    def longest(e: Expr) -> int:
        below = max((longest(c) for c in children(e)), default=1)
        return below * max(1, math.prod(i.extent for i in e.indices)) if isinstance(e, Reduce) else below

    return max((longest(s.value) for s in program.statements), default=1)


def tolerance(program: Program, output: Tensor) -> float:
    """Largest allowed error of an output relative to the largest magnitude in it; 0 for integers.

    From the coarsest type that is accumulated in (f16 and bf16 are accumulated in f32), the length of the reductions,
    the coarsest type that values are rounded to on the way, and the type that is stored.
    """
    if not output.dtype.is_float:
        return 0.0
    kinds = {n.dtype for s in program.statements for n in walk(s.value) if isinstance(n, Call | Cast | Reduce)}
    computed = [_EPSILON[d.accumulator] for d in kinds if d.is_float]
    rounded = [_EPSILON[d] for d in kinds if d in (DType.F16, DType.BF16)] + [_TF32] * (program.precision == "tf32")
    summed = ROUNDING * max(computed, default=0.0) * math.sqrt(reduction_length(program))
    return summed + BETWEEN * max(rounded, default=0.0) + STORING * _EPSILON[output.dtype]


def difference(
    program: Program, output: Tensor, actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]
) -> tuple[float | None, str | None]:
    """(error, what is wrong or None): the largest difference relative to the largest magnitude expected.

    NaN and infinities must stand where the reference has them; then the error is over the finite elements.
    """
    if expected.size == 0:
        return 0.0, None
    if output.dtype.is_float:
        return within(output.name, actual, expected, tolerance(program, output))
    off = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    error = float(off.max())
    wrong = np.count_nonzero(off)
    from_floats = any(t.dtype.is_float for t in program.inputs)
    if wrong and not (from_floats and error <= 1.0 and wrong <= max(1.0, INTEGER_SLACK * expected.size)):
        return error, f"{output.name} has {wrong} wrong elements of {expected.size}, {_where(off, actual, expected)}"
    return error, None


def within(
    name: str, actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], allowed: float
) -> tuple[float | None, str | None]:
    """(error, what is wrong or None) as `difference` gives them; ``allowed`` is relative to the largest magnitude.

    Integers are compared as f64.
    """
    finite = np.isfinite(expected)
    whole = bool(finite.all())
    if not whole:
        same = np.where(np.isnan(expected), np.isnan(actual), finite | (actual == expected))
        if not same.all():
            return None, f"{name} should be NaN or infinite in places where it is not"
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    if not whole:
        off = np.where(finite, off, 0.0)
    scale = float(np.abs(expected, where=finite, out=np.zeros_like(expected)).max()) or 1.0
    if not np.isfinite(off).all():
        off = np.where(np.isfinite(off), off, np.inf)
        return None, f"{name} is not finite where it should be, {_where(off, actual, expected)}"
    error = float(off.max()) / scale
    if error > allowed:
        return error, f"{name} has error {error:.3g} where {allowed:.3g} is allowed, {_where(off, actual, expected)}"
    return error, None


def _where(off: np.ndarray[Any, Any], actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> str:
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    return f"worst at {list(place)}: {actual[place]} instead of {expected[place]}"


__all__ = [
    "GUARD_BYTES",
    "Bytes",
    "difference",
    "elements",
    "guarded_bytes",
    "input_bytes",
    "overrun",
    "pattern",
    "reduction_length",
    "spoilt",
    "tolerance",
    "within",
]
