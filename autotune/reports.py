"""What a tuning run says of itself, while it goes on and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tilewright.autotune.budget import Budget
from tilewright.autotune.choosing import Choice
from tilewright.tuning_db import Status


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
    bound: float | None = None
    """The least time that the device allows for this stage, in seconds; None where its limits were not measured."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How many candidates of all stages failed in which way."""

    @property
    def share(self) -> float | None:
        """The bound as a part of the fastest time: 1 is as fast as the device can be."""
        return self.bound / self.best if self.bound and self.best else None


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


__all__ = ["Event", "Progress", "StageReport", "TuningReport"]
