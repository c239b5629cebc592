"""The benchmark that says how much floating-point work the device does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from networks import model
from node_coverage import Coverage, covered, files, main, total

from tilewright.graph.plan import ProfileRow
from tilewright.runtime import Device


def row(op: str, family: str, microseconds: float, *types: str) -> ProfileRow:
    return ProfileRow(op, "", family, "", "", microseconds, 0.0, 0.0, types)


def test_rows_count_by_place_and_type() -> None:
    found = covered(
        "net",
        [
            row("Conv a", "contract", 900),
            row("TopK b", "host", 30, "f32", "i64"),
            row("Add c", "host", 50, "i64"),
            row("TopK d", "host", 50, "i64", "f16"),
            row("Cast e", "host", 20, "u8", "float8_e4m3fn"),
            row("StringConcat f", "host", 40, "object"),
        ],
    )
    assert (found.device_ms, found.host_float_ms, found.host_other_ms) == pytest.approx((0.9, 0.1, 0.09))
    assert found.host_float_ops == pytest.approx({"TopK": 0.08, "Cast": 0.02})
    assert found.share == pytest.approx(0.9)
    both = total("both", [found, Coverage("other", 1.0, 0.0, 0.0, {})])
    assert both.share == pytest.approx(0.95)
    assert covered("nothing", []).share == 1.0


def test_files_by_pattern(tmp_path: Path) -> None:
    for name in ("b/one.onnx", "a/two.onnx", "three.onnx", "b/other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in files(tmp_path, [])] == ["a/two", "b/one", "three"]
    assert [name for name, _ in files(tmp_path, ["b/*", "three"])] == ["b/one", "three"]


def test_a_folder_of_networks(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(model("g (float[1, 6] x) => (float[1, 6] y) { a = Exp(x) y = Neg(a) }"), tmp_path / "plain.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    result = tmp_path / "found.json"
    command = ["node_coverage.py", str(tmp_path), "--device", device.name, "--runs", "1", "--json", str(result)]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "plain"])
    assert main() == 0
    assert "1 of 1 have at least 99 %" in capsys.readouterr().out
    onnx.save(model("g (float[1, 6] x) => (int64[2, m] p) { e = Exp(x) p = NonZero(e) }"), tmp_path / "search.onnx")
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 1
    found = json.loads(result.read_text())
    assert list(found["failed"]) == ["broken"]
    plain, search = found["networks"]
    assert (plain["network"], plain["share"], plain["host_float_ops"]) == ("plain", 1.0, {})
    assert search["host_float_ops"].keys() == {"NonZero"}
    assert 0 < search["share"] < 1
