"""A model of how fast the points of a space are, from those measured: a Gaussian process over log time.

Matérn-5/2 kernel with one length scale per feature, chosen by likelihood (C. E. Rasmussen, C. K. I. Williams, "Gaussian
Processes for Machine Learning", 2006, chapters 2, 4 and 5). A few hundred measurements take some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import ndtr

Array = NDArray[np.float64]

NOISE = 1e-3
"""Variance of a measurement relative to the spread of the data."""
FIRST_LENGTH = 0.6
LENGTH_SPREAD = 0.9
"""Standard deviation of log lengths around the first one, assumed beforehand: few data must not fix them."""
STEP = 0.7
"""Step of log lengths in their search, which stays within `REACH` of the first one."""
REACH = 2.5
_SQRT5 = math.sqrt(5.0)


class Surrogate:
    """Predicts log seconds from features."""

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths`: columns of each feature; those of one parameter share no length scale, those of a name do."""
        self._logs = np.full(sum(widths), math.log(FIRST_LENGTH))
        self._points: Array = np.zeros((0, len(self._logs)))
        self._weights: Array = np.zeros(0)
        self._factor: Array = np.zeros((0, 0))
        self._mean, self._spread, self._amplitude = 0.0, 1.0, 1.0

    def fit(self, features: Array, values: Sequence[float] | Array, choose_lengths: bool) -> None:
        """Learn from measured points; `choose_lengths` also finds the length scales anew."""
        self._points = features
        y = np.asarray(values, np.float64)
        self._mean, self._spread = float(y.mean()), float(y.std()) or 1.0
        y = (y - self._mean) / self._spread
        if choose_lengths:
            self._choose_lengths(y)
        self._factor = _factor(self._points, self._logs)
        half = _solved(self._factor, y)
        self._weights = _solved(self._factor, half, transposed=True)
        self._amplitude = self._spread * math.sqrt(max(float(half @ half) / len(y), 1e-12))

    def predict(self, features: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) for each point."""
        kernel = _kernel(features, self._points, self._logs)
        left = _solved(self._factor, kernel.T)
        deviation = np.sqrt(np.maximum(1.0 - (left**2).sum(axis=0), 1e-9))
        return self._mean + self._spread * (kernel @ self._weights), self._amplitude * deviation

    def _choose_lengths(self, y: Array) -> None:
        """One sweep of line searches from the lengths that were best before."""
        best = _likelihood(self._points, self._logs, y)
        for column in range(len(self._logs)):
            for step in (-STEP, STEP):
                while True:
                    logs = self._logs.copy()
                    logs[column] += step
                    if abs(logs[column] - math.log(FIRST_LENGTH)) > REACH:
                        break
                    found = _likelihood(self._points, logs, y)
                    if found <= best + 1e-6:
                        break
                    best, self._logs = found, logs


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """How far below `best` a normally distributed value is on average, counting those above as nothing.

    D. R. Jones, M. Schonlau, W. J. Welch, "Efficient global optimization of expensive black-box functions", Journal of
    Global Optimization 13, 1998.
    """
    z = (best - mean) / deviation
    found: Array = deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi))
    return found


def _kernel(a: Array, b: Array, logs: Array) -> Array:
    a, b = a * np.exp(-logs), b * np.exp(-logs)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * (a @ b.T)
    r: Array = np.maximum(squares, 0.0, out=squares)
    np.sqrt(r, out=r)
    r *= _SQRT5
    polynomial = r / 3.0
    polynomial += 1.0
    polynomial *= r
    polynomial += 1.0
    np.exp(np.negative(r, out=r), out=r)
    polynomial *= r
    return polynomial


def _factor(points: Array, logs: Array) -> Array:
    return np.asarray(np.linalg.cholesky(_kernel(points, points, logs) + NOISE * np.eye(len(points))), np.float64)


def _solved(factor: Array, right: Array, transposed: bool = False) -> Array:
    found: Any = solve_triangular(factor, right, lower=True, trans=int(transposed), check_finite=False)
    return np.asarray(found, np.float64)


def _likelihood(points: Array, logs: Array, y: Array) -> float:
    """Log of the probability of the data and these lengths up to a constant, with the best amplitude."""
    n = len(y)
    try:
        factor = _factor(points, logs)
    except np.linalg.LinAlgError:
        return -math.inf
    half = _solved(factor, y)
    beforehand = 0.5 * float(((logs - math.log(FIRST_LENGTH)) ** 2).sum()) / LENGTH_SPREAD**2
    return float(-0.5 * n * math.log(max(float(half @ half) / n, 1e-12)) - np.log(np.diag(factor)).sum()) - beforehand


__all__ = ["Array", "Surrogate", "expected_improvement"]
