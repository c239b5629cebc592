"""The functions that a text defines: ``def gelu(x) = 0.5 * x * (1 + erf(x / sqrt(2)))``.

A body is pointwise: it sees its arguments, the built-in functions and the functions above it, nothing else. A call is
the body with the arguments' values for their names (`statements.py`), so that names cannot clash and what is passed is
computed once, however often the body uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, counted, suggestion
from tilewright.dsl.functions import OPERATOR_SIGNS, SPOKEN, wrong_count
from tilewright.dsl.syntax import Access, Application, Function, Literal, Name, Node, Qualified, Reduction
from tilewright.dsl.vocabulary import BUILT_IN, DTYPES, PRIMITIVES, REDUCTIONS, own, usable

MAX_LEVELS = 30
"""Most functions that call each other one inside the other."""


def check_functions(functions: Collection[Function]) -> dict[str, Function]:
    """The functions by name, in order; raises Problem at the first mistake."""
    known = _Known()
    for f in functions:
        known.add(f)
    return known.functions


@dataclass
class _Known:
    """The functions above the one that is being checked."""

    functions: dict[str, Function] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)

    def add(self, f: Function) -> None:
        name = f.name.text
        for n in (f.name, *f.arguments):
            usable(n)
        if name in PRIMITIVES:
            raise Problem(f.name.at, f"{name} is part of the language; choose another name, such as my_{name}")
        if name in self.functions:
            raise Problem(f.name.at, f"the function {name} is defined twice")
        if not f.arguments:
            raise Problem(f.name.at, f"{name} has no arguments; a function has at least one: def {name}(x) = ...")
        arguments = [a.text for a in f.arguments]
        for at, a in enumerate(f.arguments):
            if a.text in arguments[:at]:
                raise Problem(a.at, f"the argument {a.text} stands twice; arguments differ")
        body = self._body(f.body, f, arguments)
        used = {n.text for n in syntax.walk(f.body) if isinstance(n, Name)}
        for a in f.arguments:
            if a.text not in used:
                raise Problem(a.at, f"the argument {a.text} of {name} is never used in its body")
        called = [n.function for n in syntax.walk(f.body) if isinstance(n, Application)]
        self.levels[name] = 1 + max((self.levels.get(c, 0) for c in called), default=0)
        if self.levels[name] > MAX_LEVELS:
            raise Problem(f.name.at, f"functions call each other more than {MAX_LEVELS} levels deep here")
        self.functions[name] = replace(f, body=body)

    def _body(self, node: Node, f: Function, arguments: Collection[str]) -> Node:
        """The body with every function under its first name."""
        match node:
            case Literal():
                return node
            case Name():
                if node.text not in arguments:
                    near = suggestion(node.text, arguments) or "; a function knows its arguments only"
                    raise Problem(node.at, f"{f.name.text} has no argument {node.text}{near}")
                return node
            case Access():
                raise Problem(node.at, "a function is pointwise and reads nothing; pass the element as an argument")
            case Reduction():
                raise Problem(node.at, "a function is pointwise; pass the reduction as an argument")
            case Qualified():
                raise Problem(node.at, f"{node.text} can stand in a where line only")
            case Application():
                name = self._called(node, f)
                return replace(node, function=name, args=tuple(self._body(a, f, arguments) for a in node.args))

    def _called(self, node: Application, f: Function) -> str:
        """The first name of what a body calls."""
        name, at, count = node.function, node.called or node.at, len(node.args)
        if node.settings:
            raise Problem(node.settings[0].name.at, "functions take no parameters by name")
        if name == f.name.text:
            raise Problem(at, f"{name} calls itself; functions are not recursive")
        if name in ("inside", "index"):
            raise Problem(at, f"{name} speaks of indices, which a function does not know; pass its value instead")
        if name in self.functions:
            check_arity(node, self.functions)
            return own(name)
        elif name in REDUCTIONS and (count < 2 or name not in SPOKEN):
            raise Problem(at, "a function is pointwise; pass the reduction as an argument")
        elif name in DTYPES:
            if count != 1:
                raise Problem(node.at, f"{name} takes 1 argument, found {count}")
        elif name in SPOKEN:
            wrong = wrong_count(name, count)
            if wrong:
                raise Problem(node.at, wrong)
            return SPOKEN[name].name
        else:
            words = {*BUILT_IN, *self.functions} - {*OPERATOR_SIGNS}
            near = suggestion(name, words) or "; a function calls the built-in ones and those above it"
            raise Problem(at, f"no function is called {name}{near}")
        return name


def check_arity(node: Application, functions: Mapping[str, Function]) -> None:
    """Reject a call of a text's function with the wrong number of arguments."""
    wanted = [a.text for a in functions[node.function].arguments]
    if len(node.args) != len(wanted):
        raise Problem(
            node.at,
            f"{node.function} takes {counted(len(wanted), 'argument')} ({', '.join(wanted)}), found {len(node.args)}",
        )
