"""Programs back to text: for people, and (with or without sizes) for identities."""

from __future__ import annotations

from tilewright.dsl.functions import OPERATOR_SIGNS
from tilewright.dsl.program import (
    Call,
    Cast,
    Const,
    Expr,
    Hint,
    Index,
    IndexValue,
    Inside,
    Program,
    Read,
    Reduce,
    Statement,
    Tensor,
)


def program_text(program: Program) -> str:
    """The whole program with every size, stride and type: equal text means equal meaning."""
    return _text(program, sizes=True)


def structure_text(program: Program) -> str:
    """The program with its sizes left out and strides reduced to their order: what shapes of one op share."""
    return _text(program, sizes=False)


def _text(program: Program, sizes: bool) -> str:
    inputs = ", ".join(_tensor(t, sizes) for t in program.inputs)
    outputs = ", ".join(_tensor(t, sizes) for t in program.outputs)
    lines = [f"op {program.name}({inputs}) -> {outputs}:"]
    lines += [f"    # intermediate {_tensor(t, sizes)}" for t in program.intermediates]
    lines += [f"    {statement_text(s, sizes)}" for s in program.statements]
    lines += [f"    {_hint(h)}" for h in program.hints]
    lines += [f"    where {limit.condition}" for limit in program.limits]
    lines += ["    fast_math"] * program.fast_math
    if program.precision != "fp32":
        lines.append(f"    precision {program.precision}")
    return "\n".join(lines) + "\n"


def _order(t: Tensor) -> list[int]:
    """Dimensions from the largest stride to the smallest; those of size 1, whose strides mean nothing, after the one
    before them, so that one image lies like a batch of them."""
    order = sorted((d for d in range(len(t.shape)) if t.shape[d] != 1), key=lambda d: (-t.strides[d], d))
    for d in range(len(t.shape)):
        if t.shape[d] == 1:
            order.insert(order.index(d - 1) + 1 if d else 0, d)
    return order


def statement_text(s: Statement, sizes: bool = False) -> str:
    """One statement; with `sizes`, each index carries its extent (`n:8`)."""
    return f"{s.target}[{_indices(s.indices, sizes)}] = {expression_text(s.value, sizes)}"


def expression_text(e: Expr, sizes: bool = False) -> str:
    """An expression in the language's own notation, fully parenthesised."""
    match e:
        case Const():
            return f"{e.value!r}"
        case Read():
            return f"{e.tensor}[{', '.join(map(str, e.index))}]"
        case Inside():
            return f"inside({e.tensor}[{', '.join(map(str, e.index))}])"
        case IndexValue():
            return f"index({e.index})"
        case Cast():
            return f"{e.dtype.value}({expression_text(e.arg, sizes)})"
        case Reduce():
            until = "" if e.until is None else f" <= {e.until}"
            return f"({e.kind}({_indices(e.indices, sizes)}{until}) {expression_text(e.body, sizes)})"
        case Call():
            args = [expression_text(a, sizes) for a in e.args]
            sign = OPERATOR_SIGNS.get(e.function)
            return f"({args[0]} {sign} {args[1]})" if sign else f"{e.function}({', '.join(args)})"


def _indices(indices: tuple[Index, ...], sizes: bool) -> str:
    return ",".join(f"{i.name}:{i.extent}" if sizes else i.name for i in indices)


def _tensor(t: Tensor, sizes: bool) -> str:
    if not sizes:
        return f"{t.name}[{len(t.shape)}]: {t.dtype.value} pad {t.pad} order {_order(t)}"
    text = f"{t.name}[{', '.join(map(str, t.shape))}]: {t.dtype.value}"
    if t.pad:
        text += f" pad {t.pad}"
    if not t.is_contiguous:
        text += f" strides {list(t.strides)} offset {t.offset}"
    return text


def _hint(h: Hint) -> str:
    values = ", ".join(map(str, h.values))
    if h.kind == "item":
        return f"tile {h.subject}: per item {values}"
    return f"{f'{h.kind} {h.subject}'.rstrip()}: {values}"
