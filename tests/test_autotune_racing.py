"""Repeats, races and duels, on simulated noise: no kernel runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tuning_cases import FAKE, GOOD, TILE_OPTIMUM, Simulation, TileFamily, relu, tile_seconds, tiles

from tilewright.autotune import Budget, choose, tune
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.racing import (
    ROUNDS,
    is_contender,
    is_faster,
    is_slower,
    repeats,
    second_looks,
    undecided,
    winner,
)
from tilewright.autotune.supervisor import Job
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.space import Configuration
from tilewright.tuning_db import Status, Store

TRIALS = 150


class Machine:
    """A clock that wanders, noise of 1%, and now and then a run that something else disturbed.

    ``slowed`` gives by how much, ``often`` how many of all.
    """

    def __init__(
        self, seed: int, drift: Callable[[int], float] = lambda n: 1.0, slowed: float = 1.5, often: float = 0.03
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.drift = drift
        self.slowed = slowed
        self.often = often
        self.runs = 0

    def time(self, seconds: float) -> float:
        self.runs += 1
        disturbed = self.slowed if self.rng.random() < self.often else 1.0
        return seconds * self.drift(self.runs) * math.exp(0.01 * self.rng.standard_normal()) * disturbed

    def sample(self, seconds: float) -> float:
        """As candidates are timed in turns: the median of three runs."""
        return float(np.median([self.time(seconds) for _ in range(3)]))


def raced(machine: Machine, seconds: float, best: float | None) -> list[float]:
    """As candidates are timed: after two runs of which the faster one bounds the time."""
    samples: list[float] = []
    bound = min(machine.time(seconds), machine.time(seconds))
    while more := repeats(samples, best, bound):
        samples += [machine.time(seconds) for _ in range(more)]
    return samples


def in_turns(machine: Machine, times: list[float], rounds: int = 7) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in times]
    for turn in range(rounds):
        for n in range(len(times)):
            at = (n + turn) % len(times)
            samples[at].append(machine.sample(times[at]))
    return samples


def share(verdicts: list[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def test_contenders_get_all_repeats_and_others_few() -> None:
    def mean(ratio: float) -> float:
        return float(np.mean([len(raced(Machine(n), 1e-3 * ratio, 1e-3)) for n in range(TRIALS)]))

    assert len(raced(Machine(1), 1e-3, None)) == ROUNDS[-1]
    assert mean(0.95) == ROUNDS[-1]
    assert mean(1.0) > 8.5
    assert mean(1.1) < 5
    assert mean(1.2) < 3.5
    assert mean(1.7) < 1.2
    assert len(raced(Machine(1), 0.5, 0.5)) == 3


def test_a_race_seldom_drops_a_candidate_that_is_as_fast() -> None:
    dropped = [len(raced(Machine(n), 1e-3, 1e-3)) < ROUNDS[-1] for n in range(TRIALS)]
    assert share(dropped) < 0.05


def test_no_single_slow_run_drops_a_candidate() -> None:
    assert repeats([0.09], 0.01) == 0
    assert repeats([0.09], 0.01, bound=0.08) == 0
    assert repeats([0.09], 0.01, bound=0.011) == 2
    assert repeats([0.09, 0.01, 0.01], 0.01, bound=0.011) == 3
    assert repeats([0.09, 0.012, 0.012], 0.01, bound=0.011) == 0
    busy = [len(raced(Machine(n, slowed=12.0, often=0.1), 1e-3, 1e-3)) for n in range(TRIALS)]
    assert share([count == 1 for count in busy]) < 0.02  # one run of it alone would drop a tenth


def test_second_looks_go_to_few_and_to_the_nearest_of_what_a_disturbance_explains() -> None:
    seconds = {"far": 0.06, "near": 2e-3, "nearer": 1.6e-3, "slow": 12e-3}
    assert second_looks(seconds, 1e-3, 60) == ["nearer", "near", "slow"]
    assert second_looks(seconds, 1e-3, 21) == ["nearer", "near"]
    assert second_looks(seconds, 1e-3, 1) == ["nearer"]
    assert second_looks({}, 1e-3, 100) == []
    assert second_looks({"a": 1.6, "b": 3.2}, 1.0, 100) == ["a"]
    assert is_contender(1.1, 1.0)
    assert not is_contender(1.2, 1.0)


def test_verdicts_are_as_certain_as_they_say() -> None:
    machines = [Machine(n) for n in range(TRIALS)]
    equal = [is_faster(*in_turns(m, [1e-3, 1e-3])) for m in machines]
    assert share(equal) <= 0.08
    assert share([is_faster(*in_turns(m, [0.97e-3, 1e-3])) for m in machines]) > 0.9
    assert not any(is_faster(*in_turns(m, [1.03e-3, 1e-3])) for m in machines)
    assert not is_faster([1.0], [2.0])
    assert is_faster([1.0, 1.0], [2.0, 2.0])
    assert not is_faster([1.0, 1.0], [1.0, 1.0])
    assert is_slower([1.0, 1.0, 1.0], 0.9)
    assert not is_slower([1.0, 1.0, 1.0], 1.0)


def test_turns_see_through_a_clock_that_changes() -> None:
    def slowing(run: int) -> float:
        return 1.0 + 0.003 * run  # six percent while one candidate is timed

    apart, turns = [], []
    for n in range(TRIALS):
        machine = Machine(n, slowing)
        first = np.median([machine.sample(1.03e-3) for _ in range(7)])
        later = np.median([machine.sample(1e-3) for _ in range(7)])
        apart.append(bool(later < first))  # the second is faster
        turns.append(winner(in_turns(Machine(n, slowing), [1.03e-3, 1e-3]), 0) == 1)
    assert share(apart) < 0.1
    assert share(turns) > 0.9


def test_the_incumbent_stays_unless_another_is_proven_faster() -> None:
    assert winner([[1.0, 1.1, 0.9], [0.99, 1.11, 0.9]], 0) == 0
    assert undecided([[1.0, 1.1, 0.9], [0.99, 1.11, 0.89]], 0) == 1
    assert winner([[1.0, 1.1], [0.5, 0.9], [0.7, 0.77]], 0) == 2  # the second is faster, but it proves nothing
    assert undecided([[1.0, 1.1], [2.0, 2.2]], 0) is None


class Noisy(Simulation):
    """A simulated device whose times are a machine's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.machine = Machine(seed, lambda n: 1.0 + 0.03 * math.sin(n / 150))

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        outcome = super().evaluate(job, lowering, best, until)
        if outcome is None or outcome.status is not Status.OK:
            return outcome
        return Outcome(Status.OK, tuple(raced(self.machine, outcome.samples[0], best)), 0.0)

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        times = [tile_seconds(Configuration.from_json(x.launches[0].source)) or 1.0 for x in lowerings]
        return Compared(tuple(tuple(s) for s in in_turns(self.machine, times, rounds)))


def test_tuning_on_a_noisy_machine_finds_the_best_and_keeps_it(tmp_path: Path) -> None:
    source, stage, seed = tiles(TileFamily((4, 8, 16))), relu(), 3
    with Store.open(tmp_path / "tuning.sqlite") as store:
        winners = []
        for budget in (60, 11, 10):  # 81 in all
            tune([stage], FAKE, store, Budget(evaluations=budget), source=source, measurer=Noisy(seed), seed=seed)
            winners.append(choose(stage, FAKE, store, source=source).configuration)
        times = [tile_seconds(w) or 1.0 for w in winners]
        assert times == sorted(times, reverse=True)
        assert times[-1] == TILE_OPTIMUM
        duels = {m.round for m in store.measurements() if m.round}
        assert len(duels) > 2


def test_what_looks_faster_by_luck_does_not_win(tmp_path: Path) -> None:
    slow, fast = ({"m": m, "n": 16, "k": 4, "path": "packed"} for m in (4, 8))

    class Lucky(Simulation):
        def evaluate(
            self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
        ) -> Outcome | None:
            outcome = super().evaluate(job, lowering, best, until)
            lucky = Configuration.from_json(lowering.launches[0].source) == Configuration.of(slow)
            return Outcome(Status.OK, (1e-6,) * 9) if lucky else outcome

    source, stage = tiles(TileFamily((4, 8, 16))), relu()
    with Store.open(tmp_path / "tuning.sqlite") as store:
        report = tune([stage], FAKE, store, Budget(evaluations=81), source=source, measurer=Lucky())
        assert report.stages[0].winner is not None
        assert dict(report.stages[0].winner.configuration) == fast


class Busy(Simulation):
    """A simulated device on which the fastest configuration is disturbed the first time, in every run of it."""

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        outcome = super().evaluate(job, lowering, best, until)
        if outcome is None or outcome.status is not Status.OK or best is None:
            return outcome
        seconds = outcome.samples[0] * (1.8 if outcome.samples[0] == TILE_OPTIMUM else 1.0)
        return Outcome(Status.OK, (seconds,) * (1 if seconds > 1.5 * best else 3))

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        self.compared.append((len(lowerings), rounds))
        return super().compare(job, lowerings, rounds, slowest)

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[tuple[int, int]] = []


def test_the_fastest_wins_after_having_been_dropped_for_one_disturbed_time(tmp_path: Path) -> None:
    source, stage = tiles(TileFamily((4, 8, 16))), relu()  # 81 configurations
    measurer = Busy()
    with Store.open(tmp_path / "tuning.sqlite") as store:
        tune([stage], FAKE, store, Budget(evaluations=99), source=source, measurer=measurer)
        rows = [m for m in store.measurements() if m.configuration == Configuration.of(GOOD).to_json()]
        assert len(rows[0].samples) == 1
        assert dict(choose(stage, FAKE, store, source=source).configuration) == GOOD
        looks = [count for count, rounds in measurer.compared if rounds == 1]
        assert looks == [5]
        tune([stage], FAKE, store, Budget(evaluations=99), source=source, measurer=measurer)
        assert [count for count, rounds in measurer.compared if rounds == 1] == looks  # nothing new, no final
