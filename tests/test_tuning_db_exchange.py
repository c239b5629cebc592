"""Exports, imports and merges: nothing is lost, nothing comes twice, and a bad file is refused whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from database_cases import DEVICE, DRIVER, GENERATOR, at, measured

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Run, Status, Store, exchange, reading


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
