"""Starts of an engine on a network, each in a process of its own, for the benchmarks that measure them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import default_folder, source
from rich.console import Console
from rich.table import Table

ONNXRUNTIME = "onnxruntime"
"""The engine that is not ours; all other names are those of devices."""
Run = Callable[[], object]


def imported(engine: str) -> Callable[[str], Run]:
    """Import an engine and open its device; what makes a session of a file, and gives what runs that once."""
    make = _onnxruntime() if engine == ONNXRUNTIME else _tilewright(engine)

    def create(file: str) -> Run:
        session = make(file)
        feeds = {i.name: _image(i.shape) for i in session.get_inputs()}
        return lambda: session.run(None, feeds)

    return create


def _onnxruntime() -> Callable[[str], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return lambda file: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _tilewright(device: str) -> Callable[[str], Any]:
    from tilewright.graph.session import InferenceSession
    from tilewright.runtime import select_device

    opened = select_device(device)
    return lambda file: InferenceSession(file, device=opened)


def _image(shape: list[int | str | None]) -> np.ndarray:
    return np.zeros([n if isinstance(n, int) else 1 for n in shape], np.float32)


def alone(script: str, engine: str, file: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a script prints as JSON when it is told to `--start` an engine in a process of its own."""
    command = [sys.executable, script, "--start", engine, str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return dict(json.loads(done.stdout))


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that such benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("networks", nargs="*", default=["resnet50"], help="torchvision's names, or ONNX files")
    made.add_argument("--device", default="intel", help="a device's name (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    made.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    return made


def files(networks: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The networks with their files, made where that is needed."""
    for name in networks:
        yield name, Path(name) if name.endswith(".onnx") else source(name, default_folder()).file


def show(table: Table, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print the rows, as JSON or as they stand in the table."""
    if as_json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        Console().print(table)
