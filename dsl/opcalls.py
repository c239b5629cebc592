"""Ops that call ops: ``h = linear(x, w, b)``, ``m, v = moments(x)``, ``y = relu(pool(x; k=2))``.

While names are checked, every call gets a statement of its own whose arguments are whole tensors (`lifted`), and is
compared with the callee's header (`check_call`). With sizes known, `embedding.py` puts the callee's statements in place
of the call, so that a Program does not tell whether it was written with calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, counted, listed, suggestion
from tilewright.dsl.syntax import Application, Assignment, Literal, Name, Node, Op, Several, Span
from tilewright.dsl.vocabulary import BUILT_IN, wrong_constant

if TYPE_CHECKING:
    from tilewright.dsl.names import Checked


@dataclass(frozen=True)
class Call:
    """A call as a statement; arguments are names of tensors."""

    targets: tuple[Name, ...]
    op: str
    args: tuple[Name, ...]
    settings: tuple[syntax.Setting, ...]
    at: Span


@dataclass(frozen=True)
class CheckedCall:
    """A call that fits the callee's header."""

    targets: tuple[Name, ...]
    callee: Checked
    args: tuple[Name, ...]
    settings: tuple[syntax.Setting, ...]
    at: Span

    @property
    def target(self) -> Name:
        """The first target, which stands for the statement in messages."""
        return self.targets[0]


# --- a statement per call -----------------------------------------------------------------------------------------


def called(op: Op, ops: Collection[str]) -> Iterator[Application]:
    """The calls of other ops in an op, in order; Problem where a name is a function's as well."""
    for s in op.body:
        value = s.value if isinstance(s, Assignment | Several) else None
        for n in syntax.walk(value) if value is not None else ():
            if isinstance(n, Application) and n.called is not None and n.function in ops:
                if n.function not in BUILT_IN:
                    yield n
                elif n.function != op.name.text:
                    raise Problem(
                        n.called, f"{n.function} is a built-in function and an op of this text; rename the op"
                    )


def lifted(op: Op, ops: Collection[str]) -> tuple[syntax.Statement | Call, ...]:
    """The op's body with its calls of ops in statements of their own; new intermediates take unused names."""
    if not any(isinstance(s, Several) for s in op.body) and not any(called(op, ops)):
        return op.body
    work = _Lifting(op, frozenset(ops) - BUILT_IN)
    for s in op.body:
        work.statement(s)
    return tuple(work.body)


class _Lifting:
    def __init__(self, op: Op, ops: frozenset[str]) -> None:
        self.ops = ops
        self.body: list[syntax.Statement | Call] = []
        dims = [d for t in (*op.inputs, *op.outputs) for d in t.dims or ()]
        sizes = {n.text for d in dims for n in syntax.walk(d) if isinstance(n, Name)}
        self.numbers = sizes | {p.name.text for p in op.parameters}
        """Names that stand for numbers."""
        self.taken = self.numbers | {t.name.text for t in (*op.inputs, *op.outputs)}
        for s in op.body:
            if isinstance(s, Assignment):
                self.taken.add(s.target.text)
            elif isinstance(s, Several):
                self.taken.update(t.text for t in s.targets)

    def statement(self, s: syntax.Statement) -> None:
        match s:
            case Assignment(indices=None) if s.target.text not in self.numbers:
                if self._calls(s.value):
                    self._call((s.target,), s.value)
                else:
                    self.body.append(replace(s, value=self._without(s.value)))
            case Several():
                if not self._calls(s.value):
                    raise Problem(
                        s.value.called or s.value.at,
                        f"several outputs come from an op, and no op is called {s.value.function}"
                        f"{suggestion(s.value.function, self.ops)}",
                    )
                self._call(s.targets, s.value)
            case _:
                self.body.append(s)

    def _calls(self, node: Node) -> bool:
        return isinstance(node, Application) and node.called is not None and node.function in self.ops

    def _call(self, targets: tuple[Name, ...], node: Node) -> None:
        assert isinstance(node, Application)
        args = tuple(self._argument(node.function, a) for a in node.args)
        self.body.append(Call(targets, node.function, args, node.settings, node.called or node.at))

    def _argument(self, op: str, node: Node) -> Name:
        """The name of a tensor with the value of an argument."""
        if isinstance(node, Name) and node.text not in self.numbers:
            return node
        target = Name(self._fresh(f"{op}_in"), node.at)
        if self._calls(node):
            self._call((target,), node)
        else:
            self.body.append(Assignment(target, None, self._without(node)))
        return target

    def _without(self, node: Node) -> Node:
        """A short-form expression with the calls in it replaced by intermediates."""
        if not any(self._calls(n) for n in syntax.walk(node)):
            return node
        if self._calls(node):
            assert isinstance(node, Application)
            target = Name(self._fresh(f"{node.function}_out"), node.at)
            self._call((target,), node)
            return target
        if isinstance(node, Application):
            return replace(node, args=tuple(map(self._without, node.args)))
        return node

    def _fresh(self, stem: str) -> str:
        name, n = stem, 2
        while name in self.taken:
            name, n = f"{stem}_{n}", n + 1
        self.taken.add(name)
        return name


# --- the callee's header ------------------------------------------------------------------------------------------


def check_call(s: Call, callee: Checked) -> CheckedCall:
    """Compare a call with the callee's header: numbers of inputs and outputs, names and values of parameters."""
    inputs, outputs = [t.argument for t in callee.inputs], [t.name for t in callee.outputs]
    if len(s.args) != len(inputs):
        raise Problem(s.at, f"{s.op} takes {counted(len(inputs), 'input')} ({', '.join(inputs)}), found {len(s.args)}")
    if len(s.targets) != len(outputs):
        one = f"; assign it to {counted(len(outputs), 'name')}: {', '.join(outputs)} = {s.op}(...)"
        raise Problem(
            s.at, f"{s.op} has {counted(len(outputs), 'output')} ({', '.join(outputs)}), found {len(s.targets)}{one}"
        )
    names = [t.text for t in s.targets]
    for n, t in enumerate(s.targets):
        if t.text in names[:n]:
            raise Problem(t.at, f"{t.text} stands twice on the left")
    _check_settings(s, callee)
    return CheckedCall(s.targets, callee, s.args, s.settings, s.at)


def _check_settings(s: Call, callee: Checked) -> None:
    parameters = {p.name: p for p in callee.parameters}
    given: set[str] = set()
    for setting in s.settings:
        name = setting.name.text
        if name not in parameters and name not in callee.sizes:
            known = [*parameters, *callee.sizes]
            there = f"; there is {listed(known, 'and')}" if known else "; it has none"
            raise Problem(setting.name.at, f"{s.op} has no parameter {name}{suggestion(name, known) or there}")
        if name in given:
            raise Problem(setting.name.at, f"the parameter {name} is given twice")
        given.add(name)
        value = _literal(setting.value)
        reason = "" if value is None else wrong_constant(value, parameters[name].type if name in parameters else "int")
        if reason:
            kind = parameters[name].type if name in parameters else "a size"
            raise Problem(setting.value.at, f"the parameter {name} of {s.op} is {kind}, but its value {reason}")
    missing = [p.name for p in callee.parameters if p.default is None and p.name not in given]
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise Problem(s.at, f"{s.op} needs its {'parameter' if len(missing) == 1 else 'parameters'} "
                      f"{listed(missing, 'and')}: {s.op}({', '.join(a.text for a in s.args)}; {example})")  # fmt: skip


def _literal(node: Node) -> int | float | bool | None:
    match node:
        case Literal():
            return node.value
        case Application(function="neg", args=(Literal(value=value),)):
            return -value
        case _:
            return None


def numbers_within(settings: Collection[syntax.Setting], parameters: Collection[str]) -> Iterator[Node]:
    """The values of a call's parameters that are integer arithmetic: neither literals nor the caller's parameters."""
    for s in settings:
        if _literal(s.value) is None and not (isinstance(s.value, Name) and s.value.text in parameters):
            yield s.value
