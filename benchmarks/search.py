"""Search strategies replayed on recorded spaces, beside Kernel Tuner's, and how long spaces take to build.

    python benchmarks/search.py replay FOLDER --seeds 50 --keep results.json
    python benchmarks/search.py replay FOLDER --seeds 50 --keep results.json --strategies kernel_tuner
    python benchmarks/search.py build

FOLDER has recorded spaces (see `tilewright.autotune.recorded`): every legal configuration with its time. A search sees
a time when it asks for it, a failure costs an evaluation like any other. A figure is the optimum's time divided by the
best found, in per cent: the median and the 10th percentile over the seeds. "guided" starts from nothing; "transfer" is
told the recordings of the same kernel on the folder's other devices, where there are any. Results are kept in a file
and not measured again, so peers may be run once, and by another interpreter: those that are not installed are left out
(``pip install kernel-tuner pyatf``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from search_peers import BUILDERS, PEERS, replay_peer
from search_spaces import SPACES, xgemm

from tilewright.autotune.guided import Guided
from tilewright.autotune.recorded import Recorded, read_recorded
from tilewright.autotune.space_building import listing
from tilewright.autotune.strategies import Asking, Evolution, Local, Random
from tilewright.autotune.transfer import Elsewhere

BUDGETS = (20, 50, 100, 200)
Results = dict[str, dict[str, list[list[float]]]]
"""By space and strategy: the fraction of the optimum at each budget, for every seed."""


def _guided(recorded: Recorded, others: Sequence[Recorded], seed: int) -> Asking:
    return Guided(recorded.grid(), seed)


def _transfer(recorded: Recorded, others: Sequence[Recorded], seed: int) -> Asking:
    grid = recorded.grid()
    sources = [{grid.point(c): s for c, s in o.configurations() if _has(recorded, c)} for o in others]
    if not sources:
        return Guided(grid, seed)
    elsewhere = Elsewhere(grid, sources, seed)
    return Guided(grid, seed, elsewhere.winners, prior=elsewhere)


def _has(recorded: Recorded, configuration: object) -> bool:
    assert hasattr(configuration, "items")
    values = {p.name: p.values for p in recorded.space.parameters}
    return all(v in values[n] for n, v in configuration.items())


OURS: dict[str, Callable[[Recorded, Sequence[Recorded], int], Asking]] = {
    "guided": _guided,
    "transfer": _transfer,
    "evolution": lambda r, _, seed: Evolution(r.grid(), seed),
    "local": lambda r, _, seed: Local(r.grid(), seed),
    "random": lambda r, _, seed: Random(r.grid(), seed),
}


def replay(strategy: Asking, recorded: Recorded, budget: int) -> list[float]:
    """The times that a search sees, in order."""
    times, seen = recorded.times(), []
    while len(seen) < budget and (point := strategy.ask()) is not None:
        strategy.tell(point, times[point])
        seen.append(times[point])
    return seen


def reached(seen: Sequence[float], best: float) -> list[float]:
    """Per cent of the optimum after each of the budgets."""
    lowest = np.minimum.accumulate(np.array([*seen, np.inf]))
    return [float(100.0 * best / lowest[min(budget, len(lowest)) - 1]) for budget in BUDGETS]


def _files(folder: Path) -> dict[str, Recorded]:
    return {p.name.split(".")[0]: read_recorded(p) for p in sorted(folder.glob("*.json*"))}


def _replays(options: argparse.Namespace, console: Console) -> None:
    files = _files(options.folder)
    results: Results = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    chosen = [s for name in options.strategies for s in (PEERS if name == "kernel_tuner" else [name])]
    for strategy in chosen:
        for name, recorded in files.items():
            done = results.setdefault(name, {}).setdefault(strategy, [])
            others = [r for n, r in files.items() if n != name and r.kernel == recorded.kernel]
            for seed in range(len(done), options.seeds):
                if strategy in OURS:
                    curve = reached(
                        replay(OURS[strategy](recorded, others, seed), recorded, BUDGETS[-1]), recorded.best
                    )
                else:
                    curve = replay_peer(recorded, strategy, seed, BUDGETS, reached)
                done.append(curve)
            if options.keep:
                options.keep.write_text(json.dumps(results))
    _report(results, console)


def _report(results: Results, console: Console) -> None:
    """A table for the mean over the spaces and one for each of them."""
    strategies = sorted({s for found in results.values() for s, runs in found.items() if runs})
    complete = [s for s in strategies if all(found.get(s) for found in results.values())]
    for space in ["mean over the spaces", *results]:
        table = Table("strategy", "seeds", *(f"@{b}" for b in BUDGETS), title=space)
        for s in complete if space.startswith("mean") else strategies:
            spaces = list(results) if space.startswith("mean") else [space]
            runs = [np.array(results[x][s]) for x in spaces if results[x].get(s)]
            if not runs:
                continue
            middle = np.mean([np.median(r, axis=0) for r in runs], axis=0)
            low = np.mean([np.percentile(r, 10, axis=0) for r in runs], axis=0)
            cells = [f"{m:.1f} / {p:.1f}" for m, p in zip(middle, low, strict=True)]
            table.add_row(s, str(min(len(r) for r in runs)), *cells)
        console.print(table)


def _builds(options: argparse.Namespace, console: Console) -> None:
    """Seconds to build CLBlast's xgemm space, best of some repetitions, by everyone installed."""
    table = Table("space", "points before constraints", "legal", "tilewright", *BUILDERS)
    for name, values in SPACES.items():
        space = xgemm(values)
        seconds, count = _timed(lambda space=space: len(listing(space).rows), options.repetitions)
        cells = [f"{seconds:.3f} s"]
        for builder in BUILDERS.values():
            peer = _timed(lambda builder=builder, values=values: builder(values), options.repetitions)
            cells.append(f"{peer[0]:.3f} s" + ("" if peer[1] == count else f", {peer[1]} points"))
        table.add_row(name, f"{space.raw_size:,}", f"{count:,}", *cells)
    console.print(table)


def _timed(run: Callable[[], int], repetitions: int) -> tuple[float, int]:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        count = run()
        times.append(time.perf_counter() - start)
    return min(times), count


def main() -> None:
    parser = argparse.ArgumentParser(description="search strategies on recorded spaces, and the building of spaces")
    commands = parser.add_subparsers(required=True)
    replays = commands.add_parser("replay", help="replay strategies on recorded spaces")
    replays.add_argument("folder", type=Path)
    replays.add_argument("--seeds", type=int, default=50)
    replays.add_argument("--strategies", nargs="+", default=["guided", "transfer"], metavar="NAME")
    replays.add_argument("--keep", type=Path, metavar="FILE", help="results of earlier runs, added to")
    replays.set_defaults(run=_replays)
    builds = commands.add_parser("build", help="time the building of CLBlast's xgemm space")
    builds.add_argument("--repetitions", type=int, default=3)
    builds.set_defaults(run=_builds)
    options = parser.parse_args()
    options.run(options, Console())


if __name__ == "__main__":
    main()
