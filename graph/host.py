"""What the host works out: values of nodes whose inputs are constant or that only it can compute, and types of values.

Both come from the onnx package (its reference evaluator, its shape inference), node by node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError, ModelError, UnsupportedOperatorError
from tilewright.graph.guards import fitting, one_sentence
from tilewright.graph.host_values import HostValue, host_value, type_proto
from tilewright.graph.ir import Attribute, Node, Size, Value, frozen
from tilewright.ops.recurrent import PER_DIRECTION, hidden_size

_KNOWN_DATA = 4096
"""Elements up to which a constant's data is shown to shape inference: sizes, axes and pads are far smaller."""

_LIKE_ITS_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization"})
"""Operators whose output has the first input's type although ONNX's inference does not say so."""

_UNTOLD_DEFAULTS: Mapping[str, Mapping[str, Attribute]] = {"STFT": {"onesided": 1}}
"""Attributes that ONNX's inference takes for 0 where they are left out, although their default is another."""

_EVALUATED_FROM = {"DequantizeLinear": 19}
"""Opsets from which ONNX's evaluator has operators that mean the same in older ones."""


class NeedsHostError(UnsupportedOperatorError):
    """Nodes cannot be computed on the device with the sizes and types at hand; the host may be able to."""

    def __init__(self, message: str, sources: Iterable[str]) -> None:
        super().__init__(message)
        self.sources = frozenset(sources)
        """Names of the file's nodes that they stand for."""


def evaluate(node: Node, opset: int, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The node's outputs, all tensors, for given inputs (None where an input is left out), by ONNX's evaluator.

    Raises ModelError if the evaluator cannot compute it.
    """
    found = evaluate_any(node, opset, {}, inputs)
    if not all(isinstance(r, np.ndarray) for r in found):
        raise ModelError(f"node {node.label!r} ({node.op}) gives something else than tensors")
    return tuple(np.empty(0) if r is None else frozen(r) for r in found)


def evaluate_any(
    node: Node, opset: int, domains: Mapping[str, int], inputs: Sequence[HostValue]
) -> tuple[HostValue, ...]:
    """The node's outputs by ONNX's reference evaluator; outputs that nobody wants are empty arrays.

    Values are NumPy arrays, sequences as lists of them, and None for an input that is left out or an optional without
    an element. Raises ModelError if the evaluator cannot compute it, InputError for what it would take without a word.
    """
    from onnx.reference import ReferenceEvaluator  # takes a while, and many networks do without

    _check_range(node, inputs)
    _check_ignored(node, inputs)
    present = {name: a for name, a in zip(node.inputs, inputs, strict=True) if name}
    outputs = [o for o in node.outputs if o]
    types = [helper.make_value_info(n, type_proto(a)) for n, a in present.items()]
    graph = helper.make_graph(
        [node_proto(node)], "node", types, [helper.make_empty_tensor_value_info(o) for o in outputs]
    )
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(graph, opsets=_opsets(node, opset, domains)).run(None, dict(present))
    except Exception as error:  # the evaluator runs foreign code on foreign data: any failure means the same here
        raise ModelError(
            f"node {node.label!r} ({node.op}) cannot be computed from its inputs: {one_sentence(error)}"
        ) from None
    found = dict(zip(outputs, map(host_value, results), strict=True))
    return tuple(found.get(o, np.empty(0)) for o in node.outputs)


def _check_range(node: Node, inputs: Sequence[HostValue]) -> None:
    """InputError for a Range that has no end."""
    if node.op != "Range" or any(np.size(i) != 1 for i in inputs):
        return
    start, limit, step = (float(np.asarray(i).reshape(-1)[0]) for i in inputs)
    if not step or not np.isfinite((limit - start) / step):
        raise InputError(
            f"node {node.label!r} (Range) has no end: it goes from {start:g} to {limit:g} in steps of {step:g}"
        )


def _check_ignored(node: Node, inputs: Sequence[HostValue]) -> None:
    """ModelError for what ONNX's evaluator (1.23) would ignore without a word."""
    found = [name for name, usual in _IGNORED.get(node.op, {}).items() if node.attributes.get(name, usual) != usual]
    if node.op in PER_DIRECTION:
        _untold(node, [None if i is None else np.shape(np.asarray(i)) for i in inputs])
        usual = [name.lower() for name in PER_DIRECTION[node.op]]
        written: Any = node.attributes.get("activations", ())
        named = [str(name).lower() for name in written]
        found += ["activations"] if named != usual * (len(named) // len(usual)) else []
        found += ["sequence_lens"] if len(inputs) > 4 and inputs[4] is not None else []
    if found:
        raise ModelError(
            f"node {node.label!r} ({node.op}) cannot be computed: the device has no form of it for these sizes and "
            f"attributes, and ONNX's evaluator, which would do it on the host, ignores its {found[0]}; export it "
            "without, or with shorter sequences"
        )


_IGNORED: Mapping[str, Mapping[str, Attribute]] = {
    "BatchNormalization": {"spatial": 1},
    "GRU": {"clip": 0.0},
    "LSTM": {"clip": 0.0, "input_forget": 0},
    "RNN": {"clip": 0.0},
}
"""Attributes that the evaluator takes without a look, with the value that it goes by."""


def can_evaluate(node: Node, opset: int, domains: Mapping[str, int]) -> bool:
    """True if ONNX's reference evaluator knows the operator."""
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [node_proto(node)],
        "node",
        [helper.make_empty_tensor_value_info(i) for i in dict.fromkeys(node.inputs) if i],
        [helper.make_empty_tensor_value_info(o) for o in node.outputs if o],
    )
    try:
        ReferenceEvaluator(graph, opsets=_opsets(node, opset, domains))
    except Exception as error:  # the evaluator's own, and whatever its operators raise when they are made
        return _is_missing_type(error)
    return True


def _opsets(node: Node, opset: int, domains: Mapping[str, int]) -> dict[str, int]:
    return {"": max(opset, node.version, _EVALUATED_FROM.get(node.op, 0)), **domains}


def _is_missing_type(error: Exception) -> bool:
    """True for a function that is defined only when its inputs' types are known, which they are once it runs."""
    return "context" in str(error) or "input_types" in str(error)


def infer(node: Node, opset: int, inputs: Sequence[Value | None], data: Mapping[str, np.ndarray]) -> tuple[Value, ...]:
    """Types of the node's outputs from its inputs' types and, where they decide a size, values.

    Raises ModelError if the inputs contradict each other.
    """
    opset = max(opset, node.version)
    schema = onnx.defs.get_schema(node.op, max_inclusive_version=opset, domain="")
    told = replace(
        node, attributes={**_untold(node, [None if v is None else v.shape for v in inputs]), **node.attributes}
    )
    types = {v.name: _type(v) for v in inputs if v is not None}
    small = {
        name: numpy_helper.from_array(np.array(data[name]), name)
        for name in set(node.inputs) & set(data)
        if data[name].size <= _KNOWN_DATA
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node_proto(told), types, small, opset_imports=[helper.make_opsetid("", opset)]
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = one_sentence(error)
        raise ModelError(f"node {node.label!r} ({node.op}) does not fit its inputs: {text}") from None
    definition: Any = schema  # the package's stubs lack the property
    if definition.has_function and not all(o in found and _has_shape(found[o]) for o in node.outputs if o):
        found = {**found, **_inferred_by_definition(told, opset, types, small)}
    result = tuple(_value(node, o, found.get(o)) for o in node.outputs)
    if node.op in _LIKE_ITS_INPUT and result[0].shape is None and inputs[0] is not None:
        return (replace(inputs[0], name=node.outputs[0]), *result[1:])
    return (_resized(node, opset, inputs[0], data, result[0]),) if node.op in {"Resize", "Upsample"} else result


def _untold(node: Node, shapes: Sequence[tuple[Size, ...] | None]) -> Mapping[str, Attribute]:
    """What ONNX's inference must be told of attributes that are left out."""
    weights = shapes[2] if node.op in PER_DIRECTION and len(shapes) > 2 else None
    if weights is None or not all(isinstance(n, int) for n in weights):
        return _UNTOLD_DEFAULTS.get(node.op, {})
    with fitting(node.label, node.op):
        return {"hidden_size": hidden_size(node.attributes, [n for n in weights if isinstance(n, int)])}


def _resized(node: Node, opset: int, given: Value | None, data: Mapping[str, np.ndarray], result: Value) -> Value:
    """What scales make of the input's sizes, multiplied in f32 as exporters and runtimes do.

    ONNX's inference multiplies in f64, where 5 times the f32 next to 1.4 is below 7.
    """
    position = 2 if node.op == "Resize" and opset >= 11 else 1
    scales = data.get(node.inputs[position]) if len(node.inputs) > position else None
    scales = np.array(node.attributes.get("scales", ()), np.float32) if scales is None else scales
    is_cropped = node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if is_cropped or not scales.size or given is None or not (given.is_concrete and result.is_concrete):
        return result
    written: Any = node.attributes.get("axes") or range(len(given.sizes))
    sizes = list(result.sizes)
    for axis, scale in zip(written, scales.astype(np.float32), strict=False):
        found = np.floor(np.float32(given.sizes[axis]) * scale)
        if abs(found - sizes[axis]) == 1:  # anything else is no matter of rounding
            sizes[axis] = int(found)
    return replace(result, shape=tuple(sizes))


def _has_shape(proto: onnx.TypeProto) -> bool:
    return bool(proto.tensor_type.HasField("shape"))


def _inferred_by_definition(
    node: Node, opset: int, types: Mapping[str, onnx.TypeProto], data: Mapping[str, onnx.TensorProto]
) -> dict[str, onnx.TypeProto]:
    """Types of outputs of an operator that has no inference of its own, but a definition by other operators."""
    inputs = [helper.make_value_info(name, t) for name, t in types.items()]
    outputs = [helper.make_empty_tensor_value_info(o) for o in node.outputs if o]
    graph = helper.make_graph([node_proto(node)], "node", inputs, outputs, list(data.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    return {v.name: v.type for v in inferred.output if v.type.tensor_type.elem_type}


def _type(value: Value) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype.numpy), value.shape)


def _value(node: Node, name: str, proto: onnx.TypeProto | None) -> Value:
    if proto is None or not proto.HasField("tensor_type"):
        return Value(name, DType.F32, None)
    tensor = proto.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    try:
        dtype = DType.from_numpy(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (TypeError, KeyError):
        found = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise NeedsHostError(
            f"the value {name!r} has element type {found}, which is not supported", node.sources
        ) from None
    return Value(name, dtype, shape)


def node_proto(node: Node) -> onnx.NodeProto:
    """The node as ONNX writes it."""
    domain, _, op = node.op.rpartition("::")
    proto = helper.make_node(op, node.inputs, node.outputs, node.name or None, domain=domain)
    for name, value in node.attributes.items():
        if isinstance(value, onnx.AttributeProto):
            proto.attribute.append(value)
            continue
        is_empty = isinstance(value, tuple) and not value
        empty = onnx.AttributeProto.INTS if is_empty else None  # the only empty lists there are: axes, pads
        proto.attribute.append(helper.make_attribute(name, _plain(value), attr_type=empty))
    return proto


def _plain(value: Attribute) -> object:
    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(np.array(value))
    return list(value) if isinstance(value, tuple) else value
