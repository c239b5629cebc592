"""The GPU benchmark: networks and kernels beside PyTorch on the same numbers, in turns in one process.

    python benchmarks/gpu.py                                       # everything
    python benchmarks/gpu.py --networks resnet50 --precisions fp32 --batches 1,16 --gemm 4096
    python benchmarks/gpu.py --show first.json second.json --plot docs/gpu.png
    make bench-gpu ARGS="--networks vit_b_16"

PyTorch runs in eager mode and captured in a CUDA graph; ours are sessions with inputs and outputs in device memory.
Prints tables, and writes JSON and a picture where asked to. Results are added to what the JSON file holds of this
device and driver already, so that a long table can be measured in parts; Ctrl-C shows what there is. Without PyTorch
(`pip install torch torchvision`) or without CUDA there are our figures alone. Status 2, with one line, where there is
no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyopencl
from figures import numbers, words
from gpu_kernels import kernel_rows
from gpu_networks import Options, network_rows, say
from gpu_plot import plot
from gpu_report import KernelRow, NetworkRow, Report, kernel_table, network_tables, read, resume, to_json
from models import default_folder

import tilewright as tw
from tilewright import torch_peer
from tilewright.folders import write_atomically
from tilewright.runtime import devices

BATCHES = (1, 16, 64)
GEMM_SIZES = (1024, 2048, 4096, 8192)
NO_DEVICE = 2


def machine(device: tw.Device, date: str) -> dict[str, str]:
    """Device, driver and versions."""
    return {
        "device": device.opencl_name,
        "driver": device.driver,
        "platform": device.platform,
        "date": date,
        "tilewright": tw.__version__,
        "python": platform.python_version(),
        "pyopencl": pyopencl.VERSION_TEXT,
        **torch_peer.versions(),
    }


def chosen_device(name: str | None) -> tw.Device:
    """The device of that name, else the first GPU; DeviceError if there is none."""
    if name is not None:
        return tw.select_device(name)
    found = devices()
    gpu = next((d for d in found if d.kind == "gpu"), None)
    if gpu is None:
        names = ", ".join(d.name for d in found)
        raise tw.DeviceError(f"OpenCL finds no GPU here (only {names}), so nothing is measured; --device takes another")
    return gpu


def measured(report: Report, options: Options, sizes: tuple[int, ...], keep: Callable[[Report], None]) -> Report:
    """The report with everything that was asked for, or that was measured before Ctrl-C.

    ``keep`` is called after every row.
    """
    skipped: list[str] = []

    def skip(reason: str) -> None:
        say(f"left out: {reason}")
        skipped.append(reason)

    def rows() -> Iterator[NetworkRow | KernelRow]:
        yield from network_rows(options, skip)
        yield from kernel_rows(options, sizes, skip) if sizes else ()

    try:
        for row in rows():
            report = report.with_rows(*(((row,), ()) if isinstance(row, NetworkRow) else ((), (row,))))
            keep(report)
    except KeyboardInterrupt:
        skip("the rest: stopped")
    return Report(report.machine, report.networks, report.kernels, tuple(skipped))


def stored(files: Sequence[Path]) -> Report:
    """What files of one device and driver hold together, later files in place of earlier ones; ValueError if not."""
    report: Report | None = None
    for file in files:
        if not file.is_file():
            raise ValueError(f"there is no file {file}")
        part = read(file) if report is None else resume(file, report.machine)
        report = part if report is None else report.with_rows(part.networks, part.kernels)
    return report or Report({})


def written(report: Report, file: Path | None) -> None:
    """Write the report as JSON, if a file was given."""
    if file is not None:
        write_atomically(file, (json.dumps(to_json(report), indent=1) + "\n").encode())


def shown(report: Report) -> str:
    """The tables with a line about the machine."""
    m = report.machine
    peers = ", ".join(f"{name} {m[name]}" for name in ("torch", "cuda", "cudnn", "torchvision") if name in m)
    parts = [f"{m['device']}, driver {m['driver']}, {m['date']}, tilewright {m['tilewright']}, {peers or 'no PyTorch'}"]
    parts += [network_tables(report)] if report.networks else []
    parts += [f"kernels: milliseconds\n\n{kernel_table(report)}"] if report.kernels else []
    parts += ["left out:\n" + "\n".join(f"- {line}" for line in report.skipped)] if report.skipped else []
    return "\n\n".join(parts)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="networks and kernels beside PyTorch on a GPU, in milliseconds")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices' (default: the first GPU)")
    parser.add_argument("--networks", type=words, default=torch_peer.NETWORKS, help="names (default: all eight)")
    parser.add_argument("--batches", type=numbers, default=BATCHES, help="sizes (default: 1,16,64)")
    parser.add_argument("--precisions", type=words, default=torch_peer.PRECISIONS, help="default: fp32,tf32,fp16,bf16")
    parser.add_argument("--gemm", type=numbers, default=GEMM_SIZES, help="sizes of square products; '' for no kernels")
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder of ONNX files (default: export)")
    parser.add_argument("--seconds", type=float, default=1.5, help="time to measure each (default: %(default)s)")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each network and kernel first, for instance 30s")
    parser.add_argument("--alone", action="store_true", help="without PyTorch even if it is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, added to what it holds")
    parser.add_argument("--missing", action="store_true", help="leave out what the JSON file holds already")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture there (needs matplotlib)")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="FILE", help="measure nothing: tables and picture of these JSON files"
    )
    return parser


def main() -> None:
    parser = _arguments()
    given = parser.parse_args()
    try:
        report = stored(given.show) if given.show else _measure(parser, given)
    except ValueError as error:
        parser.error(str(error))
    print(shown(report))
    if given.plot:
        try:
            plot(report, given.plot)
        except ImportError:
            say(f"{given.plot} is not drawn: matplotlib is not installed")


def _measure(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Report:
    """What the command line asks for; ValueError if the JSON file is of another device."""
    unknown = [n for n in given.networks if given.models is None and n not in torch_peer.NETWORKS]
    unknown += [p for p in given.precisions if p not in torch_peer.PRECISIONS]
    if unknown:
        parser.error(f"{', '.join(unknown)} is unknown; networks are {', '.join(torch_peer.NETWORKS)}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    device = chosen_device(given.device)
    date = datetime.date.today().isoformat()
    report = resume(given.json, machine(device, date)) if given.json else Report(machine(device, date))
    if not given.alone and device.kind == "gpu" and not torch_peer.has_cuda():
        say("PyTorch with CUDA is not installed, so there is nothing to compare with: pip install torch torchvision")
    options = Options(
        device,
        given.networks,
        given.batches,
        given.precisions,
        given.seconds,
        given.models,
        given.tune,
        not given.alone,
        date,
        _keys(report) if given.missing else frozenset(),
    )
    report = measured(report, options, given.gemm, lambda r: written(r, given.json))
    written(report, given.json)
    return report


def _keys(report: Report) -> frozenset[tuple[object, ...]]:
    return frozenset(r.key for r in report.networks) | frozenset(r.key for r in report.kernels)


if __name__ == "__main__":
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    try:
        main()
    except tw.TilewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NO_DEVICE)
