"""Inlined versions of OpenCL's built-in functions, for drivers that call theirs.

The PoCL of PyPI compiles every built-in function, even `vload8` and `sqrt`, to a call that is never inlined. A call
per element keeps loops from being vectorised, and a call inside a register tile spills all of its registers: measured
against the versions below, `vload8` costs a GEMM a factor of 5 and `sqrt` or `tanh` a pointwise kernel 10 to 80.

`prelude(source)` gives the text to put before a source: definitions of exactly those functions the source calls, and
macros that rename the calls. Functions of doubles and whatever is not listed here keep going to the driver's library.

Errors: sqrt, floor, ceil, trunc, rint, fmax, fmin and fma are exact; exp, exp2, log, log2, tanh and erf are within 2
units in the last place. NaN, infinities and signed zeros follow IEEE 754. The coefficients are least-squares fits,
reweighted towards the smallest largest relative error and computed in double precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_WIDTHS = (1, 2, 4, 8, 16)
_ELEMENTS = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "double")
_INLINE = "static inline __attribute__((overloadable, always_inline)) "
_CALL = re.compile(r"\b(vload|vstore|vload_half|vstore_half|[a-z]+2?)(\d*)\s*\(")


@dataclass(frozen=True)
class _Types:
    """The names of the vector types of one width."""

    width: int

    def of(self, element: str) -> str:
        return element if self.width == 1 else f"{element}{self.width}"

    def lanes(self, call: str) -> str:
        """`call` (with {} for an operand) applied to each lane of x."""
        if self.width == 1:
            return call.format("x")
        return f"({self.of('float')})(" + ", ".join(call.format(f"x.s{lane:x}") for lane in range(self.width)) + ")"


def prelude(source: str) -> str:
    """What to put before `source`; '' if it calls nothing that is listed here."""
    called = {(match[1], match[2]) for match in _CALL.finditer(source)}
    names = {name + number for name, number in called}
    widths = [width for width in _WIDTHS if width == 1 or re.search(rf"[a-z]{width}\b", source)]
    parts: list[str] = []
    renamed: list[str] = []
    for name, number in sorted(called):
        if name in ("vload", "vstore") and number.isdigit() and int(number) in _WIDTHS:
            parts.append(_memory(name, int(number), source))
            renamed.append(name + number)
        elif name in ("vload_half", "vstore_half") and int(number or 1) in _WIDTHS:
            parts.append(_half_memory(name, int(number or 1)))
            renamed.append(name + number)
    wanted = _with_needs([name for name in _FLOAT if name in names])
    for name in wanted:
        parts += [_function(name, _Types(width)) for width in widths]
        if "double" in source and name in names:
            parts += [_forward(name, _Types(width).of("double")) for width in widths]
    renamed += [name for name in wanted if name in names]
    macros = [f"#undef {name}\n#define {name} twp_{name}" for name in renamed]
    if "prefetch" in names:
        macros.append(_PREFETCH)
    if not macros:
        return ""
    return "\n".join([*parts, *macros, "#line 1", ""])


def prefetching(source: str) -> str:
    """The compiler's own prefetch instruction for a source that calls `prefetch`, as `prelude` puts it; else ''.

    PoCL's function does nothing; that of Intel's CPU driver is a call, which spills all vector registers.
    """
    return f"{_PREFETCH}\n#line 1\n" if _PREFETCH_CALL.search(source) else ""


_PREFETCH_CALL = re.compile(r"prefetch(?<!\wprefetch)\s*\(")
"""Begins with letters, not with a boundary, so that sources are searched for these: 20 times as fast."""
_PREFETCH = """static inline __attribute__((always_inline)) void twp_prefetch(const __global char* p, size_t n) {
    for (size_t at = 0; at < n; at += 64) __builtin_prefetch(p + at);
}
#undef prefetch
#define prefetch(p, n) twp_prefetch((const __global char*)(p), (n) * sizeof(*(p)))"""


def _spaces(pointer: str, read_only: bool) -> list[str]:
    """A pointee type in every address space in which it may be used."""
    if not read_only:
        return [f"__global {pointer}", f"__local {pointer}", f"__private {pointer}"]
    return [
        f"const __global {pointer}",
        f"const __local {pointer}",
        f"const __private {pointer}",
        f"__constant {pointer}",
    ]


def _memory(name: str, width: int, source: str) -> str:
    """vloadN or vstoreN for the element types named in the source: an access through an unaligned vector type."""
    lines = []
    for element in _ELEMENTS:
        if not re.search(rf"\b{element}(?:{width})?\b", source):
            continue
        unaligned = f"twp_{element}{width}_u"
        declared = f"typedef {element}{width} {unaligned} __attribute__((aligned(sizeof({element}))));"
        lines.append(f"#ifndef TWP_{element}{width}\n#define TWP_{element}{width}\n{declared}\n#endif")
        for space in _spaces(element, name == "vload"):
            place = f"(({space.replace(element, unaligned)}*)(p + o * {width}))"
            if name == "vload":
                lines.append(
                    f"{_INLINE}{element}{width} twp_{name}{width}(size_t o, {space}* p) {{ return *{place}; }}"
                )
            else:
                value = f"{element}{width} v"
                lines.append(f"{_INLINE}void twp_{name}{width}({value}, size_t o, {space}* p) {{ *{place} = v; }}")
    return "\n".join(lines)


def _half_memory(name: str, width: int) -> str:
    """vload_halfN or vstore_halfN by integer arithmetic (rounding to nearest even)."""
    types = _Types(width)
    number = "" if width == 1 else str(width)
    flt, uint, ushort = types.of("float"), types.of("uint"), types.of("ushort")
    unaligned = f"twp_{ushort}_h"
    lines = [
        f"#ifndef TWP_half{width}\n#define TWP_half{width}\n"
        f"typedef {ushort} {unaligned} __attribute__((aligned(2)));\n#endif"
    ]
    if name == "vload_half":
        lines.append(
            f"""{_INLINE}{flt} twp_half_to({ushort} h) {{
    {uint} m = {_convert("h & (ushort)0x7fff", uint)} << 13, s = {_convert("h & (ushort)0x8000", uint)} << 16;
    {uint} f = as_{uint}(as_{flt}(m) * 0x1p112f);
    return as_{flt}(((m >= 0x0f800000u) ? (m | 0x7f800000u) : f) | s);
}}"""
        )
    else:
        # below 2^-14 a half is a multiple of 2^-24: adding 0.5 rounds there and leaves the result in the low bits
        lines.append(
            f"""{_INLINE}{ushort} twp_half_from({flt} x) {{
    {uint} b = as_{uint}(x), m = b & 0x7fffffffu, s = (b >> 16) & 0x8000u;
    {uint} small = as_{uint}(as_{flt}(m) + 0.5f) - 0x3f000000u;
    {uint} normal = (m - 0x38000000u + 0xfffu + ((m >> 13) & 1u)) >> 13;
    {uint} h = (m < 0x38800000u) ? small : normal;
    h = (m >= 0x477ff000u) ? ({uint})(0x7c00u) : h;
    h = (m > 0x7f800000u) ? ({uint})(0x7e00u) : h;
    return {_convert("h | s", ushort)};
}}"""
        )
    for space in _spaces("half", name == "vload_half"):
        place = f"(({space.replace('half', unaligned)}*)p + o)"
        if width > 1:
            place = f"(({space.replace('half', unaligned)}*)(({space.replace('half', 'ushort')}*)p + o * {width}))"
        if name == "vload_half":
            lines.append(f"{_INLINE}{flt} twp_{name}{number}(size_t o, {space}* p) {{ return twp_half_to(*{place}); }}")
        else:
            lines.append(
                f"{_INLINE}void twp_{name}{number}({flt} x, size_t o, {space}* p) {{ *{place} = twp_half_from(x); }}"
            )
    return "\n".join(lines)


def _convert(value: str, to: str) -> str:
    """A conversion without rounding modes; scalars and vectors are spelled differently."""
    return f"__builtin_convertvector({value}, {to})" if to[-1].isdigit() else f"(({to})({value}))"


# Functions of floats. {F} {I} are the float and int types of the width, {r} names the argument type in as_{F}.


def _unary(body: str) -> Callable[[_Types], str]:
    return lambda types: (
        "{F} twp_{name}({F} x) {{\n"
        + body.replace("{", "{{").replace("}", "}}").replace("FLT", types.of("float")).replace("INT", types.of("int"))
        + "\n}}"
    )


def _exact(builtin: str, vector: str = "") -> Callable[[_Types], str]:
    """A function the compiler has an instruction for; `vector` replaces it for vectors, else each lane on its own."""

    def text(types: _Types) -> str:
        body = vector if vector and types.width > 1 else f"    return {types.lanes(builtin + '({})')};"
        return _unary(body)(types)

    return text


def _fma(types: _Types) -> str:
    body = "__builtin_fmaf(x, y, z)" if types.width == 1 else "x * y + z"
    return "{F} twp_{name}({F} x, {F} y, {F} z) {{ return " + body + "; }}"


def _larger(sign: str) -> Callable[[_Types], str]:
    """fmax or fmin: of NaN and another, the other."""
    return lambda _: "{F} twp_{name}({F} x, {F} y) {{ return (x " + sign + " y || x != x) ? y : x; }}"


_SIGN = "INT s = as_INT(x) & (INT)(0x80000000);"
# 2^23 with the sign of x added and taken away rounds to an integer; larger numbers are integers already
_RINT = f"""    {_SIGN}
    FLT big = as_FLT(s | 0x4b000000);
    FLT t = as_FLT((as_INT((x + big) - big) & 0x7fffffff) | s);
    return (as_FLT(as_INT(x) & 0x7fffffff) < 8388608.0f) ? t : x;"""
# e^r = 1 + r + r^2 p(r) for |r| <= ln(2)/2, times 2^n in two steps, because 2^n alone may not be a float. Adding
# 1.5*2^23 rounds to the integer n and leaves it in the low bits, also for NaN, which no conversion to int allows.
_EXP_POLYNOMIAL = """    FLT p = 1.9789279e-4f;
    p = p * r + 1.39457546e-3f; p = p * r + 8.3335042e-3f; p = p * r + 4.166628e-2f;
    p = p * r + 0.16666666f; p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    INT n = as_INT(t) - 0x4b400000, h = n >> 1;
    return p * as_FLT((h + 127) << 23) * as_FLT((n - h + 127) << 23);"""
_EXP = f"""    FLT z = (x > 89.0f) ? (FLT)(89.0f) : x;
    z = (z < -104.0f) ? (FLT)(-104.0f) : z;
    FLT t = z * 1.44269504f + 12582912.0f, k = t - 12582912.0f;
    FLT r = z - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
{_EXP_POLYNOMIAL}"""
_EXP2 = f"""    FLT z = (x > 129.0f) ? (FLT)(129.0f) : x;
    z = (z < -151.0f) ? (FLT)(-151.0f) : z;
    FLT t = z + 12582912.0f, k = t - 12582912.0f;
    FLT r = (z - k) * 0.693147181f;
{_EXP_POLYNOMIAL}"""
# x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f - f^2/2 + f^3 p(f); subnormals are scaled up first
_LOG_START = """    FLT v = (x < 1.17549435e-38f) ? x * 8388608.0f : x;
    INT n = (as_INT(v) - 0x3f3504f3) >> 23;
    FLT f = as_FLT(as_INT(v) - (n << 23)) - 1.0f;
    FLT k = CONVERT + ((x < 1.17549435e-38f) ? (FLT)(-23.0f) : (FLT)(0.0f));
    FLT p = 6.7574196e-2f;
    p = p * f - 0.116943f; p = p * f + 0.11893563f; p = p * f - 0.12403092f; p = p * f + 0.14218548f;
    p = p * f - 0.1666809f; p = p * f + 0.20002167f; p = p * f - 0.25000009f; p = p * f + 0.3333331f;
    FLT z = f * f, q = z * f * p;
"""
_LOG_END = """    y = (x > 0.0f) ? y : ((x == 0.0f) ? (FLT)(-INFINITY) : (FLT)(NAN));
    return (x < INFINITY) ? y : x;"""


def _logarithm(middle: str) -> Callable[[_Types], str]:
    def text(types: _Types) -> str:
        start = _LOG_START.replace("CONVERT", _convert("n", types.of("float")))
        return _unary(start + middle + _LOG_END)(types)

    return text


_LOG = "    FLT y = ((q - k * 2.12194440e-4f) - 0.5f * z + f) + k * 0.693359375f;\n"
_LOG2 = "    FLT y = (q - 0.5f * z) * 1.44269504f + f * 0.44269504f + f + k;\n"
# x + x^3 p(x^2) near zero, elsewhere 1 - 2 / (e^2|x| + 1)
_TANH = f"""    {_SIGN}
    FLT a = as_FLT(as_INT(x) & 0x7fffffff), z = x * x;
    FLT p = -5.7094623e-3f;
    p = p * z + 2.0644102e-2f; p = p * z - 5.3741612e-2f; p = p * z + 0.1333147f; p = p * z - 0.33333284f;
    FLT far = 1.0f - 2.0f / (twp_exp(a + a) + 1.0f);
    return as_FLT(as_INT((a < 0.625f) ? (z * a) * p + a : far) | s);"""
# x p(x^2) near zero, elsewhere 1 - e^q(|x|) with q a fit of ln(erfc)
_ERF = f"""    {_SIGN}
    FLT a = as_FLT(as_INT(x) & 0x7fffffff), z = x * x;
    FLT p = 7.853833e-5f;
    p = p * z - 8.0101844e-4f; p = p * z + 5.1883268e-3f; p = p * z - 2.6853811e-2f; p = p * z + 0.11283585f;
    p = p * z - 0.37612626f; p = p * z + 0.12837917f;
    FLT c = (a > 4.0f) ? (FLT)(4.0f) : a;
    FLT q = -2.0828911e-5f;
    q = q * c + 4.3139674e-4f; q = q * c - 4.1562691e-3f; q = q * c + 2.5080651e-2f; q = q * c - 0.10822044f;
    q = q * c - 0.6334008f; q = q * c - 1.1294885f; q = q * c + 1.6920902e-4f;
    FLT far = 1.0f - twp_exp(q);
    return as_FLT(as_INT((a < 0.95f) ? p * a + a : far) | s);"""

_FLOAT: dict[str, Callable[[_Types], str]] = {
    "fma": _fma,
    "fmax": _larger("<"),
    "fmin": _larger(">"),
    "sqrt": _exact("__builtin_sqrtf"),
    "rint": _exact("__builtin_rintf", _RINT),
    "floor": _exact("__builtin_floorf"),
    "ceil": _exact("__builtin_ceilf"),
    "trunc": _exact("__builtin_truncf"),
    "exp": _unary(_EXP),
    "exp2": _unary(_EXP2),
    "log": _logarithm(_LOG),
    "log2": _logarithm(_LOG2),
    "tanh": _unary(_TANH),
    "erf": _unary(_ERF),
}
_NEEDS = {"tanh": "exp", "erf": "exp"}
_ARGUMENTS = {"fma": 3, "fmax": 2, "fmin": 2}


def _with_needs(names: list[str]) -> list[str]:
    """The functions and those they call, in an order in which each is defined before its use."""
    wanted = {*names, *(_NEEDS[name] for name in names if name in _NEEDS)}
    return [name for name in _FLOAT if name in wanted]


def _function(name: str, types: _Types) -> str:
    return _INLINE + _FLOAT[name](types).format(F=types.of("float"), name=name)


def _forward(name: str, double: str) -> str:
    """The driver's own function for doubles, under the new name."""
    letters = "xyz"[: _ARGUMENTS.get(name, 1)]
    parameters = ", ".join(f"{double} {letter}" for letter in letters)
    return f"{_INLINE}{double} twp_{name}({parameters}) {{ return {name}({', '.join(letters)}); }}"
