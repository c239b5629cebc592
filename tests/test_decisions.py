"""`tilewright compare --decisions`: networks whose scores nearly tie, beside onnxruntime."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model, random
from onnx import numpy_helper

from tilewright import decisions
from tilewright.cli import main
from tilewright.errors import InputError
from tilewright.runtime import Device

TEXT = """g (float[N, 6] x) => (float[N, 50] y, int64[N, 50] place, float[M] high) {
    h = MatMul(x, w)
    top, place = TopK(h, count)
    y = Mul(top, top)
    passed = Greater(h, limit)
    mask = Reshape(passed, line)
    high = Compress(h, mask)
}"""
"""The best of nearly equal scores, and those above a threshold."""

CHOICE = """g (float[4] x) => (int64[K] y) {
    h = Mul(x, x)
    c = Less(low, high)
    y = If (c) <
        then_branch = one () => (int64[K] kept) {
            passed = Greater(h, low)
            at = NonZero(passed)
            kept = Reshape(at, line)
        },
        else_branch = other () => (int64[K] none) { none = Identity(nothing) }
    >
}"""
"""A body that decides on a value it takes from around it."""

Peer = Callable[[onnx.ModelProto, Sequence[str], Any], dict[str, Any]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    w = random(6, 1) * (1 + 1e-7 * random(1, 400))  # columns that are equal but for their last digits
    constants = {"count": np.array([50]), "limit": np.float32(0.1), "line": np.array([-1])}
    path = tmp_path_factory.mktemp("decisions") / "g.onnx"
    onnx.save(model(TEXT, w=w.astype(np.float32), **constants), path)
    return path


def rounded_otherwise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network with each weight a few units in the last place off: how another order of sums rounds."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for tensor in changed.graph.initializer:
        if tensor.name == "w":
            w = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(w * (1 + np.float32(2e-7) * random(*w.shape)), "w"))
    return changed


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, Any], Any]], None]:
    """Replaces onnxruntime by one that rounds otherwise and whose results are changed by name."""
    right: Peer = decisions.by_onnxruntime

    def use(change: Callable[[str, Any], Any]) -> None:
        def changed(proto: onnx.ModelProto, names: Sequence[str], feeds: Any) -> dict[str, Any]:
            return {n: change(n, a) for n, a in right(rounded_otherwise(proto), names, feeds).items()}

        monkeypatch.setattr(decisions, "by_onnxruntime", changed)

    return use


def test_near_ties_are_no_fault(file: Path, device: Device, peer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peer(lambda name, array: array)
    result = decisions.compare_decisions(file, ["x=3x6"], device=device.name)
    own = {d.value: d.reason for d in result.outputs}
    assert "elements differ" in (own["place"] or "")  # each side has its own order
    assert result.first is None
    assert [(d.op, d.value) for d in result.decisions] == [("TopK", "top"), ("TopK", "place"), ("Greater", "passed")]
    assert [d.value for d in result.values] == ["h", "y", "high"]
    assert all(d.largest <= 1e-5 for d in result.values)
    assert main(["compare", str(file), "--decisions", "--device", device.name]) == 0
    out = capsys.readouterr().out
    assert "all 3 results of decisions are equal, and all 3 values agree" in out
    assert "output 'place' of runs that decide for themselves: " in out


def test_a_wrong_decision_is_found(file: Path, peer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal numbers, but the peer takes the first two in another order."""

    def swapped(name: str, array: np.ndarray) -> np.ndarray:
        return array[:, [1, 0, *range(2, 50)]] if name.endswith(": place") else array

    peer(swapped)
    assert main(["compare", str(file), "--decisions", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first"]["value"] == "place"
    assert main(["compare", str(file), "--decisions"]) == 1
    assert "'place', written by 'top' (TopK), decided otherwise: 2 of 50 elements differ" in capsys.readouterr().out


def test_a_wrong_value_is_found(file: Path, peer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peer(lambda name, array: array * np.float32(1.01) if name in {"h", "y"} else array)
    assert main(["compare", str(file), "--decisions"]) == 1
    assert "'h', written by 'h' (MatMul), after equal decisions: differs by" in capsys.readouterr().out
    assert main(["compare", str(file), "--decisions", "--tolerance", "0.1", "--all"]) == 0
    assert "passed" in capsys.readouterr().out


def test_bodies_that_decide_count_as_a_whole(tmp_path: Path, device: Device) -> None:
    constants = {"low": np.float32(0.5), "high": np.float32(1), "nothing": np.zeros(0, np.int64)}
    constants["line"] = np.array([-1])
    proto = model(CHOICE, **constants)
    assert [n.op_type for n in decisions.deciding(proto)] == ["Less", "If"]
    path = tmp_path / "choice.onnx"
    onnx.save(proto, path)
    result = decisions.compare_decisions(path, ["x=4"], device=device.name)
    assert result.first is None
    assert [d.value for d in result.values] == ["h"]
    assert result.is_undisturbed


def test_sizes_are_not_decided() -> None:
    nodes = "a = Shape(x) b = Floor(x) c = Cast <to: int = 7> (b)"
    text = f"g (float[N] x) => (int64[1] a, float[N] b, int64[N] c) {{ {nodes} }}"
    assert [n.op_type for n in decisions.deciding(model(text))] == ["Floor", "Cast"]


def test_onnxruntime_is_needed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        decisions.compare_decisions(file, [])
