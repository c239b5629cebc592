"""Nodes as steps: Programs over named values, views of values, and joins, before anything has a place in memory.

Item       a Program to run; each of its tensors is a Reference
ViewStep   a value that is another seen through views
JoinStep   a value that is others side by side
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.dsl import compose
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Program, Tensor
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.guards import fitting
from tilewright.graph.host import NeedsHostError
from tilewright.graph.ir import Graph, Node, Value
from tilewright.ops import NOTHING, OPERATORS, Application, Compute, Expansion, Join, Operand, View, Views


@dataclass(frozen=True)
class Reference:
    """Which value a tensor is, and the shape under which the program sees it."""

    value: str
    shape: tuple[int, ...]


class References:
    """Names for tensors that are the same in all programs of a network; one per value and shape."""

    def __init__(self) -> None:
        self._names: dict[Reference, str] = {}
        self._references: dict[str, Reference] = {}
        self._inner = 0

    def name(self, value: str, shape: tuple[int, ...]) -> str:
        """The tensor name of a value seen under a shape."""
        reference = Reference(value, shape)
        if reference not in self._names:
            name = self._names[reference] = f"t{len(self._names)}"
            self._references[name] = reference
        return self._names[reference]

    def inner(self) -> str:
        """A name for an intermediate that no other program has."""
        self._inner += 1
        return f"m{self._inner}"

    def __getitem__(self, name: str) -> Reference:
        return self._references[name]

    def __contains__(self, name: str) -> bool:
        return name in self._references


@dataclass(frozen=True, eq=False)
class Item:
    """A Program to run. It has one output."""

    program: Program
    ops: tuple[str, ...]
    """ONNX operators that it computes."""
    sources: tuple[str, ...]
    """Names of the file's nodes that it computes."""

    @property
    def output(self) -> Tensor:
        """The tensor that it writes."""
        return self.program.outputs[0]


@dataclass(frozen=True, eq=False)
class ViewStep:
    """``output`` is ``source`` seen through ``views``, one after the other."""

    output: str
    source: str
    views: tuple[View, ...]


@dataclass(frozen=True, eq=False)
class JoinStep:
    """``output`` is the inputs side by side along ``axis``."""

    output: str
    inputs: tuple[str, ...]
    axis: int


Step = Item | ViewStep | JoinStep


@dataclass(frozen=True, eq=False)
class Steps:
    """A network as steps in the order they run."""

    graph: Graph
    steps: tuple[Step, ...]
    references: References
    homes: Mapping[str, str] = field(default_factory=dict)
    """Values that lie in the buffer of an output of the graph: the output by value."""

    def written(self, step: Step) -> str:
        """The value that a step makes."""
        return self.references[step.output.name].value if isinstance(step, Item) else step.output

    def read(self, step: Step) -> tuple[str, ...]:
        """The values that a step reads, each once."""
        if isinstance(step, Item):
            return tuple(dict.fromkeys(self.references[t.name].value for t in step.program.inputs))
        return (step.source,) if isinstance(step, ViewStep) else tuple(dict.fromkeys(step.inputs))


def steps_of(graph: Graph) -> Steps:
    """Every node of a specialised graph as steps.

    Raises NeedsHostError that lists all nodes for which there is none with the sizes and types at hand.
    """
    references = References()
    steps: list[Step] = []
    constants = dict(graph.constants)
    values = dict(graph.values)
    problems = []
    sources: list[str] = []
    for node in graph.nodes:
        try:
            with fitting(node.label, node.op):
                steps += _node_steps(graph, node, references, constants, values)
        except UnsupportedError as error:
            problems.append(f"{node.label!r}: {node.op} (opset {graph.opset}): {error}")
            sources += node.sources
    if problems:
        raise NeedsHostError(
            f"{len(problems)} node{'s' if len(problems) > 1 else ''} cannot be run with these sizes:\n  "
            + "\n  ".join(problems)
            + "\nExport the network without them, or run it in another runtime.",
            sources,
        )
    return Steps(replace(graph, constants=constants, values=values), tuple(steps), references)


def _node_steps(
    graph: Graph,
    node: Node,
    references: References,
    constants: dict[str, np.ndarray],
    values: dict[str, Value],
) -> list[Step]:
    operator = OPERATORS.get(node.op)
    if operator is None:
        raise UnsupportedError("the operator is not supported")
    app = application(graph, node)
    result = operator.build(app)
    match result:
        case Compute():
            return [_item(node, result, references, constants)]
        case tuple():
            return [_item(node, part, references, constants) for part in result if node.outputs[part.outputs["y"]]]
        case Expansion():
            return _links(node, result, references, constants, values)
        case Views():
            made = zip(node.outputs, result.views, strict=True)
            return [ViewStep(output, node.inputs[0], views) for output, views in made if output]
        case Join():
            return [JoinStep(node.outputs[0], node.inputs, result.axis)]


def application(graph: Graph, node: Node) -> Application:
    """The node with everything known about its operands."""
    inputs = tuple(_operand(graph, name) if name else None for name in node.inputs)
    outputs = tuple(_operand(graph, name) if name else NOTHING for name in node.outputs)
    return Application(node.op, max(graph.opset, node.version), node.attributes, inputs, outputs)


def _operand(graph: Graph, name: str) -> Operand:
    constant = graph.constants.get(name)
    value = graph.values.get(name)
    if constant is not None:
        return Operand(DType.from_numpy(constant.dtype), constant.shape, constant)
    if value is None:
        raise ModelError(f"nothing is known of value {name!r}")
    return Operand(value.dtype, value.sizes)


def _item(node: Node, result: Compute, references: References, constants: dict[str, np.ndarray]) -> Item:
    shapes = {name: t.shape for name, t in result.program.tensors.items()}
    names = {t: references.name(node.inputs[n], shapes[t]) for t, n in result.inputs.items()}
    names |= {t: references.name(node.outputs[n], shapes[t]) for t, n in result.outputs.items()}
    names |= {t.name: references.inner() for t in result.program.intermediates}
    for tensor, array in result.constants.items():
        value = f"{node.outputs[0]}\0{tensor}"
        constants[value] = array
        names[tensor] = references.name(value, array.shape)
    program = merged(compose.rename(result.program, names))
    return Item(replace(program, name=node.op.lower()), (node.op,), node.sources)


def _links(
    node: Node,
    result: Expansion,
    references: References,
    constants: dict[str, np.ndarray],
    values: dict[str, Value],
) -> list[Step]:
    """The items of an expansion; its inner values are entered among the network's."""

    def value_of(key: int | str) -> str:
        if isinstance(key, str):
            return f"{node.label}\0{key}"
        return node.inputs[key] if key >= 0 else node.outputs[-1 - key]

    constants.update({value_of(name): array for name, array in result.constants.items()})
    steps: list[Step] = []
    for link in result.links:
        out = link.program.outputs[0]
        output = value_of(link.output)
        values.setdefault(output, Value(output, out.dtype, out.shape))
        bound = {t: value_of(key) for t, key in link.inputs.items()} | {out.name: output}
        names = {t: references.name(value, link.program.tensors[t].shape) for t, value in bound.items()}
        names |= {t.name: references.inner() for t in link.program.intermediates}
        program = merged(compose.rename(link.program, names))
        steps.append(Item(replace(program, name=node.op.lower()), (node.op,), node.sources))
    return steps


def merged(program: Program) -> Program:
    """The program with inputs of one name (an operand that occurs twice) listed once; a pad value wins over none."""
    found: dict[str, Tensor] = {}
    for t in program.inputs:
        if t.name not in found or t.pad:
            found[t.name] = t
    return program if len(found) == len(program.inputs) else replace(program, inputs=tuple(found.values()))
