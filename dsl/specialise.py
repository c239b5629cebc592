"""A checked op plus concrete shapes, types and parameters gives a Program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tilewright.dsl import syntax
from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem, listed, suggestion
from tilewright.dsl.dtypes import DType
from tilewright.dsl.names import DTYPES, REDUCTIONS, Checked, ParameterDeclaration, TensorDeclaration, wrong_constant
from tilewright.dsl.program import (
    Const,
    Expr,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Statement,
    Tensor,
    children,
)
from tilewright.dsl.sizes import LARGEST, Extents, OpenIndex, Sizes
from tilewright.dsl.syntax import Access, Application, Assignment, Literal, Name, Node, Reduction
from tilewright.dsl.values import Kind, Value, apply, cast, converted, number, reduction, typed
from tilewright.errors import ShapeError

MAX_DEPTH = 150
"""Most levels of one statement's expression, conversions included: what passes over Programs can walk."""


def specialise(
    checked: Checked,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, DType],
    parameters: Mapping[str, int | float | bool],
    sizes: Mapping[str, int],
) -> Program:
    """See `Definition.specialise`; raises Problem where the text itself is wrong."""
    work = _Specialiser(checked)
    work.set_parameters(parameters)
    work.set_inputs(shapes, dtypes)
    work.set_sizes(sizes)
    return work.program()


@dataclass(frozen=True)
class Dim:
    """One dimension of a whole tensor in the short form: its size, and its name in the header if it has one."""

    size: int
    label: str | None = None


@dataclass(frozen=True)
class Frame:
    """Where whole tensors are read: one position per dimension, and the size each position runs over."""

    positions: tuple[Affine, ...]
    sizes: tuple[int, ...]


class _Specialiser:
    """The state of one specialisation: sizes and tensors as they become known, statement by statement."""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.op = checked.name
        self.sizes = Sizes(checked.name)
        self.parameters: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self.dims: dict[str, tuple[Dim, ...]] = {}
        self.storage: dict[str, Kind] = {}
        self.declared = {t.name: t for t in (*checked.inputs, *checked.outputs)}
        self.equations = list(checked.equations)
        self.open_dims: list[tuple[Node, int, str]] = []
        """Declared sizes that could not be checked yet: expression, size found, place."""

    def error(self, message: str) -> ShapeError:
        return ShapeError(f"op {self.op}: {message}")

    # --- arguments ---

    def set_parameters(self, given: Mapping[str, int | float | bool]) -> None:
        """Fill in the header's parameters; int ones also count as sizes."""
        declared = {p.name: p for p in self.checked.parameters}
        self._refuse_unknown(given, declared, "parameter")
        for p in declared.values():
            value = given.get(p.name, p.default)
            if value is None:
                raise self.error(f"the parameter {p.name} ({p.type}) is missing")
            reason = wrong_constant(value, p.type)
            if reason:
                raise self.error(f"the parameter {p.name} is {p.type}, but {value!r} {reason}")
            if p.type == "int":
                self.sizes.bind(p.name, int(value), f"the parameter {p.name}")
            self.parameters[p.name] = _parameter_value(p, value)

    def set_inputs(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, DType]) -> None:
        """Make the input tensors and bind the sizes that their shapes give."""
        names = [t.name for t in self.checked.inputs]
        self._refuse_unknown(shapes, names, "input")
        self._refuse_unknown(dtypes, names, "input")
        for t in self.checked.inputs:
            if t.name not in shapes:
                raise self.error(f"the input {t.name} is missing")
            shape = tuple(int(n) for n in shapes[t.name])
            if any(n < 0 for n in shape) or math.prod(shape) >= LARGEST:
                raise self.error(f"the input {t.name} has the impossible shape {list(shape)}")
            dtype = dtypes.get(t.name, t.dtype or DType.F32)
            if t.dtype is not None and dtype is not t.dtype:
                raise self.error(f"the input {t.name} should be {t.dtype.value}, found {dtype.value}")
            self._bind_dims(t, shape)
            self._add(Tensor(t.name, dtype, shape, pad=self._pad(t, dtype)), Kind(dtype))

    def set_sizes(self, sizes: Mapping[str, int]) -> None:
        """Bind the sizes that the caller gives."""
        self._refuse_unknown(sizes, self.checked.sizes, "size")
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
                raise self.error(f"the size {name} cannot be {value!r}")
            self.sizes.bind(name, value, "the argument sizes")

    def _refuse_unknown(self, given: Iterable[str], known: Iterable[str], what: str) -> None:
        known = list(known)
        for name in given:
            if name not in known:
                there = f"; there is {listed(known, 'and')}" if known else "; there is none"
                raise self.error(f"no {what} is called {str(name)!r}{suggestion(str(name), known) or there}")

    def _pad(self, t: TensorDeclaration, dtype: DType) -> float:
        """The pad value as the element type holds it; infinities become an integer type's ends."""
        if dtype.is_float or t.pad == 0:
            return t.pad
        if dtype is DType.BOOL:
            if t.pad == 1:
                return t.pad
        else:
            low, high = integer_range(dtype)
            if math.isinf(t.pad):
                return low if t.pad < 0 else high
            if t.pad == t.pad // 1 and low <= t.pad <= high:
                return t.pad
        raise self.error(f"the pad value {t.pad} of {t.name} does not exist in {dtype.value}")

    def _add(self, t: Tensor, storage: Kind) -> None:
        declared = self.declared.get(t.name)
        nodes = (None,) * len(t.shape) if declared is None or declared.dims is None else declared.dims
        labels = [n.text if isinstance(n, Name) else None for n in nodes]
        self.tensors[t.name] = t
        self.dims[t.name] = tuple(Dim(n, label) for n, label in zip(t.shape, labels, strict=True))
        self.storage[t.name] = storage

    # --- sizes ---

    def _bind_dims(self, t: TensorDeclaration, shape: tuple[int, ...]) -> None:
        """Bind or check the header's sizes of one tensor by the shape that was found."""
        if t.dims is None:
            return
        if len(t.dims) != len(shape):
            raise self.error(f"{t.name} should have {len(t.dims)} dimensions, found {len(shape)}: {list(shape)}")
        for d, (node, found) in enumerate(zip(t.dims, shape, strict=True)):
            place = f"dimension {d} of {t.name}"
            if isinstance(node, Name):
                self.sizes.bind(node.text, found, place)
            else:
                self.open_dims.append((node, found, place))
        self.check_dims()

    def check_dims(self) -> None:
        """Check the declared sizes that are expressions, as far as they can be computed."""
        still_open = []
        for node, found, place in self.open_dims:
            expected = self.sizes.integer(node)
            if expected is None:
                still_open.append((node, found, place))
            elif expected != found:
                raise self.error(f"{place} should be {_equal(node, expected)}, found {found}")
        self.open_dims = still_open

    def solve_equations(self) -> None:
        """Compute every size equation whose names are known."""
        progress = True
        while progress:
            progress = False
            for e in list(self.equations):
                value = self.sizes.integer(e.value)
                if value is None:
                    continue
                name = e.target.text
                if value < 0:
                    raise self.error(f"the size {name} = {syntax.node_text(e.value)} is negative: {value}")
                self.sizes.bind(name, value, f"the equation {name} = {syntax.node_text(e.value)}")
                self.equations.remove(e)
                progress = True
        self.check_dims()

    def declared_dims(self, target: str) -> tuple[int | None, ...] | None:
        """The sizes that the header gives a tensor, None where one is not known yet; None altogether if it gives none."""
        declared = self.declared.get(target)
        if declared is None or declared.dims is None:
            return None
        found = tuple(self.sizes.integer(d) for d in declared.dims)
        for d, (size, node) in enumerate(zip(found, declared.dims, strict=True)):
            if size is not None and size < 0:
                raise self.error(f"dimension {d} of {target} is negative: {_equal(node, size)}")
        return found

    # --- statements ---

    def program(self) -> Program:
        """Work through the statements."""
        self.solve_equations()
        statements = []
        for s in self.checked.statements:
            try:
                statements.append(_Build(self, s).statement())
            except RecursionError:  # the limits above keep it away unless the caller's own stack is nearly full
                raise Problem(s.target.at, "the expression is nested too deeply for the stack that is left") from None
            self.solve_equations()
        for e in self.equations:
            raise self.error(
                f"the size {e.target.text} = {syntax.node_text(e.value)} cannot be computed; "
                "give the sizes it names in sizes"
            )
        outputs = [t.name for t in self.checked.outputs]
        inner = [s.target for s in statements if s.target not in outputs]
        return Program(
            self.op,
            tuple(self.tensors[t.name] for t in self.checked.inputs),
            tuple(self.tensors[name] for name in outputs),
            tuple(statements),
            tuple(self.tensors[name] for name in inner),
            self.checked.hints,
            self.checked.limits,
        )

    def store(self, target: str, shape: tuple[int, ...], value: Value) -> Expr:
        """Make the target tensor; gives the value in its type."""
        declared = self.declared.get(target)
        if declared is None:  # an intermediate keeps the type it is computed in
            dtype, storage = value.expr.dtype, value.storage
        else:
            dtype = declared.dtype or value.storage.dtype
            storage = Kind(dtype)
            self._bind_dims(declared, shape)
        if math.prod(shape) >= LARGEST:
            raise self.error(f"{target} has the impossible shape {list(shape)}")
        self._add(Tensor(target, dtype, shape), storage)
        return cast(value.expr, dtype)


class _Build:
    """Builds one statement."""

    def __init__(self, work: _Specialiser, s: Assignment) -> None:
        self.work = work
        self.s = s
        self.extents: dict[str, int] = {}
        self.target: tuple[Dim, ...] | None = None
        """Shape of the target in the short form, None while it follows from the value."""
        self.frame: Frame | None = None
        """The target's own positions in the short form."""
        self.taken = {n.text for n in syntax.walk(s.value) if isinstance(n, Name)}
        self.taken |= {b.value.text for n in self._reductions() for b in n.indices if isinstance(b.value, Name)}
        self.taken |= {b.value.text for b in s.indices or () if isinstance(b.value, Name)}

    def statement(self) -> Statement:
        target = self.s.target.text
        declared = self.work.declared_dims(target)
        if self.s.indices is None:
            indices = self._whole(declared)
        else:
            indices = self._element(declared)
        # bind the target's sizes first: the value may use them as numbers
        shape = tuple(i.extent for i in indices)
        declaration = self.work.declared.get(target)
        if declaration is not None:
            self.work._bind_dims(declaration, shape)
            self.work.solve_equations()
        value = self.value(self.s.value, self.frame)
        stored = self.work.store(target, shape, value)
        if _deeper(stored, MAX_DEPTH):
            raise Problem(self.s.target.at, f"the value of {target} is nested too deeply; assign a part of it to an intermediate")
        return Statement(target, indices, stored)

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
        for r in self._reductions():
            for b in r.indices:
                if isinstance(b.value, Name):
                    wanted.append(OpenIndex(b.value.text, b.extent, None, "", b.value.at))
        inside = {id(n.args[0]) for n in syntax.walk(self.s.value) if isinstance(n, Application) and n.function == "inside"}
        accesses = []
        for n in syntax.walk(self.s.value):
            if isinstance(n, Access) and id(n) not in inside:
                tensor = self.work.tensors[n.tensor.text]
                if len(n.index) != len(tensor.shape):
                    raise self.work.error(
                        f"{tensor.name} has {len(tensor.shape)} dimensions ({list(tensor.shape)}) but is read with "
                        f"{len(n.index)} indices"
                    )
                accesses.append(n)
        shapes = {name: t.shape for name, t in self.work.tensors.items()}
        self.extents = Extents(self.work.sizes, wanted).solve(accesses, shapes)

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
        name = self.s.target.text
        if declared is not None and None not in declared:
            self.target = self._labelled(tuple(n for n in declared if n is not None))
            self._check_fits(self.shape(self.s.value), self.target)
        else:
            found = self.shape(self.s.value)
            if declared is not None:
                if len(declared) != len(found):
                    raise self.work.error(
                        f"{name} should have {len(declared)} dimensions, but its value has {len(found)}: {_sizes(found)}"
                    )
                filled = tuple(d if d is not None else f.size for d, f in zip(declared, found, strict=True))
                self._check_fits(found, self._labelled(filled))
                found = self._labelled(filled)
            self.target = found
        names = [self._fresh("i", d) for d in range(len(self.target))]
        self.extents |= {n: d.size for n, d in zip(names, self.target, strict=True)}
        self.frame = Frame(tuple(map(Affine.index, names)), tuple(d.size for d in self.target))
        return tuple(Index(n, d.size) for n, d in zip(names, self.target, strict=True))

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
                return self.target or ()
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
        dims, target = self.shape(arg), self.target or ()
        kept = self._alignment(dims, target, node)
        positions, indices = [], []
        for d, place in zip(dims, kept, strict=True):
            if place is not None and target[place].size == d.size:
                positions.append(Affine.index(self._target_index(place)))
            elif place is not None and d.size == 1:
                positions.append(Affine())
            elif place is None or target[place].size == 1:
                indices.append(Index(self._fresh("k"), d.size))
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
        return reduction(node.function, tuple(indices), body) if indices else _reduced_over_nothing(node.function, body)

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
            if other is not None and d.label and other.label and d.label != other.label and 1 not in (d.size, other.size):
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
                return self._name(node, frame)
            case Access():
                tensor = self.work.tensors[node.tensor.text]
                return typed(Read(tensor.name, self._index(node), tensor.dtype), self.work.storage[tensor.name])
            case Reduction():
                indices = tuple(
                    Index(b.value.text, self.extents[b.value.text]) for b in node.indices if isinstance(b.value, Name)
                )
                return reduction(node.kind.text, indices, self.value(node.body, frame))
            case Application():
                return self._application(node, frame)
            case _:
                raise ValueError(f"{node} was not checked")

    def _application(self, node: Application, frame: Frame | None) -> Value:
        first = node.args[0]
        if node.function == "inside" and isinstance(first, Access):
            tensor = self.work.tensors[first.tensor.text]
            if len(first.index) != len(tensor.shape):
                raise self.work.error(f"{tensor.name} has {len(tensor.shape)} dimensions: {list(tensor.shape)}")
            return typed(Inside(first.tensor.text, self._index(first)))
        if node.function == "index":
            return typed(IndexValue(self._affine(first)))
        if self._reduces(node):
            return self._whole_reduction(node)
        args = [self.value(a, frame) for a in node.args]
        if node.function in DTYPES:
            return converted(args[0], DTYPES[node.function])
        return apply(node.function, args)

    def _name(self, node: Name, frame: Frame | None) -> Value:
        name = node.text
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

    def _index(self, access: Access) -> tuple[Affine, ...]:
        return tuple(self._affine(i) for i in access.index)

    def _affine(self, node: Node) -> Affine:
        value = self.work.sizes.evaluate(node, self.extents)
        if value is None:
            raise self.work.error(
                f"the index {syntax.node_text(node)} names a size that is not known; give it a size equation"
            )
        return value


def integer_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.value.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _parameter_value(p: ParameterDeclaration, value: int | float | bool) -> Value:
    if p.type in ("int", "bool"):
        return number(value)
    dtype = DTYPES[p.type]
    return typed(Const(float(value), dtype), Kind(dtype, weak=True))


def _reduced_over_nothing(kind: str, body: Value) -> Value:
    """A reduction without indices: the value itself, in the type that the reduction would give."""
    return reduction(kind, (), body) if kind in ("any", "all", "mean") else body


def _sizes(dims: tuple[Dim, ...]) -> str:
    return str([d.size for d in dims])


def _equal(node: Node, value: int) -> str:
    return str(value) if isinstance(node, Literal) else f"{syntax.node_text(node)} = {value}"


def _deeper(e: Expr, limit: int) -> bool:
    stack = [(e, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > limit:
            return True
        stack.extend((c, depth + 1) for c in children(node))
    return False
