"""What the store holds, as plain frozen data: measurements, spaces, winners, runs, and figures about the store."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast

from tilewright.errors import DatabaseError

RECORDED = "recorded"
"""Stands for the code generator of kernels that are not ours, which are never run from the database."""

Value = int | float | str
"""What a parameter may be set to; the language's own spaces have whole numbers and texts only."""


class Status(StrEnum):
    """How the measurement of one configuration ended."""

    OK = "ok"
    WRONG = "wrong"
    """Ran, but its numbers differ from the reference, or it wrote where it must not."""
    BUILD_FAILED = "build_failed"
    LAUNCH_FAILED = "launch_failed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    """Took the measuring process with it."""
    OUT_OF_RESOURCES = "out_of_resources"
    """Asks for more local memory, work-items, registers or device memory than there is."""


def now() -> str:
    """The present time in UTC, to the microsecond; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Measurement:
    """One configuration of one program, measured once on one device; failures are measurements too.

    DatabaseError is raised for values that cannot be: a time that is not a positive finite number, an `ok` without
    a time, a failure with one, sizes that are not whole numbers, a `created` that is no time stamp.
    """

    device: str
    """Identity of the device: what decides its speed, without the driver's version."""
    driver: str
    """Driver version text."""
    signature: str
    """Identity of the program with its sizes, types and layouts."""
    structure: str
    """Identity of the program without its sizes."""
    sizes: tuple[int, ...]
    program: str
    """The program's text, for people."""
    family: str
    configuration: str
    """The parameters as JSON with sorted keys."""
    generator: str
    """Version of the code generator: other versions make other kernels."""
    status: Status
    seconds: float | None = None
    """Median of `samples`; None unless the status is ok."""
    samples: tuple[float, ...] = ()
    """Every timed run, in seconds."""
    error: float | None = None
    """Largest difference from the reference, relative to the reference's largest magnitude; None if not compared."""
    message: str = ""
    build_seconds: float | None = None
    host: str = field(default_factory=platform.node)
    created: str = field(default_factory=now)
    run: str = ""
    """Id of the tuning run, empty for a measurement made by hand."""
    round: str = ""
    """Id shared by the configurations that were timed in turns to decide between them; empty while searching."""
    space: str = ""
    """Digest of the `Space` that the configuration was taken from; empty if it was not recorded."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            what = f"{self.family} {self.configuration}"[:_SHOWN]
            raise DatabaseError(f"a measurement of {what} cannot be stored: {problem}")

    def _problem(self) -> str | None:
        if not isinstance(self.created, str) or not is_time(self.created):
            return "it does not say when it was made (2026-01-31T12:00:00.000000+00:00)"
        texts = (self.device, self.driver, self.signature, self.structure, self.program, self.family, self.generator)
        more = (self.message, self.host, self.created, self.run, self.round, self.space)
        if not _are((*texts, *more), str):
            return "one of its texts is not a text"
        if self.status is Status.OK and self.seconds is None:
            return "it is ok but has no time"
        if self.status is not Status.OK and self.seconds is not None:
            return f"it is {self.status} but has a time"
        times = self.samples if self.seconds is None else (self.seconds, *self.samples)
        if not all(is_duration(t) for t in times):
            return "one of its times is not a positive finite number of seconds"
        others = [v for v in (self.error, self.build_seconds) if v is not None]
        if not _are(others, (int, float)) or not all(0 <= v < _LARGEST for v in others):
            return "its error or build time is negative or not finite"
        if not _are(self.sizes, int) or not all(0 <= n < _LARGEST_SIZE for n in self.sizes):
            return "one of its sizes is not a whole number"
        if not isinstance(self.configuration, str):
            return "its configuration is not a JSON object"
        return configuration_problem(self.configuration, self.generator == RECORDED)

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values, those that came with later versions of the format only if they are set."""
        values = {n: v for n, v in self.__dict__.items() if v or n not in _LATER}
        return {**values, "status": str(self.status), "sizes": list(self.sizes), "samples": list(self.samples)}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_record`; DatabaseError if a field is missing, unknown, or of the wrong type."""
        odd = sorted((set(record) ^ _NAMES) - _LATER)
        if odd:
            raise DatabaseError(f"a stored measurement has missing or unknown fields: {', '.join(odd)}")
        try:
            status = Status(record["status"])
            sizes, samples = tuple(record["sizes"]), tuple(record["samples"])
        except (TypeError, ValueError) as e:
            raise DatabaseError(f"a stored measurement has a field of the wrong type: {e}") from e
        return Measurement(**{**record, "status": status, "sizes": sizes, "samples": samples})

    @property
    def digest(self) -> str:
        """Identity of this measurement: equal only if every field is (hex, 64 digits)."""
        text = _SORTED.encode(self.to_record())
        return hashlib.sha256(text.encode()).hexdigest()


_SORTED = json.JSONEncoder(sort_keys=True, ensure_ascii=True, allow_nan=False)
_NAMES = frozenset(f.name for f in fields(Measurement))
_LARGEST = 1e300
"""Beyond every time and every error."""
_SHORTEST = 1e-12
"""Seconds: less than a clock's tick, and no reciprocal of it overflows."""
_LARGEST_SIZE = 1 << 63
_SHOWN = 200
"""Characters of a faulty configuration that are shown."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?")
"""What `now` gives, and other texts that sort by time."""


def _are(values: Sequence[object], kind: type | tuple[type, ...]) -> bool:
    """True if all values are of this kind, truth values not among them; looks at each type once."""
    return all(issubclass(found, kind) and found is not bool for found in set(map(type, values)))


@lru_cache(maxsize=8192)  # a search measures many programs with the same configurations
def configuration_problem(text: str, recorded: bool) -> str | None:
    """What is wrong with a stored configuration, None if nothing is; ``recorded``: it is not of a kernel of ours."""
    try:
        values = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return "its configuration is not a JSON object, or names a parameter twice"
    if not all(_is_value(v) for v in values.values()):
        return "its configuration has a value that is neither a number nor a text"
    if not recorded and any(isinstance(v, bool | float) for v in values.values()):  # 8.0 would pass for 8 in a space
        return "its configuration has a value that is neither a whole number nor a text"
    return None


def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different; ValueError if one comes twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return values


def is_duration(seconds: object) -> bool:
    """True for what may be the time of a run: a finite number of seconds, a picosecond at least."""
    is_number = isinstance(seconds, (float, int)) and not isinstance(seconds, bool)
    return is_number and _SHORTEST <= cast(float, seconds) < _LARGEST


def is_time(text: str) -> bool:
    """True for a time stamp that sorts by time among those of `now`."""
    if _TIME.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False  # a 13th month, or a 25th hour
    return True


def _is_value(value: object) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))


_LATER = {"space"}
"""Fields that records of the first version of the format lack."""

_HALVES = (("fp16", re.compile(r": f16\b")), ("bf16", re.compile(r": bf16\b")))


def precision_of(program: str) -> str:
    """The precision in which a program's text says that it is computed: tf32, fp16, bf16 or fp32.

    A `precision` line of the text, else the first half type among its tensors' types. Empty for what is no text of
    the language (recorded kernels).
    """
    if not program.startswith("op "):
        return ""
    line = re.search(r"^ +precision (\w+)$", program, re.MULTILINE)
    if line:
        return line[1]
    head = program.partition("\n")[0]
    return next((name for name, pattern in _HALVES if pattern.search(head)), "fp32")


@dataclass(frozen=True)
class Space:
    """The configurations that a search may choose from: the values of every parameter, and the constraints' texts.

    DatabaseError for values that are neither numbers nor texts.
    """

    family: str
    parameters: tuple[tuple[str, tuple[Value, ...]], ...]
    """Name and values, in the space's own order."""
    constraints: tuple[str, ...] = ()
    """What a configuration must meet beside, in words or as an expression: for people."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parameters]
        texts = (self.family, *names, *self.constraints)
        values = [v for _, those in self.parameters for v in those]
        if not all(isinstance(t, str) for t in texts) or not all(_is_value(v) for v in values):
            raise DatabaseError(f"a space of {self.family} cannot be stored: only numbers and texts are values")
        if len(set(names)) != len(names):
            raise DatabaseError(f"a space of {self.family} cannot be stored: it names a parameter twice")

    def violated(self, configuration: Mapping[str, Value]) -> str | None:
        """Why a configuration cannot be of this space, or None; the constraints are not looked at."""
        odd = sorted(set(configuration) ^ {name for name, _ in self.parameters})
        if odd:
            return f"its parameters do not match the space's ({', '.join(odd)})"
        for name, values in self.parameters:
            if configuration[name] not in values:
                return f"{name}={configuration[name]} is not one of {', '.join(map(str, values))}"
        return None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "family": self.family,
            "parameters": {name: list(values) for name, values in self.parameters},
            "constraints": list(self.constraints),
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Space:
        """The inverse of `to_record`; DatabaseError if a field is missing, unknown, or of the wrong type."""
        if set(record) != {"family", "parameters", "constraints"}:
            raise DatabaseError("a space must have exactly family, parameters and constraints")
        parameters, constraints = record["parameters"], record["constraints"]
        lists = (*parameters.values(), constraints) if isinstance(parameters, dict) else (None,)
        if not all(isinstance(found, list) for found in lists):
            raise DatabaseError("a space's parameters must be lists of values by name, and its constraints a list")
        values = tuple((name, tuple(those)) for name, those in parameters.items())
        return Space(cast(str, record["family"]), values, tuple(constraints))

    @property
    def digest(self) -> str:
        """Identity of this space: equal only if every field is, the parameters' order included (hex, 64 digits)."""
        return hashlib.sha256(json.dumps(self.to_record(), ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Winner:
    """The fastest known configuration of one program on one device."""

    device: str
    driver: str
    """The driver it was measured on; see `exact`."""
    signature: str
    structure: str
    sizes: tuple[int, ...]
    program: str
    family: str
    configuration: str
    generator: str
    seconds: float
    created: str
    exact: bool = True
    """Measured on the very driver that was asked for; False if on another version of it."""
    shipped: bool = False
    """Came with tilewright; False if it is from the user's own database."""
    distance: float = 0.0
    """Sum over the sizes of the absolute log2 ratio to what was asked for."""


@dataclass(frozen=True)
class Kindred:
    """One program of a structure with what was measured of it on one device and driver."""

    device: str
    driver: str
    signature: str
    sizes: tuple[int, ...]
    working: int
    """Measurements that are ok."""


@dataclass(frozen=True)
class Run:
    """One call of the tuner."""

    id: str
    started: str
    host: str
    budget: str


@dataclass(frozen=True)
class Stats:
    """Figures about a store."""

    url: str
    schema_version: int
    read_only: bool
    bytes: int | None
    """Size of the file, None where the database is not a file."""
    devices: int
    drivers: int
    programs: int
    configurations: int
    spaces: int
    runs: int
    measurements: int
    statuses: Mapping[str, int]


__all__ = [
    "RECORDED",
    "Kindred",
    "Measurement",
    "Run",
    "Space",
    "Stats",
    "Status",
    "Value",
    "Winner",
    "configuration_problem",
    "distinct",
    "is_duration",
    "is_time",
    "now",
    "precision_of",
]
