"""The lines of an op that speak of tuning: `tile`, `vector`, `unroll`, `split`, `stage`, `work_group` and `where`.

What they mean for a space of configurations is said in `hints.py`; here they are read and checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, listed, suggestion
from tilewright.dsl.program import Hint, Limit
from tilewright.dsl.syntax import Application, Literal, Name, Node, Qualified
from tilewright.dsl.vocabulary import SIZE_OPERATIONS

INDEX_KINDS = ("tile", "item", "vector", "unroll", "split")
"""Kinds of hint that name an index; `item` is what `per item` gives. A where line knows each as <kind>_<index>."""
PLACES = ("local", "packed", "none")
"""Where a `stage` line may put an operand: in local memory, copied in the order it is read, nowhere."""
LIMIT_NAMES = ("local_bytes", "work_group", "device.local_mem", "device.max_work_group")
"""What a `where` line may speak of, beside <kind>_<index>."""
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

_EXAMPLES = {
    "tile": "16, 32",
    "vector": "4, 8",
    "unroll": "1, 2",
    "split": "1, 4",
    "stage": "local, none",
    "work_group": "64, 128",
}


def hints(lines: Iterable[syntax.Tuning], indices: Collection[str], tensors: Collection[str]) -> tuple[Hint, ...]:
    """The hints of an op whose statements have these indices and which may read these tensors."""
    found: dict[tuple[str, str], Hint] = {}
    for line in lines:
        kind, subject = line.kind.text, "" if line.subject is None else line.subject.text
        _check_subject(line, indices, tensors)
        if not line.values and not line.per_item:
            what = f"{kind} {subject}".rstrip()
            raise Problem(
                (line.subject or line.kind).at, f"{what} gives no values; write for example: {what}: {_EXAMPLES[kind]}"
            )
        if line.per_item and kind != "tile":
            raise Problem(line.per_item[0].at, f"per item stands in tile lines only, not in a {kind} line")
        for of, values in ((kind, line.values), ("item", line.per_item)):
            if not values:
                continue
            if (of, subject) in found:
                what = f"{kind} of {subject}" if subject else kind
                raise Problem((line.subject or line.kind).at, f"the {what} is given twice")
            found[of, subject] = Hint(of, subject, _values(of, values), line_text(line))
    return tuple(found.values())


def _check_subject(line: syntax.Tuning, indices: Collection[str], tensors: Collection[str]) -> None:
    name = line.subject
    if name is None:
        return
    if line.kind.text == "stage":
        if name.text not in tensors:
            raise Problem(name.at, f"no tensor is called {name.text}{suggestion(name.text, tensors)}")
    elif name.text not in indices:
        raise Problem(name.at, f"no statement has an index {name.text}{suggestion(name.text, indices)}")


def _values(kind: str, nodes: Iterable[Literal | Name]) -> tuple[int | str, ...]:
    what = {"tile": "a tile size", "item": "a tile size"}.get(kind, f"a value of {kind}")
    values: list[int | str] = []
    for node in nodes:
        if kind == "stage":
            if not isinstance(node, Name) or node.text not in PLACES:
                near = suggestion(node.text, PLACES) if isinstance(node, Name) else ""
                raise Problem(node.at, f"an operand is staged {listed(PLACES)}{near}")
            values.append(node.text)
            continue
        value = node.value if isinstance(node, Literal) else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise Problem(node.at, f"{what} is a positive integer below 2^31")
        values.append(value)
    return tuple(values)


def line_text(line: syntax.Tuning) -> str:
    """A tuning line as it was written."""
    subject = "" if line.subject is None else f" {line.subject.text}"
    values = "".join(f" {v}" for v in [", ".join(map(syntax.node_text, line.values))] if v)
    per_item = ", ".join(map(syntax.node_text, line.per_item))
    return f"{line.kind.text}{subject}:{values}" + (f" per item {per_item}" if per_item else "")


# --- where lines ------------------------------------------------------------------------------------------------------


def limit(condition: Node, indices: Collection[str]) -> Limit:
    """A where line of an op whose statements have these indices."""
    comparison = isinstance(condition, Application) and condition.function in COMPARISONS
    if not comparison or getattr(condition, "called", None) is not None:
        raise Problem(condition.at, "a where line is one comparison: where local_bytes <= device.local_mem")
    for side in syntax.children(condition):
        _side(side, indices)
    text = syntax.node_text(condition)
    return Limit(text, f"where {text}")


def _side(node: Node, indices: Collection[str]) -> None:
    match node:
        case Literal(value=int()) if not isinstance(node.value, bool):
            return
        case Name() | Qualified():
            known = {*LIMIT_NAMES, *(f"{kind}_{i}" for kind in INDEX_KINDS for i in indices)}
            if node.text not in known:
                raise Problem(
                    node.at,
                    f"a where line cannot speak of {node.text}{suggestion(node.text, known)}; it knows "
                    f"{listed(LIMIT_NAMES, 'and')}, and {', '.join(f'{kind}_<index>' for kind in INDEX_KINDS)}",
                )
        case Application() if node.called is None and node.function in SIZE_OPERATIONS:
            for a in node.args:
                _side(a, indices)
        case _:
            raise Problem(node.at, "a where line compares integer arithmetic: + - * / % ^ on names and integers")
