"""Tuning many networks: shares of a total, resuming, and going on after an error."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tune_gpu
from networks import model
from tune_gpu import Combination, Shares, finished

from tilewright.bench import in_turns, interleaved
from tilewright.errors import TilewrightError
from tilewright.runtime import Device
from tilewright.tuning_db import Store

SMALL = """
small (float[N,4] x) => (float[N,3] y) {
    m = MatMul(x, w)
    y = Relu(m)
}
"""


def combinations(*names: str) -> list[Combination]:
    """One per network."""
    return [Combination(name, "fp32", 1) for name in names]


def test_a_budget_for_each_is_what_each_gets() -> None:
    a, b = combinations("a", "b")
    assert Shares(5.0, None).seconds(a, 10, [b]) == 5.0
    assert Shares(None, None).seconds(a, 10, [b]) == tune_gpu.DEFAULT


def test_a_total_is_shared_by_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tune_gpu.time, "monotonic", lambda: now[0])
    a, b, c = combinations("a", "b", "c")
    shares = Shares(None, 100.0)
    # nothing is known of the others, which count as much as the first
    assert shares.seconds(a, 10, [b, c]) == pytest.approx(100 / 3)
    now[0] = 40.0
    # b has 30 stages, c is taken for the mean of both
    assert shares.seconds(b, 30, [c]) == pytest.approx(60 * 30 / 50)
    now[0] = 99.0
    assert shares.seconds(c, 10, []) == tune_gpu.LEAST
    assert Shares(3.0, 1000.0).seconds(a, 10, []) == 3.0


def test_a_log_tells_what_is_done(tmp_path: Path) -> None:
    log = tmp_path / "winners.log"
    assert finished(log) == set()
    line = json.dumps({"combination": {"network": "a", "precision": "fp16", "batch": 4}, "after": 1.0})
    log.write_text(line + '\n{"combination": {"netw')
    assert finished(log) == {Combination("a", "fp16", 4)}


def test_networks_are_tuned_and_kept_and_not_tuned_again(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 3), np.float32)
    onnx.save(model(SMALL, w=weights), tmp_path / "small.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    store = Store.open(tmp_path / "tuning.sqlite")
    monkeypatch.setattr(tune_gpu, "default_store", lambda: store)
    out = tmp_path / "winners"
    arguments = ["tune_gpu.py", "--device", device.name, "--networks", "broken,small", "--precisions", "fp32"]
    # fifteen processes at once take 3 s each to open a card, and as long to compile the first kernels
    budget = "5s" if device.kind == "cpu" else "30s"
    arguments += ["--batches", "1,2", "--models", str(tmp_path), "--out", str(out), "--budget", budget]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(tune_gpu.signal, "signal", lambda *_: None)
    tune_gpu.main()
    said = capsys.readouterr()
    assert said.err.count("broken fp32 batch 1 failed: ModelError") == 1
    assert said.err.count("broken fp32 batch 2 failed: ModelError") == 1
    assert said.out.count("small fp32 batch ") == 2
    rows = [json.loads(line) for line in (tmp_path / "winners.log").read_text().splitlines()]
    assert [r["combination"]["batch"] for r in rows] == [1, 2]
    assert all(r["before"] > 0 and r["after"] > 0 and r["seconds"] > 0 for r in rows)
    files = list(out.glob("*.jsonl"))
    assert len(files) == 1
    # a new database takes over what the folder holds, and only what failed is tried again
    fresh = Store.open(tmp_path / "fresh.sqlite")
    monkeypatch.setattr(tune_gpu, "default_store", lambda: fresh)
    tune_gpu.main()
    said = capsys.readouterr()
    assert "2 of 4 combinations" in said.err
    assert not said.out
    assert len(fresh.ls()) == len(store.ls()) > 0


def test_a_combination_that_had_no_time_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(interrupted=False, before=0.0, after=0.0, seconds=5.0, evaluations=0, statuses={})
    monkeypatch.setattr(tune_gpu, "tune", lambda *_, **__: nothing)
    with pytest.raises(TilewrightError, match="no kernel was measured in 5 s; it needs a longer budget"):
        tune_gpu.tuned(tune_gpu.Combination("n", "fp32", 1), {}, 5.0, None, None, None)


def test_winners_are_written_before_the_log_and_not_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, log = [0.0], tmp_path / "log"
    monkeypatch.setattr(tune_gpu.time, "monotonic", lambda: now[0])
    lines_then: list[int] = []

    class Winners:
        def export_shipped(self, folder: Path) -> int:
            lines_then.append(len(log.read_text().splitlines()) if log.exists() else 0)
            return 7

    keeper = tune_gpu.Keeper(Winners(), tmp_path, log)  # type: ignore[arg-type]
    a, b, c = (tune_gpu.Result(k, 1, 2.0, 1.0, 3, {}, 1.0) for k in combinations("a", "b", "c"))
    keeper.add(a)
    assert not log.exists()
    now[0] = keeper.INTERVAL
    keeper.add(b)
    keeper.add(c)
    assert finished(log) == {a.combination, b.combination}
    assert keeper.write() == 7
    assert finished(log) == {a.combination, b.combination, c.combination}
    assert lines_then == [0, 2]


def test_the_first_of_a_burst_is_not_counted() -> None:
    calls: list[str] = []

    def timer(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    found = in_turns({"a": lambda: timer("a", 1.0), "b": lambda: timer("b", 2.0)}, 0.0, 4, burst=3)
    assert calls == ["a", "b"] * 2 + (["a"] * 3 + ["b"] * 3) * 2
    assert found == {"a": (1.0,) * 4, "b": (2.0,) * 4}
    assert len(interleaved({"f": lambda: None}, 0.0, 5, burst=2)["f"]) == 5


def test_calls_while_a_turn_settles_are_not_counted() -> None:
    count = 0

    def timer() -> float:
        nonlocal count
        count += 1
        time.sleep(0.002)
        return float(count)

    (found,) = in_turns({"f": timer}, 0.0, 2, burst=2, settling=0.01).values()
    assert len(found) == 2
    assert found[0] > 2 + 2, "two warm-up calls, those of the settling and the first of the burst come before"
    assert found[1] > found[0] + 2
