"""Reductions along axes, Softmax and its logarithm, and positions of extremes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tilewright.dsl.dtypes import DType
from tilewright.ops.language import program
from tilewright.ops.operator import Application, Compute, operator

REDUCTIONS = {
    "ReduceSum": "(sum({axes}) x[{at}])",
    "ReduceMean": "(sum({axes}) x[{at}]) / {count}",
    "ReduceMax": "(max({axes}) x[{at}])",
    "ReduceMin": "(min({axes}) x[{at}])",
    "ReduceProd": "(prod({axes}) x[{at}])",
    "ReduceSumSquare": "(sum({axes}) x[{at}] * x[{at}])",
    "ReduceL1": "(sum({axes}) abs(x[{at}]))",
    "ReduceL2": "sqrt(sum({axes}) x[{at}] * x[{at}])",
    "ReduceLogSum": "log(sum({axes}) x[{at}])",
    "ReduceLogSumExp": "(logsumexp({axes}) x[{at}])",
}

OF_INTEGERS = {
    "ReduceMean": "((sum({axes}) x[{at}]) - fmod((sum({axes}) x[{at}]), {count})) // {count}",
    "ReduceL2": "sqrt(f64(sum({axes}) x[{at}] * x[{at}]))",
    "ReduceLogSum": "log(f64(sum({axes}) x[{at}]))",
    "ReduceLogSumExp": "(logsumexp({axes}) f64(x[{at}]))",
}
"""What floats of 32 bits would not give exactly; quotients are cut towards zero."""

REDUCE = """
op reduce(x[{sizes}]) -> y[{out_sizes}]:
    y[{out}] = {value}
"""

SOFTMAX = """
op softmax(x[{sizes}]) -> y[{sizes}]:
    m[{kept}] = max({axes}) x[{at}]
    s[{kept}] = sum({axes}) exp(x[{at}] - m[{kept}])
    y[{at}] = exp(x[{at}] - m[{kept}]) / s[{kept}]
"""

LOG_SOFTMAX = """
op log_softmax(x[{sizes}]) -> y[{sizes}]:
    m[{kept}] = max({axes}) x[{at}]
    s[{kept}] = sum({axes}) exp(x[{at}] - m[{kept}])
    y[{at}] = x[{at}] - m[{kept}] - log(s[{kept}])
"""


@dataclass(frozen=True)
class Axes:
    """Index names for an operand of some shape that is reduced along `axes`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    out_shape: tuple[int, ...]

    def holes(self) -> dict[str, object]:
        """The parts of a template."""
        names = [f"i{d}" for d in range(len(self.shape))]
        kept = [name for d, name in enumerate(names) if d not in self.axes]
        keeps = len(self.out_shape) == len(self.shape)
        out = [f"u{d}" if d in self.axes else name for d, name in enumerate(names)] if keeps else kept
        count = 1
        for d in self.axes:
            count *= self.shape[d]
        return {
            "sizes": ", ".join(map(str, self.shape)),
            "out_sizes": ", ".join(map(str, self.out_shape)),
            "at": ", ".join(names),
            "kept": ", ".join(kept),
            "out": ", ".join(out),
            "axes": ", ".join(names[d] for d in self.axes),
            "count": count,
        }


def _reduced_axes(app: Application) -> tuple[int, ...]:
    rank = app.input(0).rank
    listed = app.known(1) if app.optional(1) else None
    axes = app.integers("axes") if listed is None else tuple(int(a) for a in listed.reshape(-1))
    if not axes:
        return () if app.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({a % rank for a in axes}))


def _filled(app: Application, template: str, frame: Axes, shape: tuple[int, ...] | None = None) -> Compute:
    x = app.input(0).shape if shape is None else shape
    return program(app, template.format(**frame.holes()), {"x": x, "y": frame.out_shape}, {"x": 0})


@operator(*REDUCTIONS, host=(1,))
def reduction(app: Application) -> Compute:
    """One reduction over the axes given by attribute or input; without axes, what would be reduced of each element."""
    frame = Axes(app.input(0).shape, _reduced_axes(app), app.outputs[0].shape)
    dtype = app.input(0).dtype
    template = REDUCTIONS[app.op] if dtype.is_float else OF_INTEGERS.get(app.op, REDUCTIONS[app.op])
    if dtype is DType.BOOL:
        template = template.replace("max(", "any(").replace("min(", "all(")
    value = template.format(**frame.holes())
    if not frame.axes:
        value = re.sub(r"\b(sum|max|min|prod|any|all|logsumexp)\(\) ", "", value)
    return program(app, REDUCE.format(**frame.holes(), value=value), {"x": frame.shape, "y": frame.out_shape}, {"x": 0})


@operator("Softmax", "LogSoftmax")
def softmax(app: Application) -> Compute:
    """Along one axis; before opset 13 over all dimensions from the axis on, seen as one."""
    shape = app.input(0).shape
    axis = app.integer("axis", -1 if app.opset >= 13 else 1)
    axis += len(shape) if axis < 0 else 0
    axes = (axis,) if app.opset >= 13 else tuple(range(axis, len(shape)))
    frame = Axes(shape, axes, shape)
    return _filled(app, SOFTMAX if app.op == "Softmax" else LOG_SOFTMAX, frame)


@operator("Hardmax")
def hardmax(app: Application) -> Compute:
    """1 at the first largest element along the axis, else 0."""
    shape = app.input(0).shape
    axis = app.integer("axis", -1 if app.opset >= 13 else 1) % len(shape)
    if app.opset < 13 and axis != len(shape) - 1:
        shape = (_product(shape[:axis]), _product(shape[axis:]))
        axis = 1
    frame = Axes(shape, (axis,), shape)
    text = (
        "op hardmax(x[{sizes}]) -> y[{sizes}]:\n"
        "    m[{kept}] = max({axes}) x[{at}]\n"
        "    f[{kept}] = min({axes}) where(x[{at}] == m[{kept}], {axes}, {none})\n"
        "    y[{at}] = where({axes} == f[{kept}], 1, 0)\n"
    )
    return _filled(app, text.replace("{none}", str(shape[axis])), frame, shape)


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


@operator("ArgMax", "ArgMin")
def extreme_position(app: Application) -> Compute:
    """Where the largest or smallest element along the axis stands."""
    shape = app.input(0).shape
    axis = app.integer("axis", 0) % len(shape)
    frame = Axes(shape, (axis,), app.outputs[0].shape)
    kind, holes = app.op.lower(), frame.holes()
    value = f"{kind}({holes['axes']}) x[{holes['at']}]"
    if app.integer("select_last_index", 0):
        last = shape[axis] - 1
        turned = ", ".join(f"{last} - r" if d == axis else f"i{d}" for d in range(len(shape)))
        value = f"{last} - {kind}(r: {shape[axis]}) x[{turned}]"
    return _filled(app, REDUCE.replace("{value}", value), frame)


CUMULATIVE = """
op cumulative(x[{sizes}]) -> y[{sizes}]:
    y[{at}] = {value}
"""


@operator("CumSum", "CumProd", host=(1,))
def cumulative(app: Application) -> Compute:
    """Sums or products of what is before each element (``exclusive``) and the element, or after it (``reverse``)."""
    shape, axis_operand = app.input(0).shape, app.known(1)
    axis = int(axis_operand.reshape(-1)[0]) % len(shape) if axis_operand is not None else 0
    names = [f"i{d}" for d in range(len(shape))]
    at, kind = ", ".join(names), app.op.removeprefix("Cum").lower()
    reverse, exclusive = app.integer("reverse", 0), app.integer("exclusive", 0)
    if reverse or exclusive:
        bound = (">" if reverse else "<") + ("" if exclusive else "=")
        inner = ", ".join("j" if d == axis else name for d, name in enumerate(names))
        value = f"{kind}(j {bound} {names[axis]}) x[{inner}]"
    else:
        value = f"cum{kind}({names[axis]}) x[{at}]"
    text = CUMULATIVE.format(sizes=", ".join(map(str, shape)), at=at, value=value)
    return program(app, text, {"x": shape, "y": shape}, {"x": 0})
