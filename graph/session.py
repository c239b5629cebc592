"""Sessions: an ONNX network made ready to run on a device, with the interface of onnxruntime's sessions."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.precision import known
from tilewright.errors import InputError
from tilewright.graph import host_values, passes
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.guards import one_sentence
from tilewright.graph.host import NeedsHostError
from tilewright.graph.host_values import Held, HostValue
from tilewright.graph.ir import Graph, Value
from tilewright.graph.mapped import refuse_changed
from tilewright.graph.onnx_import import Model, import_model, steering_inputs, unsupported
from tilewright.graph.parts import DevicePart, is_foreign, refused_nodes
from tilewright.graph.plan import Feeds, Plan, ProfileRow
from tilewright.graph.planned import Stage
from tilewright.graph.planning import Planner
from tilewright.graph.runner import Runner, Watch
from tilewright.runtime import Array, Device, asarray, select_device
from tilewright.tuning_db import Store
from tilewright.tuning_db.default import default_store

if TYPE_CHECKING:
    from tilewright.autotune import TuningReport
    from tilewright.autotune.tuning import Progress

Given = Any
"""An array, an Array, or what `host_values` says of other types."""
Sizes = tuple[tuple[int, ...], ...]
Key = tuple[Sizes, tuple[bytes, ...]]
"""What a plan is made for: the inputs' sizes, and the elements of those inputs that decide sizes."""

MAX_PLANS = 4
"""Plans that a session keeps; the one that was used longest ago goes first."""

_TYPE_NAMES = {
    DType.BOOL: "bool",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float",
    DType.F64: "double",
}


@dataclass(frozen=True)
class NodeArgument:
    """An input or output as onnxruntime describes it."""

    name: str
    shape: list[int | str | None]
    """Sizes; the name of one that is open, None for one without a name."""
    type: str
    """For example ``tensor(float)``."""


class InferenceSession:
    """A network on a device.

    ``model`` is a path, the bytes of a file, or an onnx.ModelProto; ``device`` a Device, its name, or None for the
    best there is; ``store`` a tuning database, its path or URL, None for the user's own, or False for none.
    ``fast_math`` gives up NaN, infinities and the last bits of functions for speed. ``precision`` is fp32; tf32, which
    lets instructions for TF32 round the factors of contractions; or fp16 or bf16, which store values between kernels in
    16 bits. Inputs and outputs keep the types that the file gives them. Nodes that the device cannot do are computed on
    the host (`profile` shows them), float tensors there only up to ``host_limit`` elements if it is given.

    Sizes that the network leaves open are fixed at `run`: the first run with new sizes makes a plan, later ones reuse
    it. A session may be used from several threads. Raises ModelError, UnsupportedOperatorError or DeviceError.
    """

    def __init__(
        self,
        model: Model,
        device: Device | str | None = None,
        store: Store | str | bool | None = None,
        *,
        fast_math: bool = False,
        precision: str = "fp32",
        host_limit: int | None = None,
    ) -> None:
        self.precision = known(precision)
        graph = import_model(model, hosted=True)
        self._outputs = graph.outputs
        computed = tuple(v for v in graph.outputs if v.name not in graph.input_names)
        self._graph = with_simple_bodies(passes.simplify(replace(graph, outputs=computed)))
        self.device = select_device(device)
        self._own_store = store is None
        self._store = _opened(store)
        self._planner = Planner(self.device, self._store, precision, fast_math, host_limit)
        self._runner = Runner(self._graph, self._planner)
        problems = refused_nodes(self._graph, self._runner.parts, host_limit)
        if problems:
            raise unsupported("the network", problems)
        passed = (*self._graph.inputs, *self._graph.outputs)
        self._is_one_part = all(isinstance(p, DevicePart) for p in self._runner.parts) and not any(
            is_foreign(self._graph, v.name) for v in passed
        )
        self._steering = steering_inputs(self._graph)
        self._plans: OrderedDict[Key, Plan | None] = OrderedDict()
        self._lock = self._planner.lock
        if self._is_one_part and all(v.is_concrete for v in self._graph.inputs) and not self._steering:
            self._plan(self._sizes_with(1), {})

    # --- what goes in and out ---

    def get_inputs(self) -> list[NodeArgument]:
        """What `run` must be fed."""
        return [_argument(v) for v in self._graph.inputs]

    def get_outputs(self) -> list[NodeArgument]:
        """What `run` gives."""
        return [_argument(v) for v in self._outputs]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[HostValue]:
        """Run once: the named outputs (None: all) for arrays by input name.

        Inputs are NumPy arrays, or Arrays in the device's memory (`tilewright.asarray`), which are not copied.
        Sequences are lists of arrays, optionals a value or None, texts arrays of objects. Raises InputError for names,
        types, sizes, devices or positions that do not fit; the first run with new sizes builds kernels.
        """
        wanted = self._wanted(output_names)
        given = self._checked(input_feed)
        plan = self._plan_for(given)
        if plan is None:
            held = self._run_parts(given)
            return [_own(held[name].host) for name in wanted]
        plan.checks.verify_fed(given.__getitem__)
        results = plan.run(_feeds(given), wanted)
        # a network may name one of its inputs as an output
        return [results[name] if name in results else np.array(given[name]) for name in wanted]

    def run_on_device(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Array]:
        """Run once like `run`, but leave the outputs in the device's memory, and return while it is still at work.

        The Arrays are the caller's own: no later run changes them, and their memory is used again once they are
        dropped. Whatever looks at their elements (`Array.numpy`) waits for them. Raises what `run` raises; a fault of
        the device may show only at the waiting.
        """
        wanted = self._wanted(output_names)
        given = self._checked(input_feed)
        plan = self._plan_for(given)
        if plan is None:
            held = self._run_parts(given)
            return [self._on_device(name, held[name]) for name in wanted]
        plan.checks.verify_fed(given.__getitem__)
        made = plan.run_on_device(_feeds(given))
        specs = plan.outputs
        results = {n: Array(b, specs[n].shape, specs[n].dtype, self.device) for n, b in made.items()}
        return [results[name] if name in results else asarray(given[name], self.device) for name in wanted]

    def _run_parts(self, given: Mapping[str, Given], watch: Watch | None = None) -> dict[str, Held]:
        """All outputs of a network in several parts."""
        held = {name: Held(value) for name, value in given.items()}
        return {**held, **self._runner.run(held, watch)}

    def _on_device(self, name: str, held: Held) -> Array:
        if held.array is None or held.typed(name) is None:
            raise InputError(f"the output {name!r} cannot lie on the device; use run")
        return held.on(self.device)

    def _wanted(self, names: Sequence[str] | None) -> list[str]:
        known = [v.name for v in self._outputs]
        if names is None:
            return known
        if isinstance(names, str):
            raise InputError(f"output names are a list, not the text {names!r}; pass [{names!r}]")
        for name in names:
            if name not in known:
                raise InputError(f"there is no output {name!r}; the outputs are {_listed(known)}")
        return list(names)

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Given]:
        known = [v.name for v in self._graph.inputs]
        for name in feeds:
            if name not in known:
                raise InputError(f"there is no input {name!r}; the inputs are {_listed(known)}")
        missing = [name for name in known if name not in feeds]
        if missing:
            raise InputError(f"the input {_listed(missing)} is missing; feed an array by that name")
        arrays = {v.name: _array(v, feeds[v.name], self.device) for v in self._graph.inputs}
        _check_named_sizes(self._graph.inputs, arrays)
        return arrays

    # --- plans ---

    def plan(self, feeds: Mapping[str, Any] | None = None, batch: int = 1) -> Plan:
        """The plan for the sizes of `feeds`, or with every open size set to `batch`, made if there is none yet.

        InputError for a network that runs in several parts, each with plans of its own: `plans` gives those of a run.
        """
        plan = self._plan(*self._sizes_for(feeds, batch)) if self._is_one_part else None
        if plan is None:
            raise InputError("the network runs in several parts, some of them on the host; use plans or profile")
        return plan

    def plans(self, feeds: Mapping[str, Any]) -> list[Plan]:
        """The plans of all parts in the order in which a run with these feeds, which is done for it, takes them."""
        given = self._checked(feeds)
        plan = self._plan_for(given)
        if plan is not None:
            return [plan]
        watch = Watch()
        self._run_parts(given, watch)
        return watch.plans

    def stages(self, feeds: Mapping[str, Any] | None = None, batch: int = 1) -> Counter[Stage]:
        """The different stages of a run with the sizes of `feeds` (or `batch`), and how often each is run.

        No kernel is built for that, unless the network runs in several parts.
        """
        if self._is_one_part:
            try:
                return self._planner.stages(self._specialised(*self._sizes_for(feeds, batch)))
            except NeedsHostError:
                pass  # with these sizes it runs in several parts, or not at all: the plans tell
        plans = [self.plan(None, batch)] if feeds is None else self.plans(feeds)
        return Counter(c.stage for plan in plans for c in plan.calls)

    def _sizes_for(self, feeds: Mapping[str, Any] | None, batch: int) -> tuple[Sizes, dict[str, np.ndarray[Any, Any]]]:
        """The inputs' sizes, and the elements of those that decide sizes; InputError if these are not given."""
        if feeds is None:
            if self._steering:
                raise InputError(f"the input {_listed(self._steering)} decides sizes; give feeds")
            return self._sizes_with(batch), {}
        return self._sizes_of(self._checked(feeds))

    def _sizes_of(self, arrays: Mapping[str, Given]) -> tuple[Sizes, dict[str, np.ndarray[Any, Any]]]:
        steering = {name: np.asarray(arrays[name]) for name in self._steering}
        return tuple(arrays[v.name].shape for v in self._graph.inputs), steering

    def _specialised(self, sizes: Sizes, steering: Mapping[str, np.ndarray[Any, Any]]) -> Graph:
        shapes = {v.name: n for v, n in zip(self._graph.inputs, sizes, strict=True)}
        return passes.specialise(self._graph, shapes, steering)

    def _sizes_with(self, batch: int) -> Sizes:
        return tuple(tuple(n if isinstance(n, int) else batch for n in v.shape or ()) for v in self._graph.inputs)

    def _plan_for(self, arrays: Mapping[str, Given]) -> Plan | None:
        """The plan for inputs; None where the network runs in several parts."""
        return self._plan(*self._sizes_of(arrays)) if self._is_one_part else None

    def _plan(self, sizes: Sizes, steering: Mapping[str, np.ndarray[Any, Any]]) -> Plan | None:
        key = sizes, tuple(a.tobytes() for a in steering.values())
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None and plan.lost:
                self._plans.clear()
                self._planner.forget_constants()
            if key not in self._plans:
                self._plans[key] = self._made(sizes, steering)
                while len(self._plans) > MAX_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def _made(self, sizes: Sizes, steering: Mapping[str, np.ndarray[Any, Any]]) -> Plan | None:
        """A new plan; None where, with these sizes, some nodes are for the host."""
        refuse_changed(self._graph.constants.values())
        try:
            return self._planner.plan(self._specialised(sizes, steering))
        except NeedsHostError as error:
            if not self._runner.can_cut_again(error):
                raise
            return None

    # --- tuning and profiling ---

    def tune(
        self,
        budget: str | float | None = None,
        *,
        evaluations: int | None = None,
        feeds: Mapping[str, Any] | None = None,
        batch: int = 1,
        progress: Progress | None = None,
        fleet: str | None = None,
    ) -> TuningReport:
        """Search faster kernels for the network with the sizes of `feeds` (or `batch`) by measuring on the device.

        ``budget`` is a time such as "2m" for all of it together, ``evaluations`` a number of candidates. What is found
        goes to the tuning database; this session uses it from its next run on. ``fleet`` is the address of a Dask
        scheduler, whose workers with the same device measure in place of this machine.
        """
        from tilewright.autotune import Budget, tune

        # A broken database of the user's own only costs speed until it is needed: opening it again says what is wrong.
        store = Store.open() if self._store is None and self._own_store else self._store
        if store is None:
            raise InputError("this session has no tuning database; make it with store=None for the user's own")
        stages = self.stages(feeds, batch)
        report = tune(
            [s.program for s in stages],
            self.device,
            store,
            Budget.parse(budget, evaluations),
            progress,
            weights=[float(count) for count in stages.values()],
            constants=[s.constants for s in stages],
            fleet=fleet,
        )
        with self._lock:
            self._plans.clear()
            self._runner = Runner(self._graph, self._planner)
        return report

    def profile(self, feeds: Mapping[str, Any]) -> list[ProfileRow]:
        """What every kernel launch and every node on the host takes in one run, in order."""
        given = self._checked(feeds)
        plan = self._plan_for(given)
        if plan is not None:
            return plan.profile(_feeds(given))
        self._run_parts(given)  # plans are made and kernels built ahead of what is timed
        watch = Watch(timed=True)
        self._run_parts(given, watch)
        return watch.rows


def _opened(store: Store | str | bool | None) -> Store | None:
    if store is None:
        return default_store()
    if isinstance(store, bool):
        return Store.open() if store else None
    return store if isinstance(store, Store) else Store.open(store)


def _argument(value: Value) -> NodeArgument:
    name = _TYPE_NAMES.get(value.dtype, value.dtype.numpy.name)
    return NodeArgument(value.name, list(value.shape or ()), value.hosted or f"tensor({name})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _feeds(given: Mapping[str, Given]) -> Feeds:
    """What a plan is run with."""
    return {name: a.buffer if isinstance(a, Array) else a for name, a in given.items()}


def _own(value: HostValue) -> HostValue:
    """A result that is the caller's: what the session keeps is read-only, and copied."""
    return np.array(value) if isinstance(value, np.ndarray) and not value.flags.writeable else value


def _array(value: Value, given: Any, device: Device) -> Given:
    """The fed array, checked against what the network declares."""
    if value.hosted:
        return host_values.checked(value, given)
    if isinstance(given, Array) and given.device != device:
        raise InputError(
            f"the input {value.name!r} lies on {given.device.name}, but the session runs on {device.name}; "
            "move it with asarray"
        )
    try:
        array = given if isinstance(given, Array) else np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"the input {value.name!r} is no array: {one_sentence(error)}") from None
    expected = value.dtype.numpy
    if array.dtype != expected:
        raise InputError(f"the input {value.name!r} should be {expected}, found {array.dtype}; convert it with astype")
    sizes = value.shape or ()
    shape = "x".join(str(n or "?") for n in sizes) or "a single number"
    found = "x".join(map(str, array.shape)) or "a single number"
    if array.ndim != len(sizes):
        raise InputError(
            f"the input {value.name!r} should have {len(sizes)} dimensions ({shape}), found {array.ndim} ({found})"
        )
    for d, (wanted, n) in enumerate(zip(sizes, array.shape, strict=True)):
        if isinstance(wanted, int) and wanted != n:
            raise InputError(
                f"the input {value.name!r} should have size {wanted} in dimension {d} ({shape}), found {n} ({found})"
            )
    return array


def _check_named_sizes(inputs: Sequence[Value], arrays: Mapping[str, Given]) -> None:
    """InputError where one name stands for two sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for v in inputs:
        if v.hosted:
            continue
        for d, (name, n) in enumerate(zip(v.shape or (), arrays[v.name].shape, strict=False)):
            if not isinstance(name, str):
                continue
            known, where = sizes.setdefault(name, (n, f"dimension {d} of {v.name!r}"))
            if known != n:
                raise InputError(f"dimension {d} of {v.name!r} should be {name} = {known} (from {where}), found {n}")


__all__ = ["InferenceSession", "NodeArgument"]
