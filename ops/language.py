"""From operator texts to Programs: parsing is cached, sizes and types are filled in from operands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.dsl import syntax
from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.ops.operator import Application, Compute, Operand


def program(
    app: Application,
    text: str,
    shapes: Mapping[str, tuple[int, ...]],
    operands: Mapping[str, int],
    output: int = 0,
    constants: Mapping[str, np.ndarray] | None = None,
) -> Compute:
    """The Program of an op's text, whose only output `y` is the application's output at that position.

    ``shapes`` gives the sizes of `y` and of every input, ``operands`` which input of the application each tensor is.
    ``constants`` are inputs that the operator brings along. The output's element type is written into the header.
    """
    constants = constants or {}
    header, body = text.strip().split(":\n", 1)
    definition = parse_op(f"{header}: {app.outputs[output].dtype.value}:\n{body}\n")
    dims = definition.outputs[0].dims or ()
    sizes = {d.text: n for d, n in zip(dims, shapes["y"], strict=True) if isinstance(d, syntax.Name)}
    made = definition.specialise(
        {name: shapes[name] for name in (*operands, *constants)},
        {name: app.input(position).dtype for name, position in operands.items()}
        | {name: DType.from_numpy(array.dtype) for name, array in constants.items()},
        sizes=sizes,
    )
    return Compute(made, dict(operands), {"y": output}, constants)


def pointwise(app: Application, formula: str, inputs: Sequence[Operand | None]) -> Compute:
    """A one-line program: inputs are `a`, `b`, `c`, ... in the formula and broadcast to the output's shape.

    Inputs that are known scalars are written into the formula, those that are left out must not occur in it.
    """
    operands, shapes = {}, {"y": app.outputs[0].shape}
    for position, operand in enumerate(inputs):
        name = "abcdefghijklmnopqrstuvwxyz"[position]
        if operand is None or not re.search(rf"\b{name}\b", formula):
            continue
        if operand.scalar is not None and len([i for i in inputs if i is not None]) > 1:
            formula = re.sub(rf"\b{name}\b", literal(operand.scalar), formula)
        else:
            operands[name], shapes[name] = position, operand.shape
    dims = ", ".join(f"Y{d}" for d in range(app.outputs[0].rank))
    text = f"op pointwise_{_snake(app.op)}({', '.join(operands)}) -> y[{dims}]:\n    y = {formula}"
    return program(app, text, shapes, operands)


def _snake(op: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op).lower()


def literal(value: float | int | bool) -> str:
    """A number as the language writes it within an expression."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = pad_literal(value)
    return f"({text})" if text.startswith("-") else text


def pad_literal(value: float | int) -> str:
    """A number as a header's `pad` writes it."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)
