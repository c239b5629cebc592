"""Attention without a softmax, as a state that is carried from position to position, and the convolution ahead of it.

    r = exp(g_t) S' k_t        S = exp(g_t) S + k_t (beta_t (v_t - r))'        o_t = scale * S' q_t

S is [batch, head, key element, value element] and kept in f32; the plain rule has no decay g, and without the delta
rule beta is 1 and r is 0 (Yang, Kautz & Hatamizadeh, "Gated Delta Networks", 2024, arXiv:2412.06464). Positions are
taken one after the other by the same kernels: the number of a position comes as a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.language import literal, program
from tilewright.ops.operator import NOTHING, Application, Compute, Expansion, operator

MAX_POSITIONS = 4096
"""Positions of the longest sequence; each is launches of its own."""
FAN = 16
"""Values that one Program stacks."""

RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
"""Whether an update rule has a decay, and whether it corrects what the state holds already."""


@dataclass(frozen=True)
class _Layer:
    """The sizes of a linear attention, and its operands as (batch, position, head, element)."""

    work: Expanding
    batch: int
    positions: int
    heads: int
    key_heads: int
    depth: int
    columns: int
    operands: Mapping[str, Inner]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of S."""
        return (self.batch, self.key_heads, self.depth, self.columns)

    @property
    def decay(self) -> str:
        """What the state is multiplied by, per head or per element of the keys; empty without one."""
        given = self.operands.get("g")
        return f"exp(f32(g[b, t[0], h, {'0' if given.shape[3] == 1 else 'd'}]))" if given else ""

    @property
    def rate(self) -> str:
        """What an update is multiplied by, per head or for all."""
        return f"f32(beta[b, t[0], {'0' if self.operands['beta'].shape[2] == 1 else 'h'}, 0])"

    def reading(self, *names: str) -> dict[str, Inner]:
        """Those of the operands that there are."""
        return {name: self.operands[name] for name in names if name in self.operands}


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    rule = attributes.get("update_rule", "gated_delta")
    return None if rule in RULES else f"update_rule {rule!r} is not known"


@operator("LinearAttention", outputs=2, refuse=_refuse)
def linear_attention(app: Application) -> Expansion:
    """Position after position; the state before the first and after the last one are input and output."""
    work = Expanding(app)
    gated, corrects = RULES[str(app.attributes.get("update_rule", "gated_delta"))]
    layer = _layer(work, gated, corrects)
    scale = app.number("scale", 0.0) or 1 / math.sqrt(max(layer.depth, 1))
    state = _first_state(layer)
    shared = "h" if layer.heads == layer.key_heads else f"h / {layer.heads // layer.key_heads}"
    read = f"y[b, h, c] = {literal(scale)} * (sum(d) f32(q[b, t[0], h, d]) * s[b, {shared}, d, c])"
    seen = []
    for number in range(layer.positions):
        step = {"t": work.constant(f"position {number}", np.array([number], np.int32))}
        state = _advanced(layer, state, step, number, corrects)
        operands = layer.reading("q") | step | {"s": state}
        shape = (layer.batch, layer.heads, layer.columns)
        seen.append(work.link(read, operands, f"seen {number}", DType.F32, shape))
    if app.outputs[0] is not NOTHING:
        _stacked(layer, seen)
    if len(app.outputs) > 1 and app.outputs[1] is not NOTHING:
        work.link("y[b, h, d, c] = s[b, h, d, c]", {"s": state}, 1, app.outputs[1].dtype, layer.state_shape)
    return work.finished()


def _layer(work: Expanding, gated: bool, corrects: bool) -> _Layer:
    app = work.app
    q, k, v = (app.input(n) for n in range(3))
    heads, key_heads = app.integer("q_num_heads", 0), app.integer("kv_num_heads", 0)
    if min(heads, key_heads) < 1 or heads % key_heads:
        raise UnsupportedError(f"{heads} heads of queries do not divide among {key_heads} heads of keys")
    if any(x.rank != 3 for x in (q, k, v)) or q.shape[2] % heads or v.shape[2] % key_heads:
        raise UnsupportedError(f"inputs of shapes {q.shape}, {k.shape} and {v.shape} do not divide into heads")
    depth, columns = q.shape[2] // heads, v.shape[2] // key_heads
    if k.shape[2] != key_heads * depth or q.shape[1] > MAX_POSITIONS:
        raise UnsupportedError(f"{q.shape[1]} positions with keys of shape {k.shape} are not supported")
    if gated != (app.optional(4) is not None) or corrects != (app.optional(5) is not None):
        raise UnsupportedError("its decay or beta does not go with its update_rule")
    operands = {}
    for name, position, count in (("q", 0, heads), ("k", 1, key_heads), ("v", 2, key_heads), ("g", 4, key_heads)):
        inner = work.operand(position)
        if inner is not None:
            operands[name] = inner.seen(*inner.shape[:2], count, inner.shape[2] // count)
    beta = work.operand(5)
    if beta is not None:
        operands["beta"] = beta.seen(*beta.shape, 1)
    return _Layer(work, q.shape[0], q.shape[1], heads, key_heads, depth, columns, operands)


def _first_state(layer: _Layer) -> Inner:
    given = layer.work.operand(3)
    if given is None:
        return layer.work.constant("zeros", np.zeros(layer.state_shape, np.float32))
    body = "y[b, h, d, c] = s[b, h, d, c]"
    return layer.work.link(body, {"s": given}, "first state", DType.F32, layer.state_shape)


def _advanced(layer: _Layer, state: Inner, step: Mapping[str, Inner], number: int, corrects: bool) -> Inner:
    """The state after a position."""
    decay = f"{layer.decay} * " if layer.decay else ""
    key, value = "f32(k[b, t[0], h, d])", "f32(v[b, t[0], h, c])"
    operands = layer.reading("k", "v", "g", "beta") | {"s": state, **step}
    if corrects:
        shape = (layer.batch, layer.key_heads, layer.columns)
        body = f"y[b, h, c] = {layer.rate} * ({value} - (sum(d) {decay}s[b, h, d, c] * {key}))"
        operands["r"] = layer.work.link(body, operands, f"correction {number}", DType.F32, shape)
        operands = {name: v for name, v in operands.items() if name not in ("v", "beta")}
        value = "r[b, h, c]"
    body = f"y[b, h, d, c] = {decay}s[b, h, d, c] + {key} * {value}"
    return layer.work.link(body, operands, f"state {number}", DType.F32, layer.state_shape)


def _stacked(layer: _Layer, values: list[Inner]) -> None:
    """The output, of one value per position: groups of FAN are stacked, these in groups of FAN again."""
    work, groups, length, number = layer.work, values, 1, 0
    inner = (layer.batch, layer.heads, layer.columns)
    groups = [g.seen(1, *inner) for g in groups]
    while len(groups) > FAN:
        parts = [groups[first : first + FAN] for first in range(0, len(groups), FAN)]
        groups = []
        for part in parts:
            body = f"y[t, b, h, c] = {_chosen(length, 0, len(part))}"
            named = {f"a{n}": g for n, g in enumerate(part)}
            groups.append(work.link(body, named, f"stack {number}", DType.F32, (length * FAN, *inner)))
            number += 1
        length *= FAN
    out = work.app.outputs[0]
    body = f"y[b, t, h, c] = {_chosen(length, 0, len(groups)) if groups else '0'}"
    shape = (layer.batch, layer.positions, layer.heads, layer.columns)
    work.link(body, {f"a{n}": g for n, g in enumerate(groups)}, 0, out.dtype, shape)


def _chosen(length: int, first: int, end: int) -> str:
    """Position t of the values a{first} up to a{end - 1}, of `length` positions each."""
    if end - first == 1:
        return f"a{first}[t - {first * length}, b, h, c]"
    middle = (first + end) // 2
    return f"where(t < {middle * length}, {_chosen(length, first, middle)}, {_chosen(length, middle, end)})"


# --- the convolution --------------------------------------------------------------------------------------------------

CAUSAL = """
op causal({heads}) -> y[{y}]:
    s[b, c, p: {length}] = (sum(r) x[b, c, p + r - {before}] * w[c, r]){past}{bias}
    y[b, c, p] = {value}
"""

CARRIED = """
op carried({heads}) -> y[{y}]:
    y[b, c, p: {before}] = {value}
"""


def _refuse_activation(attributes: Mapping[str, Any], opset: int) -> str | None:
    name = attributes.get("activation", "none")
    return None if name in ("none", "silu", "swish") else f"activation {name!r} is not known"


@operator("CausalConvWithState", outputs=2, refuse=_refuse_activation)
def causal_convolution(app: Application) -> tuple[Compute, ...]:
    """Each channel convolved with its own kernel over what came before; the last elements are carried on."""
    x, w, bias, past = app.input(0), app.input(1), app.optional(2), app.optional(3)
    if x.rank != 3 or w.rank != 3 or w.shape[:2] != (x.shape[1], 1) or not w.shape[2]:
        raise UnsupportedError(f"weights of shape {w.shape} are no kernel per channel of an input {x.shape}")
    before, length = w.shape[2] - 1, x.shape[2]
    shapes = {"x": x.shape, "w": (w.shape[0], w.shape[2])}
    operands = {"x": 0, "w": 1}
    if bias:
        shapes["bias"], operands["bias"] = bias.shape, 2
    if past and before:
        shapes["past"], operands["past"] = past.shape, 3
    has_past = "past" in operands
    text = CAUSAL.format(
        heads=_heads(shapes, operands),
        y=", ".join(map(str, x.shape)),
        length=length,
        before=before,
        past=" + (sum(r) past[b, c, p + r] * w[c, r])" if has_past else "",
        bias=" + bias[c]" if bias else "",
        value="s[b, c, p]" if app.attributes.get("activation", "none") == "none" else "silu(s[b, c, p])",
    )
    made = [program(app, text, shapes | {"y": x.shape}, operands)]
    if len(app.outputs) > 1:
        own = {n: p for n, p in operands.items() if n in ("x", "past")}
        old = f"past[b, c, p + {length}]" if has_past else "0"
        value = f"where(p + {length} < {before}, {old}, x[b, c, p + {length - before}])"
        out = (*x.shape[:2], before)
        text = CARRIED.format(heads=_heads(shapes, own), y=", ".join(map(str, out)), before=before, value=value)
        made.append(program(app, text, {n: shapes[n] for n in own} | {"y": out}, own, 1))
    return tuple(made)


def _heads(shapes: Mapping[str, tuple[int, ...]], operands: Mapping[str, int]) -> str:
    return ", ".join(f"{name}[{', '.join(map(str, shapes[name]))}]" for name in operands)
