"""Tuning kernels that are not ours: any OpenCL C text whose macros are its parameters.

    result = tune_kernel(
        SOURCE,                                        # __kernel void scale(__global const float *x, ...)
        {"GROUP": (32, 64, 128), "ITEMS": (1, 2, 4)},
        {"x": x, "y": Output(x.shape), "n": x.size},
        reference=lambda x, n: 2 * x,
        global_size="ceil_div(n, GROUP * ITEMS) * GROUP",
        local_size="GROUP",
    )

Search, isolation, checks and storage are those of our own kernels: candidates are compiled in helper processes (GPUs)
and run in a process that may die, their outputs are poisoned, between guard zones, and compared with the reference, and
every measurement, failures too, is in the database before the next one begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.autotune.budget import Budget
from tilewright.autotune.candidates import Candidate, StageSpace
from tilewright.autotune.grids import Grid
from tilewright.autotune.kernel_arguments import Bound, Given, Reference, bind, tolerances
from tilewright.autotune.kernel_result import KernelMeasurement, KernelResult
from tilewright.autotune.kernel_space import (
    Condition,
    Geometry,
    Sizes,
    check_not_empty,
    constraints_of,
    geometry,
    launchable,
    parameters_of,
)
from tilewright.autotune.kernel_text import KernelParameter, kernel_parameters, words
from tilewright.autotune.reports import Progress, TuningReport
from tilewright.autotune.search import SearchSettings, StageSearch
from tilewright.autotune.stages import NEAR_WINNERS, StageTuner
from tilewright.autotune.strategies import Asking, Evolution, Exhaustive, Local, Random
from tilewright.autotune.subjects import ForeignKernel
from tilewright.autotune.supervisor import Job, Limits
from tilewright.autotune.transfer import told
from tilewright.autotune.tuning import Measurer, tune_all
from tilewright.dsl.lowering import Launch, Lowering
from tilewright.dsl.space import Configuration, Space, Value
from tilewright.errors import DatabaseError, DeviceError, InputError
from tilewright.runtime import Device, select_device
from tilewright.tuning_db import Status, Store

GENERATOR = "opencl-1"
"""Stands for the code generator in the database: changes if the same text would be launched in another way."""
SAMPLED = 256
"""Configurations whose texts and sizes identify what functions make, at most."""

Source = str | Callable[[Mapping[str, Value]], str]
_STRATEGIES: Mapping[str, type[Asking]] = {
    "exhaustive": Exhaustive,
    "random": Random,
    "local": Local,
    "evolution": Evolution,
}
GUIDED = "guided"


@dataclass(frozen=True)
class KernelTask:
    """A foreign kernel with everything that its candidates are made from."""

    kernel: str
    source: Source
    parameters: tuple[KernelParameter, ...]
    space: Space
    whole: Geometry
    group: Geometry | None
    bound: Bound

    def text(self, configuration: Configuration) -> str:
        """The source of a configuration: its macros ahead of the text, or what the function gives."""
        if callable(self.source):
            return self.source(dict(configuration))
        macros = "".join(f"#define {name} {value}\n" for name, value in configuration.items())
        return f"{macros}#line 1\n{self.source}"

    def lower(self, candidate: Candidate) -> Lowering:
        """The launch of a configuration."""
        c = candidate.configuration
        group = None if self.group is None else self.group(c)
        names = tuple(p.name for p in self.parameters)
        writes = tuple(t.name for t in self.bound.outputs)
        return Lowering((Launch(self.kernel, self.text(c), self.whole(c), group, names, writes),))


def tune_kernel(
    source: Source,
    space: Space | Mapping[str, Sequence[Any]],
    args: Given | Callable[[np.random.Generator], Given],
    reference: Reference,
    *,
    global_size: Sizes,
    local_size: Sizes | None = None,
    kernel: str | None = None,
    constraints: Sequence[Condition] = (),
    tolerance: float | Mapping[str, float] | None = None,
    default: Mapping[str, Value] | None = None,
    strategy: str = GUIDED,
    bytes_moved: int | None = None,
    operations: int | None = None,
    device: str | Device | None = None,
    store: Store | str | Path | None = None,
    budget: str | float | Budget | None = None,
    evaluations: int | None = None,
    retry: Collection[Status | str] = (),
    progress: bool | Progress = False,
    limits: Limits | None = None,
    measurer: Measurer | None = None,
    helpers: int | None = None,
    seed: int = 0,
) -> KernelResult:
    """Find the fastest configuration of an OpenCL kernel by measuring.

    ``source``: OpenCL C in which every parameter of the space is a macro, or a function that writes the text of a
    configuration (no macros are added to that). ``kernel`` names the kernel where there are several.

    ``space``: values by parameter, whole numbers or texts, or a `Space`. ``constraints`` are expressions such as
    ``"TILE * UNROLL <= 64"``, functions of a configuration, or `Constraint`s. ``global_size`` (work-items) and
    ``local_size`` are one to three numbers, expressions over parameters and whole-number arguments, or functions.
    Configurations whose work-group the device cannot run, or does not divide the global size, are not in the space.

    ``args``: arguments in the kernel's order or by name: arrays that are read, `Output`, `InOut`, numbers. A function
    of a `numpy.random.Generator` is called twice, and candidates must be right for both. ``reference`` is an array for
    each output, or a function of all arguments but the `Output`s that returns them. ``tolerance`` is the largest error
    relative to the largest magnitude expected, for all outputs or by name (default: `kernel_arguments.TOLERANCES`).

    ``default``: the configuration that gains are relative to, measured first. ``strategy``: guided, exhaustive, random,
    local or evolution. ``bytes_moved`` and ``operations`` of one run are for the result's figures. ``retry`` names
    statuses whose candidates are measured again; what is stored otherwise never is. ``store``: the database, None for
    the user's own. ``limits``, ``measurer``, ``helpers``: see `tune`.

    InputError for arguments that do not fit each other, before anything is compiled; DeviceError, DatabaseError as
    for `tune`.
    """
    chosen = device if isinstance(device, Device) else select_device(device)
    again = _statuses(retry)
    limit = Budget.parse(budget, evaluations)
    if strategy != GUIDED and strategy not in _STRATEGIES:
        raise InputError(f"there is no strategy {strategy!r}; there is {GUIDED}, {', '.join(_STRATEGIES)}")
    drawn = [args(np.random.default_rng(n)) for n in range(2)] if callable(args) else [args]
    if callable(args) and not callable(reference):
        raise InputError("arguments that are drawn anew need a reference that is a function of them")
    task, bounds = _task(source, space, drawn, reference, global_size, local_size, kernel, constraints, chosen)
    grid = Grid.of(task.space)
    check_not_empty(task.kernel, task.space, grid)
    first = _default(task, grid, default)
    _check_texts(task, first)
    allowed = tolerances(task.kernel, task.bound.outputs, tolerance)
    moved = task.bound.bytes_moved if bytes_moved is None else bytes_moved
    subject = _subject(task, grid, bounds, allowed, moved, operations or 0)
    with ExitStack() as stack:
        opened = store if isinstance(store, Store) else stack.enter_context(Store.open(store))
        if opened.read_only:
            raise DatabaseError(f"tuning needs a database it may write, and {opened.url} is read-only")
        tuner = _tuner(task, grid, subject, first, chosen, opened, strategy, again, seed)
        shown = stack.enter_context(_shown(progress))
        if strategy == "exhaustive" and limit == Budget():
            limit = Budget(evaluations=max(1, len(grid.rows)))
        report = tune_all((tuner,), chosen, opened, limit, shown, limits=limits, measurer=measurer, helpers=helpers)
        return _result(task, subject, report, chosen, opened, operations)


def _result(
    task: KernelTask,
    subject: ForeignKernel,
    report: TuningReport,
    device: Device,
    store: Store,
    operations: int | None,
) -> KernelResult:
    (stage,) = report.stages
    if stage.message:
        raise DeviceError(f"kernel {task.kernel} cannot be measured on {device.name}: {stage.message}")
    found = store.tried(device.identity, device.driver, GENERATOR, subject.signature).values()
    tried = [KernelMeasurement(Configuration.from_json(m.configuration), m.status, m.seconds, m.message) for m in found]
    measured = tuple(m for m in tried if task.space.violated(m.configuration) is None)
    best: Configuration | None
    if stage.winner is not None:
        best, seconds = stage.winner.configuration, stage.after
    else:  # the database's winner may lie in a larger space, of another call
        fastest = min((m for m in measured if m.seconds is not None), key=lambda m: m.seconds or 0.0, default=None)
        best, seconds = (fastest.configuration, fastest.seconds) if fastest is not None else (None, None)
    return KernelResult(
        kernel=task.kernel,
        device=device.name,
        signature=subject.signature,
        best=best,
        launch=None if best is None else task.lower(Candidate(task.kernel, best)).launches[0],
        seconds=seconds,
        before=stage.before,
        bytes_moved=subject.bytes_moved,
        operations=operations,
        evaluations=report.evaluations,
        measurements=measured,
        space=task.space,
        interrupted=report.interrupted,
    )


def _statuses(given: Collection[Status | str]) -> frozenset[Status]:
    try:
        return frozenset(Status(s) for s in given)
    except ValueError as e:
        raise InputError(f"{e}; there is {', '.join(Status)}") from None


def _shown(progress: bool | Progress) -> AbstractContextManager[Progress | None]:
    if progress is True:
        from tilewright.autotune.progress import TuningBar

        return TuningBar()
    return nullcontext(progress or None)


# --- what is asked for ------------------------------------------------------------------------------------------------


def _task(
    source: Source,
    space: Space | Mapping[str, Sequence[Any]],
    drawn: Sequence[Given],
    reference: Reference,
    global_size: Sizes,
    local_size: Sizes | None,
    kernel: str | None,
    constraints: Sequence[Condition],
    device: Device,
) -> tuple[KernelTask, tuple[Bound, ...]]:
    """The task, with the first set of arguments, and all sets."""
    macros = parameters_of(space)
    names = [p.name for p in macros]
    text = source if isinstance(source, str) else source(dict(Space(macros).point(0)))
    if not isinstance(text, str):
        raise InputError(f"the source of a configuration is a {type(text).__name__}; the function must return a text")
    name, parameters = kernel_parameters(text, kernel)
    both = sorted({p.name for p in parameters} & set(names))
    if both:
        raise InputError(f"{both[0]} is a parameter of the space and an argument of kernel {name}; rename one of them")
    bounds = tuple(bind(name, parameters, given, reference) for given in drawn)
    first = bounds[0]
    if any((b.inputs, b.outputs, b.scalars) != (first.inputs, first.outputs, first.scalars) for b in bounds):
        raise InputError(f"the arguments of kernel {name} that are drawn must agree in shapes, types and numbers")
    known = {n: int(v) for n, v in first.scalars.items() if isinstance(v, np.integer)}
    whole = geometry("global_size", global_size, names, known)
    group = None if local_size is None else geometry("local_size", local_size, names, known)
    if isinstance(source, str):
        read = words(source) | whole.names | (group.names if group is not None else frozenset())
        functions = whole.has_functions or (group is not None and group.has_functions)
        missing = [n for n in names if n not in read]
        if missing and not functions:
            raise InputError(
                f"the parameter {missing[0]} is no macro: neither the source of kernel {name} nor its sizes mention it"
            )
    conditions = (*(space.constraints if isinstance(space, Space) else ()), *constraints_of(constraints, names, known))
    full = Space(macros, (*conditions, *launchable(device, whole, group)))
    if full.raw_size >= 1 << 62:
        raise InputError(f"the space of kernel {name} has {full.raw_size:.1e} points; give fewer values")
    return KernelTask(name, source, parameters, full, whole, group, first), bounds


def _default(task: KernelTask, grid: Grid, given: Mapping[str, Value] | None) -> Configuration:
    """What gains are relative to: the given configuration, else the first legal one."""
    if given is None:
        return grid.configuration(grid.rows[0])
    found = Configuration.of({n: int(v) if isinstance(v, bool) else v for n, v in given.items()})
    problem = task.space.violated(found)
    if problem:
        raise InputError(f"the default configuration of kernel {task.kernel} is not in its space: {problem}")
    return found


def _check_texts(task: KernelTask, first: Configuration) -> None:
    """InputError if the text of the default does not take the arguments that were matched with another's."""
    if callable(task.source) and kernel_parameters(task.text(first), task.kernel)[1] != task.parameters:
        raise InputError(f"kernel {task.kernel} takes other arguments in other configurations; it must not")


def _subject(
    task: KernelTask,
    grid: Grid,
    bounds: Sequence[Bound],
    allowed: Mapping[str, float],
    bytes_moved: int,
    operations: int,
) -> ForeignKernel:
    bound = task.bound
    changed = bound.arguments.initial
    tensors = {t.name: t for t in (*bound.inputs, *bound.outputs)}
    kinds: list[str] = []
    shown: list[str] = []
    sizes: list[int] = []
    for p in task.parameters:
        if p.name in tensors:
            t = tensors[p.name]
            role = "changed" if p.name in changed else "written" if t in bound.outputs else "read"
            kinds.append(f"{p.name} {t.dtype.value} {len(t.shape)} {role}")
            shown.append(f"{p.name} {t.dtype.value}{list(t.shape)} {role}")
            sizes += t.shape
        else:
            value = bound.scalars[p.name]
            kinds.append(f"{p.name} {value.dtype}")
            shown.append(f"{p.name} = {value.dtype}({value.item()!r})")
    group = "chosen by the driver" if task.group is None else task.group.text
    made = "" if isinstance(task.source, str) else "(function)\n"
    general = {
        "source": task.source if isinstance(task.source, str) else task.text(grid.configuration(grid.rows[0])),
        "kernel": task.kernel,
        "sizes": [task.whole.text, group],
        "functions": _sampled(task, grid),
        "sets": len(bounds),
        "tolerances": {name: repr(value) for name, value in sorted(allowed.items())},
    }
    head = f"kernel {task.kernel}({', '.join(shown)})"
    text = f"{head}\nwork-items {task.whole.text} in groups of {group}\n{made}{general['source']}"
    return ForeignKernel(
        name=task.kernel,
        text=text,
        signature=_digest({**general, "arguments": shown}),
        structure=_digest({**general, "arguments": kinds}),
        sizes=tuple(sizes),
        inputs=bound.inputs,
        outputs=bound.outputs,
        scalars=bound.scalars,
        sets=tuple(b.arguments for b in bounds),
        tolerances=allowed,
        bytes_moved=bytes_moved,
        operations=operations,
    )


def _sampled(task: KernelTask, grid: Grid) -> list[str]:
    """What functions make of configurations spread over the space; empty where texts say all."""
    geometries = [g for g in (task.whole, task.group) if g is not None]
    if isinstance(task.source, str) and not any(g.has_functions for g in geometries):
        return []
    rows = grid.rows[:: max(1, len(grid.rows) // SAMPLED)]
    configurations = [grid.configuration(row) for row in rows]
    text = task.text if callable(task.source) else lambda _: ""
    return [_digest([c.to_json(), text(c), *(g(c) for g in geometries)]) for c in configurations]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- the search -------------------------------------------------------------------------------------------------------


def _tuner(
    task: KernelTask,
    grid: Grid,
    subject: ForeignKernel,
    default: Configuration,
    device: Device,
    store: Store,
    strategy: str,
    again: Collection[Status],
    seed: int,
) -> StageTuner:
    key, used = subject.signature, Candidate(task.kernel, default)
    space = StageSpace({task.kernel: task.space}, (used,))
    space.use(task.kernel, grid)
    near = store.nearest(device.identity, device.driver, GENERATOR, subject.structure, subject.sizes)
    known = [c for w in near if (c := space.nearest(w.family, w.configuration)) is not None]
    if strategy == GUIDED:
        make, settings = told(subject, device, store, key, GENERATOR), SearchSettings()
    else:
        make, settings = lambda _, g, s: _STRATEGIES[strategy](g, s), SearchSettings(exhaustive=0)
    search = StageSearch(space, [used, *known[:NEAR_WINNERS]], seed, settings, make)
    for m in store.tried(device.identity, device.driver, GENERATOR, key).values():
        candidate = space.stored(m.family, m.configuration)
        if m.status not in again and space.violated(candidate) is None:
            search.tell(candidate, m.seconds)
    return StageTuner(Job(key, subject, None), space, task.lower, search, used, 1.0, key, subject.text, GENERATOR)


__all__ = ["GENERATOR", "KernelTask", "tune_kernel"]
