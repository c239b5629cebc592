"""The loading half of a warpgroup kernel: work-items of their own fill the stages of local memory ahead of the others.

for every tile, for every step of its depth:
    wait until the stage is empty
    tell its barrier how many bytes will come, start the copies            (tiles, panels: one work-item)
    or copy pieces, and arrive at the barrier when those of a step before have come             (every work-item)
    or read elements along the rows and write them as pieces along the depth            (turned: every work-item)
"""

from __future__ import annotations

from tilewright.dsl.families.contraction import NAMES, decompose, parted
from tilewright.dsl.families.matrix_operands import Tiles
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.families.wgmma_tiles import each_tile
from tilewright.dsl.warpgroup import GROUP_ITEMS, MAP_WORDS, ROW_BYTES
from tilewright.dsl.writer import Source, affine, argument

BOX_ROWS = 256
"""Most elements of a box along a dimension."""
_PIECES = 8
"""Pieces of 16 bytes in a row."""
_ROWS_AT_ONCE = 16
"""Rows that 128 work-items copy at once, eight pieces each."""


def write_loading(p: Plan, body: Source) -> None:
    """What the work-items from `p.computing` on do."""
    body.line(f"const int me = item - {p.computing};")
    body.line("int stage = 0, parity = 1;")
    if p.copies:
        (_pieces if p.load_a == "pieces" else _turned)(p, body)
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
        _rows(p, body, _ROWS_AT_ONCE)
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
    _arrive_at(body, "ready")
    body.line(f"if (++ready == {p.stages}) ready = 0;")


def _arrive_at(body: Source, stage: str) -> None:
    """Say that this item's part of a stage is there."""
    body.line("TW_FENCE_ASYNC();")
    body.line(f"TW_BAR_ARRIVE(full + 8 * {stage});")


def _rows(p: Plan, body: Source, apart: int) -> None:
    """Addresses and positions of this item's rows, `apart` from each other, as far as the depth has no part in them."""
    c, place = p.c, p.sides[0].place()
    depth = [i.name for i in c.depth]
    count = p.tile_m // apart
    body.line(f"{p.ctype} row_at[{count}];")
    for number in range(len(place.checks)):
        body.line(f"int row_{number}[{count}];")
    body.line("uint rows = 0;")
    with body.loop("i", count, unroll=True):
        body.line(f"const {p.ctype} row = m0 + line + i * {apart};")
        body.line(f"rows |= (uint)(row < {c.m}) << i;")
        for text in decompose("row", c.rows, lambda i: NAMES[i.name], p.ctype):
            body.line(text)
        body.line(f"row_at[i] = {affine(parted(place.address, depth)[0], NAMES)};")
        for number, (position, _) in enumerate(place.checks):
            body.line(f"row_{number}[i] = {affine(parted(position, depth)[0], NAMES)};")


def _copy(p: Plan, body: Source) -> None:
    _depth(p, body, f"step * {p.products.depth} + piece * {p.piece}")
    pointer = argument(p.sides[0].place().tensor.name)
    with body.loop("i", p.tile_m // _ROWS_AT_ONCE, unroll=True):
        to = f"to + place + i * {_ROWS_AT_ONCE * ROW_BYTES}"
        body.line(f"TW_COPY16({to}, {pointer} + row_at[i] + depth_at, {_inside(p)});")


def _depth(p: Plan, body: Source, depth: str) -> None:
    """Declare the depth's indices, and what they add to the address."""
    body.line(f"const {p.ctype} depth = {depth};")
    for text in decompose("depth", p.c.depth, lambda i: NAMES[i.name], p.ctype):
        body.line(text)
    inner = parted(p.sides[0].place().address, [i.name for i in p.c.depth])[1]
    body.line(f"const {p.ctype} depth_at = {affine(inner, NAMES)};")


def _inside(p: Plan) -> str:
    """Condition that row `i` and the depth are inside the product, and their element inside the tensor."""
    depth = [i.name for i in p.c.depth]
    tests = [f"(rows >> i & 1) && depth < {p.c.k}"]
    for number, (position, size) in enumerate(p.sides[0].place().checks):
        inner = parted(position, depth)[1]
        tests.append(f"(uint)(row_{number}[i] + {affine(inner, NAMES)}) < {size}u")
    return " && ".join(tests)


# --- turned ---------------------------------------------------------------------------------------------------------


def _turned(p: Plan, body: Source) -> None:
    """A by elements, of which neighbouring work-items read neighbouring rows; B as with pieces.

    A work-item's elements of two steps are on their way to its registers while it waits for a stage to be empty.
    """
    width = min(p.tile_m, GROUP_ITEMS)
    body.line(f"const int line = me % {width}, first = me / {width};")
    _map_pointers(p, body)
    if p.mapped:
        with body.block("if (me == 0)"):
            _maps(p, body)
    rows, each = p.tile_m // width, _PIECES * width // GROUP_ITEMS * p.piece
    with each_tile(p, body):
        _rows(p, body, width)
        body.line(f"uint even[{rows}][{each}], odd[{rows}][{each}];")
        with body.block(""):
            _read(p, body, width, "even", "0")
        with body.block(f"for (int pair = 0; pair < {p.steps}; pair += 2)"):
            _turned_step(p, body, width, "pair", "even", "odd")
            with body.block(f"if (pair + 1 < {p.steps})"):
                _turned_step(p, body, width, "pair + 1", "odd", "even")


def _turned_step(p: Plan, body: Source, width: int, step: str, here: str, ahead: str) -> None:
    """Start to read the elements of the step after `step`, and write those of `step`."""
    body.line(f"const int step = {step};")
    with body.block(""):  # past the depth these are zeros, which nobody needs
        _read(p, body, width, ahead, "(step + 1)")
    _wait(p, body)
    with body.block("if (me == 0)"):
        body.line(f"TW_BAR_EXPECT(full + 8 * stage, {p.b_bytes});")
        _start(p, body, "b")
    share = GROUP_ITEMS // width
    with body.loop("i", p.tile_m // width, unroll=True), body.loop("j", _PIECES // share, unroll=True):
        place = f"(line + i * {width}) * {ROW_BYTES} + (((first + j * {share}) ^ (line & 7)) << 4)"
        if p.piece == 8:
            words = [f"{here}[i][8 * j + {2 * w}] | {here}[i][8 * j + {2 * w + 1}] << 16" for w in range(4)]
        else:
            words = [f"{here}[i][4 * j + {w}]" for w in range(4)]
        body.line(f"TW_LOCAL_PIECE(to + {place}, {', '.join(words)});")
    _arrive_at(body, "stage")
    _advance(p, body)


def _read(p: Plan, body: Source, width: int, to: str, step: str) -> None:
    """All elements of this item for one step."""
    place, inner, share = p.sides[0].place(), p.c.depth[-1], GROUP_ITEMS // width
    apart, pieces = place.address.coefficient(inner.name), _PIECES // share
    # within a whole step only the innermost index goes on, or within a piece
    together = pieces if inner.extent % p.products.depth == 0 else 1
    with body.loop("part", pieces // together, unroll=True):
        _depth(p, body, f"{step} * {p.products.depth} + (first + part * {share}) * {p.piece}")
        with body.loop("i", p.tile_m // width, unroll=True):
            pointer = f"(__global const {_bits(p)}*){argument(place.tensor.name)}"
            body.line(f"__global const {_bits(p)}* const from = {pointer} + row_at[i] + depth_at;")
            body.line(f"const bool inside = {_inside(p)};")
            with body.loop("e", p.piece * together, unroll=True):
                at = f"(e / {p.piece} * {share * p.piece} + e % {p.piece}) * {apart}"
                body.line(f"{to}[i][part * {p.piece * together} + e] = inside ? (uint)from[{at}] : 0;")


def _bits(p: Plan) -> str:
    """C type of an element's bits."""
    return "ushort" if p.piece == 8 else "uint"
