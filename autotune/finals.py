"""A stage's final: its fastest candidates and the configuration used so far, timed in turns on one device.

Candidates that a single repeat has dropped may have been disturbed. The most promising of them are timed once more,
and those that turn out fast take part (`racing.second_looks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.autotune import racing
from tilewright.autotune.candidates import Candidate
from tilewright.autotune.measurer import Measurer
from tilewright.autotune.messages import Compared
from tilewright.autotune.stages import StageTuner
from tilewright.autotune.supervisor import StageError

FINALISTS = 3
ROUNDS = 7
LONGEST_DUEL = 0.1
"""Seconds of a run from which on candidates are timed in turns in the final alone."""


@dataclass(frozen=True)
class InTurns:
    """Candidates that were timed in turns, and their times."""

    candidates: tuple[Candidate, ...]
    compared: Compared


@dataclass(frozen=True)
class Final:
    """What a final has found."""

    decided: InTurns
    incumbent: int
    """Which of them stays where nothing else is proven faster."""
    looked: InTurns | None
    """What was looked at once more before."""


def is_due(tuner: StageTuner) -> bool:
    """Whether there is anything to decide."""
    return bool(tuner.evaluations or tuner.undecided) and len(_finalists(tuner)) > 1


def final(tuner: StageTuner, measurer: Measurer) -> Final | None:
    """Look again, then time the finalists in turns; None if that fails, and what the search has measured stands."""
    try:
        finalists = _finalists(tuner)
        looked = _second_look(tuner, measurer, finalists)
        seconds = {c.key: tuner.search.seconds[c.key] or 0.0 for c in finalists}
        if looked is not None:
            for candidate, (found,) in zip(looked.candidates, looked.compared.samples, strict=True):
                if racing.is_contender(found, tuner.best or found):
                    finalists.append(candidate)
                    seconds[candidate.key] = found
        incumbent = finalists.index(tuner.used) if tuner.used in finalists else 0
        compared = _compared(tuner, measurer, finalists, incumbent, max(seconds.values()))
    except StageError:
        return None
    return None if compared is None else Final(InTurns(tuple(finalists), compared), incumbent, looked)


def final_seconds(tuner: StageTuner, overhead: float) -> float:
    """About what a stage's final takes: each sample is some runs, and a candidate costs as much again as before."""
    seconds = max(tuner.best or 0.0, 2e-4)
    looks = len(_looks(tuner, ())) * (overhead + 4 * seconds)
    return (FINALISTS + 1) * (overhead + 7 * _rounds(seconds) * seconds) + looks


def _finalists(tuner: StageTuner) -> list[Candidate]:
    found = tuner.search.best(FINALISTS)
    if tuner.search.seconds.get(tuner.used.key) is not None and tuner.used.key not in {c.key for c in found}:
        found.append(tuner.used)
    return found


def _looks(tuner: StageTuner, others: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that get a second look; none of the others, which are timed again anyway."""
    single = {c: s for c, s in tuner.single.items() if c not in others}
    return racing.second_looks(single, tuner.best or 0.0, len(tuner.search.seconds))


def _second_look(tuner: StageTuner, measurer: Measurer, finalists: Sequence[Candidate]) -> InTurns | None:
    """One more time of every candidate that gets it; None if there is none, or it failed."""
    again = _looks(tuner, finalists)
    if not again:
        return None
    lowerings = tuple(tuner.lower(c) for c in again)
    compared = measurer.compare(tuner.job, lowerings, 1, max(tuner.single[c] for c in again))
    return None if compared is None else InTurns(tuple(again), compared)


def _compared(
    tuner: StageTuner, measurer: Measurer, finalists: Sequence[Candidate], incumbent: int, slowest: float
) -> Compared | None:
    """All finalists in turns; the fastest and the incumbent more often where that does not decide between them."""
    lowerings = tuple(tuner.lower(c) for c in finalists)
    first = measurer.compare(tuner.job, lowerings, _rounds(slowest), slowest)
    closest = None if first is None else racing.undecided(first.samples, incumbent)
    if first is None or closest is None or slowest > LONGEST_DUEL:
        return first
    pair = (incumbent, closest)
    both = tuple(lowerings[n] for n in pair)
    more = measurer.compare(tuner.job, both, 2 * _rounds(slowest), slowest)
    if more is None or more.host != first.host:
        return first
    samples = list(first.samples)
    for n, further in zip(pair, more.samples, strict=True):
        samples[n] += further
    return replace(first, samples=tuple(samples))


def _rounds(slowest: float) -> int:
    return ROUNDS if slowest < 0.02 else 3


__all__ = ["LONGEST_DUEL", "ROUNDS", "Final", "InTurns", "final", "final_seconds", "is_due"]
