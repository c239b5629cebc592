"""Normalisations: batch, instance, layer, group, root mean square, and across channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tilewright.errors import UnsupportedError
from tilewright.ops.language import literal, program
from tilewright.ops.operator import Application, Compute, operator

BATCH = """
op batch_norm(x[N, C{sizes}], scale[C], bias[C], mean[C], var[C]) -> y[N, C{sizes}]:
    y[n, c{at}] = (x[n, c{at}] - mean[c]) / sqrt(var[c] + {epsilon}) * scale[c] + bias[c]
"""

INSTANCE = """
op instance_norm(x[N, C{sizes}], scale[C], bias[C]) -> y[N, C{sizes}]:
    m[n, c] = (sum({taps}) x[n, c, {taps}]) / {count}
    v[n, c] = (sum({taps}) (x[n, c, {taps}] - m[n, c]) * (x[n, c, {taps}] - m[n, c])) / {count}
    y[n, c{at}] = (x[n, c{at}] - m[n, c]) / sqrt(v[n, c] + {epsilon}) * scale[c] + bias[c]
"""

GROUP = """
op group_norm(x[N, G, C{sizes}], scale[{dims}], bias[{dims}]) -> y[N, G, C{sizes}]:
    m[n, g] = (sum(c{at}) x[n, g, c{at}]) / {count}
    v[n, g] = (sum(c{at}) (x[n, g, c{at}] - m[n, g]) * (x[n, g, c{at}] - m[n, g])) / {count}
    y[n, g, c{at}] = (x[n, g, c{at}] - m[n, g]) / sqrt(v[n, g] + {epsilon}) * scale[{channel}] + bias[{channel}]
"""

LAYER = """
op layer_norm(x[{sizes}], scale[{scale}]{bias}) -> y[{sizes}]:
    m[{kept}] = (sum({axes}) x[{at}]) / {count}
    v[{kept}] = (sum({axes}) (x[{at}] - m[{kept}]) * (x[{at}] - m[{kept}])) / {count}
    y[{at}] = (x[{at}] - m[{kept}]) / sqrt(v[{kept}] + {epsilon}) * scale[{scale_at}]{plus}
"""

ROOT_MEAN_SQUARE = """
op rms_norm(x[{sizes}], scale[{scale}]) -> y[{sizes}]:
    v[{kept}] = (sum({axes}) x[{at}] * x[{at}]) / {count}
    y[{at}] = x[{at}] / sqrt(v[{kept}] + {epsilon}) * scale[{scale_at}]
"""

LOCAL_RESPONSE = """
op lrn(x[N, C{sizes}]) -> y[N, C{sizes}]:
    s[n, c: {channels}{at}] = sum(j: {size}) x[n, c + j - {half}{at}] * x[n, c + j - {half}{at}]
    y[n, c{at}] = x[n, c{at}] / pow({bias} + {factor} * s[n, c{at}], {beta})
"""

LP = """
op lp_norm(x[{sizes}]) -> y[{sizes}]:
    s[{kept}] = sum({axis}) {powered}
    y[{at}] = where(s[{kept}] == 0, 0, x[{at}] / {root})
"""


def _spatial(rank: int) -> dict[str, str]:
    return {
        "sizes": "".join(f", H{d}" for d in range(rank - 2)),
        "at": "".join(f", p{d}" for d in range(rank - 2)),
        "taps": ", ".join(f"r{d}" for d in range(rank - 2)),
    }


TRAINING = """
op batch_norm(x[N, C{sizes}], scale[C], bias[C]) -> y[N, C{sizes}]:
    m[c] = (sum({batch}) x[n, c{at}]) / {count}
    v[c] = (sum({batch}) (x[n, c{at}] - m[c]) * (x[n, c{at}] - m[c])) / {count}
    y[n, c{at}] = (x[n, c{at}] - m[c]) / sqrt(v[c] + {epsilon}) * scale[c] + bias[c]
"""

RUNNING_MEAN = """
op running_mean(x[N, C{sizes}], mean[C]) -> y[C]:
    m[c] = (sum({batch}) x[n, c{at}]) / {count}
    y[c] = mean[c] * {momentum} + m[c] * {rest}
"""

RUNNING_VARIANCE = """
op running_variance(x[N, C{sizes}], var[C]) -> y[C]:
    m[c] = (sum({batch}) x[n, c{at}]) / {count}
    v[c] = (sum({batch}) (x[n, c{at}] - m[c]) * (x[n, c{at}] - m[c])) / {count}
    y[c] = var[c] * {momentum} + v[c] * {rest}
"""


def _refuse_batch_norm(attributes: Mapping[str, Any], opset: int) -> str | None:
    return None if attributes.get("spatial", 1) else "statistics per element (spatial=0) are not supported"


@operator("BatchNormalization", outputs=3, refuse=_refuse_batch_norm)
def batch_normalization(app: Application) -> tuple[Compute, ...]:
    """With the statistics given as inputs, or (``training_mode``) those of the batch and running ones as outputs."""
    x, trains = app.input(0), bool(app.integer("training_mode", 0))
    if len(app.outputs) > 1 and not trains:
        raise UnsupportedError("its statistics are outputs in training_mode only")
    momentum, epsilon = app.number("momentum", 0.9), literal(app.number("epsilon", 1e-5))
    holes = _spatial(x.rank) | {"batch": ", ".join(["n", *(f"p{d}" for d in range(x.rank - 2))])}
    holes |= {"count": str(x.shape[0] * math.prod(x.shape[2:])), "epsilon": epsilon}
    holes |= {"momentum": literal(momentum), "rest": literal(1 - momentum)}
    names = ("x", "scale", "bias", "mean", "var")
    shapes = {name: app.input(n).shape for n, name in enumerate(names)} | {"y": x.shape}
    used = {name: n for n, name in enumerate(names)}
    if not trains:
        return (program(app, BATCH.format(**holes), shapes, used),)
    made = [program(app, TRAINING.format(**holes), shapes, {name: used[name] for name in names[:3]})]
    shapes |= {"y": (x.shape[1],)}
    running = ((RUNNING_MEAN, "mean"), (RUNNING_VARIANCE, "var"))[: len(app.outputs) - 1]
    for position, (template, name) in enumerate(running):
        operands = {"x": 0, name: used[name]}
        made.append(program(app, template.format(**holes), shapes, operands, output=position + 1))
    return tuple(made)


MEAN_VARIANCE = """
op mean_variance_norm(x[{sizes}]) -> y[{sizes}]:
    m[{kept}] = (sum({axes}) x[{at}]) / {count}
    v[{kept}] = (sum({axes}) (x[{at}] - m[{kept}]) * (x[{at}] - m[{kept}])) / {count}
    y[{at}] = (x[{at}] - m[{kept}]) / (sqrt(v[{kept}]) + 1e-9)
"""


@operator("MeanVarianceNormalization")
def mean_variance_normalization(app: Application) -> Compute:
    """To mean 0 and variance 1 along axes; the small summand is ONNX's own."""
    shape = app.input(0).shape
    axes = {a % len(shape) for a in app.integers("axes") or (0, 2, 3)}
    names = [f"i{d}" for d in range(len(shape))]
    text = MEAN_VARIANCE.format(
        sizes=", ".join(map(str, shape)),
        kept=", ".join(name for d, name in enumerate(names) if d not in axes),
        axes=", ".join(name for d, name in enumerate(names) if d in axes),
        at=", ".join(names),
        count=math.prod(shape[d] for d in axes),
    )
    return program(app, text, {"x": shape, "y": shape}, {"x": 0})


@operator("InstanceNormalization")
def instance_normalization(app: Application) -> Compute:
    """Per image and channel, with a scale and bias per channel."""
    x = app.input(0)
    text = INSTANCE.format(
        **_spatial(x.rank), epsilon=literal(app.number("epsilon", 1e-5)), count=math.prod(x.shape[2:])
    )
    shapes = {"x": x.shape, "scale": (x.shape[1],), "bias": (x.shape[1],), "y": x.shape}
    return program(app, text, shapes, {"x": 0, "scale": 1, "bias": 2})


@operator("GroupNormalization")
def group_normalization(app: Application) -> Compute:
    """Per image and group of channels; scale and bias per group before opset 21, per channel from then on."""
    x, groups = app.input(0), app.integer("num_groups", 1)
    batch, channels = x.shape[:2]
    inner = (batch, groups, channels // groups, *x.shape[2:])
    per_channel = app.input(1).shape[0] == channels
    text = GROUP.format(
        **_spatial(x.rank),
        dims="G, C" if per_channel else "G",
        channel="g, c" if per_channel else "g",
        count=math.prod(inner[2:]),
        epsilon=literal(app.number("epsilon", 1e-5)),
    )
    parameter = inner[1:3] if per_channel else (groups,)
    shapes = {"x": inner, "y": inner, "scale": parameter, "bias": parameter}
    return program(app, text, shapes, {"x": 0, "scale": 1, "bias": 2})


def _rows(app: Application) -> tuple[int, int]:
    shape = app.input(0).shape
    axis = app.integer("axis", -1) % len(shape)
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def _normalised(app: Application) -> dict[str, str]:
    """The parts of a template for rows along the dimensions from ``axis`` on, under their own sizes."""
    shape = app.input(0).shape
    axis = app.integer("axis", -1) % len(shape)
    names = [f"i{d}" for d in range(len(shape))]
    return {
        "sizes": ", ".join(map(str, shape)),
        "at": ", ".join(names),
        "kept": ", ".join(names[:axis]),
        "axes": ", ".join(names[axis:]),
    }


def _scale(app: Application) -> tuple[str, str, tuple[int, ...]]:
    """Dims, index and shape of a scale that covers the normalised elements, or is one number for all."""
    shape = app.input(0).shape
    axis = app.integer("axis", -1) % len(shape)
    size = math.prod(app.input(1).shape)
    if size == math.prod(shape[axis:]):
        return ", ".join(map(str, shape[axis:])), ", ".join(f"i{d}" for d in range(axis, len(shape))), shape[axis:]
    if size == 1:
        return "1", "0", (1,)
    raise UnsupportedError(f"a scale of shape {app.input(1).shape} that broadcasts is not supported")


MEAN = """
op mean(x[R, K]) -> y[R]:
    y[r] = (sum(k) x[r, k]) / {count}
"""

INVERSE_DEVIATION = """
op inverse_deviation(x[R, K]) -> y[R]:
    m[r] = (sum(k) x[r, k]) / {count}
    y[r] = 1 / sqrt((sum(k) (x[r, k] - m[r]) * (x[r, k] - m[r])) / {count} + {epsilon})
"""


@operator("LayerNormalization", outputs=3)
def layer_normalization(app: Application) -> tuple[Compute, ...]:
    """Over all dimensions from ``axis`` on; mean and inverse deviation are outputs too if wanted."""
    rows, count = _rows(app)
    epsilon = literal(app.number("epsilon", 1e-5))
    made = [_normalised_layer(app)]
    for position, template in enumerate((MEAN, INVERSE_DEVIATION)[: len(app.outputs) - 1]):
        text = template.format(count=count, epsilon=epsilon)
        made.append(program(app, text, {"x": (rows, count), "y": (rows,)}, {"x": 0}, output=position + 1))
    return tuple(made)


def _normalised_layer(app: Application) -> Compute:
    dims, at, shape = _scale(app)
    bias = app.optional(2)
    if bias is not None and math.prod(bias.shape) != math.prod(shape):
        raise UnsupportedError("scale and bias of different sizes are not supported")
    text = LAYER.format(
        **_normalised(app),
        scale=dims,
        scale_at=at,
        bias=f", bias[{dims}]" if bias else "",
        plus=f" + bias[{at}]" if bias else "",
        count=_rows(app)[1],
        epsilon=literal(app.number("epsilon", 1e-5)),
    )
    x = app.input(0).shape
    shapes = {"x": x, "y": x, "scale": shape, "bias": shape}
    return program(app, text, shapes, {"x": 0, "scale": 1} | ({"bias": 2} if bias else {}))


@operator("RMSNormalization")
def root_mean_square_normalization(app: Application) -> Compute:
    """Division by the root mean square over all dimensions from ``axis`` on."""
    dims, at, shape = _scale(app)
    epsilon = literal(app.number("epsilon", 1e-5))
    text = ROOT_MEAN_SQUARE.format(**_normalised(app), scale=dims, scale_at=at, count=_rows(app)[1], epsilon=epsilon)
    x = app.input(0).shape
    shapes = {"x": x, "y": x, "scale": shape}
    return program(app, text, shapes, {"x": 0, "scale": 1})


@operator("LRN")
def local_response_normalization(app: Application) -> Compute:
    """Division by a power of the squares' sum over neighbouring channels."""
    x, size = app.input(0), app.integer("size", 1)
    text = LOCAL_RESPONSE.format(
        **_spatial(x.rank),
        bias=literal(app.number("bias", 1.0)),
        factor=literal(app.number("alpha", 1e-4) / size),
        beta=literal(app.number("beta", 0.75)),
        size=size,
        channels=x.shape[1],
        half=(size - 1) // 2,
    )
    return program(app, text, {"x": x.shape, "y": x.shape}, {"x": 0})


@operator("LpNormalization")
def lp_normalization(app: Application) -> Compute:
    """Division by the 1- or 2-norm along one axis."""
    x, p = app.input(0), app.integer("p", 2)
    axis = app.integer("axis", -1) % x.rank
    names = [f"i{d}" for d in range(x.rank)]
    kept = ", ".join(name for d, name in enumerate(names) if d != axis)
    at = ", ".join(names)
    text = LP.format(
        sizes=", ".join(map(str, x.shape)),
        kept=kept,
        axis=names[axis],
        at=at,
        powered=f"abs(x[{at}])" if p == 1 else f"x[{at}] * x[{at}]",
        root=f"s[{kept}]" if p == 1 else f"sqrt(s[{kept}])",
    )
    return program(app, text, {"x": x.shape, "y": x.shape}, {"x": 0})
