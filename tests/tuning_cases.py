"""Programs, families and a simulated device for the tests of the tuner, and kernels that misbehave."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from targets import CPU

from tilewright.autotune.compiling import Compiled
from tilewright.autotune.messages import Compared, Outcome
from tilewright.autotune.supervisor import Job, StageError
from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import Family
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.program import (
    GENERATOR_VERSION,
    Call,
    Const,
    Index,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
)
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Target
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Status

TARGET = replace(CPU, compute_units=2, vector_bytes=64, vector_registers=32, max_work_group=1024, fma="a * b + c")

FAKE = Device(
    name="fake",
    vendor="nobody",
    driver="1.0",
    identity="fake cpu",
    opencl_name="fake",
    platform="fake",
    kind="cpu",
    opencl_version="3.0",
    compute_units=2,
    global_memory=1 << 30,
    max_allocation=1 << 28,
    extensions=(),
    target=TARGET,
)


def relu(size: int = 1000, name: str = "relu", dtype: DType = DType.F32) -> Program:
    """y[i] = max(x[i], 0)"""
    x, y, i = Tensor("x", dtype, (size,)), Tensor("y", dtype, (size,)), Index("i", size)
    value = Call("max", (Read("x", (Affine.index("i"),), dtype), Const(0, dtype)), dtype)
    return Program(name, (x,), (y,), (Statement("y", (i,), value),))


def row_sums(rows: int, columns: int) -> Program:
    """y[i] = sum(k) x[i,k]"""
    x, y = Tensor("x", DType.F32, (rows, columns)), Tensor("y", DType.F32, (rows,))
    body = Read("x", (Affine.index("i"), Affine.index("k")), DType.F32)
    value = Reduce("sum", (Index("k", columns),), body, DType.F32)
    return Program("sums", (x,), (y,), (Statement("y", (Index("i", rows),), value),))


GOOD = {"m": 8, "n": 16, "k": 4, "path": "packed"}


class TileFamily:
    """A family whose sources are their configurations, for simulations."""

    name = "tiles"

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> None:
        self.sizes = sizes

    def refusal(self, program: Program, target: Target) -> str | None:
        return None

    def space(self, program: Program, target: Target) -> Space:
        return Space(
            (
                *(Parameter(p, self.sizes, "a tile") for p in "mnk"),
                Parameter("path", ("direct", "packed", "local"), "how data is staged"),
            ),
            (Constraint("tiles fit the registers", lambda c: c.integer("m") * c.integer("n") <= 256),),
        )

    def default(self, program: Program, target: Target) -> Configuration:
        first = self.sizes[0]
        return Configuration.of({"m": first, "n": first, "k": first, "path": "direct"})

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        if configuration["m"] == 32 and configuration["k"] == 32:
            raise KeyError("a bug of the generator")
        return Lowering((Launch("k", configuration.to_json(), (1,), None, ("x", "y"), ("y",)),))


def tile_seconds(c: Configuration) -> float | None:
    """A landscape with a best point at m=8, n=16, k=4, packed; some configurations fail."""
    if c["path"] == "local" and c.integer("k") == 32:
        return None
    away = sum(abs(math.log2(c.integer(p)) - best) for p, best in (("m", 3), ("n", 4), ("k", 2)))
    ridge = abs(math.log2(c.integer("m") * c.integer("n")) - 7)
    return 1e-3 * (1 + 0.15 * away + 0.1 * ridge) * {"packed": 1.0, "direct": 1.3, "local": 1.5}[str(c["path"])]


TILE_OPTIMUM = 1e-3


class Simulation:
    """A measurer without a device: looks times up, counts what it is asked."""

    def __init__(self, seconds: Callable[[Configuration], float | None] = tile_seconds) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, str]] = []
        self.closed = False
        self.look_ahead = 1
        self.slots = 1

    def compile(self, lowering: Lowering) -> Compiled:
        ready: Compiled = Future()
        ready.set_result(None)
        return ready

    def prepare(self, job: Job) -> float:
        if job.program.name == "unmeasurable":
            raise StageError("its reference failed")
        return 0.1

    def evaluate(
        self, job: Job, lowering: Lowering, best: float | None = None, until: float | None = None
    ) -> Outcome | None:
        text = lowering.launches[0].source
        self.asked.append((job.program.name, text))
        seconds = self.seconds(Configuration.from_json(text))
        if seconds is None:
            return Outcome(Status.CRASHED, message="simulated")
        return Outcome(Status.OK, (seconds,) * 3, 0.0)

    def compare(self, job: Job, lowerings: tuple[Lowering, ...], rounds: int, slowest: float) -> Compared | None:
        times = [self.seconds(Configuration.from_json(x.launches[0].source)) for x in lowerings]
        return Compared(tuple((t or 1.0,) * rounds for t in times))

    def close(self) -> None:
        self.closed = True


def tiles(*families: Family) -> Callable[[Program, Target], tuple[Family, ...]]:
    found: tuple[Family, ...] = families or (TileFamily(),)
    return lambda program, target: found


def stored(stage: Program, parameters: dict[str, object], **changes: object) -> Measurement:
    values: dict[str, object] = {
        "device": FAKE.identity,
        "driver": FAKE.driver,
        "signature": stage.signature,
        "structure": stage.structure,
        "sizes": stage.sizes,
        "program": "p",
        "family": "tiles",
        "configuration": json.dumps(parameters, sort_keys=True),
        "generator": GENERATOR_VERSION,
        "status": Status.OK,
        "seconds": 1e-3,
        "samples": (1e-3,),
    }
    return Measurement(**{**values, **changes})  # type: ignore[arg-type]


SIZE = 1000


def kernel(body: str, **changes: object) -> Lowering:
    source = f"__kernel void k(__global float *x, __global float *y) {{ int i = get_global_id(0); {body} }}\n"
    launch = Launch("k", source, (SIZE,), None, ("x", "y"), ("y",))
    return Lowering((replace(launch, **changes),))  # type: ignore[arg-type]


RIGHT = "y[i] = max(x[i], 0.0f);"
FAULTS = {
    "no C": (kernel("this is not C"), Status.BUILD_FAILED, "does not compile"),
    "wrong values": (kernel("y[i] = x[i];"), Status.WRONG, "y has error"),
    "NaN": (kernel("y[i] = NAN;"), Status.WRONG, "not finite"),
    "nothing written": (kernel(""), Status.WRONG, "not finite"),
    "last element missing": (kernel(f"if (i < {SIZE - 1}) {RIGHT}"), Status.WRONG, "not finite"),
    "one element too far": (kernel(f"{RIGHT} if (i == 0) y[{SIZE}] = 0;"), Status.WRONG, "wrote 4 bytes after y"),
    "one element before": (kernel(f"{RIGHT} if (i == 0) y[-1] = 0;"), Status.WRONG, "wrote 4 bytes before y"),
    "input written": (kernel(f"{RIGHT} x[i] = 2;"), Status.WRONG, "writes into its input x"),
    "right only once": (
        kernel("float v = isnan(y[i]) ? max(x[i], 0.0f) : 3.0f; y[i] = v;"),
        Status.WRONG,
        "y has err",
    ),
    "uneven groups": (kernel(RIGHT, local_size=(7,)), Status.LAUNCH_FAILED, "does not divide"),
    "no such kernel": (kernel(RIGHT, kernel="other"), Status.LAUNCH_FAILED, "find kernel other"),
    "too large a group": (
        kernel(RIGHT, global_size=(1 << 20,), local_size=(1 << 20,)),
        Status.OUT_OF_RESOURCES,
        "work-items in a work-group",
    ),
    "crash": (kernel(f"{RIGHT} ((__global volatile int *)(ulong)8)[0] = 1;"), Status.CRASHED, ""),
    "endless": (kernel(f"{RIGHT} while (((volatile __global float *)x)[i] < 9.0f) {{}}"), Status.TIMED_OUT, "the run"),
}


def relu_job(device: Device) -> Job:
    stage = relu(SIZE)
    return Job("relu", stage, NAIVE.lower(stage, device.target, NAIVE.default(stage, device.target)))
