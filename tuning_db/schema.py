"""Tables of the tuning database, and the steps that bring an older database up to date.

    devices 1─n drivers 1─n measurements n─1 programs
                            measurements n─1 configurations
                            measurements n─1 runs (optional)

Every key is a column. The version of the schema is a row of `meta`; a database of a newer version is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    update,
)

from tilewright.errors import DatabaseError

SCHEMA_VERSION = 1

METADATA = MetaData()

META = Table("meta", METADATA, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

DEVICES = Table(
    "devices",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("identity", Text, nullable=False, unique=True),
)

DRIVERS = Table(
    "drivers",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("version", Text, nullable=False),
    UniqueConstraint("device_id", "version"),
)

PROGRAMS = Table(
    "programs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("signature", String(128), nullable=False, unique=True),
    Column("structure", String(128), nullable=False, index=True),
    Column("sizes", Text, nullable=False),  # JSON list
    Column("text", Text, nullable=False),
)

CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("family", String(128), nullable=False),
    Column("parameters", Text, nullable=False),  # JSON object with sorted keys
    UniqueConstraint("family", "parameters"),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("started", String(40), nullable=False),
    Column("host", Text, nullable=False),
    Column("budget", Text, nullable=False),
)

MEASUREMENTS = Table(
    "measurements",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("program_id", ForeignKey("programs.id"), nullable=False),
    Column("driver_id", ForeignKey("drivers.id"), nullable=False),
    Column("generator", String(64), nullable=False),
    Column("configuration_id", ForeignKey("configurations.id"), nullable=False),
    Column("status", String(32), nullable=False),
    Column("seconds", Float(53)),
    Column("samples", Text, nullable=False),  # JSON list
    Column("error", Float(53)),
    Column("message", Text, nullable=False),
    Column("build_seconds", Float(53)),
    Column("host", Text, nullable=False),
    Column("created", String(40), nullable=False),
    Column("run", String(64), nullable=False),  # empty or runs.id; a run may be known by its measurements alone
    Column("round", String(64), nullable=False),
    Index("measurements_by_key", "program_id", "driver_id", "generator", "configuration_id", "created"),
    Index("measurements_by_round", "program_id", "driver_id", "generator", "round", "created"),
)

MIGRATIONS: dict[int, Callable[[Connection], None]] = {}
"""Step `n` turns a database of version n into one of version n + 1, inside the caller's transaction."""


def stored_version(connection: Connection) -> int | None:
    """The schema version of the database, or None if it is empty; DatabaseError if it holds something else."""
    tables = inspect(connection).get_table_names()
    if META.name not in tables:
        if tables:
            raise DatabaseError(
                f"it holds tables of something else ({', '.join(sorted(tables)[:3])}); name another file or database"
            )
        return None
    text = connection.execute(select(META.c.value).where(META.c.key == "schema_version")).scalar()
    if text is None or not text.isdigit():
        raise DatabaseError("its table `meta` gives no schema version; name another file or database")
    return int(text)


def check_version(version: int) -> None:
    """DatabaseError if a database of this version was written by a newer tilewright."""
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"it has schema version {version} but this tilewright knows up to {SCHEMA_VERSION}; "
            "update tilewright, or name another database with TILEWRIGHT_DB"
        )


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables in an empty database, or migrate an older one; runs inside the caller's transaction."""
    version = stored_version(connection)
    if version is None:
        METADATA.create_all(connection)
        connection.execute(META.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
        return
    check_version(version)
    for step in range(version, SCHEMA_VERSION):
        MIGRATIONS[step](connection)
    if version != SCHEMA_VERSION:
        connection.execute(update(META).where(META.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))


__all__ = [
    "CONFIGURATIONS",
    "DEVICES",
    "DRIVERS",
    "MEASUREMENTS",
    "META",
    "METADATA",
    "MIGRATIONS",
    "PROGRAMS",
    "RUNS",
    "SCHEMA_VERSION",
    "bring_up_to_date",
    "check_version",
    "stored_version",
]
