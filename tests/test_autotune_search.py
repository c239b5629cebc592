"""Search strategies, replayed on a known landscape without a device."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from tuning_cases import GOOD, TARGET, TILE_OPTIMUM, TileFamily, relu, tile_seconds, tiles

from tilewright.autotune.candidates import Candidate, StageSpace, stage_space
from tilewright.autotune.grids import Grid
from tilewright.autotune.guided import GuidedSettings
from tilewright.autotune.search import SearchSettings, StageSearch
from tilewright.autotune.surrogate import Surrogate, expected_improvement
from tilewright.dsl.space import Configuration


def tile_space() -> StageSpace:
    return stage_space(relu(), TARGET, tiles())


def features(grid: Grid, candidates: list[Candidate]) -> np.ndarray:
    return grid.features(np.array([grid.point(c.configuration) for c in candidates]))


def replay(search: StageSearch, count: int) -> list[Candidate]:
    done: list[Candidate] = []
    while len(done) < count and (candidate := search.ask()) is not None:
        search.tell(candidate, tile_seconds(candidate.configuration))
        done.append(candidate)
    return done


@pytest.mark.parametrize("seed", range(5))
def test_search_finds_the_best_of_a_known_landscape(seed: int) -> None:
    search = StageSearch(tile_space(), tile_space().defaults, seed)
    replay(search, 100)
    (best,) = search.best()
    assert (tile_seconds(best.configuration) or 1.0) <= 1.05 * TILE_OPTIMUM


def test_search_beats_chance() -> None:
    def mean_best(make: Callable[[int], Callable[[int], float]]) -> float:
        return sum(make(seed)(60) for seed in range(5)) / 5

    def searched(seed: int) -> Callable[[int], float]:
        def run(count: int) -> float:
            search = StageSearch(tile_space(), (), seed)
            replay(search, count)
            return tile_seconds(search.best()[0].configuration) or 1.0

        return run

    def drawn(seed: int) -> Callable[[int], float]:
        rng, every = random.Random(seed), tile_space().all or ()
        return lambda count: min(tile_seconds(c.configuration) or 1.0 for c in rng.sample(every, count))

    assert mean_best(searched) < mean_best(drawn)


def test_search_starts_with_the_start_set_and_repeats_nothing() -> None:
    space = tile_space()
    start = [Candidate("tiles", Configuration.of({**GOOD, "m": m})) for m in (2, 4, 2, 64)]
    done = replay(StageSearch(space, [*start, *space.defaults], 0), 100)
    assert done[:3] == [start[0], start[1], space.defaults[0]]
    assert len(set(done)) == 100
    assert all(space.violated(c) is None for c in done)


def test_every_code_path_is_tried_early() -> None:
    done = replay(StageSearch(tile_space(), (), 3), 12)
    assert {c.configuration["path"] for c in done} == {"direct", "packed", "local"}


def test_small_spaces_are_measured_whole_and_large_ones_can_be() -> None:
    small = StageSpace({"tiles": TileFamily(sizes=(1, 2)).space(relu(), TARGET)}, ())
    search = StageSearch(small)
    assert search.is_exhaustive
    assert len(replay(search, 1000)) == 2 * 2 * 2 * 3
    large = StageSpace({"tiles": TileFamily(sizes=(1, 2, 4, 8)).space(relu(), TARGET)}, ())
    search = StageSearch(large, settings=SearchSettings(guided=GuidedSettings(remembered=40)))
    assert not search.is_exhaustive
    assert len(replay(search, 1000)) == 4 * 4 * 4 * 3


def test_a_long_search_stays_cheap() -> None:
    search = StageSearch(tile_space(), (), 0, SearchSettings(guided=GuidedSettings(remembered=40)))
    assert len(replay(search, 120)) == 120


def test_the_model_learns_which_parameters_matter() -> None:
    every = list(tile_space().all or ())
    random.Random(0).shuffle(every)
    known = [c for c in every if tile_seconds(c.configuration)]
    seen, unseen = known[:80], known[80:200]
    grid = Grid.of(TileFamily().space(relu(), TARGET))
    model = Surrogate(grid.widths)
    model.fit(features(grid, seen), [math.log(tile_seconds(c.configuration) or 1.0) for c in seen], True)
    mean, deviation = model.predict(features(grid, unseen))
    truth = np.log([tile_seconds(c.configuration) or 1.0 for c in unseen])
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.3 * truth.std()
    assert np.mean(np.abs(mean - truth) < 3 * deviation) > 0.9
    known_mean, known_deviation = model.predict(features(grid, seen[:1]))
    assert known_mean[0] == pytest.approx(math.log(tile_seconds(seen[0].configuration) or 1.0), abs=0.05)
    assert known_deviation[0] < deviation.min()
    gains = expected_improvement(mean, deviation, float(truth.min()))
    assert np.all(gains >= 0)
    assert truth[np.argmax(gains)] < np.median(truth)


def test_a_model_of_equal_times_predicts_them() -> None:
    grid = Grid.of(TileFamily().space(relu(), TARGET))
    points = grid.features(grid.rows[:6])
    model = Surrogate(grid.widths)
    model.fit(points, [-3.0] * 6, True)
    assert model.predict(points[:2])[0] == pytest.approx([-3.0, -3.0])


def test_history_is_not_asked_again() -> None:
    space = tile_space()
    first = StageSearch(space, space.defaults, 0)
    known = replay(first, 40)
    second = StageSearch(space, space.defaults, 0)
    for c in known:
        second.tell(c, tile_seconds(c.configuration))
    assert not set(known) & set(replay(second, 40))


class SlowFamily(TileFamily):
    """The same space under another name, at a fifth of the speed."""

    name = "slow"


def test_families_far_from_the_best_get_little() -> None:
    space = stage_space(relu(), TARGET, tiles(SlowFamily(), TileFamily()))
    search = StageSearch(space, space.defaults, 0)
    asked: Counter[str] = Counter()
    for _ in range(100):
        candidate = search.ask()
        assert candidate is not None
        asked[candidate.family] += 1
        seconds = tile_seconds(candidate.configuration)
        search.tell(candidate, seconds and seconds * (5.0 if candidate.family == "slow" else 1.0))
    assert 1 <= asked["slow"] <= 15
    (best,) = search.best()
    assert (tile_seconds(best.configuration) or 1.0) <= 1.05 * TILE_OPTIMUM


@pytest.mark.parametrize("seed", range(3))
def test_asking_far_ahead_of_the_answers_loses_little(seed: int) -> None:
    search = StageSearch(tile_space(), tile_space().defaults, seed)
    asked: list[Candidate] = []
    for n in range(120):
        candidate = search.ask()
        assert candidate is not None
        asked.append(candidate)
        if n >= 8:
            search.tell(asked[n - 8], tile_seconds(asked[n - 8].configuration))
    assert len(set(asked)) == 120
    (best,) = search.best()
    assert (tile_seconds(best.configuration) or 1.0) <= 1.1 * TILE_OPTIMUM


def test_a_search_survives_a_space_where_everything_fails() -> None:
    search = StageSearch(tile_space(), tile_space().defaults, 0, SearchSettings(guided=GuidedSettings(design=5)))
    for _ in range(50):
        candidate = search.ask()
        assert candidate is not None
        search.tell(candidate, None)
    assert search.best() == []
