"""Between which two integers the elements of a value lie, as far as that follows from constants and operators.

Interval arithmetic (Moore, "Interval Analysis", 1966) over the nodes of a specialised graph, for integers alone.
Results that may leave their type's range are unknown, because integers wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tilewright.graph.ir import Graph, Node

Interval = tuple[int, int]
"""The smallest and the largest number that may be there, both included."""

SAME_ELEMENTS = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
"""Operators whose result has the first input's elements, all of them, and no others."""
_SOME_ELEMENTS = SAME_ELEMENTS | {
    "Compress", "DepthToSpace", "Gather", "GatherElements", "GatherND", "MaxPool", "ReduceMax", "ReduceMin",
    "ReverseSequence", "Slice", "SpaceToDepth", "Split", "TopK",
}  # fmt: skip
"""Operators whose first output has elements of the first input and no others."""

MAX_DEPTH = 64
"""Nodes in a row that are followed back."""


@dataclass
class Intervals:
    """What is known of the values of one graph."""

    graph: Graph
    _found: dict[str, Interval | None] = field(default_factory=dict)

    def of(self, name: str, depth: int = MAX_DEPTH) -> Interval | None:
        """The interval of a value's elements; None if nothing is known."""
        if name not in self._found:
            self._found[name] = None  # what is asked for meanwhile
            self._found[name] = self._interval(name, depth)
        return self._found[name]

    def _interval(self, name: str, depth: int) -> Interval | None:
        constant = self.graph.constants.get(name)
        if constant is not None:
            if constant.dtype.kind not in "iub" or not constant.size:
                return None
            return int(constant.min()), int(constant.max())
        value = self.graph.values.get(name)
        if value is None or value.hosted or value.dtype.is_float:
            return None
        limits = _limits(value.dtype.numpy)
        node = self.graph.producers.get(name)
        found = self._made(node, name, depth - 1) if node is not None and depth else None
        if found is not None and limits[0] <= found[0] and found[1] <= limits[1]:
            return found
        return limits if limits[1] < 1 << 16 else None

    def _made(self, node: Node, name: str, depth: int) -> Interval | None:
        """The interval of what a node writes."""
        if node.op in {"ArgMax", "ArgMin"} or (node.op == "TopK" and name == node.outputs[1]):
            return self._places(node)
        if node.op in _SOME_ELEMENTS:
            return self.of(node.inputs[0], depth) if name == node.outputs[0] or node.op == "Split" else None
        if node.op in {"Concat", "Where"}:
            joined = node.inputs[1:] if node.op == "Where" else node.inputs
            return _united([self.of(i, depth) for i in joined])
        if node.op == "Cast":
            return self.of(node.inputs[0], depth)
        combine = _COMBINED.get(node.op)
        given = [self.of(i, depth) if i else None for i in node.inputs]
        return combine(node, given) if combine else None

    def _places(self, node: Node) -> Interval | None:
        source = self.graph.values.get(node.inputs[0])
        if source is None or not source.is_concrete or not source.sizes:
            return None
        axis = node.integer("axis", -1 if node.op == "TopK" else 0)
        return 0, source.sizes[axis % len(source.sizes)] - 1


def _limits(dtype: np.dtype) -> Interval:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _united(given: list[Interval | None]) -> Interval | None:
    known = [i for i in given if i is not None]
    if len(known) < len(given) or not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _sum(node: Node, given: list[Interval | None]) -> Interval | None:
    a, b = given
    return None if a is None or b is None else (a[0] + b[0], a[1] + b[1])


def _difference(node: Node, given: list[Interval | None]) -> Interval | None:
    a, b = given
    return None if a is None or b is None else (a[0] - b[1], a[1] - b[0])


def _product(node: Node, given: list[Interval | None]) -> Interval | None:
    a, b = given
    if a is None or b is None:
        return None
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(node: Node, given: list[Interval | None]) -> Interval | None:
    """Of numbers that are not negative, whichever way a quotient is rounded."""
    a, b = given
    if a is None or b is None or a[0] < 0 or b[0] < 1:
        return None
    return a[0] // b[1], a[1] // b[0]


def _remainder(node: Node, given: list[Interval | None]) -> Interval | None:
    """Of a positive divisor; with `fmod` the sign is the dividend's."""
    a, b = given
    if b is None or b[0] < 1 or (node.integer("fmod", 0) and (a is None or a[0] < 0)):
        return None
    return 0, b[1] - 1


def _largest(node: Node, given: list[Interval | None]) -> Interval | None:
    known = [i for i in given if i is not None]
    if len(known) < len(given) or not known:
        return None
    return max(low for low, _ in known), max(high for _, high in known)


def _smallest(node: Node, given: list[Interval | None]) -> Interval | None:
    known = [i for i in given if i is not None]
    if len(known) < len(given) or not known:
        return None
    return min(low for low, _ in known), min(high for _, high in known)


def _clipped(node: Node, given: list[Interval | None]) -> Interval | None:
    """Between two constants; the upper one wins, as in NumPy."""
    low, high = (given[n] if len(given) > n else None for n in (1, 2))
    if low is None or high is None:
        return None
    return min(low[0], high[0]), high[1]


_COMBINED: Mapping[str, Callable[[Node, list[Interval | None]], Interval | None]] = {
    "Add": _sum,
    "Clip": _clipped,
    "Div": _quotient,
    "Max": _largest,
    "Min": _smallest,
    "Mod": _remainder,
    "Mul": _product,
    "Sub": _difference,
}


__all__ = ["SAME_ELEMENTS", "Interval", "Intervals"]
