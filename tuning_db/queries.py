"""The queries that decide, built once and run with parameters.

The winner of (program, driver, generator) is the fastest configuration whose newest row is ok. Configurations that
were timed in turns share a `round`; the newest round decides over everything measured before it, because its times
were taken side by side. Rows measured after that round compete with it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, or_, select
from sqlalchemy.sql.selectable import FromClause

from tilewright.tuning_db.records import Status
from tilewright.tuning_db.schema import CONFIGURATIONS, DEVICES, DRIVERS, MEASUREMENTS, PROGRAMS, SPACES


def _same_key(a: FromClause, b: FromClause) -> ColumnElement[bool]:
    columns = ("program_id", "driver_id", "generator")
    return and_(*(a.c[name] == b.c[name] for name in columns))


def _asked_key(m: FromClause) -> ColumnElement[bool]:
    asked = {"program_id": "program", "driver_id": "driver", "generator": "generator"}
    return and_(*(m.c[column] == bindparam(name) for column, name in asked.items()))


def _competing(asked: bool) -> Select[Any]:
    """The rows that may win: of one program, driver and generator (``asked``), or of all of them."""
    m = MEASUREMENTS
    in_rounds, deciding, later = m.alias("in_rounds"), m.alias("deciding"), m.alias("later")

    def key(other: FromClause) -> ColumnElement[bool]:  # what depends on no row of the outer query is asked once
        return _asked_key(other) if asked else _same_key(other, m)

    newest_round = (
        select(in_rounds.c.round)
        .where(key(in_rounds), in_rounds.c.round > "", in_rounds.c.status == Status.OK.value)
        .order_by(in_rounds.c.created.desc(), in_rounds.c.id.desc())
        .limit(1)
        .correlate(m)
        .scalar_subquery()
    )
    decided = (
        select(func.max(deciding.c.created))
        .where(key(deciding), deciding.c.round == newest_round)
        .correlate(m)
        .scalar_subquery()
    )
    replaced = exists().where(
        _same_key(later, m),
        later.c.configuration_id == m.c.configuration_id,
        or_(later.c.created > m.c.created, and_(later.c.created == m.c.created, later.c.id > m.c.id)),
    )
    competes = or_(newest_round.is_(None), m.c.round == newest_round, m.c.created > decided)
    return (
        select(m.c.id, CONFIGURATIONS.c.family, CONFIGURATIONS.c.parameters, m.c.seconds, m.c.created)
        .join_from(m, CONFIGURATIONS)
        .where(m.c.status == Status.OK.value, m.c.seconds > 0, competes, ~replaced)
    )


WINNER = _competing(True).where(_asked_key(MEASUREMENTS)).order_by(MEASUREMENTS.c.seconds, MEASUREMENTS.c.id).limit(1)
"""One row (id, family, parameters, seconds, created); parameters program, driver (ids) and generator.

The index on (key, status, seconds) gives the rows from the fastest on, so that few are looked at.
"""

COMPETING = (
    _competing(False)
    .add_columns(MEASUREMENTS.c.program_id)
    .where(
        MEASUREMENTS.c.program_id.in_(bindparam("programs", expanding=True)),
        MEASUREMENTS.c.driver_id == bindparam("driver"),
        MEASUREMENTS.c.generator == bindparam("generator"),
    )
    .order_by(MEASUREMENTS.c.program_id, MEASUREMENTS.c.seconds, MEASUREMENTS.c.id)
)
"""Like `WINNER` for many programs: the first row of each is its winner."""

DRIVERS_OF = (
    select(DRIVERS.c.id, DRIVERS.c.version)
    .join_from(DRIVERS, DEVICES)
    .where(DEVICES.c.identity == bindparam("device"))
    .order_by(DRIVERS.c.id.desc())
)
"""The driver versions of a device, the one first seen last coming first."""

PROGRAM = select(PROGRAMS.c.id, PROGRAMS.c.structure, PROGRAMS.c.sizes, PROGRAMS.c.text).where(
    PROGRAMS.c.signature == bindparam("signature")
)

SIGNED = select(PROGRAMS.c.id, PROGRAMS.c.signature, PROGRAMS.c.structure, PROGRAMS.c.sizes, PROGRAMS.c.text).where(
    PROGRAMS.c.signature.in_(bindparam("signatures", expanding=True))
)
"""The programs with these signatures."""

STRUCTURES = (
    select(PROGRAMS.c.structure).where(PROGRAMS.c.structure.in_(bindparam("structures", expanding=True))).distinct()
)
"""Which of these structures there are programs of."""

SHAPES = (
    select(
        PROGRAMS.c.id,
        PROGRAMS.c.signature,
        PROGRAMS.c.structure,
        PROGRAMS.c.sizes,
        PROGRAMS.c.text,
        DRIVERS.c.id.label("driver_id"),
        DRIVERS.c.version,
    )
    .join_from(PROGRAMS, DRIVERS, PROGRAMS.c.id > 0)
    .join(DEVICES, DRIVERS.c.device_id == DEVICES.c.id)
    .where(
        PROGRAMS.c.structure == bindparam("structure"),
        DEVICES.c.identity == bindparam("device"),
        exists().where(
            MEASUREMENTS.c.program_id == PROGRAMS.c.id,
            MEASUREMENTS.c.driver_id == DRIVERS.c.id,
            MEASUREMENTS.c.generator == bindparam("generator"),
            MEASUREMENTS.c.status == Status.OK.value,
        ),
    )
)
"""Every (program, driver) of a structure that has a working configuration on a device."""

ROWS = (
    select(
        MEASUREMENTS,
        DEVICES.c.identity,
        DRIVERS.c.version,
        PROGRAMS.c.signature,
        PROGRAMS.c.structure,
        PROGRAMS.c.sizes,
        PROGRAMS.c.text,
        CONFIGURATIONS.c.family,
        CONFIGURATIONS.c.parameters,
        SPACES.c.digest.label("space"),
    )
    .join_from(MEASUREMENTS, DRIVERS)
    .join(DEVICES, DRIVERS.c.device_id == DEVICES.c.id)
    .join(PROGRAMS, MEASUREMENTS.c.program_id == PROGRAMS.c.id)
    .join(CONFIGURATIONS, MEASUREMENTS.c.configuration_id == CONFIGURATIONS.c.id)
    .outerjoin(SPACES, MEASUREMENTS.c.space_id == SPACES.c.id)
    .order_by(MEASUREMENTS.c.id)
)
"""Whole measurements, in the order in which they were stored."""

TRIED = (
    ROWS.where(
        DEVICES.c.identity == bindparam("device"),
        DRIVERS.c.version == bindparam("version"),
        MEASUREMENTS.c.generator == bindparam("generator"),
        PROGRAMS.c.signature == bindparam("signature"),
    )
    .order_by(None)
    .order_by(MEASUREMENTS.c.created, MEASUREMENTS.c.id)
)
"""All measurements of one program on one device and driver, oldest first."""

KINDRED = (
    select(DEVICES.c.identity, DRIVERS.c.version, PROGRAMS.c.signature, PROGRAMS.c.sizes, func.count())
    .join_from(MEASUREMENTS, DRIVERS)
    .join(DEVICES, DRIVERS.c.device_id == DEVICES.c.id)
    .join(PROGRAMS, MEASUREMENTS.c.program_id == PROGRAMS.c.id)
    .where(
        PROGRAMS.c.structure == bindparam("structure"),
        MEASUREMENTS.c.generator == bindparam("generator"),
        MEASUREMENTS.c.status == Status.OK.value,
    )
    .group_by(DEVICES.c.identity, DRIVERS.c.version, PROGRAMS.c.signature, PROGRAMS.c.sizes)
    .order_by(DEVICES.c.identity, DRIVERS.c.version, PROGRAMS.c.signature)
)
"""How many working measurements there are of each program of a structure on each device and driver."""

KEYS = (
    select(
        DEVICES.c.identity,
        DRIVERS.c.id,
        DRIVERS.c.version,
        MEASUREMENTS.c.generator,
        PROGRAMS.c.id,
        PROGRAMS.c.signature,
        PROGRAMS.c.structure,
        PROGRAMS.c.sizes,
        PROGRAMS.c.text,
    )
    .join_from(MEASUREMENTS, DRIVERS)
    .join(DEVICES, DRIVERS.c.device_id == DEVICES.c.id)
    .join(PROGRAMS, MEASUREMENTS.c.program_id == PROGRAMS.c.id)
    .where(MEASUREMENTS.c.status == Status.OK.value)
    .distinct()
    .order_by(DEVICES.c.identity, DRIVERS.c.version, PROGRAMS.c.signature, MEASUREMENTS.c.generator)
)
"""Everything that has a winner."""

_GROUP = (
    MEASUREMENTS.c.driver_id,
    MEASUREMENTS.c.program_id,
    MEASUREMENTS.c.generator,
    MEASUREMENTS.c.space_id,
    CONFIGURATIONS.c.family,
)

RECORDED = select(*_GROUP).join_from(MEASUREMENTS, CONFIGURATIONS).distinct().order_by(*_GROUP)
"""What a file of recorded results holds: one program by one family on one device, from one space."""


def recorded_rows(group: Any) -> Select[Any]:
    """`ROWS` of one row of `RECORDED`."""
    return ROWS.where(*(column.is_not_distinct_from(value) for column, value in zip(_GROUP, group, strict=True)))


__all__ = [
    "COMPETING",
    "DRIVERS_OF",
    "KEYS",
    "KINDRED",
    "PROGRAM",
    "RECORDED",
    "ROWS",
    "SHAPES",
    "SIGNED",
    "STRUCTURES",
    "TRIED",
    "WINNER",
    "recorded_rows",
]
