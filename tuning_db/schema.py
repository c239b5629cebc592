"""Tables of the tuning database, and how a database is brought up to date.

    devices 1─n drivers 1─n measurements n─1 programs
                            measurements n─1 configurations
                            measurements n─1 spaces (optional)
                            measurements n─1 runs (optional)

Every key is a column. Alembic keeps the version of the schema (table `alembic_version`) and changes older databases
(`migrations/`); a database of a newer version is refused. `meta` repeats the version for releases that do not know
Alembic.
"""

from __future__ import annotations

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
    text,
)

from tilewright.errors import DatabaseError

SCHEMA_VERSION = 2
"""Of the newest migration: revisions are this number with four digits."""

_LOCK = 0x74696C65
"""PostgreSQL's advisory lock while tables are made or changed."""

METADATA = MetaData()

VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own table."""

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
    Column("precision", String(16), nullable=False, server_default=""),  # see `records.precision_of`
)

SPACES = Table(
    "spaces",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("family", String(128), nullable=False),
    Column("parameters", Text, nullable=False),  # JSON object: name to list of values
    Column("constraints", Text, nullable=False),  # JSON list of texts
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
    Column("space_id", ForeignKey("spaces.id")),
    Index("measurements_by_key", "program_id", "driver_id", "generator", "configuration_id", "created"),
    Index("measurements_by_round", "program_id", "driver_id", "generator", "round", "created"),
    Index("measurements_by_speed", "program_id", "driver_id", "generator", "status", "seconds"),
)


def stored_version(connection: Connection) -> int | None:
    """The schema version of the database, or None if it is empty; DatabaseError if it holds something else."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if META.name not in tables:
        raise DatabaseError(
            f"it holds tables of something else ({', '.join(sorted(tables)[:3])}); name another file or database"
        )
    if VERSIONS.name in tables:
        number = connection.execute(select(VERSIONS.c.version_num)).scalar()
    else:  # made before the versions were Alembic's
        number = connection.execute(select(META.c.value).where(META.c.key == "schema_version")).scalar()
    if number is None or not number.isdigit() or int(number) < 1:
        raise DatabaseError("it gives no schema version of ours; name another file or database")
    return int(number)


def check_version(version: int) -> None:
    """DatabaseError if a database of this version was written by a newer tilewright."""
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"it has schema version {version} but this tilewright knows up to {SCHEMA_VERSION}; "
            "update tilewright, or name another database with TILEWRIGHT_DB"
        )


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables in an empty database, or migrate an older one; runs inside the caller's transaction."""
    if connection.dialect.name == "postgresql":  # two processes that make the same table fail, whatever they check
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    version = stored_version(connection)
    if version is None:
        METADATA.create_all(connection)
        VERSIONS.create(connection)
        connection.execute(META.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
        connection.execute(VERSIONS.insert().values(version_num=revision(SCHEMA_VERSION)))
        return
    check_version(version)
    if version < SCHEMA_VERSION:
        from tilewright.tuning_db.migrations import upgrade  # Alembic takes a while to import

        if not inspect(connection).has_table(VERSIONS.name):
            VERSIONS.create(connection)
            connection.execute(VERSIONS.insert().values(version_num=revision(version)))
        upgrade(connection)


def revision(version: int) -> str:
    """What Alembic calls a version of the schema."""
    return f"{version:04d}"


__all__ = [
    "CONFIGURATIONS",
    "DEVICES",
    "DRIVERS",
    "MEASUREMENTS",
    "META",
    "METADATA",
    "PROGRAMS",
    "RUNS",
    "SCHEMA_VERSION",
    "SPACES",
    "VERSIONS",
    "bring_up_to_date",
    "check_version",
    "revision",
    "stored_version",
]
