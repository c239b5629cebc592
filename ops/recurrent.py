"""Recurrent layers: one product projects all time steps, then a few Programs per step hand on the state.

Both directions of a bidirectional layer take their steps together: step s of the one in reverse is at time T - 1 - s,
or at `lens[n] - 1 - s` where sequences have lengths. The number of a step comes as a tensor, so that all steps are the
same kernels. Outputs of the steps are stacked in groups of FAN, these in groups of FAN again, up to all of them.

Equations, orders of gates and defaults: the ONNX operators RNN, GRU and LSTM. What their text leaves open is done as in
onnxruntime: gates are clipped, cells on their way into h are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.ops.activations import activations
from tilewright.ops.expansion import Expanding, Inner
from tilewright.ops.language import literal
from tilewright.ops.operator import NOTHING, Application, Expansion, operator

MAX_STEPS = 4096
"""Time steps of the longest sequence; each is launches of its own."""
FAN = 16
"""Values that one Program stacks."""

PER_DIRECTION = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
"""Default activations."""
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class Layer:
    """A recurrent layer while it is being expanded. The state is [parts, directions, batch, hidden]."""

    work: Expanding
    steps: int
    batch: int
    hidden: int
    directions: int
    dtype: DType
    """What the state and everything within is kept in."""
    batch_first: bool
    functions: str
    """Definitions that its statements use."""
    turned: frozenset[str]
    """Activations that differ between the directions: they have the direction as an argument."""
    time: str
    """The time of step `step[0]` in direction d for batch n."""
    lens: Inner | None

    @property
    def app(self) -> Application:
        """The node."""
        return self.work.app

    def state_shape(self, parts: int) -> tuple[int, ...]:
        """Sizes of a state of so many parts."""
        return parts, self.directions, self.batch, self.hidden

    def activated(self, name: str, value: str, clipped: bool = True) -> str:
        """The activation f, g or h of a value."""
        return f"{name}({'d, ' if name in self.turned else ''}{f'clipped({value})' if clipped else value})"

    def gate(self, k: int) -> str:
        """What goes into gate k, before peepholes."""
        return f"p[d, n, {k}, j] + x[{self.time}, n, d, {k}, j]"

    def required(self, position: int) -> Inner:
        """An input that must be there."""
        operand = self.app.input(position)
        return Inner(position, operand.dtype, operand.shape)

    def optional(self, position: int, *shape: int) -> Inner | None:
        """An input that may be left out, under a shape."""
        found = self.work.operand(position)
        return None if found is None else found.seen(*shape)


@operator("RNN", outputs=2)
def rnn(app: Application) -> Expansion:
    """`H' = f(x W + H R + bias)`."""
    layer = _layer(app)
    projected = _projected(layer, 1, 1)
    state = _initial(layer, 1)
    states = [state]
    for step in _numbers(layer):
        product = _product(layer, state, 1, len(states))
        operands = {"p": product, "x": projected, "step": step}
        value = layer.activated("f", layer.gate(0))
        state = _advance(layer, value, operands, state, len(states))
        states.append(state)
    return _outputs(layer, states)


@operator("GRU", outputs=2)
def gru(app: Application) -> Expansion:
    """Gates z, r, h: `H' = (1 - z) * h + z * H`."""
    layer = _layer(app)
    layer = replace(layer, functions=layer.functions + "def mixed(z, new, old) = (1 - z) * new + z * old\n")
    before = bool(app.integer("linear_before_reset", 0))
    projected = _projected(layer, 3, 2 if before else 3)
    state = _initial(layer, 1)
    states = [state]
    for step in _numbers(layer):
        number = len(states) - 1
        product = _product(layer, state, 3 if before else 2, number)
        operands = {"p": product, "x": projected, "step": step}
        update, reset = (layer.activated("f", layer.gate(k)) for k in (0, 1))
        if before:
            bias = layer.optional(3, layer.directions, 2, 3, layer.hidden)
            operands |= {"b": bias} if bias else {}
            candidate = f"{reset} * (p[d, n, 2, j]{' + b[d, 1, 2, j]' if bias else ''})"
        else:
            candidate = "q[d, n, j]"
            operands["q"] = _reset_product(layer, reset, operands, state, number)
        candidate = layer.activated("g", f"{candidate} + x[{layer.time}, n, d, 2, j]")
        value = f"mixed({update}, {candidate}, s[0, d, n, j])"
        state = _advance(layer, value, operands, state, number)
        states.append(state)
    return _outputs(layer, states)


@operator("LSTM", outputs=3)
def lstm(app: Application) -> Expansion:
    """Gates i, o, f, c; the state's parts are the hidden values and the cells."""
    layer = _layer(app)
    projected = _projected(layer, 4, 4)
    state = _initial(layer, 2)
    peepholes = layer.optional(7, layer.directions, 3, layer.hidden)
    value, functions = _cell(layer, peepholes is not None)
    layer = replace(layer, functions=layer.functions + functions)
    states = [state]
    for step in _numbers(layer):
        product = _product(layer, state, 4, len(states))
        operands = {"p": product, "x": projected, "step": step} | ({"w": peepholes} if peepholes else {})
        state = _advance(layer, value, operands, state, len(states))
        states.append(state)
    return _outputs(layer, states)


def _cell(layer: Layer, peepholes: bool) -> tuple[str, str]:
    """Part k of an LSTM's next state, and the functions that this takes."""
    old = "s[1, d, n, j]"
    i, o, f, c = (layer.gate(k) for k in range(4))
    if peepholes:
        i, f = f"{i} + w[d, 0, j] * {old}", f"{f} + w[d, 2, j] * {old}"
    entering, new = layer.activated("f", i), layer.activated("g", c)
    if layer.app.integer("input_forget", 0):
        definition, cell = "def cell(i, old, new) = (1 - i) * old + i * new", f"cell({entering}, {old}, {new})"
    else:
        definition = "def cell(i, kept, old, new) = kept * old + i * new"
        cell = f"cell({entering}, {layer.activated('f', f)}, {old}, {new})"
    arguments = {"k": "k"} | ({"d": "d"} if layer.turned & {"f", "h"} else {}) | {"o": o}
    arguments |= {"w": "w[d, 1, j]", "c": cell} if peepholes else {"c": cell}
    out = layer.activated("f", "o + w * c" if peepholes else "o")
    part = f"def part({', '.join(arguments)}) = where(k == 0, {out} * {layer.activated('h', 'c', clipped=False)}, c)"
    return f"part({', '.join(arguments.values())})", f"{definition}\n{part}\n"


# --- the layer --------------------------------------------------------------------------------------------------------


def _layer(app: Application) -> Layer:
    x, r = app.input(0), app.input(2)
    batch_first = bool(app.integer("layout", 0))
    steps, batch = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    if steps > MAX_STEPS:
        raise UnsupportedError(f"a sequence of {steps} steps is too long, at most {MAX_STEPS} are supported")
    directions, hidden = r.shape[0], hidden_size(app.attributes, r.shape)
    _check(app, batch, directions, hidden)
    work = Expanding(app)
    dtype = DType.F64 if x.dtype is DType.F64 else DType.F32
    lens = work.operand(4)
    functions, turned = _functions(app, activations(app.attributes, PER_DIRECTION[app.op], directions))
    end = "lens[n]" if lens else str(steps)
    return Layer(
        work, steps, batch, hidden, directions, dtype, batch_first, functions, turned, _time(app, end, "step[0]"), lens
    )


def hidden_size(attributes: Mapping[str, Any], recurrent: Sequence[int]) -> int:
    """Values of the state per direction, from the recurrent weights ``[directions, gates * hidden, hidden]``.

    ValueError for an attribute that says otherwise; it may be left out.
    """
    hidden = recurrent[-1] if len(recurrent) == 3 else 0
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"its hidden_size is {attributes['hidden_size']}, its weights are for {hidden}")
    return hidden


def _check(app: Application, batch: int, directions: int, hidden: int) -> None:
    """ValueError for an input whose sizes contradict the others' and the attributes."""
    size = GATES[app.op] * hidden
    state = (batch, directions, hidden) if app.integer("layout", 0) else (directions, batch, hidden)
    wanted: dict[int, tuple[int, ...]] = {
        1: (directions, size, app.input(0).shape[2]),
        2: (directions, size, hidden),
        3: (directions, 2 * size),
        4: (batch,),
        5: state,
        6: state,
        7: (directions, 3 * hidden),
    }
    for position, shape in wanted.items():
        given = app.optional(position)
        if given is not None and given.shape != shape:
            raise ValueError(f"its input {position} has the sizes {given.shape}, the others ask for {shape}")
    if directions != (2 if app.attributes.get("direction") == "bidirectional" else 1):
        raise ValueError(f"weights for {directions} directions do not fit its direction")


def _time(app: Application, end: str, step: str) -> str:
    """The time of a step in direction d; also the step of a time."""
    return {
        "forward": step,
        "reverse": f"{end} - 1 - {step}",
        "bidirectional": f"where(d == 0, {step}, {end} - 1 - {step})",
    }[str(app.attributes.get("direction", "forward"))]


def _functions(app: Application, found: list[list[str]]) -> tuple[str, frozenset[str]]:
    """Definitions of clipping and the activations, and which of these depend on the direction."""
    clip = app.attributes.get("clip")
    limits = f"clamp(x, {literal(-float(clip))}, {literal(float(clip))})" if clip else "x"
    lines, turned = [f"def clipped(x) = {limits}"], set()
    for name, (first, *rest) in zip("fgh", zip(*found, strict=True), strict=False):
        if rest and rest[0] != first:
            turned.add(name)
            lines.append(f"def {name}(d, x) = where(d == 0, {first}, {rest[0]})")
        else:
            lines.append(f"def {name}(x) = {first}")
    return "\n".join(lines) + "\n", frozenset(turned)


def _projected(layer: Layer, gates: int, recurrent_biases: int) -> Inner:
    """x W + biases for all steps: [time, batch, directions, gates, hidden].

    Of the biases that belong to the recurrence the first gates' are added here.
    """
    x, w = layer.required(0), layer.required(1)
    at = "n, t, i" if layer.batch_first else "t, n, i"
    size = gates * layer.hidden
    b = layer.optional(3, layer.directions, 2, size)
    recurrent = f"where(m < {recurrent_biases * layer.hidden}, b[d, 1, m], 0)"
    if recurrent_biases == gates:
        recurrent = "b[d, 1, m]"
    body = f"y[t, n, d, m] = (sum(i) x[{at}] * w[d, m, i]){f' + b[d, 0, m] + {recurrent}' if b else ''}"
    operands = {"x": x, "w": w} | ({"b": b} if b else {})
    shape = (layer.steps, layer.batch, layer.directions, size)
    made = layer.work.link(body, operands, "projected", layer.dtype, shape)
    return made.seen(layer.steps, layer.batch, layer.directions, gates, layer.hidden)


def _initial(layer: Layer, parts: int) -> Inner:
    """The state before the first step."""
    given = [layer.work.operand(5 + part) for part in range(parts)]
    if not any(given):
        return layer.work.constant("zeros", np.zeros(layer.state_shape(parts), layer.dtype.numpy))
    at = "n, d, j" if layer.batch_first else "d, n, j"
    values = [f"{name}[{at}]" if value else "0" for name, value in zip("hc", given, strict=False)]
    body = f"y[k, d, n, j] = {values[0] if parts == 1 else f'where(k == 0, {values[0]}, {values[1]})'}"
    operands = {name: value for name, value in zip("hc", given, strict=False) if value}
    return layer.work.link(body, operands, "state", layer.dtype, layer.state_shape(parts))


def _numbers(layer: Layer) -> list[Inner]:
    """The number of each step as a tensor."""
    return [layer.work.constant(f"step {s}", np.array([s], np.int32)) for s in range(layer.steps)]


def _product(layer: Layer, state: Inner, gates: int, number: int) -> Inner:
    """Hidden values times the first gates' recurrent weights: [directions, batch, gates, hidden]."""
    weights = layer.required(2)
    body = f"y[d, n, m] = sum(k: {layer.hidden}) s[0, d, n, k] * r[d, m + 0, k]"
    shape = (layer.directions, layer.batch, gates * layer.hidden)
    made = layer.work.link(body, {"s": state, "r": weights}, f"product {number}", layer.dtype, shape)
    return made.seen(layer.directions, layer.batch, gates, layer.hidden)


def _reset_product(layer: Layer, gate: str, operands: Mapping[str, Inner], state: Inner, number: int) -> Inner:
    """The candidate's product with hidden values that the reset gate has let through: [directions, batch, hidden]."""
    weights = layer.required(2)
    shape = (layer.directions, layer.batch, layer.hidden)
    body = f"y[d, n, j] = {gate} * s[0, d, n, j]"
    given = dict(operands) | {"s": state} | ({"lens": layer.lens} if layer.lens else {})
    reset = layer.work.link(body, given, f"reset {number}", layer.dtype, shape, layer.functions)
    body = f"y[d, n, j] = sum(k) q[d, n, k] * r[d, {2 * layer.hidden} + j, k]"
    return layer.work.link(body, {"q": reset, "r": weights}, f"candidate {number}", layer.dtype, shape)


def _advance(layer: Layer, value: str, operands: Mapping[str, Inner], state: Inner, number: int) -> Inner:
    """The next state; sequences that have ended keep theirs."""
    given = dict(operands) | {"s": state} | ({"lens": layer.lens} if layer.lens else {})
    kept = f"where(step[0] < lens[n], {value}, s[k, d, n, j])" if layer.lens else value
    shape = state.shape
    return layer.work.link(f"y[k, d, n, j] = {kept}", given, f"state {number}", layer.dtype, shape, layer.functions)


# --- outputs ----------------------------------------------------------------------------------------------------------


def _outputs(layer: Layer, states: list[Inner]) -> Expansion:
    """Y, Y_h and Y_c from the state ahead of all steps and those after each, as far as they are wanted."""
    work, app = layer.work, layer.app
    wanted = [position for position, output in enumerate(app.outputs) if output is not NOTHING]
    for part in (0, 1):
        if part + 1 in wanted:
            index = "n, d, j" if layer.batch_first else "d, n, j"
            body = f"y[{index}] = s[{part}, d, n, j]"
            work.link(body, {"s": states[-1]}, part + 1, app.outputs[part + 1].dtype, app.outputs[part + 1].shape)
    if 0 in wanted:
        _sequence(layer, states[1:])
    return work.finished()


def _sequence(layer: Layer, states: list[Inner]) -> None:
    """Y: the hidden values of all steps at their times."""
    number, groups, length = 0, [s.seen(*s.shape) for s in states], 1
    while len(groups) > FAN:
        parts = [groups[first : first + FAN] for first in range(0, len(groups), FAN)]
        groups = []
        for part in parts:
            number, names = number + 1, {f"a{k}": value for k, value in enumerate(part)}
            body = f"y[i, d, n, j] = {_chosen(f'i / {length}', f'i % {length}', 0, len(part))}"
            shape = (length * FAN, layer.directions, layer.batch, layer.hidden)
            groups.append(layer.work.link(body, names, f"stack {number}", layer.dtype, shape))
        length *= FAN
    out = layer.app.outputs[0]
    end = "lens[n]" if layer.lens else str(layer.steps)
    step = _time(layer.app, end, "t")
    value = _chosen(f"({step}) / {length}", f"({step}) % {length}", 0, len(groups)) if groups else "0"
    if layer.lens:
        value = f"where(t < lens[n], {value}, 0)"
    operands = {f"a{k}": value for k, value in enumerate(groups)} | ({"lens": layer.lens} if layer.lens else {})
    index = "n, t, d, j" if layer.batch_first else "t, d, n, j"
    layer.work.link(f"y[{index}] = {value}", operands, 0, out.dtype, out.shape)


def _chosen(number: str, place: str, first: int, end: int) -> str:
    """Element `place` of the operand of this number, one of a{first} up to a{end - 1}."""
    if end - first == 1:
        return f"a{first}[{place}, d, n, j]"
    middle = (first + end) // 2
    return f"where({number} < {middle}, {_chosen(number, place, first, middle)}, {_chosen(number, place, middle, end)})"
