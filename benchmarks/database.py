"""How fast the tuning database answers when it is large: SQLite with a million measurements, made up.

    python benchmarks/database.py [--rows 1000000] [--folder FOLDER]

Prints one line per figure. The measurements are of 2,000 programs on four devices, a part of them failures, with rounds
that decide as a tuner's finals do. A file of that name that is there already is used again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tilewright.tuning_db import Measurement, Status, Store

PROGRAMS, DEVICES, CONFIGURATIONS = 2000, 4, 5000


def measurements(count: int) -> Iterator[Measurement]:
    """Made-up measurements, the same for every call."""
    rng = random.Random(0)
    for n in range(count):
        program, status = rng.randrange(PROGRAMS), rng.choice((Status.OK,) * 9 + (Status.CRASHED,))
        seconds = rng.uniform(1e-5, 1e-2) if status is Status.OK else None
        yield Measurement(
            device=f"device {program % DEVICES}",
            driver="1.0",
            signature=f"{program:016x}",
            structure=f"{program % 100:016x}",
            sizes=(program, 64),
            program=f"op program(t0[{program}]: f32) -> t1[{program}]: f32:\n    t1[i0:{program}] = t0[i0]\n",
            family="contract",
            configuration=json.dumps({"tile": rng.randrange(CONFIGURATIONS), "unroll": 4}),
            generator="1",
            status=status,
            seconds=seconds,
            samples=(seconds,) * 7 if seconds is not None else (),
            host="host",
            created=f"2026-01-01T{n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}.{n % 1000000:06d}+00:00",
            round=f"round{program}" if seconds is not None and rng.random() < 0.01 else "",
        )


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    work()
    return clock() - start


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def look_ups(path: Path, count: int = 300) -> tuple[list[float], list[float]]:
    """Seconds of winner look-ups: of ones never asked before, and of the same again.

    Of this thread's processor time, so that other work on the machine is not counted.
    """
    rng = random.Random(1)
    asked = [(f"device {p % DEVICES}", "1.0", "1", f"{p:016x}") for p in rng.sample(range(PROGRAMS), count)]
    with Store.open(path) as store:
        store.winner("device 0", "1.0", "1", "none")  # the connection is open, the statements are compiled
        store.winner(*asked[0])
        first = [timed(lambda key=key: store.winner(*key), time.thread_time) for key in asked[1:]]
        again = [timed(lambda key=key: store.winner(*key), time.thread_time) for key in asked[1:]]
    return first, again


def main() -> None:
    """Fill, ask, export, merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        run(folder, options.rows)


def run(folder: Path, rows: int) -> None:
    """All figures, in a folder."""
    path = folder / "large.sqlite"
    report = lambda name, text: print(f"{name:34}{text}", flush=True)  # noqa: E731
    if not path.exists():
        with Store.open(path) as store:
            seconds = timed(lambda: store.add(measurements(rows)))
        report("filled", f"{seconds:.0f} s, {1e6 * seconds / rows:.0f} µs per measurement")
    with Store.open(path) as store:
        report("measurements", f"{store.stats().measurements}, {path.stat().st_size / 2**20:.0f} MiB")
        report("one measurement recorded", f"{1e3 * statistics.median(_recorded(store)):.2f} ms")
    for name, found in zip(("winner, not cached", "winner, cached"), look_ups(path), strict=True):
        worst = sorted(found)[int(0.99 * len(found))]
        report(name, f"{1e6 * statistics.median(found):.1f} µs, 99th percentile {1e6 * worst:.1f} µs (processor time)")
    before = peak()
    with Store.open(path) as store:
        seconds = timed(lambda: store.export(folder / "large.jsonl"))
        report("export", f"{seconds:.0f} s, peak memory {before:.0f} -> {peak():.0f} MiB")
        with Store.open(folder / "copy.sqlite") as copy:
            report("merge", f"{timed(lambda: copy.merge(store)):.0f} s, peak memory {peak():.0f} MiB")
            report("merge again", f"{timed(lambda: copy.merge(store)):.0f} s, peak memory {peak():.0f} MiB")
            same = copy.stats().measurements == store.stats().measurements
    (folder / "copy.sqlite").unlink()
    if not same:
        sys.exit("the merged database does not hold what the other does")


def _recorded(store: Store) -> list[float]:
    """Seconds that single measurements take to be safe on disk."""
    rng = random.Random(time.time_ns())
    found = []
    for m in measurements(50):
        fresh = Measurement.from_record({**m.to_record(), "host": f"host {rng.random()}"})
        found.append(timed(lambda fresh=fresh: store.record(fresh)))
    return found


if __name__ == "__main__":
    main()
