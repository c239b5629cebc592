"""`tilewright compare`: networks beside onnxruntime value by value."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model, random

from tilewright import compare
from tilewright.cli import main
from tilewright.errors import InputError, ModelError
from tilewright.runtime import Device

TEXT = """g (float[N, 6] x) => (float[N, 4] y, int64[2] sizes) {
    h = MatMul(x, w)
    r = Relu(h)
    s = Softmax(r)
    y = Add(s, b)
    sizes = Shape(y)
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "g.onnx"
    onnx.save(model(TEXT, w=random(6, 4), b=random(4)), path)
    return path


@pytest.fixture
def peer_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime with a fault in the softmax, which later values take over."""
    right = compare.by_onnxruntime

    def wrong(proto: onnx.ModelProto, names: Sequence[str], feeds: Any) -> dict[str, Any]:
        return {n: a + np.float32(0.01) if n in {"s", "y"} else a for n, a in right(proto, names, feeds).items()}

    monkeypatch.setattr(compare, "by_onnxruntime", wrong)


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_a_right_network_agrees(file: Path, device: Device, chunk: int) -> None:
    done: list[tuple[int, int]] = []
    result = compare.compare_values(
        file, ["x=3x6"], device=device.name, chunk=chunk, progress=lambda *at: done.append(at)
    )
    assert result.first is None
    assert [d.value for d in result.values] == ["h", "r", "s"]
    assert [d.value for d in result.outputs] == ["y", "sizes"]
    assert all(d.largest <= 1e-6 for d in (*result.values, *result.outputs))
    assert result.values[0].shape == (3, 4)
    assert done[-1] == (3, 3)


def test_the_first_difference_is_found(file: Path, peer_is_wrong: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(file), "--chunk", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["value"] == "s"
    assert found["first"]["op"] == "Softmax"
    assert found["first"]["largest"] == pytest.approx(0.01, rel=1e-3)
    assert [d["reason"] for d in found["values"][:2]] == [None, None]
    assert main(["compare", str(file)]) == 1
    out = capsys.readouterr().out
    assert "the first value that differs is 's', written by 's' (Softmax): differs by" in out
    assert "MatMul" in out
    assert main(["compare", str(file), "--tolerance", "0.5"]) == 0


def test_the_command_agrees(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(file), "--all"]) == 0
    out = capsys.readouterr().out
    assert "all 5 values agree" in out
    assert "Relu" in out
    assert main(["compare", str(file), "--precision", "fp16"]) == 0
    assert main(["compare", str(file), "--precision", "fp16", "--tolerance", "0"]) == 1


def test_onnxruntime_is_optional(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        compare.compare_values(file, [])


def test_what_onnxruntime_cannot_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(proto: onnx.ModelProto, names: Sequence[str], feeds: Any) -> dict[str, Any]:
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        changed.ir_version = 10_000
        return right(changed, names, feeds)

    right = compare.by_onnxruntime
    monkeypatch.setattr(compare, "by_onnxruntime", newer)
    with pytest.raises(ModelError, match="onnxruntime cannot run the network"):
        compare.compare_values(file, [])


LIMITS = compare.Limits(None, "fp32")
F = np.float32


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (np.array([1, 2], F), np.array([1, 2], F), None),
        (np.array([1, np.nan, np.inf], F), np.array([1, np.nan, np.inf], F), None),
        (np.array([1, 2], F), np.array([1, 2.1], F), "differs by 4.8e-02"),
        (np.array([1, np.nan], F), np.array([1, 2], F), "1 elements are NaN or infinite on one side only"),
        (np.array([1, -np.inf], F), np.array([1, np.inf], F), "1 elements are NaN"),
        (np.array([1], F), np.array([1, 2], F), "shape 1 instead of 2"),
        (np.array([1], F), np.array([1]), "type float32 instead of int64"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 elements differ"),
        (np.array(["a"]), np.array(["b"]), "other texts"),
        (np.zeros((0, 3), F), np.zeros((0, 3), F), None),
        ([np.array([1.0], F)], [np.array([2.0], F)], "differs by"),
        ([np.array([1.0], F)], [], "other lengths"),
        ([], [], None),
    ],
)
def test_what_counts_as_a_difference(ours: Any, theirs: Any, reason: str | None) -> None:
    found = compare._measured(ours, theirs, LIMITS)[3]
    assert (found is None) if reason is None else reason in (found or "")
