"""The checked tensor program: what was meant, with every name resolved and every size known.

A Program is frozen and hashable. The text of the language (`syntax.py`) becomes one in `check.py`; the operator
library and fusion build them from the same nodes. Families read Programs and write OpenCL C.

    Program      name, tensors, statements
    Statement    target[indices] = value          one output element per index tuple
    Expr         Const | Read | Inside | IndexValue | Call | Cast | Reduce       (a closed set)

Index expressions are `Affine` in the loop indices; what is not (`h / 2`, `ids[n]`) stands in them as a `Computed` term.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import is_
from typing import Union

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.hashing import hashed_once

GENERATOR_VERSION = "2"
"""Changes whenever the same Program and configuration would give a different kernel."""
OLDER_GENERATORS = ("1",)
"""Versions whose winners are still good guesses, the newest first."""


@hashed_once
@dataclass(frozen=True)
class Tensor:
    """A tensor in device memory: logical shape plus where each element lies.

    ``strides`` (in elements, per dimension) and ``offset`` say the memory layout: channels-last is a permutation of
    strides, a slice of a concatenation is an offset. Programs are written in logical indices alone.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    pad: float = 0.0
    """Value that reads outside the shape give."""

    def __post_init__(self) -> None:
        if not self.strides and self.shape:
            object.__setattr__(self, "strides", contiguous_strides(self.shape))
        if len(self.strides) != len(self.shape):
            raise ValueError(f"tensor {self.name}: {len(self.shape)} sizes but {len(self.strides)} strides")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of memory from the start of the buffer to one past the last element."""
        if self.size == 0:
            return 0
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1

    @property
    def is_contiguous(self) -> bool:
        """True if elements lie in row-major order without gaps (size-1 dimensions ignored), from offset 0."""
        expected = contiguous_strides(self.shape)
        return self.offset == 0 and all(
            n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True)
        )

    def address(self, index: tuple[Affine, ...]) -> Affine:
        """Element address of ``self[index]`` in the buffer."""
        return Affine.weighted(index, self.strides, self.offset)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True)
class Index:
    """A loop index that runs over ``0 .. extent-1``."""

    name: str
    extent: int


@dataclass(frozen=True)
class Const:
    """A literal."""

    value: float | int | bool
    dtype: DType


@hashed_once
@dataclass(frozen=True)
class Read:
    """``tensor[index]``; outside the tensor's shape, wherever the index comes from, it gives the tensor's pad value."""

    tensor: str
    index: tuple[Affine, ...]
    dtype: DType


@hashed_once
@dataclass(frozen=True)
class Inside:
    """``inside(tensor[index])``: true where that read lies within the tensor's shape."""

    tensor: str
    index: tuple[Affine, ...]
    dtype: DType = DType.BOOL


@hashed_once
@dataclass(frozen=True)
class IndexValue:
    """An index expression used as data."""

    index: Affine
    dtype: DType = DType.I32


@hashed_once
@dataclass(frozen=True)
class Call:
    """A pointwise function of `functions.FUNCTIONS` (operators included: add, mul, lt, ...)."""

    function: str
    args: tuple[Expr, ...]
    dtype: DType


@hashed_once
@dataclass(frozen=True)
class Cast:
    """Conversion to another element type, by C's rules (towards zero for floats to integers)."""

    arg: Expr
    dtype: DType


@hashed_once
@dataclass(frozen=True)
class Reduce:
    """``kind(indices) body`` with kind one of sum, prod, max, min; over nothing it gives the kind's identity.

    A prefix reduction (a scan) has one index, which runs up to and including ``until``: the cumulative sum of
    ``x[n,k]`` along k is ``sum(j <= k) x[n,j]``.
    """

    kind: str
    indices: tuple[Index, ...]
    body: Expr
    dtype: DType
    """Type of the accumulator and of the result."""
    until: Affine | None = None
    """None: the index runs over its whole extent."""


Expr = Union[Const, Read, Inside, IndexValue, Call, Cast, Reduce]  # noqa: UP007 - recursive names need the string form


@hashed_once
@dataclass(frozen=True)
class Computed:
    """An integer expression as a term of an index expression: a quotient or remainder of indices, or what was read."""

    expr: Expr

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The loop indices it depends on."""
        return tuple(sorted(free_indices(self.expr)))

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """Itself with loop indices replaced."""
        return position(substitute_indices(self.expr, values))

    def range(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest value it can have: by interval arithmetic, else those of its type."""
        return bounds(self.expr, extents)

    def __str__(self) -> str:
        from tilewright.dsl.text import expression_text

        return expression_text(self.expr)


REDUCTION_IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


@hashed_once
@dataclass(frozen=True)
class Statement:
    """``target[indices] = value``: the indices name one element each and cover the target's whole shape."""

    target: str
    indices: tuple[Index, ...]
    value: Expr


@dataclass(frozen=True)
class Hint:
    """The values a tuner may try for one property of one index or tensor: ``tile m: 32, 64``.

    ``kind`` is tile, item (``per item``), vector, unroll or split of an index, stage of a tensor, or work_group.
    """

    kind: str
    subject: str
    """An index or a tensor; empty for work_group."""
    values: tuple[int | str, ...]
    line: str = field(default="", compare=False)
    """As it was written, for messages."""


@dataclass(frozen=True)
class Limit:
    """A ``where`` condition on configurations, as checked source text."""

    condition: str
    line: str = field(default="", compare=False)
    """As it was written, for messages."""


@hashed_once
@dataclass(frozen=True)
class Program:
    """A tensor program with concrete sizes and types.

    Statements run in order; a tensor is written by exactly one statement and never by two, and is read only after it.
    ``hints`` narrow the tuning space; ``limits`` are the text's `where` conditions on it.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    statements: tuple[Statement, ...]
    intermediates: tuple[Tensor, ...] = ()
    hints: tuple[Hint, ...] = ()
    limits: tuple[Limit, ...] = ()
    fast_math: bool = False
    """True if NaN, infinities and the last bits of functions may be given up for speed."""
    precision: str = "fp32"
    """``tf32`` if f32 factors of contractions may be rounded to 10 bits of mantissa, else ``fp32``; sums stay f32."""

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name."""
        return {t.name: t for t in (*self.inputs, *self.intermediates, *self.outputs)}

    @cached_property
    def canonical(self) -> Program:
        """The same program with its names replaced by positions, so that spelling does not matter.

        Tensors become ``t0, t1, ...`` in order of declaration, indices ``i0, i1, ...`` in order of first use; hints and
        limits follow.
        """
        names = {name: f"t{n}" for n, name in enumerate(self.tensors)}

        def tensor(t: Tensor) -> Tensor:
            return replace(t, name=names[t.name])

        orders = [{i.name: f"i{n}" for n, i in enumerate(all_indices(s))} for s in self.statements]
        statements = [
            rename_indices(replace(s, target=names[s.target]), order)
            for s, order in zip(self.statements, orders, strict=True)
        ]
        return Program(
            "program",
            tuple(map(tensor, self.inputs)),
            tuple(map(tensor, self.outputs)),
            tuple(replace(s, value=rename_tensors(s.value, names)) for s in statements),
            tuple(map(tensor, self.intermediates)),
            tuple(dict.fromkeys(new for h in self.hints for new in _renamed_hint(h, names, orders))),
            tuple(dict.fromkeys(new for x in self.limits for new in _renamed_limit(x, orders))),
            self.fast_math,
            self.precision,
        )

    @cached_property
    def signature(self) -> str:
        """Stable identity of what the program computes, on which sizes, types and memory layouts (hex, 16 digits)."""
        from tilewright.dsl.text import program_text

        return hashlib.sha256(program_text(self.canonical).encode()).hexdigest()[:16]

    @cached_property
    def structure(self) -> str:
        """Identity of the program apart from its sizes: programs of one structure differ in `sizes` alone."""
        from tilewright.dsl.text import structure_text

        return hashlib.sha256(structure_text(self.canonical).encode()).hexdigest()[:16]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The extents of all indices, statement by statement, in order of first use."""
        return tuple(i.extent for s in self.statements for i in all_indices(s))

    @property
    def operations(self) -> int:
        """Arithmetic operations of one run: pointwise functions and reduction steps, counted once per index tuple."""
        return sum(_operations(s.value, math.prod(i.extent for i in s.indices), set()) for s in self.statements)

    @property
    def bytes_moved(self) -> int:
        """Least traffic with device memory in bytes: each input read once, each output written once."""
        return sum(t.size * t.dtype.itemsize for t in (*self.inputs, *self.outputs))


def _renamed_hint(h: Hint, tensors: Mapping[str, str], orders: Iterable[Mapping[str, str]]) -> list[Hint]:
    """A hint in canonical names: one for each place that its index has in a statement."""
    if h.kind == "stage":
        return [replace(h, subject=tensors.get(h.subject, h.subject))]
    places = dict.fromkeys(order[h.subject] for order in orders if h.subject in order)
    return [replace(h, subject=place) for place in places] or [h]


_PROPERTY = re.compile(r"\b(tile|item|vector|unroll|split)_(\w+)")


def rename_limit(limit: Limit, names: Mapping[str, str]) -> Limit:
    """Rename the indices that a condition speaks of."""
    text = _PROPERTY.sub(lambda found: f"{found[1]}_{names.get(found[2], found[2])}", limit.condition)
    return replace(limit, condition=text)


def _renamed_limit(limit: Limit, orders: Iterable[Mapping[str, str]]) -> list[Limit]:
    """A condition in canonical names, once for each statement in which its indices have places of their own."""
    subjects = {subject for _, subject in _PROPERTY.findall(limit.condition)}
    found = [rename_limit(limit, order) for order in orders if subjects & order.keys()]
    return list(dict.fromkeys(found)) or [limit]


def _operations(e: Expr, times: int, done: set[Expr]) -> int:
    if isinstance(e, Reduce):
        if e in done:
            return 0
        done.add(e)
        times *= math.prod(i.extent for i in e.indices)
    own = times if isinstance(e, (Call, Reduce)) else 0
    return own + sum(_operations(c, times, done) for c in children(e))


# --- walking and rewriting ------------------------------------------------------------------------------------------


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct sub-expressions."""
    match e:
        case Call():
            return e.args
        case Read() | Inside():
            return _computed(e.index)
        case Const():
            return ()
        case Cast():
            return (e.arg,)
        case Reduce():
            return (e.body,) if e.until is None else (e.body, *_computed((e.until,)))
        case IndexValue():
            return _computed((e.index,))


def _computed(index: tuple[Affine, ...]) -> tuple[Expr, ...]:
    """The expressions of computed terms."""
    if all([position.is_linear for position in index]):
        return ()
    return tuple([a.expr for position in index for a in position.atoms if isinstance(a, Computed)])


def walk(e: Expr) -> Iterator[Expr]:
    """The expression and everything below it, parents first, left to right."""
    waiting = [e]
    while waiting:
        e = waiting.pop()
        yield e
        waiting.extend(reversed(children(e)))


def transform(e: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """Apply `change` to every node, children first; unchanged subtrees come back as the same objects."""
    match e:
        case Call():
            args = tuple([transform(a, change) for a in e.args])
            e = e if all(map(is_, args, e.args)) else Call(e.function, args, e.dtype)
        case Cast():
            arg = transform(e.arg, change)
            e = e if arg is e.arg else replace(e, arg=arg)
        case Reduce():
            body = transform(e.body, change)
            until = e.until if e.until is None or e.until.is_linear else _transformed(e.until, change)
            e = e if body is e.body and until is e.until else replace(e, body=body, until=until)
        case Read() | Inside():
            if not all(a.is_linear for a in e.index):
                e = replace(e, index=tuple(_transformed(a, change) for a in e.index))
        case IndexValue():
            if not e.index.is_linear:
                e = replace(e, index=_transformed(e.index, change))
        case _:
            pass
    return change(e)


def _transformed(a: Affine, change: Callable[[Expr], Expr]) -> Affine:
    """An index expression with `change` applied within its computed terms."""
    total = Affine((), a.constant)
    for term, c in a.terms:
        value = position(transform(term.expr, change)) if isinstance(term, Computed) else Affine(((term, 1),))
        total = total + value * c
    return total


def substitute_indices(e: Expr, values: Mapping[str, Affine]) -> Expr:
    """Replace loop indices in every index expression; reduction indices themselves keep their names."""
    match e:
        case Read() | Inside():
            index = tuple([a.substitute(values) for a in e.index])
            return e if all(map(is_, index, e.index)) else type(e)(e.tensor, index, e.dtype)
        case IndexValue():
            return replace(e, index=e.index.substitute(values))
        case Call():
            args = tuple([substitute_indices(a, values) for a in e.args])
            return e if all(map(is_, args, e.args)) else Call(e.function, args, e.dtype)
        case Cast():
            arg = substitute_indices(e.arg, values)
            return e if arg is e.arg else replace(e, arg=arg)
        case Reduce():
            body = substitute_indices(e.body, values)
            until = None if e.until is None else e.until.substitute(values)
            return e if body is e.body and until == e.until else replace(e, body=body, until=until)
        case Const():
            return e


def rename_reductions(e: Expr, names: Mapping[str, str]) -> Expr:
    """Rename the indices that reductions of `e` bind, and their uses."""

    def change(node: Expr) -> Expr:
        if isinstance(node, Reduce):
            return replace(node, indices=tuple(replace(i, name=names.get(i.name, i.name)) for i in node.indices))
        return node

    return transform(substitute_indices(e, {old: Affine.index(new) for old, new in names.items()}), change)


def rename_indices(s: Statement, names: Mapping[str, str]) -> Statement:
    """Rename any of a statement's indices, the output's and the reductions'."""
    indices = tuple(replace(i, name=names.get(i.name, i.name)) for i in s.indices)
    return Statement(s.target, indices, rename_reductions(s.value, names))


def rename_tensors(e: Expr, names: Mapping[str, str]) -> Expr:
    """Rename the tensors that are read."""

    def change(node: Expr) -> Expr:
        if isinstance(node, Read | Inside) and node.tensor in names:
            return type(node)(names[node.tensor], node.index, node.dtype)
        return node

    return transform(e, change)


def all_indices(s: Statement) -> tuple[Index, ...]:
    """Output indices, then reduction indices in order of appearance.

    Names are unique within a statement, but for a reduction that occurs twice as a whole: that is computed once.
    """
    return tuple(dict.fromkeys((*s.indices, *(i for e in walk(s.value) if isinstance(e, Reduce) for i in e.indices))))


def extents(s: Statement) -> dict[str, int]:
    """Extent of every index of the statement."""
    return {i.name: i.extent for i in all_indices(s)}


def reads(e: Expr) -> list[Read]:
    """All reads below `e`, in order."""
    return [n for n in walk(e) if isinstance(n, Read)]


def checked_dimensions(index: tuple[Affine, ...], shape: tuple[int, ...], extent: Mapping[str, int]) -> tuple[int, ...]:
    """The dimensions in which this read can leave the tensor and so needs a range check."""
    needed = []
    for d, (position, size) in enumerate(zip(index, shape, strict=True)):
        low, high = position.range(extent)
        if low < 0 or high >= size:
            needed.append(d)
    return tuple(needed)


def free_indices(e: Expr) -> frozenset[str]:
    """The indices that occur in `e`, apart from those that its own reductions bind."""
    own = {i.name for n in walk(e) if isinstance(n, Reduce) for i in n.indices}
    used: set[str] = set()
    for n in walk(e):
        match n:
            case Read() | Inside():
                used.update(name for a in n.index for name in a.names)
            case IndexValue():
                used.update(n.index.names)
            case Reduce(until=Affine() as until):
                used.update(until.names)
            case _:
                pass
    return frozenset(used - own)


def uses_only(e: Expr, names: frozenset[str]) -> bool:
    """True if every index that occurs in `e` (outside its own reductions) is in `names`."""
    return free_indices(e) <= names


# --- computed index expressions --------------------------------------------------------------------------------------


def is_linear(e: Expr) -> bool:
    """True if every index expression below `e` is linear in loop indices and no reduction is a prefix."""
    for n in walk(e):
        match n:
            case Read() | Inside():
                if not all(a.is_linear for a in n.index):
                    return False
            case IndexValue():
                if not n.index.is_linear:
                    return False
            case Reduce(until=Affine()):
                return False
            case _:
                pass
    return True


def position(e: Expr, extents: Mapping[str, int] | None = None) -> Affine:
    """An integer expression as an index expression: linear as far as it can be seen, the rest as computed terms.

    With ``extents``, quotients and remainders are resolved where the ranges decide them: ``(4*h + r) / 4`` is h for an
    index r of extent 4.
    """
    match e:
        case IndexValue():
            return _resolved(e.index, extents) if extents is not None and not e.index.is_linear else e.index
        case Const():
            return Affine((), int(e.value))
        case Call(function="add" | "sub"):
            left, right = (position(a, extents) for a in e.args)
            return left + right * (1 if e.function == "add" else -1)
        case Call(function="neg"):
            return position(e.args[0], extents) * -1
        case Call(function="mul"):
            left, right = (position(a, extents) for a in e.args)
            if not left.terms or not right.terms:
                return left * right.constant if not right.terms else right * left.constant
        case Call(function="floordiv" | "mod", args=(_, Const(value=divisor))) if int(divisor) > 0:
            return _quotient(e, position(e.args[0], extents), int(divisor), extents)
        case Cast() if not e.dtype.is_float and isinstance(e.arg, IndexValue | Const) and e.dtype.itemsize >= 4:
            return position(e.arg, extents)
        case _:
            pass
    return Affine.atom(Computed(e))


def _resolved(a: Affine, extents: Mapping[str, int]) -> Affine:
    total = Affine((), a.constant)
    for term, c in a.terms:
        total = total + (position(term.expr, extents) if isinstance(term, Computed) else Affine(((term, 1),))) * c
    return total


def _quotient(e: Call, a: Affine, divisor: int, extents: Mapping[str, int] | None) -> Affine:
    """``a / divisor`` rounded down or ``a mod divisor``, as `e` says: linear but for what ranges do not decide."""
    if divisor == 1:
        return a if e.function == "floordiv" else Affine((), 0)
    multiple = Affine(tuple((t, c // divisor) for t, c in a.terms if c % divisor == 0), a.constant // divisor)
    rest = Affine(tuple((t, c) for t, c in a.terms if c % divisor), a.constant % divisor)
    low, high = 0, divisor
    if not rest.terms:
        high = 0
    elif extents is not None and all(name in extents for name in rest.names):
        low, high = rest.range(extents)
    if low < 0 or high >= divisor:
        left = replace(e, args=(IndexValue(rest, e.args[0].dtype), e.args[1]))
        rest, carried = (Affine((), 0), Affine.atom(Computed(left)))
    else:
        carried = Affine((), 0)
    return multiple + carried if e.function == "floordiv" else rest + carried


def bounds(e: Expr, extents: Mapping[str, int]) -> tuple[int, int]:
    """Smallest and largest value of an integer expression, as far as its form tells (extents >= 1)."""
    found: tuple[int, int] | None
    match e:
        case Const():
            return int(e.value), int(e.value)
        case IndexValue():
            return e.index.range(extents)
        case Cast() if not e.dtype.is_float and not e.arg.dtype.is_float:
            found = bounds(e.arg, extents)
        case Call(function="where"):
            (a, b), (c, d) = (bounds(x, extents) for x in e.args[1:])
            found = min(a, c), max(b, d)
        case _:
            found = _exact_bounds(e, extents)
    low, high = _type_bounds(e.dtype)
    return found if found is not None and low <= found[0] and found[1] <= high else (low, high)


def _type_bounds(dtype: DType) -> tuple[int, int]:
    if dtype is DType.BOOL:
        return 0, 1
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _exact_bounds(e: Expr, extents: Mapping[str, int]) -> tuple[int, int] | None:
    """The range of an integer operation's exact result, which its type may not hold; None where that is not known."""
    if isinstance(e, IndexValue):
        return e.index.range(extents)
    if not isinstance(e, Call) or e.dtype.is_float or e.function not in _INTERVALS:
        return None
    return _interval(e.function, *(bounds(a, extents) for a in e.args))


def overflows(e: Expr, extents: Mapping[str, int]) -> bool:
    """Whether an integer below `e` may leave its type's range, and so wrap around."""
    for n in walk(e):
        found = _exact_bounds(n, extents)
        if found is not None:
            low, high = _type_bounds(n.dtype)
            if found[0] < low or found[1] > high:
                return True
    return False


_INTERVALS = ("add", "sub", "mul", "min", "max", "floordiv", "mod")


def _interval(function: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int] | None:
    """The range of a function of two integers in given ranges; None where the type's own is the answer."""
    match function:
        case "add":
            return a[0] + b[0], a[1] + b[1]
        case "sub":
            return a[0] - b[1], a[1] - b[0]
        case "mul":
            corners = [x * y for x in a for y in b]
            return min(corners), max(corners)
        case "min":
            return min(a[0], b[0]), min(a[1], b[1])
        case "max":
            return max(a[0], b[0]), max(a[1], b[1])
        case "floordiv" if b[0] > 0:
            corners = [x // y for x in a for y in b]
            return min(corners), max(corners)
        case "mod" if b[0] > 0:
            return (a[0], a[1]) if a[0] >= 0 and a[1] < b[0] else (0, b[1] - 1)
        case _:
            return None


__all__ = [
    "GENERATOR_VERSION",
    "OLDER_GENERATORS",
    "REDUCTION_IDENTITY",
    "Call",
    "Cast",
    "Computed",
    "Const",
    "Expr",
    "Hint",
    "Index",
    "IndexValue",
    "Inside",
    "Limit",
    "Program",
    "Read",
    "Reduce",
    "Statement",
    "Tensor",
    "all_indices",
    "bounds",
    "checked_dimensions",
    "children",
    "contiguous_strides",
    "extents",
    "free_indices",
    "is_linear",
    "overflows",
    "position",
    "reads",
    "rename_indices",
    "rename_limit",
    "rename_reductions",
    "rename_tensors",
    "substitute_indices",
    "transform",
    "uses_only",
    "walk",
]
