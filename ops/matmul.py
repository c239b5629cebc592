"""Matrix products: Gemm, MatMul with broadcast batches, and Einsum."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, Operand, operator

GEMM = """
op gemm(a[{a}], b[{b}]{c}) -> y[M, N]:
    y[m, n] = {alpha}(sum(k) a[{a_at}] * b[{b_at}]){plus}
"""


@operator("Gemm")
def gemm(app: Application) -> Compute:
    """``alpha * A @ B + beta * C`` with A and B possibly transposed and C broadcast."""
    a, b, c = app.input(0), app.input(1), app.optional(2)
    if c and c.rank > 2:
        raise UnsupportedError(f"its third operand has {c.rank} dimensions, more than a matrix")
    trans_a, trans_b = app.integer("transA", 0), app.integer("transB", 0)
    alpha, beta = app.number("alpha", 1.0), app.number("beta", 1.0)
    text = GEMM.format(
        a="K, M" if trans_a else "M, K",
        b="N, K" if trans_b else "K, N",
        a_at="k, m" if trans_a else "m, k",
        b_at="n, k" if trans_b else "k, n",
        alpha="" if alpha == 1 else f"{literal(alpha)} * ",
        c=_summand_dims(c) if c and beta else "",
        plus=_summand(c, beta, app.outputs[0].shape) if c and beta else "",
    )
    shapes = {"a": a.shape, "b": b.shape, "y": app.outputs[0].shape}
    operands = {"a": 0, "b": 1}
    if c and beta:
        shapes["c"], operands["c"] = c.shape, 2
    return program(app, text, shapes, operands)


def _summand_dims(c: Operand) -> str:
    return f", c[{', '.join(f'C{d}' for d in range(c.rank))}]" if c.rank else ", c[]"


def _summand(c: Operand, beta: float, shape: tuple[int, ...]) -> str:
    """``+ beta * c[m, n]`` with 0 in place of indices that c does not have."""
    names = ("m", "n")[2 - c.rank :]
    at = ", ".join("0" if size == 1 else name for name, size in zip(names, c.shape, strict=True))
    return f" + {'' if beta == 1 else literal(beta) + ' * '}c[{at}]"


@operator("MatMul")
def matmul(app: Application) -> Compute:
    """NumPy's matmul: the last two dimensions are matrices, those before broadcast; vectors lose their dimension."""
    a, b, y = app.input(0), app.input(1), app.outputs[0]
    if not a.rank or not b.rank:
        raise UnsupportedError("a scalar operand has no matrix")
    batch = y.rank - (a.rank > 1) - (b.rank > 1)
    names = [f"i{d}" for d in range(batch)]
    rows, columns = ["m"] * (a.rank > 1), ["n"] * (b.rank > 1)
    left = [*_batch_at(names, a.shape[:-2]), *rows, "k"]
    right = [*_batch_at(names, b.shape[:-2]), "k", *columns]
    out = names + rows + columns
    return _product(app, [left, right], out)


def _batch_at(names: list[str], sizes: tuple[int, ...]) -> list[str]:
    """Where an operand is read in its batch dimensions: those of size 1 repeat."""
    return ["0" if n == 1 else name for name, n in zip(names[len(names) - len(sizes) :], sizes, strict=True)]


def _product(app: Application, places: list[list[str]], out: list[str]) -> Compute:
    """The sum over all indices that are not in `out` of the product of the operands at `places`."""
    letters = "abcdefgh"[: len(places)]
    heads = [f"{t}[{_dims(app.input(n))}]" for n, t in enumerate(letters)]
    reads = " * ".join(f"{t}[{', '.join(at)}]" for t, at in zip(letters, places, strict=True))
    summed = list(dict.fromkeys(i for at in places for i in at if i != "0" and i not in out))
    value = f"sum({', '.join(summed)}) {reads}" if summed else reads
    sizes = ", ".join(map(str, app.outputs[0].shape))
    text = f"op product({', '.join(heads)}) -> y[{sizes}]:\n    y[{', '.join(out)}] = {value}\n"
    shapes = {t: app.input(n).shape for n, t in enumerate(letters)} | {"y": app.outputs[0].shape}
    return program(app, text, shapes, {t: n for n, t in enumerate(letters)})


def _dims(operand: Operand) -> str:
    return ", ".join(map(str, operand.shape))


@dataclass(frozen=True)
class Term:
    """An operand of a contraction: its name, its index per dimension ("0" where it repeats), how its text reads it."""

    name: str
    at: tuple[str, ...]

    @property
    def indices(self) -> frozenset[str]:
        """The indices that its elements depend on."""
        return frozenset(self.at) - {"0"}

    @property
    def text(self) -> str:
        """The read."""
        return f"{self.name}[{', '.join(self.at)}]"


@operator("Einsum")
def einsum(app: Application) -> Compute:
    """Sums of products in index notation; more than two operands are contracted two by two, the cheapest first."""
    shapes = [app.input(n).shape for n in range(len(app.inputs))]
    places, out = _notation(str(app.attributes["equation"]), [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    terms = []
    for number, (place, shape) in enumerate(zip(places, shapes, strict=True)):
        at = tuple("0" if size == 1 else name for name, size in zip(place, shape, strict=True))
        sizes.update((name, size) for name, size in zip(place, shape, strict=True) if size != 1)
        terms.append(Term(f"x{number}", at))
    lines = []
    for number, pair in enumerate(_order(terms, out, sizes)):
        chosen = [terms[n] for n in pair]
        terms = [term for n, term in enumerate(terms) if n not in pair]
        last = not terms
        needed = set(out).union(*(term.indices for term in terms))
        kept = out if last else sorted(frozenset().union(*(term.indices for term in chosen)) & needed)
        made = Term("y" if last else f"t{number}", tuple(kept))
        head = made.text if last else f"{made.name}[{', '.join(f'{i}: {sizes[i]}' for i in kept)}]"
        lines.append(f"    {head} = {_sum_of_products(chosen, kept, sizes)}\n")
        terms.append(made)
    heads = ", ".join(f"x{number}[{', '.join(map(str, shape))}]" for number, shape in enumerate(shapes))
    y = app.outputs[0].shape
    text = f"op einsum({heads}) -> y[{', '.join(map(str, y))}]:\n{''.join(lines)}"
    named = {f"x{number}": shape for number, shape in enumerate(shapes)}
    return program(app, text, named | {"y": y}, {name: number for number, name in enumerate(named)})


def _notation(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """An index per dimension of every operand, and of the output; an ellipsis is counted from behind."""
    left, arrow, right = re.sub(r"\s", "", equation).partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise UnsupportedError(f"equation {equation!r} is of {len(terms)} operands, there are {len(ranks)}")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(width < 0 or (width and "..." not in term) for term, width in zip(terms, widths, strict=True)):
        raise UnsupportedError(f"equation {equation!r} does not fit operands of {ranks} dimensions")
    widest = max((width for term, width in zip(terms, widths, strict=True) if "..." in term), default=0)
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    places = [_indices(term, width) for term, width in zip(terms, widths, strict=True)]
    return places, _indices(right, widest)


def _indices(term: str, width: int) -> list[str]:
    before, dots, behind = term.partition("...")
    shared = [f"e{n}" for n in reversed(range(width))] if dots else []
    return [*(f"i{ord(x)}" for x in before), *shared, *(f"i{ord(x)}" for x in behind)]


def _order(terms: list[Term], out: list[str], sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Which operands are contracted with each other, step by step; results go to the end of the list (as in NumPy)."""
    if len(terms) <= 2:
        return [tuple(range(len(terms)))]
    names = sorted(frozenset(out).union(*(term.indices for term in terms)))
    if len(names) > len(ascii_letters):
        raise UnsupportedError(f"{len(names)} indices are more than the {len(ascii_letters)} supported")
    letter = dict(zip(names, ascii_letters, strict=False))
    seen = frozenset().union(*(term.indices for term in terms))
    left = ",".join("".join(letter[i] for i in sorted(term.indices)) for term in terms)
    right = "".join(letter[i] for i in out if i in seen)
    dummies = [np.broadcast_to(np.float32(0), [sizes[i] for i in sorted(term.indices)]) for term in terms]
    path, _ = np.einsum_path(f"{left}->{right}", *dummies, optimize="greedy")
    return [tuple(int(n) for n in step) for step in path[1:]]


def _sum_of_products(terms: list[Term], kept: Sequence[str], sizes: Mapping[str, int]) -> str:
    reads = " * ".join(term.text for term in terms)
    summed = [i for i in dict.fromkeys(i for term in terms for i in term.at) if i != "0" and i not in kept]
    return f"sum({', '.join(f'{i}: {sizes[i]}' for i in summed)}) {reads}" if summed else reads
