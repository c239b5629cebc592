"""Offsets in arenas: buffers that are never needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Sequence
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

    Large buffers are placed first, each in the first arena where it meets no other.
    """
    users: list[list[Lifetime]] = []
    spots: dict[str, Spot] = {}
    for b in sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name)):
        free = (n for n, group in enumerate(users) if not any(b.meets(other) for other in group))
        arena = next(free, len(users))
        if arena == len(users):
            users.append([])
        users[arena].append(b)
        spots[b.name] = Spot(arena, 0)
    return Arenas(spots, tuple(group[0].nbytes for group in users))


def _lowest(b: Lifetime, placed: Sequence[tuple[int, Lifetime]], alignment: int) -> int:
    """The lowest aligned offset at which `b` overlaps nothing that is needed at the same time."""
    offset = 0
    for start, other in sorted(((s, o) for s, o in placed if o.meets(b)), key=lambda p: p[0]):
        if offset + b.nbytes <= start:
            break
        offset = max(offset, -(-(start + other.nbytes) // alignment) * alignment)
    return offset
