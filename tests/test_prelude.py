"""Built-in functions: the driver's, and those put before the source where the driver's are slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.dsl.lowering import Launch
from tilewright.runtime import Context, halves
from tilewright.runtime.prelude import prelude

_VALUES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, 1.5, 2.5, -2.5, 88.7, 89, -103, -105, 1e-38, 1e-40, 1e-45,
           3e38, 8388607.5, -8388608, 127.9, 128, -149, -151, 4, -4.5, 0.625, 0.95, 0.70710677, 1.4142135]  # fmt: skip


def _erf(values: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return np.asarray(erf(values))


@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize(
    ("name", "expected", "ulps"),
    [
        ("sqrt", np.sqrt, 3.0),
        ("rint", np.rint, 0.0),
        ("floor", np.floor, 0.0),
        ("ceil", np.ceil, 0.0),
        ("trunc", np.trunc, 0.0),
        ("exp", np.exp, 4.0),
        ("exp2", np.exp2, 4.0),
        ("log", np.log, 4.0),
        ("log2", np.log2, 4.0),
        ("tanh", np.tanh, 5.0),
        ("erf", _erf, 16.0),
    ],
)
def test_functions_are_exact_to_opencls_limits(
    ctx: Context, name: str, expected: Callable[..., Any], ulps: float, width: int
) -> None:
    random = np.random.default_rng(3)
    parts = [
        np.array(_VALUES),
        random.standard_normal(2000),
        random.standard_normal(2000) * 40,
        random.lognormal(0, 20, 2000),
    ]
    x = np.resize(np.concatenate(parts), 6144).astype(np.float32)
    vector = "float" if width == 1 else f"float{width}"
    source = f"""__kernel void apply(__global const {vector}* x, __global {vector}* y) {{
        y[get_global_id(0)] = {name}(x[get_global_id(0)]);
    }}"""
    buffers = {"x": ctx.allocate(x.nbytes), "y": ctx.allocate(x.nbytes)}
    ctx.write(buffers["x"], x)
    ctx.enqueue([ctx.bind(Launch("apply", source, (6144 // width,), (64,), ("x", "y"), ("y",)), buffers)])
    found = ctx.read(buffers["y"], x.shape, np.float32)
    with np.errstate(all="ignore"):
        exact = expected(x.astype(np.float64))
        rounded = exact.astype(np.float32)
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        unit = np.spacing(np.where(np.isfinite(rounded), np.abs(rounded), np.float32(1)))
        wrong = ~same & ~(np.abs(found - exact) <= ulps * unit) & (np.abs(x) > 1.2e-38)  # subnormals may be flushed
        assert not wrong.any(), (x[wrong][:4], found[wrong][:4], rounded[wrong][:4])


@pytest.mark.parametrize("width", ["", "2", "8"])
def test_halves_are_loaded_and_stored_exactly(ctx: Context, width: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    singles = halves.astype(np.float32)
    with np.errstate(all="ignore"):  # NaN and infinities are among the halves
        between = np.nextafter(singles, np.float32(0)) * np.float32(1.0002)
    both = {"x": ctx.allocate(singles.nbytes), "y": ctx.allocate(singles.nbytes)}
    vector, count = f"float{width}", int(width or 1)
    plain = "a[i]" if not width else f"vload{width}(i, a)"
    keep = "b[i] = {}" if not width else f"vstore{width}({{}}, i, b)"
    load = f"""__kernel void load(__global const half* a, __global float* b) {{
        size_t i = get_global_id(0); {vector} v = vload_half{width}(i, a); {keep.format("v")};
    }}"""
    store = f"""__kernel void store(__global const float* a, __global half* b) {{
        size_t i = get_global_id(0); vstore_half{width}({plain}, i, b);
    }}"""
    size = (halves.size // count,)
    ctx.write(both["x"], halves)
    ctx.enqueue([ctx.bind(Launch("load", load, size, (64,), ("x", "y"), ("y",)), both)])
    np.testing.assert_array_equal(ctx.read(both["y"], singles.shape, np.float32), singles)
    ctx.write(both["x"], between)
    ctx.enqueue([ctx.bind(Launch("store", store, size, (64,), ("x", "y"), ("y",)), both)])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(ctx.read(both["y"], halves.shape, np.float16), between.astype(np.float16))


@pytest.mark.parametrize("element", ["float", "int", "uchar", "long", "double"])
def test_vectors_are_moved_without_alignment(ctx: Context, element: str) -> None:
    if element == "double" and not ctx.device.target.has_f64:
        pytest.skip("this device has no f64")
    dtype = {"float": "f4", "int": "i4", "uchar": "u1", "long": "i8", "double": "f8"}[element]
    x = np.arange(4 * 64 + 1).astype(dtype)
    source = f"""__kernel void move(__global const {element}* x, __global {element}* y) {{
        size_t i = get_global_id(0);
        {element} t[4];
        __local {element} l[5];
        vstore4(vload4(i, x + 1), 0, t);
        vstore4(vload4(0, t), 0, l + 1);
        vstore4(vload4(0, (const __local {element}*)(l + 1)), i, y + 1);
    }}"""
    buffers = {"x": ctx.allocate(x.nbytes), "y": ctx.allocate(x.nbytes)}
    ctx.write(buffers["x"], x)
    ctx.write(buffers["y"], np.zeros_like(x))
    ctx.enqueue([ctx.bind(Launch("move", source, (64,), (1,), ("x", "y"), ("y",)), buffers)])
    np.testing.assert_array_equal(ctx.read(buffers["y"], x.shape, x.dtype), x)


def test_a_source_gets_only_the_functions_it_calls() -> None:
    assert prelude("__kernel void f(__global float* x) { x[0] = x[1] + 1; }") == ""
    text = prelude("__kernel void f(__global float* x) { x[0] = tanh(x[1]) + my_sqrt(1); }")
    assert "#define tanh twp_tanh" in text
    assert "twp_exp(" in text, "tanh is made of exp"
    assert "#define exp" not in text
    assert "sqrt" not in text
    assert "double" not in text
    assert "double twp_tanh(double x) { return tanh(x); }" in prelude("double f(double x) { return tanh(x); }")
    assert text.endswith("#line 1\n"), "errors must name the lines of the source"


def test_aligned_halves_are_moved_at_once(ctx: Context) -> None:
    """What NVIDIA's driver is given for aligned vectors of halves does what the built-in functions do."""
    lines = []
    for width, (x, y) in {2: "ab", 4: "cd", 8: "ef"}.items():
        lines.append(f"vstorea_half{width}(vloada_half{width}(i, {x}) * 1.5f, i, {y});")
    parameters = ", ".join(f"__global const half* {x}, __global half* {y}" for x, y in ("ab", "cd", "ef"))
    plain = f"__kernel void k({parameters}) {{ const int i = get_global_id(0); {' '.join(lines)} }}"
    text = halves.prelude(plain)
    assert text.count("#define") == 6
    assert halves.prelude("vload_half8(0, x); vstore_half(1.0f, 0, x);") == ""
    random = np.random.default_rng(5)
    given = {x: random.standard_normal(32 * width).astype(np.float16) for x, width in (("a", 2), ("c", 4), ("e", 8))}
    buffers = {name: ctx.allocate(2 * 32 * 8) for name in "abcdef"}
    for name, array in given.items():
        ctx.write(buffers[name], array)
    source = plain if ctx.device.name.startswith("nvidia") else text + plain  # there it is put before every source
    ctx.enqueue([ctx.bind(Launch("k", source, (32,), (1,), tuple("abcdef"), tuple("bdf")), buffers)])
    ctx.finish()
    for x, y in ("ab", "cd", "ef"):
        expected = (given[x].astype(np.float32) * np.float32(1.5)).astype(np.float16)
        np.testing.assert_array_equal(ctx.read(buffers[y], given[x].shape, np.float16), expected)
