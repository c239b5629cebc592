"""Views that strides alone cannot say: dimensions that are several in memory.

A *fold* gives each dimension of a view as a list of (size, stride), outermost first, as CuTe's layouts do (NVIDIA,
CUTLASS documentation, "CuTe Layouts"): merging (batch, head) and splitting it again later needs no copy in between,
whatever lies between the two in memory. Only what a program reads must have one stride per dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.dsl.program import Tensor
from tilewright.ops import Permuted, Reshaped, Sliced, View

Part = tuple[int, int]
"""Size and stride of one dimension in memory."""
Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Fold:
    """A view of a buffer; ``base`` is any tensor in it, of which name, type and offset count."""

    base: Tensor
    dimensions: tuple[Parts, ...]
    """Each dimension's parts, the outermost first, neighbours that act as one joined; none for size 1."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(math.prod(n for n, _ in parts) for parts in self.dimensions)

    @property
    def parts(self) -> Tensor:
        """The same elements in the same order with every part a dimension of its own."""
        flat = [part for parts in self.dimensions for part in parts]
        return replace(self.base, shape=tuple(n for n, _ in flat), strides=tuple(s for _, s in flat))

    @property
    def tensor(self) -> Tensor | None:
        """The view as a tensor; None if a dimension has several parts."""
        if any(len(parts) > 1 for parts in self.dimensions):
            return None
        shape, strides, following = self.shape, [], 1
        for n, parts in zip(reversed(shape), reversed(self.dimensions), strict=True):
            # A dimension of size 1 is never stepped along; it gets what a row-major order would.
            strides.append(parts[0][1] if parts else following)
            following = strides[-1] * n
        return replace(self.base, shape=shape, strides=tuple(reversed(strides)))


def fold(tensor: Tensor) -> Fold:
    """A tensor as a fold."""
    return Fold(tensor, tuple(((n, s),) if n != 1 else () for n, s in zip(tensor.shape, tensor.strides, strict=True)))


def folded(source: Fold, view: View) -> Fold | None:
    """`source` through a view; None if parts would have to be cut where they have no seam."""
    match view:
        case Permuted():
            return replace(source, dimensions=tuple(source.dimensions[a] for a in view.axes))
        case Reshaped():
            return _reshaped(source, view.shape)
        case Sliced():
            return _sliced(source, view)


def _reshaped(source: Fold, shape: tuple[int, ...]) -> Fold | None:
    if 0 in shape:
        return fold(replace(source.base, shape=shape, strides=(1,) * len(shape)))
    left = list(_joined(tuple(part for parts in source.dimensions for part in parts)))
    result: list[Parts] = []
    for n in reversed(shape):
        found = _taken(left, n)
        if found is None:
            return None
        result.append(_joined(found))
    return replace(source, dimensions=tuple(reversed(result)))


def _taken(left: list[Part], wanted: int) -> Parts | None:
    """The innermost parts of `left` that make up `wanted` elements, taken away there; None if none do."""
    found: list[Part] = []
    while wanted > 1:
        size, stride = left.pop()
        if wanted % size == 0:
            found.append((size, stride))
        elif size % wanted == 0:
            found.append((wanted, stride))
            left.append((size // wanted, stride * wanted))
        else:
            return None
        wanted //= found[-1][0]
    return tuple(reversed(found))


def _joined(parts: Parts) -> Parts:
    """The parts with neighbours joined where the outer one goes on where the inner one ends."""
    result: list[Part] = []
    for size, stride in parts:
        if size == 1:
            continue
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def _sliced(source: Fold, view: Sliced) -> Fold | None:
    offset, dimensions = source.base.offset, []
    for parts, whole, start, step, size in zip(
        source.dimensions, source.shape, view.starts, view.steps, view.sizes, strict=True
    ):
        if (start, size) == (0, whole):
            dimensions.append(parts)
            continue
        if 0 in (size, whole):
            return fold(replace(source.base, shape=view.sizes, strides=(1,) * len(view.sizes)))
        outer, *inner = parts or ((1, 1),)
        run = math.prod(n for n, _ in inner)
        if run > 1 and (start % run or size % run or step != 1):
            return None
        offset += start // run * outer[1]
        dimensions.append(_joined(((size // run, outer[1] * step), *inner)))
    return replace(source, base=replace(source.base, offset=offset), dimensions=tuple(dimensions))
