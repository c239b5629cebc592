"""Keeps a measuring process alive: deadlines for everything, and a new process after a crash or a hang.

Beside it, helper processes compile what is measured next (`compiling.py`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from tilewright.autotune.compiling import Compiled, Compilers
from tilewright.autotune.messages import (
    Answer,
    Built,
    Compare,
    Compared,
    Evaluate,
    Hello,
    Outcome,
    Prepare,
    Prepared,
    Ran,
    Ready,
    Refused,
    Request,
    receive,
    send,
)
from tilewright.autotune.subjects import Subject
from tilewright.dsl.lowering import Lowering
from tilewright.errors import DeviceError
from tilewright.runtime import Device
from tilewright.tuning_db.records import Status

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """Seconds that each phase may take."""

    start: float = 60.0
    """Process start and opening the device."""
    reference: float = 300.0
    """Inputs and the reference's run."""
    build: float = 60.0
    run: float = 2.0
    """The least that a run may take."""
    run_factor: float = 30.0
    """A run may take this many times the best known one."""
    first_run: float = 10.0
    """More for the first run until one has been seen: some drivers compile then."""
    bytes_per_second: float = 50e6
    """Speed at which results are read back and checked, at least."""
    evaluations: int = 5000
    """After so many the process is replaced, because some drivers keep what was built in its memory."""


@dataclass(frozen=True)
class Job:
    """A stage as the measuring process needs it."""

    name: str
    """Unique within a tuning run."""
    program: Subject
    reference: Lowering | None
    """None for what brings its expected results along."""
    constants: tuple[str, ...] = ()


class WorkerDiedError(Exception):
    """The process ended; the text says how and with which last words."""


class WorkerKilledError(WorkerDiedError):
    """The process was ended by SIGKILL, which no candidate sends."""


class WorkerTimeoutError(Exception):
    """No answer before the deadline."""


class StageError(Exception):
    """A stage cannot be measured at all: its reference does not run."""


class Worker:
    """One measuring process."""

    def __init__(self, folder: Path, binaries: Path | None = None) -> None:
        self._words = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "POCL_CACHE_DIR": str(folder),  # this driver keeps every kernel ever built; ours are built once
            **({"TILEWRIGHT_CACHE": str(binaries)} if binaries is not None else {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tilewright.autotune.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the supervisor, which then ends the process
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True)
        self._reader.start()

    @property
    def process(self) -> int:
        """Its id."""
        return self._process.pid

    def ask(self, request: Request) -> None:
        """Send a request; WorkerDiedError if the process is gone."""
        try:
            send(self._requests, request)
        except OSError as e:
            raise self._died() from e

    def answer(self, seconds: float) -> Answer:
        """The next answer; WorkerDiedError or WorkerTimeoutError if none comes in time."""
        try:
            answer = self._answers.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise WorkerTimeoutError from None
        if answer is None:
            raise self._died()
        return answer

    def _died(self) -> WorkerDiedError:
        words = self.last_words()
        return WorkerKilledError(words) if self._process.returncode == -signal.SIGKILL else WorkerDiedError(words)

    def last_words(self) -> str:
        """How the process ended and the end of what it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        code = self._process.returncode
        if code is None:
            how = "stopped answering"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code}"
        self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - 600))
        words = self._words.read().decode(errors="replace").strip()
        return f"the measuring process {how}" + (f": {words}" if words else "")

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5.0)
        for stream in (self._process.stdin, self._process.stdout, self._words):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _read_answers(stream: IO[bytes], answers: queue.SimpleQueue[Answer | None]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed by `end`
        while (message := receive(stream)) is not None:
            answers.put(message)  # type: ignore[arg-type]
    answers.put(None)


class Supervisor:
    """Measures candidates of stages on one device, in processes that may die.

    ``helpers`` is the number of processes that compile ahead. Use as a context manager. Not for several
    threads at once.
    """

    def __init__(self, device: Device, limits: Limits | None = None, helpers: int = 0) -> None:
        self.device = device
        self.limits = limits or Limits()
        self.started = 0
        """Processes started so far."""
        self._worker: Worker | None = None
        self._prepared: dict[str, float] = {}
        self._bytes: dict[str, int] = {}
        self._done = 0
        self._closed = False
        self._slowest_first_run: float | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="tilewright-"))
        self._binaries = self._folder / "binaries" if helpers else None
        self._compilers = Compilers(device, self._folder / "binaries", helpers, self.limits.build)
        self.look_ahead = self._compilers.look_ahead
        """So many candidates should be compiled or wait at any time."""
        self.slots = 1
        """So many may be measured at a time."""

    @property
    def process(self) -> int | None:
        """Id of the measuring process, None while there is none."""
        return self._worker.process if self._worker is not None else None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its files."""
        self._closed = True
        self._drop()
        self._compilers.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def compile(self, lowering: Lowering) -> Compiled:
        """Begin to compile a candidate, so that it need not be when it is evaluated."""
        return self._compilers.submit(lowering)

    def prepare(self, job: Job) -> float:
        """Make a stage ready; the seconds of its reference. StageError if it cannot be measured at all.

        DeviceError if the measuring process cannot be started.
        """
        self._ready()
        if job.name in self._prepared:
            return self._prepared[job.name]
        try:
            answer = self._twice(lambda: self._answer(Prepare(job.name, job.program, job.reference, job.constants)))
        except WorkerTimeoutError:
            self._drop()
            raise StageError(f"its reference takes longer than {self.limits.reference:g} s") from None
        except WorkerDiedError as e:
            self._drop()
            raise StageError(f"its reference failed: {e}") from None
        if isinstance(answer, Refused) and answer.lost:
            self._drop()
            raise StageError(f"its reference failed: {answer.message}")
        if not isinstance(answer, Prepared):
            raise StageError(answer.message if isinstance(answer, Refused) else f"unexpected answer {answer}")
        self._prepared[job.name] = answer.seconds
        self._bytes[job.name] = answer.nbytes
        return answer.seconds

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        """Build, check and time one candidate, with every way to fail as an outcome.

        ``best`` is the fastest time so far in seconds; ``until`` a `time.monotonic()` after which the evaluation is
        given up, and the answer is None. StageError, DeviceError as for `prepare`.

        A process that somebody has killed says nothing about the candidate, which is tried once more then; the second
        time may well be for the memory that it takes.
        """
        try:
            return self._twice(lambda: self._evaluate(job, lowering, best, until))
        except WorkerKilledError as e:
            self._drop()
            return Outcome(Status.CRASHED, message=str(e))

    def _evaluate(self, job: Job, lowering: Lowering, best: float | None, until: float | None) -> Outcome | None:
        """One attempt; WorkerKilledError if the process was killed meanwhile."""
        reference = self.prepare(job)
        worker = self._ready()
        known = min((s for s in (best, reference) if s), default=0.0)
        build_seconds: float | None = None
        phase, deadline = "build", time.monotonic() + self.limits.build
        try:
            worker.ask(Evaluate(job.name, lowering, best))
            while True:
                match worker.answer(min(deadline, until or deadline) - time.monotonic()):
                    case Built(seconds=build_seconds):
                        phase, deadline = "run", time.monotonic() + self._first_run_limit(known)
                    case Ran(seconds=seconds):
                        self._slowest_first_run = max(self._slowest_first_run or 0.0, seconds)
                        phase, deadline = "timing", time.monotonic() + self._timing_limit(job, known)
                    case Outcome() as outcome:
                        self._count(outcome)
                        return outcome
                    case Refused(lost=True, message=message):
                        raise WorkerDiedError(message)
                    case Refused(message=message):
                        self._prepared.pop(job.name, None)  # pushed out by other stages
                        return self._again(job, lowering, best, until, message)
                    case unexpected:
                        raise WorkerDiedError(f"the measuring process answered {type(unexpected).__name__}")
        except WorkerTimeoutError:
            self._drop()
            if until is not None and time.monotonic() >= until and until < deadline:
                return None
            return Outcome(Status.TIMED_OUT, message=f"the {phase} did not end in time", build_seconds=build_seconds)
        except WorkerKilledError:
            raise
        except WorkerDiedError as e:
            self._drop()
            return Outcome(Status.CRASHED, message=f"in its {phase}, {e}", build_seconds=build_seconds)

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        """Time candidates in turns; None if that fails. ``slowest`` is the largest of their known seconds."""
        limit = len(lowerings) * (self.limits.build + self._timing_limit(job, slowest) * rounds)

        def ask() -> Answer:
            self.prepare(job)
            return self._answer(Compare(job.name, lowerings, rounds), limit)

        try:
            answer = self._twice(ask)
        except (WorkerDiedError, WorkerTimeoutError):
            self._drop()
            return None
        if isinstance(answer, Refused) and answer.lost:
            self._drop()
        elif isinstance(answer, Refused):
            self._prepared.pop(job.name, None)
        return answer if isinstance(answer, Compared) else None

    # --- inside -------------------------------------------------------------------------------------------------

    def _twice(self, work: Callable[[], _Result]) -> _Result:
        """What the work gives, tried once more if the process was killed meanwhile."""
        try:
            return work()
        except WorkerKilledError:
            self._drop()
            return work()

    def _answer(self, request: Request, seconds: float | None = None) -> Answer:
        """One request's answer, by default within the time that references have."""
        worker = self._ready()
        worker.ask(request)
        return worker.answer(self.limits.reference if seconds is None else seconds)

    def _again(
        self, job: Job, lowering: Lowering, best: float | None, until: float | None, message: str
    ) -> Outcome | None:
        if "is not prepared" not in message:
            raise StageError(message)
        return self.evaluate(job, lowering, best, until)

    def _first_run_limit(self, known: float) -> float:
        compiling = self.limits.first_run if self._slowest_first_run is None else 5.0 * self._slowest_first_run
        return max(self.limits.run, self.limits.run_factor * known) + compiling

    def _timing_limit(self, job: Job, known: float) -> float:
        checking = 4.0 * self._bytes.get(job.name, 0) / self.limits.bytes_per_second
        return 3.0 * max(self.limits.run, self.limits.run_factor * known) + checking

    def _count(self, outcome: Outcome) -> None:
        self._done += 1
        if outcome.lost or self._done % self.limits.evaluations == 0:
            self._drop()

    def _drop(self) -> None:
        self._prepared.clear()
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _ready(self) -> Worker:
        """The process with the device open, started if need be; DeviceError if that fails twice."""
        if self._worker is not None:
            return self._worker
        if self._closed:
            raise DeviceError(f"measuring on {self.device.name} was ended")
        failure = ""
        for _ in range(2):
            self._worker = Worker(self._folder, self._binaries)
            self.started += 1
            try:
                self._worker.ask(Hello(self.device.name))
                answer = self._worker.answer(self.limits.start)
            except WorkerTimeoutError:
                failure = f"no answer within {self.limits.start:g} s"
            except WorkerDiedError as e:
                failure = str(e)
            else:
                if isinstance(answer, Ready) and answer.identity == self.device.identity:
                    return self._worker
                failure = answer.message if isinstance(answer, Refused) else "it found another device of that name"
            self._drop()
        raise DeviceError(f"no measuring process can be started for {self.device.name}: {failure}")


__all__ = ["Job", "Limits", "StageError", "Supervisor", "WorkerDiedError", "WorkerTimeoutError"]
