"""What is wrong with files, rows and places is said in one sentence that blames the right one, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Measurement, Space, Status, Store, engine

HEADER = '{"format": "tilewright-tuning", "version": 2}'


def measured(tile: int = 8, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "device": "a device",
        "driver": "1.0",
        "signature": "aaaa",
        "structure": "s",
        "sizes": (64,),
        "program": "op program(t0[64]) -> t1[64]: ...",
        "family": "map",
        "configuration": json.dumps({"tile": tile}),
        "generator": "1",
        "status": Status.OK,
        "seconds": 1e-3,
        "samples": (1e-3,),
        "host": "h",
        "created": "2026-01-01T00:00:00.000000+00:00",
    }
    return Measurement(**{**values, **changes})


def line(**changes: Any) -> str:
    """A measurement as an export writes it, with other values."""
    return json.dumps({"kind": "measurement", **measured().to_record(), **changes})


def change(path: Path, statement: str) -> None:
    """Edit a database by hand."""
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute(statement)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuning.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as s:
        yield s


# --- exports --------------------------------------------------------------------------------------------------------


def test_an_export_never_overwrites_a_database(store: Store, path: Path, tmp_path: Path) -> None:
    store.record(measured())
    other = tmp_path / "other.sqlite"
    with Store.open(other) as s:
        s.record(measured(4))
    for target in (path, other):
        with pytest.raises(DatabaseError, match="would overwrite a database; name another file"):
            store.export(target)
    for kept in (path, other):
        with Store.open(kept) as s:
            assert s.verify() == ()
            assert len(s.measurements()) == 1
    assert sorted(p.name for p in tmp_path.glob("*.part")) == []
    target = tmp_path / "out.jsonl"
    target.write_text("an older export")
    assert store.export(target) == 1


def test_t4_files_need_a_folder(store: Store, tmp_path: Path) -> None:
    store.record(measured())
    taken = tmp_path / "taken"
    taken.write_text("kept")
    with pytest.raises(DatabaseError, match="taken for the export cannot be made"):
        store.export_recorded(taken)
    assert taken.read_text() == "kept"
    assert store.export_recorded(tmp_path / "new" / "folder") == 1


# --- imports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("\n\n", "is empty; an export begins with a line that names its format"),
        ('{"format": "tilewright-tuning", "version": true}\n', "format version True, but this tilewright reads 1 to 2"),
        ('{"format": "tilewright-tuning", "version": "2"}\n', "format version '2', but this tilewright reads 1 to 2"),
        ('{"format": "tilewright-tuning", "version": 0}\n', "format version 0, but this tilewright reads 1 to 2"),
        (f"{HEADER}\n{line(created='yesterday')}\n", "line 2: .* does not say when it was made"),
        (f"{HEADER}\n{line(created='2026-13-31T12:00:00')}\n", "line 2: .* does not say when it was made"),
        (f"{HEADER}\n{line(seconds=1e-300)}\n", "line 2: .* not a positive finite number of seconds"),
        (f"{HEADER}\n{line(sizes=[1 << 63])}\n", "line 2: .* sizes is not a whole number"),
        (f"{HEADER}\n{line(configuration='[' * 100_000)}\n", "line 2: .* not a JSON object"),
        (f"{HEADER}\n{line(space='f' * 64)}\n", "names the space ffffffffffffffff, of which there is no record"),
    ],
)
def test_a_file_that_is_wrong_is_refused_whole(store: Store, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(text)
    with pytest.raises(DatabaseError, match=complaint) as caught:
        store.import_(file)
    assert len(str(caught.value)) < 500
    assert store.measurements() == ()


def test_a_space_that_is_missing_is_found_before_anything_is_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.tuning_db.store.BATCH", 2)
    space = Space("map", (("tile", (4, 8, 16, 32)),))
    given = json.dumps({"kind": "space", **space.to_record()})
    named = [line(configuration=json.dumps({"tile": n}), space=space.digest) for n in (4, 8, 16, 32)]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join([HEADER, given, *named, line(space="f" * 64)]) + "\n")
    with pytest.raises(DatabaseError, match=r"in\.jsonl names the space ffffffffffffffff"):
        store.import_(file)
    assert store.measurements() == ()
    file.write_text("\n".join([HEADER, given, *named]) + "\n")
    assert store.import_(file) == 5
    file.write_text("\n".join([HEADER, line(space=space.digest, host="another")]) + "\n")  # it is here already
    assert store.import_(file) == 1


def test_a_mark_or_empty_lines_before_the_header_do_no_harm(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(f"\ufeff{HEADER}\n{line()}\n", encoding="utf-8")
    assert store.import_(file) == 1
    file.write_text(f"\n \n{HEADER}\n\n{line(host='another')}\n")
    assert store.import_(file) == 1


def _t4(store: Store, folder: Path, alter: Callable[[dict[str, Any]], object]) -> Path:
    """A T4 file whose second result was altered."""
    store.add([measured(4), measured(8)])
    assert store.export_recorded(folder) == 1
    (file,) = folder.iterdir()
    values = json.loads(file.read_text())
    alter(values["results"][1])
    file.write_text(json.dumps(values))
    return file


@pytest.mark.parametrize(
    ("field", "value"), [("configuration", 3), ("configuration", []), ("times", 3), ("measurements", 3)]
)
def test_a_t4_result_that_is_wrong_is_named(store: Store, tmp_path: Path, field: str, value: object) -> None:
    file = _t4(store, tmp_path / "t4", lambda result: result.update({field: value}))
    with Store.open("sqlite://") as fresh:
        with pytest.raises(DatabaseError, match="result 2: it does not have T4's fields"):
            fresh.import_recorded(file)
        assert fresh.measurements() == ()


@pytest.mark.parametrize("timestamp", ["noon", {"a": None}, 3, None])
def test_a_t4_time_stamp_that_cannot_be_read_is_left_out(store: Store, tmp_path: Path, timestamp: object) -> None:
    file = _t4(store, tmp_path / "t4", lambda result: result.update(timestamp=timestamp))
    with Store.open("sqlite://") as fresh:
        assert fresh.import_recorded(file) == 2
        assert [m.created[:4] for m in fresh.measurements()] == ["2026", "1970"]


def test_a_configuration_nested_too_deeply_is_refused() -> None:
    with pytest.raises(DatabaseError, match="not a JSON object"):
        measured(configuration="[" * 100_000)


# --- rows that were edited ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        "configurations SET parameters = '[]'",
        """configurations SET parameters = '{"tile": 8.0}'""",
        "programs SET text = x'ff00'",
        "programs SET sizes = '[\"a\"]'",
        "measurements SET seconds = 'x'",
        "measurements SET seconds = 9e999",
        "measurements SET seconds = 1e-300",
    ],
)
def test_winners_of_near_sizes_that_were_spoilt_are_refused(store: Store, path: Path, edit: str) -> None:
    store.record(measured())
    assert store.nearest("a device", "1.0", "1", "s", (128,))[0].distance == 1.0
    change(path, f"UPDATE {edit}")
    with Store.open(path) as s:
        for ask in (
            lambda: s.nearest("a device", "1.0", "1", "s", (128,)),
            lambda: s.winner("a device", "1.0", "1", "aaaa"),
            s.ls,
        ):
            with pytest.raises(DatabaseError, match=r"stored program|a winner cannot be used"):
                ask()
        assert s.verify()


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ("programs SET sizes = 'x'", "sizes of the wrong type"),
        ("programs SET sizes = '3'", "sizes of the wrong type"),
        ("programs SET text = x'ff00'", "a stored program is not a text"),
        ("configurations SET parameters = '[]'", "a winner cannot be used: its configuration is not a JSON object"),
        ("configurations SET parameters = x'00ff'", "a winner cannot be used: its configuration is not a JSON object"),
    ],
)
def test_winners_that_were_spoilt_are_named(store: Store, path: Path, edit: str, complaint: str) -> None:
    store.record(measured())
    change(path, f"UPDATE {edit}")
    with pytest.raises(DatabaseError, match=complaint):
        store.ls()
    with pytest.raises(DatabaseError, match=complaint):
        store.prune(losers_before="9999")
    assert store.verify()


def test_a_spoilt_date_is_not_an_old_one(store: Store, path: Path) -> None:
    store.record(measured())
    store.record(measured(4, seconds=2e-3, samples=(2e-3,)))
    change(path, "UPDATE measurements SET created = x'00ff' WHERE seconds > 1e-3")
    assert store.prune(losers_before="2000") == 0
    assert store.verify()


@pytest.mark.parametrize("seconds", ["0", "-1e-3", "NULL", "'nan' + 0"])
def test_a_time_that_cannot_be_never_wins(store: Store, path: Path, seconds: str) -> None:
    store.add([measured(4, seconds=2e-3, samples=(2e-3,)), measured(8)])
    change(path, f"UPDATE measurements SET seconds = {seconds} WHERE seconds = 1e-3")
    with Store.open(path) as s:
        found = s.winner("a device", "1.0", "1", "aaaa")
        assert found is not None
        assert found.configuration == '{"tile": 4}'
        assert any(problem.startswith("measurement 2") for problem in s.verify())


def test_a_spoilt_row_is_named_with_a_way_out(store: Store, path: Path, tmp_path: Path) -> None:
    store.add([measured(4), measured(8)])
    change(path, "UPDATE measurements SET status = 'great' WHERE id = 2")
    complaint = r"tuning\.sqlite cannot be used: measurement 2 is spoilt \(.*'great'.*\); 'tilewright db recover'"
    with pytest.raises(DatabaseError, match=complaint):
        store.export(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with Store.open(tmp_path / "fresh.sqlite") as fresh, pytest.raises(DatabaseError, match=complaint) as caught:
        fresh.merge(store)
    assert "fresh" not in str(caught.value)
    assert all("recover" not in problem for problem in store.verify())


# --- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("/dev/null", "/dev/null is no file"),
        ("a\0b", "cannot be created: embedded null byte"),
        ("nosuchkind://host/name", "is of a kind that SQLAlchemy does not know"),
    ],
)
def test_what_can_be_no_database_is_refused(place: str, complaint: str) -> None:
    with pytest.raises(DatabaseError, match=complaint):
        Store.open(place)


def test_a_place_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be reached: File name too long"):
        Store.open(tmp_path / ("x" * 400))


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    for place in ("taken/tuning.sqlite", "taken/deeper/tuning.sqlite"):
        with pytest.raises(DatabaseError, match=r"cannot be (created|reached): .*(taken is a file|Not a directory)"):
            Store.open(tmp_path / place)
    assert (tmp_path / "taken").read_text() == "kept"


def test_an_empty_file_is_not_merged(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(DatabaseError, match=r"empty\.sqlite cannot be used: it is empty$"):
        Store.open(tmp_path / "empty.sqlite", read_only=True)


@pytest.mark.parametrize("table", ["measurements", "programs"])
def test_a_database_without_one_of_its_tables_is_damaged(store: Store, path: Path, table: str) -> None:
    store.record(measured())
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("PRAGMA foreign_keys = OFF")
        c.execute(f"DROP TABLE {table}")
    with (
        Store.open(path) as s,
        pytest.raises(DatabaseError, match=f"is damaged or no database; .*no such table: {table}"),
    ):
        s.ls()


def test_a_database_is_opened_and_read_while_another_process_writes(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.record(measured())
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(engine, "ATTEMPTS", 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("begin immediate")
        with Store.open(path) as s:
            assert not s.read_only
            assert len(s.ls()) == len(s.measurements()) == 1
            with pytest.raises(DatabaseError, match="stays locked by another process"):
                s.record(measured(4))
        raw.execute("rollback")


def test_a_merge_blames_the_database_that_fails(store: Store, tmp_path: Path) -> None:
    store.add([measured(n, message="x" * 2000) for n in range(200)])
    with Store.open(tmp_path / "small.sqlite") as small:
        small.close()
        event.listen(small._place.engine, "connect", lambda raw, _: raw.execute("pragma max_page_count = 40").close())
        with pytest.raises(DatabaseError, match=r"small\.sqlite is on a full disk") as caught:
            small.merge(store)
        assert "tuning.sqlite" not in str(caught.value)
        assert small.verify() == ()
    with Store.open(tmp_path / "other.sqlite") as other:
        other.record(measured(program="op another(t0[64]) -> t1[64]: ..."))
        with pytest.raises(DatabaseError, match="stands for another program here") as caught:
            other.merge(store)
        assert "tuning.sqlite" not in str(caught.value)


def test_a_full_disk_is_blamed_on_the_export(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.record(measured())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tilewright.tuning_db.exchange.json.dump", full)
    with pytest.raises(DatabaseError, match=r"^the export .*\.json cannot be written: No space left on device$"):
        store.export_recorded(tmp_path / "t4")
    assert list((tmp_path / "t4").iterdir()) == []
