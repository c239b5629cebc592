"""What an operator is to the planner: from attributes and operand types to Programs or views.

An operator is a function of an Application (one ONNX node with everything known about its operands) that gives

    Compute    a Program, and which operand each of its tensors is
    Expansion  several Programs, with values between them that no other node sees
    Views      the outputs are other views of the first input: nothing is computed
    Join       the output is the inputs side by side

A Program's tensor may have another shape than its operand when a reshape without data movement leads from one to the
other: grouped convolutions see channels as (group, channel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.program import Program
from tilewright.errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class Operand:
    """One input or output of an application."""

    dtype: DType
    shape: tuple[int, ...]
    value: np.ndarray | None = None
    """Its elements where they are known when the plan is made."""

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def scalar(self) -> float | int | bool | None:
        """The value of a known operand with one element and no more dimensions than one, else None."""
        if self.value is None or self.value.size != 1 or self.value.ndim > 1:
            return None
        number: float | int | bool = self.value.reshape(()).item()
        return number


NOTHING = Operand(DType.F32, ())
"""Stands for an output that nobody wants."""


@dataclass(frozen=True, eq=False)
class Application:
    """An operator applied: attributes, opset, inputs (None where left out) and the outputs' types."""

    op: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]

    def input(self, position: int) -> Operand:
        """An input that must be there."""
        operand = self.optional(position)
        if operand is None:
            raise UnsupportedError(f"its input {position} is missing")
        return operand

    def optional(self, position: int) -> Operand | None:
        """An input that may be left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def known(self, position: int) -> np.ndarray | None:
        """The elements of an input, None if it is left out; UnsupportedError if they depend on data."""
        operand = self.optional(position)
        if operand is None:
            return None
        if operand.value is None:
            raise UnsupportedError(f"its input {position} must be constant")
        return operand.value

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list-of-integers attribute, None if it is left out."""
        value = self.attributes.get(name)
        return None if value is None else tuple(int(v) for v in value)


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Compute:
    """A program over the node's operands; tensors are named ``inputs`` and ``outputs`` by operand position."""

    program: Program
    inputs: Mapping[str, int]
    outputs: Mapping[str, int] = field(default_factory=lambda: {"y": 0})
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Tensors that the operator brings along."""


@dataclass(frozen=True)
class Reshaped:
    """The same elements in row-major order under another shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Permuted:
    """Dimension d of the result is dimension ``axes[d]`` of the source."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Sliced:
    """``source[start + i * step]`` for ``size`` many i, per dimension; steps are at least 1."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    sizes: tuple[int, ...]


View = Reshaped | Permuted | Sliced


@dataclass(frozen=True)
class Views:
    """Each output is the first input seen through a chain of views."""

    views: tuple[tuple[View, ...], ...]


@dataclass(frozen=True)
class Join:
    """The output is the inputs side by side along ``axis``."""

    axis: int


@dataclass(frozen=True, eq=False)
class Link:
    """One Program of an expansion.

    Each tensor is an operand's position p, -1 - p for the node's output p, or the name of an inner value.
    """

    program: Program
    inputs: Mapping[str, int | str]
    output: int | str


@dataclass(frozen=True, eq=False)
class Expansion:
    """Programs that run one after the other and hand on values of their own, such as the steps of a recurrence."""

    links: tuple[Link, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Inner values that the operator brings along."""


Result = Compute | tuple[Compute, ...] | Expansion | Views | Join
"""Several Computes each make other outputs of the node."""


# --- the table --------------------------------------------------------------------------------------------------------

Build = Callable[[Application], Result]
Refuse = Callable[[Mapping[str, Any], int], str | None]


@dataclass(frozen=True)
class Operator:
    """An ONNX operator that can be run."""

    name: str
    build: Build
    host: tuple[int, ...] = ()
    """Inputs whose elements must be known when a plan is made (shapes, axes, pads)."""
    outputs: int = 1
    """How many outputs can be computed."""
    refuse: Refuse | None = None
    """Why certain attributes (with the opset) are not supported; one clause, or None if they are."""
    pointwise: bool = False
    """True if each element of the output depends on one element of each input."""

    def refusal(self, attributes: Mapping[str, Any], opset: int, outputs: int) -> str | None:
        """Why a node with these attributes and number of outputs cannot be run, or None if it can."""
        if outputs > self.outputs:
            first = "output is" if self.outputs == 1 else f"{self.outputs} outputs are"
            return f"only its first {first} supported"
        return self.refuse(attributes, opset) if self.refuse else None


OPERATORS: dict[str, Operator] = {}
"""Every operator that can be run, by ONNX name."""


def operator(
    *names: str,
    host: Sequence[int] = (),
    outputs: int = 1,
    refuse: Refuse | None = None,
    pointwise: bool = False,
) -> Callable[[Build], Build]:
    """Enter a function into the table under the given names."""

    def enter(build: Build) -> Build:
        for name in names:
            OPERATORS[name] = Operator(name, build, tuple(host), outputs, refuse, pointwise)
        return build

    return enter
