"""Matrix products: Gemm, MatMul with broadcast batches, and Einsum."""

from __future__ import annotations

import re

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


@operator("Einsum")
def einsum(app: Application) -> Compute:
    """Index notation as ONNX writes it, without ellipsis."""
    equation = re.sub(r"\s", "", str(app.attributes["equation"]))
    left, _, right = equation.partition("->")
    if "." in equation or len(app.inputs) > 8:
        raise UnsupportedError(f"equation {equation!r} has an ellipsis or more than eight operands")
    terms = left.split(",")
    if "->" not in equation:
        letters = left.replace(",", "")
        right = "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    places = [
        ["0" if app.input(n).shape[d] == 1 else f"i{ord(x)}" for d, x in enumerate(term)]
        for n, term in enumerate(terms)
    ]
    return _product(app, places, [f"i{ord(x)}" for x in right])
