"""The store: every measurement goes in at once, winners are questions asked of it.

Lookups go through two layers: the user's own database, then the winners shipped with tilewright. Answers are kept in
memory until something is recorded through the same Store.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, delete, exists, func, insert, select

from tilewright.errors import DatabaseError
from tilewright.tuning_db import exchange, queries, shipped
from tilewright.tuning_db.engine import Place, open_place, translated, with_retries
from tilewright.tuning_db.records import Measurement, Run, Stats, Winner
from tilewright.tuning_db.schema import (
    CONFIGURATIONS,
    DEVICES,
    DRIVERS,
    MEASUREMENTS,
    PROGRAMS,
    RUNS,
    stored_version,
)

OTHER_DRIVER_DISTANCE = 1.0
"""`nearest` counts another driver version like a factor of two in one size."""

BATCH = 500
"""Programs that are asked for in one query; SQLite allows 999 parameters in its older versions."""

_Result = TypeVar("_Result")
_generations = itertools.count(1)


class Store:
    """An open tuning database; safe to use from several threads, and from several processes at once."""

    def __init__(self, place: Place, winners: Traversable | None = None) -> None:
        self._place = place
        self._winners_folder = winners
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._answers: dict[tuple[object, ...], Any] = {}
        self._shipped: dict[str, shipped.Shipped] = {}
        self.generation = next(_generations)
        """New after every change made through this Store, and never that of another Store: a key for answers."""

    @staticmethod
    def open(
        url_or_path: str | Path | None = None, read_only: bool = False, winners: Traversable | None = None
    ) -> Store:
        """Open or create the database at a path or SQLAlchemy URL; None means $TILEWRIGHT_DB, else the user's own.

        ``winners`` is the folder of shipped winners, None for the one in the package. A file that cannot be written
        is opened for reading, with a warning in the log. DatabaseError if there is no way to use it.
        """
        return Store(open_place(url_or_path, read_only), winners)

    @property
    def url(self) -> str:
        """The database as a URL without password."""
        return self._place.url

    @property
    def read_only(self) -> bool:
        """True if nothing can be recorded."""
        return self._place.read_only

    def close(self) -> None:
        """Close all connections; the store opens new ones if it is used again."""
        self._place.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- writing ------------------------------------------------------------------------------------------------

    def record(self, measurement: Measurement) -> None:
        """Store one measurement; it is safe on disk when this returns. DatabaseError if that is impossible."""
        self._write(lambda c: _insert(c, measurement))

    def record_run(self, run: Run) -> None:
        """Store the frame of a tuning run (its measurements name its id)."""
        self._write(lambda c: _insert_run(c, run))

    def import_(self, path: str | Path) -> int:
        """Add what a JSON Lines export holds and this database lacks, all of it or nothing; the number added."""
        records = exchange.read_file(Path(path))

        def merge(c: Connection) -> int:
            return sum(_insert_run(c, r) if isinstance(r, Run) else _insert(c, r) for r in records)

        return self._write(merge)

    def prune(
        self, keep_generator: str | None = None, losers_before: str | None = None, device: str | None = None
    ) -> int:
        """Delete what is no longer of use; the number of measurements deleted.

        ``keep_generator``: rows of all other generator versions go. ``losers_before`` (a time stamp as in
        `Measurement.created`): older rows go unless they hold a winner. ``device`` limits both to one device.
        """
        winners = {(w.device, w.driver, w.signature, w.generator, w.family, w.configuration) for w in self.ls()}

        def goes(m: Measurement) -> bool:
            if device is not None and m.device != device:
                return False
            if keep_generator is not None and m.generator != keep_generator:
                return True
            key = (m.device, m.driver, m.signature, m.generator, m.family, m.configuration)
            return losers_before is not None and m.created < losers_before and key not in winners

        def work(c: Connection) -> int:
            doomed = [digest for digest, m in _measurements(c) if goes(m)]
            for digest in doomed:
                c.execute(delete(MEASUREMENTS).where(MEASUREMENTS.c.digest == digest))
            _drop_orphans(c)
            return len(doomed)

        return self._write(work)

    # --- questions ----------------------------------------------------------------------------------------------

    def winner(self, device: str, driver: str, generator: str, signature: str) -> Winner | None:
        """The fastest known configuration of a program on a device.

        Asked in this order: own results on this driver, shipped ones on this driver, own on another driver version
        (the one seen last), shipped on another. The last two have ``exact`` false.
        """

        def find(c: Connection) -> Winner | None:
            program = c.execute(queries.PROGRAM, {"signature": signature}).first()
            drivers = self._drivers(c, device) if program else ()
            others = self._shipped_for(device)
            for exact in (True, False):
                for driver_id, version in drivers:
                    if program is not None and (version == driver) is exact:
                        found = _winner_row(c, program.id, driver_id, generator)
                        if found is not None:
                            return _as_winner(found, program, device, version, generator, signature, exact)
                ours = others.winner(driver, generator, signature, exact)
                if ours is not None:
                    return _seen_from(ours, driver, None)
            return None

        return self._ask(("winner", device, driver, generator, signature), find)

    def look_up(self, device: str, driver: str, generator: str, programs: Mapping[str, Callable[[], str]]) -> None:
        """Answer `winner` and `nearest` ahead of the questions, for many programs with a few queries together.

        ``programs`` gives for each signature how to find the program's structure, which is needed where there is no
        winner. What takes more (winners on another driver version or of other sizes) is left to the questions.
        """
        asked = [s for s in programs if ("winner", device, driver, generator, s) not in self._answers]
        for n in range(0, len(asked), BATCH):
            generation = self.generation
            part = {s: programs[s] for s in asked[n : n + BATCH]}
            with self._connection() as c:
                answers = self._looked_up(c, device, driver, generator, part)
            with self._lock:
                if generation == self.generation:
                    self._answers.update(answers)

    def nearest(
        self, device: str, driver: str, generator: str, structure: str, sizes: tuple[int, ...], limit: int = 5
    ) -> tuple[Winner, ...]:
        """Winners of programs of the same structure, nearest sizes first, at most `limit`.

        The distance is the sum over the sizes of the absolute log2 ratio; another driver version adds
        `OTHER_DRIVER_DISTANCE` to the order only. The program of exactly these sizes is among them if it is known.
        """
        known = self._ask(
            ("shapes", device, driver, generator, structure),
            lambda c: self._winners_of_structure(c, device, driver, generator, structure),
        )
        placed = [_seen_from(w, driver, sizes) for w in known if len(w.sizes) == len(sizes)]
        placed.sort(key=lambda w: (w.distance + (0.0 if w.exact else OTHER_DRIVER_DISTANCE), w.shipped))
        return tuple(placed[:limit])

    def tried(self, device: str, driver: str, generator: str, signature: str) -> dict[tuple[str, str], Measurement]:
        """The newest measurement of every (family, configuration as JSON) tried for a program on this very driver."""
        asked = {"device": device, "version": driver, "generator": generator, "signature": signature}
        with self._connection() as c:
            rows = [_as_measurement(row) for row in c.execute(queries.TRIED, asked)]
        return {(m.family, m.configuration): m for m in rows}

    def ls(self, device: str | None = None) -> tuple[Winner, ...]:
        """The winners in this database (shipped ones not included), each with the driver it was measured on."""
        with self._connection() as c:
            found = []
            for k in c.execute(queries.KEYS).all():
                if device is None or k.identity == device:
                    row = _winner_row(c, k[4], k[1], k.generator)
                    if row is not None:
                        found.append(_as_winner(row, k, k.identity, k.version, k.generator, k.signature, True))
            return tuple(found)

    def measurements(self) -> tuple[Measurement, ...]:
        """Everything ever measured, in the order in which it was stored."""
        with self._connection() as c:
            return tuple(m for _, m in _measurements(c))

    def stats(self) -> Stats:
        """How much there is of what."""
        with self._connection() as c:

            def count(table: Table) -> int:
                return c.execute(select(func.count()).select_from(table)).scalar_one()

            statuses = c.execute(
                select(MEASUREMENTS.c.status, func.count())
                .group_by(MEASUREMENTS.c.status)
                .order_by(MEASUREMENTS.c.status)
            )
            path = self._place.path
            return Stats(
                url=self.url,
                schema_version=stored_version(c) or 0,
                read_only=self.read_only,
                bytes=path.stat().st_size if path is not None else None,
                devices=count(DEVICES),
                drivers=count(DRIVERS),
                programs=count(PROGRAMS),
                configurations=count(CONFIGURATIONS),
                runs=count(RUNS),
                measurements=count(MEASUREMENTS),
                statuses={status: number for status, number in statuses},
            )

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the database, one sentence each; empty if it is whole.

        Checks the file's own structure (SQLite), every reference between tables, and every row against its digest.
        """
        problems: list[str] = []
        try:
            with self._connection() as c:
                if c.dialect.name == "sqlite":
                    answers = c.exec_driver_sql("PRAGMA integrity_check").scalars().all()
                    problems += [f"file: {answer}" for answer in answers if answer != "ok"]
                    for row in c.exec_driver_sql("PRAGMA foreign_key_check").all():
                        problems.append(f"table {row[0]}, row {row[1]}: refers to a missing row of {row[2]}")
                problems += _row_problems(c)
        except DatabaseError as e:
            problems.append(str(e))
        return tuple(problems)

    def export(self, path: str | Path, winners_only: bool = False) -> int:
        """Write JSON Lines with everything, or only the rows that hold winners; the number of records."""
        target = Path(path)
        if winners_only:
            return exchange.write_file(target, self._winning_rows())
        with self._connection() as c:
            runs = [Run(*row) for row in c.execute(select(RUNS).order_by(RUNS.c.started, RUNS.c.id))]
            return exchange.write_file(target, [*runs, *(m for _, m in _measurements(c))])

    def export_shipped(self, folder: str | Path) -> int:
        """Write one winners' file per device into a folder, as tilewright ships them; the number of winners."""
        files = shipped.devices_of(self._winning_rows())
        return sum(exchange.write_file(Path(folder) / name, rows) for name, rows in files.items())

    # --- inside -------------------------------------------------------------------------------------------------

    def _winning_rows(self) -> list[Measurement]:
        wanted = {
            (w.device, w.driver, w.signature, w.generator, w.family, w.configuration, w.created) for w in self.ls()
        }
        return [
            m
            for m in self.measurements()
            if (m.device, m.driver, m.signature, m.generator, m.family, m.configuration, m.created) in wanted
        ]

    def _drivers(self, c: Connection, device: str) -> tuple[tuple[int, str], ...]:
        """(id, version) of a device's drivers, kept like the answers (every lookup needs them)."""
        key = ("drivers", device)
        if key not in self._answers:
            self._answers[key] = tuple((i, v) for i, v in c.execute(queries.DRIVERS_OF, {"device": device}))
        found: tuple[tuple[int, str], ...] = self._answers[key]
        return found

    def _looked_up(
        self, c: Connection, device: str, driver: str, generator: str, programs: Mapping[str, Callable[[], str]]
    ) -> dict[tuple[object, ...], object]:
        """Answers by key, as far as a few queries give them."""
        known = {row.signature: row for row in c.execute(queries.SIGNED, {"signatures": list(programs)})}
        ids = [row.id for row in known.values()]
        best: dict[int, Any] = {}
        for driver_id, version in self._drivers(c, device):
            if version == driver and ids:
                for row in c.execute(queries.COMPETING, {"programs": ids, "driver": driver_id, "generator": generator}):
                    best.setdefault(row.program_id, row)
        answers: dict[tuple[object, ...], object] = {}
        others = self._shipped_for(device)
        missing: dict[str, str] = {}
        for signature, structure in programs.items():
            key, program = ("winner", device, driver, generator, signature), known.get(signature)
            if program is not None and program.id in best:
                answers[key] = _as_winner(best[program.id], program, device, driver, generator, signature, True)
                continue
            missing[signature] = structure()
            if program is None:
                found = (others.winner(driver, generator, signature, exact) for exact in (True, False))
                ours = next((w for w in found if w is not None), None)
                answers[key] = None if ours is None else _seen_from(ours, driver, None)
        if missing:
            there = set(c.execute(queries.STRUCTURES, {"structures": sorted(set(missing.values()))}).scalars())
            for absent in set(missing.values()) - there:
                answers["shapes", device, driver, generator, absent] = others.of_structure(generator, absent)
        return answers

    def _shipped_for(self, device: str) -> shipped.Shipped:
        if device not in self._shipped:
            self._shipped[device] = shipped.load(device, self._winners_folder)
        return self._shipped[device]

    def _winners_of_structure(
        self, c: Connection, device: str, driver: str, generator: str, structure: str
    ) -> tuple[Winner, ...]:
        asked = {"structure": structure, "device": device, "generator": generator}
        found: list[Winner] = []
        for program, signature, sizes, text, driver_id, version in c.execute(queries.SHAPES, asked).all():
            row = _winner_row(c, program, driver_id, generator)
            if row is not None:
                found.append(
                    Winner(
                        device=device,
                        driver=version,
                        signature=signature,
                        structure=structure,
                        sizes=tuple(json.loads(sizes)),
                        program=text,
                        family=row.family,
                        configuration=row.parameters,
                        generator=generator,
                        seconds=row.seconds,
                        created=row.created,
                        exact=version == driver,
                    )
                )
        return (*found, *self._shipped_for(device).of_structure(generator, structure))

    def _ask(self, key: tuple[object, ...], find: Callable[[Connection], _Result]) -> _Result:
        """An answer from memory, or from the database."""
        if key not in self._answers:
            generation = self.generation
            with self._connection() as c:
                answer = find(c)
            with self._lock:
                if generation == self.generation:
                    self._answers[key] = answer
            return answer
        result: _Result = self._answers[key]
        return result

    def _write(self, work: Callable[[Connection], _Result]) -> _Result:
        if self.read_only:
            raise DatabaseError(
                f"the tuning database {self.url} is open for reading only; name a writable one with TILEWRIGHT_DB"
            )

        def transaction() -> _Result:
            with self._connect() as c, c.execution_options(tilewright_write=True).begin():
                return work(c)

        with translated(self.url):
            result = with_retries(transaction)
        with self._lock:
            self.generation = next(_generations)
            self._answers.clear()
        return result

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with translated(self.url), self._connect() as c, c.begin():
            yield c

    def _connect(self) -> Connection:
        if os.getpid() != self._process:  # a forked child must not share its parent's connections
            self._place.engine.dispose(close=False)
            self._process = os.getpid()
        return self._place.engine.connect()


# --- rows to records and back -------------------------------------------------------------------------------------


def _id_of(c: Connection, table: Table, **values: object) -> int:
    """The id of the row with these values, made if there is none."""
    found = c.execute(select(table.c.id).where(*(table.c[k] == v for k, v in values.items()))).scalar()
    if found is None:
        key = c.execute(insert(table).values(**values)).inserted_primary_key
        assert key is not None, "every table has a numbered key"
        found = key[0]
    return int(found)


def _program_id(c: Connection, m: Measurement) -> int:
    sizes = json.dumps(list(m.sizes))
    row = c.execute(queries.PROGRAM, {"signature": m.signature}).first()
    if row is None:
        return _id_of(c, PROGRAMS, signature=m.signature, structure=m.structure, sizes=sizes, text=m.program)
    if (row.structure, row.sizes, row.text) != (m.structure, sizes, m.program):
        raise DatabaseError(f"program signature {m.signature} stands for another program here; the row is not added")
    return int(row.id)


def _as_known(c: Connection, m: Measurement) -> Measurement:
    """With the structure that the program was stored with: it follows from the text, but not in all versions alike."""
    row = c.execute(queries.PROGRAM, {"signature": m.signature}).first()
    return m if row is None or row.text != m.program else replace(m, structure=row.structure)


def _insert(c: Connection, m: Measurement) -> int:
    """Add one measurement; 1 if it is new, 0 if it was there."""
    m = _as_known(c, m)
    digest = m.digest
    if c.execute(select(MEASUREMENTS.c.id).where(MEASUREMENTS.c.digest == digest)).first():
        return 0
    device = _id_of(c, DEVICES, identity=m.device)
    c.execute(
        insert(MEASUREMENTS).values(
            digest=digest,
            program_id=_program_id(c, m),
            driver_id=_id_of(c, DRIVERS, device_id=device, version=m.driver),
            generator=m.generator,
            configuration_id=_id_of(c, CONFIGURATIONS, family=m.family, parameters=m.configuration),
            status=m.status.value,
            seconds=m.seconds,
            samples=json.dumps(list(m.samples)),
            error=m.error,
            message=m.message,
            build_seconds=m.build_seconds,
            host=m.host,
            created=m.created,
            run=m.run,
            round=m.round,
        )
    )
    return 1


def _insert_run(c: Connection, run: Run) -> int:
    if c.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first():
        return 0
    c.execute(insert(RUNS).values(id=run.id, started=run.started, host=run.host, budget=run.budget))
    return 1


def _as_measurement(row: Any) -> Measurement:
    return Measurement.from_record(
        {
            "device": row.identity,
            "driver": row.version,
            "signature": row.signature,
            "structure": row.structure,
            "sizes": json.loads(row.sizes),
            "program": row.text,
            "family": row.family,
            "configuration": row.parameters,
            "generator": row.generator,
            "status": row.status,
            "seconds": row.seconds,
            "samples": json.loads(row.samples),
            "error": row.error,
            "message": row.message,
            "build_seconds": row.build_seconds,
            "host": row.host,
            "created": row.created,
            "run": row.run,
            "round": row.round,
        }
    )


def _measurements(c: Connection) -> Iterable[tuple[str, Measurement]]:
    """(digest, measurement) of every row."""
    for row in c.execute(queries.ROWS).all():
        yield row.digest, _as_measurement(row)


def _row_problems(c: Connection) -> Iterator[str]:
    for row in c.execute(queries.ROWS).all():
        try:
            whole = _as_measurement(row).digest == row.digest
        except (DatabaseError, ValueError, TypeError) as e:
            yield f"measurement {row.id}: {e}"
            continue
        if not whole:
            yield f"measurement {row.id}: was changed after it was stored (its digest differs)"


def _winner_row(c: Connection, program: int, driver: int, generator: str) -> Any:
    return c.execute(queries.WINNER, {"program": program, "driver": driver, "generator": generator}).first()


def _as_winner(row: Any, program: Any, device: str, driver: str, generator: str, signature: str, exact: bool) -> Winner:
    return Winner(
        device=device,
        driver=driver,
        signature=signature,
        structure=program.structure,
        sizes=tuple(json.loads(program.sizes)),
        program=program.text,
        family=row.family,
        configuration=row.parameters,
        generator=generator,
        seconds=row.seconds,
        created=row.created,
        exact=exact,
    )


def _seen_from(w: Winner, driver: str, sizes: tuple[int, ...] | None) -> Winner:
    """The winner as an answer to a question about this driver and these sizes."""
    distance = 0.0
    if sizes is not None:
        distance = sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(w.sizes, sizes, strict=True))
    return replace(w, exact=w.driver == driver, distance=distance)


def _drop_orphans(c: Connection) -> None:
    """Rows that no measurement refers to any more."""
    for table, column in (
        (PROGRAMS, MEASUREMENTS.c.program_id),
        (CONFIGURATIONS, MEASUREMENTS.c.configuration_id),
        (DRIVERS, MEASUREMENTS.c.driver_id),
    ):
        c.execute(delete(table).where(~exists().where(column == table.c.id)))
    c.execute(delete(DEVICES).where(~exists().where(DRIVERS.c.device_id == DEVICES.c.id)))
    c.execute(delete(RUNS).where(~exists().where(MEASUREMENTS.c.run == RUNS.c.id)))


__all__ = ["OTHER_DRIVER_DISTANCE", "Store"]
