"""Bodies of control flow made smaller: constants of the graph around them come in, and all rules are applied inside."""

from __future__ import annotations

from dataclasses import replace

from tilewright.graph import passes
from tilewright.graph.ir import Graph, Node
from tilewright.graph.rules import fresh


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
    taken = bool(graph.constants[node.inputs[0]].reshape(-1)[0])
    body = node.bodies["then_branch" if taken else "else_branch"]
    start = len(body.inputs) - node.captured
    outer = dict(zip((v.name for v in body.inputs[start:]), node.inputs[1:], strict=True))
    names = {o: fresh(graph, f"{node.label}/{o}") for n in body.nodes for o in n.outputs if o}
    names |= {c: fresh(graph, f"{node.label}/{c}") for c in body.constants} | outer
    nodes = [_renamed(n, names) for n in body.nodes]
    nodes += [
        Node("Identity", (names[v.name],), (output,), name=f"{node.label}/{output}")
        for v, output in zip(body.outputs, node.outputs, strict=True)
        if output
    ]
    place = next(n for n, other in enumerate(graph.nodes) if other is node)
    constants = {**graph.constants, **{names[c]: a for c, a in body.constants.items()}}
    values = {**graph.values, **{names[v]: replace(t, name=names[v]) for v, t in body.values.items() if v in names}}
    return replace(
        graph,
        nodes=(*graph.nodes[:place], *nodes, *graph.nodes[place + 1 :]),
        constants=constants,
        values={**values, **{v.name: v for v in graph.values.values()}},
    )


def _renamed(node: Node, names: dict[str, str]) -> Node:
    return replace(
        node,
        inputs=tuple(names.get(i, i) for i in node.inputs),
        outputs=tuple(names.get(o, o) for o in node.outputs),
        name=node.name,
    )


__all__ = ["with_simple_bodies"]
