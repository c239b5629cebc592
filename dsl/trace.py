"""Ops written as Python functions.

Such a function is called once, with objects that stand for its tensors and parameters. What it does with them is noted
as the language's own syntax and printed as its text, which is then read like any other: a traced op *is* a text, and
its errors show that text. Nothing is evaluated and no source is looked at.

    def gemm(a: "M,K", b: "K,N") -> "c[M,N]":
        m, n, k = indices("m n k")
        return each(m, n)(lang.sum(k)(a[m, k] * b[k, n]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from tilewright.dsl import syntax
from tilewright.dsl.symbols import Index, Number, Symbol, Tensor, Value, check_name, node_of
from tilewright.dsl.syntax import Access, Application, Bound, Name, Node, Span, node_text
from tilewright.errors import LanguageError

_HERE = Span(0, 0)


def size(name: str, value: Symbol | int | None = None) -> Value:
    """A size of the header as a number; with a value it is a size equation: ``size("P", (H - k) / 2 + 1)``."""
    check_name(name)
    if value is not None:
        active().lines.append(syntax.Assignment(Name(name, _HERE), None, node_of(value)))
    return Value(Name(name, _HERE))


# --- statements -------------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What the function that is being traced has said so far."""

    lines: list[syntax.Assignment | syntax.Several | str] = field(default_factory=list)
    callees: dict[str, str] = field(default_factory=dict)
    """Texts of the ops that were called, by name."""
    tensors: int = 0

    def fresh(self) -> Tensor:
        """A tensor that is still to be named."""
        self.tensors += 1
        return Tensor(f"t{self.tensors}_")


_active: ContextVar[Trace | None] = ContextVar("tilewright_trace", default=None)


def active() -> Trace:
    """The trace that is under way; LanguageError if there is none."""
    found = _active.get()
    if found is None:
        raise LanguageError("statements and tuning lines stand in a function that @tilewright.op reads")
    return found


def is_active() -> bool:
    """Whether a function is being traced."""
    return _active.get() is not None


def each(*over: Index | int) -> Callable[[Symbol | Number], Tensor]:
    """``each(m, n)(value)``: the tensor that has the value at every m, n; 0 stands for a dimension of size 1."""

    def assign(value: Symbol | Number) -> Tensor:
        trace = active()
        made = trace.fresh()
        bounds = tuple(i.bound if isinstance(i, Index) else Bound(node_of(i), None) for i in over)
        trace.lines.append(syntax.Assignment(Name(made.name, _HERE), bounds, node_of(value)))
        return made

    return assign


def called(
    op: str, text: str, outputs: int, args: tuple[object, ...], settings: dict[str, object]
) -> tuple[Tensor, ...]:
    """A call of another op, whose text becomes part of this one's."""
    trace = active()
    if trace.callees.setdefault(op, text) != text:
        raise LanguageError(f"two different ops that are called here have the name {op}")
    made = tuple(trace.fresh() for _ in range(outputs))
    given = tuple(syntax.Setting(Name(k, _HERE), node_of(v)) for k, v in settings.items())
    call = Application(op, tuple(map(node_of, args)), _HERE, _HERE, given)
    if outputs == 1:
        trace.lines.append(syntax.Assignment(Name(made[0].name, _HERE), None, call))
    else:
        trace.lines.append(syntax.Several(tuple(Name(t.name, _HERE) for t in made), call))
    return made


# --- from calls to text -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """An op's header, in the language's own words."""

    name: str
    inputs: tuple[tuple[str, str], ...]
    """Name and the whole declaration: ``("x", "x[N,C]: f16")``."""
    parameters: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    """Declarations: ``c[M,N]``."""


def traced(header: Header, function: Callable[..., object]) -> str:
    """The text of the op that a Python function describes."""
    trace = Trace()
    token = _active.set(trace)
    try:
        tensors = {name: Tensor(name) for name, _ in header.inputs}
        numbers = {name: Value(Name(name, _HERE)) for name, _ in header.parameters}
        result = function(*tensors.values(), **numbers)
    finally:
        _active.reset(token)
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(header.outputs):
        raise LanguageError(
            f"op {header.name} declares {len(header.outputs)} outputs ({', '.join(header.outputs)}), "
            f"but its function returns {len(results)}"
        )
    names = _returned(trace, header, results)
    inputs = ", ".join(text for _, text in header.inputs)
    parameters = ", ".join(text for _, text in header.parameters)
    top = f"op {header.name}({inputs}{'; ' if parameters else ''}{parameters}) -> {', '.join(header.outputs)}:"
    body = [f"    {_line(line, names)}" for line in trace.lines]
    callees = "".join(f"{text.strip()}\n\n" for text in trace.callees.values())
    return callees + "\n".join([top, *body]) + "\n"


def _returned(trace: Trace, header: Header, results: tuple[object, ...]) -> dict[str, str]:
    """Add what the outputs still lack; gives every tensor's name in the text."""
    outputs = [text.partition("[")[0].partition(":")[0].strip() for text in header.outputs]
    names: dict[str, str] = {}
    made = {f"t{n}_" for n in range(1, trace.tensors + 1)}
    for output, declaration, value in zip(outputs, header.outputs, results, strict=True):
        if isinstance(value, Tensor) and value.name in made and value.name not in names:
            names[value.name] = output
            continue
        over = _order(header, output, declaration, node_of(value))
        trace.lines.append(syntax.Assignment(Name(output, _HERE), over, node_of(value)))
    taken = {*outputs, *(name for name, _ in (*header.inputs, *header.parameters))}
    taken |= {n.text for line in trace.lines if not isinstance(line, str) for n in _names(line)}
    for name in sorted(made - names.keys(), key=lambda t: int(t[1:-1])):
        plain = name.rstrip("_")
        while plain in taken:
            plain += "_"
        names[name] = plain
        taken.add(plain)
    return names


def _order(header: Header, output: str, declaration: str, value: Node) -> tuple[Bound, ...] | None:
    """The indices on the left of a returned expression: each belongs to the output's dimension that it reads bare.

    None for the short form: an expression without indices.
    """
    numbers = {name for name, _ in header.parameters}
    for text in (*(text for _, text in header.inputs), *header.outputs):
        numbers.update(re.findall(r"[A-Za-z_]\w*", ",".join(_dims(text))))
    free = [name for name in _free(value) if name not in numbers]
    if not free:
        return None
    dims = _dims(declaration)
    shapes = {name: _dims(text) for name, text in header.inputs}
    stands: dict[str, set[str]] = {name: set() for name in free}
    for n in syntax.walk(value):
        if isinstance(n, Access):
            for node, dim in zip(n.index, shapes.get(n.tensor.text, ()), strict=False):
                if isinstance(node, Name) and node.text in stands:
                    stands[node.text].add(dim)
    found = [[name for name in free if dim in stands[name]] for dim in dims]
    if len(free) == len(dims) and len(set(dims)) == len(dims) and all(len(f) == 1 for f in found):
        return tuple(Bound(Name(name, _HERE), None) for (name,) in found)
    listed = ", ".join(free)
    raise LanguageError(
        f"op {header.name}: the value of {output} depends on {listed}, and which of its dimensions each of them stands "
        f"for does not follow from the sizes; return each({listed})(...)"
    )


def _dims(declaration: str) -> tuple[str, ...]:
    inner = declaration.partition("[")[2].partition("]")[0]
    return tuple(part.strip() for part in inner.split(",")) if inner.strip() else ()


def _free(node: Node) -> list[str]:
    """The indices in a returned expression that nothing binds, in order."""
    bound = {syntax.bound_name(b).text for n in syntax.walk(node) if isinstance(n, syntax.Reduction) for b in n.indices}
    found: dict[str, None] = {}
    for n in syntax.walk(node):
        if isinstance(n, Access):
            found |= dict.fromkeys(m.text for i in n.index for m in syntax.walk(i) if isinstance(m, Name))
    return [name for name in found if name not in bound]


def _names(line: syntax.Assignment | syntax.Several) -> Iterator[Name]:
    for b in line.indices or () if isinstance(line, syntax.Assignment) else ():
        if isinstance(b.value, Name):
            yield b.value
    for n in syntax.walk(line.value):
        if isinstance(n, Name):
            yield n
        elif isinstance(n, syntax.Reduction):
            yield from (syntax.bound_name(b) for b in n.indices)


def _line(line: syntax.Assignment | syntax.Several | str, names: dict[str, str]) -> str:
    if isinstance(line, str):
        return line
    value = node_text(_renamed(line.value, names))
    if isinstance(line, syntax.Several):
        return f"{', '.join(names.get(t.text, t.text) for t in line.targets)} = {value}"
    target = names.get(line.target.text, line.target.text)
    if line.indices is None:
        return f"{target} = {value}"
    parts = [node_text(b.value) + (f": {node_text(b.extent)}" if b.extent else "") for b in line.indices]
    return f"{target}[{', '.join(parts)}] = {value}"


def _renamed(node: Node, names: dict[str, str]) -> Node:
    match node:
        case Name():
            return replace(node, text=names.get(node.text, node.text))
        case Access():
            tensor = replace(node.tensor, text=names.get(node.tensor.text, node.tensor.text))
            return replace(node, tensor=tensor, index=tuple(_renamed(i, names) for i in node.index))
        case Application():
            return replace(node, args=tuple(_renamed(a, names) for a in node.args))
        case syntax.Reduction():
            return replace(node, body=_renamed(node.body, names))
        case _:
            return node
