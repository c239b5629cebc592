"""Networks through ONNX's backend interface (`onnx.backend.base`), which its conformance suite is written for.

    from tilewright.graph import backend
    outputs = backend.prepare(model, "CPU").run([x])

The module itself is a backend, as the interface has it: `prepare`, `run_model`, `run_node`, `supports_device` and
`is_compatible` stand in it as functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from tilewright.errors import DeviceError, InputError, ModelError
from tilewright.graph.placement import Place, placed_nodes
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, devices, select_device

_OPTIONS = frozenset({"precision", "fast_math", "store"})
"""Arguments of `prepare` that go to the session."""

_OF_THE_SUITE = frozenset({"rtol", "atol"})
"""Arguments that the conformance suite hands to every backend, and uses itself."""

_ONNX_DEVICE = re.compile(r"(CPU|CUDA|GPU)(?::(\d+))?")


class TilewrightBackendRep(BackendRep):
    """A network that is ready to run."""

    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self._inputs = tuple(a.name for a in session.get_inputs())
        names = [a.name for a in session.get_outputs()]
        self._outputs = namedtupledict("Outputs", names)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """All outputs, as a tuple that may be indexed by name too.

        `inputs` are arrays in the order of the network's inputs (trailing ones may be left out where they are
        optional), a mapping by name, or the only array there is. Raises InputError for what does not fit.
        """
        if kwargs:
            raise InputError(f"run takes no {_listed(kwargs)}; give options to prepare")
        return self._outputs(*self.session.run(None, self._feeds(inputs)))

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(given) > len(self._inputs):
            raise InputError(f"the network has {len(self._inputs)} inputs, found {len(given)} arrays")
        return dict(zip(self._inputs, given, strict=False))


class TilewrightBackend(Backend):
    """What ONNX calls a backend: class methods alone.

    A device is named as ONNX does, "CPU" or "CUDA:1" (an NVIDIA GPU), or by tilewright's own names ("pocl").
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True if there is such a device here."""
        try:
            _device(device)
        except DeviceError:
            return False
        return True

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str | Device = "CPU", **kwargs: Any) -> bool:
        """False if the model has nodes that cannot be run, or the device is missing; ModelError for a broken one."""
        try:
            _device(device)
        except DeviceError:
            return False
        return all(n.place is not Place.MISSING for n in placed_nodes(model))

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str | Device = "CPU", **kwargs: Any) -> TilewrightBackendRep:
        """The model made ready; options are those of InferenceSession: precision, fast_math, store."""
        unknown = kwargs.keys() - _OPTIONS - _OF_THE_SUITE
        if unknown:
            raise InputError(f"prepare takes no {_listed(unknown)}; the options are {_listed(_OPTIONS)}")
        options = {name: value for name, value in kwargs.items() if name in _OPTIONS}
        return TilewrightBackendRep(InferenceSession(model, _device(device), **options))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str | Device = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Prepare and run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str | Device = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """One node alone, for arrays in the order of its inputs that are not left out.

        `outputs_info`, the outputs' element types and shapes, is needed only where ONNX's inference does not know
        them; `opset_version` says which version of the operator is meant (the newest).
        """
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        named = [name for name in node.input if name]
        given = [inputs[name] for name in named] if isinstance(inputs, Mapping) else list(inputs)
        if len(given) != len(named):
            raise InputError(f"the node reads {len(named)} values, found {len(given)} arrays")
        model = _one_node_model(node, dict(zip(named, given, strict=True)), opset, outputs_info)
        return cls.prepare(model, device, **kwargs).run(given)


def _device(name: str | Device) -> Device:
    """The device that an ONNX backend's device name means; DeviceError if there is none."""
    if isinstance(name, Device):
        return name
    match = _ONNX_DEVICE.fullmatch(name)
    if match is None:
        return select_device(name)
    kind, number = match[1], int(match[2] or 0)
    present = sorted(devices(), key=lambda d: d != select_device(None))  # the user's choice first
    fitting = [d for d in present if _is_called(d, kind)]
    if number >= len(fitting):
        names = ", ".join(d.name for d in present)
        raise DeviceError(f"there is no device {name!r} here; the devices are {names}")
    return fitting[number]


def _is_called(device: Device, kind: str) -> bool:
    if kind == "CUDA":
        return device.kind == "gpu" and "nvidia" in device.vendor.casefold()
    return device.kind == kind.casefold()


def _one_node_model(
    node: onnx.NodeProto,
    given: Mapping[str, Any],
    opset: int,
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None,
) -> onnx.ModelProto:
    types = {name: _type_of(name, value) for name, value in given.items()}
    outputs = [o for o in node.output if o]
    opsets = [helper.make_opsetid(node.domain, opset)]
    if outputs_info is not None:
        codes = [(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape) for dtype, shape in outputs_info]
        found = {o: helper.make_tensor_type_proto(*info) for o, info in zip(outputs, codes, strict=True)}
    else:
        found = _inferred(node, types, opset, opsets)
    graph = helper.make_graph(
        [node],
        node.op_type,
        [helper.make_value_info(name, proto) for name, proto in types.items()],
        [helper.make_value_info(o, found.get(o, onnx.TypeProto())) for o in outputs],
    )
    return helper.make_model(graph, opset_imports=opsets, ir_version=onnx.IR_VERSION)


def _inferred(
    node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], opset: int, opsets: list[onnx.OperatorSetIdProto]
) -> dict[str, onnx.TypeProto]:
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain=node.domain)
        return dict(onnx.shape_inference.infer_node_outputs(schema, node, dict(types), opset_imports=opsets))
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            f"the node {node.name or node.op_type!r} is not valid: {' '.join(str(error).split())}"
        ) from None


def _type_of(name: str, value: Any) -> onnx.TypeProto:
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"the input {name!r} is an empty list, whose type is unknown; use prepare with a model")
        return helper.make_sequence_type_proto(_type_of(name, value[0]))
    array = np.asarray(value)
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


is_compatible = TilewrightBackend.is_compatible
prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device
