"""Recurrent layers against onnxruntime and a float64 reference of the equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from networks import by_onnxruntime, random
from onnx import TensorProto, helper

from tilewright.graph.session import InferenceSession
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


@pytest.mark.parametrize("name", CASES)
def test_as_onnxruntime(name: str, device: Device) -> None:
    _check(CASES[name], device, "wrbp")
