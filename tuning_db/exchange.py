"""JSON Lines: how databases are exchanged, and how winners are shipped.

The first line names the format and its version; every other line is one run, one space or one measurement with all its
fields. A measurement is identified by all of its fields, so importing a file twice changes nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from tilewright.errors import DatabaseError
from tilewright.tuning_db.records import Measurement, Run, Space, distinct
from tilewright.tuning_db.writing import Record

FORMAT = "tilewright-tuning"
VERSION = 2
"""2: spaces, and the space of a measurement."""
CLOCKS_DIFFER = timedelta(days=1)
"""How far in the future a measurement may have been made: a later one would win over all that are made until then."""
_SQLITE = b"SQLite format 3\0"
"""How every file of SQLite's begins."""


def write_file(path: Path, records: Iterable[Record]) -> int:
    """Write a whole file or none; the number of records. DatabaseError if it cannot be written."""
    count = 0
    with _replaced(path) as out:
        out.write(json.dumps({"format": FORMAT, "version": VERSION}) + "\n")
        for record in records:
            out.write(json.dumps(_as_json(record), ensure_ascii=True, allow_nan=False) + "\n")
            count += 1
    return count


def made_folder(path: Path) -> Path:
    """The folder, made where it is missing; DatabaseError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DatabaseError(f"the folder {path} for the export cannot be made: {e.strerror or e}") from e
    return path


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a whole file with one JSON object, or none; DatabaseError if it cannot be written."""
    with _replaced(path) as out:
        json.dump(values, out, ensure_ascii=True, allow_nan=False)


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    try:
        if _is_database(path):
            raise DatabaseError(f"the export {path} would overwrite a database; name another file")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                yield out
            os.chmod(name, 0o644)  # mkstemp keeps files private; an export is meant to be passed on
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as e:
        raise DatabaseError(f"the export {path} cannot be written: {e.strerror or e}") from e


def _is_database(path: Path) -> bool:
    """True for a file of SQLite's."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _as_json(record: Record) -> dict[str, Any]:
    match record:
        case Run():
            return {"kind": "run", **asdict(record)}
        case Space():
            return {"kind": "space", **record.to_record()}
        case Measurement():
            return {"kind": "measurement", **record.to_record()}


def read_file(path: Path) -> Iterator[Record]:
    """The records of a file, one after the other; DatabaseError naming the line for anything that is not one."""
    try:
        with path.open(encoding="utf-8-sig") as lines:  # some editors put a mark at the beginning
            yield from parse_lines(lines, str(path), (datetime.now(UTC) + CLOCKS_DIFFER).isoformat())
    except (OSError, UnicodeDecodeError) as e:
        raise DatabaseError(f"{path} cannot be read: {e}") from e


def parse_lines(lines: Iterable[str], place: str, latest: str | None = None) -> Iterator[Record]:
    """Records from lines of text; ``place`` names them in errors, ``latest`` is a time after which none may be made."""
    headed = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = from_json(line, distinct)
        except (ValueError, RecursionError) as e:
            raise DatabaseError(f"{place}, line {number}: not JSON ({e}); the file may be cut off") from e
        try:
            if headed:
                yield _made_before(latest, _record(values))
            else:
                _check_header(values)
                headed = True
        except (DatabaseError, TypeError) as e:
            raise DatabaseError(f"{place}, line {number}: {e}") from e
    if not headed:
        raise DatabaseError(f"{place} is empty; an export begins with a line that names its format")


def measurements_of(records: Iterable[Record]) -> Iterator[Measurement]:
    """Only the measurements."""
    return (r for r in records if isinstance(r, Measurement))


def from_json(text: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None) -> Any:
    """What a JSON text means; ValueError if it is none, or holds numbers or characters that no database takes.

    ``pairs`` makes an object of its names and values, where that takes more than keeping the last of each name.
    """
    values = json.loads(text, parse_constant=_refuse, object_pairs_hook=pairs)
    if "\\u" in text:  # escapes may spell half of a character, or the end of a text
        found = json.dumps(values, ensure_ascii=False)
        found.encode()
        if "\\u0000" in found:
            raise ValueError("a text has the character 0 in it")
    return values


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _made_before(latest: str | None, record: Record) -> Record:
    made = record.created if isinstance(record, Measurement) else record.started if isinstance(record, Run) else ""
    if latest is not None and made > latest:
        raise DatabaseError(f"it was made in the future ({made}), by a clock that was wrong; correct its time")
    return record


def _check_header(values: Any) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DatabaseError(f'not an export of tuning results (the first line must have "format": "{FORMAT}")')
    version = values.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise DatabaseError(
            f"format version {version!r}, but this tilewright reads 1 to {VERSION}; update tilewright if it is newer"
        )


def _record(values: Any) -> Record:
    if not isinstance(values, dict):
        raise DatabaseError("a line must be a JSON object")
    fields = {k: v for k, v in values.items() if k != "kind"}
    match values.get("kind"):
        case "measurement":
            return Measurement.from_record(fields)
        case "space":
            return Space.from_record(fields)
        case "run":
            if set(fields) != {"id", "started", "host", "budget"} or not all(
                isinstance(v, str) for v in fields.values()
            ):
                raise DatabaseError("a run must have exactly the texts id, started, host and budget")
            return Run(**fields)
        case kind:
            raise DatabaseError(f"unknown kind of record {kind!r}")


__all__ = ["from_json", "measurements_of", "parse_lines", "read_file", "write_file", "write_json"]
