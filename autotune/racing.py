"""How often a candidate is timed, and whether one is faster than another: few repeats first, more for contenders.

A candidate is raced against the fastest time known: as soon as its own repeats say with confidence that it is slower,
it gets no more of them (O. Maron, A. W. Moore, "Hoeffding races", NIPS 1993; here with Student's t on log times). One
that looks faster has won nothing yet: it and the incumbent are timed again in turns, so that a clock that has changed
in the meantime meets both alike, and it wins if the ratios of the pairs say so (Student, "The probable error of a
mean", Biometrika 6, 1908). What is undecided then stays with the incumbent, so that winners do not change by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
"""Of a verdict that one candidate is faster than another."""
DROPPED = 0.99
"""Of a verdict that a candidate is slower than the best, after which it is not timed further."""
DRIFT = 0.02
"""The best was timed some time ago: by so much the clock may have changed since, without anybody being faster."""
FAR_BEHIND = 1.5
"""A candidate whose first repeat is this much slower than the best is not timed further."""
OUT_OF_THE_RACE = 1.15
"""Nor is one whose fastest of three repeats is this much slower."""
ROUNDS = (1, 3, 6, 9)
"""Repeats after which it is looked whether there shall be more."""
LONG_SAMPLE = 0.25
"""Seconds from which on a run is exact enough to need fewer repeats."""
ENOUGH = 3
"""Repeats of such runs."""
RETIMED = 25
"""After so many candidates that work, the incumbent is timed again in turns with the next one, however fast that is."""


def repeats(samples: Sequence[float], best: float | None) -> int:
    """How many more repeats a candidate gets, 0 if there are enough; ``best`` is the fastest time known, in seconds."""
    count = len(samples)
    if count and best is not None:
        if samples[0] > FAR_BEHIND * best:
            return 0
        if count >= ENOUGH and (min(samples) > OUT_OF_THE_RACE * best or is_slower(samples, best * (1.0 + DRIFT))):
            return 0
    if count >= ENOUGH and min(samples) > LONG_SAMPLE:
        return 0
    return next((n - count for n in ROUNDS if n > count), 0)


def is_slower(samples: Sequence[float], seconds: float, confidence: float = DROPPED) -> bool:
    """True if samples come from times above `seconds` with this confidence: one-sided t of their logarithms."""
    return _is_below(-(np.log(samples) - math.log(seconds)), confidence)


def is_faster(challenger: Sequence[float], incumbent: Sequence[float], confidence: float = CONFIDENCE) -> bool:
    """True if the challenger is faster with this confidence, by samples taken in turns: paired t of log ratios.

    The k-th sample of both belong together; those of one that has more are left out.
    """
    count = min(len(challenger), len(incumbent))
    return _is_below(np.log(challenger[:count]) - np.log(incumbent[:count]), confidence)


def _is_below(values: np.ndarray, confidence: float) -> bool:
    """True if the mean of what values are drawn from is below zero, with this confidence."""
    from scipy.special import stdtr  # takes a while to import, and many measuring processes never need it

    if len(values) < 2:
        return False
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation < 1e-12:
        return mean < -1e-12
    return bool(stdtr(len(values) - 1, mean / (deviation / math.sqrt(len(values)))) < 1.0 - confidence)


def winner(samples: Sequence[Sequence[float]], incumbent: int) -> int:
    """Which of several candidates timed in turns wins: the fastest that is faster than the incumbent, else that one."""
    for n in _challengers(samples, incumbent):
        if is_faster(samples[n], samples[incumbent]):
            return n
    return incumbent


def undecided(samples: Sequence[Sequence[float]], incumbent: int) -> int | None:
    """The candidate that looks fastest, if nothing tells yet that it is faster than the incumbent; else None."""
    first = next(iter(_challengers(samples, incumbent)), None)
    return None if first is None or is_faster(samples[first], samples[incumbent]) else first


def _challengers(samples: Sequence[Sequence[float]], incumbent: int) -> list[int]:
    """Those that look faster than the incumbent, the fastest first."""
    medians = [statistics.median(s) for s in samples]
    order = sorted(range(len(samples)), key=lambda n: medians[n])
    return [n for n in order if medians[n] < medians[incumbent]]


__all__ = ["RETIMED", "is_faster", "is_slower", "repeats", "undecided", "winner"]
