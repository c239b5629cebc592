"""Integer expressions that are linear in loop indices: `2*p + r - 1`.

Everything the generator knows about addresses, ranges and overlaps follows from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    """``sum(coefficient * index) + constant``; terms are sorted by index name and never have coefficient 0."""

    terms: tuple[tuple[str, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(terms: Mapping[str, int], constant: int = 0) -> Affine:
        """Build from a mapping of index name to coefficient; zeros are dropped."""
        return Affine(tuple(sorted((name, c) for name, c in terms.items() if c)), constant)

    @staticmethod
    def index(name: str) -> Affine:
        """The index itself."""
        return Affine(((name, 1),), 0)

    @property
    def names(self) -> tuple[str, ...]:
        """The indices that occur."""
        return tuple(name for name, _ in self.terms)

    @property
    def single(self) -> str | None:
        """The index's name if this is exactly one bare index, else None."""
        return self.terms[0][0] if len(self.terms) == 1 and self.terms[0][1] == 1 and self.constant == 0 else None

    def coefficient(self, name: str) -> int:
        """The factor of `name`, 0 if it does not occur."""
        return dict(self.terms).get(name, 0)

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.constant + other)
        total = dict(self.terms)
        for name, c in other.terms:
            total[name] = total.get(name, 0) + c
        return Affine.of(total, self.constant + other.constant)

    def __mul__(self, factor: int) -> Affine:
        return Affine.of({name: c * factor for name, c in self.terms}, self.constant * factor)

    def without(self, name: str) -> Affine:
        """The same expression with `name` set to 0."""
        return Affine(tuple(t for t in self.terms if t[0] != name), self.constant)

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """Replace indices by expressions; those not in `values` stay."""
        total = Affine((), self.constant)
        for name, c in self.terms:
            total = total + values.get(name, Affine.index(name)) * c
        return total

    def range(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest value when every index runs over ``0 .. extent-1`` (extents >= 1)."""
        low = high = self.constant
        for name, c in self.terms:
            reach = c * (extents[name] - 1)
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high

    def __str__(self) -> str:
        text = ""
        for name, c in self.terms:
            term = name if abs(c) == 1 else f"{abs(c)}*{name}"
            text += (f" {'-' if c < 0 else '+'} " if text else "-" if c < 0 else "") + term
        if self.constant or not text:
            sign = f" {'-' if self.constant < 0 else '+'} " if text else "-" if self.constant < 0 else ""
            text += sign + str(abs(self.constant))
        return text
