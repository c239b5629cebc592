"""Largest and smallest elements by rank, and determinants of small matrices."""

from __future__ import annotations

import math
from itertools import pairwise

from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

MAX_COMPARISONS = 1 << 22
"""Pairs of elements that ranking may compare.

Ranking is quadratic: 1,000 elements take 1 ms on two cores of a server, 2,000 take 18 ms, 8,400 take 370 ms, where the
host sorts them in 0.1 to 0.7 ms and has to be given no more than these elements.
"""

TOP = """
op top(x[{sizes}]) -> y[{out_sizes}]:
    rank[{sized}] = sum(j: {count}) where({before}, 1, 0)
    place[{out_sized}] = max(j: {count}) where(rank[{ranked}] == {axis}, j, 0)
    y[{at}] = {result}
"""
"""An element's rank is the number of those before it; equal ones keep their order."""

BEFORE = {
    (True, False): "where(j < {i}, {b} >= {a}, {b} > {a})",
    (False, False): "where(j < {i}, {b} <= {a}, {b} < {a})",
    (True, True): "where(isnan({a}), isnan({b}) and j < {i}, isnan({b}) or where(j < {i}, {b} >= {a}, {b} > {a}))",
    (False, True): "where(isnan({a}), not isnan({b}) or j < {i}, where(j < {i}, {b} <= {a}, {b} < {a}))",
}
"""Whether `b` at j comes before `a` at i: for largest or smallest first, without and with NaNs (which are largest)."""


@operator("TopK", host=(1,), outputs=2)
def top(app: Application) -> tuple[Compute, ...]:
    """The first elements along an axis in the order of their values, and where they stand."""
    x, out = app.input(0), app.outputs[0].shape
    axis = app.integer("axis", -1) % x.rank
    count = x.shape[axis]
    if math.prod(x.shape) * count > MAX_COMPARISONS:
        raise UnsupportedError(f"ranking {count:,} elements among each other is more than the device is used for")
    names = [f"i{d}" for d in range(x.rank)]

    def with_axis(name: str) -> str:
        return ", ".join(name if d == axis else n for d, n in enumerate(names))

    at = ", ".join(names)
    rule = BEFORE[bool(app.integer("largest", 1)), x.dtype.is_float]
    shape = out or app.outputs[1].shape
    holes = {
        "sizes": ", ".join(map(str, x.shape)),
        "out_sizes": ", ".join(map(str, shape)),
        "sized": ", ".join(f"{name}: {n}" for name, n in zip(names, x.shape, strict=True)),
        "out_sized": ", ".join(f"{name}: {n}" for name, n in zip(names, shape, strict=True)),
        "count": str(count),
        "before": rule.format(i=names[axis], a=f"x[{at}]", b=f"x[{with_axis('j')}]"),
        "ranked": with_axis("j"),
        "axis": names[axis],
        "at": at,
    }
    results = (f"x[{with_axis(f'place[{at}]')}]", f"place[{at}]")[: len(app.outputs)]
    return tuple(
        program(app, TOP.format(**holes, result=result), {"x": x.shape, "y": shape}, {"x": 0}, output=position)
        for position, result in enumerate(results)
    )


MAX_DETERMINANT = 4
"""Rows of a matrix up to which its determinant is written out; the sum has as many products as rows permute."""

DETERMINANT = """
op det(x[{sizes}]) -> y[{out_sizes}]:
    y[{at}] = {value}
"""


@operator("Det")
def determinant(app: Application) -> Compute:
    """The determinant of each matrix, by expansion along its rows."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    size = shape[-1]
    if not 1 <= size <= MAX_DETERMINANT:
        raise UnsupportedError(f"determinants of {size} rows are not computed on the device")
    names = [f"i{d}" for d in range(len(out))]
    value = _expanded(names, 0, tuple(range(size)))
    sizes, out_sizes = ", ".join(map(str, shape)), ", ".join(map(str, out))
    text = DETERMINANT.format(sizes=sizes, out_sizes=out_sizes, at=", ".join(names), value=value)
    return program(app, text, {"x": shape, "y": out}, {"x": 0})


def _expanded(names: list[str], row: int, columns: tuple[int, ...]) -> str:
    """The determinant of the rows from `row` on in some columns (Laplace's expansion along the first of them)."""
    terms = []
    for position, column in enumerate(columns):
        rest = columns[:position] + columns[position + 1 :]
        factor = f"x[{', '.join([*names, str(row), str(column)])}]"
        terms.append(f"{factor} * {_expanded(names, row + 1, rest)}" if rest else factor)
    text = terms[0]
    for number, (_, term) in enumerate(pairwise(terms)):
        text += f" {'+' if number % 2 else '-'} {term}"
    return f"({text})"
