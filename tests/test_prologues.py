"""Pointwise steps in the contractions that read them: where, and with equal numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from networks import by_numpy, by_onnxruntime, model, random
from targets import CPU, GPU

from tilewright.dsl.target import Target
from tilewright.graph import passes
from tilewright.graph.calls import Network
from tilewright.graph.fusion import fuse
from tilewright.graph.layout import lay_out
from tilewright.graph.onnx_import import import_model
from tilewright.graph.steps import steps_of


def laid(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], target: Target) -> Network:
    graph = passes.simplify(import_model(proto))
    return lay_out(fuse(steps_of(passes.specialise(graph, {n: a.shape for n, a in feeds.items()}, {}))), target)


def check(text: str, feeds: Mapping[str, np.ndarray], target: Target = GPU, **constants: np.ndarray) -> list[str]:
    """The operators of each call; the network, interpreted by NumPy, gives onnxruntime's numbers."""
    proto = model(text, 17, **constants)
    network = laid(proto, feeds, target)
    found = by_numpy(network, feeds)
    for value, expected in zip(proto.graph.output, by_onnxruntime(proto, feeds), strict=True):
        np.testing.assert_allclose(found[value.name], expected, rtol=1e-4, atol=1e-4)
    return ["+".join(c.ops) for c in network.calls]


DENSE = """g (float[2, 40, 6, 5] x) => (float[2, 24, 6, 5] y) {
    n = BatchNormalization (x, scale, bias, mean, variance)
    r = Relu (n)
    y = Conv (r, w)
}"""
NORM = {"scale": random(40), "bias": random(40, seed=1), "mean": random(40, seed=2), "variance": random(40) ** 2 + 1}


def test_a_normalisation_ahead_of_a_1x1_convolution() -> None:
    feeds = {"x": random(2, 40, 6, 5)}
    assert check(DENSE, feeds, w=random(24, 40, 1, 1), **NORM) == ["Mul+Add+Relu+Conv"]
    assert check(DENSE, feeds, CPU, w=random(24, 40, 1, 1), **NORM) == ["Mul+Add+Relu", "Conv"]


@pytest.mark.parametrize(("kernel", "pads"), [((3, 3), "1, 1, 1, 1"), ((1, 3), "0, 1, 0, 1")])
def test_windows_of_several_taps_stay_apart(kernel: tuple[int, int], pads: str) -> None:
    text = DENSE.replace("Conv (r", f"Conv <pads = [{pads}]> (r")
    calls = check(text, {"x": random(2, 40, 6, 5)}, w=random(24, 40, *kernel), **NORM)
    assert calls == ["Mul+Add+Relu", "Conv"]


def test_wide_products_stay_apart() -> None:
    """Each tile of columns would compute the operand again."""
    text = DENSE.replace("[2, 24, 6, 5] y", "[2, 600, 6, 5] y")
    calls = check(text, {"x": random(2, 40, 6, 5)}, w=random(600, 40, 1, 1), **NORM)
    assert calls == ["Mul+Add+Relu", "Conv"]


def test_squeeze_and_excitation_scales_in_the_next_convolution() -> None:
    text = """g (float[2, 16, 6, 5] x) => (float[2, 24, 6, 5] y) {
        p = GlobalAveragePool (x)
        a = Conv (p, down)
        b = Relu (a)
        c = Conv (b, up)
        s = Sigmoid (c)
        m = Mul (x, s)
        y = Conv (m, w)
    }"""
    constants = {"down": random(4, 16, 1, 1), "up": random(16, 4, 1, 1), "w": random(24, 16, 1, 1)}
    assert check(text, {"x": random(2, 16, 6, 5)}, **constants)[-1] == "Mul+Conv"


def test_what_others_read_is_written() -> None:
    text = DENSE.replace("y) {", "y, float[2, 40, 6, 5] r) {")
    calls = check(text, {"x": random(2, 40, 6, 5)}, w=random(24, 40, 1, 1), **NORM)
    assert calls == ["Mul+Add+Relu", "Conv"]


def test_two_large_operands_are_added_once() -> None:
    text = """g (float[2, 40, 6, 5] x, float[2, 40, 6, 5] z) => (float[2, 24, 6, 5] y) {
        a = Add (x, z)
        y = Conv (a, w)
    }"""
    feeds = {"x": random(2, 40, 6, 5), "z": random(2, 40, 6, 5, seed=1)}
    assert check(text, feeds, w=random(24, 40, 1, 1)) == ["Add", "Conv"]
