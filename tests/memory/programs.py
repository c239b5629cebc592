"""Small uneven programs of every kind, and the targets on which families lower them in the simulator.

Sizes are one to three tiles and a remainder: enough for every branch of a kernel, few enough for an interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from running import laid_out
from targets import CPU

from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target

VECTORS = replace(CPU, compute_units=2, max_work_group=256)
TARGETS: Mapping[str, Target] = {
    "cpu": VECTORS,
    "cpu-scalar": replace(VECTORS, vector_bytes=4),
    "gpu": replace(VECTORS, shape=Shape.GPU, vector_bytes=16, has_real_local_memory=True, sub_group=32),
}
"""By name. The simulator watches uninitialised values in scalar code only (see `simulator.py`), hence `cpu-scalar`."""


@dataclass(frozen=True)
class Example:
    """A text with the sizes it is run for."""

    text: str
    shapes: Mapping[str, tuple[int, ...]]
    layout: str = "rows"
    parameters: Mapping[str, int] = field(default_factory=dict)


EXAMPLES: Mapping[str, Example] = {
    "gemm": Example(
        """op gemm(a[M,K], b[K,N], bias[N]) -> c[M,N]:
    c[m,n] = relu(sum(k) a[m,k] * b[k,n] + bias[n])""",
        {"a": (19, 11), "b": (11, 37), "bias": (37,)},
    ),
    "products": Example(
        """op products(a[B,K,M], b[B,N,K], r[M]) -> c[N,B,M]:
    c[n,g,m] = (sum(k) max(a[g,k,m], 0) * (b[g,n,k] + 1)) * r[m]""",
        {"a": (2, 9, 21), "b": (2, 19, 9), "r": (21,)},
        "scattered",
    ),
    "conv": Example(
        """op conv(x[N,C,H,W], w[O,C,R,S]; stride: int, pad: int) -> y[N,O,P,Q]:
    P = (H + 2*pad - R) / stride + 1
    Q = (W + 2*pad - S) / stride + 1
    y[n,o,p,q] = sum(c,r,s) x[n,c,p*stride+r-pad,q*stride+s-pad] * w[o,c,r,s]""",
        {"x": (1, 3, 9, 8), "w": (18, 3, 3, 3)},
        "last",
        {"stride": 2, "pad": 1},
    ),
    "conv_3x3": Example(
        """op conv(x[N,C,H,W], w[O,C,R,S], b[O]) -> y[N,O,H,W]:
    y[n,o,p,q] = relu(sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s] + b[o])""",
        {"x": (2, 9, 5, 6), "w": (11, 9, 3, 3), "b": (11,)},
    ),
    "same": Example(
        """op same(x[N,C,H,W], w[O,C,3,3], b[O]) -> y[N,O,H,W]:
    y[n,o,p,q] = relu(sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s] + b[o])""",
        {"x": (1, 3, 7, 9), "w": (5, 3, 3, 3), "b": (5,)},
    ),
    "groups": Example(
        """op groups(x[N,G,C,H,W], w[G,O,C,R,S]) -> y[N,G,O,P,Q]:
    y[n,g,o,p,q] = sum(c,r,s) x[n,g,c,p+2*r,q+2*s] * w[g,o,c,r,s]""",
        {"x": (2, 2, 3, 7, 9), "w": (2, 5, 3, 2, 2)},
    ),
    "narrow_groups": Example(
        """op groups(x[N,H,W,G,C], w[R,S,C,G,O], b[G,O]) -> y[N,P,Q,G,O]:
    P = H
    Q = W
    y[n,p,q,g,o] = sum(c,r,s) x[n,p+r-1,q+s-1,g,c] * w[r,s,c,g,o] + b[g,o]""",
        {"x": (1, 5, 6, 3, 4), "w": (3, 3, 4, 3, 4), "b": (3, 4)},
    ),
    "excite": Example(
        """op excite(x[N,H,W,C], u[C,J], b[J], v[J,D]) -> y[N,D]:
    p[n,c] = (sum(h,w) x[n,h,w,c]) / 35
    a[n,j] = relu(sum(c) u[c,j] * p[n,c] + b[j])
    y[n,d] = sigmoid(sum(j) v[j,d] * a[n,j])""",
        {"x": (2, 5, 7, 12), "u": (12, 3), "b": (3,), "v": (3, 20)},
    ),
    "depthwise": Example(
        """op depthwise(x[N,C,H,W], w[C,R,S], b[C]; stride: int, pad: int) -> y[N,C,P,Q]:
    P = (H + 2*pad - R) / stride + 1
    Q = (W + 2*pad - S) / stride + 1
    y[n,c,p,q] = relu(sum(r,s) x[n,c,p*stride+r-pad,q*stride+s-pad] * w[c,r,s] + b[c])""",
        {"x": (1, 9, 3, 11), "w": (9, 3, 3), "b": (9,)},
        "last",
        {"stride": 1, "pad": 1},
    ),
    "max_pool": Example(
        """op max_pool(x[N,C,H,W] pad -inf; k: int, stride: int, pad: int) -> y[N,C,P,Q]:
    P = (H + 2*pad - k) / stride + 1
    Q = (W + 2*pad - k) / stride + 1
    y[n,c,p,q] = max(r:k,s:k) x[n,c,p*stride+r-pad,q*stride+s-pad]""",
        {"x": (2, 2, 5, 21)},
        parameters={"k": 3, "stride": 2, "pad": 1},
    ),
    "mean_pool": Example(
        """op mean_pool(x[N,C,H,W]) -> y[N,C,H,W]:
    y[n,c,p,q] = sum(r:3,s:3) x[n,c,p+r-1,q+s-1] / sum(r:3,s:3) f32(inside(x[n,c,p+r-1,q+s-1]))""",
        {"x": (1, 3, 5, 13)},
        "scattered",
    ),
    "across": Example(
        "op across(x[N,C,W]) -> y[N,C,W]: y[n,c,w] = x[n,c,w] / (1 + sum(k:5) x[n,c+k-2,w]^2)",
        {"x": (2, 11, 19)},
        "last",
    ),
    "bias": Example(
        "op bias(x[N,C,H,W], b[C]) -> y[N,C,H,W]: y[n,c,h,w] = tanh(x[n,c,h,w] + b[c])",
        {"x": (2, 5, 7, 11), "b": (5,)},
    ),
    "pad_copy": Example(
        "op pad_copy(x[H,W] pad 2.5) -> y[P,Q]: y[p:13,q:37] = x[p-2,q-3]",
        {"x": (9, 31)},
    ),
    "transpose": Example(
        "op transpose(x[N,C,W]: f16) -> y[W,N,C]: y[w,n,c] = x[n,c,w]",
        {"x": (3, 17, 21)},
    ),
    "every_second": Example(
        "op every_second(x[N,W]) -> y[N,P]: y[n,p:17] = x[n,2*p+1] - x[n,2*p]",
        {"x": (3, 34)},
    ),
    "masked": Example(
        """op masked(x[N,C], z[C]: i16) -> y[N,C], m[N,C]: bool:
    y[n,c] = where(x[n,c] > z[c] and not isnan(x[n,c]), x[n,c] ^ 2, exp(f32(z[c])))
    m[n,c] = x[n,c] <= z[c]""",
        {"x": (5, 29), "z": (29,)},
        "scattered",
    ),
    "wide": Example(
        """op wide(x[N,C]: f64, i[C]: i64) -> y[N,C], k[N,C]: i64:
    y[n,c] = x[n,c] * i[c]
    k[n,c] = i[c] * 3 - n""",
        {"x": (3, 37), "i": (37,)},
    ),
    "moments": Example(
        """op moments(x[N,C,H,W]) -> s[C], q[C]:
    s[c] = sum(n,h,w) x[n,c,h,w]
    q[c] = sum(n,h,w) x[n,c,h,w]^2""",
        {"x": (2, 19, 3, 7)},
        "last",
    ),
    "pooled": Example(
        "op pooled(x[N,C,H,W], b[C]) -> y[N,C]: y[n,c] = (sum(h,w) x[n,c,h,w]) / 35 + b[c]",
        {"x": (2, 13, 7, 5), "b": (13,)},
    ),
    "largest": Example("op largest(x[R,K]) -> y[R]: y[r] = max(k) x[r,k]", {"x": (7, 103)}),
    "smallest": Example("op smallest(x[K,R]: f16) -> y[R]: y[r] = min(k) x[k,r]", {"x": (43, 21)}),
    "total": Example("op total(x[N]) -> y[1]: y[0] = sum(n) x[n]", {"x": (517,)}),
    "count": Example(
        "op count(x[N,C]: u8, z[C]: u8) -> y[C], a[C]:\n    y[c] = sum(n) x[n,c]\n    a[c] = any(n) (x[n,c] > z[c])",
        {"x": (31, 9), "z": (9,)},
    ),
    "cumsum": Example("op cumsum(x[R,K]) -> y[R,K]: y[r,k] = (sum(j <= k) x[r,j]) * 2 + x[r,k]", {"x": (3, 148)}),
    "cumsum_from_end": Example(
        "op cumsum(x[R,K]) -> y[R,K]: y[r,k] = sum(j <= K - 1 - k) x[r,j]", {"x": (3, 77)}, "scattered"
    ),
    "cummax_columns": Example("op cummax(x[K,C]) -> y[K,C]: y[k,c] = max(j <= k) x[j,c]", {"x": (71, 19)}),
    "long_cumsum": Example("op cumsum(x[N]) -> y[N]: y[n] = sum(j <= n) x[j]", {"x": (1100,)}),
    "turned": Example(
        "op turned(x[N,C,W], b[C]) -> y[N,W,C]: y[n,w,c] = relu(x[n,c,w] + b[c])", {"x": (2, 36, 68), "b": (36,)}
    ),
    "turned_bytes": Example("op turned(x[M,N]: u8) -> y[N,M]: u8: y[n,m] = x[m,n]", {"x": (72, 20)}),
    "softmax": Example(
        """op softmax(x[R,K]) -> y[R,K]:
    m[r] = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]""",
        {"x": (5, 67)},
    ),
    "layer_norm": Example(
        """op layer_norm(x[B,R,K], g[K], b[K]) -> y[B,R,K]:
    m[n,r] = mean(k) x[n,r,k]
    v[n,r] = mean(k) (x[n,r,k] - m[n,r])^2
    y[n,r,k] = (x[n,r,k] - m[n,r]) * rsqrt(v[n,r] + 1e-5) * g[k] + b[k]""",
        {"x": (2, 3, 41), "g": (41,), "b": (41,)},
    ),
    "rms_norm": Example(
        """op rms_norm(x[R,K]: f16, g[K]: f16) -> y[R,K]: f16:
    q[r] = mean(k) f32(x[r,k])^2
    y[r,k] = x[r,k] * rsqrt(q[r] + 1e-6) * g[k]""",
        {"x": (3, 35), "g": (35,)},
    ),
    "channel_softmax": Example(
        """op channel_softmax(x[N,C,H,W]) -> y[N,C,H,W]:
    m[n,h,w] = max(c) x[n,c,h,w]
    s[n,h,w] = sum(c) exp(x[n,c,h,w] - m[n,h,w])
    y[n,c,h,w] = exp(x[n,c,h,w] - m[n,h,w]) / s[n,h,w]""",
        {"x": (2, 11, 3, 7)},
    ),
    "group_norm": Example(
        """op group_norm(x[N,G,C,S], z[G,C]) -> y[N,G,C,S], m[N,G]:
    m[n,g] = mean(c,s) x[n,g,c,s]
    v[n,g] = mean(c,s) (x[n,g,c,s] - m[n,g])^2
    y[n,g,c,s] = (x[n,g,c,s] - m[n,g]) / sqrt(v[n,g] + 1e-5) * z[g,c]""",
        {"x": (2, 3, 4, 11), "z": (3, 4)},
    ),
    "deviation": Example(
        """op deviation(x[N,C,H,W]) -> m[C], v[C]:
    m[c] = mean(n,h,w) x[n,c,h,w]
    v[c] = mean(n,h,w) (x[n,c,h,w] - m[c])^2""",
        {"x": (3, 13, 3, 5)},
        "last",
    ),
    "arg_max": Example(
        """op arg_max(x[R,K] pad -inf) -> y[R]: i32:
    m[r] = max(k:39) x[r,k+1]
    y[r] = min(k:39) where(x[r,k+1] == m[r], k, K)""",
        {"x": (6, 39)},
    ),
    "attention": Example(
        """op attention(q[B,L,D], k[B,S,D], v[B,S,E], bias[L,S]) -> y[B,L,E]:
    a[n,l,s] = 0.3 * (sum(d) q[n,l,d] * k[n,s,d]) + bias[l,s]
    m[n,l] = max(s) a[n,l,s]
    e[n,l,s] = exp(a[n,l,s] - m[n,l])
    z[n,l] = sum(s) e[n,l,s]
    y[n,l,c] = (sum(s) e[n,l,s] * v[n,s,c]) / z[n,l]""",
        {"q": (2, 5, 8), "k": (2, 19, 8), "v": (2, 19, 8), "bias": (5, 19)},
    ),
}


def programs(target: Target) -> dict[str, Program]:
    """Every example as a whole and its stages of one kernel each on a target, by name."""
    found = {}
    for name, example in EXAMPLES.items():
        whole = parse_op(example.text).specialise(example.shapes, parameters=example.parameters)
        found[name] = laid_out(whole, example.layout)
        stages = split(whole, target)
        if len(whole.statements) > 1:
            found.update({f"{name}.{n}": laid_out(stage, example.layout) for n, stage in enumerate(stages)})
    return found
