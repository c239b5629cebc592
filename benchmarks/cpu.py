"""Networks on CPUs beside onnxruntime and OpenVINO: milliseconds, run in turns in one process on equal inputs.

    python benchmarks/cpu.py                                  # every CPU driver, batch 1 and 8
    python benchmarks/cpu.py --device intel-cpu --networks resnet50 --batches 1 --tune 2m
    python benchmarks/cpu.py --device pocl model.onnx
    make bench ARGS="--json build/cpu.json --missing --plot build/cpu.png"

All engines get the cores that this process may use, and compute in f32; what is not installed is left out. Networks
are files of one's own, those of a folder (--models or $TILEWRIGHT_MODELS, see models.py), else ResNet-18 and -50 with
random weights. *untuned* is our session without a database. Results are added to what the JSON file holds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from cpu_report import UNTUNED, Report, Row, plot, read, tables, to_json
from figures import numbers, timing, words
from models import default_folder, source
from resnet import STAGES, resnet

import tilewright as tw
from tilewright.bench import compare
from tilewright.cpu_peers import CPU_PEERS, usable_cores
from tilewright.feeds import network_feeds
from tilewright.folders import write_atomically
from tilewright.runtime import devices

NETWORKS = (
    "alexnet", "resnet18", "resnet50", "vgg16", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_large",
    "efficientnet_b0", "densenet121", "googlenet", "shufflenet_v2_x1_0", "resnext50_32x4d", "convnext_tiny", "vit_b_16",
)  # fmt: skip
BATCHES = (1, 8)


@dataclass(frozen=True)
class Options:
    """What is to be measured, and how."""

    seconds: float
    """Of measuring, per row."""
    tune: str | None
    """Budget of tuning per row before it is measured."""
    untuned: bool
    """Whether a session without a database takes turns too."""


def measure(model: Path, device: tw.Device, batch: int, options: Options) -> Row:
    """One network at one batch size on one device."""
    session = tw.InferenceSession(model, device)
    feeds = network_feeds(session.get_inputs(), (), batch)
    if options.tune:
        session.tune(options.tune, feeds=feeds)
    others = {UNTUNED: tw.InferenceSession(model, device, store=False)} if options.untuned else {}
    found = compare(model, session, (), batch, options.seconds, CPU_PEERS, others)
    origins = Counter(call.choice.origin for call in session.plan(feeds).calls)
    wall = {name: timing(times) for name, times in found.seconds.items()}
    date = datetime.date.today().isoformat()
    return Row(device.name, model.stem, batch, wall, dict(origins), found.difference, date)


def machine() -> dict[str, str]:
    """Processor, cores and versions."""
    from importlib import metadata

    found = {"processor": next((d.opencl_name for d in devices() if d.kind == "cpu"), platform.processor())}
    found |= {"cores": str(usable_cores()), "python": platform.python_version(), "tilewright": tw.__version__}
    for name in CPU_PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "date": datetime.date.today().isoformat()}


@contextmanager
def files(given: argparse.Namespace) -> Iterator[dict[str, Path]]:
    """The networks' files by name."""
    if given.files:
        yield {file.stem: file for file in given.files}
    elif given.models is not None:
        yield {name: source(name, given.models).file for name in given.networks}
    else:
        with tempfile.TemporaryDirectory() as folder:
            made = {f"resnet{depth}": Path(folder) / f"resnet{depth}.onnx" for depth in STAGES}
            for depth, file in zip(STAGES, made.values(), strict=True):
                onnx.save(resnet(depth), file)
            yield made


def measured(given: argparse.Namespace, report: Report) -> Report:
    """The report with everything that was asked for; each row is kept as soon as it is there."""
    chosen = [tw.select_device(name) for name in given.device] or [d for d in devices() if d.kind == "cpu"]
    options = Options(given.seconds, given.tune, given.untuned)
    known = {r.key for r in report.rows} if given.missing else set()
    with files(given) as found:
        todo = [(d, n, b) for n in found for b in given.batches for d in chosen if (d.name, n, b) not in known]
        for device, name, batch in todo:
            try:
                row = measure(found[name], device, batch, options)
            except tw.TilewrightError as error:
                print(f"{name}, batch {batch}, {device.name} is left out: {error}", file=sys.stderr)
                continue
            times = ", ".join(f"{runner} {t.median:.2f}" for runner, t in row.wall.items())
            print(f"{name}, batch {batch}, {device.name}: {times} ms", file=sys.stderr, flush=True)
            report = report.with_row(row)
            if given.json:
                write_atomically(given.json, (json.dumps(to_json(report), indent=1) + "\n").encode())
    return report


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="networks on CPUs beside onnxruntime and OpenVINO, in milliseconds")
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files")
    parser.add_argument("--device", type=words, default=(), help="names, see 'tilewright devices' (default: all CPUs)")
    parser.add_argument("--networks", type=words, default=NETWORKS, help="names in the folder (default: all fourteen)")
    parser.add_argument("--batches", type=numbers, default=BATCHES, help="what an open first size becomes: 1,8")
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder of ONNX files")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to measure each (default: %(default)s)")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each network first, for instance 2m")
    parser.add_argument("--untuned", action="store_true", help="time our session without a database as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, added to what it holds")
    parser.add_argument("--missing", action="store_true", help="leave out what the JSON file holds already")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture there (needs matplotlib)")
    parser.add_argument("--show", action="store_true", help="measure nothing: table and picture of the JSON file")
    return parser


def main() -> None:
    parser = _arguments()
    given = parser.parse_args()
    if given.show and not (given.json and given.json.is_file()):
        parser.error("--show needs the JSON file of an earlier run: --json FILE")
    try:
        old = read(given.json).rows if given.json and given.json.is_file() else ()
    except ValueError as error:
        parser.error(str(error))
    report = read(given.json) if given.show else measured(given, Report(machine(), old))
    print(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    print(tables(report))
    if given.plot:
        plot(report, CPU_PEERS, given.plot)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
