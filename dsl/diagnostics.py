"""Pictures of a place in a text, for error messages that can be shown on any terminal.

line 2, column 26: no tensor, size, parameter or index is called 'bb'; did you mean 'b'?
    2 |     y[n,c] = max(x[n,c] + bb[c], 0)
      |                           ^^
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tilewright.dsl.syntax import Span
from tilewright.errors import LanguageError

WINDOW = 100
"""Most characters of a source line that are shown."""


class Problem(Exception):
    """A mistake at a place of the text that is being read; parse.py and check.py turn it into a LanguageError."""

    def __init__(self, at: Span, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.message = message


def language_error(text: str, problem: Problem) -> LanguageError:
    """The error people see: line and column, what is wrong, the line with carets under the place."""
    start = min(problem.at.start, len(text))
    line = text.count("\n", 0, start) + 1
    begin = text.rfind("\n", 0, start) + 1
    end = text.find("\n", begin)
    source = text[begin : len(text) if end < 0 else end]
    column = start - begin
    width = max(1, min(problem.at.end - problem.at.start, len(source) - column))
    picture = _picture(source, column, width, str(line))
    return LanguageError(f"line {line}, column {column + 1}: {problem.message}\n{picture}", line, column + 1)


def _picture(source: str, column: int, width: int, number: str) -> str:
    first = max(0, column - WINDOW // 2)
    shown = source[first : first + WINDOW]
    before = escaped(shown[: column - first])
    marked = escaped(shown[column - first : column - first + width])
    after = escaped(shown[column - first + width :]).rstrip()
    left, right = "..." * (first > 0), "..." * (first + WINDOW < len(source))
    carets = " " * len(left + before) + "^" * max(1, len(marked))
    return f"    {number} | {left}{before}{marked}{after}{right}\n    {' ' * len(number)} | {carets}"


def escaped(text: str) -> str:
    """The text with everything a terminal could obey (control characters, escapes, direction marks) spelled out."""
    return "".join(_escaped(c) for c in text)


def _escaped(c: str) -> str:
    if c in "\t\r\f":
        return " "
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")


def counted(count: int, noun: str) -> str:
    """`1 index`, `2 indices`, `3 dimensions`."""
    plural = "indices" if noun == "index" else noun + "s"
    return f"{count} {noun if count == 1 else plural}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known name, or nothing."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == name.lower()]
    return f"; did you mean '{near[0]}'?" if near else ""


def listed(words: Iterable[str], last: str = "or") -> str:
    """`a, b or c`."""
    words = list(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
