"""Whole networks beside onnxruntime.

By default a pairing runs that covers every network, all opsets and both batch sizes, the largest on one driver only;
``-m networks_full`` runs everything with everything. The networks are exporter output with generated weights, found in
`../shared/models` or where TILEWRIGHT_MODELS says.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, copies, planned

from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

MODELS = Path(os.environ.get("TILEWRIGHT_MODELS", Path(__file__).parents[2] / "shared" / "models"))
SEED = 0
"""Of the inputs; the networks' own default. Random weights amplify rounding on some inputs: with seed 1 onnxruntime's
own efficientnet_b0 is 1.2e-4 from double precision."""

TOLERANCE = 1e-4
"""Largest difference from onnxruntime, as a part of the largest output."""

OPSETS = (9, 11, 13, 17)
BATCHES = (1, 3)

REDUCED: dict[str, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    "alexnet": ((9, 1), (13, 3)),
    "vgg16": (None, (17, 1)),
    "resnet18": ((17, 3), (9, 1)),
    "resnet50": ((11, 1), (17, 3)),
    "squeezenet1_0": ((13, 3), (11, 1)),
    "googlenet": ((17, 1), None),
    "mobilenet_v2": ((9, 3), (13, 1)),
    "densenet121": ((9, 1), None),
    "efficientnet_b0": ((11, 3), (13, 1)),
}
"""(opset, batch) of each network on Intel's driver and on all others; None leaves it to the other."""

pytestmark = pytest.mark.skipif(
    not (MODELS / "materialize.py").exists(), reason=f"no networks in {MODELS}; set TILEWRIGHT_MODELS to their folder"
)


@lru_cache(maxsize=1)
def tools() -> ModuleType:
    """The networks' own script, which puts weights into the files."""
    spec = importlib.util.spec_from_file_location("materialize", MODELS / "materialize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def network(name: str, opset: int) -> onnx.ModelProto:
    """A network with its weights; the last one is kept."""
    proto: onnx.ModelProto = tools().materialize(str(MODELS / "torch" / f"ts-opset{opset}" / f"{name}.onnx"))
    return proto


def check(name: str, opset: int, batches: tuple[int, ...], device: Device) -> None:
    """One session gives onnxruntime's numbers at every batch size."""
    proto = network(name, opset)
    session = InferenceSession(proto, device, store=False)
    for batch in batches:
        feeds = tools().sample_inputs(proto, batch, SEED)
        expected = by_onnxruntime(proto, feeds)[0]
        result = session.run(None, feeds)[0]
        assert result.shape == expected.shape
        assert np.abs(result - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", REDUCED)
def test_network(name: str, device: Device) -> None:
    chosen = REDUCED[name][device.name != "intel-cpu"]
    if chosen is None:
        pytest.skip(f"{name} takes minutes; it runs on this device with -m networks_full")
    check(name, chosen[0], (chosen[1],), device)


@pytest.mark.networks_full
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", REDUCED)
def test_network_in_full(name: str, opset: int, device: Device) -> None:
    check(name, opset, BATCHES, device)


@pytest.mark.parametrize(
    ("name", "calls"),
    [("resnet18", 23), ("squeezenet1_0", 30), ("googlenet", 72), ("mobilenet_v2", 54), ("densenet121", 187)],
)
def test_fusion_leaves_few_kernels_and_no_copies(name: str, calls: int) -> None:
    """Activations, residual sums and concatenations are no kernels of their own."""
    proto = network(name, 13)
    plan = planned(proto, tools().sample_inputs(proto, 1, seed=1))
    assert len(plan.calls) == calls
    assert copies(plan) == 0
