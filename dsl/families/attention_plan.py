"""One pass over keys by matrix instructions: the numbers of a configuration, its memory, and the form of its scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.dsl.families.attention_algebra import captured, scaled
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_fragments import Products, row_registers
from tilewright.dsl.families.shared import ceil_div, round_up
from tilewright.dsl.matrix import Fragment, MatrixInstruction, MatrixUnit
from tilewright.dsl.program import Call, Const, Expr
from tilewright.dsl.target import Target
from tilewright.dsl.writer import multiply_add


@dataclass(frozen=True)
class Scores:
    """What stands between the product of an operand's elements as stored and a score.

    The operands' constant factors and those of the scores are taken together, and masks apart, where the scores'
    form allows it: then the maximum is taken of the bare products, and the factor is part of the exponential.
    """

    factor: float
    """Of the score if it is `bare`, else of the product alone."""
    bare: bool
    """True if a score is factor * product, or -inf."""
    masks: tuple[tuple[Expr, bool], ...] = ()
    """Where a score is not -inf: all of these conditions hold (or do not)."""

    @property
    def bounded(self) -> bool:
        """Whether the bounds on keys tell of every block that no mask cuts it."""
        return all(captured(e, holds) for e, holds in self.masks)


def scores_of(a: Attention) -> Scores:
    """The form of a pass's scores."""
    operands = scaled(a.query)[1] * scaled(a.keys)[1]
    e, factor = scaled(a.score)
    masks: list[tuple[Expr, bool]] = []
    while isinstance(e, Call) and e.function == "where" and factor > 0:
        condition, yes, no = e.args
        if no == Const(-math.inf, no.dtype):
            e, holds = yes, True
        elif yes == Const(-math.inf, yes.dtype):
            e, holds = no, False
        else:
            break
        masks.append((condition, holds))
        e, inner = scaled(e)
        factor *= inner
    if e == a.dot and 0 < factor * operands < math.inf:
        return Scores(factor * operands, True, tuple(masks))
    return Scores(operands, False)


def steepness(a: Attention, scores: Scores) -> float:
    """The factor of what `scores` holds within the weights, which are powers of two."""
    factor = a.factor * (scores.factor if scores.bare else 1.0)
    return factor / math.log(2) if a.exponential == "exp" else factor


def _subtracts_first(a: Attention, scores: Scores) -> bool:
    """Whether a finite score times the steepness may be infinite: a mask may have added the lowest number there is."""
    return not scores.bare and steepness(a, scores) > 1


def base_text(a: Attention, scores: Scores, top: str) -> str:
    """C text of what `weight_text` takes weights relative to, of a maximum.

    Where every score so far is -inf, weights are taken relative to 0: they are 0 then, not NaN.
    """
    return f"{top} == -INFINITY ? 0.0f : {'' if _subtracts_first(a, scores) else '-steepness * '}{top}"


def weight_text(a: Attention, scores: Scores, target: Target, score: str) -> str:
    """C text of the weight of a score relative to `base`; where no overflow is possible in one multiply-add."""
    if _subtracts_first(a, scores):
        return f"{target.exp2}(({score} - base) * steepness)"
    return f"{target.exp2}({multiply_add(target.fma, score, 'steepness', 'base')})"


@dataclass(frozen=True)
class Plan:
    """A pass with the numbers of one configuration."""

    a: Attention
    target: Target
    products: Products
    tile_m: int
    """Rows of a work-group."""
    tile_n: int
    """Keys of a block."""
    item_m: int
    """Rows of a work-item: those that a lane holds of an instruction's accumulators, once or several times."""
    split: int
    """Parts of a block that different lanes' sums are over."""
    stages: int
    """Blocks in local memory."""
    held: bool
    """True if the rows of q stay in registers."""
    ctype: str
    taken: int = 0
    """Keys of a block that are computed, where the last block has fewer than others; 0 for all."""

    @property
    def instruction(self) -> MatrixInstruction:
        return self.products.instruction

    @property
    def unit(self) -> MatrixUnit:
        assert self.target.matrix is not None
        return self.target.matrix

    @property
    def c(self) -> Fragment:
        return self.instruction.c

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's element."""
        return self.instruction.operand.itemsize

    @property
    def tiles_m(self) -> int:
        """Tiles of rows of a lane."""
        return max(1, self.item_m // len(row_registers(self.c)))

    @property
    def groups_m(self) -> int:
        """Groups of lanes along the rows."""
        return max(1, self.tile_m // (self.tiles_m * self.instruction.m))

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.instruction.lanes * self.groups_m * self.split

    @property
    def keys(self) -> int:
        """Keys of a block that one lane's sums are over, together with the lanes of its instruction."""
        return (self.taken or self.tile_n) // self.split

    @property
    def idles(self) -> bool:
        """Whether some group of lanes has no row."""
        return ceil_div(self.a.m, self.tiles_m * self.instruction.m) % self.groups_m != 0

    @property
    def tiles_n(self) -> int:
        """Tiles of keys of a lane."""
        return self.keys // self.instruction.n

    @property
    def depth(self) -> int:
        """The scores' depth, filled up with zeros."""
        return round_up(self.a.d, self.instruction.k)

    @property
    def columns(self) -> int:
        """The values' columns, filled up with zeros to what is loaded at once."""
        return round_up(self.a.e, 2 * self.instruction.n)

    @property
    def tiles_e(self) -> int:
        """Tiles of columns."""
        return self.columns // self.instruction.n

    @property
    def pitch_d(self) -> int:
        """Elements from one row of q or k to the next: 16 bytes more than a multiple of 32, against bank conflicts."""
        return round_up(self.depth, 32 // self.itemsize) + 16 // self.itemsize

    @property
    def pitch_e(self) -> int:
        """The same for v."""
        return round_up(self.columns, 32 // self.itemsize) + 16 // self.itemsize

    @property
    def exchange(self) -> int:
        """Floats that the parts of a split leave for the first of them."""
        rows = len(row_registers(self.c)) * self.tiles_m
        each = self.tiles_m * self.tiles_e * self.c.count + 2 * rows
        return (self.split - 1) * each * self.groups_m * self.instruction.lanes

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each array in local memory, multiples of 16."""
        blocks = self.stages * self.tile_n * (self.pitch_d + self.pitch_e) * self.itemsize
        return {
            "query": round_up(self.tile_m * self.pitch_d * self.itemsize, 16),
            "staged": round_up(max(blocks, 4 * self.exchange), 16),
        }

    @property
    def registers(self) -> int:
        """(guess) Registers of a lane at the loop's widest point."""
        tile = self.c.count * self.tiles_m
        scores, sums = tile * self.tiles_n, tile * self.tiles_e
        query = self.instruction.a.count * self.tiles_m * (self.depth // self.instruction.k if self.held else 1)
        return 40 + scores * (2 if self.products.splits else 1) + sums + query

    def row_text(self, offset: int, clamped: bool) -> str:
        """C text of an accumulator's row in row tile `i`; clamped, those beyond the last one repeat it."""
        text = f"row0 + (down * {self.tiles_m} + i) * {self.instruction.m} + lane_row"
        text += f" + {offset}" if offset else ""
        return f"min({text}, ({self.ctype}){self.a.m - 1})" if clamped and self.a.m % self.tile_m else text


def last_keys(p: Plan) -> int:
    """Keys of the last block that are computed: what is left, in whole instructions; all where parts share a block."""
    left = p.a.n % p.tile_n
    if p.split > 1 or not left:
        return p.tile_n
    return min(p.tile_n, round_up(left, max(2 * p.instruction.n, p.instruction.k)))
