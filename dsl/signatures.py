"""The header of an op from the signature of a Python function.

    def conv(x: "N,C,H,W: f16 pad 0", w: "O,C,R,S", *, stride: int, eps: float = 1e-5) -> "y[N,O,P,Q]":

Positional arguments are inputs, annotated with what stands behind their name in a header: a string, or
``Annotated[Tensor, "..."]`` where a type checker is to understand it. Keyword-only ones are parameters: int, bool or
float (f32), or a string with the language's type. The result's annotation lists the outputs.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Annotated, get_args, get_origin

from tilewright.dsl.trace import Header
from tilewright.errors import LanguageError

_TYPES = {"int": "int", "bool": "bool", "float": "f32"}


def header(function: Callable[..., object]) -> Header:
    """The header that a function's signature stands for; LanguageError for one that stands for none."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise LanguageError("an op is made from text or from a function with a name")
    signature = inspect.signature(function)
    inputs, parameters = [], []
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise LanguageError(f"op {name}: *{p.name} is neither an input nor a parameter; name each of them")
        if p.kind is p.KEYWORD_ONLY:
            parameters.append((p.name, _parameter(name, p)))
        elif p.default is not p.empty:
            raise LanguageError(f"op {name}: the input {p.name} cannot have a default; parameters stand behind a *")
        else:
            inputs.append((p.name, _input(name, p)))
    outputs = _text(signature.return_annotation)
    if outputs is None:
        raise LanguageError(f'op {name} names its outputs behind the arrow: def {name}(...) -> "y[N,C]"')
    return Header(name, tuple(inputs), tuple(parameters), tuple(_split(outputs)))


def _input(op: str, p: inspect.Parameter) -> str:
    text = _text(p.annotation)
    if text is None:
        raise LanguageError(f'op {op}: the input {p.name} needs its sizes: {p.name}: "N,C" ("..." for any shape)')
    dims, rest = re.match(r"([^:]*?)\s*((?::|\bpad\b).*)?$", text.strip(), re.S).groups(default="")  # type: ignore[union-attr]
    if dims == "...":
        return f"{p.name}{_spaced(rest)}"
    inner = dims[1:-1] if dims.startswith("[") else dims
    return f"{p.name}[{inner}]{_spaced(rest)}"


def _spaced(rest: str) -> str:
    return rest if not rest or rest.startswith(":") else f" {rest}"


def _parameter(op: str, p: inspect.Parameter) -> str:
    kind = p.annotation.__name__ if isinstance(p.annotation, type) else _text(p.annotation)
    if kind is None or p.annotation is p.empty:
        raise LanguageError(f"op {op}: the parameter {p.name} needs a type: int, bool or float")
    default = ""
    if p.default is not p.empty:
        default = f" = {str(p.default).lower()}"
    return f"{p.name}: {_TYPES.get(kind, kind)}{default}"


def _text(annotation: object) -> str | None:
    """The string of an annotation, whether annotations are kept as written or as objects; None if there is none."""
    if get_origin(annotation) is Annotated:
        return next((a for a in get_args(annotation)[1:] if isinstance(a, str)), None)
    if not isinstance(annotation, str):
        return None
    # `from __future__ import annotations` keeps the source of an annotation: a string in quotes, or Annotated[...]
    try:
        tree = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return annotation
    if isinstance(tree, ast.Constant):
        return tree.value if isinstance(tree.value, str) else "..." if tree.value is ... else annotation
    if isinstance(tree, ast.Subscript) and isinstance(tree.slice, ast.Tuple) and "Annotated" in ast.dump(tree.value):
        texts = [e.value for e in tree.slice.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        return texts[0] if texts else None
    return annotation


def _split(outputs: str) -> list[str]:
    """The declarations of an output list, split at the commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[\]]*\])", outputs)]
