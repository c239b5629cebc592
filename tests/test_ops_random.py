"""Random operators with a seed: the generator bit for bit, distributions, and the same numbers on every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import model, random
from onnx import TensorProto
from test_ops_quantised import one_node

from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

Array = np.ndarray[Any, Any]


def drawn(device: Device, op: str, feeds: dict[str, Any], kind: Any, opset: int = 22, **attributes: Any) -> Array:
    """What a node gives, which has to be the same twice."""
    proto = one_node(op, feeds, {"y": kind}, opset=opset, **attributes)
    session = InferenceSession(proto, device, store=False)
    found = session.run(None, feeds)[0]
    np.testing.assert_array_equal(found, session.run(None, feeds)[0])
    assert found.dtype == kind
    return np.asarray(found)


def words(seed: float, count: int) -> Array:
    """SplitMix64 in NumPy."""
    z = np.array(seed, np.float64).view(np.uint64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def test_uniform_numbers_bit_for_bit(device: Device) -> None:
    found = drawn(device, "RandomUniform", {}, np.float32, shape=[7, 11], seed=3.5)
    wanted = (words(3.5, 77) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    np.testing.assert_array_equal(found, wanted.reshape(7, 11))
    found = drawn(device, "RandomUniform", {}, np.float64, shape=[5], seed=3.5, dtype=TensorProto.DOUBLE)
    np.testing.assert_array_equal(found, (words(3.5, 5) >> np.uint64(11)) * 2.0**-53)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (400, 50)])
def test_uniform_numbers_like_others(shape: tuple[int, ...], device: Device) -> None:
    x = random(*shape)
    found = drawn(device, "RandomUniformLike", {"x": x}, np.float32, seed=1.0, low=-2.0, high=4.0)
    assert found.shape == shape
    assert ((found >= -2) & (found <= 4)).all()
    if found.size > 1000:
        assert abs(found.mean() - 1) < 0.05
        assert abs(found.std() - 6 / np.sqrt(12)) < 0.05


def test_normal_numbers(device: Device) -> None:
    found = drawn(device, "RandomNormal", {}, np.float32, shape=[300, 100], seed=7.0, mean=2.0, scale=3.0)
    assert np.isfinite(found).all()
    assert abs(found.mean() - 2) < 0.08
    assert abs(found.std() - 3) < 0.08
    assert abs((np.abs(found - 2) < 3).mean() - 0.6827) < 0.01
    other = drawn(device, "RandomNormal", {}, np.float32, shape=[300, 100], seed=8.0, mean=2.0, scale=3.0)
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.03


def test_bernoulli(device: Device) -> None:
    chance = np.linspace(0, 1, 20001, dtype=np.float32)
    found = drawn(device, "Bernoulli", {"x": chance}, np.float32, seed=2.0)
    assert set(np.unique(found)) == {0.0, 1.0}
    assert found[0] == 0
    assert found[-1] == 1
    assert abs(found.mean() - 0.5) < 0.02
    assert abs(found[:5000].mean() - 0.125) < 0.02
    truth = drawn(device, "Bernoulli", {"x": chance}, np.bool_, seed=2.0, dtype=TensorProto.BOOL)
    np.testing.assert_array_equal(truth, found == 1)


def test_multinomial(device: Device) -> None:
    chance = np.array([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        x = np.log(chance).astype(np.float32)
    found = drawn(device, "Multinomial", {"x": x}, np.int32, sample_size=20000, seed=5.0)
    assert found.shape == (2, 20000)
    np.testing.assert_allclose(np.bincount(found[0], minlength=3) / 20000, chance[0], atol=0.02)
    assert (found[1] == 0).all()


def test_without_a_seed_runs_differ(device: Device) -> None:
    proto = model("g (float[50] x) => (float[50] y) { n = RandomNormalLike(x)\n y = Add(n, x) }")
    session = InferenceSession(proto, device, store=False)
    first, second = (session.run(None, {"x": np.zeros(50, np.float32)})[0] for _ in range(2))
    assert (first != second).any()
