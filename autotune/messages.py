"""What the supervisor and its measuring process say to each other, and how it travels.

Messages are pickled frozen dataclasses in length-prefixed frames over the pipes of a process we started ourselves.
Nothing that was stored or received from elsewhere is ever unpickled.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import IO

from tilewright.autotune.subjects import Subject
from tilewright.dsl.lowering import Lowering
from tilewright.tuning_db.records import Status

_LENGTH = struct.Struct("<Q")


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """Open a device. Answered by Ready or Refused."""

    device: str
    """Its short name."""


@dataclass(frozen=True)
class Prepare:
    """Make a stage's inputs and its reference result. Answered by Prepared or Refused."""

    stage: str
    """Name for later requests."""
    program: Subject
    reference: Lowering | None
    """Kernels that make the expected results; None for what brings them along."""
    constants: tuple[str, ...]
    """Inputs that never change between runs: launches that depend on them alone are not timed."""


@dataclass(frozen=True)
class Evaluate:
    """Build, check and time one candidate. Answered by Built, Ran (if it gets that far), and Outcome."""

    stage: str
    lowering: Lowering
    best: float | None
    """Seconds of the fastest candidate so far: hopeless ones are timed less."""


@dataclass(frozen=True)
class Compare:
    """Time several candidates in turns. Answered by Compared or Refused."""

    stage: str
    lowerings: tuple[Lowering, ...]
    rounds: int


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The device is open."""

    identity: str
    driver: str


@dataclass(frozen=True)
class Prepared:
    """The stage is ready."""

    seconds: float
    """One run of the reference; 0 if there is none."""
    nbytes: int
    """Device memory held for the stage."""


@dataclass(frozen=True)
class Built:
    """The candidate's kernels are built and bound."""

    seconds: float


@dataclass(frozen=True)
class Ran:
    """The candidate's first run has ended."""

    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a candidate's evaluation ended."""

    status: Status
    samples: tuple[float, ...] = ()
    """Seconds of the timed runs."""
    error: float | None = None
    message: str = ""
    build_seconds: float | None = None
    lost: bool = False
    """The device must be opened anew before anything else is tried."""
    host: str = ""
    """The machine that measured it, if not this one."""


@dataclass(frozen=True)
class Compared:
    """Seconds of every run, per candidate."""

    samples: tuple[tuple[float, ...], ...]
    host: str = ""
    """The machine that measured them, if not this one."""


@dataclass(frozen=True)
class Refused:
    """The request could not be served."""

    message: str
    lost: bool = False
    """True if the device stopped after a fault, so that the process can measure nothing more."""


Request = Hello | Prepare | Evaluate | Compare
Answer = Ready | Prepared | Built | Ran | Outcome | Compared | Refused


def send(stream: IO[bytes], message: Request | Answer) -> None:
    """Write one message; OSError if the other side is gone."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(payload)) + payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Request | Answer | None:
    """The next message, or None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    payload = stream.read(length)
    if len(payload) < length:
        return None
    message: Request | Answer = pickle.loads(payload)
    return message


__all__ = [
    "Answer",
    "Built",
    "Compare",
    "Compared",
    "Evaluate",
    "Hello",
    "Outcome",
    "Prepare",
    "Prepared",
    "Ran",
    "Ready",
    "Refused",
    "Request",
    "receive",
    "send",
]
