"""Constants that are packed in every run: where that is, what it saves, and that numbers stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from memory_plan import H100
from networks import model, planned, random

from tilewright.dsl.target import Shape
from tilewright.graph import packing, passes
from tilewright.graph.calls import Network
from tilewright.graph.checks import Checks
from tilewright.graph.footprint import footprint
from tilewright.graph.megakernels import started
from tilewright.graph.onnx_import import import_model
from tilewright.graph.packing import packed_in_runs
from tilewright.graph.plan import Plan, PlannedCall, SharedConstants, recipe_of
from tilewright.graph.planned import planned_calls
from tilewright.graph.planning import Planner
from tilewright.runtime import Device, context


def layers(rows: int, width: int) -> onnx.ModelProto:
    """Products of `rows` vectors with four weights."""
    return model(
        f"g (float[{rows},{width}] x) => (float[{rows},{width}] y) "
        "{ a = MatMul(x, w0)  b = MatMul(a, w1)  c = MatMul(b, w2)  y = MatMul(c, w3) }",
        **{f"w{n}": random(width, width, seed=n) for n in range(4)},
    )


def for_h100(rows: int, precision: str) -> tuple[Network, tuple[PlannedCall, ...]]:
    graph = passes.simplify(import_model(layers(rows, 2048)))
    sizes = {v.name: v.sizes for v in graph.inputs}
    network, _ = Planner(H100, None, precision).network(passes.specialise(graph, sizes, {}))
    return network, planned_calls(network, H100, None)


def total(network: Network, calls: tuple[PlannedCall, ...]) -> int:
    return footprint(network, calls, False, 512, H100.max_allocation).total


def test_two_parts_of_weights_are_scratch_where_much_is_computed_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LEFT", 0.95)  # four weights are little beside what they are multiplied by
    network, calls = for_h100(12288, "fp32")
    found = packed_in_runs(network, calls, H100)
    assert all(c.ahead for c in calls)
    assert not any(c.ahead for c in found)
    assert total(network, found) < 0.95 * total(network, calls)


@pytest.mark.parametrize(
    ("rows", "precision"),
    [(2048, "fp32"), (12288, "fp16")],
    ids=["little is computed with each weight", "packed weights are no larger"],
)
def test_other_weights_are_packed_once(rows: int, precision: str) -> None:
    network, calls = for_h100(rows, precision)
    assert packed_in_runs(network, calls, H100) == calls


def test_nothing_changes_on_cpus() -> None:
    network, calls = for_h100(12288, "fp32")
    cpu = replace(H100, target=replace(H100.target, shape=Shape.CPU))
    assert packed_in_runs(network, calls, cpu) == calls


def test_numbers_of_weights_packed_in_every_run(device: Device) -> None:
    proto, x = layers(37, 70), random(37, 70)
    network, ctx = planned(proto, {"x": x}), context(device)
    calls = planned_calls(network, device, None)
    repacked = tuple(replace(c, ahead=frozenset()) for c in calls)
    recipes = [(c, recipe_of(network, c, ctx, Checks())) for c in (calls, repacked)]
    plans = [Plan(network, c, r, started(r, device.target), ctx, SharedConstants()) for c, r in recipes]
    once, always = (plan.run({"x": x})["y"] for plan in plans)
    again = plans[1].run({"x": x})["y"]
    assert len(plans[1].launches) > len(plans[0].launches)
    expected = x.astype(np.float64) @ np.linalg.multi_dot([random(70, 70, seed=n).astype(np.float64) for n in range(4)])
    np.testing.assert_allclose(once, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(always, once)
    np.testing.assert_array_equal(again, once)
