"""Networks in the form dequantise, compute, quantise: as integers, against onnxruntime, which does the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, model, random
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from tilewright.graph import passes
from tilewright.graph.ir import verify
from tilewright.graph.onnx_import import import_model
from tilewright.graph.placement import Place, placed_nodes
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Constants = Mapping[str, np.ndarray]
STEP = 0.05
"""The quantum of every output here."""


def weights(*shape: int) -> np.ndarray:
    """Of 7 bits: onnxruntime's products of u8 and i8 saturate in 16 bits on processors without VNNI."""
    return np.random.default_rng(list(shape)).integers(-64, 64, shape).astype(np.int8)


def parameters(per: int, like: type = np.uint8, zero: int = 119) -> dict[str, np.ndarray]:
    """Scales and zero points of an input, of weights per filter or column, and of an output; a bias for these."""
    rng = np.random.default_rng(per)
    scales = (rng.random(per) * 0.01 + 0.01).astype(np.float32)
    return {
        "xs": np.array(0.03, np.float32),
        "xz": np.array(zero, like),
        "ws": scales,
        "wz": np.zeros(per, np.int8),
        "ys": np.array(STEP, np.float32),
        "yz": np.array(0 if like is np.int8 else 121, like),
        "b": rng.integers(-999, 999, per).astype(np.int32),
        "bs": np.float32(0.03) * scales,
        "bz": np.zeros(per, np.int32),
    }


READ = "xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz)"
WRITE = "q = QuantizeLinear(r, ys, yz) y = DequantizeLinear(q, ys, yz)"
CONV = f"""g (float[2, 6, 9, 7] x) => (float[a, b, c, d] y) {{
    {READ} wd = DequantizeLinear <axis = 0> (w, ws, wz) bd = DequantizeLinear <axis = 0> (b, bs, bz)
    r = Conv <ATTRIBUTES> (xd, wd, bd) {WRITE} }}"""
MATMUL = f"""g (float[2, 5, 19] x) => (float[a, b, c] y) {{
    {READ} wd = DequantizeLinear <axis = 1> (w, ws, wz) r = MatMul(xd, wd) {WRITE} }}"""
ADDED = f"""g (float[2, 5, 19] x, float[11] z) => (float[a, b, c] y) {{
    {READ} wd = DequantizeLinear <axis = -1> (w, ws, wz) m = MatMul(xd, wd) s = Add(m, z) r = Relu(s) {WRITE} }}"""
GEMM = f"""g (float[5, 19] x) => (float[a, b] y) {{
    {READ} wd = DequantizeLinear <axis = 0> (w, ws, wz) bd = DequantizeLinear <axis = 0> (b, bs, bz)
    r = Gemm <transB = 1> (xd, wd, bd) {WRITE} }}"""


def proto_of(text: str, constants: Constants, opset: int = 17) -> onnx.ModelProto:
    """The model with those of the constants that it reads."""
    return model(text, opset, **{name: a for name, a in constants.items() if f"{name}," in text or f"{name})" in text})


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        i.name: (2 * random(*(d.dim_value for d in i.type.tensor_type.shape.dim))).astype(np.float32)
        for i in proto.graph.input
        if i.name in "xz"
    }


def operators(proto: onnx.ModelProto) -> list[str]:
    graph = passes.simplify(import_model(proto))
    verify(graph)
    return [n.op for n in graph.nodes]


CASES = {
    "convolution": (CONV.replace("ATTRIBUTES", "pads = [1, 0, 2, 1], strides = [2, 1]"), weights(5, 6, 3, 2)),
    "grouped": (CONV.replace("ATTRIBUTES", "group = 3"), weights(9, 2, 3, 3)),
    "depthwise": (CONV.replace("ATTRIBUTES", "group = 6, pads = [1, 1, 1, 1]"), weights(6, 1, 3, 3)),
    "matmul": (MATMUL, weights(19, 11)),
    "matmul and more": (ADDED, weights(19, 11)),
    "gemm": (GEMM, weights(11, 19)),
}


@pytest.mark.parametrize("like", [np.uint8, np.int8])
@pytest.mark.parametrize("name", CASES)
def test_products_of_integers_as_by_onnxruntime(name: str, like: type, device: Device) -> None:
    text, w = CASES[name]
    per = w.shape[1] if name.startswith("matmul") else w.shape[0]
    proto = proto_of(text, parameters(per, like, 119 if like is np.uint8 else 0) | {"w": w})
    ops = operators(proto)
    assert not {"Conv", "MatMul", "Gemm"} & set(ops)
    assert {"QLinearConv", "QLinearMatMul", "MatMulInteger"} & set(ops)
    x = feeds(proto)
    found = InferenceSession(proto, device, store=False).run(None, x)[0]
    wanted = by_onnxruntime(proto, x)[0]
    quanta = np.rint(np.abs(found - wanted) / STEP)
    assert quanta.max() <= 1  # onnxruntime multiplies sums by their scales in f32, which turns a tie now and then
    assert (quanta > 0).mean() <= 0.02


RESIDUAL = """g (float[1, 32, 32, 32] x) => (float[1, 32, 32, 32] y) {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r0 = Relu(c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1) a1 = Add(c1, x) r1 = Relu(a1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2) r2 = Relu(c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3, b3) a3 = Add(c3, r1) r3 = Relu(a3)
    c4 = Conv <pads = [1, 1, 1, 1]> (r3, w4, b4) r4 = Relu(c4)
    c5 = Conv <pads = [1, 1, 1, 1]> (r4, w5, b5) y = Add(c5, r3) }"""


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """Four images to find the ranges of values by."""

    def __init__(self) -> None:
        self.left = [{"x": random(1, 32, 32, 32, seed=seed)} for seed in range(1, 5)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image."""
        return self.left.pop() if self.left else None


def residual(folder: Path) -> onnx.ModelProto:
    """A residual network of dense 3x3 convolutions as onnxruntime quantises it; weights of 7 bits, see `weights`."""
    constants = {f"w{i}": random(32, 32, 3, 3, seed=i) / 17 for i in range(6)}
    constants |= {f"b{i}": random(32, seed=i) / 9 for i in range(6)}
    onnx.save(model(RESIDUAL, 17, **constants), folder / "floats.onnx")
    quantize_static(
        folder / "floats.onnx", folder / "bytes.onnx", Samples(), QuantFormat.QDQ, per_channel=True, reduce_range=True
    )
    return with_ties(onnx.load(folder / "bytes.onnx"))


def with_ties(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network with scales that are powers of two, so that many sums lie in the middle of two steps."""
    held = {i.name: i for i in proto.graph.initializer}
    scale_of = {n.output[0]: n.input[1] for n in proto.graph.node if n.op_type == "DequantizeLinear"}

    def write(name: str, value: np.ndarray) -> np.ndarray:
        held[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
        return value

    scales = {n: write(n, 2 ** np.ceil(np.log2(numpy_helper.to_array(held[n])))) for n in set(scale_of.values())}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            image, kernel, bias = (scale_of[name] for name in node.input)
            write(bias, scales[image] * scales[kernel])
    return proto


def test_a_residual_network_gives_the_bytes_of_onnxruntime(device: Device, tmp_path: Path) -> None:
    """Sums are exact: rounded ones, as of Winograd's tiles, tip ties, and later layers spread that."""
    proto = residual(tmp_path)
    assert operators(proto).count("QLinearConv") == 6
    x = {"x": random(1, 32, 32, 32, seed=9)}
    found = InferenceSession(proto, device, store=False).run(None, x)[0]
    wanted = by_onnxruntime(proto, x)[0]
    step = np.diff(np.unique(wanted)).min()
    assert len(np.unique(wanted)) > 100
    quanta = np.rint(np.abs(found - wanted) / step)
    assert quanta.max() <= 1
    assert (quanta > 0).mean() <= 1e-3


def test_placement_tells_products_of_integers() -> None:
    text, w = CASES["gemm"]
    nodes = placed_nodes(proto_of(text, parameters(11) | {"w": w}))
    assert {n.op: (n.place, n.reason) for n in nodes if n.reason} == {"Gemm": (Place.DEVICE, "as MatMulInteger")}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bs": np.full(5, 0.7, np.float32)}, "the bias counts in another scale"),
        ({"bz": np.ones(5, np.int32)}, "the bias has zero points"),
        ({"xz": np.array(119, np.uint16)}, "16 bits"),
    ],
)
def test_what_is_no_product_of_integers_stays_one_of_floats(change: Constants, why: str) -> None:
    text, w = CASES["convolution"]
    assert "Conv" in operators(proto_of(text, parameters(5) | {"w": w} | change, 21)), why


def test_a_relu_is_taken_in_where_saturation_does_the_same() -> None:
    text = CONV.replace("<ATTRIBUTES>", "").replace("r = Conv", "p = Conv").replace(WRITE, f"r = Relu(p) {WRITE}")
    for zero, expected in ((0, ["QLinearConv"]), (121, ["Conv", "Relu"])):
        given = parameters(5) | {"w": weights(5, 6, 3, 2), "yz": np.array(zero, np.uint8)}
        ops = operators(proto_of(text, given))
        assert [op for op in ops if op in {"QLinearConv", "Conv", "Relu"}] == expected


def test_a_product_that_somebody_else_reads_stays() -> None:
    text = MATMUL.replace("y) {", "y, float[a, b, c] r) {")
    ops = operators(proto_of(text, parameters(11) | {"w": weights(19, 11)}))
    assert "QLinearMatMul" not in ops
    assert "MatMulInteger" in ops


def test_products_of_computed_values_that_stay_floats_are_left_alone() -> None:
    text = MATMUL.replace("y) {", "y, float[a, b, c] r) {").replace("int8", "")
    given = parameters(11) | {"w": weights(19, 11)}
    computed = text.replace(
        "wd = DequantizeLinear <axis = 1> (w, ws, wz)", "wq = Transpose(xq) wd = DequantizeLinear(wq, xs, xz)"
    )
    assert "MatMul" in operators(proto_of(computed.replace("[2, 5, 19]", "[5, 19]").replace("a, b, c", "a, b"), given))
