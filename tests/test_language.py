"""The language: what texts mean, how sizes and types follow, and what wrong texts are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tilewright.dsl import limits
from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import SPOKEN, Result
from tilewright.dsl.parse import parse, parse_condition, parse_op
from tilewright.dsl.program import Call, Cast, Hint, Limit, Program, Reduce, walk
from tilewright.dsl.text import expression_text, program_text
from tilewright.dsl.vocabulary import REDUCTIONS, SCANS
from tilewright.errors import LanguageError, ShapeError

from .interpret import interpret
from .texts import CONV, GEMM, HEADER, SOFTMAX

ROOT = Path(__file__).parent.parent


def random(*shape: int, dtype: str = "f32") -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    kind = DType(dtype)
    values = rng.normal(size=shape) if kind.is_float else rng.integers(0, 2 if kind is DType.BOOL else 20, shape)
    return np.asarray(values).astype(kind.numpy)


def specialised(text: str, parameters: Mapping[str, float] | None = None, **arrays: np.ndarray) -> Program:
    shapes = {name: a.shape for name, a in arrays.items()}
    return parse_op(text).specialise(shapes, {n: DType.from_numpy(a.dtype) for n, a in arrays.items()}, parameters)


def run(text: str, parameters: Mapping[str, float] | None = None, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    return interpret(specialised(text, parameters, **arrays), arrays)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# --- the examples of the design ---------------------------------------------------------------------------------------


def test_bias_relu() -> None:
    x, b = random(2, 3, 4, 5), random(3)
    text = "op bias_relu(x[N,C,H,W], b[C]) -> y[N,C,H,W]:\n    y[n,c,h,w] = max(x[n,c,h,w] + b[c], 0)"
    same(run(text, x=x, b=b)["y"], np.maximum(x + b[:, None, None], 0))


def test_moments() -> None:
    x = random(2, 3, 4, 5)
    text = """op moments(x[N,C,H,W]) -> s[C], q[C]:            # two reductions in one pass
    s[c] = sum(n,h,w) x[n,c,h,w]
    q[c] = sum(n,h,w) x[n,c,h,w]^2
"""
    result = run(text, x=x)
    same(result["s"], x.sum((0, 2, 3)))
    same(result["q"], (x * x).sum((0, 2, 3)))


def test_softmax() -> None:
    x = random(3, 7)
    e = np.exp(x - x.max(1, keepdims=True))
    program = specialised(SOFTMAX, x=x)
    assert [t.name for t in program.intermediates] == ["m", "e"]
    same(interpret(program, {"x": x})["y"], e / e.sum(1, keepdims=True))


def test_gemm() -> None:
    a, b, bias = random(6, 4), random(4, 5), random(5)
    program = specialised(GEMM, a=a, b=b, bias=bias)
    same(interpret(program, {"a": a, "b": b, "bias": bias})["c"], np.maximum(a @ b + bias, 0))
    assert program.hints == (
        Hint("tile", "m", (32, 64, 128)),
        Hint("item", "m", (2, 4, 8)),
        Hint("tile", "n", (32, 64, 128)),
        Hint("item", "n", (2, 4, 8)),
        Hint("tile", "k", (8, 16, 32)),
    )
    assert program.limits == (Limit("local_bytes <= device.local_mem"),)


@pytest.mark.parametrize(("size", "stride", "pad"), [(8, 1, 0), (8, 2, 1), (7, 2, 1), (5, 3, 2), (3, 1, 0)])
def test_conv2d(size: int, stride: int, pad: int) -> None:
    x, w = random(2, 3, size, size), random(4, 3, 3, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    expected = np.einsum("ncpqrs,ocrs->nopq", windows, w)
    same(run(CONV, {"stride": stride, "pad": pad}, x=x, w=w)["y"], expected)


def test_short_forms() -> None:
    x, b = random(2, 3, 4, 5), random(5)
    same(run("op f(x, b) -> y: y = max(x + b, 0)", x=x, b=b)["y"], np.maximum(x + b, 0))
    same(run("op m(x[N,C,H,W]) -> s[1,C,1,1]: s = sum(x)", x=x)["s"], x.sum((0, 2, 3), keepdims=True))


# --- more of the notation --------------------------------------------------------------------------------------------

X = random(3, 4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("sum(k) x[i,k] + 1", X.sum(1)[:, None] + 1 + 0 * X),
        ("sum(k) x[i,k] * x[i,k] / 2", (X * X).sum(1)[:, None] / 2 + 0 * X),
        ("2 * sum(k) x[i,k]", 2 * X.sum(1)[:, None] + 0 * X),
        ("-sum(k) x[i,k] * 2", -2 * X.sum(1)[:, None] + 0 * X),
        ("sum(k) (-x[i,k])", -X.sum(1)[:, None] + 0 * X),
        ("sum(k) sum(l) x[k,l] * 2", 2 * X.sum() + 0 * X),
        ("sum(k) x[i,k] / sum(k) x[i,k]", 1 + 0 * X),
        ("sum(k) x[i,k] / sum(l) (x[i,l]+9)", (X.sum(1) / (X + 9).sum(1))[:, None] + 0 * X),
        ("max(k) x[i,k] * -max(k) x[k,j] * max(k) x[i,k]", -(X.max(1)[:, None] ** 2) * X.max(0)),
        ("max(k) (x[i,k] * min(l) x[l,j])", (X[:, :, None] * X.min(0)).max(1)),
        ("sum(k) x[i,k] * sum(l) x[l,k]", (X * X.sum(0)).sum(1)[:, None] + 0 * X),
        ("x[i,j] / 2 * sum(k) x[i,k]", X / 2 * X.sum(1)[:, None]),
        ("max(k) x[i,k]", X.max(1)[:, None] + 0 * X),
        ("min(k) x[i,k]", X.min(1)[:, None] + 0 * X),
        ("prod(k) x[i,k]", X.prod(1)[:, None] + 0 * X),
        ("mean(k,l) x[k,l]", X.mean() + 0 * X),
        ("f32(any(k) (x[i,k] > 1))", (X > 1).any(1)[:, None] + 0 * X),
        ("f32(all(k) (x[i,k] < 1))", (X < 1).all(1)[:, None] + 0 * X),
        ("max(x[i,j], 0, 0.5, -x[i,j])", np.maximum(np.abs(X), 0.5)),
        ("min(x[i,j], 0)", np.minimum(X, 0)),
        ("-x[i,j] ^ 2", -(X**2)),
        ("x[i,j] ** 3 - x[i,j]^4", X**3 - X**4),
        ("x[i,j] ^ 1", X),
        ("abs(x[i,j]) ^ -0.5", np.abs(X) ** -0.5),
        ("2 ^ 3 ^ 2 + 0 * x[i,j]", 512 + 0 * X),
        ("(sum(k) x[i,k]) ^ 2", X.sum(1)[:, None] ** 2 + 0 * X),
        ("where(x[i,j] > 0 and not x[i,j] > 1 or i == 0, x[i,j], -1)",
         np.where(((X > 0) & ~(X > 1)) | (np.arange(3) == 0)[:, None], X, -1)),
        ("x[i,j] * (i + 2*j)", X * (np.arange(3)[:, None] + 2 * np.arange(4))),
        ("index(2*i - j + 1) * x[i,j]", X * (2 * np.arange(3)[:, None] - np.arange(4) + 1)),
        ("x[2-i, C-1-j]", X[::-1, ::-1]),
        ("x[i, j+1]", np.pad(X, ((0, 0), (0, 1)))[:, 1:]),
        ("where(inside(x[i+1,j]), 1, x[i,j])", np.where(np.arange(3)[:, None] < 2, 1, X)),
        ("x[i,j] / N + C", X / 3 + 4),
        ("+x[i,j] + inf * 0 * 0", X + np.nan),
        ("x[ i,\n   j ] * (1 +  # a comment (with a bracket\n 1)", 2 * X),
    ],
)  # fmt: skip
def test_expressions(body: str, expected: np.ndarray) -> None:
    same(run(f"op f(x[N,C]) -> y[N,C]:\n    y[i,j] = {body}", x=X)["y"], expected)


def test_all_functions_are_spoken() -> None:
    for name, f in SPOKEN.items():
        if name not in ("and", "or", "not"):
            whole = f.result is Result.INTEGER
            args = ["x[n]", "2" if whole else "0.5", "3" if whole else "2.5"]
            x = random(3, dtype="i32" if whole else "f32")
            for count in range(f.least, f.arity + 1):
                specialised(f"op f(x[N]) -> y[N]: y[n] = {name}({', '.join(args[:count])})", x=x)


def test_reduction_kinds_and_names_of_functions() -> None:
    for kind in (k for k in REDUCTIONS if k not in SCANS):
        for text in (f"op f(x[N]) -> y[1]: y[0] = {kind}(n) x[n]", f"op f(x[N]) -> y[1]: y = {kind}(x)"):
            program = specialised(text, x=random(5))
            assert program.outputs[0].shape == (1,)
    assert run("op sum(max[N]) -> exp[N]: exp[n] = max[n] + 1", max=random(3))["exp"].shape == (3,)


def test_words_are_ordinary_names_where_they_mean_nothing() -> None:
    text = "op tile(pad[N]; per: int = 2) -> item[N]:\n    item[where] = pad[where] * per\n    tile where: 4 per item 2"
    program = specialised(text, pad=random(4))
    assert program.hints == (Hint("tile", "where", (4,)), Hint("item", "where", (2,)))
    assert run("op f(x[N]) -> y[N]:\n tile = x\n where = tile\n y = where", x=random(4))["y"].shape == (4,)


def test_layout_is_free() -> None:
    one = parse_op("op f(x[N])->y[N]:y[n]=x[n]")
    two = parse_op(
        "\ufeff\r\n  # first\r\n\top f (x [N] )\n   ->  # arrow\n y[ N ]  :\r\n\n\n  y[n]\t=\tx[ n ]\r\n\n # end"
    )
    assert one.specialise({"x": (3,)}) == two.specialise({"x": (3,)})
    assert [d.name for d in parse("op f(x) -> y: y = x\n\nop g(x) -> y:\n  t = x\n  y = t\nop h(x) -> y: y = x\n")] == [
        "f", "g", "h"
    ]  # fmt: skip


def test_definitions_show_their_declarations() -> None:
    text = "op f(x[N,4,2*N]: f16 pad -inf, z; k: int = 3, eps: f32, flag: bool = true) -> y[N,k]: i32: y[n,j] = k"
    d = parse_op(text)
    assert (d.name, d.text) == ("f", text)
    assert [(t.name, t.shape, t.dtype, t.pad) for t in d.inputs] == [
        ("x", ("N", 4, "2 * N"), DType.F16, -np.inf),
        ("z", None, None, 0.0),
    ]
    assert [(t.name, t.shape, t.dtype) for t in d.outputs] == [("y", ("N", "k"), DType.I32)]
    assert [(p.name, p.type, p.default) for p in d.parameters] == [
        ("k", "int", 3), ("eps", "f32", None), ("flag", "bool", True)
    ]  # fmt: skip
    program = d.specialise({"x": (2, 4, 4), "z": ()}, parameters={"eps": 1})
    assert program.outputs[0].shape == (2, 3)
    assert program.inputs[0].pad == -np.inf
    assert parse_op(text) is d


def test_documentation() -> None:
    """Every example of docs/language.md parses, specialises with the sizes in the comment above it, and can be run."""
    text = (ROOT / "docs" / "language.md").read_text()
    blocks = re.findall(r"(?:<!-- ([^\n]*) -->\n)?```tilewright\n(.*?)```", text, re.S)
    assert len(blocks) >= 8
    for sizes, block in blocks:
        given = dict(item.split("=") for item in sizes.split())
        for d in parse(block):
            shapes = {t.name: tuple(map(int, given[t.argument].split("x"))) for t in d.inputs}
            values = {p.name: int(given[p.name]) for p in d.parameters if p.name in given}
            program = d.specialise(shapes, {t.name: t.dtype or DType.F32 for t in d.inputs}, values)
            arrays = {t.name: random(*t.shape, dtype=t.dtype.value) for t in program.inputs}
            assert all(np.isfinite(a).all() for a in interpret(program, arrays).values())


# --- sizes ------------------------------------------------------------------------------------------------------------


def shape_of(text: str, sizes: Mapping[str, int] | None = None, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    return parse_op(text).specialise(shapes, sizes=sizes).outputs[0].shape


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("x[p + r]", 8), ("x[p + 2*r]", 6), ("x[2*p + r]", 4), ("x[p + r - 1]", 10), ("x[2*p + r - 1]", 5),
        ("x[p + r + 1]", 7), ("x[3*p + r - 2]", 4), ("x[p - r]", 12), ("x[p - r + 2]", 8),
        ("x[p + 3]", 7), ("x[4*p]", 3),
    ],
)  # fmt: skip
def test_output_sizes_follow_from_reads(read: str, expected: int) -> None:
    program = parse_op(f"op f(x[H], w[R]) -> y[P]: y[p] = sum(r) {read} * w[r] + 0*sum(j) w[j]")
    if "r" not in read:
        program = parse_op(f"op f(x[H], w[R]) -> y[P]: y[p] = {read}")
    assert program.specialise({"x": (10,), "w": (3,)}).outputs[0].shape == (expected,)


def test_size_equations() -> None:
    text = """op f(x[H]; k: int) -> y[P], z[Q]:
    P = max(Q - 1, 0) ^ 2
    Q = (H + 1) / k - min(1, 2, 3)
    y[p] = x[p + 0]
    z = 1
"""
    program = parse_op(text).specialise({"x": (9,)}, parameters={"k": 3})
    assert [t.shape for t in program.outputs] == [(1,), (2,)]
    # a size that the shapes give as well is checked
    same_size = parse_op("op f(x[H], w[P]) -> y[P]:\n P = H - 1\n y[p] = x[p + 0] * w[p]")
    assert same_size.specialise({"x": (5,), "w": (4,)}).outputs[0].shape == (4,)
    with pytest.raises(
        ShapeError, match=re.escape("the equation P = H - 1 should be P = 3 (from dimension 0 of w), found 4")
    ):
        same_size.specialise({"x": (5,), "w": (3,)})


def test_sizes_come_from_many_places() -> None:
    assert shape_of("op f(x[N]) -> y[M]: y[m] = x[m + 0]", {"M": 7}, x=(5,)) == (7,)
    assert shape_of("op f(x[N]) -> y[2*N]: y[m] = x[m + 0]", x=(5,)) == (10,)
    assert shape_of("op f(x) -> y: y[m:4, n: 2*4] = x[m] * n", x=(4,)) == (4, 8)
    assert shape_of("op f(x) -> y[A,B]: y = x", x=(4, 5)) == (4, 5)
    assert shape_of("op f(x) -> y[A,3]: y = x", x=(4, 1)) == (4, 3)
    assert shape_of("op f(x[N]) -> y[1,N]: y[0,n] = x[n]", x=(4,)) == (1, 4)
    assert shape_of("op f(x[N]) -> y: y[0,n] = x[n]", x=(4,)) == (1, 4)
    assert shape_of("op f(x[H], v[P]) -> y[P]: y[p] = x[2*p] + v[p]", x=(7,), v=(4,)) == (4,)
    # a size that the left side's reads give may be used in the same statement
    assert shape_of("op f(x[H]) -> y[P]: y[p] = x[2*p] + P", x=(7,)) == (4,)


def test_zero_sizes() -> None:
    for n, k in ((0, 4), (3, 0), (0, 0)):
        empty = np.zeros((n, k), np.float32)
        assert run(SOFTMAX, x=empty)["y"].shape == (n, k)
    result = run(GEMM, a=np.zeros((2, 0)), b=np.zeros((0, 3)), bias=np.ones(3))
    np.testing.assert_array_equal(result["c"], np.ones((2, 3)))
    x = np.zeros((2, 0), np.float32)
    for kind, value in (
        ("sum", 0),
        ("prod", 1),
        ("max", -np.inf),
        ("min", np.inf),
        ("mean", np.nan),
        ("any", 0),
        ("all", 1),
    ):
        np.testing.assert_array_equal(run(f"op f(x[N,K]) -> y[N]: y[n] = {kind}(k) x[n,k]", x=x)["y"], [value] * 2)
    assert shape_of("op f(x[H]) -> y[P]: y[p] = x[2*p]", x=(0,)) == (0,)
    assert shape_of("op f(x, b) -> y: y = x + b", x=(0, 3), b=(1, 1)) == (0, 3)


# --- types ------------------------------------------------------------------------------------------------------------

I8, F16 = random(4, dtype="i8"), random(4, dtype="f16")


@pytest.mark.parametrize(
    ("body", "dtype", "text", "stored"),
    [
        ("x[n] + 1", "i8", "(x[n] + 1)", "i8"),
        ("x[n] + 1000", "i8", "(i32(x[n]) + 1000)", "i32"),
        ("x[n] + 5000000000", "i8", "(i64(x[n]) + 5000000000)", "i64"),
        ("x[n] + 1.5", "i8", "(f32(x[n]) + 1.5)", "f32"),
        ("x[n] + 1.5", "f16", "(x[n] + 1.5)", "f16"),
        ("x[n] + 1", "f64", "(x[n] + 1.0)", "f64"),
        ("x[n] / 2", "i32", "(f32(x[n]) / 2.0)", "f32"),
        ("x[n] ^ 2", "i32", "(x[n] * x[n])", "i32"),
        ("x[n] ^ 5", "i32", "pow(f32(x[n]), 5.0)", "f32"),
        ("x[n] ^ 2.0", "f16", "pow(x[n], 2.0)", "f16"),
        ("exp(x[n])", "u8", "exp(f32(x[n]))", "f32"),
        ("exp(x[n])", "f16", "exp(x[n])", "f16"),
        ("x[n] < 3", "i8", "(x[n] < 3)", "bool"),
        ("x[n] + x[n]", "bool", "(i32(x[n]) + i32(x[n]))", "i32"),
        ("-x[n]", "bool", "neg(i32(x[n]))", "i32"),
        ("(x[n] > 0) * 2", "f32", "(i32((x[n] > 0.0)) * 2)", "i32"),
        ("x[n] and n", "f32", "(bool(x[n]) and bool(index(n)))", "bool"),
        ("where(x[n], 1, n)", "f32", "where(bool(x[n]), 1, index(n))", "i32"),
        ("where(x[n] > 0, x[n], 0)", "u8", "where((x[n] > 0), x[n], 0)", "u8"),
        ("sum(k) x[k]", "f16", "f16((sum(k) f32(x[k])))", "f16"),
        ("sum(k) f32(x[k])", "f16", "(sum(k) f32(x[k]))", "f32"),
        ("sum(k) x[k]", "i8", "(sum(k) i32(x[k]))", "i32"),
        ("sum(k) x[k]", "i64", "(sum(k) x[k])", "i64"),
        ("sum(k) x[k]", "bool", "(sum(k) i32(x[k]))", "i32"),
        ("max(k) x[k]", "u8", "u8((max(k) i32(x[k])))", "u8"),
        ("mean(k) x[k]", "i8", "((sum(k) f32(x[k])) / 4.0)", "f32"),
        ("mean(k) x[k]", "f16", "f16(((sum(k) f32(x[k])) / 4.0))", "f16"),
        ("any(k) x[k]", "f32", "((max(k) i32(bool(x[k]))) > 0)", "bool"),
        ("x[n] + eps", "f16", "f16((f32(x[n]) + 0.5))", "f16"),
        ("x[n] + eps", "i8", "(f32(x[n]) + 0.5)", "f32"),
        ("x[n] * flag + 2 * 3 / 4", "f32", "((x[n] * 1.0) + 1.5)", "f32"),
        ("x[n] + 1 / 0", "f32", "(x[n] + (1.0 / 0.0))", "f32"),
        ("i8(x[n]) + u8(3.7)", "f32", "(i16(i8(x[n])) + 3)", "i16"),
        ("max(x[n], 1, 2)", "f16", "max(x[n], max(1.0, 2.0))", "f16"),
        ("1", "f32", "1", "i32"),
        ("n", "f32", "index(n)", "i32"),
        ("5000000000", "f32", "5000000000", "i64"),
        ("18446744073709551615", "f32", "18446744073709551615", "u64"),
        ("2.5", "f16", "2.5", "f32"),
        ("true", "f16", "True", "bool"),
    ],
)
def test_types(body: str, dtype: str, text: str, stored: str) -> None:
    op = parse_op(f"op f(x[N]; eps: f32 = 0.5, flag: bool = true) -> y[N]: y[n] = {body}")
    program = op.specialise({"x": (4,)}, {"x": DType(dtype)})
    value = program.statements[0].value
    assert (expression_text(value), program.outputs[0].dtype.value) == (text, stored)
    assert value.dtype is program.outputs[0].dtype
    for e in walk(value):
        if isinstance(e, Call) and e.function not in ("where",):
            assert len({a.dtype for a in e.args}) == 1
        if isinstance(e, Reduce):
            assert e.dtype is e.body.dtype is e.dtype.accumulator
        if isinstance(e, Cast):
            assert e.dtype is not e.arg.dtype


def test_intermediates_keep_what_they_are_computed_in() -> None:
    program = specialised(SOFTMAX, x=random(3, 4, dtype="f16"))
    assert [t.dtype for t in program.intermediates] == [DType.F32, DType.F32]
    assert program.outputs[0].dtype is DType.F16
    declared = parse_op("op f(x[N]) -> y[N]: i32: y[n] = x[n] + 0.5").specialise({"x": (4,)})
    assert expression_text(declared.statements[0].value) == "i32((x[n] + 0.5))"


def test_pads_in_integer_types() -> None:
    pads = {
        parse_op(f"op f(x[N]: {t} pad {p}) -> y: y = x").specialise({"x": (1,)}, {"x": DType(t)}).inputs[0].pad
        for t, p in (("i8", "-inf"), ("u8", "inf"), ("i64", "inf"), ("u16", "-inf"), ("i32", "7"), ("bool", "1"))
    }
    assert pads == {-128, 255, 2**63 - 1, 0, 7, 1}


def test_powers_are_not_repeated_where_that_is_dear() -> None:
    long = " + ".join(["x[n]"] * 40)
    for body, count in ((f"({long})^2", 1), ("(sum(k) x[k])^2", 1), ("(x[n]+1)^4", 4)):
        value = specialised(f"op f(x[N]) -> y[N]: y[n] = {body}", x=random(3)).statements[0].value
        assert sum(isinstance(e, Call) and e.function == "pow" for e in walk(value)) == (1 if count == 1 else 0)
    twice = specialised("op f(x[N]) -> y[N]: y[n] = (sum(k) x[k])^2", x=random(3, dtype="i32")).statements[0].value
    assert [i.name for e in walk(twice) if isinstance(e, Reduce) for i in e.indices] == ["k", "k"]
    with pytest.raises(
        LanguageError, match="a power of integers repeats its base, and this one has more than 64 parts"
    ):
        specialised(f"op f(x[N]) -> y[N]: y[n] = ({long})^2", x=random(3, dtype="i32"))


# --- the short form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("op f(x) -> y: y = x - mean(x)", lambda x: x - x.mean()),
        ("op f(x[A,B,C]) -> y[A,1,C]: y = max(x * 2 + 1)", lambda x: (2 * x + 1).max(1, keepdims=True)),
        ("op f(x[A,B,C]) -> y[A,C]: y = sum(x)", lambda x: x.sum(1)),
        ("op f(x[A,B,C]) -> y[C,A]: y = sum(x)", lambda x: x.sum(1).T),
        ("op f(x) -> y[4]: y = sum(x)", lambda x: x.sum((0, 1))),
        ("op f(x) -> y[]: y = sum(x)", lambda x: x.sum()),
        ("op f(x[A,B,C]) -> v[1,B,1]: v = mean((x - mean(x))^2)", lambda x: x.var((0, 2), keepdims=True)),
        ("op f(x[A,B,C]) -> y[1,B,1]: y = sum(x) / sum(k) (x[0,0,k] + 5) + 1",
         lambda x: x.sum((0, 2), keepdims=True) / (x[0, 0] + 5).sum() + 1),
        ("op f(x[A,B,C]) -> y[2,A,B,C]: y = x * x[0,0,0]", lambda x: np.broadcast_to(x * x[0, 0, 0], (2, *x.shape))),
        ("op f(x[A,B,C]) -> y[A,B,C]:\n m = mean(x)\n s[a] = sum(b,c) (x[a,b,c] - m)\n y[a,b,c] = x[a,b,c] * s[a] + m",
         lambda x: x * (x - x.mean()).sum((1, 2))[:, None, None] + x.mean()),
        ("op f(x[A,B,C]) -> y[A,B]: y = f32(any(x > 1))", lambda x: (x > 1).any(2)),
    ],
)  # fmt: skip
def test_short_form(text: str, expected: object) -> None:
    x = random(2, 3, 4)
    for shaped in (x, x[:1], x[:, :1], x[:, :, :1] if "y[4]" not in text else x):
        if "[4]" not in text or shaped.shape[2] == 4:
            (*_, result) = run(text, x=shaped).values()
            same(result, np.asarray(expected(shaped)))  # type: ignore[operator]


# --- identity ---------------------------------------------------------------------------------------------------------


def test_names_do_not_matter() -> None:
    renamed = SOFTMAX
    for old, new in (
        ("softmax", "other"),
        ("R,K", "A,B"),
        ("r", "i"),
        ("k", "col"),
        ("j", "z"),
        ("e[", "expo["),
        ("x", "inp"),
    ):
        renamed = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)" if old[-1] != "[" else re.escape(old), new, renamed)
    renamed = renamed.replace("m[", "largest[")
    one, two = parse_op(SOFTMAX).specialise({"x": (3, 4)}), parse_op(renamed).specialise({"inp": (3, 4)})
    assert one != two
    assert one.canonical == two.canonical
    assert one.signature == two.signature
    other = parse_op(SOFTMAX).specialise({"x": (3, 5)})
    assert other.signature != one.signature
    assert other.structure == one.structure


def test_one_image_has_the_structure_of_a_batch() -> None:
    def scaled(shape: tuple[int, ...], strides: tuple[int, ...]) -> Program:
        program = parse_op("op scaled(x[N,C,H,W]) -> y[N,C,H,W]: y[n,c,h,w] = 2 * x[n,c,h,w]").specialise({"x": shape})
        return replace(program, inputs=(replace(program.inputs[0], strides=strides),))

    batch = scaled((2, 8, 4, 4), (128, 1, 32, 8))
    assert scaled((1, 8, 4, 4), (8, 1, 32, 8)).structure == batch.structure
    assert scaled((1, 8, 4, 4), (128, 16, 4, 1)).structure != batch.structure
    assert scaled((2, 8, 1, 1), (8, 1, 1, 1)).structure == scaled((3, 5, 1, 1), (5, 1, 8, 7)).structure


@pytest.mark.parametrize(
    ("text", "shapes", "parameters"),
    [
        (GEMM, {"a": (3, 4), "b": (4, 5), "bias": (5,)}, {}),
        (SOFTMAX, {"x": (3, 4)}, {}),
        (CONV, {"x": (1, 2, 6, 6), "w": (3, 2, 3, 3)}, {"stride": 2, "pad": 1}),
        ("op f(x[N]: i8 pad -inf) -> y[P]: y[p] = f32(max(r:3) x[p+r-1]) ^ 2 + index(p)", {"x": (5,)}, {}),
        ("op f(x) -> y: y = where(x > 0 and not x > 1, -x, inf)", {"x": (2, 3)}, {}),
    ],
)
def test_printed_programs_can_be_read(
    text: str, shapes: dict[str, tuple[int, ...]], parameters: dict[str, int]
) -> None:
    d = parse_op(text)
    program = d.specialise(shapes, {t.name: t.dtype or DType.F32 for t in d.inputs}, parameters)
    again = parse_op(program_text(program)).specialise(shapes, {t.name: t.dtype for t in program.inputs})
    assert again.signature == program.signature


# --- tuning lines -----------------------------------------------------------------------------------------------------


def test_limits() -> None:
    text = (
        HEADER
        + "y[n,c] = x[n,c]\n where ((tile_n*item_c)) *4<= device.local_mem/2 - -1\n where 2^3 == tile_c"
        + "\n tile n: per item 4"
    )
    program = parse_op(text).specialise({"x": (3, 4), "b": (4,)})
    first, second = (x.condition for x in program.limits)
    assert first == "(tile_n * item_c) * 4 <= (device.local_mem / 2) - -1"
    assert second == "2 ^ 3 == tile_c"
    assert program.hints == (Hint("item", "n", (4,)),)
    assert limits.names(first) == {"tile_n", "item_c", "device.local_mem"}
    assert limits.holds(first, {"tile_n": 4, "item_c": 8, "device.local_mem": 255})
    assert not limits.holds(first, {"tile_n": 4, "item_c": 8, "device.local_mem": 253})
    assert limits.holds(first, {"tile_n": 4})
    assert not limits.holds(second, {"tile_c": 4})
    assert not limits.holds("local_bytes / work_group > 0", {"local_bytes": 4, "work_group": 0})
    for text, value in (("a != 3", True), ("a < 3", False), ("a > 3", True), ("a + 1 >= 5", True)):
        assert limits.holds(text, {"a": 4}) is value
    with pytest.raises(LanguageError, match="expected a value"):
        parse_condition("a <")
