"""Where every value lies: channels-last activations, views over one buffer, joins written in place.

Values have *roots*: inputs of the graph, outputs of items, joins. A root has a buffer (or a slice of its join's) and
strides; every other value is a view of one, or a copy where strides cannot say it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tilewright.dsl import compose
from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.squeeze import SQUEEZE
from tilewright.dsl.program import Index, Program, Read, Reduce, Statement, Tensor, contiguous_strides, reads, walk
from tilewright.dsl.splitting import linearised
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.graph.calls import BufferSpec, Call, Network, Role
from tilewright.graph.composing import is_map
from tilewright.graph.folds import Fold, fold, folded
from tilewright.graph.images import IMAGE_RANKS, channels_last_strides
from tilewright.graph.joins import Places, places_of_joins
from tilewright.graph.orders import Order, memory_orders, ordered_strides
from tilewright.graph.prologues import with_prologues
from tilewright.graph.squeezes import with_squeezes
from tilewright.graph.steps import Item, JoinStep, Step, Steps, ViewStep
from tilewright.graph.views import seen
from tilewright.ops import Reshaped, View

SPATIAL = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DepthToSpace",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "InstanceNormalization",
        "LRN",
        "LpPool",
        "MaxPool",
        "Pad",
        "QLinearConv",
        "Resize",
        "SpaceToDepth",
        "Upsample",
    }
)
"""Operators whose outputs are images: (batch, channel, positions...)."""


def lay_out(steps: Steps, target: Target) -> Network:
    """Give every value its place; the result's calls are single-kernel programs in order."""
    steps = _outputs_of_their_own(with_prologues(with_squeezes(steps, target), target))
    work = _Layout(steps, channels_last_values(steps), target)
    work.place_roots()
    for step in steps.steps:
        work.lay_step(step)
    return Network(tuple(work.calls), work.buffers)


# --- the graph's outputs ----------------------------------------------------------------------------------------------


def _outputs_of_their_own(steps: Steps) -> Steps:
    """Steps in which each output of the graph has a home: a value that an item or a join writes into its buffer.

    An output that is another view of something or a constant is written by a copy.
    """
    graph = steps.graph
    made = {steps.written(s): s for s in steps.steps}
    added: list[Step] = []
    renames: dict[str, str] = {}
    constants, values = dict(graph.constants), dict(graph.values)
    homes = {v.name: v.name for v in graph.outputs if isinstance(made.get(v.name), Item | JoinStep)}
    for value in graph.outputs:
        step = made.get(value.name)
        if value.name in homes:
            continue
        source = value.name
        if isinstance(step, ViewStep):
            reshapes = all(isinstance(view, Reshaped) for view in step.views)
            if reshapes and step.source not in homes and isinstance(made.get(step.source), Item | JoinStep):
                homes[step.source] = value.name
                continue
            renames[value.name] = source = f"{value.name}\0view"
            values[source] = replace(value, name=source)
        if value.name in graph.constants:
            source = f"{value.name}\0constant"
            constants[source] = graph.constants[value.name]
        added.append(_copy_item(steps, source, value.name, value.dtype, value.sizes))
        homes[value.name] = value.name
    kept = steps.steps if not renames else tuple(_renamed(s, renames, steps) for s in steps.steps)
    graph = replace(graph, constants=constants, values=values)
    return replace(steps, graph=graph, steps=(*kept, *added), homes=homes)


def _renamed(step: Step, renames: Mapping[str, str], steps: Steps) -> Step:
    def name(value: str) -> str:
        return renames.get(value, value)

    if isinstance(step, ViewStep):
        return replace(step, output=name(step.output), source=name(step.source))
    if isinstance(step, JoinStep):
        return replace(step, inputs=tuple(map(name, step.inputs)))
    references = steps.references
    changed = {}
    for t in step.program.inputs:
        reference = references[t.name]
        if reference.value in renames:
            changed[t.name] = references.name(renames[reference.value], reference.shape)
    return replace(step, program=compose.rename(step.program, changed)) if changed else step


def _copy_item(steps: Steps, source: str, target: str, dtype: DType, shape: tuple[int, ...]) -> Item:
    x = Tensor(steps.references.name(source, shape), dtype, shape)
    y = Tensor(steps.references.name(target, shape), dtype, shape)
    return Item(copy_program(x, y), ("Copy",), (target,))


def copy_program(x: Tensor, y: Tensor) -> Program:
    """``y[...] = x[...]`` for two tensors of one shape."""
    indices = tuple(Index(f"i{d}", n) for d, n in enumerate(x.shape))
    here = tuple(Affine.index(i.name) for i in indices)
    return Program("copy", (x,), (y,), (Statement(y.name, indices, Read(x.name, here, x.dtype)),))


# --- which values are channels-last -----------------------------------------------------------------------------------


def channels_last_values(steps: Steps) -> frozenset[str]:
    """The values stored with channels next to one another; inputs and outputs of the graph are row-major."""
    found: set[str] = set()
    for step in steps.steps:
        value = steps.written(step)
        if value in steps.homes or isinstance(step, ViewStep):
            continue
        if isinstance(step, JoinStep):
            if step.axis <= 1 and any(v in found for v in step.inputs):
                found.add(value)
        elif _is_image(steps, step) or _follows_image(steps, step, found):
            found.add(value)
    return frozenset(found - _flattened(steps, found))


def _is_image(steps: Steps, item: Item) -> bool:
    shape = steps.graph.values[steps.written(item)].sizes if steps.written(item) in steps.graph.values else ()
    return len(shape) in IMAGE_RANKS and bool(SPATIAL & set(item.ops))


def _follows_image(steps: Steps, item: Item, found: set[str]) -> bool:
    shape = item.output.shape
    return is_map(item.program) and any(
        steps.references[t.name].value in found and t.shape == shape for t in item.program.inputs
    )


def _flattened(steps: Steps, found: set[str]) -> set[str]:
    """Those values that are only ever read through views which row-major order allows and channels-last does not."""
    readers: dict[str, list[Step]] = {}
    for step in steps.steps:
        for value in steps.read(step):
            readers.setdefault(value, []).append(step)
    result = set()
    for value in found:
        users = readers.get(value, [])
        shape = steps.graph.values[value].sizes
        last = Tensor("x", DType.F32, shape, channels_last_strides(shape))
        plain = Tensor("x", DType.F32, shape)
        if users and all(isinstance(u, ViewStep) and not _fits(last, u) and _fits(plain, u) for u in users):
            result.add(value)
    return result


def _innermost(place: Fold) -> int:
    """The dimension along which neighbours lie closest in memory; that of the lowest number if there is none."""
    nearest = [(parts[-1][1], d) for d, parts in enumerate(place.dimensions) if parts]
    return min(nearest, default=(0, 0))[1]


def _fits(tensor: Tensor, step: ViewStep) -> bool:
    through: Tensor | None = tensor
    for view in step.views:
        through = None if through is None else seen(through, view)
    return through is not None


# --- places -----------------------------------------------------------------------------------------------------------


@dataclass
class _Layout:
    """The state of the walk over the steps."""

    steps: Steps
    channels_last: frozenset[str]
    target: Target
    buffers: dict[str, BufferSpec] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    places: dict[str, Tensor] = field(default_factory=dict)
    """Where each value lies; a Tensor's name is its buffer's."""
    folds: dict[str, Fold] = field(default_factory=dict)
    """Views whose dimensions are several in memory; one that a program reads is copied then."""
    orders: Mapping[str, Order] = field(default_factory=dict)
    """How the dimensions of values lie that are neither row-major nor images."""

    def place_roots(self) -> None:
        """Give buffers to inputs, outputs, items and joins; slices of joins to what is written in place."""
        graph = self.steps.graph
        self.orders = self._orders()
        for value in graph.inputs:
            self._own_buffer(value.name, value.dtype, value.sizes, Role.INPUT)
        self.joins: Places = places_of_joins(self.steps)
        roots = [s for s in self.steps.steps if not isinstance(s, ViewStep)]
        for step in reversed(roots):  # a join is placed before what lies in it
            name = self.steps.written(step)
            slot = self.joins.slot_of(name)
            value = graph.values[name]
            if slot is None:
                role = Role.OUTPUT if name in self.steps.homes else Role.TEMPORARY
                self._own_buffer(name, value.dtype, value.sizes, role)
            else:
                self.places[name] = slot.within(self.places[slot.join])

    def _orders(self) -> dict[str, Order]:
        """Values that lie neither row-major nor as images."""
        values = self.steps.graph.values
        images = {
            n: Tensor(n, values[n].dtype, values[n].sizes, channels_last_strides(values[n].sizes))
            for n in self.channels_last
        }
        joined = {v for s in self.steps.steps if isinstance(s, JoinStep) for v in s.inputs}
        return memory_orders(self.steps, images, joined | self.steps.homes.keys())

    def _own_buffer(self, name: str, dtype: DType, shape: tuple[int, ...], role: Role) -> None:
        strides = channels_last_strides(shape) if name in self.channels_last else contiguous_strides(shape)
        if name in self.orders:
            strides = ordered_strides(shape, self.orders[name])
        home = self.steps.homes.get(name, name)
        outside = self.steps.graph.values[home].sizes
        self.buffers[home] = BufferSpec(home, dtype, math.prod(shape), role, outside)
        self.places[name] = Tensor(home, dtype, shape, strides)

    # --- steps ---

    def lay_step(self, step: Step) -> None:
        """Add the calls of one step."""
        if isinstance(step, ViewStep):
            place = self._fold(step.source)
            for view in step.views:
                place = self._through(place, view)
            direct = place.tensor
            if direct is None:
                self.folds[step.output] = place
            else:
                self.places[step.output] = direct
        elif isinstance(step, JoinStep):
            for value, slot in self.joins.copies(step.output):
                self._copy(self._fold(value), slot.within(self.places[slot.join]), step.output)
        else:
            self._lay_item(step)

    def _located(self, value: str) -> Tensor:
        """Where a value lies, with one stride per dimension: by way of a copy if it has none yet."""
        if value in self.folds and value not in self.places:
            self.places[value] = self._unfolded(self.folds[value])
        if value not in self.places:
            array = self.steps.graph.constants[value]
            self.places[value] = self._constant(value, array.shape, tuple(range(array.ndim)))
        return self.places[value]

    def _fold(self, value: str) -> Fold:
        """Where a value lies."""
        if value in self.folds and value not in self.places:
            return self.folds[value]
        return fold(self._located(value))

    def _through(self, place: Fold, view: View) -> Fold:
        """`place` through a view; by way of a copy where even its parts cannot say it."""
        direct = folded(place, view)
        if direct is not None:
            return direct
        if not isinstance(view, Reshaped):
            found = folded(fold(self._unfolded(place)), view)
            assert found is not None
            return found
        target = self._temporary(place.base.dtype, view.shape)
        self._copy(place, target, place.base.name)
        return fold(target)

    def _unfolded(self, place: Fold) -> Tensor:
        """A copy with one stride per dimension; what has its channels last keeps them so."""
        shape = place.shape
        target = self._temporary(place.base.dtype, shape)
        if len(shape) in IMAGE_RANKS and _innermost(place) != len(shape) - 1:  # images stay images
            target = replace(target, strides=channels_last_strides(shape))
        self._copy(place, target, place.base.name)
        return target

    def _temporary(self, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        name = f"\0{len(self.buffers)}"
        self.buffers[name] = BufferSpec(name, dtype, math.prod(shape), Role.TEMPORARY, shape)
        return Tensor(name, dtype, shape)

    def _copy(self, source: Fold, target: Tensor, label: str) -> None:
        """Copy a value to where it has one stride per dimension."""
        parts = source.parts
        cut = seen(target, Reshaped(parts.shape))
        if cut is None:
            raise AssertionError(f"parts {parts.shape} do not divide {target.shape}")
        program = copy_program(replace(parts, name="x"), replace(cut, name="y"))
        self.calls.append(Call(program, {"x": parts.name, "y": target.name}, ("Copy",), (label,)))

    # --- items ---

    def _lay_item(self, item: Item) -> None:
        references = self.steps.references
        output = references[item.output.name]
        place = seen(self.places[output.value], Reshaped(output.shape))
        target = self._temporary(item.output.dtype, output.shape) if place is None else place
        tensors = {item.output.name: target}
        for stage in split(item.program, self.target):
            self._lay_stage(item, stage, tensors)
        if place is None:
            self._copy(fold(target), self.places[output.value], output.value)

    def _lay_stage(self, item: Item, stage: Program, tensors: dict[str, Tensor]) -> None:
        for t in stage.outputs:
            if t.name not in tensors:
                tensors[t.name] = self._temporary(t.dtype, t.shape)
        for t in stage.inputs:
            if t.name not in tensors:
                tensors[t.name] = self._input(stage, t, tensors[stage.outputs[0].name])

        def placed(t: Tensor) -> Tensor:
            at = tensors[t.name]
            return replace(t, strides=at.strides, offset=at.offset)

        program = replace(stage, inputs=tuple(map(placed, stage.inputs)), outputs=tuple(map(placed, stage.outputs)))
        buffers = {t.name: tensors[t.name].name for t in (*program.inputs, *program.outputs)}
        self.calls.append(Call(linearised(program), buffers, item.ops, item.sources))

    def _input(self, stage: Program, t: Tensor, output: Tensor) -> Tensor:
        reference = self.steps.references[t.name]
        if reference.value in self.steps.graph.constants and reference.value not in self.places:
            if len(stage.statements) > 1 and SQUEEZE.refusal(stage, self.target) is None:
                stage, output = _read_by(stage, t)
            return self._constant(reference.value, t.shape, constant_order(stage, t, output, self.target))
        direct = folded(self._fold(reference.value), Reshaped(t.shape))
        if direct is not None and direct.tensor is not None:
            return direct.tensor
        place = self._through(fold(self._located(reference.value)), Reshaped(t.shape))
        return place.tensor or self._unfolded(place)

    def _constant(self, value: str, shape: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
        """A constant in memory with its dimensions in the given order, outermost first."""
        array = self.steps.graph.constants[value]
        name = f"{value}\0{'x'.join(map(str, shape))}\0{'.'.join(map(str, order))}"
        dtype = DType.from_numpy(array.dtype)
        if name not in self.buffers:
            content = array.reshape(shape).transpose(order)
            key = (id(array), shape, order)
            self.buffers[name] = BufferSpec(name, dtype, array.size, Role.CONSTANT, shape, content, key)
        moved = contiguous_strides(tuple(shape[d] for d in order))
        strides = tuple(moved[order.index(d)] for d in range(len(shape)))
        return Tensor(name, dtype, shape, strides)


def _read_by(stage: Program, t: Tensor) -> tuple[Program, Tensor]:
    """The stage reduced to the first statement that reads a tensor, and what that statement makes."""
    reader = next(s for s in stage.statements if any(r.tensor == t.name for r in reads(s.value)))
    return replace(stage, statements=(reader,)), stage.tensors[reader.target]


def constant_order(stage: Program, t: Tensor, output: Tensor, target: Target) -> tuple[int, ...]:
    """The order of a constant's dimensions in memory that suits its reader: as their indices lie in the output.

    Factors of contractions (an output index that no other tensor is read with) stay row-major: they are repacked.
    A matrix that a CPU multiplies with one vector has its depth innermost: its rows are then so many streams, which
    reach more of the memory's bandwidth than one run across all of them.
    """
    plain = tuple(range(len(t.shape)))
    statement = stage.statements[0]
    found = [r for s in stage.statements for r in reads(s.value)]
    own = {name for r in found if r.tensor == t.name for a in r.index for name in a.names}
    others = {name for r in found if r.tensor != t.name for a in r.index for name in a.names}
    outs = {i.name for i in statement.indices if i.extent > 1}
    reduces = len(own - {i.name for i in statement.indices}) > 0
    first = next(r for r in found if r.tensor == t.name)
    if len(stage.statements) > 1:
        return plain
    if reduces and own & outs - others:
        return _within_groups(first, outs & others, outs - others) if target.shape is Shape.CPU else plain
    stride = {i.name: s for i, s in zip(statement.indices, output.strides, strict=True)}
    if target.shape is Shape.CPU and _multiplies_a_vector(statement, first):
        return tuple(sorted(plain, key=lambda d: not outs & set(first.index[d].names)))

    def place(d: int) -> tuple[int, int]:
        inside = [stride[name] for name in first.index[d].names if name in stride]
        return (-min(inside) if inside else -(1 << 62), d)

    return tuple(sorted(plain, key=place))


def _within_groups(factor: Read, shared: set[str], own: set[str]) -> tuple[int, ...]:
    """The order of dimensions of a factor that is another one for each group: groups, depth, its own output indices.

    The outputs of a group are then contiguous at every depth, so that windows load them as vectors. Without groups it
    is as it was: products repack their factors.
    """
    names = [set(position.names) for position in factor.index]
    plain = tuple(range(len(names)))
    if not any(n & shared for n in names):
        return plain
    return tuple(sorted(plain, key=lambda d: (not names[d] & shared, bool(names[d] & own), d)))


def _multiplies_a_vector(statement: Statement, matrix: Read) -> bool:
    """Whether a sum of products reads each element of a matrix once: no other factor has the outputs' indices."""
    outs = {i.name for i in statement.indices if i.extent > 1}
    for e in walk(statement.value):
        factors = reads(e.body) if isinstance(e, Reduce) else ()
        if matrix in factors:
            own, others = (
                {name for r in group for a in r.index for name in a.names}
                for group in ([matrix], [r for r in factors if r != matrix])
            )
            return bool(others) and outs <= own and not outs & others
    return False
