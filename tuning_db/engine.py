"""Opening the database: where it lies, how SQLite is set up, and SQLAlchemy's errors in our words.

SQLite runs in write-ahead mode: readers never wait, a killed process loses nothing that was committed. Writers take
their lock when the transaction begins (BEGIN IMMEDIATE), wait for each other, and try again a few times.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tilewright.errors import DatabaseError
from tilewright.tuning_db.places import default_path
from tilewright.tuning_db.schema import SCHEMA_VERSION, bring_up_to_date, check_version, stored_version

log = logging.getLogger("tilewright.tuning_db")

BUSY_SECONDS = 10.0
"""How long SQLite waits for another process's transaction before it reports a lock."""
ATTEMPTS = 6
"""How often a transaction that met a lock, or lost a race for a unique row, is tried."""
SERVER_SECONDS = 120.0
"""How long a transaction waits for a database server that went away while it was in use: a restart takes less."""

CACHE_KIB = 64 << 10
"""The most memory that SQLite keeps pages in: enough for the indexes of a million measurements, whose digests lie
anywhere in them."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Place:
    """An open database."""

    engine: Engine
    url: str
    """For people: without a password."""
    path: Path | None
    """The file, where there is one."""
    read_only: bool


def open_place(where: str | Path | None, read_only: bool = False) -> Place:
    """Open or create the database at a path or SQLAlchemy URL (None: $TILEWRIGHT_DB, else the user's own).

    A file that exists but cannot be written is opened for reading, with a warning in the log. If the user's own
    default file cannot be created, the database lives in memory, with a warning. DatabaseError for everything else
    that prevents its use.
    """
    named = where if where is not None else os.environ.get("TILEWRIGHT_DB") or None
    url = _parse(named if named is not None else default_path())
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() != "sqlite":
        return _open_server(url, shown, read_only)
    if not url.database or url.database == ":memory:":
        return _open_memory()
    path = Path(url.database)
    try:
        return _open_file(path, shown, read_only)
    except _CannotCreateError as e:
        if named is not None:
            raise DatabaseError(f"the tuning database {path} cannot be created: {e}; name a writable place") from e
        log.warning("the tuning database %s cannot be created (%s): results are kept in memory only", path, e)
        return _open_memory()


def file_of(where: str | Path | None) -> Path:
    """The SQLite file that `open_place` would open; DatabaseError if that is no file."""
    named = where if where is not None else os.environ.get("TILEWRIGHT_DB") or None
    url = _parse(named if named is not None else default_path())
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise DatabaseError(f"{url.render_as_string(hide_password=True)} is no file")
    return Path(url.database)


class _CannotCreateError(Exception):
    """The file does not exist and its place does not let us make it."""


def _parse(where: str | Path) -> URL:
    text = str(where)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        return make_url(text)
    except (ArgumentError, ValueError) as e:
        raise DatabaseError(f"{text!r} is neither a path nor a database URL: {e}") from e


def _open_memory() -> Place:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    _set_up_sqlite(engine)
    with engine.connect() as c, c.begin():
        bring_up_to_date(c)
    return Place(engine, "sqlite://", None, False)


def _open_server(url: URL, shown: str, read_only: bool) -> Place:
    with translated(shown):
        try:
            engine = create_engine(url, pool_pre_ping=True)
        except ModuleNotFoundError as e:
            raise DatabaseError(f"{shown} needs the Python package {e.name}: pip install {e.name}") from e
        try:
            with engine.connect() as c, c.begin():
                if read_only:
                    _check_readable(c)
                else:
                    bring_up_to_date(c)
        except BaseException:
            engine.dispose()
            raise
        return Place(engine, shown, None, read_only)


def _check_readable(c: Connection) -> None:
    version = stored_version(c)
    if version is None:
        raise DatabaseError("it is empty")
    check_version(version)
    if version < SCHEMA_VERSION:
        raise DatabaseError(f"it has schema version {version}: open it for writing once, which brings it up to date")


def _open_file(path: Path, shown: str, read_only: bool) -> Place:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as e:
        raise DatabaseError(f"the tuning database {path} cannot be reached: {e.strerror or e}") from e
    if is_folder:
        raise DatabaseError(f"the tuning database {path} is a folder; name a file in it")
    if exists and not path.is_file():
        raise DatabaseError(f"the tuning database {path} is no file; name one")
    if not exists:
        if read_only:
            raise DatabaseError(f"the tuning database {path} does not exist")
        _create(path)
    if read_only or not (_may_write(path) and _may_write(path.parent)):
        if not read_only:
            log.warning("the tuning database %s cannot be written: it is read, and new results are refused", path)
        return _open_read_only(path, shown)
    with translated(shown):
        engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS})
        _set_up_sqlite(engine)
        try:
            _prepare(engine)
        except BaseException:
            engine.dispose()
            raise
        return Place(engine, shown, path, False)


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except FileExistsError as e:
        raise _CannotCreateError(f"{e.filename} is a file") from e
    except (OSError, ValueError) as e:
        raise _CannotCreateError(getattr(e, "strerror", None) or str(e)) from e


def _prepare(engine: Engine) -> None:
    """Write-ahead mode and the tables; another process may be doing the same.

    A database that has both is only read: it can be opened while another process writes.
    """

    def write_ahead() -> None:
        # Switching modes does not wait for other processes by itself, so it goes through our retries.
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode=WAL")
        finally:
            raw.close()

    def looked_at() -> tuple[int | None, bool]:
        with engine.connect() as c, c.begin():
            return stored_version(c), c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    version, is_ahead = with_retries(looked_at)
    if version is not None:
        check_version(version)
    if not is_ahead:
        with_retries(write_ahead)
    if version != SCHEMA_VERSION:
        with_retries(lambda: _in_transaction(engine, bring_up_to_date))
        _empty_log(engine)


def _empty_log(engine: Engine) -> None:
    """Move what was written ahead into the file now, not when the last connection closes.

    Whoever keeps something under the state of a new database (`places.stamp`) finds it again then. Where others use
    the file, or it cannot be written now, the log stays as it is, and nothing is lost.
    """
    raw = engine.raw_connection()
    try:
        with contextlib.suppress(sqlite3.Error):
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        raw.close()


def _in_transaction(engine: Engine, work: Callable[[Connection], None]) -> None:
    with engine.connect().execution_options(tilewright_write=True) as c, c.begin():
        work(c)


def _open_read_only(path: Path, shown: str) -> Place:
    """Without any write to the folder: as a live file if SQLite can share it, else as one that nobody changes."""
    failure: SQLAlchemyError | None = None
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        uri = f"file:{quote(str(path.absolute()))}?{mode}&uri=true"
        engine = create_engine(f"sqlite:///{uri}", connect_args={"timeout": BUSY_SECONDS})
        _set_up_sqlite(engine)
        try:
            with engine.connect() as c, c.begin():
                version = stored_version(c)
                if version is None:
                    raise DatabaseError("it is empty")
                check_version(version)
                if version < SCHEMA_VERSION:
                    return Place(_updated_copy(c), shown, path, True)
            return Place(engine, shown, path, True)
        except OperationalError as e:
            engine.dispose()
            failure = e
        except DatabaseError as e:
            engine.dispose()
            raise DatabaseError(f"the tuning database {shown} cannot be used: {e}") from e
        except SQLAlchemyError as e:
            engine.dispose()
            raise _in_our_words(e, shown) from e
    assert failure is not None
    raise _in_our_words(failure, shown) from failure


def _updated_copy(old: Connection) -> Engine:
    """A copy in memory, brought up to date: the file has an older schema and may not be written."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    _set_up_sqlite(engine)
    copy = engine.raw_connection()
    try:
        old.connection.driver_connection.backup(copy.driver_connection)  # type: ignore[union-attr]
    finally:
        copy.close()
    _in_transaction(engine, bring_up_to_date)
    return engine


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=NORMAL")  # with write-ahead: a killed process loses nothing
        cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("tilewright_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def with_retries(work: Callable[[], _Result]) -> _Result:
    """Run a whole transaction; again if it met a lock, lost a race for a unique row, or lost its server.

    A transaction whose server died while it was committed may have been stored: it must be one that may be repeated.
    """
    attempt, lost_at = 0, 0.0
    while True:
        try:
            return work()
        except (DBAPIError, sqlite3.OperationalError) as e:
            if _is_lost(e):
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > SERVER_SECONDS:
                    raise
                time.sleep(random.uniform(0.2, 0.6))
                continue
            attempt += 1
            if attempt == ATTEMPTS or not _is_passing(e):
                raise
            time.sleep(random.uniform(0.01, 0.05) * 2**attempt)


_LOST = (
    "closed the connection",
    "connection refused",
    "is the server running",
    "accepting connections",
    "is starting up",
    "is shutting down",
    "in recovery mode",
    "terminating connection",
)


def _is_lost(error: Exception) -> bool:
    """True if the server ended the connection, or does not take one yet."""
    if not isinstance(error, OperationalError) or isinstance(error.orig, sqlite3.Error):
        return False
    text = str(error.orig).lower()
    return error.connection_invalidated or any(words in text for words in _LOST)


def _is_passing(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, IntegrityError) or any(
        word in text for word in ("database is locked", "table is locked", "deadlock", "serialize access")
    )


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn the database layer's errors into DatabaseError with the place and a way out."""
    try:
        yield
    except DatabaseError as e:
        if where in str(e):
            raise
        raise DatabaseError(f"the tuning database {where} cannot be used: {e}") from e
    except (SQLAlchemyError, sqlite3.Error) as e:
        raise _in_our_words(e, where) from e


_ADVICE = (
    (
        ("not a database", "malformed", "corrupt", "no such table", "no such column"),
        "is damaged or no database; nothing was changed in it: 'tilewright db recover' puts the file aside and keeps "
        "what can be read, or move the file aside, or name another with TILEWRIGHT_DB",
    ),
    (("disk is full", "no space"), "is on a full disk; make room: everything recorded before is kept"),
    (("readonly", "read-only"), "cannot be written; name a writable one with TILEWRIGHT_DB"),
    (("locked", "busy"), "stays locked by another process; wait for it or end it"),
    (
        ("disk i/o error",),
        "could not be read or written (a quota, a limit on the size of files, a failing disk?); everything recorded "
        "before is kept",
    ),
    (("load plugin",), "is of a kind that SQLAlchemy does not know; name a file, or a server as postgresql+psycopg://"),
    (("unable to open",), "cannot be opened; check that the folder exists and may be entered"),
)


def _in_our_words(error: Exception, where: str) -> DatabaseError:
    detail = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    for words, advice in _ADVICE:
        if any(w in detail.lower() for w in words):
            return DatabaseError(f"the tuning database {where} {advice} ({detail})")
    return DatabaseError(f"the tuning database {where} failed: {detail.splitlines()[0] if detail else repr(error)}")


__all__ = ["Place", "default_path", "file_of", "open_place", "translated", "with_retries"]
