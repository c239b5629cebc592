"""Outputs that an op updates: ``y[i] += s * x[i]``, ``c[m,n] = beta * c[m,n] + ...``.

The value an output had before the op is an input of its own. Nothing is written in place: kernels may write an element
twice, so the new values go elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem
from tilewright.dsl.syntax import Access, Application, Assignment, Name, Node, Op, Reduction, Span


def with_old_values(op: Op) -> tuple[Op, Mapping[str, str]]:
    """The op with an input for every output that is read before it is assigned, and those inputs' names by output.

    The input of output `y` is `y_old`, or `y_old_2`, ... where that name is taken.
    """
    outputs = {t.name.text: t for t in op.outputs}
    work = _Rewriting(op, outputs)
    body = tuple(work.statement(s) for s in op.body)
    if not work.old:
        return op, {}
    added = tuple(
        replace(outputs[name], name=Name(old, outputs[name].name.at), pad=None) for name, old in work.old.items()
    )
    return replace(op, inputs=(*op.inputs, *added), body=body), work.old


class _Rewriting:
    """One pass over the statements; reads of outputs that are still to be assigned become reads of their old values."""

    def __init__(self, op: Op, outputs: Mapping[str, syntax.Tensor]) -> None:
        self.op = op
        self.outputs = outputs
        self.old: dict[str, str] = {}
        self.assigned: set[str] = set()

    def statement(self, s: syntax.Statement) -> syntax.Statement:
        match s:
            case Assignment():
                value = self._reads(s.value)
                if s.update:
                    old = self._updated(s)
                    value = Application(s.update, (old, value), Span(s.target.at.start, s.value.at.end))
                self.assigned.add(s.target.text)
                return s if value is s.value else Assignment(s.target, s.indices, value)
            case syntax.Several():
                call = self._reads(s.value)
                self.assigned.update(t.text for t in s.targets)
                assert isinstance(call, Application)
                return s if call is s.value else replace(s, value=call)
            case _:
                return s

    def _updated(self, s: Assignment) -> Node:
        name = s.target.text
        if name in self.assigned:
            raise Problem(
                s.target.at, f"{name} is assigned above; an update starts from what an output held before the op"
            )
        if name not in self.outputs:
            raise Problem(
                s.target.at,
                f"{name} is no output; an update starts from what an output held before the op. "
                "A sum over k is written sum(k) x[n,k]",
            )
        old = Name(self._old(name), s.target.at)
        if s.indices is None:
            return old
        return Access(old, tuple(b.value for b in s.indices), s.target.at)

    def _old(self, name: str) -> str:
        if name not in self.old:
            taken = _names(self.op) | set(self.old.values())
            candidate, n = f"{name}_old", 2
            while candidate in taken:
                candidate, n = f"{name}_old_{n}", n + 1
            self.old[name] = candidate
        return self.old[name]

    def _reads(self, node: Node) -> Node:
        """The expression with reads of outputs that have no value yet going to their old values."""
        if not any(self._is_old(n) for n in syntax.walk(node)):
            return node
        match node:
            case Name():
                return replace(node, text=self._old(node.text)) if self._is_old(node) else node
            case Access():
                tensor = node.tensor
                if self._is_old(node):
                    tensor = replace(tensor, text=self._old(tensor.text))
                return replace(node, tensor=tensor, index=tuple(map(self._reads, node.index)))
            case Application():
                return replace(node, args=tuple(map(self._reads, node.args)))
            case Reduction():
                return replace(node, body=self._reads(node.body))
            case _:
                return node

    def _is_old(self, node: Node) -> bool:
        name = node.text if isinstance(node, Name) else node.tensor.text if isinstance(node, Access) else ""
        return name in self.outputs and name not in self.assigned


def _names(op: Op) -> set[str]:
    """Every name that occurs in an op."""
    found = {t.name.text for t in (*op.inputs, *op.outputs)} | {p.name.text for p in op.parameters}
    nodes: list[Node] = [d for t in (*op.inputs, *op.outputs) for d in t.dims or ()]
    for s in op.body:
        if isinstance(s, Assignment):
            found.add(s.target.text)
            nodes += [s.value, *(b.value for b in s.indices or ())]
        elif isinstance(s, syntax.Several):
            found.update(t.text for t in s.targets)
            nodes.append(s.value)
    for node in nodes:
        for n in syntax.walk(node):
            if isinstance(n, Name):
                found.add(n.text)
            elif isinstance(n, Access):
                found.add(n.tensor.text)
            elif isinstance(n, Reduction):
                found.update(b.value.text for b in n.indices if isinstance(b.value, Name))
    return found
