"""Sessions: an ONNX network made ready to run on a device, with the interface of onnxruntime's sessions.

What a session of a network whose plans are kept on disk (`plan_store.py`) needs is imported here; ONNX, operators and
the planner (`opened.py`) are imported by those that make a plan.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError
from tilewright.graph.building import SharedConstants, prepared
from tilewright.graph.feeding import Given, NodeArgument, argument, check_named_sizes, fed_array, listed
from tilewright.graph.mapped import refuse_changed
from tilewright.graph.plan_store import Settings, shelf_of
from tilewright.graph.running import Feeds, Prepared, ProfileRow
from tilewright.runtime import Array, Device, asarray, context, select_device
from tilewright.tuning_db.places import plain_path

if TYPE_CHECKING:
    from tilewright.autotune import TuningReport
    from tilewright.autotune.tuning import Progress
    from tilewright.graph.host_values import Held, HostValue
    from tilewright.graph.onnx_import import Model
    from tilewright.graph.opened import Opened, Sizes, Steering
    from tilewright.graph.plan import Plan
    from tilewright.graph.planned import Stage
    from tilewright.graph.runner import Watch
    from tilewright.tuning_db import Store

Key = tuple[tuple[tuple[int, ...], ...], tuple[bytes, ...]]
"""What a plan is made for: the inputs' sizes, and the elements of those inputs that decide sizes."""

MAX_PLANS = 4
"""Plans that a session keeps; the one that was used longest ago goes first."""


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
        self.precision = precision
        self.device = select_device(device)
        self._settings = Settings(precision, fast_math, host_limit)
        self._model: Model | None = model
        """Until it is read: a ModelProto holds all weights."""
        self._store = store
        self._lock = threading.RLock()
        self._shared = SharedConstants()
        self._plans: OrderedDict[Key, Prepared | None] = OrderedDict()
        self._whole: Opened | None = None
        self._shelf = shelf_of(model, self.device, self._settings, *_database(store))
        interface = None if self._shelf is None else self._shelf.interface()
        self._is_kept = interface is not None
        """Whether the network's plans are kept: it runs in one part then, whatever the elements of its inputs."""
        interface = interface or self._network.interface
        self._inputs, self._outputs = interface.inputs, interface.outputs
        if self._is_one_part and all(v.is_concrete for v in self._inputs) and not self._steering:
            self._plan(self._sizes_with(1), {})

    @property
    def _network(self) -> Opened:
        """The network as its file has it, read when it is first asked for."""
        from tilewright.graph.opened import Opened

        with self._lock:
            if self._whole is None:
                assert self._model is not None
                given = self.device, self._store, self._settings, self._shelf, self._lock, self._shared
                self._whole = Opened(self._model, *given)
                self._model = None
            return self._whole

    @cached_property
    def _is_one_part(self) -> bool:
        return self._is_kept or self._network.is_one_part

    @cached_property
    def _steering(self) -> tuple[str, ...]:
        """The inputs whose elements decide sizes."""
        return () if self._is_kept else self._network.steering

    # --- what goes in and out ---

    def get_inputs(self) -> list[NodeArgument]:
        """What `run` must be fed."""
        return [argument(v) for v in self._inputs]

    def get_outputs(self) -> list[NodeArgument]:
        """What `run` gives."""
        return [argument(v) for v in self._outputs]

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
            return _fetched(self._run_parts(given), wanted)
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
        from tilewright.graph.host_values import Held

        held = {name: Held(value) for name, value in given.items()}
        return {**held, **self._network.runner.run(held, watch)}

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
                raise InputError(f"there is no output {name!r}; the outputs are {listed(known)}")
        return list(names)

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Given]:
        known = [v.name for v in self._inputs]
        for name in feeds:
            if name not in known:
                raise InputError(f"there is no input {name!r}; the inputs are {listed(known)}")
        missing = [name for name in known if name not in feeds]
        if missing:
            raise InputError(f"the input {listed(missing)} is missing; feed an array by that name")
        arrays = {v.name: fed_array(v, feeds[v.name], self.device) for v in self._inputs}
        check_named_sizes(self._inputs, arrays)
        return arrays

    # --- plans ---

    def plan(self, feeds: Mapping[str, Any] | None = None, batch: int = 1) -> Plan:
        """The plan for the sizes of `feeds`, or with every open size set to `batch`, made if there is none yet.

        InputError for a network that runs in several parts, each with plans of its own: `plans` gives those of a run.
        """
        plan = self._whole_plan(*self._sizes_for(feeds, batch)) if self._is_one_part else None
        if plan is None:
            raise InputError("the network runs in several parts, some of them on the host; use plans or profile")
        return plan

    def plans(self, feeds: Mapping[str, Any]) -> list[Plan]:
        """The plans of all parts in the order in which a run with these feeds, which is done for it, takes them."""
        from tilewright.graph.runner import Watch

        given = self._checked(feeds)
        plan = self._whole_plan(*self._sizes_of(given)) if self._is_one_part else None
        if plan is not None:
            return [plan]
        watch = Watch()
        self._run_parts(given, watch)
        return watch.plans

    def stages(self, feeds: Mapping[str, Any] | None = None, batch: int = 1) -> Counter[Stage]:
        """The different stages of a run with the sizes of `feeds` (or `batch`), and how often each is run.

        No kernel is built for that, unless the network runs in several parts.
        """
        from tilewright.graph.host import NeedsHostError

        if self._is_one_part:
            try:
                return self._network.stages(*self._sizes_for(feeds, batch))
            except NeedsHostError:
                pass  # with these sizes it runs in several parts, or not at all: the plans tell
        plans = [self.plan(None, batch)] if feeds is None else self.plans(feeds)
        return Counter(c.stage for plan in plans for c in plan.calls)

    def _sizes_for(self, feeds: Mapping[str, Any] | None, batch: int) -> tuple[Sizes, dict[str, np.ndarray[Any, Any]]]:
        """The inputs' sizes, and the elements of those that decide sizes; InputError if these are not given."""
        if feeds is None:
            if self._steering:
                raise InputError(f"the input {listed(self._steering)} decides sizes; give feeds")
            return self._sizes_with(batch), {}
        return self._sizes_of(self._checked(feeds))

    def _sizes_of(self, arrays: Mapping[str, Given]) -> tuple[Sizes, dict[str, np.ndarray[Any, Any]]]:
        steering = {name: np.asarray(arrays[name]) for name in self._steering}
        return tuple(arrays[v.name].shape for v in self._inputs), steering

    def _sizes_with(self, batch: int) -> Sizes:
        return tuple(tuple(n if isinstance(n, int) else batch for n in v.shape or ()) for v in self._inputs)

    def _plan_for(self, arrays: Mapping[str, Given]) -> Prepared | None:
        """What runs these inputs; None where the network runs in several parts."""
        return self._plan(*self._sizes_of(arrays)) if self._is_one_part else None

    def _whole_plan(self, sizes: Sizes, steering: Steering) -> Plan | None:
        """A plan that knows the calls it was made of, in place of one that was read from disk."""
        from tilewright.graph.plan import Plan

        with self._lock:
            found = self._plan(sizes, steering)
            if found is not None and not isinstance(found, Plan):
                found = self._plans[_key(sizes, steering)] = self._network.plan(sizes, steering)
            return found

    def _plan(self, sizes: Sizes, steering: Steering) -> Prepared | None:
        key = _key(sizes, steering)
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None and plan.lost:
                self._plans.clear()
                self._shared.clear()
            if key not in self._plans:
                self._plans[key] = self._kept(sizes) or self._network.plan(sizes, steering)
                while len(self._plans) > MAX_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def _kept(self, sizes: Sizes) -> Prepared | None:
        """What an earlier session has planned for these sizes, if that is kept."""
        if self._shelf is None or not self._is_kept:
            return None
        recipe = self._shelf.recipe(sizes)
        if recipe is None:
            return None
        refuse_changed([self._shelf.content])
        return prepared(recipe, context(self.device), self._shared)

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
        from tilewright.tuning_db import Store

        # A broken database of the user's own only costs speed until it is needed: opening it again says what is wrong.
        store = Store.open() if self._network.store is None and self._store is None else self._network.store
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
            self._network.renew()
        return report

    def profile(self, feeds: Mapping[str, Any]) -> list[ProfileRow]:
        """What every kernel launch and every node on the host takes in one run, in order."""
        given = self._checked(feeds)
        plan = self._plan_for(given)
        if plan is not None:
            return plan.profile(_feeds(given))
        from tilewright.graph.runner import Watch

        self._run_parts(given)  # plans are made and kernels built ahead of what is timed
        watch = Watch(timed=True)
        self._run_parts(given, watch)
        return watch.rows


def _key(sizes: Sizes, steering: Steering) -> Key:
    return sizes, tuple(a.tobytes() for a in steering.values())


def _database(store: Store | str | bool | None) -> tuple[Path | None, bool]:
    """The tuning database's file, None without, and whether there is a database at all."""
    if store is False:
        return None, False
    if store is None or isinstance(store, bool | str | Path):
        return plain_path(None if isinstance(store, bool) else store), True
    return store.path, True


def _feeds(given: Mapping[str, Given]) -> Feeds:
    """What a plan is run with."""
    return {name: a.buffer if isinstance(a, Array) else a for name, a in given.items()}


def _fetched(held: Mapping[str, Held], wanted: Sequence[str]) -> list[HostValue]:
    """Results of a network in several parts, on the host."""
    from tilewright.graph.host_values import fetch

    fetch(held[name] for name in wanted)
    return [_own(held[name].host) for name in wanted]


def _own(value: HostValue) -> HostValue:
    """A result that is the caller's: what the session keeps is read-only, and copied."""
    return np.array(value) if isinstance(value, np.ndarray) and not value.flags.writeable else value


__all__ = ["InferenceSession", "NodeArgument"]
