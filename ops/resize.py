"""Resizing of any kind as a product with a matrix per axis: output positions by input positions.

Nearest neighbours by whole factors move elements only and have a program of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dsl import lang
from tilewright.dsl.trace import Header, traced
from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

BLOCKS = """
op blocks(x[{sizes}]) -> y[{pairs}]:
    y[{out}] = x[{at}]
"""
"""Each element becomes a block; the output is seen as (position, place in the block) pairs."""


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "coordinate_transformation_mode 'tf_crop_and_resize' is not supported"
    return None


@operator("Resize", "Upsample", host=(1, 2, 3), refuse=_refuse)
def resize(app: Application) -> Compute:
    """Images of another size."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    if _is_blocks(app):
        return _blocks(app)
    axes = [d for d in range(len(shape)) if shape[d] != out[d] or _scale(app, d) != 1]
    if not app.outputs[0].dtype.is_float:
        raise UnsupportedError(f"resizing {app.outputs[0].dtype.value} other than by whole factors is not supported")
    return _by_matrices(app, axes)


def _scale(app: Application, d: int) -> float:
    """Output positions per input position along a dimension, as the model states it (or as the sizes give it)."""
    position = 2 if app.opset >= 11 else 1
    scales = app.known(position)
    listed = tuple(app.attributes["scales"]) if "scales" in app.attributes else ()
    axes = app.integers("axes") or tuple(range(app.input(0).rank))
    places = [a % app.input(0).rank for a in axes]
    values = listed if scales is None or not scales.size else scales.tolist()
    if values:
        return float(values[places.index(d)]) if d in places else 1.0
    sizes = app.known(3)
    assert sizes is not None
    ratios = {a: int(n) / app.input(0).shape[a] for a, n in zip(places, sizes, strict=True)}
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


# --- matrices ---------------------------------------------------------------------------------------------------------


def _by_matrices(app: Application, axes: list[int]) -> Compute:
    """Axis by axis, every output position is a weighted sum of input positions."""
    shape, out = app.input(0).shape, app.outputs[0].shape
    matrices = {f"m{d}": _matrix(app, d) for d in axes or [len(shape) - 1]}
    declared = [("x", shape), *((name, m.shape) for name, m in matrices.items())]
    header = Header(
        "resize", tuple((name, f"{name}[{_listed(n)}]") for name, n in declared), (), (f"y[{_listed(out)}]",)
    )

    def resized(x: lang.Tensor, *weights: lang.Tensor) -> lang.Tensor:
        at = [lang.index(f"i{d}") for d in range(len(shape))]
        k = lang.index("k")
        for m, d in zip(weights, axes or [len(shape) - 1], strict=True):
            read = (*at[:d], k, *at[d + 1 :])
            x = lang.each(*at)(lang.sum(k)(m[at[d], k] * x[read]))
        return x

    dtype = app.outputs[0].dtype.numpy
    constants = {name: m.astype(dtype) for name, m in matrices.items()}
    return program(app, traced(header, resized), dict(declared) | {"y": out}, {"x": 0}, constants=constants)


@dataclass(frozen=True)
class Line:
    """One axis: sizes and scale."""

    size: int
    out: int
    scale: float


def _matrix(app: Application, axis: int) -> np.ndarray:
    """Weights of input positions for each output position: shape (out, size)."""
    line = Line(app.input(0).shape[axis], app.outputs[0].shape[axis], _scale(app, axis))
    mode = str(app.attributes.get("mode", "nearest"))
    places = _places(app, line)
    matrix = np.zeros((line.out, line.size))
    for row, place in enumerate(places):
        taps, weights = _taps(app, mode, line, place)
        inside = (taps >= 0) & (taps < line.size)
        if app.integer("exclude_outside", 0):
            weights = np.where(inside, weights, 0.0)
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, line.size - 1), weights)
    return matrix


def _places(app: Application, line: Line) -> np.ndarray:
    """Where each output position lies among the input's."""
    at = np.arange(line.out, dtype=np.float64)
    default = "asymmetric" if app.opset < 11 else "half_pixel"
    match app.attributes.get("coordinate_transformation_mode", default):
        case "align_corners":
            reach = line.size * line.scale - 1  # by the scale as it is stated, before sizes are rounded
            return at * (line.size - 1) / reach if line.out > 1 else np.zeros(1)
        case "asymmetric":
            return at / line.scale
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / line.scale
        case "pytorch_half_pixel" if line.out == 1:
            return np.zeros(1)
        case "half_pixel_symmetric":
            adjustment = line.out / (line.scale * line.size)
            offset = line.size / 2 * (1 - adjustment)
            return offset + (at + 0.5) / line.scale - 0.5
        case _:
            return (at + 0.5) / line.scale - 0.5


def _taps(app: Application, mode: str, line: Line, place: float) -> tuple[np.ndarray, np.ndarray]:
    """The input positions that one output reads, and their weights."""
    if mode == "nearest":
        return np.array([_nearest(app, place)]), np.ones(1)
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
