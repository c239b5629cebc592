"""One call of the tuner: candidates on their way, duels, finals, and what is stored of them."""

from __future__ import annotations

import platform
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from tilewright.autotune import finals, racing
from tilewright.autotune.bounds import bound_of
from tilewright.autotune.budget import Budget
from tilewright.autotune.candidates import Candidate
from tilewright.autotune.compiling import Compiled
from tilewright.autotune.finals import Final, InTurns
from tilewright.autotune.measurer import Measurer
from tilewright.autotune.messages import Outcome
from tilewright.autotune.reports import Event, Progress, StageReport
from tilewright.autotune.stages import StageTuner
from tilewright.autotune.supervisor import StageError
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.space import Space
from tilewright.runtime import Device
from tilewright.runtime.roofline import known_limits
from tilewright.tuning_db import Measurement, Status, Store
from tilewright.tuning_db import Space as RecordedSpace

FINAL_SHARE = 0.2
"""Of the time budget, at most, is kept for the finals."""
MOST_SLOTS = 256
"""Devices that are measured on at once, at most."""
PATIENCE = 60
"""Without a budget, a stage is done after so many candidates without an improvement."""


@dataclass(frozen=True, eq=False)
class _Flight:
    """A candidate on its way."""

    tuner: StageTuner
    candidate: Candidate
    lowering: Lowering
    compiled: Compiled


@dataclass(frozen=True)
class _Measured:
    """How a candidate did."""

    outcome: Outcome
    duel: InTurns | None
    """With the incumbent, where it looked faster."""


class TuningRun:
    """One call of `tune`."""

    def __init__(
        self,
        tuners: Sequence[StageTuner],
        device: Device,
        store: Store,
        budget: Budget,
        progress: Progress | None,
        measurer: Measurer,
    ) -> None:
        self.tuners = tuners
        self.device = device
        self.store = store
        self.budget = budget
        self.progress = progress
        self.measurer = measurer
        self.id = uuid.uuid4().hex
        self.start = time.monotonic()
        self.evaluations = 0
        self.measuring_seconds = 0.0
        """Time spent on evaluating candidates."""
        self.flights: list[_Flight] = []
        """What is being compiled, waits for its measurement or is measured, in the order in which it was asked for."""
        self.measuring = ThreadPoolExecutor(MOST_SLOTS, "measure")
        """Its threads wait for the measuring processes, while this one looks ahead; there are no more than slots."""
        self.measured: dict[Future[_Measured | None], _Flight] = {}
        """What is being measured."""
        self.begun: set[str] = set()
        """Stages of which something was asked for."""
        self.spaces = {(t.key, family): _recorded(family, s) for t in tuners for family, s in t.space.spaces.items()}
        """What the candidates of each stage and family are chosen from, as the database keeps it."""
        known = known_limits(device)
        self.bounds = {} if known is None else {t.key: bound_of(t.job.program, known).seconds for t in tuners}
        """The least seconds of each stage, where the device's limits are known."""

    def close(self, owned: bool) -> None:
        """End the thread, and the measurer if it is the run's own; the thread may still wait for another's."""
        if not owned:
            self.measuring.shutdown(wait=False)
            return
        self.measurer.close()
        self.measuring.shutdown()
        self.measurer.close()  # it may have been starting a process when it was closed

    # --- search -------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Measure candidates until the budget is spent or nothing is left."""
        try:
            while not self._spent():
                self._look_ahead()
                self._measure()
                if not self.measured:
                    return
                self._look_ahead()
                self._arrived(wait(self.measured, return_when=FIRST_COMPLETED).done)
            self._arrived(wait(self.measured).done)  # the devices that were not first
        except KeyboardInterrupt:
            self._arrived({m for m in self.measured if m.done()})
            raise

    def _measure(self) -> None:
        """Measure what is compiled, as much as there are slots for."""
        while len(self.measured) < max(1, min(self.measurer.slots, MOST_SLOTS)):
            flight = self._landed()
            if flight is None:
                return
            incumbent = next(iter(flight.tuner.search.best()), None)
            self.measured[self.measuring.submit(self._outcome, flight, incumbent)] = flight

    def _arrived(self, done: Collection[Future[_Measured | None]]) -> None:
        for measured in done:
            flight = self.measured.pop(measured)
            result = measured.result()
            self._remove(flight)
            if result is not None:
                self._note(flight, result)

    def _look_ahead(self) -> None:
        """Have candidates compiled, as many as keep the compilers busy."""
        while len(self.flights) < self.measurer.look_ahead:
            if self.budget.evaluations is not None and self.evaluations + len(self.flights) >= self.budget.evaluations:
                return
            tuner = max((t for t in self.tuners if not t.exhausted), key=lambda t: t.urgency, default=None)
            if tuner is None:
                return
            candidate = tuner.search.ask()
            if candidate is None:
                tuner.exhausted = True
                continue
            if tuner.key not in self.begun:
                self.begun.add(tuner.key)
                if tuner.job.reference is not None:
                    self.measurer.compile(tuner.job.reference)
            tuner.pending += 1
            self.flights.append(self._flight(tuner, candidate))

    def _flight(self, tuner: StageTuner, candidate: Candidate) -> _Flight:
        try:
            lowering = tuner.lower(candidate)
        except Exception as e:  # a generator that fails on one configuration must not end the search of the others
            failed: Compiled = Future()
            message = f"the generator failed: {type(e).__name__}: {e}"
            failed.set_result(Outcome(Status.BUILD_FAILED, message=message))
            return _Flight(tuner, candidate, Lowering(()), failed)
        return _Flight(tuner, candidate, lowering, self.measurer.compile(lowering))

    def _landed(self) -> _Flight | None:
        """The first candidate that is compiled and not being measured; None if there is none.

        Where nothing is measured meanwhile, it is waited for until the budget is spent.
        """
        begun = set(self.measured.values())
        flights = [f for f in self.flights if f not in begun]
        waiting = {f.compiled for f in flights}
        if not waiting:
            return None
        left = None if self.budget.seconds is None else max(0.0, self.budget.seconds - self._elapsed())
        wait(waiting, 0.0 if begun else left, return_when=FIRST_COMPLETED)
        return next((f for f in flights if f.compiled.done()), None)

    def _remove(self, flight: _Flight) -> None:
        self.flights.remove(flight)
        flight.tuner.pending -= 1

    def _outcome(self, flight: _Flight, incumbent: Candidate | None) -> _Measured | None:
        """How a candidate did; None if its stage cannot be measured, or the budget was spent before it ended.

        One that looks faster than the incumbent is timed again, in turns with it.
        """
        tuner = flight.tuner
        if tuner.message:
            return None
        try:
            tuner.reference = self.measurer.prepare(tuner.job)
            start = time.monotonic()
            outcome = flight.compiled.result() or self._measured(tuner, flight.lowering)
            if outcome is None:
                return None
            duel = self._duel(tuner, outcome, (incumbent, flight.candidate)) if incumbent is not None else None
            self.measuring_seconds += time.monotonic() - start
            return _Measured(outcome, duel)
        except StageError as e:
            tuner.message = str(e)
            tuner.exhausted = True
            return None

    def _duel(self, tuner: StageTuner, outcome: Outcome, both: tuple[Candidate, Candidate]) -> InTurns | None:
        """The incumbent and its challenger in turns; None if there is no need, or if it failed."""
        before = tuner.search.seconds.get(both[0].key)
        if outcome.status is not Status.OK or before is None or before > finals.LONGEST_DUEL:
            return None
        seconds = statistics.median(outcome.samples)
        if seconds >= before and tuner.since_duel < racing.RETIMED:
            return None
        lowerings = tuple(tuner.lower(c) for c in both)
        compared = self.measurer.compare(tuner.job, lowerings, finals.ROUNDS, max(seconds, before))
        return None if compared is None else InTurns(both, compared)

    def _note(self, flight: _Flight, measured: _Measured) -> None:
        tuner, outcome = flight.tuner, measured.outcome
        self.evaluations += 1
        tuner.tell(flight.candidate, outcome)
        self.store.record(self._row(tuner, flight.candidate, outcome))
        if measured.duel is not None:
            tuner.since_duel = 0
            self._decided(tuner, measured.duel, 0)
        if self.budget == Budget() and tuner.stale >= PATIENCE:
            tuner.exhausted = True
        self._report(tuner, str(flight.candidate), outcome.status)

    def _measured(self, tuner: StageTuner, lowering: Lowering) -> Outcome | None:
        until = None
        if self.budget.seconds is not None:  # a candidate that has begun may overrun the budget a little
            until = self.start + self.budget.seconds + max(1.0, 0.05 * self.budget.seconds)
        return self.measurer.evaluate(tuner.job, lowering, tuner.best, until)

    # --- finals -------------------------------------------------------------------------------------------------

    def finals(self) -> None:
        """Time the fastest candidates of every stage in turns and store the result as what decides."""
        waiting = deque(sorted(self.tuners, key=lambda t: -(t.weight * (t.best or 0.0))))
        running: dict[Future[Final | None], StageTuner] = {}
        while waiting or running:
            while waiting and len(running) < max(1, min(self.measurer.slots, MOST_SLOTS)):
                tuner = waiting.popleft()
                late = self.budget.seconds is not None and self._elapsed() > self.budget.seconds
                if finals.is_due(tuner) and not late:
                    running[self.measuring.submit(finals.final, tuner, self.measurer)] = tuner
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                tuner, found = running.pop(done), done.result()
                if found is not None:
                    self._decided(tuner, found.decided, found.incumbent, found.looked)
                    self._report(tuner, "final", None)

    def _decided(self, tuner: StageTuner, timed: InTurns, incumbent: int, looked: InTurns | None = None) -> None:
        """Store what was timed in turns, so that the one wins that the times say is faster than the incumbent.

        What was looked at before, and what looks faster without being proven so, is stored ahead, in rounds of their
        own: the newest round decides. All of it goes into one transaction, since a part of what was timed in turns
        would let another configuration win.
        """
        rows = []
        if looked is not None:
            rows += self._round(tuner, looked)
            for candidate, found in zip(looked.candidates, looked.compared.samples, strict=True):
                tuner.search.tell(candidate, statistics.median(found))
        samples = timed.compared.samples
        medians = [statistics.median(s) for s in samples]
        won = medians[racing.winner(samples, incumbent)]
        for unproven in (True, False):
            part = [n for n, median in enumerate(medians) if (median < won) is unproven]
            compared = replace(timed.compared, samples=tuple(samples[n] for n in part))
            rows += self._round(tuner, InTurns(tuple(timed.candidates[n] for n in part), compared))
        for candidate, median in zip(timed.candidates, medians, strict=True):
            tuner.search.tell(candidate, max(median, won))
            if candidate == tuner.used:
                tuner.before = median
        self.store.add(rows)

    def _round(self, tuner: StageTuner, timed: InTurns) -> list[Measurement]:
        """The rows of candidates that were timed in turns, which makes up for having been timed only once."""
        for candidate in timed.candidates:
            tuner.single.pop(candidate, None)
        decision, host = uuid.uuid4().hex, timed.compared.host
        return [
            self._row(tuner, candidate, Outcome(Status.OK, samples, host=host), decision)
            for candidate, samples in zip(timed.candidates, timed.compared.samples, strict=True)
        ]

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    def _spent(self) -> bool:
        if self.budget.evaluations is not None and self.evaluations >= self.budget.evaluations:
            return True
        if self.budget.seconds is None:
            return False
        each = self.measuring_seconds / max(1, self.evaluations)
        left = sum(finals.final_seconds(t, each) for t in self.tuners if t.evaluations) / max(1, self.measurer.slots)
        return self._elapsed() + min(left, FINAL_SHARE * self.budget.seconds) >= self.budget.seconds

    def _row(self, tuner: StageTuner, candidate: Candidate, outcome: Outcome, decision: str = "") -> Measurement:
        program = tuner.job.program
        ok = outcome.status is Status.OK
        space = self.spaces.get((tuner.key, candidate.family))
        return Measurement(
            device=self.device.identity,
            driver=self.device.driver,
            signature=tuner.key,
            structure=program.structure,
            sizes=program.sizes,
            program=tuner.text,
            family=candidate.family,
            configuration=candidate.configuration.to_json(),
            generator=tuner.generator,
            status=outcome.status,
            seconds=statistics.median(outcome.samples) if ok else None,
            samples=outcome.samples,
            error=outcome.error,
            message=outcome.message.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # some databases take none
            build_seconds=outcome.build_seconds,
            host=outcome.host or platform.node(),
            run=self.id,
            round=decision,
            space=space.digest if space is not None else "",
        )

    def _report(self, tuner: StageTuner, candidate: str, status: Status | None) -> None:
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
                bound=self.bounds.get(tuner.key),
                failures=dict(sum((t.failures for t in self.tuners), Counter())),
            )
        )

    def stage_report(self, tuner: StageTuner) -> StageReport:
        """What was reached for one stage."""
        won = self.store.winner(self.device.identity, self.device.driver, tuner.generator, tuner.key)
        known = won is not None and won.exact
        return StageReport(
            name=tuner.job.program.name,
            key=tuner.key,
            weight=tuner.weight,
            before=tuner.used_seconds,
            after=won.seconds if won is not None and known else None,
            winner=tuner.choice(won) if won is not None and known else None,
            evaluations=tuner.evaluations,
            statuses=dict(tuner.statuses),
            message=tuner.message,
        )


def _recorded(family: str, space: Space) -> RecordedSpace:
    parameters = tuple((p.name, p.values) for p in space.parameters)
    return RecordedSpace(family, parameters, tuple(c.reason for c in space.constraints))


__all__ = ["TuningRun"]
