"""The arguments that a foreign kernel is tuned with, and what it has to make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tilewright.autotune.kernel_text import KernelParameter
from tilewright.autotune.subjects import Arguments, Values
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Tensor
from tilewright.errors import InputError
from tilewright.runtime import element_type

TOLERANCES = {DType.F16: 1e-2, DType.BF16: 5e-2, DType.F32: 1e-4, DType.F64: 1e-10}
"""Error allowed where none is given, relative to the largest magnitude expected; integers must be exact."""


@dataclass(frozen=True)
class Output:
    """An array that the kernel writes as a whole: nothing of what it holds before is read. It is poisoned."""

    shape: tuple[int, ...]
    dtype: DTypeLike = np.float32


@dataclass(frozen=True, eq=False)
class InOut:
    """An array that the kernel reads and changes. It holds these values again before every run that is checked."""

    values: Values


Given = Sequence[Any] | Mapping[str, Any]
"""Arguments in the kernel's order, or by the names of its parameters."""
Reference = Callable[..., Any] | Values | Sequence[Any] | Mapping[str, Any]
"""What the outputs must hold; a function gets all arguments in order but the `Output`s."""


@dataclass(frozen=True, eq=False)
class Bound:
    """Arguments sorted out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalars: Mapping[str, np.generic]
    arguments: Arguments

    @property
    def bytes_moved(self) -> int:
        """Each array read or written once, those that are changed twice."""
        twice = sum(values.nbytes for values in self.arguments.initial.values())
        return twice + sum(t.size * t.dtype.itemsize for t in (*self.inputs, *self.outputs))


def bind(kernel: str, parameters: Sequence[KernelParameter], given: Given, reference: Reference) -> Bound:
    """Match arguments with parameters, and run the reference; InputError that names what does not fit."""
    values = _by_name(kernel, parameters, given)
    inputs: dict[str, Values] = {}
    initial: dict[str, Values] = {}
    outputs: dict[str, Tensor] = {}
    scalars: dict[str, np.generic] = {}
    for p in parameters:
        value, what = values[p.name], f"argument {p.name} of kernel {kernel}"
        if not p.is_array:
            scalars[p.name] = _scalar(p, value, what)
        elif isinstance(value, Output):
            outputs[p.name] = _tensor(p, value.shape, np.dtype(value.dtype), what)
        elif isinstance(value, InOut):
            initial[p.name] = _array(value.values, what)
            outputs[p.name] = _tensor(p, initial[p.name].shape, initial[p.name].dtype, what)
        else:
            inputs[p.name] = _array(value, what)
    unwritable = [p.name for p in parameters if p.name in outputs and p.is_constant]
    if unwritable:
        raise InputError(f"argument {unwritable[0]} of kernel {kernel} is an output, but the kernel declares it const")
    if not any(t.size for t in outputs.values()):
        raise InputError(f"kernel {kernel} has no output with elements; mark what it writes with Output or InOut")
    tensors = tuple(
        _tensor(p, inputs[p.name].shape, inputs[p.name].dtype, f"argument {p.name} of kernel {kernel}")
        for p in parameters
        if p.name in inputs
    )
    passed = [
        _passed(p.name, inputs, initial, scalars) for p in parameters if p.name not in outputs or p.name in initial
    ]
    expected = _expected(kernel, outputs, reference, passed)
    return Bound(tensors, tuple(outputs.values()), scalars, Arguments(inputs, initial, expected))


def _by_name(kernel: str, parameters: Sequence[KernelParameter], given: Given) -> Mapping[str, Any]:
    names = [p.name for p in parameters]
    listed = ", ".join(names) or "none"
    if isinstance(given, Mapping):
        odd = sorted(set(given) ^ set(names))
        if odd:
            there = "is missing" if odd[0] in names else "is none of them"
            raise InputError(f"kernel {kernel} takes the arguments {listed}; {odd[0]} {there}")
        return given
    if len(given) != len(names):
        raise InputError(f"kernel {kernel} takes {len(names)} arguments ({listed}), but {len(given)} are given")
    return dict(zip(names, given, strict=True))


def _scalar(parameter: KernelParameter, value: Any, what: str) -> np.generic:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.generic):
        if parameter.dtype is not None and value.dtype != parameter.dtype:
            raise InputError(f"{what} is a {parameter.declared} in the source, but {value.dtype} is given")
        return value
    if not isinstance(value, bool | int | float):
        raise InputError(f"{what} is a {parameter.declared}, no array; give a number, found {type(value).__name__}")
    if parameter.dtype is None:
        raise InputError(f"{what} has the type {parameter.declared}; give a NumPy number of that size, as np.int32(1)")
    dtype: np.dtype[Any] = parameter.dtype
    if dtype.kind in "iu" and not (float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
        raise InputError(f"{what} is {value!r}, which is no {parameter.declared}")
    found: np.generic = dtype.type(value)
    return found


def _array(value: Any, what: str) -> Values:
    if not isinstance(value, np.ndarray):
        raise InputError(f"{what} is memory; give a NumPy array, Output(shape, dtype) or InOut(array)")
    return np.array(value, dtype=value.dtype.newbyteorder("="), order="C")  # a copy: the caller's may change


def _tensor(parameter: KernelParameter, shape: Sequence[int], dtype: np.dtype[Any], what: str) -> Tensor:
    if parameter.dtype is not None and not _same_elements(parameter.dtype, dtype):
        raise InputError(
            f"{what} points to {parameter.declared} in the source, but is an array of {dtype}; "
            f"give it as {parameter.dtype}, or as .view({parameter.dtype})"
        )
    if any(n < 0 for n in shape):
        raise InputError(f"{what} has a negative size: {tuple(shape)}")
    return Tensor(parameter.name, element_type(dtype, what), tuple(int(n) for n in shape))


def _same_elements(declared: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    """Whether memory declared so may hold such an array: integers of either sign, bool in char, bf16 in (u)short."""
    if declared == dtype:
        return True
    whole = dtype.kind in "biu" or dtype.name == "bfloat16"
    return declared.itemsize == dtype.itemsize and declared.kind in "iu" and whole


def _passed(
    name: str, inputs: Mapping[str, Values], initial: Mapping[str, Values], scalars: Mapping[str, np.generic]
) -> Any:
    """An argument as the reference gets it: arrays are its own to change."""
    if name in scalars:
        return scalars[name]
    return (inputs[name] if name in inputs else initial[name]).copy()


def _expected(
    kernel: str, outputs: Mapping[str, Tensor], reference: Reference, passed: Sequence[Any]
) -> dict[str, Values]:
    results = reference(*passed) if callable(reference) else reference
    if isinstance(results, Mapping):
        odd = sorted(set(results) ^ set(outputs))
        if odd:
            raise InputError(f"the reference of kernel {kernel} must give {', '.join(outputs)}; look at {odd[0]}")
        results = [results[name] for name in outputs]
    elif not isinstance(results, tuple) and not (isinstance(results, list) and len(outputs) > 1):
        results = [results]
    if len(results) != len(outputs):
        raise InputError(
            f"kernel {kernel} has {len(outputs)} outputs ({', '.join(outputs)}), but its reference gives {len(results)}"
        )
    return {t.name: _result(kernel, t, r) for t, r in zip(outputs.values(), results, strict=True)}


def _result(kernel: str, output: Tensor, result: Any) -> Values:
    values = np.asarray(result)
    if values.shape != output.shape:
        raise InputError(
            f"the reference of kernel {kernel} gives {output.name} the shape {values.shape}, but it has {output.shape}"
        )
    if not output.dtype.is_float and values.dtype.kind not in "biu":
        raise InputError(
            f"output {output.name} of kernel {kernel} is an array of {output.dtype.value}, but its reference gives "
            f"{values.dtype}"
        )
    return np.ascontiguousarray(values.astype(output.dtype.numpy))


def tolerances(kernel: str, outputs: Sequence[Tensor], given: float | Mapping[str, float] | None) -> dict[str, float]:
    """The error allowed for each output; InputError for one that is no such number or names no output."""
    names = [t.name for t in outputs]
    if isinstance(given, Mapping):
        odd = sorted(set(given) - set(names))
        if odd:
            raise InputError(
                f"a tolerance is given for {odd[0]}, but the outputs of kernel {kernel} are {', '.join(names)}"
            )
    found = {}
    for t in outputs:
        one = given.get(t.name) if isinstance(given, Mapping) else given
        found[t.name] = TOLERANCES.get(t.dtype, 0.0) if one is None else float(one)
        if not 0.0 <= found[t.name] < np.inf:
            raise InputError(f"the tolerance of {t.name} is {one}; give a number from 0 on")
    return found


__all__ = ["Bound", "Given", "InOut", "Output", "Reference", "bind", "tolerances"]
