"""Bodies of control flow made smaller: constants of the graph around them come in, and all rules are applied inside."""

from __future__ import annotations

from dataclasses import replace

from tilewright.graph import passes
from tilewright.graph.inlining import taken_branch
from tilewright.graph.ir import Graph, Node


def with_simple_bodies(graph: Graph) -> Graph:
    """The graph, simplified already, with its nodes' bodies simplified; an If of a known condition is its branch."""
    while True:
        graph = replace(graph, nodes=tuple(_with_constants(graph, n) if n.bodies else n for n in graph.nodes))
        chosen = next((n for n in graph.nodes if n.op == "If" and n.inputs[0] in graph.constants), None)
        if chosen is None:
            return graph
        graph = passes.simplify(_inlined(graph, chosen))


def _with_constants(graph: Graph, node: Node) -> Node:
    """The node whose captured values are no constants: those lie in the bodies, which are simplified with them."""
    if node.op == "If" and node.inputs[0] in graph.constants:
        return node
    first = len(node.inputs) - node.captured
    kept = [name for name in node.inputs[first:] if name not in graph.constants]
    bodies = {}
    for attribute, body in node.bodies.items():
        start = len(body.inputs) - node.captured
        pairs = list(zip(body.inputs[start:], node.inputs[first:], strict=True))
        constants = {v.name: graph.constants[outer] for v, outer in pairs if outer in graph.constants}
        formal = tuple(v for v, outer in pairs if outer not in graph.constants)
        closed = replace(body, inputs=(*body.inputs[:start], *formal), constants={**body.constants, **constants})
        bodies[attribute] = with_simple_bodies(passes.simplify(closed))
    attributes = {**node.attributes, **bodies}
    return replace(node, inputs=(*node.inputs[:first], *kept), attributes=attributes, captured=len(kept))


def _inlined(graph: Graph, node: Node) -> Graph:
    """The graph with the branch that an If takes in the If's place."""
    nodes, constants = taken_branch(node, graph.constants[node.inputs[0]])
    place = next(n for n, other in enumerate(graph.nodes) if other is node)
    return replace(
        graph,
        nodes=(*graph.nodes[:place], *nodes, *graph.nodes[place + 1 :]),
        constants={**graph.constants, **constants},
    )


__all__ = ["with_simple_bodies"]
