"""The syntax tree: what was written, untyped and unchecked, every node with its place in the text.

    Text        a whole text: functions and ops
    Op          an op: header and body
    Statement   Assignment | Several | Tuning | Limit | FastMath | Precision
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
    settings: tuple[Setting, ...] = ()
    """Parameters by name, in the call of an op: ``pool(x; k=2)``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """``k=2`` behind the ';' of a call."""

    name: Name
    value: Node


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
    update: str = ""
    """The operator's word (`add`, ...) in ``target[indices] += value``, empty for a plain '='."""


@dataclass(frozen=True, slots=True)
class Several:
    """``m, v = moments(x)``: the outputs of an op."""

    targets: tuple[Name, ...]
    value: Application


@dataclass(frozen=True, slots=True)
class Tuning:
    """``tile m: 32, 64 per item 2``, ``stage x: local``, ``work_group: 64``: a line that narrows the tuning space."""

    kind: Name
    subject: Name | None
    """The index or tensor it speaks of; None for `work_group`."""
    values: tuple[Literal | Name, ...]
    per_item: tuple[Literal | Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """``where condition``."""

    condition: Node


@dataclass(frozen=True, slots=True)
class FastMath:
    """``fast_math``."""

    at: Span


@dataclass(frozen=True, slots=True)
class Precision:
    """``precision tf32``."""

    name: Name


Statement = Assignment | Several | Tuning | Limit | FastMath | Precision


@dataclass(frozen=True, slots=True)
class Op:
    """One op."""

    name: Name
    inputs: tuple[Tensor, ...]
    parameters: tuple[Parameter, ...]
    outputs: tuple[Tensor, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """``def name(argument, ...) = body``."""

    name: Name
    arguments: tuple[Name, ...]
    body: Node


@dataclass(frozen=True, slots=True)
class Text:
    """Everything a text defines, in its order."""

    functions: tuple[Function, ...]
    ops: tuple[Op, ...]


def bound_name(b: Bound) -> Name:
    """The index that a reduction introduces: `k`, or `j` of `j <= k`; a name that cannot be one where there is none."""
    node = b.value.args[0] if isinstance(b.value, Application) and b.value.args else b.value
    return node if isinstance(node, Name) else Name("", b.value.at)


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-expressions, extents and ends of indices included."""
    match node:
        case Access():
            return node.index
        case Application():
            return node.args
        case Reduction():
            ends = (b.value.args[1] for b in node.indices if isinstance(b.value, Application) and len(b.value.args) > 1)
            return (*ends, *(b.extent for b in node.indices if b.extent is not None), node.body)
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
            body = node_text(node.body, nested=True)
            return f"({node.kind.text}({indices}) {f'({body})' if body.startswith('-') else body})"
        case Application(function="neg"):
            return f"-{node_text(node.args[0], nested=True)}"
        case Application(function="not"):
            text = f"not {node_text(node.args[0], nested=True)}"
            return f"({text})" if nested else text
        case Application() if node.called is None and node.function in _SIGNS:
            loose = node.function in _LOOSE
            left, right = (node_text(a, nested=not loose or _function(a) in _LOOSE) for a in node.args)
            if node.function == "pow" and left.startswith("-"):
                left = f"({left})"
            text = f"{left} {_SIGNS[node.function]} {right}"
            return f"({text})" if nested else text
        case Application():
            given = ", ".join(f"{s.name.text}={node_text(s.value)}" for s in node.settings)
            name = node.function.removeprefix("def ")
            return f"{name}({', '.join(map(node_text, node.args))}{'; ' * bool(given)}{given})"
