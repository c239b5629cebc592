"""From the grammar's rules to the syntax tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lark import Token, Transformer, v_args

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem
from tilewright.dsl.functions import OPERATOR_SIGNS
from tilewright.dsl.syntax import Bound, Node, Span
from tilewright.dsl.tuning import COMPARISONS

MAX_DIGITS = 60
"""Longest number, and with it the largest power of ten."""
MAX_NAME = 100
"""Longest name."""


def _span(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


def _name(token: Token) -> syntax.Name:
    if len(token) > MAX_NAME:
        raise Problem(_span(token), f"the name is longer than {MAX_NAME} characters")
    return syntax.Name(str(token), _span(token))


_WORDS: dict[str, bool | float] = {"true": True, "false": False, "inf": float("inf"), "nan": float("nan")}


def _number(token: Token) -> syntax.Literal:
    at, text = _span(token), str(token)
    if len(text) > MAX_DIGITS:
        raise Problem(at, f"the number has more than {MAX_DIGITS} digits")
    if text.isdigit():
        if int(text) >= 2**64:
            raise Problem(at, "the integer does not fit in 64 bits; write a decimal point for a floating point number")
        return syntax.Literal(int(text), at)
    value = float(text)
    if value == float("inf"):
        raise Problem(at, "the number is too large for f64; write inf for infinity")
    return syntax.Literal(value, at)


def _binary(function: str) -> Callable[[Builder, Node, Node], syntax.Application]:
    def build(self: Builder, left: Node, right: Node) -> syntax.Application:
        return syntax.Application(function, (left, right), Span(left.at.start, right.at.end))

    return build


_UPDATES = {f"{OPERATOR_SIGNS[word]}=": word for word in ("add", "sub", "mul", "div")}
_PREFIXES = {"-": "neg", "~": "bitnot", "not": "not"}
_COMPARISONS = {OPERATOR_SIGNS[word]: word for word in COMPARISONS}


@dataclass(frozen=True)
class _Call:
    """`name(value: extent, ...; setting, ...)` before it is known to be a function's or a reduction's."""

    name: Token
    bounds: tuple[Bound, ...]
    settings: tuple[syntax.Setting, ...]


@v_args(inline=True)
class Builder(Transformer[Token, Any]):
    """One method per rule of the grammar; arguments are the rule's children (None for what was left out)."""

    def start(self, *parts: syntax.Op | syntax.Function) -> syntax.Text:
        functions = tuple(p for p in parts if isinstance(p, syntax.Function))
        return syntax.Text(functions, tuple(p for p in parts if isinstance(p, syntax.Op)))

    def condition(self, node: Node) -> Node:
        return node

    def function(self, name: Token, arguments: Any, body: Node) -> syntax.Function:
        return syntax.Function(_name(name), arguments or (), body)

    def names(self, *tokens: Token) -> tuple[syntax.Name, ...]:
        return tuple(_name(t) for t in tokens)

    def op(self, name: Token, inputs: Any, parameters: Any, outputs: Any, body: Any) -> syntax.Op:
        return syntax.Op(_name(name), inputs or (), parameters or (), outputs, body)

    def tensors(self, *items: syntax.Tensor) -> tuple[syntax.Tensor, ...]:
        return items

    def tensor(self, name: Token, dims: Any, dtype: Token | None, pad: Node | None) -> syntax.Tensor:
        return syntax.Tensor(_name(name), dims, None if dtype is None else self._typed(dtype), pad)

    @staticmethod
    def _typed(token: Token) -> syntax.Name:
        word = token[1:].strip()
        end = token.end_pos or 0
        return syntax.Name(word, Span(end - len(word), end))

    def dims(self, items: tuple[Node, ...] | None) -> tuple[Node, ...]:
        return items or ()

    def expressions(self, *items: Node) -> tuple[Node, ...]:
        return items

    def number(self, sign: Token | None, token: Token) -> Node:
        node: Node = _number(token) if token.type == "NUMBER" else self.name(token)
        if not isinstance(node, syntax.Literal):
            raise Problem(_span(token), f"a number is expected here, found '{token}'")
        if sign == "-":
            return syntax.Literal(-node.value, Span(_span(sign).start, node.at.end))
        return node

    def parameters(self, *items: syntax.Parameter) -> tuple[syntax.Parameter, ...]:
        return items

    def parameter(self, name: Token, kind: Token, default: Node | None) -> syntax.Parameter:
        return syntax.Parameter(_name(name), _name(kind), default)

    def body(self, *statements: Any) -> tuple[Any, ...]:
        return statements

    def element(self, target: Token, indices: Any, sign: Token, value: Node) -> syntax.Assignment:
        return syntax.Assignment(_name(target), indices or (), value, _UPDATES.get(sign, ""))

    def whole(self, target: Token, sign: Token, value: Node) -> syntax.Assignment:
        return syntax.Assignment(_name(target), None, value, _UPDATES.get(sign, ""))

    def several(self, *parts: Any) -> syntax.Several:
        *targets, _, call = parts
        return syntax.Several(tuple(_name(t) for t in targets), self.application(call))

    def tuning(self, kind: Token, subject: Token, values: Any, per_item: Any) -> syntax.Tuning:
        return syntax.Tuning(_name(kind), _name(subject), values or (), per_item or ())

    def work_group(self, kind: Token, values: Any) -> syntax.Tuning:
        return syntax.Tuning(_name(kind), None, values or ())

    def values(self, *tokens: Token) -> tuple[syntax.Literal | syntax.Name, ...]:
        return tuple(_number(t) if t.type == "NUMBER" else _name(t) for t in tokens)

    def fast_math(self, token: Token) -> syntax.FastMath:
        return syntax.FastMath(_span(token))

    def precision(self, name: Token) -> syntax.Precision:
        return syntax.Precision(_name(name))

    def limit(self, condition: Node) -> syntax.Limit:
        return syntax.Limit(condition)

    def bounds(self, *items: Bound) -> tuple[Bound, ...]:
        return items

    def bound(self, value: Node, extent: Node | None) -> Bound:
        return Bound(value, extent)

    or_ = _binary("or")
    and_ = _binary("and")
    add = _binary("add")
    sub = _binary("sub")
    mul = _binary("mul")
    div = _binary("div")
    floordiv = _binary("floordiv")
    mod = _binary("mod")
    bitand = _binary("bitand")
    bitor = _binary("bitor")
    shl = _binary("shl")
    shr = _binary("shr")
    pow = _binary("pow")

    def prefix(self, sign: Token, arg: Node) -> Node:
        if sign == "+":
            return arg
        word = _PREFIXES[sign]
        return syntax.Application(word, (arg,), Span(_span(sign).start, arg.at.end))

    def compare(self, left: Node, sign: Token, right: Node) -> syntax.Application:
        return syntax.Application(_COMPARISONS[sign], (left, right), Span(left.at.start, right.at.end))

    def chained(self, *parts: Any) -> Node:
        raise Problem(_span(parts[3]), "comparisons do not chain; write 'a < b and b < c'")

    def reduction(self, call: _Call, body: Node, chained: bool = False) -> syntax.Reduction:
        if call.settings:
            raise Problem(call.settings[0].name.at, "a reduction has indices only; parameters by name stand in calls")
        at = Span(_span(call.name).start, body.at.end)
        return syntax.Reduction(_name(call.name), call.bounds, body, at, chained)

    def reduction_mul(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.mul(left, tail), chained=True)

    def reduction_div(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.div(left, tail), chained=True)

    def reduction_floordiv(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.floordiv(left, tail), chained=True)

    def reduction_mod(self, call: _Call, left: Node, tail: Node) -> syntax.Reduction:
        return self.reduction(call, self.mod(left, tail), chained=True)

    def call(self, function: Token, bounds: Any, settings: Any) -> _Call:
        return _Call(function, bounds or (), settings or ())

    def settings(self, *items: syntax.Setting) -> tuple[syntax.Setting, ...]:
        return items

    def setting(self, name: Token, value: Node) -> syntax.Setting:
        return syntax.Setting(_name(name), value)

    def application(self, call: _Call) -> syntax.Application:
        for b in call.bounds:
            if b.extent is not None:
                raise Problem(
                    b.extent.at, "only the index of a reduction takes an extent; its body is missing: sum(k: 3) x[n+k]"
                )
        name = _name(call.name)
        values = [*(b.value for b in call.bounds), *(s.value for s in call.settings)]
        last = values[-1].at.end + 1 if values else name.at.end + 2
        args = tuple(b.value for b in call.bounds)
        return syntax.Application(name.text, args, Span(name.at.start, last), name.at, call.settings)

    def literal(self, token: Token) -> syntax.Literal:
        return _number(token)

    def name(self, token: Token) -> Node:
        if token in _WORDS:
            return syntax.Literal(_WORDS[token], _span(token))
        return _name(token)

    def access(self, tensor: Token, index: tuple[Node, ...] | None) -> syntax.Access:
        name = _name(tensor)
        end = index[-1].at.end + 1 if index else name.at.end + 2
        return syntax.Access(name, index or (), Span(name.at.start, end))

    def qualified(self, left: Token, right: Token) -> syntax.Qualified:
        return syntax.Qualified(f"{_name(left).text}.{_name(right).text}", Span(_span(left).start, _span(right).end))
