"""Spaces: their legal points are listed without looking at the others."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from search_spaces import SPACES, xgemm
from targets import CPU, GPU
from tuning_cases import TARGET, TileFamily, relu, row_sums

from tilewright.autotune.grids import Grid
from tilewright.autotune.space_building import codes, configuration, listing, table
from tilewright.dsl import families
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Target


def legal(space: Space) -> set[Configuration]:
    """By trying every point."""
    points = (space.point(n) for n in range(space.raw_size))
    return {c for c in points if space.violated(c) is None}


def listed(space: Space) -> set[Configuration]:
    found = listing(space)
    assert found.complete
    configurations = [configuration(space, row) for row in found.rows]
    assert len(set(configurations)) == len(configurations)
    return set(configurations)


def drawn_constraint(rng: random.Random, names: list[str]) -> Constraint:
    a, b, c = (rng.choice(names) for _ in range(3))
    bound = rng.randint(1, 12)
    kinds: list[Callable[[Configuration], bool]] = [
        lambda x: x.integer(a) * x.integer(b) <= bound * 3,
        lambda x: x.integer(a) % x.integer(b) == 0,
        lambda x: x[a] != 2 or x[b] == x[c],
        lambda x: x.integer(a) + x.integer(b) >= x.integer(c),
        lambda x: x["way"] == "short" or x.integer(a) > 1,
        lambda x: max(int(v) for v in x.values() if not isinstance(v, str)) >= 2,
    ]
    return Constraint("drawn", rng.choice(kinds))


@pytest.mark.parametrize("seed", range(60))
def test_listing_agrees_with_trying_every_point(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"p{n}" for n in range(rng.randint(1, 4))]
    sizes = [Parameter(n, tuple(sorted(rng.sample(range(1, 9), rng.randint(1, 5)))), "") for n in names]
    space = Space(
        (*sizes, Parameter("way", ("short", "long"), "")),
        tuple(drawn_constraint(rng, names) for _ in range(rng.randint(0, 5))),
    )
    assert listed(space) == legal(space)


@pytest.mark.parametrize(("program", "target"), [(relu(), CPU), (row_sums(7, 300), GPU), (row_sums(33, 64), CPU)])
def test_spaces_of_families_are_listed_whole(program: Program, target: Target) -> None:
    seen = 0
    for family in families.fitting(program, target):
        space = families.space(family, program, target)
        if space.raw_size <= 20_000:
            assert listed(space) == legal(space)
            seen += 1
    assert seen


def test_a_space_without_parameters_has_one_point() -> None:
    assert listed(Space()) == {Configuration(())}


def test_a_space_with_an_impossible_constraint_is_empty() -> None:
    space = Space((Parameter("a", (1, 2), ""),), (Constraint("never", lambda c: c.integer("a") > 5),))
    assert listed(space) == set()
    grid = Grid.of(space)
    assert grid.size == 0
    assert not len(grid.sample(np.random.default_rng(0), 5))
    assert not grid.legal(np.array([[0], [1]])).any()


def test_constraints_may_rely_on_those_before_them() -> None:
    space = Space(
        (Parameter("a", (0, 1, 2), ""), Parameter("b", (3, 4), "")),
        (
            Constraint("a divides b", lambda c: c.integer("a") > 0),
            Constraint("a divides b", lambda c: c.integer("b") % c.integer("a") == 0),
        ),
    )
    assert {tuple(c.values()) for c in listed(space)} == {(1, 3), (1, 4), (2, 4)}


def test_a_table_holds_only_what_is_read() -> None:
    space = Space(tuple(Parameter(n, (1, 2, 3, 4), "") for n in "abcd"))
    found = table(lambda c: c["b"] == 1 or c["d"] == 2, space)
    assert found is not None
    assert found.positions == (1, 3)
    expected = [[b == 1 or d == 2 for d in (1, 2, 3, 4)] for b in (1, 2, 3, 4)]
    assert np.array_equal(found.answers, np.array(expected))
    assert table(lambda c: sum(map(int, c.values())) > 3, space, asked=100) is None


def test_of_too_many_points_a_sample_is_kept() -> None:
    space = xgemm(SPACES["large"])
    found = listing(space, most=1000)
    assert not found.complete
    assert len(found.rows) == 1000
    assert len(np.unique(codes(found.rows, [len(p.values) for p in space.parameters]))) == 1000
    assert all(space.violated(configuration(space, row)) is None for row in found.rows)


def test_constraints_that_no_table_holds_are_checked_on_a_sample() -> None:
    parameters = tuple(Parameter(f"p{n}", tuple(range(8)), "") for n in range(6))
    space = Space(parameters, (Constraint("even sum", lambda c: sum(c.integer(p) for p in c) % 2 == 0),))
    grid = Grid.of(space, checked=500)
    assert grid.size is None
    assert 150 < len(grid.rows) < 350
    assert all(space.violated(grid.configuration(row)) is None for row in grid.rows)
    point = tuple(grid.rows[0].tolist())
    around = grid.around(point)
    assert len(around) == sum((point[n] - v) % 2 == 0 for n in range(6) for v in range(8) if v != point[n])


def test_the_space_of_clblasts_matrix_product() -> None:
    space = xgemm(SPACES["large"])
    assert space.raw_size == 663_552
    found = listing(space)
    assert found.complete
    assert found.rows.shape == (120_800, 14)
    assert found.rows.dtype == np.uint8


def test_a_grid_finds_its_points() -> None:
    grid = Grid.of(TileFamily(sizes=(1, 2, 4, 8, 16, 32)).space(relu(), TARGET))
    every = np.array(list(itertools.product(*(range(n) for n in grid.counts))))
    fine = grid.legal(every)
    assert fine.sum() == grid.size == len(grid.rows)
    assert np.array_equal(grid.rows[grid.places(every[fine])], every[fine])
    for row in every[:5]:
        assert grid.point(grid.configuration(row)) == tuple(row)
    around = grid.around((0, 0, 0, 0))
    assert len(around) == 5 + 5 + 5 + 2
    assert (np.count_nonzero(around, axis=1) == 1).all()


def test_features_tell_powers_of_two_from_their_neighbours() -> None:
    space = Space((Parameter("size", (16, 24, 32, 40, 48, 56, 64), ""), Parameter("way", ("a", "b", "c"), "")))
    grid = Grid.of(space)
    features = grid.features(grid.rows)
    assert grid.widths == (2, 3)
    assert features.min() == 0.0
    assert features.max() == 1.0
    size = {grid.configuration(r)["size"]: f[:2] for r, f in zip(grid.rows, features, strict=True)}
    assert size[16][0] < size[24][0] < size[32][0]
    assert size[64][1] > size[32][1] > size[16][1] > size[24][1]
    ways = {grid.configuration(r)["way"]: f[2:] for r, f in zip(grid.rows, features, strict=True)}
    distances = [np.linalg.norm(ways[a] - ways[b]) for a, b in itertools.combinations("abc", 2)]
    assert distances == pytest.approx([1.0] * 3)
