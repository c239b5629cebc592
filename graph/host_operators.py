"""Operators that the host computes by NumPy itself: sequences, optionals, and what kernels are no good at.

ONNX's reference evaluator has most of them too, but wraps optionals in lists, and is slow where networks are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.host_values import HostValue
from tilewright.graph.ir import Node
from tilewright.graph.suppression import non_max_suppression

Compute = Callable[[Node, Sequence[HostValue]], HostValue]


def _nonzero(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    array = inputs[0]
    if array.ndim == 0:  # one row less than a vector has, and a column where the number is not zero
        return np.zeros((0, int(array != 0)), np.int64)
    return np.stack(np.nonzero(array)).astype(np.int64)


def _top(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    """Elements in order and where they stand; of equal ones the first comes first, and NaN counts as the largest."""
    x, count = inputs[0], int(np.asarray(inputs[1]).reshape(-1)[0])
    axis = node.integer("axis", -1)
    size = x.shape[axis]
    if not 0 <= count <= size:
        raise ModelError(f"node {node.label!r} ({node.op}) asks for {count} of {size} elements")
    rows = np.moveaxis(x, axis, -1)
    largest = bool(node.integer("largest", 1))
    is_ordered = x.dtype.kind in "biu" or (x.dtype.kind == "f" and not np.isnan(x).any())
    if size >= SELECTED_FROM and 0 < count * 4 <= size and is_ordered:
        flat = [_selected(row, count, largest) for row in rows.reshape(-1, size)]
        places = np.reshape(flat, (*rows.shape[:-1], count))
    else:
        places = _ranked(rows, largest)[..., :count]
    places = np.ascontiguousarray(np.moveaxis(places, -1, axis), np.int64)
    return np.take_along_axis(x, places, axis), places


SELECTED_FROM = 512
"""Elements of a row of which a few are selected before they are sorted: 1,000 of 120,000 in 0.4 instead of 15 ms."""


def _ranked(rows: np.ndarray, largest: bool) -> np.ndarray:
    """Where the elements of each row stand in their order, of equal ones the first one first."""
    order = np.argsort(rows[..., ::-1] if largest else rows, -1, kind="stable")
    return rows.shape[-1] - 1 - order[..., ::-1] if largest else order


def _selected(row: np.ndarray, count: int, largest: bool) -> np.ndarray:
    """Where the first `count` elements of a row without NaN stand in their order.

    Quickselect (NumPy's `partition`) finds the last of them, all beyond it are in, and of its equals the first ones.
    """
    last = np.partition(row, row.size - count if largest else count - 1)[row.size - count if largest else count - 1]
    beyond = np.flatnonzero(row > last if largest else row < last)
    equal = np.flatnonzero(row == last)[: count - beyond.size]
    chosen = np.sort(np.concatenate((beyond, equal)))
    found: np.ndarray = chosen[_ranked(row[chosen], largest)]
    return found


def _unpooled(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    """Elements back in their places in what they were pooled from, all others 0.

    A wanted size is that of the result, of which what the window's attributes tell is the beginning.
    """
    x, places = inputs[:2]
    kernel = node.integers("kernel_shape")
    strides, pads = node.integers("strides", (1,) * len(kernel)), node.integers("pads", (0,) * 2 * len(kernel))
    spread = [
        (n - 1) * s - pads[d] - pads[d + len(kernel)] + k
        for d, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    result = np.zeros((*x.shape[:2], *spread), x.dtype)
    if places.size and (places.min() < 0 or places.max() >= result.size):
        raise ModelError(f"node {node.label!r} ({node.op}) writes outside of its {result.size} elements")
    result.reshape(-1)[places.reshape(-1)] = x.reshape(-1)
    if len(inputs) < 3 or inputs[2] is None:
        return result
    whole = np.zeros(tuple(int(n) for n in inputs[2]), x.dtype)
    whole[tuple(map(slice, result.shape))] = result
    return whole


def _scattered(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    """ScatterElements without a reduction; where positions repeat, the last update stays."""
    data, indices, updates = inputs
    axis = node.integer("axis", 0)
    size = data.shape[axis]
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise ModelError(f"node {node.label!r} ({node.op}) writes outside of its {size} places along axis {axis}")
    result = np.array(data)
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = np.where(indices < 0, indices + size, indices)
    result[tuple(places)] = updates
    return result


# --- sequences and optionals ------------------------------------------------------------------------------------------


def _sequence(node: Node, value: HostValue) -> list[HostValue]:
    if not isinstance(value, list):
        raise ModelError(f"node {node.label!r} ({node.op}) needs a sequence, but is given something else")
    return value


def _place(node: Node, value: HostValue, size: int) -> int:
    """A position in a sequence, counted from its end where it is negative; up to `size`."""
    place = int(np.asarray(value).reshape(-1)[0])
    count = size if node.op == "SequenceInsert" else size - 1
    if not -size <= place <= count:
        raise ModelError(f"node {node.label!r} ({node.op}) asks for position {place} of a sequence of {size}")
    return place + size if place < 0 else place


def _sequence_at(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    sequence = _sequence(node, inputs[0])
    return sequence[_place(node, inputs[1], len(sequence))]


def _sequence_insert(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    sequence = list(_sequence(node, inputs[0]))
    place = len(sequence) if len(inputs) < 3 or inputs[2] is None else _place(node, inputs[2], len(sequence))
    return [*sequence[:place], inputs[1], *sequence[place:]]


def _sequence_erase(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    sequence = _sequence(node, inputs[0])
    last = len(sequence) - 1
    place = last if len(inputs) < 2 or inputs[1] is None else _place(node, inputs[1], len(sequence))
    return [*sequence[:place], *sequence[place + 1 :]] if sequence else []


def _sequence_length(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    return np.array(len(_sequence(node, inputs[0])), np.int64)


def _optional_has_element(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    return np.array(bool(inputs) and inputs[0] is not None)


def _optional_get_element(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    if inputs[0] is None:
        raise ModelError(f"node {node.label!r} ({node.op}) asks for the element of an empty optional")
    return inputs[0]


def host_operator(node: Node) -> Compute | None:
    """What computes the node here, None if ONNX's evaluator has to."""
    if node.op == "ScatterElements" and node.attributes.get("reduction", "none") != "none":
        return None
    if node.op == "TopK" and len(node.inputs) < 2:  # of opsets in which the number is an attribute
        return None
    return HOST_OPERATORS.get(node.op)


HOST_OPERATORS: Mapping[str, Compute] = {
    "MaxUnpool": _unpooled,
    "NonMaxSuppression": non_max_suppression,
    "NonZero": _nonzero,
    "Optional": lambda node, inputs: inputs[0] if inputs else None,
    "OptionalGetElement": _optional_get_element,
    "OptionalHasElement": _optional_has_element,
    "ScatterElements": _scattered,
    "SequenceAt": _sequence_at,
    "SequenceConstruct": lambda node, inputs: list(inputs),
    "SequenceEmpty": lambda node, inputs: [],
    "SequenceErase": _sequence_erase,
    "SequenceInsert": _sequence_insert,
    "SequenceLength": _sequence_length,
    "TopK": _top,
}
"""The operators by name; what gives several outputs gives a tuple."""
