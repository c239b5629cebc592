"""Tuning: search every stage's candidates by measuring, share the budget by expected gain, remember everything.

Each stage goes through: what the database knows, its start set, search in portions, and a final in which its fastest
candidates and the configuration used so far are timed in turns. Every measurement is stored when it is made, so
Ctrl-C, a kill or a power cut loses at most the candidate in flight.
"""

from __future__ import annotations

import platform
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tilewright.autotune.budget import Budget
from tilewright.autotune.candidates import Candidate, FamilySource, StageSpace, stage_space
from tilewright.autotune.choosing import Choice, choose, stage_key, start_winners
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.search import LocalSearch
from tilewright.autotune.supervisor import Job, Limits, StageError, Supervisor
from tilewright.dsl import families
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import GENERATOR_VERSION, Program
from tilewright.dsl.text import program_text
from tilewright.errors import DatabaseError
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Run, Status, Store, now

FINALISTS = 3
FINAL_ROUNDS = 7
FINAL_SHARE = 0.2
"""Of the time budget, at most, is kept for the finals."""
PORTION = 4
"""Candidates measured before the next stage is picked anew."""
PATIENCE = 60
"""Without a budget, a stage is done after so many candidates without an improvement of `WORTHWHILE`."""
WORTHWHILE = 0.01
_OVERHEAD_SECONDS = 0.1
"""A final's cost per candidate besides its runs, for planning."""


@dataclass(frozen=True)
class Event:
    """Where a tuning run stands; handed to the progress callback after every candidate."""

    stage: str
    """Name of the stage worked on."""
    stages: int
    finished: int
    """Stages with nothing left to try."""
    evaluations: int
    elapsed: float
    """Seconds since the start."""
    budget: Budget
    candidate: str
    status: Status | None
    """How the candidate did; None while a final is timed."""
    best: float | None
    """Fastest time of this stage so far, in seconds."""
    gain: float
    """Time of all stages with their weights now, relative to before; 1 is no gain."""


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class StageReport:
    """What tuning did for one stage."""

    name: str
    key: str
    """What the database calls it."""
    weight: float
    before: float | None
    """Seconds with the configuration used before; None if it could not be measured."""
    after: float | None
    """Seconds with the winner."""
    winner: Choice | None
    evaluations: int
    statuses: Mapping[str, int]
    """How many of the candidates ended in which way."""
    message: str = ""
    """Why the stage could not be measured, if so."""


@dataclass(frozen=True)
class TuningReport:
    """What a tuning run did."""

    stages: tuple[StageReport, ...]
    seconds: float
    """How long the run took."""
    evaluations: int
    interrupted: bool
    """Ended by Ctrl-C; everything measured until then is kept."""

    @property
    def before(self) -> float:
        """Weighted seconds of all stages that could be measured, before."""
        return sum(s.weight * s.before for s in self.stages if s.before and s.after)

    @property
    def after(self) -> float:
        """The same now."""
        return sum(s.weight * s.after for s in self.stages if s.before and s.after)

    @property
    def statuses(self) -> Mapping[str, int]:
        """How many candidates of all stages ended in which way."""
        return dict(sum((Counter(s.statuses) for s in self.stages), Counter()))


class Measurer(Protocol):
    """What measures candidates: `Supervisor`, or a simulation."""

    def prepare(self, job: Job) -> float:
        """Seconds of the stage's reference; StageError if it cannot be measured."""

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        """One candidate; None if given up at `until`."""

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        """Candidates timed in turns; None if that failed."""

    def close(self) -> None:
        """Free what it holds."""


class _StageTuner:
    """One stage's search."""

    def __init__(self, job: Job, space: StageSpace, search: LocalSearch, used: Choice, weight: float, key: str) -> None:
        self.job = job
        self.space = space
        self.search = search
        self.used = Candidate(used.family, used.configuration)
        self.weight = weight
        self.key = key
        self.text = program_text(job.program.canonical)
        self.evaluations = 0
        self.stale = 0
        self.statuses: Counter[str] = Counter()
        self.reference: float | None = None
        self.before: float | None = None
        self.message = ""
        self.finished = False

    @property
    def best(self) -> float | None:
        """Fastest time known, in seconds."""
        return min((s for s in self.search.seconds.values() if s is not None), default=None)

    @property
    def used_seconds(self) -> float | None:
        """Time of the configuration used before the run, as far as it is known."""
        return self.before if self.before is not None else self.search.seconds.get(self.used.key)

    def expected_gain(self) -> float:
        """Weighted seconds that further search may save: less the more was tried, and the longer without success."""
        seconds = self.best or self.reference
        if seconds is None:  # not measured yet: by its work, ahead of all that are
            return 1e9 * (1.0 + self.weight * (self.job.program.operations + self.job.program.bytes_moved))
        return self.weight * seconds / (1.0 + self.evaluations / 12.0) / (1.0 + self.stale / 20.0)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take note of a new measurement."""
        best = self.best
        seconds = statistics.median(outcome.samples) if outcome.status is Status.OK else None
        self.search.tell(candidate, seconds)
        self.evaluations += 1
        self.statuses[outcome.status.value] += 1
        improved = seconds is not None and (best is None or seconds < best * (1.0 - WORTHWHILE))
        self.stale = 0 if improved else self.stale + 1


class _Run:
    """One call of `tune`."""

    def __init__(
        self,
        tuners: Sequence[_StageTuner],
        device: Device,
        store: Store,
        budget: Budget,
        progress: Progress | None,
        measurer: Measurer,
        source: FamilySource,
    ) -> None:
        self.tuners = tuners
        self.device = device
        self.store = store
        self.budget = budget
        self.progress = progress
        self.measurer = measurer
        self.source = source
        self.id = uuid.uuid4().hex
        self.start = time.monotonic()
        self.evaluations = 0

    # --- search -------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Measure candidates until the budget is spent or nothing is left."""
        while not self._spent():
            open_tuners = [t for t in self.tuners if not t.finished]
            if not open_tuners:
                return
            self._portion(max(open_tuners, key=_StageTuner.expected_gain))

    def _portion(self, tuner: _StageTuner) -> None:
        try:
            tuner.reference = self.measurer.prepare(tuner.job)
            for _ in range(PORTION):
                if self._spent() or tuner.finished:
                    return
                self._step(tuner)
        except StageError as e:
            tuner.message = str(e)
            tuner.finished = True

    def _step(self, tuner: _StageTuner) -> None:
        candidate = tuner.search.ask()
        if candidate is None:
            tuner.finished = True
            return
        outcome = self._measured(tuner, candidate)
        if outcome is None:
            return
        self.evaluations += 1
        tuner.tell(candidate, outcome)
        self.store.record(self._row(tuner, candidate, outcome))
        if self.budget == Budget() and tuner.stale >= PATIENCE:
            tuner.finished = True
        self._report(tuner, str(candidate), outcome.status)

    def _measured(self, tuner: _StageTuner, candidate: Candidate) -> Outcome | None:
        until = None
        if self.budget.seconds is not None:  # a candidate that has begun may overrun the budget a little
            until = self.start + self.budget.seconds + max(1.0, 0.05 * self.budget.seconds)
        try:
            lowering = self._lowering(tuner, candidate)
        except Exception as e:  # a generator that fails on one configuration must not end the search of the others
            return Outcome(Status.BUILD_FAILED, message=f"the generator failed: {type(e).__name__}: {e}")
        return self.measurer.evaluate(tuner.job, lowering, tuner.best, until)

    def _lowering(self, tuner: _StageTuner, candidate: Candidate) -> Lowering:
        program, target = tuner.job.program, self.device.target
        for family in self.source(program, target):
            if family.name == candidate.family:
                return family.lower(program, target, candidate.configuration)
        raise LookupError(f"family {candidate.family} does not fit")

    # --- finals -------------------------------------------------------------------------------------------------

    def finals(self) -> None:
        """Time the fastest candidates of every stage in turns and store the result as what decides."""
        for tuner in sorted(self.tuners, key=lambda t: -(t.weight * (t.best or 0.0))):
            finalists = self._finalists(tuner)
            late = self.budget.seconds is not None and self._elapsed() > self.budget.seconds
            if tuner.evaluations and len(finalists) > 1 and not late:
                self._final(tuner, finalists)

    def _finalists(self, tuner: _StageTuner) -> list[Candidate]:
        found = tuner.search.best(FINALISTS)
        if tuner.search.seconds.get(tuner.used.key) is not None and tuner.used.key not in {c.key for c in found}:
            found.append(tuner.used)
        return found

    def _final(self, tuner: _StageTuner, finalists: list[Candidate]) -> None:
        slowest = max(tuner.search.seconds[c.key] or 0.0 for c in finalists)
        lowerings = tuple(self._lowering(tuner, c) for c in finalists)
        try:
            compared = self.measurer.compare(tuner.job, lowerings, _rounds(slowest), slowest)
        except StageError:
            return  # what the search has measured stands
        if compared is None:
            return
        decision = uuid.uuid4().hex
        for candidate, samples in zip(finalists, compared.samples, strict=True):
            self.store.record(self._row(tuner, candidate, Outcome(Status.OK, samples), decision))
            if candidate == tuner.used:
                tuner.before = statistics.median(samples)
        self._report(tuner, "final", None)

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    def _spent(self) -> bool:
        if self.budget.evaluations is not None and self.evaluations >= self.budget.evaluations:
            return True
        if self.budget.seconds is None:
            return False
        finals = sum(_final_seconds(t) for t in self.tuners if t.evaluations)
        return self._elapsed() + min(finals, FINAL_SHARE * self.budget.seconds) >= self.budget.seconds

    def _row(self, tuner: _StageTuner, candidate: Candidate, outcome: Outcome, decision: str = "") -> Measurement:
        program = tuner.job.program
        ok = outcome.status is Status.OK
        return Measurement(
            device=self.device.identity,
            driver=self.device.driver,
            signature=tuner.key,
            structure=program.structure,
            sizes=program.sizes,
            program=tuner.text,
            family=candidate.family,
            configuration=candidate.configuration.to_json(),
            generator=GENERATOR_VERSION,
            status=outcome.status,
            seconds=statistics.median(outcome.samples) if ok else None,
            samples=outcome.samples,
            error=outcome.error,
            message=outcome.message,
            build_seconds=outcome.build_seconds,
            run=self.id,
            round=decision,
        )

    def _report(self, tuner: _StageTuner, candidate: str, status: Status | None) -> None:
        if self.progress is None:
            return
        pairs = [(t.weight, t.used_seconds, t.best) for t in self.tuners]
        before = sum(w * b for w, b, a in pairs if b and a)
        after = sum(w * min(a, b) for w, b, a in pairs if b and a)
        self.progress(
            Event(
                stage=tuner.job.program.name,
                stages=len(self.tuners),
                finished=sum(t.finished for t in self.tuners),
                evaluations=self.evaluations,
                elapsed=self._elapsed(),
                budget=self.budget,
                candidate=candidate,
                status=status,
                best=tuner.best,
                gain=before / after if after else 1.0,
            )
        )

    def stage_report(self, tuner: _StageTuner) -> StageReport:
        """What was reached for one stage."""
        won = self.store.winner(self.device.identity, self.device.driver, GENERATOR_VERSION, tuner.key)
        known = won is not None and won.exact
        return StageReport(
            name=tuner.job.program.name,
            key=tuner.key,
            weight=tuner.weight,
            before=tuner.used_seconds,
            after=won.seconds if won is not None and known else None,
            winner=choose(tuner.job.program, self.device, self.store, tuner.job.constants, self.source)
            if known
            else None,
            evaluations=tuner.evaluations,
            statuses=dict(tuner.statuses),
            message=tuner.message,
        )


def _rounds(slowest: float) -> int:
    return FINAL_ROUNDS if slowest < 0.02 else 3


def _final_seconds(tuner: _StageTuner) -> float:
    """About what a stage's final takes: each sample is some runs."""
    seconds = max(tuner.best or 0.0, 2e-4)
    return (FINALISTS + 1) * (_OVERHEAD_SECONDS + 7 * _rounds(seconds) * seconds)


def tune(
    stages: Sequence[Program],
    device: Device,
    store: Store,
    budget: Budget | None = None,
    progress: Progress | None = None,
    *,
    weights: Sequence[float] | None = None,
    constants: Sequence[Collection[str]] | None = None,
    source: FamilySource | None = None,
    limits: Limits | None = None,
    measurer: Measurer | None = None,
    seed: int = 0,
) -> TuningReport:
    """Search the fastest configuration of every stage by measuring on the device.

    Stages with the same `stage_key` are tuned once. ``weights`` say how often each stage runs (default 1), which
    together with its time decides its share of the budget. ``constants`` name, per stage, the inputs that never
    change between runs. Candidates that the database knows for this device, driver and generator are not measured
    again. Ctrl-C ends the run with everything measured kept. ``source``, ``limits`` and ``measurer`` replace the
    families, the deadlines and the measuring process.

    DatabaseError if the store cannot be written, DeviceError if no measuring process can be started.
    """
    if store.read_only:
        raise DatabaseError(f"tuning needs a database it may write, and {store.url} is read-only; set TILEWRIGHT_DB")
    start = time.monotonic()
    limit = budget or Budget()
    family_source = source or families.fitting
    tuners = _tuners(stages, device, store, weights, constants, family_source, seed)
    measuring = measurer or Supervisor(device, limits)
    interrupted = False
    try:
        run = _Run(tuners, device, store, limit, progress, measuring, family_source)
        store.record_run(Run(run.id, now(), platform.node(), str(limit)))
        try:
            run.search()
            run.finals()
        except KeyboardInterrupt:
            interrupted = True
    finally:
        measuring.close()
    reports = tuple(run.stage_report(t) for t in tuners)
    return TuningReport(reports, time.monotonic() - start, run.evaluations, interrupted)


def _tuners(
    stages: Sequence[Program],
    device: Device,
    store: Store,
    weights: Sequence[float] | None,
    constants: Sequence[Collection[str]] | None,
    source: FamilySource,
    seed: int,
) -> tuple[_StageTuner, ...]:
    found: dict[str, _StageTuner] = {}
    for n, stage in enumerate(stages):
        if all(t.size == 0 for t in stage.outputs):
            continue  # nothing is launched for it
        weight = 1.0 if weights is None else float(weights[n])
        fixed = () if constants is None else tuple(sorted(constants[n]))
        key = stage_key(stage, fixed)
        if key in found:
            found[key].weight += weight
        else:
            found[key] = _tuner(stage, device, store, weight, fixed, key, source, seed)
    return tuple(found.values())


def _tuner(
    stage: Program,
    device: Device,
    store: Store,
    weight: float,
    constants: tuple[str, ...],
    key: str,
    source: FamilySource,
    seed: int,
) -> _StageTuner:
    space = stage_space(stage, device.target, source)
    used = choose(stage, device, store, constants, source)
    near = [space.stored(w.family, w.configuration) for w in start_winners(stage, device, store, key)]
    search = LocalSearch(space, [Candidate(used.family, used.configuration), *near, *space.defaults], seed)
    for measured in store.tried(device.identity, device.driver, GENERATOR_VERSION, key).values():
        candidate = space.stored(measured.family, measured.configuration)
        if space.violated(candidate) is None:
            search.tell(candidate, measured.seconds)
    last = source(stage, device.target)[-1]  # the most general family is the one to trust
    reference = last.lower(stage, device.target, families.default(last, stage, device.target))
    return _StageTuner(Job(key, stage, reference, constants), space, search, used, weight, key)


__all__ = ["Event", "Measurer", "Progress", "StageReport", "TuningReport", "tune"]
