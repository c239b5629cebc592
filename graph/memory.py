"""Offsets in arenas: buffers that are never needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Lifetime:
    """A buffer that is needed from the launch at position ``first`` to that at ``last``, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """True if both are needed at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Spot:
    """Where a buffer lies."""

    arena: int
    offset: int
    """Bytes."""


@dataclass(frozen=True)
class Arenas:
    """Spots by buffer name, and the arenas' sizes in bytes."""

    spots: dict[str, Spot]
    sizes: tuple[int, ...]


def most_alive(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that are needed at one time."""
    changes: dict[int, int] = {}
    for b in lifetimes:
        changes[b.first] = changes.get(b.first, 0) + b.nbytes
        changes[b.last + 1] = changes.get(b.last + 1, 0) - b.nbytes
    return max(accumulate(changes[t] for t in sorted(changes)), default=0)


def assign(lifetimes: Sequence[Lifetime], alignment: int, limit: int) -> Arenas:
    """Spots for all buffers, aligned; one arena unless it would exceed `limit` bytes.

    Large buffers are placed first, each at the lowest offset where it meets no other. A buffer above `limit` gets an
    arena of its own (and the device refuses it).
    """
    waiting = sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name))
    spots: dict[str, Spot] = {}
    sizes: list[int] = []
    while waiting:
        placed: list[tuple[int, Lifetime]] = []
        left = []
        for b in waiting:
            offset = _lowest(b, placed, alignment)
            if placed and offset + b.nbytes > limit:
                left.append(b)
                continue
            placed.append((offset, b))
            spots[b.name] = Spot(len(sizes), offset)
        sizes.append(max(offset + b.nbytes for offset, b in placed))
        waiting = left
    return Arenas(spots, tuple(sizes))


def assign_whole(lifetimes: Sequence[Lifetime]) -> Arenas:
    """Spots at offset 0 only, for devices whose buffers should not be split: every arena serves buffers in turn.

    The best of three greedy ways (Y. Pisarchyk and J. Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020, section 4): large buffers first, each into the first arena that is free, or into the one that
    waits the shortest time before or after it; and buffers of the launch with most bytes first.
    """
    ways = (_by_size(lifetimes, _first), _by_size(lifetimes, _nearest), _by_breadth(lifetimes))
    arenas = min(ways, key=lambda found: sum(map(_largest, found)))
    spots = {b.name: Spot(n, 0) for n, arena in enumerate(arenas) for b in arena}
    return Arenas(spots, tuple(map(_largest, arenas)))


_Arena = list[Lifetime]
"""The buffers that one arena serves in turn."""


def _by_size(lifetimes: Sequence[Lifetime], choose: Callable[[Lifetime, Sequence[_Arena]], _Arena]) -> list[_Arena]:
    """Largest first, each in one of the free arenas, which are all large enough then."""
    arenas: list[_Arena] = []
    for b in sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name)):
        free = _free(arenas, b)
        if free:
            choose(b, free).append(b)
        else:
            arenas.append([b])
    return arenas


def _by_breadth(lifetimes: Sequence[Lifetime]) -> list[_Arena]:
    """By launches, those with most bytes alive first; each buffer in the arena that grows or is left empty least."""
    alive: dict[int, list[Lifetime]] = {}
    for b in lifetimes:
        for t in range(b.first, b.last + 1):
            alive.setdefault(t, []).append(b)
    arenas: list[_Arena] = []
    placed: set[str] = set()
    for t in sorted(alive, key=lambda t: (-sum(b.nbytes for b in alive[t]), t)):
        for b in sorted(alive[t], key=lambda b: (-b.nbytes, b.first, b.name)):
            if b.name in placed:
                continue
            placed.add(b.name)
            free = _free(arenas, b)
            fitting = [arena for arena in free if _largest(arena) >= b.nbytes]
            if fitting:
                min(fitting, key=_largest).append(b)
            elif free:
                max(free, key=_largest).append(b)
            else:
                arenas.append([b])
    return arenas


def _free(arenas: Sequence[_Arena], b: Lifetime) -> list[_Arena]:
    return [arena for arena in arenas if not any(b.meets(other) for other in arena)]


def _first(b: Lifetime, free: Sequence[_Arena]) -> _Arena:
    return free[0]


def _nearest(b: Lifetime, free: Sequence[_Arena]) -> _Arena:
    """The arena that is not used for the shortest time before or after `b`."""
    return min(free, key=lambda arena: min(max(b.first - o.last, o.first - b.last) for o in arena))


def _largest(arena: _Arena) -> int:
    return max(b.nbytes for b in arena)


def _lowest(b: Lifetime, placed: Sequence[tuple[int, Lifetime]], alignment: int) -> int:
    """The lowest aligned offset at which `b` overlaps nothing that is needed at the same time."""
    offset = 0
    for start, other in sorted(((s, o) for s, o in placed if o.meets(b)), key=lambda p: p[0]):
        if offset + b.nbytes <= start:
            break
        offset = max(offset, -(-(start + other.nbytes) // alignment) * alignment)
    return offset
