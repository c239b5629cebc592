"""What matrix instructions need to know of a contraction: the kind of products, and how operands can be loaded.

tiles   a copy engine takes boxes of the operand as it lies in memory: one stride along rows and along the depth
pieces  work-items copy 16 bytes each, at addresses and under range checks of their own (implicit GEMM)
turned  work-items read elements along the rows and write 16 bytes along the depth (implicit GEMM, channels first)
panels  the operand is first written in the order of the tiles, converted and split where that is needed
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import Access, Contraction, Operand, linear_stride
from tilewright.dsl.program import Cast, Index, Program, Read, reads
from tilewright.dsl.warpgroup import MOST_STRIDE

PIECE = 16
"""Bytes that a work-item copies at once, and to whose multiples everything is aligned."""
_MOST_GROUPS = 3
"""Group indices that a tensor map has dimensions for, beside rows and depth."""


@dataclass(frozen=True)
class Products:
    """How a contraction's products are computed."""

    kind: str
    """``fp16``, ``bf16``, ``tf32``, or ``fp32`` for three TF32 products."""
    operand: DType
    """Type of the elements in local memory."""

    @property
    def instruction(self) -> str:
        """The kind of the instructions."""
        return "tf32" if self.kind == "fp32" else self.kind

    @property
    def splits(self) -> bool:
        """Whether operands are sums of two TF32 parts (Ootomo and Yokota, "Recovering single precision accuracy from
        Tensor Cores while surpassing the FP32 theoretical peak performance", 2022)."""
        return self.kind == "fp32"

    @property
    def depth(self) -> int:
        """Depth of a tile: 128 bytes of elements."""
        return 128 // self.operand.itemsize


def products(c: Contraction, program: Program) -> Products | str:
    """The kind of a contraction's products, or why the instructions cannot compute them."""
    if c.dtype is not DType.F32:
        return f"its sums are {c.dtype.value}, not f32"
    types = {_factor_type(c.a), _factor_type(c.b)}
    if types <= {DType.F16}:
        return Products("fp16", DType.F16)
    if types <= {DType.BF16}:
        return Products("bf16", DType.BF16)
    return Products("tf32" if program.precision == "tf32" else "fp32", DType.F32)


def _factor_type(operand: Operand) -> DType:
    """The narrowest type that holds an operand's elements exactly."""
    value = operand.value
    narrow = isinstance(value, Cast) and value.dtype is DType.F32 and value.arg.dtype in (DType.F16, DType.BF16)
    return value.arg.dtype if isinstance(value, Cast) and narrow else DType.F32


@dataclass(frozen=True)
class Side:
    """One operand of a contraction with its own indices: rows for A, columns for B."""

    c: Contraction
    operand: Operand
    indices: tuple[Index, ...]
    extent: int
    products: Products

    @property
    def read(self) -> Read | None:
        """The read, if the elements in memory are the operand's, unconverted."""
        read, value = self.operand.read, self.operand.value
        same = read is not None and (value == read or (isinstance(value, Cast) and value.arg == read))
        return read if same and read is not None and read.dtype is self.products.operand else None

    def place(self) -> Access:
        """Where the read goes; only where there is one."""
        assert self.read is not None
        return self.c.access(self.read)

    def aligned(self, *steps: int) -> bool:
        """Whether steps in elements are multiples of a piece."""
        return all(step * self.products.operand.itemsize % PIECE == 0 for step in steps)


def sides(c: Contraction, found: Products) -> tuple[Side, Side]:
    """Both operands."""
    return Side(c, c.a, c.rows, c.m, found), Side(c, c.b, c.columns, c.n, found)


def along_depth(side: Side) -> bool:
    """Whether an operand's smallest step in memory is along the depth rather than along its own indices."""
    places = [side.c.access(r) for r in reads(side.operand.value)]

    def least(names: list[str]) -> int:
        steps = [abs(p.address.coefficient(name)) for p in places for name in names]
        return min((s for s in steps if s), default=1 << 62)

    return least([i.name for i in side.c.depth]) < least([i.name for i in side.indices])


@dataclass(frozen=True)
class Tiles:
    """An operand as a tensor of 2 to 5 dimensions from which boxes are copied."""

    depth_major: bool
    """True if the depth is contiguous, so that a tile's rows in local memory are the operand's own."""
    sizes: tuple[int, ...]
    """Elements, fastest dimension first: depth and rows, or rows and depth; then the groups."""
    strides: tuple[int, ...]
    """Bytes, of all dimensions but the first."""
    groups: tuple[Index, ...]
    start: int
    """Element at which the tensor begins in its buffer."""


def tiles(side: Side) -> Tiles | None:
    """The operand as a tensor of boxes, or None where it is not so regular."""
    if side.read is None:
        return None
    place, c = side.place(), side.c
    if place.checks or not place.address.is_linear:
        return None
    along, across = linear_stride(place.address, c.depth), linear_stride(place.address, side.indices)
    if along is None or across is None:
        return None
    depth_major = along == 1 or c.k == 1
    if not depth_major and (across != 1 or side.products.operand is DType.F32):
        return None
    single = side.extent if depth_major else c.k
    step = (across if depth_major else along) if single > 1 else 1 << 7
    groups = tuple(i for i in c.groups if place.address.coefficient(i.name))
    steps = (step, *(place.address.coefficient(i.name) for i in groups))
    if len(groups) > _MOST_GROUPS or min(steps) <= 0 or not side.aligned(*steps, place.address.constant):
        return None
    if max(steps) * side.products.operand.itemsize >= MOST_STRIDE:
        return None
    inner = (c.k, side.extent) if depth_major else (side.extent, c.k)
    itemsize = side.products.operand.itemsize
    return Tiles(
        depth_major,
        (*inner, *(i.extent for i in groups)),
        tuple(s * itemsize for s in steps),
        groups,
        place.address.constant,
    )


def in_pieces(side: Side) -> bool:
    """Whether 16 bytes along the depth are always consecutive in memory, aligned, and inside the tensor or outside."""
    if side.read is None or not side.c.depth:
        return False
    place, inner = side.place(), side.c.depth[-1]
    if place.checks and place.tensor.pad != 0:
        return False
    others = [c for name, c in place.address.terms if name != inner.name]
    return (
        place.address.is_linear
        and place.address.coefficient(inner.name) == 1
        and inner.name not in place.checked_names
        and side.aligned(inner.extent, place.address.constant, *others)
    )


def in_turn(side: Side) -> bool:
    """Whether the elements of 16 bytes along the depth are evenly spaced, and all inside the tensor or all outside,
    while neighbouring rows lie closer together."""
    if side.read is None or not side.c.depth or not side.indices:
        return False
    place, inner = side.place(), side.c.depth[-1]
    if place.checks and place.tensor.pad != 0:
        return False
    return (
        place.address.is_linear
        and inner.name not in place.checked_names
        and side.aligned(inner.extent)
        and 0 < abs(place.address.coefficient(side.indices[-1].name)) < abs(place.address.coefficient(inner.name))
    )
