"""A network beside onnxruntime, value by value: where do its numbers begin to differ?

Values between nodes are made outputs, some dozens at a time, because keeping all of them would take the memory of all.
A value that is an output is not fused away, so a fault may hide where a value is looked at; the network's own outputs
are therefore compared first, with nothing added.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tilewright.errors import InputError, ModelError
from tilewright.feeds import network_feeds, parse_given
from tilewright.graph.session import InferenceSession

Results = Mapping[str, Any]
Progress = Callable[[int, int], None]
"""Called with the values compared so far and all there are."""

TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference as a part of a value's largest element, by element type and by what a precision rounds to."""
TOLERANCE = 1e-4
"""The same for all other floats; integers, truth values and strings are to be equal."""
_ROUNDED = {"fp16": "float16", "bf16": "bfloat16", "tf32": "float16"}
"""The type whose tolerance a session's precision asks for; TF32 has as many digits as f16."""

CHUNK = 32
"""Values that are compared in one run."""


@dataclass(frozen=True)
class Difference:
    """One value of the network, ours and theirs."""

    value: str
    node: str
    """The node that writes it."""
    op: str
    shape: tuple[int, ...]
    dtype: str
    largest: float
    """Largest absolute difference of two elements; NaN where there is none to be had (another shape, another type)."""
    relative: float
    """The same as a part of the largest finite element that is expected."""
    tolerance: float
    reason: str | None
    """What is wrong, None if the value is within its tolerance."""


@dataclass(frozen=True)
class ValueComparison:
    """What was compared."""

    model: str
    device: str
    peer: str
    outputs: tuple[Difference, ...]
    """The network's own outputs, computed as they always are."""
    values: tuple[Difference, ...]
    """Values in the order of the file, up to the run in which the first one differs."""
    total: int
    """Values that there are to compare."""

    @property
    def first(self) -> Difference | None:
        """The first value that differs; an output where no value before it does."""
        return next((d for d in (*self.values, *self.outputs) if d.reason), None)


@dataclass(frozen=True)
class Beside:
    """A network opened here, and what it takes to compare its values with onnxruntime's."""

    session: InferenceSession
    feeds: dict[str, Any]
    proto: onnx.ModelProto
    writers: dict[str, onnx.NodeProto]
    """The node that makes each value, in the order of the file."""
    limits: Limits

    def compared(self, names: Sequence[str], ours: Results, theirs: Results) -> tuple[Difference, ...]:
        """How far each of the named values is from onnxruntime's."""
        return tuple(difference(n, self.writers.get(n), ours[n], theirs[n], self.limits) for n in names)


def opened(
    model: Path, inputs: Sequence[str], *, device: str | None, precision: str, batch: int, tolerance: float | None
) -> Beside:
    """A network and its inputs, given as for ``--input``; InputError without onnxruntime, and what sessions raise."""
    needs_onnxruntime()
    session = InferenceSession(model, device, precision=precision)
    feeds = network_feeds(session.get_inputs(), [parse_given(text) for text in inputs], batch)
    proto = onnx.load(model)
    writers = {o: n for n in proto.graph.node for o in n.output if o}
    return Beside(session, feeds, proto, writers, Limits(tolerance, precision))


def compare_values(
    model: Path,
    inputs: Sequence[str],
    *,
    device: str | None = None,
    precision: str = "fp32",
    batch: int = 1,
    tolerance: float | None = None,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> ValueComparison:
    """Run a network here and by onnxruntime on equal inputs, given as for ``--input``, and compare all values.

    The comparison ends with the first run in which a value differs. Raises InputError without onnxruntime, ModelError
    if that cannot run the file, and what sessions raise.
    """
    beside = opened(model, inputs, device=device, precision=precision, batch=batch, tolerance=tolerance)
    session, feeds, proto = beside.session, beside.feeds, beside.proto
    own = [v.name for v in proto.graph.output]
    ours = dict(zip(own, session.run(own, feeds), strict=True))
    outputs = beside.compared(own, ours, by_onnxruntime(proto, own, feeds))
    between = [name for name in beside.writers if name not in own]
    values: list[Difference] = []
    for names in _chunks(between, chunk):
        theirs = by_onnxruntime(proto, names, feeds)
        shown = [
            name for name in names if isinstance(theirs[name], np.ndarray)
        ]  # sequences cannot be declared by value
        part = InferenceSession(with_outputs(proto, shown, theirs), session.device, precision=precision)
        values += beside.compared(shown, dict(zip(shown, part.run(shown, feeds), strict=True)), theirs)
        if progress is not None:
            progress(len(values), len(between))
        if any(d.reason for d in values):
            break
    return ValueComparison(str(model), session.device.name, peer(), outputs, tuple(values), len(between))


def _chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), size):
        yield names[at : at + size]


def peer() -> str:
    """What is compared with, and its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def by_onnxruntime(proto: onnx.ModelProto, names: Sequence[str], feeds: Results) -> dict[str, Any]:
    """The named values as onnxruntime computes them, node by node without its own rewriting."""
    with _its_errors():
        session = _onnxruntime_session(with_outputs(proto, names, None))
        return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def types_by_onnxruntime(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """The named values' types as onnxruntime infers and writes them, such as tensor(float)."""
    with _its_errors():
        return {v.name: v.type for v in _onnxruntime_session(with_outputs(proto, names, None)).get_outputs()}


def _onnxruntime_session(proto: onnx.ModelProto) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextmanager
def _its_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"onnxruntime cannot run the network: {' '.join(str(error).split())}") from error


def needs_onnxruntime() -> None:
    """InputError where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("compare needs onnxruntime; install it with: pip install onnxruntime")


def with_outputs(proto: onnx.ModelProto, names: Sequence[str], found: Results | None) -> onnx.ModelProto:
    """The network with these values as its outputs, typed as they were found; onnxruntime needs no types."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    declared = {v.name: v for v in proto.graph.output}
    del changed.graph.output[:]
    for name in names:
        if name in declared:
            changed.graph.output.append(declared[name])
        elif found is None:
            changed.graph.output.append(onnx.ValueInfoProto(name=name))
        else:
            code = helper.np_dtype_to_tensor_dtype(found[name].dtype)
            changed.graph.output.append(helper.make_tensor_value_info(name, code, [None] * found[name].ndim))
    return changed


# --- one value --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """How much values may differ: as given, or by element type and the session's precision."""

    given: float | None
    precision: str

    def of(self, dtype: str) -> float:
        """The tolerance for elements of a type."""
        if self.given is not None:
            return self.given
        return max(TOLERANCES.get(dtype, TOLERANCE), TOLERANCES.get(_ROUNDED.get(self.precision, ""), 0.0))


def difference(name: str, writer: onnx.NodeProto | None, ours: Any, theirs: Any, limits: Limits) -> Difference:
    """A value of both sides, an array or a list of arrays, compared; ``writer`` is the node it comes from."""
    node = (writer.name or writer.output[0]) if writer else "an input"
    largest, relative, tolerance, reason = _measured(ours, theirs, limits)
    found = np.asarray(theirs) if isinstance(theirs, np.ndarray) else None
    shape, dtype = (found.shape, found.dtype.name) if found is not None else ((), "sequence")
    return Difference(name, node, writer.op_type if writer else "", shape, dtype, largest, relative, tolerance, reason)


def _measured(ours: Any, theirs: Any, limits: Limits) -> tuple[float, float, float, str | None]:
    """Largest difference, the same relatively, the tolerance, and what is wrong."""
    nan = float("nan")
    if isinstance(ours, list) or isinstance(theirs, list):
        same = isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs)
        parts = [_measured(a, b, limits) for a, b in zip(ours, theirs, strict=True)] if same else []
        wrong = next((p for p in parts if p[3]), None)
        return wrong or (max(parts, default=(0.0, 0.0, 0.0, None)) if same else (nan, nan, 0.0, "other lengths"))
    a, b = np.asarray(ours), np.asarray(theirs)
    tolerance = limits.of(b.dtype.name)
    if a.shape != b.shape:
        return nan, nan, tolerance, f"shape {_sizes(a.shape)} instead of {_sizes(b.shape)}"
    if a.dtype != b.dtype:
        return nan, nan, tolerance, f"type {a.dtype} instead of {b.dtype}"
    if b.dtype.kind in "OSUT":
        return (0.0, 0.0, 0.0, None) if np.array_equal(a, b) else (nan, nan, 0.0, "other texts")
    if b.dtype.kind in "iub":
        count = int(np.count_nonzero(a != b))
        largest = float(np.abs(a.astype(float) - b.astype(float)).max(initial=0))
        return largest, nan, 0.0, f"{count} of {b.size} elements differ" if count else None
    return _of_floats(a.astype(np.float64), b.astype(np.float64), tolerance)


def _of_floats(a: np.ndarray, b: np.ndarray, tolerance: float) -> tuple[float, float, float, str | None]:
    finite = np.isfinite(b)
    other = np.where(finite, ~np.isfinite(a), ~((a == b) | (np.isnan(a) & np.isnan(b))))
    scale = float(np.abs(b[finite]).max(initial=0))
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(a - b)[finite & ~other].max(initial=0))
    relative = largest / scale if scale else largest
    if other.any():
        return largest, relative, tolerance, f"{int(other.sum())} elements are NaN or infinite on one side only"
    return largest, relative, tolerance, f"differs by {relative:.1e}" if relative > tolerance else None


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "of a single number"


__all__ = [
    "CHUNK",
    "Difference",
    "Limits",
    "ValueComparison",
    "by_onnxruntime",
    "compare_values",
    "difference",
    "needs_onnxruntime",
    "peer",
    "types_by_onnxruntime",
    "with_outputs",
]
