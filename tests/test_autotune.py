"""The tuner: choosing, searching (replayed without a device), checking, and surviving candidates that misbehave."""

from __future__ import annotations

import io
import json
import math
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from targets import CPU

from tilewright.autotune import Budget, Event, TuningBar, checking, choose, evaluating, lower, stage_key, tune
from tilewright.autotune.candidates import Candidate, StageSpace, stage_space
from tilewright.autotune.choosing import DEFAULT, NEAREST, OLDER_GENERATOR, OTHER_DRIVER, TUNED
from tilewright.autotune.compiling import Compiled
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.search import LocalSearch, SearchSettings
from tilewright.autotune.supervisor import Job, Limits, StageError, Supervisor
from tilewright.autotune.surrogate import Surrogate, expected_improvement
from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import Family
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import (
    GENERATOR_VERSION,
    OLDER_GENERATORS,
    Call,
    Const,
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
)
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Target
from tilewright.errors import DatabaseError, DeviceError, InputError, UnsupportedError
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Status, Store

TARGET = replace(CPU, compute_units=2, vector_bytes=64, vector_registers=32, max_work_group=1024, fma="a * b + c")

FAKE = Device(
    name="fake",
    vendor="nobody",
    driver="1.0",
    identity="fake cpu",
    opencl_name="fake",
    platform="fake",
    kind="cpu",
    opencl_version="3.0",
    compute_units=2,
    global_memory=1 << 30,
    max_allocation=1 << 28,
    extensions=(),
    target=TARGET,
)


def relu(size: int = 1000, name: str = "relu", dtype: DType = DType.F32) -> Program:
    """y[i] = max(x[i], 0)"""
    x, y, i = Tensor("x", dtype, (size,)), Tensor("y", dtype, (size,)), Index("i", size)
    value = Call("max", (Read("x", (Affine.index("i"),), dtype), Const(0, dtype)), dtype)
    return Program(name, (x,), (y,), (Statement("y", (i,), value),))


def row_sums(rows: int, columns: int) -> Program:
    """y[i] = sum(k) x[i,k]"""
    x, y = Tensor("x", DType.F32, (rows, columns)), Tensor("y", DType.F32, (rows,))
    body = Read("x", (Affine.index("i"), Affine.index("k")), DType.F32)
    value = Reduce("sum", (Index("k", columns),), body, DType.F32)
    return Program("sums", (x,), (y,), (Statement("y", (Index("i", rows),), value),))


# --- a simulated device -------------------------------------------------------------------------------------------


class TileFamily:
    """A family whose sources are their configurations, for simulations."""

    name = "tiles"

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> None:
        self.sizes = sizes

    def refusal(self, program: Program, target: Target) -> str | None:
        return None

    def space(self, program: Program, target: Target) -> Space:
        return Space(
            (
                *(Parameter(p, self.sizes, "a tile") for p in "mnk"),
                Parameter("path", ("direct", "packed", "local"), "how data is staged"),
            ),
            (Constraint("tiles fit the registers", lambda c: c.integer("m") * c.integer("n") <= 256),),
        )

    def default(self, program: Program, target: Target) -> Configuration:
        first = self.sizes[0]
        return Configuration.of({"m": first, "n": first, "k": first, "path": "direct"})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        if configuration["m"] == 32 and configuration["k"] == 32:
            raise KeyError("a bug of the generator")
        return Lowering((Launch("k", configuration.to_json(), (1,), None, ("x", "y"), ("y",)),))


def tile_seconds(c: Configuration) -> float | None:
    """A landscape with a best point at m=8, n=16, k=4, packed; some configurations fail."""
    if c["path"] == "local" and c.integer("k") == 32:
        return None
    away = sum(abs(math.log2(c.integer(p)) - best) for p, best in (("m", 3), ("n", 4), ("k", 2)))
    ridge = abs(math.log2(c.integer("m") * c.integer("n")) - 7)
    return 1e-3 * (1 + 0.15 * away + 0.1 * ridge) * {"packed": 1.0, "direct": 1.3, "local": 1.5}[str(c["path"])]


TILE_OPTIMUM = 1e-3


class Simulation:
    """A measurer without a device: looks times up, counts what it is asked."""

    def __init__(self, seconds: Callable[[Configuration], float | None] = tile_seconds) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, str]] = []
        self.closed = False
        self.look_ahead = 1

    def compile(self, lowering: Lowering) -> Compiled:
        ready: Compiled = Future()
        ready.set_result(None)
        return ready

    def prepare(self, job: Job) -> float:
        if job.program.name == "unmeasurable":
            raise StageError("its reference failed")
        return 0.1

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        text = lowering.launches[0].source
        self.asked.append((job.program.name, text))
        seconds = self.seconds(Configuration.from_json(text))
        if seconds is None:
            return Outcome(Status.CRASHED, message="simulated")
        return Outcome(Status.OK, (seconds,) * 3, 0.0)

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        times = [self.seconds(Configuration.from_json(x.launches[0].source)) for x in lowerings]
        return Compared(tuple((t or 1.0,) * rounds for t in times))

    def close(self) -> None:
        self.closed = True


def tiles(*families: Family) -> Callable[[Program, Target], tuple[Family, ...]]:
    found: tuple[Family, ...] = families or (TileFamily(),)
    return lambda program, target: found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "tuning.sqlite") as s:
        yield s


def stored(stage: Program, parameters: dict[str, object], **changes: object) -> Measurement:
    values: dict[str, object] = {
        "device": FAKE.identity,
        "driver": FAKE.driver,
        "signature": stage.signature,
        "structure": stage.structure,
        "sizes": stage.sizes,
        "program": "p",
        "family": "tiles",
        "configuration": json.dumps(parameters, sort_keys=True),
        "generator": GENERATOR_VERSION,
        "status": Status.OK,
        "seconds": 1e-3,
        "samples": (1e-3,),
    }
    return Measurement(**{**values, **changes})  # type: ignore[arg-type]


# --- budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("1h", 3600), ("1.5 min", 90), ("45", 45), (7, 7), ("500ms", 0.5)]
)
def test_budgets_are_read(text: str | float, seconds: float) -> None:
    assert Budget.parse(text, evaluations=9) == Budget(seconds, 9)


def test_budgets_without_limits_and_again() -> None:
    assert Budget.parse() == Budget()
    assert Budget.parse(Budget(3.0), evaluations=5) == Budget(3.0, 5)
    assert (str(Budget(30.0, 5)), str(Budget())) == ("30 s, 5 evaluations", "until nothing improves")


@pytest.mark.parametrize("text", ["soon", "3 weeks", "-1s", "", "1e3s"])
def test_bad_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no time; write for example 30s"):
        Budget.parse(text)


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(InputError, match="is no time; give a positive number"):
        Budget.parse(-3)
    with pytest.raises(InputError, match="measures nothing"):
        Budget.parse(None, evaluations=0)


# --- choosing -----------------------------------------------------------------------------------------------------

GOOD = {"m": 8, "n": 16, "k": 4, "path": "packed"}


def test_choose_goes_from_tuned_to_nearest_to_default(store: Store) -> None:
    stage, source = relu(1000), tiles()
    assert choose(stage, FAKE, None, source=source).origin == DEFAULT
    assert choose(stage, FAKE, store, source=source).origin == DEFAULT
    store.record(stored(relu(4000), {**GOOD, "m": 2}))
    store.record(stored(relu(1100), {**GOOD, "m": 4}))
    near = choose(stage, FAKE, store, source=source)
    assert (near.origin, near.configuration["m"]) == (NEAREST, 4)
    store.record(stored(stage, {**GOOD, "m": 2}, generator=OLDER_GENERATORS[0]))
    older = choose(stage, FAKE, store, source=source)
    assert (older.origin, older.configuration["m"]) == (OLDER_GENERATOR, 2)
    store.record(stored(stage, {**GOOD, "m": 16}, driver="0.9"))
    other = choose(stage, FAKE, store, source=source)
    assert (other.origin, other.configuration["m"]) == (OTHER_DRIVER, 16)
    store.record(stored(stage, GOOD))
    tuned = choose(stage, FAKE, store, source=source)
    assert (tuned.origin, tuned.configuration) == (TUNED, Configuration.of(GOOD))


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": json.dumps({**GOOD, "m": 10**9})},
        {"configuration": json.dumps({**GOOD, "m": 32, "n": 32})},
        {"configuration": json.dumps({"m": 8})},
        {"family": "gone"},
        {"generator": "0"},
        {"device": "another"},
    ],
)
def test_a_stored_configuration_that_is_not_legal_here_is_not_used(store: Store, changes: dict[str, str]) -> None:
    store.record(stored(relu(1000), GOOD, **changes))
    assert choose(relu(1000), FAKE, store, source=tiles()).origin == DEFAULT


def test_choose_uses_the_real_families_and_remembers(store: Store) -> None:
    stage = relu(1000)
    first = choose(stage, FAKE, store)
    assert first.origin == DEFAULT
    assert choose(stage, FAKE, store) is first
    assert lower(stage, FAKE, first).launches
    space = stage_space(stage, TARGET)
    other = next(c for c in space.all or () if c.configuration != first.configuration)
    store.record(stored(stage, dict(other.configuration), family=other.family))
    assert choose(stage, FAKE, store).origin == TUNED


def test_lower_names_a_family_that_is_gone() -> None:
    choice = replace(choose(relu(), FAKE), family="gone")
    with pytest.raises(UnsupportedError, match="gone"):
        lower(relu(), FAKE, choice)
    with pytest.raises(UnsupportedError, match="gone"):
        lower(relu(), FAKE, choice, tiles())


def test_constant_inputs_are_part_of_the_key(store: Store) -> None:
    stage = relu(1000)
    assert stage_key(stage) == stage.signature
    assert stage_key(stage, {"x"}) == f"{stage.signature}-c0"
    store.record(stored(stage, GOOD))
    assert choose(stage, FAKE, store, {"x"}, tiles()).origin == NEAREST  # the best there is for it


def test_a_database_that_breaks_costs_the_tuning_not_the_program(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.record(stored(relu(1000), GOOD))
    store.close()
    Path(store.url.removeprefix("sqlite:///")).write_bytes(b"no database" * 1000)
    assert choose(relu(1000), FAKE, store, source=tiles()).origin == DEFAULT
    assert "is damaged or no database" in caplog.text


def test_choosing_is_fast(store: Store) -> None:
    stages = [relu(1000 + n) for n in range(50)]
    for stage in stages[::2]:
        store.record(stored(stage, GOOD))
    for stage in stages:
        choose(stage, FAKE, store, source=tiles())
    start = time.perf_counter()
    for stage in stages:
        choose(stage, FAKE, store, source=tiles())
    assert (time.perf_counter() - start) / len(stages) < 5e-3  # 1 ms on a quiet machine


# --- search, replayed ---------------------------------------------------------------------------------------------


def tile_space() -> StageSpace:
    return stage_space(relu(), TARGET, tiles())


def replay(search: LocalSearch, count: int) -> list[Candidate]:
    done: list[Candidate] = []
    while len(done) < count and (candidate := search.ask()) is not None:
        search.tell(candidate, tile_seconds(candidate.configuration))
        done.append(candidate)
    return done


@pytest.mark.parametrize("seed", range(5))
def test_search_finds_the_best_of_a_known_landscape(seed: int) -> None:
    search = LocalSearch(tile_space(), tile_space().defaults, seed)
    replay(search, 100)
    (best,) = search.best()
    assert (tile_seconds(best.configuration) or 1.0) <= 1.05 * TILE_OPTIMUM


def test_search_beats_chance() -> None:
    def mean_best(make: Callable[[int], Callable[[int], float]]) -> float:
        return sum(make(seed)(60) for seed in range(8)) / 8

    def searched(seed: int) -> Callable[[int], float]:
        def run(count: int) -> float:
            search = LocalSearch(tile_space(), (), seed)
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
    done = replay(LocalSearch(space, [*start, *space.defaults], 0), 150)
    assert done[:3] == [start[0], start[1], space.defaults[0]]
    assert len(set(done)) == 150
    assert all(space.violated(c) is None for c in done)


def test_every_code_path_is_tried_early() -> None:
    done = replay(LocalSearch(tile_space(), (), 3), 12)
    assert {c.configuration["path"] for c in done} == {"direct", "packed", "local"}


def test_small_spaces_are_measured_whole_and_large_ones_can_be() -> None:
    small = StageSpace({"tiles": TileFamily(sizes=(1, 2)).space(relu(), TARGET)}, ())
    search = LocalSearch(small)
    assert search.is_exhaustive
    assert len(replay(search, 1000)) == 2 * 2 * 2 * 3
    large = StageSpace({"tiles": TileFamily(sizes=(1, 2, 4, 8)).space(relu(), TARGET)}, ())
    search = LocalSearch(large)
    assert not search.is_exhaustive
    assert len(replay(search, 1000)) == 4 * 4 * 4 * 3


def test_a_long_search_stays_cheap() -> None:
    search = LocalSearch(tile_space(), (), 0, SearchSettings(remembered=40))
    assert len(replay(search, 120)) == 120


def test_the_model_learns_which_parameters_matter() -> None:
    every = list(tile_space().all or ())
    random.Random(0).shuffle(every)
    known = [c for c in every if tile_seconds(c.configuration)]
    seen, unseen = known[:80], known[80:200]
    model = Surrogate(TileFamily().space(relu(), TARGET))
    model.fit([c.configuration for c in seen], [math.log(tile_seconds(c.configuration) or 1.0) for c in seen], True)
    mean, deviation = model.predict([c.configuration for c in unseen])
    truth = np.log([tile_seconds(c.configuration) or 1.0 for c in unseen])
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.3 * truth.std()
    assert np.mean(np.abs(mean - truth) < 3 * deviation) > 0.9
    known_mean, known_deviation = model.predict([seen[0].configuration])
    assert known_mean[0] == pytest.approx(math.log(tile_seconds(seen[0].configuration) or 1.0), abs=0.05)
    assert known_deviation[0] < deviation.min()
    gains = expected_improvement(mean, deviation, float(truth.min()))
    assert np.all(gains >= 0)
    assert truth[np.argmax(gains)] < np.median(truth)


def test_a_model_of_equal_times_predicts_them() -> None:
    configurations = [c.configuration for c in (tile_space().all or ())[:6]]
    model = Surrogate(TileFamily().space(relu(), TARGET))
    model.fit(configurations, [-3.0] * 6, True)
    assert model.predict(configurations[:2])[0] == pytest.approx([-3.0, -3.0])


def test_history_is_not_asked_again() -> None:
    space = tile_space()
    first = LocalSearch(space, space.defaults, 0)
    known = replay(first, 40)
    second = LocalSearch(space, space.defaults, 0)
    for c in known:
        second.tell(c, tile_seconds(c.configuration))
    assert not set(known) & set(replay(second, 40))


def test_a_search_survives_a_space_where_everything_fails() -> None:
    search = LocalSearch(tile_space(), tile_space().defaults, 0, SearchSettings(explore=5))
    for _ in range(50):
        candidate = search.ask()
        assert candidate is not None
        search.tell(candidate, None)
    assert search.best() == []


# --- tuning, simulated --------------------------------------------------------------------------------------------


def test_tuning_finds_and_stores_the_winner(store: Store) -> None:
    simulation, events = Simulation(), list[Event]()
    report = tune([relu()], FAKE, store, Budget(evaluations=100), events.append, source=tiles(), measurer=simulation)
    (stage,) = report.stages
    assert stage.winner is not None
    assert stage.winner.origin == TUNED
    assert stage.after == pytest.approx(TILE_OPTIMUM, rel=0.05)
    assert stage.before == tile_seconds(TileFamily().default(relu(), TARGET))
    assert report.evaluations == 100 == sum(report.statuses.values())
    assert report.before > report.after
    assert simulation.closed
    assert [e.evaluations for e in events] == [*range(1, 101), 100]
    assert events[-1].gain == pytest.approx(report.before / report.after)
    assert choose(relu(), FAKE, store, source=tiles()) == stage.winner
    rows = store.measurements()
    assert {m.run for m in rows} == {rows[0].run} != {""}
    assert sum(m.round != "" for m in rows) == 4  # three finalists and the configuration used before
    assert store.stats().runs == 1


def test_nothing_known_is_measured_again(store: Store) -> None:
    for _ in range(3):
        tune([relu()], FAKE, store, Budget(evaluations=50), source=tiles(), measurer=Simulation())
    tried = [(m.family, m.configuration) for m in store.measurements() if not m.round]
    assert len(tried) == 150 == len(set(tried))


def test_generator_bugs_and_crashes_are_results_not_ends(store: Store) -> None:
    family = TileFamily(sizes=(2, 8, 32))
    every = stage_space(relu(), TARGET, tiles(family)).all
    assert every is not None
    report = tune([relu()], FAKE, store, Budget(evaluations=1000), source=tiles(family), measurer=Simulation())
    assert report.evaluations == len(every)
    assert report.statuses["build_failed"] == sum(c.configuration["m"] == c.configuration["k"] == 32 for c in every)
    assert report.statuses["crashed"] > 0
    failed = [m for m in store.measurements() if m.status is Status.BUILD_FAILED]
    assert "the generator failed: KeyError: 'a bug of the generator'" in failed[0].message


def test_without_a_budget_a_stage_ends_when_nothing_improves(store: Store) -> None:
    report = tune([relu()], FAKE, store, source=tiles(), measurer=Simulation())
    assert 60 < report.evaluations < 400
    assert report.stages[0].after == pytest.approx(TILE_OPTIMUM, rel=0.05)


def test_stages_are_deduplicated_and_the_heavy_ones_get_more(store: Store) -> None:
    stages = [relu(1000), relu(2000, "light"), relu(1000, "twin"), relu(3000, "unmeasurable"), relu(0)]
    weights = [20, 1, 20, 1, 1]
    report = tune(stages, FAKE, store, Budget(evaluations=80), source=tiles(), weights=weights, measurer=Simulation())
    assert [s.weight for s in report.stages] == [40, 1, 1]
    heavy, light, bad = report.stages
    assert heavy.evaluations > 3 * light.evaluations > 0
    assert (bad.evaluations, bad.message, bad.after) == (0, "its reference failed", None)


def test_a_time_budget_is_kept(store: Store) -> None:
    start = time.monotonic()
    tune([relu(), relu(64)], FAKE, store, Budget(seconds=0.5), source=tiles(), measurer=Simulation())
    assert time.monotonic() - start < 5.0
    assert store.measurements()


def test_ctrl_c_keeps_what_was_measured(store: Store) -> None:
    def interrupt(event: Event) -> None:
        if event.evaluations == 7:
            raise KeyboardInterrupt

    simulation = Simulation()
    report = tune([relu()], FAKE, store, Budget(seconds=600), interrupt, source=tiles(), measurer=simulation)
    assert report.interrupted
    assert simulation.closed
    assert len(store.measurements()) == 7
    assert report.stages[0].winner is not None


def test_a_read_only_store_is_refused_before_anything_runs(tmp_path: Path) -> None:
    Store.open(tmp_path / "t.sqlite").close()
    with (
        Store.open(tmp_path / "t.sqlite", read_only=True) as s,
        pytest.raises(DatabaseError, match="tuning needs a database it may write"),
    ):
        tune([relu()], FAKE, s, measurer=Simulation())


def test_near_shapes_are_tried_first(store: Store) -> None:
    store.record(stored(relu(1100), GOOD))
    simulation = Simulation()
    tune([relu(1000)], FAKE, store, Budget(evaluations=2), source=tiles(), measurer=simulation)
    assert [json.loads(text) for _, text in simulation.asked] == [GOOD, dict(TileFamily().default(relu(), TARGET))]


def test_the_final_decides_over_lucky_single_measurements(store: Store) -> None:
    lucky = Configuration.of({"m": 1, "n": 1, "k": 1, "path": "packed"})

    class Noisy(Simulation):
        def evaluate(
            self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
        ) -> Outcome | None:
            outcome = super().evaluate(job, lowering, best, until)
            if lowering.launches[0].source == lucky.to_json():
                return Outcome(Status.OK, (1e-6,))
            return outcome

    small = tiles(TileFamily(sizes=(1, 4)))
    report = tune([relu()], FAKE, store, Budget(evaluations=1000), source=small, measurer=Noisy())
    assert report.stages[0].winner is not None
    assert report.stages[0].winner.configuration != lucky


def test_the_progress_bar_shows_the_run(store: Store) -> None:
    out = io.StringIO()
    with TuningBar(Console(file=out, force_terminal=True, width=120)) as bar:
        tune([relu()], FAKE, store, Budget(evaluations=20), bar, source=tiles(), measurer=Simulation())
    assert "tuning relu" in out.getvalue()
    assert "20 tried, best" in out.getvalue()


def test_the_tuner_prints_nothing_unasked(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tune([relu()], FAKE, store, Budget(evaluations=5), source=tiles(), measurer=Simulation())
    assert capsys.readouterr() == ("", "")


# --- checking -----------------------------------------------------------------------------------------------------


def test_inputs_are_the_same_every_time_and_guarded() -> None:
    program = relu(100)
    first = checking.input_bytes(program, program.inputs[0], 64)
    assert np.array_equal(first, checking.input_bytes(program, program.inputs[0], 64))
    offset, total = checking.guarded_bytes(400, 64)
    assert (first.size, offset % 64) == (total, 0)
    values = checking.elements(first[offset:], program.inputs[0])
    assert np.all((np.abs(values) >= 0.25) & (np.abs(values) <= 1.0))
    assert {-1.0, 1.0} == set(np.sign(values))
    assert np.isnan(first[:offset].view(np.float32)).all()


@pytest.mark.parametrize("dtype", list(DType))
def test_inputs_exist_for_every_type(dtype: DType) -> None:
    program = relu(64, dtype=dtype)
    whole = checking.input_bytes(program, program.inputs[0], 64)
    offset, _ = checking.guarded_bytes(64 * dtype.itemsize, 64)
    values = checking.elements(whole[offset:], program.inputs[0])
    assert values.shape == (64,)
    assert values.min() < values.max() <= 8


def test_writes_beside_a_tensor_are_found() -> None:
    view = Tensor("y", DType.F32, (3, 2), strides=(4, 1), offset=1)
    offset, total = checking.guarded_bytes(view.span * 4, 64)
    clean = np.full(total, checking.pattern(DType.F32), np.uint8)
    checking.elements(clean[offset:], view)[...] = 7.0
    assert checking.overrun(clean, offset, view) is None
    for place, complaint in (
        (offset - 1, "wrote 1 bytes before y"),
        (offset + view.span * 4, "wrote 1 bytes after y"),
        (offset, "wrote between the elements of y"),
        (offset + 3 * 4, "wrote between the elements of y"),
    ):
        spoilt = clean.copy()
        spoilt[place] = 0
        assert checking.overrun(spoilt, offset, view) == complaint


def test_tolerance_grows_with_the_reduction_and_is_zero_for_integers() -> None:
    short, long = row_sums(4, 16), row_sums(4, 1600)
    assert checking.reduction_length(long) == 1600
    assert checking.tolerance(long, long.outputs[0]) > 5 * checking.tolerance(short, short.outputs[0])
    assert checking.tolerance(long, long.outputs[0]) < 1e-3
    whole = relu(dtype=DType.I32)
    assert checking.tolerance(whole, whole.outputs[0]) == 0.0


def _difference(actual: list[float], expected: list[float]) -> tuple[float | None, str | None]:
    program = relu(len(expected))
    return checking.difference(
        program, program.outputs[0], np.array(actual, np.float32), np.array(expected, np.float32)
    )


def test_differences_of_floats() -> None:
    inf, nan = math.inf, math.nan
    assert _difference([1.0, 2.0], [1.0, 2.0]) == (0.0, None)
    assert _difference([1.0, nan, inf], [1.0, nan, inf]) == (0.0, None)
    assert _difference([0.0], [0.0]) == (0.0, None)
    error, problem = _difference([1.0, 2.5], [1.0, 2.0])
    assert error == pytest.approx(0.25)
    assert problem is not None
    assert "error 0.25" in problem
    assert "worst at [1]: 2.5 instead of 2.0" in problem
    for bad in ([nan, 2.0], [inf, 2.0]):
        error, problem = _difference(bad, [1.0, 2.0])
        assert error is None
        assert problem is not None
        assert "not finite where it should be" in problem
    assert "should be NaN or infinite" in str(_difference([1.0, -inf], [1.0, inf])[1])
    assert "should be NaN or infinite" in str(_difference([1.0, 0.0], [1.0, nan])[1])


def test_differences_of_integers() -> None:
    program = relu(2000, dtype=DType.I32)
    expected = np.zeros(2000, np.int32)
    actual = expected.copy()
    actual[5] = 1
    assert "1 wrong elements of 2000" in str(checking.difference(program, program.outputs[0], actual, expected)[1])
    rounded = replace(program, inputs=(Tensor("x", DType.F32, (2000,)),))
    assert checking.difference(rounded, program.outputs[0], actual, expected) == (1.0, None)
    actual[6] = 2
    assert checking.difference(rounded, program.outputs[0], actual, expected)[1] is not None


def test_work_on_constants_is_not_timed() -> None:
    pack = Launch("pack", "", (1,), None, ("w", "packed"), ("packed",))
    main = Launch("main", "", (1,), None, ("x", "packed", "table", "y"), ("y",))
    lowering = Lowering((pack, main), (Scratch("packed", DType.F32, 8), Scratch("table", DType.F32, 8, 0.0)))
    assert evaluating.run_once(lowering, frozenset({"w"})) == (pack,)
    assert evaluating.run_once(lowering, frozenset()) == ()
    assert evaluating.run_once(lowering, frozenset({"x"})) == ()


# --- the measuring process ----------------------------------------------------------------------------------------

SIZE = 1000


def kernel(body: str, **changes: object) -> Lowering:
    source = f"__kernel void k(__global float *x, __global float *y) {{ int i = get_global_id(0); {body} }}\n"
    launch = Launch("k", source, (SIZE,), None, ("x", "y"), ("y",))
    return Lowering((replace(launch, **changes),))  # type: ignore[arg-type]


RIGHT = "y[i] = max(x[i], 0.0f);"
FAULTS = {
    "no C": (kernel("this is not C"), Status.BUILD_FAILED, "does not compile"),
    "wrong values": (kernel("y[i] = x[i];"), Status.WRONG, "y has error"),
    "NaN": (kernel("y[i] = NAN;"), Status.WRONG, "not finite"),
    "nothing written": (kernel(""), Status.WRONG, "not finite"),
    "last element missing": (kernel(f"if (i < {SIZE - 1}) {RIGHT}"), Status.WRONG, "not finite"),
    "one element too far": (kernel(f"{RIGHT} if (i == 0) y[{SIZE}] = 0;"), Status.WRONG, "wrote 4 bytes after y"),
    "one element before": (kernel(f"{RIGHT} if (i == 0) y[-1] = 0;"), Status.WRONG, "wrote 4 bytes before y"),
    "input written": (kernel(f"{RIGHT} x[i] = 2;"), Status.WRONG, "writes into its input x"),
    "right only once": (
        kernel("float v = isnan(y[i]) ? max(x[i], 0.0f) : 3.0f; y[i] = v;"),
        Status.WRONG,
        "y has err",
    ),
    "uneven groups": (kernel(RIGHT, local_size=(7,)), Status.LAUNCH_FAILED, "does not divide"),
    "no such kernel": (kernel(RIGHT, kernel="other"), Status.LAUNCH_FAILED, "find kernel other"),
    "too large a group": (
        kernel(RIGHT, global_size=(1 << 20,), local_size=(1 << 20,)),
        Status.OUT_OF_RESOURCES,
        "work-items in a work-group",
    ),
    "crash": (kernel(f"{RIGHT} ((__global volatile int *)(ulong)8)[0] = 1;"), Status.CRASHED, ""),
    "endless": (kernel(f"{RIGHT} while (((volatile __global float *)x)[i] < 9.0f) {{}}"), Status.TIMED_OUT, "the run"),
}


@pytest.fixture(scope="module")
def supervisor(device: Device) -> Iterator[Supervisor]:
    with Supervisor(device, Limits(run=1.0, first_run=4.0)) as s:
        yield s


def relu_job(device: Device) -> Job:
    stage = relu(SIZE)
    return Job("relu", stage, NAIVE.lower(stage, device.target, NAIVE.default(stage, device.target)))


def test_a_right_candidate_is_timed(supervisor: Supervisor) -> None:
    outcome = supervisor.evaluate(relu_job(supervisor.device), kernel(RIGHT))
    assert outcome is not None
    assert (outcome.status, outcome.error, outcome.message) == (Status.OK, 0.0, "")
    assert len(outcome.samples) >= 3
    assert all(0 < s < 1 for s in outcome.samples)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_candidate_gets_its_status_and_the_next_one_runs(supervisor: Supervisor, fault: str) -> None:
    lowering, status, message = FAULTS[fault]
    job = relu_job(supervisor.device)
    outcome = supervisor.evaluate(job, lowering)
    assert outcome is not None
    assert (outcome.status, message in outcome.message) == (status, True), outcome
    assert outcome.samples == ()
    following = supervisor.evaluate(job, kernel(RIGHT))
    assert following is not None
    assert following.status is Status.OK, following


def test_too_much_local_memory_is_refused_before_the_launch(supervisor: Supervisor) -> None:
    size = 64 * supervisor.device.target.local_memory
    greedy = kernel(f"__local char l[{size}]; l[i] = x[i]; barrier(CLK_LOCAL_MEM_FENCE); y[i] = l[i + 1];")
    outcome = supervisor.evaluate(relu_job(supervisor.device), greedy)
    assert outcome is not None
    assert outcome.status in (Status.OUT_OF_RESOURCES, Status.BUILD_FAILED)


def test_hopeless_candidates_are_timed_once(supervisor: Supervisor) -> None:
    slow = kernel(
        "float v = x[i]; for (int n = 0; n < 200000; ++n) v = v * 0.999f + x[n & 511]; "
        f"{RIGHT} if (v == 7.5f) y[i] = v;"
    )
    outcome = supervisor.evaluate(relu_job(supervisor.device), slow, best=1e-6)
    assert outcome is not None
    assert outcome.status is Status.OK
    assert len(outcome.samples) == 1


def test_candidates_are_compared_in_turns(supervisor: Supervisor) -> None:
    job = relu_job(supervisor.device)
    compared = supervisor.compare(job, (kernel(RIGHT), kernel(f" {RIGHT}")), 3, 1e-3)
    assert compared is not None
    assert [len(s) for s in compared.samples] == [3, 3]
    assert supervisor.compare(job, (kernel("y[i] = 3;"),), 3, 1e-3) is None


def test_a_stage_whose_reference_does_not_run_is_said_so(supervisor: Supervisor) -> None:
    bad = replace(relu_job(supervisor.device), name="bad", reference=kernel("no"))
    with pytest.raises(StageError, match="does not compile"):
        supervisor.prepare(bad)
    crashing = replace(bad, reference=FAULTS["crash"][0])
    with pytest.raises(StageError, match="its reference failed: "):
        supervisor.prepare(crashing)


def test_evaluation_ends_with_the_budget(supervisor: Supervisor) -> None:
    endless = FAULTS["endless"][0]
    assert supervisor.evaluate(relu_job(supervisor.device), endless, until=time.monotonic() + 0.3) is None


def test_views_leave_the_elements_between_theirs_alone(supervisor: Supervisor) -> None:
    stage = relu(8)
    strided = replace(stage, outputs=(Tensor("y", DType.F32, (8,), strides=(2,), offset=1),))
    reference = NAIVE.lower(strided, supervisor.device.target, NAIVE.default(strided, supervisor.device.target))
    job = Job("view", strided, reference)
    spilling = kernel("if (i < 8) { y[2 * i + 1] = max(x[i], 0.0f); y[2 * i] = 0; }")
    outcome = supervisor.evaluate(job, spilling)
    assert outcome is not None
    assert (outcome.status, outcome.message) == (Status.WRONG, "wrote between the elements of y")


def test_a_device_that_is_gone_is_a_clear_error() -> None:
    with (
        Supervisor(replace(FAKE, name="no-such-device")) as s,
        pytest.raises(DeviceError, match="no measuring process can be started for no-such-device"),
    ):
        s.prepare(relu_job(FAKE))


# --- tuning on a device -------------------------------------------------------------------------------------------


class FaultyFamily:
    """A family most of whose configurations misbehave."""

    name = "faulty"

    def refusal(self, program: Program, target: Target) -> str | None:
        return None

    def space(self, program: Program, target: Target) -> Space:
        return Space((Parameter("fault", ("none", *FAULTS), "what goes wrong"),))

    def default(self, program: Program, target: Target) -> Configuration:
        return Configuration.of({"fault": "wrong values"})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        fault = str(configuration["fault"])
        return kernel(RIGHT) if fault == "none" else FAULTS[fault][0]


def test_tuning_goes_on_through_every_fault(supervisor: Supervisor, store: Store) -> None:
    source = tiles(FaultyFamily(), NAIVE)
    stage, device = relu(SIZE), supervisor.device
    report = tune([stage], device, store, source=source, limits=Limits(run=1.0, first_run=4.0))
    (result,) = report.stages
    wanted = {"ok": 1}
    for _, status, _ in FAULTS.values():
        wanted[status.value] = wanted.get(status.value, 0) + 1
    assert dict(result.statuses) == wanted
    assert result.winner is not None
    assert result.winner.configuration["fault"] == "none"
    again = tune([stage], device, store, source=source)
    assert again.evaluations == 0


def test_tuning_a_real_stage(supervisor: Supervisor, store: Store) -> None:
    stage = relu(1 << 14)
    report = tune([stage], supervisor.device, store, Budget(evaluations=6))
    assert report.evaluations == 6
    assert report.statuses == {"ok": 6}
    assert choose(stage, supervisor.device, store).origin == TUNED


# --- several processes, killed processes --------------------------------------------------------------------------

TUNING_PROCESS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_autotune as t
from tilewright.tuning_db import Store

class Slow(t.Simulation):
    def evaluate(self, *a, **k):
        time.sleep(0.002)
        print("+", end="", flush=True)
        return super().evaluate(*a, **k)

with Store.open(sys.argv[2]) as store:
    stages = [t.relu(1000), t.relu(int(sys.argv[3]))]
    t.tune(stages, t.FAKE, store, t.Budget(evaluations=int(sys.argv[4])), source=t.tiles(), measurer=Slow())
"""


def _tuning(path: Path, size: int, evaluations: int) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TUNING_PROCESS), here, str(path), str(size), str(evaluations)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_tune_into_one_database(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    both = [_tuning(path, size, 60) for size in (2000, 3000)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    with Store.open(path) as s:
        rows = [m for m in s.measurements() if not m.round]
        assert len(rows) == 120
        assert s.stats().runs == 2
        assert s.verify() == ()
        for size in (1000, 2000, 3000):
            assert choose(relu(size), FAKE, s, source=tiles()).origin == TUNED


ORPHAN_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import test_autotune as t
from tilewright.autotune.supervisor import Supervisor
from tilewright.runtime import select_device

with Supervisor(select_device(sys.argv[2])) as s:
    job = t.relu_job(s.device)
    s.prepare(job)
    print(s.process, flush=True)
    s.evaluate(job, t.FAULTS["endless"][0])
"""


def test_the_measuring_process_does_not_outlive_its_supervisor(device: Device) -> None:
    here = str(Path(__file__).parent)
    tuner = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_PROCESS, here, device.name], stdout=subprocess.PIPE, text=True
    )
    assert tuner.stdout is not None
    orphan = Path("/proc") / tuner.stdout.readline().strip()
    time.sleep(0.5)  # well within the endless kernel
    assert orphan.exists()
    tuner.kill()
    tuner.wait()
    tuner.stdout.close()
    deadline = time.monotonic() + 20
    while orphan.exists() and "\nState:\tZ" not in (orphan / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not orphan.exists() or "\nState:\tZ" in (orphan / "status").read_text()


def test_a_killed_tuner_loses_at_most_the_candidate_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    begun = 0
    for _ in range(3):
        process = _tuning(path, 2000, 100_000)
        assert process.stdout is not None
        begun += len(process.stdout.read(10))
        process.send_signal(signal.SIGKILL)
        begun += len(process.stdout.read())
        process.stdout.close()
        process.wait()
    with Store.open(path) as s:
        rows = [(m.signature, m.configuration) for m in s.measurements()]
        assert s.verify() == ()
    assert begun - 3 <= len(rows) <= begun
    assert len(set(rows)) == len(rows)  # what was known was not measured again
