"""Spellings of com.microsoft's attention operators by ONNX's Attention and RotaryEmbedding.

A mask of 0 and 1 becomes a bias of `mask_filter_value` where it is 0, as onnxruntime has it, so that a row without any
key is the mean of all values and no NaN.
"""

from __future__ import annotations

from tilewright.errors import UnsupportedError
from tilewright.graph.spelling import Spelled, Table, constant, floating

CONTRIBUTED = Table()


def _heads(n: Spelled, name: str = "num_heads") -> int:
    count = n.integer(name)
    if count < 1:
        raise UnsupportedError(f"its attribute {name} is missing")
    return count


def _mask(n: Spelled, mask: str, keys: str) -> list[str]:
    """Statements for `bias`, [batch, 1, 1 or rows, keys]: from lengths [batch], or from 0 and 1 in 2 or 3 dimensions.

    ``keys`` is a value with the number of keys, of shape [1].
    """
    value = floating(n.number("mask_filter_value", -10000.0))
    match n.rank(mask):
        case 1:
            lines = [constant("zero", 0), constant("unit", 1), constant("no_axis", [0])]
            lines += [f"last = Squeeze ({keys}, no_axis)", "places = Range (zero, last, unit)"]
            lines += [constant("behind", [1]), f"lengths = Cast <to = 7> ({mask})"]
            lines += ["limit = Unsqueeze (lengths, behind)", "seen2 = Less (places, limit)"]
            lines += [constant("inserted", [1, 2]), "seen = Unsqueeze (seen2, inserted)"]
        case 2:
            lines = [
                f"seen2 = Cast <to = 9> ({mask})",
                constant("inserted", [1, 2]),
                "seen = Unsqueeze (seen2, inserted)",
            ]
        case 3:
            lines = [f"seen2 = Cast <to = 9> ({mask})", constant("inserted", [1]), "seen = Unsqueeze (seen2, inserted)"]
        case other:
            raise UnsupportedError(f"a mask of {other} dimensions is not supported")
    lines += [f"filter = Constant <value_float = {value}> ()", "filter_typed = CastLike (filter, q)"]
    lines += [constant("nought", 0.0), "nought_typed = CastLike (nought, q)"]
    return [*lines, "bias = Where (seen, nought_typed, filter_typed)"]


def _attend(n: Spelled, causal: bool, mask: str, past: bool, results: str, heads: str = "") -> str:
    """A statement for the attention of q, k and v."""
    attributes = [f"is_causal = {int(causal)}", *([heads] if heads else [])]
    if n.number("scale", 0.0):
        attributes.append(f"scale = {floating(n.number('scale', 0.0))}")
    if n.number("softcap", 0.0):
        attributes.append(f"softcap = {floating(n.number('softcap', 0.0))}")
    arguments = ["q", "k", "v", mask, *(["past_k", "past_v"] if past else [])]
    while not arguments[-1]:
        arguments.pop()
    return f"{results} = Attention <{', '.join(attributes)}> ({', '.join(arguments)})"


def _split_heads(name: str, source: str, heads: int) -> list[str]:
    """[batch, rows, heads * depth] as [batch, heads, rows, depth]."""
    return [
        constant(f"{name}_parts", [0, 0, heads, -1]),
        f"{name}_cut = Reshape ({source}, {name}_parts)",
        f"{name} = Transpose <perm = [0, 2, 1, 3]> ({name}_cut)",
    ]


def _joined_heads(target: str, source: str) -> list[str]:
    return [
        f"{target}_turned = Transpose <perm = [0, 2, 1, 3]> ({source})",
        constant(f"{target}_whole", [0, 0, -1]),
        f"{target} = Reshape ({target}_turned, {target}_whole)",
    ]


def _masks(n: Spelled, mask: str, bias: str, keys: list[str]) -> tuple[list[str], str]:
    """Statements for what is added to the scores, and its name; "" for nothing."""
    if not n.has(mask):
        return [], bias if n.has(bias) else ""
    lines = [*keys, *_mask(n, mask, "keys")]
    return (lines, "bias") if not n.has(bias) else ([*lines, f"whole = Add (bias, {bias})"], "whole")


@CONTRIBUTED.enter("Attention", inputs="x weights added mask past scores past_length", outputs="y present")
def _attention(n: Spelled) -> str:
    """Queries, keys and values come of one product."""
    n.refuse("do_rotary", "past_present_share_buffer")
    n.needs_only("x", "weights", "added", "mask", "past", "scores", "y", "present")
    lines = ["m = MatMul (x, weights)", "s = Add (m, added)" if n.has("added") else "s = Identity (m)"]
    return "\n".join([*lines, *_of_sums(n)])


@CONTRIBUTED.enter("QAttention", inputs="x weights added x_scale w_scale mask x_zero w_zero past", outputs="y present")
def _quantised_attention(n: Spelled) -> str:
    """The product that gives queries, keys and values is one of integers; what follows is one of floats."""
    n.refuse("do_rotary", "past_present_share_buffer")
    if n.has("w_zero") and not n.has("x_zero"):
        raise UnsupportedError("its second zero point needs the first one")
    zeros = "".join(f", {name}" for name in ("x_zero", "w_zero") if n.has(name))
    lines = [f"i = MatMulInteger (x, weights{zeros})", "f = CastLike (i, x_scale)", "scale = Mul (x_scale, w_scale)"]
    lines += ["m = Mul (f, scale)", "s = Add (m, added)" if n.has("added") else "s = Identity (m)"]
    return "\n".join([*lines, *_of_sums(n)])


def _of_sums(n: Spelled) -> list[str]:
    """Statements for the attention of `s`, in which queries, keys and values stand side by side."""
    heads, sizes = _heads(n), list(n.attributes.get("qkv_hidden_sizes", []))
    if sizes:
        lines = [constant("sizes", sizes), "q3, k3, v3 = Split <axis = -1> (s, sizes)"]
    else:
        lines = ["q3, k3, v3 = Split <axis = -1, num_outputs = 3> (s)"]
    for name in "qkv":
        lines += _split_heads(name, f"{name}3", heads)
    if n.has("past"):
        lines += ["pk, pv = Split <axis = 0, num_outputs = 2> (past)", constant("outer", [0])]
        lines += ["past_k = Squeeze (pk, outer)", "past_v = Squeeze (pv, outer)"]
    keys = ["keys = Shape <start = 2, end = 3> (k)"]
    if n.has("past"):
        keys = ["news = Shape <start = 2, end = 3> (k)", "olds = Shape <start = 2, end = 3> (past_k)"]
        keys.append("keys = Add (news, olds)")
    more, mask = _masks(n, "mask", "scores", keys)
    results = "o, present_k, present_v" if n.wants("present") else "o"
    lines += [*more, _attend(n, bool(n.integer("unidirectional")), mask, n.has("past"), results)]
    lines += _joined_heads("y", "o")
    if n.wants("present"):
        lines += [constant("front", [0]), "pk1 = Unsqueeze (present_k, front)", "pv1 = Unsqueeze (present_v, front)"]
        lines.append("present = Concat <axis = 0> (pk1, pv1)")
    return lines


@CONTRIBUTED.enter(
    "MultiHeadAttention",
    inputs="query key value added mask scores past_k past_v past_length indirection",
    outputs="y present_k present_v",
)
def _multi_head(n: Spelled) -> str:
    """Queries [batch, rows, hidden], or [batch, rows, heads, 3, depth] with keys and values among them."""
    n.needs_only("query", "key", "value", "added", "mask", "scores", "past_k", "past_v", "y", "present_k", "present_v")
    heads = _heads(n)
    if n.has("past_k") != n.has("past_v") or n.wants("present_k") != n.wants("present_v"):
        raise UnsupportedError("keys come without values")
    lines = [line for name in "qkv" for line in _part(n, name, heads)]
    keys = ["keys = Shape <start = 2, end = 3> (k)"]
    if n.has("past_k"):
        keys = ["news = Shape <start = 2, end = 3> (k)", "olds = Shape <start = 2, end = 3> (past_k)"]
        keys.append("keys = Add (news, olds)")
    more, mask = _masks(n, "mask", "scores", keys)
    results = "o, present_k, present_v" if n.wants("present_k") else "o"
    lines += [*more, _attend(n, bool(n.integer("unidirectional")), mask, n.has("past_k"), results)]
    return "\n".join([*lines, *_joined_heads("y", "o")])


_SOURCES = {"q": "query", "k": "key", "v": "value"}


def _part(n: Spelled, name: str, heads: int) -> list[str]:
    """Statements for q, k or v as [batch, heads, rows, depth]."""
    source, place = _SOURCES[name], "qkv".index(name)
    if not n.has("key"):
        return _of_packed(n, "query", place, name)
    if not n.has("value"):
        return _of_packed(n, "key", place - 1, name) if name != "q" else _plain(n, source, place, name, heads)
    if n.rank(source) == 4:  # keys and values of another sequence, as they are
        if n.has("added") and name != "q":
            raise UnsupportedError("keys of four dimensions have no bias")
        return [f"{name} = Identity ({source})"]
    return _plain(n, source, place, name, heads)


def _plain(n: Spelled, source: str, place: int, name: str, heads: int) -> list[str]:
    if n.rank(source) not in {None, 3}:
        raise UnsupportedError(f"its {source} has {n.rank(source)} dimensions")
    lines = []
    if n.has("added"):
        # the biases of q, k and v stand one behind the other, and the first two are of one size
        lines += [f"{name}_size = Shape <start = 2, end = 3> ({source})", constant(f"{name}_axis", [0])]
        if name == "v":
            lines += [f"{name}_all = Shape (added)", f"{name}_from = Sub ({name}_all, {name}_size)"]
        else:
            lines += [constant(f"{name}_times", [place]), f"{name}_from = Mul ({name}_size, {name}_times)"]
        lines += [f"{name}_to = Add ({name}_from, {name}_size)"]
        lines += [f"{name}_bias = Slice (added, {name}_from, {name}_to, {name}_axis)"]
        lines += [f"{name}3 = Add ({source}, {name}_bias)"]
        source = f"{name}3"
    return lines + _split_heads(name, source, heads)


def _of_packed(n: Spelled, source: str, place: int, name: str) -> list[str]:
    """One of what lies side by side in [batch, rows, heads, parts, depth]."""
    if n.has("added") or n.rank(source) not in {None, 5}:
        raise UnsupportedError(f"its packed {source} has another form or a bias")
    return [
        constant(f"{name}_place", place),
        f"{name}_cut = Gather <axis = 3> ({source}, {name}_place)",
        f"{name} = Transpose <perm = [0, 2, 1, 3]> ({name}_cut)",
    ]


# --- grouped queries and rotation -------------------------------------------------------------------------------------


@CONTRIBUTED.enter(
    "GroupQueryAttention",
    inputs="query key value past_k past_v last total cosine sine numbers scores sink",
    outputs="y present_k present_v",
)
def _grouped(n: Spelled) -> str:
    """New keys go behind the old ones of each batch, `last` + 1 in all; what is behind them is not seen."""
    n.refuse("smooth_softmax", "kv_quant", "k_quant_type", "v_quant_type", "qk_output")
    n.refuse_present("sink")
    heads, shared = _heads(n), _heads(n, "kv_num_heads")
    if not n.has("key"):
        lines = _unpacked(heads, shared)
    else:
        lines = [*_split_heads("q0", "query", heads), *_split_heads("k0", "key", shared)]
        lines += _split_heads("v", "value", shared)
    lines += _lengths(n)
    lines += _rotated(n) if n.integer("do_rotary") else ["q = Identity (q0)", "k1 = Identity (k0)"]
    lines += _cached(n)
    lines += _seen(n)
    cap = [f"softcap = {floating(n.number('softcap', 0.0))}"] if n.number("softcap", 0.0) else []
    scale = [f"scale = {floating(n.number('scale', 0.0))}"] if n.number("scale", 0.0) else []
    lines.append(f"o = Attention <{', '.join(['is_causal = 0', *cap, *scale])}> (q, all_k, all_v, mask)")
    lines += _joined_heads("y", "o")
    for name in ("k", "v"):
        lines += [f"present_{name} = Identity (all_{name})"] if n.wants(f"present_{name}") else []
    return "\n".join(lines)


def _unpacked(heads: int, shared: int) -> list[str]:
    """Heads of queries, keys and values that lie side by side in the query."""
    return [
        *_split_heads("packed", "query", heads + 2 * shared),
        constant("counts", [heads, shared, shared]),
        "q0, k0, v = Split <axis = 1> (packed, counts)",
    ]


def _lengths(n: Spelled) -> list[str]:
    """`at` [batch, rows]: the positions of the new elements. Without old ones they begin at 0 in every batch."""
    return [
        "rows = Shape <start = 2, end = 3> (q0)",
        constant("first_axis", [0]),
        "row_count = Squeeze (rows, first_axis)",
        constant("zero", 0),
        constant("unit", 1),
        "steps = Range (zero, row_count, unit)",
        "last_long = Cast <to = 7> (last)",
        constant("flat", [-1]),
        "last_flat = Reshape (last_long, flat)",
        "more_than = Sub (last_flat, rows)",
        constant("ones", [1]),
        "begin_late = Add (more_than, ones)",
        "total_long = Cast <to = 7> (total)",
        "total_flat = Reshape (total_long, flat)",
        "is_first = Equal (total_flat, rows)",
        constant("zeros", [0]),
        "begin = Where (is_first, zeros, begin_late)",
        constant("second_axis", [1]),
        "begin_column = Unsqueeze (begin, second_axis)",
        "at = Add (begin_column, steps)",
    ]


def _rotated(n: Spelled) -> list[str]:
    """Queries and keys turned by the angles of their positions."""
    if not (n.has("cosine") and n.has("sine")):
        raise UnsupportedError("rotation needs tables of cosines and sines")
    numbers = "numbers" if n.has("numbers") else "at"
    turned = f"interleaved = {n.integer('rotary_interleaved')}"
    lines = []
    for source, target in (("q0", "q"), ("k0", "k1")):
        lines.append(f"{target} = RotaryEmbedding <{turned}> ({source}, cosine, sine, {numbers})")
    return lines


def _cached(n: Spelled) -> list[str]:
    """`all_k` and `all_v`: as long as the old ones or the total, whichever is longer, with the new ones in place."""
    if n.has("past_k") != n.has("past_v"):
        raise UnsupportedError("keys come without values")
    lines = []
    for name, new in (("k", "k1"), ("v", "v")):
        if not n.has("past_k"):
            lines.append(f"all_{name} = Identity ({new})")
            continue
        lines += [
            f"{name}_old = Shape <start = 2, end = 3> (past_{name})",
            f"{name}_length = Max ({name}_old, total_flat)",
            f"{name}_missing = Sub ({name}_length, {name}_old)",
            f"{name}_outer = Shape <start = 0, end = 2> (past_{name})",
            f"{name}_depth = Shape <start = 3, end = 4> (past_{name})",
            f"{name}_gap = Concat <axis = 0> ({name}_outer, {name}_missing, {name}_depth)",
            f"{name}_fill = Constant <value_float = 0.0> ()",
            f"{name}_typed = CastLike ({name}_fill, past_{name})",
            f"{name}_empty = Expand ({name}_typed, {name}_gap)",
            f"{name}_room = Concat <axis = 2> (past_{name}, {name}_empty)",
            f"all_{name} = TensorScatter <axis = 2> ({name}_room, {new}, begin)",
        ]
    return lines


def _seen(n: Spelled) -> list[str]:
    """`mask`: true where a key is not behind the query, and within the window before it; or that as a bias."""
    lines = [
        "key_count1 = Shape <start = 2, end = 3> (all_k)",
        "key_count = Squeeze (key_count1, first_axis)",
        "key_at = Range (zero, key_count, unit)",
        constant("inner_axes", [1, 3]),
        "query_at = Unsqueeze (at, inner_axes)",
        "not_behind = LessOrEqual (key_at, query_at)",
    ]
    window = n.integer("local_window_size", -1)
    if window > 0:
        lines += [constant("window", window), "oldest = Sub (query_at, window)", "recent = Greater (key_at, oldest)"]
        lines.append("seen = And (not_behind, recent)")
    else:
        lines.append("seen = Identity (not_behind)")
    if not n.has("scores"):
        return [*lines, "mask = Identity (seen)"]
    lines += ["never = Constant <value_float = -3.4028234663852886e+38> ()", "never_typed = CastLike (never, scores)"]
    return [*lines, "mask = Where (seen, scores, never_typed)"]


@CONTRIBUTED.enter("RotaryEmbedding", inputs="x numbers cosine sine")
def _rotary(n: Spelled) -> str:
    """Positions of every element [batch, rows], or that of the first [1]."""
    n.refuse("is_packed_batching")
    if n.number("scale", 1.0) != 1.0:
        raise UnsupportedError("its attribute scale is not supported")
    if n.rank("x") not in {3, 4} or n.rank("numbers") not in {1, 2}:
        raise UnsupportedError("its input's or positions' number of dimensions is not known")
    turned = n.integer("rotary_embedding_dim")
    lines = []
    if n.rank("x") == 3:
        if n.integer("num_heads"):
            lines += [constant("parts", [0, 0, n.integer("num_heads"), -1])]
        elif turned:
            raise UnsupportedError("turning a part of a head needs num_heads")
        else:
            lines += [
                "half = Shape <start = 1, end = 2> (cosine)",
                "depth = Add (half, half)",
                constant("rest", [0, 0, -1]),
            ]
            lines += ["parts = Concat <axis = 0> (rest, depth)"]
        lines += ["cut = Reshape (x, parts)", "h = Transpose <perm = [0, 2, 1, 3]> (cut)"]
    else:
        lines.append("h = Identity (x)")
    if n.rank("numbers") == 1:
        lines += ["rows1 = Shape <start = 2, end = 3> (h)", constant("axis", [0]), "rows = Squeeze (rows1, axis)"]
        lines += [constant("zero", 0), constant("unit", 1), "steps = Range (zero, rows, unit)"]
        lines += ["places = Add (steps, numbers)", "outer = Shape <start = 0, end = 1> (h)"]
        lines += ["all = Concat <axis = 0> (outer, rows1)", "at = Expand (places, all)"]
    else:
        lines.append("at = Identity (numbers)")
    attributes = f"interleaved = {n.integer('interleaved')}, rotary_embedding_dim = {turned}"
    lines.append(f"t = RotaryEmbedding <{attributes}> (h, cosine, sine, at)")
    if n.rank("x") == 3:
        return "\n".join([*lines, *_joined_heads("y", "t")])
    return "\n".join([*lines, "y = Identity (t)"])
