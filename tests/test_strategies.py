"""Strategies on spaces whose times are known, and what is recorded of such spaces."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning_cases import FAKE, TARGET, TILE_OPTIMUM, TileFamily, relu, stored, tile_seconds, tiles

from tilewright.autotune.candidates import stage_space
from tilewright.autotune.grids import Grid, Point
from tilewright.autotune.guided import Guided
from tilewright.autotune.recorded import Recorded, read_recorded
from tilewright.autotune.search import SearchSettings, StageSearch
from tilewright.autotune.strategies import Asking, Evolution, Exhaustive, Local, Random
from tilewright.autotune.transfer import Elsewhere, told
from tilewright.dsl.program import Program
from tilewright.dsl.space import Constraint, Parameter, Space
from tilewright.errors import TilewrightError
from tilewright.tuning_db import Status, Store

Make = Callable[[Grid, int], Asking]
EVERY: dict[str, Make] = {
    "exhaustive": Exhaustive,
    "random": Random,
    "local": Local,
    "evolution": Evolution,
    "guided": Guided,
}


def tile_grid() -> Grid:
    return Grid.of(TileFamily().space(relu(), TARGET))


def small_grid() -> Grid:
    sizes = (Parameter("a", (1, 2, 4, 8), ""), Parameter("b", (1, 2, 3, 4, 5), ""), Parameter("way", ("x", "y"), ""))
    return Grid.of(Space(sizes, (Constraint("small", lambda c: c.integer("a") * c.integer("b") <= 16),)))


def replay(search: Asking, count: int) -> list[float]:
    seen = []
    while len(seen) < count and (point := search.ask()) is not None:
        seconds = tile_seconds(search.grid.configuration(point))
        search.tell(point, seconds)
        seen.append(seconds if seconds is not None else math.inf)
    return seen


@pytest.mark.parametrize("name", EVERY)
def test_strategies_ask_for_every_point_once_and_then_end(name: str) -> None:
    grid = small_grid()
    search = EVERY[name](grid, 3)
    asked: list[Point] = []
    while (point := search.ask()) is not None:
        asked.append(point)
        search.tell(point, None if sum(point) % 5 == 0 else 1e-3 * (1 + sum(point)))
    assert len(asked) == grid.size
    assert set(asked) == {tuple(r) for r in grid.rows.tolist()}
    assert search.leaders(1) == [min((p for p in asked if sum(p) % 5), key=sum)] or search.fastest == 2e-3


@pytest.mark.parametrize("name", EVERY)
def test_strategies_go_on_where_everything_fails_or_nothing_is_told(name: str) -> None:
    silent, failing = (EVERY[name](tile_grid(), 0) for _ in range(2))
    assert len({silent.ask() for _ in range(40)} - {None}) == 40
    for _ in range(40):
        point = failing.ask()
        assert point is not None
        failing.tell(point, None)
    assert failing.leaders(3) == []
    assert failing.fastest == math.inf


@pytest.mark.parametrize("name", EVERY)
def test_strategies_repeat_themselves_with_the_same_seed(name: str) -> None:
    assert replay(EVERY[name](tile_grid(), 5), 30) == replay(EVERY[name](tile_grid(), 5), 30)


def test_searches_beat_chance_and_the_model_beats_all() -> None:
    def mean(make: Make) -> float:
        return sum(min(replay(make(tile_grid(), seed), 45)) for seed in range(8)) / 8

    found = {name: mean(EVERY[name]) for name in ("random", "evolution", "guided")}
    assert found["guided"] < found["evolution"] < found["random"]
    assert found["guided"] < 1.03 * TILE_OPTIMUM


def test_the_start_set_comes_first_and_what_is_told_is_not_asked() -> None:
    grid = tile_grid()
    known, *start = (tuple(r) for r in grid.rows[[7, 100, 3, 100]].tolist())
    search = Guided(grid, 0, start)
    search.tell(known, 1e-3)
    assert [search.ask(), search.ask()] == [start[0], start[1]]
    assert known not in {search.ask() for _ in range(60)}


def test_points_that_are_being_measured_are_not_crowded() -> None:
    search = Guided(tile_grid(), 1)
    replay(search, 20)
    ahead = [search.ask() for _ in range(6)]
    assert len(set(ahead)) == 6
    steps = [sum(a != b for a, b in zip(p or (), q or (), strict=True)) for p in ahead for q in ahead if p != q]
    assert max(steps) >= 3


def slower(grid: Grid, factor: float) -> dict[Point, float | None]:
    """The landscape of a device on which everything takes longer, and packing is of no use."""
    found: dict[Point, float | None] = {}
    for row in grid.rows:
        c = grid.configuration(row)
        seconds = tile_seconds(c)
        found[tuple(row.tolist())] = seconds and factor * seconds * (1.4 if c["path"] == "packed" else 1.0)
    return found


def test_measurements_elsewhere_save_measurements_here() -> None:
    def best(seed: int, told: bool) -> float:
        grid = tile_grid()
        elsewhere = Elsewhere(grid, [slower(grid, 3.0), slower(grid, 10.0)], seed)
        search = Guided(grid, seed, elsewhere.winners, prior=elsewhere) if told else Guided(grid, seed)
        return min(replay(search, 12))

    assert sum(best(s, True) for s in range(6)) < 0.9 * sum(best(s, False) for s in range(6))


def test_what_was_not_measured_elsewhere_is_modelled() -> None:
    grid = tile_grid()
    whole = slower(grid, 2.0)
    part = {p: s for n, (p, s) in enumerate(whole.items()) if n % 3 == 0}
    elsewhere = Elsewhere(grid, [part, {next(iter(whole)): None}], 0)
    expected = elsewhere(grid.rows)
    assert expected.shape == (len(grid.rows), 1)
    best = min(s for s in part.values() if s is not None)
    truth = np.log(np.minimum([(s if s is not None else math.inf) / best for s in whole.values()], 8.0))
    order = [tuple(r) for r in grid.rows.tolist()]
    assert list(whole) == order
    measured = np.array([p in part for p in order])
    assert expected[measured, 0] == pytest.approx(truth[measured])
    unknown = ~measured & (truth < truth.max())
    assert np.corrcoef(expected[unknown, 0], truth[unknown])[0, 1] > 0.8
    assert elsewhere.winners == [min(part, key=lambda p: part[p] or math.inf)]


def test_misleading_measurements_elsewhere_are_outvoted() -> None:
    def found(seed: int) -> float:
        grid = tile_grid()
        upside_down = {tuple(r): 1.0 / (tile_seconds(grid.configuration(r)) or 1.0) for r in grid.rows.tolist()}
        elsewhere = Elsewhere(grid, [upside_down], seed)
        return min(replay(Guided(grid, seed, elsewhere.winners, prior=elsewhere), 60))

    assert sum(found(s) for s in range(5)) / 5 < 1.1 * TILE_OPTIMUM


def recorded_landscape(store: Store, stage: Program, device: str, factor: float) -> None:
    grid = tile_grid()
    rows = []
    for point, seconds in slower(grid, factor).items():
        values = dict(grid.configuration(point))
        changes: dict[str, Any] = {"device": device, "seconds": seconds, "samples": (seconds,) if seconds else ()}
        if seconds is None:
            changes["status"] = Status.CRASHED
        rows.append(stored(stage, values, **changes))
    store.add(rows)


def test_a_stage_is_told_what_the_database_knows_of_its_kind(tmp_path: Path) -> None:
    stage, key = relu(1000), "relu 1000"
    space = stage_space(stage, TARGET, tiles())
    with Store.open(tmp_path / "winners.sqlite") as store:
        alone = told(stage, FAKE, store, key)("tiles", tile_grid(), 0)
        assert isinstance(alone, Guided)
        recorded_landscape(store, relu(4000), "another device", 20.0)
        recorded_landscape(store, relu(1000), "a third device", 3.0)
        search = StageSearch(space, (), 0, SearchSettings(exhaustive=0), told(stage, FAKE, store, key))
    first = search.ask()
    assert first is not None
    expected = min((s, p) for p, s in slower(tile_grid(), 1.0).items() if s is not None)[1]
    assert first.configuration == tile_grid().configuration(expected)
    search.tell(first, tile_seconds(first.configuration))
    for _ in range(11):
        candidate = search.ask()
        assert candidate is not None
        search.tell(candidate, tile_seconds(candidate.configuration))
    assert (tile_seconds(search.best()[0].configuration) or 1.0) <= 1.15 * TILE_OPTIMUM


CACHE: dict[str, Any] = {
    "device_name": "some device",
    "kernel_name": "some kernel",
    "tune_params_keys": ["block_size_x", "block_size_y", "way"],
    "tune_params": {"block_size_x": [32, 16, 8], "block_size_y": [1, 2], "way": ["a", "b"]},
    "cache": {
        "32,1,a": {"block_size_x": 32, "block_size_y": 1, "way": "a", "time": 2.5, "times": [2.5]},
        "16,1,a": {"block_size_x": 16, "block_size_y": 1, "way": "a", "time": 0.5},
        "16,2,b": {"block_size_x": 16, "block_size_y": 2, "way": "b", "time": "CompilationFailedConfig"},
        "32,2,b": {"block_size_x": 32, "block_size_y": 2, "way": "b", "time": 1e20},
    },
}
T4: dict[str, Any] = {
    "schema_version": "1.0.0",
    "results": [
        {
            "configuration": {k: e[k] for k in CACHE["tune_params_keys"]},
            "invalidity": "correct" if isinstance(e["time"], float) and e["time"] < 1e19 else "compile",
            "objectives": ["time"],
            "times": {"compilation_time": 1.0, "runtimes": []},
            "measurements": [
                {"name": "power", "value": 3, "unit": "W"},
                {"name": "time", "value": e["time"], "unit": "ms"},
            ],
        }
        for e in CACHE["cache"].values()
    ],
}


def files(folder: Path) -> Iterator[Path]:
    for name, content in (("cache.json", CACHE), ("t4.json", T4)):
        path = folder / name
        path.write_text(json.dumps(content))
        yield path
        packed = folder / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        yield packed


def test_recorded_spaces_are_read_in_both_formats(tmp_path: Path) -> None:
    for path in files(tmp_path):
        found: Recorded = read_recorded(path)
        times = {(c["block_size_x"], c["block_size_y"], c["way"]): s for c, s in found.configurations()}
        assert times == {
            (32, 1, "a"): pytest.approx(2.5e-3),
            (16, 1, "a"): pytest.approx(5e-4),
            (16, 2, "b"): None,
            (32, 2, "b"): None,
        }
        assert found.best == pytest.approx(5e-4)
        grid = found.grid()
        assert grid.size == 4
        assert sorted(found.times().values()) == sorted(found.seconds.tolist())
        assert {tuple(p.values) for p in found.space.parameters} >= {(1, 2), ("a", "b")}
    assert found.kernel
    assert read_recorded(tmp_path / "cache.json").device == "some device"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "odd.json"),
        (b"[1, 2]", "odd.json"),
        (b'{"nothing": 1}', "neither"),
        (b'{"results": []}', "odd.json"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(TilewrightError, match=reason):
        read_recorded(path)
