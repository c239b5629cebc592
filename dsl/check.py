"""A checked op of the language, ready to be given shapes.

text -> parse.py -> syntax tree -> names.py (names, ranks, order) -> Definition
Definition + shapes, types, parameters -> specialise.py (sizes.py, values.py) -> Program
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.dsl import names, syntax
from tilewright.dsl.diagnostics import Problem, language_error
from tilewright.dsl.dtypes import DType
from tilewright.dsl.names import Checked, ParameterDeclaration, TensorDeclaration
from tilewright.dsl.opcalls import called
from tilewright.dsl.precision import known
from tilewright.dsl.program import Program
from tilewright.dsl.specialise import specialise
from tilewright.dsl.syntax import Span
from tilewright.dsl.userdefs import check_functions


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
        fast_math: bool = False,
        precision: str | None = None,
    ) -> Program:
        """The Program for concrete shapes (one per input), element types (f32 where neither declared nor given) and
        parameters. ``sizes`` fixes sizes of the header that the shapes do not give; ``fast_math`` asks for what the
        line of that name does; ``precision`` takes the place of the op's line of that name.

        Raises ShapeError for arguments that do not fit (it names op, tensor, size, expected and found) and
        LanguageError where the text cannot be right for any arguments.
        """
        try:
            op = self.checked if precision is None else replace(self.checked, precision=known(precision))
            made = specialise(op, shapes, dtypes or {}, parameters or {}, sizes or {})
            return replace(made, fast_math=True) if fast_math and not made.fast_math else made
        except Problem as problem:
            raise language_error(self.text, problem) from None


def define(tree: syntax.Text, text: str) -> tuple[Definition, ...]:
    """Check everything that a text defines; gives its ops in their order, Problem at the first mistake."""
    if not tree.ops:
        end = len(text.rstrip())
        raise Problem(Span(end, end), "the text defines functions but no op; an op starts with: op name(inputs) -> ...")
    functions = check_functions(tree.functions)
    ops: dict[str, syntax.Op] = {}
    for op in tree.ops:
        name = op.name.text
        if name in ops:
            raise Problem(op.name.at, f"the op {name} is defined twice")
        if name in functions:
            raise Problem(op.name.at, f"{name} is a function of this text; choose another name for the op")
        ops[name] = op
    checked: dict[str, Checked] = {}
    for name in ops:
        _check_with_callees(name, ops, functions, checked, [])
    return tuple(Definition(text, checked[name]) for name in ops)


def _check_with_callees(
    name: str,
    ops: Mapping[str, syntax.Op],
    functions: Mapping[str, syntax.Function],
    checked: dict[str, Checked],
    callers: list[str],
) -> None:
    """Check an op after those that it calls; `callers` are the ops on the way to this one."""
    if name in checked:
        return
    path = [*callers, name]
    for call in called(ops[name], ops):
        if call.function in path:
            way = " which calls ".join((*path[path.index(call.function) :], call.function))
            raise Problem(call.called or call.at, f"ops do not call themselves: {way}")
        _check_with_callees(call.function, ops, functions, checked, path)
    checked[name] = names.check(ops[name], functions, checked)
