"""Timing functions in turns, and a network beside other engines on the same numbers.

A time alone says little on a machine that does other things too: what is compared here runs alternately in one
process, and the result is a ratio of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilewright import torch_peer
from tilewright.cpu_peers import ONNXRUNTIME, cpu_peer, usable_cores
from tilewright.errors import InputError
from tilewright.feeds import Given, network_feeds
from tilewright.runtime import asarray, context
from tilewright.torch_peer import EAGER, GRAPH

if TYPE_CHECKING:
    from tilewright.graph.plan import Plan
    from tilewright.graph.session import InferenceSession

Arrays = Sequence[npt.NDArray[Any]]

OURS = "tilewright"
OURS_NUMPY = "tilewright, NumPy"
"""`InferenceSession.run` with NumPy arrays in and out, where OURS leaves both on the device."""
_WARM_UP = 2
_BURST = 4
_DEVICE_ROUNDS = 3


def in_turns(
    timers: Mapping[str, Callable[[], float]],
    seconds: float = 4.0,
    at_least: int = 5,
    burst: int = 1,
    settling: float = 0.0,
) -> dict[str, tuple[float, ...]]:
    """What every call gave, the timers called in turns for about ``seconds`` and ``at_least`` times each.

    Two calls of each come first and are not counted. A turn is ``burst`` calls; if that is more than one, the first
    is not counted, which only brings the function's own data back into the caches. Nor are the calls in the first
    ``settling`` seconds of a turn: threads of other libraries keep a core busy for a while after a call (OpenMP's for
    up to 0.2 s), and cores that were idle take some calls to wake.
    """
    for _ in range(_WARM_UP):
        for timer in timers.values():
            timer()
    found: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(t) < at_least for t in found.values()):
        for name, timer in timers.items():
            settled = time.perf_counter() + settling
            while time.perf_counter() < settled:
                timer()
            turn = [timer() for _ in range(burst)]
            found[name] += turn[1:] or turn
    return {name: tuple(t) for name, t in found.items()}


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    seconds: float = 4.0,
    at_least: int = 5,
    burst: int = 1,
    settling: float = 0.0,
) -> dict[str, tuple[float, ...]]:
    """Wall seconds of every call of functions that return only when their work is done; `in_turns`."""
    timers = {name: _by_clock(function) for name, function in functions.items()}
    return in_turns(timers, seconds, at_least, burst, settling)


def _by_clock(function: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return timed


@dataclass(frozen=True)
class Comparison:
    """One network on one device, alone or beside a peer."""

    model: str
    device: str
    batch: int
    threads: int | None
    """Threads that the peer was given on the CPU, None without it."""
    seconds: Mapping[str, tuple[float, ...]]
    """Every timed run by runner."""
    difference: float | None
    """Largest difference of any output from the peer's, relative to that output's largest magnitude; None without a
    peer, or if it has weights of its own."""
    peer: str = ONNXRUNTIME
    """The runner that `ratio` is about."""
    precision: str = "fp32"
    device_seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Seconds by the device's own clock, by runner: of our kernels alone, of the peer's graph from end to end."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """Most device memory in use by runner."""

    def median(self, runner: str = OURS) -> float:
        """Median seconds of one runner."""
        return statistics.median(self.seconds[runner])

    @property
    def ratio(self) -> float | None:
        """The peer's median divided by ours: above 1 tilewright is faster. None without the peer."""
        return self.median(self.peer) / self.median() if self.peer in self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, times in milliseconds."""
        return {
            "model": self.model,
            "device": self.device,
            "batch": self.batch,
            "precision": self.precision,
            "threads": self.threads,
            "milliseconds": {name: summary(times) for name, times in self.seconds.items()},
            "device_milliseconds": {name: summary(times) for name, times in self.device_seconds.items()},
            "bytes": dict(self.bytes),
            "peer": self.peer if self.peer in self.seconds else None,
            "ratio": self.ratio,
            "largest_difference": self.difference,
        }


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Times in milliseconds: median, best, worst, and how many there are."""
    return {
        "median": 1e3 * statistics.median(seconds),
        "best": 1e3 * min(seconds),
        "worst": 1e3 * max(seconds),
        "runs": len(seconds),
    }


def compare(
    model: Path,
    session: InferenceSession,
    given: Sequence[Given] = (),
    batch: int = 1,
    seconds: float = 4.0,
    peers: Sequence[str] = (ONNXRUNTIME,),
    others: Mapping[str, InferenceSession] | None = None,
) -> Comparison:
    """Time ``session``, which runs the file ``model``, beside CPU engines (where installed) on equal inputs.

    ``others`` are sessions of the same file that take turns with it. The difference is from the first engine there is.
    """
    feeds = network_feeds(session.get_inputs(), given, batch)
    functions: dict[str, Callable[[], object]] = {OURS: lambda: session.run(None, feeds)}
    for name, other in (others or {}).items():
        functions[name] = partial(other.run, None, feeds)
    threads = usable_cores()
    found = {name: cpu_peer(name, model, threads, feeds) for name in peers}
    runners = {name: runner for name, runner in found.items() if runner is not None}
    first = next(iter(runners.values()), None)
    difference = None if first is None else largest_difference(session.run(None, feeds), first())
    return Comparison(
        model.stem,
        session.device.name,
        batch,
        threads if runners else None,
        interleaved({**functions, **runners}, seconds),
        difference,
        next(iter(runners), peers[0]),
    )


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def compare_with_torch(
    model: Path,
    session: InferenceSession,
    given: Sequence[Given] = (),
    batch: int = 1,
    seconds: float = 4.0,
) -> Comparison:
    """Time ``session``, which runs the file ``model``, beside PyTorch on equal inputs and at its precision.

    PyTorch runs torchvision's network (with weights of its own) where the file has the name and the sizes of one of
    `torch_peer.NETWORKS`, else the file itself through onnx2torch. On a GPU it runs in eager mode and as a CUDA graph,
    on a CPU in eager mode. InputError if PyTorch, CUDA or onnx2torch is missing.
    """
    torch_peer.torch_module()
    if session.device.kind == "gpu" and not torch_peer.has_cuda():
        raise InputError(
            f"PyTorch finds no CUDA device to stand beside {session.device.name}; install a PyTorch with CUDA, or "
            "choose a CPU with --device"
        )
    feeds = network_feeds(session.get_inputs(), given, batch)
    if _is_torchvisions(model.stem, session):
        return beside_torch(model.stem, session, feeds, torch_peer.torchvision_network(model.stem), seconds)
    return beside_torch(model.stem, session, feeds, torch_peer.network_of_file(model), seconds, True)


def _is_torchvisions(name: str, session: InferenceSession) -> bool:
    shapes = [v.shape[1:] for v in (*session.get_inputs(), *session.get_outputs())]
    return name in torch_peer.NETWORKS and shapes == [[3, 224, 224], [1000]]


def beside_torch(
    name: str,
    session: InferenceSession,
    feeds: Mapping[str, npt.NDArray[Any]],
    module: Any | None,
    seconds: float = 4.0,
    same_weights: bool = False,
) -> Comparison:
    """Time a network with inputs and outputs in device memory, and as a whole from NumPy to NumPy, beside a module.

    ``module`` is PyTorch's network, which is moved and converted in place, or None where there is no PyTorch; it takes
    the inputs in the order of ``feeds``. With the ``same_weights`` the outputs are compared too.
    """
    on_gpu = session.device.kind == "gpu"
    ours, plan = device_runner(session, feeds), session.plan(feeds)
    buffers = {n: asarray(a, session.device).buffer for n, a in feeds.items()}
    functions: dict[str, Callable[[], object]] = {OURS: ours, OURS_NUMPY: lambda: session.run(None, feeds)}
    timers: dict[str, Callable[[], float]] = {OURS: lambda: statistics.median(plan.time(buffers, 3))}
    memory = {OURS: plan.arena_bytes + plan.constant_bytes + _io_bytes(plan)}
    difference = None
    if module is not None:
        peer = torch_peer.runners(module, list(feeds.values()), session.precision, on_gpu)
        functions |= peer.functions
        if peer.device_seconds is not None:
            timers[GRAPH] = peer.device_seconds
        if peer.peak_bytes is not None:
            memory[EAGER] = peer.peak_bytes
        if same_weights:
            difference = largest_difference(session.run(None, feeds), peer.outputs)
    return Comparison(
        name,
        session.device.name,
        next((a.shape[0] for a in feeds.values() if a.ndim), 1),
        None if on_gpu or module is None else torch_peer.torch_module().get_num_threads(),
        interleaved(functions, seconds, burst=_BURST),
        difference,
        GRAPH if GRAPH in functions else EAGER,
        session.precision,
        in_turns(timers, 0.0, _DEVICE_ROUNDS) if on_gpu else {},
        memory,
    )


def device_runner(session: InferenceSession, feeds: Mapping[str, npt.NDArray[Any]]) -> Callable[[], None]:
    """A function that runs a session once on inputs in device memory, leaves the outputs there, and waits."""
    arrays = {name: asarray(a, session.device) for name, a in feeds.items()}
    ctx = context(session.device)

    def run() -> None:
        kept = session.run_on_device(None, arrays)  # until the work is done
        ctx.finish()
        del kept

    return run


def _io_bytes(plan: Plan) -> int:
    """Memory of inputs and outputs."""
    return sum(spec.nbytes for spec in (*plan.inputs.values(), *plan.outputs.values()))


# --- outputs ---------------------------------------------------------------------------------------------------------


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
