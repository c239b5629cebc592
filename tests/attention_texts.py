"""Softmax-weighted sums in every spelling, as programs for tests."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program

HEAD = "op attention(q[B,H,M,D], k[B,H,N,D], v[B,H,N,E]{more}) -> o[B,H,M,E]:\n"
SUMS = """
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    o[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j])"""
DOT = "sum(d) q[b,h,i,d] * k[b,h,j,d]"


def scored(score: str, more: str = "") -> str:
    """The text with these scores."""
    return HEAD.format(more=more) + f"    s[b,h,i,j] = {score}" + SUMS


TEXTS = {
    "plain": scored(DOT),
    "scaled in the product": scored("sum(d) (0.3 * q[b,h,i,d]) * (k[b,h,j,d] / 2)"),
    "added mask": scored(f"0.25 * ({DOT}) + mask[b,0,i,j]", ", mask[B,1,M,N]"),
    "mask of keys": scored(f"({DOT}) / 4 + mask[b,j]", ", mask[B,N]"),
    "truth values": scored(f"where(mask[b,0,i,j], ({DOT}) / 4, -1e30)", ", mask[B,1,M,N]: bool"),
    "soft cap": scored(f"5 * tanh(({DOT}) / 5)"),
    "causal": scored(f"where(j <= i + N - M, ({DOT}) / 4, -inf)"),
    "window": scored(f"where(j <= i and i - j < 9, {DOT}, -inf) / 4"),
    "divided first": HEAD.format(more="")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    l[b,h,i] = sum(j) exp(s[b,h,i,j] - m[b,h,i])
    p[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i]) / l[b,h,i]
    o[b,h,i,c] = sum(j) p[b,h,i,j] * v[b,h,j,c]""",
    "guarded": HEAD.format(more=", mask[B,1,M,N]: bool")
    + f"""    s[b,h,i,j] = where(mask[b,0,i,j], {DOT}, -inf)
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    p[b,h,i,j] = e[b,h,i,j] / sum(t) e[b,h,i,t]
    o[b,h,i,c] = sum(j) where(isnan(p[b,h,i,j]), 0, p[b,h,i,j]) * v[b,h,j,c]""",
    "guarded by the maximum": HEAD.format(more=", mask[B,1,M,N]: bool")
    + f"""    s[b,h,i,j] = where(mask[b,0,i,j], {DOT}, -inf)
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    o[b,h,i,c] = where(m[b,h,i] == -inf, 0, (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j]))""",
    "base two": HEAD.format(more="")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp2(s[b,h,i,j] * 1.4426950408889634 - m[b,h,i] * 1.4426950408889634)
    o[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / (sum(j) e[b,h,i,j])""",
    "with what follows": HEAD.format(more=", r[B,H,M,E], g[E]")
    + f"""    s[b,h,i,j] = 0.25 * {DOT}
    m[b,h,i] = max(j) s[b,h,i,j]
    e[b,h,i,j] = exp(s[b,h,i,j] - m[b,h,i])
    l[b,h,i] = sum(j) e[b,h,i,j]
    a[b,h,i,c] = (sum(j) e[b,h,i,j] * v[b,h,j,c]) / l[b,h,i]
    o[b,h,i,c] = a[b,h,i,c] * g[c] + r[b,h,i,c] + 0.1 * (m[b,h,i] + log(l[b,h,i]))""",
    "values computed": scored(DOT).replace("v[b,h,j,c]", "max(v[b,h,j,c], 0)"),
    "shared keys": scored(DOT).replace("k[b,h,j,d]", "k[b,0,j,d]").replace("v[b,h,j,c]", "v[b,0,j,c]"),
    "grouped heads": scored(DOT, "; R: int")
    .replace("k[b,h,j,d]", "k[b,h/R,j,d]")
    .replace("v[b,h,j,c]", "v[b,h/R,j,c]")
    .replace("[B,H,N,", "[B,G,N,"),
    "flat heads": """op attention(q[S,M,D], k[S,N,D], v[S,N,E]) -> o[M,S,E]:
    s[b,i,j] = 0.25 * sum(d) q[b,i,d] * k[b,j,d]
    m[b,i] = max(j) s[b,i,j]
    e[b,i,j] = exp(s[b,i,j] - m[b,i])
    o[i,b,c] = (sum(j) e[b,i,j] * v[b,j,c]) / (sum(j) e[b,i,j])""",
}


def program_of(text: str, sizes: Mapping[str, int], dtype: DType = DType.F32) -> Program:
    """The text for sizes of B, H, M, N, D and E; two heads share keys where the text groups them."""
    known = {**sizes, "1": 1, "S": sizes["B"] * sizes["H"], "G": sizes["H"] // 2}
    shapes = {}
    definition = parse_op(text)
    for d in definition.inputs:
        dims = text.split(f"{d.name}[", 1)[1].split("]", 1)[0].split(",")
        shapes[d.name] = tuple(known[letter] for letter in dims)
    dtypes = {name: dtype for name in shapes if name != "mask" or ": bool" not in text}
    return definition.specialise(shapes, dtypes, parameters={"R": 2} if "/R" in text else {})
