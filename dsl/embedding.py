"""Calls of ops with sizes known: the callee's statements take the place of the call.

The callee's inputs become the caller's tensors, its outputs the call's targets, its intermediates and indices get names
of their own. What an input's `pad` says holds within the callee: where it differs from the tensor's, the callee reads a
copy, which `settled` takes away again wherever the difference is never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.diagnostics import Problem
from tilewright.dsl.dtypes import DType
from tilewright.dsl.environment import Environment
from tilewright.dsl.opcalls import CheckedCall
from tilewright.dsl.precision import common
from tilewright.dsl.program import (
    Expr,
    Hint,
    Index,
    Program,
    Read,
    Statement,
    Tensor,
    all_indices,
    checked_dimensions,
    extents,
    rename_indices,
    rename_limit,
    rename_tensors,
    walk,
)
from tilewright.dsl.syntax import Application, Literal, Name, Node
from tilewright.dsl.values import Kind, cast
from tilewright.errors import ShapeError

MAX_STATEMENTS = 1_000
"""Most statements of a Program: calls that call others twice each would double them level by level."""


def arguments(work: Environment, call: CheckedCall) -> tuple[dict[str, int | float | bool], dict[str, int]]:
    """The values of a call's parameters, and of the sizes that it gives."""
    parameters: dict[str, int | float | bool] = {}
    sizes: dict[str, int] = {}
    kinds = {p.name: p.type for p in call.callee.parameters}
    for s in call.settings:
        name = s.name.text
        value = _number(work, s.value)
        if name in kinds:
            parameters[name] = value
        elif isinstance(value, int):
            sizes[name] = value
    return parameters, sizes


def _number(work: Environment, node: Node) -> int | float | bool:
    match node:
        case Literal():
            return node.value
        case Application(function="neg", args=(Literal(value=value),)):
            return -value
        case Name() if node.text in work.parameters:
            constant = work.parameters[node.text].expr
            return constant.value  # type: ignore[union-attr]  # parameters are constants
    found = work.sizes.integer(node)
    if found is None:
        raise work.error("a parameter of a call names a size that is not known")
    return found


class Embedding:
    """One call: the callee's Program becomes statements of the caller's."""

    def __init__(self, work: Environment, call: CheckedCall, made: Program) -> None:
        self.work = work
        self.call = call
        self.made = made
        self.names: dict[str, str] = {}
        """The callee's tensors as the caller calls them."""
        self.before: list[Statement] = []
        self.after: list[Statement] = []

    def statements(self) -> list[Statement]:
        """The statements in order; their tensors are entered into the caller's environment."""
        for name, t in zip(self.call.args, self.made.inputs, strict=True):
            self.names[t.name] = self._input(name.text, t)
        for t in self.made.intermediates:
            fresh = self._fresh(f"{self.call.target.text}_{t.name}")
            self.names[t.name] = fresh
            self._add(replace(t, name=fresh))
        for target, t in zip(self.call.targets, self.made.outputs, strict=True):
            self.names[t.name] = self._output(target, t)
        inside = [self._renamed(s) for s in self.made.statements]
        self.work.hints += [self._hint(h) for h in self.made.hints]
        own = {i.name: self._index(i.name) for s in self.made.statements for i in all_indices(s)}
        self.work.limits += [rename_limit(x, own) for x in self.made.limits]
        self.work.fast_math |= self.made.fast_math
        self.work.precision = common(self.work.precision, self.made.precision)
        return [*self.before, *inside, *self.after]

    def _input(self, name: str, t: Tensor) -> str:
        """The caller's tensor that stands for an input: itself, or a copy with the callee's pad."""
        given = self.work.tensors[name]
        if given.pad == t.pad:
            return name
        copy = self._fresh(f"{name}_padded")
        self._add(replace(t, name=copy))
        self.before.append(_copied(given, copy, given.dtype))
        self.work.padded[copy] = name
        return copy

    def _output(self, target: Name, t: Tensor) -> str:
        """The target itself, or what is converted into it."""
        declared = self.work.declared.get(target.text)
        dtype = t.dtype if declared is None or declared.dtype is None else declared.dtype
        if declared is not None:
            self.work.bind_dims(declared, t.shape)
        self._add(Tensor(target.text, dtype, t.shape))
        if dtype is t.dtype:
            return target.text
        inner = self._fresh(f"{target.text}_{t.name}")
        self._add(replace(t, name=inner))
        self.after.append(_copied(self.work.tensors[inner], target.text, dtype))
        return inner

    def _add(self, t: Tensor) -> None:
        self.work.add(t, Kind(t.dtype))

    def _fresh(self, stem: str) -> str:
        name, n = stem, 2
        while name in self.work.tensors or name in self.work.checked.names:
            name, n = f"{stem}_{n}", n + 1
        return name

    # --- indices: hints speak of them by name, so that those of the callee must not be the caller's ---

    def _renamed(self, s: Statement) -> Statement:
        s = replace(s, target=self.names[s.target], value=rename_tensors(s.value, self.names))
        if not (self.made.hints or self.made.limits or self.work.checked.hints or self.work.checked.limits):
            return s
        return rename_indices(s, {i.name: self._index(i.name) for i in all_indices(s)})

    def _index(self, name: str) -> str:
        return f"{name}_{self.call.target.text}"

    def _hint(self, h: Hint) -> Hint:
        if h.kind == "stage":
            return replace(h, subject=self.names.get(h.subject, h.subject))
        return replace(h, subject=self._index(h.subject)) if h.subject else h


def _copied(source: Tensor, target: str, dtype: DType) -> Statement:
    indices = tuple(Index(f"i{d}", n) for d, n in enumerate(source.shape))
    value: Expr = Read(source.name, tuple(Affine.index(i.name) for i in indices), source.dtype)
    return Statement(target, indices, cast(value, dtype))


def embedded(work: Environment, call: CheckedCall, made: Callable[[], Program]) -> list[Statement]:
    """The statements of a call, where `made` gives the callee's Program for the call's arguments."""
    try:
        program = made()
    except ShapeError as error:
        raise ShapeError(f"op {work.op}, in its call of {call.callee.name}: {error}") from None
    found = Embedding(work, call, program).statements()
    work.count += len(found)
    if work.count > MAX_STATEMENTS:
        raise Problem(call.at, f"with the ops it calls, {work.op} has more than {MAX_STATEMENTS:,} statements")
    return found


# --- pads -------------------------------------------------------------------------------------------------------------


def settled(program: Program, padded: Mapping[str, str]) -> Program:
    """The program without those copies (copy to source in ``padded``) that could as well be their source."""
    for copy, source in padded.items():
        tensors = program.tensors
        wanted, there = tensors[copy].pad, tensors[source].pad
        rest = [s for s in program.statements if s.target != copy]
        if wanted == there or not _leaves(program, rest, copy):
            pad = there
        elif not _leaves(program, rest, source):
            pad = wanted
        else:
            continue

        def kept(
            group: tuple[Tensor, ...], source: str = source, copy: str = copy, pad: float = pad
        ) -> Iterator[Tensor]:
            return (replace(t, pad=pad) if t.name == source else t for t in group if t.name != copy)

        program = replace(
            program,
            inputs=tuple(kept(program.inputs)),
            outputs=tuple(kept(program.outputs)),
            intermediates=tuple(kept(program.intermediates)),
            statements=tuple(replace(s, value=rename_tensors(s.value, {copy: source})) for s in rest),
            hints=tuple(replace(h, subject=source) if h.subject == copy else h for h in program.hints),
        )
    return program


def _leaves(program: Program, statements: Iterable[Statement], tensor: str) -> bool:
    """Whether a read of a tensor may lie outside it."""
    shape = program.tensors[tensor].shape
    return any(
        checked_dimensions(n.index, shape, extents(s))
        for s in statements
        for n in walk(s.value)
        if isinstance(n, Read) and n.tensor == tensor
    )
