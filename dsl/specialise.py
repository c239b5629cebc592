"""A checked op plus concrete shapes, types and parameters gives a Program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tilewright.dsl import syntax
from tilewright.dsl.diagnostics import Problem, listed, suggestion
from tilewright.dsl.dtypes import DType
from tilewright.dsl.embedding import arguments, embedded, settled
from tilewright.dsl.environment import Environment
from tilewright.dsl.names import Checked, ParameterDeclaration, TensorDeclaration
from tilewright.dsl.opcalls import CheckedCall
from tilewright.dsl.precision import ROUNDED_TO, rounded
from tilewright.dsl.program import Const, Program, Statement, Tensor
from tilewright.dsl.sizes import LARGEST
from tilewright.dsl.statements import build
from tilewright.dsl.values import Kind, Value, integer_range, number, typed
from tilewright.dsl.vocabulary import DTYPES, wrong_constant


def specialise(
    checked: Checked,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, DType],
    parameters: Mapping[str, int | float | bool],
    sizes: Mapping[str, int],
) -> Program:
    """See `Definition.specialise`; raises Problem where the text itself is wrong."""
    work = _Specialiser(checked)
    work.set_parameters(parameters)
    work.set_inputs(shapes, dtypes)
    work.set_sizes(sizes)
    return work.program()


class _Specialiser(Environment):
    """Fills an environment from the arguments, then works through the statements."""

    def set_parameters(self, given: Mapping[str, int | float | bool]) -> None:
        """Fill in the header's parameters; int ones also count as sizes."""
        declared = {p.name: p for p in self.checked.parameters}
        self._refuse_unknown(given, declared, "parameter")
        for p in declared.values():
            value = given.get(p.name, p.default)
            if value is None:
                raise self.error(f"the parameter {p.name} ({p.type}) is missing")
            reason = wrong_constant(value, p.type)
            if reason:
                raise self.error(f"the parameter {p.name} is {p.type}, but {value!r} {reason}")
            if p.type == "int":
                self.sizes.bind(p.name, int(value), f"the parameter {p.name}")
            self.parameters[p.name] = _parameter_value(p, value)

    def set_inputs(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, DType]) -> None:
        """Make the input tensors and bind the sizes that their shapes give."""
        shapes = {self.old.get(name, name): shape for name, shape in shapes.items()}
        dtypes = {self.old.get(name, name): dtype for name, dtype in dtypes.items()}
        names = [t.name for t in self.checked.inputs]
        self._refuse_unknown(shapes, names, "input")
        self._refuse_unknown(dtypes, names, "input")
        for t in self.checked.inputs:
            if t.name not in shapes:
                why = "; its value from before the op is an input, as it is read before it is assigned"
                raise self.error(f"the input {t.argument} is missing{why if t.old_of else ''}")
            shape = tuple(int(n) for n in shapes[t.name])
            if any(n < 0 for n in shape) or math.prod(shape) >= LARGEST:
                raise self.error(f"the input {t.name} has the impossible shape {list(shape)}")
            dtype = dtypes.get(t.name, t.dtype or DType.F32)
            if t.dtype is not None and dtype is not t.dtype:
                raise self.error(f"the input {t.argument} should be {t.dtype.value}, found {dtype.value}")
            self.bind_dims(t, shape)
            self.add(Tensor(t.name, dtype, shape, pad=self._pad(t, dtype)), Kind(dtype))

    def set_sizes(self, sizes: Mapping[str, int]) -> None:
        """Bind the sizes that the caller gives."""
        self._refuse_unknown(sizes, self.checked.sizes, "size")
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
                raise self.error(f"the size {name} cannot be {value!r}")
            self.sizes.bind(name, value, "the argument sizes")

    def _refuse_unknown(self, given: Iterable[str], known: Iterable[str], what: str) -> None:
        known = list(known)
        for name in given:
            if name not in known:
                there = f"; there is {listed(known, 'and')}" if known else "; there is none"
                raise self.error(f"no {what} is called {str(name)!r}{suggestion(str(name), known) or there}")

    def _pad(self, t: TensorDeclaration, dtype: DType) -> float:
        """The pad value as the element type holds it; infinities become an integer type's ends."""
        if dtype.is_float or t.pad == 0:
            return t.pad
        if dtype is DType.BOOL:
            if t.pad == 1:
                return t.pad
        else:
            low, high = integer_range(dtype)
            if math.isinf(t.pad):
                end = low if t.pad < 0 else high
                return float(end) if int(float(end)) == end else end
            if t.pad == t.pad // 1 and low <= t.pad <= high:
                return t.pad
        raise self.error(f"the pad value {t.pad} of {t.name} does not exist in {dtype.value}")

    def program(self) -> Program:
        """Work through the statements."""
        self.solve_equations()
        statements: list[Statement] = []
        for s in self.checked.statements:
            try:
                statements += self._called(s) if isinstance(s, CheckedCall) else self._built(s)
            except RecursionError:  # the limits above keep it away unless the caller's own stack is nearly full
                raise Problem(s.target.at, "the expression is nested too deeply for the stack that is left") from None
            self.solve_equations()
        for e in self.equations:
            raise self.error(
                f"the size {e.target.text} = {syntax.node_text(e.value)} cannot be computed; "
                "give the sizes it names in sizes"
            )
        for node, _, place in self.open_dims:
            raise self.error(f"{place} is declared as {syntax.node_text(node)}, whose names are not known; give sizes")
        outputs = [t.name for t in self.checked.outputs]
        inner = [s.target for s in statements if s.target not in outputs]
        program = Program(
            self.op,
            tuple(self.tensors[t.name] for t in self.checked.inputs),
            tuple(self.tensors[name] for name in outputs),
            tuple(statements),
            tuple(self.tensors[name] for name in inner),
            tuple(self.hints),
            tuple(self.limits),
            self.fast_math,
            self.precision,
        )
        return settled(program, self.padded) if self.padded else program

    def _built(self, s: syntax.Assignment) -> list[Statement]:
        """The statements of an assignment, with factors rounded as the op's precision says."""
        dtype = ROUNDED_TO.get(self.checked.precision)
        statements = build(self, s)
        return statements if dtype is None else [rounded(made, dtype) for made in statements]

    def _called(self, call: CheckedCall) -> list[Statement]:
        """The statements that a call of another op stands for."""
        given = [self.tensors[a.text] for a in call.args]
        inputs = [t.name for t in call.callee.inputs]
        shapes = {name: t.shape for name, t in zip(inputs, given, strict=True)}
        dtypes = {name: t.dtype for name, t in zip(inputs, given, strict=True)}
        parameters, sizes = arguments(self, call)
        callee = replace(call.callee, precision=call.callee.precision or self.checked.precision)
        return embedded(self, call, lambda: specialise(callee, shapes, dtypes, parameters, sizes))


def _parameter_value(p: ParameterDeclaration, value: int | float | bool) -> Value:
    if p.type in ("int", "bool"):
        return number(value)
    dtype = DTYPES[p.type]
    return typed(Const(float(value), dtype), Kind(dtype, weak=True))
