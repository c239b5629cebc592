"""ONNX's conformance suite on every driver, and the backend interface that it goes through.

What is known not to pass stands in `conformance_expected.json`, with the reason; the list may only shrink, and nothing
on it may be a wrong result: refusals, random numbers, and last places in which the suite is no more right. By default
a quarter of the plain cases and what is on the list run on one driver, and a sixteenth of all on each;
``-m conformance_full`` runs the rest, with whole networks.
"""

from __future__ import annotations

import unittest
import zlib

import conformance
import numpy as np
import onnx
import pytest
from conformance import PASSED, RANDOM, REFUSED, ROUNDING
from conftest import chosen_devices
from networks import model, random
from onnx import TensorProto, helper
from onnx.backend.test import BackendTest

from tilewright.errors import DeviceError, InputError, ModelError, UnsupportedOperatorError
from tilewright.graph import backend
from tilewright.runtime import Device, select_device

PLAIN_PART = 4
"""One in so many plain cases runs on the first driver."""
PART = 16
"""One in so many cases runs on every driver."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case on every device; those that are left out by default carry a mark."""
    if "place" not in metafunc.fixturenames:
        return
    metafunc.parametrize(
        ("place", "name"),
        [
            pytest.param(d.name, name, marks=[] if _by_default(name, at) else [pytest.mark.conformance_full])
            for at, d in enumerate(chosen_devices(metafunc.config))
            for name in conformance.cases()
        ],
    )


def _by_default(name: str, at: int) -> bool:
    """Whole networks take minutes to compile, and definitions by other operators are a second form of plain cases."""
    if name.startswith("real/"):
        return False
    number = zlib.crc32(name.encode())
    plain = number % PLAIN_PART == 0 and "_expanded" not in name
    return (at == 0 and (plain or name in conformance.expected().cases)) or number % PART == 0


def test_conformance(place: str, name: str) -> None:
    outcome = conformance.run_case(conformance.cases()[name], select_device(place))
    known = conformance.expected()
    why = known.cases.get(name)
    if outcome.status == PASSED:
        assert why is None, "it passes: take it off the list"
    elif outcome.status in {RANDOM, ROUNDING}:
        assert why == outcome.status, outcome.message
    else:
        assert outcome.status == REFUSED, outcome.message
        if why is None and known.onnx != onnx.__version__:
            pytest.skip(f"not in the suite of onnx {known.onnx}: {outcome.message}")
        assert why is not None, outcome.message


def test_the_list_names_cases_of_the_suite() -> None:
    known = conformance.expected()
    if known.onnx != onnx.__version__:
        pytest.skip(f"the list was made with onnx {known.onnx}")
    assert known.cases.keys() <= conformance.cases().keys()
    assert len(conformance.cases()) > 2000


# --- the interface ----------------------------------------------------------------------------------------------------

ADD = "g (float[n] x, float[n] y) => (float[n] s, float[n] d) { s = Add(x, y) d = Sub(x, y) }"


def test_onnx_own_runner_takes_the_module() -> None:
    suite = BackendTest(backend, __name__).include(
        "^test_add_c|^test_relu_c|^test_PReLU_1d_c|^test_single_relu_model_c"
    )
    result = unittest.TestResult()
    for case in suite.test_cases.values():
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun >= 8
    assert not result.failures
    assert not result.errors
    skipped = {str(case).split()[0] for case, reason in result.skipped if "doesn't support device CUDA" in reason}
    assert skipped >= ({"test_add_cuda", "test_relu_cuda"} if not backend.supports_device("CUDA") else set())


def test_inputs_by_order_and_by_name(device: Device) -> None:
    x, y = random(5), random(5, seed=1)
    prepared = backend.prepare(model(ADD), device.name)
    by_order, by_name = prepared.run([x, y]), prepared.run({"y": y, "x": x})
    assert np.array_equal(by_order[0], x + y)
    assert np.array_equal(by_order["d"], x - y)
    assert all(np.array_equal(a, b) for a, b in zip(by_order, by_name, strict=True))
    (alone,) = backend.run_model(model("g (float[n] x) => (float[n] y) { y = Neg(x) }"), x, device.name)
    assert np.array_equal(alone, -x)


def test_inputs_with_defaults_may_be_left_out(device: Device) -> None:
    """Files before IR 4 list their weights among the inputs."""
    proto = model("g (float[n] x, float[1] w) => (float[n] y) { y = Mul(x, w) }", w=np.array([2], np.float32))
    assert np.array_equal(backend.run_model(proto, [random(5)], device.name)[0], 2 * random(5))


def test_one_node(device: Device) -> None:
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    (clipped,) = backend.run_node(node, [random(7), np.array(0.5, np.float32)], device.name)
    assert np.array_equal(clipped, np.minimum(random(7), 0.5))
    softmax = helper.make_node("Softmax", ["x"], ["y"])
    x = random(2, 3, 4)
    (old,) = backend.run_node(softmax, [x], device.name, opset_version=11)
    expected = np.exp(x) / np.exp(x).sum((1, 2), keepdims=True)
    assert np.allclose(old, expected, atol=1e-6)
    info = [(np.float32, (2, 3, 4))]
    (new,) = backend.run_node(softmax, {"x": x}, device.name, outputs_info=info, opset_version=13)
    assert np.allclose(new, np.exp(x) / np.exp(x).sum(2, keepdims=True), atol=1e-6)


needs_cpu = pytest.mark.skipif(not backend.supports_device("CPU"), reason="there is no CPU device")


@needs_cpu
def test_devices_are_named_as_onnx_does() -> None:
    assert backend.supports_device("CPU")
    assert backend.supports_device("CPU:0")
    assert not backend.supports_device("CPU:99")
    assert not backend.supports_device("CUDA:99")
    assert not backend.supports_device("no such device")
    with pytest.raises(DeviceError, match="there is no device 'CUDA:99' here; the devices are"):
        backend.prepare(model(ADD), "CUDA:99")


@pytest.mark.parametrize("selector", ["pocl", "intel-cpu"])
def test_the_user_chooses_the_cpu_driver(selector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not backend.supports_device(selector):
        pytest.skip(f"there is no {selector}")
    monkeypatch.setenv("TILEWRIGHT_DEVICE", selector)
    assert backend.prepare(model(ADD), "CPU").session.device.name == selector


UNKNOWN = helper.make_model(
    helper.make_graph(
        [helper.make_node("Unheard", ["x"], ["y"], domain="of.somebody")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    ),
    opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("of.somebody", 1)],
    ir_version=8,
)


@needs_cpu
def test_what_is_compatible() -> None:
    assert backend.is_compatible(model(ADD))
    assert not backend.is_compatible(model(ADD), "CUDA:99")
    assert not backend.is_compatible(UNKNOWN)
    with pytest.raises(UnsupportedOperatorError, match="Unheard"):
        backend.prepare(UNKNOWN)


@needs_cpu
def test_wrong_use() -> None:
    prepared = backend.prepare(model(ADD))
    with pytest.raises(InputError, match="has 2 inputs, found 3"):
        prepared.run([random(5)] * 3)
    with pytest.raises(InputError, match="y"):
        prepared.run([random(5)])
    with pytest.raises(InputError, match="run takes no colour"):
        prepared.run([random(5)], colour="red")
    with pytest.raises(InputError, match="prepare takes no colour; the options are fast_math, precision, store"):
        backend.prepare(model(ADD), colour="red")
    node = helper.make_node("Add", ["x", "y"], ["z"])
    with pytest.raises(InputError, match="reads 2 values, found 1"):
        backend.run_node(node, [random(5)])
    with pytest.raises(ModelError, match="not valid"):
        backend.run_node(helper.make_node("Unheard", ["x"], ["y"]), [random(5)])
    with pytest.raises(InputError, match="empty list"):
        backend.run_node(helper.make_node("SequenceLength", ["s"], ["n"]), [[]])
