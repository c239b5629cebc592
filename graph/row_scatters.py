"""Scatters of whole rows written as scatters of elements: exporters expand a position per row to all elements of it."""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Graph, Node
from tilewright.graph.rules import Replacement, Rule, fresh, type_of


def _rows(graph: Graph, node: Node) -> Replacement | None:
    """ScatterElements along the first axis whose positions are one per row as ScatterND."""
    expand = graph.producers.get(node.inputs[1])
    if expand is None or expand.op != "Expand" or graph.opset < 11:
        return None
    data, positions, all_positions = (type_of(graph, i) for i in (node.inputs[0], expand.inputs[0], node.inputs[1]))
    if any(v is None or not v.is_concrete for v in (data, positions, all_positions)):
        return None
    assert data is not None
    assert positions is not None
    assert all_positions is not None
    count, *others = positions.sizes or (0,)
    rank = len(data.sizes)
    whole = all_positions.sizes == (count, *data.sizes[1:])
    if len(positions.sizes) != rank or any(n != 1 for n in others) or not whole or node.integer("axis", 0) % rank:
        return None
    listed, shape = (fresh(graph, f"{node.outputs[0]}.{part}") for part in ("rows", "shape"))
    attributes = {k: v for k, v in node.attributes.items() if k != "axis"}
    return Replacement(
        (
            Node("Reshape", (expand.inputs[0], shape), (listed,), name=f"{node.label}.rows"),
            Node("ScatterND", (node.inputs[0], listed, node.inputs[2]), node.outputs, attributes, node.name),
        ),
        {shape: np.array([count, 1], np.int64)},
    )


ROW_SCATTERS = Rule(
    "scatters of rows",
    frozenset({"ScatterElements"}),
    "where all elements of a row go to the same place, the row goes there",
    _rows,
)


__all__ = ["ROW_SCATTERS"]
