"""The syntax tree: what was written, untyped and unchecked, every node with its place in the text.

    Op          a whole op: header and body
    Statements  Assignment | Tile | Limit
    Node        Literal | Name | Access | Application | Reduction | Qualified          (a closed set)

Operators are Applications of their word (`add`, `lt`, `neg`, ...). `check.py` gives all of this its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

from tilewright.dsl.functions import OPERATOR_SIGNS


@dataclass(frozen=True, slots=True)
class Span:
    """A place in the text: character offsets, the end exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, `true`, `false`, `inf` or `nan`."""

    value: int | float | bool
    at: Span


@dataclass(frozen=True, slots=True)
class Name:
    """A bare name: an index, a size, a parameter or a whole tensor."""

    text: str
    at: Span


@dataclass(frozen=True, slots=True)
class Qualified:
    """``device.local_mem``: legal in `where` lines only."""

    text: str
    at: Span


@dataclass(frozen=True, slots=True)
class Access:
    """``tensor[index, ...]``."""

    tensor: Name
    index: tuple[Node, ...]
    at: Span


@dataclass(frozen=True, slots=True)
class Bound:
    """An index where it is introduced, or an argument of a call; ``: extent`` may follow."""

    value: Node
    extent: Node | None


@dataclass(frozen=True, slots=True)
class Application:
    """``function(argument, ...)`` or an operator by its word."""

    function: str
    args: tuple[Node, ...]
    at: Span
    called: Span | None = None
    """Place of the function's name; None for an operator."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """``kind(index, ...) body``."""

    kind: Name
    indices: tuple[Bound, ...]
    body: Node
    at: Span
    chained: bool = False
    """True if the body is a product whose last factor is a reduction without brackets around it."""


Node = Union[Literal, Name, Qualified, Access, Application, Reduction]  # noqa: UP007 - recursive names need the string form


@dataclass(frozen=True, slots=True)
class Tensor:
    """``x[N,C]: f16 pad -inf`` in the header; None stands for what was left out."""

    name: Name
    dims: tuple[Node, ...] | None
    dtype: Name | None
    pad: Node | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """``eps: f32 = 1e-5`` in the header."""

    name: Name
    type: Name
    default: Node | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """``target[indices] = value``; ``indices`` is None for `target = value`."""

    target: Name
    indices: tuple[Bound, ...] | None
    value: Node


@dataclass(frozen=True, slots=True)
class Tile:
    """``tile index: values per item values``."""

    index: Name
    tile: tuple[Literal, ...]
    per_item: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """``where condition``."""

    condition: Node


@dataclass(frozen=True, slots=True)
class Op:
    """One op."""

    name: Name
    inputs: tuple[Tensor, ...]
    parameters: tuple[Parameter, ...]
    outputs: tuple[Tensor, ...]
    body: tuple[Assignment | Tile | Limit, ...]


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-expressions, extents of indices included."""
    match node:
        case Access():
            return node.index
        case Application():
            return node.args
        case Reduction():
            return (*(b.extent for b in node.indices if b.extent is not None), node.body)
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it; needs no recursion, so that depth can be checked with it."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(children(node)))


def too_deep(node: Node, limit: int) -> Node | None:
    """The first node that lies more than `limit` levels below `node`, or None."""
    stack = [(node, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > limit:
            return node
        stack.extend((child, depth + 1) for child in children(node))
    return None


_LOOSE = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")
"""Operators that arithmetic needs no brackets beside."""


def _function(node: Node) -> str:
    return node.function if isinstance(node, Application) else ""


_SIGNS = {**OPERATOR_SIGNS, "pow": "^"}


def node_text(node: Node, nested: bool = False) -> str:
    """The expression in the language's own notation: one spelling per tree, whatever the spaces and brackets were."""
    match node:
        case Literal():
            return str(node.value).lower()
        case Name() | Qualified():
            return node.text
        case Access():
            return f"{node.tensor.text}[{', '.join(map(node_text, node.index))}]"
        case Reduction():
            indices = ", ".join(
                node_text(b.value) + (f": {node_text(b.extent)}" if b.extent is not None else "") for b in node.indices
            )
            return f"({node.kind.text}({indices}) {node_text(node.body, nested=True)})"
        case Application(function="neg"):
            return f"-{node_text(node.args[0], nested=True)}"
        case Application() if node.called is None and node.function in _SIGNS:
            loose = node.function in _LOOSE
            left, right = (node_text(a, nested=not loose or _function(a) in _LOOSE) for a in node.args)
            text = f"{left} {_SIGNS[node.function]} {right}"
            return f"({text})" if nested else text
        case Application():
            return f"{node.function}({', '.join(map(node_text, node.args))})"
