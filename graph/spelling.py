"""Spelling one operator by others: statements in ONNX's text format, which become a function in a node's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from tilewright.errors import UnsupportedError


@dataclass(frozen=True)
class Spelled:
    """A node that is to be expanded: its attributes, which inputs it has and which outputs are wanted."""

    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    """Names in the text of those that are there; variadic ones are ``x0``, ``x1``, ..."""
    outputs: tuple[str, ...]
    types: Mapping[str, onnx.TypeProto]
    """Types of inputs where they are known."""

    def has(self, name: str) -> bool:
        """Whether an input is there."""
        return name in self.inputs

    def wants(self, name: str) -> bool:
        """Whether an output is wanted."""
        return name in self.outputs

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self.attributes.get(name, default))

    def rank(self, name: str) -> int | None:
        """An input's number of dimensions if it is known."""
        tensor = self.types[name].tensor_type if name in self.types else onnx.TypeProto.Tensor()
        return len(tensor.shape.dim) if tensor.HasField("shape") else None

    def element(self, name: str) -> int | None:
        """ONNX's number of an input's element type if it is known."""
        return self.types[name].tensor_type.elem_type if name in self.types else None

    def or_none(self, name: str) -> str:
        """An input as an argument, which may be left out."""
        return name if self.has(name) else ""

    def refuse(self, *attributes: str) -> None:
        """UnsupportedError for attributes that are not 0."""
        for name in attributes:
            if self.attributes.get(name):
                raise UnsupportedError(f"its attribute {name} is not supported")

    def refuse_present(self, *names: str) -> None:
        """UnsupportedError for inputs or outputs that are there."""
        for name in names:
            if name in (*self.inputs, *self.outputs):
                raise UnsupportedError(f"its {name} is not supported")

    def needs_only(self, *names: str) -> None:
        """UnsupportedError for inputs or outputs that are not among these."""
        for name in (*self.inputs, *self.outputs):
            if name not in names:
                raise UnsupportedError(f"its {name} is not supported")


Spell = Callable[[Spelled], str]


@dataclass(frozen=True)
class Contributed:
    """An operator and how it is spelled."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spell: Spell


class Table(dict[str, Contributed]):
    """Spellings by operator."""

    def enter(self, *ops: str, inputs: str, outputs: str = "y") -> Callable[[Spell], Spell]:
        """Enter a spelling under operators' names. A last input of ``x*`` stands for any number of them."""

        def entered(spell: Spell) -> Spell:
            for op in ops:
                self[op] = Contributed(tuple(inputs.split()), tuple(outputs.split()), spell)
            return spell

        return entered


def constant(name: str, value: float | int | list[int]) -> str:
    """A statement that makes a constant: a float, an integer, or a list of these."""
    if isinstance(value, list):
        return f"{name} = Constant <value_ints = {value}> ()"
    if isinstance(value, int):
        return f"{name} = Constant <value_int = {value}> ()"
    return f"{name} = Constant <value_float = {floating(value)}> ()"


def floating(value: float) -> str:
    """A float as ONNX's texts have it."""
    text = repr(float(value))
    if not any(c in text for c in ".e"):
        raise UnsupportedError(f"the number {text} cannot be written")
    return text


def scaled(target: str, source: str, factor: float) -> str:
    """Statements for a value times a constant of its type."""
    if factor == 1:
        return f"{target} = Identity ({source})"
    name = f"{target}_factor"
    return (
        f"{constant(name, factor)}\n{name}_typed = CastLike ({name}, {source})\n{target} = Mul ({source}, {name}_typed)"
    )


def window(n: Spelled, *lists: str, **integers: int) -> str:
    """Attributes of a window: lists as far as they are there, integers with their defaults, and `auto_pad`."""
    texts = [f"{name} = {list(n.attributes[name])}" for name in lists if name in n.attributes]
    texts += [f"{name} = {n.integer(name, default)}" for name, default in integers.items()]
    auto_pad = str(n.attributes.get("auto_pad", "NOTSET"))
    if auto_pad not in {"NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"}:
        raise UnsupportedError("its attribute auto_pad is not one of ONNX's")
    return ", ".join([*texts, f'auto_pad = "{auto_pad}"'])
