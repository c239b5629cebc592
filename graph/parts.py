"""Cutting a network into parts that run one after the other: device parts, and single nodes that the host computes.

    DevicePart   a Graph that is planned as a whole once the sizes of its inputs are known
    HostNode     control flow, or a node for ONNX's reference evaluator

A network that the device can do alone is one part. Otherwise phases of the two kinds take turns, each with everything
that can run by then, which gives the smallest number of phases. What decides sizes or how an operator works must be
known before a device part is planned: it comes from an earlier part, or follows from constants and sizes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from tilewright.dsl.dtypes import DType
from tilewright.graph.host import can_evaluate
from tilewright.graph.host_values import language_type
from tilewright.graph.ir import CONTROL, Graph, Node, Value
from tilewright.graph.onnx_import import is_known_ahead, refusal, steering_values, unsupported_nodes
from tilewright.ops import OPERATORS


@dataclass(frozen=True, eq=False)
class DevicePart:
    """What the device computes in one go; the graph's outputs are what later parts or the network's caller read."""

    graph: Graph
    steering: tuple[str, ...]
    """The inputs whose elements decide sizes or how an operator works; a plan is made for each."""


@dataclass(frozen=True, eq=False)
class HostNode:
    """A node that the host computes."""

    node: Node


Part = DevicePart | HostNode


def cut(graph: Graph, forced: Collection[Node] = frozenset()) -> tuple[Part, ...]:
    """The parts of a graph in the order they run; the `forced` nodes are computed on the host."""
    hosted = {node for node in graph.nodes if node in forced or _has_no_device_form(graph, node)}
    if not hosted and not unsupported_nodes(graph):
        return _parts(graph, [graph.nodes] if graph.nodes else [])
    cutter = _Cutter(graph, hosted, forced)
    pending = list(graph.nodes)
    phases: list[tuple[Node, ...] | Node] = []
    while pending:
        on_device = cutter.device_phase(pending)
        pending = [n for n in pending if n not in on_device]
        if on_device:
            phases.append(tuple(on_device))
        on_host = cutter.host_phase(pending)
        pending = [n for n in pending if n not in on_host]
        phases += on_host
    return _parts(graph, phases)


def refused_nodes(graph: Graph, parts: Sequence[Part], limit: int | None = None) -> list[str]:
    """One line per node, those of bodies included, that neither the device nor the host can compute.

    `limit` is the number of elements up to which the host may compute float tensors.
    """
    problems = []
    for node in (p.node for p in parts if isinstance(p, HostNode)):
        for body in node.bodies.values():
            problems += refused_nodes(body, cut(body), limit)
        reason = _host_refusal(graph, node, limit)
        if reason:
            name = f"{node.name!r}" if node.name else f"the node that writes {node.label!r}"
            problems.append(f"{name}: {node.op} (opset {graph.opset}): {reason}")
    return problems


def _host_refusal(graph: Graph, node: Node, limit: int | None) -> str | None:
    if node.op in CONTROL and node.bodies:
        return None
    if not can_evaluate(node, graph.opset, graph.domains):
        return refusal(node, graph.opset) or "no device form fits, and the host cannot compute it either"
    types = [graph.values.get(name) for name in (*node.inputs, *node.outputs)]
    sizes = [math.prod(t.sizes) for t in types if t and not t.hosted and t.dtype.is_float and t.is_concrete]
    if limit is not None and max(sizes, default=0) > limit:
        return beyond_limit(max(sizes), limit)
    return None


def beyond_limit(size: int, limit: int) -> str:
    """What is said of a node that the host may not compute."""
    return f"would compute {size} floats on the host, more than the {limit} of host_limit"


def _has_no_device_form(graph: Graph, node: Node) -> bool:
    """True if the device cannot compute the node whatever its inputs; folding may do away with it all the same."""
    if node.bodies or any(is_foreign(graph, name) for name in (*node.inputs, *node.outputs) if name):
        return True
    has_form = node.op in OPERATORS and refusal(node, graph.opset) is None
    return not has_form and not is_known_ahead(node, graph.constants.keys())


def is_foreign(graph: Graph, name: str) -> bool:
    """Whether a value is known to be of a type that only the host holds."""
    if name in graph.constants:
        return language_type(graph.constants[name].dtype) is None
    value = graph.values.get(name)
    return value is not None and value.hosted is not None


@dataclass
class _Cutter:
    """What is there as phases are taken."""

    graph: Graph
    hosted: Collection[Node]
    forced: Collection[Node]
    available: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.available = {*self.graph.constants, *self.graph.input_names}

    def device_phase(self, pending: Sequence[Node]) -> dict[Node, None]:
        """All nodes that one device part can compute now."""
        fixed = {*self.graph.constants}
        """Follows from constants and sizes."""
        known = fixed | {name for name in self.available if self._may_steer(name)}
        made: set[str] = set()
        taken: dict[Node, None] = {}
        for node in pending:
            if any(i and i not in made and i not in self.available for i in node.inputs):
                continue
            foreign = any(is_foreign(self.graph, i) for i in node.inputs if i)
            folds = is_known_ahead(node, fixed) and not foreign and node not in self.forced
            if not folds and not self._is_for_device(node, fixed, known | self.available):
                continue
            taken[node] = None
            made.update(o for o in node.outputs if o)
            if folds:
                fixed.update(node.outputs)
            if folds or is_known_ahead(node, known):
                known.update(node.outputs)
        self.available |= made
        return taken

    def host_phase(self, pending: Sequence[Node]) -> list[Node]:
        """All nodes that the host can compute now."""
        taken = []
        for node in pending:
            if node in self.hosted and all(i in self.available for i in node.inputs if i):
                taken.append(node)
                self.available.update(o for o in node.outputs if o)
        return taken

    def _may_steer(self, name: str) -> bool:
        """Whether other steering values may be computed from this one: not from many numbers, as images are."""
        value = self.graph.values.get(name)
        if value is None or value.hosted or value.shape is None or len(value.shape) > 1:
            return False
        return not value.dtype.is_float

    def _is_for_device(self, node: Node, fixed: Collection[str], known: Collection[str]) -> bool:
        """Whether the device can compute a node now; of an If that sizes decide, it computes the branch."""
        if node.op == "If" and node.inputs[0] in fixed and node not in self.forced:
            return all(isinstance(p, DevicePart) for b in node.bodies.values() for p in cut(b))
        if node in self.hosted:
            return False
        operator = OPERATORS.get(node.op)
        positions = operator.host if operator else ()
        return all(node.inputs[n] in known for n in positions if n < len(node.inputs) and node.inputs[n])


def _parts(graph: Graph, phases: Sequence[tuple[Node, ...] | Node]) -> tuple[Part, ...]:
    """The phases as parts; a device part's outputs are what is read after it."""
    needed = {v.name for v in graph.outputs}
    parts: list[Part] = []
    for phase in reversed(phases):
        nodes = (phase,) if isinstance(phase, Node) else phase
        if isinstance(phase, Node):
            parts.append(HostNode(phase))
        else:
            parts.append(_device_part(graph, phase, needed))
        needed.update(i for n in nodes for i in n.inputs if i)
    return tuple(reversed(parts))


def _device_part(graph: Graph, nodes: tuple[Node, ...], needed: Collection[str]) -> DevicePart:
    written = [o for n in nodes for o in n.outputs if o]
    read = dict.fromkeys(i for n in nodes for i in n.inputs if i)
    constants = {name: graph.constants[name] for name in read if name in graph.constants}
    made = frozenset(written)
    inputs = [name for name in read if name not in constants and name not in made]
    part = replace(
        graph,
        nodes=nodes,
        inputs=tuple(_typed(graph, name) for name in inputs),
        outputs=tuple(_typed(graph, name) for name in written if name in needed),
        constants=constants,
    )
    steering = steering_values(part)
    return DevicePart(part, tuple(name for name in inputs if name in steering))


def _typed(graph: Graph, name: str) -> Value:
    return graph.values.get(name) or Value(name, DType.F32, None)
