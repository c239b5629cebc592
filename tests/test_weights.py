"""Reading ONNX files: large constants are views of the file's content, whatever the file looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from networks import model, random
from onnx import TensorProto, numpy_helper

from tilewright.errors import ModelError
from tilewright.graph.onnx_import import import_model
from tilewright.graph.weights import LARGE, read_file, take_out

TEXT = "g (float[N, 40] x) => (float[N, 50] y) { a = MatMul(x, w)\n y = Add(a, b) }"
SIZES = {"w": (40, 50), "b": (50,)}


def content(proto: onnx.ModelProto) -> np.ndarray:
    return np.frombuffer(proto.SerializeToString(), np.uint8)


def test_large_constants_are_left_in_place() -> None:
    proto = model(TEXT, **{name: random(*shape) for name, shape in SIZES.items()})
    whole = content(proto)
    slim, found = take_out(whole)
    assert list(found) == ["w"]
    assert np.shares_memory(found["w"], whole)
    assert found["w"].tobytes() == random(40, 50).tobytes()
    assert not slim.graph.initializer[0].raw_data
    slim.graph.initializer[0].raw_data = found["w"].tobytes()
    assert slim == proto


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "u2", "i4", "i8", "?"])
def test_every_element_type_arrives(dtype: str, tmp_path: Path) -> None:
    values = (random(100, 90) * 20).astype(dtype)
    proto = model("g (float[N] x) => (float[N] y) { y = Relu(x) }", w=values)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    found = import_model(path).constants["w"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    assert not found.flags.writeable


def test_bytes_paths_and_protos_give_the_same_graph(tmp_path: Path) -> None:
    proto = model(TEXT, **{name: random(*shape) for name, shape in SIZES.items()})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    graphs = [import_model(m) for m in (path, proto, proto.SerializeToString())]
    for graph in graphs:
        assert [(n.op, n.inputs, n.outputs) for n in graph.nodes] == [
            (n.op, n.inputs, n.outputs) for n in graphs[0].nodes
        ]
        for name, shape in SIZES.items():
            np.testing.assert_array_equal(graph.constants[name], random(*shape))


def test_values_in_typed_fields_and_other_data_types(tmp_path: Path) -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    typed = onnx.helper.make_tensor("t", TensorProto.FLOAT, (2000,), np.arange(2000.0))
    assert not typed.raw_data
    proto.graph.initializer.append(typed)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    np.testing.assert_array_equal(import_model(path).constants["t"], np.arange(2000, dtype=np.float32))


def test_constants_of_wrong_length_are_refused() -> None:
    proto = model(TEXT, **{name: random(*shape) for name, shape in SIZES.items()})
    for wrong in (proto.graph.initializer[0].raw_data[:-4], proto.graph.initializer[0].raw_data[:-3]):
        proto.graph.initializer[0].raw_data = wrong
        with pytest.raises(ModelError, match="the data of 'w' in the model is incomplete"):
            import_model(proto.SerializeToString())


def test_two_constants_of_one_name_are_left_to_the_checker() -> None:
    proto = model(TEXT, **{name: random(*shape) for name, shape in SIZES.items()})
    proto.graph.initializer.append(numpy_helper.from_array(random(40, 50), "w"))
    slim, found = take_out(content(proto))
    assert found == {}
    assert slim == proto


def test_every_truncation_is_an_error_or_the_shorter_message() -> None:
    proto = model(TEXT, w=random(40, 50), b=random(50))
    whole = content(proto)
    for size in (*range(0, 200), *range(200, len(whole), 97)):
        expected = onnx.ModelProto()
        try:
            expected.ParseFromString(whole[:size].tobytes())
        except DecodeError:
            with pytest.raises(DecodeError):
                take_out(whole[:size])
        else:
            slim, found = take_out(whole[:size])
            for tensor in slim.graph.initializer:
                if tensor.name in found:
                    tensor.raw_data = found[tensor.name].tobytes()
            assert slim == expected


def test_random_bytes_never_do_more_than_protobuf_does() -> None:
    rng = np.random.default_rng(0)
    proto = content(model(TEXT, w=random(40, 50), b=random(50))).copy()
    for _ in range(300):
        broken = proto.copy()
        broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
        try:
            onnx.ModelProto().ParseFromString(broken.tobytes())
        except DecodeError:
            with pytest.raises(DecodeError):
                take_out(broken)
        else:
            take_out(broken)


def test_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 33)
    assert read_file(path).tobytes() == path.read_bytes()
    path.write_bytes(b"")
    assert read_file(path).size == 0
    assert LARGE <= 1 << 16
