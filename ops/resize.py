"""Resizing: nearest neighbours by a table of positions per axis, all else by a matrix per axis.

A matrix has a row of weights of input positions for every output position. Nearest neighbours by whole factors move
blocks of elements and have a program of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import pad_literal, program
from tilewright.ops.operator import Application, Compute, operator
from tilewright.ops.quantised import saturated

BLOCKS = """
op blocks(x[{sizes}]) -> y[{pairs}]:
    y[{out}] = x[{at}]
"""
"""Each element becomes a block; the output is seen as (position, place in the block) pairs."""


@operator("Resize", "Upsample", host=(1, 2, 3))
def resize(app: Application) -> Compute:
    """Images of another size."""
    if _is_blocks(app):
        return _blocks(app)
    shape, out = app.input(0).shape, app.outputs[0].shape
    axes = [d for d in range(len(shape)) if shape[d] != out[d] or _scale(app, d) != 1 or _region(app, d) != (0, 1)]
    lines = {d: _line(app, d) for d in axes or [len(shape) - 1]}
    if app.attributes.get("mode", "nearest") == "nearest":
        return _by_tables(app, lines)
    dtype = app.outputs[0].dtype
    if not dtype.is_float and (dtype is DType.BOOL or dtype.itemsize == 8):
        raise UnsupportedError(f"interpolation between {dtype.value} is not supported")
    return _by_matrices(app, lines)


def _scale(app: Application, d: int) -> float:
    """Output positions per input position along a dimension, as the model states it (or as the sizes give it).

    ValueError if that is not positive.
    """
    position = 2 if app.opset >= 11 else 1
    scales = app.known(position)
    listed = tuple(app.attributes["scales"]) if "scales" in app.attributes else ()
    axes = app.integers("axes") or tuple(range(app.input(0).rank))
    places = [a % app.input(0).rank for a in axes]
    values = listed if scales is None or not scales.size else scales.tolist()
    if values:
        scale = float(values[places.index(d)]) if d in places else 1.0
        if not scale > 0:
            raise ValueError(f"dimension {d} would be scaled by {scale}, which is not positive")
        return scale
    sizes = app.known(3)
    assert sizes is not None
    shape = app.input(0).shape
    ratios = {a: int(n) / shape[a] for a, n in zip(places, sizes, strict=True) if shape[a]}
    policy = app.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and d in ratios:
        return min(ratios.values()) if policy == "not_larger" else max(ratios.values())
    return ratios.get(d, 1.0)


# --- blocks -----------------------------------------------------------------------------------------------------------


def _is_blocks(app: Application) -> bool:
    """True if each element becomes a block: nearest neighbours by whole factors, every output reading its own block."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    whole = all(n and o % n == 0 and _scale(app, d) == o // n for d, (n, o) in enumerate(zip(shape, out, strict=True)))
    if app.attributes.get("mode", "nearest") != "nearest" or not whole:
        return False
    coordinates = app.attributes.get("coordinate_transformation_mode", "half_pixel")
    nearest = app.attributes.get("nearest_mode", "round_prefer_floor")
    if app.opset < 11 or (coordinates, nearest) == ("asymmetric", "floor"):
        return True
    # (i + 0.5) / f - 0.5 lies within half a pixel of i // f
    return coordinates in {"half_pixel", "pytorch_half_pixel"} and nearest.startswith("round_prefer")


def _blocks(app: Application) -> Compute:
    shape, out = app.input(0).shape, app.outputs[0].shape
    pairs = tuple(n for s, o in zip(shape, out, strict=True) for n in (s, o // s))
    text = BLOCKS.format(
        sizes=_listed(shape),
        pairs=_listed(pairs),
        out=", ".join(f"i{d}, f{d}" for d in range(len(shape))),
        at=", ".join(f"i{d}" for d in range(len(shape))),
    )
    return program(app, text, {"x": shape, "y": pairs}, {"x": 0})


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One axis: sizes, scale, and the part of the input that is resized, in the mode that knows parts."""

    size: int
    out: int
    scale: float
    region: tuple[float, float]


def _line(app: Application, axis: int) -> Line:
    return Line(app.input(0).shape[axis], app.outputs[0].shape[axis], _scale(app, axis), _region(app, axis))


def _crops(app: Application) -> bool:
    return app.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"


def _region(app: Application, d: int) -> tuple[float, float]:
    """Where the part of a dimension that is resized starts and ends, from 0 to 1."""
    if not _crops(app):
        return 0.0, 1.0
    bounds = app.known(1)
    rank = app.input(0).rank
    places = [a % rank for a in app.integers("axes") or range(rank)]
    if bounds is None or bounds.size != 2 * len(places):
        raise UnsupportedError(f"tf_crop_and_resize needs a region of {2 * len(places)} numbers as its input 1")
    at = places.index(d) if d in places else None
    return (0.0, 1.0) if at is None else (float(bounds[at]), float(bounds[at + len(places)]))


def _outside(app: Application, line: Line) -> np.ndarray:
    """Which output positions lie outside the input, where that gives them another value."""
    places = _places(app, line)
    outside: np.ndarray = ((places < 0) | (places > line.size - 1)) & _crops(app)
    return outside


def _beyond(app: Application) -> str:
    """The value of what lies outside, as the language writes it."""
    value = app.number("extrapolation_value", 0.0)
    return pad_literal(value if app.outputs[0].dtype.is_float else int(np.rint(value)))


# --- tables -----------------------------------------------------------------------------------------------------------

TABLES = """
op nearest(x[{sizes}] pad {pad}, {tables}) -> y[{out}]:
    y[{at}] = x[{read}]
"""


def _by_tables(app: Application, lines: Mapping[int, Line]) -> Compute:
    """Every output position reads the input position that a table names, or beyond the input."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    tables = {f"t{d}": _table(app, line) for d, line in lines.items()}
    text = TABLES.format(
        sizes=_listed(shape),
        pad=_beyond(app),
        tables=", ".join(f"{name}[{table.size}]" for name, table in tables.items()),
        out=_listed(out),
        at=", ".join(f"i{d}" for d in range(len(shape))),
        read=", ".join(f"t{d}[i{d}]" if d in lines else f"i{d}" for d in range(len(shape))),
    )
    return program(app, text, {"x": shape, "y": out} | {n: t.shape for n, t in tables.items()}, {"x": 0}, 0, tables)


def _table(app: Application, line: Line) -> np.ndarray:
    """The input position of each output position; -1 beyond the input."""
    nearest = np.array([_nearest(app, place) for place in _places(app, line)], np.int32)
    return np.where(_outside(app, line), -1, np.clip(nearest, 0, line.size - 1)).astype(np.int32)


# --- matrices ---------------------------------------------------------------------------------------------------------


def _by_matrices(app: Application, lines: Mapping[int, Line]) -> Compute:
    """Axis by axis, every output position is a weighted sum of input positions.

    Sums of integers are made in f64, rounded to the nearest (halves to even) and saturated as ONNX's evaluator does it;
    the specification says nothing, and onnxruntime cuts them off.
    """
    shape, out, result = app.input(0).shape, app.outputs[0].shape, app.outputs[0].dtype
    dtype = result.numpy if result.is_float else np.dtype(np.float64)
    constants = {f"m{d}": _matrix(app, line).astype(dtype) for d, line in lines.items()}
    beyond = {d: _outside(app, line) for d, line in lines.items()}
    constants |= {f"e{d}": outside.astype(np.int32) for d, outside in beyond.items() if outside.any()}
    at, source, body = ", ".join(f"i{d}" for d in range(len(shape))), "x", ""
    for d in lines:
        read = ", ".join("k" if e == d else f"i{e}" for e in range(len(shape)))
        value = f"(sum(k) m{d}[i{d}, k] * {source}[{read}])"
        source = f"s{d}"
        if d == max(lines):
            source = "y"
            ends = " + ".join(f"{name}[i{name[1:]}]" for name in constants if name[0] == "e")
            value = value if result.is_float else saturated(f"round({value})", result)
            value = f"where({ends} > 0, {_beyond(app)}, {value})" if ends else value
        body += f"    {source}[{at}] = {value}\n"
    given = ", ".join(f"{name}[{_listed(array.shape)}]" for name, array in constants.items())
    text = f"op resize(x[{_listed(shape)}], {given}) -> y[{_listed(out)}]:\n{body}"
    shapes = {"x": shape, "y": out} | {name: array.shape for name, array in constants.items()}
    return program(app, text, shapes, {"x": 0}, constants=constants)


def _matrix(app: Application, line: Line) -> np.ndarray:
    """Weights of input positions for each output position: shape (out, size)."""
    mode = str(app.attributes.get("mode", "nearest"))
    matrix = np.zeros((line.out, line.size))
    for row, place in enumerate(_places(app, line)):
        taps, weights = _taps(app, mode, line, place)
        inside = (taps >= 0) & (taps < line.size)
        if app.integer("exclude_outside", 0):
            weights = np.where(inside, weights, 0.0)
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, line.size - 1), weights)
    return matrix


def _places(app: Application, line: Line) -> np.ndarray:
    """Where each output position lies among the input's.

    In f32 as everywhere else: half a unit in the last place decides which of two pixels is the nearest.
    """
    at, scale, half = np.arange(line.out, dtype=np.float32), np.float32(line.scale), np.float32(0.5)
    default = "asymmetric" if app.opset < 11 else "half_pixel"
    match app.attributes.get("coordinate_transformation_mode", default):
        case "align_corners":
            # ONNX's text divides by a length less 1 and says not which; in its tests it is that before it is rounded
            reach = line.size * line.scale - 1
            return at * (line.size - 1) / reach if line.out > 1 else np.zeros(1)
        case "asymmetric":
            return at / scale
        case "tf_crop_and_resize":
            start, end = line.region
            reach = line.size * line.scale - 1
            inner = at * (end - start) / reach if reach else np.full(line.out, (end - start) / 2)
            return (start + inner) * (line.size - 1)
        case "tf_half_pixel_for_nn":
            return (at + half) / scale
        case "pytorch_half_pixel" if line.out == 1:
            return np.zeros(1)
        case "half_pixel_symmetric":
            adjustment = line.out / (line.scale * line.size)
            offset = line.size / 2 * (1 - adjustment)
            return offset + (at + half) / scale - half
        case _:
            return (at + half) / scale - half


def _taps(app: Application, mode: str, line: Line, place: float) -> tuple[np.ndarray, np.ndarray]:
    """The input positions that one output reads, and their weights."""
    shrink = min(line.scale, 1.0) if app.integer("antialias", 0) else 1.0
    reach = (1 if mode == "linear" else 2) / shrink
    taps = np.arange(math.floor(place - reach) + 1, math.ceil(place + reach + 1e-9))
    distance = np.abs(taps - place) * shrink
    a = app.number("cubic_coeff_a", -0.75)
    weights = np.maximum(0, 1 - distance) if mode == "linear" else _cubic(distance, a)
    return taps, weights / weights.sum()


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    result: np.ndarray = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return result


def _nearest(app: Application, place: float) -> int:
    match app.attributes.get("nearest_mode", "floor" if app.opset < 11 else "round_prefer_floor"):
        case "floor":
            return math.floor(place)
        case "ceil":
            return math.ceil(place)
        case "round_prefer_ceil":
            return math.floor(place + 0.5)
        case _:
            return math.ceil(place - 0.5)
