"""The loading half of a warpgroup kernel: work-items of their own fill the stages of local memory ahead of the others.

for every tile, for every step of its depth:
    wait until the stage is empty
    tell its barrier how many bytes will come, start the copies            (tiles, panels: one work-item)
    or copy pieces, and arrive at the barrier when those of a step before have come             (every work-item)
"""

from __future__ import annotations

from tilewright.dsl.families.contraction import NAMES, decompose, parted
from tilewright.dsl.families.matrix_operands import Tiles
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.families.wgmma_tiles import each_tile
from tilewright.dsl.warpgroup import MAP_WORDS, ROW_BYTES
from tilewright.dsl.writer import Source, affine, argument

BOX_ROWS = 256
"""Most elements of a box along a dimension."""
_ROWS_AT_ONCE = 16
"""Rows that 128 work-items copy at once, eight pieces each."""


def write_loading(p: Plan, body: Source) -> None:
    """What the work-items from `p.computing` on do."""
    body.line(f"const int me = item - {p.computing};")
    body.line("int stage = 0, parity = 1;")
    if p.load_a == "pieces":
        _pieces(p, body)
        return
    _map_pointers(p, body)
    with body.block("if (me == 0)"):
        _maps(p, body)
        with each_tile(p, body), body.loop("step", p.steps):
            _wait(p, body)
            body.line(f"TW_BAR_EXPECT(full + 8 * stage, {p.stage_bytes});")
            _start(p, body, "a")
            _start(p, body, "b")
            _advance(p, body)


def _wait(p: Plan, body: Source) -> None:
    body.line("TW_BAR_WAIT(empty + 8 * stage, parity);")
    body.line(f"const uint to = base + stage * {p.stage_bytes};")


def _advance(p: Plan, body: Source) -> None:
    body.line(f"if (++stage == {p.stages}) {{ stage = 0; parity ^= 1; }}")


def _map_pointers(p: Plan, body: Source) -> None:
    """Every work-group has maps of its own."""
    for number, which in enumerate(p.mapped):
        at = f"(get_group_id(0) * {len(p.mapped)} + {number}) * {MAP_WORDS}"
        body.line(f"__global ulong* const map_{which} = {argument('tensor_maps')} + {at};")


def _maps(p: Plan, body: Source) -> None:
    """Write the tensor maps and let the copy engine see them."""
    form = p.unit.maps
    for which in p.mapped:
        boxes, side = p.boxes(which), p.sides[0 if which == "a" else 1]
        assert boxes is not None
        assert form is not None
        words = form.words(p.products.operand, boxes.sizes, boxes.strides, _box(p, which, boxes))
        name = argument(side.place().tensor.name)
        body.line(f"map_{which}[0] = (ulong)({name} + {boxes.start});")
        for word, value in enumerate(words[1:], 1):
            body.line(f"map_{which}[{word}] = {value:#x}ul;")
    if p.mapped:
        body.line("TW_MAP_RELEASE();")
    for which in p.mapped:
        body.line(f"TW_MAP_ACQUIRE(map_{which});")


def _box(p: Plan, which: str, boxes: Tiles) -> tuple[int, ...]:
    rows = min(p.tile_m if which == "a" else p.tile_n, BOX_ROWS)
    depth = p.products.depth
    inner = (depth, rows) if boxes.depth_major else (depth, depth)
    return (*inner, *[1] * len(boxes.groups))


def _start(p: Plan, body: Source, which: str) -> None:
    """Start the copies of an operand's tile for one step."""
    first, count = ("m0", p.tile_m) if which == "a" else ("n0", p.tile_n)
    to = "to" if which == "a" else f"to + {p.a_bytes}"
    boxes = p.boxes(which)
    if boxes is None:
        panels = p.panels(which)
        dtype = p.products.operand
        block = f"(long)group * {panels.blocks} + {first} / {count}"
        at = f"(({block}) * {p.steps} + step) * {panels.tile_bytes // dtype.itemsize}"
        body.line(f"TW_BULK({to}, {argument(panels.name)} + {at}, {panels.tile_bytes}, full + 8 * stage);")
        return
    groups = [f"(int){NAMES[i.name]}" for i in boxes.groups]
    macro = f"TW_TILE{len(boxes.sizes)}"
    depth = f"step * {p.products.depth}"
    if boxes.depth_major:
        places = [depth, f"(int){first}", *groups]
        body.line(f"{macro}({to}, map_{which}, {', '.join(places)}, full + 8 * stage);")
        return
    width, nbytes = p.products.depth, p.products.depth * ROW_BYTES
    for number in range(count // width):
        places = [f"(int){first} + {number * width}", depth, *groups]
        body.line(f"{macro}({to} + {number * nbytes}, map_{which}, {', '.join(places)}, full + 8 * stage);")


# --- pieces ---------------------------------------------------------------------------------------------------------


def _pieces(p: Plan, body: Source) -> None:
    """A by pieces of 16 bytes, each with its own range checks; B by whichever copies it has, from the first item."""
    # The others empty a stage after they have begun with the next one, so two stages must be ahead of what arrives.
    lag = p.stages - 2
    body.line("const int piece = me & 7, line = me >> 3;")
    body.line(f"const uint place = line * {ROW_BYTES} + ((piece ^ (line & 7)) << 4);")
    body.line("int pending = 0, ready = 0;")
    _map_pointers(p, body)
    if p.mapped:
        with body.block("if (me == 0)"):
            _maps(p, body)
    with each_tile(p, body):
        _rows(p, body)
        with body.loop("step", p.steps):
            _wait(p, body)
            with body.block("if (me == 0)"):
                body.line(f"TW_BAR_EXPECT(full + 8 * stage, {p.b_bytes});")
                _start(p, body, "b")
            _copy(p, body)
            body.line("TW_COMMIT();")
            with body.block(f"if (pending == {lag})"):
                body.line(f"TW_WAIT({lag});")
                _arrive(p, body)
            with body.block("else"):
                body.line("++pending;")
            _advance(p, body)
    body.line("TW_WAIT(0);")
    with body.block("for (; pending > 0; --pending)"):
        _arrive(p, body)


def _arrive(p: Plan, body: Source) -> None:
    body.line("TW_FENCE_ASYNC();")
    body.line("TW_BAR_ARRIVE(full + 8 * ready);")
    body.line(f"if (++ready == {p.stages}) ready = 0;")


def _rows(p: Plan, body: Source) -> None:
    """Addresses and positions of this item's rows, as far as the depth has no part in them."""
    c, place = p.c, p.sides[0].place()
    depth = [i.name for i in c.depth]
    count = p.tile_m // _ROWS_AT_ONCE
    body.line(f"{p.ctype} row_at[{count}];")
    for number in range(len(place.checks)):
        body.line(f"int row_{number}[{count}];")
    body.line("uint rows = 0;")
    with body.loop("i", count, unroll=True):
        body.line(f"const {p.ctype} row = m0 + line + i * {_ROWS_AT_ONCE};")
        body.line(f"rows |= (uint)(row < {c.m}) << i;")
        for text in decompose("row", c.rows, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        body.line(f"row_at[i] = {affine(parted(place.address, depth)[0], NAMES)};")
        for number, (position, _) in enumerate(place.checks):
            body.line(f"row_{number}[i] = {affine(parted(position, depth)[0], NAMES)};")


def _copy(p: Plan, body: Source) -> None:
    c, place = p.c, p.sides[0].place()
    depth = [i.name for i in c.depth]
    body.line(f"const {p.ctype} depth = step * {p.products.depth} + piece * {p.piece};")
    for text in decompose("depth", c.depth, lambda i: NAMES[i.name], p.ctype):
        body.line(text)
    body.line(f"const {p.ctype} depth_at = {affine(parted(place.address, depth)[1], NAMES)};")
    tests = [f"(rows >> i & 1) && depth < {c.k}"]
    for number, (position, size) in enumerate(place.checks):
        inner = parted(position, depth)[1]
        tests.append(f"(uint)(row_{number}[i] + {affine(inner, NAMES)}) < {size}u")
    pointer = argument(place.tensor.name)
    with body.loop("i", p.tile_m // _ROWS_AT_ONCE, unroll=True):
        to = f"to + place + i * {_ROWS_AT_ONCE * ROW_BYTES}"
        body.line(f"TW_COPY16({to}, {pointer} + row_at[i] + depth_at, {' && '.join(tests)});")
