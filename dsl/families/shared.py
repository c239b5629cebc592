"""What the families have in common: names, banners, geometry, and the collapsing of dimensions that lie together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch
from tilewright.dsl.program import (
    Cast,
    Expr,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    all_indices,
    checked_dimensions,
    extents,
    is_linear,
    rename_indices,
    substitute_indices,
    walk,
)
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.text import statement_text
from tilewright.dsl.writer import (
    FAR,
    LANE,
    Expressions,
    Names,
    Source,
    argument,
    comment,
    identifier,
    lanes_read,
    leaves_32_bits,
    preamble,
    signature,
    store,
    vector_type,
)

CACHE_LINE = 64
"""Bytes."""
SUM_BLOCK = 256
"""Terms that are summed on their own before they join the total.

Rounding errors of one long chain grow with its length; blocks keep them near those of pairwise summation (Higham,
"The accuracy of floating point summation", 1993) for one addition in 256.
"""

MOST_PARTIALS = 1 << 26
"""Most partial results of a reduction in parts: far fewer keep a device busy, and each is written and read again."""


def ceil_div(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The smallest multiple of `b` that is at least `a`."""
    return ceil_div(a, b) * b


def power_below(n: int) -> int:
    """The largest power of two that is at most `n` (n >= 1)."""
    return 1 << (n.bit_length() - 1)


def power_above(n: int) -> int:
    """The smallest power of two that is at least `n` (n >= 1)."""
    return 1 << (n - 1).bit_length()


def computes_indices(program: Program) -> str | None:
    """A refusal if an index is not linear in loop indices or too large for 32 bits, or a reduction is a prefix."""
    if all(is_linear(s.value) for s in program.statements):
        return "an index expression leaves 32 bits" if _leaves_32_bits(program) else None
    if any(isinstance(n, Reduce) and n.until is not None for s in program.statements for n in walk(s.value)):
        return "it has a prefix reduction (a scan)"
    return "an index is computed (a quotient, a remainder, or read from a tensor)"


def _leaves_32_bits(program: Program) -> bool:
    """Whether an index expression is too large for an `int` where the tensor's own size is not."""
    for s in program.statements:
        extent = extents(s)
        for n in walk(s.value):
            if isinstance(n, Read | Inside):
                sizes = program.tensors[n.tensor].shape
                if any(leaves_32_bits(a, extent) for a, size in zip(n.index, sizes, strict=True) if size < FAR):
                    return True
    return False


def needs_f64(program: Program, target: Target) -> str | None:
    """A refusal if the program holds f64 values and the device does not."""
    if target.has_f64:
        return None
    values = {t.dtype for t in program.tensors.values()} | {n.dtype for s in program.statements for n in walk(s.value)}
    return "the device has no f64" if DType.F64 in values else None


def kernel_name(family: str, program: Program, part: str = "") -> str:
    """The kernel's name, which profilers show."""
    return f"tw_{family}_{identifier(program.name)[:40]}{part}"


def banner(family: str, program: Program, configuration: Configuration, remark: str = "") -> str:
    """The comment on top of a kernel: what it computes, by which family, in which configuration."""
    lines = [statement_text(s) for s in program.statements]
    lines.append(f"family {family}" + (f": {configuration}" if len(configuration) else ""))
    if remark:
        lines.append(remark)
    return comment("\n".join(line if len(line) <= 400 else line[:397] + "..." for line in lines))


@dataclass(frozen=True)
class Geometry:
    """How a kernel is launched; sizes in work-items."""

    global_size: tuple[int, ...]
    local_size: tuple[int, ...]


def cpu_geometry(items: int) -> Geometry:
    """One work-item per work-group."""
    return Geometry((items,), (1,))


def gpu_geometry(items: int, work_group: int) -> Geometry:
    """At least `items` work-items in groups of `work_group`."""
    return Geometry((round_up(max(items, 1), work_group),), (work_group,))


def launch(
    kernel: str,
    program: Program,
    geometry: Geometry,
    body: Source,
    helpers: Mapping[str, str],
    top: str,
    scratch: tuple[tuple[str, str], ...] = (),
    writes: tuple[str, ...] | None = None,
) -> Launch:
    """A whole launch from a kernel's body.

    ``scratch`` are further buffers as (name, whole C parameter); ``writes`` are the outputs unless given.
    """
    written = tuple(t.name for t in program.outputs) if writes is None else writes
    fixed = ", ".join(str(n) for n in (*geometry.local_size, 1, 1)[:3])
    source = Source()
    head = signature(kernel, program, written, tuple(text for _, text in scratch))
    with source.block(f"__attribute__((reqd_work_group_size({fixed})))\n{head}"):
        source.line(body.text.rstrip("\n"))
    arguments = (*program.tensors, *(name for name, _ in scratch))
    text = f"{preamble(program, helpers)}{top}\n{source.text}"
    return Launch(kernel, text, geometry.global_size, geometry.local_size, arguments, written)


def decode(
    source: Source, flat: str, indices: Iterable[tuple[str, int]], ctype: str, spare: tuple[str, ...] = ()
) -> None:
    """Declare the C variables of several loop variables (name, extent), the last one fastest, from a flat number.

    Those named in ``spare`` are left out where their extent is 1.
    """
    remaining = list(indices)
    while remaining:
        name, extent = remaining.pop()
        if extent == 1 and name in spare:
            continue
        if extent == 1:
            value = "0"
        elif all(n == 1 for _, n in remaining):
            value = flat
        else:
            value = f"{flat} % {extent}"
        source.line(f"const {ctype} {name} = {value};")
        if extent > 1 and any(n > 1 for _, n in remaining):
            following = f"{flat.split('_', maxsplit=1)[0]}_{len(remaining)}"
            source.line(f"const {ctype} {following} = {flat} / {extent};")
            flat = following


@contextmanager
def share(source: Source, ctype: str, name: str, part: str, size: int, extent: int) -> Iterator[None]:
    """The loop of variable `name` over those of its `extent` values that belong to part `part` of `size` each."""
    if size >= extent:
        header = "" if extent == 1 else f"for ({ctype} {name} = 0; {name} < {extent}; ++{name})"
        first = "0"
    elif size == 1:
        header, first = "", part
    else:
        end = f"{part} * {size} + {size}" + (f" && {name} < {extent}" if extent % size else "")
        header = f"for ({ctype} {name} = {part} * {size}; {name} < {end}; ++{name})"
    with source.block(header):
        if not header:
            source.line(f"const {ctype} {name} = {first};")
        yield


def renderer(
    program: Program,
    names: Mapping[str, str],
    checks: Mapping[Expr, tuple[int, ...]],
    lanes: int,
    helpers: dict[str, str],
    source: Source | None = None,
    prefix: str = "v",
    extents: Mapping[str, int] | None = None,
    multiples: Mapping[str, int] | None = None,
) -> Expressions:
    """Expressions whose reads are loads of `lanes` elements along `LANE`, with the range checks in `checks`.

    With ``source``, what occurs several times is kept there in variables that start with `prefix`. ``extents`` are
    those of the loop variables, which computed index expressions need. ``multiples`` as in `is_aligned`; without it
    no load is taken to be aligned.
    """
    variables = Names(names, program.tensors, extents or {}, helpers)

    def read(e: Read) -> str:
        tensor = program.tensors[e.tensor]
        whole = multiples is not None and is_aligned(tensor, tensor.address(e.index), lanes, multiples)
        return lanes_read(e, tensor, variables, checks[e], lanes, whole)

    tensors, fast = program.tensors, program.fast_math
    return Expressions(read, variables, tensors, None, lanes, helpers, source, prefix, extents or {}, fast)


def is_aligned(tensor: Tensor, address: Affine, width: int, multiples: Mapping[str, int]) -> bool:
    """Whether `width` contiguous elements from an address (a function of loop variables and `LANE`) lie in one piece.

    ``multiples`` gives for loop variables a number that their value is always a multiple of. Buffers start at a
    multiple of any vector, as OpenCL demands of CL_DEVICE_MEM_BASE_ADDR_ALIGN.
    """
    if width == 1 or address.coefficient(LANE) != 1 or width * tensor.dtype.itemsize > 128:
        return False
    start = address.without(LANE)
    steps = [c * (multiples.get(t, 1) if isinstance(t, str) else 1) for t, c in start.terms]
    return all(step % width == 0 for step in (*steps, start.constant))


def aligned_widths(widths: Iterable[int], vector: Dimension, places: Iterable[Affine]) -> tuple[int, ...]:
    """The widths that divide `vector` and at which all accesses along it start at their multiples (see `is_aligned`).

    ``places`` are addresses; those that are not contiguous along the vector do not count.
    """
    steps = [vector.extent]
    for address in places:
        if address.coefficient(vector.name) == 1 and address.is_linear:
            steps += [address.constant, *(c for name, c in address.terms if name != vector.name)]
    return tuple(w for w in widths if all(step % w == 0 for step in steps))


def stored(
    expressions: Expressions,
    source: Source,
    tensor: Tensor,
    address: Affine,
    value: Expr,
    number: str = "",
    multiples: Mapping[str, int] | None = None,
    streams: bool = False,
) -> None:
    """Write the statement that stores `value` at `address` of an output; `number` tells its variables apart.

    ``multiples`` as in `renderer`, ``streams`` as in `writer.store`.
    """
    whole = multiples is not None and is_aligned(tensor, address, expressions.width, multiples)
    value = unrounded(value, tensor.dtype)
    text = expressions.converted(expressions(value), value.dtype, tensor.dtype)
    if expressions.width > 1 and address.coefficient(LANE) != 1:
        name = f"y{number}_{identifier(tensor.name)}"
        source.line(f"const {vector_type(tensor.dtype, expressions.width)} {name} = {text};")
        text = name
    pointer = argument(tensor.name)
    width = expressions.width
    source.line(store(pointer, address, expressions.names, tensor.dtype, width, text, whole, streams))


def unrounded(value: Expr, dtype: DType) -> Expr:
    """`value` without a last conversion to the 16-bit type that it is stored in: the store rounds by itself."""
    halves = dtype in (DType.F16, DType.BF16)
    return (
        value.arg
        if halves and isinstance(value, Cast) and value.dtype is dtype and value.arg.dtype is DType.F32
        else value
    )


# --- collapsing -----------------------------------------------------------------------------------------------------


def aligned(program: Program) -> tuple[Statement, ...]:
    """The program's statements with their output indices named as the first statement's, position by position."""
    first = program.statements[0]
    result = [first]
    for number, s in enumerate(program.statements[1:], 2):
        apart = {i.name: f"{i.name}~{number}" for i in all_indices(s)}
        moved = rename_indices(s, apart)
        back = {mine.name: theirs.name for mine, theirs in zip(moved.indices, first.indices, strict=True)}
        result.append(rename_indices(moved, back))
    return tuple(result)


def same_outputs(program: Program) -> str | None:
    """A refusal unless all statements run over the same output extents and none reads what another writes."""
    sizes = {tuple(i.extent for i in s.indices) for s in program.statements}
    if len(sizes) != 1:
        return "its statements have different output sizes"
    targets = {s.target for s in program.statements}
    touched = {n.tensor for s in program.statements for n in walk(s.value) if isinstance(n, Read | Inside)}
    if targets & touched or program.intermediates:
        return "a statement reads what another one writes"
    return None


@dataclass(frozen=True)
class Dimension:
    """A loop of the kernel: one index, or several that lie together in every tensor."""

    name: str
    extent: int


@dataclass(frozen=True)
class Collapsed:
    """Loops, and the statements' values rewritten in terms of them.

    Where an outer index was joined with its inner neighbour, the rewritten reads have 0 in its place and the inner
    index runs past its dimension; addresses are linear, so they are right, but ranges are to be taken from `checks`.
    """

    kept: tuple[Dimension, ...]
    """Loops over output elements, by falling stride of the first output."""
    reduced: tuple[Dimension, ...]
    """Loops over what is reduced, by falling stride of the first read that uses most of them."""
    values: Mapping[str, Expr]
    """The value of each target."""
    writes: Mapping[str, Affine]
    """The address of each target's element."""
    checks: Mapping[Expr, tuple[int, ...]]
    """The dimensions in which each (rewritten) `Read` or `Inside` can lie outside its tensor."""

    @property
    def reads(self) -> tuple[Read, ...]:
        """The reads of all values, without repetition."""
        return tuple(e for e in self.checks if isinstance(e, Read))

    def extents(self) -> dict[str, int]:
        """Extent of every dimension by name."""
        return {d.name: d.extent for d in (*self.kept, *self.reduced)}

    def moved(self, place: Mapping[str, Affine]) -> dict[Expr, tuple[int, ...]]:
        """`checks` after loop variables were replaced as in `place`."""
        return {substitute_indices(e, place): needed for e, needed in self.checks.items()}


def collapse(program: Program, statements: tuple[Statement, ...]) -> Collapsed:
    """Order the loops by the memory they walk over, and join neighbours that act as one loop in every access.

    The statements have the same output indices. Extents of 1 are dropped. Indices used in range checks or as data are
    not joined.
    """
    extent = {i.name: i.extent for s in statements for i in all_indices(s)}
    gone = {name: Affine((), 0) for name, n in extent.items() if n == 1}
    every = list(dict.fromkeys(n for s in statements for n in walk(s.value)))
    found = [n for n in every if isinstance(n, Read | Inside)]
    fixed = fixed_indices(program, every, extent)
    writes = {
        s.target: program.tensors[s.target].address(tuple(Affine.index(i.name) for i in s.indices)) for s in statements
    }
    addresses = [program.tensors[n.tensor].address(n.index) for n in found if isinstance(n, Read)]
    first = writes[statements[0].target]
    kept = [i.name for i in statements[0].indices if i.extent > 1]
    kept.sort(key=lambda name: -abs(first.coefficient(name)))
    inner = {i.name for n in every if isinstance(n, Reduce) for i in n.indices if i.extent > 1}
    widest = max(addresses, key=lambda a: sum(name in inner for name in a.names), default=Affine())
    reduced = sorted((name for name in extent if name in inner), key=lambda name: -abs(widest.coefficient(name)))
    accesses = [*writes.values(), *addresses]
    kept_loops = join_neighbours(kept, extent, accesses, fixed, gone)
    reduced_loops = join_neighbours(reduced, extent, accesses, fixed, gone)
    checks: dict[Expr, tuple[int, ...]] = {
        substitute_indices(n, gone): checked_dimensions(n.index, program.tensors[n.tensor].shape, extent) for n in found
    }
    return Collapsed(
        kept_loops,
        reduced_loops,
        {s.target: substitute_indices(s.value, gone) for s in statements},
        {name: address.substitute(gone) for name, address in writes.items()},
        checks,
    )


def fixed_indices(program: Program, every: list[Expr], extent: Mapping[str, int]) -> set[str]:
    """Indices that range checks or index values mention; they cannot be joined with others."""
    fixed: set[str] = set()
    for n in every:
        match n:
            case Read():
                needed = checked_dimensions(n.index, program.tensors[n.tensor].shape, extent)
                fixed.update(name for d in needed for name in n.index[d].names)
                fixed.update(name for a in n.index for atom in a.atoms for name in atom.names)
            case Inside():
                fixed.update(name for a in n.index for name in a.names)
            case IndexValue():
                fixed.update(n.index.names)
            case Reduce(until=Affine() as until):
                fixed.update(until.names)
            case _:
                pass
    return fixed


def join_neighbours(
    names: list[str], extent: Mapping[str, int], accesses: list[Affine], fixed: set[str], gone: dict[str, Affine]
) -> tuple[Dimension, ...]:
    """Join neighbours (outer, inner); `gone` gets each outer index that vanished, as 0, since the inner one goes on.

    An outer index is absorbed by its inner neighbour where every address moves by extent(inner) inner steps for it.
    """
    loops: list[Dimension] = []
    for name in reversed(names):
        if loops:
            inner = loops[-1]
            together = not {name, inner.name} & fixed and all(
                a.coefficient(name) == a.coefficient(inner.name) * inner.extent for a in accesses
            )
            if together:
                gone[name] = Affine((), 0)
                loops[-1] = replace(inner, extent=inner.extent * extent[name])
                continue
        loops.append(Dimension(name, extent[name]))
    return tuple(reversed(loops))
