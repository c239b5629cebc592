"""What stands for tensors, indices and numbers while an op is traced: operators on it build the language's syntax."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from tilewright.dsl import syntax
from tilewright.dsl.syntax import Access, Application, Bound, Literal, Name, Node, Span, node_text
from tilewright.errors import LanguageError

_HERE = Span(0, 0)
"""The place of what no text has yet."""

Number = int | float | bool


class Symbol:
    """Anything that stands in an expression; operators on it make larger ones.

    ``&``, ``|`` and ``~`` are the language's `and`, `or` and `not`; ``//`` and ``%`` round down.
    """

    __slots__ = ("node",)
    __hash__ = None  # type: ignore[assignment]  # == makes an expression

    def __init__(self, node: Node) -> None:
        self.node = node

    def __add__(self, other: Symbol | Number) -> Value:
        return operation("add", self, other)

    def __radd__(self, other: Number) -> Value:
        return operation("add", other, self)

    def __sub__(self, other: Symbol | Number) -> Value:
        return operation("sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return operation("sub", other, self)

    def __mul__(self, other: Symbol | Number) -> Value:
        return operation("mul", self, other)

    def __rmul__(self, other: Number) -> Value:
        return operation("mul", other, self)

    def __truediv__(self, other: Symbol | Number) -> Value:
        return operation("div", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return operation("div", other, self)

    def __floordiv__(self, other: Symbol | Number) -> Value:
        return operation("floordiv", self, other)

    def __rfloordiv__(self, other: Number) -> Value:
        return operation("floordiv", other, self)

    def __mod__(self, other: Symbol | Number) -> Value:
        return operation("mod", self, other)

    def __rmod__(self, other: Number) -> Value:
        return operation("mod", other, self)

    def __pow__(self, other: Symbol | Number) -> Value:
        return operation("pow", self, other)

    def __rpow__(self, other: Number) -> Value:
        return operation("pow", other, self)

    def __neg__(self) -> Value:
        return operation("neg", self)

    def __pos__(self) -> Value:
        return Value(self.node)

    def __abs__(self) -> Value:
        return applied("abs", self)

    def __invert__(self) -> Value:
        return operation("not", self)

    def __and__(self, other: Symbol | Number) -> Value:
        return operation("and", self, other)

    def __rand__(self, other: Number) -> Value:
        return operation("and", other, self)

    def __or__(self, other: Symbol | Number) -> Value:
        return operation("or", self, other)

    def __ror__(self, other: Number) -> Value:
        return operation("or", other, self)

    def __lt__(self, other: Symbol | Number) -> Value:
        return operation("lt", self, other)

    def __le__(self, other: Symbol | Number) -> Value:
        return operation("le", self, other)

    def __gt__(self, other: Symbol | Number) -> Value:
        return operation("gt", self, other)

    def __ge__(self, other: Symbol | Number) -> Value:
        return operation("ge", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]  # an expression, not a truth value
        return operation("eq", self, other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return operation("ne", self, other)

    def __bool__(self) -> NoReturn:
        raise LanguageError(
            f"{self} has no truth value while an op is traced; a choice is where(condition, a, b), and 'and', 'or', "
            "'not' are written &, |, ~ (with brackets around comparisons)"
        )

    def __iter__(self) -> NoReturn:
        raise LanguageError(f"{self} has no elements while an op is traced; a tensor is read at indices: x[n, c]")

    def __str__(self) -> str:
        return node_text(self.node)

    def __repr__(self) -> str:
        return f"<tilewright expression {self}>"


class Value(Symbol):
    """An expression."""

    __slots__ = ()


class Index(Symbol):
    """An index: bound by `each` or by a reduction."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, extent: Node | None = None) -> None:
        super().__init__(Name(name, _HERE))
        self.name = name
        self.extent = extent

    @property
    def bound(self) -> Bound:
        """Where it is introduced."""
        return Bound(self.node, self.extent)


class Tensor(Symbol):
    """A tensor: ``x[n, c]`` reads an element, ``x`` alone is all of it, for the short form."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(Name(name, _HERE))
        self.name = name

    def __getitem__(self, index: Symbol | int | tuple[Symbol | int, ...]) -> Value:
        """The element at an index per dimension."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(p, slice) for p in parts):
            raise LanguageError(f"{self.name} is read element by element: {self.name}[n, c]; there are no slices")
        return Value(Access(Name(self.name, _HERE), tuple(map(node_of, parts)), _HERE))


def node_of(x: object) -> Node:
    """Anything that can stand in an expression, as syntax; LanguageError for what cannot."""
    if isinstance(x, Symbol):
        return x.node
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, bool) or (isinstance(x, int | float) and not x < 0):
        return Literal(x, _HERE)
    if isinstance(x, int | float):
        return Application("neg", (Literal(-x, _HERE),), _HERE)
    raise LanguageError(f"{type(x).__name__} cannot stand in an expression; arrays are inputs of an op")


def operation(word: str, *operands: object) -> Value:
    """An operator, by its word."""
    return Value(Application(word, tuple(map(node_of, operands)), _HERE))


def applied(function: str, *args: object) -> Value:
    """A function of the language."""
    return Value(Application(function, tuple(map(node_of, args)), _HERE, _HERE))


def reduced(kind: str, indices: tuple[Bound, ...], body: object) -> Value:
    """A reduction."""
    return Value(syntax.Reduction(Name(kind, _HERE), indices, node_of(body), _HERE))


def indices(names: str, extent: Symbol | int | None = None) -> tuple[Index, ...]:
    """Indices by name, separated by spaces: ``m, n, k = indices("m n k")``.

    ``extent`` is what they run over where that does not follow from reads, as for a window's.
    """
    return tuple(index(name, extent) for name in names.replace(",", " ").split())


def index(name: str, extent: Symbol | int | None = None) -> Index:
    """One index, see `indices`."""
    check_name(name)
    return Index(name, None if extent is None else node_of(extent))


def check_name(name: str) -> None:
    """Reject what the language does not read as a name."""
    if not (name.isascii() and name.isidentifier()):
        raise LanguageError(f"{name!r} is no name; names are ASCII letters, digits and _")
