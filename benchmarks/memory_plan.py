"""Device memory of whole networks in MiB, with the temporaries beside the least that any placement takes.

    python benchmarks/memory_plan.py --batch 64 model.onnx

Networks are planned as for an H100, which need not be there: nothing is built or run. *overlap* places temporaries in
parts of one buffer wherever they fit, *apart* in parts that never overlap, which is all that some drivers allow;
*total* is constants, inputs and outputs with the latter. With PyTorch and a CUDA device, and files named like
torchvision's networks, the last columns are what PyTorch's allocator has handed out at most during a forward pass in
f32, and the ratio to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tilewright as tw
from tilewright.dsl.precision import PRECISIONS
from tilewright.dsl.target import Shape, Target
from tilewright.graph import passes
from tilewright.graph.footprint import footprint
from tilewright.graph.onnx_import import import_model
from tilewright.graph.packing import packed_in_runs
from tilewright.graph.planned import planned_calls
from tilewright.graph.planning import Planner
from tilewright.runtime.nvidia import matrix_unit
from tilewright.tuning_db import Store

MIB = 1 << 20
TARGET = Target(
    shape=Shape.GPU,
    compute_units=132,
    vector_bytes=16,
    vector_registers=64,
    max_work_group=1024,
    local_memory=227 << 10,
    has_real_local_memory=True,
    sub_group=32,
    fma="fma(a, b, c)",
    has_f16=False,
    has_f64=True,
    matrix=matrix_unit((9, 0)),
    build_options="-cl-std=CL1.2",
)
H100 = tw.Device(
    name="nvidia",
    vendor="NVIDIA Corporation",
    driver="580.159.04",
    identity="nvidia | NVIDIA H100 80GB HBM3 | 132 units | compute capability 9.0 | 79 GiB",
    opencl_name="NVIDIA H100 80GB HBM3",
    platform="NVIDIA CUDA",
    kind="gpu",
    opencl_version="OpenCL 3.0 CUDA",
    compute_units=132,
    global_memory=79 << 30,
    max_allocation=19 << 30,
    extensions=(),
    target=TARGET,
)
ALIGNMENT = 512


@dataclass(frozen=True)
class Row:
    """One network; bytes."""

    model: str
    constants: int
    inputs_and_outputs: int
    least: int
    overlap: int
    apart: int
    torch: int | None

    @property
    def total(self) -> int:
        """With parts that never overlap."""
        return self.constants + self.inputs_and_outputs + self.apart


def planned(path: Path, batch: int, precision: str, store: Store | None, torch: bool) -> Row:
    """The memory of one network with every open size set to `batch`, as a session plans it for the H100."""
    graph = passes.simplify(import_model(str(path)))
    sizes = {v.name: tuple(n if isinstance(n, int) else batch for n in v.shape or ()) for v in graph.inputs}
    network, _ = Planner(H100, store, precision).network(passes.specialise(graph, sizes, {}))
    calls = packed_in_runs(network, planned_calls(network, H100, store), H100)
    overlap, apart = (footprint(network, calls, cut, ALIGNMENT, H100.max_allocation) for cut in (True, False))
    io = apart.inputs + apart.outputs
    peer = torch_peak(path.stem, batch) if torch else None
    return Row(path.stem, apart.constants, io, apart.least, overlap.temporaries, apart.temporaries, peer)


def torch_peak(name: str, batch: int) -> int | None:
    """Bytes that PyTorch's allocator has handed out at most in a forward pass; None for what it lacks."""
    import torch
    import torchvision

    if not torch.cuda.is_available() or not hasattr(torchvision.models, name):
        return None
    torch.backends.cudnn.benchmark = True
    torch.cuda.empty_cache()
    model = getattr(torchvision.models, name)(weights=None).eval().cuda()
    x = torch.rand(batch, 3, 224, 224, device="cuda")
    with torch.no_grad():
        for turn in range(4):
            if turn == 2:  # the first runs choose algorithms, which takes memory of its own
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            model(x)
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def _table(rows: list[Row], batch: int) -> Table:
    columns = ("model", "constants", "in and out", "least", "overlap", "apart", "total", "PyTorch", "ratio")
    table = Table(*columns, title=f"MiB of device memory at batch {batch}")
    for r in rows:
        numbers = (r.constants, r.inputs_and_outputs, r.least, r.overlap, r.apart, r.total)
        peer = ("-", "-") if r.torch is None else (f"{r.torch / MIB:.0f}", f"{r.total / r.torch:.2f}")
        table.add_row(r.model, *(f"{n / MIB:.0f}" for n in numbers), *peer)
    return table


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("torchvision") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description="device memory of planned networks")
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files")
    parser.add_argument("--batch", type=int, default=64, help="what an open first size becomes (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="the session's (default: %(default)s)")
    parser.add_argument("--untuned", action="store_true", help="take no stored winners")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    store = None if options.untuned else Store.open()
    torch = _has_torch() and options.precision == "fp32"
    rows = [planned(path, options.batch, options.precision, store, torch) for path in options.models]
    if options.json:
        json.dump([{**asdict(r), "total": r.total} for r in rows], sys.stdout, indent=2)
        print()
    else:
        Console().print(_table(rows, options.batch))


if __name__ == "__main__":
    try:
        main()
    except tw.TilewrightError as error:
        sys.exit(f"error: {error}")
