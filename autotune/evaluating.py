"""Evaluating candidates on a device: memory between guard zones, the stage's reference, building, checking and timing.

Large results stay on the device: the reference's and a candidate's are compared there (`comparing.py`), and only what
does not agree is copied back and looked at closely (`checking.py`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.autotune import checking, racing, subjects
from tilewright.autotune.comparing import Comparison
from tilewright.autotune.messages import Built, Compare, Compared, Evaluate, Outcome, Prepare, Ran
from tilewright.autotune.subjects import ForeignKernel, Subject
from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch, Lowering, Scratch
from tilewright.dsl.program import Tensor
from tilewright.errors import DeviceError, KernelError
from tilewright.runtime import BoundLaunch, Buffer, Context
from tilewright.tuning_db.records import Status

HOPELESS = 3.0
"""A candidate this much slower than the best in both its first runs is not timed further."""
MESSAGE_LENGTH = 2000
"""Longest complaint that is passed on."""


@dataclass(frozen=True)
class Guarded:
    """A tensor's memory between guard zones."""

    tensor: Tensor
    whole: Buffer
    inner: Buffer
    offset: int
    """Bytes of the guard before it."""


@dataclass(frozen=True)
class Stage:
    """A program with inputs on the device and the results that candidates must give."""

    program: Subject
    inputs: tuple[Guarded, ...]
    outputs: tuple[Guarded, ...]
    expected: tuple[Guarded, ...]
    """The reference's outputs."""
    comparisons: tuple[Comparison, ...]
    """Of each output with what is expected."""
    constants: frozenset[str]

    @property
    def buffers(self) -> dict[str, Buffer]:
        """What kernels get for the program's tensors."""
        return {g.tensor.name: g.inner for g in (*self.inputs, *self.outputs)}

    @property
    def nbytes(self) -> int:
        """Device memory held."""
        return sum(g.whole.nbytes for g in (*self.inputs, *self.outputs, *self.expected))


@dataclass(frozen=True)
class Bound:
    """A candidate's kernels with their arguments."""

    launches: tuple[BoundLaunch, ...]
    timed: tuple[BoundLaunch, ...]
    scratch: tuple[Guarded, ...]


class Failure(Exception):
    """A candidate's evaluation has ended badly."""

    def __init__(self, status: Status, message: str, error: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error


# --- memory -----------------------------------------------------------------------------------------------------------


def _guarded(ctx: Context, tensor: Tensor) -> Guarded:
    span = tensor.span * tensor.dtype.itemsize
    offset, total = checking.guarded_bytes(span, ctx.alignment)
    whole = ctx.allocate(total)
    return Guarded(tensor, whole, ctx.view(whole, offset, span), offset)


def _poison(ctx: Context, memory: Guarded) -> None:
    byte = checking.pattern(memory.tensor.dtype)
    ctx.fill(memory.whole, byte * 0x01010101, DType.U32)


def _load_inputs(ctx: Context, program: Subject, inputs: Sequence[Guarded], turn: int = 0) -> None:
    for memory in inputs:
        ctx.write(memory.whole, subjects.input_bytes(program, memory.tensor, ctx.alignment, turn))


def _load_expected(ctx: Context, kernel: ForeignKernel, expected: Sequence[Guarded], turn: int = 0) -> None:
    for memory in expected:
        values = kernel.sets[turn].expected[memory.tensor.name]
        ctx.write(memory.whole, subjects.guarded_values(memory.tensor, values, ctx.alignment))


def _inputs_changed(ctx: Context, stage: Stage, turn: int) -> str | None:
    """The name of an input that is not what was loaded, or None."""
    for memory in stage.inputs:
        loaded = subjects.input_bytes(stage.program, memory.tensor, ctx.alignment, turn)
        if not np.array_equal(ctx.read(memory.whole, loaded.shape, np.uint8), loaded):
            return memory.tensor.name
    return None


def _result(ctx: Context, memory: Guarded) -> tuple[np.ndarray[Any, Any], str | None]:
    """(elements of an output, where a kernel wrote beside them or None)."""
    whole = ctx.read(memory.whole, (memory.whole.nbytes,), np.uint8)
    beside = checking.overrun(whole, memory.offset, memory.tensor)
    return checking.elements(whole[memory.offset :], memory.tensor), beside


def _overrun(ctx: Context, memory: Guarded) -> str | None:
    """Where a kernel wrote beside the elements of a tensor, or None; reads no more than it must."""
    tensor, end = memory.tensor, memory.offset + memory.inner.nbytes
    if tensor.size < tensor.span:
        return _result(ctx, memory)[1]
    before = ctx.read(memory.whole, (memory.offset,), np.uint8)
    after = ctx.read(memory.whole, (memory.whole.nbytes - end,), np.uint8, end)
    return checking.spoilt(before, after, tensor)


# --- stages -----------------------------------------------------------------------------------------------------------


def make_stage(ctx: Context, request: Prepare) -> tuple[Stage, float]:
    """The stage and the seconds of the reference's run; TilewrightError if that fails."""
    program, constants = request.program, frozenset(request.constants)
    inputs = tuple(_guarded(ctx, t) for t in program.inputs)
    expected = tuple(_guarded(ctx, t) for t in program.outputs)
    _load_inputs(ctx, program, inputs)
    bare = Stage(program, inputs, expected, (), (), constants)
    seconds = _expect(ctx, bare, request.reference)
    outputs = tuple(_guarded(ctx, t) for t in program.outputs)
    comparisons = tuple(
        Comparison(ctx, found.tensor.dtype, found.whole, wanted.whole)
        for found, wanted in zip(outputs, expected, strict=True)
    )
    return Stage(program, inputs, outputs, expected, comparisons, constants), seconds


def _expect(ctx: Context, bare: Stage, reference: Lowering | None) -> float:
    """Fill a stage's outputs with what is expected of candidates; the seconds that making it took."""
    if isinstance(bare.program, ForeignKernel):
        _load_expected(ctx, bare.program, bare.outputs)
        return 0.0
    if reference is None:
        raise DeviceError(f"{bare.program.name} comes without a reference")
    seconds = _check_run(ctx, bare, _bind(ctx, bare, reference))
    for memory in bare.outputs:
        beside = _overrun(ctx, memory)
        if beside:
            raise DeviceError(f"the reference of {bare.program.name} {beside}")
    return seconds


def _bind(ctx: Context, stage: Stage, lowering: Lowering) -> Bound:
    scratch = tuple(_scratch(ctx, s) for s in lowering.scratch)
    values = subjects.scalars(stage.program)
    buffers: dict[str, Buffer | None] = dict.fromkeys(values)
    buffers |= {**stage.buffers, **{g.tensor.name: g.inner for g in scratch}}
    launches = tuple(ctx.bind(launch, buffers) for launch in lowering.launches)
    for bound, launch in zip(launches, lowering.launches, strict=True):
        for position, name in enumerate(launch.arguments):
            if name in values:
                ctx.set_scalar(bound, position, values[name])
    once = run_once(lowering, stage.constants)
    timed = tuple(b for b, launch in zip(launches, lowering.launches, strict=True) if launch not in once)
    return Bound(launches, timed or launches, scratch)


def _scratch(ctx: Context, scratch: Scratch) -> Guarded:
    memory = _guarded(ctx, Tensor(scratch.name, scratch.dtype, (scratch.size,)))
    _poison(ctx, memory)
    if scratch.fill is not None:
        ctx.write(memory.inner, np.full(scratch.size, scratch.fill).astype(scratch.dtype.numpy))
    return memory


def run_once(lowering: Lowering, constants: frozenset[str]) -> tuple[Launch, ...]:
    """The launches that depend on constant inputs alone and so run once, ahead of the others."""
    fixed = set(constants) | {s.name for s in lowering.scratch if s.fill is not None}
    once = []
    for launch in lowering.launches:
        read = set(launch.arguments) - set(launch.writes)
        if constants and read <= fixed and set(launch.writes) <= {s.name for s in lowering.scratch}:
            once.append(launch)
            fixed |= set(launch.writes)
    return tuple(once)


# --- candidates -------------------------------------------------------------------------------------------------------


def _check_run(ctx: Context, stage: Stage, kernels: Bound, turn: int = 0) -> float:
    """Run everything once on poisoned outputs; the wall seconds."""
    for memory in stage.outputs:
        initial = subjects.initial_bytes(stage.program, memory.tensor, ctx.alignment, turn)
        if initial is None:
            _poison(ctx, memory)
        else:
            ctx.write(memory.whole, initial)
    ctx.finish()
    start = time.perf_counter()
    ctx.enqueue(kernels.launches)
    ctx.finish()
    return time.perf_counter() - start


def _verify(ctx: Context, stage: Stage, kernels: Bound) -> float:
    """The largest error of the outputs; Failure if they are wrong or something else was written."""
    worst = 0.0
    for memory, expected, comparison in zip(stage.outputs, stage.expected, stage.comparisons, strict=True):
        found = comparison.run()
        if found.is_odd or not found.error <= subjects.tolerance(stage.program, memory.tensor):
            worst = max(worst, _verify_closely(ctx, stage, memory, expected))
        else:
            worst = max(worst, found.error)
    for memory in kernels.scratch:
        beside = _overrun(ctx, memory)
        if beside:
            raise Failure(Status.WRONG, beside)
    return worst


def _verify_closely(ctx: Context, stage: Stage, memory: Guarded, expected: Guarded) -> float:
    """The error of an output, found on the host; Failure that says what is wrong and where."""
    actual, beside = _result(ctx, memory)
    if beside:
        raise Failure(Status.WRONG, beside)
    error, problem = subjects.difference(stage.program, memory.tensor, actual, _result(ctx, expected)[0])
    if problem:
        raise Failure(Status.WRONG, problem, error)
    return error or 0.0


def _verify_or_blame(ctx: Context, stage: Stage, kernels: Bound, turn: int = 0) -> float:
    """Like `_verify`, but if the inputs have been spoilt, restore them and see whether this candidate does it."""
    try:
        return _verify(ctx, stage, kernels)
    except Failure:
        if _inputs_changed(ctx, stage, turn) is None:
            raise
        _load_inputs(ctx, stage.program, stage.inputs, turn)
        _check_run(ctx, stage, kernels, turn)
        changed = _inputs_changed(ctx, stage, turn)
        if changed is not None:
            _load_inputs(ctx, stage.program, stage.inputs, turn)
            raise Failure(Status.WRONG, f"writes into its input {changed}") from None
        return _verify(ctx, stage, kernels)


def _verify_again(ctx: Context, stage: Stage, kernels: Bound) -> float:
    """The largest error after the timed runs, for a race may show only now, and with further sets of inputs."""
    program = stage.program
    if not isinstance(program, ForeignKernel):
        return _verify_or_blame(ctx, stage, kernels)
    _check_run(ctx, stage, kernels)  # timed runs have used up what a kernel changes in place
    worst = _verify_or_blame(ctx, stage, kernels)
    try:
        for turn in range(1, len(program.sets)):
            _load_set(ctx, stage, program, turn)
            _check_run(ctx, stage, kernels, turn)
            worst = max(worst, _verify_or_blame(ctx, stage, kernels, turn))
    finally:
        if len(program.sets) > 1 and not ctx.lost:
            _load_set(ctx, stage, program, 0)
    return worst


def _load_set(ctx: Context, stage: Stage, kernel: ForeignKernel, turn: int) -> None:
    _load_inputs(ctx, kernel, stage.inputs, turn)
    _load_expected(ctx, kernel, stage.expected, turn)


def _time(ctx: Context, kernels: Bound, best: float | None, first: float) -> tuple[float, ...]:
    """Seconds per run; few runs for candidates that are slower than the best (`racing.py`).

    ``first`` is the seconds of the run whose results were checked. That and the next one are slowed down by the host,
    but a candidate takes no longer than the faster of them.
    """
    start = time.perf_counter()
    ctx.enqueue(kernels.timed)
    ctx.finish()
    bound = min(first, time.perf_counter() - start)
    if best is not None and bound > HOPELESS * max(best, 1e-4):
        return (bound,)
    samples: list[float] = []
    while more := racing.repeats(samples, best, bound):
        samples += ctx.time(kernels.timed, more, warmup=1)
    return tuple(samples)


def evaluate(ctx: Context, stage: Stage, request: Evaluate, answer: Callable[[Built | Ran], None]) -> Outcome:
    """Build, check and time a candidate; ``answer`` is told when it is built and when its first run has ended."""
    start = time.perf_counter()
    build_seconds: float | None = None
    try:
        kernels = _build(ctx, stage, request.lowering)
        build_seconds = time.perf_counter() - start
        answer(Built(build_seconds))
        try:
            first = _check_run(ctx, stage, kernels)
            answer(Ran(first))
            error = _verify_or_blame(ctx, stage, kernels)
            samples = _time(ctx, kernels, request.best, first)
            error = max(error, _verify_again(ctx, stage, kernels))
        except DeviceError as e:
            raise Failure(_launch_status(ctx, str(e)), str(e)) from e
    except Failure as f:
        finite = f.error if f.error is not None and math.isfinite(f.error) else None
        return Outcome(f.status, (), finite, str(f)[:MESSAGE_LENGTH], build_seconds, ctx.lost)
    return Outcome(Status.OK, samples, error, "", build_seconds, ctx.lost)


def _build(ctx: Context, stage: Stage, lowering: Lowering) -> Bound:
    try:
        for launch in lowering.launches:
            ctx.build(launch.source)
    except KernelError as e:
        raise Failure(Status.BUILD_FAILED, str(e)) from e
    try:
        return _bind(ctx, stage, lowering)
    except DeviceError as e:
        raise Failure(_bind_status(str(e)), str(e)) from e


def _bind_status(message: str) -> Status:
    """A launch that cannot be: mostly it wants more than there is; otherwise source and launch do not agree."""
    mismatch = ("takes", "no buffer for", "does not divide", "find kernel", "set the arguments")
    return Status.LAUNCH_FAILED if any(m in message for m in mismatch) else Status.OUT_OF_RESOURCES


def _launch_status(ctx: Context, message: str) -> Status:
    if ctx.lost:  # a fault of the device, whatever code the driver has for it
        return Status.CRASHED
    scarce = ("OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY", "ALLOCATION_FAILURE", "memory")
    return Status.OUT_OF_RESOURCES if any(s in message for s in scarce) else Status.LAUNCH_FAILED


def compare(ctx: Context, stage: Stage, request: Compare) -> Compared:
    """Every candidate once per round, in changing order, so that drift of the machine meets all alike."""
    kernels = [_bind(ctx, stage, lowering) for lowering in request.lowerings]
    for k in kernels:
        _check_run(ctx, stage, k)
        _verify(ctx, stage, k)
    samples: list[list[float]] = [[] for _ in kernels]
    for turn in range(request.rounds):
        for n in range(len(kernels)):
            at = (n + turn) % len(kernels)
            samples[at].append(statistics.median(ctx.time(kernels[at].timed, 3, warmup=1)))
    return Compared(tuple(tuple(s) for s in samples))


__all__ = ["MESSAGE_LENGTH", "Failure", "Stage", "compare", "evaluate", "make_stage", "run_once"]
