"""Tuning: on a simulated device, on a real one, in several processes, and killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tuning_cases import (
    FAKE,
    FAULTS,
    GOOD,
    RIGHT,
    SIZE,
    TARGET,
    TILE_OPTIMUM,
    Simulation,
    TileFamily,
    kernel,
    relu,
    stored,
    tile_seconds,
    tiles,
)

from tilewright.autotune import Budget, Event, TuningBar, choose, tune, tuning_run
from tilewright.autotune.candidates import stage_space
from tilewright.autotune.choosing import TUNED
from tilewright.autotune.compiling import Compiled
from tilewright.autotune.messages import Outcome
from tilewright.autotune.supervisor import Job, Limits
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import (
    Program,
)
from tilewright.dsl.space import Configuration, Parameter, Space
from tilewright.dsl.target import Target
from tilewright.errors import DatabaseError
from tilewright.runtime import Device, roofline
from tilewright.tuning_db import Status, Store


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
    assert not simulation.closed  # it is the caller's
    assert [e.evaluations for e in events] == [*range(1, 101), 100]
    assert events[-1].gain == pytest.approx(report.before / report.after)
    assert choose(relu(), FAKE, store, source=tiles()) == stage.winner
    rows = store.measurements()
    assert {m.run for m in rows} == {rows[0].run} != {""}
    final = [m for m in rows if m.round == rows[-1].round]
    assert len(final) == 4  # three finalists and the configuration used before
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
    assert sum(not m.round for m in store.measurements()) == 7
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


def test_winners_of_other_sizes_are_moved_to_the_values_there_are(store: Store) -> None:
    store.record(stored(relu(1100), {**GOOD, "n": 16}))
    simulation, small = Simulation(), TileFamily(sizes=(1, 2, 4, 8))
    tune([relu(1000)], FAKE, store, Budget(evaluations=2), source=tiles(small), measurer=simulation)
    assert {**GOOD, "n": 8} in [json.loads(text) for _, text in simulation.asked]


class Compiling(Simulation):
    """Compiles in the background; some take longer than others."""

    def __init__(self) -> None:
        super().__init__()
        self.look_ahead = 6
        self.compiled: list[str] = []
        self.threads = ThreadPoolExecutor(3)

    def compile(self, lowering: Lowering) -> Compiled:
        source = lowering.launches[0].source

        def work() -> Outcome | None:
            time.sleep(0.001 * (zlib.crc32(source.encode()) % 5))
            self.compiled.append(source)
            return None

        return self.threads.submit(work)

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        assert lowering.launches[0].source in self.compiled
        return super().evaluate(job, lowering, best, until)


def test_candidates_are_compiled_ahead_and_measured_when_they_are_ready(store: Store) -> None:
    simulation = Compiling()
    stages = [relu(1000), relu(2000, "other")]
    report = tune(stages, FAKE, store, Budget(evaluations=60), source=tiles(), measurer=simulation)
    simulation.threads.shutdown()
    lowered = 60 - report.statuses.get("build_failed", 0)
    assert (report.evaluations, len(set(simulation.asked)), len(simulation.asked)) == (60, lowered, lowered)
    assert all(s.evaluations > 10 for s in report.stages)
    assert len(simulation.compiled) == lowered + 2  # the references as well


def test_candidates_that_do_not_compile_are_recorded_and_not_measured(store: Store) -> None:
    class Failing(Simulation):
        def compile(self, lowering: Lowering) -> Compiled:
            done: Compiled = Future()
            packed = '"packed"' in lowering.launches[0].source
            done.set_result(Outcome(Status.TIMED_OUT, message="the build did not end in time") if packed else None)
            return done

    simulation = Failing()
    report = tune([relu()], FAKE, store, Budget(evaluations=60), source=tiles(), measurer=simulation)
    assert report.statuses["timed_out"] > 0
    assert report.evaluations == 60
    assert not any('"packed"' in text for _, text in simulation.asked)
    assert report.stages[0].winner is not None
    assert report.stages[0].winner.configuration["path"] != "packed"


def test_a_compilation_that_never_ends_does_not_outlast_the_budget(store: Store) -> None:
    class Endless(Simulation):
        def compile(self, lowering: Lowering) -> Compiled:
            return Future()

    start = time.monotonic()
    report = tune([relu()], FAKE, store, Budget(seconds=0.3), source=tiles(), measurer=Endless())
    assert (report.evaluations, report.stages[0].after) == (0, None)
    assert time.monotonic() - start < 5.0


def test_every_stage_gets_its_start_set_before_any_gets_more(store: Store) -> None:
    simulation = Simulation()
    stages = [relu(1000 + n) for n in range(8)]
    store.record(stored(relu(900), GOOD))
    tune(stages, FAKE, store, Budget(evaluations=16), source=tiles(), weights=[1000, *[1] * 7], measurer=simulation)
    default = dict(TileFamily().default(relu(), TARGET))
    assert [json.loads(text) for _, text in simulation.asked] == [GOOD] * 8 + [default] * 8


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
    with TuningBar(Console(file=out, force_terminal=True, width=200)) as bar:
        tune([relu()], FAKE, store, Budget(evaluations=20), bar, source=tiles(), measurer=Simulation())
    assert "tuning relu" in out.getvalue()
    assert "20 tried, best" in out.getvalue()


def test_the_progress_bar_shows_shares_and_failures() -> None:
    out = io.StringIO()
    event = Event("relu", 1, 0, 30, 5.0, Budget(10.0), "c", None, 2e-6, 1.5, 1e-6, {"crashed": 2, "build_failed": 1})
    with TuningBar(Console(file=out, force_terminal=True, width=200)) as bar:
        bar(event)
    assert "30 tried, best 2.0 µs (50% of the roofline), all stages ×1.50, 1 build failed, 2 crashed" in out.getvalue()
    assert replace(event, bound=None).share is None


def test_events_know_the_roofline_and_the_failures(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = roofline.Limits(FAKE.identity, FAKE.driver, 0.0, ((1 << 20, 8e9),), {"f32": 1e12}, "now")
    monkeypatch.setattr(tuning_run, "known_limits", lambda _: limits)
    events: list[Event] = []
    tune([relu(1000)], FAKE, store, Budget(evaluations=100), events.append, source=tiles(), measurer=Simulation())
    assert events[-1].bound == pytest.approx(8000 / 8e9)
    assert events[-1].failures.keys() == {"build_failed", "crashed"}


def test_the_tuner_prints_nothing_unasked(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tune([relu()], FAKE, store, Budget(evaluations=5), source=tiles(), measurer=Simulation())
    assert capsys.readouterr() == ("", "")


# --- on a device --------------------------------------------------------------------------------------------------


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


def test_tuning_goes_on_through_every_fault(device: Device, store: Store) -> None:
    source = tiles(FaultyFamily(), NAIVE)
    stage = relu(SIZE)
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


def test_tuning_a_real_stage(device: Device, store: Store) -> None:
    stage = relu(1 << 14)
    report = tune([stage], device, store, Budget(evaluations=6))
    assert report.evaluations == 6
    assert report.statuses == {"ok": 6}
    assert choose(stage, device, store).origin == TUNED


def test_tuning_with_compiling_helpers_finds_the_same_faults(device: Device, store: Store) -> None:
    source = tiles(FaultyFamily(), NAIVE)
    report = tune([relu(SIZE)], device, store, source=source, limits=Limits(run=1.0, first_run=4.0), helpers=2)
    (result,) = report.stages
    assert sum(result.statuses.values()) == 1 + len(FAULTS)
    assert (result.statuses["ok"], result.statuses["build_failed"]) == (1, 1)
    assert result.winner is not None
    assert result.winner.configuration["fault"] == "none"


# --- several processes, killed processes --------------------------------------------------------------------------

TUNING_PROCESS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import tuning_cases as t
from tilewright.autotune import Budget, tune
from tilewright.tuning_db import Store

class Slow(t.Simulation):
    def evaluate(self, *a, **k):
        time.sleep(0.002)
        print("+", end="", flush=True)
        return super().evaluate(*a, **k)

with Store.open(sys.argv[2]) as store:
    stages = [t.relu(1000), t.relu(int(sys.argv[3]))]
    tune(stages, t.FAKE, store, Budget(evaluations=int(sys.argv[4])), source=t.tiles(), measurer=Slow())
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
import tuning_cases as t
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
        rows = [(m.signature, m.configuration) for m in s.measurements() if not m.round]
        assert s.verify() == ()
    assert begun - 3 <= len(rows) <= begun
    assert len(set(rows)) == len(rows)  # what was known was not measured again
