"""Lark's errors as the language's: what was expected, what was found, and the mistake that is likely behind it."""

from __future__ import annotations

import re

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

from tilewright.dsl.diagnostics import Problem, escaped, listed
from tilewright.dsl.syntax import Span
from tilewright.dsl.vocabulary import REDUCTIONS

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


def explained(text: str, error: UnexpectedToken | UnexpectedCharacters | UnexpectedEOF) -> Problem:
    """What Lark could not read, in the language's words, with the place and a way out where one is likely."""
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
