"""Control flow: If, Loop, Scan and SequenceMap, which run graphs once, never, or many times.

The semantics are those of ONNX's operator specification. A Loop without a trip count ends by its own condition alone;
one whose condition cannot change is refused, and any other may run until it is interrupted. What its iterations give is
kept until it ends, up to the size of the host's memory. Values that are carried stay where they are, on the host or on
the device; what is cut or stacked passes the host.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.host_values import Held
from tilewright.graph.ir import Graph, Node, Value

RunBody = Callable[[str, Sequence[Held]], list[Held]]
"""Runs the body of an attribute's name for its inputs; gives its outputs."""


def run_control(node: Node, opset: int, inputs: Sequence[Held | None], run: RunBody) -> list[Held]:
    """The outputs of a node with bodies; inputs that are left out are None.

    Raises ModelError where its inputs or what its body gives does not fit.
    """
    captured = [_there(node, h) for h in inputs[len(inputs) - node.captured :]]
    own = inputs[: len(inputs) - node.captured]
    match node.op:
        case "If":
            name = "then_branch" if _truth(node, own[0]) else "else_branch"
            return run(name, captured)
        case "Loop":
            return _loop(node, own, lambda values: run("body", [*values, *captured]))
        case "Scan" if opset < 9:
            return _batched_scan(node, own, lambda values: run("body", [*values, *captured]))
        case "Scan":
            given = [_there(node, h) for h in own]
            return _scan(node, given, lambda values: run("body", [*values, *captured]))
        case _:
            return _sequence_map(node, own, lambda values: run("body", [*values, *captured]))


def _there(node: Node, held: Held | None) -> Held:
    if held is None:
        raise ModelError(f"an input of node {node.label!r} ({node.op}) is missing")
    return held


def _tensor(node: Node, held: Held) -> np.ndarray:
    if not isinstance(held.host, np.ndarray):
        raise ModelError(f"node {node.label!r} ({node.op}) walks along tensors, but is given something else")
    return held.host


def _single(node: Node, held: Held | None) -> np.generic:
    array = _there(node, held).host
    if not isinstance(array, np.ndarray) or array.size != 1:
        raise ModelError(f"node {node.label!r} ({node.op}) needs a single number as condition or trip count")
    element: np.generic = array.reshape(-1)[0]
    return element


def _truth(node: Node, held: Held | None) -> bool:
    return bool(_single(node, held))


Step = Callable[[Sequence[Held]], list[Held]]


def _loop(node: Node, inputs: Sequence[Held | None], step: Step) -> list[Held]:
    limit = None if inputs[0] is None else int(_single(node, inputs[0]))
    going = inputs[1] is None or _truth(node, inputs[1])
    carried = [h or Held(None) for h in inputs[2:]]
    body = node.bodies["body"]
    if limit is None and going and _goes_on_for_ever(body):
        raise ModelError(
            f"node {node.label!r} (Loop) has no trip count, and its condition never changes: it has no end"
        )
    collected: list[list[Held]] = [[] for _ in body.outputs[1 + len(carried) :]]
    count, room = 0, _memory()
    while going and (limit is None or count < limit):
        results = step([Held(np.array(count, np.int64)), Held(np.array(going)), *carried])
        going = _truth(node, results[0])
        carried = results[1 : 1 + len(carried)]
        for found, held in zip(collected, results[1 + len(carried) :], strict=True):
            found.append(held)
            room -= _bytes(held)
        count += 1
        if room < 0:
            raise ModelError(
                f"what {count} iterations of node {node.label!r} (Loop) give is more than this machine's memory holds"
            )
    declared = body.outputs[1 + len(carried) :]
    return [*carried, *(_stacked(node, v, found, 0) for v, found in zip(declared, collected, strict=True))]


def _goes_on_for_ever(body: Graph) -> bool:
    """Whether a body gives the condition that it was given, or a constant that is true."""
    name = body.outputs[0].name
    while name in body.producers and body.producers[name].op == "Identity":
        name = body.producers[name].inputs[0]
    constant = body.constants.get(name)
    return name == body.inputs[1].name if constant is None else bool(constant.all())


def _bytes(held: Held) -> int:
    """Memory of a tensor."""
    return 0 if held.array is None else math.prod(held.array.shape) * held.array.dtype.itemsize


def _memory() -> int:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30


def _scan(node: Node, inputs: Sequence[Held], step: Step) -> list[Held]:
    scanned = node.integer("num_scan_inputs", 1)
    states = list(inputs[: len(inputs) - scanned])
    declared = node.bodies["body"].outputs[len(states) :]
    axes = node.integers("scan_input_axes", (0,) * scanned)
    backward = node.integers("scan_input_directions", node.integers("directions", (0,) * scanned))
    slices = [
        _slices(node, _tensor(node, held), axis, bool(back))
        for held, axis, back in zip(inputs[len(states) :], axes, backward, strict=True)
    ]
    if len({len(s) for s in slices}) > 1:
        raise ModelError(f"the inputs that node {node.label!r} (Scan) walks along have different lengths")
    collected: list[list[Held]] = [[] for _ in declared]
    for cuts in zip(*slices, strict=True):
        results = step([*states, *map(Held, cuts)])
        states = results[: len(states)]
        for found, held in zip(collected, results[len(states) :], strict=True):
            found.append(held)
    out_axes = node.integers("scan_output_axes", (0,) * len(declared))
    out_backward = node.integers("scan_output_directions", (0,) * len(declared))
    stacked = [
        _stacked(node, value, found[::-1] if back else found, axis)
        for value, found, axis, back in zip(declared, collected, out_axes, out_backward, strict=True)
    ]
    return [*states, *stacked]


def _slices(node: Node, array: np.ndarray, axis: int, backward: bool) -> list[np.ndarray]:
    if not -array.ndim <= axis < array.ndim:
        raise ModelError(f"node {node.label!r} (Scan) walks along axis {axis} of a tensor with {array.ndim} dimensions")
    along = np.moveaxis(array, axis, 0)
    cuts = [np.ascontiguousarray(a).reshape(a.shape) for a in along]
    return cuts[::-1] if backward else cuts


def _batched_scan(node: Node, inputs: Sequence[Held | None], step: Step) -> list[Held]:
    """Scan of opset 8: every input and output has a dimension of batches in front.

    Of a sequence with a length, what is behind its end is not walked along, and 0 in the outputs.
    """
    arrays = [_tensor(node, _there(node, h)) for h in inputs[1:]]
    if not arrays or any(a.ndim == 0 or len(a) != len(arrays[0]) or not len(a) for a in arrays):
        raise ModelError(f"the inputs of node {node.label!r} (Scan of opset 8) have different batches, or empty ones")
    states = len(arrays) - node.integer("num_scan_inputs", 1)
    most = arrays[states].shape[1] if arrays[states].ndim > 1 else 0
    lengths = [most] * len(arrays[0])
    if inputs[0] is not None:
        lengths = [int(n) for n in _tensor(node, inputs[0]).reshape(-1)]
    if len(lengths) != len(arrays[0]) or not all(0 <= n <= most for n in lengths):
        raise ModelError(f"node {node.label!r} (Scan of opset 8) has lengths that do not fit sequences of {most}")
    results = []
    for n, length in enumerate(lengths):
        given = [np.array(a[n]) if i < states else np.array(a[n, :length]) for i, a in enumerate(arrays)]
        found = [r.host for r in _scan(node, [Held(a) for a in given], step)]
        results.append([r if i < states else _padded(r, most) for i, r in enumerate(found)])
    return [Held(_together(node, found, 0)) for found in zip(*results, strict=True)]


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """A sequence with zeros behind it."""
    missing = np.zeros((length - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, missing]) if len(missing) else array


def _sequence_map(node: Node, inputs: Sequence[Held | None], step: Step) -> list[Held]:
    given = [_there(node, h) for h in inputs]
    sequences = [h.host if isinstance(h.host, list) else None for h in given]
    if sequences[0] is None or len({len(s) for s in sequences if s is not None}) > 1:
        raise ModelError(f"node {node.label!r} (SequenceMap) needs sequences of one length")
    made: list[list[object]] = [[] for _ in node.bodies["body"].outputs]
    for n in range(len(sequences[0])):
        values = [h if s is None else Held(s[n]) for h, s in zip(given, sequences, strict=True)]
        for found, held in zip(made, step(values), strict=True):
            found.append(held.host)
    return [Held(found) for found in made]


def _stacked(node: Node, value: Value, found: Sequence[Held], axis: int) -> Held:
    """What every iteration gave as one tensor; without iterations an empty one of the declared type."""
    if found:
        return Held(_together(node, [h.host for h in found], axis))
    dtype = np.dtype(object) if value.hosted == "tensor(string)" else value.dtype.numpy
    sizes = [n if isinstance(n, int) else 0 for n in value.shape or ()]
    sizes.insert(axis if axis >= 0 else len(sizes) + 1 + axis, 0)
    return Held(np.empty(sizes, dtype))


def _together(node: Node, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shapes = {getattr(a, "shape", None) for a in arrays}
    if len(shapes) > 1 or None in shapes:
        raise ModelError(
            f"what the iterations of node {node.label!r} ({node.op}) give has different shapes, "
            f"{' and '.join(map(str, sorted(map(str, shapes))))}, and cannot be put into one tensor"
        )
    return np.stack(arrays, axis)


__all__ = ["RunBody", "run_control"]
