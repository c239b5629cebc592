"""One configuration of a contraction for the warpgroup instructions, with everything that its kernel needs to know."""

from __future__ import annotations

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import NAMES, element
from tilewright.dsl.families.matrix_operands import PIECE, Tiles, tiles
from tilewright.dsl.families.matrix_storing import PITCH
from tilewright.dsl.families.matrix_tiling import Tiling
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.families.wgmma_pack import Panels
from tilewright.dsl.lowering import Scratch
from tilewright.dsl.matrix import MatrixUnit
from tilewright.dsl.target import Target
from tilewright.dsl.warpgroup import GROUP_ITEMS, GROUP_ROWS, MAP_WORDS, ROW_BYTES, TILE_ALIGNMENT, WarpgroupUnit


class Plan(Tiling):
    """A contraction with the numbers of one configuration, for the instructions of warpgroups."""

    @property
    def teams(self) -> int:
        """Groups of 128 work-items that compute; another group, or a sub-group, loads."""
        return self.configuration.integer("teams")

    @property
    def load_a(self) -> str:
        """How A gets to local memory."""
        return str(self.configuration["load_a"])

    @property
    def load_b(self) -> str:
        """How B gets to local memory."""
        return str(self.configuration["load_b"])

    @property
    def resident(self) -> int:
        """Work-groups per compute unit that go through the tiles; 0 for a work-group per tile."""
        return self.configuration.integer("resident")

    @property
    def unit(self) -> WarpgroupUnit:
        """The device's instructions."""
        return warpgroups(self.target)[1]

    @property
    def parts(self) -> int:
        """Tiles of B per stage: two where its elements are split."""
        return 2 if self.products.splits else 1

    @property
    def blocks(self) -> int:
        """Instructions of 64 rows per team, one below the other."""
        return self.tile_m // (GROUP_ROWS * self.teams)

    @property
    def a_bytes(self) -> int:
        """Bytes of A per stage."""
        return self.tile_m * ROW_BYTES

    @property
    def b_bytes(self) -> int:
        """Bytes of B per stage."""
        return self.parts * self.tile_n * ROW_BYTES

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage."""
        return self.a_bytes + self.b_bytes

    @property
    def computing(self) -> int:
        """Work-items that compute."""
        return GROUP_ITEMS * self.teams

    @property
    def loading(self) -> int:
        """Work-items that load: a whole group where they copy, a sub-group where one of them starts copies."""
        return GROUP_ITEMS if self.copies else 32

    @property
    def copies(self) -> bool:
        """Whether work-items copy A, rather than a copy engine."""
        return self.load_a in ("pieces", "turned")

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.computing + self.loading

    @property
    def steps(self) -> int:
        """Tiles of the depth."""
        return ceil_div(self.c.k, self.products.depth)

    @property
    def tiles(self) -> int:
        """Tiles of all groups."""
        rows, columns = self.grid
        return rows * columns * self.c.g

    @property
    def groups(self) -> int:
        """Work-groups of the launch."""
        return min(self.tiles, self.resident * self.target.compute_units) if self.resident else self.tiles

    @property
    def registers(self) -> int:
        """Sums that a work-item holds."""
        return (self.blocks + (1 if self.products.splits else 0)) * self.tile_n // 2

    @property
    def pipeline_bytes(self) -> int:
        """Bytes of all stages, of what aligns them, and of their barriers."""
        return self.stages * (self.stage_bytes + 16) + TILE_ALIGNMENT

    @property
    def local_bytes(self) -> int:
        """Local memory of a work-group."""
        return self.pipeline_bytes + self.computing // 32 * 16 * PITCH * 4

    def panels(self, which: str) -> Panels:
        """An operand's panels."""
        if which == "a":
            return Panels(self.sides[0], self.program, "panels_a", self.tile_m, 1, self.ctype)
        return Panels(self.sides[1], self.program, "panels_b", self.tile_n, self.parts, self.ctype)

    def boxes(self, which: str) -> Tiles | None:
        """An operand as boxes, if it is loaded that way."""
        if (self.load_a if which == "a" else self.load_b) != "tiles":
            return None
        return tiles(self.sides[0 if which == "a" else 1])

    @property
    def mapped(self) -> tuple[str, ...]:
        """The operands that have tensor maps."""
        return tuple(which for which in "ab" if self.boxes(which) is not None)

    @property
    def maps(self) -> Scratch | None:
        """Memory for the tensor maps of every work-group."""
        size = self.groups * len(self.mapped) * MAP_WORDS
        return Scratch("tensor_maps", DType.U64, size) if size else None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The buffers of the kernel, in order: what the epilogue reads, what is loaded, what is written."""
        read = [r.tensor for r in self.c.epilogue_reads()]
        for which, way, side in zip("ab", (self.load_a, self.load_b), self.sides, strict=True):
            read.append(f"panels_{which}" if way == "panels" else side.place().tensor.name)
        return tuple(dict.fromkeys([*read, self.c.statement.target, *(["tensor_maps"] if self.maps else [])]))

    def factor(self, which: str, row: str, helpers: dict[str, str]) -> str:
        """C expression of an operand's element at (group, row, depth), from where the kernel has it."""
        if (self.load_a if which == "a" else self.load_b) == "panels":
            return self.panels(which).element(row, "depth")
        side = self.sides[0 if which == "a" else 1]
        return element(self.c, side.operand.value, NAMES, self.program, helpers)

    def dtype(self, tensor: str) -> DType:
        """Type of the elements of one of `tensors`."""
        return DType.U64 if tensor == "tensor_maps" else super().dtype(tensor)

    @property
    def written(self) -> tuple[str, ...]:
        """Those of `tensors` that the kernel writes."""
        return (self.c.statement.target, "tensor_maps")

    @property
    def b_depth_major(self) -> bool:
        """Whether B's rows in local memory are columns of the product."""
        boxes = self.boxes("b")
        return boxes is None or boxes.depth_major

    @property
    def piece(self) -> int:
        """Elements of 16 bytes."""
        return PIECE // self.products.operand.itemsize


def warpgroups(target: Target) -> tuple[MatrixUnit, WarpgroupUnit]:
    """What the device has for matrices, where it has instructions for groups of sub-groups."""
    unit = target.matrix
    assert unit is not None
    assert unit.warpgroup is not None
    return unit, unit.warpgroup
