"""Spaces that others have measured: T4 results and Kernel Tuner's caches, read and (T4) written.

T4 (https://github.com/odgaard/TuningSchema, branch T4, version 1.0.0) is one JSON object with a list of results; times
are in milliseconds. It names neither device nor kernel: our files say so under "tilewright", others' are told by the
caller. A Kernel Tuner cache (https://github.com/KernelTuner/kernel_tuner, schema/cache) names both. What such a file
says of one kernel on one device becomes a program of its own, whose text is the kernel's name and problem size; nothing
in it is ever run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilewright.errors import DatabaseError
from tilewright.tuning_db.exchange import from_json
from tilewright.tuning_db.records import RECORDED, Measurement, Space, Status, Value, is_time
from tilewright.tuning_db.writing import Record

VERSION = "1.0.0"
"""Of T4."""
_BEGINNING = "1970-01-01T00:00:00.000000+00:00"
"""Stands for a time that a file does not give."""

_SAME = ("device", "driver", "signature", "structure", "program", "family", "generator")
"""What all results of a file share, beside sizes and space."""

_INVALIDITY = {
    Status.OK: "correct",
    Status.WRONG: "correctness",
    Status.BUILD_FAILED: "compile",
    Status.LAUNCH_FAILED: "runtime",
    Status.TIMED_OUT: "timeout",
    Status.CRASHED: "runtime",
    Status.OUT_OF_RESOURCES: "constraints",
}
_STATUS = {word: status for status, word in reversed(_INVALIDITY.items())} | {"runtime": Status.LAUNCH_FAILED}
_FAILURES = {
    "CompilationFailedConfig": Status.BUILD_FAILED,
    "RuntimeFailedConfig": Status.LAUNCH_FAILED,
    "InvalidConfig": Status.OUT_OF_RESOURCES,
}
"""What Kernel Tuner writes in place of a time."""


@dataclass(frozen=True)
class Origin:
    """What was measured, where a file does not say it: names for people."""

    device: str = ""
    kernel: str = ""


def is_recorded(path: Path) -> bool:
    """True for a file that may be read here: one JSON object (perhaps in gzip) that is no JSON Lines export."""
    try:
        with _opened(path) as file:
            first = file.readline(1 << 16).strip()
    except (OSError, UnicodeDecodeError):
        return False
    return path.suffix == ".gz" or (first.startswith("{") and '"tilewright-tuning"' not in first)


def read_file(path: Path, origin: Origin | None = None) -> Iterator[Record]:
    """The space and the measurements of a T4 or Kernel Tuner file (also with gzip).

    DatabaseError for a file that is neither, or that leaves open what was measured where ``origin`` does not say it.
    The file is read whole.
    """
    values, given = _load(path), origin or Origin()
    try:
        if isinstance(values.get("results"), list):
            yield from _of_t4(values, given)
        elif isinstance(values.get("cache"), dict):
            yield from _of_cache(values, given)
        else:
            raise DatabaseError('it has neither "results" (T4) nor "cache" (Kernel Tuner)')
    except DatabaseError as e:
        raise DatabaseError(f"{path}: {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DatabaseError(f"{path} is no T4 or Kernel Tuner file: {type(e).__name__}: {e}") from e


def _opened(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    try:
        with _opened(path) as file:
            text = file.read()
        try:
            values = from_json(text)
        except ValueError:  # Kernel Tuner closes its cache only when a run ends
            values = from_json(text.rstrip().rstrip(",") + "}}")
    except (OSError, EOFError, ValueError, RecursionError) as e:
        raise DatabaseError(f"{path} cannot be read: {e}") from e
    if not isinstance(values, dict):
        raise DatabaseError(f"{path} is no T4 or Kernel Tuner file: it must be a JSON object")
    return values


# --- Kernel Tuner --------------------------------------------------------------------------------------------------


def _of_cache(values: Mapping[str, Any], origin: Origin) -> Iterator[Record]:
    kernel, device = origin.kernel or str(values["kernel_name"]), origin.device or str(values["device_name"])
    names = [str(name) for name in values["tune_params_keys"]]
    space = Space(kernel, tuple((name, tuple(values["tune_params"][name])) for name in names))
    size = values.get("problem_size", [])
    sizes = tuple(n for n in (size if isinstance(size, list) else [size]) if isinstance(n, int) and n >= 0)
    frame = _frame(device, kernel, space, sizes, f"{kernel} {json.dumps(size)}")
    yield space
    for entry in values["cache"].values():
        time = entry["time"]
        status = _FAILURES.get(time, Status.LAUNCH_FAILED) if isinstance(time, str) else Status.OK
        samples = entry.get("times") or [time] if status is Status.OK else []
        yield replace(
            frame,
            configuration=_configuration({name: entry[name] for name in names}),
            status=status,
            seconds=time / 1e3 if status is Status.OK else None,
            samples=tuple(t / 1e3 for t in samples),
            message=time if isinstance(time, str) else "",
            build_seconds=_seconds(entry.get("compile_time")),
            created=_created(entry.get("timestamp")),
        )


# --- T4 ------------------------------------------------------------------------------------------------------------


def _of_t4(values: Mapping[str, Any], origin: Origin) -> Iterator[Record]:
    ours = values.get("tilewright")
    if isinstance(ours, dict):
        space = Space.from_record(ours["space"]) if ours["space"] is not None else None
        same: dict[str, Any] = {name: str(ours[name]) for name in _SAME}
        frame = replace(_EMPTY, **same, sizes=tuple(ours["sizes"]), space=space.digest if space is not None else "")
    elif origin.device and origin.kernel:
        space = _space_of(origin.kernel, [result["configuration"] for result in values["results"]])
        frame = _frame(origin.device, origin.kernel, space, (), origin.kernel)
    else:
        raise DatabaseError("T4 results name neither device nor kernel: give both")
    if space is not None:
        yield space
    for number, result in enumerate(values["results"], 1):
        try:
            yield _of_result(frame, result)
        except (DatabaseError, KeyError, TypeError, ValueError, AttributeError) as e:
            why = e if isinstance(e, DatabaseError) else f"it does not have T4's fields ({type(e).__name__}: {e})"
            raise DatabaseError(f"result {number}: {why}") from e


def _of_result(frame: Measurement, result: Mapping[str, Any]) -> Measurement:
    times = result["times"]
    measured = {m["name"]: m["value"] for m in result.get("measurements", ()) if m.get("name")}
    status = Status(measured["status"]) if "status" in measured else _STATUS[result["invalidity"]]
    samples = [t for t in times.get("runtimes", ()) if isinstance(t, int | float)] if status is Status.OK else []
    time = measured.get("time", statistics.fmean(samples) if samples else None)
    if status is Status.OK and not isinstance(time, int | float):
        raise DatabaseError(f"the result of {result['configuration']} is correct but has no time")
    return replace(
        frame,
        configuration=_configuration(result["configuration"]),
        status=status,
        seconds=time / 1e3 if status is Status.OK and time is not None else None,
        samples=tuple(t / 1e3 for t in samples) or ((time / 1e3,) if status is Status.OK and time is not None else ()),
        message=str(measured.get("message", "")),
        error=measured.get("error"),
        build_seconds=_seconds(times.get("compilation_time", times.get("compilation"))),
        created=_created(result.get("timestamp")),
    )


def file_name(m: Measurement) -> str:
    """A name for the T4 file that a measurement goes into: readable, and unique."""
    identity = json.dumps([*(getattr(m, name) for name in _SAME), m.space])
    readable = re.sub(r"[^a-z0-9]+", "-", f"{m.family}-{m.device}".lower()).strip("-")[:80]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def as_t4(measurements: Iterable[Measurement], space: Space | None) -> dict[str, Any]:
    """Measurements of one program by one family on one device and driver, as a T4 object."""
    rows = list(measurements)
    first = rows[0]
    frame: dict[str, Any] = {name: getattr(first, name) for name in _SAME}
    frame |= {"sizes": list(first.sizes), "space": space.to_record() if space is not None else None}
    return {"schema_version": VERSION, "tilewright": frame, "results": [_result(m) for m in rows]}


def _result(m: Measurement) -> dict[str, Any]:
    measured: list[dict[str, Any]] = [{"name": "status", "value": str(m.status), "unit": ""}]
    if m.seconds is not None:
        measured.append({"name": "time", "value": m.seconds * 1e3, "unit": "ms"})
    if m.error is not None:
        measured.append({"name": "error", "value": m.error, "unit": ""})
    if m.message:
        measured.append({"name": "message", "value": m.message, "unit": ""})
    return {
        "timestamp": m.created,
        "configuration": json.loads(m.configuration),
        "objectives": ["time"],
        "times": {
            **({"compilation_time": m.build_seconds * 1e3} if m.build_seconds is not None else {}),
            "runtimes": [s * 1e3 for s in m.samples],
        },
        "invalidity": _INVALIDITY[m.status],
        "correctness": 0 if m.status is Status.WRONG else 1,
        "measurements": measured,
    }


# --- both ----------------------------------------------------------------------------------------------------------


def _frame(device: str, kernel: str, space: Space, sizes: tuple[int, ...], text: str) -> Measurement:
    """What all measurements of a file have in common."""
    signature = hashlib.sha256(f"{text}\n{space.digest}".encode()).hexdigest()[:16]
    structure = hashlib.sha256(kernel.encode()).hexdigest()[:16]
    same: dict[str, Any] = {
        "device": device,
        "signature": signature,
        "structure": structure,
        "program": text,
        "family": kernel,
    }
    return replace(_EMPTY, **same, sizes=sizes, space=space.digest)


_EMPTY = Measurement("", "", "", "", (), "", "", "{}", RECORDED, Status.CRASHED, host="", created=_BEGINNING)


def _space_of(kernel: str, configurations: Iterable[Mapping[str, Value]]) -> Space:
    """Every value that occurs."""
    values: dict[str, dict[Value, None]] = {}
    for configuration in configurations:
        for name, value in configuration.items():
            values.setdefault(name, {})[value] = None
    ordered = ((name, sorted(those, key=lambda v: (isinstance(v, str), v))) for name, those in values.items())
    return Space(kernel, tuple((name, tuple(those)) for name, those in ordered))


def _configuration(values: Mapping[str, Value]) -> str:
    if not isinstance(values, dict):
        raise TypeError(f"the configuration {values!r} is no object")
    return json.dumps(dict(values), sort_keys=True)


def _created(timestamp: Any) -> str:
    """A file's time stamp in our form; the beginning of time where there is none that can be read."""
    text = str(timestamp).replace(" ", "T")
    return text if is_time(text) else _BEGINNING


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1e3 if isinstance(milliseconds, int | float) and milliseconds >= 0 else None


__all__ = ["Origin", "as_t4", "file_name", "is_recorded", "read_file"]
