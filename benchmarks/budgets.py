"""How much of a long search's speed a short one finds: a network tuned twice, each time into an empty database.

    python benchmarks/budgets.py --device intel                       # resnet50 at batch 1, hours
    python benchmarks/budgets.py --device intel --model small.onnx --exhaustive 2m
    python benchmarks/budgets.py --device intel --keep budgets --quick 10m

First the exhaustive budget: until nothing better turns up for any kernel, or for as long as `--exhaustive` says. Then
the quick one, a twentieth of the time that the first took (`--quick` says another). Then sessions untuned, quick and
exhaustive run in turns, each with its database. The share of the speed is the exhaustive session's median over the
quick one's. A run that was interrupted goes on from the databases in `--keep`; the time spent before is not counted
then, so that `--quick` must be given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import Timing, timing
from resnet import resnet

from tilewright.feeds import network_feeds
from tilewright.graph.session import InferenceSession
from tilewright.tuning_db import Store

SHARE = 20
"""The quick budget is this part of the exhaustive one's time."""
WANTED = 0.9
"""Of the exhaustive budget's speed."""


@dataclass(frozen=True)
class Tuned:
    """One budget's search."""

    seconds: float
    evaluations: int
    failures: dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """Both budgets' searches, and what their winners are worth."""

    model: str
    device: str
    batch: int
    searches: dict[str, Tuned]
    milliseconds: dict[str, Timing]
    """Of one run: untuned, quick, exhaustive."""

    @property
    def share(self) -> float:
        """The quick budget's speed as a part of the exhaustive one's."""
        return self.milliseconds["exhaustive"].median / self.milliseconds["quick"].median

    @property
    def time_share(self) -> float:
        """The same of the time spent."""
        return self.searches["quick"].seconds / self.searches["exhaustive"].seconds


def tuned(model: Path, device: str | None, batch: int, database: Path, budget: float | str | None) -> Tuned:
    """Tune a network into a database."""
    with Store.open(database) as store:
        session = InferenceSession(model, device, store=store)
        feeds = network_feeds(session.get_inputs(), (), batch)
        report = session.tune(budget, feeds=feeds)
        if report.interrupted:
            raise KeyboardInterrupt
        failures = {status: n for status, n in report.statuses.items() if status != "ok"}
        return Tuned(report.seconds, report.evaluations, failures)


def timed(model: Path, device: str | None, batch: int, places: dict[str, Path], seconds: float) -> dict[str, Timing]:
    """Run sessions in turns, each with its database, for so long in all."""
    with ExitStack() as stack:
        sessions: dict[str, InferenceSession] = {}
        for name, place in places.items():
            sessions[name] = InferenceSession(model, device, store=stack.enter_context(Store.open(place)))
        feeds = network_feeds(next(iter(sessions.values())).get_inputs(), (), batch)
        wanted = None
        for name, session in sessions.items():
            found = [np.asarray(value) for value in session.run(None, feeds)]  # warm, and right
            wanted = wanted or found
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * float(np.abs(b).max()), err_msg=name)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(times[next(iter(times))]) < 3:
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds)
                times[name].append(time.perf_counter() - start)
    return {name: timing(found) for name, found in times.items()}


def measured(options: argparse.Namespace, folder: Path) -> Outcome:
    """Both searches, then all sessions in turns."""
    model = options.model
    if model is None:
        model = folder / "resnet50.onnx"
        onnx.save(resnet(50), model)
    places = {name: folder / f"{name}.sqlite" for name in ("untuned", "quick", "exhaustive")}
    exhaustive = tuned(model, options.device, options.batch, places["exhaustive"], options.exhaustive)
    quick = tuned(
        model, options.device, options.batch, places["quick"], options.quick or max(1.0, exhaustive.seconds / SHARE)
    )
    times = timed(model, options.device, options.batch, places, options.seconds)
    device = InferenceSession(model, options.device, store=False).device.name
    return Outcome(model.name, device, options.batch, {"quick": quick, "exhaustive": exhaustive}, times)


def text(found: Outcome) -> str:
    """The outcome for people, as Markdown."""
    lines = [f"{found.model} at batch {found.batch} on {found.device}", ""]
    lines += [
        "| budget | searched, s | candidates | ms per run | 10th to 90th percentile |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, ms in found.milliseconds.items():
        search = found.searches.get(name)
        spent = f"{search.seconds:.0f} | {search.evaluations}" if search is not None else "- | -"
        lines.append(f"| {name} | {spent} | {ms.median:.2f} | {ms.low:.2f} to {ms.high:.2f} |")
    verdict = "reached" if found.share >= WANTED else "missed"
    lines += ["", f"quick: {100 * found.share:.1f}% of the speed in {100 * found.time_share:.1f}% of the time"]
    lines += [f"{100 * WANTED:.0f}% {verdict}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> Outcome:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file; resnet50 with random weights without it")
    parser.add_argument("--device")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--exhaustive", metavar="TIME", help="until nothing improves without it")
    parser.add_argument("--quick", metavar="TIME", help=f"1/{SHARE} of the other without it")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the runs in turns")
    parser.add_argument("--keep", type=Path, help="a folder for the databases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        found = measured(options, folder)
    print(text(found))
    if options.json is not None:
        values: dict[str, Any] = {**asdict(found), "share": found.share, "time_share": found.time_share}
        options.json.write_text(json.dumps(values, indent=2))
    return found


if __name__ == "__main__":
    main()
