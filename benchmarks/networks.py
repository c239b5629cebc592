"""Networks beside onnxruntime: milliseconds of both, run in turns in one process on equal inputs and threads.

    python benchmarks/networks.py --device intel-cpu --tune 2m model.onnx

Without files it takes ResNet-18 and -50 with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import onnx
from resnet import STAGES, resnet
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import PEER, Comparison, compare
from tilewright.feeds import network_feeds


def measure(model: Path, device: tw.Device, batch: int, tune: str | None, seconds: float) -> Comparison:
    """One network, tuned first if asked for."""
    session = tw.InferenceSession(model, device=device)
    if tune:
        session.tune(tune, feeds=network_feeds(session.get_inputs(), (), batch))
    return compare(model, session, (), batch, seconds)


def _models(files: list[Path], folder: Path) -> list[Path]:
    if files:
        return files
    for depth in STAGES:
        onnx.save(resnet(depth), folder / f"resnet{depth}.onnx")
    return [folder / f"resnet{depth}.onnx" for depth in STAGES]


def _table(results: list[Comparison], device: str) -> Table:
    table = Table("model", "batch", "tilewright ms", "onnxruntime ms", "ratio", "difference", title=f"on {device}")
    for r in results:
        peer = (f"{1e3 * r.median(PEER):.2f}", f"{r.ratio:.2f}", f"{r.difference:.1e}") if r.ratio else ("-",) * 3
        table.add_row(r.model, str(r.batch), f"{1e3 * r.median():.2f}", *peer)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="networks beside onnxruntime, in milliseconds")
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files (default: ResNet-18 and -50)")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--batch", type=int, default=1, help="what an open first size becomes (default: %(default)s)")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each network first, for instance 2m")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        models = _models(options.models, Path(folder))
        results = [measure(m, device, options.batch, options.tune, options.seconds) for m in models]
    if options.json:
        json.dump([r.to_json() for r in results], sys.stdout, indent=2)
        print()
    else:
        Console().print(_table(results, device.name))


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
