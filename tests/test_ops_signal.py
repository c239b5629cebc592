"""Fourier transforms against NumPy in double precision, on uneven shapes, and windows against ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import model, planned, random
from onnx.reference import ReferenceEvaluator
from test_ops_quantised import one_node

from tilewright.errors import TilewrightError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Array = np.ndarray[Any, Any]


def pairs(z: Array) -> Array:
    """Complex numbers as pairs in a last dimension."""
    return np.stack([z.real, z.imag], -1)


def as_complex(x: Array) -> Array:
    """Pairs, or real numbers, of a last dimension as complex numbers in f64."""
    wide = x.astype(np.float64)
    return wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0]


def transformed(x: Array, axis: int, length: int | None, inverse: int, onesided: int) -> Array:
    """What ONNX's DFT says, by NumPy."""
    z = as_complex(x)
    if inverse and onesided:
        return np.fft.irfft(z, length, axis)[..., None]
    full = (np.fft.ifft if inverse else np.fft.fft)(z, length, axis)
    return pairs(full.take(range(full.shape[axis] // 2 + 1), axis) if onesided else full)


TRANSFORMS = {
    "real": ((2, 10, 3, 1), 1, None, 0, 0),
    "complex, inverse": ((2, 9, 3, 2), 1, None, 1, 0),
    "first axis, onesided": ((7, 3, 1), 0, None, 0, 1),
    "longer than the signal": ((2, 10, 1), 1, 16, 0, 1),
    "shorter than the signal": ((3, 10, 2), 1, 7, 0, 0),
    "half a spectrum back, even": ((2, 6, 2), 1, None, 1, 1),
    "half a spectrum back, odd": ((2, 6, 2), 1, 11, 1, 1),
    "one element": ((2, 1, 2), 1, None, 0, 0),
    "no signals": ((0, 4, 1), 1, None, 0, 0),
    "long": ((2, 1536, 2), 1, None, 0, 0),
    "long, inverse": ((1, 1500, 2, 2), 1, None, 1, 0),
    "long, real, onesided, filled up": ((1, 2000, 1), 1, 2048, 0, 1),
    "long and prime": ((1, 2053, 1), 1, None, 0, 0),
}
"""Shape, axis, length, inverse, onesided."""


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, device: Device) -> None:
    shape, axis, length, inverse, onesided = TRANSFORMS[name]
    feeds: Any = {"x": random(*shape), "n": None if length is None else np.array(length), "axis": np.array(axis)}
    proto = one_node("DFT", feeds, {"y": np.float32}, opset=20, inverse=inverse, onesided=onesided)
    given = {n: a for n, a in feeds.items() if a is not None}
    found = InferenceSession(proto, device, store=False).run(None, given)[0]
    wanted = transformed(given["x"], axis, length, inverse, onesided)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, 1e-5, 4e-6 * max(1.0, float(np.abs(wanted).max(initial=0))))


def test_older_transforms_name_their_axis_by_attribute(device: Device) -> None:
    x = random(3, 4, 5, 1).astype(np.float64)
    proto = one_node("DFT", {"x": x}, {"y": np.float64}, opset=17, axis=2)
    found = InferenceSession(proto, device, store=False).run(None, {"x": x})[0]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, transformed(x, 2, None, 0, 0), 1e-12, 1e-12)


def test_a_short_transform_is_one_kernel() -> None:
    proto = model("g (float[2, 16, 1] x) => (float[2, 9, 2] y) { y = DFT <onesided = 1> (x) }")
    assert len(planned(proto, {"x": random(2, 16, 1)}).calls) == 1


def test_an_axis_that_is_none_is_named(device: Device) -> None:
    feeds: Any = {"x": random(2, 4, 1), "n": None, "axis": np.array(5)}
    proto = one_node("DFT", feeds, {"y": np.float32}, opset=20)
    with pytest.raises(TilewrightError, match="axis"):
        InferenceSession(proto, device, store=False).run(None, {"x": feeds["x"], "axis": feeds["axis"]})


FRAMES = {
    "overlapping": ((2, 50, 1), 7, 16, 16, 1),
    "complex, whole spectra": ((1, 40, 2), 5, 10, 10, 0),
    "no window": ((2, 33, 1), 8, None, 8, 1),
    "one frame": ((1, 9, 1), 4, 9, 9, 1),
}
"""Shape, step, length of the window, of the frames, onesided."""


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name: str, device: Device) -> None:
    shape, step, width, length, onesided = FRAMES[name]
    window = None if width is None else np.abs(random(width, seed=1))
    feeds: Any = {"x": random(*shape), "step": np.array(step), "w": window, "n": np.array(length)}
    proto = one_node("STFT", feeds, {"y": np.float32}, opset=17, onesided=onesided)
    given = {n: a for n, a in feeds.items() if a is not None}
    found = InferenceSession(proto, device, store=False).run(None, given)[0]
    z = as_complex(feeds["x"])
    starts = range(0, shape[1] - length + 1, step)
    frames = np.stack([z[:, s : s + length] * (1 if window is None else window) for s in starts], 1)
    wanted = np.fft.fft(frames, axis=-1)
    wanted = pairs(wanted[..., : length // 2 + 1] if onesided else wanted)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-5)


def test_frames_are_onesided_unless_said_otherwise(device: Device) -> None:
    proto = model(
        """g (float[1, 20, 1] x) => (float[a, b, c, d] y) {
            step = Constant <value = int64 {4}> ()
            n = Constant <value = int64 {8}> ()
            y = STFT (x, step, , n)
        }"""
    )
    x = random(1, 20, 1)
    assert InferenceSession(proto, device, store=False).run(None, {"x": x})[0].shape == (1, 4, 5, 2)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op: str, size: int, periodic: int, device: Device) -> None:
    if size == 1 and not periodic:
        pytest.skip("ONNX divides by zero here")
    proto = one_node(op, {"n": np.array(size, np.int32)}, {"y": np.float32}, opset=17, periodic=periodic)
    wanted = ReferenceEvaluator(proto).run(None, {"n": np.array(size, np.int32)})[0]
    found = InferenceSession(proto, device, store=False).run(None, {"n": np.array(size, np.int32)})[0]
    np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)


def test_mel_weights(device: Device) -> None:
    feeds: Any = {
        "bins": np.array(8, np.int32),
        "length": np.array(64, np.int32),
        "rate": np.array(8192, np.int32),
        "low": np.array(100, np.float32),
        "high": np.array(4000, np.float32),
    }
    proto = one_node("MelWeightMatrix", feeds, {"y": np.float32}, opset=17)
    wanted = ReferenceEvaluator(proto).run(None, feeds)[0]
    found = InferenceSession(proto, device, store=False).run(None, feeds)[0]
    np.testing.assert_allclose(found, wanted, 1e-6, 1e-6)
