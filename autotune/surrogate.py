"""A model of how fast a family's configurations are, from those measured: a Gaussian process over log time.

Matérn-5/2 kernel with one length scale per parameter, chosen by likelihood. A few hundred measurements and a dozen
parameters take some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dsl.space import Configuration, Space

Array = np.ndarray[Any, np.dtype[np.float64]]

LENGTHS = (0.2, 0.4, 0.8, 1.6, 4.0)
"""Length scales that are compared; a parameter's values are spread over [0, 1]."""
NOISE = 1e-3
"""Variance of a measurement relative to the spread of the data."""
SWEEPS = 2
FIRST_LENGTH = 0.8
LENGTH_SPREAD = 0.8
"""Standard deviation of log lengths around the first one, assumed beforehand: few data must not fix them."""
_SQRT5 = math.sqrt(5.0)


class Surrogate:
    """Predicts log seconds within one space."""

    def __init__(self, space: Space) -> None:
        self._codes: dict[str, dict[object, Array]] = {}
        self._groups: list[slice] = []
        at = 0
        for p in space.parameters:
            if len(p.values) < 2:
                continue
            codes = _codes(p.values)
            self._codes[p.name] = codes
            width = next(iter(codes.values())).size
            self._groups.append(slice(at, at + width))
            at += width
        self._lengths = np.full(len(self._groups), FIRST_LENGTH)
        self._points: Array = np.zeros((0, at))
        self._weights: Array = np.zeros(0)
        self._factor: Array = np.zeros((0, 0))
        self._mean, self._spread, self._amplitude = 0.0, 1.0, 1.0

    def fit(self, configurations: Sequence[Configuration], values: Sequence[float], choose_lengths: bool) -> None:
        """Learn from measured configurations; `choose_lengths` also finds the length scales anew."""
        self._points = self._encoded(configurations)
        y = np.asarray(values, np.float64)
        self._mean, self._spread = float(y.mean()), float(y.std()) or 1.0
        y = (y - self._mean) / self._spread
        squares = self._squares(self._points, self._points)
        if choose_lengths:
            self._choose_lengths(squares, y)
        self._factor = np.asarray(
            np.linalg.cholesky(_kernel(squares, self._lengths) + NOISE * np.eye(len(y))), np.float64
        )
        half = np.linalg.solve(self._factor, y)
        self._weights = np.linalg.solve(self._factor.T, half)
        self._amplitude = self._spread * math.sqrt(max(float(half @ half) / len(y), 1e-12))

    def predict(self, configurations: Sequence[Configuration]) -> tuple[Array, Array]:
        """(mean, standard deviation) for each configuration."""
        k = _kernel(self._squares(self._encoded(configurations), self._points), self._lengths)
        left = np.linalg.solve(self._factor, k.T)
        deviation = np.sqrt(np.maximum(1.0 - (left**2).sum(axis=0), 1e-9))
        return self._mean + self._spread * (k @ self._weights), self._amplitude * deviation

    def _encoded(self, configurations: Sequence[Configuration]) -> Array:
        rows = [np.concatenate([codes[c[name]] for name, codes in self._codes.items()]) for c in configurations]
        return np.array(rows, np.float64).reshape(len(configurations), -1)

    def _squares(self, a: Array, b: Array) -> Array:
        """Squared distances per parameter, [parameters, a, b]."""
        parts = [((a[:, None, g] - b[None, :, g]) ** 2).sum(axis=2) for g in self._groups]
        return np.array(parts).reshape(len(parts), len(a), len(b))

    def _choose_lengths(self, squares: Array, y: Array) -> None:
        """One parameter after the other, the length of highest likelihood."""
        best = _likelihood(squares, self._lengths, y)
        for _ in range(SWEEPS):
            changed = False
            for p in range(len(self._lengths)):
                for length in LENGTHS:
                    trial = self._lengths.copy()
                    trial[p] = length
                    likelihood = _likelihood(squares, trial, y)
                    if likelihood > best + 1e-6:
                        best, self._lengths, changed = likelihood, trial, True
            if not changed:
                return


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected reduction of log time below `best`."""
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (z * _normal_cdf(z) + density), 0.0)  # rounding gives tiny negative ones


def _normal_cdf(z: Array) -> Array:
    return 0.5 * (1.0 + np.array([math.erf(v) for v in z / math.sqrt(2.0)]))


def _codes(values: Sequence[object]) -> dict[object, Array]:
    """Ordered values lie evenly on [0, 1]; names are all equally far from each other."""
    if any(isinstance(v, str) for v in values):
        return {v: np.eye(len(values))[n] / math.sqrt(2.0) for n, v in enumerate(values)}
    return {v: np.array([n / (len(values) - 1)]) for n, v in enumerate(values)}


def _kernel(squares: Array, lengths: Array) -> Array:
    r = _SQRT5 * np.sqrt(np.tensordot(lengths**-2, squares, axes=1))
    kernel: Array = (1.0 + r + r**2 / 3.0) * np.exp(-r)
    return kernel


def _likelihood(squares: Array, lengths: Array, y: Array) -> float:
    """Log of the probability of the data and these lengths up to a constant, with the best amplitude."""
    n = len(y)
    try:
        factor = np.linalg.cholesky(_kernel(squares, lengths) + NOISE * np.eye(n))
    except np.linalg.LinAlgError:
        return -math.inf
    half = np.linalg.solve(factor, y)
    beforehand = 0.5 * float((np.log(lengths / FIRST_LENGTH) ** 2).sum()) / LENGTH_SPREAD**2
    return float(-0.5 * n * math.log(max(float(half @ half) / n, 1e-12)) - np.log(np.diag(factor)).sum()) - beforehand


__all__ = ["Surrogate", "expected_improvement"]
