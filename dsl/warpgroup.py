"""Matrix instructions of several sub-groups together, as data: NVIDIA's warpgroup instructions (`wgmma`).

They differ from `dsl.matrix` in that operands are read from local memory by descriptor, that they run while the
work-items go on, and that large copies which feed them are started by a single work-item and counted by barriers in
local memory. Terms are those of the PTX ISA 8.5, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor-map".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute

from tilewright.dsl.dtypes import DType

MAP_WORDS = 16
"""64-bit words of a tensor map."""
MOST_STRIDE = 1 << 36
"""Bytes that a stride must lie under."""
ROW_BYTES = 128
"""Bytes of a row of an operand's tile in local memory, and of its swizzle.

The 16-byte piece p of row r lies at piece ``p ^ (r & 7)`` of its row ("128-byte swizzle"), so that eight rows at one
depth come from all banks. Tiles start at multiples of `TILE_ALIGNMENT`.
"""
TILE_ALIGNMENT = 1024
"""Bytes after which the swizzle repeats: eight rows."""
GROUP_ITEMS = 128
"""Work-items with consecutive local ids, from a multiple of it on, that execute an instruction together."""
GROUP_ROWS = 64
"""Rows of the product per instruction."""


@dataclass(frozen=True)
class WarpgroupInstruction:
    """``c[m,n] (+)= sum(k) a[m,k] * b[n,k]`` for 64 rows, as one asynchronous instruction.

    Accumulators: register ``4*j + 2*h + v`` of lane l of warp w is at row ``16*w + l/4 + 8*h``, column
    ``8*j + l%4*2 + v``.
    """

    name: str
    """The C macro ``NAME(c, a, b, add)``: float c[n/2]; descriptors a and b; sums start from 0 where `add` is 0."""
    products: str
    """``fp16``, ``bf16`` or ``tf32``."""
    operand: DType
    n: int
    k: int
    depth_major: bool
    """True if B's rows in local memory are columns of the product, False if they are depths."""
    a_in_registers: bool
    """If so, the macro is ``NAME(c, a0, a1, a2, a3, b, add)`` with 32-bit registers (`MatrixInstruction`'s layout)."""
    text: str


@dataclass(frozen=True)
class Field:
    """Some bits of a tensor map."""

    word: int
    """Which of its 16 words of 64 bits."""
    shift: int
    width: int


@dataclass(frozen=True)
class TensorMapFormat:
    """How a tensor map (the description of a tensor that copies of tiles need) is laid out in its 128 bytes.

    The first word holds the tensor's address.
    """

    constant: tuple[int, ...]
    """The 16 words of a map with 128-byte swizzle and zeros outside the tensor, all other fields 0."""
    rank: Field
    dtype: Field
    dtypes: Mapping[DType, int] = attribute(hash=False)  # a Target is a key, a dict has no hash
    sizes: tuple[Field, ...]
    """Elements per dimension, less 1."""
    strides: tuple[Field, ...]
    """Bytes / 16 per dimension but the first."""
    box: tuple[Field, ...]
    """Elements of a tile per dimension, less 1."""
    box_bytes: Field

    def words(self, dtype: DType, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]) -> list[int]:
        """The map of a tensor of `sizes` (fastest first) with `strides` in bytes of all dimensions but the first."""
        words = list(self.constant)

        def put(field: Field, value: int) -> None:
            assert 0 <= value < 1 << field.width, "a tensor of boxes is too large"
            words[field.word] |= value << field.shift

        put(self.rank, len(sizes) - 1)
        put(self.dtype, self.dtypes[dtype])
        for field, size in zip(self.sizes, [*sizes, *[1] * (5 - len(sizes))], strict=True):
            put(field, size - 1)
        for field, stride in zip(self.strides, strides, strict=False):
            put(field, stride // 16)
        for field, size in zip(self.box, [*box, *[1] * (5 - len(box))], strict=True):
            put(field, size - 1)
        put(self.box_bytes, math.prod(box) * dtype.itemsize)
        return words


@dataclass(frozen=True)
class WarpgroupUnit:
    """What a device has for them."""

    instructions: tuple[WarpgroupInstruction, ...]
    text: str
    """Macros for barriers, fences and copies; see `runtime/nvidia_wgmma.py`."""
    maps: TensorMapFormat | None = None

    def widths(self, products: str) -> tuple[int, ...]:
        """Columns of the instructions for a kind of products, ascending."""
        return tuple(sorted({i.n for i in self.instructions if i.products == products}))

    def find(self, products: str, n: int, depth_major: bool, a_in_registers: bool) -> WarpgroupInstruction:
        """The instruction of that form; StopIteration if there is none."""
        return next(
            i
            for i in self.instructions
            if (i.products, i.n, i.depth_major, i.a_in_registers) == (products, n, depth_major, a_in_registers)
        )
