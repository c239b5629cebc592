"""Models that are damaged end in a TilewrightError or in a right answer, within bounds of time and memory.

`broken_models.py` makes them and runs them in a child process. ``-m broken_models_full`` runs thousands.
"""

from __future__ import annotations

from pathlib import Path

import broken_models
import numpy as np
import onnx
import pytest
from networks import model, random
from onnx import TensorProto, helper

from tilewright.errors import ModelError, TilewrightError
from tilewright.graph import guards
from tilewright.graph.onnx_import import import_model
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, devices

PORTION = 30
"""Models per child."""


def check(first: int, device: str) -> None:
    wrong = [f for f in broken_models.fates(first, PORTION, device) if not f.is_fine]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("first", range(0, 150, PORTION))
def test_damaged_models(first: int) -> None:
    check(first, devices()[0].name)


@pytest.mark.broken_models_full
@pytest.mark.parametrize("first", range(150, 6000, PORTION))
def test_damaged_models_in_full(first: int, device: Device) -> None:
    check(first, device.name)


@pytest.mark.parametrize("number", range(len(broken_models.TEXTS)))
def test_the_networks_are_sound(number: int, device: Device, tmp_path: Path) -> None:
    """What is damaged runs undamaged, and gives what ONNX's evaluator gives."""
    proto = broken_models.sound(number, np.random.default_rng(3))
    file = tmp_path / "model.onnx"
    onnx.save(proto, file)
    assert broken_models.outcome(file, proto.SerializeToString(), device.name) == ("right", "")


def test_damages_are_the_same_every_time() -> None:
    assert [broken_models.broken(n) for n in range(20)] == [broken_models.broken(n) for n in range(20)]
    assert len({content for _, content in map(broken_models.broken, range(100))}) > 90


# --- what ONNX's own tools do not refuse, or do not survive -----------------------------------------------------------

RELU = "g (float[3] x) => (float[3] y) { y = Relu(x) }"


def calling(*functions: onnx.FunctionProto, name: str = "f") -> onnx.ModelProto:
    """A network that calls a function."""
    node = helper.make_node(name, ["x"], ["y"], domain="own")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    return helper.make_model(graph, functions=list(functions), opset_imports=opsets, ir_version=8)


def function(name: str, *calls: tuple[str, str]) -> onnx.FunctionProto:
    """A chain of calls: (operator, domain)."""
    values = ["p", *(f"v{n}" for n in range(1, len(calls))), "q"]
    nodes = [helper.make_node(op, [values[n]], [values[n + 1]], domain=d) for n, (op, d) in enumerate(calls)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["p"], ["q"], nodes, opsets)


def test_functions_that_call_themselves() -> None:
    with pytest.raises(ModelError, match="functions that call themselves: 'f'"):
        import_model(calling(function("f", ("f", "own"))))
    with pytest.raises(ModelError, match=r"functions that call themselves: '[fg]', '[fg]'"):
        import_model(calling(function("f", ("g", "own")), function("g", ("Relu", ""), ("f", "own"))))


def test_functions_that_write_no_output() -> None:
    silent = function("f", ("Relu", ""))
    silent.node[0].output[0] = "other"
    with pytest.raises(ModelError, match="nothing writes its output 'y'"):
        import_model(calling(silent))


def test_functions_that_multiply() -> None:
    """Some kilobytes that stand for more nodes than any memory holds."""
    levels = [function("d0", ("Relu", ""), ("Neg", ""))]
    levels += [function(f"d{n}", *[(f"d{n - 1}", "own")] * 2) for n in range(1, 60)]
    with pytest.raises(ModelError, match=f"stand for more than {guards.MAX_NODES} nodes"):
        import_model(calling(*levels, name="d59"))
    found = InferenceSession(calling(*levels, name="d3"), store=False).run(
        None, {"x": np.array([-1, 0, 2], np.float32)}
    )
    assert np.array_equal(found[0], [0, 0, 0])


def test_texts_that_are_not_utf_8() -> None:
    content = model(RELU).SerializeToString().replace(b"Relu", b"R\xff\xfeu")
    with pytest.raises(ModelError, match="is damaged: the text b'R"):
        import_model(content)


@pytest.mark.parametrize("code", [33, 99, -1])
def test_element_types_that_do_not_exist(code: int) -> None:
    proto = model(RELU)
    proto.graph.input[0].type.tensor_type.elem_type = code
    with pytest.raises(ModelError, match=f"number {code}, which no version of ONNX has"):
        InferenceSession(proto, store=False)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link", "missing.bin", "."])
def test_other_files_lie_in_the_models_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    proto = model("g (float[3] x) => (float[3] y) { y = Add(x, w) }", w=random(3))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(TilewrightError):
        InferenceSession(folder / "model.onnx", store=False)


@pytest.mark.parametrize("offset", ["-1", "9", "99999999999999999999", "one"])
def test_places_in_other_files(offset: str, tmp_path: Path) -> None:
    proto = model("g (float[3] x) => (float[3] y) { y = Add(x, w) }", w=random(3))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="offset", value=offset)
    (tmp_path / "w.bin").write_bytes(bytes(12))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(TilewrightError):
        InferenceSession(tmp_path / "model.onnx", store=False)


def test_long_chains(device: Device) -> None:
    """Hundreds of pointwise nodes in a row fit on the stack."""
    nodes = "".join(f"v{n + 1} = {('Neg', 'Abs', 'Relu')[n % 3]}(v{n}) " for n in range(700))
    proto = model(f"g (float[5] v0) => (float[5] v700) {{ {nodes} }}")
    (found,) = InferenceSession(proto, device, store=False).run(None, {"v0": random(5)})
    assert np.array_equal(found, -np.abs(random(5)))
