"""Random numbers from a seed: every element's are made of the seed and its number alone, so any device gives the same.

The generator is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), read
at any place: its n-th word is a mixing function of ``seed + n * GAMMA``. Normal numbers are made of two uniform ones
(Box & Muller, "A note on the generation of random normal deviates", 1958), choices among classes by adding Gumbel noise
to the logarithms of their probabilities (Maddison, Tarlow & Minka, "A* sampling", 2014, arXiv:1411.0030).

Without a seed every run gives other numbers, which a Program cannot: that is left to the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, operator


def _signed(word: int) -> int:
    """The i64 of the same bits, as which the language writes it."""
    return word - (1 << 64) if word >> 63 else word


GAMMA = _signed(0x9E3779B97F4A7C15)
FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))

DEFINITIONS = f"""
def folded(z, n) = bitxor(z, z >> u64(n))
def mixed(z) = folded(folded(folded(z, 30) * u64({FACTORS[0]}), 27) * u64({FACTORS[1]}), 31)
def word(seed, n) = mixed(seed + (u64(n) + u64(1)) * u64({GAMMA}))
def single(seed, n) = f32(word(seed, n) >> u64(40)) * {2.0**-24!r}
def double(seed, n) = f64(word(seed, n) >> u64(11)) * {2.0**-53!r}
"""
"""Words of 64 bits, and uniform numbers of 24 or 53 bits from 0 up to, but not, 1."""


def _refuse_unseeded(attributes: Mapping[str, Any], opset: int) -> str | None:
    return None if "seed" in attributes else "without a seed every run has numbers of its own, made by the host"


def _seed(app: Application) -> np.ndarray:
    """The seed's bits as the generator's first state."""
    bits = np.array(app.number("seed", 0.0), np.float64).view(np.uint64)
    return bits.reshape(1)


def _elements(app: Application, value: str, reads: bool = False) -> Compute:
    """A program of one statement per element `k`, numbered in row-major order; `x` is the input where it is read."""
    dtype, count = app.outputs[0].dtype, math.prod(app.outputs[0].shape)
    if not dtype.is_float and not reads:
        raise UnsupportedError(f"random numbers of type {dtype.value} are not supported")
    if count >= 1 << 30:
        raise UnsupportedError(f"{count} random numbers at once are not supported")
    kind = "double" if dtype is DType.F64 else "single"
    head = f"x[{count}], seed[1]" if reads else "seed[1]"
    text = f"{DEFINITIONS}op numbers({head}) -> y[{count}]:\n    y[k] = {value.replace('uniform', kind)}\n"
    shapes = {"y": (count,), "seed": (1,)} | ({"x": (count,)} if reads else {})
    return program(app, text, shapes, {"x": 0} if reads else {}, 0, {"seed": _seed(app)})


@operator("RandomUniform", "RandomUniformLike", refuse=_refuse_unseeded)
def uniform(app: Application) -> Compute:
    """Numbers spread evenly from `low` up to `high`."""
    low, high = app.number("low", 0.0), app.number("high", 1.0)
    return _elements(app, f"{literal(low)} + {literal(high - low)} * uniform(seed[0], k)")


@operator("RandomNormal", "RandomNormalLike", refuse=_refuse_unseeded)
def normal(app: Application) -> Compute:
    """Normally distributed numbers of a mean and standard deviation."""
    radius = "sqrt(-2 * log(1 - uniform(seed[0], 2 * k)))"
    angle = f"cos({2 * math.pi!r} * uniform(seed[0], 2 * k + 1))"
    mean, scale = literal(app.number("mean", 0.0)), literal(app.number("scale", 1.0))
    return _elements(app, f"{mean} + {scale} * {radius} * {angle}")


@operator("Bernoulli", refuse=_refuse_unseeded)
def bernoulli(app: Application) -> Compute:
    """1 with the probability that the input gives, else 0."""
    chance = "single(seed[0], k) < x[k]"
    return _elements(app, chance if app.outputs[0].dtype is DType.BOOL else f"where({chance}, 1, 0)", reads=True)


MULTINOMIAL = """\
op multinomial(x[B, C], seed[1]) -> y[B, S]:
    y[b, s] = argmax(c) (x[b, c] - log(-log(single(seed[0], (b * {samples} + s) * {classes} + c) + {half})))
"""


@operator("Multinomial", refuse=_refuse_unseeded)
def multinomial(app: Application) -> Compute:
    """Classes drawn with replacement, from the logarithms of their probabilities (up to a factor)."""
    x, out = app.input(0), app.outputs[0].shape
    if out[0] * out[1] * x.shape[1] >= 1 << 30 or not x.shape[1]:
        raise UnsupportedError(f"{out[1]} draws from an input of shape {x.shape} are not supported")
    text = DEFINITIONS + MULTINOMIAL.format(samples=out[1], classes=x.shape[1], half=repr(2.0**-25))
    return program(app, text, {"x": x.shape, "seed": (1,), "y": out}, {"x": 0}, 0, {"seed": _seed(app)})
