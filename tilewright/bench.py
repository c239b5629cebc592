"""Timing functions in turns, and a network beside onnxruntime on the same numbers.

A time alone says little on a machine that does other things too: what is compared here runs alternately in one
process, and the result is a ratio of medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import InputError, ModelError
from tilewright.feeds import Given, network_feeds

if TYPE_CHECKING:
    from tilewright.graph.session import InferenceSession

Arrays = Sequence[npt.NDArray[Any]]

OURS = "tilewright"
PEER = "onnxruntime"
_WARM_UP = 2


def interleaved(
    functions: Mapping[str, Callable[[], object]], seconds: float = 4.0, at_least: int = 5
) -> dict[str, tuple[float, ...]]:
    """Seconds of every call, the functions called in turns for about ``seconds`` and ``at_least`` times each.

    Each function must return only when its work is done. Two calls of each come first and are not counted.
    """
    for _ in range(_WARM_UP):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(t) < at_least for t in times.values()):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: tuple(t) for name, t in times.items()}


@dataclass(frozen=True)
class Comparison:
    """One network on one device, alone or beside onnxruntime."""

    model: str
    device: str
    batch: int
    threads: int | None
    """Threads that onnxruntime was given, None without it."""
    seconds: Mapping[str, tuple[float, ...]]
    """Every timed run by runner."""
    difference: float | None
    """Largest difference of any output from onnxruntime's, relative to that output's largest magnitude."""

    def median(self, runner: str = OURS) -> float:
        """Median seconds of one runner."""
        return statistics.median(self.seconds[runner])

    @property
    def ratio(self) -> float | None:
        """onnxruntime's median divided by ours: above 1 tilewright is faster. None without onnxruntime."""
        return self.median(PEER) / self.median() if PEER in self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, times in milliseconds."""
        return {
            "model": self.model,
            "device": self.device,
            "batch": self.batch,
            "threads": self.threads,
            "milliseconds": {
                name: {
                    "median": 1e3 * statistics.median(times),
                    "best": 1e3 * min(times),
                    "worst": 1e3 * max(times),
                    "runs": len(times),
                }
                for name, times in self.seconds.items()
            },
            "ratio": self.ratio,
            "largest_difference": self.difference,
        }


def compare(
    model: Path, session: InferenceSession, given: Sequence[Given] = (), batch: int = 1, seconds: float = 4.0
) -> Comparison:
    """Time ``session``, which runs the file ``model``, beside onnxruntime (where it is installed) on equal inputs."""
    feeds = network_feeds(session.get_inputs(), given, batch)
    functions: dict[str, Callable[[], object]] = {OURS: lambda: session.run(None, feeds)}
    threads = usable_cores()
    peer = peer_session(model, threads)
    difference = None
    if peer is not None:
        functions[PEER] = lambda: peer.run(None, feeds)
        difference = largest_difference(session.run(None, feeds), peer.run(None, feeds))
    seconds_by_runner = interleaved(functions, seconds)
    return Comparison(
        model.stem, session.device.name, batch, threads if peer is not None else None, seconds_by_runner, difference
    )


def usable_cores() -> int:
    """Cores that this process may run on, which is what OpenCL's CPU drivers use too."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peer_session(model: Path, threads: int) -> Any | None:
    """An onnxruntime session on the CPU with that many threads, or None if onnxruntime is not installed.

    Its threads stop spinning when a run ends, so that they do not take the cores from whatever runs next.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"onnxruntime cannot load {model}: {error}") from error


def largest_difference(ours: Arrays, reference: Arrays) -> float:
    """Largest absolute difference of any output, relative to the largest magnitude of the reference's output.

    Infinite where one is finite and the other is not; InputError if the shapes differ.
    """
    worst = 0.0
    for a, b in zip(ours, reference, strict=True):
        if np.shape(a) != np.shape(b):
            raise InputError(f"the outputs to compare have shapes {np.shape(a)} and {np.shape(b)}")
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
            return float("inf")
        scale = float(np.abs(y[finite]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0.0)) / scale)
    return worst
