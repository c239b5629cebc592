"""Ops as functions on NumPy arrays and on arrays in device memory.

relu = op("op relu(x[N,C], b[C]) -> y[N,C]:\\n    y[n,c] = max(x[n,c] + b[c], 0)")
y = relu(x, b)                           # NumPy in, NumPy out
y = relu(asarray(x, device="pocl"), b)   # tilewright.Array in, tilewright.Array out
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from tilewright.dsl import signatures, trace
from tilewright.dsl.check import Definition
from tilewright.dsl.diagnostics import listed
from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.precision import known
from tilewright.dsl.program import Program
from tilewright.dsl.text import statement_text
from tilewright.errors import DeviceError, LanguageError, ShapeError
from tilewright.graph.plan import Plan, PlannedCall, plan_program
from tilewright.runtime import Array, Buffer, Context, Device, context, element_type, select_device
from tilewright.tuning_db import Store
from tilewright.tuning_db.default import default_store

if TYPE_CHECKING:
    from tilewright.autotune import Progress, TuningReport
    from tilewright.choices import Choices
    from tilewright.explain import Explanation

log = logging.getLogger("tilewright")

PLANS_KEPT = 64
"""Plans that an op keeps; the one that was used longest ago goes first."""

Scalar = int | float | bool


Operand = npt.NDArray[Any] | Array


@dataclass(frozen=True)
class Arguments:
    """A call's arguments, sorted out: arrays by input name, parameters and sizes by name, and where to run."""

    arrays: Mapping[str, Operand]
    parameters: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    device: Device

    @property
    def on_device(self) -> bool:
        """True if results stay on the device."""
        return any(isinstance(a, Array) for a in self.arrays.values())

    @property
    def feeds(self) -> dict[str, npt.NDArray[Any] | Buffer]:
        """What a plan is run with."""
        return {name: a.buffer if isinstance(a, Array) else a for name, a in self.arrays.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by input name."""
        return {name: tuple(a.shape) for name, a in self.arrays.items()}

    @property
    def dtypes(self) -> dict[str, DType]:
        """Element type by input name."""
        return {name: element_type(a.dtype, f"the input {name}") for name, a in self.arrays.items()}


def sort_arguments(
    definition: Definition, inputs: Sequence[Any], named: Mapping[str, Any], device: str | Device | None
) -> Arguments:
    """Assign arguments to what the op declares: positional ones to inputs in order, named ones by name.

    Raises ShapeError for a wrong number or name, DeviceError for arrays on different devices.
    """
    declared = {t.argument: t for t in definition.inputs}
    if len(inputs) > len(declared):
        raise ShapeError(
            f"op {definition.name} takes {_count(len(declared), 'input')} ({', '.join(declared)}), "
            f"found {len(inputs)}; parameters are given by name"
        )
    given: dict[str, Any] = dict(zip(declared, inputs, strict=False))
    parameters: dict[str, Scalar] = {}
    sizes: dict[str, int] = {}
    for name, value in named.items():
        if name in given:
            raise ShapeError(f"op {definition.name}: the input {name} is given twice")
        if name in declared:
            given[name] = value
        elif name in definition.checked.sizes:
            sizes[name] = value
        elif any(p.name == name for p in definition.parameters):
            parameters[name] = value
        else:
            known = [*declared, *(p.name for p in definition.parameters)]
            raise ShapeError(f"op {definition.name} has no input or parameter {name}; there is {listed(known, 'and')}")
    missing = [name for name in declared if name not in given]
    if missing:
        old = [name for name in missing if declared[name].old_of]
        why = f"; the op reads what {listed(old, 'and')} held before it" if old else ""
        raise ShapeError(
            f"op {definition.name} takes {_count(len(declared), 'input')} ({', '.join(declared)}), "
            f"but {listed(missing, 'and')} {'is' if len(missing) == 1 else 'are'} missing{why}"
        )
    arrays = {t.name: _operand(definition.name, name, given[name], t.dtype) for name, t in declared.items()}
    return Arguments(arrays, parameters, sizes, _common_device(definition.name, arrays, device))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _operand(op: str, name: str, value: Any, declared: DType | None) -> Operand:
    """A value as an array; plain Python numbers take the declared element type, or f32, i32 or bool."""
    if isinstance(value, Array):
        return value
    if isinstance(value, bool | int | float):
        natural = DType.BOOL if isinstance(value, bool) else DType.I32 if isinstance(value, int) else DType.F32
        return np.array(value, (declared or natural).numpy)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"op {op}: the input {name} is no array: {error}") from None
    element_type(array.dtype, f"op {op}, the input {name}")
    return array


def _common_device(op: str, arrays: Mapping[str, Operand], selector: str | Device | None) -> Device:
    """The one device that all arrays in device memory lie on, else the one asked for."""
    places = {name: a.device for name, a in arrays.items() if isinstance(a, Array)}
    if len(set(places.values())) > 1:
        listing = ", ".join(f"{name} on {device.name}" for name, device in places.items())
        raise DeviceError(f"op {op}: the inputs lie on different devices ({listing}); move them with asarray")
    if not places:
        return select_device(selector)
    device = next(iter(places.values()))
    if selector is not None and select_device(selector) != device:
        raise DeviceError(
            f"op {op} is to run on {select_device(selector).name}, but {listed(places, 'and')} "
            f"{'lies' if len(places) == 1 else 'lie'} on {device.name}; move with asarray or leave out device="
        )
    return device


# --- ops --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """A plan with what it was made from: it is of no use once one of these has changed."""

    plan: Plan
    program: Program
    ctx: Context
    generation: int


class Op:
    """A program in the language as a function; `op` makes one from text.

    Call it with inputs in the order of the header or by name, parameters by name. ``device`` is a name, a Device, or
    None for the default. NumPy arrays give NumPy arrays; if any input is a `tilewright.Array`, results are Arrays on
    its device. Several outputs come as a tuple. An op may be called from several threads.

    Raises ShapeError for arguments that do not fit, DeviceError for an unknown device or inputs on several devices,
    UnsupportedError if the device lacks an element type.
    """

    def __init__(self, definition: Definition, fast_math: bool = False, precision: str | None = None) -> None:
        self.definition = definition
        self.fast_math = fast_math
        self.precision = None if precision is None else known(precision)
        self.__name__ = definition.name
        self.__doc__ = definition.text
        self._plans: OrderedDict[object, _Ready] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The op's name."""
        return self.definition.name

    @property
    def text(self) -> str:
        """The text it was made from."""
        return self.definition.text

    def __repr__(self) -> str:
        return f"<tilewright.Op {self.name}>\n{self.text.strip()}"

    def __call__(self, *inputs: Any, device: str | Device | None = None, **named: Any) -> Any:
        if trace.is_active():
            return self._traced(inputs, named)
        arguments = sort_arguments(self.definition, inputs, named, device)
        ready = self._ready(arguments)
        outputs = ready.program.outputs
        if arguments.on_device:
            buffers = ready.plan.run_on_device(arguments.feeds)
            return _one_or_all([Array(buffers[t.name], t.shape, t.dtype, arguments.device) for t in outputs])
        results = ready.plan.run({n: np.asarray(a) for n, a in arguments.arrays.items()})
        return _one_or_all([results[t.name] for t in outputs])

    def _traced(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """The call as a statement of the op that is being traced."""
        tensors = {t.argument for t in self.definition.inputs} & named.keys()
        if tensors:
            raise LanguageError(f"op {self.name} is called within an op with its inputs in order, not by name")
        outputs = len(self.definition.outputs)
        return _one_or_all(list(trace.called(self.name, self.text, outputs, tuple(inputs), dict(named))))

    def tune(
        self,
        *inputs: Any,
        device: str | Device | None = None,
        budget: str | float | None = None,
        evaluations: int | None = None,
        progress: bool | Progress = False,
        fleet: str | None = None,
        **named: Any,
    ) -> TuningReport:
        """Search faster kernels for arguments like these by measuring on the device; the next call uses them.

        ``budget`` is a time such as "30s", ``evaluations`` a number of candidates; without either the search ends when
        nothing better turns up. ``progress`` shows a bar, or calls a function after each candidate. ``fleet`` is the
        address of a Dask scheduler, whose workers with the same device measure in place of this machine. Results go to
        the tuning database; DatabaseError if that cannot be written.
        """
        from tilewright.autotune import Budget, tune

        arguments = sort_arguments(self.definition, inputs, named, device)
        stages = [replace(call.program, name=self.name) for call in self._ready(arguments).plan.calls]
        store = default_store() or Store.open()  # the latter says why there is none
        with _shown(progress) as report:
            return tune(stages, arguments.device, store, Budget.parse(budget, evaluations), report, fleet=fleet)

    def source(self, *inputs: Any, device: str | Device | None = None, **named: Any) -> str:
        """The OpenCL C that a call with these arguments runs, every stage with its family and configuration."""
        calls = self._ready(sort_arguments(self.definition, inputs, named, device)).plan.calls
        return "\n".join(_stage_source(call, n, len(calls)) for n, call in enumerate(calls, 1))

    def space(self, *inputs: Any, device: str | Device | None = None, **named: Any) -> Choices:
        """What tuning would choose from: per stage the families that fit, each with its parameters and their meaning,
        how many configurations are legal, and what the op's own lines (tile, where, ...) narrow. Prints well.
        """
        from tilewright.choices import choices

        return choices(self.name, self._ready(sort_arguments(self.definition, inputs, named, device)).plan)

    def explain(
        self,
        *inputs: Any,
        device: str | Device | None = None,
        measure: bool = True,
        measure_limits: bool = False,
        **named: Any,
    ) -> Explanation:
        """Why a call with these arguments runs as it does: per stage the family and why no other, the configuration
        and where it is from, and its time beside the least that the device allows. Prints well.

        The device's limits are measured on first use (some seconds) and kept; ``measure_limits`` does it again.
        Without ``measure`` nothing is run, and times are those of stored winners.
        """
        from tilewright.explain import explain

        arguments = sort_arguments(self.definition, inputs, named, device)
        plan, store = self._ready(arguments).plan, default_store()
        return explain(self.name, plan, arguments.feeds, store, measure, measure_limits)

    def plan(self, *inputs: Any, device: str | Device | None = None, **named: Any) -> Plan:
        """The plan that a call with these arguments runs."""
        return self._ready(sort_arguments(self.definition, inputs, named, device)).plan

    def _ready(self, arguments: Arguments) -> _Ready:
        """The plan for these shapes, types, parameters and device; made anew after tuning or a fault of the device."""
        ctx, store = context(arguments.device), default_store()
        generation = store.generation if store else 0
        shapes, dtypes = arguments.shapes, arguments.dtypes
        named = (shapes, dtypes, _exact(arguments.parameters), arguments.sizes)
        key = (arguments.device.name, *(tuple(part.items()) for part in named))
        with self._lock:
            ready = self._plans.get(key)
            if ready is None or ready.ctx is not ctx or ready.generation != generation:
                program = self.definition.specialise(
                    shapes, dtypes, arguments.parameters, arguments.sizes, self.fast_math, self.precision
                )
                ready = _Ready(plan_program(program, arguments.device, store), program, ctx, generation)
                self._plans[key] = ready
                if len(self._plans) > PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return ready


@overload
def op(
    source: str | Callable[..., Any], name: str | None = None, *, fast_math: bool = False, precision: str | None = None
) -> Op: ...
@overload
def op(
    source: None = None, *, fast_math: bool = False, precision: str | None = None
) -> Callable[[Callable[..., Any]], Op]: ...


def op(
    source: str | Callable[..., Any] | None = None,
    name: str | None = None,
    *,
    fast_math: bool = False,
    precision: str | None = None,
) -> Op | Callable[[Callable[..., Any]], Op]:
    """An op from a text in the language, or from a Python function that says the same (`tilewright.lang`).

    ``name`` says which op is meant where a text defines several. ``fast_math`` gives up NaN, infinities and the last
    bits of functions for speed, as a line of that name in the text does. ``precision`` says what products of
    contractions are computed from, in place of the text's line of that name: fp32, tf32, or fp16 or bf16, to which f32
    factors are then rounded (sums, inputs and outputs stay f32).

    Raises LanguageError, with the place, if the text is wrong; that of a function is the op's `text`; InputError for
    an unknown precision. Without a source it is a decorator: ``@op(fast_math=True)``.
    """
    if source is None:
        return functools.partial(_op, name=name, fast_math=fast_math, precision=precision)
    return _op(source, name, fast_math, precision)


def _op(source: str | Callable[..., Any], name: str | None, fast_math: bool, precision: str | None) -> Op:
    if isinstance(source, str):
        return Op(parse_op(source, name), fast_math, precision)
    header = signatures.header(source)
    return Op(parse_op(trace.traced(header, source), header.name), fast_math, precision)


def _one_or_all(results: list[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _exact(parameters: Mapping[str, Scalar]) -> dict[str, tuple[type, Scalar]]:
    """With their types: 1, 1.0 and True are equal, but different parameters."""
    return {name: (type(value), value) for name, value in parameters.items()}


def _stage_source(call: PlannedCall, number: int, count: int) -> str:
    """A stage's kernels under a comment that says what they compute and why they are as they are."""
    choice = call.choice
    lines = [f"// stage {number} of {count}: family {choice.family}, {choice.origin}"]
    lines += [f"//   {choice.configuration}"] if len(choice.configuration) else []
    lines += [f"//   {statement_text(s)}" for s in call.call.program.statements]
    shown: set[str] = set()
    for launch in call.lowering.launches:
        lines.append(f"// launch {launch.kernel}: {launch.global_size} work-items, groups of {launch.local_size}")
        if launch.source not in shown:
            lines.append(launch.source)
            shown.add(launch.source)
    return "\n".join(lines)


@contextlib.contextmanager
def _shown(progress: bool | Progress) -> Iterator[Progress | None]:
    """What `tune` is to call after each candidate."""
    if progress is True:
        from tilewright.autotune import TuningBar

        with TuningBar() as bar:
            yield bar
    else:
        yield progress or None
