"""What both kinds of kernels of the `rows` family write: steps of a pass, values per row, and kept values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.rows_chain import Kept, Pass
from tilewright.dsl.families.rows_plan import Plan
from tilewright.dsl.families.shared import Geometry, banner, is_aligned, kernel_name, launch, stored
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    Read,
    Reduce,
    substitute_indices,
    walk,
)
from tilewright.dsl.space import Configuration
from tilewright.dsl.text import expression_text
from tilewright.dsl.writer import (
    LANE,
    Expressions,
    Names,
    Source,
    argument,
    comment,
    identifier,
    index_type,
    lanes_read,
    store,
    variable,
    vector_type,
)

_KEPT = "<kept>"
"""Prefix of the pseudo tensors that stand for kept values."""


class Writer(ABC):
    """Writes the code of one kernel; subclasses know where kept values lie."""

    def __init__(
        self,
        plan: Plan,
        configuration: Configuration,
        kept: tuple[Kept, ...],
        multiples: Mapping[str, int] | None = None,
    ) -> None:
        self.plan = plan
        self.chain = plan.chain
        self.configuration = configuration
        self.lanes = configuration.integer("lanes")
        self.kept = kept
        self.multiples = multiples
        self.body = Source()
        self.ctype = index_type(plan.program)
        self.helpers: dict[str, str] = {}
        self.names = {name: variable(name) for name in (*self.chain.extents, plan.vector.name)}
        reduces = [e for p in self.chain.passes for e in p.reduces]
        self.numbers = {e: f"{e.kind}{j}" for j, e in enumerate(reduces)}
        self.streams = False
        """Outputs are written past the caches."""
        self.slots = 1
        """Vectors of rows side by side."""

    @property
    def width(self) -> int:
        """Elements of a value per row: a vector where vectors run across rows."""
        return self.lanes if self.plan.across else 1

    @abstractmethod
    def kept_load(self, number: int, place: Mapping[str, Affine], slot: int) -> str:
        """The expression that loads a kept value."""

    @abstractmethod
    def kept_store(self, number: int, place: Mapping[str, Affine], slot: int, text: str) -> str:
        """The statement that stores one."""

    def displaced(self, number: int) -> tuple[int, ...]:
        """The kept values whose place a kept value takes when it is stored."""
        return ()

    # --- names ---

    def result(self, e: Reduce, slot: int) -> str:
        """The variable of a finished reduction."""
        return self.numbers[e] + (f"_{slot}" if self.slots > 1 else "")

    def scalar(self, target: str, slot: int) -> str:
        """The variable of a value per row."""
        return f"row_{identifier(target)}" + (f"_{slot}" if self.slots > 1 else "")

    def accumulator(self, e: Reduce, chain: int, partial: bool) -> str:
        """One of a reduction's accumulators: of the whole row, or of a part of it."""
        return f"{self.numbers[e]}_{'part' if partial else 'acc'}{chain}"

    # --- expressions ---

    def place(self, offsets: Mapping[str, int], lanes: int) -> dict[str, Affine]:
        """The loop variables at some offsets, and the vector's along the lanes."""
        place = {name: Affine.of({name: 1}, offset) for name, offset in offsets.items() if offset}
        if lanes > 1:
            vector = self.plan.vector.name
            place[vector] = place.get(vector, Affine.index(vector)) + Affine.index(LANE)
        return place

    def expressions(
        self, place: Mapping[str, Affine], lanes: int, position: int, slot: int, prefix: str
    ) -> Expressions:
        """A renderer for what pass number `position` computes, with loop variables replaced as in `place`."""
        chain, tensors = self.chain, self.plan.program.tensors
        names = Names(self.names, tensors, chain.extents, self.helpers)
        checks = {substitute_indices(e, place): needed for e, needed in chain.checks.items()}
        done: dict[str, str] = {}

        def read(e: Read) -> str:
            if e.tensor.startswith(_KEPT):
                number = int(e.tensor[len(_KEPT) :])
                if self.kept[number].first == position and e.tensor not in done:
                    value = substitute_indices(self._definition(number, position), place)
                    text = expressions.converted(expressions(value), value.dtype, e.dtype)
                    done[e.tensor] = text
                    for other in self.displaced(number):
                        if self.kept[other].last == position:
                            expressions(Read(f"{_KEPT}{other}", (), self.kept[other].value.dtype))
                    self.body.line(self.kept_store(number, place, slot, text))
                return self.kept_load(number, place, slot)
            if e.tensor in chain.wide:
                value = substitute_indices(self._exchanged(chain.values[e.tensor], position), place)
                return expressions.converted(expressions(value), value.dtype, e.dtype)
            if e.tensor in chain.values:
                return _splat(self.scalar(e.tensor, slot), e.dtype, lanes if self.width == 1 else 1)
            tensor = tensors[e.tensor]
            whole = self.multiples is not None and is_aligned(tensor, tensor.address(e.index), lanes, self.multiples)
            return lanes_read(e, tensor, names, checks[e], lanes, whole)

        def reduce(e: Reduce) -> str:
            return reduced[e]

        reduced = {substitute_indices(e, place): self.result(e, slot) for e in self.numbers}
        fast = self.plan.program.fast_math
        expressions = Expressions(
            read, names, tensors, reduce, lanes, self.helpers, self.body, prefix, chain.extents, fast
        )
        return expressions

    def plain(self, width: int) -> Expressions:
        """A renderer for identities and combinations, which read nothing."""
        fast = self.plan.program.fast_math
        return Expressions(lambda e: e.tensor, self.names, {}, None, width, self.helpers, fast=fast)

    def _table(self, position: int) -> dict[Expr, Read]:
        """Kept values that pass `position` uses, and the pseudo reads in their place."""
        return {
            k.value: Read(f"{_KEPT}{n}", (), k.value.dtype)
            for n, k in enumerate(self.kept)
            if k.first <= position <= k.last
        }

    def _exchanged(self, e: Expr, position: int) -> Expr:
        return exchanged(e, self._table(position))

    def _definition(self, number: int, position: int) -> Expr:
        """How a kept value is computed in its first pass."""
        value, table = self.kept[number].value, self._table(position)
        del table[value]
        if isinstance(value, Read) and value.tensor in self.chain.wide:
            value = self.chain.values[value.tensor]
        return exchanged(value, table)

    # --- passes ---

    def title(self, position: int) -> None:
        """The comment on top of a pass."""
        step = self.chain.passes[position]
        parts = [expression_text(e) for e in step.reduces] + [f"writes {t}" for t in step.writes]
        self.body.line(comment(f"Pass {position + 1}: {'; '.join(parts)}"[:200]))

    def declare(self, step: Pass, chains: int, partial: bool = False) -> None:
        """The accumulators of a pass, `chains` for each reduction."""
        plain = self.plain(self.lanes)
        for e in step.reduces:
            start = plain.identity(e.kind, e.dtype)
            names = ", ".join(f"{self.accumulator(e, k, partial)} = {start}" for k in range(chains))
            self.body.line(f"{vector_type(e.dtype, self.lanes)} {names};")

    def merge(self, step: Pass, pairs: list[tuple[str, str]]) -> None:
        """Combine accumulators, named by what follows the reduction's name: each second into the first."""
        plain = self.plain(self.lanes)
        for e in step.reduces:
            for into, other in pairs:
                name = self.numbers[e]
                self.body.line(plain.accumulate(e.kind, f"{name}_{into}", f"{name}_{other}", e.dtype))

    def lanes_combined(self, e: Reduce, value: str) -> str:
        """The lanes of an accumulator combined, as a scalar expression."""
        width, stem = self.lanes, value
        while width > 1:
            width //= 2
            half = f"{stem}_{width}"
            plain = self.plain(width)
            text = plain.combined(e.kind, f"{value}.lo", f"{value}.hi", e.dtype)
            self.body.line(f"const {vector_type(e.dtype, width)} {half} = {text};")
            value = half
        # The lanes of a truth value are 0 or -1, a scalar is 0 or 1.
        return f"({value} & 1)" if e.dtype is DType.BOOL and self.lanes > 1 else value

    def step(
        self, position: int, offsets: Mapping[str, int], chain: int = 0, slot: int = 0, partial: bool = False,
        counted: int = 0, guard: str = "",
    ) -> None:  # fmt: skip
        """One vector of a pass: added to the accumulators of `chain`, and outputs written (where `guard` holds).

        The first ``counted`` lanes are left out of the reductions.
        """
        step, place = self.chain.passes[position], self.place(offsets, self.lanes)
        expressions = self.expressions(place, self.lanes, position, slot, f"{'abcdefgh'[chain % 8]}{chain // 8 or ''}_")
        for e in step.reduces:
            body = substitute_indices(self._exchanged(e.body, position), place)
            value = expressions.converted(expressions(body), body.dtype, e.dtype)
            if counted:
                value = self._uncounted(expressions, value, e, counted)
            self.body.line(expressions.accumulate(e.kind, self.accumulator(e, chain, partial), value, e.dtype))
        if not step.writes:
            return
        with self.body.block(guard) if guard else nullcontext():
            for target in step.writes:
                value_of = substitute_indices(self._exchanged(self.chain.element(target), position), place)
                tensor, address = self.plan.program.tensors[target], self.chain.addresses[target].substitute(place)
                number = f"{chain}_{slot}"
                stored(expressions, self.body, tensor, address, value_of, number, self.multiples, streams=self.streams)

    def _uncounted(self, expressions: Expressions, value: str, e: Reduce, counted: int) -> str:
        """`value` with its first lanes replaced by the identity."""
        size = 4 if e.dtype in (DType.F16, DType.BF16, DType.BOOL) else e.dtype.itemsize
        mask = ", ".join("0" if lane < counted else "-1" for lane in range(self.lanes))
        kind = f"{ {1: 'char', 2: 'short', 4: 'int', 8: 'long'}[size] }{self.lanes}"
        return f"(({kind})({mask}) ? {value} : {expressions.identity(e.kind, e.dtype)})"

    # --- values per row ---

    def scalars(self, targets: tuple[str, ...], position: int, slot: int, offsets: Mapping[str, int]) -> None:
        """Declare values per row that are known now."""
        place = self.place(offsets, self.width)
        for target in targets:
            prefix = f"{identifier(target)}{slot if self.slots > 1 else ''}_"
            expressions = self.expressions(place, self.width, position, slot, prefix)
            value, tensor = substitute_indices(self.chain.values[target], place), self.plan.program.tensors[target]
            text = expressions.converted(expressions(value), value.dtype, tensor.dtype)
            self.body.line(f"const {vector_type(tensor.dtype, self.width)} {self.scalar(target, slot)} = {text};")

    def write_scalars(self, targets: tuple[str, ...], slot: int, offsets: Mapping[str, int]) -> None:
        """Store those of the values per row that are outputs."""
        place = self.place(offsets, self.width)
        names = Names(self.names, self.plan.program.tensors, self.chain.extents, self.helpers)
        for target in targets:
            if self.chain.is_output(target):
                address = self.chain.addresses[target].substitute(place)
                dtype, value = self.plan.program.tensors[target].dtype, self.scalar(target, slot)
                self.body.line(store(argument(target), address, names, dtype, self.width, value))

    # --- the whole ---

    def launch(self, geometry: Geometry, remark: str) -> Launch:
        """The finished kernel."""
        program = self.plan.program
        shown = replace(program, intermediates=())
        top = banner("rows", program, self.configuration, remark)
        if _compares_floats(self):
            # The same value computed in two passes must compare equal, however its products and sums are contracted.
            top += "\n#pragma OPENCL FP_CONTRACT OFF"
        return launch(kernel_name("rows", program), shown, geometry, self.body, self.helpers, top)


def _compares_floats(writer: Writer) -> bool:
    """Whether floating-point values that are computed are tested for equality."""
    return any(
        isinstance(n, Call)
        and n.function in ("eq", "ne")
        and any(a.dtype.is_float and not isinstance(a, Const) for a in n.args)
        and any(
            not isinstance(a, Const | Read) or (isinstance(a, Read) and a.tensor in writer.chain.wide) for a in n.args
        )
        for value in writer.chain.values.values()
        for n in walk(value)
    )


def exchanged(e: Expr, table: Mapping[Expr, Read]) -> Expr:
    """The expression with the largest sub-expressions that are in `table` replaced."""
    if e in table:
        return table[e]
    match e:
        case Call():
            args = tuple(exchanged(a, table) for a in e.args)
            return e if all(a is b for a, b in zip(args, e.args, strict=True)) else replace(e, args=args)
        case Cast():
            arg = exchanged(e.arg, table)
            return e if arg is e.arg else replace(e, arg=arg)
        case _:
            return e


def _splat(scalar: str, dtype: DType, width: int) -> str:
    """A scalar as a vector of the given width; truth values become masks."""
    if width == 1:
        return scalar
    return f"(int{width})(-{scalar})" if dtype is DType.BOOL else f"({vector_type(dtype, width)})({scalar})"
