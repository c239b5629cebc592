"""From global to local memory: the tiles of both operands for one step of the depth.

pieces     16 bytes along the depth, each with its own range checks: GEMM, and implicit GEMM with channels last
lines      16 bytes across the depth: operands whose own indices are contiguous
panels     the operand was packed in the order of the tiles
elements   one by one, any expression
"""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, Access, conditions, decompose, element, parted
from tilewright.dsl.families.matrix_pack import along_depth
from tilewright.dsl.families.matrix_plan import Loaded, Tile
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.families.wgmma_form import Side, in_pieces
from tilewright.dsl.program import reads
from tilewright.dsl.writer import Source, affine, argument

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
    """Copies of 16 bytes by each work-item per step; 0 where elements are copied one by one."""
    lines = o.rows if o.by_depth else o.depth
    return 0 if o.way == "elements" else ceil_div(lines * o.pieces, t.items)


def write_setup(t: Tile, o: Loaded, body: Source) -> None:
    """Declare what stays the same over all steps: rows, addresses, and positions for range checks."""
    if o.way == "pieces":
        _pieces_setup(t, o, body)
    elif o.way == "lines":
        _lines_setup(t, o, body)
    elif o.way == "panels":
        panels, first = t.panels(o), _first(o)
        tile = f"((long)group * {panels.blocks} + {first} / {o.rows}) * {panels.steps * o.rows * o.depth}"
        body.line(
            f"__global const {o.side.products.operand.opencl}* from_{o.which} = {argument(panels.name)} + {tile};"
        )


def write_load(t: Tile, o: Loaded, body: Source, helpers: dict[str, str]) -> None:
    """Start copying the operand's tile of step `next` to `to_a` or `to_b` (bytes of local memory)."""
    {"pieces": _pieces, "lines": _lines, "panels": _panels}.get(o.way, _elements)(t, o, body, helpers)


def _first(o: Loaded) -> str:
    return "m0" if o.which == "a" else "n0"


def _copy(o: Loaded, body: Source, line: str, piece: str, source: str, valid: str) -> None:
    body.line(f"TW_COPY16(to_{o.which} + ({line}) * {o.pitch} + ({piece}) * 16, {source}, {valid});")


def _row_checks(o: Loaded) -> list[str]:
    return [f"{o.which}_at{number}" for number in range(len(o.side.place().checks))]


# --- along the depth ------------------------------------------------------------------------------------------------


def _pieces_setup(t: Tile, o: Loaded, body: Source) -> None:
    place, w, count = o.side.place(), o.which, copies(t, o)
    depth = [i.name for i in t.c.depth]
    lines = t.items // o.pieces
    body.line(f"const int {w}_piece = item % {o.pieces}, {w}_line = item / {o.pieces};")
    body.line(f"{t.ctype} {w}_from[{count}];")
    for name in _row_checks(o):
        body.line(f"int {name}[{count}];")
    body.line(f"uint {w}_rows = 0;")
    with body.loop("i", count, unroll=True):
        body.line(f"const {t.ctype} row = {_first(o)} + {w}_line + i * {lines};")
        inside = f"row < {o.side.extent}" + (f" && {w}_line < {o.rows}" if lines > o.rows else "")
        body.line(f"{w}_rows |= (uint)({inside}) << i;")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        body.line(f"{w}_from[i] = {affine(parted(place.address, depth)[0], NAMES)};")
        for name, (position, _) in zip(_row_checks(o), place.checks, strict=True):
            body.line(f"{name}[i] = {affine(parted(position, depth)[0], NAMES)};")


def _pieces(t: Tile, o: Loaded, body: Source, _: dict[str, str]) -> None:
    place, w, count = o.side.place(), o.which, copies(t, o)
    lines = t.items // o.pieces
    with body.block(f"if ({w}_line < {o.rows})" if lines > o.rows else ""):
        _depth(t, place, body, f"next * {o.depth} + {w}_piece * {o.vector}")
        with body.loop("i", count, unroll=True):
            tests = [f"({w}_rows >> i & 1)", *(["in_depth"] if t.c.k % o.depth else [])]
            tests += _inside(t, place, [f"{name}[i]" for name in _row_checks(o)])
            source = f"{argument(place.tensor.name)} + {w}_from[i] + depth_at"
            _copy(o, body, f"{w}_line + i * {lines}", f"{w}_piece", source, " && ".join(tests))


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
    place, w = o.side.place(), o.which
    depth = [i.name for i in t.c.depth]
    body.line(f"const int {w}_piece = item % {o.pieces}, {w}_line = item / {o.pieces};")
    body.line(f"{t.ctype} {w}_from;")
    for name in _row_checks(o):
        body.line(f"int {name};")
    body.line(f"const bool {w}_rows = {_first(o)} + {w}_piece * {o.vector} < {o.side.extent};")
    with body.block(""):
        body.line(f"const {t.ctype} row = {_first(o)} + {w}_piece * {o.vector};")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        body.line(f"{w}_from = {affine(parted(place.address, depth)[0], NAMES)};")
        for name, (position, _) in zip(_row_checks(o), place.checks, strict=True):
            body.line(f"{name} = {affine(parted(position, depth)[0], NAMES)};")


def _lines(t: Tile, o: Loaded, body: Source, _: dict[str, str]) -> None:
    place, w, count = o.side.place(), o.which, copies(t, o)
    lines = t.items // o.pieces
    with (
        body.block(f"if ({w}_line < {o.depth})" if lines > o.depth else ""),
        body.loop("i", count, unroll=True),
    ):
        _depth(t, place, body, f"next * {o.depth} + {w}_line + i * {lines}")
        tests = [f"{w}_rows", *(["in_depth"] if t.c.k % o.depth else []), *_inside(t, place, _row_checks(o))]
        source = f"{argument(place.tensor.name)} + {w}_from + depth_at"
        _copy(o, body, f"{w}_line + i * {lines}", f"{w}_piece", source, " && ".join(tests))


# --- packed, and one by one -----------------------------------------------------------------------------------------


def _panels(t: Tile, o: Loaded, body: Source, _: dict[str, str]) -> None:
    total = o.rows * o.pieces
    with body.loop("i", copies(t, o), unroll=True):
        body.line(f"const int e = item + i * {t.items};")
        with body.block(f"if (e < {total})" if total % t.items else ""):
            source = f"from_{o.which} + ({t.ctype})next * {o.rows * o.depth} + e * {o.vector}"
            _copy(o, body, f"e / {o.pieces}", f"e % {o.pieces}", source, "1")


def _elements(t: Tile, o: Loaded, body: Source, helpers: dict[str, str]) -> None:
    with body.block(f"for (int e = item; e < {o.rows * o.depth}; e += {t.items})"):
        if along_depth(o.side):
            body.line(f"const int k = e % {o.depth}, at = e / {o.depth};")
        else:
            body.line(f"const int at = e % {o.rows}, k = e / {o.rows};")
        body.line(f"const {t.ctype} row = {_first(o)} + at, depth = next * {o.depth} + k;")
        body.line(f"__local char* const to = to_{o.which} + {o.place('at', 'k')};")
        body.line(f"const bool inside = row < {o.side.extent} && depth < {t.c.k};")
        for text in decompose("row", o.side.indices, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        for text in decompose("depth", t.c.depth, lambda i: NAMES[i.name], t.ctype):
            body.line(text)
        if _copies_words(o):
            place = o.side.place()
            tests = " && ".join(["inside", *([conditions(place.checks, NAMES)] if place.checks else [])])
            source = f"{argument(place.tensor.name)} + {affine(place.address, NAMES)}"
            body.line(f"TW_COPY4(to, {source}, {tests});")
            return
        value = f"inside ? {element(t.c, o.side.operand.value, NAMES, t.program, helpers)} : 0.0f"
        dtype = o.side.products.operand
        if dtype is DType.F16:
            body.line(f"vstore_half({value}, 0, (__local half*)to);")
        elif dtype is DType.BF16:
            body.line(f"*(__local ushort*)to = tw_bf16_float({value});")
        else:
            body.line(f"*(__local float*)to = {value};")


def _copies_words(o: Loaded) -> bool:
    """Whether elements are 4 bytes each as they lie in memory."""
    return o.side.read is not None and o.itemsize == 4 and (not o.side.place().checks or o.side.place().tensor.pad == 0)
