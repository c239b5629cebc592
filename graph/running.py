"""Running a plan: inputs in, the list of launches, outputs out. Nothing is decided here, and one wait is enough."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tilewright.errors import DeviceError
from tilewright.graph.megakernels import Started
from tilewright.graph.recipe import BufferSpec, Recipe, Role, StepLaunch
from tilewright.runtime import BoundLaunch, Buffer, Context, Launches, Mark, building

MOST_LAUNCHES_AHEAD = 512
"""How far `Plan.run_on_device` runs ahead of the device: a driver whose queue is full keeps all of Python waiting."""
LAUNCHES_PER_MARK = 128
"""Launches after which a mark is set to wait for; short runs share one, since setting it costs what a launch does."""

Feeds = Mapping[str, "np.ndarray[Any, Any] | Buffer"]


@dataclass(frozen=True)
class ProfileRow:
    """What one launch of a run took, or one node on the host, whose family is "host"."""

    op: str
    """The network's operators that it computes, and the names of the first and last of their nodes."""
    kernel: str
    family: str
    configuration: str
    origin: str
    """Why this configuration: tuned, nearest shape, default."""
    microseconds: float
    gflops: float
    """Of the stage that the launch belongs to: its arithmetic over the time of all its launches."""
    gbytes_per_second: float
    """Likewise for the bytes that the stage reads and writes at least."""
    types: tuple[str, ...] = ()
    """Of a host node: the element types of the tensors that it reads and writes."""


@dataclass(eq=False)
class _OwnInputs:
    """Memory of inputs that are arrays of the caller, and when it was used last."""

    buffers: dict[str, Buffer]
    last_use: Mark | None = None


class Prepared:
    """Launches in order with their buffers, ready to run: a recipe on a device.

    Runs of one exclude each other; several may run in several threads. Memory of inputs and outputs is taken when a run
    needs it and given back after it, where it is not the caller's.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Sequence[Started],
        bound: Sequence[BoundLaunch],
        buffers: Mapping[str, Buffer],
        ctx: Context,
    ) -> None:
        self.recipe = recipe
        self.device = ctx.device
        self.inputs = {s.name: s for s in recipe.buffers.values() if s.role is Role.INPUT}
        results = {s.name: s for s in recipe.buffers.values() if s.role is Role.OUTPUT}
        self.checks = recipe.checks
        """Positions to be looked at: those among the inputs by the caller, ahead of a run, all others by the run."""
        self._results = results
        self._extents = {c.value: results[c.value] for c in self.checks.made}
        self.outputs = {name: s for name, s in results.items() if name not in self._extents}
        self.arena_bytes = sum(recipe.arenas.sizes)
        """Memory for everything that is written and read within a run."""
        self.constants = tuple(dict.fromkeys(b for name, b in buffers.items() if name not in recipe.arenas.spots))
        """Buffers that are written once: constants as they are or packed, and filled scratch."""
        self._buffers = buffers
        self._ctx = ctx
        self._bound = Launches(bound)
        self._places = {name: _places(run, bound, name) for name in (*self.inputs, *results)}
        self._set: dict[str, Any] = {}
        """What the arguments of each input and output are set to: OpenCL's memory objects."""
        self._own: deque[_OwnInputs] = deque(maxlen=2)
        """Where arrays are copied to while the device is at work on an earlier run; used longest ago first."""
        self._under_way: deque[tuple[Mark, int]] = deque()
        """Marks that were not waited for, and how many launches had been enqueued before each."""
        self._enqueued = self._marked = self._waited = 0
        """Launches so far; those before the last mark, and before the last one that was waited for."""
        self._lock = threading.Lock()

    @property
    def lost(self) -> bool:
        """True after a fault of the device, with which the plan's buffers are gone."""
        return self._ctx.lost

    @property
    def kernels(self) -> int:
        """Kernels that a run starts; fewer than the recipe's launches where some are joined."""
        return len(self._bound)

    @property
    def constant_bytes(self) -> int:
        """Memory for constants."""
        return sum(b.nbytes for b in self.constants)

    @property
    def io_bytes(self) -> int:
        """Memory for inputs and outputs while a run needs it."""
        return sum(s.nbytes for s in (*self.inputs.values(), *self.outputs.values()))

    def content(self, constant: BufferSpec) -> np.ndarray[Any, Any]:
        """The elements of a constant that runs read, from the device where it was computed there."""
        if constant.content is not None:
            return constant.content
        return self._ctx.read(self._buffers[constant.name], (constant.size,), constant.dtype)

    def run(self, feeds: Feeds, names: Collection[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: inputs by name (arrays of the declared shape and dtype, or device buffers) to outputs.

        All outputs are given, or those of `names`. Waits once, for the outputs. InputError for positions that turn out
        to lie outside of what they count.
        """
        specs = {name: spec for name, spec in self.outputs.items() if names is None or name in names}
        specs |= self._extents
        with self._lock:
            outputs = self._allocated()
            inputs = self._connect(feeds, outputs)
            sent = [self._ctx.transfers.send(inputs[name], array) for name, array in self._arrays(feeds)]
            self._ctx.enqueue(self._bound)
            wanted = [(outputs[name], spec.shape, spec.dtype) for name, spec in specs.items()]
            results = self._ctx.transfers.receive(wanted)
        del sent  # only now: what was sent had to stay as it was
        made = dict(zip(specs, results, strict=True))
        self.checks.verify_made(made)
        return {name: array for name, array in made.items() if name not in self._extents}

    def run_on_device(self, feeds: Feeds) -> dict[str, Buffer]:
        """Run once and leave the outputs on the device, in buffers of their own; returns before the device is done.

        Arrays may be changed once it has returned. They are copied while the device does what came before, where it
        can do both. Where positions depend on what the device computes, they are waited for: InputError for those that
        turn out to lie outside of what they count.
        """
        with self._lock:
            outputs = self._allocated()
            arrays = dict(self._arrays(feeds))
            own = self._own_inputs(arrays)
            self._connect({**feeds, **own.buffers}, outputs)
            for name, array in arrays.items():
                self._ctx.transfers.upload(own.buffers[name], array, own.last_use)
            self._ctx.enqueue(self._bound)
            self._enqueued += len(self._bound)
            if arrays or self._enqueued - self._marked >= LAUNCHES_PER_MARK:
                own.last_use = self._ctx.transfers.mark()
                self._follow(own.last_use)
            else:
                self._ctx.transfers.flush()
            wanted = [(outputs[name], spec.shape, spec.dtype) for name, spec in self._extents.items()]
            extents = self._ctx.transfers.receive(wanted) if wanted else []
        self.checks.verify_made(dict(zip(self._extents, extents, strict=True)))
        return {name: buffer for name, buffer in outputs.items() if name not in self._extents}

    def _follow(self, mark: Mark) -> None:
        """Wait for the oldest marks where the device is too far behind this new one."""
        self._under_way.append((mark, self._enqueued))
        self._marked = self._enqueued
        while len(self._under_way) > 2 and self._enqueued - self._waited > MOST_LAUNCHES_AHEAD:
            oldest, self._waited = self._under_way.popleft()
            self._ctx.transfers.wait(oldest)

    def time(self, feeds: Feeds, repeats: int, warmup: int = 1) -> list[float]:
        """Seconds per run without moving inputs and outputs."""
        with self._lock:
            held = self._load(feeds, self._allocated())
            times = self._ctx.time(self._bound, repeats, warmup)
            del held
            return times

    def time_calls(self, feeds: Feeds, repeats: int) -> list[list[float]]:
        """Seconds of each call by itself, in `repeats` samples; 0.0 where nothing is launched."""
        with self._lock:
            held = self._load(feeds, self._allocated())
            every = self._each(held)
            times = []
            for step in self.recipe.steps:  # in order: a later one may overwrite what an earlier one reads
                bound = [b for b, p in zip(every, self.recipe.launches, strict=True) if p.step is step]
                times.append(self._ctx.time(bound, repeats) if bound else [0.0] * repeats)
            del held
            return times

    def profile(self, feeds: Feeds) -> list[ProfileRow]:
        """What each launch of one run takes."""
        with self._lock:
            held = self._load(feeds, self._allocated())
            every = self._each(held)
            self._ctx.enqueue(every)
            self._ctx.finish()
            seconds = self._ctx.profile(every)
            del held
        totals: dict[int, float] = {}
        for p, s in zip(self.recipe.launches, seconds, strict=True):
            totals[id(p.step)] = totals.get(id(p.step), 0.0) + s
        return [_row(p, s, totals[id(p.step)]) for p, s in zip(self.recipe.launches, seconds, strict=True)]

    def describe(self) -> str:
        """What a run does, for people: memory, then one line per launch of the recipe."""
        launches = self.recipe.launches
        joined = f" in {self.kernels} kernels" if self.kernels < len(launches) else ""
        lines = [
            f"{len(launches)} launches{joined} on {self.device.name}, {self.arena_bytes / 2**20:.1f} MiB arena, "
            f"{self.constant_bytes / 2**20:.1f} MiB constants"
        ]
        for label in (p.step.label for p in launches):
            lines.append(f"{label.text}: {label.family} ({label.configuration}; {label.origin})")
        return "\n".join(lines)

    # --- inputs and outputs ---

    def _allocated(self) -> dict[str, Buffer]:
        """Memory for everything that a run gives."""
        return {name: self._ctx.allocate(spec.nbytes) for name, spec in self._results.items()}

    def _own_inputs(self, names: Collection[str]) -> _OwnInputs:
        """Memory for inputs that no run under way reads, or that of the run before the last."""
        if not names or not self._ctx.transfers.overlap:
            return _OwnInputs({name: self._ctx.allocate(self.inputs[name].nbytes) for name in names})
        own = next((o for o in self._own if o.last_use is not None and o.last_use.is_passed), None)
        if own is None:
            own = self._own.popleft() if len(self._own) == self._own.maxlen else _OwnInputs({})
        else:
            self._own.remove(own)
        self._own.append(own)
        missing = [name for name in names if name not in own.buffers]
        if missing:
            own.buffers.update({name: self._ctx.allocate(self.inputs[name].nbytes) for name in missing})
            own.last_use = self._ctx.transfers.mark()  # the pool gives what launches under way may still read
        return own

    def _arrays(self, feeds: Feeds) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """What has to be copied to the device."""
        for name in self.inputs:
            value = feeds[name]
            if not isinstance(value, Buffer):
                yield name, value

    def _load(self, feeds: Feeds, outputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Connect, and copy arrays to the device; the caller keeps the result while the memory is needed."""
        inputs = self._connect(feeds, outputs)
        for name, array in self._arrays(feeds):
            self._ctx.write(inputs[name], array)
        return {**inputs, **outputs}

    def _each(self, given: Mapping[str, Buffer]) -> Sequence[BoundLaunch]:
        """The recipe's launches one by one, whatever a run joins, with inputs and outputs in these buffers."""
        if len(self._bound) == len(self.recipe.launches):
            return self._bound
        for name, buffer in given.items():
            for bound, position in _places(self.recipe.launches, self._apart, name):
                self._ctx.rebind(bound, position, buffer)
        return self._apart

    @cached_property
    def _apart(self) -> tuple[BoundLaunch, ...]:
        """The recipe's launches one by one, for profiles; built when the first is asked for."""
        with building(self._ctx) as builds:
            for p in self.recipe.launches:
                builds.add(p.launch.source)
        return tuple(
            self._ctx.bind(p.launch, {a: self._buffers.get(b) for a, b in p.arguments.items()})
            for p in self.recipe.launches
        )

    def _connect(self, feeds: Feeds, outputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """The inputs' buffers, the caller's or new ones, to which and to the outputs' the launches are bound now."""
        inputs = {}
        for name, spec in self.inputs.items():
            value = feeds[name]
            if not isinstance(value, Buffer):
                inputs[name] = self._ctx.allocate(spec.nbytes)
            elif value.nbytes < spec.nbytes:
                raise DeviceError(f"input {name} needs {spec.nbytes} bytes, but its buffer has {value.nbytes}")
            elif not self._ctx.owns(value):
                raise DeviceError(
                    f"input {name} lies in memory of another device, or was lost with a fault; copy it anew"
                )
            else:
                inputs[name] = value
        for name, buffer in (*inputs.items(), *outputs.items()):
            memory = buffer.memory
            if self._set.get(name) is not memory:  # the pool mostly gives the memory of the run before
                self._set.pop(name, None)
                for bound, position in self._places[name]:
                    self._ctx.rebind(bound, position, buffer)
                self._set[name] = memory
        return inputs


def _places(
    launches: Sequence[Started | StepLaunch], bound: Sequence[BoundLaunch], name: str
) -> tuple[tuple[BoundLaunch, int], ...]:
    """Every argument that is the buffer `name`."""
    return tuple(
        (b, position)
        for p, b in zip(launches, bound, strict=True)
        for position, argument in enumerate(p.launch.arguments)
        if p.arguments[argument] == name
    )


def _row(p: StepLaunch, seconds: float, step_seconds: float) -> ProfileRow:
    label = p.step.label
    rate = 1e-9 / step_seconds if step_seconds > 0 else 0.0
    return ProfileRow(
        label.text,
        p.launch.kernel,
        label.family,
        label.configuration,
        label.origin,
        seconds * 1e6,
        label.operations * rate,
        label.bytes_moved * rate,
    )
