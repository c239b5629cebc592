"""The operator library on every device, on sizes that ONNX's own cases (`test_backend.py`) lack."""

from __future__ import annotations

import numpy as np
import pytest
from networks import by_numpy, by_onnxruntime, model, planned, random

from tilewright.graph.session import InferenceSession
from tilewright.ops import OPERATORS
from tilewright.runtime import Device

# --- on devices -------------------------------------------------------------------------------------------------------

IMAGE = "float[N, 6, 9, 10] x"
WEIGHTS = {"w": random(8, 6, 3, 3), "b": random(8)}
ON_DEVICE = {
    "convolution, dilated, asymmetric": (
        f"g ({IMAGE}) => (float[a, b, c, d] y) "
        "{ y = Conv <dilations = [2, 1], pads = [2, 0, 1, 3], strides = [1, 2]> (x, w, b) }",
        WEIGHTS,
    ),
    "convolution, padded to the same size": (
        f'g ({IMAGE}) => (float[a, b, c, d] y) {{ y = Conv <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w) }}',
        {"w": WEIGHTS["w"]},
    ),
    "grouped convolution and its epilogue": (
        f"""g ({IMAGE}) => (float[a, b, c, d] y) {{
            c = Conv <group = 3, pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu(c)
            y = Add(r, k)
        }}""",
        {"w": random(12, 2, 3, 3), "b": random(12), "k": random(1, 12, 9, 10)},
    ),
    "depthwise convolution and its gate": (
        f"""g ({IMAGE}) => (float[a, b, c, d] y) {{
            c = Conv <group = 6, strides = [2, 2]> (x, w, b)
            s = Sigmoid(c)
            y = Mul(c, s)
        }}""",
        {"w": random(6, 1, 3, 3), "b": random(6)},
    ),
    "convolution along one dimension": (
        "g (float[N, 4, 20] x) => (float[a, b, c] y) { y = Conv <strides = [2], pads = [1, 2]> (x, w) }",
        {"w": random(5, 4, 4)},
    ),
    "convolution along three dimensions": (
        "g (float[N, 3, 5, 6, 7] x) => (float[a, b, c, d, e] y) { y = Conv <pads = [1, 0, 1, 1, 0, 1]> (x, w) }",
        {"w": random(4, 3, 3, 2, 3)},
    ),
    "resizing along three dimensions": (
        'g (float[N, 3, 4, 6, 5] x) => (float[a, b, c, d, e] y) { y = Resize <mode = "linear"> (x, none, s) }',
        {"none": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 1.5, 0.6], np.float32)},
    ),
    "pools": (
        f"""g ({IMAGE}) => (float[a, b, c, d] m, float[a, b, e, f] p, float[a, b, g, h] q) {{
            m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 1], ceil_mode = 1> (x)
            p = AveragePool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1]> (x)
            q = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)
        }}""",
        {},
    ),
    "squeeze and excite": (
        f"""g ({IMAGE}) => (float[a, b, c, d] y) {{
            x1 = Conv(x, v)
            p = GlobalAveragePool(x1)
            c = Conv(p, w, b)
            s = HardSigmoid(c)
            y = Mul(x1, s)
        }}""",
        {"v": random(6, 6, 1, 1), "w": random(6, 6, 1, 1), "b": random(6)},
    ),
    "gemm, all transposed and scaled": (
        "g (float[7, N] x) => (float[N, 5] y) { y = Gemm <alpha = 0.5, beta = 2.0, transA = 1, transB = 1> (x, w, c) }",
        {"w": random(5, 7), "c": random(1, 5)},
    ),
    "matrix products in batches": (
        "g (float[N, 2, 4, 5] x) => (float[N, 2, 4, 3] y) { t = MatMul(x, w)\n y = Add(t, b) }",
        {"w": random(2, 5, 3), "b": random(3)},
    ),
    "attention": (
        """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
            k = Transpose <perm = [0, 2, 1]> (x)
            s = MatMul(x, k)
            p = Softmax <axis = -1> (s)
            y = MatMul(p, x)
        }""",
        {},
    ),
    "layer normalisation by hand": (
        """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
            m = ReduceMean <axes = [-1]> (x)
            d = Sub(x, m)
            two = Constant <value = float {2.0}> ()
            q = Pow(d, two)
            v = ReduceMean <axes = [-1]> (q)
            e = Constant <value = float {0.00001}> ()
            f = Add(v, e)
            s = Sqrt(f)
            y = Div(d, s)
        }""",
        {},
    ),
    "transposed convolution and its epilogue": (
        """g (float[N, 4, 5, 6] x) => (float[a, b, c, d] y) {
            c = ConvTranspose <strides = [2, 3], pads = [1, 1, 0, 1], output_padding = [0, 1], group = 2> (x, w, b)
            y = LeakyRelu(c)
        }""",
        {"w": random(4, 3, 3, 4), "b": random(6)},
    ),
    "frames of repeated elements": (
        """g (float[N, 4, 5, 6] x) => (float[a, b, c, d] r, float[a, b, c, d] e, float[a, b, c, d] w) {
            p = Constant <value = int64[8] {0, 0, 2, 3, 0, 0, 1, 4}> ()
            r = Pad <mode = "reflect"> (x, p)
            e = Pad <mode = "edge"> (x, p)
            w = Pad <mode = "wrap"> (x, p)
        }""",
        {},
    ),
    "concatenation, split and slices": (
        f"""g ({IMAGE}) => (float[a, b, c, d] y) {{
            c1 = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            c2 = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
            j = Concat <axis = 1> (c1, c2, x)
            l, r = Split <axis = 1> (j)
            m = Mul(l, r)
            starts = Constant <value = int64[1] {{1}}> ()
            ends = Constant <value = int64[1] {{9}}> ()
            axes = Constant <value = int64[1] {{3}}> ()
            steps = Constant <value = int64[1] {{3}}> ()
            y = Slice(m, starts, ends, axes, steps)
        }}""",
        WEIGHTS,
    ),
    "integers and comparisons": (
        """g (int64[N, 5] x) => (bool[N, 5] y, int64[N, 5] z, float[N, 5] c) {
            k = Constant <value = int64 {3}> ()
            q = Div(x, k)
            m = Mod(x, k)
            y = Greater(q, m)
            z = Where(y, q, m)
            c = Cast <to = 1> (z)
        }""",
        {},
    ),
}
"""Graphs in ONNX text with their constants; the open batch is 2."""


TRANSPOSED = [
    "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
    "strides = [3, 2], pads = [0, 1, 1, 0], output_padding = [1, 0]",
    "strides = [1, 1], dilations = [2, 3], pads = [2, 1, 0, 3]",
    'strides = [2, 3], auto_pad = "SAME_UPPER"',
    'strides = [2, 3], auto_pad = "SAME_LOWER"',
    "strides = [4, 4], output_padding = [1, 1]",
]


@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_transposed_convolutions(attributes: str) -> None:
    """ONNX's own cases have weights that are no constants."""
    text = f"g (float[2, 4, 5, 6] x) => (float[a, b, c, d] y) {{ y = ConvTranspose <{attributes}> (x, w) }}"
    proto = model(text, w=random(4, 3, 3, 3))
    x = {"x": random(2, 4, 5, 6)}
    np.testing.assert_allclose(by_numpy(planned(proto, x), x)["y"], by_onnxruntime(proto, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_on_device(name: str, device: Device) -> None:
    text, constants = ON_DEVICE[name]
    opset = 19 if "frames" in name else 17
    proto = model(text, opset, **constants)
    value = proto.graph.input[0]
    shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
    x = random(*shape) if value.type.tensor_type.elem_type == 1 else np.arange(-4, 6).reshape(shape)
    expected = by_onnxruntime(proto, {"x": x})
    found = InferenceSession(proto, device, store=False).run(None, {"x": x})
    for result, wanted in zip(found, expected, strict=True):
        assert result.dtype == wanted.dtype
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4)


def test_every_operator_has_a_description() -> None:
    assert all(o.build.__doc__ for o in OPERATORS.values())
