"""The tuning database: winners, layers, exchange, and that nothing is lost whatever happens to process or file."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Measurement, Run, Status, Store, engine, exchange, reading, schema, shipped
from tilewright.tuning_db.places import stamp

DEVICE, DRIVER, GENERATOR = "test-cpu avx512 2 cores", "1.0", "1"


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000+00:00"


def measured(seconds: float | None = 1e-3, tile: int = 8, **changes: object) -> Measurement:
    values: dict[str, object] = {
        "device": DEVICE,
        "driver": DRIVER,
        "signature": "aaaa",
        "structure": "s",
        "sizes": (64, 64, 64),
        "program": "op program(t0[64]) -> t1[64]: ...",
        "family": "contract",
        "configuration": f'{{"tile": {tile}}}',
        "generator": GENERATOR,
        "status": Status.OK if seconds is not None else Status.CRASHED,
        "seconds": seconds,
        "samples": (seconds,) if seconds is not None else (),
    }
    return Measurement(**{**values, **changes})  # type: ignore[arg-type]


def winning(store: Store, **changes: str) -> str | None:
    asked = {"device": DEVICE, "driver": DRIVER, "generator": GENERATOR, "signature": "aaaa", **changes}
    found = store.winner(**asked)
    return found.configuration if found else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "tuning.sqlite") as s:
        yield s


# --- winners ------------------------------------------------------------------------------------------------------


def test_the_fastest_working_configuration_wins(store: Store) -> None:
    assert winning(store) is None
    store.record(measured(2e-3, tile=4))
    store.record(measured(1e-3, tile=8))
    store.record(measured(None, tile=16))
    assert winning(store) == '{"tile": 8}'


def test_a_winner_is_remembered_and_replaced_when_something_faster_is_recorded(store: Store) -> None:
    store.record(measured(2e-3, tile=4))
    first = store.winner(DEVICE, DRIVER, GENERATOR, "aaaa")
    assert store.winner(DEVICE, DRIVER, GENERATOR, "aaaa") is first
    store.record(measured(1e-3, tile=8))
    assert winning(store) == '{"tile": 8}'


@pytest.mark.parametrize("key", ["device", "driver", "generator", "signature"])
def test_every_part_of_the_key_separates(store: Store, key: str) -> None:
    store.record(measured())
    found = store.winner(**{"device": DEVICE, "driver": DRIVER, "generator": GENERATOR, "signature": "aaaa", key: "x"})
    assert found is None or (key == "driver" and not found.exact)


def test_the_newest_measurement_of_a_configuration_counts(store: Store) -> None:
    store.record(measured(1e-3, tile=4, created=at(1)))
    store.record(measured(2e-3, tile=8, created=at(2)))
    store.record(measured(3e-3, tile=4, created=at(3)))
    assert winning(store) == '{"tile": 8}'


def test_a_configuration_that_failed_later_is_no_winner(store: Store) -> None:
    store.record(measured(1e-3, tile=4, created=at(1)))
    store.record(measured(2e-3, tile=8, created=at(2)))
    store.record(measured(None, tile=4, created=at(3), status=Status.WRONG))
    assert winning(store) == '{"tile": 8}'


def test_a_round_decides_over_what_was_measured_before_it(store: Store) -> None:
    store.record(measured(1e-3, tile=4, created=at(1)))  # a lucky moment
    store.record(measured(2e-3, tile=8, created=at(2)))
    store.record(measured(2.5e-3, tile=4, created=at(3), round="r"))
    store.record(measured(2.4e-3, tile=8, created=at(3), round="r"))
    store.record(measured(1.5e-3, tile=16, created=at(2)))
    assert winning(store) == '{"tile": 8}'
    store.record(measured(2.0e-3, tile=32, created=at(4)))  # measured after the round: competes with it
    assert winning(store) == '{"tile": 32}'


def test_another_driver_version_is_a_start_but_an_exact_one_comes_first(store: Store) -> None:
    store.record(measured(1e-3, tile=4, driver="0.9"))
    found = store.winner(DEVICE, DRIVER, GENERATOR, "aaaa")
    assert found is not None
    assert (found.exact, found.driver) == (False, "0.9")
    store.record(measured(5e-3, tile=8))
    found = store.winner(DEVICE, DRIVER, GENERATOR, "aaaa")
    assert found is not None
    assert (found.exact, found.configuration) == (True, '{"tile": 8}')


def test_nearest_orders_by_log_distance_and_puts_other_drivers_behind(store: Store) -> None:
    store.record(measured(signature="big", sizes=(512, 64, 64), tile=1))
    store.record(measured(signature="near", sizes=(128, 64, 64), tile=2))
    store.record(measured(signature="odd", sizes=(64, 64, 64), tile=3, driver="0.9"))
    store.record(measured(signature="other", structure="z", tile=4))
    store.record(measured(None, signature="failed", sizes=(64, 64, 65), tile=5))
    found = store.nearest(DEVICE, DRIVER, GENERATOR, "s", (64, 64, 64))
    assert [w.signature for w in found] == ["near", "odd", "big"]
    assert [w.distance for w in found] == [1.0, 0.0, 3.0]
    assert [w.exact for w in found] == [True, False, True]
    assert len(store.nearest(DEVICE, DRIVER, GENERATOR, "s", (64, 64, 64), limit=1)) == 1


def test_tried_gives_the_newest_row_of_each_configuration_failures_too(store: Store) -> None:
    store.record(measured(1e-3, tile=4, created=at(1)))
    store.record(measured(3e-3, tile=4, created=at(2)))
    store.record(measured(None, tile=8, message="killed"))
    store.record(measured(None, tile=16, driver="0.9"))
    tried = store.tried(DEVICE, DRIVER, GENERATOR, "aaaa")
    assert {k[1]: (m.status, m.seconds) for k, m in tried.items()} == {
        '{"tile": 4}': (Status.OK, 3e-3),
        '{"tile": 8}': (Status.CRASHED, None),
    }


# --- shipped winners ----------------------------------------------------------------------------------------------


def test_shipped_winners_lie_under_the_users_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "maker.sqlite") as maker:
        maker.record(measured(1e-3, tile=4))
        maker.record(measured(9e-3, tile=5))
        maker.record(measured(1e-3, tile=6, signature="bbbb", driver="0.9"))
        assert maker.export_shipped(tmp_path) == 2
    with Store.open(tmp_path / "mine.sqlite", winners=tmp_path) as mine:
        found = mine.winner(DEVICE, DRIVER, GENERATOR, "aaaa")
        assert found is not None
        assert (found.configuration, found.shipped, found.exact) == ('{"tile": 4}', True, True)
        other = mine.winner(DEVICE, DRIVER, GENERATOR, "bbbb")
        assert other is not None
        assert (other.shipped, other.exact) == (True, False)
        assert [w.shipped for w in mine.nearest(DEVICE, DRIVER, GENERATOR, "s", (64, 64, 64))] == [True, True]
        mine.record(measured(5e-3, tile=8))
        assert winning(mine) == '{"tile": 8}'
        assert mine.winner("another device", DRIVER, GENERATOR, "aaaa") is None


def test_a_shipped_winner_on_this_driver_comes_before_an_own_one_on_another(tmp_path: Path) -> None:
    with Store.open(tmp_path / "maker.sqlite") as maker:
        maker.record(measured(1e-3, tile=4))
        maker.export_shipped(tmp_path)
    with Store.open(tmp_path / "mine.sqlite", winners=tmp_path) as mine:
        mine.record(measured(1e-4, tile=8, driver="0.9"))
        assert winning(mine) == '{"tile": 4}'


def test_every_shipped_file_is_named_after_its_device_and_holds_winners_only() -> None:
    for file in shipped.winners_folder().iterdir():
        if file.name.endswith(".jsonl"):
            with file.open(encoding="utf-8") as lines:
                rows = list(exchange.measurements_of(exchange.parse_lines(lines, file.name)))
            assert rows
            assert {shipped.file_name(m.device) for m in rows} == {file.name}
            assert len({(m.driver, m.generator, m.signature) for m in rows}) == len(rows)


def test_file_names_of_devices_are_readable_and_distinct() -> None:
    assert shipped.file_name("Intel(R) Xeon / avx512").startswith("intel-r-xeon-avx512-")
    assert shipped.file_name("a b") != shipped.file_name("a/b")


# --- what a measurement may be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seconds": -1.0}, "not a positive finite number"),
        ({"seconds": 0.0}, "not a positive finite number"),
        ({"seconds": 10**400}, "not a positive finite number"),
        ({"seconds": math.nan}, "not a positive finite number"),
        ({"samples": (math.inf,)}, "not a positive finite number"),
        ({"seconds": None}, "ok but has no time"),
        ({"status": Status.WRONG}, "wrong but has a time"),
        ({"error": math.nan}, "negative or not finite"),
        ({"sizes": (-1,)}, "not a whole number"),
        ({"configuration": "tile=8"}, "not a JSON object"),
        ({"configuration": '{"tile": [1]}'}, "neither a number nor a text"),
        ({"configuration": '{"tile": 8.0}'}, "neither a whole number nor a text"),
        ({"configuration": '{"tile": true}'}, "neither a whole number nor a text"),
        ({"family": 3}, "not a text"),
    ],
)
def test_impossible_measurements_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(DatabaseError, match=complaint):
        replace(measured(), **changes)  # type: ignore[arg-type]


def test_records_name_missing_unknown_and_mistyped_fields() -> None:
    record = measured().to_record()
    with pytest.raises(DatabaseError, match="missing or unknown fields: extra, host"):
        Measurement.from_record({k: v for k, v in record.items() if k != "host"} | {"extra": 1})
    with pytest.raises(DatabaseError, match="field of the wrong type"):
        Measurement.from_record(record | {"status": "fine"})


# --- exchange -----------------------------------------------------------------------------------------------------


def test_export_and_import_lose_nothing_and_import_twice_adds_nothing(store: Store, tmp_path: Path) -> None:
    store.record_run(Run("run1", at(0), "host", "30 s"))
    for m in (
        measured(1.1e-3, samples=(1e-3, 1.1e-3, 0.1 + 0.2), error=1e-7, build_seconds=0.25, run="run1", round="r"),
        measured(None, tile=16, message='a "quoted"\nline', status=Status.BUILD_FAILED),
        measured(1e-3, signature="bbbb", sizes=(1,), driver="0.9"),
    ):
        store.record(m)
    file = tmp_path / "out.jsonl"
    assert store.export(file) == 4
    with Store.open(tmp_path / "other.sqlite") as other:
        other.record(measured(7e-3, tile=64))
        assert other.import_(file) == 4
        assert other.import_(file) == 0
        assert set(store.measurements()) < set(other.measurements())
        assert other.stats().runs == 1
        assert other.verify() == ()
    assert store.export(tmp_path / "winners.jsonl", winners_only=True) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hello\n", "line 1: not JSON"),
        ("[]\n", "line 1: not an export"),
        ('{"format": "tilewright-tuning", "version": 99}\n', "format version 99.*update tilewright"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "measure', "line 2: not JSON.*cut off"),
        ('{"format": "tilewright-tuning", "version": 1}\n[]\n', "line 2: a line must be a JSON object"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "x"}\n', "line 2: unknown kind of record 'x'"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "run"}\n', "line 2: a run must have exactly"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "measurement", "seconds": NaN}\n', "no JSON number"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "measurement"}\n', "line 2: .*missing or unknown"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "\\ud800"}\n', "line 2: not JSON.*surrogates"),
        ('{"format": "tilewright-tuning", "version": 1}\n{"kind": "a\\u0000"}\n', "line 2: not JSON.*character 0"),
        ('{"format": "tilewright-tuning", "version": 1, "version": 2}\n', "line 1: not JSON.*'version' is given twice"),
        ("", "is empty"),
    ],
)
def test_a_bad_file_is_refused_whole_with_its_line(store: Store, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(DatabaseError, match=complaint):
        store.import_(file)
    assert store.measurements() == ()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("created", "9999-12-31T00:00:00+00:00", "line 2: it was made in the future.*correct its time"),
        ("configuration", '{"tile":8,"tile":16}', "line 2: .*names a parameter twice"),
    ],
)
def test_import_refuses_what_would_win_or_mean_two_things(
    store: Store, tmp_path: Path, field: str, value: str, complaint: str
) -> None:
    file = tmp_path / "odd.jsonl"
    record = {"kind": "measurement", **measured(1e-3).to_record(), field: value}
    file.write_text('{"format": "tilewright-tuning", "version": 2}\n' + json.dumps(record) + "\n")
    with pytest.raises(DatabaseError, match=complaint):
        store.import_(file)
    assert store.measurements() == ()


def test_what_is_shipped_is_read_whatever_the_clock_says() -> None:
    record = {"kind": "measurement", **measured(1e-3, created="2999-01-01T00:00:00+00:00").to_record()}
    lines = ['{"format": "tilewright-tuning", "version": 2}', json.dumps(record)]
    assert len(list(exchange.parse_lines(lines, "shipped"))) == 1


def test_clocks_may_differ_by_some_hours(store: Store, tmp_path: Path) -> None:
    later = (datetime.now(UTC) + timedelta(hours=12)).isoformat(timespec="microseconds")
    store.record(measured(1e-3, created=later))
    store.export(tmp_path / "out.jsonl")
    with Store.open(tmp_path / "other.sqlite") as other:
        assert other.import_(tmp_path / "out.jsonl") == 1


def test_a_merge_reads_the_rows_that_are_missing_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", 4)
    rows = [measured(1e-3 * n, tile=n, host="h", created=at(n)) for n in range(1, 14)]
    store.add(rows)
    read: list[str] = []
    whole = reading.as_measurement
    monkeypatch.setattr(reading, "as_measurement", lambda row: read.append(row.digest) or whole(row))
    with Store.open(tmp_path / "other.sqlite") as other:
        missing = [m for n, m in enumerate(rows) if n in (1, 3, 8, 12)]  # some of a page, none of it, all of the last
        other.add(m for m in rows if m not in missing)
        assert other.merge(store) == 4
        assert read == [m.digest for m in missing]
        assert other.merge(store) == 0
        assert read == [m.digest for m in missing]
        assert set(other.measurements()) == set(rows)
        assert other.verify() == ()


def test_import_refuses_a_signature_that_stands_for_another_program(store: Store, tmp_path: Path) -> None:
    store.record(measured())
    store.export(tmp_path / "out.jsonl")
    with Store.open(tmp_path / "other.sqlite") as other:
        other.record(measured(program="op other"))
        with pytest.raises(DatabaseError, match="signature aaaa stands for another program"):
            other.import_(tmp_path / "out.jsonl")


def test_a_program_keeps_the_structure_it_was_stored_with(store: Store, tmp_path: Path) -> None:
    store.record(measured())
    store.record(measured(0.5e-3, tile=4, structure="derived otherwise"))
    (found,) = store.nearest(DEVICE, DRIVER, GENERATOR, "s", (64, 64, 64))
    assert found.seconds == 0.5e-3
    assert store.nearest(DEVICE, DRIVER, GENERATOR, "derived otherwise", (64, 64, 64)) == ()
    assert store.verify() == ()
    store.export(tmp_path / "out.jsonl")
    store.import_(tmp_path / "out.jsonl")
    assert len(store.measurements()) == 2


def test_unreadable_and_unwritable_exchange_files(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"missing\.jsonl cannot be read"):
        store.import_(tmp_path / "missing.jsonl")
    with pytest.raises(DatabaseError, match="cannot be written"):
        store.export(tmp_path / "nowhere" / "out.jsonl")


# --- figures, checks, pruning -------------------------------------------------------------------------------------


def test_stats_and_ls(store: Store) -> None:
    store.record(measured())
    store.record(measured(None, tile=16))
    store.record(measured(2e-3, signature="bbbb", device="other"))
    stats = store.stats()
    assert (stats.devices, stats.drivers, stats.programs, stats.configurations, stats.measurements) == (2, 2, 2, 2, 3)
    assert stats.statuses == {"crashed": 1, "ok": 2}
    assert stats.bytes is not None
    assert stats.schema_version == schema.SCHEMA_VERSION
    assert [(w.device, w.signature) for w in store.ls()] == [("other", "bbbb"), (DEVICE, "aaaa")]
    assert [w.signature for w in store.ls(device="other")] == ["bbbb"]


def test_verify_finds_a_changed_row(store: Store) -> None:
    store.record(measured())
    store.record(measured(2e-3, tile=16))
    assert store.verify() == ()
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as raw:
        raw.execute("update measurements set seconds = 1e-07 where id = 1")
        raw.execute("update measurements set status = 'fine' where id = 2")
    raw.close()
    problems = store.verify()
    assert "measurement 1: was changed after it was stored" in problems[0]
    assert "measurement 2" in problems[1]


def test_prune_keeps_winners_and_drops_other_generators(store: Store) -> None:
    store.record(measured(1e-3, tile=4, created=at(1)))
    store.record(measured(2e-3, tile=8, created=at(2)))
    store.record(measured(3e-3, tile=16, created=at(30)))
    store.record(measured(1e-4, tile=32, generator="0", signature="old"))
    assert store.prune(losers_before=at(20), device="elsewhere") == 0
    assert store.prune(keep_generators=(GENERATOR,), losers_before=at(20)) == 2
    assert {m.configuration for m in store.measurements()} == {'{"tile": 4}', '{"tile": 16}'}
    assert store.stats().programs == 1
    assert winning(store) == '{"tile": 4}'


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

WRITER = """
import sys
from tilewright.tuning_db import Measurement, Status, Store
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store.open(path) as store:
    for n in range(count):
        store.record(Measurement(
            device="d", driver="1", signature="s", structure="t", sizes=(1,), program="p", family=name,
            configuration='{"n": %d}' % n, generator="1", status=Status.OK, seconds=1.0 + n, samples=(1.0 + n,)))
        print(n, flush=True)
"""


def _writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_write_at_once_all_finish(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    writers = [_writer(path, f"writer{n}", 40) for n in range(3)]
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
        writer = _writer(path, f"attempt{attempt}", 100_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(0.03 * attempt)
        writer.send_signal(signal.SIGKILL)
        told += 1 + len(writer.stdout.read().split())
        writer.stdout.close()
        writer.wait()
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
