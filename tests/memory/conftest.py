"""The simulator's processes: one that watches uninitialised values, and one for vector code that does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memory import simulator
from memory.simulator import Simulator


def _started(watches: bool) -> Iterator[Simulator]:
    driver = simulator.library()
    if driver is None:
        pytest.skip(simulator.MISSING)
    made = Simulator(driver, watches)
    yield made
    made.close()


@pytest.fixture(scope="session")
def watching() -> Iterator[Simulator]:
    """Reports uninitialised values too; for scalar code."""
    yield from _started(True)


@pytest.fixture(scope="session")
def plain() -> Iterator[Simulator]:
    """Out-of-bounds accesses, races and divergent barriers."""
    yield from _started(False)
