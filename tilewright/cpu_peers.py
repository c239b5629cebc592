"""Engines for CPUs that a network is timed beside, in f32: onnxruntime and OpenVINO, where they are installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import ModelError

ONNXRUNTIME = "onnxruntime"
OPENVINO = "openvino"
CPU_PEERS = (ONNXRUNTIME, OPENVINO)
"""Names of the engines, which are those of their packages on PyPI."""

Feeds = Mapping[str, npt.NDArray[Any]]
Runner = Callable[[], list[npt.NDArray[Any]]]
"""Runs a network once: its outputs in the file's order."""


def usable_cores() -> int:
    """Cores that this process may run on, which is what OpenCL's CPU drivers use too."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_peer(name: str, model: Path, threads: int, feeds: Feeds) -> Runner | None:
    """A function that runs a file on these inputs with that many threads; None if the engine is not installed.

    Raises ModelError if the engine cannot load the file.
    """
    if importlib.util.find_spec(name) is None:
        return None
    make = {ONNXRUNTIME: _onnxruntime, OPENVINO: _openvino}[name]
    try:
        return make(model, threads, feeds)
    except Exception as error:  # the engines' exceptions share no base class
        raise ModelError(f"{name} cannot load {model}: {error}") from error


def _onnxruntime(model: Path, threads: int, feeds: Feeds) -> Runner:
    """Its threads stop spinning when a run ends, so that they do not take the cores from whatever runs next."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    given = dict(feeds)
    return lambda: list(session.run(None, given))


def _openvino(model: Path, threads: int, feeds: Feeds) -> Runner:
    """Sizes are fixed to the inputs', and products stay f32 where the processor has narrower ones."""
    import openvino

    core = openvino.Core()
    network = core.read_model(str(model))
    network.reshape({name: list(a.shape) for name, a in feeds.items()})
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    compiled = core.compile_model(network, "CPU", {**hints, "INFERENCE_NUM_THREADS": str(threads)})
    request = compiled.create_infer_request()
    given = dict(feeds)

    def run() -> list[npt.NDArray[Any]]:
        results = request.infer(given, share_inputs=True)
        return [np.asarray(results[output]) for output in compiled.outputs]

    return run
