"""Operators that read or replace elements at positions which are data: gathers, scatters and reversed sequences.

A gather is a read at an index that another tensor gives. A scatter is spelled the other way round, because nothing may
be written twice at once: every output element looks at the updates that could go to it. With ``reduction="none"`` the
last of them stays, sums and products are taken in a fixed order, so results are the same in every run.

Positions are counted from the end where they are negative. ONNX calls positions outside the axis an error: positions
known ahead are refused. Those that depend on data read 0 and write nowhere; `positions.py` says which there are, so
that a run can look at them and raise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tilewright.errors import ModelError, UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import (
    Application,
    Compute,
    Operand,
    Reshaped,
    Result,
    Sliced,
    Views,
    operator,
)

FEW_LOOKS = 1 << 22
"""Updates that all elements of a scatter's output together may always look at: milliseconds on any device."""
LOOKS_PER_UPDATE = 1 << 12
"""Elements that may look at the same update where there are more looks than that.

Measured: a look takes 1.5 ns on two cores of a server, the host's evaluator 5 microseconds for an update.
"""
MAX_LOOKS = 1 << 28
"""Looks beyond which a scatter is left to the host in any case: half a second on those two cores."""


def dims(shape: tuple[int, ...]) -> str:
    """Sizes as a header lists them."""
    return ", ".join(map(str, shape))


def bounded(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Indices with their extents, as many as there are names."""
    return ", ".join(f"{name}: {size}" for name, size in zip(names, sizes, strict=False))


def counted(place: str, size: int) -> str:
    """A position with negative ones counted from the end of an axis of this size."""
    return f"where({place} < 0, {place} + {size}, {place})"


def _refuse_outside(op: str, indices: Operand, size: int) -> None:
    """Refuse positions known ahead that lie outside an axis."""
    known = indices.value
    if known is not None and known.size and not (-size <= int(known.min()) and int(known.max()) < size):
        raise ModelError(
            f"{op} has constant positions from {int(known.min())} to {int(known.max())} on an axis of {size}; "
            f"export the network with positions from {-size} to {size - 1}"
        )


# --- gathers ----------------------------------------------------------------------------------------------------------

GATHER = """
op gather(x[{sizes}], at[{places}]) -> y[{out_sizes}]:
    y[{out}] = x[{read}]
"""


def _gather(app: Application, out: list[str], read: list[str]) -> Compute:
    x, at, y = app.input(0).shape, app.input(1).shape, app.outputs[0].shape
    text = GATHER.format(sizes=dims(x), places=dims(at), out_sizes=dims(y), out=", ".join(out), read=", ".join(read))
    return program(app, text, {"x": x, "at": at, "y": y}, {"x": 0, "at": 1})


@operator("Gather")
def gather(app: Application) -> Result:
    """Elements at given positions of an axis; positions known ahead, evenly spaced upwards, are a slice."""
    shape, indices = app.input(0).shape, app.input(1)
    axis = app.integer("axis", 0) % len(shape)
    _refuse_outside(app.op, indices, shape[axis])
    if indices.value is not None:
        places = [int(i) % shape[axis] for i in indices.value.reshape(-1)]
        step = places[1] - places[0] if len(places) > 1 else 1
        if places and step >= 1 and all(b - a == step for a, b in pairwise(places)):
            return Views(((_one_axis(shape, axis, places[0], len(places), step), Reshaped(app.outputs[0].shape)),))
    before = [f"b{d}" for d in range(axis)]
    after = [f"a{d}" for d in range(len(shape) - axis - 1)]
    at = [f"i{d}" for d in range(indices.rank)]
    place = counted(f"at[{', '.join(at)}]", shape[axis])
    return _gather(app, [*before, *at, *after], [*before, place, *after])


def _one_axis(shape: tuple[int, ...], axis: int, start: int, size: int, step: int) -> Sliced:
    def at(default: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*default[:axis], value, *default[axis + 1 :])

    rank = len(shape)
    return Sliced(at((0,) * rank, start), at((1,) * rank, step), at(shape, size))


@operator("GatherElements")
def gather_elements(app: Application) -> Compute:
    """Along one axis, the element at the position that the indices give for each output."""
    shape = app.input(0).shape
    axis = app.integer("axis", 0) % len(shape)
    _refuse_outside(app.op, app.input(1), shape[axis])
    names = [f"i{d}" for d in range(len(shape))]
    place = counted(f"at[{', '.join(names)}]", shape[axis])
    return _gather(app, names, [place if d == axis else f"{name} + 0" for d, name in enumerate(names)])


@operator("GatherND")
def gather_nd(app: Application) -> Compute:
    """Slices at positions of several axes: the indices' last dimension holds one position per axis."""
    shape, indices = app.input(0).shape, app.input(1)
    batch, depth = app.integer("batch_dims", 0), indices.shape[-1]
    sizes = shape[batch : batch + depth]
    _spots(app.op, indices, sizes)
    lead = [f"i{d}" for d in range(indices.rank - 1)]
    rest = [f"s{d}" for d in range(len(shape) - batch - depth)]
    places = [counted(f"at[{', '.join([*lead, str(position)])}]", size) for position, size in enumerate(sizes)]
    return _gather(app, [*lead, *rest], [*lead[:batch], *places, *rest])


REVERSE = """
op reverse_sequence(x[{sizes}], lengths[{batch}]) -> y[{sizes}]:
    y[{out}] = x[{read}]
"""


@operator("ReverseSequence")
def reverse_sequence(app: Application) -> Compute:
    """The first elements of each sequence, as many as its length says, in reverse."""
    shape = app.input(0).shape
    time, batch = app.integer("time_axis", 0) % len(shape), app.integer("batch_axis", 1) % len(shape)
    names = [f"i{d}" for d in range(len(shape))]
    length = f"lengths[{names[batch]}]"
    turned = f"where({names[time]} < {length}, {length} - 1 - {names[time]}, {names[time]})"
    text = REVERSE.format(
        sizes=dims(shape),
        batch=shape[batch],
        out=", ".join(names),
        read=", ".join(turned if d == time else name for d, name in enumerate(names)),
    )
    return program(app, text, {"x": shape, "lengths": (shape[batch],), "y": shape}, {"x": 0, "lengths": 1})


# --- scatters ---------------------------------------------------------------------------------------------------------

REPLACED = """
op scatter(x[{sizes}], at[{places}] pad {nowhere}, u[{updates}]) -> y[{sizes}]:
    last[{sized}] = max({taps}) where({match}, j, -1)
    y[{out}] = where(last[{target}] < 0, x[{out}], u[{read}])
"""
"""The last update that goes to an element takes its place."""

REDUCED = """
op scatter(x[{sizes}], at[{places}] pad {nowhere}, u[{updates}]) -> y[{sizes}]:
    r[{all_sized}] = {kind}({taps}) where({match}, u[{update}], {neutral})
    y[{out}] = {joined}
"""
"""All updates that go to an element, in order, and then the element itself."""

PLACED = """
op scatter(x[{sizes}], place[{targets}], u[{updates}]) -> y[{sizes}]:
    y[{out}] = where(place[{target}] < 0, x[{out}], {joined})
"""
"""Which update goes to an element is known ahead."""

REDUCTIONS = {
    "add": ("sum", "0", "x[{out}] + r[{out}]"),
    "mul": ("prod", "1", "x[{out}] * r[{out}]"),
    "max": ("max", "x[{out}]", "max(x[{out}], r[{out}])"),
    "min": ("min", "x[{out}]", "min(x[{out}], r[{out}])"),
}
"""How updates are brought together, what stands for an update that goes elsewhere, and how the element joins."""


def _refuse_reduction(attributes: Mapping[str, Any], opset: int) -> str | None:
    kind = attributes.get("reduction", "none")
    return None if kind == "none" or kind in REDUCTIONS else f"reduction {kind!r} is not supported"


def _check_looks(elements: int, seen: int, updates: int) -> None:
    """Refuse a scatter in which `elements` look at `seen` updates each, if the host can write all of them sooner."""
    looks = elements * seen
    if looks > FEW_LOOKS and looks > min(MAX_LOOKS, LOOKS_PER_UPDATE * updates):
        raise UnsupportedError(f"finding the elements of {updates:,} updates takes {looks:,} comparisons on the device")


@operator("ScatterElements", "Scatter", refuse=_refuse_reduction)
def scatter_elements(app: Application) -> Compute:
    """Updates written to, or reduced into, positions along one axis."""
    shape, indices = app.input(0).shape, app.input(1)
    axis = app.integer("axis", 0) % len(shape)
    _refuse_outside(app.op, indices, shape[axis])
    names = [f"i{d}" for d in range(len(shape))]

    def beside(place: str) -> str:
        return ", ".join(place if d == axis else f"{name} + 0" for d, name in enumerate(names))

    if indices.value is not None:
        spots = np.indices(indices.shape)
        order = spots[axis].flatten()
        spots[axis] = indices.value % shape[axis] if shape[axis] else 0
        places = _places(shape, tuple(spot.reshape(-1) for spot in spots), order, _kind(app) == "none")
        if places is not None:
            return _placed(app, places, names, beside(f"place[{', '.join(names)}]"), indices.shape)
    _check_looks(math.prod(shape), indices.shape[axis], math.prod(indices.shape))
    place = counted(f"at[{beside('j')}]", shape[axis])
    holes = {"target": ", ".join(names), "sized": bounded(names, shape), "taps": f"j: {indices.shape[axis]}"}
    holes["match"] = f"{place} == {names[axis]}"
    shapes = (indices.shape, app.input(2).shape)
    return _scatter(app, holes, beside(f"last[{', '.join(names)}]"), beside("j"), -shape[axis] - 1, shapes)


@operator("ScatterND", refuse=_refuse_reduction)
def scatter_nd(app: Application) -> Compute:
    """Slices written to, or reduced into, positions of the first axes: one position per axis in the last dimension."""
    shape, indices = app.input(0).shape, app.input(1)
    depth, count = indices.shape[-1], math.prod(indices.shape[:-1])
    names = [f"i{d}" for d in range(len(shape))]
    kept, rest = names[:depth], names[depth:]
    updates = (count, *shape[depth:])
    spots = _spots(app.op, indices, shape[:depth])
    if spots is not None:
        places = _places(shape[:depth], spots, np.arange(count), _kind(app) == "none")
        if places is not None:
            return _placed(app, places, kept, ", ".join([f"place[{', '.join(kept)}]", *rest]), updates)
    _check_looks(math.prod(shape[:depth] if _kind(app) == "none" else shape), count, count)
    tests = [f"{counted(f'at[j, {n}]', shape[n])} == {name}" for n, name in enumerate(kept)]
    holes = {"target": ", ".join(kept), "sized": bounded(kept, shape), "taps": f"j: {count}"}
    holes["match"] = " and ".join(tests)
    read = ", ".join([f"last[{', '.join(kept)}]", *rest])
    return _scatter(app, holes, read, ", ".join(["j", *rest]), 0, ((count, depth), updates))


def _kind(app: Application) -> str:
    return str(app.attributes.get("reduction", "none"))


def _spots(op: str, indices: Operand, shape: tuple[int, ...]) -> tuple[np.ndarray, ...] | None:
    """The positions of every update along each axis, from 0 up, or None where only the device knows them."""
    if indices.value is None:
        return None
    columns = indices.value.reshape(-1, len(shape)).T if indices.value.size else np.zeros((len(shape), 0), np.int64)
    for column, size in zip(columns, shape, strict=True):
        _refuse_outside(op, Operand(indices.dtype, column.shape, column), size)
    return tuple(column % max(size, 1) for column, size in zip(columns, shape, strict=True))


def _places(
    shape: tuple[int, ...], spots: tuple[np.ndarray, ...], order: np.ndarray, replaces: bool
) -> np.ndarray | None:
    """For each element the number of the (last) update that goes to it, else -1; None if several must be reduced."""
    places = np.full(shape, -1, np.int32)
    flat = np.ravel_multi_index(spots, shape) if places.size else np.zeros(0, np.int64)
    if not replaces and np.unique(flat).size < flat.size:
        return None
    places.reshape(-1)[flat] = order
    return places


def _placed(app: Application, places: np.ndarray, target: list[str], read: str, updates: tuple[int, ...]) -> Compute:
    """A scatter as a gather of updates, by numbers that are a constant of the program."""
    x = app.input(0).shape
    out = ", ".join(f"i{d}" for d in range(len(x)))
    joined = REDUCTIONS[_kind(app)][2].format(out=out) if _kind(app) != "none" else f"r[{out}]"
    text = PLACED.format(
        sizes=dims(x),
        targets=dims(places.shape),
        updates=dims(updates),
        target=", ".join(target),
        out=out,
        joined=joined.replace(f"r[{out}]", f"u[{read}]"),
    )
    shapes = {"x": x, "place": places.shape, "u": updates, "y": x}
    return program(app, text, shapes, {"x": 0, "u": 2}, constants={"place": places})


def _scatter(
    app: Application,
    holes: Mapping[str, str],
    read: str,
    update: str,
    nowhere: int,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> Compute:
    """A scatter whose elements look at all updates; ``shapes`` are those of indices and updates as it sees them."""
    x, (at, u) = app.input(0).shape, shapes
    names = [f"i{d}" for d in range(len(x))]
    out = ", ".join(names)
    common = {"sizes": dims(x), "places": dims(at), "updates": dims(u), "out": out, "nowhere": nowhere, **holes}
    if _kind(app) == "none":
        text = REPLACED.format(**common, read=read)
    else:
        reduction, neutral, joined = (part.format(out=out) for part in REDUCTIONS[_kind(app)])
        all_sized = bounded(names, x)
        text = REDUCED.format(
            **common, update=update, all_sized=all_sized, kind=reduction, neutral=neutral, joined=joined
        )
    return program(app, text, {"x": x, "at": at, "u": u, "y": x}, {"x": 0, "at": 1, "u": 2})


TENSOR_SCATTER = """
op tensor_scatter(x[{sizes}], u[{updates}]{first}) -> y[{sizes}]:
    y[{out}] = where(inside(u[{read}]), u[{read}], x[{out}])
"""


@operator("TensorScatter")
def tensor_scatter(app: Application) -> Compute:
    """A cache with new elements from a position on, which each batch has its own of; ``circular`` goes around."""
    x, u, first = app.input(0).shape, app.input(1).shape, app.optional(2)
    axis = app.integer("axis", -2) % len(x)
    names = [f"i{d}" for d in range(len(x))]
    since = f"{names[axis]} - first[{names[0]}]" if first else f"{names[axis]} + 0"
    if app.attributes.get("mode", "linear") == "circular":
        since = f"({since}) % {x[axis]}"
    text = TENSOR_SCATTER.format(
        sizes=dims(x),
        updates=dims(u),
        first=f", first[{x[0]}]" if first else "",
        out=", ".join(names),
        read=", ".join(since if d == axis else name for d, name in enumerate(names)),
    )
    shapes = {"x": x, "u": u, "first": (x[0],), "y": x}
    return program(app, text, shapes, {"x": 0, "u": 1} | ({"first": 2} if first else {}))
