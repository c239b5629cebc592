"""The stages of a tuning run: what is known of each, its search, and how urgent it is."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from tilewright.autotune.candidates import Candidate, FamilySource, StageSpace, stage_space
from tilewright.autotune.choosing import TUNED, Choice, choose, stage_key, start_winners
from tilewright.autotune.messages import Outcome
from tilewright.autotune.search import StageSearch
from tilewright.autotune.supervisor import Job
from tilewright.autotune.transfer import told
from tilewright.dsl import families
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import GENERATOR_VERSION, Program
from tilewright.dsl.text import program_text
from tilewright.runtime import Device
from tilewright.tuning_db import Status, Store, Winner

WORTHWHILE = 0.01
"""A smaller gain is no success."""
NEAR_WINNERS = 4
"""Winners of near sizes that a search starts with, at most."""


class StageTuner:
    """One stage's search."""

    def __init__(
        self,
        job: Job,
        space: StageSpace,
        lower: Callable[[Candidate], Lowering],
        search: StageSearch,
        used: Candidate,
        weight: float,
        key: str,
        text: str,
        generator: str = GENERATOR_VERSION,
    ) -> None:
        self.job = job
        self.lower = lower
        """The kernels of a candidate."""
        self.space = space
        self.search = search
        self.used = used
        """What would run without tuning."""
        self.weight = weight
        self.key = key
        self.text = text
        self.generator = generator
        self.evaluations = 0
        self.pending = 0
        """Candidates that were asked for and are not measured yet."""
        self.exhausted = False
        """Nothing more is to be asked for."""
        self.stale = 0
        self.since_duel = 0
        """Candidates that worked since the fastest one was last timed."""
        self.statuses: Counter[str] = Counter()
        self.reference: float | None = None
        self.before: float | None = None
        self.undecided = False
        """Its last final did not see everything that is known: an earlier run was ended before it."""
        self.single: dict[Candidate, float] = {}
        """Seconds of those that were timed once only, since they seemed far behind."""
        self.message = ""

    @property
    def finished(self) -> bool:
        """True if there is nothing left to do."""
        return self.exhausted and not self.pending

    @property
    def best(self) -> float | None:
        """Fastest time known, in seconds."""
        return min((s for s in self.search.seconds.values() if s is not None), default=None)

    @property
    def failures(self) -> Counter[str]:
        """How many candidates failed in which way in this run."""
        return Counter({status: n for status, n in self.statuses.items() if status != Status.OK.value})

    @property
    def used_seconds(self) -> float | None:
        """Time of the configuration used before the run, as far as it is known."""
        return self.before if self.before is not None else self.search.seconds.get(self.used.key)

    @property
    def urgency(self) -> tuple[float, ...]:
        """Larger ones are searched first: start sets candidate by candidate, then by the gain to be expected."""
        asked = self.evaluations + self.pending
        if self.search.is_starting:
            return 1.0, -asked, self.weight * (self.job.program.operations + self.job.program.bytes_moved)
        return 0.0, 0.0, self._expected_gain(asked)

    def _expected_gain(self, asked: int) -> float:
        """Weighted seconds that further search may save: less the more was tried, and the longer without success."""
        seconds = self.best or self.reference or 0.0
        return self.weight * seconds / (1.0 + asked / 12.0) / (1.0 + (self.stale + self.pending) / 20.0)

    def choice(self, winner: Winner) -> Choice | None:
        """What the database's winner for this very stage means; None if it is no candidate here."""
        found = self.space.stored(winner.family, winner.configuration)
        if self.space.violated(found) is not None:
            return None
        return Choice(found.family, found.configuration, TUNED)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take note of a new measurement."""
        best = self.best
        seconds = statistics.median(outcome.samples) if outcome.status is Status.OK else None
        self.search.tell(candidate, seconds)
        if seconds is not None and len(outcome.samples) == 1:
            self.single[candidate] = seconds
        self.evaluations += 1
        self.statuses[outcome.status.value] += 1
        self.since_duel += seconds is not None
        improved = seconds is not None and (best is None or seconds < best * (1.0 - WORTHWHILE))
        self.stale = 0 if improved else self.stale + 1


def stage_tuners(
    stages: Sequence[Program],
    device: Device,
    store: Store,
    weights: Sequence[float] | None,
    constants: Sequence[Collection[str]] | None,
    source: FamilySource,
    seed: int,
) -> tuple[StageTuner, ...]:
    """A search for every different stage that launches anything; arguments as for `tuning.tune`."""
    found: dict[str, StageTuner] = {}
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
) -> StageTuner:
    space = stage_space(stage, device.target, source)
    used = choose(stage, device, store, constants, source)
    near = (space.nearest(w.family, w.configuration) for w in start_winners(stage, device, store, key))
    known = list(dict.fromkeys(c for c in near if c is not None))[:NEAR_WINNERS]
    start = [Candidate(used.family, used.configuration), *known, *space.defaults]
    search = StageSearch(space, start, seed, strategies=told(stage, device, store, key))
    tried = store.tried(device.identity, device.driver, GENERATOR_VERSION, key)
    single = {}
    for measured in tried.values():
        candidate = space.stored(measured.family, measured.configuration)
        if space.violated(candidate) is None:
            search.tell(candidate, measured.seconds)
            if measured.seconds is not None and len(measured.samples) == 1 and not measured.round:
                single[candidate] = measured.seconds
    fitting = {f.name: f for f in source(stage, device.target)}

    def lower(candidate: Candidate) -> Lowering:
        return fitting[candidate.family].lower(stage, device.target, candidate.configuration)

    last = list(fitting.values())[-1]  # the most general family is the one to trust
    reference = last.lower(stage, device.target, families.default(last, stage, device.target))
    text = program_text(stage.canonical)
    tuner = StageTuner(Job(key, stage, reference, constants), space, lower, search, start[0], weight, key, text)
    tuner.single.update(single)
    newest = max((m for m in tried.values() if m.seconds is not None), key=lambda m: m.created, default=None)
    tuner.undecided = newest is not None and not newest.round
    return tuner


__all__ = ["StageTuner", "stage_tuners"]
