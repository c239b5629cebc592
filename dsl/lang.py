"""The language's words for ops written as Python functions (`tilewright.op` on a function).

import tilewright as tw
from tilewright import lang as tl

@tw.op
def softmax(x: "R,K") -> "y[R,K]":
    r, k, j = tl.indices("r k j")
    e = tl.each(r, k)(tl.exp(x[r, k] - tl.max(j)(x[r, j])))
    return tl.each(r, k)(e[r, k] / tl.sum(j)(e[r, j]))

Functions have the names of the language. Reductions take their indices first: ``sum(k)(a[m, k] * b[k, n])``; those of a
whole tensor its name: ``sum(x)``.
"""

from __future__ import annotations

from typing import overload

from tilewright.dsl.diagnostics import suggestion
from tilewright.dsl.functions import SPOKEN
from tilewright.dsl.symbols import Index, Number, Symbol, Tensor, Value, applied, index, indices, reduced
from tilewright.dsl.syntax import Application, Bound, Name
from tilewright.dsl.trace import active, each, size
from tilewright.dsl.vocabulary import DTYPES, REDUCTIONS


class Reducer:
    """``sum(k)``: waits for its body."""

    def __init__(self, kind: str, bounds: tuple[Bound, ...]) -> None:
        self._kind = kind
        self._bounds = bounds

    def __call__(self, body: Symbol | Number) -> Value:
        """The reduction of an expression."""
        return reduced(self._kind, self._bounds, body)


class Reduction:
    """A kind of reduction: over indices, ``sum(j)(x[r,j])`` or ``sum(j <= k)(x[r,j])``, or of a tensor, ``sum(x)``."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    @overload
    def __call__(self, first: Index, *rest: Index) -> Reducer: ...
    @overload
    def __call__(self, first: Value | Tensor | Number, *rest: Symbol | Number) -> Value: ...

    def __call__(self, first: Symbol | Number, *rest: Symbol | Number) -> Reducer | Value:
        bounds = [_bound(i) for i in (first, *rest)]
        found = tuple(b for b in bounds if b is not None)
        if len(found) == len(bounds):
            return Reducer(self._kind, found)
        return applied(self._kind, first, *rest)


def _bound(x: Symbol | Number) -> Bound | None:
    """What a reduction introduces: an index, or one with an end (``j <= k``)."""
    if isinstance(x, Index):
        return x.bound
    node = x.node if isinstance(x, Value) else None
    if isinstance(node, Application) and node.function in ("lt", "le") and isinstance(node.args[0], Name):
        return Bound(node, None)
    return None


class Function:
    """A pointwise function of the language."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Symbol | Number) -> Value:
        """The function of expressions."""
        return applied(self._name, *args)


sum = Reduction("sum")
prod = Reduction("prod")
max = Reduction("max")
min = Reduction("min")
mean = Reduction("mean")
any = Reduction("any")
all = Reduction("all")
argmax = Reduction("argmax")
argmin = Reduction("argmin")
logsumexp = Reduction("logsumexp")
cumsum = Reduction("cumsum")
cumprod = Reduction("cumprod")
cummax = Reduction("cummax")
cummin = Reduction("cummin")


def inside(read: Value) -> Value:
    """True where a read lies within its tensor."""
    return applied("inside", read)


def old(output: str) -> Tensor:
    """What an output held before the op; that is an input then, after the op's others."""
    return Tensor(output)


def __getattr__(name: str) -> Function:
    if name in SPOKEN or name in DTYPES:
        return Function(name)
    raise AttributeError(f"the language has no function {name}{suggestion(name, {*SPOKEN, *REDUCTIONS, *DTYPES})}")


def __dir__() -> list[str]:
    return sorted({*globals(), *SPOKEN, *DTYPES})


# --- tuning lines -----------------------------------------------------------------------------------------------------


def tile(over: Index, *values: int, per_item: tuple[int, ...] = ()) -> None:
    """``tile m: 32, 64 per item 2, 4``: elements per work-group, and per work-item."""
    _line("tile", over.name, values, per_item)


def vector(over: Index, *values: int) -> None:
    """``vector n: 4, 8``: elements per vector."""
    _line("vector", over.name, values)


def unroll(over: Index, *values: int) -> None:
    """``unroll k: 1, 2``: steps per turn of a loop."""
    _line("unroll", over.name, values)


def split(over: Index, *values: int) -> None:
    """``split k: 1, 4``: parts of a reduction that run apart."""
    _line("split", over.name, values)


def stage(tensor: Tensor, *places: str) -> None:
    """``stage x: local, none``: where an operand is copied first."""
    _line("stage", tensor.name, places)


def work_group(*values: int) -> None:
    """``work_group: 64, 128``: work-items per work-group."""
    active().lines.append(f"work_group: {', '.join(map(str, values))}")


def limit(condition: str) -> None:
    """``where local_bytes <= device.local_mem``: a condition on configurations, in the language's words."""
    active().lines.append(f"where {condition}")


def fast_math() -> None:
    """NaN, infinities and the last bits of functions may be given up for speed."""
    active().lines.append("fast_math")


def precision(name: str) -> None:
    """``precision tf32``: what products of contractions are computed from; fp32, tf32, fp16 or bf16."""
    active().lines.append(f"precision {name}")


def _line(kind: str, subject: str, values: tuple[object, ...], per_item: tuple[int, ...] = ()) -> None:
    text = f"{kind} {subject}: {', '.join(map(str, values))}"
    active().lines.append(text + (f" per item {', '.join(map(str, per_item))}" if per_item else ""))


__all__ = [
    "Function",
    "Index",
    "Reducer",
    "Reduction",
    "Tensor",
    "Value",
    "all",
    "any",
    "argmax",
    "argmin",
    "cummax",
    "cummin",
    "cumprod",
    "cumsum",
    "each",
    "fast_math",
    "index",
    "indices",
    "inside",
    "limit",
    "logsumexp",
    "max",
    "mean",
    "min",
    "old",
    "precision",
    "prod",
    "size",
    "split",
    "stage",
    "sum",
    "tile",
    "unroll",
    "vector",
    "work_group",
]
