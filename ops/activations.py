"""The activations of recurrent layers, by the names and with the defaults that ONNX gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.ops.language import literal


@dataclass(frozen=True)
class Kind:
    """An activation: its formula of x and the defaults of its parameters, None for one that it does not have."""

    formula: str
    alpha: float | None = None
    beta: float | None = None


KINDS: Mapping[str, Kind] = {
    "affine": Kind("{alpha} * {x} + {beta}", 1.0, 0.0),
    "elu": Kind("elu({x}, {alpha})", 1.0),
    "hardsigmoid": Kind("hardsigmoid({x}, {alpha}, {beta})", 0.2, 0.5),
    "leakyrelu": Kind("leaky_relu({x}, {alpha})", 0.01),
    "relu": Kind("relu({x})"),
    "scaledtanh": Kind("{alpha} * tanh({beta} * {x})", 1.0, 1.0),
    "sigmoid": Kind("sigmoid({x})"),
    "softplus": Kind("softplus({x})"),
    "softsign": Kind("softsign({x})"),
    "tanh": Kind("tanh({x})"),
    "thresholdedrelu": Kind("where({x} >= {alpha}, {x}, 0)", 1.0),
}
"""By name in lower case."""


def activations(attributes: Mapping[str, Any], defaults: Sequence[str], directions: int) -> list[list[str]]:
    """Formulas of `x`, one list per direction. Parameters go to the activations that have them, in order.

    ValueError for a name that ONNX does not list, and for fewer names than the directions need.
    """
    names = [str(name) for name in attributes.get("activations", ())] or list(defaults) * directions
    unknown = [name for name in names if name.lower() not in KINDS]
    if unknown:
        raise ValueError(f"there is no activation {unknown[0]!r}; there are {', '.join(KINDS)}")
    if len(names) < len(defaults) * directions:
        raise ValueError(f"{len(names)} activations are too few, {len(defaults) * directions} are needed")
    alphas, betas = (iter(attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta"))
    formulas = [_formula(KINDS[name.lower()], alphas, betas) for name in names]
    each = len(defaults)
    return [formulas[d * each : (d + 1) * each] for d in range(directions)]


def _formula(kind: Kind, alphas: Iterator[float], betas: Iterator[float]) -> str:
    alpha = None if kind.alpha is None else float(next(alphas, kind.alpha))
    beta = None if kind.beta is None else float(next(betas, kind.beta))
    numbers = {name: literal(value) for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    return kind.formula.format(x="x", **numbers)
