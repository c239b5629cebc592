"""Integer expressions that are linear in loop indices: `2*p + r - 1`.

Everything the generator knows about addresses, ranges and overlaps follows from these. What is not linear in an index
(`h / 2`, `ids[n]`) stands in them as an atom: a term like an index, whose value is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tilewright.dsl.hashing import hashed_once


class Atom(Protocol):
    """A computed integer within an index expression; `program.Computed` is the only one. Frozen and hashable."""

    @property
    def names(self) -> tuple[str, ...]:
        """The loop indices it depends on."""

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """Itself with loop indices replaced, as an index expression (it may have become linear)."""

    def range(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest value it can have."""


Term = str | Atom
"""A loop index by its name, or a computed integer."""


def _by_text(term: tuple[Term, int]) -> str:
    return str(term[0])


@hashed_once
@dataclass(frozen=True)
class Affine:
    """``sum(coefficient * term) + constant``; terms are sorted by their text and never have coefficient 0."""

    terms: tuple[tuple[Term, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(terms: Mapping[Term, int] | Mapping[str, int], constant: int = 0) -> Affine:
        """Build from a mapping of term to coefficient; zeros are dropped."""
        kept = [t for t in terms.items() if t[1]]
        if len(kept) > 1:
            kept.sort(key=_by_text)
        return Affine(tuple(kept), constant)

    @staticmethod
    def weighted(parts: Iterable[Affine], weights: Iterable[int], constant: int = 0) -> Affine:
        """``sum(weight * part) + constant``."""
        total: dict[Term, int] = {}
        for part, weight in zip(parts, weights, strict=True):
            constant += weight * part.constant
            for t, c in part.terms:
                total[t] = total.get(t, 0) + weight * c
        return Affine.of(total, constant)

    @staticmethod
    def atom(atom: Atom) -> Affine:
        """A computed integer by itself."""
        return Affine(((atom, 1),), 0)

    @staticmethod
    def index(name: str) -> Affine:
        """The index itself."""
        return Affine(((name, 1),), 0)

    @property
    def names(self) -> tuple[str, ...]:
        """The indices that occur, within atoms too."""
        if self.is_linear:
            return tuple(str(name) for name, _ in self.terms)
        found = [[t] if isinstance(t, str) else t.names for t, _ in self.terms]
        return tuple(dict.fromkeys(name for names in found for name in names))

    @property
    def is_linear(self) -> bool:
        """True if there are no atoms: the value moves by `coefficient` for each step of an index."""
        for t, _ in self.terms:  # noqa: SIM110 - a generator would take three times as long, and this is asked often
            if not isinstance(t, str):
                return False
        return True

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The computed integers that occur."""
        return () if self.is_linear else tuple(t for t, _ in self.terms if not isinstance(t, str))

    def bends(self, name: str) -> bool:
        """True if an atom depends on `name`, so that its `coefficient` does not tell how the value moves."""
        return any(name in a.names for a in self.atoms)

    @property
    def single(self) -> str | None:
        """The index's name if this is exactly one bare index, else None."""
        if len(self.terms) != 1 or self.constant or self.terms[0][1] != 1:
            return None
        term = self.terms[0][0]
        return term if isinstance(term, str) else None

    def coefficient(self, name: str) -> int:
        """The factor of `name` as a term of its own, 0 if it does not occur; see `bends`."""
        for term, c in self.terms:
            if term == name:
                return c
        return 0

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.constant + other)
        if not other.terms:
            return Affine(self.terms, self.constant + other.constant)
        total = dict(self.terms)
        for name, c in other.terms:
            total[name] = total.get(name, 0) + c
        return Affine.of(total, self.constant + other.constant)

    def __mul__(self, factor: int) -> Affine:
        if factor == 1:
            return self
        if factor == 0:
            return Affine((), 0)
        return Affine(tuple((t, c * factor) for t, c in self.terms), self.constant * factor)

    def without(self, name: str) -> Affine:
        """The same expression with `name` set to 0."""
        if self.bends(name):
            return self.substitute({name: Affine((), 0)})
        return Affine(tuple(t for t in self.terms if t[0] != name), self.constant)

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """Replace indices by expressions; those not in `values` stay."""
        for t, _ in self.terms:
            if t in values if isinstance(t, str) else not values.keys().isdisjoint(t.names):
                break
        else:
            return self
        parts = [
            (values[t] if t in values else Affine.index(t)) if isinstance(t, str) else t.substitute(values)
            for t, _ in self.terms
        ]
        return Affine.weighted(parts, [c for _, c in self.terms], self.constant)

    def range(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest value when every index runs over ``0 .. extent-1`` (extents >= 1)."""
        low = high = self.constant
        for t, c in self.terms:
            first, last = (0, extents[t] - 1) if isinstance(t, str) else t.range(extents)
            low, high = low + min(c * first, c * last), high + max(c * first, c * last)
        return low, high

    def __str__(self) -> str:
        text = ""
        for name, c in self.terms:
            term = str(name) if abs(c) == 1 else f"{abs(c)}*{name}"
            text += (f" {'-' if c < 0 else '+'} " if text else "-" if c < 0 else "") + term
        if self.constant or not text:
            sign = f" {'-' if self.constant < 0 else '+'} " if text else "-" if self.constant < 0 else ""
            text += sign + str(abs(self.constant))
        return text
