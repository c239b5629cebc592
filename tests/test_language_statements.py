"""The statement half of the language: functions, ops that call ops, updates, tuning lines, fast_math."""

from __future__ import annotations

import re
import time

import numpy as np
import onnx.parser
import pytest
from scipy.special import erf

import tilewright as tw
from tilewright.dsl import families
from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse, parse_op
from tilewright.dsl.program import Hint, Limit, Program, Reduce, walk
from tilewright.dsl.target import Shape
from tilewright.dsl.text import program_text, structure_text
from tilewright.errors import LanguageError, ShapeError, UnsupportedError

from .interpret import interpret
from .running import shaped
from .texts import GEMM

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def specialised(text: str, name: str | None = None, **arrays: np.ndarray | float) -> Program:
    shapes = {n: a.shape for n, a in arrays.items() if isinstance(a, np.ndarray)}
    parameters = {n: a for n, a in arrays.items() if not isinstance(a, np.ndarray)}
    return parse_op(text, name).specialise(shapes, parameters=parameters)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def wrong(text: str, message: str, **shapes: tuple[int, ...]) -> None:
    """`text` has ⟨⟩ in front of the place that the error must show."""
    before, after = text.split("⟨⟩")
    with pytest.raises(LanguageError, match=re.escape(message)) as caught:
        parse(before + after)[-1].specialise(shapes)
    assert (caught.value.line, caught.value.column) == (before.count("\n") + 1, len(before) - before.rfind("\n"))


# --- functions --------------------------------------------------------------------------------------------------------

FUNCTIONS = """
def cube(x) = x * x * x
def soft(x, a) = 0.5 * x * (1 + erf(x / sqrt(a))) + cube(x)    # calls the one above

op f(x[N,K], b[N]) -> y[N]:
    y[n] = soft(sum(k) x[n,k], b[n]^2 + 2)
"""


def soft(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(a))) + x**3


def test_functions(device: tw.Device) -> None:
    op = tw.op(FUNCTIONS)
    for shape in ((5, 7), (1, 1), (0, 3), (3, 0)):
        x, b = normal(*shape), normal(shape[0])
        expected = soft(x.astype(np.float64).sum(1), b.astype(np.float64) ** 2 + 2)
        same(op(x, b, device=device), expected.astype(np.float32))


def test_a_function_is_the_same_as_its_body() -> None:
    x, b = normal(3, 4), normal(4)
    text = "def f(a, c) = max(a, c) * {}\nop g(x[N,C], b[C]) -> y[N,C]: y[n,c] = f(x[n,c] + 1, b[c])"
    inline = "op g(x[N,C], b[C]) -> y[N,C]: y[n,c] = max(x[n,c] + 1, b[c]) * {}"
    for factor in ("2", "2.5", "f32(true)"):
        assert (
            specialised(text.format(factor), x=x, b=b).signature
            == specialised(inline.format(factor), x=x, b=b).signature
        )
    # hygienic: the argument's name means nothing to the tensor of that name
    program = specialised("def f(x) = x + 1\nop g(y[N], x[N]) -> z[N]: z[n] = f(y[n]) * x[n]", x=b, y=b)
    same(interpret(program, {"x": b, "y": b})["z"], (b + 1) * b)
    # whole tensors broadcast in the short form, reductions of them included
    program = specialised("def f(a, c) = a * c + a\nop g(x[N,C]) -> y[N,1]: y = f(sum(x), 2)", x=x)
    same(interpret(program, {"x": x})["y"], 3 * x.sum(1, keepdims=True))
    # integer types stay
    doubled = parse_op("def f(a) = a * 2\nop g(x[N]) -> y[N]: y[n] = f(x[n])")
    assert doubled.specialise({"x": (3,)}, {"x": DType.I8}).outputs[0].dtype is DType.I8


def test_a_function_may_take_the_place_of_a_built_in_one() -> None:
    x = normal(7)
    text = "def gelu(x) = 0.5*x*(1+erf(x/sqrt(2)))\nop g(x[N]) -> y[N]: y[n] = gelu(x[n])"
    inline = "op g(x[N]) -> y[N]: y[n] = 0.5*x[n]*(1+erf(x[n]/sqrt(2)))"
    assert specialised(text, x=x).signature == specialised(inline, x=x).signature
    # the built-in one stays what it is under its other name, and within functions that stand before
    text = """def twice(x) = 2 * silu(x)
        def silu(x) = x + 1
        op g(x[N]) -> y[N]: y[n] = silu(x[n]) + swish(x[n]) + twice(x[n])"""
    swish = x / (1 + np.exp(-x))
    same(interpret(specialised(text, x=x), {"x": x})["y"], x + 1 + 3 * swish)


def test_arguments_are_computed_once() -> None:
    x, b = normal(3, 4), normal(3)
    (statement,) = specialised(FUNCTIONS, x=x, b=b).statements
    found = [e for e in walk(statement.value) if isinstance(e, Reduce)]
    assert len(found) > 3
    assert len(set(found)) == 1
    # the same holds for a reduction that is written twice, whatever its index is called
    (statement,) = specialised("op f(x[N,K]) -> y[N]: y[n] = (sum(k) x[n,k]) / (1 + sum(j) x[n,j])", x=x).statements
    assert len({e for e in walk(statement.value) if isinstance(e, Reduce)}) == 1
    (statement,) = specialised(
        "op f(x[N,K]) -> y[N]: y[n] = sum(k) sum(l) x[k,l] - 2 * sum(i) sum(j) x[i,j]", x=x
    ).statements
    assert len({e for e in walk(statement.value) if isinstance(e, Reduce)}) == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(sum(k) x[n,k] * max(j) x[n,j]) + max(l) x[n,l]", lambda x: x.sum(1) * x.max(1) + x.max(1)),
        ("max(l) x[n,l] * sum(k) (x[n,k] - max(j) x[n,j])", lambda x: x.max(1) * (x - x.max(1)[:, None]).sum(1)),
        ("sq(sum(k) x[n,k]) + sq(max(k) x[n,k])", lambda x: x.sum(1) ** 2 + x.max(1) ** 2),
        ("mean(k) sq(x[n,k] - mean(j) x[n,j])", lambda x: x.var(1)),
        ("sq(sum(k) sum(j) x[k,j]) + n", lambda x: x.sum() ** 2 + np.arange(len(x))),
    ],
)
def test_reductions_that_occur_several_times(device: tw.Device, body: str, expected: object) -> None:
    op = tw.op(f"def sq(a) = a * a\nop f(x[N,K]) -> y[N]: y[n] = {body}")
    for shape in ((5, 9), (1, 1), (3, 70)):
        x = normal(*shape)
        wanted = expected(x.astype(np.float64))  # type: ignore[operator]
        np.testing.assert_allclose(op(x, device=device), wanted, rtol=1e-4, atol=1e-4)


def test_functions_grow_within_limits() -> None:
    doubled = "def fn0(x) = x + x\n" + "".join(f"def fn{n}(x) = fn{n - 1}(x) * fn{n - 1}(x)\n" for n in range(1, 29))
    started = time.perf_counter()
    wrong(
        doubled.replace("= fn9(x)", "= ⟨⟩fn9(x)") + "op g(x[N]) -> y[N]: y[n] = fn28(x[n])",
        "with what it is applied to here, this has more than 4,000 parts; assign an argument to an intermediate",
        x=(3,),
    )
    assert time.perf_counter() - started < 5
    nested = "def f(x) = x * (x + 1)\nop g(x[N]) -> y[N]: y[n] = " + "f(" * 40 + "x[n]" + ")" * 40
    with pytest.raises(LanguageError, match="more than 4,000 parts"):
        specialised(nested, x=normal(3))
    deep = "def fn0(x) = x + 1\n" + "".join(f"def fn{n}(x) = fn{n - 1}(x)\n" for n in range(1, 31))
    with pytest.raises(LanguageError, match="functions call each other more than 30 levels deep here"):
        parse(deep + "op g(x[N]) -> y[N]: y[n] = fn30(x[n])")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def ⟨⟩where(x) = x", "where is part of the language; choose another name, such as my_where"),
        ("def ⟨⟩sum(x) = x", "sum is part of the language"),
        ("def f(x) = x\ndef ⟨⟩f(x) = x", "the function f is defined twice"),
        ("def f(x, ⟨⟩x) = x", "the argument x stands twice"),
        ("def ⟨⟩f() = 1", "f has no arguments; a function has at least one"),
        ("def f(⟨⟩inf) = 1", "'inf' is a word of the language"),
        ("def f(x, ⟨⟩y) = x", "the argument y of f is never used in its body"),
        ("def f(value) = value + ⟨⟩valeu", "f has no argument valeu; did you mean 'value'?"),
        ("def f(x) = ⟨⟩t[0] + x", "a function is pointwise and reads nothing; pass the element as an argument"),
        ("def f(x) = x + ⟨⟩sum(k) x", "a function is pointwise; pass the reduction as an argument"),
        ("def f(x) = x + ⟨⟩mean(x)", "a function is pointwise; pass the reduction as an argument"),
        ("def f(x) = x + ⟨⟩f(x)", "f calls itself; functions are not recursive"),
        (
            "def f(x) = x + ⟨⟩g(x)\ndef g(x) = x",
            "no function is called g; a function calls the built-in ones and those",
        ),
        ("def f(x) = x + ⟨⟩exq(x)", "no function is called exq; did you mean 'exp'?"),
        ("def f(x) = ⟨⟩index(x)", "index speaks of indices"),
        ("def f(x) = ⟨⟩exp(x, 1)", "exp takes 1 argument, found 2"),
        ("def f(x) = ⟨⟩f32(x, 1)", "f32 takes 1 argument, found 2"),
        ("def f(x, y) = x*y\ndef g(x) = ⟨⟩f(x)", "f takes 2 arguments (x, y), found 1"),
        ("def f(x) = exp(x; ⟨⟩k=2)", "functions take no parameters by name"),
        ("def f(x) = ⟨⟩device.local_mem * x", "device.local_mem can stand in a where line only"),
        ("def f(x) ⟨⟩: x", "expected '=', found ':'; a function reads: def name(x, y) = expression"),
    ],
)
def test_wrong_functions(text: str, message: str) -> None:
    wrong(text + "\nop op_(x) -> y: y = x", message)


def test_wrong_uses_of_functions() -> None:
    top = "def f(x, y) = x * y\nop g(a[N], b[N]) -> c[N]: c[n] = "
    wrong(top + "⟨⟩f(a[n])", "f takes 2 arguments (x, y), found 1")
    wrong(top + "⟨⟩f + 1", "f is a function; its arguments follow in brackets: f(...)")
    wrong(top + "⟨⟩ff(a[n], 1)", "no function is called ff; did you mean")
    wrong(top + "f(a[n], ⟨⟩d[n])", "no tensor is called d")
    wrong("def f(x) = x⟨⟩", "the text defines functions but no op")
    wrong("def h(x) = x\nop ⟨⟩h(x) -> y: y = x", "h is a function of this text")
    long = " + ".join(["x"] * 40)  # a power of integers repeats its base: the error points into the body
    with pytest.raises(LanguageError, match=r"line 1, .*a power of integers repeats its base"):
        specialised(f"def f(x) = ({long})^2\nop g(a[N]) -> c[N]: c[n] = f(i32(a[n]) + 1)", a=normal(3))


# --- ops that call ops ------------------------------------------------------------------------------------------------

NETWORK = """
op network(x[M,K], w[K,N], b[N]; alpha: f32 = 0.5) -> y[M,P], spread[M]:
    h = linear(x, w, b)                       # defined below
    s, q = moments(h)
    spread = sqrt(q / N - (s / N)^2)
    y = relu(pool(exp(h) + 1; k=2, scale=alpha)) - 1

op linear(x[M,K], w[K,N], b[N]) -> y[M,N]:
    y[m,n] = sum(k) x[m,k] * w[k,n] + b[n]

op moments(x[R,K]) -> s[R], q[R]:
    s[r] = sum(k) x[r,k]
    q[r] = sum(k) x[r,k]^2

op pool(x[N,H] pad -inf; k: int, scale: f32 = 1) -> y[N,P]:
    P = H - k + 1
    t[n,p] = max(r: k) x[n,p+r]
    y[n,p] = scale * t[n,p]
"""


def network(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h = x.astype(np.float64) @ w + b
    e = np.exp(h) + 1
    return np.maximum(0.5 * np.maximum(e[:, 1:], e[:, :-1]), 0) - 1, h.std(1)


def test_ops_call_ops(device: tw.Device) -> None:
    op = tw.op(NETWORK, "network")
    for m, k, n in ((5, 7, 6), (1, 1, 2), (3, 0, 4), (0, 3, 3)):
        x, w, b = normal(m, k), normal(k, n), normal(n)
        for found, expected in zip(op(x, w, b, device=device), network(x, w, b), strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)


def test_a_call_is_the_same_as_the_statements() -> None:
    x, w, b = normal(3, 4), normal(4, 5), normal(5)
    called = specialised(NETWORK + "op f(x[M,K], w[K,N], b[N]) -> y[M,N]: y = linear(x, w, b)", "f", x=x, w=w, b=b)
    inline = "op f(x[M,K], w[K,N], b[N]) -> y[M,N]: y[m,n] = sum(k) x[m,k] * w[k,n] + b[n]"
    assert called.signature == specialised(inline, x=x, w=w, b=b).signature
    assert [d.name for d in parse(NETWORK)] == ["network", "linear", "moments", "pool"]
    assert parse_op(NETWORK, "pool").name == "pool"
    again = parse_op(program_text(specialised(NETWORK, "network", x=x, w=w, b=b)))
    assert again.specialise({"x": (3, 4), "w": (4, 5), "b": (5,)}).signature == specialised(
        NETWORK, "network", x=x, w=w, b=b
    ).signature  # fmt: skip


def test_pads_of_called_ops() -> None:
    window = "op window(x[H] pad -inf) -> y[H]: y[p] = max(r: 3) x[p+r-1]\n"
    x = np.array([-3, -1, -2, -5], np.float32)
    largest = np.array([-1, -1, -1, -2], np.float32)
    # the pad of the called op is the tensor's where nothing else sees it
    program = specialised(window + "op f(x[H]) -> y[H]: y = window(x) + x", "f", x=x)
    assert (len(program.statements), program.inputs[0].pad) == (2, -np.inf)
    same(interpret(program, {"x": x})["y"], largest + x)
    # else the called op reads a copy
    text = window + "op f(x[H]) -> y[H], z[H]:\n    z[i] = x[i+1]\n    y = window(x)"
    found = interpret(specialised(text, "f", x=x), {"x": x})
    same(found["y"], largest)
    same(found["z"], np.array([-1, -2, -5, 0], np.float32))
    # two ops with the same pad share it
    program = specialised(window + "op f(x[H]) -> y[H]: y = window(x) * window(x)", "f", x=x)
    assert [t.pad for t in program.inputs] == [-np.inf]
    same(interpret(program, {"x": x})["y"], largest**2)


def test_calls_take_numbers_sizes_and_declared_types() -> None:
    text = """
op scale(x[N], s[]; k: int = 1, on: bool = true) -> y[N]: f16: y[n] = where(on, x[n] * s * k, 0)
op part(x[N]) -> y[M]: y[m] = x[m + 0]
op f(x[N]; k: int = 3) -> y[N], z[N], h: f32:
    y = scale(x, 2.5; k=2*k + N, on=true)
    z = scale(x, N; k=-1) + 0.5
    h = part(x; M=N - 1)
"""
    x = normal(4)
    program = specialised(text, "f", x=x)
    assert [(t.dtype, t.shape) for t in program.outputs] == [
        (DType.F16, (4,)), (DType.F16, (4,)), (DType.F32, (3,))
    ]  # fmt: skip
    found = interpret(program, {"x": x})
    np.testing.assert_allclose(found["y"], x * 2.5 * 10, rtol=2e-3)
    np.testing.assert_allclose(found["z"], x * -4 + 0.5, rtol=2e-3, atol=2e-3)
    same(found["h"], x[:3])


def test_wrong_calls() -> None:
    callee = "op g(x[N], w[N]; k: int) -> y[N]: y[n] = x[n] * w[n] * k\nop m(x[N]) -> a[], b[]:\n a = sum(x)\n b = 1\n"
    top = callee + "op f(x[N,M], b[N]; eps: f32 = 1) -> y[N]:\n    "
    for line, message in (
        ("y = ⟨⟩g(b; k=1)", "g takes 2 inputs (x, w), found 1"),
        ("y = ⟨⟩g(b, b)", "g needs its parameter k: g(b, b; k=...)"),
        ("y = g(b, b; ⟨⟩kk=1)", "g has no parameter kk; did you mean 'k'?"),
        ("y = g(b, b; k=1, ⟨⟩k=2)", "the parameter k is given twice"),
        ("y = g(b, b; k=⟨⟩1.5)", "the parameter k of g is int, but its value is not an integer"),
        ("y = g(b, b; k=⟨⟩sqrt(2))", "a parameter of an op is integer arithmetic"),
        ("y = g(b, ⟨⟩c; k=1)", "no tensor is called c"),
        ("y = g(b, ⟨⟩t; k=1)\n    t = b", "t is read before it is assigned"),
        ("y = ⟨⟩m(b)", "m has 2 outputs (a, b), found 1; assign it to 2 names: a, b = m(...)"),
        ("t, ⟨⟩t = m(b)", "t stands twice on the left"),
        ("y, t = ⟨⟩exp(b)", "several outputs come from an op, and no op is called exp"),
        ("y[n] = ⟨⟩g(b, b)", "g is an op: it is called with whole tensors, in a statement without indices"),
        ("y = exp(b; ⟨⟩k=1)", "only ops take parameters by name, and exp is none here"),
        ("⟨⟩N, t = m(b)", "N is a size and cannot be the output of an op"),
        ("y = sum(k; ⟨⟩j=1) x[0,k]", "a reduction has indices only; parameters by name stand in calls"),
        ("y = ⟨⟩f(x, b)", "ops do not call themselves: f which calls f"),
    ):
        wrong(top + line, message, x=(3, 4), b=(3,))
    wrong(
        "op a(x) -> y: y = b(x)\nop b(x) -> y: y = c(x)\nop c(x) -> y: y = ⟨⟩a(x)",
        "a which calls b which calls c which",
    )
    wrong("op a(x) -> y: y = x\nop ⟨⟩a(x) -> y: y = x", "the op a is defined twice")
    wrong("op relu(x) -> y: y = x\nop f(x) -> y: y = ⟨⟩relu(x)", "relu is a built-in function and an op of this text")
    assert parse_op("op relu(x) -> y: y = relu(x)").name == "relu"
    with pytest.raises(
        LanguageError, match="one op is expected here, but the text defines g, m and f; say which by name"
    ):
        parse_op(top + "y = b")
    with pytest.raises(LanguageError, match="the text defines no op h; it defines g, m and f"):
        parse_op(top + "y = b", "h")


def test_calls_say_which_sizes_do_not_fit() -> None:
    x, w, b = normal(3, 4), normal(5, 6), normal(6)
    message = "op network, in its call of linear: op linear: dimension 0 of w should be K = 4 (from dimension 1 of x)"
    with pytest.raises(ShapeError, match=re.escape(message)):
        parse_op(NETWORK.replace("w[K,N], b[N]; alpha", "w[J,N], b[N]; alpha"), "network").specialise(
            {"x": x.shape, "w": w.shape, "b": b.shape}
        )
    doubled = "op fn0(x[N]) -> y[N]: y[n] = x[n] + 1\n" + "".join(
        f"op fn{n}(x[N]) -> y[N]: y = fn{n - 1}(fn{n - 1}(x))\n" for n in range(1, 25)
    )
    with pytest.raises(LanguageError, match="with the ops it calls, fn10 has more than 1,000 statements"):
        parse_op(doubled, "fn24").specialise({"x": (3,)})


# --- updates ----------------------------------------------------------------------------------------------------------

GEMM_UPDATE = """op gemm(a[M,K], b[K,N]; alpha: f32 = 1, beta: f32 = 0) -> c[M,N]:
    c[m,n] = beta * c[m,n] + alpha * sum(k) a[m,k] * b[k,n]
"""


def test_updates(device: tw.Device) -> None:
    axpy = tw.op("op axpy(x[N]; s: f32) -> y[N]: y[n] += s * x[n]")
    for n in (7, 1, 0):
        x, y = normal(n), normal(n)
        before = y.copy()
        same(axpy(x, y, s=2, device=device), 2 * x + y)
        same(axpy(x, y=y, s=2, device=device), 2 * x + y)
        assert np.array_equal(y, before)
    a, b, c = normal(5, 9), normal(9, 6), normal(5, 6)
    found = tw.op(GEMM_UPDATE)(a, b, c, alpha=0.5, beta=2, device=device)
    expected = 2 * c.astype(np.float64) + 0.5 * (a.astype(np.float64) @ b)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_updates_on_the_device_leave_the_old_value(device: tw.Device) -> None:
    scale = tw.op("op scale(s[]) -> y[N]: y *= s")
    y = tw.asarray(np.arange(5, dtype=np.float32), device=device)
    twice = scale(2, y)
    assert np.array_equal(twice.numpy(), 2 * np.arange(5))
    assert np.array_equal(y.numpy(), np.arange(5))
    assert np.array_equal(scale(3, twice).numpy(), 6 * np.arange(5))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y[n] += x[n]", lambda x, y: y + x),
        ("y[n] -= x[n] - 1", lambda x, y: y - (x - 1)),
        ("y[n] *= x[n] + 1", lambda x, y: y * (x + 1)),
        ("y[n] /= 2 + 2", lambda x, y: y / 4),
        ("y += x", lambda x, y: y + x),
        ("y = x * y", lambda x, y: x * y),
        ("t = y + 1\n    y = t * x", lambda x, y: (y + 1) * x),
        ("y[n] = x[n] + y[n+1]", lambda x, y: x + np.append(y[1:], 0)),
        ("y[n] = x[n] + sum(k) y[k]", lambda x, y: x + y.sum()),
    ],
)
def test_what_an_output_held_before_is_an_input(body: str, expected: object) -> None:
    definition = parse_op(f"op f(x[N]) -> y[N]:\n    {body}")
    assert [(t.name, t.argument, t.old_of) for t in definition.inputs] == [("x", "x", ""), ("y_old", "y", "y")]
    x, y = normal(4), normal(4)
    program = definition.specialise({"x": (4,), "y": (4,)})
    assert [t.name for t in program.inputs] == ["x", "y_old"]
    same(interpret(program, {"x": x, "y_old": y})["y"], expected(x, y))  # type: ignore[operator]


def test_updated_outputs_keep_their_type_and_shape() -> None:
    definition = parse_op("op f(x[N], y_old[N]) -> y: y += x * y_old")
    program = definition.specialise({"x": (3,), "y_old": (3,), "y": (3,)}, {"x": DType.F32, "y": DType.F16})
    assert [t.name for t in program.inputs] == ["x", "y_old", "y_old_2"]
    assert program.outputs[0].dtype is DType.F16
    with pytest.raises(ShapeError, match=re.escape("y becomes [3], but its value from before the op has the shape []")):
        definition.specialise({"x": (3,), "y_old": (3,), "y": ()})
    with pytest.raises(ShapeError, match="the input y is missing; its value from before the op is an input"):
        definition.specialise({"x": (3,), "y_old": (3,)})
    with pytest.raises(
        ShapeError, match=re.escape("takes 2 inputs (s, y), but y is missing; the op reads what y held")
    ):
        tw.op("op scale(s[]) -> y[N]: y *= s")(2)
    text = "op inc(x[N]) -> y[N]: y += x\nop f(x[N]) -> y[N]: y = inc(x, 2 * x)"
    x = normal(3)
    same(interpret(specialised(text, "f", x=x), {"x": x})["y"], 3 * x)


def test_wrong_updates() -> None:
    top = "op f(x[N]; k: int = 1) -> y[N]:\n    "
    wrong(top + "y = x\n    ⟨⟩y += x", "y is assigned above; an update starts from what an output held before the op")
    wrong(
        top + "y = x\n    ⟨⟩t += x",
        "t is no output; an update starts from what an output held before the op. A sum over",
    )
    wrong(top + "y = x\n    ⟨⟩N += 1", "N is no output")
    wrong(top + "⟨⟩x += 1", "x is no output")
    wrong(top + "y ⟨⟩+ = x", "expected '=' or '[', found '+'")


# --- tuning lines -----------------------------------------------------------------------------------------------------

ADD = "op shift(x[N,C], b[C]) -> y[N,C]:\n    y[n,c] = x[n,c] + b[c]\n    "
SUM = "op total(x[N,C]) -> s[N]:\n    s[n] = sum(c) x[n,c]\n    "


def values(text: str, device: tw.Device, family: str, **shapes: tuple[int, ...]) -> dict[str, tuple[object, ...]]:
    """The values of a family's parameters that the text's lines leave."""
    program = parse_op(text).specialise(shapes)
    found = families.by_name(family)
    target = shaped(device.target, Shape.CPU)
    space = families.space(found, program, target)
    assert space.violated(families.default(found, program, target)) is None
    return {p.name: p.values for p in space.parameters} | {"unanswered": space.unanswered}


def test_lines_narrow_every_family(device: tw.Device) -> None:
    large = {"x": (64, 512), "b": (512,)}
    found = values(ADD + "vector c: 4, 16\n    unroll c: 2\n    split c: 3\n    work_group: 64", device, "map", **large)
    assert (found["lanes"], found["unroll"]) == ((4, 16), (2,))
    assert found["unanswered"] == ("split c: 3", "work_group: 64")
    found = values(SUM + "vector c: 8\n    split c: 1, 4, 8\n    unroll c: 4", device, "reduce", x=(64, 512))
    assert (found["lanes"], found["splits"], found["unroll"]) == ((8,), (1, 4, 8), (4,))
    text = GEMM + "    unroll k: 4\n    stage b: packed\n    stage a: none, packed\n    stage bias: local\n"
    found = values(text, device, "contract", a=(64, 64), b=(64, 64), bias=(64,))
    assert (found["item_m"], found["unroll_k"], found["pack_b"], found["pack_a"]) == ((2, 4, 8), (4,), (1,), (0, 1))
    assert {"tile m: 32, 64, 128 per item 2, 4, 8", "stage bias: local"} <= set(found["unanswered"])
    found = values(GEMM + "    stage b: local\n", device, "contract", a=(64, 64), b=(64, 64), bias=(64,))
    assert found["pack_b"] == (0, 1)
    assert "stage b: local" in found["unanswered"]


def test_lines_for_gpus(device: tw.Device) -> None:
    target = shaped(device.target, Shape.GPU)
    program = parse_op(ADD + "work_group: 64\n    tile c: per item 2").specialise({"x": (64, 512), "b": (512,)})
    for name, unanswered in (("map", ()), ("naive", ("tile c: per item 2",))):
        family = families.by_name(name)
        space = families.space(family, program, target)
        assert space.unanswered == unanswered
        assert {c["work_group"] for c in space} == {64}
        assert families.default(family, program, target)["work_group"] == 64
    text = GEMM.replace("32, 64, 128", "32, 64") + "    where work_group == 64\n    where local_bytes < 8000\n"
    program = parse_op(text).specialise({"a": (256, 256), "b": (256, 256), "bias": (256,)})
    family = families.by_name("contract")
    space = families.space(family, program, target)
    assert space.unanswered == ()
    configurations = list(space)
    measures = dict(space.measures)
    assert {measures["work_group"](c) for c in configurations} == {64}
    assert max(measures["local_bytes"](c) for c in configurations) < 8000
    assert families.default(family, program, target) in configurations


def test_where_lines_speak_of_every_parameter(device: tw.Device) -> None:
    text = ADD + "where vector_c * unroll_c == 16\n    where local_bytes < 3"
    program = parse_op(text).specialise({"x": (64, 512), "b": (512,)})
    space = families.space(families.by_name("map"), program, shaped(device.target, Shape.CPU))
    assert {c.integer("lanes") * c.integer("unroll") for c in space} == {16}
    assert space.unanswered == ("where local_bytes < 3",)
    assert any("the program asks for" in c.reason for c in space.constraints)


def test_lines_that_leave_nothing_are_named(device: tw.Device) -> None:
    shapes = {"x": (64, 512), "b": (512,)}
    for line, message in (
        ("vector c: 3", "the line 'vector c: 3' leaves nothing to choose; lanes can be "),
        ("unroll c: 64", "the line 'unroll c: 64' leaves nothing to choose; unroll can be 1, 2, 4 here"),
        ("where vector_c > 100", "the line 'where vector_c > 100' leaves no configuration on this device"),
    ):
        program = parse_op(ADD + line).specialise(shapes)
        for stage in (program, program.canonical):  # the line as it was written, whatever the indices are called now
            with pytest.raises(UnsupportedError, match=re.escape(message)):
                families.fitting(stage, shaped(device.target, Shape.CPU))


def test_lines_for_the_other_kind_of_device_narrow_nothing(device: tw.Device) -> None:
    found = values(SUM + "unroll c: 8", device, "reduce", x=(64, 512))  # GPUs have 8
    assert (found["unroll"], found["unanswered"]) == ((1, 2, 4), ("unroll c: 8",))
    with pytest.raises(UnsupportedError, match=r"the line 'unroll c: 3' leaves nothing to choose"):
        values(SUM + "unroll c: 3", device, "reduce", x=(64, 512))


def test_lines_for_large_programs_do_not_apply_to_small_ones(device: tw.Device) -> None:
    found = values(ADD + "vector c: 16\n    unroll c: 4", device, "map", x=(3, 5), b=(5,))
    assert found["unanswered"] == ("vector c: 16", "unroll c: 4")
    x, b = normal(3, 5), normal(5)
    same(tw.op(ADD + "vector c: 16\n    unroll c: 4")(x, b, device=device), x + b)


def test_hints_follow_renaming_and_composition() -> None:
    text = ADD + "vector c: 4\n    tile n: 8 per item 2\n    stage x: none\n    work_group: 32\n    where vector_c <= 8"
    program = parse_op(text).specialise({"x": (3, 4), "b": (4,)})
    assert program.hints == (
        Hint("vector", "c", (4,)), Hint("tile", "n", (8,)), Hint("item", "n", (2,)), Hint("stage", "x", ("none",)),
        Hint("work_group", "", (32,)),
    )  # fmt: skip
    assert program.limits == (Limit("vector_c <= 8"),)
    canonical = program.canonical
    assert [h.subject for h in canonical.hints] == ["i1", "i0", "i0", "t0", ""]
    assert canonical.limits == (Limit("vector_i1 <= 8"),)
    renamed = re.sub(r"(?<=[\[, _])c(?=[\],: ])", "col", text)
    assert "vector_col" in renamed
    assert parse_op(renamed).specialise({"x": (3, 4), "b": (4,)}).signature == program.signature
    assert parse_op(text.replace("c: 4", "n: 4")).specialise({"x": (3, 4), "b": (4,)}).signature != program.signature
    again = parse_op(program_text(program)).specialise({"x": (3, 4), "b": (4,)})
    assert again.signature == program.signature
    assert "work_group: 32" in structure_text(canonical)
    # the callee's indices are not the caller's
    outer = text + "\nop f(x[N,C], b[C]) -> y[N,C]:\n    y = shift(shift(x, b), b)\n"
    hints = parse_op(outer, "f").specialise({"x": (3, 4), "b": (4,)}).hints
    assert [h.subject for h in hints if h.kind == "vector"] == ["c_shift_in", "c_y"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vector ⟨⟩q: 4", "no statement has an index q"),
        ("vector ⟨⟩c:", "vector c gives no values; write for example: vector c: 4, 8"),
        ("⟨⟩work_group:", "work_group gives no values; write for example: work_group: 64, 128"),
        ("unroll c: ⟨⟩0", "a value of unroll is a positive integer below 2^31"),
        ("split c: ⟨⟩many", "a value of split is a positive integer below 2^31"),
        ("stage ⟨⟩z: local", "no tensor is called z"),
        ("stage x: ⟨⟩locl", "an operand is staged local, packed or none; did you mean 'local'?"),
        ("vector c: 4 per item ⟨⟩2", "per item stands in tile lines only, not in a vector line"),
        ("vector c: 4\n    vector ⟨⟩c: 8", "the vector of c is given twice"),
        ("work_group: 4\n    ⟨⟩work_group: 8", "the work_group is given twice"),
        ("where ⟨⟩stage_x < 1", "a where line cannot speak of stage_x"),
        ("where ⟨⟩vector_q < 1", "a where line cannot speak of vector_q; did you mean"),
    ],
)
def test_wrong_tuning_lines(line: str, message: str) -> None:
    wrong(ADD + line, message, x=(3, 4), b=(4,))


def test_words_of_tuning_lines_are_ordinary_names() -> None:
    text = (
        "op split(stage[N], vector[N]) -> unroll[N]:\n    unroll[tile] = stage[tile] + vector[tile]\n    vector tile: 4"
    )
    program = parse_op(text).specialise({"stage": (4,), "vector": (4,)})
    assert program.hints == (Hint("vector", "tile", (4,)),)
    text = "op g(x) -> a, b:\n a = x\n b=x\nop f(x) -> fast_math, work_group, m:\n fast_math, work_group = g(x)\n m=x"
    assert len(specialised(text, "f", x=normal(3)).outputs) == 3
    assert len(parse_op("op f(x) -> m, v: m, v = g(x)\nop g(x) -> a, b:\n a = x\n b = x", "f").outputs) == 2


# --- fast_math --------------------------------------------------------------------------------------------------------


def test_fast_math_is_asked_for() -> None:
    text = "op f(x[N,K]) -> y[N,K]:\n    e[n,k] = exp(x[n,k])\n    y[n,k] = e[n,k] / sum(j) e[n,j]"
    plain, fast = parse_op(text), parse_op(text + "\n    fast_math")
    x = {"x": (3, 4)}
    assert not plain.specialise(x).fast_math
    assert fast.specialise(x).fast_math
    assert (
        plain.specialise(x, fast_math=True).signature == fast.specialise(x).signature != plain.specialise(x).signature
    )
    outer = "op g(x[N,K]) -> y[N,K]: y = f(x)\n"
    assert parse_op(outer + fast.text, "g").specialise(x).fast_math
    assert not parse_op(outer + plain.text, "g").specialise(x).fast_math


def test_fast_math_reaches_every_stage(device: tw.Device) -> None:
    text = "op f(x[N,K]) -> y[N,K]:\n    e[n,k] = exp(x[n,k])\n    y[n,k] = e[n,k] / sum(j) e[n,j]"
    x = normal(3, 40)
    for flag in (False, True):
        op = tw.op(text, fast_math=flag)
        assert {call.program.fast_math for call in op.plan(x, device=device).calls} == {flag}
        expected = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        np.testing.assert_allclose(op(x, device=device), expected, rtol=1e-3, atol=1e-4)


def test_a_wrong_line_is_said_when_the_op_is_called(device: tw.Device) -> None:
    op = tw.op(ADD + "vector c: 3")
    with pytest.raises(UnsupportedError, match=r"the line 'vector c: 3' leaves nothing to choose"):
        op(normal(4, 64), normal(64), device=device)


def test_a_session_with_fast_math(device: tw.Device) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[3, 40] x) => (float[3, 40] y) { y = Softmax <axis = 1> (x) }'
    )
    x = normal(3, 40)
    expected = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    for flag in (False, True):
        session = tw.InferenceSession(model, device=device, fast_math=flag)
        assert {call.program.fast_math for call in session.plan().calls} == {flag}
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-3, atol=1e-4)
