"""What can still be read of a damaged SQLite file, as a new database; the file itself is kept aside unchanged.

Every row is read for itself and taken only if it agrees with its digest: what is recovered is what was recorded.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tilewright.errors import DatabaseError
from tilewright.tuning_db import reading
from tilewright.tuning_db.records import Measurement, Run, Space
from tilewright.tuning_db.store import Store
from tilewright.tuning_db.writing import Record

_COMPANIONS = ("-wal", "-shm")
_STRIDE = 100
"""Rows that are read together; one by one where that fails."""
_ROW_BYTES = 64
"""The least that a row and its entries in indexes take."""


@dataclass(frozen=True)
class Recovered:
    """What became of a damaged file."""

    aside: Path
    """Where it lies now."""
    measurements: int
    """How many could be read."""


def recover(path: Path) -> Recovered:
    """Put a damaged database aside and store what can be read of it in a new one in its place.

    DatabaseError if the file is whole, or if nothing of a tuning database can be read; it is left alone then.
    """
    if not path.is_file():
        raise DatabaseError(f"there is no file {path} to recover")
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        copy = Path(folder) / path.name
        for suffix in ("", *_COMPANIONS):
            if path.with_name(path.name + suffix).exists():
                shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
        records = list(_readable(copy))
    if not any(isinstance(r, Measurement) for r in records):
        raise DatabaseError(f"no measurement can be read from {path}; it was left alone, move it aside to begin anew")
    if _is_whole(path):
        raise DatabaseError(f"{path} is whole: there is nothing to recover")
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    for suffix in ("", *_COMPANIONS):
        if path.with_name(path.name + suffix).exists():
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    with Store.open(path) as store:
        store.add(records)
        return Recovered(aside, store.stats().measurements)


def _is_whole(path: Path) -> bool:
    try:
        with Store.open(path, read_only=True) as store:
            return store.verify() == ()
    except DatabaseError:
        return False


def _readable(path: Path) -> Iterator[Record]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA writable_schema=ON")  # or SQLite refuses all of a file that was cut off
        named = ("devices", "drivers", "programs", "configurations", "spaces")
        tables = {name: {row["id"]: row for row in _rows(path, connection, name)} for name in named}
        for row in _rows(path, connection, "runs"):
            yield Run(row["id"], row["started"], row["host"], row["budget"])
        spaces: dict[int, Space] = {}
        for number, row in tables["spaces"].items():
            space = _attempt(lambda row=row: reading.as_space(SimpleNamespace(**dict(row))))
            if space is not None and space.digest == row["digest"]:
                spaces[number] = space
                yield space
        for row in _rows(path, connection, "measurements"):
            found = _attempt(lambda row=row: _measurement(row, tables, spaces))
            if found is not None and found.digest == row["digest"]:
                yield found
    finally:
        connection.close()


def _measurement(row: sqlite3.Row, tables: dict[str, dict[int, sqlite3.Row]], spaces: dict[int, Space]) -> Measurement:
    driver, program = tables["drivers"][row["driver_id"]], tables["programs"][row["program_id"]]
    configuration = tables["configurations"][row["configuration_id"]]
    values = dict(row)
    space = values.get("space_id")
    return reading.as_measurement(
        SimpleNamespace(
            **values,
            identity=tables["devices"][driver["device_id"]]["identity"],
            version=driver["version"],
            signature=program["signature"],
            structure=program["structure"],
            sizes=program["sizes"],
            text=program["text"],
            family=configuration["family"],
            parameters=configuration["parameters"],
            space=spaces[space].digest if space is not None else "",
        )
    )


def _attempt(read: Any) -> Any:
    """What a row holds, None if it is spoilt."""
    try:
        return read()
    except (DatabaseError, KeyError, TypeError, ValueError, json.JSONDecodeError):
        return None


def _rows(path: Path, connection: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Every row of a table that can be read; none if the table cannot be found."""
    try:
        connection.execute(f"SELECT 1 FROM {table} WHERE rowid = 0")
    except sqlite3.Error:  # there is no such table, or this is no database
        return
    try:
        last = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
    except sqlite3.Error:  # the end of the table is what is damaged
        last = path.stat().st_size // _ROW_BYTES
    for first in range(1, last + 1, _STRIDE):
        query = f"SELECT * FROM {table} WHERE rowid >= ? AND rowid < ?"
        try:
            yield from connection.execute(query, (first, first + _STRIDE)).fetchall()
        except sqlite3.Error:
            for number in range(first, first + _STRIDE):
                try:
                    yield from connection.execute(query, (number, number + 1)).fetchall()
                except sqlite3.Error:
                    continue


__all__ = ["Recovered", "recover"]
