"""Tune many networks in one process and keep the winners as files that tilewright ships.

    python benchmarks/tune_gpu.py --out tuning_db/winners --total 15m
    python benchmarks/tune_gpu.py --out winners --networks resnet50 --precisions fp16 --batches 1,64 --budget 30s

Every combination of network, precision and batch gets ``--budget``, or its share of what is left of ``--total``, by the
number of its distinct stages. One measuring process serves all; meanwhile a process for each network finds the stages
of its combinations, and nothing is built but candidates. Winners that the folder holds are read first; the winners of
all devices in the database are written to it after each combination, but not more often than every 15 s (it takes a
second once there are many). A line of JSON per combination goes to ``--log`` (default: OUT.log beside the folder), and
what is in there is not tuned again. What fails is reported, and the next one follows. SIGTERM ends it like Ctrl-C, with
everything measured kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from figures import words
from gpu import chosen_device
from gpu_networks import reason, say
from models import default_folder, source

import tilewright as tw
from tilewright import torch_peer
from tilewright.autotune import Budget, tune
from tilewright.autotune.compiling import helpers_wanted
from tilewright.autotune.supervisor import Supervisor
from tilewright.graph.planned import Stage
from tilewright.output import to_json
from tilewright.tuning_db import Store
from tilewright.tuning_db.default import default_store

LEAST = 2.0
"""Seconds that a combination is given at least."""
FINDING = 300.0
"""Seconds in which the stages of a combination must be found."""
DEFAULT = 30.0
"""Seconds for each where neither budget nor total is given."""


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
    """What tuning one combination did; times in milliseconds, sums of the kernels by the tuner's measurements."""

    combination: Combination
    stages: int
    before: float
    after: float
    evaluations: int
    statuses: dict[str, int]
    seconds: float
    """Of tuning."""


class Shares:
    """How long each combination may be tuned: a budget of its own, or a share of what is left of a total.

    A combination with many distinct stages gets more; how many the others have is guessed from those seen.
    """

    FIRST_GUESS = 30

    def __init__(self, each: float | None, total: float | None) -> None:
        self.each = each
        self.end = None if total is None else time.monotonic() + total
        self.stages: dict[str, int] = {}

    def seconds(self, now: Combination, stages: int, left: Sequence[Combination]) -> float:
        """For one with that many stages, where ``left`` come after it."""
        self.stages[now.network] = stages
        if self.end is None:
            return self.each or DEFAULT
        mean = statistics.fmean(self.stages.values()) if self.stages else self.FIRST_GUESS
        expected = stages + sum(self.stages.get(c.network, mean) for c in left)
        share = max(LEAST, (self.end - time.monotonic()) * stages / expected)
        return min(share, self.each) if self.each else share


@lru_cache(maxsize=1)
def _session(network: str, precision: str, device: str, models: Path | None) -> tw.InferenceSession:
    """This process's session; it serves all batches."""
    return tw.InferenceSession(source(network, models).file, device, precision=precision)


def stages_of(combination: Combination, device: str, models: Path | None) -> Counter[Stage]:
    """The different stages, and how often each runs."""
    return _session(combination.network, combination.precision, device, models).stages(batch=combination.batch)


class Finders:
    """Processes that find the stages of all combinations at once, one for each network."""

    def __init__(self, todo: Sequence[Combination], device: tw.Device, models: Path | None) -> None:
        fresh = multiprocessing.get_context("spawn")  # drivers do not live through a fork
        networks = dict.fromkeys(c.network for c in todo)
        self._pools = {network: ProcessPoolExecutor(1, fresh) for network in networks}
        self._found = {c: self._pools[c.network].submit(stages_of, c, device.name, models) for c in todo}

    def stages(self, combination: Combination) -> Counter[Stage]:
        """Waits for a combination's stages; TimeoutError if that takes too long."""
        return self._found[combination].result(FINDING)

    def __enter__(self) -> Finders:
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()  # nobody needs what it does, and the interpreter would wait for it


def tuned(
    combination: Combination,
    stages: Counter[Stage],
    seconds: float,
    device: tw.Device,
    store: Store,
    measurer: Supervisor,
) -> Result:
    """Tune one combination; KeyboardInterrupt if it was stopped, TilewrightError if there was time for nothing."""
    report = tune(
        [s.program for s in stages],
        device,
        store,
        Budget(seconds=seconds),
        weights=[float(count) for count in stages.values()],
        constants=[s.constants for s in stages],
        measurer=measurer,
    )
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.after:
        raise tw.TilewrightError(f"no kernel was measured in {report.seconds:.0f} s; it needs a longer budget")
    times = 1e3 * report.before, 1e3 * report.after
    return Result(combination, len(stages), *times, report.evaluations, dict(report.statuses), report.seconds)


def tune_all(
    todo: Sequence[Combination], device: tw.Device, store: Store, models: Path | None, shares: Shares
) -> Iterator[Result]:
    """Tune one after another."""
    with Finders(todo, device, models) as finders, Supervisor(device, helpers=helpers_wanted(device)) as measurer:
        for number, combination in enumerate(todo):
            left = todo[number + 1 :]
            try:
                stages = finders.stages(combination)
                yield tuned(
                    combination, stages, shares.seconds(combination, len(stages), left), device, store, measurer
                )
            except Exception as error:  # what fails with one network must not end the tuning of the others
                say(f"{combination} failed: {reason(error)}")


def shown(r: Result) -> str:
    """A result in a line."""
    gain = r.before / r.after if r.after else 1.0
    return (
        f"{r.combination}: kernels {r.before:.3f} -> {r.after:.3f} ms (x{gain:.2f}), {r.evaluations} candidates of "
        f"{r.stages} stages in {r.seconds:.1f} s"
    )


class Keeper:
    """Writes winners to the folder, and then what they belong to into the log, at most every `INTERVAL` seconds."""

    INTERVAL = 15.0

    def __init__(self, store: Store, folder: Path, log: Path) -> None:
        self.store, self.folder, self.log = store, folder, log
        self.pending: list[Result] = []
        self.last = time.monotonic()

    def add(self, result: Result) -> None:
        """Keep a result, at once or with the next."""
        self.pending.append(result)
        if time.monotonic() - self.last >= self.INTERVAL:
            self.write()

    def write(self) -> int:
        """Write what there is; the number of winners."""
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
    def seconds(text: str) -> float | None:
        return Budget.parse(text).seconds

    parser = argparse.ArgumentParser(description="tune many networks and keep the winners")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the winners go")
    parser.add_argument("--log", type=Path, metavar="FILE", help="a line per combination (default: OUT.log)")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices' (default: the first GPU)")
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
    device = chosen_device(given.device)
    log = given.log or given.out.with_name(given.out.name + ".log")
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = [Combination(n, p, int(b)) for n in given.networks for p in given.precisions for b in given.batches]
    done = finished(log)
    todo = [c for c in wanted if c not in done]
    say(f"{len(todo)} of {len(wanted)} combinations on {device.name}, {len(wanted) - len(todo)} are in {log}")
    store, start, shares = default_store() or Store.open(), time.perf_counter(), Shares(given.budget, given.total)
    for file in sorted(given.out.glob("*.jsonl")):
        store.import_(file)
    keeper = Keeper(store, given.out, log)
    try:
        for result in tune_all(todo, device, store, given.models, shares):
            print(shown(result), flush=True)
            keeper.add(result)
    except KeyboardInterrupt:
        say("stopped; everything measured is kept")
        return 130
    finally:
        written = keeper.write()
        say(f"{written} winners in {given.out}; {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except tw.TilewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
