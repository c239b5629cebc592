"""Rewrite rules: pattern, condition, result; and the loop that applies them.

A rule looks at one node and answers with what should stand in its place, or None. It never touches other nodes: what
a replacement leaves without a reader is removed afterwards as dead code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.graph.guards import fitting
from tilewright.graph.host_values import language_type
from tilewright.graph.ir import Graph, Node, Value, frozen


@dataclass(frozen=True)
class Replacement:
    """What stands in a node's place: nodes, new constants, and values that are from now on another's name.

    ``aliases`` maps an output of the replaced node to the value that takes over; the nodes must write all the others.
    """

    nodes: tuple[Node, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A rewrite of single nodes. ``reason`` says why the result computes the same."""

    name: str
    ops: frozenset[str]
    """Operators that the pattern's node may have."""
    reason: str
    match: Callable[[Graph, Node], Replacement | None]


def apply(rule: Rule, graph: Graph) -> tuple[Graph, int]:
    """Apply a rule wherever it fits, in one walk; returns the graph and how often it fired.

    The walk looks at each node with the graph as it was when the walk began, except that aliases are followed.
    """
    if not rule.ops & set(graph.op_counts):
        return graph, 0
    nodes: list[Node] = []
    constants = dict(graph.constants)
    aliases: dict[str, str] = {}
    fired = 0
    for node in graph.nodes:
        with fitting(node.label, node.op):
            found = rule.match(graph, node) if node.op in rule.ops else None
        if found is None or not _may_alias(graph, found.aliases, aliases):
            nodes.append(node)
            continue
        fired += 1
        nodes.extend(replace(n, origins=tuple(dict.fromkeys(n.origins or node.sources))) for n in found.nodes)
        constants.update({name: frozen(a) for name, a in found.constants.items()})
        aliases.update(found.aliases)
    if not fired:
        return graph, 0
    return renamed(graph.replace_nodes(tuple(nodes), constants), aliases), fired


def renamed(graph: Graph, aliases: Mapping[str, str]) -> Graph:
    """Every use of an alias reads the value that it stands for; outputs of the graph keep their names.

    An alias that is an output of the graph renames the value that it stands for instead.
    """
    final = {name: _end(name, aliases) for name in aliases}
    backwards = {target: name for name, target in final.items() if name in graph.output_names}

    def name_of(name: str) -> str:
        target = final.get(name, name)
        return backwards.get(target, target)

    nodes = tuple(
        replace(n, inputs=tuple(map(name_of, n.inputs)), outputs=tuple(backwards.get(o, o) for o in n.outputs))
        for n in graph.nodes
    )
    constants = {backwards.get(name, name): a for name, a in graph.constants.items()}
    return graph.replace_nodes(nodes, constants)


def _end(name: str, aliases: Mapping[str, str]) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _may_alias(graph: Graph, wanted: Mapping[str, str], aliases: Mapping[str, str]) -> bool:
    """Whether the wanted aliases, on top of those there are, leave every input and output of the graph its own name."""
    for output, source in wanted.items():
        if output not in graph.output_names:
            continue
        target = _end(source, aliases)
        fixed = graph.output_names | graph.input_names | graph.constants.keys()
        taken = any(_end(name, aliases) == target for name in aliases if name in graph.output_names)
        if target in fixed or taken:
            return False
    return True


def dead_code_removed(graph: Graph) -> Graph:
    """Without the nodes and constants that no output needs."""
    needed = set(graph.output_names)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(o in needed for o in node.outputs):
            kept.append(node)
            needed.update(i for i in node.inputs if i)
    constants = {name: a for name, a in graph.constants.items() if name in needed}
    if len(kept) == len(graph.nodes) and len(constants) == len(graph.constants):
        return graph
    return graph.replace_nodes(tuple(reversed(kept)), constants)


def fresh(graph: Graph, base: str) -> str:
    """A value name that the graph does not have yet, starting with `base`."""
    taken = graph.producers.keys() | graph.constants.keys() | graph.input_names
    name, number = base, 1
    while name in taken:
        name, number = f"{base}.{number}", number + 1
    return name


def type_of(graph: Graph, name: str) -> Value | None:
    """What is known of a value's type; None for types that only the host holds."""
    constant = graph.constants.get(name)
    if constant is None:
        value = graph.values.get(name)
        return None if value is None or value.hosted else value
    dtype = language_type(constant.dtype)
    return None if dtype is None else Value(name, dtype, constant.shape)
