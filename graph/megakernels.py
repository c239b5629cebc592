"""Which neighbouring launches of a recipe one kernel does: those that are short beside what starting them costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tilewright.dsl.lowering import Launch
from tilewright.dsl.megakernel import COUNTERS, Part, can_be_part, counters, megakernel
from tilewright.dsl.target import Target
from tilewright.graph.recipe import Recipe, Role, StepLaunch

MOST_PARTS = 8
"""Launches per kernel: on an H100 the device takes 4 microseconds for each of them, and the host 10 to start all of
them; more take longer to compile."""
GROUPS_PER_UNIT = 4
"""(guess) Work-groups that a compute unit holds at a time. More of them would be held up by the registers and the local
memory of the other parts: on an H100, mobilenet_v2 in TF32 took 231 microseconds with this limit, 241 without."""
OPERATIONS_PER_UNIT = 8 << 20
"""(guess) See `BYTES_PER_UNIT`."""
BYTES_PER_UNIT = 128 << 10
"""(guess) With `OPERATIONS_PER_UNIT`, what a compute unit does in about the time in which the host starts a kernel.

Longer launches by themselves cost the device less than waiting for the part before: on an H100, vit_b_16 in f16 at
batch 16, whose kernels take 23 microseconds on average, was slower by a fifth where they were joined; at batch 1 it was
faster by a quarter.
"""
MOST_ITEMS = 320
"""Work-items of a work-group: those of 512 would leave 128 registers to each, for all parts of the kernel."""


@dataclass(frozen=True, eq=False)
class Started:
    """What is started in one go: a launch of the recipe, or several as one kernel."""

    launch: Launch
    arguments: Mapping[str, str]
    """Buffer name by kernel argument."""
    parts: tuple[StepLaunch, ...]

    @property
    def counters(self) -> int:
        """32-bit words that its work-groups count in: the buffer `counters_name`, zeros before the first run."""
        return counters(len(self.parts)) if len(self.parts) > 1 else 0


def counters_name(words: int) -> str:
    """The buffer of so many words that kernels count in; those of one plan share it, as they never run together."""
    return f"\0counters {words}"


def started(recipe: Recipe, target: Target) -> tuple[Started, ...]:
    """The launches of every run, in order, with short neighbours as one kernel where the target allows it."""
    memory = _Memory.of(recipe)
    result: list[Started] = []
    run: list[StepLaunch] = []

    def close() -> None:
        if len(run) > 1:
            result.append(_joined(run, target, memory))
        else:
            result.extend(Started(p.launch, p.arguments, (p,)) for p in run)
        run.clear()

    for p in recipe.launches:
        if not _is_short(p, target):
            close()
            result.append(Started(p.launch, p.arguments, (p,)))
            continue
        if len(run) == MOST_PARTS or (run and not _go_together(run[-1].launch, p.launch, target)):
            close()
        run.append(p)
    close()
    return tuple(result)


@dataclass(frozen=True)
class _Memory:
    """What the buffers of a recipe share."""

    same: Mapping[str, str]
    """For each temporary the largest one that begins where it does."""
    changing: Collection[str]
    """Buffers that runs write, or that their callers may."""

    @staticmethod
    def of(recipe: Recipe) -> _Memory:
        first: dict[object, str] = {}
        same: dict[str, str] = {}
        for t in sorted(recipe.temporaries, key=lambda t: -t.nbytes):
            same |= dict.fromkeys((t.name, *t.heirs), first.setdefault(recipe.arenas.spots[t.name], t.name))
        given = (s.name for s in recipe.buffers.values() if s.role in (Role.INPUT, Role.OUTPUT))
        return _Memory(same, {*same, *given})


def _is_short(p: StepLaunch, target: Target) -> bool:
    """Whether a launch can be a part and takes no longer than its start."""
    if not can_be_part(p.launch, target):
        return False
    part, units = Part(p.launch, p.launch.arguments), target.compute_units
    if part.items > MOST_ITEMS or part.groups > GROUPS_PER_UNIT * units:
        return False
    return p.step.label.operations <= OPERATIONS_PER_UNIT * units and p.step.label.bytes_moved <= BYTES_PER_UNIT * units


def _go_together(one: Launch, other: Launch, target: Target) -> bool:
    """Whether one kernel can do both."""
    assert target.handoff is not None
    return target.handoff.some_items or Part(one, one.arguments).items == Part(other, other.arguments).items


def _joined(run: Sequence[StepLaunch], target: Target, memory: _Memory) -> Started:
    """Launches as one kernel. Its arguments are numbered, so that equal parts of networks are equal sources."""
    argument: dict[str, str] = {}
    parts = []
    for p in run:
        names = [memory.same.get(p.arguments[a], p.arguments[a]) for a in p.launch.arguments]
        parts.append(Part(p.launch, tuple(argument.setdefault(n, f"a{len(argument)}") for n in names)))
    launch = megakernel(parts, [a for n, a in argument.items() if n not in memory.changing], target)
    names_by_argument = {a: n for n, a in argument.items()} | {COUNTERS: counters_name(counters(len(parts)))}
    return Started(launch, names_by_argument, tuple(run))


__all__ = ["Started", "counters_name", "started"]
