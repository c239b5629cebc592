"""A fleet's worker: measures what a Dask scheduler hands it on one device, in a supervised process.

Nothing is measured in the worker's own process: a candidate that hangs would hold its thread for ever, since Dask
cannot end what runs, and one that crashes would take the worker along. The worker's threads wait for a `Supervisor`,
which has deadlines for everything. On a GPU there are more threads than one, so that some compile while one measures.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import Reschedule, Worker, WorkerPlugin, get_worker

from tilewright.autotune.compiling import helpers_wanted
from tilewright.autotune.fleet import CONNECT_SECONDS, EXTRA, Advertised, advertisement, checked_address, unreachable
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.supervisor import Job, Supervisor
from tilewright.dsl.lowering import Lowering
from tilewright.errors import DeviceError
from tilewright.runtime import Device

if TYPE_CHECKING:
    from tilewright.autotune.tuning import Measurer

log = logging.getLogger("tilewright.autotune")
PLUGIN = "tilewright"

_Answer = TypeVar("_Answer")


class Measuring(WorkerPlugin):  # type: ignore[misc]
    """What a worker measures with, for its tasks to find."""

    name = PLUGIN

    def __init__(self, measurer: Measurer) -> None:
        self.measurer = measurer
        self.lock = threading.Lock()
        """One thread measures at a time."""

    def teardown(self, worker: Worker) -> None:
        """End the measuring process with the worker."""
        self.measurer.close()


def prepare(job: Job) -> float:
    """Task: the seconds of a stage's reference; StageError if it cannot be measured."""
    measuring = _measuring()
    with measuring.lock:
        return _kept(lambda: measuring.measurer.prepare(job))


def evaluate(job: Job, lowering: Lowering, best: float | None, left: float | None) -> Outcome | None:
    """Task: one candidate's outcome; None if it did not end within ``left`` seconds."""
    until = None if left is None else time.monotonic() + left
    measuring = _measuring()
    failed = measuring.measurer.compile(lowering).result()
    if failed is not None:
        return replace(failed, host=platform.node())
    with measuring.lock:
        outcome = _kept(lambda: measuring.measurer.evaluate(job, lowering, best, until))
    return None if outcome is None else replace(outcome, host=platform.node())


def compare(job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
    """Task: candidates timed in turns; None if that failed."""
    measuring = _measuring()
    with measuring.lock:
        compared = _kept(lambda: measuring.measurer.compare(job, lowerings, rounds, slowest))
    return None if compared is None else replace(compared, host=platform.node())


def _measuring() -> Measuring:
    found: Measuring = get_worker().plugins[PLUGIN]
    return found


def _kept(work: Callable[[], _Answer]) -> _Answer:
    """What the work gives. Where the device is gone, the worker ends and another gets the task."""
    try:
        return work()
    except DeviceError as e:
        log.error("the worker ends: %s", e)
        worker = get_worker()
        worker.loop.add_callback(worker.close)
        raise Reschedule from e


async def serve(
    address: str, device: Device, measurer: Measurer | None = None, ready: Callable[[str], None] = log.info
) -> None:
    """Work for a scheduler until it ends, or this process is asked to (SIGINT, SIGTERM).

    ``ready`` is called with the worker's own address. DeviceError if the scheduler cannot be reached.
    """
    place = checked_address(address)
    measuring = measurer or Supervisor(device, helpers=helpers_wanted(device))
    with tempfile.TemporaryDirectory(prefix="tilewright-worker-") as folder:
        options: dict[str, Any] = {
            "nthreads": measuring.look_ahead,
            "resources": {Advertised.of(device).resource: measuring.look_ahead},
            "startup_information": {EXTRA: lambda worker: advertisement(device)},
            "plugins": (Measuring(measuring),),
            "local_directory": folder,
            "death_timeout": CONNECT_SECONDS,
            "memory_limit": 0,
            "silence_logs": logging.ERROR,
        }
        worker = Worker(place, **options)
        try:
            try:
                await worker
            except (OSError, TimeoutError) as e:
                raise unreachable(address) from e
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, lambda: asyncio.ensure_future(worker.close()))
            ready(worker.address)
            await worker.finished()
        finally:
            await worker.close()
            measuring.close()


__all__ = ["compare", "evaluate", "prepare", "serve"]
