"""ONNX files into the graph IR.

Everything that can be wrong with a file is said here, once, in one sentence: a missing file, bytes that are no ONNX,
a checker's complaint, operators nothing here can run (all of them at once, before any kernel is built).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto

from tilewright.dsl.dtypes import DType
from tilewright.errors import ModelError, UnsupportedOperatorError
from tilewright.graph import contributed
from tilewright.graph.guards import one_sentence, refuse_odd, type_name
from tilewright.graph.ir import CONTROL, Attribute, Graph, Node, Size, Value, frozen, verify
from tilewright.graph.weights import Bytes, read_file, take_out
from tilewright.ops import OPERATORS

Model = str | Path | bytes | onnx.ModelProto
Weights = Mapping[str, Bytes]

_AS_NUMPY: Mapping[int, np.dtype[Any]] = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in (
        (TensorProto.FLOAT, "f4"), (TensorProto.DOUBLE, "f8"), (TensorProto.FLOAT16, "f2"), (TensorProto.BOOL, "?"),
        (TensorProto.INT8, "i1"), (TensorProto.INT16, "i2"), (TensorProto.INT32, "i4"), (TensorProto.INT64, "i8"),
        (TensorProto.UINT8, "u1"), (TensorProto.UINT16, "u2"), (TensorProto.UINT32, "u4"), (TensorProto.UINT64, "u8"),
    )
}  # fmt: skip
"""Element types whose elements lie in a file as in NumPy's memory."""

SHAPE_READERS = frozenset({"Shape", "Size"})
"""Operators whose result follows from sizes alone, so that it is known when a plan is made."""

_NOT_CONSTANT = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "SequenceConstruct",
        "SequenceEmpty",
        "SplitToSequence",
    }
)
"""Operators whose results are not decided by their inputs' elements, or are no tensors."""


def import_model(model: Model, hosted: bool = False, content: Bytes | None = None) -> Graph:
    """Read a network from a path, the bytes of a file, or a ModelProto.

    With `hosted` the graph may hold what only the host can compute or hold (`parts.py` says what runs where); without,
    it is for the device alone. Raises ModelError for a file that is missing, broken or invalid, and, for the device
    alone, UnsupportedOperatorError (listing every node) for operators that cannot be run. ``content`` are the bytes of
    a file that is open already.
    """
    proto, place, weights = _load(model, content)
    refuse_odd(proto, place)
    proto = contributed.in_their_domain(proto)
    _check(proto, place, weights)
    if proto.functions:
        proto = _without_functions(proto, place)
    types = None
    if contributed.is_in(proto):
        types = _inferred(proto)
        proto = contributed.expanded(proto, types)
    proto = _expand_functions(proto)
    graph = _convert(proto, place, weights, hosted, _inferred(proto) if types is None else types)
    try:
        verify(graph)  # functions that write none of their outputs pass ONNX's checker
    except ValueError as error:
        raise ModelError(f"{place} is not a valid ONNX model: {error}") from None
    problems = [] if hosted else unsupported_nodes(graph)
    if problems:
        raise unsupported(place, problems)
    return graph


def unsupported(place: str, problems: Sequence[str]) -> UnsupportedOperatorError:
    """The error that lists all nodes that cannot be run, a line each."""
    count = f"{len(problems)} node{'s' if len(problems) > 1 else ''}"
    return UnsupportedOperatorError(
        f"{place} has {count} that cannot be run here:\n  "
        + "\n  ".join(problems)
        + "\nExport the network without them, or run it in another runtime."
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _load(model: Model, content: Bytes | None) -> tuple[onnx.ModelProto, str, Weights]:
    """The ModelProto, how messages call it, and the bytes of its large constants where it lacks them."""
    if isinstance(model, onnx.ModelProto):
        return model, f"the model {model.graph.name!r}" if model.graph.name else "the model", {}
    if isinstance(model, bytes | bytearray | memoryview):
        given = np.frombuffer(bytes(model), np.uint8) if content is None else content
        proto, weights = _parsed(lambda: take_out(given), "the model given as bytes")
        return proto, "the model", weights
    if not isinstance(model, str | Path):
        raise ModelError(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
    path = Path(model)
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the path of an .onnx file")
    if not path.exists():
        raise ModelError(f"{path} does not exist; give the path of an .onnx file")
    proto, weights = _parsed(lambda: _opened(path, content), str(path))
    return proto, str(path), weights


def _opened(path: Path, content: Bytes | None) -> tuple[onnx.ModelProto, Weights]:
    proto, weights = take_out(read_file(path) if content is None else content)
    onnx.load_external_data_for_model(proto, str(path.parent))
    return proto, weights


def _parsed(read: Callable[[], tuple[onnx.ModelProto, Weights]], place: str) -> tuple[onnx.ModelProto, Weights]:
    try:
        model, weights = read()
    except DecodeError:
        raise ModelError(f"{place} is not a readable ONNX file: it is truncated, or something else than ONNX") from None
    except (onnx.checker.ValidationError, OSError, ValueError) as error:  # the last: names and offsets of other files
        raise ModelError(f"{place} cannot be read: {one_sentence(error)}") from None
    if not model.HasField("graph") and not model.ir_version:
        raise ModelError(f"{place} is not a readable ONNX file: it holds no graph")
    return model, weights


def _check(model: onnx.ModelProto, place: str, weights: Weights) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(
                f"the data of {tensor.name!r} in {place} lies in another file; open the model by its path, "
                "or load it with onnx.load first"
            )
    if model.graph.sparse_initializer:
        raise ModelError(f"{place} has sparse initializers, which are not supported; export it with dense ones")
    try:
        onnx.checker.check_model(_without_data(model))
        for tensor in model.graph.initializer:
            if tensor.name not in weights and math.prod(tensor.dims) < _LARGE:
                onnx.checker.check_tensor(tensor)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{place} is not a valid ONNX model: {one_sentence(error)}") from None


def _without_functions(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """The model with its own functions written out where they are called."""
    try:
        return onnx.inliner.inline_local_functions(model)
    except RuntimeError as error:  # calls with more inputs or outputs than the function has
        raise ModelError(f"{place} calls one of its functions in a wrong way: {one_sentence(error)}") from None


_LARGE = 1 << 14
"""Elements from which an initializer is not handed to the checker (which copies it); its bytes are counted anyway."""


def _without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its initializers as inputs: for checks and inference, which would copy all weights otherwise."""
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    slim.graph.name = model.graph.name
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend(model.graph.input)
    # exporters leave sizes of outputs away, which the checker does not allow; they are inferred anyway
    slim.graph.output.extend(o for o in model.graph.output if o.type.tensor_type.HasField("shape"))
    slim.graph.value_info.extend(model.graph.value_info)
    named = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in named:
            slim.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return slim


def _opset(model: onnx.ModelProto, place: str) -> int:
    versions: dict[str, int] = {}
    for o in model.opset_import:
        if versions.setdefault(o.domain, o.version) != o.version:
            raise ModelError(
                f"{place} imports the operators of domain {o.domain!r} in version {versions[o.domain]} and again in "
                f"version {o.version}; export it with one"
            )
    version = int(versions.get("", versions.get("ai.onnx", 0)))
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ModelError(f"{place} uses opset {version}, the installed onnx package knows up to {newest}; update onnx")
    return version


def _expand_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace operators that are missing here but defined by ONNX in terms of others by that definition."""
    opset = max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)
    for op in sorted({n.op_type for n in model.graph.node if n.domain in {"", "ai.onnx"}} - OPERATORS.keys()):
        if not _has_function(op, opset):
            continue
        try:
            spelled = _with_default_attributes(model, op, opset)
            expanded = onnx.inliner.inline_selected_functions(spelled, [("", op)], inline_schema_functions=True)
        except RuntimeError:  # a definition that needs types which are not known
            continue
        made = {n.op_type for n in expanded.graph.node} - {n.op_type for n in model.graph.node}
        if op not in made and made <= OPERATORS.keys() | _USUALLY_AHEAD:
            model = expanded
    return model


def _with_default_attributes(model: onnx.ModelProto, op: str, opset: int) -> onnx.ModelProto:
    """The model with every attribute written out at the nodes of an operator: the inliner knows no defaults."""
    defaults = onnx.defs.get_schema(op, max_inclusive_version=opset, domain="").attributes
    spelled = onnx.ModelProto()
    spelled.CopyFrom(model)
    for node in spelled.graph.node:
        if node.op_type == op and node.domain in {"", "ai.onnx"}:
            given = {a.name for a in node.attribute}
            node.attribute.extend(
                d.default_value for name, d in defaults.items() if name not in given and d.default_value.name
            )
    return spelled


_USUALLY_AHEAD = SHAPE_READERS | {"Constant", "ConstantOfShape", "Range"}
"""Operators that definitions use on sizes and constants."""


def _has_function(op: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return False
    known: Any = schema  # the package's stubs lack these two
    return bool(known.has_function or known.has_context_dependent_function)


# --- conversion -------------------------------------------------------------------------------------------------------


def _convert(
    model: onnx.ModelProto, place: str, weights: Weights, hosted: bool, types: Mapping[str, onnx.TypeProto]
) -> Graph:
    reader = _Reader(place, weights, hosted)
    constants = {t.name: reader.array(t) for t in model.graph.initializer}
    inputs = tuple(reader.value(i) for i in model.graph.input if i.name not in constants)
    outputs = tuple(reader.value(o) for o in model.graph.output)
    between = (type_value(name, t) for name, t in types.items())
    known = [v for v in between if v.name not in constants and (hosted or v.hosted is None)]
    values = {v.name: v for v in (*known, *inputs, *outputs)}
    return Graph(
        model.graph.name,
        _opset(model, place),
        inputs,
        outputs,
        tuple(reader.node(n) for n in model.graph.node),
        constants,
        values,
        {o.domain: o.version for o in model.opset_import if o.domain not in {"", "ai.onnx"}},
    ).with_bodies()


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Types of all values as far as ONNX's inference knows them."""
    slim = _without_data(model)
    try:
        graph = onnx.shape_inference.infer_shapes(slim).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    return {v.name: v.type for v in (*graph.value_info, *graph.input) if v.type.WhichOneof("value")}


@dataclass(frozen=True)
class _Reader:
    """From ONNX's messages to the IR. Without `hosted`, types that the language lacks are errors."""

    place: str
    weights: Weights
    hosted: bool

    def value(self, info: onnx.ValueInfoProto) -> Value:
        """An input or output."""
        value = type_value(info.name, info.type)
        if self.hosted or value.hosted is None:
            return value
        if not info.type.HasField("tensor_type"):
            kind = info.type.WhichOneof("value") or "nothing"
            raise ModelError(
                f"{info.name!r} of {self.place} is a {kind}, only tensors can be handed to and from a network here"
            )
        name = type_name(info.type.tensor_type.elem_type)
        raise ModelError(f"{info.name!r} of {self.place} has element type {name}, which is not supported")

    def typed(self, info: onnx.ValueInfoProto) -> Value:
        """An input or output of a body, whose type may be left out; what it is then shows when it is there."""
        return self.value(info) if _has_type(info) else Value(info.name, DType.F32, None)

    def array(self, tensor: TensorProto) -> np.ndarray:
        """A constant; its elements may lie elsewhere, in ONNX's order of bytes, little-endian."""
        if element_type(tensor.data_type) is None and not self.hosted:
            name = type_name(tensor.data_type)
            raise ModelError(
                f"the constant {tensor.name!r} of {self.place} has element type {name}, which is not supported"
            )
        raw = self.weights.get(tensor.name)
        try:
            if raw is not None and tensor.data_type in _AS_NUMPY:
                return frozen(raw.view(_AS_NUMPY[tensor.data_type]).reshape(tuple(tensor.dims)))
            if raw is not None:
                tensor.raw_data = raw.tobytes()
            return frozen(np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims)))
        except (ValueError, TypeError) as error:
            text = f"the data of {tensor.name!r} in {self.place} is incomplete: {one_sentence(error)}"
            raise ModelError(text) from None

    def node(self, node: onnx.NodeProto) -> Node:
        """A node; what its bodies read of the graph around them are its last inputs, and those of every body."""
        domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}::"
        graphs = [a for a in node.attribute if a.type == onnx.AttributeProto.GRAPH and domain + node.op_type in CONTROL]
        bodies = {a.name: self.body(a.g) for a in graphs}
        attributes = {a.name: bodies.get(a.name, _attribute(a)) for a in node.attribute}
        version = contributed.version(node)
        return Node(
            domain + node.op_type, tuple(node.input), tuple(node.output), attributes, node.name, version=version
        )

    def body(self, proto: onnx.GraphProto) -> Graph:
        """The graph of an attribute."""
        constants = {t.name: replace(self, weights={}).array(t) for t in proto.initializer}
        inputs = tuple(self.typed(i) for i in proto.input if i.name not in constants)
        outputs = tuple(self.typed(o) for o in proto.output)
        nodes = tuple(self.node(n) for n in proto.node)
        written = {o for n in nodes for o in n.outputs} | constants.keys() | {v.name for v in inputs}
        told = [v for v in (*proto.value_info, *proto.input, *proto.output) if _has_type(v) and v.name in written]
        values = {v.name: type_value(v.name, v.type) for v in told}
        return Graph(proto.name, 0, inputs, outputs, nodes, constants, values)


def _has_type(info: onnx.ValueInfoProto) -> bool:
    """Whether a file says what kind of value this is, and of a tensor what its elements are."""
    kind = info.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or info.type.tensor_type.elem_type != TensorProto.UNDEFINED)


def type_value(name: str, proto: onnx.TypeProto) -> Value:
    """What a type of ONNX's says about a value."""
    tensor = proto.tensor_type
    dtype = element_type(tensor.elem_type) if proto.HasField("tensor_type") else None
    shape = tuple(_size(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
    return Value(name, dtype or DType.F32, shape, None if dtype else type_text(proto))


def type_text(proto: onnx.TypeProto) -> str:
    """A type as onnxruntime spells it: ``tensor(float)``, ``seq(tensor(int64))``, ``optional(tensor(string))``."""
    match proto.WhichOneof("value"):
        case "tensor_type":
            return f"tensor({type_name(proto.tensor_type.elem_type).lower()})"
        case "sequence_type":
            return f"seq({type_text(proto.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({type_text(proto.optional_type.elem_type)})"
        case "map_type":
            key = type_name(proto.map_type.key_type).lower()
            return f"map({key},{type_text(proto.map_type.value_type)})"
        case other:
            return other or "unknown"


def element_type(code: int) -> DType | None:
    """The language's name of an element type of ONNX's, None if it has none."""
    try:
        return DType.from_numpy(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (TypeError, KeyError, ValueError):
        return None


def _size(d: onnx.TensorShapeProto.Dimension) -> Size:
    if d.HasField("dim_value"):
        return int(d.dim_value) if d.dim_value >= 0 else None  # old exporters write -1 for an open size
    return d.dim_param if _is_name(d.dim_param) else None


def _is_name(text: str) -> bool:
    """Whether a dimension's text names a size: for sizes that are open exporters write `?`, `-1`, `None` or nothing."""
    return text.strip() != str(None) and any(c.isalpha() or c == "_" for c in text)


def _attribute(a: onnx.AttributeProto) -> Attribute:
    value: Any = onnx.helper.get_attribute_value(a)
    match a.type:
        case onnx.AttributeProto.TENSOR:
            return frozen(onnx.numpy_helper.to_array(value).copy())
        case onnx.AttributeProto.STRING:
            return bytes(value).decode(errors="replace")
        case onnx.AttributeProto.STRINGS:
            return tuple(bytes(v).decode(errors="replace") for v in value)
        case onnx.AttributeProto.INTS | onnx.AttributeProto.FLOATS:
            return tuple(value)
        case onnx.AttributeProto.INT | onnx.AttributeProto.FLOAT:
            number: Attribute = value
            return number
        case _:
            return a


# --- what cannot be run -----------------------------------------------------------------------------------------------


def unsupported_nodes(graph: Graph) -> list[str]:
    """One line per node that cannot be run: its name, operator, opset, and what is unsupported about it."""
    host = set(graph.constants) | set(steering_inputs(graph))
    problems = []
    for node in graph.nodes:
        if is_known_ahead(node, host):
            host.update(node.outputs)
            continue
        reason = _reason(node, graph.opset, host)
        if reason:
            name = f"{node.name!r}" if node.name else f"the node that writes {node.label!r}"
            problems.append(f"{name}: {node.op} (opset {graph.opset}): {reason}")
    return problems


def steering_inputs(graph: Graph) -> tuple[str, ...]:
    """The inputs whose elements decide sizes or how an operator works (shapes, axes, pads); a plan is made for each.

    Only inputs of at most one dimension can steer: a size that is computed from an image stays unsupported.
    """
    needed = steering_values(graph)
    return tuple(v.name for v in graph.inputs if v.name in needed and v.shape is not None and len(v.shape) <= 1)


def steering_values(graph: Graph) -> set[str]:
    """The values that must be known when a plan is made, and those that they are computed from."""
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        operator = OPERATORS.get(node.op)
        if operator is not None:
            needed.update(node.inputs[n] for n in operator.host if n < len(node.inputs))
        if node.op not in SHAPE_READERS and needed & set(node.outputs):
            needed.update(node.inputs)
    return needed


def is_known_ahead(node: Node, host: Collection[str]) -> bool:
    """True if the node's result follows from constants and sizes, so that the host computes it once per plan."""
    if node.op in SHAPE_READERS:
        return True
    computable = "::" not in node.op and node.op not in _NOT_CONSTANT and onnx.defs.has(node.op)
    return computable and not node.bodies and all(i in host for i in node.inputs if i)


def _reason(node: Node, opset: int, host: set[str]) -> str | None:
    operator = OPERATORS.get(node.op)
    for position in operator.host if operator else ():
        if position < len(node.inputs) and node.inputs[position] and node.inputs[position] not in host:
            return f"its input {node.inputs[position]!r} must be constant, but is computed from data"
    return refusal(node, opset)


def refusal(node: Node, opset: int) -> str | None:
    """Why the device cannot compute a node whatever its operands, or None if it may."""
    operator = OPERATORS.get(node.op)
    if operator is None:
        return "the operator is not supported"
    return operator.refusal(node.attributes, max(opset, node.version), len([o for o in node.outputs if o]))
