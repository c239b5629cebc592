"""What each program of docs/programs.md computes, in NumPy, and on what it is tried.

A case names its inputs as ``letters:kind``: one letter per dimension (letters are sizes, drawn at random; digits are
themselves), and how values are drawn. References take the inputs in float64 (integers and truths as they are) and the
parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

KINDS: Mapping[str, Draw] = {
    "any": lambda rng, shape: rng.standard_normal(shape).astype(np.float32) * 2,
    "positive": lambda rng, shape: rng.uniform(0.1, 3.0, shape).astype(np.float32),
    "unit": lambda rng, shape: rng.uniform(-0.95, 0.95, shape).astype(np.float32),
    "near": lambda rng, shape: rng.uniform(0.7, 1.4, shape).astype(np.float32),
    "truth": lambda rng, shape: rng.random(shape) < 0.4,
    "whole": lambda rng, shape: rng.integers(-9, 10, shape).astype(np.int32),
    "steps": lambda rng, shape: rng.integers(-3, 4, shape).astype(np.float32),
    "shift": lambda rng, shape: rng.integers(0, 8, shape).astype(np.int32),
    "byte": lambda rng, shape: rng.integers(-128, 128, shape).astype(np.int8),
    "half": lambda rng, shape: rng.standard_normal(shape).astype(np.float16),
    "special": lambda rng, shape: rng.choice(np.array([np.nan, np.inf, -np.inf, 1.5, 0], np.float32), shape),
}


@dataclass(frozen=True)
class Case:
    """Inputs, parameters and the reference of one program."""

    reference: Callable[..., Any]
    inputs: tuple[str, ...] = ("AB:any",)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes that are not free, by letter."""
    tolerance: float = 2e-5
    """Largest error relative to 1 + the largest magnitude of the output."""


def where_nan(f: Callable[..., Any]) -> Callable[..., Any]:
    """The reference without NumPy's warnings about what the program asks for."""

    def quiet(*args: Any, **parameters: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **parameters)

    return quiet


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to bf16, in float64."""
    import ml_dtypes

    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def windows(x: np.ndarray, r: int, s: int, stride: int = 1, pad: int = 0, by: int = 1, fill: float = 0) -> np.ndarray:
    """The windows of the last two dimensions: (..., P, Q, r, s)."""
    edges = [(0, 0)] * (x.ndim - 2) + [(pad, pad)] * 2
    x = np.pad(x, edges, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(x, (by * (r - 1) + 1, by * (s - 1) + 1), axis=(-2, -1))
    return found[..., ::stride, ::stride, ::by, ::by]


def conv(x: np.ndarray, w: np.ndarray, **how: int) -> np.ndarray:
    return np.einsum("ncpqrs,ocrs->nopq", windows(x, *w.shape[2:], **how), w)


def softmax(x: np.ndarray) -> np.ndarray:
    return special.softmax(x, -1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool = False) -> np.ndarray:
    s = scale * np.einsum("bid,bjd->bij", q, k)
    if causal:
        s = np.where(np.tril(np.ones(s.shape[1:], bool)), s, -np.inf)
    return softmax(s) @ v


def layer_norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def channels(v: np.ndarray) -> np.ndarray:
    """One value per channel, to broadcast over (N,C,H,W)."""
    return v[:, None, None]


def silu(x: np.ndarray) -> np.ndarray:
    return x * special.expit(x)


def rotated(x: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], -1)


def adam(w: Any, g: Any, m: Any, v: Any, rate: float) -> tuple[Any, ...]:
    p, q = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2
    return w - rate * p / (np.sqrt(q) + 1e-8), p, q


def huber(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    d = np.abs(x - t)
    return np.where(d < 1, 0.5 * d**2, d - 0.5)


def response_norm(x: np.ndarray, size: int, alpha: float) -> np.ndarray:
    padded = np.pad(x**2, ((0, 0), (2, size - 1), (0, 0), (0, 0)))
    q = sum(padded[:, r : r + x.shape[1]] for r in range(size))
    return x / (1 + alpha * q) ** 0.75


def pixel_shuffle(x: np.ndarray, r: int, C: int) -> np.ndarray:
    n, _, h, w = x.shape
    return x.reshape(n, C, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, C, r * h, r * w)


def channel_shuffle(x: np.ndarray, groups: int) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).swapaxes(1, 2).reshape(x.shape)


def one(kind: str) -> tuple[str, ...]:
    return (f"AB:{kind}",)


def two(kind: str, other: str | None = None) -> tuple[str, ...]:
    return (f"AB:{kind}", f"AB:{other or kind}")


IMAGE = "NCHW:any"

CASES: Mapping[str, Case] = {
    # one operand
    "signs": Case(lambda x: (np.abs(x), -x, np.sign(x), np.signbit(x))),
    "rounding": Case(lambda x: (np.floor(x), np.ceil(x), np.trunc(x), np.round(x))),
    "roots": Case(lambda x: (np.sqrt(x), 1 / np.sqrt(x), np.cbrt(x), 1 / x), one("positive")),
    "squares": Case(lambda x: (x**2, x**3, x**2.5), one("positive")),
    "exponentials": Case(lambda x: (np.exp(x), np.exp2(x), np.expm1(x))),
    "logarithms": Case(lambda x: (np.log(x), np.log2(x), np.log10(x), np.log1p(x)), one("positive")),
    "circular": Case(lambda x: (np.sin(x), np.cos(x), np.tan(x)), one("unit")),
    "inverse_circular": Case(lambda x: (np.arcsin(x), np.arccos(x), np.arctan(x)), one("unit")),
    "hyperbolic": Case(lambda x: (np.sinh(x), np.cosh(x), np.tanh(x))),
    "inverse_hyperbolic": Case(lambda x: (np.arcsinh(x), np.arccosh(x + 1), np.arctanh(x / 2)), one("near")),
    "angles": Case(lambda x: (np.deg2rad(x), np.rad2deg(x))),
    "error_functions": Case(lambda x: (special.erf(x), special.erfc(x))),
    "gamma_functions": Case(lambda x: (special.gammaln(x), special.gamma(x)), one("positive")),
    "kinds": Case(lambda x: (np.isnan(x), np.isinf(x), np.isfinite(x)), one("special")),
    # activations
    "relus": Case(lambda x: (np.maximum(x, 0), np.clip(x, 0, 6), np.where(x < 0, 0.1 * x, x))),
    "elus": Case(
        lambda x: (
            np.where(x > 0, x, 1.5 * np.expm1(x)),
            1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
            np.where(x > 0, x, 0.5 * np.expm1(x / 0.5)),
        )
    ),
    "sigmoids": Case(lambda x: (special.expit(x), silu(x), np.clip(0.2 * x + 0.5, 0, 1))),
    "hard": Case(lambda x: (x * np.clip(x / 6 + 0.5, 0, 1), np.clip(x, -1, 1))),
    "gelus": Case(
        lambda x: (
            x * special.ndtr(x),
            0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        )
    ),
    "soft": Case(lambda x: (np.logaddexp(x, 0), x / (1 + np.abs(x)), x * np.tanh(np.logaddexp(x, 0)))),
    "prelu": Case(lambda x, slope: np.where(x < 0, channels(slope) * x, x), (IMAGE, "C:any")),
    "threshold": Case(lambda x, at, value: np.where(x > at, x, value), parameters={"at": 0.25, "value": -3.0}),
    "shrink": Case(lambda x: np.where(x < -0.5, x, np.where(x > 0.5, x, 0))),
    # two operands and more
    "arithmetic": Case(lambda x, z: (x + z, x - z, x * z, x / z), two("any", "positive")),
    "powers": Case(lambda x, z: (x**z, np.hypot(x, z)), two("positive", "any")),
    "whole_quotients": Case(
        where_nan(lambda x, z: (x // z, np.mod(x, z), np.fmod(x, z))), two("steps", "near"), tolerance=1e-4
    ),
    "larger": Case(
        where_nan(lambda x, z: (np.maximum(x, z), np.minimum(x, z), np.fmax(x, z), np.fmin(x, z))),
        two("special", "any"),
    ),
    "comparisons": Case(lambda x, z: (x < z, x <= z, x == z, x != z), two("steps")),
    "logic": Case(lambda x, z: (x & z, x | z, ~x, x ^ z), two("truth")),
    "bits": Case(lambda x, z: (x & z, x | z, x ^ z, ~x), two("whole")),
    "shifts": Case(lambda x, z: (x << z, x >> z), two("whole", "shift")),
    "divisors": Case(lambda x, z: (np.gcd(x, z), np.lcm(x, z)), two("whole")),
    "signs_of_two": Case(lambda x, z: (np.copysign(x, z), np.heaviside(x, z), np.arctan2(x, z)), two("steps", "any")),
    "log_sums": Case(lambda x, z: (np.logaddexp(x, z), np.logaddexp2(x, z)), two("any")),
    "choose": Case(np.where, ("AB:truth", "AB:any", "AB:any")),
    "clip": Case(lambda x, low, high: np.minimum(np.maximum(x, low), high), ("AB:any", ":unit", ":near")),
    "lerp": Case(lambda x, z, t: x + t * (z - x), two("any"), {"t": 0.3}),
    "axpby": Case(lambda x, z, a: a * x + z, two("any"), {"a": 2.5}),
    "masked_fill": Case(lambda x, mask, value: np.where(mask, value, x), two("any", "truth"), {"value": -7.0}),
    # broadcasting
    "bias_relu": Case(lambda x, b: np.maximum(x + channels(b), 0), (IMAGE, "C:any")),
    "scale_shift": Case(lambda x, s, b: x * channels(s) + channels(b), (IMAGE, "C:any", "C:any")),
    "outer": Case(np.outer, ("M:any", "N:any")),
    "distances": Case(lambda x, z: np.sqrt(((x[:, None] - z[None]) ** 2).sum(-1)), ("MD:any", "ND:any")),
    "residual": Case(lambda x, z, b: np.maximum(x + z + channels(b), 0), (IMAGE, IMAGE, "C:any")),
    "squeeze_excite": Case(lambda x, g: x * special.expit(g)[:, :, None, None], (IMAGE, "NC:any")),
    "swiglu": Case(lambda x, D: silu(x[:, :D]) * x[:, D:], ("NE:any",), {"D": 9}, {"E": 18}),
    # reductions
    "totals": Case(lambda x: (x.sum(1), x.mean(1), x.max(1), x.min(1)), ("RK:any",)),
    "columns": Case(lambda x: (x.sum(0), x.prod(0)), ("RK:near",)),
    "middle": Case(lambda x: x.sum(1), ("ABC:any",)),
    "everything": Case(np.sum, ("ABC:any",)),
    "truths": Case(lambda x: (x.any(1), x.all(1)), ("RK:truth",)),
    "places": Case(lambda x: (x.argmax(1), x.argmin(1)), ("RK:steps",)),
    "counts": Case(lambda x: (x > 0).sum(1), ("RK:any",)),
    "norms": Case(lambda x: (np.abs(x).sum(1), np.sqrt((x**2).sum(1)), np.abs(x).max(1)), ("RK:any",)),
    "lse": Case(lambda x: special.logsumexp(x, 1), ("RK:any",)),
    "moments": Case(lambda x: (x.sum((0, 2, 3)), (x**2).sum((0, 2, 3))), (IMAGE,)),
    "variance": Case(lambda x: x.var((0, 2, 3)), (IMAGE,)),
    "span": Case(lambda x: np.ptp(x, 1), ("RK:any",)),
    "trace": Case(np.trace, ("NN:any",)),
    "cosine": Case(
        lambda x, z: (x * z).sum(1) / np.sqrt((x**2).sum(1) * (z**2).sum(1)), ("RK:positive", "RK:positive")
    ),
    # scans
    "running": Case(lambda x: (np.cumsum(x, 1), np.maximum.accumulate(x, 1)), ("RK:any",)),
    "running_product": Case(lambda x: np.cumprod(x, 1), ("RK:near",)),
    "running_least": Case(lambda x: np.minimum.accumulate(x, 0), ("KR:any",)),
    "exclusive": Case(lambda x: np.cumsum(x, 1) - x, ("RK:any",)),
    "from_the_end": Case(lambda x: np.cumsum(x[:, ::-1], 1)[:, ::-1], ("RK:any",)),
    # products
    "gemm": Case(lambda a, b, bias: np.maximum(a @ b + bias, 0), ("MK:any", "KN:any", "N:any")),
    "gemm_nt": Case(lambda a, b: a @ b.T, ("MK:any", "NK:any")),
    "bmm": Case(np.matmul, ("BMK:any", "BKN:any")),
    "matvec": Case(np.matmul, ("MK:any", "K:any")),
    "dot": Case(np.dot, ("K:any", "K:any")),
    "blas_gemm": Case(
        lambda a, b, c, alpha, beta: beta * c + alpha * (a @ b),
        ("MK:any", "KN:any", "MN:any"),
        {"alpha": 0.5, "beta": -1.5},
    ),
    "bilinear": Case(lambda x, w, z: np.einsum("ni,oij,nj->no", x, w, z), ("NI:any", "OIJ:any", "NJ:any")),
    "gram": Case(lambda x: x @ x.T, ("MK:any",)),
    "gated": Case(lambda x, w, v: silu(x @ w) * (x @ v), ("MK:unit", "KN:unit", "KN:unit")),
    # windows
    "conv2d": Case(
        lambda x, w, b, stride, pad: np.maximum(conv(x, w, stride=stride, pad=pad) + channels(b), 0),
        (IMAGE, "OC32:any", "O:any"),
        {"stride": 2, "pad": 1},
    ),
    "dilated": Case(lambda x, w, by: conv(x, w, by=by), ("NCHW:any", "OC22:any"), {"by": 2}),
    "depthwise": Case(
        lambda x, w: np.einsum("ncpqrs,crs->ncpq", windows(x, 3, 3), w), ("NCHW:any", "C33:any"), {}, {"H": 8, "W": 11}
    ),
    "grouped": Case(
        lambda x, w: np.einsum("ngcpqrs,gocrs->ngopq", windows(x, 3, 3, pad=1), w), ("NGCHW:any", "GOC33:any")
    ),
    "conv1d": Case(
        lambda x, w: np.einsum("ncur,ocr->nou", np.lib.stride_tricks.sliding_window_view(x, 3, axis=2), w),
        ("NCT:any", "OC3:any"),
        {},
        {"T": 17},
    ),
    "max_pool": Case(
        lambda x, k, stride, pad: windows(x, k, k, stride, pad, fill=-np.inf).max((-2, -1)),
        (IMAGE,),
        {"k": 3, "stride": 2, "pad": 1},
    ),
    "mean_pool": Case(
        lambda x, k: windows(x[:, :, : x.shape[2] // k * k, : x.shape[3] // k * k], k, k, k).mean((-2, -1)),
        (IMAGE,),
        {"k": 2},
        {"H": 7, "W": 9},
    ),
    "global_pool": Case(lambda x: x.mean((2, 3)), (IMAGE,)),
    "laplace": Case(
        lambda x: np.einsum("hwrs,rs->hw", windows(x, 3, 3, pad=1), np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])),
        ("HW:any",),
    ),
    "response_norm": Case(response_norm, (IMAGE,), {"size": 5, "alpha": 0.1}),
    # normalisation and attention
    "softmax": Case(softmax, ("RK:any",)),
    "log_softmax": Case(lambda x: special.log_softmax(x, 1), ("RK:any",)),
    "layer_norm": Case(layer_norm, ("RK:any", "K:any", "K:any")),
    "rms_norm": Case(lambda x, g: x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * g, ("RK:any", "K:any")),
    "batch_norm": Case(
        lambda x, g, b: (
            (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5) * channels(g)
            + channels(b)
        ),
        (IMAGE, "C:any", "C:any"),
    ),
    "unit_rows": Case(lambda x: x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12), ("RK:any",)),
    "attention": Case(attention, ("BMD:any", "BND:any", "BNE:any"), {"scale": 0.25}),
    "causal": Case(
        lambda q, k, v, scale: attention(q, k, v, scale, causal=True), ("BMD:any", "BMD:any", "BME:any"), {"scale": 0.3}
    ),
    "rotary": Case(lambda x, c, s: x * c + rotated(x) * s, ("NTD:any", "TD:any", "TD:any"), {}, {"D": 14}),
    # losses and updates
    "squared_error": Case(lambda x, t: ((x - t) ** 2).mean(), ("NK:any", "NK:any")),
    "huber": Case(huber, ("N:any", "N:any")),
    "cross_entropy": Case(
        lambda x, t: special.logsumexp(x, 1) - x[np.arange(len(x)), t], ("NK:any", "N:shift"), {}, {"K": 11}
    ),
    "binary_cross_entropy": Case(lambda x, t: np.logaddexp(x, 0) - x * t, ("N:any", "N:unit")),
    "sgd": Case(lambda g, w, rate: w - rate * g, ("N:any", "N:any"), {"rate": 0.125}),
    "adam": Case(adam, ("N:any", "N:any", "N:any", "N:positive"), {"rate": 0.01}),
    # moving data
    "transpose": Case(np.transpose, ("MN:any",)),
    "channels_last": Case(lambda x: x.transpose(0, 2, 3, 1), (IMAGE,)),
    "flip": Case(lambda x: x[:, ::-1], ("MN:any",)),
    "every_second": Case(lambda x: x[::2], ("N:any",)),
    "zero_pad": Case(lambda x, by: np.pad(x, (by, by)), ("HW:any",), {"by": 2}),
    "roll": Case(lambda x, by: np.roll(x, -by), ("N:any",), {"by": 3}),
    "tile": Case(lambda x, times: np.concatenate([x] * times), ("N:any",), {"times": 3}),
    "upsample": Case(lambda x, by: x.repeat(by, 2).repeat(by, 3), (IMAGE,), {"by": 2}),
    "pixel_shuffle": Case(pixel_shuffle, ("NCHW:any",), {"r": 3, "C": 2}, {"C": 18}),
    "channel_shuffle": Case(channel_shuffle, (IMAGE,), {"groups": 3}, {"C": 12}),
    "embedding": Case(lambda table, ids: table[ids], ("VD:any", "N:shift64"), {}, {"V": 9}),
    "take_along": Case(lambda x, at: np.take_along_axis(x, at, 1), ("RK:any", "RJ:shift"), {}, {"K": 13}),
    "one_hot": Case(lambda ids, K: np.eye(K)[ids], ("N:shift",), {"K": 10}),
    "lower_triangle": Case(np.tril, ("MN:any",)),
    "arange": Case(lambda N, step: np.arange(N) * step, (), {"N": 37, "step": 0.25}),
    "concat": Case(lambda x, z: np.concatenate([x, z], 1), ("MA:any", "MB:any")),
    # other types
    "half_gemm": Case(np.matmul, ("MK:half", "KN:half"), tolerance=1e-3),
    "brain_gemm": Case(np.matmul, ("MK:brain", "KN:brain")),
    "int8_gemm": Case(lambda a, b: a.astype(int) @ b.astype(int), ("MK:byte", "KN:byte")),
    "quantise": Case(
        lambda x, scale, zero: np.clip(np.round(x / np.float32(scale)) + zero, -128, 127),
        ("N:any",),
        {"scale": 0.03, "zero": 5},
    ),
    "dequantise": Case(
        lambda x, scale, zero: (x.astype(float) - zero) * np.float32(scale), ("N:byte",), {"scale": 0.5, "zero": -4}
    ),
    "brain_round": Case(bf16, ("N:any",)),
}
