"""Text to syntax tree to Definition: limits, brackets and line breaks, the Lark grammar, and its errors as ours.

Text from anywhere is safe to parse: every mistake is a LanguageError, whatever the characters, size or nesting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

from tilewright.dsl import syntax, tables
from tilewright.dsl.check import Definition, define
from tilewright.dsl.diagnostics import Problem, escaped, language_error, listed, suggestion
from tilewright.dsl.functions import OPERATOR_SIGNS
from tilewright.dsl.syntax import Bound, Node, Span
from tilewright.dsl.tuning import COMPARISONS
from tilewright.dsl.vocabulary import REDUCTIONS
from tilewright.errors import LanguageError

MAX_CHARACTERS = 1_000_000
"""Longest text that is read."""
MAX_NESTING = 100
"""Most levels of brackets, and of operators within an expression."""
MAX_DIGITS = 60
"""Longest number, and with it the largest power of ten."""
MAX_NAME = 100
"""Longest name."""


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
        case syntax.Tuning() | syntax.FastMath():
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
        raise _explained(prepared, error) from None
    except LarkError as error:
        raise Problem(Span(0, 0), f"the text cannot be read: {escaped(str(error))}") from None


@cache
def _parser() -> Lark:
    grammar = files("tilewright.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    return tables.parser(grammar, ["start", "condition"], _Builder())


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


# --- the tree ---------------------------------------------------------------------------------------------------------


def _span(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


def _name(token: Token) -> syntax.Name:
    if len(token) > MAX_NAME:
        raise Problem(_span(token), f"the name is longer than {MAX_NAME} characters")
    return syntax.Name(str(token), _span(token))


_WORDS: dict[str, bool | float] = {"true": True, "false": False, "inf": float("inf"), "nan": float("nan")}


def _number(token: Token) -> syntax.Literal:
    at, text = _span(token), str(token)
    if len(text) > MAX_DIGITS:
        raise Problem(at, f"the number has more than {MAX_DIGITS} digits")
    if text.isdigit():
        if int(text) >= 2**64:
            raise Problem(at, "the integer does not fit in 64 bits; write a decimal point for a floating point number")
        return syntax.Literal(int(text), at)
    value = float(text)
    if value == float("inf"):
        raise Problem(at, "the number is too large for f64; write inf for infinity")
    return syntax.Literal(value, at)


def _binary(function: str) -> Callable[[_Builder, Node, Node], syntax.Application]:
    def build(self: _Builder, left: Node, right: Node) -> syntax.Application:
        return syntax.Application(function, (left, right), Span(left.at.start, right.at.end))

    return build


_UPDATES = {f"{OPERATOR_SIGNS[word]}=": word for word in ("add", "sub", "mul", "div")}
_PREFIXES = {"-": "neg", "~": "bitnot", "not": "not"}
_COMPARISONS = {OPERATOR_SIGNS[word]: word for word in COMPARISONS}


@dataclass(frozen=True)
class _Call:
    """`name(value: extent, ...; setting, ...)` before it is known to be a function's or a reduction's."""

    name: Token
    bounds: tuple[Bound, ...]
    settings: tuple[syntax.Setting, ...]


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):
    """One method per rule of the grammar; arguments are the rule's children (None for what was left out)."""

    def start(self, *parts: syntax.Op | syntax.Function) -> syntax.Text:
        functions = tuple(p for p in parts if isinstance(p, syntax.Function))
        return syntax.Text(functions, tuple(p for p in parts if isinstance(p, syntax.Op)))

    def condition(self, node: Node) -> Node:
        return node

    def function(self, name: Token, arguments: Any, body: Node) -> syntax.Function:
        return syntax.Function(_name(name), arguments or (), body)

    def names(self, *tokens: Token) -> tuple[syntax.Name, ...]:
        return tuple(_name(t) for t in tokens)

    def op(self, name: Token, inputs: Any, parameters: Any, outputs: Any, body: Any) -> syntax.Op:
        return syntax.Op(_name(name), inputs or (), parameters or (), outputs, body)

    def tensors(self, *items: syntax.Tensor) -> tuple[syntax.Tensor, ...]:
        return items

    def tensor(self, name: Token, dims: Any, dtype: Token | None, pad: Node | None) -> syntax.Tensor:
        return syntax.Tensor(_name(name), dims, None if dtype is None else self._typed(dtype), pad)

    @staticmethod
    def _typed(token: Token) -> syntax.Name:
        word = token[1:].strip()
        end = token.end_pos or 0
        return syntax.Name(word, Span(end - len(word), end))

    def dims(self, items: tuple[Node, ...] | None) -> tuple[Node, ...]:
        return items or ()

    def expressions(self, *items: Node) -> tuple[Node, ...]:
        return items

    def number(self, sign: Token | None, token: Token) -> Node:
        node: Node = _number(token) if token.type == "NUMBER" else self.name(token)
        if not isinstance(node, syntax.Literal):
            raise Problem(_span(token), f"a number is expected here, found '{token}'")
        if sign == "-":
            return syntax.Literal(-node.value, Span(_span(sign).start, node.at.end))
        return node

    def parameters(self, *items: syntax.Parameter) -> tuple[syntax.Parameter, ...]:
        return items

    def parameter(self, name: Token, kind: Token, default: Node | None) -> syntax.Parameter:
        return syntax.Parameter(_name(name), _name(kind), default)

    def body(self, *statements: Any) -> tuple[Any, ...]:
        return statements

    def element(self, target: Token, indices: Any, sign: Token, value: Node) -> syntax.Assignment:
        return syntax.Assignment(_name(target), indices or (), value, _UPDATES.get(sign, ""))

    def whole(self, target: Token, sign: Token, value: Node) -> syntax.Assignment:
        return syntax.Assignment(_name(target), None, value, _UPDATES.get(sign, ""))

    def several(self, *parts: Any) -> syntax.Several:
        *targets, _, call = parts
        return syntax.Several(tuple(_name(t) for t in targets), self.application(call))

    def tuning(self, kind: Token, subject: Token, values: Any, per_item: Any) -> syntax.Tuning:
        return syntax.Tuning(_name(kind), _name(subject), values or (), per_item or ())

    def work_group(self, kind: Token, values: Any) -> syntax.Tuning:
        return syntax.Tuning(_name(kind), None, values or ())

    def values(self, *tokens: Token) -> tuple[syntax.Literal | syntax.Name, ...]:
        return tuple(_number(t) if t.type == "NUMBER" else _name(t) for t in tokens)

    def fast_math(self, token: Token) -> syntax.FastMath:
        return syntax.FastMath(_span(token))

    def limit(self, condition: Node) -> syntax.Limit:
        return syntax.Limit(condition)

    def bounds(self, *items: Bound) -> tuple[Bound, ...]:
        return items

    def bound(self, value: Node, extent: Node | None) -> Bound:
        return Bound(value, extent)

    or_ = _binary("or")
    and_ = _binary("and")
    add = _binary("add")
    sub = _binary("sub")
    mul = _binary("mul")
    div = _binary("div")
    floordiv = _binary("floordiv")
    mod = _binary("mod")
    bitand = _binary("bitand")
    bitor = _binary("bitor")
    shl = _binary("shl")
    shr = _binary("shr")
    pow = _binary("pow")

    def prefix(self, sign: Token, arg: Node) -> Node:
        if sign == "+":
            return arg
        word = _PREFIXES[sign]
        return syntax.Application(word, (arg,), Span(_span(sign).start, arg.at.end))

    def compare(self, left: Node, sign: Token, right: Node) -> syntax.Application:
        return syntax.Application(_COMPARISONS[sign], (left, right), Span(left.at.start, right.at.end))

    def chained(self, *parts: Any) -> Node:
        raise Problem(_span(parts[3]), "comparisons do not chain; write 'a < b and b < c'")

    def reduction(self, call: _Call, body: Node, chained: bool = False) -> syntax.Reduction:
        if call.settings:
            raise Problem(call.settings[0].name.at, "a reduction has indices only; parameters by name stand in calls")
        at = Span(_span(call.name).start, body.at.end)
        return syntax.Reduction(_name(call.name), call.bounds, body, at, chained)

    def reduction_mul(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.mul(left, tail), chained=True)

    def reduction_div(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.div(left, tail), chained=True)

    def reduction_floordiv(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.floordiv(left, tail), chained=True)

    def reduction_mod(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.mod(left, tail), chained=True)

    def call(self, function: Token, bounds: Any, settings: Any) -> _Call:
        return _Call(function, bounds or (), settings or ())

    def settings(self, *items: syntax.Setting) -> tuple[syntax.Setting, ...]:
        return items

    def setting(self, name: Token, value: Node) -> syntax.Setting:
        return syntax.Setting(_name(name), value)

    def application(self, call: _Call) -> syntax.Application:
        for b in call.bounds:
            if b.extent is not None:
                raise Problem(
                    b.extent.at, "only the index of a reduction takes an extent; its body is missing: sum(k: 3) x[n+k]"
                )
        name = _name(call.name)
        values = [*(b.value for b in call.bounds), *(s.value for s in call.settings)]
        last = values[-1].at.end + 1 if values else name.at.end + 2
        args = tuple(b.value for b in call.bounds)
        return syntax.Application(name.text, args, Span(name.at.start, last), name.at, call.settings)

    def literal(self, token: Token) -> syntax.Literal:
        return _number(token)

    def name(self, token: Token) -> Node:
        if token in _WORDS:
            return syntax.Literal(_WORDS[token], _span(token))
        return _name(token)

    def access(self, tensor: Token, index: tuple[Node, ...] | None) -> syntax.Access:
        name = _name(tensor)
        end = index[-1].at.end + 1 if index else name.at.end + 2
        return syntax.Access(name, index or (), Span(name.at.start, end))

    def qualified(self, left: Token, right: Token) -> syntax.Qualified:
        return syntax.Qualified(f"{_name(left).text}.{_name(right).text}", Span(_span(left).start, _span(right).end))


# --- Lark's errors as ours --------------------------------------------------------------------------------------------

_SPELLED = {
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COMMA": "','",
    "COLON": "':'",
    "SEMICOLON": "';'",
    "ASSIGN": "'='",
    "_ARROW": "'->'",
    "_OP": "'op'",
    "_NL": "the end of the line",
    "$END": "the end of the text",
    "NAME": "a name",
    "NUMBER": "a number",
    "ELEMENT_TYPE": "': element type'",
    "_PAD": "'pad'",
    "_PER_ITEM": "'per item'",
}
_VALUE_STARTS = {"NAME", "NUMBER", "LPAR"}
_OPERATORS = {"STAR", "SLASH", "PLUS", "MINUS", "_POWER", "COMPARE", "_AND", "_OR"}

_CHARACTER_HINTS = {
    "!": "; negation is written 'not', inequality '!='",
    "{": "; indices stand in square brackets",
    "}": "; indices stand in square brackets",
    "?": "; a choice is written where(condition, a, b)",
    "\\": "; a line goes on while a bracket is open",
    ";": "; parameters follow a ';' after the inputs, and statements end with the line",
    "'": "; the language has no strings",
    '"': "; the language has no strings",
}


def _explained(text: str, error: UnexpectedToken | UnexpectedCharacters | UnexpectedEOF) -> Problem:
    if isinstance(error, UnexpectedCharacters):
        at = error.pos_in_stream or 0
        c = text[at]
        note = _CHARACTER_HINTS.get(c, "" if c.isascii() else "; outside comments only ASCII is read")
        return Problem(Span(at, at + 1), f"the character '{escaped(c)}' has no meaning here{note}")
    if isinstance(error, UnexpectedEOF):
        return Problem(Span(len(text), len(text)), "the text ends too early")
    token = error.token
    expected = set(error.accepts or error.expected)
    at = len(text) - 1 if token.type == "$END" else token.start_pos or 0
    if token.type == "_NL":
        at = len(text[:at].rstrip(" \t"))  # not behind a comment
    place = Span(at, at + max(1, len(token.rstrip("\n \t\r\f"))))
    found = _SPELLED.get(token.type, "") if token.type in ("_NL", "$END") else f"'{escaped(token[:40])}'"
    return Problem(place, f"expected {_wanted(expected)}, found {found}{_hint(token, expected, text)}")


def _wanted(expected: set[str]) -> str:
    words = []
    if "HINT" in expected:
        words.append("a statement")
        expected = expected - {"NAME"}
    if "UPDATE" in expected:
        expected = expected - {"COMMA"}
    if "COLON" in expected and "_PAD" in expected and "RPAR" not in expected:
        return "':'"
    if expected >= _VALUE_STARTS:
        words.append("a value")
        expected = expected - _VALUE_STARTS - {"NOT", "PLUS", "MINUS"}
    if "STAR" in expected:
        words.append("an operator")
        expected = expected - _OPERATORS - _VALUE_STARTS - {"LSQB", "DOT"}
    elif "NOT" not in expected and {"PLUS", "MINUS"} <= expected:
        expected = expected - {"PLUS", "MINUS"}
    words += sorted(_SPELLED[t] for t in expected if t in _SPELLED)
    return listed(words)


_REDUCTION_WORD = re.compile(rf"\b(?:{'|'.join(REDUCTIONS)})[ \t]*(?:\[[^\]]*\])?[ \t]*$")


def _hint(token: Token, expected: set[str], text: str) -> str:
    """A way out of the mistake that most likely stands behind an unexpected token, or nothing."""
    before = text[max(0, (token.start_pos or 0) - 200) : token.start_pos]
    value = token.type in ("NAME", "NUMBER", "LPAR")
    after_value = "STAR" in expected
    hints = (
        ("ASSIGN" in expected and "def" in before.rpartition("\n")[2].split(), "function"),
        (not after_value and "ASSIGN" in expected, "statement"),
        (token == "=" and before.endswith("="), "assign"),
        (token in ("&", "|") and before.endswith(token), "logic"),
        (token == "=" and after_value, "compare"),
        ("_ARROW" in expected, "arrow"),
        (not after_value and expected >= {"COLON", "_PAD"}, "colon"),
        (after_value and value and _REDUCTION_WORD.search(before) is not None, "reduction"),
        (after_value and value, "operator"),
        (token.type == "_NL" and expected >= _VALUE_STARTS, "line"),
        ("_OP" in expected and "HINT" not in expected, "op"),
    )
    return next((_HINTS[key] for holds, key in hints if holds), "")


_HINTS = {
    "function": "; a function reads: def name(x, y) = expression",
    "statement": "; a statement reads target[indices] = expression",
    "logic": "; logic is written with the words and, or, not",
    "assign": "; a statement assigns with a single '='",
    "compare": "; '=' assigns, '==' compares",
    "arrow": "; the header names its outputs: op name(inputs) -> outputs:",
    "colon": "; the header ends with ':'",
    "reduction": "; a reduction names its indices in round brackets: sum(k) x[n,k]",
    "operator": "; two values need an operator such as '*' between them",
    "line": "; an expression goes on in the next line only inside brackets",
    "op": "; an op starts with: op name(inputs) -> outputs:",
}
