"""Budgets, and which configuration a stage runs with."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_cases import FAKE, GOOD, TARGET, relu, stored, tiles

from tilewright.autotune import Budget, choose, lower, stage_key
from tilewright.autotune.candidates import stage_space
from tilewright.autotune.choosing import DEFAULT, NEAREST, OLDER_GENERATOR, OTHER_DRIVER, TUNED
from tilewright.dsl.program import (
    OLDER_GENERATORS,
)
from tilewright.dsl.space import Configuration
from tilewright.errors import InputError, UnsupportedError
from tilewright.tuning_db import Store


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("1h", 3600), ("1.5 min", 90), ("45", 45), (7, 7), ("500ms", 0.5)]
)
def test_budgets_are_read(text: str | float, seconds: float) -> None:
    assert Budget.parse(text, evaluations=9) == Budget(seconds, 9)


def test_budgets_without_limits_and_again() -> None:
    assert Budget.parse() == Budget()
    assert Budget.parse(Budget(3.0), evaluations=5) == Budget(3.0, 5)
    assert (str(Budget(30.0, 5)), str(Budget())) == ("30 s, 5 evaluations", "until nothing improves")


@pytest.mark.parametrize("text", ["soon", "3 weeks", "-1s", "", "1e3s"])
def test_bad_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no time; write for example 30s"):
        Budget.parse(text)


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(InputError, match="is no time; give a positive number"):
        Budget.parse(-3)
    with pytest.raises(InputError, match="measures nothing"):
        Budget.parse(None, evaluations=0)


# --- choosing -----------------------------------------------------------------------------------------------------


def test_choose_goes_from_tuned_to_nearest_to_default(store: Store) -> None:
    stage, source = relu(1000), tiles()
    assert choose(stage, FAKE, None, source=source).origin == DEFAULT
    assert choose(stage, FAKE, store, source=source).origin == DEFAULT
    store.record(stored(relu(4000), {**GOOD, "m": 2}))
    assert choose(stage, FAKE, store, source=source).origin == DEFAULT  # four times as far is too far
    store.record(stored(relu(1100), {**GOOD, "m": 4}))
    near = choose(stage, FAKE, store, source=source)
    assert (near.origin, near.configuration["m"]) == (NEAREST, 4)
    store.record(stored(stage, {**GOOD, "m": 2}, generator=OLDER_GENERATORS[0]))
    older = choose(stage, FAKE, store, source=source)
    assert (older.origin, older.configuration["m"]) == (OLDER_GENERATOR, 2)
    store.record(stored(stage, {**GOOD, "m": 16}, driver="0.9"))
    other = choose(stage, FAKE, store, source=source)
    assert (other.origin, other.configuration["m"]) == (OTHER_DRIVER, 16)
    store.record(stored(stage, GOOD))
    tuned = choose(stage, FAKE, store, source=source)
    assert (tuned.origin, tuned.configuration) == (TUNED, Configuration.of(GOOD))


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": json.dumps({**GOOD, "m": 10**9})},
        {"configuration": json.dumps({**GOOD, "m": 32, "n": 32})},
        {"configuration": json.dumps({"m": 8})},
        {"family": "gone"},
        {"generator": "0"},
        {"device": "another"},
    ],
)
def test_a_stored_configuration_that_is_not_legal_here_is_not_used(store: Store, changes: dict[str, str]) -> None:
    store.record(stored(relu(1000), GOOD, **changes))
    assert choose(relu(1000), FAKE, store, source=tiles()).origin == DEFAULT


def test_choose_uses_the_real_families_and_remembers(store: Store) -> None:
    stage = relu(1000)
    first = choose(stage, FAKE, store)
    assert first.origin == DEFAULT
    assert choose(stage, FAKE, store) is first
    assert lower(stage, FAKE, first).launches
    space = stage_space(stage, TARGET)
    other = next(c for c in space.all or () if c.configuration != first.configuration)
    store.record(stored(stage, dict(other.configuration), family=other.family))
    assert choose(stage, FAKE, store).origin == TUNED


def test_lower_names_a_family_that_is_gone() -> None:
    choice = replace(choose(relu(), FAKE), family="gone")
    with pytest.raises(UnsupportedError, match="gone"):
        lower(relu(), FAKE, choice)
    with pytest.raises(UnsupportedError, match="gone"):
        lower(relu(), FAKE, choice, tiles())


def test_constant_inputs_are_part_of_the_key(store: Store) -> None:
    stage = relu(1000)
    assert stage_key(stage) == stage.signature
    assert stage_key(stage, {"x"}) == f"{stage.signature}-c0"
    store.record(stored(stage, GOOD))
    assert choose(stage, FAKE, store, {"x"}, tiles()).origin == NEAREST  # the best there is for it


def test_a_database_that_breaks_costs_the_tuning_not_the_program(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.record(stored(relu(1000), GOOD))
    store.close()
    Path(store.url.removeprefix("sqlite:///")).write_bytes(b"no database" * 1000)
    assert choose(relu(1000), FAKE, store, source=tiles()).origin == DEFAULT
    assert "is damaged or no database" in caplog.text


def test_choosing_is_fast(store: Store) -> None:
    stages = [relu(1000 + n) for n in range(50)]
    for stage in stages[::2]:
        store.record(stored(stage, GOOD))
    for stage in stages:
        choose(stage, FAKE, store, source=tiles())
    start = time.perf_counter()
    for stage in stages:
        choose(stage, FAKE, store, source=tiles())
    assert (time.perf_counter() - start) / len(stages) < 5e-3  # 1 ms on a quiet machine
