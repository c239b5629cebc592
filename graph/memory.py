"""Offsets in arenas: buffers that are never needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True)
class Lifetime:
    """A buffer that is needed from the launch at position ``first`` to that at ``last``, both included."""

    name: str
    nbytes: int
    first: int
    last: int
    heirs: tuple[str, ...] = ()
    """Buffers of as many bytes that take the memory over, one after the other, until ``last``."""

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

    @property
    def nbytes(self) -> int:
        """Bytes of all arenas."""
        return sum(self.sizes)


def most_alive(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that are needed at one time."""
    changes: dict[int, int] = {}
    for b in lifetimes:
        changes[b.first] = changes.get(b.first, 0) + b.nbytes
        changes[b.last + 1] = changes.get(b.last + 1, 0) - b.nbytes
    return max(accumulate(changes[t] for t in sorted(changes)), default=0)


def _orders(lifetimes: Sequence[Lifetime]) -> Iterator[list[Lifetime]]:
    """Orders in which to place buffers: by size, where among equal ones those needed first, last or longest are ahead.

    In the last order those come first that are needed when most is.
    """
    yield sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name))
    yield sorted(lifetimes, key=lambda b: (-b.nbytes, -b.last, b.name))
    yield sorted(lifetimes, key=lambda b: (-b.nbytes, b.first - b.last, b.name))
    moments = {b.first for b in lifetimes}
    crowded = max(moments, key=lambda t: sum(b.nbytes for b in lifetimes if b.first <= t <= b.last), default=0)
    yield sorted(lifetimes, key=lambda b: (not b.first <= crowded <= b.last, -b.nbytes, b.first, b.name))


def _best(attempts: Iterator[Arenas], least: int) -> Arenas:
    """The smallest of some; those behind the first that takes the `least` there is are not made."""
    best: Arenas | None = None
    for found in attempts:
        if best is None or found.nbytes < best.nbytes:
            best = found
        if best.nbytes <= least:
            break
    return best or Arenas({}, ())


def assign(lifetimes: Sequence[Lifetime], alignment: int, limit: int) -> Arenas:
    """Spots for all buffers, aligned; one arena unless it would exceed `limit` bytes.

    Buffers are placed in several orders, large ones first, each at the lowest offset where it meets no other. A buffer
    above `limit` gets an arena of its own (and the device refuses it).
    """
    attempts = (_packed(order, alignment, limit) for order in _orders(lifetimes))
    return _best(attempts, most_alive(lifetimes))


def _packed(order: Sequence[Lifetime], alignment: int, limit: int) -> Arenas:
    """`assign` in one order."""
    waiting = list(order)
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


def assign_apart(lifetimes: Sequence[Lifetime], alignment: int) -> Arenas:
    """Spots for devices on which parts of one buffer must not overlap, even if they are used one after the other.

    An arena serves buffers in turn as a whole, from offset 0, or cut into parts once and for all, of which each serves
    buffers in turn. Large buffers are placed first: in the smallest part that is free, else in a part that is cut from
    the smallest arena with room left, else in a whole arena; a new arena is as large as its first buffer. From which
    size on a buffer takes a whole arena rather than a part beside which little is left: the best of some is taken.
    """
    attempts = (_apart(order, alignment, share) for order in _orders(lifetimes) for share in (0.5, 0.75))
    return _best(attempts, most_alive(lifetimes))


def _apart(order: Sequence[Lifetime], alignment: int, share: float) -> Arenas:
    """`assign_apart` in one order, with first parts of at most `share` of their arenas."""
    arenas: list[_Arena] = []
    spots: dict[str, Spot] = {}
    for b in order:
        places = [place for n, arena in enumerate(arenas) for place in _places(n, arena, b, alignment, share)]
        if not places:
            arenas.append(_Arena(_room(b)))
            places = [_Place(2, b.nbytes, len(arenas) - 1, 0)]
        place = min(places, key=lambda p: (p.rank, p.room, p.arena, p.offset))
        arenas[place.arena].take(place, b)
        spots[b.name] = Spot(place.arena, place.offset)
    return Arenas(spots, tuple(arena.size for arena in arenas))


@dataclass
class _Part:
    """A part of an arena, and what it serves in turn."""

    offset: int
    size: int
    users: list[Lifetime]

    def is_free(self, b: Lifetime) -> bool:
        return not any(b.meets(user) for user in self.users)


@dataclass(frozen=True)
class _Place:
    """Where a buffer might go: a part that there is (0), one that would be cut (1), or the whole (2)."""

    rank: int
    room: int
    """Bytes of the part, or of the arena."""
    arena: int
    offset: int


@dataclass
class _Arena:
    """A buffer of the device, and what it serves as a whole and in parts, which lie one after the other."""

    size: int
    whole: list[Lifetime] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)

    def end(self, alignment: int) -> int:
        """Where the next part would begin."""
        last = self.parts[-1] if self.parts else _Part(0, 0, [])
        return -(-(last.offset + last.size) // alignment) * alignment

    def take(self, place: _Place, b: Lifetime) -> None:
        if place.rank == 2:
            self.whole.append(b)
        elif place.rank == 1:
            self.parts.append(_Part(place.offset, _room(b), [b]))
        else:
            next(p for p in self.parts if p.offset == place.offset).users.append(b)


def _room(b: Lifetime) -> int:
    """Bytes for a buffer: at least one, so that no two parts begin at one place."""
    return max(b.nbytes, 1)


def _places(number: int, arena: _Arena, b: Lifetime, alignment: int, share: float) -> Iterator[_Place]:
    """Where `b` may go in an arena."""
    if any(b.meets(user) for user in arena.whole):
        return
    for part in arena.parts:
        if part.size >= _room(b) and part.is_free(b):
            yield _Place(0, part.size, number, part.offset)
    end = arena.end(alignment)
    small = _room(b) <= share * arena.size
    if end + _room(b) <= arena.size and (arena.parts or small):
        yield _Place(1, arena.size, number, end)
    elif _room(b) <= arena.size and all(part.is_free(b) for part in arena.parts):
        yield _Place(2, arena.size, number, 0)


def _lowest(b: Lifetime, placed: Sequence[tuple[int, Lifetime]], alignment: int) -> int:
    """The lowest aligned offset at which `b` overlaps nothing that is needed at the same time."""
    offset = 0
    for start, other in sorted(((s, o) for s, o in placed if o.meets(b)), key=lambda p: p[0]):
        if offset + b.nbytes <= start:
            break
        offset = max(offset, -(-(start + other.nbytes) // alignment) * alignment)
    return offset
