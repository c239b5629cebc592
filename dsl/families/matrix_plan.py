"""One configuration of a contraction for matrix instructions, with everything that its kernel needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.families.contraction import NAMES, element
from tilewright.dsl.families.matrix_operands import PIECE, Products, Side, along_depth
from tilewright.dsl.families.matrix_pack import Panels
from tilewright.dsl.families.matrix_storing import PITCH
from tilewright.dsl.families.matrix_tiling import Tiling
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.matrix import MatrixInstruction, MatrixUnit
from tilewright.dsl.program import reads
from tilewright.dsl.target import Target
from tilewright.dsl.writer import argument


@dataclass(frozen=True)
class Loaded:
    """One operand: how its tiles get to local memory, and how they lie there."""

    side: Side
    which: str
    """a or b."""
    way: str
    """``pieces`` of 16 bytes along the depth or ``lines`` of them across it, packed ``panels``, or ``elements``."""
    rows: int
    """Rows of A or columns of B in a tile."""
    depth: int
    """Depth of a tile."""

    @property
    def by_depth(self) -> bool:
        """Whether the depth is contiguous in local memory."""
        return self.way != "lines"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in local memory."""
        return self.side.products.operand.itemsize

    @property
    def vector(self) -> int:
        """Elements of a piece: what a work-item copies at once."""
        return 1 if self.way == "elements" else PIECE // self.itemsize

    @property
    def pitch(self) -> int:
        """Bytes between lines in local memory, such that what a sub-group reads at once lies in different banks."""
        if self.by_depth:
            return self.depth * self.itemsize + 16
        return self.rows * self.itemsize + (32 if self.itemsize == 4 else 16)

    @property
    def nbytes(self) -> int:
        """Local memory of a tile."""
        return self.pitch * (self.rows if self.by_depth else self.depth)

    @property
    def along(self) -> bool:
        """Whether neighbouring work-items copy what lies along the depth."""
        return along_depth(self.side) if self.way == "elements" else self.by_depth

    @property
    def lines(self) -> int:
        """Lines of pieces: rows, or steps of the depth."""
        return self.rows if self.along else self.depth

    @property
    def pieces(self) -> int:
        """Pieces of a line."""
        return (self.depth if self.along else self.rows) // self.vector

    def place(self, row: str, depth: str) -> str:
        """Byte offset of an element within the tile."""
        line, inner = (row, depth) if self.by_depth else (depth, row)
        return f"({line}) * {self.pitch} + ({inner}) * {self.itemsize}"


class Tile(Tiling):
    """A contraction with the numbers of one configuration, for the instructions of sub-groups."""

    @property
    def tile_k(self) -> int:
        """Depth of a step."""
        return self.configuration.integer("tile_k")

    @property
    def warps_m(self) -> int:
        """Sub-groups along the rows."""
        return self.configuration.integer("warps_m")

    @property
    def warps_n(self) -> int:
        """Sub-groups along the columns."""
        return self.configuration.integer("warps_n")

    @property
    def unit(self) -> MatrixUnit:
        """The device's instructions."""
        assert self.target.matrix is not None
        return self.target.matrix

    @property
    def instruction(self) -> MatrixInstruction:
        """The instruction for the products."""
        found = instruction(self.target, self.products)
        assert found is not None
        return found

    @property
    def a(self) -> Loaded:
        """The operand with the rows."""
        return Loaded(self.sides[0], "a", str(self.configuration["load_a"]), self.tile_m, self.tile_k)

    @property
    def b(self) -> Loaded:
        """The operand with the columns."""
        return Loaded(self.sides[1], "b", str(self.configuration["load_b"]), self.tile_n, self.tile_k)

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.warps_m * self.warps_n * self.instruction.lanes

    @property
    def blocks(self) -> tuple[int, int]:
        """Instructions of a sub-group along rows and columns."""
        return (
            self.tile_m // (self.warps_m * self.instruction.m),
            self.tile_n // (self.warps_n * self.instruction.n),
        )

    @property
    def steps(self) -> int:
        """Tiles of the depth."""
        return ceil_div(self.c.k, self.tile_k)

    @property
    def groups(self) -> int:
        """Work-groups of the launch."""
        rows, columns = self.grid
        return rows * columns * self.c.g

    @property
    def registers(self) -> int:
        """(guess) Registers of a work-item beside addresses: sums, and fragments of one step of the instruction."""
        rows, columns = self.blocks
        i = self.instruction
        sums = rows * columns * i.c.count
        fragments = rows * i.a.count + columns * i.b.count
        return 2 * (sums + fragments) if self.products.splits else sums + fragments

    @property
    def stage_bytes(self) -> int:
        """Local memory of a stage."""
        return self.a.nbytes + self.b.nbytes

    @property
    def local_bytes(self) -> int:
        """Local memory of a work-group; results are laid out where the stages were."""
        return max(self.pipeline_bytes, self.result_bytes)

    @property
    def pipeline_bytes(self) -> int:
        """Local memory of all stages."""
        return self.stages * self.stage_bytes

    @property
    def result_bytes(self) -> int:
        """Local memory in which results are laid out."""
        return self.warps_m * self.warps_n * self.instruction.m * PITCH * 4

    def panels(self, operand: Loaded) -> Panels:
        """An operand's panels."""
        return Panels(operand.side, self.program, f"panels_{operand.which}", operand.rows, operand.depth, self.ctype)

    def factor(self, which: str, row: str, helpers: dict[str, str]) -> str:
        """C expression of an operand's element at (group, row, depth), from where the kernel has it."""
        operand = self.a if which == "a" else self.b
        if operand.way == "panels":
            panels = self.panels(operand)
            return f"{argument(panels.name)}[{panels.address(row, 'depth')}]"
        return element(self.c, operand.side.operand.value, NAMES, self.program, helpers)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The buffers of the kernel, in order: what the epilogue reads, what is loaded, what is written."""
        found = [r.tensor for r in self.c.epilogue_reads()]
        for operand in (self.a, self.b):
            own = [r.tensor for r in reads(operand.side.operand.value)]
            found += [f"panels_{operand.which}"] if operand.way == "panels" else own
        return tuple(dict.fromkeys([*found, self.c.statement.target]))


def instruction(target: Target, found: Products) -> MatrixInstruction | None:
    """The device's instruction for a kind of products."""
    every = target.matrix.instructions if target.matrix is not None else ()
    return next((i for i in every if i.products == found.instruction and i.operand is found.operand), None)
