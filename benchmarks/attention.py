"""Attention in one kernel beside the composed form: milliseconds and GFLOP/s, run in turns in one process.

    python benchmarks/attention.py --device intel-cpu --tune 30s --against numpy 197 512
    python benchmarks/attention.py --device nvidia --against torch --dtype f16 197 1024
    python benchmarks/attention.py --device nvidia --against torch --precision tf32 197 1024

`--against numpy` and `--against onnxruntime` compute products, softmax and products on the processor, in turns with
tilewright's calls, whose operands lie in device memory and each of which is followed by waiting for the device.
`torch` is scaled_dot_product_attention on the GPU, in a CUDA graph: there both times are those of the device alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.bench import interleaved, largest_difference
from tilewright.dsl.dtypes import DType

ATTENTION = """
op attention(q[B,H,M,D], k[B,H,N,D], v[B,H,N,E]; scale: f32) -> o[B,H,M,E]:
    s[b,h,i,j] = where({mask}, scale * (sum(d) q[b,h,i,d] * k[b,h,j,d]), -inf)
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    o[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j])
"""


def composed(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """NumPy's form: the scores are in memory."""
    s = q @ k.swapaxes(-1, -2)
    s *= np.float32(q.shape[-1] ** -0.5)
    if causal:
        s[..., np.triu(np.ones(s.shape[-2:], bool), 1)] = -np.inf
    s -= s.max(-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(-1, keepdims=True)
    return s @ v


def onnxruntime_form(shape: tuple[int, ...], causal: bool) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """MatMul, Mul, Add, Softmax and MatMul as a network of onnxruntime."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n = shape[-2]
    mask = np.triu(np.full((n, n), -np.inf if causal else 0, np.float32), 1)
    node = helper.make_node
    nodes = [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Mul", ["s", "scale"], ["scaled"]),
        node("Add", ["scaled", "mask"], ["masked"]),
        node("Softmax", ["masked" if causal else "scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["o"]),
    ]
    constants = {"scale": np.float32(shape[-1] ** -0.5), "mask": mask}
    graph = helper.make_graph(
        nodes if causal else [x for x in nodes if x.op_type != "Add"],
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def torch_seconds(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> list[float]:
    """Times of PyTorch's scaled_dot_product_attention, each over the ten calls of a CUDA graph."""
    import torch

    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[options.dtype]
    q, k, v = (torch.from_numpy(arrays[name].astype(np.float32)).cuda().to(kind) for name in "qkv")
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=options.causal)

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e4)
    return times[2:]


def measure(options: argparse.Namespace, size: int, device: tw.Device) -> dict[str, Any]:
    """Milliseconds of both, GFLOP/s of tilewright and the largest difference for one length."""
    shape = (options.batch, options.heads, size, options.depth)
    rng = np.random.default_rng(size)
    arrays = {name: rng.standard_normal(shape, np.float32).astype(NUMPY[options.dtype]) for name in "qkv"}
    op = tw.op(ATTENTION.format(mask="j <= i" if options.causal else "true"), precision=options.precision)
    scale = float(options.depth**-0.5)
    on_device = [tw.asarray(a, device=device) for a in arrays.values()]
    if options.tune:
        op.tune(*on_device, scale=scale, budget=options.tune)

    def ours() -> None:
        op(*on_device, scale=scale).wait()

    wide = [a.astype(np.float32) for a in arrays.values()]
    expected = composed(*(a[:1] for a in wide), options.causal)
    difference = largest_difference([op(*on_device, scale=scale).numpy()[:1].astype(np.float32)], [expected])
    contenders: dict[str, Callable[[], object]] = {"tilewright": ours}
    if options.against == "numpy":
        contenders["peer"] = lambda: composed(*wide, options.causal)
    elif options.against == "onnxruntime":
        form, feeds = onnxruntime_form(shape, options.causal), dict(zip("qkv", wide, strict=True))
        contenders["peer"] = lambda: form(feeds)
    times = interleaved(contenders, options.seconds)
    if options.against == "torch":
        plan = op.plan(*on_device, scale=scale)
        times["tilewright"] = plan.time(arrays, 20, warmup=3)
        times["peer"] = torch_seconds(arrays, options)
    median = {name: statistics.median(t) for name, t in times.items()}
    operations = 4 * options.batch * options.heads * size**2 * options.depth / (2 if options.causal else 1)
    row: dict[str, Any] = {"size": size, **{f"{name} ms": 1e3 * t for name, t in median.items()}}
    row |= {"gflops": operations / median["tilewright"] / 1e9, "difference": difference}
    return row | {"ratio": median["peer"] / median["tilewright"] if "peer" in median else None}


NUMPY = {name: DType(name).numpy for name in ("f32", "f16", "bf16")}


def main() -> None:
    parser = argparse.ArgumentParser(description="attention beside its composed form, in milliseconds")
    parser.add_argument("sizes", nargs="*", type=int, default=[197, 512, 1024], help="rows and keys")
    parser.add_argument("--device", help="a device's name, as in 'tilewright devices'")
    parser.add_argument("--against", choices=("numpy", "onnxruntime", "torch", "nothing"), default="numpy")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--dtype", choices=tuple(NUMPY), default="f32", help="how the operands are stored")
    parser.add_argument("--precision", choices=("fp32", "tf32"), default="fp32", help="of products of f32 operands")
    parser.add_argument("--causal", action="store_true", help="each row sees the keys up to its own")
    parser.add_argument("--tune", metavar="BUDGET", help="tune each size first, for instance 30s")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to measure each size (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = tw.select_device(options.device)
    rows = [measure(options, size, device) for size in options.sizes]
    if options.json:
        json.dump({"device": device.name, "identity": device.identity, "attention": rows}, sys.stdout, indent=2)
        print()
        return
    kind = f"{options.dtype}, {options.precision}"
    title = f"{options.batch} x {options.heads} x size x {options.depth}, {kind}, on {device.name}"
    table = Table("size", "tilewright ms", "GFLOP/s", f"{options.against} ms", "ratio", "difference", title=title)
    for r in rows:
        peer = (f"{r['peer ms']:.3f}", f"{r['ratio']:.2f}") if r["ratio"] else ("-", "-")
        ours = (f"{r['tilewright ms']:.3f}", f"{r['gflops']:.0f}")
        table.add_row(str(r["size"]), *ours, *peer, f"{r['difference']:.1e}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
