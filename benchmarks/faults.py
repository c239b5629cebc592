"""Faults while tuning on a real device: nothing that was measured is lost, and the same configurations win.

    python benchmarks/faults.py [--device NAME] [--stages 12] [--disturbances 80] [--fleet-stages 2] [--keep PATH]
                                [--postgres]

A family of kernels with one fast configuration, some slow ones, and many that crash, hang, compute wrong numbers, write
where they must not, do not compile or ask for too much is tuned until nothing is left to try. Meanwhile the tuner, its
measuring process and (with `--postgres`) the database server are killed again and again, and the disk is full now and
then. Then a fleet of two workers tunes stages of its own while they are killed in turn. Every measurement that a tuner
has seen stored must be there in the end, no configuration but the fastest may win, as in a run without any fault, and
nothing may be measured twice. Status 1 if something of that does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from sqlalchemy import event
from tuning_cases import FAULTS, RIGHT, SIZE, kernel, relu

from tilewright.autotune import Budget, choose, tune
from tilewright.autotune.candidates import FamilySource
from tilewright.autotune.supervisor import Limits, Supervisor
from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Call, Const, Program
from tilewright.dsl.space import Configuration, Parameter, Space
from tilewright.dsl.target import Target
from tilewright.errors import DatabaseError
from tilewright.runtime import Device, select_device
from tilewright.tuning_db import Measurement, Status, Store
from tilewright.tuning_db.writing import Record

GOOD = "good"
STEPS = (3, 1, 4, 0, 2)
"""How often the work of the kernels doubles, by variant: the fourth is the fastest."""
LIMITS = Limits(run=0.5, first_run=2.0)
EVERYTHING = Budget(evaluations=100_000)


class Faulty:
    """A family of right kernels of different speeds and, unless ``faults`` is false, of all the wrong ones."""

    name = "faulty"

    def __init__(self, faults: bool = True) -> None:
        self.kinds = (GOOD, *(FAULTS if faults else ()))

    def refusal(self, program: Program, target: Target) -> str | None:
        """It fits what the script tunes."""
        return None

    def space(self, program: Program, target: Target) -> Space:
        """Kinds of kernels and, for each, some variants."""
        variants = tuple(range(len(STEPS)))
        return Space((Parameter("kind", self.kinds, "what goes wrong"), Parameter("variant", variants, "its work")), ())

    def default(self, program: Program, target: Target) -> Configuration:
        """A slow one that is right."""
        return Configuration.of({"kind": GOOD, "variant": 0})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernel, which differs between variants so that each is compiled anew."""
        variant = configuration.integer("variant")
        if configuration["kind"] != GOOD:
            lowering = FAULTS[str(configuration["kind"])][0]
            (launch,) = lowering.launches
            return Lowering((replace(launch, source=f"{launch.source}// {variant}\n"),))
        loops = 2000 << STEPS[variant]
        work = f"float v = x[i]; for (int n = 0; n < {loops}; ++n) v = v * 0.999f + x[n & 511]; "
        return kernel(f"{work}{RIGHT} if (v == 7.5f) y[i] = v;")


def stages(first: int, count: int) -> list[Program]:
    """Different programs that compute the same, so that the same kernels are right for all of them."""
    found = []
    for n in range(first, first + count):
        program = relu(SIZE, f"stage{n}")
        (statement,) = program.statements
        value = Call("max", (statement.value, Const(-1 - n, DType.F32)), DType.F32)
        found.append(replace(program, statements=(replace(statement, value=value),)))
    return found


def source(faults: bool = True) -> FamilySource:
    """The only family there is."""
    return lambda program, target: (Faulty(faults),)


def winners(device: Device, store: Store, programs: Sequence[Program]) -> list[Configuration]:
    """What would be run."""
    return [choose(p, device, store, source=source()).configuration for p in programs]


# --- the tuner that is killed ---------------------------------------------------------------------------------------


class Told(Store):
    """Says of every measurement that it is stored."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        super().__init__(store._place)
        self._say = say

    def record(self, measurement: Measurement) -> None:
        """Store it, then say so."""
        super().record(measurement)
        self._say(measurement.digest)

    def add(self, records: Iterable[Record]) -> int:
        """Store what was timed in turns, then say so."""
        known = list(records)
        added = super().add(known)
        for record in known:
            if isinstance(record, Measurement):
                self._say(record.digest)
        return added


def tuner(url: str, device: Device, count: int, pages: int) -> None:
    """Tune until nothing is left; every line is the digest of a stored measurement and the measuring process's id."""
    with Store.open(url) as opened, Supervisor(device, LIMITS) as supervisor:
        if pages:
            _limit(opened, pages)
        store = Told(opened, lambda digest: print(digest, supervisor.process or 0, flush=True))
        tune(stages(0, count), device, store, EVERYTHING, source=source(), measurer=supervisor)
    print("done", 0, flush=True)


def _limit(store: Store, pages: int) -> None:
    """Let a SQLite file grow by so many pages only: it is what a full disk is like."""
    with store._place.engine.connect() as c:
        limit = f"pragma max_page_count = {c.exec_driver_sql('pragma page_count').scalar_one() + pages}"
    store.close()
    event.listen(store._place.engine, "connect", lambda connection, record: connection.execute(limit).close())


# --- what disturbs it -----------------------------------------------------------------------------------------------


@dataclass
class Disturber:
    """Starts tuners and disturbs them until one has nothing left to do."""

    url: str
    device: str
    count: int
    left: int
    every: int
    """Measurements between two disturbances, on average."""
    server: Any = None
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    told: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Until a tuner has nothing left."""
        while not self._one():
            pass

    def _one(self) -> bool:
        """One tuner's life; True if it ended by itself."""
        full = self.server is None and self.left > 0 and self.rng.random() < 0.2
        command = ["--tuner", self.url, "--device", self.device, "--stages", str(self.count)]
        command += ["--pages", str(self.rng.randrange(1, 4))] if full else []
        process = subprocess.Popen(
            [sys.executable, __file__, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            next_one = self._soon()
            for n, line in enumerate(process.stdout):
                digest, _, measuring = line.strip().partition(" ")
                if digest == "done":
                    return True
                self.told.add(digest)
                if not full and self.left > 0 and n >= next_one:
                    next_one += self._soon()
                    self._disturb(process, int(measuring))
            if full:
                self._count("disk full")
                said = process.stderr.read()
                if "full disk" not in said:
                    sys.exit(f"a tuner on a full disk ended otherwise: {said}")
            elif process.wait() != -signal.SIGKILL:
                sys.exit(f"a tuner ended of itself: {process.stderr.read()}")
            return False
        finally:
            process.stdout.close()
            process.stderr.close()
            process.wait()

    def _soon(self) -> int:
        return self.rng.randrange(1, 2 * self.every)

    def _count(self, what: str) -> None:
        self.left -= 1
        self.done[what] += 1
        print(f"{what}: {self.done[what]}, {len(self.told)} measurements stored", file=sys.stderr, flush=True)

    def _disturb(self, process: subprocess.Popen[str], measuring: int) -> None:
        kinds = ["kill -9 of the tuner", "kill -9 of the measuring process"]
        kinds += ["kill -9 of the database server"] if self.server is not None else []
        kind = self.rng.choice(kinds)
        if kind.endswith("tuner"):
            process.kill()
        elif kind.endswith("server"):
            self.server.kill()
            time.sleep(0.3)
            self.server.start()
        else:
            with contextlib.suppress(ProcessLookupError):  # it may have been replaced by now
                os.kill(measuring or process.pid, signal.SIGKILL)
        self._count(kind)


def fleet(device: Device, store: Store, programs: Sequence[Program], every: int) -> tuple[set[str], int]:
    """Tune with two workers that are killed in turn; (digests of what was stored, kills)."""
    import distributed

    told, kills = set[str](), 0
    changed = threading.Condition()

    def say(digest: str) -> None:
        with changed:
            told.add(digest)
            changed.notify()

    def work() -> None:
        with Store.open(store.url) as opened:
            tune(programs, device, Told(opened, say), EVERYTHING, source=source(), fleet=cluster.scheduler_address)

    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        workers = [_worker(cluster.scheduler_address, device) for _ in range(2)]
        thread = threading.Thread(target=work)
        thread.start()
        try:
            while thread.is_alive():
                with changed:
                    changed.wait(1.0)
                    if len(told) < (kills + 1) * every:
                        continue
                workers[0].kill()
                workers[0].wait()
                kills += 1
                print(f"kill -9 of a fleet's worker: {kills}, {len(told)} measurements", file=sys.stderr, flush=True)
                workers = [workers[1], _worker(cluster.scheduler_address, device)]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            thread.join()
    return told, kills


def _worker(address: str, device: Device) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tilewright", "worker", address, "--device", device.name]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


# --- the whole ------------------------------------------------------------------------------------------------------


def problems(
    device: Device, store: Store, programs: Sequence[Program], told: set[str], best: Configuration
) -> Iterator[str]:
    """What must not be, one sentence each."""
    rows = [m for m in store.measurements() if m.signature in {p.signature for p in programs}]
    lost = told - {m.digest for m in rows}
    if lost:
        yield f"{len(lost)} of {len(told)} measurements are lost"
    for program, won in zip(programs, winners(device, store, programs), strict=True):
        if won != best:
            yield f"{program.name} would run {won}, an undisturbed run gives {best}"
    for m in rows:
        kind = Configuration.from_json(m.configuration)["kind"]
        if (m.status is Status.OK) is not (kind == GOOD):
            yield f"{m.configuration} of {m.signature} is {m.status}: {m.message}"
    tried = Counter((m.signature, m.configuration) for m in rows if not m.round)
    yield from (f"{key} was measured {n} times" for key, n in tried.items() if n > 1)
    whole = len(programs) * len(STEPS) * (1 + len(FAULTS))
    if len(tried) != whole:
        yield f"{len(tried)} of {whole} configurations were measured"
    yield from store.verify()


def run(url: str, device: Device, options: argparse.Namespace, server: Any) -> int:
    """Everything; the exit status."""
    start = time.monotonic()
    with Store.open("sqlite://") as calm, Supervisor(device, LIMITS) as supervisor:
        tune(stages(0, 2), device, calm, EVERYTHING, source=source(faults=False), measurer=supervisor)
        best, *others = winners(device, calm, stages(0, 2))
    if {best} != {*others, best} or best["kind"] != GOOD:
        sys.exit("undisturbed runs do not agree about the winner")
    every = max(2, options.stages * len(STEPS) * (1 + len(FAULTS)) // max(1, options.disturbances))
    disturber = Disturber(url, device.name, options.stages, options.disturbances, every, server)
    disturber.run()
    found, counts = [], disturber.done
    with Store.open(url) as store:
        found += problems(device, store, stages(0, options.stages), disturber.told, best)
        programs = stages(options.stages, options.fleet_stages)
        told = set[str]()
        if programs:
            told, counts["kill -9 of a fleet's worker"] = fleet(device, store, programs, 6)
            found += problems(device, store, programs, told, best)
        counts.update(f"candidate: {m.status}" for m in store.measurements() if m.status is not Status.OK)
    print(f"{device.name}, {device.driver}: {options.stages + options.fleet_stages} programs")
    for what, number in counts.most_common():
        print(f"{what:40}{number:6}")
    print(f"{'faults':40}{counts.total():6}   in {time.monotonic() - start:.0f} s")
    print(f"{'measurements seen stored':40}{len(told) + len(disturber.told):6}")
    print(f"{'problems':40}{len(found):6}")
    print("\n".join(found[:20]))
    return 1 if found else 0


def main() -> int:
    """The script, or a tuner that it has started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--stages", type=int, default=12)
    parser.add_argument("--fleet-stages", type=int, default=2)
    parser.add_argument("--disturbances", type=int, default=80)
    parser.add_argument("--keep", type=Path, metavar="PATH", help="keep the database in this new file, to look into it")
    parser.add_argument("--postgres", action="store_true", help="keep the database on a server of the script's own")
    parser.add_argument("--tuner", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep and (options.postgres or options.keep.exists()):
        parser.error("--keep takes a path at which nothing is yet, and goes without --postgres")
    device = select_device(options.device)
    if options.tuner:
        try:
            tuner(options.tuner, device, options.stages, options.pages)
        except DatabaseError as error:
            sys.exit(str(error))
        return 0
    if options.postgres:
        import postgres_server

        with postgres_server.running() as server:
            return run(server.url, device, options, server)
    with tempfile.TemporaryDirectory() as folder:
        place = options.keep or Path(folder) / "tuning.sqlite"
        return run(str(place), device, options, None)


if __name__ == "__main__":
    sys.exit(main())
