"""The `contract` family: GEMM, batched and grouped GEMM, implicit-GEMM convolution, matrix-vector products.

`contraction.py` says what a program must look like, `contract_cpu.py` and `contract_gpu.py` write the kernels; here
are the spaces of configurations and the choice that is made without tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.dsl.families import contract_cpu, contract_gpu
from tilewright.dsl.families.contract_split import LEAST_DEPTH, halves, joined, split_values
from tilewright.dsl.families.contraction import Contraction, Operand, linear_stride, recognise, views_of
from tilewright.dsl.families.reduce import REDUCE
from tilewright.dsl.families.shared import computes_indices
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import Program, reads
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.dsl.target import Shape, Target


class Contract:
    """Sums of products with rows and columns of their own."""

    name = "contract"

    def refusal(self, program: Program, target: Target) -> str | None:
        """Why the program is no contraction, or None."""
        found = computes_indices(program) or recognise(program)
        if isinstance(found, str):
            return found
        return "it uses every element of a matrix once: a reduction reads it as fast" if _is_thin(found[0]) else None

    def space(self, program: Program, target: Target) -> Space:
        """Tile sizes, packing and loop order on CPUs; work-group and item tiles on GPUs."""
        views = views_of(program)
        space = _cpu_space(views, target) if target.shape is Shape.CPU else _gpu_space(views, target)
        depth = tuple(i.name for i in views[0].reduce.indices)
        split = Parameter("split_k", split_values(views[0]), _SPLIT, "split", depth, before=1)
        return replace(space, parameters=(*space.parameters, split))

    def default(self, program: Program, target: Target) -> Configuration:
        """The configuration that a model of registers and waste prefers; the space's first one if it is not legal."""
        views = views_of(program)
        space = self.space(program, target)
        make = _cpu_default if target.shape is Shape.CPU else _gpu_default
        wanted = Configuration.of({**make(views[0], target), "split_k": 1})
        wanted = Configuration.of({**wanted, "split_k": _default_split(views[0], target, wanted)})
        if space.violated(wanted) is None:
            return wanted
        return next(iter(space))

    def lower(self, program: Program, target: Target, configuration: Configuration) -> Lowering:
        """The kernels of one configuration."""
        view = views_of(program)[configuration.integer("view")]
        parts = configuration.integer("split_k")
        if parts > 1:
            found = halves(program, view, parts)
            whole = Configuration.of({**configuration, "view": _same_view(found.product, view), "split_k": 1})
            total = REDUCE.lower(found.total, target, REDUCE.default(found.total, target))
            return joined(found, self.lower(found.product, target, whole), total)
        if target.shape is Shape.CPU:
            return contract_cpu.lower(view, program, target, configuration)
        return contract_gpu.lower(view, program, target, configuration)


CONTRACT = Contract()

GROUP_REGISTERS = 45_000
"""(guess) Registers a work-group's items may need together on GPUs; an H100 has 65,536 and its compiler spends more
than the tile alone asks for."""


@dataclass(frozen=True)
class _Subjects:
    """What tuning lines may name: the indices of each kind, and the tensors of the operands."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    depth: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]

    @staticmethod
    def of(c: Contraction) -> _Subjects:
        rows, columns, depth = (tuple(i.name for i in group) for group in (c.rows, c.columns, c.depth))
        a, b = (tuple(dict.fromkeys(r.tensor for r in reads(side.value))) for side in (c.a, c.b))
        return _Subjects(rows, columns, depth, a, b)


TILES = (1, 2, 4, 8, 16, 32)
"""Register tiles of a CPU's work-item."""
ITEM_WORK = 1 << 20
"""Most multiply-adds of a CPU's work-item by default: 50 us of work, for 0.1 us that starting it takes."""
LONG_PRODUCT = 1 << 28
"""Multiply-adds from which on one more launch on a CPU does not matter: about 3 ms of work."""
FAR_ROWS = 2048
"""Bytes from one row of A to the next from which on A may be packed first."""
OFTEN = 96
"""Vectors of columns from which on it is: copying an element takes as long as multiplying it with two or three."""
_PACKED: tuple[tuple[str, int], ...] = (("none", 0), ("packed", 1))


def _is_thin(c: Contraction) -> bool:
    """True for a matrix times a vector: nothing that tiles could keep for a second use."""

    def once(operand: Operand, across: int) -> bool:
        return c.g * c.k * across <= sum(c.access(r).tensor.size for r in reads(operand.value))

    return (c.m == 1 and once(c.b, c.n)) or (c.n == 1 and once(c.a, c.m))


def _same_view(program: Program, view: Contraction) -> int:
    """The number of the view in which a product with the same operands sees its columns as `view` does."""
    columns = {i.name for i in view.columns}
    found = [columns == {i.name for i in v.columns} for v in views_of(program)]
    return found.index(True) if True in found else 0


def _default_split(c: Contraction, target: Target, configuration: Configuration) -> int:
    """Parts of the depth that give every core a tile, where the tiles alone do not."""
    if target.shape is Shape.CPU:
        rows = configuration.integer("item_m") * configuration.integer("tiles_m")
        columns = configuration.integer("item_n") * target.lanes(c.dtype.itemsize)
    else:
        rows, columns = configuration.integer("tile_m"), configuration.integer("tile_n")
    tiles = c.g * -(-c.m // rows) * -(-c.n // columns)
    enough = [p for p in split_values(c) if p * tiles <= 2 * target.compute_units and c.k // p >= 4 * LEAST_DEPTH]
    return max(enough, default=1) if tiles < target.compute_units else 1


_SPLIT = "parts of the depth that are summed side by side (split-k); more than 1 for few tiles of great depth"
_ORDER = "which blocks neighbouring work-items walk: rows (B's panel stays), columns, or groups (what lies between)"
_VIEW = "which operand's own indices are computed in vectors (0 = the expected better)"


# --- CPUs -----------------------------------------------------------------------------------------------------------


def _cpu_space(views: tuple[Contraction, ...], target: Target) -> Space:
    lanes = target.lanes(views[0].dtype.itemsize)
    registers = target.vector_registers

    def fits(c: Configuration) -> bool:
        rows, vectors = c.integer("item_m"), c.integer("item_n")
        return rows * vectors + vectors + 1 <= registers + registers // 8

    def a_in_place(c: Configuration) -> bool:
        return bool(c["pack_a"]) or views[c.integer("view")].a.read is not None

    def b_in_place(c: Configuration) -> bool:
        view = views[c.integer("view")]
        return bool(c["pack_b"]) or _reads_b_in_place(view, c.integer("item_n") * lanes)

    def interior_matters(c: Configuration) -> bool:
        view = views[c.integer("view")]
        return not c["interior"] or (not c["pack_a"] and _a_is_checked(view))

    def reaches(c: Configuration) -> bool:
        view = views[c.integer("view")]
        too_tall = c.integer("item_m") * c.integer("tiles_m") >= 2 * view.m + 2
        return not too_tall and (c.integer("item_n") - 1) * lanes < view.n

    names = _Subjects.of(views[0])

    def short(c: Configuration) -> bool:
        return c.integer("item_m") * c.integer("item_n") * c.integer("unroll_k") <= 8 * registers

    return Space(
        (
            Parameter("view", tuple(range(len(views))), _VIEW),
            Parameter(
                "item_m",
                (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14),
                "rows of a register tile (6-8 AVX2, 8-14 AVX-512)",
                "item",
                names.rows,
            ),
            Parameter("item_n", (1, 2, 3, 4, 6, 8), "vectors of columns in a register tile", "item", names.columns),
            Parameter("tiles_m", TILES, "register tiles per work-item, one below the other"),
            Parameter("unroll_k", (1, 2, 4, 8), "depth steps per turn of the inner loop", "unroll", names.depth),
            Parameter("pack_a", (0, 1), "copy A into panels first", "stage", names.a, _PACKED),
            Parameter(
                "pack_b", (0, 1), "copy B into panels first (weights: once, ahead of time)", "stage", names.b, _PACKED
            ),
            Parameter("prefetch", (0, 1), "ask for B's next panel ahead of time; 1 where B does not stay in the cache"),
            Parameter("interior", (0, 1), "a loop without range checks for tiles inside the image"),
            Parameter("order", ("m", "n", "g") if views[0].g > 1 else ("m", "n"), _ORDER),
        ),
        (
            Constraint("the register tile needs more vector registers than there are", fits),
            Constraint("A is an expression and must be packed", a_in_place),
            Constraint("B can only be read in place where its columns are contiguous and divide evenly", b_in_place),
            Constraint("only packed panels are asked for ahead", lambda c: bool(c["pack_b"]) or not c["prefetch"]),
            Constraint("there are no range checks to avoid", interior_matters),
            Constraint("the tile is larger than the product", reaches, sized=True),
            Constraint("the inner loop would be too long to compile quickly", short),
        ),
    )


def _reads_b_in_place(c: Contraction, width: int) -> bool:
    if c.b.read is None or c.b.read.dtype is not c.dtype or c.n % width:
        return False
    place = c.access(c.b.read)
    return not place.checks and linear_stride(place.address, c.columns) == 1


def _a_is_checked(c: Contraction) -> bool:
    return c.a.read is not None and bool(c.access(c.a.read).checks)


def _cpu_default(c: Contraction, target: Target) -> Configuration:
    lanes = target.lanes(c.dtype.itemsize)
    checked = _a_is_checked(c)
    # Rows that may leave the tensor have a pointer each, which take scalar registers.
    rows, vectors = _register_tile(c, lanes, target, most=8 if checked else 14)
    in_place = c.m <= 2 * rows and _reads_b_in_place(c, vectors * lanes)
    inner = c.depth[-1].extent if c.depth else 1
    # f16 is widened once, not per column tile
    pack = c.a.read is None or c.a.read.dtype.itemsize < c.dtype.itemsize or _reads_rows_often(c, lanes)
    by_groups = not pack and _shares_lines(c) and c.g * c.k * c.n * c.dtype.itemsize <= target.l2_bytes
    return Configuration.of(
        {
            "view": 0,
            "item_m": rows,
            "item_n": vectors,
            "tiles_m": 1 if by_groups else _tiles(c, rows, vectors * lanes, target),
            "unroll_k": 4,
            "pack_a": int(pack),
            "pack_b": int(not in_place),
            "prefetch": int(not in_place and _streams(c, rows, target)),
            "interior": int(checked and not pack and inner < 32),
            "order": "g" if by_groups else "m",
        }
    )


def _reads_rows_often(c: Contraction, lanes: int) -> bool:
    """Whether A's rows are so long, and read for so many column tiles, that they are packed first.

    The rows of a register tile lie far apart, and where their distance is a multiple of 4 KiB the first-level cache
    has the same few places for them. Measured on two EPYC cores, packing included: 197 x 768 x 2304 by 5%,
    197 x 3072 x 768 by 2%, 1024 x 1024 x 1024 by 4% faster, 196 x 256 x 1024 and 784 x 128 x 512 by 6% slower.
    """
    if c.a.read is None or c.g * c.m * c.n * c.k < LONG_PRODUCT:
        return False
    place = c.access(c.a.read)
    step = linear_stride(place.address, c.rows)
    far = step is not None and abs(step) * c.dtype.itemsize >= FAR_ROWS
    return far and not place.checks and c.n >= OFTEN * lanes


def _shares_lines(c: Contraction) -> bool:
    """Whether what the groups read of A lies side by side, for instance channels of one pixel.

    Going through all rows of one group first would then fetch every cache line again for the next group. Measured on
    two EPYC cores, strided 3x3 convolutions of 32 groups of 16 channels: 2.1 instead of 3.8 ms (Intel), 2.5 instead of
    5.6 (PoCL).
    """
    if c.a.read is None:
        return False
    address = c.access(c.a.read).address
    groups, rows = ([abs(address.coefficient(i.name)) for i in part] for part in (c.groups, c.rows))
    return bool(groups and rows) and 0 < min(groups) < min(rows)


def _streams(c: Contraction, rows: int, target: Target) -> bool:
    """Whether B is too large for the cache, and passed so quickly that waiting for it shows."""
    return c.g * c.k * c.n * c.dtype.itemsize > target.l2_bytes // 2 and c.m <= 64 * rows


def _tiles(c: Contraction, rows: int, width: int, target: Target) -> int:
    """Register tiles per work-item: so many that starting it costs little, while every core still gets several."""
    blocks, others = -(-c.m // rows), c.g * -(-c.n // width)

    def suits(tiles: int) -> bool:
        busy = -(-blocks // tiles) * others >= 16 * target.compute_units
        return busy and tiles * rows * width * c.k <= ITEM_WORK and tiles <= blocks

    return max((n for n in TILES if suits(n)), default=1)


def _register_tile(c: Contraction, lanes: int, target: Target, most: int) -> tuple[int, int]:
    """Rows (`most` of them) and vectors that waste least on this size and keep the multiply-adds busy.

    A tile of r x v vectors does r*v multiply-adds for r + v loads, where those of B take longer if a panel does not
    stay in the first-level cache; fewer than 8 accumulators cannot hide the latency of a multiply-add. Work on rows and
    columns beyond the edge counts as lost.
    """
    best, choice = 0.0, (1, 1)
    for vectors in (1, 2, 3, 4, 6, 8):
        if (vectors - 1) * lanes >= c.n:
            continue
        far = c.k * vectors * lanes * c.dtype.itemsize > target.l1_bytes // 2
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14):
            if rows * vectors + vectors + 1 > target.vector_registers or rows > min(c.m, most):
                continue
            useful = (c.m / (-(-c.m // rows) * rows)) * (c.n / (-(-c.n // (vectors * lanes)) * vectors * lanes))
            density = rows * vectors / (rows + vectors * (2 if far else 1))
            score = useful * min(1.0, rows * vectors / 8) * density / (density + 0.6)
            if score > best:
                best, choice = score, (rows, vectors)
    return choice


# --- GPUs -----------------------------------------------------------------------------------------------------------


def _items(c: Configuration) -> int:
    """Work-items of a work-group."""
    return (c.integer("tile_m") // c.integer("item_m")) * (c.integer("tile_n") // c.integer("item_n"))


def _gpu_space(views: tuple[Contraction, ...], target: Target) -> Space:
    itemsize = views[0].dtype.itemsize
    names = _Subjects.of(views[0])

    def whole(c: Configuration) -> bool:
        return c.integer("tile_m") % c.integer("item_m") == 0 and c.integer("tile_n") % c.integer("item_n") == 0

    def group(c: Configuration) -> bool:
        return max(target.sub_group, 1) <= _items(c) <= min(target.max_work_group, 1024)

    def loads(c: Configuration) -> bool:
        count = _items(c)
        return count % c.integer("tile_k") == 0

    def local(c: Configuration) -> bool:
        return contract_gpu.local_bytes(c, itemsize) <= target.local_memory

    def registers(c: Configuration) -> bool:
        rows, columns = c.integer("item_m"), c.integer("item_n")
        return rows * columns <= 96 and _items(c) * (rows * columns + rows + columns + 24) <= GROUP_REGISTERS

    return Space(
        (
            Parameter("view", tuple(range(len(views))), _VIEW),
            Parameter("tile_m", (16, 32, 64, 128), "rows of a work-group's tile", "tile", names.rows),
            Parameter("tile_n", (16, 32, 64, 128), "columns of a work-group's tile", "tile", names.columns),
            Parameter("tile_k", (8, 16, 32), "depth held in local memory at a time", "tile", names.depth),
            Parameter("item_m", (1, 2, 4, 8), "rows of a work-item's tile", "item", names.rows),
            Parameter("item_n", (1, 2, 4, 8), "columns of a work-item's tile", "item", names.columns),
            Parameter("pad_local", (0, 1), "one spare element per row of local memory, against bank conflicts"),
        ),
        (
            Constraint("an item's tile must divide the group's", whole),
            Constraint("the work-group's size is not allowed on this device", group),
            Constraint("the work-group must load whole depth steps", loads),
            Constraint("the tiles need more local memory than there is", local),
            Constraint("an item's accumulators would spill", registers),
        ),
        (("local_bytes", lambda c: contract_gpu.local_bytes(c, itemsize)), ("work_group", _items)),
    )


def _gpu_default(c: Contraction, target: Target) -> Configuration:
    def tile(extent: int) -> int:
        return next((t for t in (16, 32) if extent <= t), 64)

    tile_m, tile_n = tile(c.m), tile(c.n)
    blocks = -(-c.m // tile_m) * -(-c.n // tile_n) * c.g
    if blocks < target.compute_units and tile_m == tile_n == 64:
        tile_m = tile_n = 32
    item_m, item_n = max(1, tile_m // 16), max(1, tile_n // 16)
    limit = min(target.max_work_group, 1024)
    while (tile_m // item_m) * (tile_n // item_n) > limit and item_m < tile_m:
        item_m *= 2
    values = {"view": 0, "tile_m": tile_m, "tile_n": tile_n, "tile_k": 16, "item_m": item_m, "item_n": item_n}
    return Configuration.of({**values, "pad_local": 1})
