"""Pooling over regions whose corners are data: RoiAlign and MaxRoiPool.

RoiAlign's samples lie on a regular grid, so positions are a table per axis: [region, cell, sample]. Where the number of
samples follows from a region's size, a table holds those that can lie in the image: where a cell has several samples,
they are more than half a pixel apart, so that an axis of `size` pixels has at most 2 * size + 3. All others are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.dsl.dtypes import DType
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.language import literal
from tilewright.ops.operator import Application, Expansion, operator
from tilewright.ops.sampling import LINEAR, computing

LINE = """
def edge(a) = a * {scale} - {shift}
def cell(a, z) = {span} / {cells}
def samples(a, z) = ceil(cell(a, z))
def skipped(start, step, count) = where(count > 1, clamp(ceil((-1 - start) * count / step - 0.5), 0, count), 0)
def kept(v) = where(v < -1 or v > {size}, -2, clamp(v, 0, {size} - 1))
"""
"""One axis of regions from a to z. Samples outside the image come to lie where all neighbours are outside it."""


@dataclass(frozen=True)
class Line:
    """The text of one axis of all regions."""

    functions: str
    start: str
    """Where a cell starts."""
    step: str
    """The size of a cell."""
    count: str
    """Samples of a cell."""

    @property
    def skipped(self) -> str:
        """Samples of a cell ahead of the image."""
        return f"skipped({self.start}, {self.step}, {self.count})"


def _line(app: Application, axis: int, cells: int, size: int) -> Line:
    ratio = app.integer("sampling_ratio", 0)
    default = "half_pixel" if app.opset >= 16 else "output_half_pixel"
    half = str(app.attributes.get("coordinate_transformation_mode", default)).lower() == "half_pixel"
    functions = LINE.format(
        scale=literal(app.number("spatial_scale", 1.0)),
        shift="0.5" if half else "0",
        span="(edge(z) - edge(a))" if half else "max(edge(z) - edge(a), 1)",
        cells=cells,
        size=size,
    )
    ends = f"b[r, {1 - axis}], b[r, {3 - axis}]"
    return Line(
        functions, f"(edge(b[r, {1 - axis}]) + p * cell({ends}))", f"cell({ends})", str(ratio or f"samples({ends})")
    )


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    mode = str(attributes.get("mode", "avg")).lower()
    return None if mode in {"avg", "max"} else f"mode {mode!r} is not supported"


@operator("RoiAlign", refuse=_refuse)
def roi_align(app: Application) -> Expansion:
    """Means or largest values of samples in the cells of a grid over each region."""
    x, ids, y = app.input(0), app.input(2), app.outputs[0]
    work = Expanding(app)
    operands = {"x": Inner(0, x.dtype, x.shape), "ids": Inner(2, ids.dtype, ids.shape)}
    for axis in (0, 1):
        operands |= _tables(app, work, axis)
    work.link(f"y[r, c, p, q] = {_value(app)}", operands, 0, y.dtype, y.shape, LINEAR)
    return work.finished()


def _tables(app: Application, work: Expanding, axis: int) -> dict[str, Inner]:
    """Positions of samples along an axis (`v`, `h`); how many a cell has (`vn`), and was meant to have (`vs`)."""
    ratio, rois = app.integer("sampling_ratio", 0), app.input(1)
    name, cells, size = "vh"[axis], app.outputs[0].shape[2 + axis], app.input(0).shape[2 + axis]
    line = _line(app, axis, cells, size)
    given = {"b": Inner(1, rois.dtype, rois.shape)}
    most = ratio or 2 * size + 3
    place = f"kept({line.start} + ({{}}i + 0.5) * {line.step} / {line.count})"
    functions = line.functions
    dtype, shape = computing(rois.dtype), (rois.shape[0], cells)
    if ratio:
        return {name: work.link(f"y[r, p, i] = {place.format('')}", given, name, dtype, (*shape, most), functions)}
    ends = f"y[r, p] = clamp({line.count} - {line.skipped}, 0, {most})"
    return {
        name: work.link(
            f"y[r, p, i] = {place.format(f'{line.skipped} + ')}", given, name, dtype, (*shape, most), functions
        ),
        f"{name}n": work.link(ends, given, f"{name}n", DType.I32, shape, functions),
        f"{name}s": work.link(f"y[r] = {line.count}", given, f"{name}s", DType.I32, shape[:1], functions),
    }


def _value(app: Application) -> str:
    """An output element."""
    ratio = app.integer("sampling_ratio", 0)
    v, h = "v[r, p, i]", "h[r, q, j]"
    term = f"weight(a, {v}) * weight(b, {h}) * x[ids[r], c, i32(floor({v})) + a, i32(floor({h})) + b]"
    is_mean = str(app.attributes.get("mode", "avg")).lower() == "avg"
    over = "sum" if is_mean else "max"
    if ratio:
        total = f"({over}(i: {ratio}, j: {ratio}, a: 2, b: 2) {term})"
        return f"{total} / {ratio * ratio}" if is_mean else total
    total = f"({over}(i < vn[r, p]) {over}(j < hn[r, q]) {over}(a: 2, b: 2) {term})"
    if is_mean:
        return f"{total} / max(vs[r] * hs[r], 1)"
    none = "vn[r, p] == 0 or hn[r, q] == 0"
    return f"where({none}, 0, where(vn[r, p] < vs[r] or hn[r, q] < hs[r], max({total}, 0), {total}))"


# --- largest elements -------------------------------------------------------------------------------------------------

CELLS = """
def edge(a) = trunc(a * {scale} + copysign(0.5, a * {scale}))
def cell(a, z) = max(edge(z) - edge(a) + 1, 1) / {cells}
def first(p, a, z) = clamp(floor(p * cell(a, z)) + edge(a), 0, {size})
def end(p, a, z) = clamp(ceil((p + 1) * cell(a, z)) + edge(a), 0, {size})
"""
"""Whole pixels of one axis of regions from a to z, both included; halves are rounded away from 0."""


@operator("MaxRoiPool")
def max_roi_pool(app: Application) -> Expansion:
    """Largest elements in the cells of a grid over each region, 0 in cells without pixels."""
    x, rois, y = app.input(0), app.input(1), app.outputs[0]
    work = Expanding(app)
    given = {"b": Inner(1, rois.dtype, rois.shape)}
    operands = given | {"x": Inner(0, x.dtype, x.shape, "-inf")}
    for axis, name in enumerate("vh"):
        cells, size = y.shape[2 + axis], x.shape[2 + axis]
        functions = CELLS.format(scale=literal(app.number("spatial_scale", 1.0)), cells=cells, size=size)
        corners = f"p, b[r, {2 - axis}], b[r, {4 - axis}]"
        shape = (rois.shape[0], cells)
        count = f"y[r, p] = end({corners}) - first({corners})"
        operands[f"{name}n"] = work.link(count, given, f"{name}n", DType.I32, shape, functions)
        place = f"y[r, p, i] = first({corners}) + i"
        operands[name] = work.link(place, given, name, DType.I32, (*shape, size), functions)
    largest = "max(i < vn[r, p]) max(j < hn[r, q]) x[i32(b[r, 0]), c, v[r, p, i], h[r, q, j]]"
    body = f"y[r, c, p, q] = where(vn[r, p] <= 0 or hn[r, q] <= 0, 0, {largest})"
    work.link(body, operands, 0, y.dtype, y.shape)
    return work.finished()
