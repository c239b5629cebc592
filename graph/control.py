"""Control flow: If, Loop, Scan and SequenceMap, which run graphs once, never, or many times.

The semantics are those of ONNX's operator specification. A Loop without a trip count ends by its own condition alone.
Values that are carried stay where they are, on the host or on the device; what is cut or stacked passes the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.host_values import Held
from tilewright.graph.ir import Node, Value

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
    collected: list[list[Held]] = [[] for _ in body.outputs[1 + len(carried) :]]
    count = 0
    while going and (limit is None or count < limit):
        results = step([Held(np.array(count, np.int64)), Held(np.array(going)), *carried])
        going = _truth(node, results[0])
        carried = results[1 : 1 + len(carried)]
        for found, held in zip(collected, results[1 + len(carried) :], strict=True):
            found.append(held)
        count += 1
    declared = body.outputs[1 + len(carried) :]
    return [*carried, *(_stacked(node, v, found, 0) for v, found in zip(declared, collected, strict=True))]


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
    """Scan of opset 8: every input and output has a dimension of batches in front."""
    if inputs[0] is not None:
        raise ModelError(f"node {node.label!r} (Scan of opset 8) has sequence lengths, which are not supported")
    arrays = [_tensor(node, _there(node, h)) for h in inputs[1:]]
    if not arrays or any(a.ndim == 0 or len(a) != len(arrays[0]) or not len(a) for a in arrays):
        raise ModelError(f"the inputs of node {node.label!r} (Scan of opset 8) have different batches, or empty ones")
    results = [_scan(node, [Held(np.array(a[n])) for a in arrays], step) for n in range(len(arrays[0]))]
    return [Held(_together(node, [r.host for r in found], 0)) for found in zip(*results, strict=True)]


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
