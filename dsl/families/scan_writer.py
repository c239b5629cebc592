"""What the kernels of the `scan` family have in common; the family describes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.dsl.affine import Affine
from tilewright.dsl.families.scan import Plan, kept
from tilewright.dsl.families.shared import (
    Geometry,
    banner,
    kernel_name,
    launch,
    renderer,
    stored,
)
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import Expr, Reduce, substitute_indices
from tilewright.dsl.space import Configuration
from tilewright.dsl.writer import (
    Expressions,
    Source,
    argument,
    identity,
    index_type,
    load,
    store,
    variable,
    vector_type,
)

BLOCK = 128
"""Length of the sums that are carried within a long scan."""


class Step:
    """One vector of the scan: what enters it, then what comes out of it."""

    def __init__(self, writer: Writer, lanes: int, place: dict[str, Affine], prefix: str) -> None:
        self.writer = writer
        self.place = place
        self.prefix = prefix
        self.expressions = writer.renderer(lanes, place, prefix)
        self.entering: list[str] = []

    def enter(self) -> None:
        """Declare what each scan adds here: `<prefix>x<j>`."""
        e_lanes = self.expressions.width
        for j, e in enumerate(self.writer.plan.scans):
            body = substitute_indices(e.body, self.place)
            text = self.expressions.converted(self.expressions(body), body.dtype, e.dtype)
            name = f"{self.prefix}x{j}"
            self.writer.body.line(f"{vector_type(e.dtype, e_lanes)} {name} = {text};")
            self.entering.append(name)

    def leave(self, results: list[str], source: Source) -> None:
        """Store the outputs, given the variables that hold the scans, by lines in `source`."""
        plan = self.writer.plan
        found: dict[Expr, str] = {
            substitute_indices(e, self.place): name for e, name in zip(plan.scans, results, strict=True)
        }
        self.expressions.reduce = found.__getitem__
        for target, value in plan.loops.values.items():
            address = plan.loops.writes[target].substitute(self.place)
            moved, tensor = substitute_indices(value, self.place), plan.program.tensors[target]
            multiples, streams = self.writer.multiples, self.writer.streams
            stored(self.expressions, source, tensor, address, moved, self.prefix, multiples, streams)


class Writer:
    """What the kernels have in common."""

    def __init__(self, plan: Plan, configuration: Configuration, sums: bool, part: str) -> None:
        self.plan = plan
        self.configuration = configuration
        self.sums = sums
        self.part = part
        self.splits = configuration.integer("splits")
        self.lanes = configuration.integer("lanes")
        self.body = Source()
        self.ctype = index_type(plan.program)
        self.helpers: dict[str, str] = {}
        names = (*plan.loops.extents(), plan.along.name, plan.vector.name)
        self.names = {name: variable(name) for name in names}
        self.t = self.names[plan.along.name]
        self.multiples: dict[str, int] | None = None
        """For aligned access, see `is_aligned`."""
        self.streams = configuration.get("stream") == 1

    def renderer(self, lanes: int, place: dict[str, Affine], prefix: str) -> Expressions:
        """A renderer for values whose loop variables were replaced as in `place`."""
        plan, source = self.plan, self.body if prefix else None
        checks, extents = plan.loops.moved(place), plan.loops.extents()
        return renderer(plan.program, self.names, checks, lanes, self.helpers, source, prefix, extents, self.multiples)

    def combined(self, e: Reduce, width: int, a: str, b: str) -> str:
        """`a` (+) `b`."""
        return self.renderer(width, {}, "").combined(e.kind, a, b, e.dtype)

    def identity(self, e: Reduce, width: int) -> str:
        """The neutral element; a truth value in scans is 0 or 1 in vectors as well."""
        text = identity(e.kind, e.dtype)
        return text if width == 1 else f"({vector_type(e.dtype, width)})({text})"

    def declare(self, name: str, e: Reduce, width: int, text: str) -> str:
        """A variable; returns its name."""
        self.body.line(f"{vector_type(e.dtype, width)} {name} = {text};")
        return name

    def scratch(self, j: int, sums: bool) -> str:
        """The buffer of the parts' sums, or of what each part starts from."""
        return f"{self.plan.stem}_{'sum' if sums else 'carry'}{j}"

    def ranges(self, tile: int) -> tuple[str, str]:
        """First element of the current part and the one behind its last, as C text; declares what it needs."""
        extent = self.plan.along.extent
        if self.splits == 1:
            return "0", str(extent)
        part = self.plan.part(self.splits, tile)
        self.body.line(f"const {self.ctype} part_first = min(split * {part}, ({self.ctype}){extent});")
        self.body.line(f"const {self.ctype} part_end = min(part_first + {part}, ({self.ctype}){extent});")
        return "part_first", "part_end"

    @property
    def blocked(self) -> bool:
        """Whether one item adds up so many floats in a row that it does so in blocks.

        Rounding errors then grow with the lengths of a block and of the row of blocks, not with their product.
        """
        inexact = any(e.dtype.is_float and e.kind in ("sum", "prod") for e in self.plan.scans)
        steps = self.plan.part(self.splits, 1) // (self.lanes if self.plan.rows else 1)
        return inexact and steps > 2 * BLOCK

    @contextmanager
    def blocks(self, first: str, end: str) -> Iterator[tuple[str, str]]:
        """The loop over the blocks of a range, if it has any; gives the ends of a block."""
        if not self.blocked:
            yield first, end
            return
        header = f"for ({self.ctype} block_first = {first}; block_first < {end}; block_first += {BLOCK})"
        with self.body.block(header):
            self.body.line(f"const {self.ctype} block_end = min(block_first + {BLOCK}, ({self.ctype}){end});")
            yield "block_first", "block_end"

    def launch(self, geometry: Geometry) -> Launch:
        """The finished kernel."""
        program, split = self.plan.program, self.splits > 1
        scratch = []
        for j, e in enumerate(self.plan.scans if split else ()):
            const, name = "" if self.sums else "const ", self.scratch(j, self.sums)
            scratch.append((name, f"__global {const}{kept(e).opencl}* restrict {argument(name)}"))
        part, remark = self.part, ""
        if self.sums:
            part, remark = "_sums", "the sums of the parts of each scan"
        top = banner("scan", program, self.configuration, remark)
        writes = tuple(name for name, _ in scratch) if self.sums else None
        name = kernel_name("scan", program, part)
        return launch(name, program, geometry, self.body, self.helpers, top, tuple(scratch), writes)

    # --- rows: scans within vectors ---------------------------------------------------------------------------------

    def row_carry(self, j: int, e: Reduce, flat: str) -> str:
        """What the scan of row `flat` starts from."""
        if self.splits == 1 or self.sums:
            return self.identity(e, 1)
        return f"{argument(self.scratch(j, False))}[({flat}) * {self.splits} + split]"

    def row_sum(self, j: int, e: Reduce, flat: str, value: str) -> None:
        """Store the sum of the current part of row `flat`."""
        pointer = argument(self.scratch(j, True))
        address = Affine.of({"flat": self.splits, "split": 1})
        names = {"flat": flat, "split": "split"}
        self.body.line(store(pointer, address, names, kept(e), 1, value))

    def within(self, e: Reduce, name: str, lanes: int) -> str:
        """A vector scanned (inclusive); a new variable."""
        step, text = 1, name
        while step < lanes:
            neutral = identity(e.kind, e.dtype)
            moved = [neutral] * step + [f"{text}.s{lane:x}" for lane in range(lanes - step)]
            vector = f"({vector_type(e.dtype, lanes)})({', '.join(moved)})"
            text = self.declare(f"{name}_{step}", e, lanes, self.combined(e, lanes, vector, text))
            step *= 2
        return text

    def shifted(self, e: Reduce, text: str, lanes: int) -> str:
        """A scanned vector moved up by one lane: the exclusive scan."""
        if lanes == 1:
            return self.identity(e, 1)
        moved = [identity(e.kind, e.dtype)] + [f"{text}.s{lane:x}" for lane in range(lanes - 1)]
        return f"({vector_type(e.dtype, lanes)})({', '.join(moved)})"

    def across(self, e: Reduce, name: str, lanes: int) -> str:
        """The lanes of a vector combined, as a scalar."""
        width = lanes
        while width > 1:
            width //= 2
            text = self.combined(e, width, f"{name}.lo", f"{name}.hi")
            name = self.declare(f"{name}{width}", e, width, text)
        return name

    def last(self, text: str, lanes: int) -> str:
        """The last lane."""
        return text if lanes == 1 else f"{text}.s{lanes - 1:x}"


# --- columns ---


def column_number(writer: Writer, place: dict[str, Affine]) -> tuple[Affine, dict[str, str]]:
    """The address of a vector's sums in scratch of the shape (parts, scans), and the names in it."""
    plan = writer.plan
    columns = plan.others * plan.vector.extent
    at = Affine.of({"<split>": columns, "<flat>": plan.vector.extent})
    at = at + place.get(plan.vector.name, Affine.index(plan.vector.name))
    return at, {**writer.names, "<split>": "split", "<flat>": "flat"}


def column_carry(writer: Writer, suffix: str, place: dict[str, Affine]) -> None:
    """Set what a vector of scans starts from: `base` where there are blocks, else `carry`."""
    name = "base" if writer.blocked else "carry"
    for j, e in enumerate(writer.plan.scans):
        text = writer.renderer(writer.lanes, {}, "").identity(e.kind, e.dtype)
        if writer.splits > 1 and not writer.sums:
            address, names = column_number(writer, place)
            text = load(argument(writer.scratch(j, False)), address, names, kept(e), writer.lanes)
        writer.body.line(f"{name}{j}{suffix} = {text};")


def column_block(writer: Writer, suffix: str, begins: bool) -> None:
    """The beginning or the end of a block: `carry` starts anew, or is taken into `base`."""
    expressions = writer.renderer(writer.lanes, {}, "")
    for j, e in enumerate(writer.plan.scans):
        carry, base = f"carry{j}{suffix}", f"base{j}{suffix}"
        if begins:
            writer.body.line(f"{carry} = {expressions.identity(e.kind, e.dtype)};")
        else:
            writer.body.line(f"{base} = {writer.combined(e, writer.lanes, base, carry)};")


def column_sum(writer: Writer, suffix: str, place: dict[str, Affine]) -> None:
    """Store the sums of the current part of a vector of scans."""
    name = "base" if writer.blocked else "carry"
    for j, e in enumerate(writer.plan.scans):
        address, names = column_number(writer, place)
        pointer = argument(writer.scratch(j, True))
        writer.body.line(store(pointer, address, names, kept(e), writer.lanes, f"{name}{j}{suffix}"))


def column_leave(writer: Writer, step: Step, suffix: str, source: Source) -> None:
    """Take what entered `step` into the carries, and store by lines in `source`."""
    body, lanes, results = writer.body, writer.lanes, []
    for j, (e, x) in enumerate(zip(writer.plan.scans, step.entering, strict=True)):
        carry = f"carry{j}{suffix}"
        after = f"{carry} = {writer.combined(e, lanes, carry, x)};"
        exclusive = writer.plan.is_exclusive(e)
        if not exclusive or writer.sums:
            body.line(after)
        if not writer.sums:
            text = writer.combined(e, lanes, f"base{j}{suffix}", carry) if writer.blocked else carry
            results.append(writer.declare(f"{x}_y", e, lanes, text))
            if exclusive:
                body.line(after)
    if not writer.sums:
        step.leave(results, source)
