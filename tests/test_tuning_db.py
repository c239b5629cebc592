"""The tuning database: winners, layers, what may be stored, figures and checks."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from database_cases import DEVICE, DRIVER, GENERATOR, at, measured, winning

from tilewright.errors import DatabaseError
from tilewright.tuning_db import Measurement, Status, Store, exchange, schema, shipped

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
