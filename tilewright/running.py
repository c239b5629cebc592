"""Running a network once for people: its outputs summarised, its time taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import InputError
from tilewright.feeds import Array, network_feeds, parse_given
from tilewright.graph.session import InferenceSession


@dataclass(frozen=True)
class OutputSummary:
    """What an output array holds; figures are NaN for one without elements."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float
    max: float
    mean: float
    largest: tuple[tuple[int, float], ...]
    """Position along the last dimension and value of the largest elements of the first row."""

    @property
    def largest_text(self) -> str:
        """The largest elements in a line."""
        return ", ".join(f"[{position}] {value:.4g}" for position, value in self.largest)


@dataclass(frozen=True)
class RunSummary:
    """One network run."""

    device: str
    milliseconds: float
    """Median time of a run, inputs and outputs moved included."""
    outputs: tuple[OutputSummary, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    summary: RunSummary
    arrays: Mapping[str, Array]


def run_network(session: InferenceSession, inputs: Sequence[str], batch: int, repeat: int, top: int) -> Outcome:
    """Run with inputs as ``--input`` gives them, ``repeat`` times after one run that builds the kernels."""
    for value in session.get_outputs():
        if not value.type.startswith("tensor(") or value.type == "tensor(string)":
            raise InputError(f"the output {value.name!r} is a {value.type}, which is not shown here; use Python")
    feeds = network_feeds(session.get_inputs(), [parse_given(text) for text in inputs], batch)
    results = session.run(None, feeds)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        results = session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    arrays = {value.name: array for value, array in zip(session.get_outputs(), results, strict=True)}
    outputs = tuple(summarise(name, array, top) for name, array in arrays.items())
    return Outcome(RunSummary(session.device.name, 1e3 * statistics.median(seconds), outputs), arrays)


def summarise(name: str, array: Array, top: int) -> OutputSummary:
    """An output in figures; the ``top`` largest elements only where the last dimension has more than one."""
    numbers = array.astype(np.float64)
    low, high, mean = (numbers.min(), numbers.max(), numbers.mean()) if array.size else (np.nan,) * 3
    largest: tuple[tuple[int, float], ...] = ()
    if array.ndim and array.size and array.shape[-1] > 1:
        row = numbers.reshape(-1, numbers.shape[-1])[0]
        largest = tuple((int(n), float(row[n])) for n in np.argsort(-row, kind="stable")[:top])
    return OutputSummary(name, array.shape, array.dtype.name, float(low), float(high), float(mean), largest)


def save_outputs(file: Path, arrays: Mapping[str, Array]) -> None:
    """Write the outputs as .npz; InputError if that is impossible."""
    contents: dict[str, Any] = dict(arrays)
    try:
        with file.open("wb") as out:
            np.savez(out, **contents)
    except OSError as error:
        raise InputError(f"the outputs cannot be written to {file}: {error.strerror or error}") from error
