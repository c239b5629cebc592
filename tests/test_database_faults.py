"""Faults while tuning: every completed measurement is kept, and no winner is wrong.

Undisturbed and disturbed runs measure the same simulated stage, so that they must end with the same winner.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import postgres_server
import pytest
from sqlalchemy import event
from tuning_cases import FAKE, Simulation, TileFamily, relu, stored, tiles

from tilewright.autotune.budget import Budget
from tilewright.autotune.choosing import OLDER_GENERATOR, OTHER_DRIVER, TUNED, choose
from tilewright.autotune.messages import Outcome
from tilewright.autotune.tuning import tune
from tilewright.dsl.program import GENERATOR_VERSION, OLDER_GENERATORS
from tilewright.dsl.text import program_text
from tilewright.errors import DatabaseError
from tilewright.tuning_db import Status, Store
from tilewright.tuning_db.recovery import recover

TUNER = """
import sys
from tuning_cases import FAKE, Simulation, TileFamily, relu, tiles
from tilewright.autotune.budget import Budget
from tilewright.autotune.tuning import tune
from tilewright.tuning_db import Store

class Told(Store):
    def record(self, measurement):
        super().record(measurement)
        print(measurement.digest, flush=True)

with Store.open(sys.argv[1]) as opened:
    store = Told(opened._place)
    source = tiles(TileFamily((4, 8, 16)))
    tune([relu()], FAKE, store, Budget(evaluations=int(sys.argv[2])), source=source, measurer=Simulation())
print("done", flush=True)
"""

SOURCE = tiles(TileFamily((4, 8, 16)))
"""81 configurations."""


def winner_of(store: Store) -> object:
    return choose(relu(), FAKE, store, source=SOURCE).configuration


def exhausted(store: Store) -> None:
    """Tune until nothing is left to measure."""
    tune([relu()], FAKE, store, Budget(evaluations=2000), source=SOURCE, measurer=Simulation())


@pytest.fixture(scope="module")
def undisturbed() -> object:
    with Store.open("sqlite://") as store:
        exhausted(store)
        return winner_of(store)


def _killed_now_and_then(url: str, kills: int) -> set[str]:
    """What the tuners were told is stored, each killed after a few measurements."""
    rng, told = random.Random(0), set[str]()
    for _ in range(kills):
        tuner = subprocess.Popen(
            [sys.executable, "-c", TUNER, url, "2000"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        )
        assert tuner.stdout is not None
        for _ in range(rng.randrange(1, 12)):
            told.add(tuner.stdout.readline().strip())
        tuner.send_signal(signal.SIGKILL)
        told.update(line.strip() for line in tuner.stdout if line.endswith("\n"))
        tuner.stdout.close()
        tuner.wait()
    return told - {"", "done"}


def test_a_tuner_that_is_killed_again_and_again_ends_with_the_same_winner(tmp_path: Path, undisturbed: object) -> None:
    path = tmp_path / "tuning.sqlite"
    told = _killed_now_and_then(str(path), 4)
    with Store.open(path) as store:
        assert told <= {m.digest for m in store.measurements()}
        before = store.stats().measurements
        assert store.verify() == ()
        exhausted(store)
        assert store.stats().measurements > before
        assert winner_of(store) == undisturbed
        tried = [(m.family, m.configuration) for m in store.measurements() if not m.round]
        assert len(tried) == len(set(tried))  # nothing that was known was measured again


def test_a_final_that_was_not_reached_is_made_up_for(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if event.evaluations == 81:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with Store.open(tmp_path / "tuning.sqlite") as store:
        tune([relu()], FAKE, store, Budget(evaluations=2000), stop, source=SOURCE, measurer=Simulation())
        assert store.measurements()[-1].round == ""
        for rows_added in (True, False):  # once is enough
            before = store.stats().measurements
            exhausted(store)
            added = store.measurements()[before:]
            assert all(m.round for m in added)
            assert (len(added) > 1) is rows_added


class Faulty(Simulation):
    """A measuring process that fails at random, in every way there is, but never for the same candidate differently."""

    def evaluate(self, job, lowering, best=None, until=None):  # type: ignore[no-untyped-def]
        outcome = super().evaluate(job, lowering, best, until)
        luck = random.Random(repr(lowering)).random()
        failures = [s for s in Status if s is not Status.OK]
        slow = outcome is not None and outcome.status is Status.OK and outcome.samples[0] > 1.5 * self.fastest
        if slow and luck < 0.6:
            return Outcome(failures[int(luck * 10) % len(failures)], message="injected")
        return outcome

    fastest = 0.0


def test_a_thousand_failures_of_every_kind_are_kept_and_never_win(undisturbed: object) -> None:
    with Store.open("sqlite://") as store:
        exhausted(store)
        fastest = min(m.seconds for m in store.measurements() if m.seconds is not None)
    stages = [relu(1000 + n) for n in range(40)]
    with Store.open("sqlite://") as store:
        measurer = Faulty()
        measurer.fastest = fastest
        tune(stages, FAKE, store, Budget(evaluations=len(stages) * 81), source=SOURCE, measurer=measurer)
        statuses = store.stats().statuses
        assert set(statuses) == {s.value for s in Status}
        assert sum(statuses.values()) - statuses["ok"] >= 1000
        failed = {(m.signature, m.configuration) for m in store.measurements() if m.status is not Status.OK}
        assert [choose(stage, FAKE, store, source=SOURCE).configuration for stage in stages] == [undisturbed] * 40
        assert not {(w.signature, w.configuration) for w in store.ls()} & failed
        assert store.verify() == ()
        before = store.stats().measurements
        tune(stages, FAKE, store, Budget(evaluations=500), source=SOURCE, measurer=measurer)
        again = [m for m in store.measurements()[before:] if not m.round]
        assert not {(m.signature, m.configuration) for m in again} & failed


@pytest.mark.parametrize("key", ["driver", "generator"])
def test_winners_of_another_driver_or_generator_are_measured_again_before_they_win(
    key: str, undisturbed: object
) -> None:
    old = {"driver": "0.9"} if key == "driver" else {"generator": OLDER_GENERATORS[0]}
    lucky = {"m": 4, "n": 4, "k": 4, "path": "local"}
    with Store.open("sqlite://") as store:
        text = program_text(relu().canonical)
        store.record(stored(relu(), lucky, program=text, seconds=1e-9, samples=(1e-9,), **old))
        untuned = choose(relu(), FAKE, store, source=SOURCE)
        assert untuned.origin in (OTHER_DRIVER, OLDER_GENERATOR)
        exhausted(store)
        rows = [m for m in store.measurements() if (m.driver, m.generator) == (FAKE.driver, GENERATOR_VERSION)]
        assert json.dumps(lucky, sort_keys=True) in [m.configuration for m in rows[:5]]  # among the first tried
        tuned = choose(relu(), FAKE, store, source=SOURCE)
        assert (tuned.origin, tuned.configuration) == (TUNED, undisturbed)


def test_a_disk_that_fills_up_while_tuning_loses_nothing(tmp_path: Path, undisturbed: object) -> None:
    path = tmp_path / "tuning.sqlite"
    with Store.open(path) as store:
        with store._place.engine.connect() as c:
            pages = c.exec_driver_sql("pragma page_count").scalar_one() + 3
        store.close()
        limit = f"pragma max_page_count = {pages}"
        event.listen(store._place.engine, "connect", lambda connection, record: connection.execute(limit).close())
        with pytest.raises(DatabaseError, match="full disk; make room: everything recorded before is kept"):
            exhausted(store)
    with Store.open(path) as store:
        kept = store.stats().measurements
        assert kept > 0
        assert store.verify() == ()
        exhausted(store)  # there is room again
        assert store.stats().measurements > kept
        assert winner_of(store) == undisturbed


@pytest.mark.skipif(postgres_server.missing() != "", reason=postgres_server.missing() or "none")
def test_a_tuner_outlives_its_database_server(undisturbed: object) -> None:
    with postgres_server.running() as server:
        tuner = subprocess.Popen(
            [sys.executable, "-c", TUNER, server.url, "2000"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert tuner.stdout is not None
        told = [tuner.stdout.readline().strip()]
        reader = threading.Thread(target=lambda: told.extend(map(str.strip, tuner.stdout)), daemon=True)  # type: ignore[arg-type]
        reader.start()
        while len(told) < 5 and tuner.poll() is None:
            time.sleep(0.02)
        server.kill()
        time.sleep(0.5)
        server.start()
        assert tuner.wait(120) == 0
        reader.join(10)
        tuner.stdout.close()
        assert told[-1] == "done"
        with Store.open(server.url) as store:
            assert set(told[:-1]) <= {m.digest for m in store.measurements()}
            assert winner_of(store) == undisturbed
            assert store.verify() == ()


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_database_is_kept_aside_by_recover(tmp_path: Path, undisturbed: object, damage: str) -> None:
    path = tmp_path / "tuning.sqlite"
    with Store.open(path) as store:
        exhausted(store)
        store.add([replace(m, message="x" * 900, host=str(n)) for n in range(4) for m in store.measurements()])
        rows = set(store.measurements())
    spoilt = bytearray(path.read_bytes())
    page = len(spoilt) * 3 // 4 // 4096 * 4096
    if damage == "cut":
        del spoilt[page:]
    else:
        end = min(page + 16 * 4096, len(spoilt))  # rows among them, whatever else lies there
        spoilt[page:end] = random.Random(0).randbytes(end - page)
    path.write_bytes(spoilt)
    found = recover(path)
    assert found.aside.read_bytes() == spoilt
    with Store.open(path) as store:
        kept = set(store.measurements())
        assert len(rows) > len(kept) == found.measurements > len(rows) // 3
        assert kept <= rows
        assert store.verify() == ()
        exhausted(store)
        assert winner_of(store) == undisturbed


def test_recover_leaves_alone_what_it_cannot_help(tmp_path: Path) -> None:
    picture, whole = tmp_path / "picture.jpg", tmp_path / "tuning.sqlite"
    picture.write_bytes(b"no database" * 1000)
    with Store.open(whole) as store:
        exhausted(store)
    for path, complaint in ((picture, "no measurement can be read"), (whole, "is whole"), (tmp_path / "x", "no file")):
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(DatabaseError, match=complaint):
            recover(path)
        assert (path.read_bytes() if path.exists() else b"") == before
