"""What can be checked in one statement before any size is known: its names, indices, functions and reductions.

Every reduction index is renamed apart, and functions are called by their first names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, counted, listed, suggestion
from tilewright.dsl.functions import OPERATOR_SIGNS, SPOKEN, wrong_count
from tilewright.dsl.syntax import Access, Application, Bound, Literal, Name, Node, Qualified, Reduction, Span
from tilewright.dsl.userdefs import check_arity
from tilewright.dsl.vocabulary import (
    BUILT_IN,
    DTYPES,
    INDEX_OPERATIONS,
    PREFIX_REDUCTIONS,
    PREFIXES,
    REDUCTIONS,
    SCANS,
    own,
    usable,
)

if TYPE_CHECKING:
    from tilewright.dsl.names import OpChecker


class StatementChecker:
    """The check of one assignment."""

    def __init__(self, op: OpChecker, s: syntax.Assignment) -> None:
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
        usable(b.value)
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
        if name in self.op.functions and node.called is not None:
            check_arity(node, self.op.functions)
            return replace(node, function=own(name), args=tuple(self.expression(a, bound) for a in node.args))
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


def _free(node: Node) -> set[str]:
    """The names that an expression uses, without those that its own reductions bind."""
    if isinstance(node, Name):
        return {node.text}
    names = set[str]().union(*map(_free, syntax.children(node)))
    if isinstance(node, Reduction):
        names -= {syntax.bound_name(b).text for b in node.indices}
    return names
