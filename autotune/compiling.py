"""Compiling candidates ahead of their measurement: helper processes on all cores, while the device measures others.

Binaries go through a cache folder that the measuring process reads. NVIDIA's binaries are PTX, but its driver keeps the
machine code of everything that any process has built, so that loading one takes a fraction of a millisecond there too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tilewright.autotune.messages import Outcome
from tilewright.dsl.lowering import Lowering
from tilewright.runtime import Device
from tilewright.runtime.builds import Helper, helpers_possible
from tilewright.tuning_db.records import Status

MOST_HELPERS = 12
"""More only keep each other from starting: opening an NVIDIA device takes 0.7 s alone and 3 s for 15 at once."""
DEVICE_BYTES = 512 << 20
"""Device memory that a driver takes for each process that opens it (a guess)."""
DEVICE_SHARE = 4
"""Helpers take at most this part of the device's memory."""
LOOK_AHEAD = 3
"""Candidates per helper that are compiled or wait for their measurement."""

Compiled = Future[Outcome | None]
"""What became of a compilation: None if the candidate is ready, else how it failed."""


class Compilers:
    """Helper processes that compile candidates; with none of them everything is ready at once, and is compiled when it
    is measured.

    ``folder`` is the cache folder that binaries are left in, ``limit`` the seconds a candidate may take to compile.
    """

    def __init__(self, device: Device, folder: Path, helpers: int, limit: float) -> None:
        self._device = device
        self._folder = folder
        self._limit = limit
        self._helpers: set[Helper] = set()
        self._answered: set[Helper] = set()
        self._own = threading.local()
        self._lock = threading.Lock()
        self._starts = True
        self._threads = ThreadPoolExecutor(helpers, "compile") if helpers else None
        self.look_ahead = max(1, LOOK_AHEAD * helpers)
        """So many candidates should be under way."""

    def submit(self, lowering: Lowering) -> Compiled:
        """Have a candidate compiled."""
        if self._threads is not None:
            return self._threads.submit(self._compile, lowering)
        ready: Compiled = Future()
        ready.set_result(None)
        return ready

    def close(self) -> None:
        """End the helpers, whatever they do."""
        with self._lock:
            self._starts = False
            for helper in self._helpers:
                helper.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for helper in self._helpers:
            helper.__exit__()

    def _compile(self, lowering: Lowering) -> Outcome | None:
        start = time.monotonic()
        for source in dict.fromkeys(launch.source for launch in lowering.launches):
            helper = self._helper()
            if helper is None:
                return None  # the measuring process compiles it
            complaint, in_time = self._ask(helper, source)
            seconds = time.monotonic() - start
            if complaint is None:
                self._own.helper = None
                if not in_time:
                    return Outcome(Status.TIMED_OUT, message="the build did not end in time", build_seconds=seconds)
                if helper in self._answered:
                    return Outcome(Status.CRASHED, message="in its build, the compiler died", build_seconds=seconds)
                self._starts = False  # it cannot open the device, and neither will others
                return None
            self._answered.add(helper)
            if complaint:
                return Outcome(Status.BUILD_FAILED, message=complaint, build_seconds=seconds)
        return None

    def _ask(self, helper: Helper, source: str) -> tuple[str | None, bool]:
        """(what `Helper.compile` answers, False if it was ended because it took too long)."""
        too_long = threading.Event()

        def end() -> None:
            too_long.set()
            helper.kill()

        timer = threading.Timer(self._limit, end)
        timer.start()
        complaint = helper.compile(source)
        timer.cancel()
        return complaint, not too_long.is_set()

    def _helper(self) -> Helper | None:
        """This thread's helper, started if need be; None if that fails or there shall be no more."""
        helper: Helper | None = getattr(self._own, "helper", None)
        with self._lock:
            if helper is None and self._starts:
                with contextlib.suppress(OSError):
                    helper = self._own.helper = Helper(self._device.name, self._folder)
                    self._helpers.add(helper)
        return helper


def helpers_wanted(device: Device) -> int:
    """How many helpers tuning takes: none for processors, whose measurements they would disturb."""
    if device.kind == "cpu":
        return 0
    return min(helpers_possible(), MOST_HELPERS, device.global_memory // DEVICE_SHARE // DEVICE_BYTES)


__all__ = ["Compiled", "Compilers", "helpers_wanted"]
