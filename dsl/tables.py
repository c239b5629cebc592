"""The parser's tables, kept on disk between runs: computing them from the grammar takes a quarter of a second.

The file is JSON under a digest of itself, so that a damaged one is a miss; its name is a digest of the grammar and of
Lark's version, so that it can never be a stale one. Lark's own cache holds pickles, which can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from tilewright.folders import cache_directory, write_atomically

_OPTIONS: dict[str, Any] = {"parser": "lalr", "lexer": "contextual", "maybe_placeholders": True}


def parser(grammar: str, start: list[str], transformer: lark.Transformer[Any, Any]) -> lark.Lark:
    """An LALR parser of the grammar that applies `transformer` as it goes."""
    file = table_file(grammar, start)
    tables = _read(file)
    if tables is not None:
        load: Callable[..., lark.Lark] = lark.Lark._load_from_dict
        return load(*tables, transformer=transformer)
    made = lark.Lark(grammar, start=start, transformer=transformer, **_OPTIONS)
    data, memo = made.memo_serialize([TerminalDef, Rule])
    data["options"]["transformer"] = None
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time only
        _write(file, data, memo)
    return made


def table_file(grammar: str, start: list[str]) -> Path:
    """Where the tables of a grammar lie."""
    key = json.dumps([lark.__version__, start, _OPTIONS, grammar], sort_keys=True)
    return cache_directory() / "grammar" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> tuple[dict[str, Any], dict[int, Any]] | None:
    try:
        digest, payload = file.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    data, memo, tokens, states = json.loads(payload)
    data["parser"]["parser"] |= {"tokens": _numbered(tokens), "states": _numbered(states)}
    return data, _numbered(memo)


def _numbered(table: Any) -> Any:
    """JSON's objects have texts as keys; these tables have numbers."""
    if not isinstance(table, dict) or not all(key.isdigit() for key in table):
        return table
    return {int(key): _numbered(entry) for key, entry in table.items()}


def _write(file: Path, data: dict[str, Any], memo: dict[int, Any]) -> None:
    table = data["parser"]["parser"]
    rest = {**data, "parser": {**data["parser"], "parser": {**table, "tokens": None, "states": None}}}
    payload = json.dumps([rest, memo, table["tokens"], table["states"]]).encode()
    write_atomically(file, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


__all__ = ["parser", "table_file"]
