"""Recognises softmax-weighted sums, whatever operators they came from, for computation in one pass over the keys.

    s[i,j] = any pointwise function of  sum(d) q[i,d] * k[j,d]  and of reads at (i, j): scale, masks, biases
    m[i]   = max(j) s[i,j]
    l[i]   = sum(j) exp(s[i,j] - m[i])
    a[i,c] = sum(j) exp(s[i,j] - m[i]) * v[j,c]
    o[i,c] = any pointwise function of a, l, m and reads at (i, c)

Intermediates are replaced by what they hold until one expression is left; then every sum over j must be a product of
one exponential, values, and factors that do not depend on j, which leave the sum. It does not matter at which
statement the division by l stands, whether the exponential is to base e or 2, and where the scale is.

The pass itself ("online softmax") is from Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018,
arXiv:1805.02867), with weighted sums from Dao et al., "FlashAttention" (2022, arXiv:2205.14135): the running maximum
and sums hold for the keys seen so far, and are rescaled by exp(old maximum - new maximum) where the maximum grows.

f16 and bf16 are storage: everything between reads and writes is computed in f32, also where the program would round an
intermediate. As in NumPy, a row whose every score is -inf is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    checked_dimensions,
    children,
    extents,
    free_indices,
    position,
    substitute_indices,
    transform,
    walk,
)

KEY, DEPTH, COLUMN = "~key", "~depth", "~column"
"""Names of the summed index, the index of the scores' product, and the values' own one where the program has none."""
MAXIMUM, TOTAL, PRODUCT = (Read(name, (), DType.F32) for name in ("~maximum", "~total", "~product"))
"""What the pass leaves of each row, as it stands in `Attention.value`: m, l and a above."""
LONGEST_ROW = 256
"""Largest extent of the depth and of the columns: a block of rows keeps both on the chip."""
MAX_NODES = 4000
"""Largest expression that is looked at."""

_STORAGE = (DType.F16, DType.BF16, DType.F32)


@dataclass(frozen=True)
class Attention:
    """A program seen as one pass over keys; index tuples are listed outermost first, extents of 1 are left out."""

    program: Program
    statement: Statement
    """The one that writes the output."""
    batch: tuple[Index, ...]
    """Output indices that choose the keys or the values: each has a pass of its own."""
    rows: tuple[Index, ...]
    """Output indices that choose the scores alone."""
    column: Index
    """The output index that chooses the values alone."""
    key: Index
    depth: Index | None
    score: Expr
    """Of `key`, rows and batch; holds `dot`."""
    dot: Reduce | None
    query: Expr
    """The factors of `dot` that do not depend on the key."""
    keys: Expr
    values: Expr
    exponential: str
    """exp or exp2."""
    factor: float
    """The weights are exponential(factor * (score - maximum))."""
    value: Expr
    """The output's element, of `MAXIMUM`, `TOTAL`, `PRODUCT` and reads."""
    address: Affine
    """Where the element is stored."""

    @property
    def output(self) -> Tensor:
        """The tensor that is written."""
        return self.program.outputs[0]

    @property
    def m(self) -> int:
        """Rows that share their keys and values."""
        return math.prod(i.extent for i in self.rows)

    @property
    def n(self) -> int:
        """Keys."""
        return self.key.extent

    @property
    def d(self) -> int:
        """Depth of the product that scores are made of; 0 if they are made of reads alone."""
        return self.depth.extent if self.depth else 0

    @property
    def e(self) -> int:
        """Columns."""
        return self.column.extent

    @property
    def g(self) -> int:
        """Passes."""
        return math.prod(i.extent for i in self.batch)

    def extents(self) -> dict[str, int]:
        """Extent of every index."""
        every = (*self.batch, *self.rows, self.column, self.key, *((self.depth,) if self.depth else ()))
        return {i.name: i.extent for i in every}

    def needs(self, part: Read) -> bool:
        """Whether the output depends on `MAXIMUM`, `TOTAL` or `PRODUCT`."""
        return part in walk(self.value)


class _Refused(Exception):
    """The program is none of these; the text says why."""


@lru_cache(maxsize=256)
def recognise(program: Program) -> Attention | str:
    """The program as one pass over keys, or why it is none (one clause)."""
    refused = _obviously_none(program)
    if refused:
        return refused
    try:
        return _attention(program)
    except _Refused as reason:
        return str(reason)


def _obviously_none(program: Program) -> str | None:
    """A refusal that needs no look at how the statements hang together."""
    every = [n for s in program.statements for n in walk(s.value)]
    if not any(isinstance(n, Reduce) and n.kind == "max" for n in every):
        return "nothing takes the maximum of scores"
    if not any(isinstance(n, Call) and n.function in ("exp", "exp2") for n in every):
        return "it has no exponential"
    if len(program.outputs) != 1:
        return "it has several outputs"
    if any(n.dtype is DType.F64 for n in every):
        return "it computes in f64; one pass keeps f32"
    if program.outputs[0].dtype not in _STORAGE:
        return "its output is not f16, bf16 or f32"
    if any(isinstance(n, Reduce) and n.until is not None for n in every):
        return "it has a prefix reduction (a scan)"
    if len(every) > MAX_NODES:
        return "its expressions are too large"
    return None


def _attention(program: Program) -> Attention:
    statement, value = _expanded(program)
    if 0 in [i.extent for i in statement.indices]:
        raise _Refused("its output is empty")
    gone = {i.name: Affine((), 0) for i in statement.indices if i.extent == 1}
    pass_ = _Pass()
    value = pass_.rewritten(substitute_indices(value, gone))
    score, values = pass_.score, pass_.values
    if score is None or values is None or pass_.key is None:
        raise _Refused("no sum is weighted with the exponential of a score")
    dot = _dot(score)
    query, keys = _operands(dot) if dot else (_ONE, _ONE)
    indices = [i for i in statement.indices if i.extent > 1]
    batch, rows, columns = _sorted(indices, free_indices(score), free_indices(keys), free_indices(values))
    address = program.outputs[0].address(tuple(Affine.index(i.name) for i in statement.indices)).substitute(gone)
    depth = Index(DEPTH, dot.indices[0].extent) if dot else None
    column = columns[0] if columns else Index(COLUMN, 1)
    if max(depth.extent if depth else 0, column.extent) > LONGEST_ROW:
        raise _Refused(f"rows of more than {LONGEST_ROW} elements do not stay on the chip")
    return Attention(
        program,
        statement,
        batch,
        tuple(sorted(rows, key=lambda i: -abs(address.coefficient(i.name)))),
        column,
        pass_.key,
        depth,
        score,
        dot,
        query,
        keys,
        values,
        pass_.exponential,
        pass_.factor,
        value,
        address,
    )


def _sorted(
    indices: list[Index], score: frozenset[str], keys: frozenset[str], values: frozenset[str]
) -> tuple[tuple[Index, ...], tuple[Index, ...], tuple[Index, ...]]:
    """Output indices as batch, rows and columns, by the operands that they choose."""
    batch, rows, columns = [], [], []
    for i in indices:
        if i.name in keys or (i.name in score and i.name in values):
            batch.append(i)
        elif i.name in score:
            rows.append(i)
        elif i.name in values:
            columns.append(i)
        else:
            raise _Refused("an index of the output chooses neither scores nor values")
    if len(columns) > 1:
        raise _Refused("its values have several indices of their own")
    return tuple(batch), tuple(rows), tuple(columns)


# --- one expression ---------------------------------------------------------------------------------------------------


def _expanded(program: Program) -> tuple[Statement, Expr]:
    """The statement of the output, and its value with intermediates replaced by what they hold.

    Reductions bind indices named after how deep reductions stand within them, so that equal values have equal
    expressions; conversions between the types of storage are gone.
    """
    hidden = {t.name: t for t in program.intermediates}
    held: dict[str, tuple[Statement, Expr]] = {}
    for s in program.statements:
        extent = extents(s)
        if 0 in extent.values():
            raise _Refused("an index has extent 0")

        def change(e: Expr, extent: dict[str, int] = extent) -> Expr:
            match e:
                case Read() if e.tensor in hidden:
                    if checked_dimensions(e.index, hidden[e.tensor].shape, extent):
                        raise _Refused("an intermediate is read outside its range")
                    made, value = held[e.tensor]
                    return substitute_indices(value, {i.name: a for i, a in zip(made.indices, e.index, strict=True)})
                case Cast() if e.dtype in _STORAGE and e.arg.dtype in _STORAGE:
                    return e.arg
                case Reduce():
                    return _renamed(e)
                case _:
                    return e

        held[s.target] = s, transform(s.value, change)
        if _size(held[s.target][1]) > MAX_NODES:
            raise _Refused("its expressions are too large")
    return held[program.outputs[0].name]


def _renamed(e: Reduce) -> Reduce:
    """The reduction with its indices named `~<height>_<number>`; those of extent 1 are gone unless all are."""
    height = _height(e.body)
    wide = [i for i in e.indices if i.extent > 1] or [e.indices[0]]
    names = {i.name: f"~{height}_{n}" for n, i in enumerate(wide)}
    places = {i.name: Affine.index(names[i.name]) if i.name in names else Affine((), 0) for i in e.indices}
    indices = tuple(Index(names[i.name], i.extent) for i in wide)
    return Reduce(e.kind, indices, substitute_indices(e.body, places), e.dtype)


def _height(e: Expr) -> int:
    return max((_height(c) for c in children(e)), default=0) + isinstance(e, Reduce)


def _size(e: Expr) -> int:
    return 1 + sum(_size(c) for c in children(e))


# --- the pass ---------------------------------------------------------------------------------------------------------


@dataclass
class _Pass:
    """What has been found out about the sums while the output's expression is walked."""

    key: Index | None = None
    score: Expr | None = None
    values: Expr | None = None
    exponential: str = ""
    factor: float = 1.0
    maxima: list[Expr] = field(default_factory=list)

    def rewritten(self, e: Expr) -> Expr:
        """`e` with its reductions replaced by what the pass leaves."""
        value = self._rewritten(e)
        if any(m != self.score for m in self.maxima):
            raise _Refused("a maximum is not that of the scores")
        return value

    def _rewritten(self, e: Expr) -> Expr:
        match e:
            case Reduce(kind="max"):
                self.maxima.append(_at_key(e))
                return MAXIMUM
            case Reduce():
                return self._sum(e)
            case Call():
                return Call(e.function, tuple(self._rewritten(a) for a in e.args), e.dtype)
            case Cast():
                return Cast(self._rewritten(e.arg), e.dtype)
            case _:
                return e

    def _sum(self, e: Reduce) -> Expr:
        if e.kind != "sum":
            raise _Refused(f"a reduction is {e.kind}, neither a sum nor the scores' maximum")
        body = _at_key(e)
        self._agree("key", Index(KEY, e.indices[0].extent), "its sums run over different ranges")
        weights: list[Expr] = []
        values: list[tuple[Expr, bool]] = []
        outside: list[tuple[Expr, bool]] = []
        factors, guarded = _unguarded(_factors(body))
        for f, inverse in factors:
            if KEY not in free_indices(f):
                outside.append((f, inverse))
            elif isinstance(f, Call) and f.function in ("exp", "exp2") and not inverse:
                weights.append(f)
            else:
                values.append((f, inverse))
        if len(weights) != 1:
            raise _Refused("a sum is not weighted with the exponential of a score")
        self._weigh(weights[0])
        total: Expr = TOTAL
        if values:
            self._agree("values", _product(values), "its sums are over different values")
            total = PRODUCT
        for f, inverse in outside:
            total = Call("div" if inverse else "mul", (total, self._rewritten(f)), DType.F32)
        if guarded:
            bad = Call("isnan", (TOTAL,), DType.BOOL)
            total = Call("where", (bad, Const(0.0, DType.F32), total), DType.F32)
        return total

    def _weigh(self, weight: Expr) -> None:
        assert isinstance(weight, Call)
        factor, score = _shifted(weight.args[0])
        if factor <= 0:
            raise _Refused("its weights fall where scores rise")
        reason = "its weights are of different scores"
        self._agree("score", score, reason)
        if self.exponential and (self.exponential, self.factor) != (weight.function, factor):
            raise _Refused(reason)
        self.exponential, self.factor = weight.function, factor

    def _agree(self, what: str, value: object, reason: str) -> None:
        """Note a part of the pass; it must be the same wherever it is found."""
        if getattr(self, what) is None:
            setattr(self, what, value)
        elif getattr(self, what) != value:
            raise _Refused(reason)


def _at_key(e: Reduce) -> Expr:
    """The reduction's body with its index named `KEY`."""
    if len(e.indices) != 1:
        raise _Refused("it reduces over several indices at once")
    return substitute_indices(e.body, {e.indices[0].name: Affine.index(KEY)})


def _shifted(e: Expr) -> tuple[float, Expr]:
    """(f, s) where `e` is f * (s - the maximum of s over the keys)."""
    inner, factor = _scaled(e)
    if isinstance(inner, Call) and inner.function == "sub":
        (score, own), (maximum, other) = (_scaled(a) for a in inner.args)
        if isinstance(maximum, Reduce) and maximum.kind == "max":
            body = _at_key(maximum)
            known, within = _scaled(body)
            if known == score and math.isclose(own, other * within, rel_tol=1e-6):
                return factor * other, body
    raise _Refused("an exponential is not of scores less their maximum")


def _scaled(e: Expr) -> tuple[Expr, float]:
    """(x, f) where `e` is x times the constant f."""
    match e:
        case Call(function="mul", args=(x, Const(value=f))) | Call(function="mul", args=(Const(value=f), x)):
            inner, factor = _scaled(x)
            return inner, factor * float(f)
        case Call(function="div", args=(x, Const(value=f))) if f:
            inner, factor = _scaled(x)
            return inner, factor / float(f)
        case _:
            return e, 1.0


# --- products ---------------------------------------------------------------------------------------------------------

_ONE = Const(1.0, DType.F32)


def _factors(e: Expr) -> list[tuple[Expr, bool]]:
    """The factors of a product of floats; True marks those it is divided by."""
    match e:
        case Call(function="mul", args=(a, b)) if e.dtype.is_float:
            return [*_factors(a), *_factors(b)]
        case Call(function="div", args=(a, b)) if e.dtype.is_float:
            return [*_factors(a), *((f, not inverse) for f, inverse in _factors(b))]
        case _:
            return [(e, False)]


def _unguarded(factors: list[tuple[Expr, bool]]) -> tuple[list[tuple[Expr, bool]], bool]:
    """The factors, with ``where(isnan(p), 0, p)`` as p's own; True if there was one.

    A weight is NaN exactly where the sum of its row's exponentials is, and then all of the row are.
    """
    result, guarded = [], False
    for f, inverse in factors:
        match f:
            case Call(function="where", args=(Call(function="isnan", args=(tested,)), Const(value=0), p)) if (
                tested == p and not inverse
            ):
                result += _factors(p)
                guarded = True
            case _:
                result.append((f, inverse))
    return result, guarded


def _product(factors: Sequence[tuple[Expr, bool]]) -> Expr:
    """The factors multiplied, then divided by those that are inverse."""
    first, *rest = [f for f, inverse in factors if not inverse] or [_ONE]
    whole = first
    for f in rest:
        whole = Call("mul", (whole, f), DType.F32)
    for f in (f for f, inverse in factors if inverse):
        whole = Call("div", (whole, f), DType.F32)
    return whole


def _dot(score: Expr) -> Reduce | None:
    """The one reduction within the scores, with its index named `DEPTH`."""
    found = {n for n in walk(score) if isinstance(n, Reduce)}
    if not found:
        return None
    if len(found) > 1:
        raise _Refused("its scores hold several reductions")
    e = found.pop()
    if e.kind != "sum" or len(e.indices) != 1:
        raise _Refused("its scores are no products along one index")
    return e


def _operands(dot: Reduce) -> tuple[Expr, Expr]:
    """The factors of a score's product that do not depend on the key, and those that do."""
    every = _factors(dot.body)
    keys = [f for f in every if KEY in free_indices(f[0])]
    query = [f for f in every if KEY not in free_indices(f[0])]
    at = {dot.indices[0].name: Affine.index(DEPTH)}
    return substitute_indices(_product(query), at), substitute_indices(_product(keys), at)


# --- masks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Keys outside of these have a score of -inf, whatever is read: each expression is linear in rows and batch."""

    last: tuple[Affine, ...] = ()
    """No key beyond any of these counts."""
    first: tuple[Affine, ...] = ()
    """No key before any of these counts."""


def bounds_of(score: Expr) -> Bounds:
    """What the scores' form tells about keys that are masked: ``where(j <= i, s, -inf)``."""
    last: list[Affine] = []
    first: list[Affine] = []
    e, factor = _scaled(score)
    while isinstance(e, Call) and e.function == "where" and factor > 0:
        condition, yes, no = e.args
        if no == Const(-math.inf, no.dtype):
            e, holds = yes, True
        elif yes == Const(-math.inf, yes.dtype):
            e, holds = no, False
        else:
            break
        for below in _never_positive(condition, holds):
            c = below.coefficient(KEY)
            rest = below.without(KEY)
            if c == 1:
                last.append(rest * -1)
            elif c == -1:
                first.append(rest)
        e, factor = _scaled(e)
    return Bounds(tuple(last), tuple(first))


def _never_positive(e: Expr, holds: bool) -> list[Affine]:
    """Index expressions that are at most 0 wherever the condition holds (or does not)."""
    if not isinstance(e, Call):
        return []
    if e.function == "not":
        return _never_positive(e.args[0], not holds)
    if e.function == ("and" if holds else "or"):
        return [a for part in e.args for a in _never_positive(part, holds)]
    if e.function not in ("lt", "le", "gt", "ge") or any(a.dtype.is_float for a in e.args):
        return []
    function = e.function if holds else {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[e.function]
    left, right = (position(a) for a in e.args)
    difference = left + right * -1 if function in ("lt", "le") else right + left * -1
    if not difference.is_linear:
        return []
    return [difference + (1 if function in ("lt", "gt") else 0)]
