"""Arithmetic over the parameters of a kernel, as text: ``TILE * UNROLL <= 64``, ``round_up(n, TILE)``.

Whole numbers, texts (compared only), ``+ - * // %``, comparisons, ``and or not``, ``a if c else b``, and the functions
`ceil_div`, `round_up`, `min` and `max`. The text is read with Python's grammar, but nothing of Python is evaluated.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.dsl.space import Value
from tilewright.errors import InputError

LONGEST = 1000
"""Characters of an expression."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "ceil_div": lambda a, b: -(-a // b),
    "round_up": lambda a, b: -(-a // b) * b,
    "min": min,
    "max": max,
}
_TWO = ("ceil_div", "round_up")
"""Functions of exactly two arguments; the others take two or more."""


@dataclass(frozen=True)
class Expression:
    """A text and what it means."""

    text: str
    tree: ast.expr
    names: frozenset[str]
    """What it reads."""

    def __call__(self, look_up: Callable[[str], Value]) -> Any:
        """Its value, where `look_up` gives that of a name; InputError for a division by zero or a text in a sum."""
        try:
            return _value(self.tree, look_up)
        except ZeroDivisionError:
            raise InputError(f"{self.text!r} divides by zero for some configurations; exclude them") from None
        except TypeError:
            raise InputError(f"{self.text!r} computes with a text; texts can only be compared") from None


def expression(text: str, what: str) -> Expression:
    """Read an expression; InputError that says `what` it was meant for."""
    if len(text) > LONGEST:
        raise InputError(f"{what} has {len(text)} characters; the longest that is read has {LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(f"{what}, {text!r}, is no expression") from None
    functions = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        problem = None if id(node) in functions else _problem(node)
        if problem:
            raise InputError(f"{what}, {text!r}, {problem}")
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in functions}
    return Expression(text, tree, frozenset(names))


def _problem(node: ast.AST) -> str | None:
    """Why a node has no meaning here, or None if it has one."""
    match node:
        case ast.BinOp(op=ast.Div()):
            return "divides with /; write // to round down or ceil_div(a, b) to round up"
        case ast.BinOp(op=op) if type(op) not in _BINARY:
            return "has an operator other than + - * // %"
        case ast.UnaryOp(op=op) if type(op) not in _UNARY:
            return "has an operator other than - and not before a value"
        case ast.Compare(ops=ops) if any(type(op) not in _COMPARED for op in ops):
            return "compares with something other than == != < <= > >="
        case ast.Constant(value=value) if not isinstance(value, bool | int | str):
            return f"holds {value!r}; only whole numbers and texts are values"
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            right = len(arguments) == 2 if name in _TWO else len(arguments) >= 2
            return None if right else f"gives {name} {len(arguments)} arguments"
        case ast.Call():
            return f"calls something other than {', '.join(sorted(_FUNCTIONS))}"
    known = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.IfExp, ast.BoolOp, ast.expr_context)
    kinds = (ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
    return None if isinstance(node, (*known, *kinds)) else "is more than arithmetic and comparisons"


def _value(node: ast.expr, look_up: Callable[[str], Value]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return look_up(name)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, look_up), _value(right, look_up)
            if isinstance(a, str) or isinstance(b, str):
                raise TypeError
            return _BINARY[type(op)](a, b)
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, look_up))
        case ast.BoolOp(op=op, values=values):
            parts = (bool(_value(v, look_up)) for v in values)
            return all(parts) if isinstance(op, ast.And) else any(parts)
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body if _value(test, look_up) else other, look_up)
        case ast.Compare(left=left, ops=ops, comparators=others):
            terms = [_value(n, look_up) for n in (left, *others)]
            return all(_COMPARED[type(op)](a, b) for op, a, b in zip(ops, terms, terms[1:], strict=False))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_value(a, look_up) for a in arguments))
    raise TypeError(f"{type(node).__name__} has no value")  # `expression` lets no other node through


__all__ = ["Expression", "expression"]
