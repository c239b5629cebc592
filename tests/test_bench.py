"""Timing in turns and comparing outputs."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.bench import Comparison, interleaved, largest_difference
from tilewright.errors import InputError


def test_functions_take_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0, at_least=3)
    assert calls == ["a", "b"] * 5  # two warm-up rounds and three counted ones
    assert [len(t) for t in times.values()] == [3, 3]


def test_ratio_is_of_medians() -> None:
    seconds = {"tilewright": (1.0, 2.0, 9.0), "onnxruntime": (3.0, 4.0, 5.0)}
    comparison = Comparison("net", "pocl", 1, 2, seconds, 0.0)
    assert comparison.ratio == 2.0
    assert comparison.to_json()["milliseconds"]["tilewright"] == {"median": 2e3, "best": 1e3, "worst": 9e3, "runs": 3}
    assert Comparison("net", "pocl", 1, None, {"tilewright": (1.0,)}, None).ratio is None


def test_difference_is_relative_to_the_largest_magnitude() -> None:
    reference = [np.array([1.0, -4.0]), np.array([True])]
    assert largest_difference([np.array([1.0, -3.0]), np.array([True])], reference) == 0.25
    assert largest_difference([np.zeros(0)], [np.zeros(0)]) == 0.0
    assert largest_difference([np.array([1.0, np.nan])], [np.array([1.0, np.nan])]) == 0.0
    assert largest_difference([np.array([1.0, 2.0])], [np.array([1.0, np.nan])]) == float("inf")
    with pytest.raises(InputError, match=r"have shapes \(2,\) and \(3,\)"):
        largest_difference([np.zeros(2)], [np.zeros(3)])
