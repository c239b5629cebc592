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
from tilewright.graph.mapped import PIECE, file_of, let_go, mapped, owned, pieces
from tilewright.graph.onnx_import import import_model
from tilewright.graph.session import InferenceSession
from tilewright.graph.weights import LARGE, read_file, take_out
from tilewright.runtime import Device

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


def test_pages_that_were_let_go_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(TEXT, w=random(200, 50), b=random(50)), path)
    graph = import_model(path)
    w, b = graph.constants["w"], graph.constants["b"]
    assert file_of(w) is not None
    assert file_of(b) is None, "small constants are the host's own"
    for view in (w, w[3:90].T, w[:0], b):
        let_go(view)
    np.testing.assert_array_equal(w, random(200, 50))
    kept = owned(w)
    assert file_of(kept) is None
    assert owned(b) is b


def test_a_file_that_is_changed_in_place_is_refused_and_one_that_is_replaced_is_not(
    device: Device, tmp_path: Path
) -> None:
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    sizes = {"w": (40, 50), "b": (50,)}
    onnx.save(model(TEXT, **{name: random(*shape) for name, shape in sizes.items()}), path)
    onnx.save(model(TEXT, **{name: random(*shape, seed=1) for name, shape in sizes.items()}), other)
    session = InferenceSession(path, device=device, store=False)
    expected = random(3, 40) @ random(40, 50) + random(50)
    other.replace(path)
    np.testing.assert_allclose(session.run(None, {"x": random(3, 40)})[0], expected, atol=1e-4)
    session = InferenceSession(path, device=device, store=False)
    path.write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="was changed after it was opened; make a new session"):
        session.run(None, {"x": random(3, 40)})


def test_what_the_host_reads_again_and_again_is_not_the_file(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = "g (int64[N] x) => (float[M, 50] y) { z = NonZero(x)  t = Squeeze(z)  u = Unique(t)  y = Gather(w, u) }"
    onnx.save(model(text, w=random(40, 50)), path)
    session = InferenceSession(path, device=device, store=False)
    x = np.array([1, 0, 3])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], random(40, 50)[[0, 2]])


def test_what_lies_in_a_file_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "values.bin"
    values = np.arange((PIECE + PIECE // 2) // 4, dtype="<i4")
    path.write_bytes(b"x" + values.tobytes())  # protobuf aligns nothing
    held = mapped(path)
    assert held is not None
    found = list(pieces(held[1:].view("<i4").reshape(2, -1)))
    assert [(start, piece.nbytes) for start, piece in found] == [(0, PIECE), (PIECE, PIECE // 2)]
    assert b"".join(piece.tobytes() for _, piece in found) == values.tobytes()


def test_what_lies_elsewhere_or_otherwise_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "values.bin"
    path.write_bytes(bytes(24))
    held = mapped(path)
    assert held is not None
    arrays = [np.zeros((2, 3)), held.view(">i4"), held.view("<i4").reshape(2, 3).T]
    for array in arrays:
        assert [(start, piece is array) for start, piece in pieces(array)] == [(0, True)]
    assert [(start, piece.nbytes) for start, piece in pieces(held[:0])] == [(0, 0)]
