"""What every kernel with matrix instructions knows of its configuration: tiles, stages, operands, parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import Contraction
from tilewright.dsl.families.matrix_operands import Products, Side, products, sides
from tilewright.dsl.families.shared import ceil_div
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import argument, index_type


@dataclass(frozen=True)
class Tiling:
    """A contraction with the numbers of one configuration."""

    c: Contraction
    program: Program
    target: Target
    products: Products
    configuration: Configuration
    """Its values are read when they are needed: what lists a space asks about configurations that are open in part."""

    @classmethod
    def of(cls, c: Contraction, program: Program, target: Target, configuration: Configuration) -> Self:
        """A contraction with a configuration."""
        found = products(c, program)
        assert isinstance(found, Products)
        return cls(c, program, target, found, configuration)

    @property
    def tile_m(self) -> int:
        """Rows of a work-group's tile."""
        return self.configuration.integer("tile_m")

    @property
    def tile_n(self) -> int:
        """Columns of a work-group's tile."""
        return self.configuration.integer("tile_n")

    @property
    def stages(self) -> int:
        """Steps of the depth in local memory."""
        return self.configuration.integer("stages")

    @property
    def band(self) -> int:
        """Rows of tiles that are gone through column by column."""
        return self.configuration.integer("band")

    @property
    def ctype(self) -> str:
        """Type of addresses and flattened indices."""
        return index_type(self.program)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both operands."""
        return sides(self.c, self.products)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along rows and columns."""
        return ceil_div(self.c.m, self.tile_m), ceil_div(self.c.n, self.tile_n)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The buffers of the kernel, in order: what the epilogue reads, what is loaded, what is written."""
        raise NotImplementedError

    def dtype(self, tensor: str) -> DType:
        """Type of the elements of one of `tensors`."""
        return self.products.operand if tensor.startswith("panels_") else self.program.tensors[tensor].dtype

    @property
    def written(self) -> tuple[str, ...]:
        """Those of `tensors` that the kernel writes."""
        return (self.c.statement.target,)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The kernel's parameters in C."""
        return tuple(
            f"__global {'' if name in self.written else 'const '}{self.dtype(name).opencl}* restrict {argument(name)}"
            for name in self.tensors
        )
