"""What a damaged or hostile file may hold that ONNX's own tools do not refuse, or do not survive.

Texts that are not UTF-8, element types that nobody knows, and functions that call themselves or multiply: a file of
some kilobytes can stand for more nodes than any memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import AttributeProto, TensorProto

from tilewright.errors import LanguageError, ModelError

MAX_NODES = 1 << 14
"""Nodes that a network with functions may stand for: planning takes milliseconds for each."""

LONGEST = 2000
"""Characters of a foreign message that are shown; names in files have no limit."""

_Holder = onnx.GraphProto | onnx.FunctionProto
_Key = tuple[str, str, str]


def refuse_odd(model: onnx.ModelProto, place: str) -> None:
    """ModelError for what would end in an exception of somebody else's, or never."""
    for holder in (model.graph, *model.functions):
        for inner in _graphs(holder):
            _check_texts(inner, place)
            if isinstance(inner, onnx.GraphProto):
                _check_types(inner, place)
    if model.functions:
        _check_functions(model, place)


def type_name(code: int) -> str:
    """How ONNX calls an element type."""
    known = code in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(code)) if known else f"number {code}, which no version of ONNX has"


@contextmanager
def fitting(label: str, op: str) -> Iterator[None]:
    """ModelError that names the node for attributes and constants of kinds that no valid model has there."""
    try:
        yield
    except (ArithmeticError, AttributeError, LanguageError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"node {label!r} ({op}) does not fit its inputs: {one_sentence(error)}") from error


def one_sentence(error: BaseException) -> str:
    """The first paragraph of a foreign message on one line; what names in it hold that cannot be printed is escaped."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())[:LONGEST]
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown or type(error).__name__


def _graphs(holder: _Holder) -> Iterator[_Holder]:
    """A graph or function and all bodies within."""
    waiting: list[_Holder] = [holder]
    while waiting:
        found = waiting.pop()
        yield found
        for node in found.node:
            for a in node.attribute:
                if a.HasField("g"):
                    waiting.append(a.g)
                waiting.extend(a.graphs)


def _check_texts(holder: _Holder, place: str) -> None:
    for text in _texts(holder):
        if not isinstance(text, str):  # protobuf gives bytes where they are not UTF-8
            raise ModelError(f"{place} is damaged: the text {ascii(text)[:80]} in it is not UTF-8")


def _texts(holder: _Holder) -> Iterator[object]:
    yield holder.name
    for node in holder.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (a.name for a in node.attribute)
    if isinstance(holder, onnx.GraphProto):
        for named in (*holder.input, *holder.output, *holder.value_info, *holder.initializer):
            yield named.name


def _check_types(graph: onnx.GraphProto, place: str) -> None:
    known = TensorProto.DataType.values()
    constants = [t for n in graph.node for a in n.attribute if a.type == AttributeProto.TENSOR for t in [a.t]]
    found = [(t.name, t.data_type) for t in (*graph.initializer, *constants)]
    found += [
        (v.name, v.type.tensor_type.elem_type)
        for v in (*graph.input, *graph.output, *graph.value_info)
        if v.type.HasField("tensor_type")
    ]
    for name, code in found:
        if code not in known:
            raise ModelError(f"{name!r} of {place} has the element type {type_name(code)}")


def _check_functions(model: onnx.ModelProto, place: str) -> None:
    """ModelError for functions that call themselves, and for more than MAX_NODES nodes."""
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    calls = {key: [k for k in _called(f) if k in bodies] for key, f in bodies.items()}
    try:
        order = list(TopologicalSorter({key: set(found) for key, found in calls.items()}).static_order())
    except CycleError as error:
        names = ", ".join(repr(name) for _, name, _ in error.args[1][:-1][:5])
        raise ModelError(f"{place} has functions that call themselves: {names}") from None
    sizes: dict[_Key, int] = {}
    for key in order:
        sizes[key] = _size(bodies[key], sizes)
    if _size(model.graph, sizes) > MAX_NODES:
        raise ModelError(f"the functions in {place} stand for more than {MAX_NODES} nodes")


def _called(holder: _Holder) -> Iterator[_Key]:
    """What every node, those of bodies included, would be called as a function."""
    for inner in _graphs(holder):
        for node in inner.node:
            yield node.domain, node.op_type, node.overload


def _size(holder: _Holder, sizes: dict[_Key, int]) -> int:
    return sum(1 + sizes.get(key, 0) for key in _called(holder))


__all__ = ["MAX_NODES", "one_sentence", "refuse_odd", "type_name"]
