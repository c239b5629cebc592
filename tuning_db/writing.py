"""Rows going into the database, many at a time: a few queries per batch, whatever it holds.

What is there already is not added again, so every function may be repeated with the same records.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from tilewright.errors import DatabaseError
from tilewright.tuning_db.records import Measurement, Run, Space, precision_of
from tilewright.tuning_db.schema import (
    CONFIGURATIONS,
    DEVICES,
    DRIVERS,
    MEASUREMENTS,
    PROGRAMS,
    RUNS,
    SPACES,
)

BATCH = 2000
"""Records of one transaction while importing: other writers wait a fraction of a second for it."""
PARAMETERS = 400
"""Keys in one query, of up to two columns each; SQLite allows 999 values in its older versions."""

Record = Run | Space | Measurement
"""What is exchanged."""


def add(c: Connection, records: Sequence[Record]) -> int:
    """Store what is not there yet; the number of rows added.

    A space must be stored before, or be among the records, when a measurement names it. DatabaseError if one does not
    exist, or if a program's signature stands for another program here.
    """
    runs = {r.id: r for r in records if isinstance(r, Run)}
    spaces = {r.digest: r for r in records if isinstance(r, Space)}
    measurements = [r for r in records if isinstance(r, Measurement)]
    return _add_runs(c, runs) + _add_spaces(c, spaces) + _add_measurements(c, measurements)


def _add_runs(c: Connection, runs: Mapping[str, Run]) -> int:
    known = present(c, RUNS, "id", runs)
    new = [r for r in runs.values() if r.id not in known]
    _insert(c, RUNS, [{"id": r.id, "started": r.started, "host": r.host, "budget": r.budget} for r in new])
    return len(new)


def _add_spaces(c: Connection, spaces: Mapping[str, Space]) -> int:
    known = present(c, SPACES, "digest", spaces)
    new = [(digest, s.to_record()) for digest, s in spaces.items() if digest not in known]
    rows = [
        {
            "digest": digest,
            "family": values["family"],
            "parameters": json.dumps(values["parameters"]),
            "constraints": json.dumps(values["constraints"]),
        }
        for digest, values in new
    ]
    _insert(c, SPACES, rows)
    return len(rows)


def _add_measurements(c: Connection, measurements: Sequence[Measurement]) -> int:
    programs = _programs(c, measurements)
    rows = {}
    for m in measurements:
        structure = programs[m.signature].structure
        as_known = m if m.structure == structure else replace(m, structure=structure)
        rows[as_known.digest] = as_known
    known = present(c, MEASUREMENTS, "digest", rows)
    new = {digest: m for digest, m in rows.items() if digest not in known}
    if not new:
        return 0
    devices = _numbers(c, DEVICES, ("identity",), [(m.device,) for m in new.values()])
    drivers = _numbers(c, DRIVERS, ("device_id", "version"), [(devices[m.device,], m.driver) for m in new.values()])
    configurations = _numbers(
        c, CONFIGURATIONS, ("family", "parameters"), [(m.family, m.configuration) for m in new.values()]
    )
    spaces = _space_numbers(c, {m.space for m in new.values() if m.space})
    _insert(
        c,
        MEASUREMENTS,
        [
            {
                "digest": digest,
                "program_id": programs[m.signature].id,
                "driver_id": drivers[devices[m.device,], m.driver],
                "configuration_id": configurations[m.family, m.configuration],
                "space_id": spaces[m.space] if m.space else None,
                **_own_columns(m),
            }
            for digest, m in new.items()
        ],
    )
    return len(new)


def _own_columns(m: Measurement) -> dict[str, object]:
    return {
        "generator": m.generator,
        "status": m.status.value,
        "seconds": m.seconds,
        "samples": json.dumps(list(m.samples)),
        "error": m.error,
        "message": m.message,
        "build_seconds": m.build_seconds,
        "host": m.host,
        "created": m.created,
        "run": m.run,
        "round": m.round,
    }


def _programs(c: Connection, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The stored row of every measurement's program.

    Its structure may differ from the measurement's: it follows from the text, but not in all versions alike.
    """
    wanted = {m.signature: m for m in measurements}
    found = {row.signature: row for row in _rows(c, PROGRAMS, "signature", wanted)}
    new = [m for signature, m in wanted.items() if signature not in found]
    rows = [
        {
            "signature": m.signature,
            "structure": m.structure,
            "sizes": json.dumps(list(m.sizes)),
            "text": m.program,
            "precision": precision_of(m.program),
        }
        for m in new
    ]
    _insert(c, PROGRAMS, rows)
    found |= {row.signature: row for row in _rows(c, PROGRAMS, "signature", [m.signature for m in new])}
    sizes = {those: json.dumps(list(those)) for those in {m.sizes for m in measurements}}
    for m in measurements:
        row = found[m.signature]
        if row.text != m.program or row.sizes != sizes[m.sizes]:
            raise DatabaseError(
                f"program signature {m.signature} stands for another program here; the row is not added"
            )
    return found


def _space_numbers(c: Connection, digests: Collection[str]) -> dict[str, int]:
    found = {row.digest: int(row.id) for row in _rows(c, SPACES, "digest", digests)}
    missing = sorted(set(digests) - set(found))
    if missing:
        raise DatabaseError(f"a measurement names the space {missing[0][:16]}, of which there is no record")
    return found


def _numbers(
    c: Connection, table: Table, columns: tuple[str, ...], wanted: Iterable[tuple[Any, ...]]
) -> dict[tuple[Any, ...], int]:
    """The ids of rows with these values in these columns, made where there are none."""
    keys = set(wanted)
    found = _known_numbers(c, table, columns, keys)
    missing = sorted(keys - set(found))
    if missing:
        _insert(c, table, [dict(zip(columns, key, strict=True)) for key in missing])
        found |= _known_numbers(c, table, columns, missing)
    return found


def _known_numbers(
    c: Connection, table: Table, columns: tuple[str, ...], keys: Collection[tuple[Any, ...]]
) -> dict[tuple[Any, ...], int]:
    wanted = sorted(set(keys))
    found = {}
    for part in _parts(wanted):  # a condition on every column, so that the index on all of them serves
        conditions = (table.c[name].in_({key[n] for key in part}) for n, name in enumerate(columns))
        for row in c.execute(select(table).where(*conditions)):
            found[tuple(getattr(row, name) for name in columns)] = int(row.id)
    return {key: found[key] for key in wanted if key in found}


def present(c: Connection, table: Table, column: str, values: Collection[str]) -> set[str]:
    """Which of these values the column has."""
    wanted = list(values)
    column_ = table.c[column]
    found: set[str] = set()
    for part in _parts(wanted):
        found.update(c.execute(select(column_).where(column_.in_(part))).scalars())
    return found


def _rows(c: Connection, table: Table, column: str, values: Collection[Any]) -> Iterator[Any]:
    for part in _parts(list(values)):
        yield from c.execute(select(table).where(table.c[column].in_(part))).all()


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    return (list(values[n : n + PARAMETERS]) for n in range(0, len(values), PARAMETERS))


def _insert(c: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        c.execute(insert(table), list(rows))


def drop_orphans(c: Connection) -> None:
    """Delete rows that no measurement refers to any more; spaces stay, they are stored before their measurements."""
    for table, column in (
        (PROGRAMS, MEASUREMENTS.c.program_id),
        (CONFIGURATIONS, MEASUREMENTS.c.configuration_id),
        (DRIVERS, MEASUREMENTS.c.driver_id),
        (DEVICES, DRIVERS.c.device_id),
        (RUNS, MEASUREMENTS.c.run),
    ):
        c.execute(delete(table).where(table.c.id.not_in(select(column))))


__all__ = ["BATCH", "Record", "add", "drop_orphans", "present"]
