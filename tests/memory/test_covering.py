"""The all-pairs generator against brute force: what it leaves out is impossible, and it takes few rows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.covering import covering, pairs_of
from tilewright.dsl.space import Constraint, Parameter, Space


def _space(sizes: list[int], *constraints: Constraint) -> Space:
    return Space(tuple(Parameter(f"p{n}", tuple(range(size)), "") for n, size in enumerate(sizes)), constraints)


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Space]:
    """Up to three small spaces with random constraints on two or three of their parameters."""
    made = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        sizes = draw(st.lists(st.integers(1, 4), max_size=4))
        constraints = []
        for _ in range(draw(st.integers(0, 3)) if sizes else 0):
            names = draw(st.lists(st.sampled_from([f"p{n}" for n in range(len(sizes))]), min_size=1, max_size=3))
            modulus, rest = draw(st.integers(2, 4)), draw(st.integers(0, 3))
            constraints.append(
                Constraint("", lambda c, n=names, m=modulus, r=rest: sum(c.integer(p) for p in n) % m != r)
            )
        made[name] = _space(sizes, *constraints)
    return made


@given(spaces(), st.integers(0, 99))
def test_every_possible_pair_is_covered(given_spaces: dict[str, Space], seed: int) -> None:
    rows = covering(given_spaces, seed)
    assert [given_spaces[r.space].violated(r.configuration) for r in rows] == [None] * len(rows)
    possible = {p for name, space in given_spaces.items() for c in space for p in pairs_of(name, c)}
    assert {p for r in rows for p in pairs_of(r.space, r.configuration)} == possible
    assert covering(given_spaces, seed) == rows


@pytest.mark.parametrize(("sizes", "most"), [([3] * 4, 14), ([2] * 10, 12), ([10, 10], 100), ([4, 4, 4, 3, 2, 2], 24)])
def test_few_rows(sizes: list[int], most: int) -> None:
    rows = covering({"one": _space(sizes)})
    assert math.prod(sorted(sizes)[-2:]) <= len(rows) <= most


def test_a_space_without_parameters_has_one_row() -> None:
    assert [r.space for r in covering({"a": Space(), "b": Space()})] == ["a", "b"]
