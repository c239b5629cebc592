"""Ops written as Python functions: the same Programs as the texts they stand for."""

# ruff: noqa: F722, F821, UP037 - the annotations are the language's declarations, not types

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import lang as tl
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.errors import LanguageError, ShapeError

from .texts import CONV, GEMM, SOFTMAX

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@tw.op
def gemm(a: "M,K", b: "K,N", bias: "N") -> "c[M,N]":
    m, n, k = tl.indices("m n k")
    tl.tile(m, 32, 64, 128, per_item=(2, 4, 8))
    tl.tile(n, 32, 64, 128, per_item=(2, 4, 8))
    tl.tile(k, 8, 16, 32)
    tl.limit("local_bytes <= device.local_mem")
    return tl.relu(tl.sum(k)(a[m, k] * b[k, n]) + bias[n])


@tw.op
def softmax(x: Annotated[tl.Tensor, "R,K"]) -> Annotated[tl.Tensor, "y[R,K]"]:
    r, k, j = tl.indices("r k j")
    m = tl.each(r)(tl.max(k)(x[r, k]))
    e = tl.each(r, k)(tl.exp(x[r, k] - m[r]))
    return tl.each(r, k)(e[r, k] / tl.sum(j)(e[r, j]))


@tw.op
def conv2d(x: "N,C,H,W", w: "O,C,R,S", *, stride: int, pad: int) -> "y[N,O,P,Q]":
    n, o, p, q, c, r, s = tl.indices("n o p q c r s")
    value = x[n, c, p * stride + r - pad, q * stride + s - pad] * w[o, c, r, s]
    return tl.each(n, o, p, q)(tl.sum(c, r, s)(value))


@pytest.mark.parametrize(
    ("op", "text", "shapes", "parameters"),
    [
        (gemm, GEMM, {"a": (3, 4), "b": (4, 5), "bias": (5,)}, {}),
        (softmax, SOFTMAX, {"x": (3, 4)}, {}),
        (conv2d, CONV, {"x": (1, 2, 6, 6), "w": (3, 2, 3, 3)}, {"stride": 2, "pad": 1}),
    ],
)
def test_a_function_is_the_program_of_its_text(op: tw.Op, text: str, shapes: Any, parameters: Any) -> None:
    def program(source: str) -> Program:
        return parse_op(source).specialise(shapes, parameters=parameters)

    assert program(op.text).signature == program(text).signature
    assert op.name == parse_op(text).name


def test_functions_are_called_like_texts(device: tw.Device) -> None:
    for r, k in ((3, 7), (1, 1), (0, 2)):
        x = normal(r, k)
        e = np.exp(x.astype(np.float64))
        np.testing.assert_allclose(softmax(x, device=device), e / e.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    a, b, bias = normal(5, 9), normal(9, 6), normal(6)
    expected = np.maximum(a.astype(np.float64) @ b + bias, 0)
    np.testing.assert_allclose(gemm(a, b, bias, device=device), expected, rtol=1e-5, atol=1e-5)


def text_of(function: Any) -> str:
    """The body of a traced op's text."""
    return "\n".join(line.strip() for line in tw.op(function).text.splitlines()[1:])


def test_every_operator() -> None:
    def f(x: "N", *, k: int) -> "y[N]":
        n = tl.index("n")
        a, i = x[n], tl.i32(x[n])
        total = 1 + a - 2 * a / 4 + (1 - a) / (3 / (a + 9)) - (2**a) ** -0.5 + abs(-a) + +a
        whole = i // 2 + i % 3 + 7 // (i + 1) + 7 % (i + 1)
        truth = (a < 1) & (a <= k) | ~(a > 2) & (a >= -1) | (a == 3) | (a != 4) & True | False
        return tl.each(n)(tl.where(truth, total, whole) + n + np.float32(0.5))

    definition = parse_op(tw.op(f).text)
    hand = """op f(x[N]; k: int) -> y[N]: y[n] = where(
        (x[n] < 1 and x[n] <= k) or (not (x[n] > 2) and x[n] >= -1) or x[n] == 3 or (x[n] != 4 and true) or false,
        1 + x[n] - 2*x[n]/4 + (1 - x[n]) / (3 / (x[n] + 9)) - (2^x[n])^-0.5 + abs(-x[n]) + x[n],
        i32(x[n]) // 2 + i32(x[n]) % 3 + 7 // (i32(x[n]) + 1) + 7 % (i32(x[n]) + 1)) + n + 0.5"""
    given: Any = ({"x": (5,)}, None, {"k": 2})
    assert definition.specialise(*given).signature == parse_op(hand).specialise(*given).signature


def test_reductions_and_functions() -> None:
    def f(x: "R,K pad -inf", *, w: int = 3) -> "a[R,K], b[R,1], c[R], d":
        r, k, j = tl.indices("r k j")
        s = tl.index("s", extent=w)
        a = tl.each(r, k)(tl.sum(j <= k)(x[r, j]) + tl.max(s)(x[r, k + s]) + tl.maximum(k, 2) + tl.max(x[r, k], 0))
        c = tl.each(r)(tl.f32(tl.argmax(j)(x[r, j])) + tl.f32(tl.inside(x[r, 0])))
        return a, tl.mean(x), c, x

    assert text_of(f).splitlines() == [
        "a[r, k] = (((sum(j <= k) x[r, j]) + (max(s: w) x[r, k + s])) + maximum(k, 2)) + max(x[r, k], 0)",
        "c[r] = f32((argmax(j) x[r, j])) + f32(inside(x[r, 0]))",
        "b = mean(x)",
        "d = x",
    ]
    assert tw.op(f).text.startswith("op f(x[R,K] pad -inf; w: int = 3) -> a[R,K], b[R,1], c[R], d:")
    assert [t.shape for t in parse_op(tw.op(f).text).specialise({"x": (3, 4)}).outputs] == [
        (3, 4),
        (3, 1),
        (3,),
        (3, 4),
    ]


def test_headers() -> None:
    def f(
        x: "[N, 4]: f16 pad -1", y: "...", z: "", *, n: int, e: float = 1e-5, flag: bool = False, h: "f16" = 2.0
    ) -> "o: f32":
        return x[0, 0] * n + y * e + z[()] * h

    assert tw.op(f).text.splitlines()[0] == (
        "op f(x[N, 4]: f16 pad -1, y, z[]; n: int, e: f32 = 1e-05, flag: bool = false, h: f16 = 2.0) -> o: f32:"
    )


def test_sizes_old_values_and_tuning_lines() -> None:
    def f(x: "H", *, k: int) -> "y[P], z[H]":
        p, i = tl.indices("p, i")
        h = tl.size("H")
        tl.size("P", (h - k) / 2 + 1)
        y = tl.each(p)(x[2 * p] + h)
        tl.vector(p, 4, 8)
        tl.unroll(p, 2)
        tl.stage(x, "none")
        tl.work_group(64, 128)
        tl.fast_math()
        tl.precision("tf32")
        return y, tl.each(i)(tl.old("z")[i] * x[i])

    assert text_of(f).splitlines() == [
        "P = ((H - k) / 2) + 1",
        "y[p] = x[2 * p] + H",
        "vector p: 4, 8",
        "unroll p: 2",
        "stage x: none",
        "work_group: 64, 128",
        "fast_math",
        "precision tf32",
        "z[i] = z[i] * x[i]",
    ]
    program = parse_op(tw.op(f).text).specialise({"x": (9,), "z": (9,)}, parameters={"k": 3})
    assert program.fast_math
    assert program.precision == "tf32"
    assert [t.shape for t in program.outputs] == [(4,), (9,)]

    def g(x: "N,C") -> "s[N]":
        n, c = tl.indices("n c")
        tl.split(c, 1, 4)
        return tl.sum(c)(x[n, c])

    assert text_of(g).splitlines() == ["split c: 1, 4", "s[n] = (sum(c) x[n, c])"]


def test_functions_call_ops(device: tw.Device) -> None:
    moments = tw.op(
        "op moments(x[N,K]; scale: f32 = 1) -> s[N], q[N]:\n s[n] = sum(k) x[n,k] * scale\n q[n] = sum(k) x[n,k]^2"
    )

    @tw.op
    def spread(x: "N,K") -> "y[N]":
        s, q = moments(softmax(x), scale=2)
        return s - q

    x = normal(4, 6)
    p = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True)
    np.testing.assert_allclose(spread(x, device=device), 2 - (p**2).sum(1), rtol=1e-5, atol=1e-6)
    assert spread.name == "spread"
    assert "t1 = softmax(x)" in spread.text


def test_decorator_with_options() -> None:
    @tw.op(fast_math=True, precision="bf16")
    def f(x: "...") -> "y":
        return tl.exp(x)

    assert f.fast_math
    assert f.precision == "bf16"
    assert tw.op("op a(x) -> y: y = x\nop b(x) -> y: y = x", "b").name == "b"
    assert not tw.op("op a(x) -> y: y = x").fast_math
    assert {"exp", "gelu", "f16", "sum", "each"} <= set(dir(tl))


def wrong(function: Any, message: str) -> None:
    with pytest.raises(LanguageError, match=message):
        tw.op(function)


def test_wrong_functions() -> None:
    n = tl.index("n")

    def chooses(x: "N") -> "y[N]":
        return tl.each(n)(1 if x[n] > 0 else 0)

    def chains(x: "N") -> "y[N]":
        return tl.each(n)(0 < x[n] < 1)

    def square(x: "N,N") -> "y[N,N]":
        i, j = tl.indices("i j")
        return x[i, j] + x[j, i]

    def slices(x: "N") -> "y[N]":
        return x[1:]  # type: ignore[index]

    def loops(x: "N") -> "y[N]":
        return sum(x)

    def array(x: "N") -> "y[N]":
        return tl.each(n)(x[n] + "1")

    def two(x: "N") -> "y[N], z[N]":
        return x

    def named(x: "N") -> "y[N]":
        return tl.each(tl.index("n m"))(x[n])

    def misread(x: "N") -> "y[N]":
        return tl.each(n)(x[n, n])

    wrong(chooses, r"x\[n\] > 0 has no truth value while an op is traced; a choice is where")
    wrong(chains, "has no truth value while an op is traced")
    wrong(square, r"which of its dimensions each of them stands for does not follow .*; return each\(i, j\)\(...\)")
    wrong(slices, r"x is read element by element: x\[n, c\]; there are no slices")
    wrong(loops, "x has no elements while an op is traced")
    wrong(array, "str cannot stand in an expression; arrays are inputs of an op")
    wrong(two, r"op two declares 2 outputs \(y\[N\], z\[N\]\), but its function returns 1")
    wrong(named, "'n m' is no name")
    wrong(misread, r"(?s)line 2, column 12: x has 1 dimension but is read with 2 indices.*y\[n\] = x\[n, n\]")
    with pytest.raises(
        LanguageError, match=r"statements and tuning lines stand in a function that @tilewright.op reads"
    ):
        tl.each(n)(1)
    with pytest.raises(AttributeError, match=r"the language has no function sofplus; did you mean 'softplus'?"):
        _ = tl.sofplus


def test_wrong_signatures() -> None:
    def bare(x) -> "y":  # type: ignore[no-untyped-def]
        return x

    def silent(x: "N"):  # type: ignore[no-untyped-def]
        return x

    def default(x: "N" = 1) -> "y":
        return x

    def many(*x: "N") -> "y":
        return x

    def untyped(x: "N", *, k) -> "y":  # type: ignore[no-untyped-def]
        return x

    wrong(bare, r'op bare: the input x needs its sizes: x: "N,C"')
    wrong(silent, "op silent names its outputs behind the arrow")
    wrong(default, "the input x cannot have a default; parameters stand behind a")
    wrong(many, r"\*x is neither an input nor a parameter")
    wrong(untyped, "the parameter k needs a type: int, bool or float")
    wrong(lambda x: x, "a function with a name")


def test_wrong_calls_within_functions() -> None:
    other = tw.op("op softmax(x[N]) -> y[N]: y = x")

    def twice(x: "N,K") -> "y":
        return softmax(x) + other(x)

    def by_name(x: "N,K") -> "y":
        return softmax(x=x)

    wrong(twice, "two different ops that are called here have the name softmax")
    wrong(by_name, "op softmax is called within an op with its inputs in order, not by name")
    with pytest.raises(ShapeError):  # outside of functions an op is called as ever
        softmax(x=normal(3), device=None)
