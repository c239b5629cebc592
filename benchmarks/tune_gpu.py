"""Tune many networks in one process and keep the winners as files that tilewright ships.

    python benchmarks/tune_gpu.py --out tuning_db/winners --total 15m
    python benchmarks/tune_gpu.py --out winners --networks resnet50 --precisions fp16 --batches 1,64 --budget 30s

Every combination of network, precision and batch gets ``--budget``, or its share of ``--total``: by the number of its
distinct stages, less what the rest (loading, planning, timing) has cost so far. Winners that the folder holds are read
first; the winners of all devices in the database are written to it after each combination, but not more often than
every 15 s (it takes a second once there are many). A line of JSON per combination goes to ``--log`` (default: OUT.log
beside the folder), and what is in there is not tuned again. What fails is reported, and the next one follows. SIGTERM
ends it like Ctrl-C, with everything measured kept.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_networks import reason, say
from models import default_folder, source

import tilewright as tw
from tilewright import torch_peer
from tilewright.autotune import Budget, Event, TuningReport
from tilewright.bench import device_runner
from tilewright.feeds import network_feeds
from tilewright.output import to_json
from tilewright.runtime import context
from tilewright.tuning_db import Store
from tilewright.tuning_db.default import default_store

LEAST = 2.0
"""Seconds that a combination is given at least."""
DEFAULT = 30.0
"""Seconds for each where neither budget nor total is given."""
RUNS, WARM_UP = 9, 3
PHASES = ("load", "plan", "start", "tune", "time", "write")
"""Of which `start` is until the first candidate is measured: the measuring process, the first stage's reference."""


@dataclass(frozen=True)
class Combination:
    """What is tuned at once."""

    network: str
    precision: str
    batch: int

    def __str__(self) -> str:
        return f"{self.network} {self.precision} batch {self.batch}"


@dataclass(frozen=True)
class Result:
    """What tuning one combination did; times in milliseconds."""

    combination: Combination
    stages: int
    before: float
    """Wall time of a run with inputs and outputs on the device."""
    after: float
    kernels_before: float
    """Sum of the kernels by the tuner's measurements."""
    kernels_after: float
    evaluations: int
    statuses: dict[str, int]
    seconds: dict[str, float]
    """By phase."""


class Watch:
    """Seconds by phase, of one combination and of all."""

    def __init__(self) -> None:
        self.current: defaultdict[str, float] = defaultdict(float)
        self.total: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.current[name] += spent
            self.total[name] += spent

    def shift(self, seconds: float, source: str, to: str) -> None:
        """Count seconds for another phase."""
        for counter in (self.current, self.total):
            counter[source] -= seconds
            counter[to] += seconds

    def lap(self) -> dict[str, float]:
        """The current combination's seconds; the next one begins."""
        done = {name: round(self.current[name], 2) for name in PHASES}
        self.current.clear()
        return done

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.total[name]:.1f} s" for name in PHASES)


class Shares:
    """How long each combination may be tuned: a budget of its own, or a share of what is left of a total.

    A combination with many distinct stages gets more; how many the others have is guessed from those seen.
    """

    FIRST_GUESS = 30

    def __init__(self, each: float | None, total: float | None) -> None:
        self.each = each
        self.end = None if total is None else time.monotonic() + total
        self.stages: dict[str, int] = {}
        self.done = 0

    def seconds(self, now: Combination, stages: int, left: Sequence[Combination], overhead: float) -> float:
        """For one with that many stages, where ``left`` come after it and all so far cost ``overhead`` besides."""
        self.stages[now.network] = stages
        self.done += 1
        if self.end is None:
            return self.each or DEFAULT
        mean = statistics.fmean(self.stages.values()) if self.stages else self.FIRST_GUESS
        expected = stages + sum(self.stages.get(c.network, mean) for c in left)
        remaining = self.end - time.monotonic() - overhead / self.done * (len(left) + 1)
        share = max(LEAST, remaining * stages / expected)
        return min(share, self.each) if self.each else share


def tuned(
    combination: Combination, session: tw.InferenceSession, left: Sequence[Combination], shares: Shares, watch: Watch
) -> Result:
    """Tune one combination and time it before and after."""
    batch = combination.batch
    feeds = network_feeds(session.get_inputs(), (), batch)
    with watch.phase("plan"):
        plan = session.plan(batch=batch)
        stages = len({(c.program, c.constants) for c in plan.calls})
    with watch.phase("time"):
        before = _milliseconds(session, feeds)
    overhead = sum(watch.total.values()) - watch.total["start"] - watch.total["tune"]
    budget = shares.seconds(combination, stages, left, overhead)
    start = time.perf_counter()
    first: list[float] = []

    def note(event: Event) -> None:
        if not first:
            first.append(time.perf_counter())

    with watch.phase("tune"):
        report: TuningReport = session.tune(budget, batch=batch, progress=note)
    watch.shift((first or [time.perf_counter()])[0] - start, "tune", "start")
    if report.interrupted:
        raise KeyboardInterrupt
    with watch.phase("plan"):
        session.plan(batch=batch)
    with watch.phase("time"):
        after = _milliseconds(session, feeds)
    return Result(
        combination,
        stages,
        before,
        after,
        1e3 * report.before,
        1e3 * report.after,
        report.evaluations,
        dict(report.statuses),
        watch.lap(),
    )


def _milliseconds(session: tw.InferenceSession, feeds: dict[str, Any]) -> float:
    run = device_runner(session, feeds)
    times = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[WARM_UP:])


def tune_all(
    todo: Sequence[Combination], device: tw.Device, store: Store, models: Path | None, shares: Shares, watch: Watch
) -> Iterator[Result]:
    """Tune one after another; sessions are kept for all batches of a network and precision.

    Files of networks that come later are made meanwhile: the measuring has a process of its own.
    """
    maker = ThreadPoolExecutor(1)
    files = {name: maker.submit(source, name, models) for name in dict.fromkeys(c.network for c in todo)}
    session: tw.InferenceSession | None = None
    loaded: tuple[str, str] | None = None
    try:
        for number, combination in enumerate(todo):
            key = (combination.network, combination.precision)
            try:
                if session is None or key != loaded:
                    session = None
                    context(device).trim()
                    with watch.phase("load"):
                        file = files[combination.network].result().file
                        session = tw.InferenceSession(file, device, store, precision=combination.precision)
                        loaded = key
                yield tuned(combination, session, todo[number + 1 :], shares, watch)
            except Exception as error:  # what fails with one network must not end the tuning of the others
                watch.lap()
                say(f"{combination} failed: {reason(error)}")
    finally:
        maker.shutdown(wait=False, cancel_futures=True)


def shown(r: Result) -> str:
    """A result in a line."""
    wall, kernels = r.before / r.after, r.kernels_before / r.kernels_after if r.kernels_after else 1.0
    phases = ", ".join(f"{name} {s:.1f}" for name, s in r.seconds.items() if s >= 0.05)
    return (
        f"{r.combination}: {r.before:.3f} -> {r.after:.3f} ms (x{wall:.2f}), kernels {r.kernels_before:.3f} -> "
        f"{r.kernels_after:.3f} ms (x{kernels:.2f}), {r.evaluations} candidates of {r.stages} stages; {phases} s"
    )


class Keeper:
    """Writes winners to the folder, and then what they belong to into the log, at most every `INTERVAL` seconds."""

    INTERVAL = 15.0

    def __init__(self, store: Store, folder: Path, log: Path, watch: Watch) -> None:
        self.store, self.folder, self.log, self.watch = store, folder, log, watch
        self.pending: list[Result] = []
        self.last = time.monotonic()

    def add(self, result: Result) -> None:
        """Keep a result, at once or with the next."""
        self.pending.append(result)
        if time.monotonic() - self.last >= self.INTERVAL:
            self.write()

    def write(self) -> int:
        """Write what there is; the number of winners."""
        with self.watch.phase("write"):
            winners = self.store.export_shipped(self.folder)
            with self.log.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(to_json(asdict(r))) + "\n" for r in self.pending)
        self.pending.clear()
        self.last = time.monotonic()
        return winners


def finished(log: Path) -> set[Combination]:
    """The combinations that a log holds; a last line that was cut off is left out."""
    found = set()
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            found.add(Combination(**json.loads(line)["combination"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _arguments() -> argparse.ArgumentParser:
    def words(text: str) -> tuple[str, ...]:
        return tuple(word for word in text.split(",") if word)

    def seconds(text: str) -> float | None:
        return Budget.parse(text).seconds

    parser = argparse.ArgumentParser(description="tune many networks and keep the winners")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the winners go")
    parser.add_argument("--log", type=Path, metavar="FILE", help="a line per combination (default: OUT.log)")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--networks", type=words, default=torch_peer.NETWORKS, help="names (default: all eight)")
    parser.add_argument("--batches", type=words, default=("1", "16", "64"), help="sizes (default: 1,16,64)")
    parser.add_argument("--precisions", type=words, default=("fp32", "tf32", "fp16"), help="default: fp32,tf32,fp16")
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder of ONNX files (default: export)")
    parser.add_argument("--budget", type=seconds, metavar="TIME", help="for each at most (default: 30s, or --total)")
    parser.add_argument("--total", type=seconds, metavar="TIME", help="for all together, for instance 15m")
    return parser


def main() -> int:
    given = _arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    device = tw.select_device(given.device)
    log = given.log or given.out.with_name(given.out.name + ".log")
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = [Combination(n, p, int(b)) for n in given.networks for p in given.precisions for b in given.batches]
    done = finished(log)
    todo = [c for c in wanted if c not in done]
    say(f"{len(todo)} of {len(wanted)} combinations on {device.name}, {len(wanted) - len(todo)} are in {log}")
    store, watch = default_store() or Store.open(), Watch()
    start, shares = time.perf_counter(), Shares(given.budget, given.total)
    with watch.phase("load"):
        for file in sorted(given.out.glob("*.jsonl")):
            store.import_(file)
    keeper = Keeper(store, given.out, log, watch)
    try:
        for result in tune_all(todo, device, store, given.models, shares, watch):
            print(shown(result), flush=True)
            keeper.add(result)
    except KeyboardInterrupt:
        say("stopped; everything measured is kept")
        return 130
    finally:
        written = keeper.write()
        say(f"{written} winners in {given.out}; {time.perf_counter() - start:.1f} s: {watch}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except tw.TilewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
