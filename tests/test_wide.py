"""Tensors of more than 2^31 elements: 64-bit index arithmetic where sizes need it, and only there."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from oracle import reference
from running import run, shaped

from tilewright.dsl import writer
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families import Family, by_name, fitting
from tilewright.dsl.lowering import Launch
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.target import Shape, Target
from tilewright.dsl.writer import FAR, index_type
from tilewright.runtime import Context

CPU = Target(Shape.CPU, 2, 32, 16, 4096, 32 << 10, False, 1, "fma(a, b, c)", True, True)
GPU = Target(Shape.GPU, 132, 16, 64, 1024, 100 << 10, True, 32, "fma(a, b, c)", True, True)
BOTH = pytest.mark.parametrize("target", [CPU, GPU], ids=["cpu", "gpu"])
OVER = 2**31 + 1000

NEXT = "op next(x[N]: u8) -> y[N]: u8:\n    y[n] = x[n] + u8(1)"
BIAS = "op bias(x[N,C]: u8, b[C]: u8) -> y[N,C]: u8:\n    y[n,c] = x[n,c] + b[c]"
TURNED = "op turned(x[N,C]: u8) -> y[C,N]: u8:\n    y[c,n] = x[n,c]"
TOTAL = "op total(x[N]: u8) -> s[]: i64:\n    s[] = sum(n) i64(x[n])"
ROWS = "op rows(x[N,C]: u8) -> s[N]:\n    s[n] = max(c) f32(x[n,c])"
COLUMNS = "op columns(x[N,C]) -> s[C]:\n    s[c] = sum(n) x[n,c]"
POOL = """op pool(x[N,C,H,W] pad -inf) -> y[N,C,P,Q]:
    P = (H - 1) / 2 + 1
    Q = (W - 1) / 2 + 1
    y[n,c,p,q] = max(r:3,s:3) x[n,c,2*p+r-1,2*q+s-1]"""
GEMM = "op gemm(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]"
GEMM_TURNED = "op gemm(a[M,K], b[N,K]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[n,k]"
CONV = """op conv(x[N,C,H,W], w[O,C,R,S]) -> y[N,O,P,Q]:
    P = H
    Q = W
    y[n,o,p,q] = sum(c,r,s) x[n,c,p+r-1,q+s-1] * w[o,c,r,s]"""

Shapes = dict[str, tuple[int, ...]]
WIDE: list[tuple[str, Shapes]] = [
    (NEXT, {"x": (OVER,)}),
    (BIAS, {"x": (2**31 // 1000 + 5, 1000), "b": (1000,)}),
    (TURNED, {"x": (70000, 40000)}),
    (TOTAL, {"x": (OVER,)}),
    (ROWS, {"x": (70000, 40000)}),
    (COLUMNS, {"x": (70000, 40000)}),
    (COLUMNS, {"x": (40, 70000000)}),
    (POOL, {"x": (64, 512, 300, 300)}),
    (GEMM, {"a": (70000, 40000), "b": (40000, 80)}),
    (GEMM, {"a": (50000, 64), "b": (64, 50000)}),
    (GEMM_TURNED, {"a": (16, 150_000_000), "b": (48, 150_000_000)}),
    (CONV, {"x": (64, 512, 300, 300), "w": (8, 512, 3, 3)}),
]
NARROW: list[tuple[str, Shapes]] = [
    (NEXT, {"x": (2**31 - 2**21,)}),
    (BIAS, {"x": (2000, 1000), "b": (1000,)}),
    (TURNED, {"x": (40000, 40000)}),
    (ROWS, {"x": (40000, 40000)}),
    (COLUMNS, {"x": (40000, 40000)}),
    (POOL, {"x": (8, 512, 300, 300)}),
    (GEMM, {"a": (30000, 40000), "b": (40000, 80)}),
    (CONV, {"x": (8, 512, 300, 300), "w": (8, 512, 3, 3)}),
]


def kernels(program: Program, target: Target, seeds: int = 4) -> Iterator[tuple[str, Launch]]:
    """The kernels of every family that fits: its default and some configurations at random.

    Those of wide programs that see narrow tensors alone (a combination of partial sums) are left out.
    """
    wide = index_type(program) == "long"
    for family in fitting(program, target):
        space, rng = family.space(program, target), random.Random(0)
        chosen = [family.default(program, target), *(space.sample(rng) for _ in range(seeds))]
        for configuration in dict.fromkeys(c for c in chosen if c is not None):
            lowering = family.lower(program, target, configuration)
            spans = {s.name: s.size for s in lowering.scratch} | {t.name: t.span for t in program.tensors.values()}
            for launch in lowering.launches:
                if not wide or max(spans[a] for a in launch.arguments) >= FAR:
                    yield f"{family.name} ({configuration}) {launch.kernel}", launch


def code(launch: Launch) -> list[str]:
    """The lines of a launch's own kernel (a source may hold several) without comments."""
    lines = [line.strip() for line in launch.source.splitlines() if not line.strip().startswith("//")]
    (first,) = (n for n, line in enumerate(lines) if f" {launch.kernel}(" in line)
    rest = lines[first + 1 :]
    after = next((n for n, line in enumerate(rest) if line.startswith(("__kernel", "__attribute__"))), len(rest))
    return rest[:after]


_LOOP = re.compile(r"for \(int (\w+) = [^;]*; \w+ <=? (\d+);")
_BOUNDED = re.compile(r"(?:const int |, )(\w+) = [\w ]+ % (\d+)")
_FIXED = re.compile(r"const int (\w+) = (\d+);")
_DECLARED = re.compile(r"\bint (\w+) = ")
_ITEM = re.compile(r"[ ,](\w+) = (?:\(int\))?get_global_id\((\d)\)")
_LOCAL = 1024
"""More than any work-group has items; variables made of local ids are below it."""


def overflowing(launch: Launch) -> list[str]:
    """Products of an `int` variable with a number that an `int` may not hold.

    Not of loop indices (``i_n``): their type follows from the ranges of all addresses.
    """
    text = "\n".join(code(launch))
    bounds = dict.fromkeys(_DECLARED.findall(text), _LOCAL)
    bounds |= {name: int(n) for name, n in (*_LOOP.findall(text), *_BOUNDED.findall(text), *_FIXED.findall(text))}
    bounds |= {name: launch.global_size[int(d)] for name, d in _ITEM.findall(text) if int(d) < len(launch.global_size)}
    longs = set(re.findall(r"\blong (\w+)\b", text))
    found = []
    for name, most in bounds.items():
        if name in longs or name.startswith("i_"):
            continue
        for number in re.findall(rf"\b(\d+)\s?\*\s?{name}\b", text) + re.findall(rf"\b{name}\s?\*\s?(\d+)\b", text):
            if int(number) * most >= 2**31 > int(number):
                found.append(f"{name} * {number}")
    return found


def constant_overflows(launch: Launch) -> list[str]:
    """Products of two numbers that C computes as `int`."""
    pairs = re.findall(r"\(?\b(\d+)\b\)? \* \b(\d+)\b", "\n".join(code(launch)))
    return [f"{a} * {b}" for a, b in pairs if int(a) * int(b) >= 2**31 and max(int(a), int(b)) < 2**31]


@BOTH
@pytest.mark.parametrize(("text", "shapes"), WIDE)
def test_wide_programs_index_with_long(text: str, shapes: Shapes, target: Target) -> None:
    program = parse_op(text).specialise(shapes)
    assert index_type(program) == "long"
    for name, launch in kernels(program, target):
        for line in code(launch):
            if re.search(r"get_(global|group)_id", line):
                assert re.match(r"(const )?long\b|(__global|const __global)", line), f"{name}: {line}"
            assert not re.match(r"for \(int i_\w+ = ", line), f"{name}: {line}"
            assert "(int)get_g" not in line, f"{name}: {line}"
        assert not overflowing(launch), name
        assert not constant_overflows(launch), name


@BOTH
@pytest.mark.parametrize(("text", "shapes"), NARROW)
def test_narrow_programs_index_with_int(text: str, shapes: Shapes, target: Target) -> None:
    program = parse_op(text).specialise(shapes)
    assert index_type(program) == "int"
    # packing may hold more elements than any tensor has; nothing else may
    for name, launch in kernels(program, target):
        if "contract" not in name:
            assert not any(re.search(r"\bu?long\b", line) for line in code(launch)), name
        assert not overflowing(launch), name
        assert not constant_overflows(launch), name
    (first, launch), *_ = kernels(program, target, 0)
    assert not any(re.search(r"\bu?long\b", line) for line in code(launch)), first


def laid(text: str, shapes: Shapes, strides: Mapping[str, tuple[int, ...]]) -> Program:
    made = parse_op(text).specialise(shapes)

    def place(t: Tensor) -> Tensor:
        return replace(t, strides=strides.get(t.name, t.strides))

    return replace(made, inputs=tuple(map(place, made.inputs)), outputs=tuple(map(place, made.outputs)))


@BOTH
def test_few_elements_far_apart_need_long_too(target: Target) -> None:
    program = laid(BIAS, {"x": (3, 5), "b": (5,)}, {"x": (2**30, 1)})
    assert index_type(program) == "long"
    for name, launch in kernels(program, target):
        assert any("long" in line for line in code(launch)), name
        assert not overflowing(launch), name


def test_what_makes_a_program_wide() -> None:
    def kind(text: str, shapes: Shapes, **sizes: int) -> str:
        return index_type(parse_op(text).specialise(shapes, sizes=sizes))

    assert kind(NEXT, {"x": (FAR - 1,)}) == "int"
    assert kind(NEXT, {"x": (FAR,)}) == "long"
    repeated = "op repeated(x[N]) -> y[N,M]:\n    y[n,m] = x[n]"
    assert kind(repeated, {"x": (3,)}, M=5) == "int"
    assert kind(repeated, {"x": (3,)}, M=10**9) == "long", "the output is large, the input is not"
    outer = "op outer(x[N], y[M]) -> s[]:\n    s[] = sum(n,m) x[n] * y[m]"
    assert kind(outer, {"x": (70000,), "y": (70,)}) == "int"
    assert kind(outer, {"x": (70000,), "y": (70000,)}) == "long", "the reduction is large, no tensor is"
    spread = "op spread(x[N]) -> y[M]:\n    y[m] = x[70000*m]"
    assert kind(spread, {"x": (1000,)}, M=10) == "int"
    assert kind(spread, {"x": (1000,)}, M=100_000) == "long", "the index is large, no tensor is"
    assert index_type(parse_op(NEXT).specialise({"x": (5,)}), also=FAR) == "long"
    assert index_type(parse_op(NEXT).specialise({"x": (0,)})) == "int"


@pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
@pytest.mark.parametrize("text", ["y[m] = x[70000*m]", "y[m] = sum(k:2) x[70000*m+k]"])
def test_indices_that_leave_32_bits_read_the_pad_value(ctx: Context, text: str, shape: Shape) -> None:
    made = parse_op(f"op spread(x[N] pad 7) -> y[M]:\n    {text}").specialise({"x": (1000,)}, sizes={"M": 100_000})
    x = np.arange(1, 1001, dtype=np.float32)
    target = shaped(ctx.device.target, shape)
    expected = reference(made, {"x": x})["y"]
    for family in fitting(made, target):
        found = run(ctx, family, made, target, family.default(made, target), {"x": x})["y"]
        np.testing.assert_array_equal(found, expected)


# --- running ----------------------------------------------------------------------------------------------------------


def needed_memory(ctx: Context, nbytes: int, largest: int) -> None:
    """Skip the test where the device or the machine has less."""
    if ctx.device.max_allocation < largest:
        pytest.skip(f"needs {largest} bytes in one buffer, {ctx.device.name} allows {ctx.device.max_allocation}")
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = ctx.device.global_memory
    available = min(free, ctx.device.global_memory)
    if available < nbytes + (2 << 30):
        pytest.skip(f"needs {nbytes >> 20} MiB of memory and some to spare, {available >> 20} MiB are available")


@pytest.mark.parametrize("family", ["map", "naive"])
def test_more_than_2_31_elements_are_computed(ctx: Context, family: str) -> None:
    needed_memory(ctx, 2 * OVER, OVER)
    made, target = parse_op(NEXT).specialise({"x": (OVER,)}), ctx.device.target
    lowering = by_name(family).lower(made, target, by_name(family).default(made, target))
    x, y = ctx.allocate(OVER), ctx.allocate(OVER)
    try:
        ctx.fill(x, 5, DType.U8)
        ctx.fill(y, 0, DType.U8)
        places = {0: 11, 2**31 - 2: 12, 2**31 + 7: 13, OVER - 1: 14}  # on either side of what an int reaches
        for at, value in places.items():
            ctx.write(x, np.array([value], np.uint8), at)
        ctx.enqueue([ctx.bind(launch, {"x": x, "y": y}) for launch in lowering.launches])
        for at, value in places.items():
            assert ctx.read(y, (1,), np.uint8, at)[0] == value + 1
        for start in range(0, OVER, 1 << 28):
            part = ctx.read(y, (min(1 << 28, OVER - start),), np.uint8, start)
            odd = np.flatnonzero(part != 6) + start
            assert set(odd) <= places.keys()
    finally:
        x.release()
        y.release()
        ctx.trim()


def test_more_than_2_31_elements_are_summed(ctx: Context) -> None:
    needed_memory(ctx, OVER, OVER)
    made, target = parse_op(TOTAL).specialise({"x": (OVER,)}), ctx.device.target
    family: Family = by_name("reduce")
    lowering = family.lower(made, target, family.default(made, target))
    x, s = ctx.allocate(OVER), ctx.allocate(8)
    scratch = {t.name: ctx.allocate(t.size * t.dtype.itemsize) for t in lowering.scratch}
    try:
        ctx.fill(x, 1, DType.U8)
        ctx.write(x, np.array([101], np.uint8), OVER - 1)
        ctx.enqueue([ctx.bind(launch, {"x": x, "s": s, **scratch}) for launch in lowering.launches])
        assert ctx.read(s, (), np.int64) == OVER + 100
    finally:
        x.release()
        ctx.trim()


@pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
def test_long_kernels_compute_what_int_kernels_do(ctx: Context, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that large tensors get, on small ones."""
    target, rng = shaped(ctx.device.target, shape), np.random.default_rng(0)
    cases: list[tuple[str, Shapes]] = [
        (BIAS, {"x": (37, 19), "b": (19,)}),
        (TURNED, {"x": (37, 50)}),
        (ROWS, {"x": (9, 301)}),
        (COLUMNS, {"x": (123, 33)}),
        (POOL, {"x": (2, 5, 15, 17)}),
        (GEMM, {"a": (33, 29), "b": (29, 50)}),
        (CONV, {"x": (2, 5, 9, 11), "w": (7, 5, 3, 3)}),
    ]
    monkeypatch.setattr(writer, "FAR", 1)
    for text, shapes in cases:
        made = parse_op(text).specialise(shapes)
        assert index_type(made) == "long"
        arrays = {t.name: rng.integers(0, 20, t.shape).astype(t.dtype.numpy) for t in made.inputs}
        expected = reference(made, arrays)
        for family in fitting(made, target):
            space, seeds = family.space(made, target), random.Random(1)
            for configuration in (family.default(made, target), space.sample(seeds)):
                assert configuration is not None
                found, name = run(ctx, family, made, target, configuration, arrays), f"{family.name}: {configuration}"
                for t in made.outputs:
                    np.testing.assert_array_equal(found[t.name], expected[t.name], err_msg=name)


@BOTH
@pytest.mark.parametrize(
    ("text", "shapes"),
    [(NEXT, {"x": (0,)}), (BIAS, {"x": (0, 5), "b": (5,)}), (TOTAL, {"x": (0,)}), (GEMM, {"a": (3, 0), "b": (0, 4)})],
)
def test_no_elements_at_all(text: str, shapes: Shapes, target: Target) -> None:
    program = parse_op(text).specialise(shapes)
    assert index_type(program) == "int"
    for _, launch in kernels(program, target):
        assert all(n >= 0 for n in launch.global_size)
