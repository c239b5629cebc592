"""Recurrent layers against onnxruntime and a float64 reference of the equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, random
from onnx import TensorProto, helper

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.graph.session import InferenceSession
from tilewright.ops import OPERATORS, Application, Operand
from tilewright.runtime import Device

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUTS = ("x", "w", "r", "b", "lens", "h", "c", "p")


@dataclass(frozen=True)
class Case:
    """A layer: attributes, sizes (steps, batch, input, hidden), and which optional inputs there are."""

    op: str
    attributes: Mapping[str, object] = field(default_factory=dict)
    sizes: tuple[int, int, int, int] = (5, 3, 7, 6)
    given: str = "b"
    lens: tuple[int, ...] = ()
    outputs: str = ""

    @property
    def directions(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    def arrays(self) -> dict[str, np.ndarray]:
        """All inputs by name."""
        steps, batch, width, hidden = self.sizes
        d, g = self.directions, GATES[self.op]
        found = {
            "x": random(steps, batch, width),
            "w": random(d, g * hidden, width, seed=1) * 0.4,
            "r": random(d, g * hidden, hidden, seed=2) * 0.4,
            "b": random(d, 2 * g * hidden, seed=3) * 0.5,
            "h": random(d, batch, hidden, seed=4),
            "c": random(d, batch, hidden, seed=5),
            "p": random(d, 3 * hidden, seed=6),
        }
        kept = {n: a.astype(np.float32) for n, a in found.items() if n in "xwr" or n in self.given}
        return kept | ({"lens": np.array(self.lens, np.int32)} if self.lens else {})

    def model(self, constant: str = "wrbp") -> onnx.ModelProto:
        """The layer alone; inputs named in `constant` are initializers."""
        arrays = self.arrays()
        names = [n if n in arrays else "" for n in INPUTS[: {"RNN": 6, "GRU": 6, "LSTM": 8}[self.op]]]
        wanted = self.outputs or {"RNN": "yh", "GRU": "yh", "LSTM": "yhc"}[self.op]
        outputs = [f"out_{o}" if o in wanted else "" for o in "yhc"[: 3 if self.op == "LSTM" else 2]]
        node = helper.make_node(self.op, names, outputs, hidden_size=self.sizes[3], **self.attributes)
        graph = helper.make_graph(
            [node],
            "layer",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in arrays.items()
                if n not in constant
            ],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs if o],
            [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in constant],
        )
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def feeds(self, constant: str = "wrbp") -> dict[str, np.ndarray]:
        return {n: a for n, a in self.arrays().items() if n not in constant}


BIDIRECTIONAL = {"direction": "bidirectional"}
REVERSE = {"direction": "reverse"}
CASES = {
    "rnn": Case("RNN"),
    "rnn, both ways, from a state": Case("RNN", BIDIRECTIONAL, given="bh"),
    "rnn, relu, reverse, lengths": Case("RNN", REVERSE | {"activations": ["Relu"]}, lens=(5, 2, 1)),
    "rnn, softsign and elu": Case(
        "RNN", BIDIRECTIONAL | {"activations": ["Softsign", "Elu"], "activation_alpha": [0.5]}, given=""
    ),
    "gru": Case("GRU", given="b"),
    "gru, clipped": Case("GRU", {"clip": 0.4}, given="bh"),
    "gru, both ways, linear first": Case("GRU", BIDIRECTIONAL | {"linear_before_reset": 1}, given="bh"),
    "gru, linear first, without bias": Case("GRU", {"linear_before_reset": 1}, given="h"),
    "gru, reverse, lengths": Case("GRU", REVERSE, given="bh", lens=(2, 5, 3)),
    "gru, both ways, lengths": Case("GRU", BIDIRECTIONAL | {"linear_before_reset": 1}, given="bh", lens=(2, 5, 1)),
    "gru, activations": Case(
        "GRU",
        BIDIRECTIONAL
        | {
            "activations": ["HardSigmoid", "ScaledTanh", "Sigmoid", "Affine"],
            "activation_alpha": [0.3, 0.9, 0.7],
            "activation_beta": [0.4, 0.8, 0.1],
        },
    ),
    "lstm": Case("LSTM"),
    "lstm, both ways, from a state": Case("LSTM", BIDIRECTIONAL, given="bhc"),
    "lstm, peepholes": Case("LSTM", {}, given="bhcp"),
    "lstm, peepholes, both ways, lengths": Case("LSTM", BIDIRECTIONAL, given="bhcp", lens=(4, 1, 5)),
    "lstm, coupled gates": Case("LSTM", {"input_forget": 1}, given="bc"),
    "lstm, clipped": Case("LSTM", {"clip": 0.3}, given="bhcp"),
    "lstm, reverse": Case("LSTM", REVERSE, given="h"),
    "lstm, more steps than one stack takes": Case("LSTM", BIDIRECTIONAL, sizes=(35, 1, 3, 4)),
    "lstm, sizes of one": Case("LSTM", BIDIRECTIONAL, sizes=(1, 1, 1, 1), given="bhcp"),
    "lstm, only the last state": Case("LSTM", outputs="h"),
    "lstm, only the cells": Case("LSTM", BIDIRECTIONAL, outputs="c"),
    "lstm, activations": Case("LSTM", {"activations": ["HardSigmoid", "Softsign", "Softplus"]}, given="bhcp"),
}


def _check(case: Case, device: Device, constant: str) -> None:
    proto, feeds = case.model(constant), case.feeds(constant)
    found = InferenceSession(proto, device, store=False).run(None, feeds)
    expected = by_onnxruntime(proto, feeds)
    assert len(found) == len(expected)
    for result, wanted in zip(found, expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("name", CASES)
def test_as_onnxruntime(name: str, device: Device) -> None:
    _check(CASES[name], device, "wrbp")


@pytest.mark.parametrize("name", ["gru, both ways, lengths", "lstm, peepholes, both ways, lengths"])
def test_weights_that_are_inputs(name: str, device: Device) -> None:
    """So are the sequences' lengths, here and above."""
    _check(CASES[name], device, "")


def _typed(proto: onnx.ModelProto, dtype: np.dtype) -> onnx.ModelProto:
    """The model with its floats in another type."""
    code = helper.np_dtype_to_tensor_dtype(dtype)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = code
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return proto


def _lstm_in_float64(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Y of one direction by the operator's equations."""
    a = {n: v.astype(np.float64) for n, v in arrays.items()}
    h, c = a["h"][0], a["c"][0]
    size, results = h.shape[1], []
    for x in a["x"]:
        gates = x @ a["w"][0].T + h @ a["r"][0].T + a["b"][0].reshape(2, -1).sum(0)
        i, o, f, g = (gates[:, k * size : (k + 1) * size] for k in range(4))
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        results.append(h)
    return np.stack(results)[:, None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-3), (np.float64, 1e-12)])
def test_other_types(dtype: type, tolerance: float, device: Device) -> None:
    case = Case("LSTM", given="bhc", outputs="y")
    proto = _typed(case.model(), np.dtype(dtype))
    arrays = {n: a.astype(dtype) for n, a in case.arrays().items()}
    found = InferenceSession(proto, device, store=False).run(None, {n: arrays[n] for n in ("x", "h", "c")})[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, _lstm_in_float64(arrays), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_batch_first(op: str, device: Device) -> None:
    """With `layout` 1 batches come first everywhere."""
    given = "bhc" if op == "LSTM" else "bh"
    plain = Case(op, BIDIRECTIONAL, given=given, lens=(2, 5, 3))
    turned = Case(op, BIDIRECTIONAL | {"layout": 1}, given=given, lens=(2, 5, 3))
    feeds = plain.feeds()
    moved = {n: a if n == "lens" else np.ascontiguousarray(a.swapaxes(0, 1)) for n, a in feeds.items()}
    proto = turned.model()
    for value in proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        for d, n in zip(sizes, moved[value.name].shape, strict=True):
            d.dim_value = n
    y, *last = InferenceSession(proto, device, store=False).run(None, moved)
    expected_y, *expected_last = by_onnxruntime(plain.model(), feeds)
    np.testing.assert_allclose(y, expected_y.transpose(2, 0, 1, 3), rtol=1e-4, atol=1e-5)
    for result, wanted in zip(last, expected_last, strict=True):
        np.testing.assert_allclose(result, wanted.swapaxes(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (3, 0, 3, 4), (3, 2, 0, 4)])
def test_nothing_to_do(sizes: tuple[int, int, int, int], device: Device) -> None:
    """No steps leave the state as it was, no inputs are inputs of zero."""
    case = Case("LSTM", sizes=sizes, given="bhc")
    y, h, c = InferenceSession(case.model(), device, store=False).run(None, case.feeds())
    assert y.shape == (sizes[0], 1, *h.shape[1:])
    if sizes[0] == 0:
        np.testing.assert_array_equal(h, case.arrays()["h"])
        np.testing.assert_array_equal(c, case.arrays()["c"])
    elif sizes[2] == 0:
        np.testing.assert_allclose(y, _lstm_in_float64(case.arrays()), rtol=1e-4, atol=1e-5)


def test_all_steps_are_the_same_kernels(device: Device) -> None:
    def kernels(steps: int) -> tuple[int, int]:
        case = Case("LSTM", BIDIRECTIONAL, sizes=(steps, 1, 4, 8), outputs="h")
        plan = InferenceSession(case.model(), device, store=False).plan(case.feeds())
        return len(plan.launches), len({c.program for c in plan.calls})

    (few, distinct), (many, as_distinct) = kernels(4), kernels(40)
    assert many - few <= 2 * 36
    assert as_distinct == distinct


def test_what_is_refused() -> None:
    shapes = (2, 1, 5), (1, 9, 5), (1, 9, 3)
    with pytest.raises(ValueError, match="there is no activation 'Gelu'; there are affine, elu, "):
        _built("GRU", {"activations": ("Sigmoid", "Gelu")}, *shapes)
    _built("GRU", {"activations": ("sigmoid", "Tanh")}, *shapes)
    x, w, r = (Operand(DType.F32, shape) for shape in ((5000, 1, 2), (1, 3, 2), (1, 3, 3)))
    with pytest.raises(UnsupportedError, match="a sequence of 5000 steps is too long"):
        OPERATORS["RNN"].build(Application("RNN", 17, {}, (x, w, r), (Operand(DType.F32, (5000, 1, 1, 3)),)))


def _built(op: str, attributes: Mapping[str, object], *shapes: tuple[int, ...]) -> None:
    inputs = tuple(Operand(DType.F32, shape) for shape in shapes)
    OPERATORS[op].build(Application(op, 17, attributes, inputs, (Operand(DType.F32, (2, 1, 1, 3)),)))


def test_sizes_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"its input 1 has the sizes \(1, 9, 4\), the others ask for \(1, 9, 5\)"):
        _built("GRU", {}, (2, 1, 5), (1, 9, 4), (1, 9, 3))
    with pytest.raises(ValueError, match=r"its input 3 has the sizes \(1, 9\), the others ask for \(1, 18\)"):
        _built("GRU", {}, (2, 1, 5), (1, 9, 5), (1, 9, 3), (1, 9))
    with pytest.raises(ValueError, match="weights for 1 directions do not fit its direction"):
        _built("RNN", BIDIRECTIONAL, (2, 1, 5), (1, 3, 5), (1, 3, 3))
