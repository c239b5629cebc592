"""Opening the tuning database: places, damaged, foreign and read-only files, full disks, and several processes."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from database_cases import measured, winning, writer
from sqlalchemy import Connection, event

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Store, engine, schema
from tilewright.tuning_db.places import stamp

# --- opening ------------------------------------------------------------------------------------------------------


def test_the_environment_names_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "deep" / "here.sqlite"))
    with Store.open() as s:
        s.record(measured())
        assert s.url.endswith("here.sqlite")
    assert (tmp_path / "deep" / "here.sqlite").exists()


def test_memory_urls_work_across_threads() -> None:
    with Store.open("sqlite://") as s:
        thread = threading.Thread(target=lambda: s.record(measured()))
        thread.start()
        thread.join()
        assert winning(s) == '{"tile": 8}'


def test_closing_a_new_database_does_not_change_its_state(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    with Store.open(path) as store:
        created = stamp(path)
        assert (tmp_path / "tuning.sqlite-wal").stat().st_size == 0
    assert stamp(path) == created
    with Store.open(path) as store:
        assert stamp(path) == created
        store.record(measured())
        assert stamp(path) != created


def test_a_new_database_opens_while_another_process_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    path = tmp_path / "tuning.sqlite"
    made, reader = schema.bring_up_to_date, sqlite3.connect(path, isolation_level=None)

    def read_before(connection: Connection) -> None:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_master").fetchall()
        made(connection)

    monkeypatch.setattr(engine, "bring_up_to_date", read_before)
    with contextlib.closing(reader), Store.open(path) as store:
        assert (tmp_path / "tuning.sqlite-wal").stat().st_size > 0, "the reader needs the file as it was"
        reader.execute("ROLLBACK")
        store.record(measured())
        assert winning(store) is not None


def test_a_default_place_that_cannot_be_made_means_memory_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("TILEWRIGHT_DB", raising=False)
    monkeypatch.setattr(engine, "default_path", lambda: tmp_path / "file" / "tuning.sqlite")
    with caplog.at_level(logging.WARNING, "tilewright"), Store.open() as s:
        s.record(measured())
    assert "kept in memory only" in caplog.text
    with pytest.raises(DatabaseError, match="cannot be created"):
        Store.open(tmp_path / "file" / "tuning.sqlite")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("no-such-kind://x/y", "no-such-kind"), ("postgresql+psycopg://u:secret@127.0.0.1:1/d", "psycopg|failed|opened")],
)
def test_urls_that_do_not_work(url: str, complaint: str) -> None:
    with pytest.raises(DatabaseError, match=complaint) as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)


def test_a_folder_or_a_missing_file_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Store.open(tmp_path)
    with pytest.raises(DatabaseError, match="does not exist"):
        Store.open(tmp_path / "none.sqlite", read_only=True)


def _spoilt(path: Path, how: str) -> None:
    with Store.open(path) as s:
        for tile in range(200):
            s.record(measured(tile=tile + 1, message="x" * 500))
    data = path.read_bytes()
    path.write_bytes(
        {"text": b"this is no database" * 99, "header": b"\xff" * 100 + data[100:], "half": data[: len(data) // 2]}[how]
    )


@pytest.mark.parametrize("how", ["text", "header", "half"])
def test_a_damaged_file_is_reported_and_left_alone(tmp_path: Path, how: str) -> None:
    path = tmp_path / "tuning.sqlite"
    _spoilt(path, how)
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"tuning\.sqlite is damaged or no database; nothing was changed in it"):
        Store.open(path).measurements()
    assert path.read_bytes() == before


def test_noise_in_the_middle_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    with Store.open(path) as s:
        for tile in range(200):
            s.record(measured(tile=tile + 1, message="x" * 500))
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2 // 4096 * 4096)
        f.write(os.urandom(4096))
    with Store.open(path) as s:
        assert s.verify()


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "music.sqlite")
    raw.execute("create table songs (name text)")
    raw.close()
    with pytest.raises(DatabaseError, match=r"tables of something else \(songs"):
        Store.open(tmp_path / "music.sqlite")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's own may not be)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("folder_mode", [0o755, 0o555])
def test_a_file_that_cannot_be_written_is_read(
    open_folder: Path, folder_mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = open_folder / "tuning.sqlite"
    with Store.open(path) as s:
        s.record(measured())
    path.chmod(0o444)
    open_folder.chmod(folder_mode)
    with caplog.at_level(logging.WARNING, "tilewright"), as_nobody(), Store.open(path) as s:
        assert s.read_only
        assert winning(s) == '{"tile": 8}'
        with pytest.raises(DatabaseError, match="open for reading only"):
            s.record(measured(tile=9))
    assert "cannot be written: it is read" in caplog.text


def test_a_full_disk_is_a_clear_error_and_loses_nothing(store: Store) -> None:
    store.record(measured())
    with store._place.engine.connect() as c:
        pages = c.exec_driver_sql("pragma page_count").scalar_one()
    limit = f"pragma max_page_count = {pages}"
    store.close()
    event.listen(store._place.engine, "connect", lambda connection, record: connection.execute(limit).close())

    def fill() -> None:
        for tile in range(100, 400):
            store.record(measured(tile=tile, message="x" * 2000))

    with pytest.raises(DatabaseError, match="full disk; make room: everything recorded before is kept"):
        fill()
    assert winning(store) == '{"tile": 8}'
    assert store.verify() == ()


def test_a_lock_that_stays_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.01)
    path = tmp_path / "tuning.sqlite"
    with Store.open(path) as s:
        raw = sqlite3.connect(path, isolation_level=None)
        raw.execute("begin immediate")
        monkeypatch.setattr(engine, "ATTEMPTS", 2)
        with pytest.raises(DatabaseError, match="stays locked by another process"):
            s.record(measured())
        raw.execute("rollback")
        raw.close()
        s.record(measured())


# --- several processes, and killed ones ---------------------------------------------------------------------------


def test_processes_that_write_at_once_all_finish(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    writers = [writer(path, f"writer{n}", 40) for n in range(3)]
    for w in writers:
        w.communicate(timeout=120)
        assert w.returncode == 0
    with Store.open(path) as s:
        assert s.stats().measurements == 120
        assert {m.family for m in s.measurements()} == {"writer0", "writer1", "writer2"}
        assert s.verify() == ()


def test_a_killed_process_loses_nothing_it_was_told_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    told = 0
    for attempt in range(5):
        process = writer(path, f"attempt{attempt}", 100_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(0.03 * attempt)
        process.send_signal(signal.SIGKILL)
        told += 1 + len(process.stdout.read().split())
        process.stdout.close()
        process.wait()
    with Store.open(path) as s:
        stored = s.stats().measurements
        assert s.verify() == ()
    assert told <= stored <= told + 5  # at most the row in flight more, per kill


def test_a_forked_child_uses_connections_of_its_own(store: Store) -> None:
    store.record(measured(tile=1))
    child = os.fork()
    if child == 0:
        try:
            store.record(measured(tile=2))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.record(measured(tile=3))
    assert store.stats().measurements == 3
