"""Typed values: Program expressions under the language's typing rules.

A number has no type of its own (it is *weak*): it takes the other operand's. A value also carries the type it would be
*stored* in: accumulating f16 happens in f32, but the result belongs in f16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType, promote
from tilewright.dsl.functions import FUNCTIONS, SPOKEN, Result
from tilewright.dsl.program import Call, Cast, Const, Expr, Index, Reduce, walk

MAX_REPEATED = 64
"""Most nodes of an expression that a power repeats; larger ones are computed once and go through `pow`."""


@dataclass(frozen=True)
class Kind:
    """An element type; weak if it gives way to the other operand's."""

    dtype: DType
    weak: bool = False


@dataclass(frozen=True)
class Value:
    """An expression with its type and the type that it would be stored in by default."""

    expr: Expr
    weak: bool
    storage: Kind

    @property
    def kind(self) -> Kind:
        return Kind(self.expr.dtype, self.weak)


def typed(expr: Expr, storage: Kind | None = None) -> Value:
    """A value with a type of its own."""
    return Value(expr, False, storage or Kind(expr.dtype))


def number(value: int | float | bool) -> Value:
    """A literal: weak, except for true and false."""
    if isinstance(value, bool):
        return typed(Const(value, DType.BOOL))
    if isinstance(value, float):
        return Value(Const(value, DType.F32), True, Kind(DType.F32, True))
    dtype = next((d for d in (DType.I32, DType.I64) if _fits(value, d)), DType.U64)
    return Value(Const(value, dtype), True, Kind(dtype, True))


def cast(expr: Expr, dtype: DType) -> Expr:
    """The expression as `dtype`; constants are converted here, by C's rules."""
    if expr.dtype is dtype:
        return expr
    if isinstance(expr, Const):
        if dtype is DType.BOOL:
            return Const(bool(expr.value), dtype)
        if dtype.is_float:
            return Const(float(expr.value), dtype)
        if math.isfinite(expr.value) and _fits(int(expr.value), dtype):
            return Const(int(expr.value), dtype)
    return Cast(expr, dtype)


def converted(value: Value, dtype: DType) -> Value:
    """An explicit conversion: `f32(x)`."""
    return typed(cast(value.expr, dtype))


def unfit(name: str, args: Sequence[Value]) -> str:
    """Why a function cannot be applied to values of these types, or an empty string."""
    if SPOKEN[name].result is Result.INTEGER:
        for a in args:
            if a.expr.dtype.is_float:
                return f"{name} takes integers, found {a.expr.dtype.value}; convert it, such as i32(...)"
    if name == "nextafter" and any(a.storage.dtype in (DType.F16, DType.BF16) for a in args):
        return "nextafter takes f32 or f64: f16 and bf16 are computed in f32"
    return ""


def apply(name: str, args: Sequence[Value]) -> Value:
    """A pointwise function or operator; the number of arguments is right already, and nothing makes them `unfit`."""
    function = SPOKEN[name]
    args = (*args, *(number(d) for d in function.defaults[len(args) - function.least :]))
    if name in _COMPOSED:
        return _COMPOSED[name](*args)
    if function.result is Result.INTEGER and all(a.expr.dtype is DType.BOOL for a in args) and name in _ON_TRUTH:
        return apply(_ON_TRUTH[name], args)
    if name in ("max", "min") and len(args) > 2:
        dtype = _arithmetic(_wide_enough(args, _common(a.kind for a in args)), FUNCTIONS[name].result)
        return _halved(name, [Value(cast(a.expr, dtype), False, a.storage) for a in args])
    if name == "pow":
        return power(args[0], args[1])
    folded = _constant(name, args)
    if folded is not None:
        return folded
    return _call(name, args)


def _halved(name: str, args: Sequence[Value]) -> Value:
    """Two arguments at a time, as a balanced tree: many arguments do not nest deeply."""
    if len(args) == 1:
        return args[0]
    middle = len(args) // 2
    return _call(name, (_halved(name, args[:middle]), _halved(name, args[middle:])))


def _call(name: str, args: Sequence[Value]) -> Value:
    result = FUNCTIONS[name].result
    if name in ("and", "or", "not"):
        return typed(Call(name, tuple(cast(a.expr, DType.BOOL) for a in args), DType.BOOL))
    if result is Result.WHERE:
        chosen = args[1:]
        dtype = _wide_enough(chosen, _common(a.kind for a in chosen))
        storage = _storage(a.storage for a in chosen)
        operands = (cast(args[0].expr, DType.BOOL), *(cast(a.expr, dtype) for a in chosen))
        return Value(Call(name, operands, dtype), False, Kind(_wide_enough(chosen, storage.dtype), storage.weak))
    dtype = _wide_enough(args, _common(a.kind for a in args))
    if result is Result.BOOL:
        return typed(Call(name, tuple(cast(a.expr, dtype) for a in args), DType.BOOL))
    dtype = _arithmetic(dtype, result)
    storage = _storage(a.storage for a in args)
    storage = Kind(_wide_enough(args, storage.dtype), storage.weak)
    expr = Call(name, tuple(cast(a.expr, dtype) for a in args), dtype)
    return Value(expr, False, Kind(_arithmetic(storage.dtype, result), storage.weak))


def _arithmetic(dtype: DType, result: Result) -> DType:
    """What a function computes in: bool counts as i32, and FLOAT functions take integers as f32."""
    if result is Result.FLOAT and not dtype.is_float:
        return DType.F32
    return DType.I32 if dtype is DType.BOOL else dtype


def _common(kinds: Iterable[Kind]) -> DType:
    return _storage(kinds).dtype


def _storage(kinds: Iterable[Kind]) -> Kind:
    """The common type; weak only if all are."""
    kinds = tuple(kinds)
    strong = [k.dtype for k in kinds if not k.weak]
    weak = [k.dtype for k in kinds if k.weak]
    if not strong:
        return Kind(reduce(promote, weak), True)
    dtype = reduce(promote, strong)
    for w in weak:
        if w.is_float and not dtype.is_float:
            dtype = w
        elif dtype is DType.BOOL:
            dtype = DType.I32
    return Kind(dtype)


def _wide_enough(args: Sequence[Value], dtype: DType) -> DType:
    """`dtype`, or a wider integer if a number among the arguments does not fit it (i8 + 1000)."""
    for a in args:
        if a.weak and not dtype.is_float and isinstance(a.expr, Const) and not _fits(int(a.expr.value), dtype):
            dtype = promote(dtype, number(int(a.expr.value)).expr.dtype)
    return dtype


def _fits(value: int, dtype: DType) -> bool:
    low, high = integer_range(dtype)
    return low <= value <= high


def integer_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type (bool counts as i8, which holds it)."""
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.value.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


_ON_TRUTH = {"bitand": "and", "bitor": "or", "bitxor": "xor", "bitnot": "not"}
"""What bitwise functions of truth values are."""


def _clamp(x: Value, low: Value, high: Value) -> Value:
    return apply("min", (apply("max", (x, low)), high))


def _float_power(base: Value, exponent: Value) -> Value:
    exact = [a if a.expr.dtype.is_float else converted(a, DType.F32) for a in (base, exponent)]
    return power(*exact)


_COMPOSED: dict[str, Callable[..., Value]] = {
    "clamp": _clamp,
    "hardtanh": _clamp,
    "xor": lambda a, b: apply("ne", (converted(a, DType.BOOL), converted(b, DType.BOOL))),
    "float_power": _float_power,
    "positive": lambda a: a,
}


# --- powers and constants ---------------------------------------------------------------------------------------------


def power(base: Value, exponent: Value) -> Value:
    """`base ^ exponent`: integer exponents 2 to 4 multiply, 1 gives the base, all others call `pow`.

    What is long or holds a reduction is not computed twice: it goes through `pow`, unless it is an integer.
    """
    folded = _constant("pow", (base, exponent))
    if folded is not None:
        return folded
    n = exponent.expr.value if isinstance(exponent.expr, Const) and exponent.weak else None
    if n == 1 and isinstance(n, int):
        return base
    small = isinstance(n, int) and 2 <= n <= 4
    once = _long(base.expr) or any(isinstance(node, Reduce) for node in walk(base.expr))
    if small and not (once and base.expr.dtype.is_float):
        square = apply("mul", (base, base))
        return square if n == 2 else apply("mul", (square, base if n == 3 else square))
    return _call("pow", (base, exponent))


def repeats_too_much(base: Value, exponent: Value) -> bool:
    """True for an integer power whose base is too long to be repeated."""
    return not base.expr.dtype.is_float and not exponent.expr.dtype.is_float and _long(base.expr)


def _long(e: Expr) -> bool:
    return any(count >= MAX_REPEATED for count, _ in enumerate(walk(e)))


_FOLDED: dict[str, Callable[..., int | float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: float(a) ** b if b < 0 or abs(b) > 64 else a**b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "bitnot": lambda a: ~a,
    "shl": lambda a, b: a << _shift(b),
    "shr": lambda a, b: a >> _shift(b),
}


def _shift(by: int) -> int:
    if not 0 <= by < 64:
        raise ValueError("left to the device, which knows the width of the type")
    return by


def _constant(name: str, args: Sequence[Value]) -> Value | None:
    """The number that an operator gives on numbers alone, or None where it cannot be computed here."""
    if name not in _FOLDED or not all(a.weak and isinstance(a.expr, Const) for a in args):
        return None
    try:
        value = _FOLDED[name](*(a.expr.value for a in args if isinstance(a.expr, Const)))
    except (ArithmeticError, ValueError):  # 1/0, 0^-1: left to the device's floats
        return None
    if isinstance(value, complex):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        value = float(value)
    return number(value)


# --- reductions -------------------------------------------------------------------------------------------------------


def reduction(kind: str, indices: tuple[Index, ...], body: Value, until: Affine | None = None) -> Value:
    """`kind(indices) body`, accumulated in the accumulator of the body's type; `until` as in `Reduce`.

    Without indices (nothing to reduce) it is the body in the type that the reduction would have.
    """
    if kind in ("any", "all") and not indices:
        return converted(body, DType.BOOL)
    if kind in ("any", "all"):
        truth = cast(cast(body.expr, DType.BOOL), DType.I32)
        found = Reduce("max" if kind == "any" else "min", indices, truth, DType.I32, until)
        # "> 0" and not "!= 0": over nothing, the identities of max and min are far below and above 0
        return typed(Call("gt", (found, Const(0, DType.I32)), DType.BOOL))
    if kind == "mean":
        count = math.prod(i.extent for i in indices)
        exact = body if body.expr.dtype.is_float else converted(body, DType.F32)
        return apply("div", (reduction("sum", indices, exact), number(float(count))))
    dtype = body.expr.dtype.accumulator
    accumulated = cast(body.expr, dtype)
    result = Reduce(kind, indices, accumulated, dtype, until) if indices else accumulated
    storage = body.storage
    if kind in ("sum", "prod") or storage.dtype is DType.BOOL:
        storage = storage if storage.dtype.is_float else Kind(storage.dtype.accumulator, storage.weak)
    return typed(result, storage)
