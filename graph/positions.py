"""Positions that depend on data are looked at: one outside of what it counts is an error, as ONNX has it.

What is proven (`intervals.py`) costs nothing. Positions that are an input of the graph, or the same elements under
another shape or type, are looked at on the host before a run. Of all others the device finds the smallest and the
largest on the way, which the host reads after the run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.dsl import compose
from tilewright.graph.checks import Check, Checks
from tilewright.graph.intervals import SAME_ELEMENTS, Intervals
from tilewright.graph.ir import Graph, Node, Value
from tilewright.graph.steps import Item, Steps, application
from tilewright.ops.positions import Positions, extent, positions_of


def with_checks(steps: Steps) -> tuple[Steps, Checks]:
    """The steps with extents of positions that only the device knows as further outputs, and what is to be checked."""
    graph = steps.graph
    intervals = Intervals(graph)
    fed: dict[Check, None] = {}
    made: dict[Check, Item] = {}
    for node in graph.nodes:
        app = application(graph, node)
        for positions in positions_of(app):
            name = node.inputs[positions.input]
            if name in graph.constants or _is_proven(intervals, name, positions):
                continue
            p = positions
            check = Check(f"{node.label!r} ({node.op})", "", p.low, p.high, p.column, p.ignored)
            source = _input_behind(graph, name, positions)
            if source is not None:
                fed[replace(check, value=source)] = None
                continue
            value = f"{name}\0extent {positions.column} {positions.ignored}"
            made[replace(check, value=value)] = _item(steps, node, positions, value)
    if not made:
        return steps, Checks(tuple(fed))
    items = {check.value: item for check, item in made.items()}
    outputs = tuple(Value(value, item.output.dtype, item.output.shape) for value, item in items.items())
    values = {**graph.values, **{v.name: v for v in outputs}}
    watched = replace(graph, values=values, outputs=(*graph.outputs, *outputs))
    return replace(steps, graph=watched, steps=(*steps.steps, *items.values())), Checks(tuple(fed), tuple(made))


def _is_proven(intervals: Intervals, name: str, positions: Positions) -> bool:
    found = intervals.of(name)
    return found is not None and positions.low <= found[0] and found[1] <= positions.high


def _input_behind(graph: Graph, name: str, positions: Positions) -> str | None:
    """The graph's input that has the elements of a value; None if it is computed."""
    followed = SAME_ELEMENTS | {"Cast"} if positions.column is None else {"Cast", "Identity"}
    while name not in graph.input_names:
        node = graph.producers.get(name)
        if node is None or node.op not in followed or not _keeps_numbers(graph, node):
            return None
        name = node.inputs[0]
    return name


def _keeps_numbers(graph: Graph, node: Node) -> bool:
    """False for a conversion that may change numbers, or to or from floats."""
    source, result = (graph.values[name].dtype.numpy for name in (node.inputs[0], node.outputs[0]))
    return source == result or (source.kind in "iub" and np.can_cast(source, result))


def _item(steps: Steps, node: Node, positions: Positions, value: str) -> Item:
    """The step that finds an extent."""
    at = application(steps.graph, node).input(positions.input)
    program = extent(at, positions).program
    names = {
        "at": steps.references.name(node.inputs[positions.input], at.shape),
        "y": steps.references.name(value, (2,)),
    }
    return Item(replace(compose.rename(program, names), name="extent"), ("Extent",), node.sources)


__all__ = ["with_checks"]
