"""PyTorch as a peer: a network in eager mode and captured in a CUDA graph, at the precision that is asked for.

On a GPU everything stays in device memory and every function waits for the device. Convolution algorithms are chosen
by measuring (``cudnn.benchmark``), nothing records gradients. Precisions set PyTorch's switches for the whole process:

    fp32   f32, TF32 off for matrix products and convolutions
    tf32   f32, TF32 on for both
    fp16   f16 weights and inputs, images channels last in memory
    bf16   likewise with bf16
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import InputError, ModelError

EAGER = "torch eager"
GRAPH = "torch graph"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
NETWORKS = (
    "alexnet",
    "resnet18",
    "resnet50",
    "vgg16",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "vit_b_16",
)
"""Networks of torchvision that the benchmark runs; all take f32 [N, 3, 224, 224] and give [N, 1000]."""

_WARM_UP = 3
"""Runs before a graph is captured; PyTorch's documentation asks for a few on a stream of their own."""


@dataclass(frozen=True)
class TorchRunners:
    """A network ready to be timed."""

    functions: Mapping[str, Callable[[], object]]
    """By EAGER and GRAPH; each returns when the work is done. Without CUDA there is EAGER alone, on the CPU."""
    device_seconds: Callable[[], float] | None
    """Replay the graph once: the seconds between device events before and after it, gaps between kernels included."""
    outputs: tuple[npt.NDArray[Any], ...]
    """As f32 where they are narrower."""
    peak_bytes: int | None
    """Most device memory in use during a run in eager mode: weights, inputs, activations, cuDNN's workspaces. Without
    what the process held before, without the CUDA context, and without what PyTorch's allocator keeps in reserve."""


def torch_module() -> Any:
    """The package torch; InputError if it is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed; install it with: pip install torch torchvision")
    import torch

    return torch


def has_cuda() -> bool:
    """True if PyTorch is installed and finds a CUDA device."""
    return importlib.util.find_spec("torch") is not None and bool(torch_module().cuda.is_available())


def versions() -> dict[str, str]:
    """Versions of PyTorch and what it brings, by name; empty without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    torch = torch_module()
    found = {"torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.backends.cudnn.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())
    if importlib.util.find_spec("torchvision") is not None:
        import torchvision

        found["torchvision"] = torchvision.__version__
    return found


def set_precision(precision: str) -> None:
    """Set PyTorch's switches for a precision; convolution algorithms are measured from now on."""
    torch = torch_module()
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def element_type(precision: str) -> Any:
    """The element type of weights and inputs at a precision, as PyTorch's."""
    torch = torch_module()
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


# --- networks ---------------------------------------------------------------------------------------------------------


def torchvision_network(name: str) -> Any:
    """A network of torchvision with random weights, the same in every process of one version; InputError if absent."""
    torch = torch_module()
    if importlib.util.find_spec("torchvision") is None:
        raise InputError(f"torchvision, which has {name}, is not installed; install it with: pip install torchvision")
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def network_of_file(model: Path) -> Any:
    """The network of an ONNX file as a module, through onnx2torch; InputError without it, ModelError if it cannot."""
    if importlib.util.find_spec("onnx2torch") is None:
        raise InputError(
            f"{model.name} is none of torchvision's networks known here ({', '.join(NETWORKS)}), so that PyTorch needs "
            "onnx2torch to run it; install it with: pip install onnx2torch"
        )
    import onnx2torch

    try:
        return onnx2torch.convert(str(model)).eval()
    except Exception as error:  # what it raises for operators that it lacks has no common base class
        raise ModelError(f"onnx2torch cannot convert {model}: {type(error).__name__}: {error}") from error


def export(name: str, file: Path) -> None:
    """Write a network of torchvision as ONNX, opset 17, with an open batch size; InputError without torchvision."""
    torch = torch_module()
    module = torchvision_network(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator of PyTorch's own, which ONNX lacks
    try:
        with torch.no_grad():
            torch.onnx.export(
                module,
                (torch.zeros(1, 3, 224, 224),),
                str(file),
                opset_version=17,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)


# --- running ----------------------------------------------------------------------------------------------------------


def runners(module: Any, arrays: Sequence[npt.NDArray[Any]], precision: str, on_gpu: bool) -> TorchRunners:
    """Make a module ready on these inputs (in the module's order) and run it once in every way.

    The module is moved and converted in place. ``on_gpu`` needs CUDA; without it precisions other than fp32 are the
    CPU's emulation.
    """
    torch = torch_module()
    set_precision(precision)
    forget()
    before = torch.cuda.memory_allocated() - _bytes_on_gpu(module) if on_gpu else 0
    place = "cuda" if on_gpu else "cpu"
    dtype = element_type(precision)
    module = _as_stored(torch, module.to(place, dtype), precision)
    inputs = [_on_device(torch, a, place, dtype, precision) for a in arrays]

    def compute() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    def eager() -> Any:
        result = compute()
        if on_gpu:
            torch.cuda.synchronize()
        return result

    outputs = _arrays(torch, eager())
    if not on_gpu:
        return TorchRunners({EAGER: eager}, None, outputs, None)
    for _ in range(_WARM_UP):
        eager()
    torch.cuda.reset_peak_memory_stats()
    eager()
    peak = int(torch.cuda.max_memory_allocated()) - before
    replay, device_seconds = _captured(torch, compute)
    return TorchRunners({EAGER: eager, GRAPH: replay}, device_seconds, outputs, peak)


def _bytes_on_gpu(module: Any) -> int:
    """What a module holds in device memory already: after a first batch its weights stay there for the next."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()) if t.is_cuda)


def forget() -> None:
    """Give the memory of networks that are no longer used back to the device."""
    gc.collect()
    torch = torch_module()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def on_device(array: npt.NDArray[Any], place: Any) -> Any:
    """An array as a tensor on one of PyTorch's devices, bf16 included (for which it has no NumPy type)."""
    torch = torch_module()
    host = np.ascontiguousarray(array)
    if host.dtype.name == "bfloat16":
        return torch.from_numpy(host.view(np.int16)).to(place).view(torch.bfloat16)
    return torch.from_numpy(host).to(place)


def _on_device(torch: Any, array: npt.NDArray[Any], place: str, dtype: Any, precision: str) -> Any:
    tensor = on_device(array, place)
    return _as_stored(torch, tensor.to(dtype) if tensor.is_floating_point() else tensor, precision)


def _as_stored(torch: Any, x: Any, precision: str) -> Any:
    """A module or tensor with images channels last at the precisions whose cuDNN kernels want that."""
    if precision not in ("fp16", "bf16") or (isinstance(x, torch.Tensor) and x.ndim != 4):
        return x
    return x.to(memory_format=torch.channels_last)


def _arrays(torch: Any, result: Any) -> tuple[npt.NDArray[Any], ...]:
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    return tuple((t.float() if t.is_floating_point() else t).cpu().numpy() for t in tensors)


def _captured(torch: Any, compute: Callable[[], Any]) -> tuple[Callable[[], object], Callable[[], float]]:
    """`compute` as a CUDA graph: a function that replays and waits, and one that gives a replay's device seconds."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()

    def replay() -> object:
        graph.replay()
        torch.cuda.synchronize()
        return result

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def device_seconds() -> float:
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    return replay, device_seconds


__all__ = [
    "EAGER",
    "GRAPH",
    "NETWORKS",
    "PRECISIONS",
    "TorchRunners",
    "element_type",
    "export",
    "forget",
    "has_cuda",
    "network_of_file",
    "on_device",
    "runners",
    "set_precision",
    "torch_module",
    "torchvision_network",
    "versions",
]
