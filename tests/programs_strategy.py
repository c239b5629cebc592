"""Random legal programs, as texts of the language, for Hypothesis.

Programs are of two kinds. In *exact* ones every value is a whole number that its type holds exactly, whatever the order
of evaluation: all kernels must agree to the bit with NumPy. In *smooth* ones functions without jumps are nested on
bounded values, so that rounding errors stay small against the bound that is kept for every value.

Sizes, types and extents are written out, so that a text needs no arguments beside its arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from tilewright.dsl.dtypes import DType, promote

Draw = st.DrawFn
MOST_WORK = 20_000
"""Most values of one statement: outputs times the extents of its reductions."""

EXTENTS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 33])
_TYPES = st.sampled_from(
    [DType.F32] * 6 + [DType.F16, DType.BF16, DType.F64, DType.I8, DType.U8, DType.I16, DType.I32, DType.I64]
)
_EXACT = {DType.F16: 2**11, DType.BF16: 2**8, DType.F32: 2**24, DType.F64: 2**53}


@dataclass(frozen=True)
class Term:
    """An expression with the type it is computed in and the range of its values."""

    text: str
    dtype: DType
    low: float
    high: float

    @property
    def bound(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def is_exact(self) -> bool:
        """True if whole numbers of this range are exact in this type."""
        if self.dtype in _EXACT:
            return self.bound <= _EXACT[self.dtype]
        if self.dtype is DType.BOOL:
            return self.low >= 0 and self.high <= 1
        info = np.iinfo(self.dtype.numpy)
        return bool(info.min <= self.low and self.high <= info.max)


@dataclass(frozen=True)
class Operand:
    """A tensor that expressions may read."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    low: float
    high: float
    pad: int = 0
    whole: bool = False
    """True for integers in programs of floats."""

    @property
    def declaration(self) -> str:
        """As it stands in a header."""
        pad = f" pad {self.pad}" if self.pad else ""
        return f"{self.name}[{', '.join(map(str, self.shape))}]: {self.dtype.value}{pad}"


@dataclass(frozen=True)
class Case:
    """A text with the arrays' description."""

    text: str
    inputs: tuple[Operand, ...]
    exact: bool
    bound: float
    """No value of an output, nor of what is added up to one, is larger."""
    layout: str
    seed: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {t.name: t.shape for t in self.inputs}

    def arrays(self) -> dict[str, np.ndarray]:
        """Values for the inputs, within the ranges they were drawn for."""
        rng = np.random.default_rng(self.seed)
        made = {}
        for t in self.inputs:
            whole = rng.integers(int(t.low), int(t.high), t.shape, endpoint=True)
            drawn = whole if self.exact or t.whole else rng.uniform(t.low, t.high, t.shape)
            made[t.name] = drawn.astype(t.dtype.numpy)
        return made


@dataclass
class Writer:
    """The state of one program while it is drawn."""

    draw: Draw
    exact: bool
    inputs: list[Operand] = field(default_factory=list)
    known: list[Operand] = field(default_factory=list)
    """Intermediates that were assigned already."""
    unread: set[str] = field(default_factory=set)
    bound: float = 1.0
    reductions: int = 0

    def one_of(self, *values: object) -> object:
        return self.draw(st.sampled_from(values))

    def often(self) -> bool:
        return self.draw(st.integers(0, 3)) < 3

    def seldom(self) -> bool:
        return self.draw(st.integers(0, 9)) == 9

    # --- tensors and indices ------------------------------------------------------------------------------------------

    def places(self, extent: int, size: int) -> Operand:
        """A new input of integers, most of which are positions in a dimension of `size`."""
        made = Operand(f"x{len(self.inputs)}", DType.I32, (extent,), -1, size, whole=True)
        self.inputs.append(made)
        return made

    def input(self, shape: tuple[int, ...], dtype: DType | None = None, pad: bool = True) -> Operand:
        """A new input."""
        dtype = dtype or (self.draw(_TYPES) if self.exact else DType.F32)
        low = 0 if dtype.value.startswith("u") else -3
        value = self.draw(st.integers(max(low, -2), 3)) if pad and self.seldom() else 0
        made = Operand(f"x{len(self.inputs)}", dtype, shape, low, 3, value)
        self.inputs.append(made)
        return made

    def read(self, t: Operand, positions: Sequence[str], inside: bool) -> Term:
        """A read of a tensor at written positions; `inside` if none of them can leave it."""
        self.unread.discard(t.name)
        low, high = (t.low, t.high) if inside else (min(t.low, t.pad), max(t.high, t.pad))
        return Term(f"{t.name}[{', '.join(positions)}]", t.dtype, low, high)

    def leaf(self, indices: Mapping[str, int]) -> Term:
        """A read at random positions of a new input or a known tensor."""
        old = [*self.inputs, *self.known]
        old = [t for t in old if indices or 0 not in t.shape]
        waiting = [t for t in old if t.name in self.unread]
        if waiting or (old and self.draw(st.booleans())):
            t = self.draw(st.sampled_from(waiting or old))
            places = [self._position(indices, size) for size in t.shape]
        else:
            names = self.draw(st.lists(st.sampled_from(sorted(indices)), max_size=3)) if indices else []
            places, shape = [], []
            for name in names:
                if self.often():
                    places.append((name, True))
                    shape.append(indices[name])
                else:
                    shape.append(0 if self.seldom() else self.draw(st.integers(1, 12)))
                    places.append(self._position(indices, shape[-1], name))
            t = self.input(tuple(shape))
        return self.read(t, [text for text, _ in places], all(inside for _, inside in places))

    def _position(self, indices: Mapping[str, int], size: int, name: str | None = None) -> tuple[str, bool]:
        """A position in a dimension, and whether it is certainly inside."""
        fitting = sorted(n for n, extent in indices.items() if extent == size)
        if fitting and self.often():
            return self.draw(st.sampled_from(fitting)), True
        if not indices or (size > 0 and self.seldom()):
            return "0", True
        terms, low, high = [], 0, 0
        for n in {name or self.draw(st.sampled_from(sorted(indices))), self.draw(st.sampled_from(sorted(indices)))}:
            factor = int(self.draw(st.sampled_from([1, 1, 1, 2, 3, -1])))
            reach = factor * max(indices[n] - 1, 0)
            low, high = low + min(reach, 0), high + max(reach, 0)
            terms.append(f"{factor}*{n}" if factor >= 0 else f"({factor})*{n}")
        offset = self.draw(st.integers(-4, 4))
        linear = f"{' + '.join(sorted(terms))} + ({offset})"
        if self.often():
            return linear, low + offset >= 0 and high + offset < size
        return self._bent(linear, name or min(indices), indices, size), False

    def _bent(self, linear: str, name: str, indices: Mapping[str, int], size: int) -> str:
        """A position that is not linear in the indices."""
        kinds = ["({}) / 2", "({}) / 3", "({}) % 2", "({}) % 5", "where({0} < 2, {0}, 1)", "min({}, 2)"]
        if size:
            kinds += [f"clamp({{}}, 0, {size - 1})", f"({{}}) % {size}"]
        if self.draw(st.booleans()):
            return f"{self.places(indices[name], size).name}[{name}]"
        return str(self.one_of(*kinds)).format(linear)

    # --- expressions --------------------------------------------------------------------------------------------------

    def expression(self, indices: Mapping[str, int], depth: int, work: int) -> Term:
        """A random expression over the given indices, which are evaluated `work` times."""
        if depth <= 0:
            return self.leaf(indices)
        if self.draw(st.integers(0, 3)) == 3 and self.reductions < 3:
            made = self.reduction(indices, depth, work)
        else:
            made = self.exact_call(indices, depth, work) if self.exact else self.smooth_call(indices, depth, work)
        self.bound = max(self.bound, made.bound)
        return made

    def reduction(self, indices: Mapping[str, int], depth: int, work: int) -> Term:
        """A reduction over one or two new indices."""
        own: dict[str, int] = {}
        for _ in range(self.draw(st.integers(1, 2))):
            extent = 0 if self.seldom() else self.draw(EXTENTS)
            if work * math.prod(own.values()) * max(extent, 1) <= MOST_WORK:
                own[f"r{self.reductions}_{len(own)}"] = extent
        if not own:
            return self.leaf(indices)
        self.reductions += 1
        count = math.prod(own.values())
        body = self.expression({**indices, **own}, depth - 1, work * max(count, 1))
        end = self._end(indices, own)
        missing = [n for n in own if end or not re.search(rf"\b{n}\b", body.text)]
        if missing:  # a reduction must use its indices
            other = self.read(self.input(tuple(own[n] for n in missing)), missing, inside=True)
            body = self.larger(body, other)
        return self.reduced(body, own, end)

    def _end(self, indices: Mapping[str, int], own: Mapping[str, int]) -> str:
        """Now and then the end of a prefix reduction, behind its index; else ''."""
        if len(own) != 1 or not indices or self.often():
            return ""
        name = self.draw(st.sampled_from(sorted(indices)))
        return f" {self.one_of('<=', '<', '>=', '>')} {self.one_of(name, f'2*{name} + 1', f'{name} / 2')}"

    def larger(self, a: Term, b: Term) -> Term:
        """The maximum, which is exact as long as the common type holds both."""
        dtype = promote(a.dtype, b.dtype)
        if not Term("", dtype, min(a.low, b.low), max(a.high, b.high)).is_exact:
            dtype = DType.F64
            a, b = (Term(f"f64({t.text})", dtype, t.low, t.high) for t in (a, b))
        return Term(f"max({a.text}, {b.text})", dtype, max(a.low, b.low), max(a.high, b.high))

    def reduced(self, body: Term, own: Mapping[str, int], end: str = "") -> Term:
        """`kind(indices) body` with a kind whose result is exact; sums that are too large become maxima."""
        count = math.prod(own.values())
        names = f"{min(own)}{end}" if end else ", ".join(f"{n}: {extent}" for n, extent in own.items())
        kind = self.one_of("sum", "sum", "max", "min", "prod", "any", "all", "mean", "argmax", "argmin", "logsumexp")
        if end and kind in ("mean", "argmax", "argmin", "logsumexp"):
            kind = "sum"
        dtype = body.dtype.accumulator
        if kind in ("any", "all"):
            return Term(f"f32({kind}({names}) ({body.text} > 0))", DType.F32, 0, 1)
        if kind in ("argmax", "argmin") and self.exact:
            return Term(f"({kind}({names}) ({body.text}))", DType.I64, 0, max(count - 1, 0))
        if kind in ("mean", "logsumexp") and not self.exact and count:
            return Term(f"({kind}({names}) ({body.text}))", dtype, body.low, body.high + math.log(count))
        if kind == "sum":
            made = Term(f"(sum({names}) ({body.text}))", dtype, min(0, count * body.low), max(0, count * body.high))
            if made.is_exact or not self.exact:
                return made
        if kind == "prod" and self.exact and count <= 16 and body.bound**count <= 1000:
            most = max(body.bound, 1) ** count
            return Term(f"(prod({names}) ({body.text}))", dtype, -most if body.low < 0 else 0, most)
        kind = "min" if kind == "min" else "max"
        text = f"({kind}({names}) ({body.text}))"
        if count and not end:
            return Term(text, body.dtype, body.low, body.high)
        low = 0 if body.dtype.value.startswith("u") else -1
        # over nothing a maximum is infinite, or the end of an integer type
        return Term(f"max(min({text}, 2), {low})", body.dtype, low, 2)

    def exact_call(self, indices: Mapping[str, int], depth: int, work: int) -> Term:
        """A function of whole numbers; one that would leave the exact range becomes a maximum."""
        a = self.expression(indices, depth - 1, work)
        if self.draw(st.integers(0, 3)) == 3:
            return self._exact_unary(a)
        b = self._second(a, indices, depth, work)
        dtype = promote(a.dtype, b.dtype)
        if not all(Term("", dtype, t.low, t.high).is_exact for t in (a, b)):
            return a
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        test = f"{a.text} {self.one_of('<', '<=', '==', '!=', '>', '>=')} {b.text}"
        made = {
            "add": Term(f"({a.text} + {b.text})", dtype, a.low + b.low, a.high + b.high),
            "sub": Term(f"({a.text} - {b.text})", dtype, a.low - b.high, a.high - b.low),
            "mul": Term(f"({a.text} * {b.text})", dtype, min(corners), max(corners)),
            "where": Term(f"where({test}, {a.text}, {b.text})", dtype, min(a.low, b.low), max(a.high, b.high)),
            "min": Term(f"min({a.text}, {b.text})", dtype, min(a.low, b.low), min(a.high, b.high)),
        }.get(str(self.one_of("add", "sub", "mul", "where", "min", "max")))  # fmt: skip
        if made is not None and made.is_exact:
            return made
        return Term(f"max({a.text}, {b.text})", dtype, max(a.low, b.low), max(a.high, b.high))

    def _second(self, a: Term, indices: Mapping[str, int], depth: int, work: int) -> Term:
        """The other operand: an expression, a number, or an index."""
        if self.often():
            return self.expression(indices, depth - 1, work)
        if indices and a.dtype is DType.F32 and self.draw(st.booleans()):
            name = self.draw(st.sampled_from(sorted(indices)))
            return Term(f"index(2*{name} + 1)", DType.I32, 1, 2 * max(indices[name], 1) - 1)
        value = self.draw(st.integers(0, 3))
        return Term(str(value), a.dtype, value, value)

    def _exact_unary(self, a: Term) -> Term:
        made = {
            "neg": Term(f"(-{a.text})", a.dtype, -a.high, -a.low),
            "abs": Term(f"abs({a.text})", a.dtype, 0, a.bound),
            "relu": Term(f"relu({a.text})", a.dtype, max(a.low, 0), max(a.high, 0)),
            "sign": Term(f"sign({a.text})", a.dtype, -1 if a.low < 0 else 0, 1),
            "square": Term(f"({a.text}) ^ 2", a.dtype, 0, a.bound**2),
            "mod": Term(f"({a.text} % 3)", a.dtype, 0, 2),
            "floordiv": Term(f"({a.text} // 2)", a.dtype, a.low // 2, a.high // 2),
            "bitand": a if a.dtype.is_float else Term(f"({a.text} & 6)", a.dtype, 0, 6),
            "clamp": Term(f"clamp({a.text}, 0, 2)", a.dtype, max(0, min(a.low, 2)), max(0, min(a.high, 2))),
            "twice": Term(f"twice({a.text})", a.dtype, 2 * a.low, 2 * a.high),
            "f32": Term(f"f32({a.text})", DType.F32, a.low, a.high),
            "i32": Term(f"i32({a.text})", DType.I32, a.low, a.high),
        }[str(self.one_of(*_UNARY))]
        return made if made.is_exact else a

    def smooth_call(self, indices: Mapping[str, int], depth: int, work: int) -> Term:
        """A function without jumps whose value stays within ten times its arguments'."""
        a = self.expression(indices, depth - 1, work)
        x = f"tanh({a.text})" if a.bound > 4 else a.text
        if self.draw(st.booleans()):
            template, low, high = self.draw(st.sampled_from(_SMOOTH))
            return Term(template.format(x), a.dtype, low, high)
        b = self.expression(indices, depth - 1, work)
        y = f"tanh({b.text})" if b.bound > 4 else b.text
        template = self.draw(st.sampled_from(_SMOOTH_PAIRS))
        return Term(template.format(x, y), promote(a.dtype, b.dtype), -16, 16)


_UNARY = ("neg", "abs", "relu", "sign", "square", "mod", "floordiv", "bitand", "clamp", "twice", "f32", "i32")
_DEFINITIONS = "def once(u) = u\ndef twice(u) = once(u) + u\n"
_SMOOTH = [
    ("tanh({})", -1, 1),
    ("sigmoid({})", 0, 1),
    ("sin({})", -1, 1),
    ("cos({})", -1, 1),
    ("atan({})", -2, 2),
    ("erf({})", -1, 1),
    ("exp(-abs({}))", 0, 1),
    ("exp2(sin({}))", 0, 2),
    ("log(2 + abs({}))", 0, 2),
    ("log1p(abs({}))", 0, 2),
    ("sqrt(abs({}) + 1)", 1, 3),
    ("rsqrt(abs({}) + 1)", 0, 1),
    ("expm1(-abs({}))", -1, 0),
    ("relu({})", 0, 4),
    ("(-({}))", -4, 4),
    ("({}) ^ 2", 0, 16),
]
_SMOOTH_PAIRS = [
    "({} + {})", "({} - {})", "({} * {})", "(({}) / (1 + abs({})))", "max({}, {})", "min({}, {})",
]  # fmt: skip


def _header(inputs: Sequence[Operand], outputs: Sequence[str]) -> str:
    return f"op fuzz({', '.join(t.declaration for t in inputs)}) -> {', '.join(outputs)}:\n"


def left_side(name: str, indices: Mapping[str, int], bounds: bool) -> str:
    return f"{name}[{', '.join(f'{i}: {n}' if bounds else i for i, n in indices.items())}]"


def output_type(w: Writer, value: Term) -> DType:
    """A type that holds the value exactly."""
    if not w.exact:
        return DType.F32
    fits = [d for d in (DType.F32, DType.F64, DType.I32, DType.F16) if Term("", d, value.low, value.high).is_exact]
    return w.draw(st.sampled_from(fits or [DType.F64]))


@st.composite
def general(draw: Draw, exact: bool) -> Case:
    """One to three statements of random expressions: intermediates first, outputs after."""
    w = Writer(draw, exact)
    hidden, shown = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    outputs, lines = [], []
    for number in range(hidden + shown):
        is_output = number >= hidden
        rank = draw(st.integers(1, 3))
        indices = {"ijk"[d]: 0 if w.seldom() and w.seldom() else draw(EXTENTS) for d in range(rank)}
        while math.prod(indices.values()) > 2000:
            indices.popitem()
        w.reductions = 0
        value = w.expression(indices, draw(st.integers(1, 3)), math.prod(indices.values()))
        if is_output and number == hidden + shown - 1:
            value = _all_read(w, value, indices)
        name = f"y{number}" if is_output else f"t{number}"
        lines.append(f"    {left_side(name, indices, bounds=True)} = {value.text}\n")
        if is_output:
            sizes = ", ".join(map(str, indices.values()))
            outputs.append(f"{name}[{sizes}]: {output_type(w, value).value}")
        else:
            w.known.append(Operand(name, value.dtype, tuple(indices.values()), value.low, value.high))
            w.unread.add(name)
    return finished(w, outputs, lines)


def _all_read(w: Writer, value: Term, indices: Mapping[str, int]) -> Term:
    """The value with what no statement has read yet, so that nothing is assigned in vain."""
    while w.unread:
        value = w.larger(value, w.leaf(indices))
    w.bound = max(w.bound, value.bound)
    return value


def finished(w: Writer, outputs: Sequence[str], lines: Sequence[str]) -> Case:
    if not w.inputs:
        w.input(())
    layout = w.draw(st.sampled_from(["rows", "rows", "last", "scattered"]))
    text = _header(w.inputs, outputs) + "".join(lines)
    text = _DEFINITIONS + text if "twice(" in text else text
    return Case(text, tuple(w.inputs), w.exact, w.bound, layout, w.draw(st.integers(0, 2**16)))
