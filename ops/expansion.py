"""Building expansions: operators that are several Programs with values of their own between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program
from tilewright.errors import UnsupportedError
from tilewright.ops.operator import Application, Expansion, Link


@dataclass(frozen=True)
class Inner:
    """A value of an expansion, seen under a shape; its key is what a Link calls it."""

    key: int | str
    dtype: DType
    shape: tuple[int, ...]
    pad: str = ""
    """What reads outside it give, 0 if nothing is said."""

    @property
    def declared(self) -> str:
        """Sizes and pad as a header has them."""
        return f"[{', '.join(map(str, self.shape))}]{f' pad {self.pad}' if self.pad else ''}"

    def seen(self, *shape: int) -> Inner:
        """The same elements in row-major order under another shape."""
        return Inner(self.key, self.dtype, shape)


@dataclass
class Expanding:
    """An expansion while it is being made. Links of one text, shapes and types share their Program."""

    app: Application
    links: list[Link] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    programs: dict[object, Program] = field(default_factory=dict)

    def operand(self, position: int) -> Inner | None:
        """An input of the node, None if it is left out."""
        found = self.app.optional(position)
        return None if found is None else Inner(position, found.dtype, found.shape)

    def constant(self, name: str, array: np.ndarray) -> Inner:
        """A value that the operator brings along, under a name that no link and no other constant has."""
        self.constants[name] = array
        return Inner(name, DType.from_numpy(array.dtype), array.shape)

    def link(
        self,
        body: str,
        operands: Mapping[str, Inner],
        to: int | str,
        dtype: DType,
        shape: tuple[int, ...],
        functions: str = "",
    ) -> Inner:
        """Run statements that assign `y` from operands by tensor name; they make the value `to`.

        ``to`` is the position of one of the node's outputs or the new name of an inner value. Each operand is declared
        with its sizes and `y` with this type and shape; ``functions`` are definitions that the statements use.
        """
        self._check([*operands.values(), Inner(to if isinstance(to, str) else -1 - to, dtype, shape)])
        key = body, functions, tuple((name, v.dtype, v.shape, v.pad) for name, v in operands.items()), dtype, shape
        if key not in self.programs:
            inputs = ", ".join(f"{name}{v.declared}" for name, v in operands.items())
            output = f"y[{', '.join(map(str, shape))}]: {dtype.value}"
            made = parse_op(f"{functions}\nop link({inputs}) -> {output}:\n{body}\n")
            self.programs[key] = made.specialise(
                {name: v.shape for name, v in operands.items()}, {name: v.dtype for name, v in operands.items()}
            )
        made_as = to if isinstance(to, str) else -1 - to
        self.links.append(Link(self.programs[key], {name: v.key for name, v in operands.items()}, made_as))
        return Inner(made_as, dtype, shape)

    def _check(self, values: Sequence[Inner]) -> None:
        """UnsupportedError for one of the node's own values that is seen under a shape of another size."""
        for v in values:
            if isinstance(v.key, str):
                continue
            own = self.app.input(v.key) if v.key >= 0 else self.app.outputs[-1 - v.key]
            kind, position = ("input", v.key) if v.key >= 0 else ("output", -1 - v.key)
            if min(own.shape, default=0) < 0 or math.prod(own.shape) != math.prod(v.shape):
                raise UnsupportedError(
                    f"its {kind} {position} has the sizes {own.shape}, {v.shape} would fit the others"
                )

    def finished(self) -> Expansion:
        """All links and constants."""
        return Expansion(tuple(self.links), self.constants)
