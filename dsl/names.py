"""What can be checked in an op before any size is known: names, functions, ranks, index expressions, order.

`check` turns a syntax tree into a Checked op: the same trees with every reduction index renamed apart, statements
sorted into size equations and assignments, hints and limits read. `specialise.py` gives it sizes and types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tilewright.dsl import syntax, tuning
from tilewright.dsl.diagnostics import Problem, counted, listed, suggestion
from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import OPERATOR_SIGNS, SPOKEN, wrong_count
from tilewright.dsl.opcalls import Call, CheckedCall, check_call, lifted, numbers_within
from tilewright.dsl.program import Hint, Limit
from tilewright.dsl.syntax import Access, Application, Bound, Literal, Name, Node, Qualified, Reduction, Span
from tilewright.dsl.updates import with_old_values
from tilewright.dsl.userdefs import check_arity
from tilewright.dsl.vocabulary import (
    BUILT_IN,
    DTYPES,
    INDEX_OPERATIONS,
    PARAMETER_TYPES,
    PREFIX_REDUCTIONS,
    PREFIXES,
    REDUCTIONS,
    RESERVED,
    SCANS,
    SIZE_OPERATIONS,
    wrong_constant,
)


@dataclass(frozen=True)
class TensorDeclaration:
    """A tensor as the header declares it; None stands for what is left to the arguments."""

    name: str
    dims: tuple[Node, ...] | None
    dtype: DType | None
    pad: float
    old_of: str = ""
    """The output whose value from before the op this input holds; empty for the header's own inputs."""

    @property
    def argument(self) -> str:
        """What callers know it by."""
        return self.old_of or self.name

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
    statements: tuple[syntax.Assignment | CheckedCall, ...]
    hints: tuple[Hint, ...]
    limits: tuple[Limit, ...]
    fast_math: bool = False
    names: frozenset[str] = frozenset()
    """Names of all tensors, sizes and parameters."""
    functions: Mapping[str, syntax.Function] = field(default_factory=dict, hash=False)
    """The text's own functions."""


def check(op: syntax.Op, functions: Mapping[str, syntax.Function], ops: Mapping[str, Checked]) -> Checked:
    """Check one op of a text with these functions, and these ops that it may call; Problem at the first mistake."""
    return _Checker(op, functions, ops).run()


class _Checker:
    """One pass over an op, in the order of its text."""

    def __init__(self, op: syntax.Op, functions: Mapping[str, syntax.Function], ops: Mapping[str, Checked]) -> None:
        self.op, self.old = with_old_values(op)
        self.functions = functions
        self.ops = ops
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
        statements: list[syntax.Assignment | CheckedCall] = []
        body = [s for s in lifted(op, self.ops) if isinstance(s, syntax.Assignment | Call)]
        for s in body:
            self._targets(s)
        for s in body:
            if isinstance(s, Call):
                statements.append(self._call(s))
            elif s.target.text in self.sizes:
                self._equation(s, [e.target.text for e in equations])
                equations.append(s)
            else:
                statements.append(_Statement(self, s).run())
        for t in op.outputs:
            if t.name.text not in self.ranks:
                raise Problem(t.name.at, f"the output {t.name.text} is never assigned")
        tensors = [n for n, what in self.names.items() if what not in ("a size", "a parameter")]
        return Checked(
            op.name.text,
            tuple(self.declared[t.name.text] for t in op.inputs),
            tuple(self.declared[t.name.text] for t in op.outputs),
            tuple(self.parameters.values()),
            tuple(self.sizes),
            tuple(equations),
            tuple(statements),
            tuning.hints((s for s in op.body if isinstance(s, syntax.Tuning)), self.indices, tensors),
            tuple(tuning.limit(s.condition, self.indices) for s in op.body if isinstance(s, syntax.Limit)),
            any(isinstance(s, syntax.FastMath) for s in op.body),
            frozenset(self.names),
            self.functions,
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
            self.integer(d, "a size")
        dtype = None if t.dtype is None else _dtype(t.dtype)
        pad = t.pad.value if isinstance(t.pad, Literal) else 0.0
        old_of = next((name for name, old in self.old.items() if old == t.name.text), "")
        return TensorDeclaration(t.name.text, t.dims, dtype, float(pad), old_of)

    # --- body ---

    def _targets(self, s: syntax.Assignment | Call) -> None:
        """Reject targets that cannot be assigned; note the names of intermediates."""
        for target in s.targets if isinstance(s, Call) else (s.target,):
            name = target.text
            what = self.names.get(name)
            if what in ("an input", "a parameter"):
                raise Problem(target.at, f"{name} is {what} and cannot be assigned")
            if what == "a size" and isinstance(s, Call):
                raise Problem(target.at, f"{name} is a size and cannot be the output of an op")
            if what == "a size" and not isinstance(s, Call) and s.indices is not None:
                raise Problem(target.at, f"{name} is a size; a size equation has no brackets: {name} = ...")
            if what is None:
                self._introduce(target, "an intermediate")

    def _call(self, s: Call) -> CheckedCall:
        """Check a call of another op; its targets can be read from here on."""
        for target in s.targets:
            if target.text in self.ranks:
                raise Problem(target.at, f"{target.text} is assigned twice; every tensor is assigned by one statement")
        for a in s.args:
            self.readable(a, s.targets)
        for node in numbers_within(s.settings, self.parameters):
            self.integer(node, "a parameter of an op")
        checked = check_call(s, self.ops[s.op])
        for target, t in zip(s.targets, checked.callee.outputs, strict=True):
            declared = self.declared.get(target.text)
            dims = t.dims if declared is None or declared.dims is None else declared.dims
            self.ranks[target.text] = None if dims is None else len(dims)
        return checked

    def readable(self, name: Name, targets: Collection[Name]) -> None:
        """Reject a read, in a statement with these targets, of what is no tensor or has no value yet."""
        text = name.text
        if text not in self.names:
            tensors = (n for n, what in self.names.items() if what not in ("a size", "a parameter"))
            raise Problem(name.at, f"no tensor is called {text}{suggestion(text, tensors)}")
        if text in self.sizes or text in self.parameters:
            raise Problem(name.at, f"{text} is {self.names[text]} and has no elements")
        if text in (t.text for t in targets):
            raise Problem(name.at, f"{text} is read in its own definition; assign to an intermediate first")
        if text not in self.ranks:
            raise Problem(name.at, f"{text} is read before it is assigned; move its statement up")

    def _equation(self, s: syntax.Assignment, earlier: list[str]) -> None:
        if s.target.text in earlier:
            raise Problem(s.target.at, f"the size {s.target.text} is given twice")
        self.integer(s.value, "a size equation")
        if any(isinstance(n, Name) and n.text == s.target.text for n in syntax.walk(s.value)):
            raise Problem(s.value.at, f"the size {s.target.text} is given by itself")

    # --- integer arithmetic: sizes, index expressions ---

    def integer(self, node: Node, what: str) -> Node:
        """Check that `node` is arithmetic of integers, sizes and int parameters."""
        match node:
            case Literal():
                if isinstance(node.value, bool) or not isinstance(node.value, int):
                    raise Problem(node.at, f"{what} is made of integers, found {syntax.node_text(node)}")
                return node
            case Name():
                self._integer_name(node, what)
                return node
            case Application() if node.called is None and node.function in SIZE_OPERATIONS:
                return replace(node, args=tuple(self.integer(a, what) for a in node.args))
            case Application(function="min" | "max") if node.args:
                return replace(node, args=tuple(self.integer(a, what) for a in node.args))
            case Access():
                raise Problem(node.at, f"{what} cannot depend on data")
            case _:
                raise Problem(node.at, f"{what} is integer arithmetic: + - * / % on names and integers")

    def _integer_name(self, node: Name, what: str) -> None:
        name = node.text
        parameter = self.parameters.get(name)
        if parameter is not None and parameter.type != "int":
            raise Problem(node.at, f"{what} is made of integers, but the parameter {name} is {parameter.type}")
        if parameter is None and name not in self.sizes:
            if name in self.names:
                raise Problem(node.at, f"{what} cannot depend on data, and {name} is {self.names[name]}")
            known = (*self.parameters, *self.sizes)
            raise Problem(node.at, f"no size or int parameter is called {name}{suggestion(name, known)}")


class _Statement:
    """The check of one assignment."""

    def __init__(self, op: _Checker, s: syntax.Assignment) -> None:
        self.op = op
        self.s = s
        self.written = {n.text for n in syntax.walk(s.value) if isinstance(n, Name)}
        self.bound_anywhere = {
            syntax.bound_name(b).text for n in syntax.walk(s.value) if isinstance(n, Reduction) for b in n.indices
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
        extent = None if b.extent is None else self.op.integer(b.extent, "an extent")
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
        if name in BUILT_IN or name in self.op.functions:
            return Problem(node.at, f"{name} is a function; its arguments follow in brackets: {name}(...)")
        known = (*bound, *self.op.names)
        return Problem(node.at, f"no tensor, size, parameter or index is called {name}{suggestion(name, known)}")

    def _readable(self, name: Name) -> None:
        self.op.readable(name, (self.s.target,))

    def _access(self, node: Access, bound: dict[str, str]) -> Access:
        self._readable(node.tensor)
        name, rank = node.tensor.text, self.op.ranks[node.tensor.text]
        if rank is not None and rank != len(node.index):
            found = counted(len(node.index), "index")
            raise Problem(node.at, f"{name} has {counted(rank, 'dimension')} but is read with {found}")
        index = tuple(self._position(i, bound) for i in node.index)
        return replace(node, index=index)

    def _position(self, node: Node, bound: dict[str, str]) -> Node:
        """Check an index expression: arithmetic of indices, sizes and int parameters, and whatever gives integers."""
        match node:
            case Literal():
                if isinstance(node.value, bool) or not isinstance(node.value, int):
                    raise Problem(node.at, f"an index is made of integers, found {syntax.node_text(node)}")
                return node
            case Name():
                return self._position_name(node, bound)
            case Application() if node.called is None and node.function in INDEX_OPERATIONS:
                return replace(node, args=tuple(self._position(a, bound) for a in node.args))
            case _:
                return self.expression(node, bound)

    def _position_name(self, node: Name, bound: dict[str, str]) -> Node:
        name = node.text
        parameter = self.op.parameters.get(name)
        if parameter is not None and parameter.type != "int":
            raise Problem(node.at, f"an index is made of integers, but the parameter {name} is {parameter.type}")
        if name in bound or name in self.op.names:
            return self._name(node, bound)
        if name in self.bound_anywhere:
            raise self._unknown(node, bound)
        raise Problem(
            node.at,
            f"the index {name} is neither on the left side nor bound by a reduction{suggestion(name, bound)}; to add "
            f"over it, write sum({name}) in front",
        )

    def _reduction(self, node: Reduction, bound: dict[str, str]) -> Node:
        kind = node.kind.text
        if kind not in REDUCTIONS:
            if kind in SPOKEN or kind in DTYPES:
                raise Problem(node.body.at, f"{kind}(...) is a value; an operator such as '*' must follow it")
            near = suggestion(kind, REDUCTIONS) or f"; there are {listed(REDUCTIONS, 'and')}"
            raise Problem(node.kind.at, f"no reduction is called {kind}{near}")
        if not node.indices:
            raise Problem(node.kind.at, f"{kind}() names no index; write for example {kind}(k) a[m,k]")
        if node.chained and isinstance(node.body, Application):
            left, tail = node.body.args
            own = {syntax.bound_name(b).text for b in node.indices}
            if not own & _free(tail):  # the last factor stands beside this reduction, not inside
                alone = replace(node, body=left, at=Span(node.at.start, left.at.end), chained=False)
                return self.expression(replace(node.body, args=(alone, tail)), bound)
        inner = dict(bound)
        if kind in SCANS:
            indices: tuple[Bound, ...] = (self._running(node, inner),)
        else:
            indices = tuple(self._bind_some(node, b, inner) for b in node.indices)
        body = self.expression(node.body, inner)
        for original, b in zip(node.indices, indices, strict=True):
            if syntax.bound_name(b).text not in self.used:
                written = syntax.node_text(syntax.bound_name(original))
                raise Problem(original.value.at, f"the index {written} of {kind} is never used in its body")
        return Reduction(node.kind, indices, body, node.at)

    def _running(self, node: Reduction, bound: dict[str, str]) -> Bound:
        """The index of a scan, `cumsum(k) x[r,k]`: a new one in place of an index that is bound around it."""
        kind, first = node.kind.text, node.indices[0]
        if len(node.indices) != 1 or first.extent is not None or not isinstance(first.value, Name):
            raise Problem(first.value.at, f"{kind} runs along one index: y[r,k] = {kind}(k) x[r,k]")
        name = first.value.text
        if name not in bound:
            near = suggestion(name, bound)
            raise Problem(
                first.value.at,
                f"{kind} runs along an index of the left side or of a reduction around it, and {name} is none{near}",
            )
        outer = replace(first.value, text=bound.pop(name))
        new = self._bind(Bound(first.value, None), bound)
        return Bound(Application("le", (new.value, outer), first.value.at), outer)

    def _bind_some(self, node: Reduction, b: Bound, bound: dict[str, str]) -> Bound:
        """A reduction's index: bare, or with the end of its run, as `j <= k`."""
        value = b.value
        if not isinstance(value, Application) or value.called is not None or value.function not in PREFIXES:
            return self._bind(b, bound)
        name, end = value.args
        kind = node.kind.text
        if len(node.indices) != 1 or kind not in PREFIX_REDUCTIONS:
            raise Problem(
                value.at, f"an index with an end stands alone, in {listed(PREFIX_REDUCTIONS)}: sum(j <= k) x[j]"
            )
        if not isinstance(name, Name):
            raise Problem(name.at, "a reduction's end is written with its index on the left: sum(j <= k) x[j]")
        limit = self._position(end, bound)
        new = self._bind(Bound(name, b.extent), bound)
        return Bound(replace(value, args=(new.value, limit)), new.extent)

    def _application(self, node: Application, bound: dict[str, str]) -> Node:
        name, count = node.function, len(node.args)
        if node.settings:
            raise Problem(node.settings[0].name.at, f"only ops take parameters by name, and {name} is none here")
        if name in self.op.functions:
            check_arity(node, self.op.functions)
            return replace(node, args=tuple(self.expression(a, bound) for a in node.args))
        if name == "inside":
            if count != 1 or not isinstance(node.args[0], Access):
                raise Problem(node.at, "inside takes one read: inside(x[n,p+r])")
            return replace(node, args=(self._access(node.args[0], bound),))
        if name == "index":
            self._arity(node, 1)
            return replace(node, args=(self._position(node.args[0], bound),))
        if count == 1 and name in REDUCTIONS and node.called is not None:
            self._whole_reduction(node)
        elif name in DTYPES:
            self._arity(node, 1)
        elif name in SPOKEN:
            wrong = wrong_count(name, count)
            if wrong:
                raise Problem(node.at, wrong)
            name = SPOKEN[name].name
        else:
            raise self._no_function(node)
        return replace(node, function=name, args=tuple(self.expression(a, bound) for a in node.args))

    def _no_function(self, node: Application) -> Problem:
        name, at = node.function, node.called or node.at
        if name in self.op.ops:
            return Problem(at, f"{name} is an op: it is called with whole tensors, in a statement without indices")
        if name in self.op.names:
            brackets = (
                "" if name in self.op.parameters or name in self.op.sizes else "; its indices stand in '[' and ']'"
            )
            return Problem(at, f"{name} is {self.op.names[name]}, not a function{brackets}")
        if name in REDUCTIONS:
            return Problem(node.at, f"{name} takes one whole tensor, or indices with a body: {name}(k) a[m,k]")
        words = {*BUILT_IN, *self.op.functions, *self.op.ops} - {*OPERATOR_SIGNS}
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
        if kind in SCANS:
            raise Problem(node.at, f"{kind} names the index it runs along: y[r,k] = {kind}(k) x[r,k]")
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
        names -= {syntax.bound_name(b).text for b in node.indices}
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


__all__ = [
    "DTYPES",
    "PARAMETER_TYPES",
    "REDUCTIONS",
    "RESERVED",
    "Checked",
    "ParameterDeclaration",
    "TensorDeclaration",
    "check",
    "wrong_constant",
]
