"""Writes OpenCL C: indented lines, literals, addresses, and expressions as scalar or vector code.

Every family goes through here, so that types, NaN rules and name safety hold everywhere. All names in the source are
generated: tensors become arguments prefixed by `g_`, loop variables `i_<name>`; nothing that a user wrote reaches
OpenCL C except as digits or as a checked identifier behind such a prefix, or in a comment made safe by `comment`.

Values in registers. f16 and bf16 are computed as `float` (loads and stores convert; that needs no extension). A truth
value is an `int` that is 0 or 1 in scalar code, and an `int<W>` mask whose lanes are 0 or -1 in vector code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tilewright.dsl import spelling
from tilewright.dsl.affine import Affine, Term
from tilewright.dsl.dtypes import DType, promote
from tilewright.dsl.functions import FUNCTIONS, Result
from tilewright.dsl.program import (
    Call,
    Cast,
    Computed,
    Const,
    Expr,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
    bounds,
    checked_dimensions,
    children,
    extents,
    walk,
)
from tilewright.dsl.spelling import SIGNED, SMALL, register_size, saturated, spelled

literal = spelling.literal
vector_type = spelling.vector_type

LANE = "<lane>"
"""Pseudo index: the position within a vector. Its coefficient in an address is the stride between lanes."""


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
    def loop(
        self, variable: str, count: int, step: int = 1, ctype: str = "int", unroll: bool = False
    ) -> Iterator[None]:
        """A counting loop from 0 to `count`."""
        if unroll:
            self.line("#pragma unroll")
        with self.block(f"for ({ctype} {variable} = 0; {variable} < {count}; {variable} += {step})"):
            yield

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


# --- names, types and literals --------------------------------------------------------------------------------------


def identifier(name: str) -> str:
    """`name` with everything that C does not allow in an identifier spelled as its code point."""
    return re.sub(r"[^A-Za-z0-9_]", lambda m: f"_{ord(m.group()):x}_", name)


def argument(tensor: str) -> str:
    """The kernel argument that holds a tensor or a scratch buffer."""
    return f"g_{identifier(tensor)}"


def variable(index: str) -> str:
    """The C variable of a loop index."""
    return f"i_{identifier(index)}"


def comment(text: str) -> str:
    """`text` as line comments; backslashes and trigraphs, which could continue a line, are taken out."""
    safe = re.sub(r"[^\x20-\x7e\n]", "?", text).replace("\\", "/").replace("??", "? ?")
    return "\n".join(f"// {line}".rstrip() for line in safe.split("\n"))


def identity(kind: str, dtype: DType) -> str:
    """What a reduction over nothing gives, in the accumulator's type."""
    if kind in ("sum", "prod"):
        return literal(0 if kind == "sum" else 1, dtype)
    if dtype.is_float:
        return literal(-math.inf if kind == "max" else math.inf, dtype)
    if dtype is DType.BOOL:
        return "0" if kind == "max" else "1"
    bits = 8 * dtype.itemsize
    unsigned = dtype.value.startswith("u")
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return literal(low if kind == "max" else high, dtype)


class Names(dict[Term, str]):
    """The C variables of loop indices, for programs with computed index expressions.

    Looked up with a computed term it gives the C expression of it, in scalar code, where a plain dict would fail.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        extents: Mapping[str, int],
        helpers: dict[str, str],
    ) -> None:
        super().__init__()
        self.update(variables)
        self._tensors = tensors
        self._extents = extents
        self._helpers = helpers

    def also(self, variables: Mapping[str, str]) -> Names:
        """The same with other variables for some indices."""
        merged = Names({}, self._tensors, self._extents, self._helpers)
        merged.update(self)
        merged.update(variables)
        return merged

    def leaves_32_bits(self, position: Affine) -> bool:
        """Whether an index expression of loop variables whose extents are known needs more than an `int`."""
        known = {name: n for name, n in self._extents.items() if n > 0}
        return known.keys() >= set(position.names) and leaves_32_bits(position, known)

    def __missing__(self, term: Term) -> str:
        if not isinstance(term, Computed):
            raise KeyError(term)
        text = Expressions(self._read, self, self._tensors, helpers=self._helpers, extents=self._extents)(term.expr)
        return f"(({'long' if _is_wide(term.expr.dtype) else 'int'}){text})"

    def _read(self, e: Read) -> str:
        tensor = self._tensors[e.tensor]
        known = {name: self._extents.get(name, 2**31) for a in e.index for name in a.names}
        return scalar_read(e, tensor, self, checked_dimensions(e.index, tensor.shape, known))


def _is_wide(dtype: DType) -> bool:
    """True for integer types whose values do not all fit an `int`."""
    return dtype in (DType.I64, DType.U32, DType.U64)


Variables = Mapping[str, str] | Names
"""The C variable of each index."""


def affine(a: Affine, names: Variables, cast: str = "") -> str:
    """An index expression in C; `names` gives the C variable of each index, `cast` what is written before each."""
    return str(Affine(tuple((f"{cast}{names[term]}", c) for term, c in a.terms), a.constant))  # type: ignore[index]


def in_range(index: tuple[Affine, ...], tensor: Tensor, dimensions: tuple[int, ...], names: Variables) -> str:
    """C condition that `index` lies within the tensor in the given dimensions (one unsigned comparison each)."""
    tests = []
    for d in dimensions:
        wide = tensor.shape[d] >= 2**31 or any(
            isinstance(t, Computed) and _is_wide(t.expr.dtype) for t in index[d].atoms
        )
        wide = wide or (isinstance(names, Names) and names.leaves_32_bits(index[d]))
        unsigned, suffix = ("ulong", "UL") if wide else ("uint", "u")
        tests.append(f"({unsigned})({affine(index[d], names)}) < {tensor.shape[d]}{suffix}")
    return " && ".join(tests) if tests else "1"


def index_type(program: Program, also: int = 0) -> str:
    """`int`, or `long` where a kernel of the program needs more than 31 bits for an address, an index or a count.

    ``also`` is the largest number that the kernel counts beside these, elements of scratch for instance.
    """
    reach = max((also, *(t.span for t in program.tensors.values())))
    for s in program.statements:
        extent = extents(s)
        outer = math.prod(i.extent for i in s.indices)
        inner = math.prod(n for name, n in extent.items() if all(name != i.name for i in s.indices))
        reach = max(reach, outer, inner, *(abs(end) for a in _places(program, s) for end in a.range(extent)))
    # An index may run past the last element by a tile before it is checked.
    return "int" if reach < FAR else "long"


FAR = 2**31 - 2**20
"""Numbers from which on an `int` may not do."""


def _places(program: Program, s: Statement) -> Iterator[Affine]:
    """Every index expression and every address of a statement's reads."""
    for e in walk(s.value):
        if isinstance(e, Read | Inside):
            yield from (*e.index, program.tensors[e.tensor].address(e.index))


def leaves_32_bits(position: Affine, extent: Mapping[str, int]) -> bool:
    """Whether an index expression has values that an `int` cannot hold (which lie outside most tensors)."""
    return any(abs(end) >= FAR for end in position.range(extent))


def signature(kernel: str, program: Program, writes: tuple[str, ...], extra: tuple[str, ...] = ()) -> str:
    """`__kernel void ...(...)`: inputs const, each pointer restrict; `extra` are whole parameter texts."""
    parameters = []
    for t in program.tensors.values():
        const = "" if t.name in writes else "const "
        parameters.append(f"__global {const}{t.dtype.opencl}* restrict {argument(t.name)}")
    return f"__kernel void {kernel}({', '.join((*parameters, *extra))})"


# --- expressions ----------------------------------------------------------------------------------------------------


@dataclass
class Expressions:
    """Renders expressions at one vector width.

    ``read`` gives the C text of a tensor read at that width (already broadcast if it is scalar), ``reduce`` the
    variable that holds a finished reduction, ``names`` the C variable of each index. ``helpers`` collects the helper
    functions used; their text goes in front of the kernel. In vector code the position of a lane is the pseudo index
    `LANE`. With ``source``, reads and values that occur several times are kept in variables declared there.
    """

    read: Callable[[Read], str]
    names: Variables
    tensors: Mapping[str, Tensor]
    reduce: Callable[[Reduce], str] | None = None
    width: int = 1
    helpers: dict[str, str] = field(default_factory=dict)
    source: Source | None = None
    prefix: str = "v"
    """First letters of the variables declared in ``source``."""
    extents: Mapping[str, int] = field(default_factory=dict)
    """Extents of indices, where they are known: quotients of what cannot be negative are plain divisions."""
    fast: bool = False
    """True for `Program.fast_math`."""
    _known: dict[Expr, str] = field(default_factory=dict)
    _uses: dict[Expr, int] = field(default_factory=dict)

    def __call__(self, e: Expr) -> str:
        if self.source is not None and e not in self._uses:
            self._count(e)
        return self._render(e)

    def _count(self, e: Expr) -> None:
        self._uses[e] = self._uses.get(e, 0) + 1
        if self._uses[e] == 1 and not isinstance(e, Reduce):
            for c in children(e):
                self._count(c)

    def _render(self, e: Expr) -> str:
        if e in self._known:
            return self._known[e]
        text = self._text(e)
        keep = isinstance(e, Read) or (isinstance(e, Call | Cast) and self._uses.get(e, 0) > 1)
        if self.source is None or not keep:
            return text
        name = f"{self.prefix}{len(self._known)}"
        self.source.line(f"const {vector_type(e.dtype, self.width)} {name} = {text};")
        self._known[e] = name
        return name

    def _text(self, e: Expr) -> str:
        match e:
            case Const():
                return self._constant(e)
            case Read():
                return self.read(e)
            case Inside():
                return self._inside(e)
            case IndexValue():
                return self._index_value(e)
            case Reduce():
                if self.reduce is None:
                    raise ValueError("a reduction reached code that renders pointwise expressions only")
                return self.reduce(e)
            case Cast():
                return self.converted(self._render(e.arg), e.arg.dtype, e.dtype, rounds=True)
            case Call():
                return self._call(e)

    def splat(self, scalar: str, dtype: DType) -> str:
        """A scalar as a value of the current width."""
        return scalar if self.width == 1 else f"({vector_type(dtype, self.width)})({scalar})"

    def converted(self, text: str, source: DType, to: DType, rounds: bool = False) -> str:
        """A value of type `source` as one of type `to`; with `rounds`, f16 is rounded to what it can store."""
        if source is to:
            return text
        w = self.width
        if to is DType.BOOL:
            # beside a vector of small integers a plain 0, which is an int, is not allowed
            return f"({text} != 0)" if w == 1 else self._mask(f"({text} != {self.splat('0', source)})", source.itemsize)
        if source is DType.BOOL and w > 1:
            text, source = f"({text} & 1)", DType.I32
        if to in (DType.F16, DType.BF16) and rounds:
            return self._rounded(self.converted(text, source, DType.F32), to)
        if vector_type(source, w) == vector_type(to, w):
            return text
        if source.is_float and not to.is_float:
            return saturated(text, source, to, w, self.helpers)
        return f"({vector_type(to, 1)})({text})" if w == 1 else f"convert_{vector_type(to, w)}({text})"

    def _rounded(self, text: str, to: DType) -> str:
        """A float rounded to bf16's or f16's precision and range; f16 by way of memory, which needs no extension."""
        vector, suffix = vector_type(DType.F32, self.width), "" if self.width == 1 else str(self.width)
        if to is DType.BF16:
            self.helpers[f"tw_bf16_float{suffix}"] = _bf16_bits(suffix)
            return f"as_float{suffix}(convert_uint{suffix}(tw_bf16_float{suffix}({text})) << 16)"
        name = f"tw_round_f16_{vector}"
        self.helpers[name] = (
            f"static inline {vector} {name}({vector} a) {{ ushort bits[{self.width}]; "
            f"vstore_half{suffix}(a, 0, (half*)bits); return vload_half{suffix}(0, (const half*)bits); }}"
        )
        return f"{name}({text})"

    def _mask(self, text: str, itemsize: int) -> str:
        """The result of a vector comparison of `itemsize`-byte elements as an int mask."""
        return text if itemsize == 4 else f"convert_int{self.width}({text})"

    def _constant(self, e: Const) -> str:
        if e.dtype is DType.BOOL and self.width > 1:
            return f"(int{self.width})({-1 if e.value else 0})"
        return self.splat(literal(e.value, e.dtype), e.dtype)

    def _inside(self, e: Inside) -> str:
        every = tuple(range(len(e.index)))
        tensor = self.tensors[e.tensor]
        if self.width == 1:
            return f"({in_range(e.index, tensor, every, self.names)})"
        if not any(a.coefficient(LANE) or a.bends(LANE) for a in e.index):
            return f"(int{self.width})(-({in_range(e.index, tensor, every, self.names)}))"
        lanes = [f"-({in_range(at_lane(e.index, lane), tensor, every, self.names)})" for lane in range(self.width)]
        return f"(int{self.width})({', '.join(lanes)})"

    def _index_value(self, e: IndexValue) -> str:
        step = e.index.coefficient(LANE)
        wide = "(long)" if e.dtype.itemsize == 8 else ""
        first = f"({affine(e.index.without(LANE), self.names, wide)})"
        if self.width == 1:
            return f"({vector_type(e.dtype, 1)}){first}"
        vector = vector_type(DType.I64 if e.dtype.itemsize == 8 else DType.I32, self.width)
        text = f"({vector}){first}"
        if e.index.bends(LANE):
            lanes = [affine(at_lane((e.index,), lane)[0], self.names, wide) for lane in range(self.width)]
            text, step = f"({vector})({', '.join(lanes)})", 0
        if step:
            text = f"({text} + ({vector})({', '.join(str(step * lane) for lane in range(self.width))}))"
        wanted = vector_type(e.dtype, self.width)
        return text if wanted == vector else f"convert_{wanted}({text})"

    def _call(self, e: Call) -> str:
        function = FUNCTIONS[e.function]
        if e.function == "where":
            return self._where(e)
        if function.result is Result.BOOL and e.function in ("and", "or", "not"):
            operand = DType.BOOL
        elif function.result is Result.BOOL:
            operand = _common(e.args)
        else:
            operand = e.dtype
        logical = e.function in ("and", "or", "not")
        if operand is DType.BOOL and not logical:
            operand = DType.I32
        args = [self.converted(self._render(a), a.dtype, operand) for a in e.args]
        if e.function in ("floordiv", "mod") and self._is_natural(e):
            return f"({args[0]} {'/' if e.function == 'floordiv' else '%'} {args[1]})"
        text = self._power(e, args) or self._spelled(e.function, args, operand)
        if function.result is Result.BOOL:
            return text if self.width == 1 or logical else self._mask(text, register_size(operand))
        if operand in SMALL and self.width == 1:
            return f"({operand.opencl}){text}"
        return self.converted(text, operand, e.dtype)

    def _is_natural(self, e: Call) -> bool:
        """True for a quotient or remainder of an index that cannot be negative, by a positive number."""
        dividend, divisor = e.args
        return (
            isinstance(divisor, Const)
            and int(divisor.value) > 0
            and isinstance(dividend, IndexValue)
            and all(name in self.extents for name in dividend.index.names)
            and bounds(dividend, self.extents)[0] >= 0
        )

    def _power(self, e: Call, args: list[str]) -> str | None:
        """Small whole powers as products."""
        if e.function != "pow" or not isinstance(e.args[1], Const) or e.args[1].value not in (1, 2, 3, 4):
            return None
        times = int(e.args[1].value)
        vector = vector_type(e.dtype, self.width)
        name = f"tw_pow{times}_{vector}"
        body = {1: "a", 2: "a * a", 3: "a * a * a", 4: "(a * a) * (a * a)"}[times]
        self.helpers[name] = f"static inline {vector} {name}({vector} a) {{ return {body}; }}"
        return f"{name}({args[0]})"

    def _where(self, e: Call) -> str:
        condition = self.converted(self._render(e.args[0]), e.args[0].dtype, DType.BOOL)
        yes, no = (self.converted(self._render(a), a.dtype, e.dtype) for a in e.args[1:])
        size = register_size(e.dtype)
        if self.width > 1 and size != 4:
            condition = f"convert_{SIGNED[size]}{self.width}({condition})"
        return f"({condition} ? {yes} : {no})"

    def _spelled(self, function: str, args: list[str], operand: DType) -> str:
        """A function of the table applied to arguments of the type `operand`."""
        return spelled(function, args, operand, self.width, self.helpers, self.fast)

    def combined(self, kind: str, total: str, value: str, dtype: DType) -> str:
        """`total` and `value` combined by a reduction's kind, as an expression."""
        if dtype is DType.BOOL:
            return f"({total} {'|' if kind in ('sum', 'max') else '&'} {value})"
        function = {"sum": "add", "prod": "mul"}.get(kind, kind)
        return self._spelled(function, [total, value], dtype)

    def identity(self, kind: str, dtype: DType) -> str:
        """The value an accumulator starts from."""
        return _splat_of(identity(kind, dtype), dtype, self.width)

    def accumulate(self, kind: str, total: str, value: str, dtype: DType) -> str:
        """The C statement that adds `value` to the accumulator `total`."""
        if kind in ("sum", "prod") and dtype.is_float:
            return f"{total} {'+' if kind == 'sum' else '*'}= {value};"
        return f"{total} = {self.combined(kind, total, value, dtype)};"


def _common(args: tuple[Expr, ...]) -> DType:
    common = args[0].dtype
    for a in args[1:]:
        common = promote(common, a.dtype)
    return common


def multiply_add(fma: str, a: str, b: str, c: str) -> str:
    """``a * b + c`` in the target's spelling (`Target.fma`)."""
    return f"fma({a}, {b}, {c})" if fma.startswith("fma") else f"{a} * {b} + {c}"


# --- reads and writes -----------------------------------------------------------------------------------------------


def at_lane(index: tuple[Affine, ...], lane: int) -> tuple[Affine, ...]:
    """An index tuple at one position of the vector."""
    place = {LANE: Affine((), lane)}
    return tuple(a.substitute(place) for a in index)


def element(pointer: str, address: str, dtype: DType) -> str:
    """The element at an address, as a value in registers."""
    if dtype is DType.BF16:
        return f"as_float((uint){pointer}[{address}] << 16)"
    return f"vload_half({address}, {pointer})" if dtype is DType.F16 else f"{pointer}[{address}]"


def scalar_read(e: Read, tensor: Tensor, names: Variables, dimensions: tuple[int, ...], prefix: str = "") -> str:
    """One element, with the range check that the given dimensions need."""
    address = affine(tensor.address(e.index), names)
    value = element(argument(e.tensor), f"{prefix}{address}", tensor.dtype)
    if not dimensions:
        return value
    return f"(({in_range(e.index, tensor, dimensions, names)}) ? {value} : {literal(tensor.pad, tensor.dtype)})"


def lanes_read(
    e: Read, tensor: Tensor, names: Variables, dimensions: tuple[int, ...], width: int, aligned: bool = False
) -> str:
    """`width` elements at lanes 0, 1, ... of `LANE`: one load, a broadcast or a gather, by the stride.

    ``dimensions`` are those that need a range check. Where that depends on the lane, the vector is loaded as a whole
    if it lies inside as a whole (known while generating, or tested by the kernel), else lane by lane.
    """
    if width == 1:
        return _as_value(scalar_read(_first(e), tensor, names, dimensions), tensor.dtype, 1)
    address = tensor.address(e.index)
    by_lane = tuple(d for d in dimensions if e.index[d].coefficient(LANE) or e.index[d].bends(LANE))
    uniform = tuple(d for d in dimensions if d not in by_lane)
    if address.bends(LANE):
        return _lanes_apart(e, tensor, names, dimensions, width)
    pad = _splat_of(literal(tensor.pad, tensor.dtype), tensor.dtype, width)
    value = load(argument(e.tensor), address, names, tensor.dtype, width, aligned)
    if by_lane:
        apart = _lanes_apart(e, tensor, names, by_lane, width)
        if all(not e.index[d].without(LANE).terms for d in by_lane):
            value = apart
        else:
            ends = [in_range(at_lane(e.index, lane), tensor, by_lane, names) for lane in (0, width - 1)]
            value = f"(({' && '.join(ends)}) ? {value} : {apart})"
    if uniform:
        value = f"(({in_range(e.index, tensor, uniform, names)}) ? {value} : {pad})"
    return value


def _first(e: Read) -> Read:
    return replace(e, index=at_lane(e.index, 0))


def _lanes_apart(e: Read, tensor: Tensor, names: Variables, by_lane: tuple[int, ...], width: int) -> str:
    """Each lane read for itself; those known to lie outside are the pad value."""
    lanes = []
    for lane in range(width):
        index = at_lane(e.index, lane)
        known = [d for d in by_lane if not index[d].terms]
        if any(not 0 <= index[d].constant < tensor.shape[d] for d in known):
            lanes.append(literal(tensor.pad, tensor.dtype))
        else:
            left = tuple(d for d in by_lane if d not in known)
            lanes.append(scalar_read(replace(e, index=index), tensor, names, left))
    return _as_value(f"({_memory_vector(tensor.dtype, width)})({', '.join(lanes)})", tensor.dtype, width)


def _memory_vector(dtype: DType, width: int) -> str:
    """The vector type of loaded elements, before truth values become masks."""
    return f"uchar{width}" if dtype is DType.BOOL else vector_type(dtype, width)


def _as_value(loaded: str, dtype: DType, width: int) -> str:
    if dtype is not DType.BOOL:
        return loaded
    return f"({loaded} != 0)" if width == 1 else f"(convert_int{width}({loaded}) != 0)"


def _splat_of(scalar: str, dtype: DType, width: int) -> str:
    if width == 1:
        return scalar
    return f"(int{width})(-({scalar}))" if dtype is DType.BOOL else f"({vector_type(dtype, width)})({scalar})"


def load(pointer: str, address: Affine, names: Variables, dtype: DType, width: int, aligned: bool = False) -> str:
    """`width` elements at `address`, whose coefficient of `LANE` is the stride, as a value in registers.

    ``aligned`` promises that contiguous elements start at a multiple of `width`: compilers for GPUs take one wide load
    where they know that, and a load per element for `vload`.
    """
    stride = address.coefficient(LANE)
    start = affine(address.without(LANE), names)
    if width == 1:
        return _as_value(element(pointer, start, dtype), dtype, 1)
    if stride == 0:
        return _splat_of(_as_value(element(pointer, start, dtype), dtype, 1), dtype, width)
    loader = f"vload_half{width}" if dtype is DType.F16 else f"vload{width}"
    if stride == 1:
        text = f"{loader}(0, {_at(pointer, start)})"
        if aligned and dtype is DType.F16:
            text = f"vloada_half{width}(0, {_at(pointer, start)})"
        elif aligned:
            text = f"*(__global const {dtype.opencl}{width}*)({_at(pointer, start)})"
        if dtype is DType.BF16:
            return f"as_float{width}(convert_uint{width}({text}) << 16)"
        return _as_value(text, dtype, width)
    if stride == 2 and dtype is not DType.BF16:
        # The second load starts one element early, so that nothing behind the last lane is touched.
        second = affine(address.without(LANE) + (width - 1), names)
        halves = f"{loader}(0, {_at(pointer, start)}).even, {loader}(0, {_at(pointer, second)}).odd"
        return _as_value(f"({_memory_vector(dtype, width)})({halves})", dtype, width)
    lanes = [element(pointer, affine(address.without(LANE) + lane * stride, names), dtype) for lane in range(width)]
    return _as_value(f"({_memory_vector(dtype, width)})({', '.join(lanes)})", dtype, width)


def store(
    pointer: str,
    address: Affine,
    names: Variables,
    dtype: DType,
    width: int,
    value: str,
    aligned: bool = False,
    streams: bool = False,
) -> str:
    """The C statement that writes a register value at `address`; `LANE`'s coefficient there is the stride.

    With a stride other than 1, `value` is written lane by lane and so must be a variable. ``aligned`` as in `load`;
    what is aligned and ``streams`` is written past the caches (see `Target.streaming_stores`).
    """
    stride = address.coefficient(LANE)
    start = affine(address.without(LANE), names)
    if width == 1:
        if dtype is DType.F16:
            return f"vstore_half({value}, {start}, {pointer});"
        return f"{pointer}[{start}] = {f'tw_bf16_float({value})' if dtype is DType.BF16 else value};"
    value_text = f"convert_uchar{width}({value} & 1)" if dtype is DType.BOOL else value
    if dtype is DType.BF16 and stride == 1:
        value_text = f"tw_bf16_float{width}({value})"
    if stride == 1 and aligned and dtype is not DType.F16:
        place = f"(__global {dtype.opencl}{width}*)({_at(pointer, start)})"
        return f"__builtin_nontemporal_store({value_text}, {place});" if streams else f"*{place} = {value_text};"
    if stride == 1:
        half = f"vstorea_half{width}" if aligned else f"vstore_half{width}"
        storer = half if dtype is DType.F16 else f"vstore{width}"
        return f"{storer}({value_text}, 0, {_at(pointer, start)});"
    lines = []
    for lane in range(width):
        one = f"{value}.s{lane:x}" if dtype is not DType.BOOL else f"({value}.s{lane:x} & 1)"
        lines.append(store(pointer, at_lane((address,), lane)[0], names, dtype, 1, one))
    return "\n".join(lines)


def _at(pointer: str, start: str) -> str:
    return pointer if start == "0" else f"{pointer} + {start}"


# --- whole kernels --------------------------------------------------------------------------------------------------


def preamble(program: Program, helpers: Mapping[str, str]) -> str:
    """What stands in front of a kernel: the extensions its types need and the helper functions it calls."""
    lines = []
    if any(t.dtype is DType.F64 for t in program.tensors.values()):
        lines.append("#pragma OPENCL EXTENSION cl_khr_fp64 : enable")
    helpers = dict(helpers)
    for t in (*program.outputs, *program.intermediates):
        helpers |= storing_helpers(t.dtype, (1, 2, 4, 8, 16))
    lines += [helpers[name] for name in sorted(helpers)]
    return "\n".join(lines) + "\n\n" if lines else ""


def storing_helpers(dtype: DType, widths: Iterable[int]) -> dict[str, str]:
    """The helper functions that `store` calls for a type at these widths."""
    if dtype is not DType.BF16:
        return {}
    suffixes = ["" if width == 1 else str(width) for width in widths]
    return {f"tw_bf16_float{suffix}": _bf16_bits(suffix) for suffix in suffixes}


def _bf16_bits(width: str) -> str:
    """The helper that rounds floats to bf16, to nearest with ties to even; a NaN stays one."""
    return (
        f"static inline ushort{width} tw_bf16_float{width}(float{width} a) {{ "
        f"const uint{width} bits = as_uint{width}(a); "
        f"const uint{width} rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; "
        f"return convert_ushort{width}(isnan(a) ? (uint{width})(0x7fc0u) : rounded); }}"
    )
