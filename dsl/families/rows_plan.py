"""Which way the vectors of a chain over rows run, and the choices that follow from it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.rows_chain import Chain, Kept, chain_of, is_costly, is_loaded_or_costly
from tilewright.dsl.families.shared import Dimension, power_below
from tilewright.dsl.program import Program

LONGEST_SUM = 512
"""Terms up to which a sum is taken in one go; rounding errors grow with it."""


@dataclass(frozen=True)
class Plan:
    """A chain with its vectors along a row's elements, or across neighbouring rows."""

    chain: Chain
    across: bool
    """The vectors run across rows: memory is contiguous there."""
    vector: Dimension
    rows: tuple[Dimension, ...]
    """Loops over rows, apart from the vector's."""
    inner: tuple[Dimension, ...]
    """Loops over a row's elements, apart from the vector's."""

    @property
    def program(self) -> Program:
        """The program."""
        return self.chain.program

    @property
    def others(self) -> int:
        """Rows, or lines of rows that vectors run across."""
        return math.prod(d.extent for d in self.rows)

    @property
    def steps(self) -> int:
        """Elements of a row, those along its vectors not counted."""
        return math.prod(d.extent for d in self.inner)

    @property
    def register_bytes(self) -> int:
        """Size of the largest element in registers."""
        sizes = {_register_size(e.dtype) for p in self.chain.passes for e in p.reduces}
        return max(sizes | {_register_size(self.chain.program.tensors[r.tensor].dtype) for r in self.chain.reads})

    @property
    def element_bytes(self) -> int:
        """Bytes of memory per element of a row: what is read and written there, each once."""
        chain, tensors = self.chain, self.program.tensors
        moved = [tensors[r.tensor].dtype.itemsize for r in chain.reads if chain.is_wide(r)]
        moved += [tensors[t].dtype.itemsize for p in chain.passes for t in p.writes]
        return sum(moved) or 4

    def widths(self, most: int) -> tuple[int, ...]:
        """Vector widths that fit the vector's dimension."""
        return tuple(w for w in (1, 2, 4, 8, 16) if w <= min(most, power_below(self.vector.extent)))

    @functools.cached_property
    def costly(self) -> tuple[Kept, ...]:
        """What is kept where memory that was read is near: values that are costly to compute again."""
        return self.chain.kept(is_costly)

    @functools.cached_property
    def loaded(self) -> tuple[Kept, ...]:
        """What is kept where registers are plenty and memory is far: loads too."""
        return self.chain.kept(is_loaded_or_costly)

    def live_bytes(self) -> int:
        """Bytes per element of what is `loaded`, at the pass where that is most."""
        return max((self._live(p) for p in range(len(self.chain.passes))), default=0)

    def _live(self, position: int) -> int:
        return sum(_register_size(k.value.dtype) for k in self.loaded if k.first <= position < k.last)


def _register_size(dtype: DType) -> int:
    """Bytes per element of a value in registers."""
    return 4 if dtype in (DType.F16, DType.BF16, DType.BOOL) else dtype.itemsize


def plan_of(program: Program) -> Plan:
    """The plan of a program that is a chain; ValueError for any other."""
    chain = chain_of(program)
    if isinstance(chain, str):
        raise ValueError(chain)
    weights = _contiguity(chain)
    vector = max((*reversed(chain.inner), *reversed(chain.rows)), key=lambda d: weights.get(d.name, 0))
    return Plan(
        chain,
        vector in chain.rows,
        vector,
        tuple(d for d in chain.rows if d != vector),
        tuple(d for d in chain.inner if d != vector),
    )


def _contiguity(chain: Chain) -> dict[str, int]:
    """For each loop, how many accesses to memory are contiguous along it, weighted by their dimensions."""
    tensors = chain.program.tensors
    addresses = [tensors[r.tensor].address(r.index) for r in chain.reads]
    addresses += [chain.addresses[t] for p in chain.passes for t in p.writes]
    weights: dict[str, int] = {}
    for address in addresses:
        for name in address.names:
            if address.coefficient(name) == 1:
                weights[name] = weights.get(name, 0) + len(address.terms)
    return weights
