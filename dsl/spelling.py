"""How types, constants, functions and conversions are spelled in OpenCL C, at any vector width.

Values in registers: f16 and bf16 are `float`; a truth value is an `int` that is 0 or 1 in scalar code, and an `int<W>`
mask whose lanes are 0 or -1 in vector code.
"""

from __future__ import annotations

import math

from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import CONSTANT, FUNCTIONS, Result

SMALL = (DType.I8, DType.I16, DType.U8, DType.U16)
"""Types that C computes as int in scalar code."""
SIGNED = {1: "char", 2: "short", 4: "int", 8: "long"}
"""The signed type by its bytes: what comparisons of vectors give."""
_MANTISSA = {4: 24, 8: 53}


def vector_type(dtype: DType, width: int) -> str:
    """The C type of a value in registers: `float` for width 1, `float8` for width 8; f16 and bf16 are floats there."""
    name = {DType.F16: "float", DType.BF16: "float", DType.BOOL: "int"}.get(dtype, dtype.opencl)
    return name if width == 1 else f"{name}{width}"


def register_size(dtype: DType) -> int:
    """Bytes per element of a value in registers."""
    return 4 if dtype in (DType.F16, DType.BF16, DType.BOOL) else dtype.itemsize


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of the given type, exact and free of locale or sign surprises."""
    if dtype is DType.BOOL:
        return "1" if value else "0"
    if not dtype.is_float:
        return _integer(int(value), dtype)
    if math.isnan(value):
        text = "NAN"
    elif math.isinf(value):
        text = "INFINITY" if value > 0 else "-INFINITY"
    elif dtype is DType.F64:
        text = float(value).hex()
    else:
        text = f"{float(value)!r}f"
    return f"({vector_type(dtype, 1)})({text})" if dtype is DType.F64 or text.startswith("-") else text


def _integer(value: int, dtype: DType) -> str:
    suffix = {DType.I64: "L", DType.U64: "UL", DType.U32: "u"}.get(dtype, "")
    if dtype in (DType.I32, DType.I64) and value == -(2 ** (8 * dtype.itemsize - 1)):
        return f"({value + 1}{suffix} - 1)"
    return f"({value}{suffix})"


def spelled(
    function: str, args: list[str], operand: DType, width: int, helpers: dict[str, str], fast: bool = False
) -> str:
    """A function of the table applied to arguments of the type `operand`; `helpers` gets the functions it calls."""
    f = FUNCTIONS[function]
    template = f.spelled(operand, fast)
    if not f.needs_helper(template):
        return f"({_filled(template, operand, width).format(*args)})"
    name = f"tw_{function}_{vector_type(operand, width)}"
    if f.by_lane and width > 1:
        scalar = _helper(function, template, operand, 1, helpers)
        lanes = (", ".join(f"{letter}.s{lane:x}" for letter in "abc"[: f.arity]) for lane in range(width))
        vector = vector_type(operand, width)
        body = f"return ({vector})({', '.join(f'{scalar}({lane})' for lane in lanes)});"
        helpers[name] = f"static inline {vector} {name}({_parameters(vector, f.arity)}) {{ {body} }}"
    else:
        _helper(function, template, operand, width, helpers)
    return f"{name}({', '.join(args)})"


def _helper(function: str, template: str, operand: DType, width: int, helpers: dict[str, str]) -> str:
    """Write the helper function that computes `function`; gives its name."""
    f = FUNCTIONS[function]
    vector = vector_type(operand, width)
    name = f"tw_{function}_{vector}"
    returns = vector
    if f.result is Result.BOOL:
        returns = "int" if width == 1 else f"{SIGNED[register_size(operand)]}{width}"
    body = _filled(template, operand, width).format(*"abc"[: f.arity])
    body = body if "return" in template else f"return {body};"
    helpers[name] = f"static inline {returns} {name}({_parameters(vector, f.arity)}) {{ {body} }}"
    return name


def _parameters(vector: str, count: int) -> str:
    return ", ".join(f"{vector} {letter}" for letter in "abc"[:count])


def _filled(template: str, operand: DType, width: int) -> str:
    """A spelling with everything but the arguments put in."""
    size = register_size(operand)
    lanes = "" if width == 1 else str(width)
    vector = vector_type(operand, width)
    # C computes small scalars as int, so that their unsigned counterpart is uint
    whole = SIGNED[size if width > 1 else max(size, 4)]
    unsigned = f"u{whole}{lanes}"
    cast = width == 1 and not operand.is_float
    names = {
        "{t}": vector,
        "{n}": f"int{lanes}",
        "{T}": f"({vector})" if cast else f"as_{vector}",
        "{U}": f"({unsigned})" if cast else f"as_{unsigned}",
        "{I}": f"({whole}{lanes})" if cast else f"as_{whole}{lanes}",
        "{bits}": str(8 * size),
        "{mask}": str(8 * size - 1),
        "{magnitude}": f"({unsigned})({hex(2 ** (8 * size - 1) - 1)}u{'L' if size == 8 else ''})",
    }
    for name, text in names.items():
        template = template.replace(name, text)
    return CONSTANT.sub(
        lambda m: f"({unsigned if m[2] else vector})({literal(float(m[1]), operand)})",
        template,
    )


def saturated(text: str, source: DType, to: DType, width: int, helpers: dict[str, str]) -> str:
    """A float as an integer: towards zero, NaN as 0, what is out of range as the end of the range."""
    given, made = vector_type(source, width), vector_type(to, width)
    size, bits = register_size(source), 8 * to.itemsize - (0 if to.is_unsigned else 1)
    low, high = (0 if to.is_unsigned else -(2**bits)), 2**bits
    name = f"tw_{made}_of_{given}"
    into = f"({made})" if width == 1 else f"convert_{made}"

    def constant(value: int, dtype: DType) -> str:
        return f"({vector_type(dtype, width)})({literal(value, dtype)})"

    zero, least = constant(0, source), constant(low, source)
    body = f"a = (a != a) ? {zero} : a; "
    if bits <= _MANTISSA[size]:  # the largest integer is a float
        most = constant(high - 1, source)
        body += f"a = (a < {least}) ? {least} : a; return {into}((a > {most}) ? {most} : a);"
    else:
        above, below = f"(a >= {constant(high, source)})", f"(a < {least})"
        mask = "" if width == 1 or size == to.itemsize else f"convert_{SIGNED[to.itemsize]}{width}"
        body += f"const {made} r = {into}(({above} || {below}) ? {zero} : a); "
        body += f"return {mask}{above} ? {constant(high - 1, to)} : ({mask}{below} ? {constant(low, to)} : r);"
    helpers[name] = f"static inline {made} {name}({given} a) {{ {body} }}"
    return f"{name}({text})"
