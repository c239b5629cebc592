"""Small integer work on what the host holds already: counters, conditions and sizes, by which it decides what to do.

A condition such as ``sr == 16000`` would cost the device an upload, a launch and a wait for one truth value. Outputs of
a part that follow from small integers and truth values on the host alone, by operators of which NumPy has the same, are
computed there; all else is the device's, also where it reads the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilewright.graph.ir import Graph, Node, Value
from tilewright.graph.onnx_import import SHAPE_READERS
from tilewright.graph.rules import type_of
from tilewright.runtime import Array as DeviceArray

MOST_ELEMENTS = 64
"""Elements up to which a tensor is small: NumPy takes microseconds for it, whatever it does."""

Array = npt.NDArray[np.generic]
Compute = Callable[[Sequence[Array]], npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class HostWork:
    """Nodes of a part that the host computes, in order."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    """The part's outputs among what they write."""
    types: Mapping[str, Value]
    constants: Mapping[str, Array]

    def __call__(self, given: Callable[[str], Array]) -> dict[str, Array]:
        """The outputs by name, in memory of their own, for the part's inputs by name."""
        values: dict[str, Array] = dict(self.constants)
        with np.errstate(over="ignore"):  # integers wrap, as they do on the device
            for node in self.nodes:
                inputs = [values[i] if i in values else given(i) for i in _operands(node)]
                output = self.types[node.outputs[0]]
                found = np.asarray(_COMPUTE[node.op](inputs))
                values[output.name] = found.astype(output.dtype.numpy).reshape(output.sizes)
        return {name: values[name] for name in self.outputs}


def deciding_inputs(graph: Graph) -> frozenset[str]:
    """The inputs from which outputs may follow by such operators alone, if they are small and on the host."""
    sources: dict[str, frozenset[str] | None] = dict.fromkeys(graph.constants, frozenset())
    sources.update((v.name, frozenset({v.name})) for v in graph.inputs)
    for node in graph.nodes:
        read = [sources.get(i) for i in _operands(node)]
        known = [names for names in read if names is not None]
        found = frozenset[str]().union(*known) if len(known) == len(read) else None
        if node.op in SHAPE_READERS:
            found = frozenset()
        elif found and (node.op not in _COMPUTE or any(_is_float(graph, o) for o in node.outputs)):
            found = None  # unlike what follows from constants and sizes alone, which is folded whatever it is
        sources.update((o, found) for o in node.outputs if o)
    return frozenset[str]().union(*(sources[v.name] or () for v in graph.outputs if v.name in graph.producers))


def is_small_integer(array: DeviceArray | Array | None) -> bool:
    """Whether it is a tensor of few elements that are integers or truth values."""
    return array is not None and array.dtype.kind in "biu" and math.prod(array.shape) <= MOST_ELEMENTS


def host_work(graph: Graph, at_hand: Collection[str]) -> HostWork | None:
    """What the host computes of a part all of whose sizes are known; ``at_hand`` are the inputs that it holds."""
    there = {name for name in (*at_hand, *graph.constants) if _is_small(graph, name)}
    taken: list[Node] = []
    for node in graph.nodes:
        if _can_compute(graph, node) and there.issuperset(_operands(node)):
            taken.append(node)
            there.update(node.outputs)
    outputs = tuple(v.name for v in graph.outputs if any(v.name in n.outputs for n in taken))
    needed = set(outputs)
    nodes = [n for n in reversed(taken) if _adds(n, needed)][::-1]
    if not nodes:
        return None
    types = {o: graph.values[o] for n in nodes for o in n.outputs}
    constants = {name: graph.constants[name] for name in needed if name in graph.constants}
    return HostWork(tuple(nodes), outputs, types, constants)


def _adds(node: Node, needed: set[str]) -> bool:
    """Whether a node is needed; what it reads is needed then as well."""
    if not needed.intersection(node.outputs):
        return False
    needed.update(_operands(node))
    return True


def _is_float(graph: Graph, name: str) -> bool:
    value = type_of(graph, name)
    return value is not None and value.dtype.is_float


def _is_small(graph: Graph, name: str) -> bool:
    value = type_of(graph, name)
    if value is None or value.dtype.is_float or not value.is_concrete:
        return False
    return math.prod(value.sizes) <= MOST_ELEMENTS


def _can_compute(graph: Graph, node: Node) -> bool:
    return node.op in _COMPUTE and len(node.outputs) == 1 and all(_is_small(graph, o) for o in node.outputs)


def _operands(node: Node) -> tuple[str, ...]:
    """The inputs whose elements decide: of a reshaping the first, since the result's sizes are known."""
    return node.inputs[:1] if node.op in _RESHAPING else node.inputs


def _folded(compute: Callable[[Array, Array], Array]) -> Compute:
    """An operator of any number of inputs."""

    def folded(inputs: Sequence[Array]) -> Array:
        result = inputs[0]
        for other in inputs[1:]:
            result = compute(result, other)
        return result

    return folded


_RESHAPING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

_COMPUTE: Mapping[str, Compute] = {
    "Add": lambda inputs: np.add(*inputs),
    "And": lambda inputs: np.logical_and(*inputs),
    "Cast": lambda inputs: inputs[0],
    "Equal": lambda inputs: np.equal(*inputs),
    "Greater": lambda inputs: np.greater(*inputs),
    "GreaterOrEqual": lambda inputs: np.greater_equal(*inputs),
    "Less": lambda inputs: np.less(*inputs),
    "LessOrEqual": lambda inputs: np.less_equal(*inputs),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mul": lambda inputs: np.multiply(*inputs),
    "Not": lambda inputs: np.logical_not(*inputs),
    "Or": lambda inputs: np.logical_or(*inputs),
    "Sub": lambda inputs: np.subtract(*inputs),
    "Where": lambda inputs: np.where(*inputs),
    "Xor": lambda inputs: np.logical_xor(*inputs),
} | dict.fromkeys(_RESHAPING, lambda inputs: inputs[0])
"""What NumPy computes of integers and truth values exactly as ONNX says; types and sizes are those of the result."""


__all__ = ["MOST_ELEMENTS", "HostWork", "deciding_inputs", "host_work", "is_small_integer"]
