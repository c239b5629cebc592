"""All-pairs covering samples of configuration spaces: most faults of a generator need one or two parameters' values.

Greedy, one row after another, as AETG does (D. M. Cohen, S. R. Dalal, M. L. Fredman, G. C. Patton: "The AETG system: an
approach to testing based on combinatorial design", IEEE Transactions on Software Engineering 23(7), 1997). Constraints
are met by searching each row with backtracking (M. B. Cohen, M. B. Dwyer, J. Shi: "Interaction testing of
highly-configurable systems in the presence of constraints", ISSTA 2007), so that pairs which no legal configuration has
are found out rather than asked for.

What is covered: every pair of parameter values that occurs in some space, and every value in every space that has it.
A row belongs to one space, so that programs are a parameter like any other.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tilewright.dsl.space import Configuration, Parameter, Space, Value

CANDIDATES = 3
"""Rows tried per row taken; AETG uses 50, which gains a few per cent of rows."""
STEPS = 150
"""Values tried in search of one row before another order of the parameters is tried."""
ORDERS = 6
"""Orders tried before a pair counts as impossible."""

Choice = tuple[str, Value]
Pair = tuple[Choice, Choice]
SPACE = ""
"""Stands for the space's name in pairs of a value and a space; no parameter is called so."""


@dataclass(frozen=True)
class Row:
    """One configuration of one of the spaces."""

    space: str
    configuration: Configuration


def covering(spaces: Mapping[str, Space], seed: int = 0) -> list[Row]:
    """Rows that cover every pair that can be covered, the same on every call; a space without parameters gets one."""
    rng = random.Random(seed)
    open_pairs: dict[Pair, list[str]] = {}
    for name, space in spaces.items():
        for pair in _pairs_of_space(name, space):
            open_pairs.setdefault(pair, []).append(name)
    rows = [Row(name, Configuration(())) for name, space in spaces.items() if not space.parameters]
    count = dict.fromkeys(spaces, 0)
    while open_pairs:
        pair, names = next(iter(open_pairs.items()))
        name = min(names, key=lambda n: count[n])
        best: Configuration | None = None
        gained: set[Pair] = set()
        for _ in range(CANDIDATES):
            found = _row(name, spaces[name], pair, open_pairs, rng)
            if found is None:
                break
            new = {p for p in pairs_of(name, found) if p in open_pairs}
            if best is None or len(new) > len(gained):
                best, gained = found, new
        if best is None:
            names.remove(name)
            if not names:
                del open_pairs[pair]
            continue
        rows.append(Row(name, best))
        count[name] += 1
        for covered in gained:
            del open_pairs[covered]
    return rows


def pairs_of(name: str, configuration: Mapping[str, Value]) -> Iterator[Pair]:
    """All pairs of a row: of two parameters' values, and of a value and the space."""
    yield from itertools.combinations(sorted(((SPACE, name), *configuration.items())), 2)


def _pairs_of_space(name: str, space: Space) -> Iterator[Pair]:
    choices = [[(SPACE, name)], *([(p.name, v) for v in p.values] for p in sorted(space.parameters, key=_name))]
    for one, other in itertools.combinations(choices, 2):
        yield from itertools.product(one, other)


def _name(p: Parameter) -> str:
    return p.name


def _row(
    name: str, space: Space, wanted: Pair, open_pairs: Mapping[Pair, list[str]], rng: random.Random
) -> Configuration | None:
    """A legal configuration with `wanted` in it, and greedily with many other open pairs; None if none was found.

    The parameters that `wanted` leaves free are taken in random order, each value with the most open pairs first.
    """
    fixed = dict(choice for choice in wanted if choice[0] != SPACE)
    rest = [p for p in space.parameters if p.name not in fixed]
    steps = itertools.count()

    def extend(chosen: dict[str, Value], depth: int, last: int) -> Configuration | None:
        if next(steps) > last or not _may_hold(space, chosen):
            return None
        if depth == len(rest):
            return Configuration.of(chosen)
        p = rest[depth]
        known = [(SPACE, name), *chosen.items()]
        order = sorted(p.values, key=lambda v: (-_gain(known, (p.name, v), open_pairs), rng.random()))
        for value in order:
            found = extend({**chosen, p.name: value}, depth + 1, last)
            if found is not None:
                return found
        return None

    for attempt in range(1, ORDERS + 1):
        rng.shuffle(rest)
        found = extend(fixed, 0, attempt * STEPS)
        if found is not None or next(steps) < attempt * STEPS:
            return found
    return None


def _gain(known: list[Choice], choice: Choice, open_pairs: Mapping[Pair, list[str]]) -> int:
    return sum((min(k, choice), max(k, choice)) in open_pairs for k in known)


def _may_hold(space: Space, chosen: Mapping[str, Value]) -> bool:
    """False if a constraint rules out what is chosen so far; one that asks for more (KeyError) waits."""
    partial = Configuration.of(chosen)
    for c in space.constraints:
        try:
            if not c.holds(partial):
                return False
        except KeyError:
            continue
    return True
