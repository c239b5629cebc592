"""Spellings of com.microsoft's products, activations, normalisations and quantised operators."""

from __future__ import annotations

import onnx

from tilewright.errors import UnsupportedError
from tilewright.graph.spelling import Spelled, Table, constant, floating, scaled, window

CONTRIBUTED = Table()

# --- products, convolutions and activations ---------------------------------------------------------------------------


def activated(n: Spelled, target: str, source: str, parameters: list[float]) -> str:
    """A statement for the activation that a fused operator has; without one the value itself."""
    kind = str(n.attributes.get("activation", "")) or "Identity"
    if kind in {"Identity", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"}:
        return f"{target} = {kind} ({source})"
    names = {"HardSigmoid": ("alpha", "beta"), "Selu": ("alpha", "gamma")}.get(kind, ("alpha",))
    if kind in {"Elu", "HardSigmoid", "LeakyRelu", "Selu", "ThresholdedRelu"} and len(parameters) == len(names):
        given = ", ".join(f"{name} = {floating(value)}" for name, value in zip(names, parameters, strict=True))
        return f"{target} = {kind} <{given}> ({source})"
    if kind == "Clip" and len(parameters) == 2:
        limits = [constant(f"{target}_{end}", value) for end, value in zip(("low", "high"), parameters, strict=True)]
        typed = [f"{target}_{end}_typed = CastLike ({target}_{end}, {source})" for end in ("low", "high")]
        return "\n".join([*limits, *typed, f"{target} = Clip ({source}, {target}_low_typed, {target}_high_typed)"])
    raise UnsupportedError(f"its activation {kind!r} is not supported")


def _turned(target: str, source: str, turned: int, rows_first: int = 0) -> str:
    """An operand of any rank as MatMul reads it: its rows may be its first dimension, and its last two be changed."""
    if not (turned or rows_first):
        return f"{target} = Identity ({source})"
    equation = f"{'i...j' if rows_first else '...ij'}->{'...ji' if turned else '...ij'}"
    return f'{target} = Einsum <equation = "{equation}"> ({source})'


@CONTRIBUTED.enter("FusedMatMul", "TransposeMatMul", inputs="a b")
def _matmul(n: Spelled) -> str:
    return "\n".join(multiplied(n, "y"))


def multiplied(n: Spelled, target: str) -> list[str]:
    """Statements for the product of `a` and `b`, either of which may be turned, times a factor."""
    turned = [
        _turned(f"{target}_{operand}", operand, n.integer(f"trans{upper}"), n.integer(f"transBatch{upper}"))
        for operand, upper in (("a", "A"), ("b", "B"))
    ]
    product = f"{target}_m = MatMul ({target}_a, {target}_b)"
    return [*turned, product, scaled(target, f"{target}_m", n.number("alpha", 1.0))]


@CONTRIBUTED.enter("FusedGemm", inputs="a b c")
def _gemm(n: Spelled) -> str:
    alpha, beta = (floating(n.number(name, 1.0)) for name in ("alpha", "beta"))
    turned = f"transA = {n.integer('transA')}, transB = {n.integer('transB')}"
    arguments = ", ".join(i for i in ("a", "b", "c") if n.has(i))
    names = [f"activation_{p}" for p in ("alpha", "beta", "gamma")]
    parameters = [n.number(name, 0.0) for name in names if name in n.attributes]
    product = f"m = Gemm <alpha = {alpha}, beta = {beta}, {turned}> ({arguments})"
    return f"{product}\n{activated(n, 'y', 'm', parameters)}"


@CONTRIBUTED.enter("FusedConv", inputs="x w b z")
def _convolution(n: Spelled) -> str:
    attributes = window(n, "dilations", "kernel_shape", "pads", "strides", group=1)
    conv = f"c = Conv <{attributes}> ({', '.join(i for i in ('x', 'w', 'b') if n.has(i))})"
    added = "s = Add (c, z)" if n.has("z") else "s = Identity (c)"
    return "\n".join([conv, added, activated(n, "y", "s", list(n.attributes.get("activation_params", [])))])


@CONTRIBUTED.enter("Gelu", "BiasGelu", "FastGelu", inputs="x b")
def _gelu(n: Spelled) -> str:
    added = "s = Add (x, b)" if n.has("b") else "s = Identity (x)"
    kind = "tanh" if n.op == "FastGelu" else "none"
    return f'{added}\ny = Gelu <approximate = "{kind}"> (s)'


@CONTRIBUTED.enter("QuickGelu", inputs="x")
def _quick_gelu(n: Spelled) -> str:
    return f"{scaled('a', 'x', n.number('alpha', 1.702))}\ns = Sigmoid (a)\ny = Mul (x, s)"


@CONTRIBUTED.enter("Trilu", inputs="x k")
def _trilu(n: Spelled) -> str:
    return f"y = Trilu <upper = {n.integer('upper', 1)}> (x{', k' if n.has('k') else ''})"


# --- normalisations ---------------------------------------------------------------------------------------------------


@CONTRIBUTED.enter("SimplifiedLayerNormalization", inputs="x scale")
def _rms(n: Spelled) -> str:
    n.needs_only("x", "scale", "y")
    attributes = f"axis = {n.integer('axis', -1)}, epsilon = {floating(n.number('epsilon', 1e-5))}"
    return f"y = RMSNormalization <{attributes}> (x, scale)"


@CONTRIBUTED.enter("LayerNormalization", inputs="x scale bias", outputs="y mean inverse")
def _layer_norm(n: Spelled) -> str:
    attributes = f"axis = {n.integer('axis', -1)}, epsilon = {floating(n.number('epsilon', 1e-5))}"
    wanted = [o for o in ("y", "mean", "inverse") if n.wants(o)]
    if wanted != ["y", "mean", "inverse"][: len(wanted)]:
        raise UnsupportedError("its outputs are not the first ones")
    given = ", ".join(i for i in ("x", "scale", "bias") if n.has(i))
    return f"{', '.join(wanted)} = LayerNormalization <{attributes}> ({given})"


@CONTRIBUTED.enter("SkipLayerNormalization", inputs="x skip scale bias added", outputs="y mean inverse total")
def _skip_layer_norm(n: Spelled) -> str:
    n.needs_only("x", "skip", "scale", "bias", "added", "y", "total")
    attributes = f"axis = -1, epsilon = {floating(n.number('epsilon', 1e-12))}"
    given = ", ".join(i for i in ("scale", "bias") if n.has(i))
    return f"{_skipped(n)}\ny = LayerNormalization <{attributes}> (s, {given})"


@CONTRIBUTED.enter("SkipSimplifiedLayerNormalization", inputs="x skip scale added", outputs="y mean inverse total")
def _skip_rms(n: Spelled) -> str:
    n.needs_only("x", "skip", "scale", "added", "y", "total")
    attributes = f"axis = -1, epsilon = {floating(n.number('epsilon', 1e-12))}"
    return f"{_skipped(n)}\ny = RMSNormalization <{attributes}> (s, scale)"


def _skipped(n: Spelled) -> str:
    """The sum that is normalised, which is an output too if wanted."""
    text = "r = Add (x, skip)\n" + ("s = Add (r, added)" if n.has("added") else "s = Identity (r)")
    return f"{text}\ntotal = Identity (s)" if n.wants("total") else text


@CONTRIBUTED.enter(
    "EmbedLayerNormalization",
    inputs="ids segments words places kinds scale bias mask numbers",
    outputs="y counts total",
)
def _embeddings(n: Spelled) -> str:
    n.refuse("mask_index_type")
    lines = ["word = Gather <axis = 0> (words, ids)"]
    if n.has("numbers"):
        lines.append("place = Gather <axis = 0> (places, numbers)")
    else:
        lines += [constant("none", [0]), "length = Shape <start = 1, end = 2> (ids)"]
        lines += ["place = Slice (places, none, length, none)"]
    lines.append("placed = Add (word, place)")
    if n.has("segments"):
        lines += ["kind = Gather <axis = 0> (kinds, segments)", "sum = Add (placed, kind)"]
    else:
        lines.append("sum = Identity (placed)")
    lines.append(
        f"y = LayerNormalization <axis = -1, epsilon = {floating(n.number('epsilon', 1e-12))}> (sum, scale, bias)"
    )
    if n.wants("total"):
        lines.append("total = Identity (sum)")
    if n.wants("counts"):
        lines += [constant("axes", [1])]
        lines.append("numbered = Identity (mask)" if n.has("mask") else "numbered = Sub (ids, ids)")
        lines += ["counted = ReduceSum <keepdims = 0> (numbered, axes)", "counts = Cast <to = 6> (counted)"]
    return "\n".join(lines)


# --- quantised --------------------------------------------------------------------------------------------------------


def real(target: str, source: str, scale: str, zero: str) -> str:
    """A statement for the floats that quantised numbers stand for."""
    return f"{target} = DequantizeLinear ({source}, {scale}{', ' + zero if zero else ''})"


def quantised(target: str, source: str, scale: str, zero: str, like: str) -> str:
    """Statements for floats as quantised numbers; without a zero point 0 of the type of `like`."""
    if zero:
        return f"{target} = QuantizeLinear ({source}, {scale}, {zero})"
    lines = [constant(f"{target}_zero", 0), f"{target}_typed = CastLike ({target}_zero, {like})"]
    return "\n".join([*lines, f"{target} = QuantizeLinear ({source}, {scale}, {target}_typed)"])


@CONTRIBUTED.enter("QLinearAdd", "QLinearMul", inputs="a a_scale a_zero b b_scale b_zero y_scale y_zero")
def _of_two(n: Spelled) -> str:
    return "\n".join(
        (
            real("p", "a", "a_scale", n.or_none("a_zero")),
            real("q", "b", "b_scale", n.or_none("b_zero")),
            f"r = {n.op.removeprefix('QLinear')} (p, q)",
            quantised("y", "r", "y_scale", n.or_none("y_zero"), "a"),
        )
    )


@CONTRIBUTED.enter(
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool",
    inputs="x x_scale x_zero y_scale y_zero",
)  # fmt: skip
def _of_one(n: Spelled) -> str:
    op = n.op.removeprefix("QLinear")
    first, last = "f = Identity (p)", "r = Identity (g)"
    if op == "LeakyRelu":
        op += f" <alpha = {floating(n.number('alpha', 0.01))}>"
    if op == "Softmax":
        op += f" <axis = {n.integer('axis', -1)}>"
    if op == "GlobalAveragePool" and n.integer("channels_last"):
        if n.rank("x") != 4:
            raise UnsupportedError("channels_last needs an input of a known rank of 4")
        first, last = "f = Transpose <perm = [0, 3, 1, 2]> (p)", "r = Transpose <perm = [0, 2, 3, 1]> (g)"
    return "\n".join(
        (
            real("p", "x", "x_scale", n.or_none("x_zero")),
            first,
            f"g = {op} (f)",
            last,
            quantised("y", "r", "y_scale", n.or_none("y_zero"), "x"),
        )
    )


@CONTRIBUTED.enter("QLinearConcat", inputs="y_scale y_zero x*")
def _concat(n: Spelled) -> str:
    count = len(n.inputs) - 2
    if count % 3:
        raise UnsupportedError("each of its inputs needs a scale and a zero point")
    lines = [real(f"r{i}", f"x{i}", f"x{i + 1}", f"x{i + 2}") for i in range(0, count, 3)]
    joined = ", ".join(f"r{i}" for i in range(0, count, 3))
    lines.append(f"r = Concat <axis = {n.integer('axis')}> ({joined})")
    return "\n".join([*lines, quantised("y", "r", "y_scale", "y_zero", "x0")])


@CONTRIBUTED.enter("QuantizeLinear", "DequantizeLinear", inputs="x scale zero")
def _linear(n: Spelled) -> str:
    attributes = f"axis = {n.integer('axis', 1)}"
    if n.integer("block_size"):
        attributes += f", block_size = {n.integer('block_size')}"
    return f"y = {n.op} <{attributes}> (x, scale{', zero' if n.has('zero') else ''})"


def _integers(a: str, b: str, a_zero: str, b_zero: str) -> str:
    """An exact product of quantised matrices in floats."""
    zeros = f", {a_zero}, {b_zero}" if b_zero else f", {a_zero}" if a_zero else ""
    return f"i = MatMulInteger ({a}, {b}{zeros})"


@CONTRIBUTED.enter("QGemm", inputs="a a_scale a_zero b b_scale b_zero c y_scale y_zero")
def _quantised_gemm(n: Spelled) -> str:
    lines = [
        _turned("p", "a", n.integer("transA")),
        _turned("q", "b", n.integer("transB")),
        _integers("p", "q", "a_zero", "b_zero"),
        "t = Add (i, c)" if n.has("c") else "t = Identity (i)",
        "f = Cast <to = 1> (t)",
        "both = Mul (a_scale, b_scale)",
        scaled("scale", "both", n.number("alpha", 1.0)),
        "r = Mul (f, scale)",
    ]
    last = quantised("y", "r", "y_scale", n.or_none("y_zero"), "a") if n.has("y_scale") else "y = Identity (r)"
    return "\n".join([*lines, last])


@CONTRIBUTED.enter("MatMulIntegerToFloat", inputs="a b a_scale b_scale a_zero b_zero bias")
def _to_float(n: Spelled) -> str:
    if n.has("b_zero") and not n.has("a_zero"):
        raise UnsupportedError("its second zero point needs the first one")
    lines = [_integers("a", "b", n.or_none("a_zero"), n.or_none("b_zero")), "f = Cast <to = 1> (i)"]
    lines += ["scale = Mul (a_scale, b_scale)", "r = Mul (f, scale)"]
    return "\n".join([*lines, "y = Add (r, bias)" if n.has("bias") else "y = Identity (r)"])


@CONTRIBUTED.enter("DynamicQuantizeMatMul", inputs="x b b_scale b_zero bias")
def _dynamic(n: Spelled) -> str:
    lines = ["a, a_scale, a_zero = DynamicQuantizeLinear (x)", _integers("a", "b", "a_zero", n.or_none("b_zero"))]
    lines += ["f = Cast <to = 1> (i)", "scale = Mul (a_scale, b_scale)", "r = Mul (f, scale)"]
    return "\n".join([*lines, "y = Add (r, bias)" if n.has("bias") else "y = Identity (r)"])


@CONTRIBUTED.enter("MatMulNBits", inputs="a b scales zeros order bias")
def _few_bits(n: Spelled) -> str:
    """Weights ``b[column, block, byte]`` of 4 or 8 bits; a byte's lower half comes first."""
    n.needs_only("a", "b", "scales", "zeros", "bias", "y")
    bits, block = n.integer("bits", 4), n.integer("block_size")
    depth, columns = n.integer("K"), n.integer("N")
    if bits not in {4, 8} or block < 16 or depth < 1 or columns < 1:
        raise UnsupportedError(f"{bits} bits in blocks of {block} are not supported")
    if n.has("zeros") and n.element("zeros") != onnx.TensorProto.UINT8:
        raise UnsupportedError("its zero points are not bytes")
    blocks = -(-depth // block)
    lines = [*unpacked("w", "b", bits), constant("blocked", [columns, blocks, block]), "wb = Reshape (w_all, blocked)"]
    lines += ["wf = CastLike (wb, a)", constant("one", [columns, blocks, 1])]
    if n.has("zeros"):
        packed = -(-blocks // 2) if bits == 4 else blocks
        lines += [*unpacked("z", "zeros", bits), constant("listed", [columns, packed * 8 // bits])]
        lines += ["z_rows = Reshape (z_all, listed)", constant("z_from", [0]), constant("z_to", [blocks])]
        lines += [
            constant("z_axis", [1]),
            "z_cut = Slice (z_rows, z_from, z_to, z_axis)",
            "z_one = Reshape (z_cut, one)",
        ]
        lines += ["zf = CastLike (z_one, a)"]
    else:
        lines += [constant("middle", float(1 << (bits - 1))), "zf = CastLike (middle, a)"]
    lines += ["ws = Sub (wf, zf)", "scale_one = Reshape (scales, one)", "wr = Mul (ws, scale_one)"]
    lines += [constant("flat", [columns, blocks * block]), "wl = Reshape (wr, flat)"]
    lines += [
        constant("from", [0]),
        constant("to", [depth]),
        constant("along", [1]),
        "wk = Slice (wl, from, to, along)",
    ]
    lines += ["wt = Transpose <perm = [1, 0]> (wk)", "r = MatMul (a, wt)"]
    return "\n".join([*lines, "y = Add (r, bias)" if n.has("bias") else "y = Identity (r)"])


def unpacked(name: str, source: str, bits: int) -> list[str]:
    """The numbers in bytes, in their order, as ``{name}_all``."""
    if bits == 8:
        return [f"{name}_all = Identity ({source})"]
    return [
        constant(f"{name}_wide", [15]),
        f"{name}_mask = CastLike ({name}_wide, {source})",
        constant(f"{name}_four", [4]),
        f"{name}_by = CastLike ({name}_four, {source})",
        f"{name}_low = BitwiseAnd ({source}, {name}_mask)",
        f'{name}_high = BitShift <direction = "RIGHT"> ({source}, {name}_by)',
        constant(f"{name}_last", [-1]),
        f"{name}_low1 = Unsqueeze ({name}_low, {name}_last)",
        f"{name}_high1 = Unsqueeze ({name}_high, {name}_last)",
        f"{name}_all = Concat <axis = -1> ({name}_low1, {name}_high1)",
    ]
