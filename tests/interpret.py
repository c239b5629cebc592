"""Evaluates Programs with NumPy, straight from their definition: what kernels are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import (
    Call,
    Cast,
    Computed,
    Const,
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
)

_FUNCTIONS: dict[str, Callable[..., object]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "floordiv": np.floor_divide,
    "round": np.rint,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "bitand": np.bitwise_and,
    "bitor": np.bitwise_or,
    "bitxor": np.bitwise_xor,
    "bitnot": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "ldexp": lambda x, n: x * 2.0**n,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.gammaln,
    "tgamma": special.gamma,
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x, a: np.where(x > 0, x, a * np.expm1(x)),
    "celu": lambda x, a: np.where(x > 0, x, a * np.expm1(x / a)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "leaky_relu": lambda x, a: np.where(x < 0, a * x, x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
}
"""Functions whose NumPy name differs; all others have the same."""

_REDUCE = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


def interpret(program: Program, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors that the program writes."""
    known = {t.name: np.asarray(arrays[t.name], t.dtype.numpy) for t in program.inputs}
    written = {}
    for s in program.statements:
        tensor = program.tensors[s.target]
        with np.errstate(all="ignore"):
            value = _Statement(program, known, s).value(s.value, s.indices)
        assert tensor.shape == tuple(i.extent for i in s.indices)
        assert s.value.dtype is tensor.dtype
        known[s.target] = written[s.target] = np.broadcast_to(value, tensor.shape).astype(tensor.dtype.numpy)
    return written


class _Statement:
    """Values are arrays that broadcast over the axes: the output's indices, then those of enclosing reductions."""

    def __init__(self, program: Program, known: Mapping[str, np.ndarray], s: Statement) -> None:
        self.program = program
        self.known = known

    def value(self, e: Expr, axes: tuple[Index, ...]) -> np.ndarray:
        match e:
            case Const():
                return np.asarray(e.value, e.dtype.numpy)
            case Read():
                return self._read(e, axes)
            case Inside():
                return self._inside(e, axes)
            case IndexValue():
                return self._position(e.index, axes).astype(e.dtype.numpy)
            case Cast():
                return _cast(self.value(e.arg, axes), e.arg.dtype, e.dtype)
            case Call():
                args = [self.value(a, axes) for a in e.args]
                result = _FUNCTIONS.get(e.function) or getattr(np, e.function)
                return np.asarray(result(*args)).astype(e.dtype.numpy)
            case Reduce():
                return self._reduce(e, axes)

    def _reduce(self, e: Reduce, axes: tuple[Index, ...]) -> np.ndarray:
        inner = (*axes, *e.indices)
        assert len({i.name for i in inner}) == len(inner)
        body = np.broadcast_to(self.value(e.body, inner), tuple(i.extent for i in inner))
        assert body.dtype == e.dtype.numpy
        own = tuple(range(len(axes), len(inner)))
        if e.until is not None:
            (index,) = e.indices
            within = self._position(Affine.index(index.name), inner) <= self._position(e.until, inner)
            body = np.where(within, body, np.asarray(_neutral(e.kind, e.dtype), body.dtype))
        if e.kind in ("sum", "prod"):
            return _REDUCE[e.kind](body, axis=own, dtype=body.dtype)
        return _REDUCE[e.kind](body, axis=own, initial=_worst(e.kind, e.dtype))

    def _inside(self, e: Read | Inside, axes: tuple[Index, ...]) -> np.ndarray:
        inside = np.asarray(True)
        for a, n in zip(e.index, self.known[e.tensor].shape, strict=True):
            place = self._position(a, axes)
            inside = inside & (place >= 0) & (place < n)
        return inside

    def _read(self, e: Read, axes: tuple[Index, ...]) -> np.ndarray:
        array, tensor = self.known[e.tensor], self.program.tensors[e.tensor]
        inside = self._inside(e, axes)
        if array.size == 0:
            return np.full(inside.shape, tensor.pad, array.dtype)
        places = [np.clip(self._position(a, axes), 0, n - 1) for a, n in zip(e.index, array.shape, strict=True)]
        return np.where(inside, array[tuple(places)], np.asarray(tensor.pad).astype(array.dtype))

    def _position(self, a: Affine, axes: tuple[Index, ...]) -> np.ndarray:
        total = np.full((1,) * len(axes), a.constant, np.int64)
        for term, c in a.terms:
            if isinstance(term, Computed):
                total = total + c * self.value(term.expr, axes).astype(np.int64)
                continue
            axis = [i.name for i in axes].index(term)
            shape = [1] * len(axes)
            shape[axis] = axes[axis].extent
            total = total + c * np.arange(axes[axis].extent).reshape(shape)
        return total


def _cast(value: np.ndarray, source: DType, to: DType) -> np.ndarray:
    """Floats become integers towards zero, NaN as 0, what is out of range as the end of the range."""
    if to.is_float or to is DType.BOOL or not source.is_float:
        return value.astype(to.numpy)
    value = value.astype(np.float64)
    info = np.iinfo(to.numpy)
    inside = (value >= info.min) & (value < 2.0 ** (info.bits - (info.min < 0)))
    least, most = np.asarray(info.min, to.numpy), np.asarray(info.max, to.numpy)
    ends = np.where(np.isnan(value), np.asarray(0, to.numpy), np.where(value < 0, least, most))
    return np.where(inside, np.where(inside, value, 0).astype(to.numpy), ends)


def _neutral(kind: str, dtype: DType) -> float:
    return {"sum": 0, "prod": 1}[kind] if kind in ("sum", "prod") else _worst(kind, dtype)


def _worst(kind: str, dtype: DType) -> float:
    if dtype.is_float:
        return -np.inf if kind == "max" else np.inf
    info = np.iinfo(dtype.numpy)
    return info.min if kind == "max" else info.max
