"""What can be checked in an op before any size is known: names, functions, ranks, index expressions, order.

`check` turns a syntax tree into a Checked op: the same trees with every reduction index renamed apart, statements
sorted into size equations and assignments, hints and limits read. `specialise.py` gives it sizes and types.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, counted, listed, suggestion
from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import FUNCTIONS, OPERATOR_SIGNS
from tilewright.dsl.program import TileHint
from tilewright.dsl.syntax import Access, Application, Bound, Literal, Name, Node, Qualified, Reduction, Span

REDUCTIONS = ("sum", "prod", "max", "min", "mean", "any", "all")
"""The kinds of reduction; `max` and `min` with two or more arguments are pointwise functions."""
DTYPES = {d.value: d for d in DType}
PARAMETER_TYPES = ("int", "bool", "f16", "f32", "f64")
RESERVED = frozenset(("op", "and", "or", "not", "true", "false", "inf", "nan", "inside", "device"))
LIMIT_NAMES = ("local_bytes", "work_group", "device.local_mem", "device.max_work_group")
"""What a `where` line may speak of, beside tile_<index> and item_<index>."""

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

_CONSTANT_ONLY = {"min", "max", "pow", "div"}
_INTEGER_OPERATIONS = {"add", "sub", "mul", "neg"} | _CONSTANT_ONLY


@dataclass(frozen=True)
class TensorDeclaration:
    """A tensor as the header declares it; None stands for what is left to the arguments."""

    name: str
    dims: tuple[Node, ...] | None
    dtype: DType | None
    pad: float

    @property
    def shape(self) -> tuple[str | int, ...] | None:
        """Per dimension a size's name, an integer, or the text of an expression."""
        if self.dims is None:
            return None
        return tuple(int(d.value) if isinstance(d, Literal) else syntax.node_text(d) for d in self.dims)


@dataclass(frozen=True)
class ParameterDeclaration:
    """A compile-time constant of the header: type is one of PARAMETER_TYPES; default is None if it must be given."""

    name: str
    type: str
    default: int | float | bool | None


@dataclass(frozen=True)
class Checked:
    """An op whose names are right."""

    name: str
    inputs: tuple[TensorDeclaration, ...]
    outputs: tuple[TensorDeclaration, ...]
    parameters: tuple[ParameterDeclaration, ...]
    sizes: tuple[str, ...]
    """Names of sizes, in order of appearance in the header."""
    equations: tuple[syntax.Assignment, ...]
    statements: tuple[syntax.Assignment, ...]
    hints: tuple[TileHint, ...]
    limits: tuple[str, ...]


def check(op: syntax.Op) -> Checked:
    """Check one op; raises Problem at the first mistake."""
    return _Checker(op).run()


class _Checker:
    """One pass over an op, in the order of its text."""

    def __init__(self, op: syntax.Op) -> None:
        self.op = op
        self.names: dict[str, str] = {}
        """Every name of the header and every target, with what it is."""
        self.sizes: list[str] = []
        self.parameters: dict[str, ParameterDeclaration] = {}
        self.ranks: dict[str, int | None] = {}
        """Number of dimensions of the tensors that can be read so far (None: known from the arguments only)."""
        self.declared: dict[str, TensorDeclaration] = {}
        self.indices: set[str] = set()
        """Index names of all statements, as renamed."""

    def run(self) -> Checked:
        op = self.op
        _usable(op.name)
        self._header()
        equations: list[syntax.Assignment] = []
        statements: list[syntax.Assignment] = []
        body = [s for s in op.body if isinstance(s, syntax.Assignment)]
        for s in body:
            self._target(s)
        for s in body:
            if s.target.text in self.sizes:
                self._equation(s, [e.target.text for e in equations])
                equations.append(s)
            else:
                statements.append(_Statement(self, s).run())
        for t in op.outputs:
            if t.name.text not in self.ranks:
                raise Problem(t.name.at, f"the output {t.name.text} is never assigned")
        return Checked(
            op.name.text,
            tuple(self.declared[t.name.text] for t in op.inputs),
            tuple(self.declared[t.name.text] for t in op.outputs),
            tuple(self.parameters.values()),
            tuple(self.sizes),
            tuple(equations),
            tuple(statements),
            self._hints(),
            tuple(self._limit(s.condition) for s in op.body if isinstance(s, syntax.Limit)),
        )

    # --- header ---

    def _header(self) -> None:
        op = self.op
        for p in op.parameters:
            self._introduce(p.name, "a parameter")
            self.parameters[p.name.text] = _parameter(p)
        for t in op.inputs:
            self._introduce(t.name, "an input")
        for t in op.outputs:
            self._introduce(t.name, "an output")
            if t.pad is not None:
                raise Problem(t.pad.at, "only inputs have a pad value")
        for t in (*op.inputs, *op.outputs):
            for name in (n for d in t.dims or () for n in syntax.walk(d) if isinstance(n, Name)):
                if name.text not in self.parameters and name.text not in self.sizes:
                    self._introduce(name, "a size")
                    self.sizes.append(name.text)
        for t in (*op.inputs, *op.outputs):
            self.declared[t.name.text] = self._declaration(t)
        self.ranks = {t.name.text: None if t.dims is None else len(t.dims) for t in op.inputs}

    def _introduce(self, name: Name, what: str) -> None:
        _usable(name)
        if name.text in self.names:
            raise Problem(name.at, f"{name.text} is already {self.names[name.text]}; choose another name")
        self.names[name.text] = what

    def _declaration(self, t: syntax.Tensor) -> TensorDeclaration:
        for d in t.dims or ():
            if isinstance(d, Application) and d.function == "neg" and isinstance(d.args[0], Literal):
                raise Problem(d.at, "a size cannot be negative")
            self.integer(d, {}, "a size")
        dtype = None if t.dtype is None else _dtype(t.dtype)
        pad = t.pad.value if isinstance(t.pad, Literal) else 0.0
        return TensorDeclaration(t.name.text, t.dims, dtype, float(pad))

    # --- body ---

    def _target(self, s: syntax.Assignment) -> None:
        """Reject a target that cannot be assigned; note the name of an intermediate."""
        name = s.target.text
        what = self.names.get(name)
        if what in ("an input", "a parameter"):
            raise Problem(s.target.at, f"{name} is {what} and cannot be assigned")
        if what == "a size" and s.indices is not None:
            raise Problem(s.target.at, f"{name} is a size; a size equation has no brackets: {name} = ...")
        if what is None:
            self._introduce(s.target, "an intermediate")

    def _equation(self, s: syntax.Assignment, earlier: list[str]) -> None:
        if s.target.text in earlier:
            raise Problem(s.target.at, f"the size {s.target.text} is given twice")
        self.integer(s.value, {}, "a size equation")
        if any(isinstance(n, Name) and n.text == s.target.text for n in syntax.walk(s.value)):
            raise Problem(s.value.at, f"the size {s.target.text} is given by itself")

    def _hints(self) -> tuple[TileHint, ...]:
        hints: dict[str, TileHint] = {}
        for s in self.op.body:
            if isinstance(s, syntax.Tile):
                name = s.index.text
                if name not in self.indices:
                    raise Problem(s.index.at, f"no statement has an index {name}{suggestion(name, self.indices)}")
                if name in hints:
                    raise Problem(s.index.at, f"the tile of {name} is given twice")
                if not s.tile and not s.per_item:
                    raise Problem(s.index.at, f"tile {name} gives no values; write for example: tile {name}: 16, 32")
                hints[name] = TileHint(name, _positive(s.tile), _positive(s.per_item))
        return tuple(hints.values())

    def _limit(self, condition: Node) -> str:
        comparison = isinstance(condition, Application) and condition.function in COMPARISONS
        if not comparison or getattr(condition, "called", None) is not None:
            raise Problem(condition.at, "a where line is one comparison: where local_bytes <= device.local_mem")
        for side in syntax.children(condition):
            self._limit_side(side)
        return syntax.node_text(condition)

    def _limit_side(self, node: Node) -> None:
        match node:
            case Literal(value=int()) if not isinstance(node.value, bool):
                return
            case Name() | Qualified():
                known = {*LIMIT_NAMES, *(f"{kind}_{i}" for kind in ("tile", "item") for i in self.indices)}
                if node.text not in known:
                    raise Problem(
                        node.at,
                        f"a where line cannot speak of {node.text}{suggestion(node.text, known)}; it knows "
                        f"{listed(LIMIT_NAMES, 'and')}, tile_<index> and item_<index>",
                    )
            case Application() if node.called is None and node.function in ("add", "sub", "mul", "div", "neg", "pow"):
                for a in node.args:
                    self._limit_side(a)
            case _:
                raise Problem(node.at, "a where line compares integer arithmetic: + - * / ^ on names and integers")

    # --- integer arithmetic: sizes, index expressions ---

    def integer(self, node: Node, bound: dict[str, str], what: str) -> tuple[Node, frozenset[str]]:
        """Check that `node` is affine in the bound indices; gives it with indices renamed, and the indices it uses."""
        none: frozenset[str] = frozenset()
        match node:
            case Literal():
                if isinstance(node.value, bool) or not isinstance(node.value, int):
                    raise Problem(node.at, f"{what} is made of integers, found {syntax.node_text(node)}")
                return node, none
            case Name():
                return self._integer_name(node, bound, what)
            case Application() if node.function in _INTEGER_OPERATIONS:
                return self._integer_operation(node, bound, what)
            case Access():
                raise Problem(node.at, f"{what} cannot depend on data; reads at computed places are not supported")
            case _:
                raise Problem(node.at, f"{what} is integer arithmetic: + - * / on names and integers")

    def _integer_name(self, node: Name, bound: dict[str, str], what: str) -> tuple[Node, frozenset[str]]:
        name = node.text
        if name in bound:
            return replace(node, text=bound[name]), frozenset((bound[name],))
        parameter = self.parameters.get(name)
        if parameter is not None and parameter.type != "int":
            raise Problem(node.at, f"{what} is made of integers, but the parameter {name} is {parameter.type}")
        if parameter is None and name not in self.sizes:
            if name in self.names:
                raise Problem(node.at, f"{what} cannot depend on data, and {name} is {self.names[name]}")
            known = (*bound, *self.parameters, *self.sizes)
            raise Problem(node.at, f"no size, int parameter or index is called {name}{suggestion(name, known)}")
        return node, frozenset()

    def _integer_operation(self, node: Application, bound: dict[str, str], what: str) -> tuple[Node, frozenset[str]]:
        checked = [self.integer(a, bound, what) for a in node.args]
        used = frozenset[str]().union(*(u for _, u in checked))
        if used and node.function in _CONSTANT_ONLY:
            sign = {"div": "division of an index is", "pow": "powers of an index are"}
            what_not = sign.get(node.function, f"{node.function} of an index is")
            raise Problem(node.at, f"{what} is linear in its indices; {what_not} not supported")
        if node.function == "mul" and all(u for _, u in checked):
            raise Problem(node.at, f"{what} is linear in its indices; a product of two indices is not supported")
        if node.called is not None and not (node.function in ("min", "max") and len(node.args) >= 1):
            raise Problem(node.at, f"{what} is integer arithmetic: + - * / on names and integers")
        return replace(node, args=tuple(n for n, _ in checked)), used


class _Statement:
    """The check of one assignment."""

    def __init__(self, op: _Checker, s: syntax.Assignment) -> None:
        self.op = op
        self.s = s
        self.written = {n.text for n in syntax.walk(s.value) if isinstance(n, Name)}
        self.bound_anywhere = {
            b.value.text
            for n in syntax.walk(s.value)
            if isinstance(n, Reduction)
            for b in n.indices
            if isinstance(b.value, Name)
        }
        self.written |= self.bound_anywhere
        self.taken: set[str] = set()
        """Index names in use in this statement."""
        self.used: set[str] = set()

    def run(self) -> syntax.Assignment:
        op, s = self.op, self.s
        name = s.target.text
        if name in op.ranks:
            raise Problem(s.target.at, f"{name} is assigned twice; every tensor is assigned by one statement")
        indices, bound = self._left()
        value = self.expression(s.value, bound)
        op.indices |= self.taken
        declared = op.declared.get(name)
        rank = None if declared is None or declared.dims is None else len(declared.dims)
        op.ranks[name] = rank if indices is None else len(indices)
        return syntax.Assignment(s.target, indices, value)

    def _left(self) -> tuple[tuple[Bound, ...] | None, dict[str, str]]:
        if self.s.indices is None:
            return None, {}
        name, declared = self.s.target.text, self.op.declared.get(self.s.target.text)
        if declared is not None and declared.dims is not None and len(declared.dims) != len(self.s.indices):
            raise Problem(
                self.s.target.at,
                f"{name} is declared with {counted(len(declared.dims), 'dimension')} but has "
                f"{counted(len(self.s.indices), 'index')} here",
            )
        bound: dict[str, str] = {}
        indices = []
        for b in self.s.indices:
            if isinstance(b.value, Literal) and b.value.value == 0 and b.extent is None:
                indices.append(b)
                continue
            if not isinstance(b.value, Name):
                raise Problem(b.value.at, "the left side has bare indices, one per dimension: y[n,c] = ...")
            if b.value.text in bound:
                raise Problem(b.value.at, f"the index {b.value.text} stands twice on the left; indices there differ")
            indices.append(self._bind(b, bound))
        return tuple(indices), bound

    def _bind(self, b: Bound, bound: dict[str, str]) -> Bound:
        """Add a new index to `bound`, under a name no other index of the statement has."""
        if not isinstance(b.value, Name):
            raise Problem(b.value.at, "a reduction names bare indices: sum(k) a[m,k]")
        name = b.value.text
        if name in bound:
            raise Problem(b.value.at, f"the index {name} is already bound; choose another name for this one")
        if name in self.op.names:
            raise Problem(b.value.at, f"{name} is {self.op.names[name]}; choose another name for the index")
        _usable(b.value)
        unique, n = name, 2
        while unique in self.taken or (unique != name and (unique in self.written or unique in self.op.names)):
            unique, n = f"{name}_{n}", n + 1
        self.taken.add(unique)
        bound[name] = unique
        extent = None if b.extent is None else self.op.integer(b.extent, {}, "an extent")[0]
        return Bound(replace(b.value, text=unique), extent)

    # --- expressions ---

    def expression(self, node: Node, bound: dict[str, str]) -> Node:
        match node:
            case Literal():
                return node
            case Name():
                return self._name(node, bound)
            case Qualified():
                raise Problem(node.at, f"{node.text} can stand in a where line only")
            case Access():
                return self._access(node, bound)
            case Reduction():
                return self._reduction(node, bound)
            case Application():
                return self._application(node, bound)

    def _name(self, node: Name, bound: dict[str, str]) -> Node:
        name = node.text
        if name in bound:
            self.used.add(bound[name])
            return replace(node, text=bound[name])
        if name in self.op.parameters or name in self.op.sizes:
            return node
        if name in self.op.names:
            self._readable(node)
            rank = self.op.ranks[name]
            if self.s.indices is not None and rank:
                places = ",".join("ijklmnop"[:rank]) if rank <= 8 else "..."
                rank_text = counted(rank, "dimension")
                raise Problem(node.at, f"{name} has {rank_text}; read one element, such as {name}[{places}]")
            return node
        raise self._unknown(node, bound)

    def _unknown(self, node: Name, bound: dict[str, str]) -> Problem:
        name = node.text
        if name in self.bound_anywhere:
            return Problem(
                node.at,
                f"the index {name} is bound by a reduction that ends before here; a reduction takes one product: "
                f"put its whole body in brackets, sum({name}) (...)",
            )
        if name in FUNCTIONS or name in REDUCTIONS or name in DTYPES:
            return Problem(node.at, f"{name} is a function; its arguments follow in brackets: {name}(...)")
        known = (*bound, *self.op.names)
        return Problem(node.at, f"no tensor, size, parameter or index is called {name}{suggestion(name, known)}")

    def _readable(self, name: Name) -> None:
        """Reject a read of what is no tensor, or of a tensor that has no value yet."""
        text = name.text
        if text not in self.op.names:
            tensors = (n for n, what in self.op.names.items() if what not in ("a size", "a parameter"))
            raise Problem(name.at, f"no tensor is called {text}{suggestion(text, tensors)}")
        if text in self.op.sizes or text in self.op.parameters:
            raise Problem(name.at, f"{text} is {self.op.names[text]} and has no elements")
        if text == self.s.target.text:
            raise Problem(name.at, f"{text} is read in its own definition; assign to an intermediate first")
        if text not in self.op.ranks:
            raise Problem(name.at, f"{text} is read before it is assigned; move its statement up")

    def _access(self, node: Access, bound: dict[str, str]) -> Access:
        self._readable(node.tensor)
        name, rank = node.tensor.text, self.op.ranks[node.tensor.text]
        if rank is not None and rank != len(node.index):
            found = counted(len(node.index), "index")
            raise Problem(node.at, f"{name} has {counted(rank, 'dimension')} but is read with {found}")
        index = tuple(self._affine(i, bound) for i in node.index)
        return replace(node, index=index)

    def _affine(self, node: Node, bound: dict[str, str]) -> Node:
        for n in syntax.walk(node):
            if isinstance(n, Name) and n.text not in bound and n.text not in self.op.names:
                if n.text in self.bound_anywhere:
                    raise self._unknown(n, bound)
                raise Problem(
                    n.at,
                    f"the index {n.text} is neither on the left side nor bound by a reduction"
                    f"{suggestion(n.text, bound)}; to add over it, write sum({n.text}) in front",
                )
        checked, used = self.op.integer(node, bound, "an index")
        self.used |= used
        return checked

    def _reduction(self, node: Reduction, bound: dict[str, str]) -> Node:
        kind = node.kind.text
        if kind not in REDUCTIONS:
            if kind in FUNCTIONS or kind in DTYPES:
                raise Problem(node.body.at, f"{kind}(...) is a value; an operator such as '*' must follow it")
            near = suggestion(kind, REDUCTIONS) or f"; there are {listed(REDUCTIONS, 'and')}"
            raise Problem(node.kind.at, f"no reduction is called {kind}{near}")
        if not node.indices:
            raise Problem(node.kind.at, f"{kind}() names no index; write for example {kind}(k) a[m,k]")
        if node.chained and isinstance(node.body, Application):
            left, tail = node.body.args
            own = {b.value.text for b in node.indices if isinstance(b.value, Name)}
            if not own & _free(tail):  # the last factor stands beside this reduction, not inside
                alone = replace(node, body=left, at=Span(node.at.start, left.at.end), chained=False)
                return self.expression(replace(node.body, args=(alone, tail)), bound)
        inner = dict(bound)
        indices = tuple(self._bind(b, inner) for b in node.indices)
        body = self.expression(node.body, inner)
        for original, b in zip(node.indices, indices, strict=True):
            if isinstance(b.value, Name) and b.value.text not in self.used:
                written = syntax.node_text(original.value)
                raise Problem(original.value.at, f"the index {written} of {kind} is never used in its body")
        return Reduction(node.kind, indices, body, node.at)

    def _application(self, node: Application, bound: dict[str, str]) -> Node:
        name, count = node.function, len(node.args)
        if name == "inside":
            if count != 1 or not isinstance(node.args[0], Access):
                raise Problem(node.at, "inside takes one read: inside(x[n,p+r])")
            return replace(node, args=(self._access(node.args[0], bound),))
        if name == "index":
            self._arity(node, 1)
            return replace(node, args=(self._affine(node.args[0], bound),))
        if count == 1 and name in REDUCTIONS and node.called is not None:
            self._whole_reduction(node)
        elif name in ("max", "min"):
            if not count:
                raise Problem(node.at, f"{name}() has no arguments")
        elif name in DTYPES:
            self._arity(node, 1)
        elif name in FUNCTIONS:
            self._arity(node, FUNCTIONS[name].arity)
        else:
            raise self._no_function(node)
        return replace(node, args=tuple(self.expression(a, bound) for a in node.args))

    def _no_function(self, node: Application) -> Problem:
        name, at = node.function, node.called or node.at
        if name in self.op.names:
            brackets = (
                "" if name in self.op.parameters or name in self.op.sizes else "; its indices stand in '[' and ']'"
            )
            return Problem(at, f"{name} is {self.op.names[name]}, not a function{brackets}")
        if name in REDUCTIONS:
            return Problem(node.at, f"{name} takes one whole tensor, or indices with a body: {name}(k) a[m,k]")
        words = {*FUNCTIONS, *REDUCTIONS, *DTYPES, "inside", "index"} - {*OPERATOR_SIGNS}
        return Problem(at, f"no function is called {name}{suggestion(name, words)}")

    def _whole_reduction(self, node: Application) -> None:
        """`sum(x)` in a statement without indices; with them it most likely lacks a body."""
        kind, arg = node.function, node.args[0]
        names = self.op.names
        if isinstance(arg, Name) and arg.text not in names:
            raise Problem(
                node.at,
                f"{kind}({arg.text}) has no body: write {kind}({arg.text}) a[{arg.text}], and put a body that starts "
                f"with a sign in brackets",
            )
        if self.s.indices is not None:
            raise Problem(
                node.at, f"{kind} of a whole tensor stands in statements without indices; here write {kind}(k) x[k]"
            )

    def _arity(self, node: Application, count: int) -> None:
        if len(node.args) != count:
            raise Problem(node.at, f"{node.function} takes {counted(count, 'argument')}, found {len(node.args)}")


# --- single names and numbers -----------------------------------------------------------------------------------------


def _free(node: Node) -> set[str]:
    """The names that an expression uses, without those that its own reductions bind."""
    if isinstance(node, Name):
        return {node.text}
    names = set[str]().union(*map(_free, syntax.children(node)))
    if isinstance(node, Reduction):
        names -= {b.value.text for b in node.indices if isinstance(b.value, Name)}
    return names


def _usable(name: Name) -> None:
    if name.text in RESERVED:
        raise Problem(name.at, f"'{name.text}' is a word of the language; choose another name")


def _dtype(name: Name) -> DType:
    if name.text in DTYPES:
        return DTYPES[name.text]
    if name.text in ("int", "float"):
        raise Problem(
            name.at,
            f"'{name.text}' is no element type (those are {listed(DTYPES, 'and')}); parameters come after a ';'",
        )
    near = suggestion(name.text, DTYPES) or f"; there are {listed(DTYPES, 'and')}"
    raise Problem(name.at, f"no element type is called {name.text}{near}")


def _parameter(p: syntax.Parameter) -> ParameterDeclaration:
    kind = p.type.text
    if kind not in PARAMETER_TYPES:
        raise Problem(p.type.at, f"a parameter is {listed(PARAMETER_TYPES)}, not {kind}")
    default = p.default.value if isinstance(p.default, Literal) else None
    if p.default is not None and default is not None:
        reason = wrong_constant(default, kind)
        if reason:
            raise Problem(p.default.at, f"the parameter {p.name.text} is {kind}, but its default {reason}")
    return ParameterDeclaration(p.name.text, kind, default)


def wrong_constant(value: object, kind: str) -> str:
    """Why `value` cannot be a parameter of type `kind`, or an empty string."""
    if kind == "bool":
        return "" if isinstance(value, bool) else "is not true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is not a number"
    if kind == "int":
        if not isinstance(value, int):
            return "is not an integer"
        return "" if -(2**63) <= value < 2**63 else "does not fit in 64 bits"
    return "" if isinstance(value, float) or math.isfinite(value) else "is not finite"


def _positive(values: Iterable[Literal]) -> tuple[int, ...]:
    for v in values:
        if isinstance(v.value, bool) or not isinstance(v.value, int) or not 0 < v.value < 2**31:
            raise Problem(v.at, "a tile size is a positive integer below 2^31")
    return tuple(int(v.value) for v in values)


__all__ = [
    "COMPARISONS",
    "DTYPES",
    "LIMIT_NAMES",
    "PARAMETER_TYPES",
    "REDUCTIONS",
    "RESERVED",
    "Checked",
    "ParameterDeclaration",
    "TensorDeclaration",
    "check",
    "wrong_constant",
]
