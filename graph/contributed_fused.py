"""Spellings of what onnxruntime's optimiser writes for graphics processors, of tables of few bits, and old operators.

Semantics: onnxruntime's ContribOperators.md; where its processor has a kernel, what that gives.
"""

from __future__ import annotations

import onnx

from tilewright.errors import UnsupportedError
from tilewright.graph.contributed_layers import activated, multiplied, real, unpacked
from tilewright.graph.spelling import Spelled, Table, constant, floating, window

CONTRIBUTED = Table()

# --- images with channels last ----------------------------------------------------------------------------------------


def _order(n: Spelled, first: bool) -> list[int]:
    """The order of dimensions that puts channels first, or last again; of the weights' rank, which exporters state."""
    rank = n.rank("w") or n.rank("x")
    if rank is None or rank < 3:
        raise UnsupportedError("its weights' number of dimensions is not known")
    return [0, rank - 1, *range(1, rank - 1)] if first else [0, *range(2, rank), 1]


@CONTRIBUTED.enter("NhwcConv", "NhwcFusedConv", inputs="x w b z")
def _convolution(n: Spelled) -> str:
    """A convolution, then a sum with `z`, then an activation."""
    attributes = window(n, "dilations", "kernel_shape", "pads", "strides", group=1)
    lines = [
        f"f = Transpose <perm = {_order(n, True)}> (x)",
        f"c = Conv <{attributes}> (f, w{', b' if n.has('b') else ''})",
        f"l = Transpose <perm = {_order(n, False)}> (c)",
        "s = Add (l, z)" if n.has("z") else "s = Identity (l)",
    ]
    return "\n".join([*lines, activated(n, "y", "s", list(n.attributes.get("activation_params", [])))])


@CONTRIBUTED.enter("GroupNorm", inputs="x scale bias")
def _group_norm(n: Spelled) -> str:
    return "\n".join(["s = Identity (x)", *_normalised(n)])


@CONTRIBUTED.enter("SkipGroupNorm", inputs="x scale bias skip added", outputs="y total")
def _skip_group_norm(n: Spelled) -> str:
    """`skip` is [batch, rows, columns, channels] or [batch, channels]."""
    if n.rank("skip") not in {2, 4} or not n.integer("channels_last", 1):
        raise UnsupportedError("its skip has an unknown rank or channels that are not last")
    lines = []
    if n.rank("skip") == 2:
        lines += [constant("inner", [1, 2]), "k = Unsqueeze (skip, inner)"]
    else:
        lines.append("k = Identity (skip)")
    lines += ["r = Add (x, k)", "s = Add (r, added)" if n.has("added") else "s = Identity (r)"]
    lines += ["total = Identity (s)"] if n.wants("total") else []
    return "\n".join([*lines, *_normalised(n)])


def _normalised(n: Spelled) -> list[str]:
    """Statements for `s` normalised by groups of channels, and what may follow."""
    if n.integer("activation") not in {0, 1}:
        raise UnsupportedError(f"its activation {n.integer('activation')} is none of 0 and 1")
    last = bool(n.integer("channels_last", 1))
    attributes = f"num_groups = {n.integer('groups')}, epsilon = {floating(n.number('epsilon', 1e-5))}"
    lines = ["f = Transpose <perm = [0, 3, 1, 2]> (s)" if last else "f = Identity (s)"]
    lines += ["g = CastLike (scale, s)", "h = CastLike (bias, s)"]
    lines.append(f"n = GroupNormalization <{attributes}> (f, g, h)")
    lines.append("a = Transpose <perm = [0, 2, 3, 1]> (n)" if last else "a = Identity (n)")
    return [*lines, *(["e = Sigmoid (a)", "y = Mul (a, e)"] if n.integer("activation") else ["y = Identity (a)"])]


# --- sums and products ------------------------------------------------------------------------------------------------


@CONTRIBUTED.enter("BiasAdd", inputs="x bias skip")
def _bias_add(n: Spelled) -> str:
    return "s = Add (x, bias)\ny = Add (s, skip)"


@CONTRIBUTED.enter("BiasSplitGelu", inputs="x bias")
def _split_gelu(n: Spelled) -> str:
    """The left half times the activation of the right half."""
    return "s = Add (x, bias)\nl, r = Split <axis = -1, num_outputs = 2> (s)\ng = Gelu (r)\ny = Mul (l, g)"


@CONTRIBUTED.enter("BiasSoftmax", inputs="x bias")
def _bias_softmax(n: Spelled) -> str:
    """Over the last dimension; the bias comes of an addition, whose rules of broadcasting it keeps."""
    axis, rank = n.integer("axis", 1), n.rank("x")
    if axis != -1 and (rank is None or axis != rank - 1):
        raise UnsupportedError("its axis is not the last one")
    return "s = Add (x, bias)\ny = Softmax <axis = -1> (s)"


@CONTRIBUTED.enter("FusedMatMulActivation", inputs="a b")
def _matmul(n: Spelled) -> str:
    n.refuse("activation_axis", "activation_gamma")
    given = (n.attributes.get(f"activation_{name}") for name in ("alpha", "beta"))
    return "\n".join([*multiplied(n, "p"), activated(n, "y", "p", [v for v in given if v is not None])])


@CONTRIBUTED.enter("GemmFastGelu", inputs="x w bias")
def _gemm_gelu(n: Spelled) -> str:
    added = "s = Add (m, bias)" if n.has("bias") else "s = Identity (m)"
    return f'm = MatMul (x, w)\n{added}\ny = Gelu <approximate = "tanh"> (s)'


@CONTRIBUTED.enter("GatedRMSNorm", inputs="x scale gate")
def _gated_norm(n: Spelled) -> str:
    kind = str(n.attributes.get("activation", "silu"))
    if kind not in {"silu", "sigmoid"}:
        raise UnsupportedError(f"its activation {kind!r} is not supported")
    lines = [f"r = RMSNormalization <axis = -1, epsilon = {floating(n.number('epsilon', 1e-5))}> (x, scale)"]
    lines += ["s = Sigmoid (gate)", "g = Mul (gate, s)" if kind == "silu" else "g = Identity (s)"]
    return "\n".join([*lines, "y = Mul (r, g)"])


# --- tables of few bits -----------------------------------------------------------------------------------------------


@CONTRIBUTED.enter("GatherBlockQuantized", inputs="data ids scales zeros")
def _gather(n: Spelled) -> str:
    """Rows of a table [rows, columns] whose columns are quantised in blocks; a byte's lower half comes first."""
    bits, block = n.integer("bits", 4), n.integer("block_size", 128)
    if n.rank("data") != 2 or n.integer("gather_axis") or n.integer("quantize_axis", 1) not in {1, -1} or not block:
        raise UnsupportedError("only rows of a table are gathered whose columns are quantised")
    if n.element("data") != onnx.TensorProto.UINT8 or bits not in {4, 8}:
        raise UnsupportedError("its numbers are not bytes, or half bytes in these")
    lines = ["rows = Gather <axis = 0> (data, ids)", "scale = Gather <axis = 0> (scales, ids)"]
    lines += _flat_bits("q", "rows", bits)
    if n.has("zeros"):
        lines += ["points = Gather <axis = 0> (zeros, ids)", *_flat_bits("p", "points", bits)]
        lines += ["sizes = Shape (scale)", constant("last", [-1]), "count = Shape <start = -1> (scale)"]
        lines += [constant("from", [0]), "zero = Slice (p_flat, from, count, last)"]
    else:
        lines += ["sizes = Shape (scale)", constant("middle", 1 << (bits - 1)), "byte = CastLike (middle, data)"]
        lines.append("zero = Expand (byte, sizes)")
    return "\n".join([*lines, f"y = DequantizeLinear <axis = -1, block_size = {block}> (q_flat, scale, zero)"])


def _flat_bits(name: str, source: str, bits: int) -> list[str]:
    """Statements for the numbers in the bytes of a tensor's last dimension, which grows by that, as ``{name}_flat``."""
    if bits == 8:
        return [f"{name}_flat = Identity ({source})"]
    return [
        *unpacked(name, source, bits),
        f"{name}_outer = Shape <end = -1> ({source})",
        constant(f"{name}_rest", [-1]),
        f"{name}_shape = Concat <axis = 0> ({name}_outer, {name}_rest)",
        f"{name}_flat = Reshape ({name}_all, {name}_shape)",
    ]


@CONTRIBUTED.enter(
    "QEmbedLayerNormalization",
    inputs="ids segments words places kinds scale bias mask "
    "words_s places_s kinds_s scale_s bias_s words_z places_z kinds_z scale_z bias_z",
    outputs="y counts",
)
def _embeddings(n: Spelled) -> str:
    """As EmbedLayerNormalization with tables and parameters of 8 bits."""
    lines = ["word8 = Gather <axis = 0> (words, ids)", real("word", "word8", "words_s", "words_z")]
    lines += [constant("none", [0]), "length = Shape <start = 1, end = 2> (ids)"]
    lines += ["place8 = Slice (places, none, length, none)", real("place", "place8", "places_s", "places_z")]
    lines.append("placed = Add (word, place)")
    if n.has("segments"):
        lines += ["kind8 = Gather <axis = 0> (kinds, segments)", real("kind", "kind8", "kinds_s", "kinds_z")]
        lines.append("sum = Add (placed, kind)")
    else:
        lines.append("sum = Identity (placed)")
    lines += [real("g", "scale", "scale_s", "scale_z"), real("h", "bias", "bias_s", "bias_z")]
    epsilon = floating(n.number("epsilon", 1e-12))
    lines.append(f"y = LayerNormalization <axis = -1, epsilon = {epsilon}> (sum, g, h)")
    if n.wants("counts"):
        lines += [constant("axes", [1])]
        lines.append("numbered = Identity (mask)" if n.has("mask") else "numbered = Sub (ids, ids)")
        lines += ["counted = ReduceSum <keepdims = 0> (numbered, axes)", "counts = Cast <to = 6> (counted)"]
    return "\n".join(lines)


# --- what ONNX has meanwhile ------------------------------------------------------------------------------------------


@CONTRIBUTED.enter("ExpandDims", inputs="x axis")
def _expand_dims(n: Spelled) -> str:
    return "\n".join([constant("flat", [-1]), "axes = Reshape (axis, flat)", "y = Unsqueeze (x, axes)"])


@CONTRIBUTED.enter("Pad", inputs="x pads value")
def _pad(n: Spelled) -> str:
    mode = str(n.attributes.get("mode", "constant"))
    if mode not in {"constant", "reflect", "edge"}:
        raise UnsupportedError(f"its mode {mode!r} is not supported")
    lines = [constant("flat", [-1]), "p = Reshape (pads, flat)"]
    lines += ["v = Squeeze (value)"] if n.has("value") else []
    return "\n".join([*lines, f'y = Pad <mode = "{mode}"> (x, p{", v" if n.has("value") else ""})'])


@CONTRIBUTED.enter("GatherND", inputs="x ids")
def _gather_nd(n: Spelled) -> str:
    return "wide = Cast <to = 7> (ids)\ny = GatherND (x, wide)"


@CONTRIBUTED.enter("Range", inputs="start limit step")
def _range(n: Spelled) -> str:
    lines = [f"{name}0 = Squeeze ({name})" for name in n.inputs]
    if not n.has("step"):
        lines += [constant("one", 1), "step0 = CastLike (one, start)"]
    return "\n".join([*lines, "y = Range (start0, limit0, step0)"])


_MODES = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}


@CONTRIBUTED.enter("GridSample", inputs="x grid")
def _grid_sample(n: Spelled) -> str:
    mode, padding = (
        _MODES.get(str(n.attributes.get("mode", "bilinear"))),
        str(n.attributes.get("padding_mode", "zeros")),
    )
    if mode is None or padding not in {"zeros", "border", "reflection"}:
        raise UnsupportedError("its mode or padding is not one that is documented")
    corners = n.integer("align_corners")
    return f'y = GridSample <align_corners = {corners}, mode = "{mode}", padding_mode = "{padding}"> (x, grid)'
