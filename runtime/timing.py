"""Measuring how long launches take."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.runtime.execution import BoundLaunch, Context

SHORTEST_SAMPLE = 2e-4
"""Seconds a sample should last at least; clocks and device timers are trusted to about 1 µs."""
_LONGEST_TRAIN = 256
_MOST_EVENTS = 2048


def by_clock(owner: Context, launches: Sequence[BoundLaunch], repeats: int, warmup: int) -> list[float]:
    """Wall seconds of enqueueing and finishing the sequence, per repeat."""
    owner.enqueue(launches)
    owner.finish()
    for _ in range(warmup - 1):
        _clock(owner, launches, 1)
    train = 1
    for _ in range(2):  # the first run of an idle device is slow and asks for too short a train
        train = max(train, _train(_clock(owner, launches, train)))
    return [_clock(owner, launches, train) for _ in range(repeats)]


def _clock(owner: Context, launches: Sequence[BoundLaunch], train: int) -> float:
    start = time.perf_counter()
    for _ in range(train):
        owner.enqueue(launches)
    owner.finish()
    return max((time.perf_counter() - start) / train, 1e-9)


def _train(seconds: float, launches: int = 1) -> int:
    """How many runs of a sequence make a sample long enough to be exact."""
    wanted = math.ceil(SHORTEST_SAMPLE / max(seconds, 1e-9))
    return max(1, min(wanted, _LONGEST_TRAIN, _MOST_EVENTS // max(1, launches)))


def by_events(owner: Context, launches: Sequence[BoundLaunch], repeats: int, warmup: int) -> list[float]:
    """Seconds by device events: the sum over the sequence's kernels, per repeat.

    Gaps between kernels are left out: on this queue they are the price of profiling, not of the kernels. Falls back
    to the wall clock where the driver's timer says nothing (some return zeros).
    """
    owner.enqueue(launches)
    owner.finish()
    for _ in range(warmup - 1):
        _events(owner, launches, 1)
    first = _events(owner, launches, 1)
    if not any(not launch.is_empty for launch in launches) or not 0 < first < 1e6:
        return by_clock(owner, launches, repeats, 1)
    train = _train(first, len(launches))
    return [max(_events(owner, launches, train), 1e-9) for _ in range(repeats)]


def _events(owner: Context, launches: Sequence[BoundLaunch], train: int) -> float:
    return sum(_durations(owner, list(launches) * train)) / train


def each(owner: Context, launches: Sequence[BoundLaunch]) -> list[float]:
    """Seconds of every launch in one run."""
    owner.finish()
    return _durations(owner, launches)


def _durations(owner: Context, launches: Sequence[BoundLaunch]) -> list[float]:
    events = owner.enqueue_profiled(launches)
    owner.finish_profiled()
    return [0.0 if event is None else max(0, event.profile.end - event.profile.start) * 1e-9 for event in events]
