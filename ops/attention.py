"""Attention in one pass over the keys, and rotary position embeddings.

    scores = softcap(scale * Q K^T) + bias, -inf where a key may not be seen          Y = softmax(scores) V

The text is one that the `attention` family takes as a whole (dsl/families/attention_form.py): scores are never in
memory. Heads that share keys read them at ``h / R``; a cache of past keys and values is read in front of the new ones
where it lies. A row that sees no key is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, Operand, operator

SOFTMAX = """
op attention({heads}) -> y[{y}]:
    s[{place}] = {scores}
    m[b, h, i] = max(j) s[b, h, i, j]
    e[b, h, i, j] = exp(s[b, h, i, j] - m[b, h, i])
"""

SCORES = """
op attention_scores({heads}) -> y[{y}]:
    y[{place}] = {scores}
"""

RAW, CAPPED, BIASED, WEIGHTS = range(4)
"""What `qk_matmul_output_mode` asks for."""


class _Heads:
    """Queries, keys, values and their past as (batch, head, position, element) while texts are put together."""

    def __init__(self, app: Application) -> None:
        self.app = app
        q, k, v = (app.input(n) for n in range(3))
        if not (q.rank == k.rank == v.rank) or q.rank not in (3, 4):
            raise UnsupportedError(f"inputs of shapes {q.shape}, {k.shape} and {v.shape} are no heads")
        self.packed = q.rank == 3
        heads = (app.integer("q_num_heads", 0), app.integer("kv_num_heads", 0))
        self.heads, self.key_heads = heads if self.packed else (q.shape[1], k.shape[1])
        if min(self.heads, self.key_heads) < 1 or self.heads % self.key_heads:
            raise UnsupportedError(f"{self.heads} heads of queries do not divide among {self.key_heads} heads of keys")
        self.operands: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, position in (("q", 0), ("k", 1), ("v", 2), ("past_k", 4), ("past_v", 5)):
            self._enter(name, position)
        if ("past_k" in self.operands) != ("past_v" in self.operands):
            raise UnsupportedError("past keys come with past values")
        self.past = self.shapes["past_k"][2] if "past_k" in self.shapes else 0
        self.batch, self.rows, self.depth = q.shape[0], self._positions(q), self._elements("q")
        self.total = self.past + self._positions(k)
        self.dtype = DType.F64 if DType.F64 in (q.dtype, v.dtype) or self._softmax_in_f64 else DType.F32

    @property
    def _softmax_in_f64(self) -> bool:
        return self.app.integer("softmax_precision", 1) == 11

    def _enter(self, name: str, position: int) -> None:
        operand = self.app.optional(position)
        if operand is None:
            return
        self.operands[name] = position
        self.shapes[name] = operand.shape
        if operand.rank == 3:
            count = self.heads if name == "q" else self.key_heads
            if operand.shape[2] % count:
                raise UnsupportedError(f"{operand.shape[2]} elements do not divide into {count} heads")
            self.shapes[name] = (*operand.shape[:2], count, operand.shape[2] // count)

    def _positions(self, operand: Operand) -> int:
        return operand.shape[1 if self.packed else 2]

    def _elements(self, name: str) -> int:
        return self.shapes[name][3]

    @property
    def columns(self) -> int:
        """Elements of a value."""
        return self._elements("v")

    def read(self, name: str, head: str, position: str, element: str) -> str:
        """An element of q, k or v."""
        return (
            f"{name}[b, {position}, {head}, {element}]" if self.packed else f"{name}[b, {head}, {position}, {element}]"
        )

    def key(self, name: str, head: str, element: str) -> str:
        """An element of the j-th key or value, those of the past first."""
        past = f"past_{name}"
        if past not in self.operands:
            return self.read(name, head, "j", element)
        new = self.read(name, head, f"j - {self.past}", element)
        return f"where(j < {self.past}, {past}[b, {head}, j + 0, {element}], {new})"

    @property
    def place(self) -> str:
        """The scores' indices with their extents."""
        return f"b: {self.batch}, h: {self.heads}, i: {self.rows}, j: {self.total}"

    @property
    def shared(self) -> str:
        """The head of keys that a head of queries reads."""
        return "h" if self.heads == self.key_heads else f"h / {self.heads // self.key_heads}"


class _Scores:
    """The scores' expression: scaled, capped, biased, and -inf where a key may not be seen."""

    def __init__(self, heads: _Heads) -> None:
        self.heads, app = heads, heads.app
        self.pads: dict[str, str] = {}
        scale = app.number("scale", 0.0) if "scale" in app.attributes else 1 / math.sqrt(max(heads.depth, 1))
        dot = f"{heads.read('q', 'h', 'i', 'd')} * {heads.key('k', heads.shared, 'd')}"
        if heads.dtype is DType.F64:
            dot = f"f64({heads.read('q', 'h', 'i', 'd')}) * f64({heads.key('k', heads.shared, 'd')})"
        self.raw = f"{literal(scale)} * (sum(d) {dot})"
        cap = app.number("softcap", 0.0)
        self.capped = f"{literal(cap)} * tanh(({self.raw}) / {literal(cap)})" if cap > 0 else self.raw
        self.biased = self._masked()

    @property
    def is_masked(self) -> bool:
        """Whether a row may see no key."""
        return self.biased is not self.capped or not self.heads.total

    def _masked(self) -> str:
        score, conditions = self.capped, self._bounds()
        mask = self.heads.app.optional(3)
        if mask is not None:
            read = self._mask_read(mask)
            if mask.dtype is DType.BOOL:
                conditions.append(read)
            else:
                score = f"{score} + {read}"
        return f"where({' and '.join(conditions)}, {score}, -inf)" if conditions else score

    def _bounds(self) -> list[str]:
        """What must hold of a row's position and a key's, by causality, windows and the keys that are no filling."""
        app, conditions = self.heads.app, []
        filled = app.optional(6)
        offset = str(self.heads.past)
        if filled is not None:
            if self.heads.past or "past_k" in self.heads.operands:
                raise UnsupportedError("nonpad_kv_seqlen and past keys exclude each other")
            self.heads.operands["filled"], self.heads.shapes["filled"] = 6, filled.shape
            conditions.append("j < i32(filled[b])")
            offset = f"i32(filled[b]) - {self.heads.rows}"
        if app.integer("is_causal", 0):
            conditions.append(f"j <= i + {offset}")
        left, right = app.integer("left_window_size", -1), app.integer("right_window_size", -1)
        if left >= 0:
            conditions.append(f"i + {offset} - j <= {left}")
        if right >= 0:
            conditions.append(f"j - i - ({offset}) <= {right}")
        return conditions

    def _mask_read(self, mask: Operand) -> str:
        """The mask aligned from the right; keys behind its end are not seen, or with a bias of -inf."""
        h = self.heads
        sizes = (h.batch, h.heads, h.rows, h.total)
        if not 1 <= mask.rank <= 4 or mask.shape[-1] > h.total:
            raise UnsupportedError(f"a mask of shape {mask.shape} does not fit scores of {sizes}")
        if any(n not in (1, size) for n, size in zip(mask.shape[-2::-1], sizes[-2::-1], strict=False)):
            raise UnsupportedError(f"a mask of shape {mask.shape} does not fit scores of {sizes}")
        names = ["b", "h", "i", "j"][4 - mask.rank :]
        places = ["0" if n == 1 else name for n, name in zip(mask.shape[:-1], names[:-1], strict=True)]
        short = mask.shape[-1] < h.total
        h.operands["mask"], h.shapes["mask"] = 3, mask.shape
        if short and mask.dtype is not DType.BOOL:
            self.pads["mask"] = " pad -inf"
        return f"mask[{', '.join([*places, 'j + 0' if short else 'j'])}]"


def _refuse_attention(attributes: Mapping[str, Any], opset: int) -> str | None:
    mode = int(attributes.get("qk_matmul_output_mode", 0))
    return None if mode in range(4) else f"qk_matmul_output_mode {mode} is not known"


@operator("Attention", outputs=4, refuse=_refuse_attention)
def attention(app: Application) -> tuple[Compute, ...]:
    """Softmax-weighted sums of values; past and present keys, and scores or weights, if wanted."""
    made = [_weighted_sum(app)]
    for position, name in ((1, "k"), (2, "v")):
        if position < len(app.outputs):
            made.append(_present(app, name, position))
    if len(app.outputs) > 3:
        made.append(_observed(app))
    return tuple(made)


def _made(
    heads: _Heads, text: str, shape: tuple[int, ...], position: int = 0, pads: Mapping[str, str] | None = None
) -> Compute:
    """The program of a text whose inputs are those operands that it reads; `{heads}` and `{y}` are still open."""
    operands = {name: n for name, n in heads.operands.items() if re.search(rf"\b{name}\[", text)}
    shapes = {name: heads.shapes[name] for name in operands} | {"y": shape}
    dims = {name: ", ".join(map(str, sizes)) for name, sizes in shapes.items()}
    head = ", ".join(f"{name}[{dims[name]}]{(pads or {}).get(name, '')}" for name in operands)
    return program(heads.app, text.replace("{heads}", head).replace("{y}", dims["y"]), shapes, operands, position)


def _weighted_sum(app: Application) -> Compute:
    heads = _Heads(app)
    scores = _Scores(heads)
    weighted = f"(sum(j) e[b, h, i, j] * {heads.key('v', heads.shared, 'c')}) / (sum(j) e[b, h, i, j])"
    text = SOFTMAX + "    y[{out}] = {value}\n"
    text = text.replace("{place}", heads.place).replace("{scores}", scores.biased)
    text = text.replace("{out}", "b, i, h, c" if heads.packed else "b, h, i, c")
    text = text.replace("{value}", f"where(m[b, h, i] == -inf, 0, {weighted})" if scores.is_masked else weighted)
    rows = (heads.rows, heads.heads) if heads.packed else (heads.heads, heads.rows)
    return _made(heads, text, (heads.batch, *rows, heads.columns), 0, scores.pads)


def _observed(app: Application) -> Compute:
    """The scores, at one of the places on their way, or the weights."""
    heads = _Heads(app)
    scores, mode = _Scores(heads), app.integer("qk_matmul_output_mode", RAW)
    shape = (heads.batch, heads.heads, heads.rows, heads.total)
    if mode != WEIGHTS:
        value = {RAW: scores.raw, CAPPED: scores.capped, BIASED: scores.biased}[mode]
        text = SCORES.replace("{place}", heads.place).replace("{scores}", value)
        return _made(heads, text, shape, 3, scores.pads)
    weight = "e[b, h, i, j] / (sum(t) e[b, h, i, t])"
    value = f"where(m[b, h, i] == -inf, 0, {weight})" if scores.is_masked else weight
    text = SOFTMAX.replace("{place}", heads.place).replace("{scores}", scores.biased)
    return _made(heads, text + f"    y[b, h, i, j] = {value}\n", shape, 3, scores.pads)


def _present(app: Application, name: str, position: int) -> Compute:
    """Past keys or values and the new ones behind them."""
    heads = _Heads(app)
    size = heads.shapes[name][3]
    text = f"op present({{heads}}) -> y[{{y}}]:\n    y[b, h, j: {heads.total}, d] = {heads.key(name, 'h', 'd')}\n"
    return _made(heads, text, (heads.batch, heads.key_heads, heads.total, size), position)


ROTARY = """
op rotary(x[{x}], cosine[{cache}], sine[{cache}]{ids}) -> y[{x}]:
    y[{at}] = where(d < {turned}, {near} * cosine[{row}, {angle}] + {far} * sine[{row}, {angle}], {near})
"""


@operator("RotaryEmbedding")
def rotary_embedding(app: Application) -> Compute:
    """Pairs of elements turned by an angle that depends on their position: neighbours, or those of two halves."""
    x, cosine, ids = app.input(0), app.input(1), app.optional(3)
    heads = app.integer("num_heads", 0)
    if x.rank == 3 and (heads < 1 or x.shape[2] % heads):
        raise UnsupportedError(f"{x.shape[2]} elements do not divide into {heads} heads")
    shape = x.shape if x.rank == 4 else (*x.shape[:2], heads, x.shape[2] // heads)
    turned = app.integer("rotary_embedding_dim", 0) or shape[3]
    half = turned // 2
    if turned % 2 or turned > shape[3] or cosine.shape[-1] != half or app.input(2).shape != cosine.shape:
        raise UnsupportedError(f"{turned} of {shape[3]} elements cannot be turned by angles of shape {cosine.shape}")
    at = "b, h, i, d" if x.rank == 4 else "b, i, h, d"

    def read(place: str) -> str:
        return f"x[{at[:-1]}{place}]"

    interleaved = app.integer("interleaved", 0)
    text = ROTARY.format(
        x=", ".join(map(str, shape)),
        cache=", ".join(map(str, cosine.shape)),
        ids=f", ids[{', '.join(map(str, ids.shape))}]" if ids else "",
        at=at,
        turned=turned,
        near=read("d"),
        far=f"where(d % 2 == 0, -{read('d + 1')}, {read('d - 1')})"
        if interleaved
        else f"where(d < {half}, -{read(f'd + {half}')}, {read(f'd - {half}')})",
        row="ids[b, i]" if ids else "b, i",
        angle="d / 2" if interleaved else f"d % {max(half, 1)}",
    )
    shapes = {"x": shape, "y": shape, "cosine": cosine.shape, "sine": cosine.shape}
    operands = {"x": 0, "cosine": 1, "sine": 2}
    if ids:
        shapes["ids"], operands["ids"] = ids.shape, 3
    return program(app, text, shapes, operands)
