"""Measurements for the tests of the tuning database, and a process that stores some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tilewright.tuning_db import Measurement, Status, Store

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


def writer(place: Path | str, name: str, count: int) -> subprocess.Popen[str]:
    """A process that stores `count` measurements of a family, and says each number once it is stored."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place), name, str(count)], stdout=subprocess.PIPE, text=True
    )
