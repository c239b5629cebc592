"""Operators that the host computes by NumPy itself: sequences, optionals, and results whose size depends on data.

ONNX's reference evaluator has most of them too, but wraps optionals in lists, and is slow where networks are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.host_values import HostValue
from tilewright.graph.ir import Node

Compute = Callable[[Node, Sequence[HostValue]], HostValue]


def _nonzero(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    array = inputs[0]
    if array.ndim == 0:  # one row less than a vector has, and a column where the number is not zero
        return np.zeros((0, int(array != 0)), np.int64)
    return np.stack(np.nonzero(array)).astype(np.int64)


def _non_max_suppression(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    """Boxes in falling order of scores, without those that overlap a better one of their class too much.

    ``boxes[batch, box, 4]`` and ``scores[batch, class, box]`` give ``[selected, 3]``: batch, class, box.
    """
    boxes, scores = inputs[:2]
    most, overlap, lowest = (_scalar(inputs, n) for n in (2, 3, 4))
    corners = _corners(boxes, node.integer("center_point_box", 0) == 1)
    found: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            chosen = _suppressed(corners[batch], scores[batch, kind], int(most or 0), overlap or 0, lowest)
            found += [(batch, kind, box) for box in chosen]
    return np.array(found, np.int64).reshape(-1, 3)


def _scalar(inputs: Sequence[HostValue], position: int) -> float | None:
    """A number that may be left out."""
    if position >= len(inputs) or inputs[position] is None:
        return None
    number: float = np.asarray(inputs[position]).reshape(-1)[0].item()
    return number


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """Boxes as low and high corners, whichever two corners, or centre and size, they are given by."""
    if centred:
        half = boxes[..., 2:] / 2
        return np.concatenate((boxes[..., :2] - half, boxes[..., :2] + half), -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate((np.minimum(first, second), np.maximum(first, second)), -1)


def _suppressed(corners: np.ndarray, scores: np.ndarray, most: int, overlap: float, lowest: float | None) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    if lowest is not None:
        order = order[scores[order] > np.float32(lowest)]
    top, left, bottom, right = corners[order].T
    boxes = np.stack((top, left, bottom, right, (bottom - top) * (right - left)))
    chosen: list[int] = []
    while order.size and len(chosen) < most:
        chosen.append(int(order[0]))
        covered = _overlaps(boxes[:, 0], boxes[:, 1:]) > np.float32(overlap)
        boxes, order = boxes[:, 1:], order[1:]
        if covered.any():
            boxes, order = boxes[:, ~covered], order[~covered]
    return chosen


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others; NaN where neither has an area. Rows: corners and area."""
    top, left, bottom, right, area = others
    height = np.minimum(bottom, box[2]) - np.maximum(top, box[0])
    width = np.minimum(right, box[3]) - np.maximum(left, box[1])
    common = np.maximum(height, 0) * np.maximum(width, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = common / (box[4] + area - common)
    return ratio


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
    return HOST_OPERATORS.get(node.op)


HOST_OPERATORS: Mapping[str, Compute] = {
    "NonMaxSuppression": _non_max_suppression,
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
}
"""The operators by name; each has one output."""
