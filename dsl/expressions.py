"""Typed values of expressions within one statement: reads, functions, reductions, index expressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import count

from tilewright.dsl import syntax
from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem, counted
from tilewright.dsl.dtypes import DType
from tilewright.dsl.environment import Environment
from tilewright.dsl.program import (
    Call,
    Expr,
    Index,
    IndexValue,
    Inside,
    Read,
    Reduce,
    Statement,
    Tensor,
    children,
    free_indices,
    overflows,
    position,
    rename_reductions,
    substitute_indices,
    transform,
    walk,
)
from tilewright.dsl.reductions import LOCATIONS, MADE_OF_OTHERS, is_cheap, location, logsumexp
from tilewright.dsl.syntax import Access, Application, Assignment, Function, Literal, Name, Node, Reduction
from tilewright.dsl.values import (
    MAX_REPEATED,
    Value,
    apply,
    cast,
    converted,
    number,
    reduction,
    repeats_too_much,
    typed,
    unfit,
)
from tilewright.dsl.vocabulary import DTYPES, REDUCTIONS, SCANS

MAX_PARTS = 4_000
"""Most nodes of what a function of the text gives: one that uses its argument twice doubles it, call by call."""


@dataclass(frozen=True)
class Frame:
    """Where whole tensors are read: one position per dimension, and the size each position runs over."""

    positions: tuple[Affine, ...]
    sizes: tuple[int, ...]


class Builder(ABC):
    """Builds the values of one statement."""

    def __init__(self, work: Environment, s: Assignment) -> None:
        self.work = work
        self.s = s
        self.extents: dict[str, int] = {}
        self.scope: dict[str, Value] | None = None
        """The arguments of the text's function that is being applied; None outside of functions."""
        self.parts: dict[int, tuple[Expr, int]] = {}
        """How many nodes expressions within functions have, by identity."""
        self.kept: list[Statement] = []
        """Statements ahead of the own one: values that are used twice, and reductions within index expressions."""
        self.whole = False
        """True within an index expression: integers are computed in i32 or i64, and `/` rounds down."""
        self.taken = {n.text for n in syntax.walk(s.value) if isinstance(n, Name)}
        self.taken |= {syntax.bound_name(b).text for n in self.reductions() for b in n.indices}
        self.taken |= {b.value.text for b in s.indices or () if isinstance(b.value, Name)}

    @abstractmethod
    def whole_reduction(self, node: Application) -> Value:
        """`sum(x)` of the short form."""

    def reductions(self) -> list[Reduction]:
        """All reductions with indices."""
        return [n for n in syntax.walk(self.s.value) if isinstance(n, Reduction)]

    def fresh(self, stem: str, start: int = 0) -> str:
        """An unused index name that starts with `stem`."""
        n = start
        while f"{stem}{n}" in self.taken:
            n += 1
        self.taken.add(f"{stem}{n}")
        return f"{stem}{n}"

    def value(self, node: Node, frame: Frame | None) -> Value:
        """The typed value of an expression; whole tensors are read at the frame's positions."""
        match node:
            case Literal():
                return number(node.value)
            case Name():
                return self._whole_number(self._name(node, frame))
            case Access():
                tensor = self.work.tensors[node.tensor.text]
                read = typed(Read(tensor.name, self._index(node), tensor.dtype), self.work.storage[tensor.name])
                return self._whole_number(read)
            case Reduction():
                return self._reduction(node, frame)
            case Application():
                return self._application(node, frame)
            case _:
                raise ValueError(f"{node} was not checked")

    def _application(self, node: Application, frame: Frame | None) -> Value:
        first = node.args[0]
        if node.function == "inside" and isinstance(first, Access):
            tensor = self.work.tensors[first.tensor.text]
            if len(first.index) != len(tensor.shape):
                found = counted(len(first.index), "index")
                raise self.work.error(f"{tensor.name} has the shape {list(tensor.shape)} but is asked with {found}")
            return typed(Inside(first.tensor.text, self._index(first)))
        if node.function == "index":
            place = self._affine(first)
            low, high = place.range(self.extents)
            return typed(IndexValue(place, DType.I32 if low >= -(2**31) and high < 2**31 else DType.I64))
        if reduces(node):
            return self.whole_reduction(node)
        args = [self.value(a, frame) for a in node.args]
        if node.function in self.work.checked.functions:
            return self._called(self.work.checked.functions[node.function], args)
        value = self._applied(node, args)
        if self.scope is not None and self._parts(value.expr) > MAX_PARTS:
            raise Problem(
                node.at,
                f"with what it is applied to here, this has more than {MAX_PARTS:,} parts; assign an argument to an "
                "intermediate",
            )
        return value

    def _applied(self, node: Application, args: list[Value]) -> Value:
        if node.function in DTYPES:
            return self._whole_number(converted(args[0], DTYPES[node.function]))
        wrong = unfit(node.function, args)
        if wrong:
            raise Problem(node.at, wrong)
        if self.whole and node.function == "div" and not any(a.expr.dtype.is_float for a in args):
            return apply("floordiv", args)
        if node.function == "pow" and repeats_too_much(*args):
            raise Problem(
                node.args[0].at,
                f"a power of integers repeats its base, and this one has more than {MAX_REPEATED} parts; "
                "assign it to an intermediate",
            )
        return apply(node.function, args)

    def _called(self, function: Function, args: list[Value]) -> Value:
        """A function of the text: its body, whose names are the arguments' values."""
        outer, self.scope = self.scope, {a.text: v for a, v in zip(function.arguments, args, strict=True)}
        value = self.value(function.body, None)
        self.scope = outer
        return value

    def _parts(self, e: Expr) -> int:
        """Nodes of an expression, shared ones counted wherever they occur."""
        known = self.parts.get(id(e))
        if known is None:
            known = self.parts[id(e)] = e, 1 + sum(map(self._parts, children(e)))
        return known[1]

    def _name(self, node: Name, frame: Frame | None) -> Value:
        name = node.text
        if self.scope is not None:
            return self.scope[name]
        if name in self.extents:
            return typed(IndexValue(Affine.index(name)))
        if name in self.work.parameters:
            return self.work.parameters[name]
        if name in self.work.tensors:
            return self._whole_read(self.work.tensors[name], frame)
        size = self.work.sizes.values.get(name)
        if size is None:
            raise self.work.error(f"the size {name} is used before it is known; give it a size equation")
        return number(size)

    def _whole_read(self, tensor: Tensor, frame: Frame | None) -> Value:
        storage = self.work.storage[tensor.name]
        if frame is None:
            if tensor.shape:
                raise self.work.error(
                    f"{tensor.name} has the shape {list(tensor.shape)}; a statement with indices reads its elements"
                )
            return typed(Read(tensor.name, (), tensor.dtype), storage)
        shift = len(frame.positions) - len(tensor.shape)
        index = tuple(
            frame.positions[d + shift] if size == frame.sizes[d + shift] else Affine()
            for d, size in enumerate(tensor.shape)
        )
        return typed(Read(tensor.name, index, tensor.dtype), storage)

    # --- reductions ---

    def _reduction(self, node: Reduction, frame: Frame | None) -> Value:
        """`kind(i, j) body`, or with an end, `sum(j <= k) body`."""
        kind = SCANS.get(node.kind.text, node.kind.text)
        names = [syntax.bound_name(b).text for b in node.indices]
        indices = tuple(Index(name, self.extents[name]) for name in names)
        limit = node.indices[0].value
        if not isinstance(limit, Application):
            return self.reduce(kind, indices, self.value(node.body, frame))
        (index,) = indices
        body, end = self.value(node.body, frame), self._affine(limit.args[1])
        if limit.function in ("ge", "gt"):  # seen from the far end
            back = Affine(((index.name, -1),), index.extent - 1)
            body = replace(body, expr=substitute_indices(body.expr, {index.name: back}))
            end = end * -1 + (index.extent - 1)
        end = end + (-1 if limit.function in ("lt", "gt") else 0)
        return self._keep(reduction(kind, indices, body, end)) if self.whole else reduction(kind, indices, body, end)

    def reduce(self, kind: str, indices: tuple[Index, ...], body: Value) -> Value:
        if kind in MADE_OF_OTHERS and not is_cheap(body.expr):
            body = self._keep(replace(body, expr=cast(body.expr, body.expr.dtype.accumulator)))
        if kind in LOCATIONS:
            value = location(kind, indices, body, self._again)
        elif kind == "logsumexp":
            value = logsumexp(indices, body, self._again)
        else:
            value = reduction(kind, indices, body)
        return self._keep(value) if self.whole else value

    def _again(self, name: str) -> str:
        """An unused name for an index that takes the same values as `name`."""
        new = self.fresh(f"{name}_", 2)
        self.extents[new] = self.extents[name]
        return new

    def _keep(self, value: Value) -> Value:
        """The value by way of an intermediate with an element for each of the indices that it depends on."""
        free = free_indices(value.expr)
        indices = tuple(Index(name, n) for name, n in self.extents.items() if name in free)
        known = {*self.work.checked.names, *self.work.tensors}
        name = next(n for i in count(1) if (n := f"{self.s.target.text}_{i}") not in known)
        dtype = value.expr.dtype
        self.work.add(Tensor(name, dtype, tuple(i.extent for i in indices)), value.storage)
        self.kept.append(Statement(name, indices, renamed_apart(value.expr, self.taken | self.extents.keys())))
        return replace(value, expr=Read(name, tuple(Affine.index(i.name) for i in indices), dtype))

    # --- index expressions ---

    def _index(self, access: Access) -> tuple[Affine, ...]:
        return tuple(self._affine(i) for i in access.index)

    def _affine(self, node: Node) -> Affine:
        """An index expression: linear as far as it can be seen, the rest as computed terms."""
        value = self.work.sizes.evaluate(node, self.extents)
        if value is not None and value.is_linear:
            return value
        names = [n.text for n in syntax.walk(node) if isinstance(n, Name)]
        unknown = (n for n in names if n in self.work.checked.sizes and n not in self.work.sizes.values)
        if next(unknown, None) is not None:
            raise self.work.error(
                f"the index {syntax.node_text(node)} names a size that is not known; give it a size equation"
            )
        return position(self._whole_value(node), self.extents)

    def _whole_value(self, node: Node) -> Expr:
        """An integer-valued part of an index expression, in i32 where that cannot overflow, else in i64."""
        outer, self.whole = self.whole, True
        value = self.value(node, None).expr
        self.whole = outer
        if value.dtype.is_float:
            raise Problem(node.at, f"an index is an integer, found {value.dtype.value}; convert it, such as i32(...)")
        if overflows(value, self.extents):
            return _widened(value)
        return cast(value, DType.I32) if value.dtype is DType.BOOL else value

    def _whole_number(self, value: Value) -> Value:
        """Within an index expression integers are i32 or i64, whatever they are stored in."""
        dtype = value.expr.dtype
        if not self.whole or value.weak or dtype.is_float:
            return value
        return typed(cast(value.expr, DType.I64 if dtype in (DType.I64, DType.U32, DType.U64) else DType.I32))


def _widened(e: Expr) -> Expr:
    """An integer expression with its arithmetic in i64."""
    if isinstance(e, Call) and e.dtype in (DType.I32, DType.BOOL):
        return replace(e, args=tuple(map(_widened, e.args)), dtype=DType.I64 if e.dtype is DType.I32 else e.dtype)
    if isinstance(e, IndexValue):
        return replace(e, dtype=DType.I64)
    return cast(e, DType.I64) if e.dtype is DType.I32 else e


def reduces(node: Application) -> bool:
    """True for `sum(x)`, a reduction of the short form."""
    return node.called is not None and len(node.args) == 1 and node.function in REDUCTIONS


def renamed_apart(e: Expr, taken: set[str]) -> Expr:
    """The expression with every reduction's indices named differently from all others.

    A reduction that occurs several times, but for its indices' names, keeps one set of names: it is computed once.
    """
    seen: set[str] = set()
    known: dict[Expr, Expr] = {}

    def change(node: Expr) -> Expr:
        if not isinstance(node, Reduce):
            return node
        inner = dict.fromkeys(i.name for n in walk(node) if isinstance(n, Reduce) for i in n.indices)
        anonymous = rename_reductions(node, {name: f"#{n}" for n, name in enumerate(inner)})
        if anonymous not in known:
            names = {}
            for i in node.indices:
                name, n = i.name, 2
                while name in seen or (name != i.name and name in taken):
                    name, n = f"{i.name}_{n}", n + 1
                seen.add(name)
                names[i.name] = name
            known[anonymous] = rename_reductions(node, names) if any(a != b for a, b in names.items()) else node
        return known[anonymous]

    return transform(e, change)
