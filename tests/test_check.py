"""`tilewright check`: where each node of a network runs, without a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_operators
import pytest
from networks import model, random
from onnx import TensorProto, helper

from tilewright.cli import main
from tilewright.errors import UnsupportedOperatorError
from tilewright.graph.placement import Place, placed_nodes
from tilewright.graph.session import InferenceSession

MIXED = """g (float[N, 6] x, bool c) => (float[N, 4] y, int64[2, m] places, float[N, 4] z) {
    shape = Shape(x)
    one = Constant<value_ints = [1]>()
    axis = Identity(one)
    h = MatMul(x, w)
    y = Relu(h)
    places = NonZero(y)
    z = If(c) <
        then_branch = t () => (float[N, 4] a) { a = Neg(y) },
        else_branch = e () => (float[N, 4] b) { b = Exp(y) }
    >
}"""


def places(proto: onnx.ModelProto, **sizes: tuple[int, ...]) -> dict[str, Place]:
    return {n.name: n.place for n in placed_nodes(proto, sizes)}


def test_every_node_has_a_place() -> None:
    found = placed_nodes(model(MIXED, w=random(6, 4)))
    assert {n.name: n.place for n in found} == {
        "shape": Place.FOLDED,
        "one": Place.FOLDED,
        "axis": Place.FOLDED,
        "h": Place.DEVICE,
        "y": Place.DEVICE,
        "places": Place.HOST,
        "z": Place.HOST,
        "a": Place.DEVICE,
        "b": Place.DEVICE,
    }
    by_name = {n.name: n for n in found}
    assert by_name["z"].reason == "control flow"
    assert by_name["a"].inside == "z"
    assert by_name["y"].inside is None
    assert by_name["places"].reason


def test_a_normalisation_that_a_convolution_takes_in_runs_with_it() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        y = BatchNormalization(c, s, s, s, s)
    }"""
    found = places(model(text, w=random(4, 3, 3, 3), s=np.ones(4, np.float32)))
    assert found == {"c": Place.DEVICE, "y": Place.DEVICE}


def test_a_branch_that_is_known_runs_alone() -> None:
    text = """g (float[3] x) => (float[3] z) {
        z = If(c) <then_branch = t () => (float[3] a) { a = Neg(x) }, else_branch = e () => (float[3] b) { b = Exp(x) }>
    }"""
    assert places(model(text, c=np.array(True)))["z"] is not Place.HOST


def unheard(inside: bool) -> onnx.ModelProto:
    """Nodes of nobody's at the top or in the branches of a condition."""
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    nodes = [
        helper.make_node("Unheard", ["x"], ["u"], name="first", domain="of.somebody"),
        helper.make_node("Unseen", ["u"], ["y"], name="second", domain="of.somebody"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])]
    if inside:
        body = helper.make_graph(nodes, "b", [], [info])
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.somebody", 3)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [info]), opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_missing_is_what_a_session_refuses(inside: bool) -> None:
    """All of it at once, bodies included."""
    missing = [n for n in placed_nodes(unheard(inside)) if n.place is Place.MISSING]
    assert {n.name for n in missing} == {"first", "second"}
    assert all(n.opset == 3 and n.reason == "the operator is not supported" for n in missing)
    with pytest.raises(UnsupportedOperatorError) as caught:
        InferenceSession(unheard(inside), store=False)
    for n in missing:
        assert f"{n.name!r}: {n.op}" in str(caught.value)


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["check", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "g.onnx")
    onnx.save(model(MIXED, w=random(6, 4)), file)
    status, report = check_json(capsys, file, "--input", "x=2x6")
    assert status == 0
    assert report["runs"]
    assert report["counts"] == {"device": 4, "folded": 3, "host": 2, "missing": 0}
    assert {"name": "h", "op": "MatMul", "opset": 17, "place": "device", "reason": None, "inside": None} in report[
        "nodes"
    ]
    assert main(["check", file]) == 0
    out = capsys.readouterr().out
    assert "control flow" in out
    assert "4 device, 3 folded, 2 host" in out
    assert main(["check", file, "--all"]) == 0
    assert "places" in capsys.readouterr().out
    assert main(["check", file, "--input", file]) == 2
    assert "shapes of inputs" in capsys.readouterr().err


def test_the_command_on_what_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "g.onnx"
    onnx.save(unheard(True), file)
    status, report = check_json(capsys, str(file))
    assert status == 1
    assert not report["runs"]
    assert report["counts"]["missing"] == 4
    assert main(["check", str(file)]) == 1
    captured = capsys.readouterr()
    assert "of.somebody::Unheard" in captured.out
    assert "cannot run" in captured.err
    file.write_bytes(b"no model")
    assert main(["check", str(file)]) == 2


def test_no_device_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise AssertionError("a device was asked for")

    monkeypatch.setattr("tilewright.runtime.discovery.devices", none)
    assert places(model(MIXED, w=random(6, 4)), x=(2, 6))["h"] is Place.DEVICE


def test_the_table_of_operators_is_current() -> None:
    page = onnx_operators.PAGE.read_text()
    if f"onnx {onnx.__version__}, " not in page:
        pytest.skip("the table was made with another onnx")
    assert onnx_operators.table() in page, "run: python benchmarks/onnx_operators.py"
    assert onnx_operators.MISSING not in {place for _, _, place in onnx_operators.rows()}
