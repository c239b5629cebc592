"""How long it takes from a text, or an ONNX node, to OpenCL C: milliseconds of CPU time, with no device at work.

    python benchmarks/latency.py                     the programs of docs/programs.md and the examples
    python benchmarks/latency.py --operators         as well every ONNX node test that the operator library takes
    python benchmarks/latency.py --profile           where the time goes

Each op is timed a few times with everything forgotten in between but the parser's tables, and the fastest time counts.
It all happens in one thread, so that CPU time is what a user waits for on an idle machine. "first" is the very first op
of the process.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import json
import pstats
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.autotune import stage_key
from tilewright.dsl import families
from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.stages import split
from tilewright.dsl.target import Target
from tilewright.graph import passes
from tilewright.graph.fusion import fuse
from tilewright.graph.ir import Graph
from tilewright.graph.layout import lay_out
from tilewright.graph.onnx_import import import_model, steering_inputs
from tilewright.graph.steps import steps_of

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
EXAMPLES = {
    "bias_relu": {"x": (2, 3, 40, 50), "b": (3,)},
    "conv2d": {"x": (1, 30, 28, 28), "w": (40, 30, 3, 3)},
    "gemm": {"a": (80, 160), "b": (160, 120), "bias": (120,)},
    "layer_norm": {"x": (60, 400), "scale": (400,), "bias": (400,)},
    "softmax": {"x": (60, 400)},
}
"""Sizes for examples/ops."""


@dataclass
class Watch:
    """Milliseconds by part of the way, of one run."""

    parts: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.thread_time)

    def lap(self, part: str) -> None:
        """Count the time since the last lap to a part."""
        now = time.thread_time()
        self.parts[part] = self.parts.get(part, 0.0) + 1e3 * (now - self.last)
        self.last = now

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


Work = Callable[[Watch], None]


def lowered(stages: Iterable[Program], target: Target, watch: Watch) -> None:
    """Families, configurations and sources of stages."""
    for stage in stages:
        canonical = stage.canonical
        stage_key(canonical)
        family = families.fitting(canonical, target)[0]
        configuration = families.default(family, canonical, target)
        watch.lap("family")
        family.lower(canonical, target, configuration)
        watch.lap("source")


def text_work(text: str, arrays: dict[str, np.ndarray], parameters: dict[str, float], target: Target) -> Work:
    """A text of the language, all the way."""
    shapes = {name: a.shape for name, a in arrays.items()}
    dtypes = {name: DType.from_numpy(a.dtype) for name, a in arrays.items()}

    def work(watch: Watch) -> None:
        definition = parse_op(text)
        watch.lap("parse")
        program = definition.specialise(shapes, dtypes, parameters)
        watch.lap("program")
        stages = split(program, target)
        watch.lap("stages")
        lowered(stages, target, watch)

    return work


def graph_work(graph: Graph, target: Target) -> Work:
    """A network of one node, all the way."""
    shapes = {v.name: tuple(v.sizes) for v in graph.inputs}

    def work(watch: Watch) -> None:
        steps = steps_of(passes.specialise(graph, shapes, {}))
        watch.lap("program")
        network = lay_out(fuse(steps), target)
        watch.lap("stages")
        lowered([c.program for c in network.calls if all(t.size for t in c.program.outputs)], target, watch)

    return work


# --- what is measured -------------------------------------------------------------------------------------------------


def examples(target: Target) -> Iterator[tuple[str, Work]]:
    """The ops in examples/ops."""
    for name, shapes in EXAMPLES.items():
        text = (ROOT / f"examples/ops/{name}.tw").read_text()
        names = [t.name for t in parse_op(text).inputs]
        arrays = {n: np.zeros(shape, np.float32) for n, shape in zip(names, shapes.values(), strict=True)}
        yield name, text_work(text, arrays, {}, target)


def programs(target: Target) -> Iterator[tuple[str, Work]]:
    """The programs of docs/programs.md on the sizes that they are tested with."""
    sys.path.insert(0, str(ROOT / "tests"))
    from program_cases import CASES
    from test_programs import PROGRAMS, drawn

    for name, case in sorted(CASES.items()):
        names = [t.name for t in parse_op(PROGRAMS[name]).inputs]
        arrays = dict(zip(names, drawn(case, 0, False), strict=True))
        yield name, text_work(PROGRAMS[name], arrays, dict(case.parameters), target)


def operators(target: Target) -> Iterator[tuple[str, Work]]:
    """ONNX's node tests, as far as they are networks of known sizes that the operator library takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    for case in cases:
        try:
            graph = passes.simplify(import_model(case.model))
        except tw.TilewrightError:
            continue
        if not steering_inputs(graph) and all(v.is_concrete for v in graph.inputs):
            yield case.name, graph_work(graph, target)


# --- measuring --------------------------------------------------------------------------------------------------------


def forget() -> None:
    """Empty the caches of the language and the operators, but keep the parser."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("tilewright.dsl", "tilewright.ops", "tilewright.autotune")):
            for thing in vars(module).values():
                if isinstance(thing, functools._lru_cache_wrapper) and thing.__name__ != "_parser":
                    thing.cache_clear()


def fastest(work: Work) -> dict[str, float] | None:
    """Milliseconds by part of the fastest of a few runs; None for what cannot be run on this device."""
    best: Watch | None = None
    for _ in range(REPEATS):
        forget()
        watch = Watch()
        try:
            work(watch)
        except tw.TilewrightError:
            return None
        best = watch if best is None or watch.total < best.total else best
    return best.parts if best else None


def summary(times: dict[str, dict[str, float]]) -> dict[str, object]:
    """Median, 90th percentile and maximum of the totals, the median of each part, and the slowest ops."""
    totals = {name: sum(parts.values()) for name, parts in times.items()}
    slowest = sorted(totals, key=lambda name: -totals[name])[:5]
    names = dict.fromkeys(part for parts in times.values() for part in parts)
    return {
        "ops": len(totals),
        "median": statistics.median(totals.values()),
        "p90": float(np.percentile(list(totals.values()), 90)),
        "max": max(totals.values()),
        "over_10_ms": sum(t > 10 for t in totals.values()),
        "parts": {part: statistics.median(p.get(part, 0.0) for p in times.values()) for part in names},
        "slowest": {name: totals[name] for name in slowest},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="milliseconds from a text or a node to OpenCL C")
    parser.add_argument("--device", help="the device to write for, as in 'tilewright devices'")
    parser.add_argument("--operators", action="store_true", help="measure ONNX's node tests too (a minute or two)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    target = tw.select_device(options.device).target
    first = Watch()
    next(examples(target))[1](first)
    suites = {"examples": examples, "programs": programs} | ({"operators": operators} if options.operators else {})
    works = {name: dict(suite(target)) for name, suite in suites.items()}
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    found = {
        name: summary({op: parts for op, work in suite.items() if (parts := fastest(work)) is not None})
        for name, suite in works.items()
    }
    if options.profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    if options.json:
        json.dump({"first": first.total, **found}, sys.stdout, indent=2)
        print()
        return
    table = Table("", "ops", "median ms", "p90", "max", "over 10 ms", "median of parts", "slowest")
    for name, s in found.items():
        parts, slow = (", ".join(f"{k} {v:.1f}" for k, v in s[key].items()) for key in ("parts", "slowest"))  # type: ignore[attr-defined]
        figures = (f"{s[key]:.1f}" for key in ("median", "p90", "max"))
        table.add_row(name, str(s["ops"]), *figures, str(s["over_10_ms"]), parts, slow)
    Console(width=200).print(table)
    print(f"first: {first.total:.0f} ms")


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
