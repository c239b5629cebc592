"""Rows coming out of the database, a page at a time: memory stays the same however many there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from tilewright.errors import DatabaseError
from tilewright.tuning_db import queries
from tilewright.tuning_db.records import Measurement, Run, Space, Status
from tilewright.tuning_db.schema import CONFIGURATIONS, DEVICES, DRIVERS, MEASUREMENTS, PROGRAMS, RUNS, SPACES
from tilewright.tuning_db.writing import Record

PAGE = 2000
"""Rows that are in memory at a time."""


def pages(c: Connection, query: Select[Any] = queries.ROWS, after: int = 0) -> Iterator[list[Row[Any]]]:
    """The rows of `queries.ROWS`, or of a query with more conditions, in the order in which they were stored.

    ``after``: only those with a higher id.
    """
    while True:
        page = list(c.execute(query.where(MEASUREMENTS.c.id > after).limit(PAGE)))
        if not page:
            return
        yield page
        after = page[-1].id


def measurements(c: Connection, query: Select[Any] = queries.ROWS) -> Iterator[Measurement]:
    """Every measurement, in the order in which it was stored."""
    for page in pages(c, query):
        for row in page:
            yield as_measurement(row)


def programs(c: Connection) -> Iterator[tuple[str, str]]:
    """Signature and text of every program."""
    for row in _streamed(c, select(PROGRAMS.c.signature, PROGRAMS.c.text)):
        yield row.signature, row.text


def records(c: Connection, absent: Callable[[Sequence[str]], Collection[str]] | None = None) -> Iterator[Record]:
    """Everything that an export holds: runs, then spaces, then measurements.

    ``absent`` says of a page's digests which of the measurements are wanted; the others are not read.
    """
    for row in _streamed(c, select(RUNS).order_by(RUNS.c.started, RUNS.c.id)):
        yield Run(row.id, row.started, row.host, row.budget)
    for row in _streamed(c, select(SPACES).order_by(SPACES.c.id)):
        yield as_space(row)
    yield from measurements(c) if absent is None else _wanted(c, absent)


def _wanted(c: Connection, absent: Callable[[Sequence[str]], Collection[str]]) -> Iterator[Measurement]:
    for page in pages(c, select(MEASUREMENTS.c.id, MEASUREMENTS.c.digest).order_by(MEASUREMENTS.c.id)):
        wanted = frozenset(absent([row.digest for row in page]))
        numbers = [row.id for row in page if row.digest in wanted]
        if numbers:
            span = queries.ROWS.where(MEASUREMENTS.c.id.between(numbers[0], numbers[-1]))
            chosen = frozenset(numbers)
            yield from (as_measurement(row) for row in c.execute(span).all() if row.id in chosen)


def _streamed(c: Connection, query: Select[Any]) -> Iterator[Row[Any]]:
    """A query's rows, a page at a time where the server would send them all at once."""
    yield from c.execute(query.execution_options(yield_per=PAGE))


def as_measurement(row: Any) -> Measurement:
    """A row of `queries.ROWS` as a record; DatabaseError, with a way out, if it is spoilt."""
    try:
        return _checked(row)
    except DatabaseError as e:
        raise DatabaseError(
            f"measurement {row.id} is spoilt ({e}); 'tilewright db recover' puts the file aside and keeps every row "
            "that is whole"
        ) from e


def _checked(row: Any) -> Measurement:
    """The same, saying only what is wrong."""
    try:
        status, sizes, samples = Status(row.status), as_sizes(row.sizes), tuple(json.loads(row.samples))
    except (TypeError, ValueError) as e:
        raise DatabaseError(f"a stored measurement has a field of the wrong type: {e}") from e
    return Measurement(
        device=row.identity,
        driver=row.version,
        signature=row.signature,
        structure=row.structure,
        sizes=sizes,
        program=row.text,
        family=row.family,
        configuration=row.parameters,
        generator=row.generator,
        status=status,
        seconds=row.seconds,
        samples=samples,
        error=row.error,
        message=row.message,
        build_seconds=row.build_seconds,
        host=row.host,
        created=row.created,
        run=row.run,
        round=row.round,
        space=row.space or "",
    )


@lru_cache(maxsize=4096)
def as_sizes(text: str) -> tuple[int, ...]:
    """The sizes of a stored program; DatabaseError if they are spoilt."""
    try:
        sizes = tuple(json.loads(text))
        if any(type(n) is not int for n in sizes):
            raise ValueError(f"{text} has other values than whole numbers")
        return sizes
    except (TypeError, ValueError, RecursionError) as e:
        raise DatabaseError(f"a stored program has sizes of the wrong type: {e}") from e


def as_space(row: Any) -> Space:
    """A row of `spaces` as a record; DatabaseError or ValueError if it is spoilt."""
    parameters, constraints = json.loads(row.parameters), json.loads(row.constraints)
    return Space.from_record({"family": row.family, "parameters": parameters, "constraints": constraints})


# --- what is wrong ------------------------------------------------------------------------------------------------


def problems(c: Connection) -> Iterator[str]:
    """What is wrong with the database, one sentence each.

    The file's own structure (SQLite), references between tables, rows that nothing refers to, every row against its
    digest, every space against its own, and every configuration against the values of the space it was taken from.
    """
    if c.dialect.name == "sqlite":
        answers = c.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        yield from (f"file: {answer}" for answer in answers if answer != "ok")
        for row in c.exec_driver_sql("PRAGMA foreign_key_check").all():
            yield f"table {row[0]}, row {row[1]}: refers to a missing row of {row[2]}"
    yield from _orphans(c)
    spaces: dict[str, Space] = {}
    for row in c.execute(select(SPACES).order_by(SPACES.c.id)).all():
        try:
            space = as_space(row)
        except (DatabaseError, ValueError, TypeError) as e:
            yield f"space {row.id}: {e}"
            continue
        if space.digest != row.digest:
            yield f"space {row.id}: was changed after it was stored (its digest differs)"
        spaces[row.digest] = space
    for page in pages(c):
        for row in page:
            problem = _row_problem(row, spaces)
            if problem:
                yield f"measurement {row.id}: {problem}"


def _orphans(c: Connection) -> Iterator[str]:
    for table, column in (
        (PROGRAMS, MEASUREMENTS.c.program_id),
        (CONFIGURATIONS, MEASUREMENTS.c.configuration_id),
        (DRIVERS, MEASUREMENTS.c.driver_id),
        (DEVICES, DRIVERS.c.device_id),
    ):
        found = c.execute(select(table.c.id).where(table.c.id.not_in(select(column))).order_by(table.c.id)).scalars()
        for number in found.all():
            yield f"table {table.name}, row {number}: no measurement refers to it; `prune` removes it"


def _row_problem(row: Any, spaces: dict[str, Space]) -> str | None:
    try:
        m = _checked(row)
        whole = m.digest == row.digest
    except (DatabaseError, ValueError, TypeError) as e:
        return str(e)
    if not whole:
        return "was changed after it was stored (its digest differs)"
    space = spaces.get(m.space)
    outside = space.violated(json.loads(m.configuration)) if space is not None else None
    return f"its configuration {m.configuration} is not of its space: {outside}" if outside else None


__all__ = ["as_measurement", "as_space", "measurements", "pages", "problems", "programs", "records"]
