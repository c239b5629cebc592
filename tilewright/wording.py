"""Times, quantities and rows of text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

LINE = 116
"""Characters of a line."""


def duration(seconds: float) -> str:
    """A time with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e6 * seconds:.3g} µs"


def quantity(number: float, unit: str) -> str:
    """A number with three digits and a decimal prefix: 12.6 MB, 550 kop, 1.2 Gop."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def row(name: str, lines: Sequence[str], width: int = 10) -> str:
    """Lines beside a name, wrapped."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, LINE - width, subsequent_indent="  ")]
    return "\n".join(f"  {'' if n else name:<{width}}{line}" for n, line in enumerate(wrapped))
