"""Spellings of com.microsoft's quantised convolutions, pools and recurrent layers, images last included.

onnxruntime's optimiser turns quantised images to ``channels_last`` and leaves the weights as ONNX has them.
"""

from __future__ import annotations

from tilewright.errors import UnsupportedError
from tilewright.graph.contributed_layers import quantised, real
from tilewright.graph.spelling import Spelled, Table, constant, floating, window
from tilewright.ops.activations import KINDS

CONTRIBUTED = Table()


def _permutation(n: Spelled, first: bool) -> list[int]:
    """The order of dimensions that puts channels first, or last again."""
    kernel = n.attributes.get("kernel_shape")
    rank = len(kernel) + 2 if kernel else n.rank("x") or n.rank("w")
    if rank is None or rank < 3:
        raise UnsupportedError("channels_last needs a kernel_shape, or an input of a known rank of 3 or more")
    return [0, rank - 1, *range(1, rank - 1)] if first else [0, *range(2, rank), 1]


def _channels_first(n: Spelled, target: str, source: str, turned: bool) -> str:
    return _turned(target, source, _permutation(n, True) if turned else [])


def _channels_back(n: Spelled, target: str, source: str, turned: bool) -> str:
    return _turned(target, source, _permutation(n, False) if turned else [])


def _turned(target: str, source: str, order: list[int]) -> str:
    return f"{target} = Transpose <perm = {order}> ({source})" if order else f"{target} = Identity ({source})"


@CONTRIBUTED.enter("QLinearConv", inputs="x x_scale x_zero w w_scale w_zero y_scale y_zero b")
def _convolution(n: Spelled) -> str:
    last = bool(n.integer("channels_last"))
    attributes = window(n, "dilations", "kernel_shape", "pads", "strides", group=1)
    arguments = "f, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero" + (", b" if n.has("b") else "")
    return "\n".join(
        (
            _channels_first(n, "f", "x", last),
            f"c = QLinearConv <{attributes}> ({arguments})",
            _channels_back(n, "y", "c", last),
        )
    )


@CONTRIBUTED.enter("NhwcMaxPool", inputs="x")
def _max_pool(n: Spelled) -> str:
    attributes = window(n, "dilations", "kernel_shape", "pads", "strides", ceil_mode=0)
    pooled = f"p = MaxPool <{attributes}> (f)"
    return "\n".join((_channels_first(n, "f", "x", True), pooled, _channels_back(n, "y", "p", True)))


@CONTRIBUTED.enter("QLinearAveragePool", inputs="x x_scale x_zero y_scale y_zero")
def _average_pool(n: Spelled) -> str:
    last = bool(n.integer("channels_last"))
    attributes = window(n, "kernel_shape", "pads", "strides", ceil_mode=0, count_include_pad=0)
    return "\n".join(
        (
            _channels_first(n, "f", "x", last),
            real("r", "f", "x_scale", n.or_none("x_zero")),
            f"p = AveragePool <{attributes}> (r)",
            quantised("q", "p", "y_scale", n.or_none("y_zero"), "x"),
            _channels_back(n, "y", "q", last),
        )
    )


@CONTRIBUTED.enter("QLinearWhere", inputs="c a a_scale a_zero b b_scale b_zero y_scale y_zero")
def _where(n: Spelled) -> str:
    return "\n".join(
        (
            real("p", "a", "a_scale", n.or_none("a_zero")),
            real("q", "b", "b_scale", n.or_none("b_zero")),
            "r = Where (c, p, q)",
            quantised("y", "r", "y_scale", n.or_none("y_zero"), "a"),
        )
    )


# --- recurrent --------------------------------------------------------------------------------------------------------


@CONTRIBUTED.enter(
    "DynamicQuantizeLSTM",
    inputs="x w r b lengths h c p w_scale w_zero r_scale r_zero",
    outputs="y last_h last_c",
)
def _lstm(n: Spelled) -> str:
    """Weights ``w[direction, column, gate]``, and an input of 8 bits, in a recurrence of floats.

    onnxruntime also rounds the hidden state to 8 bits before each product. That is a means of its kernel, not of the
    operator's definition, and here the state stays as it is.
    """
    lines = ["x8, x_scale, x_zero = DynamicQuantizeLinear (x)", real("xr", "x8", "x_scale", "x_zero")]
    for name in ("w", "r"):
        lines += _gates(n, name)
    arguments = ["xr", "wt", "rt", *(n.or_none(name) for name in ("b", "lengths", "h", "c", "p"))]
    while not arguments[-1]:
        arguments.pop()
    outputs = [o if n.wants(o) else "" for o in ("y", "last_h", "last_c")]
    while outputs and not outputs[-1]:
        outputs.pop()
    attributes = [f"hidden_size = {n.integer('hidden_size')}", f"input_forget = {n.integer('input_forget')}"]
    direction = str(n.attributes.get("direction", "forward"))
    if direction not in {"forward", "reverse", "bidirectional"}:
        raise UnsupportedError("its attribute direction is not one of ONNX's")
    attributes.append(f'direction = "{direction}"')
    if n.number("clip", 0.0) > 0:
        attributes.append(f"clip = {floating(n.number('clip', 0.0))}")
    attributes += _activations(n)
    return "\n".join([*lines, f"{', '.join(outputs)} = LSTM <{', '.join(attributes)}> ({', '.join(arguments)})"])


def _gates(n: Spelled, name: str) -> list[str]:
    """Weights as floats ``[direction, gate, column]``; scales are ``[direction]`` or ``[direction, gate]``."""
    lines = []
    for part in ("scale", "zero"):
        rank = n.rank(f"{name}_{part}")
        if rank not in {1, 2}:
            raise UnsupportedError("its scales and zero points need known ranks of 1 or 2")
        axes = [1, 2] if rank == 1 else [1]
        lines += [
            constant(f"{name}_{part}_axes", axes),
            f"{name}_{part}3 = Unsqueeze ({name}_{part}, {name}_{part}_axes)",
        ]
    return [
        *lines,
        f"{name}f = Cast <to = 1> ({name})",
        f"{name}z = Cast <to = 1> ({name}_zero3)",
        f"{name}d = Sub ({name}f, {name}z)",
        f"{name}s = Mul ({name}d, {name}_scale3)",
        f"{name}t = Transpose <perm = [0, 2, 1]> ({name}s)",
    ]


def _activations(n: Spelled) -> list[str]:
    """The recurrence's functions and their parameters, as far as they are there."""
    names = [a.decode(errors="replace") for a in n.attributes.get("activations", [])]
    if any(a.lower() not in KINDS for a in names):
        raise UnsupportedError("its activations are not ONNX's")
    quoted = ", ".join(f'"{a}"' for a in names)
    texts = [f"activations = [{quoted}]"] if names else []
    for name in ("activation_alpha", "activation_beta"):
        if n.attributes.get(name):
            texts.append(f"{name} = [{', '.join(floating(v) for v in n.attributes[name])}]")
    return texts
