"""NonMaxSuppression on the host: the best boxes of each class that do not overlap a better one too much.

The greedy choice is made in groups of boxes that nothing can overlap but boxes of the same group: networks move boxes
of different classes apart so that one suppression serves all of them. Within a group, blocks of the best that are left
are compared with all others at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.graph.host_values import HostValue
from tilewright.graph.ir import Node

BLOCK = 128
"""Boxes that are compared with all others at once: as many as leave the comparison in a processor's cache."""
SMALL = 48
"""Boxes of groups that are put together, where another round costs more than comparing boxes that are apart."""


def non_max_suppression(node: Node, inputs: Sequence[HostValue]) -> HostValue:
    """Boxes in falling order of scores, without those that overlap a better one of their class too much.

    ``boxes[batch, box, 4]`` and ``scores[batch, class, box]`` give ``[selected, 3]``: batch, class, box.
    """
    boxes, scores = inputs[:2]
    most, overlap, lowest = (_scalar(inputs, n) for n in (2, 3, 4))
    corners = _corners(boxes, node.integer("center_point_box", 0) == 1)
    found = [np.zeros((0, 3), np.int64)]
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            chosen = _suppressed(corners[batch], scores[batch, kind], int(most or 0), overlap or 0, lowest)
            found.append(np.stack((np.full_like(chosen, batch), np.full_like(chosen, kind), chosen), 1))
    return np.concatenate(found)


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


def _suppressed(corners: np.ndarray, scores: np.ndarray, most: int, overlap: float, lowest: float | None) -> np.ndarray:
    """Numbers of the chosen boxes, at most so many, in falling order of scores."""
    order = np.argsort(-scores, kind="stable")
    if lowest is not None:
        order = order[scores[order] > np.float32(lowest)]
    if not order.size or most <= 0:
        return order[:0]
    top, left, bottom, right = corners[order].T
    boxes = np.stack((top, left, bottom, right, (bottom - top) * (right - left)))
    groups = [np.arange(order.size)]
    if overlap >= 0 and np.isfinite(boxes).all():
        groups = _apart(boxes)
    with np.errstate(all="ignore"):  # boxes without an area, and some that are no numbers
        chosen = [g if g.size == 1 else g[_greedy(boxes.take(g, 1), most, np.float32(overlap))] for g in groups]
    kept: np.ndarray = order[np.sort(np.concatenate(chosen))][:most]
    return kept


def _apart(boxes: np.ndarray) -> list[np.ndarray]:
    """Positions of boxes in groups that have no point in common, those of one group in rising order.

    Small groups are put together: comparing boxes that are apart changes nothing and costs less than another round.
    """
    rows, columns = _stretches(boxes[0], boxes[2]), _stretches(boxes[1], boxes[3])
    numbers = rows * (columns.max() + 1) + columns
    order = np.argsort(numbers, kind="stable")
    ends = [0]
    for end in (np.flatnonzero(np.diff(numbers[order])) + 1).tolist():
        if end - ends[-1] >= SMALL:
            ends.append(end)
    return [np.sort(group) for group in np.split(order, ends[1:])]


def _stretches(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """For each interval the number of the stretch it lies in, where intervals of different stretches at most touch."""
    order = np.argsort(low, kind="stable")
    reach = np.maximum.accumulate(high[order])
    begins = np.concatenate(([False], low[order][1:] >= reach[:-1]))
    numbers = np.empty(low.size, np.int64)
    numbers[order] = np.cumsum(begins)
    return numbers


def _greedy(boxes: np.ndarray, most: int, overlap: np.floating) -> np.ndarray:
    """Positions of those that stay of boxes in falling order of scores. Rows: corners and area.

    The best that are left are decided among themselves; only those that stay are compared with the others.
    """
    left = np.arange(boxes.shape[1])
    room = np.empty((3, min(BLOCK, left.size) * left.size), boxes.dtype)
    chosen, count = [left[:0]], 0
    while left.size and count < most:
        block, boxes = boxes[:, :BLOCK], boxes[:, BLOCK:]
        stays = _standing(_overlaps(block, block, room) > overlap)
        chosen.append(left[:BLOCK][stays])
        count += chosen[-1].size
        if not boxes.size:
            break
        free = np.logical_not((_overlaps(block[:, stays], boxes, room) > overlap).any(0))
        boxes, left = boxes.compress(free, 1), left[BLOCK:][free]
    return np.concatenate(chosen)[:most]


def _standing(covered: np.ndarray) -> np.ndarray:
    """Which of a few boxes in falling order of scores stay; ``covered[i, j]`` if i covers j. The diagonal is cleared.

    A row is one integer with a bit for each box, and those of boxes that cover no other are left out: Python takes a
    tenth of a microsecond for what takes NumPy one.
    """
    covered.reshape(-1)[:: len(covered) + 1] = False
    covering = np.flatnonzero(covered.any(1))
    rows = np.packbits(covered[covering], 1, bitorder="little")
    data, width, gone = rows.tobytes(), rows.shape[1], 0
    for at, n in enumerate(covering.tolist()):
        if not gone >> n & 1:
            gone |= int.from_bytes(data[at * width : (at + 1) * width], "little")
    bits = np.frombuffer(gone.to_bytes(width, "little"), np.uint8)
    stays: np.ndarray = np.unpackbits(bits, count=len(covered), bitorder="little") == 0
    return stays


def _overlaps(a: np.ndarray, b: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes; NaN where neither has an area.

    The three rows of ``room`` have at least as many elements as there are pairs, and the result lies in the first one:
    memory that is asked for anew for every step would cost as much as the steps.
    """
    a, pairs = a[:, :, None], (a.shape[1], b.shape[1])
    common: np.ndarray
    common, width, other = (row[: pairs[0] * pairs[1]].reshape(pairs) for row in room)
    np.minimum(a[2], b[2], out=common)
    common -= np.maximum(a[0], b[0], out=other)
    np.minimum(a[3], b[3], out=width)
    width -= np.maximum(a[1], b[1], out=other)
    np.maximum(common, 0, out=common)
    common *= np.maximum(width, 0, out=width)
    np.add(a[4], b[4], out=other)
    other -= common
    common /= other
    return common


__all__ = ["non_max_suppression"]
