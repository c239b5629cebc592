"""The kernel of the `squeeze` family, which describes it."""

from __future__ import annotations

import math
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.reduce import Plan, accumulator
from tilewright.dsl.families.shared import (
    banner,
    ceil_div,
    decode,
    gpu_geometry,
    kernel_name,
    launch,
    renderer,
    stored,
)
from tilewright.dsl.families.squeeze import lanes_of, output_address
from tilewright.dsl.families.squeeze_form import Form, Step
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Read, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import LANE, Expressions, Source, affine, argument, index_type, variable

AHEAD = 8
"""Vectors of a sum that an item reads at once."""


def write(form: Form, configuration: Configuration, spread: Plan | None) -> Launch:
    """The kernel that has a work-group per row; ``spread`` tells whose partial results the first step adds up."""
    kernel = _Kernel(form, configuration, spread)
    kernel.whole()
    program = form.program
    rows = math.prod(i.extent for i in form.rows)
    scratch = []
    if spread is not None:
        (name,), (total,) = spread.partials, spread.reduces
        scratch.append((name, f"__global const {accumulator(total).opencl}* restrict {argument(name)}"))
    names = {t.name for t in program.inputs if spread is None or t.name in kernel.read_here}
    shown = replace(program, inputs=tuple(t for t in program.inputs if t.name in names), intermediates=())
    top = banner("squeeze", program, configuration)
    part = "" if spread is None else "_products"
    geometry = gpu_geometry(rows * kernel.group, kernel.group)
    return launch(
        kernel_name("squeeze", program, part), shown, geometry, kernel.body, kernel.helpers, top, tuple(scratch)
    )


class _Kernel:
    """Writes the steps one after the other, each behind a barrier."""

    def __init__(self, form: Form, configuration: Configuration, spread: Plan | None) -> None:
        self.form = form
        self.spread = spread
        self.splits = configuration.integer("splits")
        self.group = configuration.integer("work_group")
        self.lanes = {s.statement.target: lanes_of(form, s, configuration.integer("lanes")) for s in form.steps}
        if spread is not None:
            self.lanes[form.steps[0].statement.target] = 1
        self.ctype = index_type(form.program)
        self.body = Source()
        self.helpers: dict[str, str] = {}
        self.vectors = {s.statement.target: f"v{n}" for n, s in enumerate(form.steps)}
        self.names = {r.name: variable(r.name) for r in form.rows}
        self.names |= {i.name: variable(i.name) for s in form.steps for i in (s.feature, *s.depth)}
        self.places = {s.statement.target: s.statement.indices.index(s.feature) for s in form.steps}
        """Which dimension of each step's value its features are."""
        self.read_here: set[str] = set()

    def whole(self) -> None:
        """The whole body."""
        body = self.body
        for s in self.form.steps[:-1]:
            body.line(f"__local float {self.vectors[s.statement.target]}[{s.feature.extent}];")
        widest = max(self.lanes.values())
        body.line(f"__local {'float' if widest == 1 else f'float{widest}'} shared[{self.group}];")
        body.line("const int local_id = (int)get_local_id(0);")
        body.line(f"const {self.ctype} row = ({self.ctype})get_group_id(0);")
        decode(body, "row", [(self.names[r.name], r.extent) for r in self.form.rows], self.ctype)
        for number, step in enumerate(self.form.steps):
            if number:
                body.line("barrier(CLK_LOCAL_MEM_FENCE);")
            with body.block(""):
                self._step(step, self.spread is not None and number == 0)

    def _step(self, step: Step, adds_partials: bool) -> None:
        """All outputs of a step: items share them, and the sums too where there are more items than outputs."""
        body, lanes = self.body, self.lanes[step.statement.target]
        outputs = step.feature.extent // lanes
        depth = self.splits if adds_partials else math.prod(i.extent for i in step.depth)
        sharers = max(1, min(self.group // outputs, depth))
        kind, fresh = self._kind(lanes), self._expressions(lanes, "")
        start = fresh.identity(step.total.kind, step.total.dtype)
        if sharers == 1:
            with body.block(f"for (int vector = local_id; vector < {outputs}; vector += {self.group})"):
                self._place(step, "vector", lanes)
                body.line(f"{kind} acc = {start};")
                self._sum(step, "0", 1, depth, adds_partials)
                self._finish(step, "acc")
            return
        body.line(f"const int vector = local_id % {outputs}, sharer = local_id / {outputs};")
        self._place(step, "vector", lanes)
        body.line(f"{kind} acc = {start};")
        with body.block(f"if (sharer < {sharers})"):
            self._sum(step, "sharer", sharers, depth, adds_partials)
        shared = f"((__local {kind}*)shared)"
        body.line(f"{shared}[local_id] = acc;")
        left = sharers
        while left > 1:
            half = ceil_div(left, 2)
            body.line("barrier(CLK_LOCAL_MEM_FENCE);")
            with body.block(f"if (sharer < {left - half})"):
                mine, other = f"{shared}[local_id]", f"{shared}[local_id + {half * outputs}]"
                body.line(fresh.accumulate(step.total.kind, mine, other, step.total.dtype))
            left = half
        with body.block("if (sharer == 0)"):
            self._finish(step, f"{shared}[local_id]")

    def _kind(self, lanes: int) -> str:
        return "float" if lanes == 1 else f"float{lanes}"

    def _place(self, step: Step, vector: str, lanes: int) -> None:
        text = vector if lanes == 1 else f"{vector} * {lanes}"
        self.body.line(f"const {self.ctype} {self.names[step.feature.name]} = {text};")

    def _sum(self, step: Step, first: str, apart: int, depth: int, adds_partials: bool) -> None:
        """Add every `apart`-th element of the depth from `first` on, several of them at a time."""
        ahead = min(AHEAD, ceil_div(depth, apart))
        places = [f"at + {k * apart}" for k in range(ahead)]
        with self.body.block(f"for (int at = {first}; at < {depth}; at += {ahead * apart})"):
            self._elements(step, places, depth if depth % (ahead * apart) else 0, adds_partials)

    def _elements(self, step: Step, places: list[str], depth: int, adds_partials: bool) -> None:
        """Add the elements at these places; all are loaded before the first is added.

        Places from ``depth`` on, if that is not 0, are read at the last element and do not count.
        """
        lanes, values = self.lanes[step.statement.target], []
        fresh = self._expressions(lanes, "")
        start = fresh.identity(step.total.kind, step.total.dtype)
        for k, wanted in enumerate(places):
            place = wanted if not depth or k == 0 else f"min({wanted}, {depth - 1})"
            if adds_partials:
                assert self.spread is not None
                outputs = math.prod(i.extent for i in (*self.form.rows, step.feature))
                number = f"({place}) * {outputs} + row * {step.feature.extent} + {self.names[step.feature.name]}"
                value = f"{argument(self.spread.partials[0])}[{number}]"
            else:
                value = self._element(step, place, k)
            name = f"value{k}"
            self.body.line(f"const {self._kind(lanes)} {name} = {value};")
            values.append(name if place == wanted else f"(({wanted} < {depth}) ? {name} : {start})")
        for name in values:
            self.body.line(fresh.accumulate(step.total.kind, "acc", name, step.total.dtype))

    def _element(self, step: Step, place: str, k: int) -> str:
        """The reduction's body at one place of the depth."""
        lanes, kept = self.lanes[step.statement.target], self.names
        places = [(f"{kept[i.name]}_{k}", i.extent) for i in step.depth]
        self.body.line(f"const {self.ctype} at{k} = {place};")
        decode(self.body, f"at{k}", places, self.ctype)
        self.names = {**kept, **{i.name: f"{kept[i.name]}_{k}" for i in step.depth}}
        expressions = self._expressions(lanes, f"x{k}_")
        body = substitute_indices(step.total.body, self._lane(step))
        text = expressions.converted(expressions(body), body.dtype, step.total.dtype)
        self.names = kept
        return text

    def _lane(self, step: Step) -> dict[str, Affine]:
        name = step.feature.name
        return {name: Affine.of({name: 1, LANE: 1})} if self.lanes[step.statement.target] > 1 else {}

    def _finish(self, step: Step, acc: str) -> None:
        """Compute the step's value from its finished reduction and keep or store it."""
        target, lanes, place = step.statement.target, self.lanes[step.statement.target], self._lane(step)
        expressions = self._expressions(lanes, "out_")
        expressions.reduce = lambda _: acc
        value = substitute_indices(step.statement.value, place)
        tensor = self.form.program.tensors[target]
        if step is self.form.steps[-1]:
            address = output_address(self.form).substitute(place)
            stored(expressions, self.body, tensor, address, value, multiples={step.feature.name: lanes})
            return
        text = expressions.converted(expressions(value), value.dtype, tensor.dtype, rounds=True)
        at = f"{self.vectors[target]} + {self.names[step.feature.name]}"
        self.body.line(f"*({at}) = {text};" if lanes == 1 else f"vstore{lanes}({text}, 0, {at});")

    def _expressions(self, lanes: int, prefix: str) -> Expressions:
        """A renderer; the steps' own values are read from local memory, one for all lanes."""
        program, names = self.form.program, self.names
        multiples = {s.feature.name: self.lanes[s.statement.target] for s in self.form.steps}
        source = self.body if prefix else None
        made = renderer(program, names, _Unchecked(), lanes, self.helpers, source, prefix, {}, multiples)
        plain = made.read

        def read(e: Read) -> str:
            if e.tensor not in self.vectors:
                self.read_here.add(e.tensor)
                return plain(e)
            value = f"{self.vectors[e.tensor]}[{affine(e.index[self.places[e.tensor]], names)}]"
            return value if lanes == 1 else f"(float{lanes})({value})"

        made.read = read
        return made


class _Unchecked(dict[Expr, tuple[int, ...]]):
    """Range checks of reads: none needs any."""

    def __missing__(self, e: Expr) -> tuple[int, ...]:
        return ()
