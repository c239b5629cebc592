"""The tuning database on a real PostgreSQL server: what SQLite does it does, for many writers and through its death."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import postgres_server
import pytest
from database_cases import at, measured, winning, writer
from sqlalchemy import create_engine
from test_tuning_db_recorded import SPACE

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Run, Status, Store, migrations, schema

pytestmark = pytest.mark.skipif(postgres_server.missing() != "", reason=postgres_server.missing() or "none")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres_server.Server]:
    with postgres_server.running() as running:
        yield running


@pytest.fixture
def url(server: postgres_server.Server, request: pytest.FixtureRequest) -> str:
    """An empty database for each test."""
    return server.create(f"t{abs(hash(request.node.name)) % 10**8}")


def test_winners_are_found_as_in_a_file(url: str) -> None:
    with Store.open(url) as store:
        assert winning(store) is None
        store.record(measured(1e-3, tile=4, created=at(1)))  # a lucky moment
        store.record(measured(2.5e-3, tile=4, created=at(3), round="r"))
        store.record(measured(2.4e-3, tile=8, created=at(3), round="r"))
        store.record(measured(None, tile=16, status=Status.WRONG))
        assert winning(store) == '{"tile": 8}'
        store.record(measured(2.0e-3, tile=32, created=at(4)))
        assert winning(store) == '{"tile": 32}'
        store.look_up(measured().device, "1.0", "1", {"aaaa": lambda: "s", "none": lambda: "s"})
        assert [w.signature for w in store.nearest(measured().device, "1.0", "1", "s", (64, 64, 64))] == ["aaaa"]
        assert len(store.tried(measured().device, "1.0", "1", "aaaa")) == 4
        stats = store.stats()
        assert (stats.measurements, stats.schema_version, stats.bytes) == (5, schema.SCHEMA_VERSION, None)
        assert store.prune(losers_before=at(4)) == 3
        assert store.verify() == ()


def test_databases_of_both_kinds_merge_into_each_other(url: str, tmp_path: Path) -> None:
    with Store.open(url) as fleet, Store.open(tmp_path / "mine.sqlite") as mine:
        mine.record_run(Run("run", at(0), "host", "30 s"))
        mine.record_spaces([SPACE])
        mine.record(measured(0.1 + 0.2, tile=4, run="run", space=SPACE.digest, samples=(0.1 + 0.2, 1e-9)))
        fleet.record(measured(None, tile=8, device="other", message='a "quoted"\nline'))
        assert (fleet.merge(mine), fleet.merge(mine), mine.merge(fleet)) == (3, 0, 1)
        assert set(fleet.records()) == set(mine.records())
        fleet.export(tmp_path / "out.jsonl")
        assert mine.import_(tmp_path / "out.jsonl") == 0
        assert fleet.verify() == mine.verify() == ()


def test_a_database_of_the_first_version_is_brought_up_to_date(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as c, c.begin():
        migrations.upgrade(c, "0001")
        c.exec_driver_sql("drop table alembic_version")  # as it was before Alembic
    engine.dispose()
    with pytest.raises(DatabaseError, match="open it for writing once"):
        Store.open(url, read_only=True)
    with Store.open(url) as store:
        store.record(measured())
        assert store.stats().schema_version == schema.SCHEMA_VERSION
    with Store.open(url, read_only=True) as store:
        assert winning(store) == '{"tile": 8}'
        with pytest.raises(DatabaseError, match="open for reading only"):
            store.record(measured())


def test_an_empty_database_is_not_filled_by_reading(url: str) -> None:
    with pytest.raises(DatabaseError, match="it is empty"):
        Store.open(url, read_only=True)


def test_processes_that_open_and_write_at_once_all_finish(url: str) -> None:
    writers = [writer(url, f"writer{n}", 40) for n in range(4)]
    for w in writers:
        w.communicate(timeout=120)
        assert w.returncode == 0
    with Store.open(url) as store:
        assert store.stats().measurements == 160
        assert store.verify() == ()


def test_a_killed_writer_loses_nothing_it_was_told_is_stored(url: str) -> None:
    told = 0
    for attempt in range(3):
        process = writer(url, f"attempt{attempt}", 100_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(0.05 * attempt)
        process.kill()
        told += 1 + len(process.stdout.read().split())
        process.stdout.close()
        process.wait()
    with Store.open(url) as store:
        assert told <= store.stats().measurements <= told + 3
        assert store.verify() == ()


def test_a_killed_server_loses_nothing_and_is_waited_for(server: postgres_server.Server, url: str) -> None:
    count, recorded = 60, list[int]()
    with Store.open(url) as store:

        def write() -> None:
            for n in range(count):
                store.record(measured(tile=n + 1, created=at(0)))
                recorded.append(n)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        for _ in range(2):
            reached = len(recorded)
            while len(recorded) < min(reached + 10, count) and thread.is_alive():
                time.sleep(0.01)
            server.kill()
            time.sleep(0.5)
            server.start()
        thread.join(120)
        assert recorded == list(range(count))
        assert {m.configuration for m in store.measurements()} == {f'{{"tile": {n + 1}}}' for n in range(count)}
        assert store.stats().measurements == count
        assert store.verify() == ()


def test_a_database_that_is_missing_is_named(server: postgres_server.Server, url: str) -> None:
    with pytest.raises(DatabaseError, match='none" does not exist'):
        Store.open(server.url_of("none"))
    with Store.open(url) as store:
        store.record(replace(measured(), host="with 'quotes'"))
        assert store.url.startswith("postgresql+psycopg://")
