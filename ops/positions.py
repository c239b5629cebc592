"""Which inputs of operators are positions, and which positions ONNX allows; all others are errors.

What kernels make of a position outside is harmless (reads give 0, writes go nowhere) but not what the network's author
meant, so whoever runs an operator looks at those that depend on data (`graph/positions.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, Operand


@dataclass(frozen=True)
class Positions:
    """Positions that an operator is given as data."""

    input: int
    """Which of its inputs they are."""
    low: int
    high: int
    """The first and the last that are allowed."""
    column: int | None = None
    """The only element of the last dimension that is a position; None if all are."""
    ignored: int | None = None
    """A number that is allowed wherever it is."""


def _along_axis(app: Application, default: int = 0) -> tuple[Positions, ...]:
    shape = app.input(0).shape
    size = shape[app.integer("axis", default) % len(shape)]
    return (Positions(1, -size, size - 1),)


def _along_first_axes(app: Application) -> tuple[Positions, ...]:
    """One position per axis in the indices' last dimension."""
    shape, batch = app.input(0).shape, app.integer("batch_dims", 0)
    sizes = shape[batch : batch + app.input(1).shape[-1]]
    if len(sizes) == 1:
        return (Positions(1, -sizes[0], sizes[0] - 1),)
    return tuple(Positions(1, -size, size - 1, column) for column, size in enumerate(sizes))


def _targets(app: Application) -> tuple[Positions, ...]:
    ignored = app.attributes.get("ignore_index")
    return (Positions(1, 0, app.input(0).shape[1] - 1, ignored=None if ignored is None else int(ignored)),)


def _lengths(app: Application) -> tuple[Positions, ...]:
    shape = app.input(0).shape
    return (Positions(1, 0, shape[app.integer("time_axis", 0) % len(shape)]),)


def _recurrent_lengths(app: Application) -> tuple[Positions, ...]:
    return (Positions(4, 0, app.input(0).shape[1 if app.integer("layout", 0) else 0]),)


def _rotations(app: Application) -> tuple[Positions, ...]:
    """Rows of the tables of angles, which have no batches where positions are given."""
    return (Positions(3, 0, app.input(1).shape[0] - 1),)


def _of_a_cache(app: Application) -> tuple[Positions, ...]:
    shape = app.input(0).shape
    axis = app.integer("axis", -2) % len(shape)
    if app.attributes.get("mode", "linear") == "circular":
        return (Positions(2, 0, shape[axis] - 1),)
    return (Positions(2, 0, shape[axis] - app.input(1).shape[axis]),)


POSITIONS: Mapping[str, Callable[[Application], tuple[Positions, ...]]] = {
    "GRU": _recurrent_lengths,
    "Gather": _along_axis,
    "GatherElements": _along_axis,
    "GatherND": _along_first_axes,
    "LSTM": _recurrent_lengths,
    "MaxRoiPool": lambda app: (Positions(1, 0, app.input(0).shape[0] - 1, column=0),),
    "NegativeLogLikelihoodLoss": _targets,
    "RNN": _recurrent_lengths,
    "ReverseSequence": _lengths,
    "RoiAlign": lambda app: (Positions(2, 0, app.input(0).shape[0] - 1),),
    "RotaryEmbedding": _rotations,
    "Scatter": _along_axis,
    "ScatterElements": _along_axis,
    "ScatterND": _along_first_axes,
    "SoftmaxCrossEntropyLoss": _targets,
    "TensorScatter": _of_a_cache,
}
"""The operators whose inputs hold positions."""


def positions_of(app: Application) -> tuple[Positions, ...]:
    """The positions among an operator's inputs that are there and have elements."""
    found = POSITIONS[app.op](app) if app.op in POSITIONS else ()
    given = [(p, app.optional(p.input)) for p in found]
    return tuple(p for p, operand in given if operand is not None and 0 not in operand.shape)


EXTENT = """
op extent(at[{sizes}]) -> y[2]:
    y[e] = max({taps}) where(e == 0, -1 - {place}, {place})
"""


def extent(at: Operand, positions: Positions) -> Compute:
    """-1 - the smallest, and the largest of all positions: both are largest elements, and neither overflows."""
    names = [f"i{d}" for d in range(at.rank)]
    walked = names
    if positions.column is not None:
        walked, names = names[:-1], [*names[:-1], str(positions.column)]
    place = f"at[{', '.join(names)}]"
    if positions.ignored is not None:
        place = f"where({place} == {literal(positions.ignored)}, {max(positions.low, 0)}, {place})"
    taps = ", ".join(f"{name}: {size}" for name, size in zip(walked, at.shape, strict=False))
    text = EXTENT.format(sizes=", ".join(map(str, at.shape)), taps=taps or "j: 1", place=place)
    made = Application("Extent", 1, {}, (at,), (Operand(at.dtype, (2,)),))
    return program(made, text, {"at": at.shape, "y": (2,)}, {"at": 0})


__all__ = ["POSITIONS", "Positions", "extent", "positions_of"]
