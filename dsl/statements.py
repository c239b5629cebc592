"""One statement with all sizes known around it: extents of its indices, broadcasting of whole tensors, typed value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

from tilewright.dsl import syntax
from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem, counted
from tilewright.dsl.dtypes import DType
from tilewright.dsl.environment import Dim, Environment
from tilewright.dsl.program import (
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
from tilewright.dsl.sizes import Extents, OpenIndex
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
MAX_DEPTH = 150
"""Most levels of one statement's expression, conversions included: what passes over Programs can walk."""


@dataclass(frozen=True)
class Frame:
    """Where whole tensors are read: one position per dimension, and the size each position runs over."""

    positions: tuple[Affine, ...]
    sizes: tuple[int, ...]


def build(environment: Environment, s: Assignment) -> list[Statement]:
    """The Program's statements for one assignment, the last one its own; targets become tensors of the environment."""
    work = _Build(environment, s)
    own = work.statement()
    return [*work.kept, own]


class _Build:
    """Builds one statement."""

    def __init__(self, work: Environment, s: Assignment) -> None:
        self.work = work
        self.s = s
        self.extents: dict[str, int] = {}
        self.reduced: tuple[Dim, ...] = ()
        """What whole reductions reduce to: the declared shape of the target, else a single element."""
        self.frame: Frame | None = None
        """The target's own positions in the short form."""
        self.scope: dict[str, Value] | None = None
        """The arguments of the text's function that is being applied; None outside of functions."""
        self.parts: dict[int, tuple[Expr, int]] = {}
        """How many nodes expressions within functions have, by identity."""
        self.kept: list[Statement] = []
        """Statements ahead of the own one: values that are used twice, and reductions within index expressions."""
        self.whole: DType | None = None
        """The type in which integers are computed within an index expression; None outside."""
        self.taken = {n.text for n in syntax.walk(s.value) if isinstance(n, Name)}
        self.taken |= {syntax.bound_name(b).text for n in self._reductions() for b in n.indices}
        self.taken |= {b.value.text for b in s.indices or () if isinstance(b.value, Name)}

    def statement(self) -> Statement:
        target = self.s.target.text
        declared = self.work.declared_dims(target)
        indices = self._whole(declared) if self.s.indices is None else self._element(declared)
        # bind the target's sizes first: the value may use them as numbers
        shape = tuple(i.extent for i in indices)
        declaration = self.work.declared.get(target)
        if declaration is not None:
            self.work.bind_dims(declaration, shape)
            self.work.solve_equations()
        value = self.value(self.s.value, self.frame)
        stored = self.work.store(target, shape, value)
        if any(_deeper(e, MAX_DEPTH) for e in (stored, *(k.value for k in self.kept))):
            raise Problem(
                self.s.target.at, f"the value of {target} is nested too deeply; assign a part of it to an intermediate"
            )
        return Statement(target, indices, renamed_apart(stored, self.taken | self.extents.keys()))

    # --- extents ---

    def _reductions(self) -> list[Reduction]:
        return [n for n in syntax.walk(self.s.value) if isinstance(n, Reduction)]

    def _fresh(self, stem: str, start: int = 0) -> str:
        n = start
        while f"{stem}{n}" in self.taken:
            n += 1
        self.taken.add(f"{stem}{n}")
        return f"{stem}{n}"

    def _solve(self, left: list[OpenIndex]) -> None:
        """Find the extents of all indices that the text names."""
        wanted = list(left)
        twins = {}
        for r in self._reductions():
            for b in r.indices:
                name = syntax.bound_name(b)
                if r.kind.text in SCANS and isinstance(b.extent, Name):
                    twins[name.text] = b.extent.text
                else:
                    wanted.append(OpenIndex(name.text, b.extent, None, "", name.at))
        nodes = list(syntax.walk(self.s.value))
        inside = {id(n.args[0]) for n in nodes if isinstance(n, Application) and n.function == "inside"}
        accesses = []
        for n in nodes:
            if isinstance(n, Access) and id(n) not in inside:
                tensor = self.work.tensors[n.tensor.text]
                if len(n.index) != len(tensor.shape):
                    raise self.work.error(
                        f"{tensor.name} has the shape {list(tensor.shape)} but is read with "
                        f"{counted(len(n.index), 'index')}"
                    )
                accesses.append(n)
        shapes = {name: t.shape for name, t in self.work.tensors.items()}
        self.extents = Extents(self.work.sizes, wanted, twins).solve(accesses, shapes)

    def _element(self, declared: tuple[int | None, ...] | None) -> tuple[Index, ...]:
        names, left = [], []
        for d, b in enumerate(self.s.indices or ()):
            place = f"dimension {d} of {self.s.target.text}"
            size = None if declared is None else declared[d]
            if isinstance(b.value, Name):
                names.append(b.value.text)
                left.append(OpenIndex(b.value.text, b.extent, size, place, b.value.at))
            else:
                if size not in (None, 1):
                    raise self.work.error(f"{place} has size {size}, but the statement assigns place 0 only")
                names.append(self._fresh("o"))
                self.extents[names[-1]] = 1
        fixed = dict(self.extents)
        self._solve(left)
        self.extents |= fixed
        return tuple(Index(n, self.extents[n]) for n in names)

    def _whole(self, declared: tuple[int | None, ...] | None) -> tuple[Index, ...]:
        self._solve([])
        if declared is not None and None not in declared:
            self.reduced = self._labelled(tuple(n for n in declared if n is not None))
        found = self.shape(self.s.value)
        target = found if declared is None else self._filled(declared, found)
        self._check_fits(found, target)
        names = [self._fresh("i", d) for d in range(len(target))]
        self.extents |= {n: d.size for n, d in zip(names, target, strict=True)}
        self.frame = Frame(tuple(map(Affine.index, names)), tuple(d.size for d in target))
        return tuple(Index(n, d.size) for n, d in zip(names, target, strict=True))

    def _filled(self, declared: tuple[int | None, ...], found: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """The target's shape: as declared, sizes that are not known yet from the value."""
        if None in declared and len(declared) != len(found):
            raise self.work.error(
                f"{self.s.target.text} should have {counted(len(declared), 'dimension')}, but its value has the shape "
                f"{_sizes(found)}"
            )
        aligned = (Dim(1),) * (len(declared) - len(found)) + found
        aligned = aligned[len(aligned) - len(declared) :]
        return self._labelled(tuple(f.size if d is None else d for d, f in zip(declared, aligned, strict=True)))

    def _labelled(self, sizes: tuple[int, ...]) -> tuple[Dim, ...]:
        dims = self.work.declared[self.s.target.text].dims or ()
        return tuple(Dim(n, d.text if isinstance(d, Name) else None) for n, d in zip(sizes, dims, strict=True))

    def _check_fits(self, value: tuple[Dim, ...], target: tuple[Dim, ...]) -> None:
        aligned = target[len(target) - len(value) :] if len(value) <= len(target) else None
        if aligned is None or any(v.size not in (1, t.size) for v, t in zip(value, aligned, strict=True)):
            raise self.work.error(
                f"a value of shape {_sizes(value)} does not fit {self.s.target.text} of shape {_sizes(target)}; "
                "sum(...) or another reduction brings it down to that shape"
            )

    # --- shapes of the short form ---

    def shape(self, node: Node) -> tuple[Dim, ...]:
        """Shape of a part of a short-form statement, by broadcasting."""
        match node:
            case Name() if node.text in self.work.tensors:
                return self.work.dims[node.text]
            case Application() if self._reduces(node):
                return self.reduced
            case Application() if node.function not in ("inside", "index"):
                result: tuple[Dim, ...] = ()
                for a in node.args:
                    result = self._broadcast(result, self.shape(a), node)
                return result
            case Reduction():
                return self.shape(node.body)
            case _:
                return ()

    def _reduces(self, node: Application) -> bool:
        return node.called is not None and len(node.args) == 1 and node.function in REDUCTIONS

    def _broadcast(self, a: tuple[Dim, ...], b: tuple[Dim, ...], node: Node) -> tuple[Dim, ...]:
        rank = max(len(a), len(b))
        one = Dim(1)
        result = []
        for p, q in zip((one,) * (rank - len(a)) + a, (one,) * (rank - len(b)) + b, strict=True):
            if p.size != q.size and 1 not in (p.size, q.size):
                raise self.work.error(
                    f"shapes {_sizes(a)} and {_sizes(b)} do not broadcast in {syntax.node_text(node)[:80]}"
                )
            wide = p if q.size == 1 and p.size != 1 else q
            result.append(Dim(wide.size, wide.label or (p.label if p.size == q.size else None)))
        return tuple(result)

    def _whole_reduction(self, node: Application) -> Value:
        """`sum(x)`: over the dimensions of its argument that the target lacks or has with size 1."""
        arg = node.args[0]
        dims, target = self.shape(arg), self.reduced
        kept = self._alignment(dims, target, node)
        positions, indices = [], []
        for d, place in zip(dims, kept, strict=True):
            if place is not None and target[place].size == d.size:
                positions.append(Affine.index(self._target_index(place)))
            elif place is not None and d.size == 1:
                positions.append(Affine())
            elif place is None or target[place].size == 1:
                indices.append(Index(self._fresh("k"), d.size))
                self.extents[indices[-1].name] = d.size
                positions.append(Affine.index(indices[-1].name))
            else:
                raise self.work.error(
                    f"{syntax.node_text(node)[:80]}: shape {_sizes(dims)} cannot be reduced to {_sizes(target)}"
                )
        if not indices and target and len(target) >= len(dims) and all(t.size != 1 for t in target):
            raise self.work.error(
                f"{syntax.node_text(node)[:80]} has nothing to reduce: {self.s.target.text} has the full shape "
                f"{_sizes(target)}; assign the reduction to an output or intermediate of its own"
            )
        body = self.value(arg, Frame(tuple(positions), tuple(d.size for d in dims)))
        return self._reduced(node.function, tuple(indices), body)

    def _target_index(self, place: int) -> str:
        assert self.frame is not None
        return self.frame.positions[place].names[0]

    def _alignment(self, dims: tuple[Dim, ...], target: tuple[Dim, ...], node: Node) -> list[int | None]:
        """For each dimension of a reduction's argument the target's dimension it belongs to, None for none.

        By name where the target has fewer dimensions and the header names them all; else from the right.
        """
        labels, wanted = [d.label for d in dims], [t.label for t in target]
        if len(target) < len(dims) and None not in wanted and all(labels.count(w) == 1 for w in wanted):
            return [wanted.index(label) if label in wanted else None for label in labels]
        shift = len(target) - len(dims)
        result = [d + shift if d + shift >= 0 else None for d in range(len(dims))]
        for d, place in zip(dims, result, strict=True):
            other = None if place is None else target[place]
            differ = other is not None and d.label and other.label and d.label != other.label
            if other is not None and differ and 1 not in (d.size, other.size):
                raise self.work.error(
                    f"{syntax.node_text(node)[:80]}: size {d.label} of its argument would become {other.label} of "
                    f"{self.s.target.text}; write this reduction with indices"
                )
        return result

    # --- values ---

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
            position = self._affine(first)
            low, high = position.range(self.extents)
            return typed(IndexValue(position, DType.I32 if low >= -(2**31) and high < 2**31 else DType.I64))
        if self._reduces(node):
            return self._whole_reduction(node)
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
        if self.whole is not None and node.function == "div" and not any(a.expr.dtype.is_float for a in args):
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
            return self._reduced(kind, indices, self.value(node.body, frame))
        (index,) = indices
        body, end = self.value(node.body, frame), self._affine(limit.args[1])
        if limit.function in ("ge", "gt"):  # seen from the far end
            back = Affine(((index.name, -1),), index.extent - 1)
            body = replace(body, expr=substitute_indices(body.expr, {index.name: back}))
            end = end * -1 + (index.extent - 1)
        end = end + (-1 if limit.function in ("lt", "gt") else 0)
        return self._keep(reduction(kind, indices, body, end)) if self.whole else reduction(kind, indices, body, end)

    def _reduced(self, kind: str, indices: tuple[Index, ...], body: Value) -> Value:
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
        new = self._fresh(f"{name}_", 2)
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
        outer, kept = self.whole, len(self.kept)
        for dtype in (DType.I32, DType.I64):
            self.whole = dtype
            del self.kept[kept:]
            value = self.value(node, None)
            if value.expr.dtype.is_float:
                raise Problem(
                    node.at, f"an index is an integer, found {value.expr.dtype.value}; convert it, such as i32(...)"
                )
            if not overflows(value.expr, self.extents):
                break
        self.whole = outer
        return cast(value.expr, DType.I32) if value.expr.dtype is DType.BOOL else value.expr

    def _whole_number(self, value: Value) -> Value:
        """Within an index expression integers are i32 or i64, whatever they are stored in."""
        dtype = value.expr.dtype
        if self.whole is None or value.weak or dtype.is_float:
            return value
        if isinstance(value.expr, IndexValue):
            return typed(replace(value.expr, dtype=self.whole))
        wide = self.whole is DType.I64 or dtype in (DType.I64, DType.U32, DType.U64)
        return typed(cast(value.expr, DType.I64 if wide else DType.I32))


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


def _sizes(dims: tuple[Dim, ...]) -> str:
    return str([d.size for d in dims])


def _deeper(e: Expr, limit: int) -> bool:
    stack = [(e, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > limit:
            return True
        stack.extend((c, depth + 1) for c in children(node))
    return False
