"""Which values 16 bits would spoil: numbers past the type's range, and integers that it does not hold exactly.

The analysis follows expressions, not data. A value counts as *wide* if it is made, by steps that keep magnitudes, of

* literals and constants whose magnitude the type cannot hold (the -1e9 or -3.4e38 of attention masks),
* integers converted to floats (positions, sizes: f16 holds every integer up to 2048, bf16 up to 256),
* squares, powers, exponentials, and sums that are not divided.

Functions with a bounded or slowly growing result, normalisations (a division by something summed), means, contractions
and limits (``min(x, c)``) end that; ``expm1`` is taken to stand in an ELU, where it is below 0. Activations are taken
to fit, as everywhere in mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.precision import is_contraction
from tilewright.dsl.program import Call, Cast, Const, Expr, IndexValue, Program, Read, Reduce, walk

LARGEST = {DType.F16: (2 - 2.0**-10) * 2.0**15, DType.BF16: (2 - 2.0**-7) * 2.0**127}
"""Largest finite number of a type."""

_GROWS = frozenset({"pow", "square", "reciprocal", "exp", "exp2", "sinh", "cosh", "tgamma", "lgamma", "ldexp"})
_KEEPS = frozenset((
    "add", "sub", "mul", "neg", "abs", "mod", "fmod", "copysign", "floor", "ceil", "trunc", "round", "relu", "silu",
    "mish", "gelu", "gelu_tanh", "elu", "celu", "selu", "leaky_relu", "hardswish", "softplus", "hypot", "deg2rad",
    "rad2deg", "logaddexp", "logaddexp2",
))  # fmt: skip
"""Functions whose result may be as large as an argument."""
_LIMITS = frozenset({"min", "max", "fmin", "fmax"})
_EXACT = frozenset({DType.BOOL, DType.I8, DType.U8})
"""Integers that both 16-bit types hold."""


def exceeds(array: np.ndarray, dtype: DType) -> bool:
    """Whether an array has finite elements that become infinite in a 16-bit type."""
    finite = np.isfinite(array)
    largest = np.abs(array, where=finite, out=np.zeros_like(array)).max(initial=0)
    with np.errstate(over="ignore"):
        return bool(np.isinf(largest.astype(dtype.numpy)))


@dataclass
class Ranges:
    """The expressions of one Program, with what is known of its tensors.

    ``wide`` are the names of its tensors that are wide; `Ranges.of` adds those that its statements make.
    """

    dtype: DType
    wide: set[str]
    summed: set[str] = field(default_factory=set)
    """Tensors that its statements make with a reduction."""

    @staticmethod
    def of(program: Program, wide: Iterable[str], dtype: DType) -> Ranges:
        """What the statements of a program make of inputs of which those in ``wide`` are wide."""
        found = Ranges(dtype, set(wide))
        for s in program.statements:
            if found.is_wide(s.value):
                found.wide.add(s.target)
            if found.reduces(s.value):
                found.summed.add(s.target)
        return found

    def reduces(self, e: Expr) -> bool:
        """Whether a reduction is part of the value, here or in an earlier statement."""
        return any(isinstance(n, Reduce) or (isinstance(n, Read) and n.tensor in self.summed) for n in walk(e))

    def is_wide(self, e: Expr) -> bool:
        """Whether the type may not hold what the expression gives."""
        match e:
            case Const():
                return e.dtype.is_float and math.isfinite(e.value) and abs(e.value) > LARGEST[self.dtype]
            case Read():
                return e.tensor in self.wide
            case IndexValue():
                return True
            case Cast():
                from_integers = e.dtype.is_float and not e.arg.dtype.is_float and e.arg.dtype not in _EXACT
                return from_integers or self.is_wide(e.arg)
            case Reduce():
                return self._is_wide_reduction(e)
            case Call():
                return self._is_wide_call(e)
            case _:
                return False

    def _is_wide_reduction(self, e: Reduce) -> bool:
        if e.kind in ("max", "min"):
            return self.is_wide(e.body)
        match e.body:
            case Call(function="where", args=(Call(function="eq"), chosen, Const(value=0))):  # one term of the sum
                return self.is_wide(chosen)
        return not is_contraction(e)

    def _is_wide_call(self, e: Call) -> bool:
        if e.function in _GROWS or (e.function == "mul" and e.args[0] == e.args[1]):
            return True
        if e.function == "mul" and any(map(self._normalises, e.args)):
            return False
        if e.function == "where":
            return any(map(self.is_wide, e.args[1:]))
        if e.function in _LIMITS:
            return all(map(self.is_wide, e.args))
        if e.function == "div":
            return self._is_wide_quotient(*e.args)
        return e.function in _KEEPS and any(map(self.is_wide, e.args))

    def _normalises(self, e: Expr) -> bool:
        """Whether an expression divides by something summed: a factor that brings magnitudes back."""
        match e:
            case Call(function="div", args=(_, divisor)) | Call(function="rsqrt" | "reciprocal", args=(divisor,)):
                return self.reduces(divisor)
            case _:
                return False

    def _is_wide_quotient(self, numerator: Expr, denominator: Expr) -> bool:
        if self.reduces(denominator):
            return False
        if isinstance(numerator, Reduce) and numerator.kind == "sum":  # a mean is like what it is the mean of
            return self.is_wide(numerator.body)
        return self.is_wide(numerator)
