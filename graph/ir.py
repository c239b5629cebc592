"""The network between the ONNX file and the kernels: a list of nodes in the order they run, frozen.

    Graph    nodes, inputs, outputs, constants (NumPy arrays), and what is known of each value's type
    Node     one ONNX operator applied to named values
    Value    a value's name, element type and sizes

Bodies of control flow (If, Loop, Scan, SequenceMap) are Graphs among a node's attributes. They see nothing but their
inputs: what they read of the graph around them are the node's last inputs, and the last inputs of every body.

Passes are functions from Graph to Graph; the same object back means that nothing changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tilewright.dsl.dtypes import DType

if TYPE_CHECKING:
    import onnx

Plain = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | np.ndarray
Size = int | str | None
"""A dimension: a number, the name of an open size, or None if nothing is known."""

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators of control flow, which have bodies."""


@dataclass(frozen=True)
class Value:
    """What is known of one tensor of the graph; ``shape`` is None where even the rank is open."""

    name: str
    dtype: DType
    shape: tuple[Size, ...] | None
    hosted: str | None = None
    """ONNX's name of a type that only the host can hold (``tensor(string)``, ``seq(tensor(float))``), of which `dtype`
    says nothing; None for tensors of the language's types."""

    @property
    def is_concrete(self) -> bool:
        """True if every size is a number."""
        return self.shape is not None and all(isinstance(n, int) for n in self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes as numbers; ValueError if some are open."""
        if self.shape is None or not all(isinstance(n, int) for n in self.shape):
            raise ValueError(f"value {self.name} has open sizes {self.shape}")
        return tuple(n for n in self.shape if isinstance(n, int))


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the default ONNX domain. An input that is left out is the empty string."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """Attributes of kinds that nothing but ONNX's own evaluator reads are kept as the file has them."""
    name: str = ""
    origins: tuple[str, ...] = ()
    """Names of the file's nodes that this one stands for; its own where it stands for itself."""
    captured: int = 0
    """How many of the last inputs are what the bodies read of the graph around them."""
    version: int = 0
    """The opset that it is of where that is newer than the file's."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the file's nodes behind this one."""
        return self.origins or (self.label,)

    @property
    def label(self) -> str:
        """The node's name, or its first output where the file gives none."""
        return self.name or next((o for o in self.outputs if o), self.op)

    @property
    def bodies(self) -> Mapping[str, Graph]:
        """The graphs among the attributes."""
        return {name: v for name, v in self.attributes.items() if isinstance(v, Graph)}

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def integers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A list-of-integers attribute."""
        value = self.attributes.get(name, default)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else default


@dataclass(frozen=True, eq=False)
class Graph:
    """A network. Nodes stand in an order in which they can run; every value is written once."""

    name: str
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value] = field(default_factory=dict)
    """Known types of inputs, outputs and what lies between; may be incomplete before `specialise`."""
    domains: Mapping[str, int] = field(default_factory=dict)
    """Versions of the other operator sets that the file names."""

    def __post_init__(self) -> None:
        for name in ("constants", "values", "domains"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that writes each value."""
        return {o: n for n in self.nodes for o in n.outputs if o}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value; a node that reads it twice appears twice."""
        found: dict[str, list[Node]] = {}
        for n in self.nodes:
            for i in n.inputs:
                if i:
                    found.setdefault(i, []).append(n)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def output_names(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(v.name for v in self.outputs)

    @cached_property
    def input_names(self) -> frozenset[str]:
        """Names of the graph's inputs."""
        return frozenset(v.name for v in self.inputs)

    def used_once(self, value: str) -> bool:
        """True if exactly one node reads `value` (once) and it is no output of the graph."""
        return value not in self.output_names and len(self.consumers.get(value, ())) == 1

    @cached_property
    def op_counts(self) -> Mapping[str, int]:
        """How many nodes of each operator there are."""
        return Counter(n.op for n in self.nodes)

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """Values that the nodes or outputs read and nothing here writes."""
        written = {o for n in self.nodes for o in n.outputs} | self.constants.keys() | self.input_names
        read = [i for n in self.nodes for i in n.inputs if i] + [v.name for v in self.outputs]
        return tuple(dict.fromkeys(name for name in read if name not in written))

    def with_bodies(self) -> Graph:
        """The graph whose nodes' bodies, as a file has them, are made to read their own inputs alone."""
        return replace(self, nodes=tuple(_closed(n, self) if n.bodies else n for n in self.nodes))

    def replace_nodes(self, nodes: tuple[Node, ...], constants: Mapping[str, np.ndarray] | None = None) -> Graph:
        """The same graph with other nodes and, if given, other constants."""
        return replace(self, nodes=nodes, constants=self.constants if constants is None else constants)


def _closed(node: Node, around: Graph) -> Node:
    """The node with what its bodies read of the graph around them as last inputs, of its own and of every body."""
    bodies = {
        name: replace(b, opset=around.opset, domains=around.domains).with_bodies() for name, b in node.bodies.items()
    }
    captured = tuple(dict.fromkeys(name for b in bodies.values() for name in b.captured))
    unknown = tuple(Value(name, DType.F32, None) for name in captured)
    closed = {name: replace(b, inputs=(*b.inputs, *unknown)) for name, b in bodies.items()}
    attributes = {**node.attributes, **closed}
    return replace(node, inputs=(*node.inputs, *captured), attributes=attributes, captured=len(captured))


Attribute: TypeAlias = "Plain | Graph | onnx.AttributeProto"


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, made read-only: constants are shared between graphs."""
    array.setflags(write=False)
    return array


def verify(graph: Graph) -> None:
    """Raise ValueError unless every value is written once, before it is read, and every output exists."""
    known = set(graph.constants) | graph.input_names
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in known:
                raise ValueError(f"node {node.label} reads {name!r} before anything writes it")
        for name in node.outputs:
            if name and name in known:
                raise ValueError(f"node {node.label} writes {name!r}, which exists already")
            known.add(name)
    for value in graph.outputs:
        if value.name not in known:
            raise ValueError(f"nothing writes its output {value.name!r}")
