"""Views through folds: the same elements as NumPy's views and copies, whatever chain of views leads there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Tensor
from tilewright.graph.folds import Fold, fold, folded
from tilewright.ops import Permuted, Reshaped, Sliced, View


def elements(place: Fold, memory: np.ndarray) -> np.ndarray:
    """What a fold sees of a buffer."""
    parts = place.parts
    size = memory.itemsize
    seen = as_strided(memory[parts.offset :], parts.shape, [s * size for s in parts.strides])
    return seen.reshape(place.shape)


def applied(view: View, array: np.ndarray) -> np.ndarray:
    match view:
        case Permuted():
            return array.transpose(view.axes)
        case Reshaped():
            return array.reshape(view.shape)
        case Sliced():
            every = zip(view.starts, view.steps, view.sizes, strict=True)
            return array[tuple(slice(a, a + n * s, s) for a, s, n in every)]


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[View]]:
    """A shape and views, each of which fits what the one before it gives."""
    first = shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    views: list[View] = []
    for kind in draw(st.lists(st.sampled_from("prs"), max_size=5)):
        if kind == "p":
            axes = tuple(draw(st.permutations(range(len(shape)))))
            views.append(Permuted(axes))
            shape = tuple(shape[a] for a in axes)
        elif kind == "r":
            shape = draw(st.sampled_from(list(divisions(math.prod(shape), 4))))
            views.append(Reshaped(shape))
        else:
            starts = tuple(draw(st.integers(0, n - 1)) for n in shape)
            sizes = tuple(draw(st.integers(1, n - a)) for n, a in zip(shape, starts, strict=True))
            views.append(Sliced(starts, (1,) * len(shape), sizes))
            shape = sizes
    return first, views


def divisions(size: int, rank: int) -> list[tuple[int, ...]]:
    """Shapes of up to `rank` dimensions with `size` elements."""
    if rank == 1:
        return [(size,)]
    found = [(n, *rest) for n in range(1, size + 1) if size % n == 0 for rest in divisions(size // n, rank - 1)]
    return [*divisions(size, rank - 1), *found]


@given(chains())
def test_folds_see_what_views_see(case: tuple[tuple[int, ...], list[View]]) -> None:
    shape, views = case
    memory = np.arange(3 + math.prod(shape))
    expected = memory[3:].reshape(shape)
    place = fold(Tensor("x", DType.I64, shape, offset=3))
    for view in views:
        through = folded(place, view)
        if through is None:
            return
        place, expected = through, applied(view, expected)
        assert place.shape == expected.shape
        np.testing.assert_array_equal(elements(place, memory), expected)
        direct = place.tensor
        if direct is not None:
            strided = as_strided(memory[direct.offset :], direct.shape, [8 * s for s in direct.strides])
            np.testing.assert_array_equal(strided, expected)


def test_heads_are_split_and_merged_without_a_copy() -> None:
    """(position, batch, head * feature) -> (batch * head, position, feature) -> (batch, head, position, feature)."""
    place: Fold | None = fold(Tensor("x", DType.F32, (7, 2, 12), strides=(72, 36, 1), offset=5))
    for view in (Reshaped((7, 6, 4)), Permuted((1, 0, 2)), Reshaped((2, 3, 7, 4))):
        assert place is not None
        place = folded(place, view)
    assert place is not None
    assert place.tensor == Tensor("x", DType.F32, (2, 3, 7, 4), strides=(36, 4, 72, 1), offset=5)


def test_what_has_no_seam_is_not_cut() -> None:
    turned = folded(fold(Tensor("x", DType.F32, (3, 5))), Permuted((1, 0)))
    assert turned is not None
    assert folded(turned, Reshaped((3, 5))) is None
    merged = folded(turned, Reshaped((15,)))
    assert merged is not None
    assert merged.tensor is None
    assert merged.dimensions == (((5, 1), (3, 5)),)
    assert folded(merged, Sliced((2,), (1,), (6,))) is None
    part = folded(merged, Sliced((3,), (1,), (6,)))
    assert part is not None
    assert (part.base.offset, part.dimensions) == (1, (((2, 1), (3, 5)),))


@pytest.mark.parametrize("shape", [(), (1, 1), (0, 4), (3, 0)])
def test_empty_and_single_elements(shape: tuple[int, ...]) -> None:
    place = folded(fold(Tensor("x", DType.F32, shape)), Reshaped((math.prod(shape), 1)))
    assert place is not None
    assert place.tensor is not None
    assert place.tensor.shape == (math.prod(shape), 1)
