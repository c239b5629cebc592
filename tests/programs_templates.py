"""Random programs of the forms that families look for: contractions, windows, rows, and the short form.

`programs_strategy.general` meets these by luck only; here sizes, layouts, operands and epilogues are random, the form
is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hypothesis import strategies as st
from programs_strategy import EXTENTS, Case, Term, Writer, finished, general, left_side, output_type

from tilewright.dsl.dtypes import DType

_FEW = st.sampled_from([1, 2, 3, 5, 8, 11, 17])
_FLOATS = st.sampled_from([DType.F32, DType.F32, DType.F16, DType.BF16, DType.F64])


@st.composite
def contractions(draw: st.DrawFn) -> Case:
    """A sum of products over indices in any order of dimensions, with strides and pads along some, and an epilogue."""
    w = Writer(draw, exact=True)
    groups = _indices(draw, "g", 0, 1, st.sampled_from([1, 2, 3]))
    rows, columns = _indices(draw, "m", 1, 2, _FEW), _indices(draw, "n", 0, 2, _FEW)
    depth = _indices(draw, "k", 1, 3, st.sampled_from([1, 2, 3, 5, 9]))
    a = _operand(w, {**groups, **rows, **depth}, rows, depth)
    b = _operand(w, {**groups, **columns, **depth}, {}, {})
    outer = {n: (groups | rows | columns)[n] for n in draw(st.permutations(sorted({**groups, **rows, **columns})))}
    count = math.prod(depth.values())
    inner = ", ".join(f"{n}: {extent}" for n, extent in depth.items())
    value = Term(f"(sum({inner}) {a.text} * {b.text})", DType.F32, -9 * count, 9 * count)
    return _assigned(w, outer, _epilogue(w, value, outer))


def _indices(draw: st.DrawFn, letter: str, least: int, most: int, extents: st.SearchStrategy[int]) -> dict[str, int]:
    return {f"{letter}{n}": draw(extents) for n in range(draw(st.integers(least, most)))}


def _operand(w: Writer, indices: Mapping[str, int], rows: Mapping[str, int], depth: Mapping[str, int]) -> Term:
    """A read by all indices once each; a pair of row and depth may share a dimension, as in a convolution."""
    order = list(w.draw(st.permutations(sorted(indices))))
    places, shape = [], []
    if rows and depth and w.draw(st.booleans()):
        row, deep = w.draw(st.sampled_from(sorted(rows))), w.draw(st.sampled_from(sorted(depth)))
        step, spread = w.draw(st.integers(1, 2)), w.draw(st.integers(1, 2))
        order.remove(row)
        order.remove(deep)
        places.append(f"{step}*{row} + {spread}*{deep} - {w.draw(st.integers(0, 2))}")
        shape.append(w.draw(st.integers(1, 12)))
    for name in order:
        at = w.draw(st.integers(0, len(places)))
        places.insert(at, name)
        shape.insert(at, indices[name])
    t = w.input(tuple(shape), w.draw(_FLOATS), pad=False)
    return w.read(t, places, inside=True)


def _epilogue(w: Writer, value: Term, indices: Mapping[str, int]) -> Term:
    """Nothing, or a bias, a factor, a residual, an activation."""
    names = sorted(indices)
    for _ in range(w.draw(st.integers(0, 2))):
        some = w.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names))) if names else []
        t = w.input(tuple(indices[n] for n in some), DType.F32)
        other = w.read(t, some, inside=True)
        kind = w.draw(st.sampled_from(["({} + {})", "({} - {})", "({} * {})", "max({}, {})", "relu({} + {})"]))
        bound = value.bound * other.bound if "*" in kind else value.bound + other.bound
        value = Term(kind.format(value.text, other.text), value.dtype, -bound, bound)
    w.bound = max(w.bound, value.bound)
    return value


def _assigned(w: Writer, indices: Mapping[str, int], value: Term) -> Case:
    sizes = ", ".join(map(str, indices.values()))
    line = f"    {left_side('y', indices, bounds=True)} = {value.text}\n"
    return finished(w, [f"y[{sizes}]: {output_type(w, value).value}"], [line])


@st.composite
def windows(draw: st.DrawFn) -> Case:
    """A reduction over a window that slides along one or two dimensions: pooling, depthwise convolution, stencils."""
    w = Writer(draw, exact=True)
    outer = {"n": draw(st.integers(1, 2)), "c": draw(EXTENTS)}
    slides = draw(st.integers(1, 2))
    inner, places, shape = {}, ["n", "c"], [outer["n"], outer["c"]]
    for d in range(slides):
        size, taps = draw(st.integers(1, 19)), draw(st.integers(1, 4))
        step, spread, pad = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
        outer[f"p{d}"] = draw(st.integers(1, 11))
        inner[f"r{d}"] = taps
        places.append(f"{step}*p{d} + {spread}*r{d} - {pad}")
        shape.append(size)
    x = w.input(tuple(shape), draw(_FLOATS))
    body = w.read(x, places, inside=False)
    if draw(st.booleans()):
        t = w.input((outer["c"], *inner.values()), DType.F32, pad=False)
        body = Term(f"{body.text} * {t.name}[c, {', '.join(inner)}]", DType.F32, -3 * body.bound, 3 * body.bound)
        names = ", ".join(f"{n}: {extent}" for n, extent in inner.items())
        value = Term(f"(sum({names}) {body.text})", DType.F32, -16 * body.bound, 16 * body.bound)
    else:
        value = w.reduced(body, inner)
    return _assigned(w, outer, _epilogue(w, value, outer))


@st.composite
def rows(draw: st.DrawFn) -> Case:
    """Normalisations along the last dimensions: a maximum or mean, what differs from it, a sum, a quotient."""
    w = Writer(draw, exact=False)
    outer = {f"a{n}": draw(st.sampled_from([1, 2, 3, 7])) for n in range(draw(st.integers(0, 2)))}
    inner = {f"k{n}": draw(EXTENTS) for n in range(draw(st.integers(1, 2)))}
    every = {**outer, **inner}
    x = w.read(w.input(tuple(every.values())), list(every), inside=True).text
    if draw(st.booleans()):
        some = draw(st.lists(st.sampled_from(sorted(every)), unique=True, min_size=1))
        x = f"({x} + {w.read(w.input(tuple(every[n] for n in some)), some, inside=True).text})"
    own = f"[{', '.join(outer)}]" if outer else ""
    left, over = (
        left_side("{}", outer, bounds=True) if outer else "{}",
        ", ".join(f"{n}: {e}" for n, e in inner.items()),
    )
    name, e = f"e[{', '.join(every)}]", left_side("e", every, bounds=True)
    softmax = [
        f"{left.format('m')} = max({over}) {x}",
        f"{e} = exp({x} - m{own})",
        f"{left.format('z')} = sum({over}) {name}",
        f"{left_side('y', every, bounds=True)} = {name} / z{own}",
    ]
    norm = [
        f"{left.format('m')} = mean({over}) {x}",
        f"{e} = {x} - m{own}",
        f"{left.format('z')} = mean({over}) {name}^2",
        f"{left_side('y', every, bounds=True)} = {name} * rsqrt(z{own} + 0.5)",
    ]
    lines = [f"    {line}\n" for line in draw(st.sampled_from([softmax, norm]))]
    w.bound = 16.0
    return finished(w, [f"y[{', '.join(map(str, every.values()))}]: f32"], lines)


@st.composite
def short(draw: st.DrawFn) -> Case:
    """Whole tensors that broadcast, and a reduction of one by the shape of the output."""
    w = Writer(draw, exact=True)
    shape = tuple(draw(st.lists(EXTENTS.filter(lambda n: n < 20), min_size=1, max_size=3)))
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        kept = shape[draw(st.integers(0, len(shape))) :]
        terms.append(w.input(tuple(n if w.often() else 1 for n in kept), pad=False))
    text = terms[0].name
    for t in terms[1:]:
        text = f"{draw(st.sampled_from(['max', 'min']))}({text}, f64({t.name}))"
    outputs = [f"y[{', '.join(map(str, shape))}]: f64"]
    lines = [f"    y = f64({text})\n"]
    if terms[0].shape and draw(st.booleans()):
        reduced = draw(st.sets(st.integers(0, len(terms[0].shape) - 1), min_size=1))
        sizes = [1 if d in reduced else n for d, n in enumerate(terms[0].shape)]
        outputs.append(f"s[{', '.join(map(str, sizes))}]: f64")
        lines.append(f"    s = sum(f64({terms[0].name}))\n")
    return finished(w, outputs, lines)


def exact_programs() -> st.SearchStrategy[Case]:
    """Programs whose values are whole numbers."""
    return st.one_of(general(exact=True), contractions(), windows(), short())


def smooth_programs() -> st.SearchStrategy[Case]:
    """Programs of functions without jumps."""
    return st.one_of(general(exact=False), rows())
