"""Discrete Fourier transforms as sums of products with factors that are made ahead, in f64.

    y[k] = sum(n) x[n] * exp(-+2 pi i n k / N)

Complex numbers are pairs in the last dimension; a factor is the 2x2 matrix by which it turns a pair. Long transforms of
a length ``N = R * C`` are two short ones with a twist in between (Cooley & Tukey, "An algorithm for the machine
calculation of complex Fourier series", Mathematics of Computation 19, 1965):

    n = C a + b,  k = c + R d:   y[c + R d] = sum(b) (sum(a) x[C a + b] W_R^(a c)) W_N^(b c) W_C^(b d)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

MAX_FACTORS = 1 << 20
"""Elements of a table of factors; a longer transform is cut in two."""
MAX_TABLE = 1 << 22
"""Elements of the largest table that there may be."""

Shape = tuple[int, ...]


def _turns(numerators: np.ndarray, length: int, sign: int) -> np.ndarray:
    """The 2x2 matrices (of last two dimensions: part read, part written) of ``exp(sign * 2 pi i numerator / length)``.

    Numerators are taken modulo the length first, so that angles are exact to the last bit of f64; multiples of a
    quarter turn are exact.
    """
    eighth = (8 * (numerators % length)) / length
    cosine, sine = np.cos(eighth * (math.pi / 4)), np.sin(eighth * (math.pi / 4))
    cosine = np.where(eighth % 4 == 2, 0.0, cosine)
    sine = sign * np.where(eighth % 4 == 0, 0.0, sine)
    return np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], -2)


@dataclass(frozen=True)
class Transform:
    """A Fourier transform of pairs along one axis."""

    length: int
    """N, of the whole transform."""
    read: int
    """Elements that there are; those behind are 0."""
    written: int
    """Frequencies that are wanted, the first ones."""
    parts: tuple[int, int]
    """Parts of what is read and written: 1 for real numbers, 2 for complex ones."""
    inverse: bool
    folded: bool = False
    """Whether what is read is the first half of a spectrum whose other half is its mirror image."""

    @property
    def sign(self) -> int:
        """Of the exponent."""
        return 1 if self.inverse else -1

    @property
    def scale(self) -> float:
        """What results are multiplied by."""
        return 1 / self.length if self.inverse else 1.0

    @property
    def size(self) -> int:
        """Elements of the table."""
        return self.read * self.written * self.parts[0] * self.parts[1]

    def table(self) -> np.ndarray:
        """The factors by [element read, part read, frequency, part written], f64."""
        n, k = np.arange(self.read)[:, None], np.arange(self.written)[None, :]
        factors = _turns(n * k, self.length, self.sign)[:, :, : self.parts[0], : self.parts[1]] * self.scale
        if self.folded:
            alone = (n == 0) | (2 * n == self.length)
            factors = factors * np.where(alone, 1.0, 2.0)[..., None, None]
        return factors.transpose(0, 2, 1, 3)


def _transform(app: Application, length: int, axis: int) -> Transform:
    x, y = app.input(0), app.outputs[0]
    inverse, onesided = bool(app.integer("inverse", 0)), bool(app.integer("onesided", 0))
    folded = inverse and onesided
    read = min(x.shape[axis], length // 2 + 1 if folded else length)
    return Transform(length, read, y.shape[axis], (x.shape[-1], y.shape[-1]), inverse, folded)


def _stored(app: Application) -> type[np.floating]:
    """The factors' type: f64 for f64, else f32, in which everything shorter is computed."""
    return np.float64 if app.input(0).dtype is DType.F64 else np.float32


def _axis(app: Application) -> int:
    given = app.known(2)
    axis = app.integer("axis", 1) if app.opset < 20 else -2 if given is None else int(given.reshape(-1)[0])
    rank = app.input(0).rank
    if not -rank <= axis < rank or axis % rank == rank - 1:
        raise UnsupportedError(f"axis {axis} of an input of rank {rank} is none of a signal")
    return axis % rank


DIRECT = """
op dft(x[{x}], f[{f}]) -> y[{y}]:
    y[a, k, b, q] = sum(n: {read}, p) x[a, n + 0, b, p] * f[n, p, k, q]
"""

IN_TWO = """
op dft(x[{x}], rows[{rows}], twist[{twist}], columns[{columns}]) -> y[{y}]:
    u[a, c, n: {width}, b, q] = sum(r, p) x[a, r * {width} + n, b, p] * rows[r, p, c, q]
    v[a, c, n, b, q] = u[a, c, n, b, 0] * twist[c, n, 0, q] + u[a, c, n, b, 1] * twist[c, n, 1, q]
    {result}[a, d, c, b, q] = sum(n, p) v[a, c, n, b, p] * columns[n, p, d, q]
"""


@operator("DFT", host=(1, 2))
def discrete_fourier_transform(app: Application) -> Compute:
    """Along one axis, of real or complex signals; onesided gives or takes the first half of a spectrum alone."""
    x, axis, given = app.input(0), _axis(app), app.known(1)
    folded = app.integer("inverse", 0) and app.integer("onesided", 0)
    length = int(given.reshape(-1)[0]) if given is not None else x.shape[axis]
    if given is None and folded:
        length = 2 * (x.shape[axis] - 1)
    if length < 1 or x.shape[-1] not in (1, 2) or (folded and x.shape[-1] != 2):
        raise UnsupportedError(f"a transform of length {length} over an input of shape {x.shape} is not defined")
    t = _transform(app, length, axis)
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 : -1])
    seen = (before, x.shape[axis], after, x.shape[-1])
    if t.size <= MAX_FACTORS:
        return _direct(app, t, seen)
    return _in_two(app, t, seen)


def _direct(app: Application, t: Transform, seen: Shape) -> Compute:
    table = t.table().astype(_stored(app))
    out = (seen[0], t.written, seen[2], t.parts[1])
    text = DIRECT.format(x=_dims(seen), f=_dims(table.shape), y=_dims(out), read=t.read)
    return program(app, text, {"x": seen, "f": table.shape, "y": out}, {"x": 0}, constants={"f": table})


def _in_two(app: Application, t: Transform, seen: Shape) -> Compute:
    """A long transform by rows and columns of the signal seen as a matrix."""
    rows = max((r for r in range(1, math.isqrt(t.length) + 1) if t.length % r == 0), default=1)
    width = t.length // rows
    if 4 * width * width > MAX_TABLE or t.folded:
        raise UnsupportedError(
            f"a transform of length {t.length} that is {'' if t.folded else 'not '}folded is too long"
        )
    first = Transform(rows, rows, rows, (t.parts[0], 2), t.inverse).table() * rows ** int(t.inverse)
    last = Transform(width, width, width, (2, t.parts[1]), t.inverse).table() / rows ** int(t.inverse)
    twist = _turns(np.arange(rows)[:, None] * np.arange(width)[None, :], t.length, t.sign)
    constants = {"rows": first, "twist": twist, "columns": last}
    whole = t.written == t.length
    out = (seen[0], *((width, rows) if whole else (t.written,)), seen[2], t.parts[1])
    text = IN_TWO.format(
        x=_dims(seen),
        **{n: _dims(c.shape) for n, c in constants.items()},
        y=_dims(out),
        width=width,
        result="y" if whole else "z",
    )
    if not whole:
        text += f"    y[a, k, b, q] = z[a, k / {rows}, k % {rows}, b, q]\n"
    stored = {n: c.astype(_stored(app)) for n, c in constants.items()}
    shapes = {"x": seen, "y": out} | {n: c.shape for n, c in constants.items()}
    return program(app, text, shapes, {"x": 0}, constants=stored)


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


STFT = """
op stft(x[{x}]{window}, f[{f}]) -> y[{y}]:
    y[b, t, k, q] = sum(n: {read}, p) x[b, t * {step} + n, p]{weight} * f[n, p, k, q]
"""


@operator("STFT", host=(1, 3))
def short_time_fourier_transform(app: Application) -> Compute:
    """Fourier transforms of frames that start every so many elements, each weighted by a window."""
    x, y, window = app.input(0), app.outputs[0], app.optional(2)
    step, given = app.known(1), app.known(3)
    if step is None or x.rank != 3 or x.shape[2] not in (1, 2):
        raise UnsupportedError(f"frames of an input of shape {x.shape} are not supported")
    length = int(given.reshape(-1)[0]) if given is not None else window.shape[0] if window else x.shape[1]
    read = min(length, window.shape[0]) if window else length
    t = Transform(length, read, y.shape[2], (x.shape[2], 2), inverse=False)
    if length < 1 or t.size > MAX_TABLE:
        raise UnsupportedError(f"frames of {length} elements are not supported")
    table = t.table().astype(_stored(app))
    text = STFT.format(
        x=_dims(x.shape),
        window=f", w[{window.shape[0]}]" if window else "",
        f=_dims(table.shape),
        y=_dims(y.shape),
        read=read,
        step=int(step.reshape(-1)[0]),
        weight=" * w[n + 0]" if window else "",
    )
    shapes = {"x": x.shape, "f": table.shape, "y": y.shape} | ({"w": window.shape} if window else {})
    return program(app, text, shapes, {"x": 0} | ({"w": 2} if window else {}), constants={"f": table})
