"""From global to local memory: the tiles of both operands for one step of the depth.

pieces     16 bytes along the depth, each with its own range checks: GEMM, and implicit GEMM with channels last
lines      16 bytes across the depth: operands whose own indices are contiguous
panels     the operand was packed in the order of the tiles
elements   one by one, any expression
"""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, Access, decompose, element, parted
from tilewright.dsl.families.matrix_operands import Side, in_pieces
from tilewright.dsl.families.matrix_plan import Loaded, Tile
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.program import reads
from tilewright.dsl.writer import Source, affine, argument
from tilewright.dsl.writer import element as memory_element

MOST_PIECES = 16
"""Pieces that a work-item may copy per step and operand; it keeps an address for each."""
_MOST_REPEATS = 2
"""How often panels may hold an element of what the operand reads."""


def ways(side: Side) -> tuple[str, ...]:
    """How an operand's tiles can be loaded, the best way first."""
    found = []
    if in_pieces(side):
        found.append("pieces")
    if in_lines(side):
        found.append("lines")
    size = sum(side.c.access(r).tensor.size for r in reads(side.operand.value))
    if side.c.g * side.c.k * side.extent <= _MOST_REPEATS * max(size, 1):
        found.append("panels")
    return (*found, "elements")


def in_lines(side: Side) -> bool:
    """Whether 16 bytes along the operand's own indices are consecutive, aligned, and inside the tensor or outside."""
    if side.read is None or not side.indices:
        return False
    place, inner = side.place(), side.indices[-1]
    if place.checks and place.tensor.pad != 0:
        return False
    others = [c for name, c in place.address.terms if name != inner.name]
    return (
        place.address.is_linear
        and place.address.coefficient(inner.name) == 1
        and inner.name not in place.checked_names
        and side.aligned(inner.extent, place.address.constant, *others)
    )


def copies(t: Tile, o: Loaded) -> int:
    """Copies by each work-item per step; 0 where a work-item computes addresses anew for each element."""
    return 0 if o.way == "elements" and not _regular(t, o) else ceil_div(o.lines * o.pieces, t.items)


def _regular(t: Tile, o: Loaded) -> bool:
    """Whether single elements are plain reads, of which a work-item has few enough to keep their addresses."""
    read = o.side.operand.read
    if read is None or t.items % o.pieces or ceil_div(o.lines * o.pieces, t.items) > MOST_PIECES:
        return False
    place = t.c.access(read)
    return place.address.is_linear and (not place.checks or place.tensor.pad == 0)


def write_setup(t: Tile, o: Loaded, body: Source) -> None:
    """Declare what stays the same over all steps: rows, addresses, and positions for range checks."""
    if o.way == "panels":
        panels, first = t.panels(o), _first(o)
        tile = f"((long)group * {panels.blocks} + {first} / {o.rows}) * {panels.steps * o.rows * o.depth}"
        body.line(
            f"__global const {o.side.products.operand.opencl}* from_{o.which} = {argument(panels.name)} + {tile};"
        )
    elif copies(t, o):
        (_pieces_setup if o.along else _lines_setup)(t, o, body)


def write_load(t: Tile, o: Loaded, body: Source, helpers: dict[str, str]) -> None:
    """Start copying the operand's tile of step `next` to `to_a` or `to_b` (bytes of local memory)."""
    if o.way == "panels":
        _panels(t, o, body)
    elif copies(t, o):
        (_pieces if o.along else _lines)(t, o, body)
    else:
        _elements(t, o, body, helpers)


def _first(o: Loaded) -> str:
    return "m0" if o.which == "a" else "n0"


def _place(t: Tile, o: Loaded) -> Access:
    """Where the operand's read goes, which may be a conversion away from the products' type."""
    assert o.side.operand.read is not None
    return t.c.access(o.side.operand.read)


def _copy(t: Tile, o: Loaded, body: Source, line: str, piece: str, address: str, tests: list[str]) -> None:
    """Copy a piece: 16 bytes, or an element with its conversion."""
    place, valid = _place(t, o), " && ".join(tests)
    row, depth = (line, f"({piece}) * {o.vector}") if o.along else (f"({piece}) * {o.vector}", line)
    to, source = f"to_{o.which} + {o.place(row, depth)}", argument(place.tensor.name)
    if o.vector > 1:
        body.line(f"TW_COPY16({to}, {source} + {address}, {valid});")
    elif o.itemsize == 4 and o.side.read is not None:
        body.line(f"TW_COPY4({to}, {source} + {address}, {valid});")
    else:
        value = memory_element(source, address, place.tensor.dtype)
        _put(o, body, to, f"{valid} ? {value} : 0")


def _put(o: Loaded, body: Source, to: str, value: str) -> None:
    """Store one element in local memory."""
    dtype = o.side.products.operand
    if dtype is DType.F16:
        body.line(f"vstore_half({value}, 0, (__local half*)({to}));")
    elif dtype is DType.BF16:
        body.line(f"*(__local ushort*)({to}) = tw_bf16_float({value});")
    else:
        body.line(f"*(__local float*)({to}) = {value};")


def _row_checks(t: Tile, o: Loaded) -> list[str]:
    return [f"{o.which}_at{number}" for number in range(len(_place(t, o).checks))]


# --- along the depth ------------------------------------------------------------------------------------------------


def _pieces_setup(t: Tile, o: Loaded, body: Source) -> None:
    place, w, count = _place(t, o), o.which, copies(t, o)
    depth = [i.name for i in t.c.depth]
    lines = t.items // o.pieces
    body.line(f"const int {w}_piece = item % {o.pieces}, {w}_line = item / {o.pieces};")
    body.line(f"{t.ctype} {w}_from[{count}];")
    for name in _row_checks(t, o):
        body.line(f"int {name}[{count}];")
    body.line(f"uint {w}_rows = 0;")
    with body.loop("i", count, unroll=True):
        body.line(f"const {t.ctype} row = {_first(o)} + {w}_line + i * {lines};")
        inside = f"row < {o.side.extent}" + (f" && {w}_line < {o.rows}" if lines > o.rows else "")
        body.line(f"{w}_rows |= (uint)({inside}) << i;")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        body.line(f"{w}_from[i] = {affine(parted(place.address, depth)[0], NAMES)};")
        for name, (position, _) in zip(_row_checks(t, o), place.checks, strict=True):
            body.line(f"{name}[i] = {affine(parted(position, depth)[0], NAMES)};")


def _pieces(t: Tile, o: Loaded, body: Source) -> None:
    place, w, count = _place(t, o), o.which, copies(t, o)
    lines = t.items // o.pieces
    with body.block(f"if ({w}_line < {o.rows})" if lines > o.rows else ""):
        _depth(t, place, body, f"next * {o.depth} + {w}_piece * {o.vector}")
        with body.loop("i", count, unroll=True):
            tests = [f"({w}_rows >> i & 1)", *(["in_depth"] if t.c.k % o.depth else [])]
            tests += _inside(t, place, [f"{name}[i]" for name in _row_checks(t, o)])
            _copy(t, o, body, f"{w}_line + i * {lines}", f"{w}_piece", f"{w}_from[i] + depth_at", tests)


def _depth(t: Tile, place: Access, body: Source, depth: str) -> None:
    """Declare the depth's indices, and what they add to the address."""
    body.line(f"const {t.ctype} depth = {depth};")
    if t.c.k % t.tile_k:
        body.line(f"const bool in_depth = depth < {t.c.k};")
    for text in decompose("depth", t.c.depth, lambda i: NAMES[i.name], t.ctype):
        body.line(text)
    inner = parted(place.address, [i.name for i in t.c.depth])[1]
    body.line(f"const {t.ctype} depth_at = {affine(inner, NAMES)};")


def _inside(t: Tile, place: Access, rows: list[str]) -> list[str]:
    """The range checks of an access whose rows' parts of the positions are given."""
    depth = [i.name for i in t.c.depth]
    return [
        f"(uint)({row} + {affine(parted(position, depth)[1], NAMES)}) < {size}u"
        for row, (position, size) in zip(rows, place.checks, strict=True)
    ]


# --- across the depth -----------------------------------------------------------------------------------------------


def _lines_setup(t: Tile, o: Loaded, body: Source) -> None:
    place, w = _place(t, o), o.which
    depth = [i.name for i in t.c.depth]
    body.line(f"const int {w}_piece = item % {o.pieces}, {w}_line = item / {o.pieces};")
    body.line(f"{t.ctype} {w}_from;")
    for name in _row_checks(t, o):
        body.line(f"int {name};")
    body.line(f"const bool {w}_rows = {_first(o)} + {w}_piece * {o.vector} < {o.side.extent};")
    with body.block(""):
        body.line(f"const {t.ctype} row = {_first(o)} + {w}_piece * {o.vector};")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        body.line(f"{w}_from = {affine(parted(place.address, depth)[0], NAMES)};")
        for name, (position, _) in zip(_row_checks(t, o), place.checks, strict=True):
            body.line(f"{name} = {affine(parted(position, depth)[0], NAMES)};")


def _lines(t: Tile, o: Loaded, body: Source) -> None:
    place, w, count = _place(t, o), o.which, copies(t, o)
    lines = t.items // o.pieces
    with (
        body.block(f"if ({w}_line < {o.depth})" if lines > o.depth else ""),
        body.loop("i", count, unroll=True),
    ):
        _depth(t, place, body, f"next * {o.depth} + {w}_line + i * {lines}")
        tests = [f"{w}_rows", *(["in_depth"] if t.c.k % o.depth else []), *_inside(t, place, _row_checks(t, o))]
        _copy(t, o, body, f"{w}_line + i * {lines}", f"{w}_piece", f"{w}_from + depth_at", tests)


# --- packed, and one by one -----------------------------------------------------------------------------------------


def _panels(t: Tile, o: Loaded, body: Source) -> None:
    total = o.rows * o.pieces
    with body.loop("i", copies(t, o), unroll=True):
        body.line(f"const int e = item + i * {t.items};")
        with body.block(f"if (e < {total})" if total % t.items else ""):
            to = f"to_{o.which} + {o.place(f'e / {o.pieces}', f'e % {o.pieces} * {o.vector}')}"
            source = f"from_{o.which} + ({t.ctype})next * {o.rows * o.depth} + e * {o.vector}"
            body.line(f"TW_COPY16({to}, {source}, 1);")


def _elements(t: Tile, o: Loaded, body: Source, helpers: dict[str, str]) -> None:
    """Any expression, element by element."""
    with body.block(f"for (int e = item; e < {o.rows * o.depth}; e += {t.items})"):
        if o.along:
            body.line(f"const int k = e % {o.depth}, at = e / {o.depth};")
        else:
            body.line(f"const int at = e % {o.rows}, k = e / {o.rows};")
        body.line(f"const {t.ctype} row = {_first(o)} + at, depth = next * {o.depth} + k;")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        for text in decompose("depth", t.c.depth, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        value = element(t.c, o.side.operand.value, NAMES, t.program, helpers)
        inside = f"row < {o.side.extent} && depth < {t.c.k}"
        _put(o, body, f"to_{o.which} + {o.place('at', 'k')}", f"{inside} ? {value} : 0")
