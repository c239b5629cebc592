"""The sums of a softmax-weighted sum: found in one expression, and replaced by what one pass over the keys leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import KEY, factors, product, scaled, unguarded
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    Index,
    Read,
    Reduce,
    free_indices,
    substitute_indices,
    walk,
)

DEPTH = "~depth"
"""Name of the index of the scores' product."""
MAXIMUM, TOTAL, PRODUCT = (Read(name, (), DType.F32) for name in ("~maximum", "~total", "~product"))
"""What the pass leaves of each row, as it stands in `Attention.value`: m, l and a above."""


class Refused(Exception):
    """The program is no softmax-weighted sum; the text says why."""


@dataclass
class Pass:
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
            raise Refused("a maximum is not that of the scores")
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
            raise Refused(f"a reduction is {e.kind}, neither a sum nor the scores' maximum")
        body = _at_key(e)
        self._agree("key", Index(KEY, e.indices[0].extent), "its sums run over different ranges")
        weights: list[Expr] = []
        values: list[tuple[Expr, bool]] = []
        outside: list[tuple[Expr, bool]] = []
        parts, guarded = unguarded(factors(body))
        for f, inverse in parts:
            if KEY not in free_indices(f):
                outside.append((f, inverse))
            elif isinstance(f, Call) and f.function in ("exp", "exp2") and not inverse:
                weights.append(f)
            else:
                values.append((f, inverse))
        if len(weights) != 1:
            raise Refused("a sum is not weighted with the exponential of a score")
        self._weigh(weights[0])
        total: Expr = TOTAL
        if values:
            self._agree("values", product(values), "its sums are over different values")
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
            raise Refused("its weights fall where scores rise")
        reason = "its weights are of different scores"
        self._agree("score", score, reason)
        if self.exponential and (self.exponential, self.factor) != (weight.function, factor):
            raise Refused(reason)
        self.exponential, self.factor = weight.function, factor

    def _agree(self, what: str, value: object, reason: str) -> None:
        """Note a part of the pass; it must be the same wherever it is found."""
        if getattr(self, what) is None:
            setattr(self, what, value)
        elif getattr(self, what) != value:
            raise Refused(reason)


def _at_key(e: Reduce) -> Expr:
    """The reduction's body with its index named `KEY`."""
    if len(e.indices) != 1:
        raise Refused("it reduces over several indices at once")
    return substitute_indices(e.body, {e.indices[0].name: Affine.index(KEY)})


def _shifted(e: Expr) -> tuple[float, Expr]:
    """(f, s) where `e` is f * (s - the maximum of s over the keys)."""
    inner, factor = scaled(e)
    if isinstance(inner, Call) and inner.function == "sub":
        (score, own), (maximum, other) = (scaled(a) for a in inner.args)
        if isinstance(maximum, Reduce) and maximum.kind == "max":
            body = _at_key(maximum)
            known, within = scaled(body)
            if known == score and math.isclose(own, other * within, rel_tol=1e-6):
                return factor * other, body
    raise Refused("an exponential is not of scores less their maximum")


# --- the scores' product ----------------------------------------------------------------------------------------------


def dot_of(score: Expr) -> Reduce | None:
    """The one reduction within the scores, with its index named `DEPTH`."""
    found = {n for n in walk(score) if isinstance(n, Reduce)}
    if not found:
        return None
    if len(found) > 1:
        raise Refused("its scores hold several reductions")
    e = found.pop()
    if e.kind != "sum" or len(e.indices) != 1:
        raise Refused("its scores are no products along one index")
    return e


def operands_of(dot: Reduce) -> tuple[Expr, Expr]:
    """The factors of a score's product that do not depend on the key, and those that do."""
    every = factors(dot.body)
    keys = [f for f in every if KEY in free_indices(f[0])]
    query = [f for f in every if KEY not in free_indices(f[0])]
    at = {dot.indices[0].name: Affine.index(DEPTH)}
    return substitute_indices(product(query), at), substitute_indices(product(keys), at)
