"""Writes OpenCL C: indented lines, literals, addresses, and expressions as scalar or vector code.

Every family goes through here, so that types, NaN rules and name safety hold everywhere. All names in the source are
generated: tensors are `t0, t1, ...` style arguments prefixed by `g_`, loop variables `i_<name>`; nothing that a user
wrote reaches OpenCL C except as digits or as a checked identifier behind such a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tilewright.dsl.affine import Affine
from tilewright.dsl.dtypes import DType
from tilewright.dsl.functions import FUNCTIONS
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Tensor,
)


class Source:
    """Lines of OpenCL C with indentation."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        """Append one line (or several, split at newlines) at the current depth."""
        for part in text.split("\n"):
            self._lines.append("    " * self._depth + part if part else "")

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """`header {` ... `}` around what is written inside; an empty header gives a bare scope."""
        self.line(f"{header} {{" if header else "{")
        self._depth += 1
        yield
        self._depth -= 1
        self.line("}")

    @contextmanager
    def loop(self, variable: str, count: int, step: int = 1, ctype: str = "int", unroll: bool = False) -> Iterator[None]:
        """A counting loop from 0 to `count`."""
        if unroll:
            self.line("#pragma unroll")
        with self.block(f"for ({ctype} {variable} = 0; {variable} < {count}; {variable} += {step})"):
            yield

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def vector_type(dtype: DType, width: int) -> str:
    """`float` for width 1, `float8` for width 8."""
    return dtype.opencl if width == 1 else f"{dtype.opencl}{width}"


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of the given type, exact and free of locale or sign surprises."""
    if dtype is DType.BOOL:
        return "1" if value else "0"
    if not dtype.is_float:
        return {DType.I64: f"({int(value)}L)", DType.U64: f"({int(value)}UL)"}.get(dtype, f"({int(value)})")
    if math.isnan(value):
        text = "NAN"
    elif math.isinf(value):
        text = "INFINITY" if value > 0 else "-INFINITY"
    elif dtype is DType.F64:
        text = float(value).hex()
    else:
        text = f"{float(value)!r}f"
    return f"({dtype.opencl})({text})" if dtype is not DType.F32 or text.startswith("-") else text


def affine(a: Affine, names: Mapping[str, str]) -> str:
    """An index expression in C; `names` gives the C variable of each index."""
    return str(a.substitute({})) if not a.terms else str(_renamed(a, names))


def _renamed(a: Affine, names: Mapping[str, str]) -> Affine:
    return Affine(tuple((names[name], c) for name, c in a.terms), a.constant)


def in_range(index: tuple[Affine, ...], tensor: Tensor, dimensions: tuple[int, ...], names: Mapping[str, str]) -> str:
    """C condition that `index` lies within the tensor in the given dimensions (one unsigned comparison each)."""
    tests = [f"(uint)({affine(index[d], names)}) < {tensor.shape[d]}u" for d in dimensions]
    return " && ".join(tests) if tests else "1"


def index_type(program: Program) -> str:
    """`int`, or `long` where an address or an index of the program needs more than 31 bits."""
    reach = max((t.span for t in program.tensors.values()), default=0)
    count = max((math.prod(i.extent for i in s.indices) for s in program.statements), default=0)
    return "int" if max(reach, count) < 2**31 else "long"


def argument(tensor: str) -> str:
    """The kernel argument that holds a tensor or a scratch buffer."""
    return f"g_{tensor}"


def signature(kernel: str, program: Program, writes: tuple[str, ...], extra: tuple[str, ...] = ()) -> str:
    """`__kernel void ...(...)`: inputs const, each pointer restrict; `extra` are whole parameter texts."""
    parameters = []
    for t in program.tensors.values():
        const = "" if t.name in writes else "const "
        parameters.append(f"__global {const}{t.dtype.opencl}* restrict {argument(t.name)}")
    return f"__kernel void {kernel}({', '.join((*parameters, *extra))})"


@dataclass
class Expressions:
    """Renders expressions at one vector width.

    ``read`` gives the C text of a tensor read at that width (already broadcast if it is scalar), ``reduce`` the
    variable that holds a finished reduction, ``names`` the C variable of each index. ``helpers`` collects the helper
    functions used; their text goes in front of the kernel.
    """

    read: Callable[[Read], str]
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    reduce: Callable[[Reduce], str] | None = None
    width: int = 1
    helpers: dict[str, str] = field(default_factory=dict)

    def __call__(self, e: Expr) -> str:
        match e:
            case Const():
                return self.splat(literal(e.value, e.dtype), e.dtype)
            case Read():
                return self.read(e)
            case Inside():
                every = tuple(range(len(e.index)))
                return f"({in_range(e.index, self.tensors[e.tensor], every, self.names)})"
            case IndexValue():
                return self.splat(f"({e.dtype.opencl})({affine(e.index, self.names)})", e.dtype)
            case Reduce():
                if self.reduce is None:
                    raise ValueError("a reduction reached code that renders pointwise expressions only")
                return self.reduce(e)
            case Cast():
                return self._cast(e)
            case Call():
                return self._call(e)

    def splat(self, scalar: str, dtype: DType) -> str:
        """A scalar as a value of the current width."""
        return scalar if self.width == 1 else f"({vector_type(dtype, self.width)})({scalar})"

    def _cast(self, e: Cast) -> str:
        inner = self(e.arg)
        if e.arg.dtype is e.dtype:
            return inner
        if e.dtype is DType.BOOL:
            return f"({inner} != 0)"
        if self.width == 1:
            return f"({e.dtype.opencl})({inner})"
        return f"convert_{vector_type(e.dtype, self.width)}({inner})"

    def _call(self, e: Call) -> str:
        function = FUNCTIONS[e.function]
        args = [self(a) for a in e.args]
        result = vector_type(e.dtype, self.width)
        if not function.repeats:
            return f"({function.spelling.format(*args, t=result)})"
        operand = vector_type(e.args[-1].dtype, self.width)
        name = f"tw_{e.function}_{operand}"
        parameters = ", ".join(f"{operand} {letter}" for letter in "abc"[: function.arity])
        returns = operand if e.dtype is not DType.BOOL else "int" if self.width == 1 else f"int{self.width}"
        body = function.spelling.format(*"abc"[: function.arity], t=operand)
        self.helpers[name] = f"static inline {returns} {name}({parameters}) {{ return {body}; }}"
        return f"{name}({', '.join(args)})"


def scalar_read(
    e: Read, tensor: Tensor, names: Mapping[str, str], dimensions: tuple[int, ...], prefix: str = ""
) -> str:
    """One element, with the range check that the given dimensions need."""
    value = f"{argument(e.tensor)}[{prefix}{affine(tensor.address(e.index), names)}]"
    if not dimensions:
        return value
    return f"(({in_range(e.index, tensor, dimensions, names)}) ? {value} : {literal(tensor.pad, tensor.dtype)})"


def vector_read(
    e: Read, tensor: Tensor, names: Mapping[str, str], dimensions: tuple[int, ...], along: str, width: int
) -> str:
    """`width` elements along index `along`: one load, a broadcast or a gather, by the stride.

    The checked dimensions must not depend on `along` unless the stride is 0 there: a vector is in range as a whole.
    """
    address = tensor.address(e.index)
    stride = address.coefficient(along)
    vector = vector_type(tensor.dtype, width)
    if stride == 0 or width == 1:
        value = scalar_read(e, tensor, names, dimensions)
        return value if width == 1 else f"({vector})({value})"
    start = affine(address, names)
    pointer = argument(e.tensor)
    if stride == 1:
        value = f"vload{width}(0, {pointer} + {start})"
    else:
        lanes = ", ".join(f"{pointer}[{start} + {lane * stride}]" for lane in range(width))
        value = f"({vector})({lanes})"
    if not dimensions:
        return value
    pad = f"({vector})({literal(tensor.pad, tensor.dtype)})"
    return f"(({in_range(e.index, tensor, dimensions, names)}) ? {value} : {pad})"
