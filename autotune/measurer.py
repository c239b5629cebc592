"""What the tuner asks of whatever measures its candidates."""

from __future__ import annotations

from typing import Protocol

from tilewright.autotune.compiling import Compiled
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.supervisor import Job
from tilewright.dsl.lowering import Lowering


class Measurer(Protocol):
    """What measures candidates: `Supervisor`, or a simulation."""

    @property
    def look_ahead(self) -> int:
        """So many candidates should be under way at any time; 1 where each is compiled when it is measured."""

    @property
    def slots(self) -> int:
        """So many candidates may be measured at once: the number of devices. `prepare`, `evaluate` and `compare` are
        called by as many threads."""

    def compile(self, lowering: Lowering) -> Compiled:
        """Begin to compile a candidate."""

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


__all__ = ["Measurer"]
