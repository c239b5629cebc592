"""In which order the dimensions of a value lie in memory, where row-major is not what its neighbours ask for.

A value that steps read through views (heads merged back into rows) is written in the order in which none of these
needs a copy; where that leaves a choice, in the order of the operand that it is computed from, so that batch and
position remain one run of rows through a whole network whatever order the model names them in.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from tilewright.dsl.program import Tensor, contiguous_strides, reads
from tilewright.graph.folds import Fold, fold, folded
from tilewright.graph.steps import Item, JoinStep, Steps, ViewStep
from tilewright.ops import Reshaped, View

Order = tuple[int, ...]
"""Dimensions, the outermost in memory first."""
RANKS = range(3, 6)
"""Ranks of values whose orders are tried; more have too many."""


def ordered_strides(shape: tuple[int, ...], order: Order) -> tuple[int, ...]:
    """Strides of a tensor without gaps whose dimensions lie in this order."""
    moved = contiguous_strides(tuple(shape[d] for d in order))
    return tuple(moved[order.index(d)] for d in range(len(shape)))


def memory_orders(steps: Steps, settled: Mapping[str, Tensor], fixed: Collection[str]) -> dict[str, Order]:
    """The orders of values that are not to be row-major.

    ``settled`` has the places of values that are decided already, ``fixed`` names values that stay row-major.
    """
    work = _Orders(steps, dict(settled), _paths(steps))
    for step in steps.steps:
        value = steps.written(step)
        if isinstance(step, ViewStep):
            work.views[step.output] = (step.source, step.views)
        elif isinstance(step, Item) and value not in settled and value not in fixed:
            work.decide(step, value)
    return work.orders


def _paths(steps: Steps) -> Mapping[str, list[tuple[View, ...]]]:
    """For each value that a step makes, the chains of views through which programs read it."""
    chains: dict[str, tuple[str, tuple[View, ...]]] = {}
    found: dict[str, list[tuple[View, ...]]] = {}
    for step in steps.steps:
        if isinstance(step, ViewStep):
            root, before = chains.get(step.source, (step.source, ()))
            chains[step.output] = root, (*before, *step.views)
        elif isinstance(step, Item):
            for t in step.program.inputs:
                reference = steps.references[t.name]
                root, before = chains.get(reference.value, (reference.value, ()))
                found.setdefault(root, []).append((*before, Reshaped(reference.shape)))
        elif isinstance(step, JoinStep):
            continue
    return found


@dataclass
class _Orders:
    """The walk over the steps."""

    steps: Steps
    places: dict[str, Tensor]
    paths: Mapping[str, list[tuple[View, ...]]]
    views: dict[str, tuple[str, tuple[View, ...]]] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)

    def decide(self, item: Item, value: str) -> None:
        """Choose the order of what an item makes."""
        shape, dtype = self.steps.graph.values[value].sizes, item.output.dtype
        plain = tuple(range(len(shape)))
        if len(shape) not in RANKS or item.output.shape != shape or 0 in shape:
            return
        wanted, inner = self._operand_order(item)
        if self._copies(shape, dtype, plain, value) or list(wanted) != sorted(wanted):

            def cost(o: Order) -> tuple[int, bool, int, int]:
                copies = self._copies(shape, dtype, o, value)
                return copies, o[-1] != inner, _inversions(o, wanted), _inversions(o, plain)

            best = min(itertools.permutations(plain), key=cost)
            if best != plain:
                self.orders[value] = best
                self.places[value] = Tensor(value, dtype, shape, ordered_strides(shape, best))

    def _copies(self, shape: tuple[int, ...], dtype: object, order: Order, value: str) -> int:
        """How many reads of the value need a copy if it lies in this order."""
        place = fold(Tensor("x", dtype, shape, ordered_strides(shape, order)))  # type: ignore[arg-type]
        return sum(_through(place, chain) is None for chain in self.paths.get(value, []))

    def _operand_order(self, item: Item) -> tuple[Order, int]:
        """The dimensions of an item's output that index its operand, in the operand's order, and the innermost one.

        That is the one whose neighbours are neighbours in the operand, else the last.
        """
        statement = item.program.statements[-1]
        names = [i.name for i in statement.indices]
        best: dict[str, int] = {}
        for read in reads(statement.value):
            if read.tensor not in self.steps.references:
                continue
            place = self._place(read.tensor)
            if place is None:
                continue
            strides = {a.single: s for a, s, n in zip(read.index, place.strides, place.shape, strict=True) if n > 1}
            found = {name: strides[name] for name in names if name in strides}
            if len(found) > len(best):
                best = found
        order = tuple(names.index(name) for name in sorted(best, key=lambda name: -best[name]))
        return order, next((d for d in order if best[names[d]] == 1), len(names) - 1)

    def _place(self, tensor: str) -> Tensor | None:
        """Where an operand lies, under the shape in which a program reads it; None for constants and copies."""
        reference = self.steps.references[tensor]
        chain: tuple[View, ...] = (Reshaped(reference.shape),)
        value = reference.value
        while value in self.views:
            value, views = self.views[value]
            chain = (*views, *chain)
        if value not in self.steps.graph.values or value in self.steps.graph.constants:
            return None
        known = self.steps.graph.values[value]
        return _through(fold(self.places.get(value, Tensor(value, known.dtype, known.sizes))), chain)


def _through(place: Fold | None, chain: tuple[View, ...]) -> Tensor | None:
    """What a chain of views sees of a place, None if that takes a copy."""
    for view in chain:
        place = None if place is None else folded(place, view)
    return None if place is None else place.tensor


def _inversions(order: Order, wanted: Order) -> int:
    """Pairs of dimensions that `order` has the other way round than `wanted`."""
    return sum(order.index(a) > order.index(b) for a, b in _pairs(wanted))


def _pairs(order: Order) -> Iterator[tuple[int, int]]:
    return itertools.combinations(order, 2)
