"""How often a candidate is timed, and whether one is faster than another: few repeats first, more for contenders.

A candidate is raced against the fastest time known: as soon as its own repeats say with confidence that it is slower,
it gets no more of them (O. Maron, A. W. Moore, "Hoeffding races", NIPS 1993; here with Student's t on log times). One
that looks faster has won nothing yet: it and the incumbent are timed again in turns, so that a clock that has changed
in the meantime meets both alike, and it wins if the ratios of the pairs say so (Student, "The probable error of a
mean", Biometrika 6, 1908). What is undecided then stays with the incumbent, so that winners do not change by chance.

What else runs on a machine makes a run slower, by any factor, and never faster. So a run's time bounds a candidate's
from above and proves nothing from below: the fastest run counts (J. Chen, J. Revels, "Robust benchmarking in noisy
environments", HPEC 2016), and none is dropped for one slow run while another says that it may be fast. One whose every
early run was slow may still have been disturbed all the time. Before a stage is decided, some of those are looked at
once more, long after: disturbances of runs that lie that far apart are independent, so that a share p of lost
candidates becomes p squared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

_Key = TypeVar("_Key", bound=Hashable)

CONFIDENCE = 0.95
"""Of a verdict that one candidate is faster than another."""
DROPPED = 0.99
"""Of a verdict that a candidate is slower than the best, after which it is not timed further."""
DRIFT = 0.02
"""The best was timed some time ago: by so much the clock may have changed since, without anybody being faster."""
FAR_BEHIND = 1.5
"""A candidate of which every run up to the first repeat is this much slower than the best is not timed further."""
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
LOOKS = 0.05
"""Of the candidates of a stage, at most such a share is looked at once more; rounded up."""
SHARED = 3.0
"""A run that shares its cores is this much slower, at most"""
SLICES = 0.05
"""and waits so many seconds for others' time slices, each of which lasts some milliseconds."""


def repeats(samples: Sequence[float], best: float | None, bound: float = math.inf) -> int:
    """How many more repeats a candidate gets, 0 if there are enough.

    ``best`` is the fastest time known and ``bound`` a time that one of the candidate's runs is known not to have
    exceeded before its repeats, both in seconds.
    """
    count = len(samples)
    if count and best is not None:
        if min(samples[0], bound) > FAR_BEHIND * best:
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


def second_looks(single: Mapping[_Key, float], best: float, measured: int) -> list[_Key]:
    """Which candidates that one repeat has dropped are looked at once more, the most promising first.

    ``single`` gives their seconds, ``best`` is the fastest time known, in seconds too, and ``measured`` the number of
    candidates of the stage that were measured. Large disturbances are rarer than small ones and nothing else is known
    of any of them, so the nearest to the best is the likeliest to be as fast as that. A time that no disturbance
    explains is left out: one look takes a handful of runs, none longer than `SHARED` times the best and `SLICES`.
    """
    plausible = sorted((s, n) for n, s in enumerate(single.values()) if s <= SHARED * best + SLICES)
    keys = list(single)
    return [keys[n] for _, n in plausible[: math.ceil(LOOKS * measured)]]


def is_contender(seconds: float, best: float) -> bool:
    """Whether a candidate's second look puts it back into the race; both in seconds."""
    return seconds <= OUT_OF_THE_RACE * best


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


__all__ = ["RETIMED", "is_contender", "is_faster", "is_slower", "repeats", "second_looks", "undecided", "winner"]
