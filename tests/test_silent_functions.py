"""Functions of a file that do not write their outputs: ONNX's checker passes them, whoever reads them is refused."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

from tilewright import InferenceSession
from tilewright.errors import ModelError
from tilewright.graph.onnx_import import import_model

SILENT = """
    <domain: "own", opset_import: ["" : 18]>
    f (p) => (r) { other = Neg (p) }"""


def calling(body: str) -> onnx.ModelProto:
    """A network of nodes that may call `f`, which writes something else than its output."""
    header = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>'
    proto = onnx.parser.parse_model(f"{header} g (float[3] x, bool c) => (float[3] y) {{ {body} }} {SILENT}")
    onnx.checker.check_model(proto)
    return proto


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ("a = own.f (x) y = Relu (a)", "a"),
        ("a = own.f (x) b = If (c) <then_branch = t () => (float[3] d) { d = Neg (a) }, "
         "else_branch = e () => (float[3] d) { d = Relu (x) }> y = Relu (b)", "a"),
        ("b = If (c) <then_branch = t () => (float[3] d) { q = own.f (x) d = Neg (q) }, "
         "else_branch = e () => (float[3] d) { d = Relu (x) }> y = Relu (b)", "q"),
        ("b = If (c) <then_branch = t () => (float[3] d) { d = Neg (x) }, "
         "else_branch = e () => (float[3] d) { d = own.f (x) }> y = Relu (b)", "d"),
        ("n = Constant <value_int = 2> () y = Loop (n, c, x) <body = l (int64 i, bool k, float[3] v) => "
         "(bool k2, float[3] w) { k2 = Identity (k) w = own.f (v) }>", "w"),
    ],
    ids=["node", "captured", "branch", "result of a branch", "result of a loop"],
)  # fmt: skip
@pytest.mark.parametrize("load", [lambda m: import_model(m, hosted=True), lambda m: InferenceSession(m, store=False)])
def test_what_reads_an_unwritten_result_is_refused(
    load: Callable[[onnx.ModelProto], object], body: str, missing: str
) -> None:
    with pytest.raises(
        ModelError, match=f"is not a valid ONNX model: node .* reads '{missing}' before anything writes it"
    ):
        load(calling(body))
