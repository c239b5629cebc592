"""Text to syntax tree to Definition: limits, brackets and line breaks, and the Lark grammar.

Text from anywhere is safe to parse: every mistake is a LanguageError, whatever the characters, size or nesting.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from lark import Lark
from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

from tilewright.dsl import syntax, tables
from tilewright.dsl.check import Definition, define
from tilewright.dsl.diagnostics import Problem, escaped, language_error, listed, suggestion
from tilewright.dsl.parse_errors import explained
from tilewright.dsl.syntax import Node, Span
from tilewright.dsl.tree import Builder
from tilewright.errors import LanguageError

MAX_CHARACTERS = 1_000_000
"""Longest text that is read."""
MAX_NESTING = 100
"""Most levels of brackets, and of operators within an expression."""


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[Definition, ...]:
    """The ops of a text, in order; at least one. Raises LanguageError, with line, column and a picture of the place."""
    if len(text) > MAX_CHARACTERS:
        raise LanguageError(f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        return define(_tree(text), text)
    except Problem as problem:
        raise language_error(text, problem) from None
    except RecursionError:  # MAX_NESTING keeps it away unless the caller's own stack is nearly full
        raise LanguageError("the text is nested too deeply for the stack that is left") from None


def parse_op(text: str, name: str | None = None) -> Definition:
    """The op of a text that is called ``name``, or its only one.

    LanguageError if there is none of that name, or several and no name says which.
    """
    definitions = parse(text)
    found = [d for d in definitions if name in (None, d.name)]
    if len(found) == 1:
        return found[0]
    names = listed((d.name for d in definitions), "and")
    if name is not None:
        near = suggestion(name, (d.name for d in definitions))
        raise LanguageError(f"the text defines no op {name}{near or f'; it defines {names}'}")
    raise LanguageError(
        f"one op is expected here, but the text defines {names}; say which by name, or use parse() for all"
    )


@lru_cache(maxsize=1024)
def parse_condition(text: str) -> Node:
    """The expression of a `where` line alone; LanguageError if it is none."""
    try:
        node: Node = _run(text, "condition")
        _check_nesting(node)
        return node
    except Problem as problem:
        raise language_error(text, problem) from None


def _tree(text: str) -> syntax.Text:
    tree: syntax.Text = _run(text, "start")
    for function in tree.functions:
        _check_nesting(function.body)
    for op in tree.ops:
        for statement in op.body:
            _check_depth(statement)
        for dim in (d for t in (*op.inputs, *op.outputs) for d in t.dims or ()):
            _check_nesting(dim)
    return tree


def _check_depth(statement: syntax.Statement) -> None:
    match statement:
        case syntax.Assignment():
            for b in statement.indices or ():
                _check_nesting(b.value)
                if b.extent is not None:
                    _check_nesting(b.extent)
            _check_nesting(statement.value)
        case syntax.Several():
            _check_nesting(statement.value)
        case syntax.Limit():
            _check_nesting(statement.condition)
        case syntax.Tuning() | syntax.FastMath() | syntax.Precision():
            pass


def _check_nesting(node: Node) -> None:
    place = syntax.too_deep(node, MAX_NESTING)
    if place is not None:
        raise Problem(
            place.at,
            f"the expression is nested more than {MAX_NESTING} levels deep (each operator of a chain counts as one); "
            "assign a part of it to an intermediate",
        )
    for n in syntax.walk(node):
        if isinstance(n, syntax.Application):
            for setting in n.settings:
                _check_nesting(setting.value)


def _run(text: str, start: str) -> Any:
    prepared = _prepared(text)
    try:
        return _parser().parse(prepared, start=start)
    except (UnexpectedToken, UnexpectedCharacters, UnexpectedEOF) as error:
        raise explained(prepared, error) from None
    except LarkError as error:
        raise Problem(Span(0, 0), f"the text cannot be read: {escaped(str(error))}") from None


@cache
def _parser() -> Lark:
    grammar = files("tilewright.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    return tables.parser(grammar, ["start", "condition"], Builder())


# --- before the grammar: comments, brackets, line breaks ------------------------------------------------------------

_STRUCTURE = re.compile(r"#[^\n]*|[()\[\]\n]")
_CLOSES = {")": "(", "]": "["}


def _prepared(text: str) -> str:
    """The text with comments and line breaks inside brackets turned to spaces; offsets stay the same."""
    open_: list[tuple[str, int]] = []
    pieces: list[str] = []
    done = 0
    for found in _STRUCTURE.finditer(text):
        mark, at = found.group(), found.start()
        if mark.startswith("#") or (mark == "\n" and open_):
            pieces += text[done:at], " " * len(mark)
            done = found.end()
        elif mark in "([":
            open_.append((mark, at))
            if len(open_) > MAX_NESTING:
                raise Problem(Span(at, at + 1), f"brackets are nested more than {MAX_NESTING} levels deep")
        elif mark in _CLOSES:
            _close(text, open_, mark, at)
    if open_:
        mark, at = open_[-1]
        raise Problem(Span(at, at + 1), f"'{mark}' is never closed")
    pieces.append(text[done:])
    if text.startswith("\ufeff"):  # a byte order mark
        return " " + "".join(pieces)[1:] + "\n"
    return "".join(pieces) + "\n"


def _close(text: str, open_: list[tuple[str, int]], mark: str, at: int) -> None:
    if not open_:
        raise Problem(Span(at, at + 1), f"'{mark}' closes nothing")
    opener, place = open_.pop()
    if opener != _CLOSES[mark]:
        line = text.count("\n", 0, place) + 1
        column = place - text.rfind("\n", 0, place)
        wanted = "]" if opener == "[" else ")"
        raise Problem(
            Span(at, at + 1), f"'{mark}' does not match '{opener}' at line {line}, column {column}; write '{wanted}'"
        )
