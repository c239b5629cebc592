"""Where the benchmarks' networks come from: files of one's own, weightless graphs that are filled, or torchvision."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import onnx

from tilewright import torch_peer
from tilewright.errors import InputError
from tilewright.folders import cache_directory, write_atomically

GRAPHS = Path("torch") / "ts-opset13"
"""Where a folder with `materialize.py` keeps torchvision's networks as PyTorch exports them."""


@dataclass(frozen=True)
class Source:
    """A network's file."""

    file: Path
    same_weights: bool
    """True if `torch_peer.torchvision_network` has the same weights."""


def default_folder() -> Path | None:
    """$TILEWRIGHT_MODELS, if it is set."""
    given = os.environ.get("TILEWRIGHT_MODELS")
    return Path(given) if given else None


def source(name: str, folder: Path | None) -> Source:
    """The file of a network, made if there is none.

    ``folder`` holds NAME.onnx, or `materialize.py` and graphs without weights, which are filled once and kept in the
    cache. Without a folder torchvision's network is exported, once for every version. InputError if there is no way.
    """
    if folder is None:
        return Source(_exported(name), True)
    if (folder / f"{name}.onnx").is_file():
        return Source(folder / f"{name}.onnx", False)
    if (folder / GRAPHS / f"{name}.onnx").is_file():
        return Source(_filled(name, folder), False)
    raise InputError(f"{folder} holds no {name}.onnx; put it there, or leave out --models to export torchvision's")


def _kept(name: str, made_from: str) -> Path:
    return cache_directory() / "networks" / made_from / f"{name}.onnx"


def _exported(name: str) -> Path:
    found = torch_peer.versions()
    file = _kept(name, f"torchvision-{found.get('torchvision', 'none')}-torch-{found.get('torch', 'none')}")
    if not file.is_file():
        part = file.with_suffix(".part")
        torch_peer.export(name, part)
        part.replace(file)
    return file


def _filled(name: str, folder: Path) -> Path:
    file = _kept(name, "filled")
    if not file.is_file():
        model = script(folder).materialize(str(folder / GRAPHS / f"{name}.onnx"))
        assert isinstance(model, onnx.ModelProto)
        write_atomically(file, model.SerializeToString())
    return file


def script(folder: Path) -> ModuleType:
    """The folder's own script, which puts weights into its files."""
    spec = importlib.util.spec_from_file_location("materialize", folder / "materialize.py")
    if spec is None or spec.loader is None or not (folder / "materialize.py").is_file():
        raise InputError(f"{folder} has graphs without weights, but no materialize.py that fills them")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
