"""Sizes: what header names stand for, index expressions with numbers put in, and the extents of indices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.dsl import syntax
from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem
from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Call, Computed, Const, Expr, IndexValue
from tilewright.dsl.syntax import Access, Application, Literal, Name, Node
from tilewright.dsl.vocabulary import INDEX_OPERATIONS
from tilewright.errors import ShapeError

LARGEST = 2**62
"""Numbers of this magnitude and above are refused wherever sizes are computed."""


@dataclass
class Sizes:
    """Integers by name, each with the place it came from."""

    op: str
    values: dict[str, int] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str, value: int, place: str) -> None:
        """Set a size, or check it against what is known."""
        known = self.values.get(name)
        if known is None:
            self.values[name], self.places[name] = value, place
        elif known != value:
            raise ShapeError(
                f"op {self.op}: {place} should be {name} = {known} (from {self.places[name]}), found {value}"
            )

    def evaluate(self, node: Node, indices: Collection[str] = ()) -> Affine | None:
        """A checked index expression or size in numbers; None if it names a size that is not known (yet), or data."""
        match node:
            case Literal():
                return Affine((), int(node.value))
            case Name():
                if node.text in indices:
                    return Affine.index(node.text)
                value = self.values.get(node.text)
                return None if value is None else Affine((), value)
            case Application() if is_arithmetic(node):
                args = [self.evaluate(a, indices) for a in node.args]
                known = [a for a in args if a is not None]
                return self._operation(node, known) if len(known) == len(args) else None
            case _:
                return None

    def integer(self, node: Node) -> int | None:
        """A checked size in numbers; None if it names a size that is not known (yet)."""
        value = self.evaluate(node)
        return None if value is None else value.constant

    def _operation(self, node: Application, args: Sequence[Affine]) -> Affine:
        a, b = args[0], args[-1]
        if node.function in ("div", "floordiv", "mod") and not b.terms and b.constant == 0:
            raise self._impossible(node, "divides by zero")
        if _bends(node.function, args):
            return Affine.atom(Computed(_as_call(node.function, args)))
        match node.function:
            case "add":
                result = a + b
            case "sub":
                result = a + b * -1
            case "neg":
                result = a * -1
            case "mul":
                result = a * b.constant if not b.terms else b * a.constant
            case "max" | "min":
                pick = max if node.function == "max" else min
                result = Affine((), pick(x.constant for x in args))
            case "div" | "floordiv":
                result = Affine((), a.constant // b.constant)
            case "mod":
                result = Affine((), a.constant % b.constant)
            case "bitand":
                result = Affine((), a.constant & b.constant)
            case "bitor":
                result = Affine((), a.constant | b.constant)
            case "shl" | "shr":
                if not 0 <= b.constant < 64:
                    raise self._impossible(node, "moves by a number of bits outside 0 to 63")
                up = node.function == "shl"
                result = Affine((), a.constant << b.constant if up else a.constant >> b.constant)
            case _:
                if not 0 <= b.constant <= 64:
                    raise self._impossible(node, "has an exponent outside 0 to 64")
                result = Affine((), a.constant**b.constant)
        if max(abs(result.constant), *(abs(c) for _, c in result.terms), 0) >= LARGEST:
            raise self._impossible(node, "is too large")
        return result

    def _impossible(self, node: Node, reason: str) -> ShapeError:
        names = sorted({n.text for n in syntax.walk(node) if isinstance(n, Name) and n.text in self.values})
        values = ", ".join(f"{n} = {self.values[n]}" for n in names)
        return ShapeError(f"op {self.op}: {syntax.node_text(node)} {reason}" + (f" (with {values})" if values else ""))


def is_arithmetic(node: Node) -> bool:
    """True for an operator of integers, and for min and max."""
    if not isinstance(node, Application):
        return False
    return node.function in ("min", "max") or (node.called is None and node.function in INDEX_OPERATIONS)


def _bends(function: str, args: Sequence[Affine]) -> bool:
    """Whether an operation on index expressions gives something that is not linear in the indices."""
    if function in ("add", "sub", "neg"):
        return False
    return sum(bool(a.terms) for a in args) > (1 if function == "mul" else 0)


def _as_call(function: str, args: Sequence[Affine]) -> Expr:
    """The operation as an integer expression; min and max of many are taken two at a time."""
    function = "floordiv" if function == "div" else function
    total: Expr = IndexValue(args[0])
    for a in args[1:]:
        other = IndexValue(a) if a.terms else Const(a.constant, DType.I32)
        total = Call(function, (total, other), DType.I32)
    return total


@dataclass(frozen=True)
class OpenIndex:
    """An index whose extent is wanted."""

    name: str
    extent: Node | None
    """As written: `sum(r: 3)`."""
    declared: int | None
    """By the header's shape of the target."""
    place: str
    """`dimension 2 of y` for an index on the left, empty for one of a reduction."""
    at: syntax.Span


@dataclass(frozen=True)
class _Position:
    """One dimension of one read."""

    place: str
    size: int
    value: Affine | None
    bare: str | None


class Extents:
    """Finds the extent of every index of one statement.

    In this order: as written after a colon; by the declared shape of the target; by the dimension that the bare index
    reads (all must agree); for an index on the left, by the largest range that its reads allow.

    ``twins`` are indices of scans, by the index that each runs along: they have the same extent.
    """

    def __init__(self, sizes: Sizes, wanted: Sequence[OpenIndex], twins: Mapping[str, str] | None = None) -> None:
        self.sizes = sizes
        self.wanted = {w.name: w for w in wanted}
        self.twins = dict(twins or {})
        self.found: dict[str, int] = {}
        self.places: dict[str, str] = {}

    def solve(self, accesses: Sequence[Access], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Extents by name. ShapeError for sizes that do not fit, Problem for what the text must say."""
        for w in self.wanted.values():
            if w.declared is not None:
                self._fix(w.name, w.declared, w.place)
            if w.extent is not None:
                self._written(w)
        positions = [p for access in accesses for p in self._positions(access, shapes[access.tensor.text])]
        for p in positions:
            if p.bare is not None:
                self._fix(p.bare, p.size, p.place)
        while True:
            known = len(self.found)
            for name in [n for n in self.wanted if n not in self.found]:
                self._infer(name, positions)
            if len(self.found) == len(self.wanted):
                return self.found | {twin: self.found[self._original(twin)] for twin in self.twins}
            if len(self.found) == known:
                raise self._unknown()

    def _written(self, w: OpenIndex) -> None:
        assert w.extent is not None
        value = self.sizes.integer(w.extent)
        text = syntax.node_text(w.extent)
        if value is None:
            raise ShapeError(f"op {self.sizes.op}: the extent {text} of index {w.name} names a size that is not known")
        if value < 0:
            raise ShapeError(f"op {self.sizes.op}: the extent {text} of index {w.name} is negative: {value}")
        self._fix(w.name, value, f"the extent {text} written with it")

    def _fix(self, name: str, value: int, place: str) -> None:
        known = self.found.setdefault(name, value)
        self.places.setdefault(name, place)
        if known != value:
            raise ShapeError(
                f"op {self.sizes.op}: index {name} runs over {known} by {self.places[name]}, but over {value} by "
                f"{place}; sizes that broadcast are read at 0, a part or a padded range at {name} + 0"
            )

    def _original(self, name: str) -> str:
        """The index itself, or the one that it is a twin of."""
        while name in self.twins:
            name = self.twins[name]
        return name

    def _positions(self, access: Access, shape: tuple[int, ...]) -> list[_Position]:
        result = []
        names = {*self.wanted, *self.twins}
        originals = {twin: Affine.index(self._original(twin)) for twin in self.twins}
        for d, (node, size) in enumerate(zip(access.index, shape, strict=True)):
            bare = self._original(node.text) if isinstance(node, Name) and node.text in names else None
            value = self.sizes.evaluate(node, names)
            value = None if value is None else value.substitute(originals)
            result.append(_Position(f"dimension {d} of {access.tensor.text}", size, value, bare))
        return result

    def _infer(self, name: str, positions: Sequence[_Position]) -> None:
        """The extent for which reads stay inside, a negative start counting as padding on both sides."""
        if not self.wanted[name].place:
            return
        sizes: dict[int, str] = {}
        for p in positions:
            if p.value is None or p.value.coefficient(name) == 0:
                continue
            if not p.value.is_linear:
                continue
            others = [(str(n), c) for n, c in p.value.terms if n != name]
            if p.value.coefficient(name) < 0 or any(n not in self.found for n, _ in others):
                return
            start = p.value.constant + sum(c * (self.found[n] - 1) for n, c in others if c < 0)
            reach = sum(abs(c) * (self.found[n] - 1) for n, c in others)
            room = p.size - 1 - reach - start if start >= 0 else p.size - 1 - reach + 2 * -start
            sizes.setdefault(room // p.value.coefficient(name) + 1, p.place)
        if len(sizes) == 1:
            (value, place), *_ = sizes.items()
            if value < 0:
                raise ShapeError(
                    f"op {self.sizes.op}: {self.wanted[name].place} would have size {value} by {place}; "
                    "the window is larger than what it slides over"
                )
            self._fix(name, value, place)
        elif sizes:
            ways = " and ".join(f"{value} by {place}" for value, place in sizes.items())
            raise ShapeError(
                f"op {self.sizes.op}: {self.wanted[name].place} has size {ways}; a size equation (P = ...) decides"
            )

    def _unknown(self) -> Exception:
        open_ = [w for w in self.wanted.values() if w.name not in self.found]
        for w in open_:
            if not w.place:
                return Problem(
                    w.at, f"the extent of index {w.name} does not follow from its reads; write it: sum({w.name}: 3)"
                )
        w = open_[0]
        return ShapeError(
            f"op {self.sizes.op}: {w.place} (index {w.name}) does not follow from the arguments; give it a size "
            "equation such as P = (H - R) / 2 + 1, or a value in sizes"
        )
