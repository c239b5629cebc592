"""The CPU benchmark: networks beside other engines, what is kept, tables and picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cpu
import onnx
import pytest
from cpu_report import OURS, UNTUNED, Report, Row, means, plot, read, tables, to_json
from figures import Timing
from networks import model, random

from tilewright import cpu_peers
from tilewright.cpu_peers import CPU_PEERS, ONNXRUNTIME, OPENVINO, cpu_peer
from tilewright.errors import ModelError
from tilewright.runtime import Device


def at(median: float) -> Timing:
    return Timing(median, median, median, 5)


def row(network: str, batch: int, ours: float, onnxruntime: float) -> Row:
    return Row("pocl", network, batch, {OURS: at(ours), ONNXRUNTIME: at(onnxruntime)}, {"tuned": 1}, 1e-6, "2026-11-22")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small network."""
    path = tmp_path / "small.onnx"
    onnx.save(model("g (float[N,5] x) => (float[N,3] y) { y = MatMul (x, w) }", w=random(5, 3)), path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu.py", *arguments])
    cpu.main()


def test_a_network_beside_what_is_installed(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, picture = file.parent / "found" / "cpu.json", file.parent / "cpu.png"
    results.parent.mkdir()
    given = [str(file), "--device", device.name, "--seconds", "0", "--json", str(results), "--plot", str(picture)]
    run(monkeypatch, *given, "--batches", "1,4", "--untuned")
    found = read(results)
    assert [r.key for r in found.rows] == [(device.name, "small", 1), (device.name, "small", 4)]
    for each in found.rows:
        assert {OURS, UNTUNED, ONNXRUNTIME} <= set(each.wall) <= {OURS, UNTUNED, *CPU_PEERS}
        assert each.difference is not None
        assert each.difference < 1e-5
    assert picture.stat().st_size > 1000
    assert "| small" in capsys.readouterr().out
    before = results.read_bytes()
    run(monkeypatch, *given, "--batches", "1,4", "--missing")  # nothing is left to measure
    assert json.loads(results.read_bytes())["networks"] == json.loads(before)["networks"]
    run(monkeypatch, "--show", "--json", str(results))
    assert "geometric mean" in capsys.readouterr().out


def test_what_a_network_cannot_do_does_not_end_the_others(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = file.with_name("broken.onnx")
    broken.write_bytes(b"no network")
    run(monkeypatch, str(broken), str(file), "--device", device.name, "--seconds", "0", "--batches", "1")
    shown = capsys.readouterr()
    assert "broken, batch 1" in shown.err
    assert "| small" in shown.out


def test_results_of_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--json", str(other))
    assert "no results of this benchmark" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--show", "--json", str(tmp_path / "missing.json"))


def test_engines_give_the_same_and_missing_ones_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"x": random(4, 5)}
    runners = [cpu_peer(name, file, 1, feeds) for name in CPU_PEERS]
    for runner in runners:
        if runner is not None:
            (found,) = runner()
            assert found.shape == (4, 3)
            assert abs(found - feeds["x"] @ random(5, 3)).max() < 1e-5
    monkeypatch.setattr(cpu_peers.importlib.util, "find_spec", lambda name: None)
    assert cpu_peer(OPENVINO, file, 1, feeds) is None


def test_a_file_that_an_engine_cannot_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"onnxruntime cannot load .*broken\.onnx"):
        cpu_peer(ONNXRUNTIME, file, 1, {})


def test_means_are_by_device_batch_and_runner(tmp_path: Path) -> None:
    rows = (row("a", 1, 1.0, 2.0), row("b", 1, 1.0, 8.0), row("a", 8, 2.0, 1.0))
    found = means(rows, [ONNXRUNTIME, OPENVINO])
    assert [(m.batch, m.runner, m.mean, m.least, m.networks) for m in found] == [
        (1, ONNXRUNTIME, pytest.approx(4.0), 2.0, 2),
        (8, ONNXRUNTIME, pytest.approx(0.5), 0.5, 1),
    ]
    report = Report({"processor": "one"}, rows[:1]).with_row(rows[1]).with_row(rows[2]).with_row(rows[0])
    assert report.rows == rows
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(to_json(report)))
    assert read(file) == report
    assert "| a       |     8 | 2.00 |" in tables(report)
    assert not plot(Report({}), CPU_PEERS, tmp_path / "none.png")
