"""Losses over classes: negative log likelihood, and cross entropy after a softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, operator

LOSS = """
op loss(x[{sizes}], target[{places}]{weights}) -> y[{out_sizes}]:
{normaliser}    w[{sized}] = {weight}
    l[{sized}] = where({ignored}, 0, w[{at}] * ({surprise}))
    y[{out}] = {reduced}
"""

LOG_PROBABILITIES = """
op log_softmax(x[{sizes}]) -> y[{sizes}]:
    m[{sized}] = max(c) x[{whole}]
    s[{sized}] = sum(c) exp(x[{whole}] - m[{at}])
    y[{whole}] = x[{whole}] - m[{at}] - log(s[{at}])
"""


def _refuse(attributes: Mapping[str, Any], opset: int) -> str | None:
    kind = attributes.get("reduction", "mean")
    return None if kind in {"none", "sum", "mean"} else f"reduction {kind!r} is not supported"


def _holes(app: Application) -> dict[str, str]:
    """Sizes and indices of the classes' scores, (batch, class, ...), and of the targets, (batch, ...)."""
    shape = app.input(0).shape
    spatial = [f"i{d}" for d in range(len(shape) - 2)]
    target = (shape[0], *shape[2:])
    return {
        "sizes": ", ".join(map(str, shape)),
        "places": ", ".join(map(str, target)),
        "sized": ", ".join(f"{name}: {size}" for name, size in zip(["n", *spatial], target, strict=True)),
        "at": ", ".join(["n", *spatial]),
        "whole": ", ".join(["n", "c", *spatial]),
        "chosen": ", ".join(["n", "target[{at}]", *spatial]).format(at=", ".join(["n", *spatial])),
    }


def _loss(app: Application, normaliser: str, surprise: str) -> Compute:
    """The weighted surprise at each target, reduced; targets of ``ignore_index`` weigh nothing."""
    x, weight, kind = app.input(0).shape, app.optional(2), app.attributes.get("reduction", "mean")
    holes, ignore = _holes(app), app.attributes.get("ignore_index")
    at = holes["at"]
    ignored = "false" if ignore is None else f"target[{at}] == {literal(int(ignore))}"
    plain = f"weight[target[{at}]]" if weight else "1.0"
    total = f"(sum({at}) l[{at}])"
    divisor = f"(sum({at}) w[{at}])" if weight or ignore is not None else str(math.prod((x[0], *x[2:])))
    text = LOSS.format(
        **holes,
        weights=f", weight[{x[1]}]" if weight else "",
        out_sizes=holes["places"] if kind == "none" else "",
        normaliser=normaliser.format(**holes),
        weight=f"where({ignored}, 0, {plain})",
        ignored=ignored,
        surprise=surprise.format(**holes),
        out=at if kind == "none" else "",
        reduced={"none": f"l[{at}]", "sum": total, "mean": f"{total} / {divisor}"}[str(kind)],
    )
    targets = (x[0], *x[2:])
    shapes = {"x": x, "target": targets, "weight": (x[1],), "y": targets if kind == "none" else ()}
    return program(app, text, shapes, {"x": 0, "target": 1} | ({"weight": 2} if weight else {}))


@operator("NegativeLogLikelihoodLoss", refuse=_refuse)
def negative_log_likelihood(app: Application) -> Compute:
    """What log probabilities say of the targets."""
    return _loss(app, "", "-x[{chosen}]")


@operator("SoftmaxCrossEntropyLoss", refuse=_refuse, outputs=2)
def softmax_cross_entropy(app: Application) -> tuple[Compute, ...]:
    """The loss of scores under a softmax over the classes; the log probabilities are an output too if wanted."""
    made = [_loss(app, "    z[{sized}] = logsumexp(c) x[{whole}]\n", "z[{at}] - x[{chosen}]")]
    if len(app.outputs) > 1:
        shape = app.input(0).shape
        text = LOG_PROBABILITIES.format(**_holes(app))
        made.append(program(app, text, {"x": shape, "y": shape}, {"x": 0}, output=1))
    return tuple(made)
