"""Values outside the language, as the host holds them, and values that lie on the host, on the device, or on both.

tensors        NumPy arrays; strings as arrays of objects, narrow types by ml_dtypes
sequences      lists of values
optionals      the value itself, or None
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError
from tilewright.graph.ir import Value
from tilewright.runtime import Array, Device, asarray, context

HostValue = Any
"""A NumPy array, a list of such values, or None."""


def host_value(result: Any) -> HostValue:
    """What an evaluator gave, as the host holds it: numbers become arrays, texts arrays of objects."""
    if result is None:
        return None
    if isinstance(result, list | tuple):
        return [host_value(r) for r in result]
    if isinstance(result, dict):
        return result
    array = np.asarray(result)
    return array.astype(object) if array.dtype.kind in "US" else array


def type_proto(value: HostValue) -> onnx.TypeProto:
    """ONNX's type of a value, sizes left open; of an empty sequence or optional, one of floats."""
    if isinstance(value, list):
        inner = type_proto(value[0]) if value else helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        return helper.make_sequence_type_proto(inner)
    if value is None or isinstance(value, dict):
        return helper.make_optional_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    code = onnx.TensorProto.STRING if value.dtype == object else helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_type_proto(code, [None] * value.ndim)


def language_type(dtype: np.dtype[Any]) -> DType | None:
    """The language's name of an element type, None if it has none."""
    try:
        return DType.from_numpy(dtype)
    except TypeError:
        return None


class Held:
    """A value on the host, on the device, or on both: it is copied once to where it is asked for."""

    __slots__ = ("_array", "_host", "_on_host")

    def __init__(self, value: HostValue | Array) -> None:
        on_device = isinstance(value, Array)
        self._array: Array | None = value if on_device else None
        self._host: HostValue = None if on_device else value
        self._on_host = not on_device

    @property
    def host(self) -> HostValue:
        """The value on the host."""
        if not self._on_host and self._array is not None:
            self.put_on_host(self._array.numpy())
        return self._host

    @property
    def array(self) -> np.ndarray[Any, Any] | Array | None:
        """The tensor wherever it lies, None for what is no tensor."""
        found = self._array if self._array is not None else self._host
        return found if isinstance(found, Array | np.ndarray) else None

    @property
    def on_device(self) -> bool:
        """True if it lies in the device's memory."""
        return self._array is not None

    @property
    def on_host(self) -> bool:
        """True if it lies in the host's memory, so that looking at it waits for nothing."""
        return self._on_host

    def put_on_host(self, copy: HostValue) -> None:
        """Keep a copy that was made on the host."""
        self._host, self._on_host = copy, True

    def on(self, device: Device) -> Array:
        """The tensor in the memory of the device."""
        if self._array is None:
            self._array = asarray(np.ascontiguousarray(self._host).reshape(self._host.shape), device)
        return self._array

    def typed(self, name: str) -> Value | None:
        """Its type as a value of that name; None if the device cannot hold it."""
        array = self.array
        dtype = None if array is None else language_type(array.dtype)
        return None if array is None or dtype is None else Value(name, dtype, tuple(array.shape))


def fetch(held: Iterable[Held | None]) -> None:
    """Copy to the host what of these lies on the device alone, and wait once for all of it."""
    missing = {id(h): h for h in held if h is not None and not h.on_host}
    by_device: dict[Device, list[tuple[Held, Array]]] = {}
    for h in missing.values():
        if isinstance(h.array, Array):
            by_device.setdefault(h.array.device, []).append((h, h.array))
    for device, pairs in by_device.items():
        found = context(device).transfers.receive([(a.buffer, a.shape, a.dtype) for _, a in pairs])
        for (h, _), array in zip(pairs, found, strict=True):
            h.put_on_host(array)


def checked(value: Value, given: Any) -> HostValue:
    """What is fed for an input of a type that only the host holds; InputError if it does not fit."""
    kind = value.hosted or ""
    if kind.startswith("optional("):
        return None if given is None else checked(Value(value.name, value.dtype, value.shape, kind[9:-1]), given)
    if kind.startswith("seq("):
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise InputError(f"the input {value.name!r} is a {kind}: give a list of arrays, not {_called(given)}")
        inner = Value(value.name, value.dtype, None, kind[4:-1])
        return [checked(inner, g) for g in given]
    if not kind.startswith("tensor("):
        raise InputError(f"the input {value.name!r} is a {kind}, which cannot be handed to a network here")
    return _checked_tensor(value, kind[7:-1], given)


def _checked_tensor(value: Value, element: str, given: Any) -> np.ndarray[Any, Any]:
    if isinstance(given, Array):
        given = given.numpy()
    array = np.asarray(given)
    if element == "string":
        if array.dtype.kind not in "OUS":
            raise InputError(f"the input {value.name!r} should be texts, found {array.dtype}")
        array = array.astype(object)
    else:
        expected = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(element.upper()))
        if array.dtype != expected:
            raise InputError(f"the input {value.name!r} should be {expected}, found {array.dtype}")
    if value.shape is not None and array.ndim != len(value.shape):
        raise InputError(f"the input {value.name!r} should have {len(value.shape)} dimensions, found {array.ndim}")
    for d, (wanted, n) in enumerate(zip(value.shape or (), array.shape, strict=False)):
        if isinstance(wanted, int) and wanted != n:
            raise InputError(f"the input {value.name!r} should have size {wanted} in dimension {d}, found {n}")
    return array


def _called(given: Any) -> str:
    return f"an array of {given.dtype}" if hasattr(given, "dtype") else type(given).__name__


__all__ = ["Held", "HostValue", "checked", "fetch", "host_value", "language_type", "type_proto"]
