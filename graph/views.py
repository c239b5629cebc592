"""Views as strides: the same memory under another shape, or None where strides cannot say it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from tilewright.dsl.program import Tensor
from tilewright.ops import Permuted, Reshaped, Sliced, View


def seen(tensor: Tensor, view: View) -> Tensor | None:
    """`tensor` through a view, over the same buffer; None if only a copy can give that."""
    match view:
        case Permuted():
            shape = tuple(tensor.shape[a] for a in view.axes)
            return replace(tensor, shape=shape, strides=tuple(tensor.strides[a] for a in view.axes))
        case Sliced():
            start = sum(n * s for n, s in zip(view.starts, tensor.strides, strict=True))
            steps = tuple(n * s for n, s in zip(view.steps, tensor.strides, strict=True))
            return replace(tensor, shape=view.sizes, strides=steps, offset=tensor.offset + start)
        case Reshaped():
            strides = reshaped_strides(tensor.shape, tensor.strides, view.shape)
            return None if strides is None else replace(tensor, shape=view.shape, strides=strides)


def reshaped_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Strides that give the same elements in the same row-major order under another shape, or None if none do.

    Dimensions are taken in groups of equal product; within a group the old strides must continue one another.
    """
    if 0 in wanted:
        return (1,) * len(wanted)
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result: list[int] = []
    position = 0
    new = [n for n in wanted if n != 1]
    at = 0
    while at < len(new):
        group_new, group_old = [new[at]], [old[position]]
        at, position = at + 1, position + 1
        product_new, product_old = group_new[0], group_old[0][0]
        while product_new != product_old:
            if product_new < product_old:
                group_new.append(new[at])
                product_new, at = product_new * new[at], at + 1
            else:
                group_old.append(old[position])
                product_old, position = product_old * old[position][0], position + 1
        if any(a[1] != b[0] * b[1] for a, b in pairwise(group_old)):
            return None
        step = group_old[-1][1]
        found = []
        for n in reversed(group_new):
            found.append(step)
            step *= n
        result += reversed(found)
    filled = iter(result)
    return _with_ones(wanted, list(filled))


def _with_ones(wanted: tuple[int, ...], strides: list[int]) -> tuple[int, ...]:
    """Strides for all dimensions; those of size 1, which are never stepped along, get what a row-major order would."""
    result: list[int] = []
    following = 1
    rest = list(strides)
    for n in reversed(wanted):
        stride = following if n == 1 else rest.pop()
        result.append(stride)
        following = stride * n
    return tuple(reversed(result))
