"""Minimal filtering: the matrices of Cook and Toom's algorithm for any sizes, and straight-line code that applies them.

F(m, r) computes m outputs of a filter of r taps, ``y[i] = sum(k) d[i+k] * g[k]``, with n = m + r - 1 multiplications:

    y = A ((G g) * (B d))          A: m x n,  G: n x r,  B: n x n

It is the transpose of a polynomial product by evaluation at n - 1 points and at infinity, multiplication, and
interpolation (Winograd, "Arithmetic complexity of computations", 1980; for networks Lavin and Gray, "Fast algorithms
for convolutional neural networks", arXiv:1509.09308). In several dimensions each one is transformed in turn.

The points decide the rounding errors (Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the
accuracy of Winograd convolution for deep neural networks", 2020). Points here come as ``a`` and ``-a``, so that the
matrices' rows and columns come in pairs that differ in signs alone and share their work, and as ``a`` and ``1/a``,
so that no power of a point grows large. Among pairs of small fractions those of `_MAGNITUDES` gave the least error
in f32; the textbooks' 0, ±1, ±2 give 2.3 times that of 0, ±2/3, ±3/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

Matrix = tuple[tuple[Fraction, ...], ...]

MAX_POINTS = 8
"""Largest m + r - 1: beyond it f32 keeps fewer than five digits."""


def amplification(m: int, r: int) -> float:
    """By what the rounding errors of a direct sum grow for each dimension that is filtered by F(m, r), as measured."""
    n = m + r - 1
    return 1.3 if n <= 4 else 2.6 if n <= 6 else 6.0


_MAGNITUDES = {
    0: (),
    1: (Fraction(1),),
    2: (Fraction(2, 3), Fraction(3, 2)),
    3: (Fraction(1, 2), Fraction(1), Fraction(2)),
}
"""Magnitudes of the points besides 0, by the number of pairs."""


def points(count: int) -> tuple[Fraction, ...]:
    """The `count` finite points (1 to 7): 0, pairs of both signs, and one more point where the count is even."""
    if not 1 <= count < MAX_POINTS:
        raise ValueError(f"there are points for 1 to {MAX_POINTS - 1} evaluations, not for {count}")
    pairs = _MAGNITUDES[(count - 1) // 2]
    found = [Fraction(0), *(sign * a for a in pairs for sign in (1, -1))]
    if len(found) < count:
        found.append(Fraction(2) if Fraction(1) in pairs else Fraction(1))
    return tuple(found)


@dataclass(frozen=True)
class Filtering:
    """The matrices of F(m, r): ``outputs`` is A, ``taps`` is G, ``data`` is B of the module's formula."""

    outputs: Matrix
    taps: Matrix
    data: Matrix


@cache
def filtering(m: int, r: int) -> Filtering:
    """The matrices for m outputs and r taps; ValueError where m + r - 1 is beyond `MAX_POINTS`."""
    if m < 1 or r < 1:
        raise ValueError(f"F({m}, {r}) computes nothing")
    return filtering_at(points(m + r - 2) if m + r > 2 else (), m, r)


def filtering_at(at: Sequence[Fraction], m: int, r: int) -> Filtering:
    """The matrices for m outputs and r taps with given finite points, which differ and are m + r - 2 in number.

    Row j of B holds the coefficients of ``prod(l != j) (x - a_l)``, its last row those of the product over all points;
    what interpolation divides by goes into G, which is applied to weights ahead of time.
    """
    n = m + r - 1
    if len(at) != n - 1 or len(set(at)) != n - 1:
        raise ValueError(f"F({m}, {r}) takes {n - 1} different points, not {', '.join(map(str, at))}")
    data, taps = [], []
    for j, a in enumerate(at):
        others = [b for k, b in enumerate(at) if k != j]
        divisor = Fraction(1)
        for b in others:
            divisor *= a - b
        data.append((*_with_roots(others), Fraction(0)))
        taps.append(tuple(a**k / divisor for k in range(r)))
    data.append(_with_roots(at))
    taps.append(_unit(r - 1, r))
    outputs = tuple((*(a**i for a in at), Fraction(int(i == m - 1))) for i in range(m))
    return Filtering(outputs, tuple(taps), tuple(data))


def _with_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of the monic polynomial with these roots, the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            (found[k - 1] if k else Fraction(0)) - (root * found[k] if k < len(found) else Fraction(0))
            for k in range(len(found) + 1)
        ]
    return tuple(found)


def _unit(position: int, size: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(int(k == position)) for k in range(size))


# --- straight-line code ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """``name = sum(coefficient * operand)``; there is at least one term."""

    name: str
    terms: tuple[tuple[Fraction, str], ...]


@dataclass(frozen=True)
class StraightLine:
    """The product of a matrix and a vector ``x0, x1, ...`` as steps in order; the last ones are the results."""

    steps: tuple[Step, ...]
    results: tuple[str, ...]
    """Names of the result's elements: steps', or an input's where the row selects it."""

    @property
    def operations(self) -> int:
        """Multiply-adds, additions and multiplications of one run."""
        return sum(len(s.terms) - any(abs(c) == 1 for c, _ in s.terms) for s in self.steps)


@cache
def straight_line(matrix: Matrix) -> StraightLine:
    """Code for ``matrix @ x`` in which columns and rows that differ in signs alone share their work.

    Of two such columns the sum and the difference are computed once; of two such rows the part that they have in
    common and the part of opposite signs. No row may be all zeros.
    """
    steps: list[Step] = []
    rows = [{f"x{k}": c for k, c in enumerate(row) if c} for row in matrix]
    rows = _paired_columns(rows, [f"x{k}" for k in range(len(matrix[0]))], steps)
    results: list[str] = [""] * len(rows)
    for i, row in enumerate(rows):
        if results[i]:
            continue
        partner = next((k for k in range(i + 1, len(rows)) if not results[k] and _mirrored(row, rows[k])), None)
        if partner is None:
            results[i] = _result(f"y{i}", tuple((c, name) for name, c in row.items()), steps)
            continue
        even = _part(f"e{i}", {k: c for k, c in row.items() if rows[partner][k] == c}, steps)
        odd = _part(f"o{i}", {k: c for k, c in row.items() if rows[partner][k] != c}, steps)
        results[i] = _result(f"y{i}", (even, odd), steps)
        results[partner] = _result(f"y{partner}", (even, (-odd[0], odd[1])), steps)
    return StraightLine(tuple(steps), tuple(results))


def _paired_columns(rows: list[dict[str, Fraction]], names: list[str], steps: list[Step]) -> list[dict[str, Fraction]]:
    """The rows in terms of sums and differences of columns whose entries agree but for signs."""
    for position, a in enumerate(names):
        for b in names[position + 1 :]:
            signs = {row[b] / row[a] if a in row and b in row else None for row in rows if a in row or b in row}
            if signs != {1, -1}:
                continue
            steps += [Step(f"s_{a}", ((Fraction(1), a), (Fraction(1), b)))]
            steps += [Step(f"d_{a}", ((Fraction(1), a), (Fraction(-1), b)))]
            rows = [_joined(row, a, b) for row in rows]
            break
    return rows


def _joined(row: dict[str, Fraction], a: str, b: str) -> dict[str, Fraction]:
    if a not in row:
        return row
    name = f"s_{a}" if row[a] == row[b] else f"d_{a}"
    return {k: c for k, c in row.items() if k not in (a, b)} | {name: row[a]}


def _mirrored(a: dict[str, Fraction], b: dict[str, Fraction]) -> bool:
    """Whether the rows agree but for the signs of some entries, and two terms or more are shared."""
    return a.keys() == b.keys() and len(a) > 2 and {c / b[k] for k, c in a.items()} == {1, -1}


def _part(name: str, terms: dict[str, Fraction], steps: list[Step]) -> tuple[Fraction, str]:
    """A shared sum as (factor, name): computed up to its last coefficient, which the factor holds."""
    if len(terms) == 1:
        return next((c, k) for k, c in terms.items())
    factor = list(terms.values())[-1]
    steps.append(Step(name, tuple((c / factor, k) for k, c in terms.items())))
    return factor, name


def _result(name: str, terms: tuple[tuple[Fraction, str], ...], steps: list[Step]) -> str:
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    steps.append(Step(name, terms))
    return name


def renamed(line: StraightLine, inputs: Sequence[str], prefix: str) -> StraightLine:
    """The same code over other inputs, with its own variables under `prefix`."""
    names = {f"x{k}": name for k, name in enumerate(inputs)} | {s.name: f"{prefix}{s.name}" for s in line.steps}
    steps = tuple(replace(s, name=names[s.name], terms=tuple((c, names[k]) for c, k in s.terms)) for s in line.steps)
    return StraightLine(steps, tuple(names[r] for r in line.results))
