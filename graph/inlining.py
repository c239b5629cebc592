"""The branch that an If takes, in the If's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tilewright.graph.ir import Graph, Node


def taken_branch(node: Node, condition: np.ndarray) -> tuple[tuple[Node, ...], Mapping[str, np.ndarray]]:
    """Nodes that do what an If does whose condition is known, and their constants.

    Names inside a branch are made the If's own by its first output's name, which is written once in the whole graph.
    """
    body = branch(node, condition)
    start = len(body.inputs) - node.captured
    outer = dict(zip((v.name for v in body.inputs[start:]), node.inputs[1:], strict=True))
    prefix = next(o for o in node.outputs if o)
    own = [*(o for n in body.nodes for o in n.outputs if o), *body.constants]
    names = {name: f"{prefix}/{name}" for name in own} | outer
    nodes = [
        replace(
            n,
            inputs=tuple(names.get(i, i) for i in n.inputs),
            outputs=tuple(names.get(o, o) for o in n.outputs),
            origins=tuple(dict.fromkeys((*node.sources, *n.sources))),
        )
        for n in body.nodes
    ]
    nodes += [
        Node("Identity", (names[v.name],), (output,), name=f"{prefix}/{output}", origins=node.sources)
        for v, output in zip(body.outputs, node.outputs, strict=True)
        if output
    ]
    return tuple(nodes), {names[c]: array for c, array in body.constants.items()}


def branch(node: Node, condition: np.ndarray) -> Graph:
    """The body that an If runs."""
    return node.bodies["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
