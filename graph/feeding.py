"""What a session is fed, checked against what its network declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError
from tilewright.graph.ir import Value
from tilewright.runtime import Array, Device

Given = Any
"""An array, an Array, or what `host_values` says of other types."""

_TYPE_NAMES = {
    DType.BOOL: "bool",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float",
    DType.F64: "double",
}


@dataclass(frozen=True)
class NodeArgument:
    """An input or output as onnxruntime describes it."""

    name: str
    shape: list[int | str | None]
    """Sizes; the name of one that is open, None for one without a name."""
    type: str
    """For example ``tensor(float)``."""


def argument(value: Value) -> NodeArgument:
    """How an input or output is described."""
    name = _TYPE_NAMES.get(value.dtype, value.dtype.numpy.name)
    return NodeArgument(value.name, list(value.shape or ()), value.hosted or f"tensor({name})")


def listed(names: Sequence[str]) -> str:
    """Names as messages give them."""
    return ", ".join(map(repr, names)) or "none"


def fed_array(value: Value, given: Any, device: Device) -> Given:
    """The fed array, checked against what the network declares."""
    if value.hosted:
        from tilewright.graph.host_values import checked

        return checked(value, given)
    if isinstance(given, Array) and given.device != device:
        raise InputError(
            f"the input {value.name!r} lies on {given.device.name}, but the session runs on {device.name}; "
            "move it with asarray"
        )
    try:
        array = given if isinstance(given, Array) else np.asarray(given)
    except ValueError as error:  # rows of different lengths
        from tilewright.graph.guards import one_sentence

        raise InputError(f"the input {value.name!r} is no array: {one_sentence(error)}") from None
    expected = value.dtype.numpy
    if array.dtype != expected:
        raise InputError(f"the input {value.name!r} should be {expected}, found {array.dtype}; convert it with astype")
    sizes = value.shape or ()
    if len(sizes) != array.ndim or any(isinstance(n, int) and n != m for n, m in zip(sizes, array.shape, strict=True)):
        raise _misfit(value.name, sizes, array.shape)
    return array


def _misfit(name: str, sizes: Sequence[int | str | None], given: Sequence[int]) -> InputError:
    """What is wrong with an array's sizes, which are not those that the network declares."""
    shape = "x".join(str(n or "?") for n in sizes) or "a single number"
    found = "x".join(map(str, given)) or "a single number"
    if len(given) != len(sizes):
        return InputError(
            f"the input {name!r} should have {len(sizes)} dimensions ({shape}), found {len(given)} ({found})"
        )
    pairs = enumerate(zip(sizes, given, strict=True))
    d, wanted, n = next((d, wanted, n) for d, (wanted, n) in pairs if isinstance(wanted, int) and wanted != n)
    return InputError(f"the input {name!r} should have size {wanted} in dimension {d} ({shape}), found {n} ({found})")


def check_named_sizes(inputs: Sequence[Value], arrays: Mapping[str, Given]) -> None:
    """InputError where one name stands for two sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for v in inputs:
        if v.hosted:
            continue
        for d, (name, n) in enumerate(zip(v.shape or (), arrays[v.name].shape, strict=False)):
            if not isinstance(name, str):
                continue
            known, where = sizes.setdefault(name, (n, f"dimension {d} of {v.name!r}"))
            if known != n:
                raise InputError(f"dimension {d} of {v.name!r} should be {name} = {known} (from {where}), found {n}")


__all__ = ["Given", "NodeArgument", "argument", "check_named_sizes", "fed_array", "listed"]
