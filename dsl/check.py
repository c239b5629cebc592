"""A checked op of the language, ready to be given shapes.

text -> parse.py -> syntax tree -> names.py (names, ranks, order) -> Definition
Definition + shapes, types, parameters -> specialise.py (sizes.py, values.py) -> Program
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.dsl import names, syntax
from tilewright.dsl.diagnostics import Problem, language_error
from tilewright.dsl.dtypes import DType
from tilewright.dsl.names import Checked, ParameterDeclaration, TensorDeclaration
from tilewright.dsl.program import Program
from tilewright.dsl.specialise import specialise


@dataclass(frozen=True)
class Definition:
    """An op as written: names checked, sizes and types open."""

    text: str
    """The text that defines it (and maybe other ops)."""
    checked: Checked

    @property
    def name(self) -> str:
        return self.checked.name

    @property
    def inputs(self) -> tuple[TensorDeclaration, ...]:
        """Declared inputs: name, shape (None: any), dtype (None: as given), pad value."""
        return self.checked.inputs

    @property
    def outputs(self) -> tuple[TensorDeclaration, ...]:
        """Declared outputs: name, shape (None: as computed), dtype (None: as computed)."""
        return self.checked.outputs

    @property
    def parameters(self) -> tuple[ParameterDeclaration, ...]:
        """Compile-time constants: name, type, default (None: must be given)."""
        return self.checked.parameters

    def specialise(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, DType] | None = None,
        parameters: Mapping[str, int | float | bool] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> Program:
        """The Program for concrete shapes (one per input), element types (f32 where neither declared nor given) and
        parameters. ``sizes`` fixes sizes of the header that the shapes do not give.

        Raises ShapeError for arguments that do not fit (it names op, tensor, size, expected and found) and
        LanguageError where the text cannot be right for any arguments.
        """
        try:
            return specialise(self.checked, shapes, dtypes or {}, parameters or {}, sizes or {})
        except Problem as problem:
            raise language_error(self.text, problem) from None


def define(op: syntax.Op, text: str) -> Definition:
    """Check one op of a text; raises Problem at the first mistake."""
    return Definition(text, names.check(op))
