"""Where each node of a network would run, found out without a device.

Whether the device has a form for a node may depend on sizes. Those that the file fixes, or that are given here, are
taken into account; with open ones a node that is said to run on the device may still be left to the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from tilewright.graph import passes, quantised
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.host import NeedsHostError, can_evaluate
from tilewright.graph.ir import CONTROL, Graph, Node
from tilewright.graph.onnx_import import Model, import_model, is_known_ahead, refusal
from tilewright.graph.parts import DevicePart, HostNode, Part, cut
from tilewright.graph.steps import steps_of


class Place(Enum):
    """Where a node runs."""

    DEVICE = "device"
    FOLDED = "folded"
    """Nowhere in a run: it follows from constants and sizes, or another node does its work."""
    HOST = "host"
    MISSING = "missing"
    """Nowhere at all: the network cannot be run."""


@dataclass(frozen=True)
class PlacedNode:
    """A node of the file and where it runs."""

    name: str
    op: str
    opset: int
    """The version of the operator's set."""
    place: Place
    reason: str | None
    """Why it does not run on the device, or as what other operator it does; None if there is nothing to say."""
    inside: str | None
    """The node in whose body it lies; None at the top."""


def placed_nodes(model: Model, sizes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[PlacedNode, ...]:
    """All nodes in the order of the file, those of bodies behind the node they belong to.

    ``sizes`` are shapes of inputs by name. Functions are replaced by the nodes that they stand for. Raises ModelError
    for a file that is missing, broken or invalid.
    """
    graph = import_model(model, hosted=True)
    return tuple(_placed(graph, None, sizes or {}))


def _placed(graph: Graph, inside: str | None, sizes: Mapping[str, tuple[int, ...]]) -> Iterator[PlacedNode]:
    computed = tuple(v for v in graph.outputs if v.name not in graph.input_names)
    simple = with_simple_bodies(passes.simplify(replace(graph, outputs=computed)))
    parts, unfit = _parts(simple, sizes)
    hosted = {source: p.node for p in parts if isinstance(p, HostNode) for source in p.node.sources}
    launched = [n for p in parts if isinstance(p, DevicePart) for n in _launched(p)]
    on_device = {source for n in launched for source in n.sources}
    integer = {source: f"as {n.op}" for n in launched if n.op in quantised.MADE for source in n.sources}
    for node in graph.nodes:
        left, reason = hosted.get(node.label), None
        if left is not None:
            place = Place.HOST if _host_can(left, simple) else Place.MISSING
            reason = _reason(left, simple, unfit)
        else:
            place = Place.DEVICE if node.label in on_device else Place.FOLDED
            reason = integer.get(node.label) if node.op in quantised.PRODUCTS else None
        yield PlacedNode(node.label, node.op, _opset(graph, node), place, reason, inside)
        for body in node.bodies.values():
            yield from _placed(body, node.label, {})


def _parts(graph: Graph, sizes: Mapping[str, tuple[int, ...]]) -> tuple[Sequence[Part], Mapping[Node, str]]:
    """The parts, and why nodes that have a device form have none for the sizes at hand."""
    unfit: dict[Node, str] = {}
    while True:
        parts = cut(graph, unfit.keys())
        found = {n: why for p in parts if isinstance(p, DevicePart) for n, why in _unfit(p, sizes).items()}
        if found.keys() <= unfit.keys():
            return parts, unfit
        unfit.update(found)


def _unfit(part: DevicePart, sizes: Mapping[str, tuple[int, ...]]) -> dict[Node, str]:
    """Nodes of a part that the device cannot do for certain sizes; none is found where sizes are open."""
    inputs = [replace(v, shape=sizes.get(v.name, v.shape)) for v in part.graph.inputs]
    if part.steering or not all(v.is_concrete for v in inputs):
        return {}
    try:
        steps_of(passes.specialise(part.graph, {v.name: v.sizes for v in inputs}))
    except NeedsHostError as error:
        return {n: str(error) for n in part.graph.nodes if error.sources & set(n.sources)}
    return {}


def _launched(part: DevicePart) -> Iterator[Node]:
    """The nodes of a part that do not follow from constants and sizes."""
    known = {*part.graph.constants, *part.steering}
    for node in part.graph.nodes:
        if is_known_ahead(node, known):
            known.update(node.outputs)
        else:
            yield node


def _host_can(node: Node, graph: Graph) -> bool:
    return (bool(node.bodies) and node.op in CONTROL) or can_evaluate(node, graph.opset, graph.domains)


def _reason(node: Node, graph: Graph, unfit: Mapping[Node, str]) -> str:
    if node in unfit:
        return unfit[node]
    if node.bodies:
        return "control flow"
    return refusal(node, graph.opset) or "its values are of a type that only the host holds"


def _opset(graph: Graph, node: Node) -> int:
    domain = node.op.rpartition("::")[0]
    return graph.domains.get(domain, 0) if domain else graph.opset


__all__ = ["Place", "PlacedNode", "placed_nodes"]
