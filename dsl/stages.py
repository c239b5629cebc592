"""From a Program to stages: Programs that one kernel each computes.

A stage is, in this order of preference,

* a chain: neighbouring statements that feed each other and that a family of `CHAINS` computes in one kernel, keeping
  what lies between them on the chip (softmax, layer norm, attention);
* siblings: neighbouring statements over the same output indices whose reductions run over the same ranges and that do
  not read each other (a sum and a sum of squares in one pass);
* a single statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.compose import hoist, inline, touches, unused
from tilewright.dsl.families import CHAINS
from tilewright.dsl.precision import allowing_tf32, has_tf32
from tilewright.dsl.program import (
    Index,
    Program,
    Reduce,
    Statement,
    all_indices,
    rename_reductions,
    substitute_indices,
    walk,
)
from tilewright.dsl.target import Target

LONGEST_CHAIN = 24
"""Most statements that are tried as one chain."""


def split(program: Program, target: Target) -> tuple[Program, ...]:
    """The program as stages in order, for a device.

    Tensors keep their names; an intermediate that several stages touch becomes the output of one and an input of the
    later ones.
    """
    program = hoist(inline(program))
    if program.precision == "tf32" and not has_tf32(target):
        program = replace(program, precision="fp32")
    reducing = [n for n, s in enumerate(program.statements) if any(isinstance(e, Reduce) for e in walk(s.value))]
    stages: list[Program] = []
    at = 0
    while at < len(program.statements):
        stage = _chain(program, at, target, reducing) or _siblings(program, at)
        stages.append(stage)
        at += len(stage.statements)
    return tuple(stages)


def _chain(program: Program, at: int, target: Target, reducing: Sequence[int]) -> Program | None:
    """The longest stage from statement `at` on that one kernel computes as a chain, or None.

    ``reducing`` are the numbers of the statements with reductions: a chain has at least one.
    """
    first = next((n for n in reducing if n >= at), None)
    if first is None:  # what only maps is no chain
        return None
    last = min(len(program.statements), at + LONGEST_CHAIN)
    for end in range(last, max(at + 1, first), -1):
        stage = _stage(program, program.statements[at:end])
        if any(family.refusal(stage, target) is None for family in CHAINS):
            return stage
    return None


def _siblings(program: Program, at: int) -> Program:
    group = [program.statements[at]]
    for s in program.statements[at + 1 :]:
        if not _may_join(group, s):
            break
        group.append(s)
    return _stage(program, [_aligned(s, group[0].indices) for s in group])


def _may_join(group: list[Statement], s: Statement) -> bool:
    first = group[0]
    made = {g.target for g in group}
    return _loops(first) == _loops(s) and bool(_loops(s)[1]) and not any(r.tensor in made for r in touches(s.value))


def _loops(s: Statement) -> tuple[tuple[int, ...], tuple[tuple[int | bool, ...], ...]]:
    """Extents of the output indices, and of each distinct reduction with whether it is a prefix."""
    ranges = {(n.until is not None, *(i.extent for i in n.indices)) for n in walk(s.value) if isinstance(n, Reduce)}
    return tuple(i.extent for i in s.indices), tuple(sorted(ranges))


def _stage(program: Program, group: Sequence[Statement]) -> Program:
    """Some of the program's statements as a Program; what nothing outside reads becomes an intermediate."""
    made = {s.target for s in group}
    outside = {r.tensor for s in program.statements if s.target not in made for r in touches(s.value)}
    outside |= {t.name for t in program.outputs}
    inside = dict.fromkeys(r.tensor for s in group for r in touches(s.value))
    names = {i.name for s in group for i in all_indices(s)} | inside.keys()

    def written(name: str) -> bool:
        return name in outside or name not in inside

    tensors = program.tensors
    stage = Program(
        program.name,
        tuple(tensors[name] for name in inside if name not in made),
        tuple(
            tensors[s.target] if s.target in inside else replace(tensors[s.target], pad=0.0)
            for s in group
            if written(s.target)
        ),
        tuple(group),
        tuple(tensors[s.target] for s in group if not written(s.target)),
        hints=tuple(h for h in program.hints if h.subject in names or not h.subject),
        limits=program.limits,
        fast_math=program.fast_math,
    )
    return allowing_tf32(stage) if program.precision == "tf32" else stage


def _aligned(s: Statement, indices: tuple[Index, ...]) -> Statement:
    """The statement with its output indices named as in `indices` (its reductions are renamed out of their way)."""
    if s.indices == indices:
        return s
    wanted = {i.name: j.name for i, j in zip(s.indices, indices, strict=True)}
    taken = {j.name for j in indices}
    clash: dict[str, str] = {}
    for i in all_indices(s)[len(s.indices) :]:
        if i.name in taken:
            clash[i.name] = unused(i.name, taken | set(clash.values()))
    value = rename_reductions(s.value, clash)
    value = substitute_indices(value, {old: Affine.index(new) for old, new in wanted.items()})
    return Statement(s.target, indices, value)
