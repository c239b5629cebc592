"""The conditions of `where` lines: what a tuner asks of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from tilewright.dsl.parse import parse_condition
from tilewright.dsl.syntax import Application, Literal, Name, Node, Qualified, walk

_OPERATIONS: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.floordiv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": lambda a, b: a ** min(b, 64),
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def names(limit: str) -> frozenset[str]:
    """What a condition speaks of: `tile_m`, `device.local_mem`, ..."""
    return frozenset(n.text for n in walk(parse_condition(limit)) if isinstance(n, Name | Qualified))


def holds(limit: str, values: Mapping[str, int]) -> bool:
    """Whether a condition of `Program.limits` is met; `/` rounds down. One that names what `values` lacks is met."""
    if not names(limit) <= values.keys():
        return True
    try:
        return bool(_value(parse_condition(limit), values))
    except ArithmeticError:  # division by zero: no configuration can meet it
        return False


def _value(node: Node, values: Mapping[str, int]) -> int:
    match node:
        case Literal():
            return int(node.value)
        case Name() | Qualified():
            return values[node.text]
        case Application():
            return _OPERATIONS[node.function](*(_value(a, values) for a in node.args))
        case _:
            raise ValueError(f"{node} cannot stand in a where line")
