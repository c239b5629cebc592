"""Measuring on other machines: a fleet of workers behind a Dask scheduler (https://distributed.dask.org).

The search, its model and the database stay with whoever tunes; a task is one candidate of one stage, sent to a worker
that advertises the very device and driver as a resource. What a worker has measured is stored as soon as its answer
arrives, so that a worker that dies costs the candidate it was at, which Dask gives to another. A worker
(`fleet_worker.py`) measures in a supervised process of its own, as tuning on one machine does.

Dask runs what its clients send: a scheduler's port is for a network whose users trust each other, or for TLS.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tilewright.autotune.compiling import Compiled
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.supervisor import Job
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.errors import DeviceError, InputError
from tilewright.runtime import Device
from tilewright.tuning_db.records import Status

if TYPE_CHECKING:
    import distributed

CONNECT_SECONDS = 10.0
"""A scheduler that takes longer to answer is not there."""
JOIN_SECONDS = 10.0
"""How long workers with the device are waited for at the beginning."""
LOST_SECONDS = 60.0
"""How long a fleet may be without any of them before tuning ends."""
_LOOK = 0.5
"""Seconds between two looks at whether to go on waiting."""
EXTRA = "tilewright"
"""Under what a worker tells the scheduler what it is."""

_CLIENT_LOG = logging.getLogger("distributed.client")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Advertised:
    """What a worker says of itself."""

    version: str
    """Of tilewright."""
    generator: str
    device: str
    """The device's name there."""
    identity: str
    driver: str

    @staticmethod
    def of(device: Device) -> Advertised:
        """What this machine would say of a device."""
        from tilewright import __version__

        return Advertised(__version__, GENERATOR_VERSION, device.name, device.identity, device.driver)

    @property
    def resource(self) -> str:
        """The Dask resource: tasks for a device go where the same text was advertised, and nowhere else."""
        return f"tilewright {self.version}, generator {self.generator}: {self.identity}, driver {self.driver}"


class Fleet:
    """Measures candidates of stages on a fleet's workers that have the same device and driver as this machine.

    ``address`` is a scheduler's, such as ``tcp://10.0.0.1:8786``. A `tuning.Measurer`; a context manager; safe for
    several threads. DeviceError if the scheduler cannot be reached, or has no worker with the device and this version
    of tilewright; InputError for what is no address.
    """

    def __init__(self, address: str, device: Device, join_seconds: float = JOIN_SECONDS) -> None:
        self._address = address
        self._device = device
        self._wanted = Advertised.of(device)
        self._session = uuid.uuid4().hex
        """Part of the stages' names: workers outlive a tuning run, whose names are unique within it."""
        self._lock = threading.Lock()
        self._reference: dict[str, float] = {}
        self._closed = threading.Event()
        self._client = _connected(address)
        self._unheard: Callable[[logging.LogRecord], bool] = lambda record: False
        """Dask's client says at length that its scheduler is gone, which our own errors say."""
        _CLIENT_LOG.addFilter(self._unheard)
        self._workers: dict[str, int] = {}
        self._seen = self._seen_any = time.monotonic()
        """When the workers were looked at last, and when there were any."""
        try:
            self._join(join_seconds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and leave the scheduler; what workers are at ends by its own limits."""
        self._closed.set()
        try:
            self._client.close(timeout=5)
        finally:
            _CLIENT_LOG.removeFilter(self._unheard)

    @property
    def slots(self) -> int:
        """The tasks that the workers with the device take at once."""
        if time.monotonic() - self._seen > _LOOK:
            self._look()
        return sum(self._workers.values())

    @property
    def look_ahead(self) -> int:
        """One candidate more than can be measured is made ready."""
        return self.slots + 1

    def compile(self, lowering: Lowering) -> Compiled:
        """Workers compile what they measure."""
        ready: Compiled = Future()
        ready.set_result(None)
        return ready

    def prepare(self, job: Job) -> float:
        """As `Supervisor.prepare`, on one of the workers."""
        from tilewright.autotune import fleet_worker
        from tilewright.autotune.supervisor import StageError

        if job.name not in self._reference:
            seconds = self._ask(job, None, fleet_worker.prepare)
            if isinstance(seconds, _Killed):
                raise StageError(f"its reference failed: {seconds.message}")
            if seconds is None:
                raise StageError("tuning was ended")
            self._reference[job.name] = seconds
        return self._reference[job.name]

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        """As `Supervisor.evaluate`, on one of the workers."""
        from tilewright.autotune import fleet_worker

        left = None if until is None else max(0.0, until - time.monotonic())
        outcome = self._ask(job, until, fleet_worker.evaluate, lowering, best, left)
        return Outcome(Status.CRASHED, message=outcome.message) if isinstance(outcome, _Killed) else outcome

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        """As `Supervisor.compare`, all of them on the same worker."""
        from tilewright.autotune import fleet_worker

        compared = self._ask(job, None, fleet_worker.compare, lowerings, rounds, slowest)
        return None if isinstance(compared, _Killed) else compared

    # --- inside -------------------------------------------------------------------------------------------------

    def _ask(
        self, job: Job, until: float | None, work: Callable[..., _Answer], *arguments: object
    ) -> _Answer | _Killed | None:
        """What a worker answers; None if it was given up because of `until` or because the fleet was closed."""
        there = replace(job, name=f"{self._session} {job.name}")
        # No worker is preferred: Dask gives a task of which others may take care to any, whatever its resources.
        asked = self._client.submit(work, there, *arguments, pure=False, resources={self._wanted.resource: 1})
        return cast("_Answer | _Killed | None", self._answer(asked, until))

    def _answer(self, asked: distributed.Future, until: float | None) -> object:
        import distributed

        answer = self._fetched(asked)
        while True:
            if wait((answer,), _LOOK).done:
                try:
                    return answer.result()
                except distributed.KilledWorker as e:
                    return _Killed(f"{e.allowed_failures + 1} workers of the fleet ended while they were at it")
                except (distributed.CancelledError, OSError) as e:
                    if self._closed.is_set():
                        return None
                    raise self._gone() from e
            if self._closed.is_set() or (until is not None and time.monotonic() >= until + _LOOK):
                asked.cancel()
                return None
            if not self.slots and time.monotonic() - self._seen_any > LOST_SECONDS:
                raise DeviceError(
                    f"the fleet at {self._address} has had no worker with {self._device.name} for {LOST_SECONDS:g} s; "
                    f"start one with 'tilewright worker {self._address}' and tune again: everything measured is kept"
                )

    def _fetched(self, asked: distributed.Future) -> Future[object]:
        """The answer, once it has been brought here.

        `distributed.Future.result` with a timeout would not do: answers are fetched together with those that other
        threads wait for, and a wait that times out cancels the fetching of them all. That takes longer than usual
        where the worker that had the answer is dead.
        """
        loop = self._client.loop.asyncio_loop
        return asyncio.run_coroutine_threadsafe(self._client.gather(asked, asynchronous=True), loop)

    def _join(self, seconds: float) -> None:
        """Wait for the first worker with the device."""
        end = time.monotonic() + seconds
        while True:
            found = self._look()
            if self._workers:
                return
            if time.monotonic() >= end:
                raise DeviceError(missing(self._address, self._wanted, found))
            time.sleep(_LOOK)

    def _look(self) -> list[Advertised]:
        """See which workers there are; what all of ours say of themselves."""
        try:
            workers: dict[str, dict[str, Any]] = self._client.scheduler_info()["workers"]
        except (OSError, KeyError) as e:  # the latter once Dask has given up looking for the scheduler
            raise self._gone() from e
        with self._lock:
            resource = self._wanted.resource
            self._workers = {a: int(w["resources"][resource]) for a, w in workers.items() if resource in w["resources"]}
            self._seen = time.monotonic()
            if self._workers:
                self._seen_any = self._seen
        return [Advertised(**w[EXTRA]) for w in workers.values() if EXTRA in w]

    def _gone(self) -> DeviceError:
        return DeviceError(
            f"the fleet's scheduler at {self._address} is gone; start it and its workers, and tune again: everything "
            "measured is kept"
        )


@dataclass(frozen=True)
class _Killed:
    """Dask has given up on a task at which several workers died."""

    message: str


def missing(address: str, wanted: Advertised, found: list[Advertised]) -> str:
    """Why no worker suits, and what to do."""
    same = [f for f in found if f.identity == wanted.identity]
    versions = sorted({f"tilewright {f.version}, generator {f.generator}" for f in same})
    if any((f.version, f.generator) != (wanted.version, wanted.generator) for f in same):
        return (
            f"the fleet's workers at {address} with {wanted.device} run {' and '.join(versions)}, this is tilewright "
            f"{wanted.version}, generator {wanted.generator}; install the same on both sides"
        )
    if same:
        drivers = " and ".join(sorted({f.driver for f in same}))
        return (
            f"the fleet's workers at {address} have {wanted.device} with driver {drivers}, this machine has driver "
            f"{wanted.driver}, for which other kernels may win; install the same"
        )
    others = ", ".join(f"{n} × {name}" for name, n in sorted(Counter(f.device for f in found).items())) or "no workers"
    return (
        f"no worker at {address} has {wanted.device} ({wanted.identity}); there are: {others}. On a machine that has "
        f"it, start 'tilewright worker {address} --device {wanted.device}'"
    )


def require_distributed() -> None:
    """DeviceError if Dask's distributed is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise DeviceError('a fleet needs Dask\'s distributed, which is not installed: pip install "tilewright[fleet]"')


def unreachable(address: str) -> DeviceError:
    """What to say where nothing answers."""
    return DeviceError(
        f"no scheduler answers at {address} within {CONNECT_SECONDS:g} s; start one with 'dask scheduler', and see "
        "that its port can be reached from here"
    )


def checked_address(address: str) -> str:
    """An address as Dask takes it; InputError for what is none."""
    require_distributed()
    from distributed.comm import get_address_host_port, normalize_address

    try:
        whole = str(normalize_address(address))
        if get_address_host_port(whole, strict=True)[1]:
            return whole
    except (ValueError, TypeError):
        pass
    raise InputError(f"{address!r} is no address of a scheduler; write it as host:port or tcp://host:port")


def _connected(address: str) -> distributed.Client:
    place = checked_address(address)
    import distributed

    try:
        return distributed.Client(place, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, distributed.TimeoutError) as e:
        raise unreachable(address) from e


def advertisement(device: Device) -> dict[str, str]:
    """What a worker for this device tells the scheduler."""
    return asdict(Advertised.of(device))


__all__ = ["EXTRA", "Advertised", "Fleet", "advertisement", "checked_address", "missing", "unreachable"]
