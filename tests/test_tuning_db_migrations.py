"""The schema's versions: databases of every earlier one are adopted and brought up to date without loss."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import OperationalError

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Store, engine, exchange, migrations, schema
from tilewright.tuning_db.records import precision_of

FIRST = Path(__file__).parent / "databases" / "version1.sql"
"""What the first version wrote, as SQL, and its export beside it."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "tuning.sqlite"
    with sqlite3.connect(path) as raw:
        raw.executescript(FIRST.read_text())
    raw.close()
    return path


def test_the_newest_migration_is_the_version_we_know() -> None:
    scripts = ScriptDirectory.from_config(migrations.configuration())
    assert scripts.get_heads() == [schema.revision(schema.SCHEMA_VERSION)]
    assert len(list(scripts.walk_revisions())) == schema.SCHEMA_VERSION


def test_a_database_of_the_first_version_is_adopted_without_loss(old: Path, tmp_path: Path) -> None:
    rows = list(exchange.read_file(FIRST.with_suffix(".jsonl")))
    with Store.open(old) as s:
        assert list(s.records()) == rows
        assert s.stats().schema_version == schema.SCHEMA_VERSION
        assert s.verify() == ()
        assert s.import_(FIRST.with_suffix(".jsonl")) == 0
        found = s.winner("test-cpu avx512 2 cores", "1.0", "1", "aaaa")
        assert found is not None
        assert found.configuration == '{"tile": 8}'
    with sqlite3.connect(old) as raw:
        assert raw.execute("select precision from programs order by id").fetchall() == [("tf32",), ("fp16",)]
        assert raw.execute("select value from meta").fetchall() == [("2",)]  # what older releases look at
    raw.close()


@pytest.mark.parametrize("start", ["nothing", "version 1"])
def test_migrations_lead_to_the_tables_that_the_code_expects(old: Path, start: str) -> None:
    made = create_engine("sqlite://" if start == "nothing" else f"sqlite:///{old}")
    with made.connect() as c, c.begin():
        if start == "nothing":
            migrations.upgrade(c)
        else:
            schema.bring_up_to_date(c)
        assert compare_metadata(MigrationContext.configure(c), schema.METADATA) == []
        indexes = {i["name"] for i in inspect(c).get_indexes("measurements")}
        assert {i.name for i in schema.MEASUREMENTS.indexes} <= indexes
    made.dispose()


def test_a_migration_that_fails_changes_nothing(old: Path) -> None:
    with sqlite3.connect(old) as raw:  # in the way of the second half
        raw.execute("create index measurements_by_speed on measurements (seconds)")
        before = list(raw.iterdump())
    raw.close()
    with pytest.raises(DatabaseError, match="measurements_by_speed already exists"):
        Store.open(old)
    with sqlite3.connect(old) as raw:
        assert list(raw.iterdump()) == before
    raw.close()


def test_an_older_file_that_cannot_be_written_is_read(old: Path) -> None:
    before = old.read_bytes()
    with Store.open(old, read_only=True) as s:
        assert s.stats().schema_version == schema.SCHEMA_VERSION
        assert len(s.measurements()) == 4
        with pytest.raises(DatabaseError, match="open for reading only"):
            s.import_(FIRST.with_suffix(".jsonl"))
    assert old.read_bytes() == before


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("update alembic_version set version_num = '0999'")
    raw.close()
    for read_only in (False, True):
        with pytest.raises(DatabaseError, match="schema version 999 but this tilewright knows up to"):
            Store.open(path, read_only=read_only)


@pytest.mark.parametrize("number", ["", "0000", "ae1027a6acf"])
def test_a_version_that_is_none_of_ours_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "tuning.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("update alembic_version set version_num = ?", (number,))
    raw.close()
    with pytest.raises(DatabaseError, match="gives no schema version of ours"):
        Store.open(path)


def test_a_database_of_another_program_that_uses_alembic_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as raw:
        raw.execute("create table alembic_version (version_num text)")
        raw.execute("insert into alembic_version values ('0001')")
    raw.close()
    with pytest.raises(DatabaseError, match=r"tables of something else \(alembic_version"):
        Store.open(tmp_path / "other.sqlite")


def test_opening_an_up_to_date_database_does_not_import_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from tilewright.tuning_db import Store; Store.open(sys.argv[1]).close();"
        "Store.open(sys.argv[1]).close(); sys.exit('alembic' in sys.modules)"
    )
    path = str(tmp_path / "tuning.sqlite")
    assert subprocess.run([sys.executable, "-c", code, path], env=os.environ, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("op p(t0[4]: f32) -> t1[4]: f32:\n    t1[i0:4] = t0[i0]\n", "fp32"),
        ("op p(t0[4]: f32) -> t1[4]: f32:\n    precision tf32\n    t1[i0:4] = t0[i0]\n", "tf32"),
        ("op p(t0[4]: f16, t1[4]: f32) -> t2[4]: f16:\n    t2[i0:4] = t0[i0]\n", "fp16"),
        ("op p(t0[4]: bf16) -> t1[4]: bf16:\n    t1[i0:4] = t0[i0]\n", "bf16"),
        ("convolution_kernel, recorded", ""),
    ],
)
def test_the_precision_follows_from_the_text(text: str, precision: str) -> None:
    assert precision_of(text) == precision


def test_what_is_waited_for_is_a_server_and_not_a_file() -> None:
    assert engine._is_lost(OperationalError("", {}, Exception("connection refused")))
    assert not engine._is_lost(OperationalError("", {}, sqlite3.OperationalError("unable to open: refused")))
    assert not engine._is_lost(OperationalError("", {}, Exception("password authentication failed")))
