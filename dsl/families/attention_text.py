"""What the kernels of one pass over keys have in common, on CPUs and GPUs: names, reads, bounds, exponentials."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention_algebra import KEY, bounds_of
from tilewright.dsl.families.attention_form import Attention
from tilewright.dsl.families.attention_pass import DEPTH
from tilewright.dsl.families.contraction import parted
from tilewright.dsl.families.shared import decode
from tilewright.dsl.program import (
    Call,
    Const,
    Expr,
    Index,
    IndexValue,
    Read,
    Reduce,
    checked_dimensions,
    position,
)
from tilewright.dsl.writer import LANE, Expressions, Names, Source, affine, lanes_read, literal, variable

FLAT = "~row"
"""Pseudo index: the row, counted over all row indices together."""


def names_of(a: Attention) -> dict[str, str]:
    """The C variable of each index."""
    return {
        **{i.name: variable(i.name) for i in (*a.batch, *a.rows)},
        a.column.name: "column",
        KEY: "key",
        DEPTH: "depth",
        FLAT: "row",
    }


def base_address(a: Attention, read: Read, along: Index, helpers: dict[str, str]) -> str:
    """C text of where a read in place starts: its address at key 0 and at 0 of `along`."""
    tensors = a.program.tensors
    base, _ = parted(tensors[read.tensor].address(read.index), (KEY, along.name))
    return affine(base, Names(names_of(a), tensors, a.extents(), helpers))


def expressions(
    a: Attention,
    lanes: int,
    helpers: dict[str, str],
    names: Mapping[str, str],
    extent: Mapping[str, int],
    source: Source | None = None,
    prefix: str = "x",
    dot: str = "",
    results: Mapping[Read, str] | None = None,
) -> Expressions:
    """A renderer of `lanes` elements along `LANE`.

    ``extent`` says how far each C variable runs, for range checks; ``dot`` is the variable of the score's product,
    ``results`` are those of `MAXIMUM`, `TOTAL`, `PRODUCT` and whatever else stands in for something.
    """
    tensors = a.program.tensors
    reach = {**extent, LANE: lanes}
    variables = Names(names, tensors, reach, helpers)
    known = results or {}

    def read(e: Read) -> str:
        if e in known:
            return known[e]
        tensor = tensors[e.tensor]
        return lanes_read(e, tensor, variables, checked_dimensions(e.index, tensor.shape, reach), lanes)

    def reduce(_: Reduce) -> str:
        return dot

    return Expressions(read, variables, tensors, reduce, lanes, helpers, source, prefix, reach, a.program.fast_math)


def along_lanes(name: str) -> dict[str, Affine]:
    """The substitution that makes an index run along the lanes of a vector."""
    return {name: Affine.of({name: 1, LANE: 1})}


def rows_along_lanes(a: Attention, extent: Mapping[str, int]) -> dict[str, Affine]:
    """The substitution that makes the rows run along the lanes, from row `FLAT` on."""
    flat = Affine.of({FLAT: 1, LANE: 1})
    if len(a.rows) == 1:
        return {a.rows[0].name: flat}
    places = {}
    below = a.m
    for number, i in enumerate(a.rows):
        below //= i.extent
        part = _called("floordiv", IndexValue(flat), below)
        places[i.name] = position(part if number == 0 else _called("mod", part, i.extent), extent)
    return places


def _called(function: str, e: Expr, number: int) -> Expr:
    return Call(function, (e, Const(number, DType.I32)), DType.I32)


def declare_rows(a: Attention, source: Source, flat: str, ctype: str) -> None:
    """Declare the C variables of the row indices from the variable of the flat row."""
    decode(source, flat, [(variable(i.name), i.extent) for i in a.rows], ctype)


def declare_batch(a: Attention, source: Source, flat: str, ctype: str) -> None:
    """Declare the C variables of the batch indices."""
    decode(source, flat, [(variable(i.name), i.extent) for i in a.batch], ctype)


def declare_range(a: Attention, source: Source, rows: int, block: int, step: int, ctype: str) -> None:
    """Declare `first_key` (a multiple of `block`) and `end_key` (of `step`, unless it is the number of keys).

    No key outside counts for any of the `rows` rows from the variable `row0` on.
    """
    bounds = bounds_of(a.score)
    ends = [f"{extreme(a, bound, rows, True, ctype)} + 1" for bound in bounds.last]
    starts = [extreme(a, bound, rows, False, ctype) for bound in bounds.first]
    end, start = str(a.n), "0"
    for text in ends:
        rounded = text if step == 1 else f"({text} + {step - 1}) / {step} * {step}"
        end = f"min(({ctype})({end}), max(({ctype})0, ({ctype})({rounded})))"
    for text in starts:
        start = f"max(({ctype})({start}), ({ctype})({text}) / {block} * {block})"
    source.line(f"const {ctype} first_key = {start}, end_key = {end};")


def extreme(a: Attention, bound: Affine, rows: int, largest: bool, ctype: str) -> str:
    """The C text of a bound at the row of a block where it is largest or smallest."""
    names = names_of(a)
    total = bound
    texts: list[str] = []
    for i in a.rows:
        c = bound.coefficient(i.name)
        total = total.without(i.name)
        if not c:
            continue
        high = (c > 0) is largest
        if len(a.rows) == 1:
            at = f"min(row0 + {rows - 1}, ({ctype}){a.m - 1})" if high else "row0"
        else:
            at = str(i.extent - 1) if high else "0"
        texts.append(f"{c} * {at}")
    return " + ".join([f"({affine(total, names)})", *texts])


def weight(a: Attention, score: str, maximum: str, vector: str, in_base_two: bool = False) -> str:
    """C text of the weight of a score, relative to a maximum.

    With ``in_base_two`` exp(x) is exp2(x / log(2)), which GPUs have an instruction for. That moves a weight of
    exp(-x) by a part of about x * 2**-24.
    """
    exponential, factor = a.exponential, a.factor
    if in_base_two and exponential == "exp":
        exponential, factor = "exp2", factor / math.log(2)
    difference = f"{score} - {maximum}"
    if factor != 1.0:
        difference = f"({difference}) * ({vector})({literal(factor, DType.F32)})"
    return f"{exponential}({difference})"


def in_place(a: Attention, value: Expr, along: Index) -> Read | None:
    """The read that an operand is, if it needs no conversion check and moves evenly along the keys and `along`."""
    if not isinstance(value, Read) or not value.dtype.is_float or value.dtype is DType.F64:
        return None
    tensor = a.program.tensors[value.tensor]
    address = tensor.address(value.index)
    if checked_dimensions(value.index, tensor.shape, a.extents()) or any(address.bends(n) for n in (KEY, along.name)):
        return None
    return value
