"""Operators of onnxruntime's domain com.microsoft, which its optimiser and quantiser write, spelled in ONNX's own.

Semantics: onnxruntime's ContribOperators.md and what its CPU kernels give. Each is a text of statements; a node becomes
a call of that text as a function, which onnx's inliner puts in its place. Texts are of one opset, whatever the file's;
their nodes say so. What an expansion cannot do is left as it is, and is refused later like any unknown operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.inliner
import onnx.parser

from tilewright.errors import UnsupportedError
from tilewright.graph import contributed_attention, contributed_fused, contributed_layers, contributed_quantised
from tilewright.graph.spelling import Contributed, Spelled

DOMAIN = "com.microsoft"
WRITTEN_IN = 24
"""The opset of all texts."""
_OWN = "tilewright.contributed"


CONTRIBUTED: Mapping[str, Contributed] = {
    **contributed_attention.CONTRIBUTED,
    **contributed_fused.CONTRIBUTED,
    **contributed_layers.CONTRIBUTED,
    **contributed_quantised.CONTRIBUTED,
}


def in_their_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with nodes moved to their domain that onnxruntime's optimiser writes into ONNX's, which lacks them."""
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)

    def is_theirs(node: onnx.NodeProto) -> bool:
        return node.domain in {"", "ai.onnx"} and opset < _STRAY.get(node.op_type, 0)

    if not any(is_theirs(n) for holder in _holders(model) for n in holder.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for holder in _holders(result):
        for node in holder.node:
            if is_theirs(node):
                node.domain = DOMAIN
    for importer in (result, *result.functions):
        if all(o.domain != DOMAIN for o in importer.opset_import):
            importer.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return result


_STRAY = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 16}
"""Operators that files of lower opsets have in ONNX's domain."""


def is_in(model: onnx.ModelProto) -> bool:
    """Whether some node can be expanded."""
    return any(_key(n) in CONTRIBUTED for holder in _holders(model) for n in holder.node)


def version(node: onnx.NodeProto) -> int:
    """The opset that a node is of; 0 for that of its file."""
    return next((WRITTEN_IN for p in node.metadata_props if p.key == _OWN), 0)


def expanded(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]) -> onnx.ModelProto:
    """The model with all nodes expanded that can be, those of bodies and functions included.

    ``types`` are those of values of the main graph as far as they are known.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    calls = 0
    for holder in [*_holders(result)]:
        for node in holder.node:
            found = CONTRIBUTED.get(_key(node))
            function = _function(node, found, f"f{calls}", result, types) if found else None
            if function is None:
                continue
            result.functions.append(function)
            _call(node, function)
            calls += 1
    if not calls:
        return model
    for importer in (result, *result.functions[: len(model.functions)]):
        importer.opset_import.append(onnx.helper.make_opsetid(_OWN, 1))
    return onnx.inliner.inline_selected_functions(result, [(_OWN, f"f{n}") for n in range(calls)])


def _key(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain == DOMAIN else ""


def _holders(model: onnx.ModelProto) -> Iterator[Any]:
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        holder = waiting.pop()
        yield holder
        for node in holder.node:
            waiting += [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def _named(names: tuple[str, ...], given: list[str]) -> dict[str, str]:
    """What is there, by its name in the text."""
    if names[-1].endswith("*"):
        fixed, stem = names[:-1], names[-1][:-1]
        names = (*fixed, *(f"{stem}{n}" for n in range(len(given) - len(fixed))))
    if len(given) > len(names):
        raise UnsupportedError(f"it has {len(given)} inputs or outputs, {len(names)} are known")
    return {name: value for name, value in zip(names, given, strict=False) if value}


def _function(
    node: onnx.NodeProto, found: Contributed, name: str, model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function that a node calls, None if its expansion does not do what it asks for."""
    try:
        inputs, outputs = _named(found.inputs, list(node.input)), _named(found.outputs, list(node.output))
        attributes = {a.name: _value(a) for a in node.attribute}
        known = {name: types[value] for name, value in inputs.items() if value in types}
        body = found.spell(Spelled(node.op_type, attributes, tuple(inputs), tuple(outputs), known))
    except UnsupportedError:
        return None
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    head = f'<opset_import: ["" : {opset}], domain: "{_OWN}">\n{name} ({", ".join(inputs)}) => ({", ".join(outputs)})'
    function = onnx.parser.parse_function(f"{head} {{\n{body}\n}}")
    for n in function.node:
        n.metadata_props.add(key=_OWN, value=str(WRITTEN_IN))
    return function


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _call(node: onnx.NodeProto, function: onnx.FunctionProto) -> None:
    inputs, outputs = [i for i in node.input if i], [o for o in node.output if o]
    node.CopyFrom(onnx.helper.make_node(function.name, inputs, outputs, node.name or None, domain=_OWN))


__all__ = ["DOMAIN", "WRITTEN_IN", "expanded", "in_their_domain", "is_in", "version"]
