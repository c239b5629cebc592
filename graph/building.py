"""From a recipe to launches that are ready to run: memory, constants and kernels on the device.

Constants are shared by the plans of a session, and what depends on them alone is computed here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.graph.mapped import let_go, pieces
from tilewright.graph.megakernels import Started, counters_name, started
from tilewright.graph.memory import Spot
from tilewright.graph.recipe import BufferSpec, Recipe, Step, packed_key
from tilewright.graph.running import Prepared
from tilewright.runtime import BoundLaunch, Buffer, Builds, Context, building

PASSING_BYTES = 16 << 20
"""Largest constant whose memory, once it is packed, serves the next one: new pages cost more than the copy."""


class SharedConstants:
    """Device buffers of constants, shared by the plans of one session while any of them uses them."""

    def __init__(self) -> None:
        self._buffers: WeakValueDictionary[object, Buffer] = WeakValueDictionary()

    def get(self, key: object, make: Callable[[], Buffer]) -> Buffer:
        """The buffer of a key, made if there is none; a key of None is never shared."""
        found = None if key is None else self._buffers.get(key)
        if found is None:
            found = make()
            if key is not None:
                self._buffers[key] = found
        return found

    def clear(self) -> None:
        """Share nothing from before: a fault of the device has taken it."""
        self._buffers = WeakValueDictionary()

    def known(self, key: object) -> Buffer | None:
        """The buffer of a key if some plan holds it."""
        return self._buffers.get(key)


def prepared(recipe: Recipe, ctx: Context, shared: SharedConstants) -> Prepared:
    """Lay out memory, build the kernels, and run once what needs no input.

    Raises KernelError or DeviceError if the device cannot do it.
    """
    run = started(recipe, ctx.device.target)
    with building(ctx) as builds:
        build_all(recipe, run, builds)
    return Prepared(recipe, run, *bound_launches(recipe, run, ctx, shared), ctx)


def build_all(recipe: Recipe, run: Sequence[Started], builds: Builds) -> None:
    """Hand over the sources of a plan's launches."""
    ahead = (step.launches[n] for step in recipe.steps for n in step.ahead)
    for source in dict.fromkeys(launch.source for launch in (*ahead, *(s.launch for s in run))):
        builds.add(source)


def bound_launches(
    recipe: Recipe, run: Sequence[Started], ctx: Context, shared: SharedConstants
) -> tuple[list[BoundLaunch], dict[str, Buffer]]:
    """The launches of every run with their arguments, and the buffers that stay, by name; for sources that are built.

    Raises what `prepared` does.
    """
    return _Builder(recipe, run, ctx, shared).prepare()


@dataclass
class _Builder:
    """Memory and launches of one plan."""

    recipe: Recipe
    run: Sequence[Started]
    ctx: Context
    shared: SharedConstants
    buffers: dict[str, Buffer] = field(default_factory=dict)
    passing: dict[int, Buffer] = field(default_factory=dict)
    """Where the first, second, ... constant of each step lies until it is packed."""
    ahead: dict[Launch, BoundLaunch] = field(default_factory=dict)
    """Launches that are done ahead of all runs, whose arguments are set each time."""

    def prepare(self) -> tuple[list[BoundLaunch], dict[str, Buffer]]:
        """The launches of every run, bound, and the buffers that stay, by name."""
        launches = self.recipe.launches
        self.used = {b for p in launches for b in p.arguments.values()}
        self._fill_scratch()
        # ahead of any work: a driver's threads wait busily for more of it while kernels are made
        for launch in dict.fromkeys(step.launches[n] for step in self.recipe.steps for n in step.ahead):
            self.ahead[launch] = self.ctx.bind(launch, dict.fromkeys(launch.arguments))
        # those of the largest first: a constant lies twice in memory while it is packed, at the end beside all others
        for step in sorted(self.recipe.steps, key=self._constant_bytes, reverse=True):
            self._constants_of(step)
        self.buffers = {name: b for name, b in self.buffers.items() if name in self.used}
        self._place_temporaries()
        for number in {p.counters for p in self.run} - {0}:
            zeros = Scratch("counters", DType.I32, number, 0.0)
            self.buffers[counters_name(number)] = self._filled(zeros)
        bound = [self._bound(p) for p in self.run]
        self.ctx.finish()
        self.passing.clear()
        self.ahead.clear()
        if any(step.ahead for step in self.recipe.steps):  # constants that were packed are not needed as they were
            self.ctx.trim()
        return bound, self.buffers

    def _bound(self, p: Started) -> BoundLaunch:
        """A launch with its arguments; runs set those that are inputs or outputs of the network."""
        return self.ctx.bind(p.launch, {a: self.buffers.get(b) for a, b in p.arguments.items()})

    def _fill_scratch(self) -> None:
        for step in self.recipe.steps:
            for s in step.scratch:
                name = step.arguments[s.name]
                if s.fill is not None and name not in self.buffers:
                    self.buffers[name] = self.shared.get(name, lambda s=s: self._filled(s))  # type: ignore[misc]

    def _constant_bytes(self, step: Step) -> int:
        return sum(self.recipe.buffers[name].nbytes for name in step.constants.values())

    def _filled(self, scratch: Scratch) -> Buffer:
        assert scratch.fill is not None
        buffer = self.ctx.allocate(scratch.size * scratch.dtype.itemsize)
        self.ctx.fill(buffer, scratch.fill, scratch.dtype)
        return buffer

    def _constants_of(self, step: Step) -> None:
        """Upload the step's constants and run its launches that need nothing else; keep what later runs use."""
        passing: dict[str, Buffer] = {}
        constants = {n: self.recipe.buffers[n] for n in step.constants.values()}
        for name, spec in constants.items():
            if name in self.used and name not in self.buffers:
                self.buffers[name] = self.shared.get(spec.key, lambda spec=spec: self._uploaded(spec))  # type: ignore[misc]
        for n in sorted(step.ahead):
            self._run_ahead(step, step.launches[n], constants, passing)

    def _run_ahead(
        self, step: Step, launch: Launch, constants: Mapping[str, BufferSpec], passing: dict[str, Buffer]
    ) -> None:
        """One launch ahead of all runs, unless another plan holds its results already."""
        sizes = {s.name: s.size * s.dtype.itemsize for s in step.scratch}
        keys = {w: packed_key(self.recipe.buffers, step, w) for w in launch.writes}
        known = {w: self.shared.known(key) for w, key in keys.items() if key is not None}
        if launch.writes and all(known.get(w) is not None for w in launch.writes):
            self.buffers.update({step.arguments[w]: b for w, b in known.items() if b is not None})
            return
        for w in launch.writes:
            name = step.arguments[w]
            if name not in self.buffers:
                self.buffers[name] = self.shared.get(keys[w], lambda w=w: self.ctx.allocate(sizes[w]))  # type: ignore[misc]
        given = {}
        for argument in launch.arguments:
            name = step.arguments[argument]
            if name in constants and name not in self.buffers:
                if name not in passing:
                    passing[name] = self._passed(constants[name], len(passing))
                given[argument] = passing[name]
            else:
                given[argument] = self.buffers[name]
        bound = self.ahead[launch]
        for position, argument in enumerate(launch.arguments):
            self.ctx.rebind(bound, position, given[argument])
        self.ctx.enqueue([bound])

    def _uploaded(self, spec: BufferSpec) -> Buffer:
        buffer = self.ctx.allocate(spec.nbytes)
        self._write(buffer, spec)
        return buffer

    def _passed(self, spec: BufferSpec, number: int) -> Buffer:
        """The memory of a constant that is packed next and not needed afterwards, the `number`-th of its step."""
        buffer = self.passing.get(number)
        if buffer is None or not buffer.nbytes // 2 <= spec.nbytes <= buffer.nbytes:
            self.passing.pop(number, None)
            buffer = self.ctx.allocate(spec.nbytes, reuse=False)  # or all of them wait for others
            if spec.nbytes <= PASSING_BYTES:
                self.passing[number] = buffer
        self._write(buffer, spec)
        return buffer

    def _write(self, buffer: Buffer, spec: BufferSpec) -> None:
        assert spec.content is not None
        for start, piece in pieces(spec.content):
            self.ctx.write(buffer, piece, start)
            let_go(piece)

    def _place_temporaries(self) -> None:
        splits, arenas = self.ctx.splits_buffers, self.recipe.arenas
        # where parts must not overlap, those of the plan before may still be in use: such memory is not used again
        memory = [self.ctx.allocate(n, reuse=splits) for n in arenas.sizes]
        parts: dict[Spot, Buffer] = {}
        for b in sorted(self.recipe.temporaries, key=lambda b: -b.nbytes):
            spot = arenas.spots[b.name]
            whole = memory[spot.arena]
            if splits:
                self.buffers[b.name] = self.ctx.view(whole, spot.offset, b.nbytes)
            else:  # one view for all that is there in turn, as large as the largest
                if spot not in parts:
                    parts[spot] = self.ctx.view(whole, spot.offset, b.nbytes) if spot.offset else whole
                self.buffers[b.name] = parts[spot]
            self.buffers |= dict.fromkeys(b.heirs, self.buffers[b.name])


__all__ = ["SharedConstants", "bound_launches", "build_all", "prepared"]
