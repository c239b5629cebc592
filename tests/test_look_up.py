"""Asking the tuning database about many programs at once gives what asking one by one gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from tilewright.autotune import choose, look_up
from tilewright.dsl.parse import parse_op
from tilewright.errors import DatabaseError
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Status, Store
from tilewright.tuning_db import store as stores

PROGRAMS = [f"{n:016x}" for n in range(12)]
DEVICE, DRIVER, GENERATOR = "gpu", "2.0", "1"


def structure_of(signature: str) -> str:
    return f"s{int(signature, 16) % 5}"


def measured(rng: random.Random, second: int) -> Measurement:
    signature = rng.choice(PROGRAMS[:9])
    failed = rng.random() < 0.2
    return Measurement(
        device=rng.choice([DEVICE, DEVICE, "other"]),
        driver=rng.choice([DRIVER, DRIVER, "1.0"]),
        signature=signature,
        structure=structure_of(signature),
        sizes=(int(signature, 16) + 1,),
        program=f"program {signature}",
        family="map",
        configuration=f'{{"tile": {rng.randrange(4)}}}',
        generator=rng.choice([GENERATOR, GENERATOR, "0"]),
        status=Status.CRASHED if failed else Status.OK,
        seconds=None if failed else rng.choice([1e-3, 2e-3, 3e-3]),
        created=f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000+00:00",
        round=rng.choice(["", "", "a", "b"]),
    )


def counted(store: Store, work: Callable[[], object]) -> int:
    """How many statements `work` has the database run."""
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    engine = store._place.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len([s for s in statements if s.startswith("SELECT")])


def look_all_up(store: Store) -> None:
    structures = {s: (lambda s=s: structure_of(s)) for s in PROGRAMS}
    store.look_up(DEVICE, DRIVER, GENERATOR, structures)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shipped", [False, True])
def test_the_answers_are_the_same(seed: int, shipped: bool, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows = [measured(rng, second) for second in range(60)]
    folder = tmp_path / "winners"
    folder.mkdir()
    if shipped:
        with Store.open(tmp_path / "theirs.sqlite", winners=folder) as theirs:
            for row in rows[:20]:
                theirs.record(row)
            theirs.export_shipped(folder)
    with Store.open(tmp_path / "t.sqlite", winners=folder) as store:
        for row in rows[20:]:
            store.record(row)

    def answers(store: Store) -> list[object]:
        winners = [store.winner(DEVICE, DRIVER, GENERATOR, s) for s in PROGRAMS]
        near = [store.nearest(DEVICE, DRIVER, GENERATOR, f"s{n}", (5,)) for n in range(6)]
        return [winners, near]

    with Store.open(tmp_path / "t.sqlite", winners=folder) as one_by_one:
        expected = answers(one_by_one)
    with Store.open(tmp_path / "t.sqlite", winners=folder) as together:
        look_all_up(together)
        assert answers(together) == expected
    assert any(expected[0])  # type: ignore[call-overload]


def test_few_queries_answer_many_questions(tmp_path: Path) -> None:
    with Store.open(tmp_path / "t.sqlite") as store:
        assert counted(store, lambda: look_all_up(store)) <= 3
        ask = [lambda s=s: store.winner(DEVICE, DRIVER, GENERATOR, s) for s in PROGRAMS]
        assert counted(store, lambda: [question() for question in ask]) == 0
        assert counted(store, lambda: store.nearest(DEVICE, DRIVER, GENERATOR, "s1", (5,))) == 0
        assert counted(store, lambda: look_all_up(store)) == 0, "what is known is not asked again"
        store.record(measured(random.Random(1), 0))
        assert counted(store, lambda: look_all_up(store)) >= 1, "but after something was recorded"


def test_more_programs_than_a_query_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "BATCH", 5)
    with Store.open(tmp_path / "t.sqlite") as store:
        row = measured(random.Random(3), 0)
        store.record(row)
        look_all_up(store)
        key = (row.device, row.driver, row.generator)
        if key == (DEVICE, DRIVER, GENERATOR) and row.status is Status.OK:
            assert store.winner(*key, row.signature) is not None
        assert all(("winner", DEVICE, DRIVER, GENERATOR, s) in store._answers for s in PROGRAMS[9:])


def test_stages_are_looked_up_for_choose(device: Device, tmp_path: Path) -> None:
    stages = [parse_op("op f(x[N]) -> y[N]:\n    y[n] = 2 * x[n]").specialise({"x": (n,)}).canonical for n in (5, 6)]
    with Store.open(tmp_path / "t.sqlite") as store:
        look_up([(s, ()) for s in stages], device, store)
        assert counted(store, lambda: [choose(s, device, store) for s in stages]) == 0
    look_up([(stages[0], ())], device, None)


def test_a_broken_database_is_left_to_choose(device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Store):
        def look_up(self, *_: object) -> None:
            raise DatabaseError("broken")

    stage = parse_op("op f(x[N]) -> y[N]:\n    y[n] = 3 * x[n]").specialise({"x": (5,)}).canonical
    with Store.open(tmp_path / "t.sqlite") as store:
        look_up([(stage, ())], device, Broken(store._place))
    assert not caplog.records
