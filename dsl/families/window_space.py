"""The spaces of the `window` family, and its choice without tuning."""

from __future__ import annotations

from tilewright.dsl.families.reduce import accumulator
from tilewright.dsl.families.shared import aligned_widths, ceil_div, power_below
from tilewright.dsl.families.window import GRAINS, Plan
from tilewright.dsl.program import reads
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target

BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Elements of the vector's dimension that a work-item of a CPU walks over at each tile."""
TILES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
"""Outputs of a tile along the sliding dimension."""
ROWS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Outputs of a GPU's tile along the second sliding dimension."""
CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Vectors side by side that the work-items of a group own."""
LINE = 128
"""(guess) Bytes of a GPU's cache line."""
LARGE_WINDOW = 5
"""Taps along a row from which on a window of a CPU is bound by arithmetic."""
ITEMS = 512
"""(guess) Work-items per unit below which smaller tiles are faster than fewer reads."""


def space(plan: Plan, target: Target) -> Space:
    """The configurations to search."""
    if target.shape is Shape.CPU:
        return _cpu_space(plan)
    return _runs_space(plan, target) if plan.tile is None else _strips_space(plan, target)


def default(plan: Plan, target: Target) -> Configuration:
    """A configuration that should be near the best."""
    if target.shape is Shape.CPU:
        return _cpu_default(plan, target)
    return _runs_default(plan, target) if plan.tile is None else _strips_default(plan, target)


def _lanes(plan: Plan, widths: tuple[int, ...]) -> Parameter:
    return Parameter(
        "lanes", widths, "elements per vector; the native width is typical", "vector", (plan.vector.name,), sized=True
    )


def _pixels(plan: Plan) -> Parameter:
    return Parameter(
        "pixels",
        tuple(n for n in TILES if n <= plan.tile_extent),
        "outputs per tile along the sliding dimension; 4 to 8",
        "item",
        () if plan.tile is None else (plan.tile.name,),
        sized=True,
    )


def _vectors(plan: Plan) -> Parameter:
    meaning = "vectors per tile; 1, or 2 where registers are plenty"
    return Parameter("vectors", (1, 2, 4), meaning, "item", (plan.vector.name,), sized=True)


def _groups(target: Target) -> Parameter:
    groups = tuple(n for n in (32, 64, 128, 256) if n <= target.max_work_group) or (1,)
    return Parameter("work_group", groups, "work-items per work-group, typically 64 to 256")


def _constraints(plan: Plan) -> tuple[Constraint, ...]:
    return (
        Constraint(
            "the tile's vectors are longer than the vector's dimension",
            lambda c: c["vectors"] == 1 or c.integer("vectors") * c.integer("lanes") <= plan.vector.extent,
            sized=True,
        ),
        Constraint(
            "more than 32 accumulators",
            lambda c: c.integer("vectors") * c.integer("pixels") * len(plan.reduces) <= max(32, len(plan.reduces)),
        ),
        Constraint(
            "a block that is not whole tiles",
            lambda c: (
                "block" not in c
                or c["block"] == plan.vector.extent
                or c.integer("block") % (c.integer("vectors") * c.integer("lanes")) == 0
            ),
        ),
    )


def _even(extent: int, most: int) -> int:
    """The tile of at most `most` outputs that computes the fewest outputs twice, the larger of equals."""
    allowed = [n for n in TILES if n <= min(most, extent)]
    return min(allowed, key=lambda n: (ceil_div(extent, n) * n * (1 + 0.5 / n), -n))


# --- CPUs -------------------------------------------------------------------------------------------------------------


def _cpu_space(plan: Plan) -> Space:
    blocks = (*tuple(n for n in BLOCKS if n < plan.vector.extent), plan.vector.extent)
    parameters = [
        _lanes(plan, plan.widths(16)),
        _pixels(plan),
        _vectors(plan),
        Parameter("grain", GRAINS, "KiB of output per work-item; 8 to 64"),
    ]
    if plan.tile is not None:
        meaning = "elements along the vector per work-item; what keeps inputs in the cache"
        parameters.append(Parameter("block", blocks, meaning, "tile", (plan.vector.name,), sized=True))
    return Space(tuple(parameters), _constraints(plan))


def _cpu_default(plan: Plan, target: Target) -> Configuration:
    """As many outputs per tile as registers hold beside a row of the window."""
    size = max(accumulator(e).itemsize for e in plan.reduces)
    lanes = min(target.lanes(size), plan.widths(16)[-1])
    values: dict[str, int] = {"lanes": lanes, "vectors": 1, "pixels": 1}
    room = max(1, (target.vector_registers - 3 - plan.taps_along) // len(plan.reduces))
    if plan.tile is not None:
        values |= _cpu_tile(plan, target, lanes, room)
    else:
        most = min(4, room, plan.vector.extent // lanes)
        values["vectors"] = max(n for n in (1, 2, 4) if n <= max(1, most))
    share = plan.outputs * plan.item_bytes // (4 * target.compute_units) >> 10
    values["grain"] = max((g for g in GRAINS if g <= min(share, 32)), default=GRAINS[0])
    return Configuration.of(values)


def _cpu_tile(plan: Plan, target: Target, lanes: int, room: int) -> dict[str, int]:
    """Tile and block of a window that slides along pixels; ``room`` is how many accumulators registers have space for.

    Measured on two EPYC cores with AVX2 under Intel's driver, depthwise windows and pools of 24 sizes at batch 1 to 8,
    with their images in the caches and not.
    """
    assert plan.tile is not None
    extent, many = plan.tile.extent, max(1, target.vector_registers // 2 // len(plan.reduces))
    if plan.has_narrow_groups and plan.step == 1 and lanes == target.lanes(accumulator(plan.reduces[0]).itemsize):
        # Each weight serves all outputs of the tile, which is as long as there are registers.
        return {"pixels": _even(extent, max(1, target.vector_registers - 2)), "vectors": 1, "block": _block(plan, 128)}
    if plan.taps_along >= LARGE_WINDOW:
        # Arithmetic counts: each element of a row serves all outputs of a long tile.
        return {"pixels": _even(extent, min(8, many)), "vectors": 1, "block": _block(plan, 32)}
    # Vectors that fill a cache line.
    wide = target.vector_bytes < 64 and 2 * lanes <= plan.vector.extent
    values = {"vectors": 2 if wide else 1, "block": _block(plan, 512)}
    if _bytes(plan) > 4 * target.l2_bytes * target.compute_units:
        # Memory counts, and streams along the channels from as few pixels as the window has.
        pixel = plan.vector.extent * plan.item_bytes
        return {**values, "pixels": min(extent, 1 if pixel >= 256 else 2)}
    if extent <= 8 and extent <= room:  # a short row as one tile, so that no output is computed twice
        return {"pixels": _even(extent, 8), "vectors": 1, "block": _block(plan, 64)}
    weighted = any(sum(1 for _ in reads(e.body)) > 1 for e in plan.reduces)
    most = (4 if wide else 8) if weighted and plan.step == 1 else 2
    return {**values, "pixels": _even(extent, min(most, max(1, room // values["vectors"])))}


def _bytes(plan: Plan) -> int:
    """Bytes of all tensors."""
    return sum(t.size * t.dtype.itemsize for t in plan.program.tensors.values())


def _block(plan: Plan, most: int) -> int:
    """All channels, or blocks of them: rows that each stay in the first-level cache while the window moves down."""
    return plan.vector.extent if plan.vector.extent <= most else min(most, 256)


# --- GPUs, the window sliding along the vector ------------------------------------------------------------------------


def _runs_space(plan: Plan, target: Target) -> Space:
    parameters = (_lanes(plan, plan.widths(4)), _pixels(plan), _vectors(plan), _groups(target))
    return Space(parameters, _constraints(plan))


def _runs_default(plan: Plan, target: Target) -> Configuration:
    group = power_below(max(1, min(128, target.max_work_group)))
    return Configuration.of({"lanes": 1, "vectors": 1, "pixels": 1, "work_group": group})


# --- GPUs, strips of vectors free of the window -----------------------------------------------------------------------


def _strips_space(plan: Plan, target: Target) -> Space:
    high = plan.high
    return Space(
        (
            _lanes(plan, plan.widths(max(4, 16 // plan.item_bytes))),
            _pixels(plan),
            Parameter(
                "rows",
                tuple(n for n in ROWS if n <= (high.extent if high else 1)),
                "outputs per tile along the second sliding dimension; 2, less for small images",
                "item",
                () if high is None else (high.name,),
                sized=True,
            ),
            Parameter(
                "channels", CHANNELS, "vectors side by side per work-group; 8 to 32, so that it covers part of an image"
            ),
            _groups(target),
        ),
        (
            Constraint(
                "more than 32 accumulators",
                lambda c: c.integer("rows") * c.integer("pixels") * len(plan.reduces) <= max(32, len(plan.reduces)),
            ),
            Constraint(
                "a row of vectors is longer than the work-group",
                lambda c: c.integer("channels") <= c.integer("work_group"),
            ),
        ),
    )


def _strips_default(plan: Plan, target: Target) -> Configuration:
    """Accesses of 8 bytes and the largest tile that leaves the device busy.

    Measured on an H100, depthwise windows and pools of 12 sizes in f32 and f16: with 8 bytes per access, tiles are two
    rows high and cost fewer registers than with 16, which are as fast at best; windows that move by more than one
    position share little, so that their tiles are small. Groups of channels use what they load many times: 16 bytes.
    """
    grouped = plan.side is not None
    lanes = _whole_lanes(plan, 16 if grouped else 8)
    pieces = plan.pieces(lanes)
    group = power_below(max(1, min(128, target.max_work_group)))
    tile, high = plan.tile_extent, plan.high.extent if plan.high else 1
    others = plan.outputs // (plan.vector.extent * (plan.side.extent if plan.side else 1) * tile * high)

    def is_busy(pixels: int, rows: int) -> bool:
        items = others * pieces * ceil_div(tile, pixels) * ceil_div(high, rows)
        return items >= ITEMS * target.compute_units

    shapes = [(2, 2), (2, 1), (1, 1)]
    if plan.step == 1:
        shapes = [(4, 2), (4, 1), *shapes[1:]]
        shapes[:0] = [] if grouped else [(_even(tile, 7), 2)]
    fitting = [(min(p, tile), min(r, high)) for p, r in shapes]
    pixels, rows = next((s for s in fitting if is_busy(*s)), fitting[-1])
    line = max(1, LINE // (lanes * plan.item_bytes))
    values = {"lanes": lanes, "pixels": pixels, "rows": rows, "work_group": group}
    return Configuration.of({**values, "channels": _beside(pieces, group, line)})


def _whole_lanes(plan: Plan, most: int) -> int:
    """The widest vectors of up to `most` bytes that every access loads or stores as one."""
    tensors = plan.program.tensors
    places = [*plan.loops.writes.values(), *(tensors[r.tensor].address(r.index) for r in plan.loops.reads)]
    return aligned_widths(plan.widths(max(1, most // _itemsize(plan))), plan.vector, places)[-1]


def _itemsize(plan: Plan) -> int:
    """Bytes per element of the images; what is much smaller (weights, biases) may be of another type."""
    sizes = {t.dtype.itemsize for t in plan.program.tensors.values() if 8 * t.size >= plan.outputs}
    return max(sizes, default=plan.item_bytes)


def _beside(pieces: int, group: int, line: int) -> int:
    """Vectors per work-group that leave few items without one, a cache line of them or more where there are as many."""
    shares = [n for n in CHANNELS if line <= n <= min(group, pieces, 4 * line)]
    if not shares:
        return next((n for n in CHANNELS if n >= pieces), CHANNELS[-1]) if pieces <= group else min(line, group)
    return min(shares, key=lambda n: (ceil_div(pieces, n) * n > 1.12 * pieces, ceil_div(pieces, n) * n, -n))
