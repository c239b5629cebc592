"""Expressions on devices: index expressions, reductions, scans, types and functions against float64, naive and not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from tilewright.dsl.compose import hoist
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import fitting
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.functions import SPOKEN
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Read, Reduce, is_linear, walk
from tilewright.dsl.splitting import linearised
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context

from .interpret import interpret
from .oracle import reference
from .running import run, shaped

RNG = np.random.default_rng(7)
Arrays = Mapping[str, np.ndarray]


def specialised(text: str, arrays: Arrays, **parameters: float) -> Program:
    dtypes = {name: DType.from_numpy(a.dtype) for name, a in arrays.items()}
    return parse_op(text).specialise({name: a.shape for name, a in arrays.items()}, dtypes, parameters)


def simplest(ctx: Context, program: Program, arrays: Arrays) -> dict[str, np.ndarray]:
    """The outputs by the naive family."""
    target = ctx.device.target
    return run(ctx, NAIVE, program, target, NAIVE.default(program, target), arrays)


def usual(ctx: Context, program: Program, arrays: Arrays) -> dict[str, np.ndarray]:
    """The outputs by way of stages, each by the first family that fits."""
    return staged(ctx, program, arrays, ctx.device.target)


def gpu_shaped(ctx: Context, program: Program, arrays: Arrays) -> dict[str, np.ndarray]:
    """The same by kernels for GPUs."""
    return staged(ctx, program, arrays, shaped(ctx.device.target, Shape.GPU))


def staged(ctx: Context, program: Program, arrays: Arrays, target: Target) -> dict[str, np.ndarray]:
    known = dict(arrays)
    for stage in map(linearised, split(program, target)):
        family = fitting(stage, target)[0]
        given = {t.name: known[t.name] for t in stage.inputs}
        made = run(ctx, family, stage, target, family.default(stage, target), given)
        known |= {t.name: made[t.name].reshape(program.tensors.get(t.name, t).shape) for t in stage.outputs}
    return {t.name: known[t.name] for t in program.outputs}


BOTH = pytest.mark.parametrize("way", [simplest, usual], ids=["naive", "default"])
ALL = pytest.mark.parametrize("way", [simplest, usual, gpu_shaped], ids=["naive", "default", "gpu-shaped"])
Way = Callable[[Context, Program, Arrays], dict[str, np.ndarray]]

# --- functions --------------------------------------------------------------------------------------------------------


def between(low: float, high: float) -> np.ndarray:
    return RNG.uniform(low, high, 300)


def around(low: float, high: float) -> np.ndarray:
    """Magnitudes from `low` to `high`, evenly in the logarithm, of both signs."""
    return np.exp(RNG.uniform(np.log(low), np.log(high), 300)) * RNG.choice([-1, 1], 300)


def above(low: float, high: float) -> np.ndarray:
    return np.abs(around(low, high))


ALPHA = 1.6732632423543772

ACCURACY: dict[str, tuple[float, tuple[np.ndarray, ...], Callable[..., np.ndarray]]] = {
    "exp": (3, (between(-87, 88),), np.exp),
    "exp2": (3, (between(-125, 127),), np.exp2),
    "expm1": (3, (around(1e-6, 80),), np.expm1),
    "log": (3, (above(1e-37, 1e37),), np.log),
    "log2": (3, (above(1e-37, 1e37),), np.log2),
    "log10": (3, (above(1e-37, 1e37),), np.log10),
    "log1p": (3, (above(1e-6, 1e30),), np.log1p),
    "logaddexp": (3, (between(-50, 50), between(-50, 50)), np.logaddexp),
    "logaddexp2": (3, (between(-50, 50), between(-50, 50)), np.logaddexp2),
    "sqrt": (3, (above(1e-37, 1e37),), np.sqrt),
    "rsqrt": (3, (above(1e-37, 1e37),), lambda x: 1 / np.sqrt(x)),
    "cbrt": (3, (around(1e-37, 1e37),), np.cbrt),
    "square": (1, (around(1e-18, 1e18),), np.square),
    "reciprocal": (3, (around(1e-37, 1e37),), np.reciprocal),
    "div": (3, (around(1e-9, 1e9), around(1e-9, 1e9)), np.divide),
    "pow": (16, (above(1e-3, 1e3), between(-10, 10)), np.power),
    "hypot": (4, (around(1e-30, 1e30), around(1e-30, 1e30)), np.hypot),
    "sin": (4, (between(-100, 100),), np.sin),
    "cos": (4, (between(-100, 100),), np.cos),
    "tan": (5, (between(-100, 100),), np.tan),
    "asin": (4, (between(-1, 1),), np.arcsin),
    "acos": (4, (between(-1, 1),), np.arccos),
    "atan": (5, (around(1e-6, 1e6),), np.arctan),
    "atan2": (6, (around(1e-5, 1e5), around(1e-5, 1e5)), np.arctan2),
    "sinh": (4, (around(1e-5, 88),), np.sinh),
    "cosh": (4, (between(-88, 88),), np.cosh),
    "tanh": (5, (around(1e-5, 20),), np.tanh),
    "asinh": (4, (around(1e-5, 1e30),), np.arcsinh),
    "acosh": (4, (1 + above(1e-3, 1e30),), np.arccosh),
    "atanh": (5, (between(-1, 1),), np.arctanh),
    "deg2rad": (2, (between(-400, 400),), np.deg2rad),
    "rad2deg": (2, (between(-10, 10),), np.rad2deg),
    "erf": (16, (around(1e-5, 6),), special.erf),
    "erfc": (16, (between(-4, 9),), special.erfc),
    "lgamma": (4, (above(3, 1e6),), special.gammaln),
    "tgamma": (16, (between(0.01, 34),), special.gamma),
    "sigmoid": (5, (between(-80, 80),), special.expit),
    "silu": (5, (between(-80, 80),), lambda x: x * special.expit(x)),
    "softplus": (5, (between(-80, 80),), lambda x: np.logaddexp(x, 0)),
    "mish": (8, (between(-20, 20),), lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "gelu": (8, (between(-1, 10),), lambda x: x * special.ndtr(x)),
    "gelu_tanh": (32, (between(-5, 10),), lambda x: x * special.expit(1.5957691216057308 * (x + 0.044715 * x**3))),
    "elu": (4, (between(-20, 20), between(0.1, 2)), lambda x, a: np.where(x > 0, x, a * np.expm1(x))),
    "celu": (5, (between(-20, 20), between(0.1, 2)), lambda x, a: np.where(x > 0, x, a * np.expm1(x / a))),
    "selu": (
        4,
        (between(-20, 20),),
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    ),
    "leaky_relu": (1, (between(-20, 20), between(0, 1)), lambda x, a: np.where(x < 0, a * x, x)),
    "hardsigmoid": (4, (between(-2, 5),), lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "hardswish": (4, (between(-2, 5),), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "softsign": (3, (between(-50, 50),), lambda x: x / (1 + np.abs(x))),
    "relu6": (0, (between(-5, 12),), lambda x: np.clip(x, 0, 6)),
    "floor": (0, (between(-99, 99),), np.floor),
    "ceil": (0, (between(-99, 99),), np.ceil),
    "trunc": (0, (between(-99, 99),), np.trunc),
    "round": (0, (np.rint(between(-99, 99)) / 2,), np.rint),
    "abs": (0, (between(-9, 9),), np.abs),
    "sign": (0, (between(-9, 9),), np.sign),
    "copysign": (0, (between(-9, 9), between(-9, 9)), np.copysign),
    "ldexp": (0, (between(-9, 9), np.rint(between(-20, 20))), lambda x, n: x * 2.0**n),
    "fmod": (0, (around(1e-2, 1e5), around(1e-2, 1e3)), np.fmod),
    "mod": (1, (around(1e-2, 1e5), around(1e-2, 1e3)), np.mod),
    "floordiv": (0, (around(1e-2, 1e5), around(1e-2, 1e3)), np.floor_divide),
    "heaviside": (0, (np.rint(between(-2, 2)), between(0, 1)), np.heaviside),
    "fmax": (0, (between(-9, 9), between(-9, 9)), np.fmax),
    "fmin": (0, (between(-9, 9), between(-9, 9)), np.fmin),
}
"""Functions with the error allowed in units in the last place of f32, arguments to try, and what they should give."""


def choice(bodies: list[str], otherwise: str = "0") -> str:
    """One expression that is body number f in row f: a kernel for all of them."""
    text = otherwise
    for row in reversed(range(len(bodies))):
        text = f"where(f == {row}, {bodies[row]}, {text})"
    return text


def called(names: list[str], arity: Callable[[str], int]) -> list[str]:
    return [f"{name}({', '.join(['x[f,n]', 'b[f,n]'][: arity(name)])})" for name in names]


@BOTH
def test_functions_are_as_exact_as_stated(ctx: Context, way: Way) -> None:
    names = list(ACCURACY)
    bodies = called(names, lambda name: len(ACCURACY[name][1]))
    rows = [ACCURACY[name][1] for name in names]
    arrays = {
        "x": np.stack([row[0] for row in rows]).astype(np.float32),
        "b": np.stack([row[-1] for row in rows]).astype(np.float32),
    }
    halves = [slice(0, len(names) // 2), slice(len(names) // 2, None)]
    for half in halves:
        text = f"op f(x[F,N], b[F,N]) -> y[F,N]: y[f,n] = {choice(bodies[half])}"
        given = {name: a[half] for name, a in arrays.items()}
        found = way(ctx, specialised(text, given), given)["y"]
        for name, x, b, y in zip(names[half], given["x"], given["b"], found, strict=True):
            allowed, row, exact = ACCURACY[name]
            expected = exact(*(a.astype(np.float64) for a in (x, b)[: len(row)]))
            unit = np.spacing(np.abs(expected).astype(np.float32))
            error = np.max(np.abs(y - expected) / unit)
            assert error <= allowed + 0.5, f"{name}: {error} units in the last place"


@BOTH
def test_fast_math_is_as_exact_on_finite_numbers(ctx: Context, way: Way) -> None:
    """NaN operands of max and min may be lost, and the last bits of a rounded quotient."""
    names = ["max", "min", "fmax", "fmin", "floordiv", "mod", "exp", "div"]
    x, b = around(0.1, 50).astype(np.float32), around(0.5, 50).astype(np.float32)
    bodies = [f"{name}(x[n]{'' if name == 'exp' else ', b[n]'})" for name in names]
    text = f"op f(x[N], b[N]; F: int) -> y[F,N]:\n    y[f: F,n] = {choice(bodies)}\n    fast_math"
    arrays = {"x": x, "b": b}
    program = specialised(text, arrays, F=len(names))
    assert program.fast_math
    np.testing.assert_allclose(way(ctx, program, arrays)["y"], reference(program, arrays)["y"], rtol=1e-5, atol=1e-5)
    target = ctx.device.target
    source = NAIVE.lower(program, target, NAIVE.default(program, target)).launches[0].source
    assert "fmax(" in source
    assert "fmod(" not in source


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.0, 3e38], np.float32)
ON_SPECIAL: dict[str, Callable[..., np.ndarray]] = {
    "max": np.maximum, "min": np.minimum, "fmax": np.fmax, "fmin": np.fmin, "mod": np.mod, "fmod": np.fmod,
    "floordiv": np.floor_divide, "abs": np.abs, "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite,
    "signbit": np.signbit, "copysign": np.copysign, "heaviside": np.heaviside, "logaddexp": np.logaddexp,
    "logaddexp2": np.logaddexp2, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "tanh": np.tanh, "round": np.rint,
    "softplus": lambda x: np.logaddexp(x, 0), "relu": lambda x: np.maximum(x, 0), "sign": np.sign, "hypot": np.hypot,
    "nextafter": np.nextafter, "sigmoid": special.expit, "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "clamp": lambda x: np.clip(x, -1, 1),
}  # fmt: skip


@BOTH
def test_special_values_are_numpys(ctx: Context, way: Way) -> None:
    x, b = (a.reshape(1, -1) for a in np.meshgrid(SPECIAL, SPECIAL))
    two = {name for name, f in ON_SPECIAL.items() if isinstance(f, np.ufunc) and f.nin == 2}
    bodies = [
        "clamp(x[n], -1, 1)" if name == "clamp" else f"f32({name}(x[n]{', b[n]' if name in two else ''}))"
        for name in ON_SPECIAL
    ]
    arrays = {"x": x.ravel(), "b": b.ravel()}
    text = f"op f(x[N], b[N]; F: int) -> y[F,N]: y[f: F,n] = {choice(bodies)}"
    found = way(ctx, specialised(text, arrays, F=len(bodies)), arrays)["y"]
    with np.errstate(all="ignore"):
        for (name, exact), y in zip(ON_SPECIAL.items(), found, strict=True):
            expected = exact(*(arrays[key] for key in ("x", "b")[: 1 + (name in two)])).astype(np.float32)
            np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7, err_msg=name)


INTEGERS: dict[str, Callable[..., np.ndarray]] = {
    "floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod, "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "max": np.maximum, "min": np.minimum, "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor,
    "shl": np.left_shift, "shr": np.right_shift, "gcd": np.gcd, "lcm": np.lcm, "square": np.square, "abs": np.abs,
    "neg": np.negative, "bitnot": np.invert, "sign": np.sign, "floor": np.positive,
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("dtype", ["i8", "u8", "i32", "u32", "i64"])
def test_integers_are_numpys(ctx: Context, way: Way, dtype: str) -> None:
    """With divisors 0 and -1, shifts past the width, and the ends of the type; a crash of the driver would end this."""
    kind = DType(dtype).numpy
    info = np.iinfo(kind)
    edge = np.array([info.min, info.min + 1, 0, 1, 2, 3, 7, 31, 64, info.max - 1, info.max], kind)
    edge = np.concatenate([edge, edge[1:6] * kind.type(-1)] if info.min else [edge])
    x, b = (a.ravel() for a in np.meshgrid(edge, edge))
    bodies = [f"{name}(x[n]{', b[n]' if f.nin == 2 else ''})" for name, f in INTEGERS.items()]
    text = f"op f(x[N], b[N]; F: int) -> y[F,N]: y[f: F,n] = {choice(bodies, 'x[n]')}"
    arrays = {"x": x, "b": b}
    found = way(ctx, specialised(text, arrays, F=len(bodies)), arrays)["y"]
    assert found.dtype == kind
    with np.errstate(all="ignore"):
        for (name, exact), y in zip(INTEGERS.items(), found, strict=True):
            expected = exact(*(x, b)[: exact.nin])
            if name in ("gcd", "lcm"):  # beyond the range of the type NumPy has no answer either
                expected = np.where((x == info.min) | (b == info.min), y, expected)
            np.testing.assert_array_equal(y, expected.astype(kind), err_msg=name)


@BOTH
def test_conversions_are_defined_everywhere(ctx: Context, way: Way) -> None:
    ends = [
        sign * (2.0**bits + step) for bits in (7, 8, 15, 16, 31, 32, 63, 64) for step in (-1, 0, 1) for sign in (-1, 1)
    ]
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 0.7, -0.7, 2.5, -2.5, 1e30, -1e30, *ends], np.float32)
    types = ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "bool", "f16", "bf16"]
    bodies = [f"i64({t}(x[n]))" for t in types]
    arrays = {"x": x}
    program = specialised(f"op f(x[N]; F: int) -> y[F,N]: y[f: F,n] = {choice(bodies)}", arrays, F=len(types))
    found = way(ctx, program, arrays)["y"]
    np.testing.assert_array_equal(found, interpret(program, arrays)["y"])
    np.testing.assert_array_equal(found[0, :9], [0, 127, -128, 0, 0, 0, 0, 2, -2])
    np.testing.assert_array_equal(found[8], x != 0)
    wide = np.array([-129, 300, 2**31, -(2**40) + 5, 2**63 - 1], np.int64)
    text = f"op f(x[N]; F: int) -> y[F,N]: y[f: F,n] = {choice([f'i64({t}(x[n]))' for t in types[:7]])}"
    found = way(ctx, specialised(text, {"x": wide}, F=7), {"x": wide})["y"]
    for t, y in zip(types, found, strict=False):
        np.testing.assert_array_equal(y, wide.astype(DType(t).numpy), err_msg=t)


def test_every_function_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "language.md").read_text()
    words = set(re.findall(r"\w+", text[text.index("## Functions") : text.index("## Index ranges")]))
    assert sorted(set(SPOKEN) - words) == []


# --- index expressions ------------------------------------------------------------------------------------------------

IDS = np.array([3, -1, 0, 4, 5, 2**31 - 1, -(2**31), 2], np.int32)
TABLE = RNG.standard_normal((5, 7)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 12, 3, 5)).astype(np.float32)


def shuffled(x: np.ndarray, r: int) -> np.ndarray:
    n, k, h, w = x.shape
    return x.reshape(n, k // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, k // r**2, h * r, w * r)


def gathered(table: np.ndarray, ids: np.ndarray, pad: float) -> np.ndarray:
    inside = (ids >= 0) & (ids < len(table))
    return np.where(inside[:, None], table[np.where(inside, ids, 0)], np.float32(pad))


SHUFFLE = """op pixel_shuffle(x[N,K,H,W]; r: int) -> y[N,K/(r*r),H*r,W*r]:
    y[n,c,h,w] = x[n, c*r*r + (h % r)*r + w % r, h / r, w / r]"""
INDEXED: list[tuple[str, Arrays, dict[str, int], np.ndarray]] = [
    (SHUFFLE, {"x": IMAGE}, {"r": 2}, shuffled(IMAGE, 2)),
    ("op f(x[A,B]) -> y[2*A,3*B]: y[h,w] = x[h/2, w/3] + h", {"x": TABLE}, {},
     TABLE.repeat(2, 0).repeat(3, 1) + np.arange(10)[:, None]),
    ("op f(x[A,B]) -> y[A*B]: y[i] = x[(i+3)/B, (i+3)%B]", {"x": TABLE}, {}, np.append(TABLE.ravel()[3:], [0] * 3)),
    ("op f(t[V,C] pad 2.5, ids[N]) -> y[N,C]: y[n,c] = t[ids[n], c]", {"t": TABLE, "ids": IDS}, {},
     gathered(TABLE, IDS, 2.5)),
    ("op f(t[V,C], ids[N]) -> y[N,C]: y[n,c] = t[2*ids[n] + c/4 - 1, C-1-c]", {"t": TABLE, "ids": IDS}, {},
     np.stack([gathered(TABLE, 2 * IDS.astype(np.int64) + c // 4 - 1, 0)[:, 6 - c] for c in range(7)], 1)),
    ("op f(t[V,C], i[N]) -> y[N,C]: y[n,c] = t[clamp(i[n], 0, V-1), c] + t[where(i[n] < 0, i[n]+V, i[n]), c]",
     {"t": TABLE, "i": IDS}, {},
     TABLE[np.clip(IDS, 0, 4)] + gathered(TABLE, np.where(IDS < 0, IDS.astype(np.int64) + 5, IDS), 0)),
    ("op f(t[V,C], a[M], ids[N]: i8) -> y[N]: y[n] = t[a[ids[n]*300/300], i32(5.9)] + index(a[ids[n]] + n)",
     {"t": TABLE, "a": np.array([4, 1, 0], np.int64), "ids": np.array([2, 0, 1, 1], np.int8)}, {},
     TABLE[[0, 4, 1, 1], 5] + np.array([0, 4, 1, 1]) + np.arange(4)),
    ("op f(x[A,B]; big: int) -> y[A,B]: y[a,b] = x[(a*big + b)/big, (a*big + b)%big] + index((a + 1)*(b + big)/big)",
     {"x": TABLE}, {"big": 2**31}, TABLE + np.arange(1, 6)[:, None]),
    ("op f(t[V,C], x[N,C]) -> y[N]: y[n] = t[(argmax(c) x[n,c]) % V, argmin(c) x[n,c]]",
     {"t": TABLE, "x": IMAGE[0, :, 1, :].repeat(2, 1)[:, :7]}, {},
     TABLE[IMAGE[0, :, 1, :].repeat(2, 1)[:, :7].argmax(1) % 5, IMAGE[0, :, 1, :].repeat(2, 1)[:, :7].argmin(1)]),
]  # fmt: skip


@ALL
@pytest.mark.parametrize("number", range(len(INDEXED)))
def test_index_expressions(ctx: Context, way: Way, number: int) -> None:
    text, arrays, parameters, expected = INDEXED[number]
    program = specialised(text, arrays, **parameters)
    np.testing.assert_allclose(way(ctx, program, arrays)["y"], expected, rtol=1e-6)
    np.testing.assert_allclose(reference(program, arrays)["y"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (SHUFFLE, (1, 8, 2, 3)),
        ("op f(x[N,K,H,W]; r: int) -> y[N,K,H*r,W*r]: y[n,k,h,w] = x[n,k,h/r,w/r] + h%r", (1, 4, 2, 3)),
        ("op f(x[N,K,H,W]; r: int) -> y[N*K*H*W]: y[i] = x[i/(K*H*W), i/(H*W)%K, i/W%H, i%W]", (2, 4, 2, 3)),
        ("op f(x[N,K,H,W]; r: int) -> y[N,K]: y[n,k] = sum(i: H*W) x[n,k,i/W,i%W]", (2, 4, 2, 3)),
    ],
)
def test_loops_are_split_where_that_makes_indices_linear(text: str, shape: tuple[int, ...]) -> None:
    x = RNG.standard_normal(shape).astype(np.float32)
    program = specialised(text, {"x": x}, r=2)
    assert not is_linear(program.statements[0].value)
    changed = linearised(program)
    assert is_linear(changed.statements[0].value)
    assert changed.outputs[0].is_contiguous
    made, expected = interpret(changed, {"x": x})["y"], interpret(program, {"x": x})["y"]
    np.testing.assert_array_equal(made.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    "text",
    [
        "op f(x[N]) -> y[2*N+1]: y[n] = x[n/2]",
        "op f(x[N]) -> y[2*N]: y[n] = x[(n+1)/2]",
        "op f(x[N], i[M]: i32) -> y[M]: y[n] = x[i[n]/2]",
        "op f(x[N]) -> y[2*N]: y[n] = cumsum(n) x[n/2]",
    ],
)
def test_programs_that_stay_as_they_are(text: str) -> None:
    shapes = {"x": (6,), "i": (4,)} if "i[M]" in text else {"x": (6,)}
    program = parse_op(text).specialise(shapes, {"i": DType.I32} if "i" in shapes else {})
    assert linearised(program) is program


def test_nested_reads_are_built_once() -> None:
    """Each level may need 64 bits; building a level twice for that would take 2^30 steps here."""
    text = "op f(x[A,B]) -> y[A]: y[a] = " + "i32(x[" * 30 + "a" + " + 1, 0])" * 30
    value = specialised(text, {"x": TABLE}).statements[0].value
    assert sum(isinstance(n, Read) for n in walk(value)) == 30


# --- reductions and scans ---------------------------------------------------------------------------------------------

X = RNG.standard_normal((6, 37)).astype(np.float32)
X[1, 5] = X[1, 20] = np.nan
X[2, 9] = X[2, 30] = 9.0
X[3] = -np.inf
with np.errstate(all="ignore"):
    SHIFTED = np.exp(X.astype(np.float64) - X.max(1, keepdims=True))
REDUCED: dict[str, np.ndarray] = {
    "argmax(k) x[r,k]": X.argmax(1),
    "argmin(k) (2*x[r,k] + 1)": X.argmin(1),
    "argmax(k) i32(x[r,k]*2 > 1)": np.argmax(X * 2 > 1, 1),
    "logsumexp(k) x[r,k]": special.logsumexp(X.astype(np.float64), 1),
    "logsumexp(k) (100*x[r,k])": special.logsumexp(100 * X.astype(np.float64), 1),
    "sum(k) exp(x[r,k] - max(j) x[r,j])": SHIFTED.sum(1),
    "sqrt(sum(k) x[r,k]^2)": np.linalg.norm(X.astype(np.float64), axis=1),
    "0 * sum(k) argmax(j) (x[r,j] * x[r,k]) + argmax(i,k) x[i,k]": np.full(6, X.argmax()),
}


@ALL
def test_reductions_of_reductions(ctx: Context, way: Way) -> None:
    with np.errstate(all="ignore"):
        for body, expected in REDUCED.items():
            program = specialised(f"op f(x[R,K]) -> y[R]: y[r] = {body}", {"x": X})
            assert program.outputs[0].dtype is (DType.I64 if "arg" in body else DType.F32)
            np.testing.assert_allclose(way(ctx, program, {"x": X})["y"], expected, rtol=2e-5, err_msg=body)


@BOTH
def test_scans(ctx: Context, way: Way) -> None:
    x = np.where(np.isfinite(X), X, 0)
    ones = np.triu(np.ones((37, 37)))
    for body, expected in {
        "cumsum(k) x[r,k]": x.cumsum(1),
        "cumprod(k) (1 + x[r,k]/40)": (1 + x / 40).cumprod(1),
        "cummax(k) x[r,k] - cummin(k) x[r,k]": np.maximum.accumulate(x, 1) - np.minimum.accumulate(x, 1),
        "sum(j < k) x[r,j]": x @ (ones - np.eye(37)),
        "sum(j >= k) x[r,j]": x @ ones.T,
        "max(j > k) x[r,j] + cumsum(r) x[r,k]": np.append(
            np.maximum.accumulate(x[:, ::-1], 1)[:, ::-1][:, 1:], np.full((6, 1), -np.inf), 1
        )
        + x.cumsum(0),
    }.items():
        program = specialised(f"op f(x[R,K]) -> y[R,K]: y[r,k] = {body}", {"x": x})
        np.testing.assert_allclose(way(ctx, program, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5, err_msg=body)


@ALL
def test_ends_and_insides_from_data(ctx: Context, way: Way) -> None:
    arrays = {"x": X[0], "i": np.array([3, -2, 100, 36, 0], np.int32)}
    text = "op f(x[N], i[M]) -> y[M], z[M]: bool:\n y[n] = sum(j <= i[n]) x[j]\n z[n] = inside(x[i[n]/2])"
    found = way(ctx, specialised(text, arrays), arrays)
    np.testing.assert_allclose(found["y"], [X[0, : max(0, k + 1)].sum() for k in arrays["i"]], rtol=1e-5)
    np.testing.assert_array_equal(found["z"], [True, False, False, True, True])


@BOTH
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_halves_are_computed_in_single_precision(ctx: Context, way: Way, dtype: str) -> None:
    x = RNG.standard_normal((5, 33)).astype(DType(dtype).numpy)
    wide = x.astype(np.float64)
    unit = 2.0 ** (-11 if dtype == "f16" else -8)
    for body, expected in {
        "gelu(x[n,k]) + x[n,k]^2 - 1": wide * special.ndtr(wide) + wide**2 - 1,
        "cumsum(k) x[n,k]": wide.cumsum(1),
        "x[n, argmax(j) x[n,j]] + 0 * k": wide.max(1, keepdims=True) + 0 * wide,
        "sum(j) x[n,j] * x[k % 5, j]": (wide @ wide.T)[:, np.arange(33) % 5],
    }.items():
        program = specialised(f"op f(x[N,K]) -> y[N,K]: y[n,k] = {body}", {"x": x})
        assert program.outputs[0].dtype is DType(dtype)
        found = way(ctx, program, {"x": x})["y"].astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=unit, atol=1e-5, err_msg=body)


def test_positions_and_sizes_of_zero() -> None:
    for n, k in ((0, 3), (3, 0), (1, 1)):
        x = np.zeros((n, k), np.float32)
        for kind, value in (("argmax", 0), ("argmin", 0), ("logsumexp", 0 if k else -np.inf)):
            program = specialised(f"op f(x[R,K]) -> y[R]: y[r] = {kind}(k) x[r,k]", {"x": x})
            np.testing.assert_array_equal(interpret(program, {"x": x})["y"], [value] * n)
        program = specialised("op f(x[R,K]) -> y[R,K]: y[r,k] = cumsum(k) x[r,k]", {"x": x})
        assert interpret(program, {"x": x})["y"].shape == (n, k)


def test_positions_are_i64_unless_declared() -> None:
    assert specialised("op f(x) -> y: y = argmax(x)", {"x": X}).outputs[0].dtype is DType.I64
    declared = specialised("op f(x[R,K]) -> y[R]: i32: y[r] = argmax(k) x[r,k]", {"x": X})
    assert declared.outputs[0].dtype is DType.I32
    assert interpret(specialised("op f(x) -> y: y = argmax(x)", {"x": X}), {"x": X})["y"] == X.argmax()


def test_reductions_that_repeat_inside_a_reduction_are_hoisted() -> None:
    program = specialised("op f(x[R,K]) -> y[R]: y[r] = logsumexp(k) x[r,k]", {"x": X})
    for s in hoist(program).statements:
        nested = [n for e in walk(s.value) if isinstance(e, Reduce) for n in walk(e.body)]
        assert not any(isinstance(n, Reduce) for n in nested)
