"""Models that somebody damaged, by accident or on purpose, and a process that loads and runs them one after the other.

A model's number decides it: which small network it starts from and what is done to it. `fates` runs a range of
numbers in a child that may neither grow nor take long, which is `python tests/broken_models.py FIRST COUNT DEVICE`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SECONDS = 60
"""For one model; the suite's machines are slow and shared, a sound model takes a fraction of one."""
GROWTH = 1 << 30
"""Bytes by which the process may grow over one model, compilers included."""
ADDRESSES = 8 << 30
"""Bytes of address space, of which drivers reserve plenty without using it."""
LARGEST_FEED = 1 << 20
"""Elements of the largest input that a surviving model is run with."""

Random = np.random.Generator


@dataclass(frozen=True)
class Fate:
    """What became of one model."""

    number: int
    damage: str
    status: str
    """refused, right, unlike (another result than ONNX's evaluator gives), unchecked, or what went wrong."""
    message: str = ""
    grown: int = 0
    """Bytes by which the process's largest size grew."""

    @property
    def is_fine(self) -> bool:
        """True for what may happen to a broken model."""
        return self.status in {"refused", "right", "unchecked"} and self.grown < GROWTH


# --- small networks ---------------------------------------------------------------------------------------------------

TEXTS = (
    """<ir_version: 8, opset_import: ["" : 17]>
    convolution (float[N, 3, 8, 8] image) => (float[N, 4] scores)
    <float[4, 3, 3, 3] w, float[4] b, float[4, 4] v>
    {
        c = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (image, w, b)
        r = Relu (c)
        m = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (r)
        p = GlobalAveragePool (m)
        f = Flatten <axis: int = 1> (p)
        scores = Gemm <transB: int = 1, alpha: float = 0.5> (f, v, b)
    }""",
    """<ir_version: 8, opset_import: ["" : 17]>
    sizes (float[N, 6] x) => (float[N, M] y, float[a, b, c] z)
    <int64[1] two = {2}, int64[1] minus = {-1}, int64[3] repeats = {1, 2, 3}, int64[1] zero = {0}>
    {
        shape = Shape (x)
        n = Gather <axis: int = 0> (shape, zero)
        target = Concat <axis: int = 0> (n, two, minus)
        t = Reshape (x, target)
        z = Tile (t, repeats)
        s = Softmax <axis: int = -1> (z)
        y = Flatten <axis: int = 1> (s)
    }""",
    """<ir_version: 8, opset_import: ["" : 18]>
    movement (float[2, 3, 5] x, int64[2, 2] at) => (float[p, q, r] y, float[3, u, t] g)
    <int64[6] pads = {0, 1, 1, 0, 0, 2}, float fill = {0.5}, int64[2] starts = {1, 0}, int64[2] ends = {9, 4},
     int64[2] axes = {1, 2}, int64[1] ax = {1}>
    {
        w = Pad <mode: string = "constant"> (x, pads, fill)
        s = Slice (w, starts, ends, axes)
        t = Transpose <perm: ints = [2, 0, 1]> (s)
        a, b = Split <axis: int = 0, num_outputs: int = 2> (t)
        y = Concat <axis: int = 1> (a, b)
        e = Gather <axis: int = 1> (x, at)
        m = ReduceMean <keepdims: int = 0> (e, ax)
        k = ReduceMax <keepdims: int = 0> (m, ax)
        shape = Constant <value_ints: ints = [3, 2, 5]> ()
        g = Expand (k, shape)
    }""",
    """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    calls (float[3] x, bool c) => (float[3] y)
    <float[3] w>
    {
        a = local.scaled <factor: float = 2.0> (x, w)
        b = If (c) <
            then_branch = yes () => (float[3] d) { d = Add (a, w) },
            else_branch = no () => (float[3] e) { e = local.scaled <factor: float = 3.0> (a, x) }
        >
        y = Relu (b)
    }
    <opset_import: ["" : 18], domain: "local">
    scaled <factor> (p, q) => (r) { f = Constant <value_float: float = @factor> () s = Mul (p, f) r = Add (s, q) }""",
    """<ir_version: 8, opset_import: ["" : 16]>
    loop (float[3] x, int64 count, bool go) => (float[3] y, float[n, 3] all)
    {
        y, all = Loop (count, go, x) <
            body = step (int64 i, bool keep, float[3] v) => (bool still, float[3] next, float[3] kept)
            { still = Identity (keep) next = Add (v, v) kept = Identity (next) }
        >
    }""",
    """<ir_version: 8, opset_import: ["" : 17]>
    attention (float[1, 4, 8] x) => (float[1, 4, 8] y)
    <float[8, 8] q, float[8, 8] k, float[8, 8] v, float[8] scale, float[8] bias, float root = {2.8}>
    {
        n = LayerNormalization <axis: int = -1, epsilon: float = 0.00001> (x, scale, bias)
        a = MatMul (n, q)
        b = MatMul (n, k)
        c = MatMul (n, v)
        t = Transpose <perm: ints = [0, 2, 1]> (b)
        s = MatMul (a, t)
        d = Div (s, root)
        p = Softmax <axis: int = -1> (d)
        o = MatMul (p, c)
        y = Add (o, x)
    }""",
)


def sound(number: int, rng: Random) -> onnx.ModelProto:
    """One of the small networks, all weights filled in."""
    proto = onnx.parser.parse_model(TEXTS[number % len(TEXTS)])
    given = {t.name for t in proto.graph.initializer}
    for info in [i for i in proto.graph.value_info if i.name not in given]:
        shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), info.name))
    return proto


# --- damages ----------------------------------------------------------------------------------------------------------

_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    -5,
    255,
    1 << 20,
    1 << 31,
    -(1 << 31),
    (1 << 32) + 1,
    1 << 40,
    (1 << 62) + 3,
    (1 << 63) - 1,
    -(1 << 63),
)
_FLOATS = (0.0, -0.0, 1e-45, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
_NAMES = (
    "",
    " ",
    "\n",
    "x\n__kernel void f(__global float *p) { p[0] = 1; }\n//",
    "*/ #include </etc/passwd> /*",
    '"); system("true"); //',
    "\x00",
    "\x1b[2J\x1b[31mred",
    "\u202egnp.exe",
    "%s%n{0}{name!r}",
    "../../../etc/passwd",
    "a" * 100_000,
    "é😀",
    "get_global_id(0)",
    "x",
    "y",
)
_OPERATORS = (
    "Add", "Attention", "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast", "Concat", "ConstantOfShape",
    "Conv", "ConvTranspose", "CumSum", "DFT", "DepthToSpace", "Einsum", "Expand", "EyeLike", "Gather", "GatherND",
    "Gemm", "Identity", "If", "LSTM", "LayerNormalization", "Loop", "MatMul", "MaxPool", "NonZero", "OneHot", "Pad",
    "QuantizeLinear", "RandomNormal", "Range", "ReduceSum", "Reshape", "Resize", "Scan", "ScatterND",
    "SequenceConstruct", "Shape", "Slice", "Softmax", "Split", "Squeeze", "StringConcat", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Where", "Unheard", "",
)  # fmt: skip


def _pick(rng: Random, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _flip(data: bytearray, rng: Random) -> None:
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(data)))
        data[at] ^= 1 << int(rng.integers(8))


def _truncate(data: bytearray, rng: Random) -> None:
    del data[int(rng.integers(len(data))) :]


def _cut_out(data: bytearray, rng: Random) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 40))]


def _double(data: bytearray, rng: Random) -> None:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 200))
    data[at:at] = data[at : at + n]


def _overwrite(data: bytearray, rng: Random) -> None:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 12))
    data[at : at + n] = _pick(rng, (b"\xff" * n, b"\x00" * n, rng.bytes(n)))


def _constant_sizes(m: onnx.ModelProto, rng: Random) -> None:
    tensor = _pick(rng, m.graph.initializer or [m.graph.initializer.add()])
    match int(rng.integers(3)):
        case 0:
            tensor.dims.append(_pick(rng, _NUMBERS))
        case 1:
            del tensor.dims[:]
        case _:
            tensor.dims.extend([1] * (not tensor.dims))
            tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, _NUMBERS)


def _constant_type(m: onnx.ModelProto, rng: Random) -> None:
    _pick(rng, m.graph.initializer or [m.graph.initializer.add()]).data_type = int(rng.integers(-1, 40))


def _constant_data(m: onnx.ModelProto, rng: Random) -> None:
    tensor = _pick(rng, m.graph.initializer or [m.graph.initializer.add()])
    match int(rng.integers(4)):
        case 0:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(9))]
        case 1:
            tensor.raw_data = rng.bytes(int(rng.integers(200)))
        case 2:
            tensor.float_data.extend([1.0] * int(rng.integers(1, 9)))
        case _:
            tensor.int64_data.extend([int(_pick(rng, _NUMBERS)) for _ in range(3)])


def _outside(m: onnx.ModelProto, rng: Random) -> None:
    tensor = _pick(rng, m.graph.initializer or [m.graph.initializer.add(name="w")])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = _pick(
        rng,
        (
            "../secret.bin",
            "/etc/passwd",
            "/dev/zero",
            "missing.bin",
            ".",
            "",
            "pipe",
            "link",
            "a\x00b",
            "/proc/self/mem",
        ),
    )
    entries = {"location": place, "offset": str(_pick(rng, _NUMBERS)), "length": str(_pick(rng, _NUMBERS))}
    for key in ("location", *(k for k in ("offset", "length") if rng.integers(2))):
        tensor.external_data.add(key=key, value=entries[key])


def _declared(m: onnx.ModelProto, rng: Random) -> None:
    info = _pick(rng, [*m.graph.input, *m.graph.output])
    tensor = info.type.tensor_type
    match int(rng.integers(6)):
        case 0:
            tensor.elem_type = int(rng.integers(-1, 40))
        case 1:
            tensor.shape.dim.add(dim_value=_pick(rng, _NUMBERS))
        case 2:
            tensor.ClearField("shape")
        case 3:
            info.ClearField("type")
        case 4:
            info.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
        case _:
            for d in tensor.shape.dim:
                if rng.integers(2):
                    d.dim_value = _pick(rng, _NUMBERS)


def _graphs(m: onnx.ModelProto) -> list[Any]:
    """The graph, its subgraphs and the functions."""
    found: list[Any] = [m.graph, *m.functions]
    for holder in found:
        found.extend(a.g for n in holder.node for a in n.attribute if a.HasField("g"))
    return found


def _a_node(m: onnx.ModelProto, rng: Random) -> onnx.NodeProto:
    nodes = [n for holder in _graphs(m) for n in holder.node]
    return _pick(rng, nodes or [m.graph.node.add(op_type="Relu", input=["x"], output=["y"])])


def _wiring(m: onnx.ModelProto, rng: Random) -> None:
    node = _a_node(m, rng)
    values = [v for n in m.graph.node for v in (*n.input, *n.output)]
    side = _pick(rng, (node.input, node.output))
    match int(rng.integers(4)):
        case 0:
            side.append(_pick(rng, (*values, "nobody", "")))
        case 1 if side:
            side.pop(int(rng.integers(len(side))))
        case _ if side:
            side[int(rng.integers(len(side)))] = _pick(rng, (*values, "nobody", "", *node.output))


def _order(m: onnx.ModelProto, rng: Random) -> None:
    nodes = list(m.graph.node)
    del m.graph.node[:]
    m.graph.node.extend(nodes[int(i)] for i in rng.permutation(len(nodes)))


def _operator(m: onnx.ModelProto, rng: Random) -> None:
    _a_node(m, rng).op_type = _pick(rng, _OPERATORS)


def _domain(m: onnx.ModelProto, rng: Random) -> None:
    _a_node(m, rng).domain = _pick(rng, ("ai.onnx", "local", "ai.onnx.ml", "com.microsoft", "of.nobody", "\n"))


def _attribute(m: onnx.ModelProto, rng: Random) -> None:
    node = _a_node(m, rng)
    if not node.attribute or not rng.integers(4):
        names = (
            "axis",
            "axes",
            "perm",
            "pads",
            "strides",
            "kernel_shape",
            "group",
            "dilations",
            "to",
            "value",
            "unheard",
            "auto_pad",
        )
        node.attribute.append(helper.make_attribute(_pick(rng, names), _any_attribute(rng)))
        return
    attribute = _pick(rng, node.attribute)
    match int(rng.integers(4)):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            node.attribute.append(attribute)
        case 2:
            attribute.type = int(rng.integers(0, 14))
        case _:
            attribute.CopyFrom(helper.make_attribute(attribute.name, _any_attribute(rng)))


def _any_attribute(rng: Random) -> Any:
    match int(rng.integers(6)):
        case 0:
            return int(_pick(rng, _NUMBERS))
        case 1:
            return float(_pick(rng, _FLOATS))
        case 2:
            return _pick(rng, ("SAME_UPPER", "bilinear", *_NAMES))
        case 3:
            return [int(_pick(rng, _NUMBERS)) for _ in range(int(rng.integers(1, 9)))]
        case 4:
            return [1] * 300_000
        case _:
            return numpy_helper.from_array(rng.integers(-9, 9, int(rng.integers(4))))


def _renamed(m: onnx.ModelProto, rng: Random) -> None:
    """A value, everywhere it is named: such a network is sound if its new name is."""
    values = [v for n in m.graph.node for v in (*n.input, *n.output) if v]
    old, new = _pick(rng, values or ["x"]), _pick(rng, _NAMES)
    for holder in _graphs(m):
        for n in holder.node:
            n.input[:] = [new if v == old else v for v in n.input]
            n.output[:] = [new if v == old else v for v in n.output]
    for named in (*m.graph.input, *m.graph.output, *m.graph.initializer, *m.graph.value_info):
        named.name = new if named.name == old else named.name


def _other_names(m: onnx.ModelProto, rng: Random) -> None:
    m.graph.name = _pick(rng, _NAMES)
    for n in m.graph.node:
        n.name = _pick(rng, _NAMES)
    for info in m.graph.input:
        for d in info.type.tensor_type.shape.dim:
            if d.dim_param:
                d.dim_param = _pick(rng, _NAMES)


def _versions(m: onnx.ModelProto, rng: Random) -> None:
    match int(rng.integers(5)):
        case 0:
            m.ir_version = int(_pick(rng, _NUMBERS))
        case 1:
            del m.opset_import[:]
        case 2:
            m.opset_import.add(domain="", version=int(rng.integers(1, 30)))
        case 3:
            m.opset_import[0].version = int(_pick(rng, _NUMBERS))
        case _:
            m.opset_import[0].version = int(rng.integers(1, 30))


def _listed_twice(m: onnx.ModelProto, rng: Random) -> None:
    part = _pick(rng, (m.graph.input, m.graph.output, m.graph.initializer, m.graph.node, m.opset_import, m.functions))
    if part:
        part.append(_pick(rng, part))


def _left_out(m: onnx.ModelProto, rng: Random) -> None:
    part = _pick(rng, (m.graph.input, m.graph.output, m.graph.initializer, m.graph.node, m.opset_import, m.functions))
    if rng.integers(3):
        del part[: int(rng.integers(1, 3))]
    else:
        del part[:]


def _recursion(m: onnx.ModelProto, rng: Random) -> None:
    """Functions that call themselves or each other."""
    call = helper.make_node("g" if rng.integers(2) else "f", ["p"], ["q"], domain="loops")
    back = helper.make_node("f", ["p"], ["q"], domain="loops")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loops", 1)]
    for name, node in (("f", call), ("g", back)):
        m.functions.append(helper.make_function("loops", name, ["p"], ["q"], [node], opsets))
    m.opset_import.append(helper.make_opsetid("loops", 1))
    m.graph.node.insert(
        0, helper.make_node("f", [m.graph.input[0].name if m.graph.input else "x"], ["looped"], domain="loops")
    )
    if rng.integers(2):
        m.graph.node[-1].input[:1] = ["looped"]


def _depth(m: onnx.ModelProto, rng: Random) -> None:
    """Conditions within conditions, or functions that double their calls at each level."""
    if rng.integers(2):
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("deep", 1)]
        levels = int(rng.integers(5, 40))
        for n in range(levels):
            inner = [("Relu", "") if n == 0 else (f"d{n - 1}", "deep")] * 2
            nodes = [helper.make_node(op, [i], [o], domain=d) for (op, d), i, o in zip(inner, "pm", "mq", strict=True)]
            m.functions.append(helper.make_function("deep", f"d{n}", ["p"], ["q"], nodes, opsets))
        m.opset_import.append(helper.make_opsetid("deep", 1))
        node = helper.make_node(f"d{levels - 1}", ["x"], ["deepest"], domain="deep")
    else:
        info = helper.make_tensor_value_info("deepest", TensorProto.FLOAT, None)
        plain = helper.make_graph([helper.make_node("Identity", ["x"], ["deepest"])], "plain", [], [info])
        inner, twice = plain, int(rng.integers(2, 9))
        for level in range(int(rng.integers(2, 30))):
            other = inner if level < twice else plain
            node = helper.make_node("If", ["yes"], ["deepest"], then_branch=inner, else_branch=other)
            inner = helper.make_graph([node], "body", [], [info])
        m.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    m.graph.node.insert(0, node)
    m.graph.output.append(helper.make_tensor_value_info("deepest", TensorProto.FLOAT, None))


def _length(m: onnx.ModelProto, rng: Random) -> None:
    """A long chain."""
    last = m.graph.output[0].name if m.graph.output else "x"
    for n in range(int(rng.integers(100, 600))):
        m.graph.node.append(helper.make_node("Relu", [last], [f"long{n}"]))
        last = f"long{n}"
    m.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))


def _grown(m: onnx.ModelProto, rng: Random) -> None:
    """A result of a size that no machine has, from a constant."""
    size = int(_pick(rng, (1 << 20, 1 << 33, 1 << 40, 1 << 62)))
    m.graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), "much"))
    m.graph.initializer.append(numpy_helper.from_array(np.array([1.0], np.float32), "one"))
    m.graph.initializer.append(numpy_helper.from_array(np.array(size, np.int64), "many"))
    m.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "step"))
    m.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "none"))
    node = _pick(
        rng,
        (
            helper.make_node("ConstantOfShape", ["much"], ["vast"]),
            helper.make_node("Expand", ["one", "much"], ["vast"]),
            helper.make_node("Tile", ["one", "much"], ["vast"]),
            helper.make_node("Range", ["none", "many", "step"], ["vast"]),
            helper.make_node("RandomNormal", [], ["vast"], shape=[size]),
            helper.make_node("BlackmanWindow", ["many"], ["vast"]),
        ),
    )
    m.graph.node.insert(0, node)
    info = helper.make_tensor_value_info("vast", TensorProto.FLOAT, None)
    if size == 1 << 20:  # a larger sum needs no memory, and would be computed right, some day
        m.graph.node.append(helper.make_node("ReduceSum", ["vast"], ["total"], keepdims=0))
        info.name = "total"
    m.graph.output.append(info)


_OF_BYTES: tuple[Callable[[bytearray, Random], None], ...] = (_flip, _truncate, _cut_out, _double, _overwrite)
_OF_MODELS: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    _constant_sizes, _constant_type, _constant_data, _outside, _declared, _wiring, _order, _operator, _domain,
    _attribute, _renamed, _other_names, _versions, _listed_twice, _left_out, _recursion, _depth, _length, _grown,
)  # fmt: skip


def broken(number: int) -> tuple[str, bytes]:
    """What is done to a model of this number, and the file that comes of it."""
    rng = np.random.default_rng([20, number])
    proto = sound(number, rng)
    done = []
    for _ in range(int(rng.integers(1, 3))):
        damage = _pick(rng, _OF_MODELS)
        try:
            damage(proto, rng)
        except ValueError:  # a number or a text that no file can hold
            continue
        done.append(damage.__name__.strip("_"))
    content = bytearray(proto.SerializeToString())
    if not rng.integers(4) or not done:
        damage_bytes = _pick(rng, _OF_BYTES)
        damage_bytes(content, rng)
        done.append(damage_bytes.__name__.strip("_"))
    return f"{proto.graph.name[:20]!r}: {', '.join(done)}", bytes(content)


# --- the process that runs them ---------------------------------------------------------------------------------------


def fate(number: int, folder: Path, device: str) -> Fate:
    """Load a broken model, run it if it loads, and compare what it gives with ONNX's own evaluator."""
    damage, content = broken(number)
    file = folder / "model.onnx"
    file.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        status, message = outcome(file, content, device)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        status = "crashed"
        message = f"{type(error).__name__}: {str(error)[:300]} ({where.filename.rpartition('/')[2]}:{where.lineno})"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    return Fate(number, damage, status, message, grown)


def outcome(file: Path, content: bytes, device: str) -> tuple[str, str]:
    from tilewright.errors import TilewrightError
    from tilewright.graph.session import InferenceSession

    try:
        session = InferenceSession(file if len(content) % 2 else content, device, store=False)
        feeds = _feeds(session)
        if feeds is None:
            return "unchecked", "inputs that cannot be made"
        found = session.run(None, feeds)
    except TilewrightError as error:
        message = str(error)
        seen = all(c.isprintable() or c == "\n" for c in message)
        return ("refused" if seen and len(message) < 100_000 else "unreadable"), message[:300]
    if b"Random" in content:  # no two runs agree
        return "unchecked", ""
    expected = _by_onnx(file, feeds)
    if expected is None:
        return "unchecked", ""
    for a, b in zip(found, expected, strict=True):
        if not _alike(a, b):
            return "unlike", f"{_brief(a)} instead of {_brief(b)}"
    return "right", ""


def _feeds(session: Any) -> dict[str, Any] | None:
    rng = np.random.default_rng(1)
    types = {
        "tensor(float)": np.float32,
        "tensor(int64)": np.int64,
        "tensor(bool)": np.bool_,
        "tensor(double)": np.float64,
    }
    feeds = {}
    for value in session.get_inputs():
        shape = [n if isinstance(n, int) else 2 for n in value.shape]
        if value.type not in types or np.prod(np.array(shape, float)) > LARGEST_FEED:
            return None
        is_float = np.dtype(types[value.type]).kind == "f"
        numbers = rng.standard_normal(shape) if is_float else rng.integers(1, 3, shape)
        feeds[value.name] = np.asarray(numbers).astype(types[value.type])
    return feeds


def _by_onnx(file: Path, feeds: dict[str, Any]) -> list[Any] | None:
    """What ONNX's evaluator gives; None where it refuses."""
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(str(file)).run(None, feeds))
    except Exception:
        return None


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return a.shape == b.shape
    with np.errstate(all="ignore"):
        scale = np.abs(b[np.isfinite(b)]).max(initial=0)
        return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5 * float(scale), equal_nan=True))


def _brief(array: Any) -> str:
    a = np.asarray(array)
    return f"{a.dtype}{list(a.shape)} {' '.join(str(a.reshape(-1)[:4]).split())}"


def serve(first: int, count: int, device: str) -> None:
    """The child: a line of JSON for each model."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "secret.bin").write_bytes(bytes(4096))
        folder = Path(name) / "model"
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to("../secret.bin")
        for number in range(first, first + count):
            print(json.dumps(asdict(fate(number, folder, device))), flush=True)


def fates(first: int, count: int, device: str) -> Iterator[Fate]:
    """What becomes of models `first` to `first + count`, in a child that is replaced when one of them kills it."""
    number = first
    while number < first + count:
        command = [sys.executable, __file__, str(number), str(first + count - number), device]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            complaints: list[str] = []
            reader = threading.Thread(target=lambda c=child, to=complaints: to.extend(c.stderr), daemon=True)
            reader.start()
            while number < first + count:
                watch = threading.Timer(SECONDS, child.kill)
                watch.start()
                line = child.stdout.readline()
                watch.cancel()
                if not line:
                    break
                yield Fate(**json.loads(line))
                number += 1
            child.kill()
            child.wait()
            reader.join()
        if number < first + count:
            status = "hung" if child.returncode == -signal.SIGKILL else f"died ({child.returncode})"
            yield Fate(number, broken(number)[0], status, "".join(complaints)[-2000:])
            number += 1


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
