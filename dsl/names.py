"""What can be checked in an op before any size is known: names, functions, ranks, index expressions, order.

`check` turns a syntax tree into a Checked op: the same trees with every reduction index renamed apart, statements
sorted into size equations and assignments, hints and limits read. `specialise.py` gives it sizes and types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tilewright.dsl import syntax, tuning
from tilewright.dsl.diagnostics import Problem, listed, suggestion
from tilewright.dsl.dtypes import DType
from tilewright.dsl.opcalls import Call, CheckedCall, check_call, lifted, numbers_within
from tilewright.dsl.precision import PRECISIONS
from tilewright.dsl.program import Hint, Limit
from tilewright.dsl.statement_names import StatementChecker
from tilewright.dsl.syntax import Access, Application, Literal, Name, Node
from tilewright.dsl.updates import with_old_values
from tilewright.dsl.vocabulary import DTYPES, PARAMETER_TYPES, SIZE_OPERATIONS, own, usable, wrong_constant


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
    precision: str = ""
    """One of `precision.PRECISIONS`; empty where the op has no such line."""
    names: frozenset[str] = frozenset()
    """Names of all tensors, sizes and parameters."""
    functions: Mapping[str, syntax.Function] = field(default_factory=dict, hash=False)
    """The text's own functions."""


def check(op: syntax.Op, functions: Mapping[str, syntax.Function], ops: Mapping[str, Checked]) -> Checked:
    """Check one op of a text with these functions, and these ops that it may call; Problem at the first mistake."""
    return OpChecker(op, functions, ops).run()


class OpChecker:
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
        usable(op.name)
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
                statements.append(StatementChecker(self, s).run())
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
            _precision([s.name for s in op.body if isinstance(s, syntax.Precision)]),
            frozenset(self.names),
            {own(name): f for name, f in self.functions.items()},
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
        usable(name)
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


# --- single names and numbers -----------------------------------------------------------------------------------------


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


def _precision(names: Sequence[Name]) -> str:
    """What the op's `precision` line says; empty without one."""
    for name in names:
        if name.text not in PRECISIONS:
            raise Problem(name.at, f"a precision is {listed(PRECISIONS)}{suggestion(name.text, PRECISIONS)}")
    if len(names) > 1:
        raise Problem(names[1].at, "the precision is given twice")
    return names[0].text if names else ""


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
