"""The store: every measurement goes in at once, winners are questions asked of it.

Lookups go through two layers: the user's own database, then the winners shipped with tilewright. Answers are kept in
memory until something is recorded through the same Store.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, delete, func, select

from tilewright.errors import DatabaseError
from tilewright.tuning_db import exchange, queries, reading, recorded, shipped
from tilewright.tuning_db.engine import Place, open_place, translated, with_retries
from tilewright.tuning_db.records import (
    RECORDED,
    Kindred,
    Measurement,
    Run,
    Space,
    Stats,
    Winner,
    configuration_problem,
    is_duration,
)
from tilewright.tuning_db.schema import (
    CONFIGURATIONS,
    DEVICES,
    DRIVERS,
    MEASUREMENTS,
    PROGRAMS,
    RUNS,
    SPACES,
    stored_version,
)
from tilewright.tuning_db.writing import BATCH, Record, add, drop_orphans, present

OTHER_DRIVER_DISTANCE = 1.0
"""`nearest` counts another driver version like a factor of two in one size."""

ASKED = 500
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
    def path(self) -> Path | None:
        """The file that every answer comes from, beside tilewright's own winners; None if there is no such file."""
        return None if self._winners_folder is not None else self._place.path

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
        self._write(lambda c: add(c, [measurement]))

    def record_run(self, run: Run) -> None:
        """Store the frame of a tuning run (its measurements name its id)."""
        self._write(lambda c: add(c, [run]))

    def record_spaces(self, spaces: Collection[Space]) -> None:
        """Store the spaces that measurements will name, before those."""
        if spaces:
            self._write(lambda c: add(c, list(spaces)))

    def add(self, records: Iterable[Record]) -> int:
        """Store what is not there yet, in batches that are each stored whole; the number of records added."""
        added = 0
        for batch in _batches(records):
            added += self._write(partial(add, records=batch))
        return added

    def import_(self, path: str | Path) -> int:
        """Add what a JSON Lines export holds and this database lacks; the number of records added.

        The whole file is checked before anything is stored. An import that was interrupted is simply repeated.
        """
        source = Path(path)
        given, named = set[str](), set[str]()
        self._check_programs(_programs(exchange.read_file(source), given, named))
        with self._connection() as c:
            missing = sorted(named - given - present(c, SPACES, "digest", named - given))
        if missing:
            raise DatabaseError(f"{source} names the space {missing[0][:16]}, of which there is no record")
        return self.add(exchange.read_file(source))

    def import_recorded(self, path: str | Path, device: str = "", kernel: str = "") -> int:
        """Add what a T4 or Kernel Tuner file has recorded; the number of records added.

        ``device`` and ``kernel`` name what was measured, where the file does not.
        """
        return self.add(list(recorded.read_file(Path(path), recorded.Origin(device, kernel))))

    def merge(self, other: Store) -> int:
        """Add what another database holds and this one lacks; the number of records added.

        Nothing is lost or changed in either. A merge that was interrupted is simply repeated: only the digests are
        read of what is here already.
        """
        self._check_programs(other._programs())
        return self.add(other._records(self._absent))

    def _absent(self, digests: Sequence[str]) -> set[str]:
        """The digests of which there is no measurement here."""
        with self._connection() as c:
            return set(digests) - present(c, MEASUREMENTS, "digest", digests)

    def prune(
        self,
        keep_generators: Collection[str] | None = None,
        losers_before: str | None = None,
        device: str | None = None,
    ) -> int:
        """Delete what is no longer of use; the number of measurements deleted.

        ``keep_generators``: rows of all other generator versions go. ``losers_before`` (a time stamp as in
        `Measurement.created`): older rows go unless they hold a winner. ``device`` limits both to one device.
        """
        winners = {(w.device, w.driver, w.signature, w.generator, w.family, w.configuration) for w in self.ls()}

        def goes(m: Any) -> bool:
            if device is not None and m.identity != device:
                return False
            if keep_generators is not None and m.generator not in keep_generators:
                return True
            key = (m.identity, m.version, m.signature, m.generator, m.family, m.parameters)
            return losers_before is not None and str(m.created) < losers_before and key not in winners

        def remove(c: Connection, page: list[Any]) -> int:
            doomed = [row.id for row in page if goes(row)]
            for n in range(0, len(doomed), ASKED):
                c.execute(delete(MEASUREMENTS).where(MEASUREMENTS.c.id.in_(doomed[n : n + ASKED])))
            return len(doomed)

        removed, after = 0, 0
        while page := self._page(after):  # a transaction for each, so that others can write meanwhile
            removed += self._write(partial(remove, page=page))
            after = page[-1].id
        self._write(drop_orphans)
        return removed

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
        for n in range(0, len(asked), ASKED):
            generation = self.generation
            part = {s: programs[s] for s in asked[n : n + ASKED]}
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
        rows = self.history(device, driver, generator, signature)
        return {(m.family, m.configuration): m for m in rows}

    def history(self, device: str, driver: str, generator: str, signature: str) -> tuple[Measurement, ...]:
        """Every measurement of a program on this very driver, oldest first."""
        asked = {"device": device, "version": driver, "generator": generator, "signature": signature}
        with self._connection() as c:
            return tuple(reading.as_measurement(row) for row in c.execute(queries.TRIED, asked))

    def kindred(self, generator: str, structure: str) -> tuple[Kindred, ...]:
        """Where programs of a structure were measured, on any device and driver and for any sizes."""
        with self._connection() as c:
            rows = c.execute(queries.KINDRED, {"generator": generator, "structure": structure}).all()
        return tuple(Kindred(row[0], row[1], row[2], reading.as_sizes(row[3]), row[4]) for row in rows)

    def ls(self, device: str | None = None) -> tuple[Winner, ...]:
        """The winners in this database (shipped ones not included), each with the driver it was measured on."""
        with self._connection() as c:
            return tuple(
                _as_winner(row, key, key.identity, key.version, key.generator, key.signature, True)
                for key, row in _winning(c, device)
            )

    def measurements(self) -> tuple[Measurement, ...]:
        """Everything ever measured, in the order in which it was stored."""
        with self._connection() as c:
            return tuple(reading.measurements(c))

    def records(self) -> Iterator[Record]:
        """Everything that the database holds, a page at a time: runs, spaces, then measurements."""
        return self._records(None)

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
                spaces=count(SPACES),
                runs=count(RUNS),
                measurements=count(MEASUREMENTS),
                statuses={status: number for status, number in statuses},
            )

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the database, one sentence each; empty if it is whole.

        Checks the file's own structure (SQLite), every reference between tables, every row against its digest, every
        configuration against the values of the space it was taken from, and whether there are rows that nothing
        refers to.
        """
        found: list[str] = []
        try:
            with self._connection() as c:
                found += reading.problems(c)
        except DatabaseError as e:
            found.append(str(e))
        return tuple(found)

    def export(self, path: str | Path, winners_only: bool = False) -> int:
        """Write JSON Lines with everything, or only the rows that hold winners; the number of records."""
        return exchange.write_file(Path(path), self._winning_records() if winners_only else self.records())

    def export_recorded(self, folder: str | Path) -> int:
        """Write T4 files into a folder, one for each program, family, generator, device and driver; their number.

        T4 has no place for hosts, runs and rounds, and its times are rounded to milliseconds' last digits: other
        databases are best given a JSON Lines export. The folder is made where it is missing.
        """
        place = exchange.made_folder(Path(folder))
        with self._connection() as c:
            groups = c.execute(queries.RECORDED).all()
        written = 0
        for group in groups:
            rows, space = self._recorded(group)
            if rows:  # nobody has deleted them meanwhile
                exchange.write_json(place / recorded.file_name(rows[0]), recorded.as_t4(rows, space))
                written += 1
        return written

    def _recorded(self, group: Any) -> tuple[list[Measurement], Space | None]:
        """The measurements of a row of `queries.RECORDED`, and their space."""
        with self._connection() as c:
            rows = list(reading.measurements(c, queries.recorded_rows(group)))
            named = rows[0].space if rows else ""
            space = c.execute(select(SPACES).where(SPACES.c.digest == named)).first()
        return rows, reading.as_space(space) if space is not None else None

    def export_shipped(self, folder: str | Path) -> int:
        """Write one winners' file per device into a folder, as tilewright ships them; the number of winners."""
        files = shipped.devices_of(replace(m, space="") for m in self._winning_rows())
        return sum(exchange.write_file(Path(folder) / name, rows) for name, rows in files.items())

    # --- inside -------------------------------------------------------------------------------------------------

    def _winning_rows(self) -> list[Measurement]:
        with self._connection() as c:
            ids = [row.id for _, row in _winning(c)]
            found: list[Measurement] = []
            for n in range(0, len(ids), ASKED):
                part = queries.ROWS.where(MEASUREMENTS.c.id.in_(ids[n : n + ASKED]))
                found += [reading.as_measurement(row) for row in c.execute(part)]
            return found

    def _winning_records(self) -> list[Record]:
        rows = self._winning_rows()
        named = {m.space for m in rows}
        with self._connection() as c:
            spaces = [reading.as_space(row) for row in c.execute(select(SPACES)) if row.digest in named]
        return [*spaces, *rows]

    def _records(self, absent: Callable[[Sequence[str]], Collection[str]] | None) -> Iterator[Record]:
        with self._connection() as c:
            yield from reading.records(c, absent)

    def _programs(self) -> Iterator[tuple[str, str]]:
        with self._connection() as c:
            yield from reading.programs(c)

    def _page(self, after: int) -> list[Any]:
        with self._connection() as c:
            return next(reading.pages(c, after=after), [])

    def _check_programs(self, programs: Iterable[tuple[str, str]]) -> None:
        """DatabaseError if a signature stands for different texts among (signature, text), or here."""
        texts: dict[str, int] = {}
        for signature, text in programs:
            if texts.setdefault(signature, hash(text)) != hash(text):
                raise DatabaseError(f"program signature {signature} stands for two programs; nothing was added")
        signatures = list(texts)
        with self._connection() as c:
            for n in range(0, len(signatures), ASKED):
                for row in c.execute(queries.SIGNED, {"signatures": signatures[n : n + ASKED]}):
                    if texts[row.signature] != hash(row.text):
                        raise DatabaseError(
                            f"program signature {row.signature} stands for another program here; nothing was added"
                        )

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
        for program in c.execute(queries.SHAPES, asked).all():
            row = _winner_row(c, program.id, program.driver_id, generator)
            if row is not None:
                version, exact = program.version, program.version == driver
                found.append(_as_winner(row, program, device, version, generator, program.signature, exact))
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


def _programs(records: Iterable[Record], given: set[str], named: set[str]) -> Iterator[tuple[str, str]]:
    """Signature and text of every measurement's program; which spaces there are, and are named, goes into the sets."""
    for record in records:
        if isinstance(record, Space):
            given.add(record.digest)
        elif isinstance(record, Measurement):
            if record.space:
                named.add(record.space)
            yield record.signature, record.program


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    waiting = iter(records)
    while batch := list(itertools.islice(waiting, BATCH)):
        yield batch


def _winning(c: Connection, device: str | None = None) -> Iterator[tuple[Any, Any]]:
    """(row of `queries.KEYS`, row of `queries.WINNER`) of every winner."""
    for key in c.execute(queries.KEYS).all():
        if device is None or key.identity == device:
            row = _winner_row(c, key[4], key[1], key.generator)
            if row is not None:
                yield key, row


def _winner_row(c: Connection, program: int, driver: int, generator: str) -> Any:
    return c.execute(queries.WINNER, {"program": program, "driver": driver, "generator": generator}).first()


def _as_winner(row: Any, program: Any, device: str, driver: str, generator: str, signature: str, exact: bool) -> Winner:
    if not isinstance(program.text, str):
        raise DatabaseError("a stored program is not a text; 'tilewright db verify' lists what is spoilt")
    problem = configuration_problem(row.parameters, generator == RECORDED)
    if not is_duration(row.seconds):
        problem = "its time is not a positive finite number of seconds"
    if problem is not None:
        raise DatabaseError(f"a winner cannot be used: {problem}; 'tilewright db verify' lists what is spoilt")
    return Winner(
        device=device,
        driver=driver,
        signature=signature,
        structure=program.structure,
        sizes=reading.as_sizes(program.sizes),
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


__all__ = ["OTHER_DRIVER_DISTANCE", "Store"]
