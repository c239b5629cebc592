"""Running a graph part by part: device parts by plans that are made for the sizes at hand, host nodes in between.

Values stay where they were made until somebody needs them elsewhere. A device part whose nodes turn out to be none for
the device, with the sizes and types at hand, is cut again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError, ModelError
from tilewright.graph import passes
from tilewright.graph.at_hand import HostWork, deciding_inputs, host_work, is_small_integer
from tilewright.graph.control import run_control
from tilewright.graph.guards import one_sentence
from tilewright.graph.host import NeedsHostError, can_evaluate, evaluate_any, infer
from tilewright.graph.host_operators import host_operator
from tilewright.graph.host_values import Held, HostValue, fetch, language_type
from tilewright.graph.ir import CONTROL, Graph, Node, Value
from tilewright.graph.mapped import owned, refuse_changed
from tilewright.graph.parts import DevicePart, HostNode, Part, beyond_limit, cut
from tilewright.graph.plan import Plan, ProfileRow
from tilewright.graph.planning import Planner
from tilewright.graph.rules import dead_code_removed
from tilewright.runtime import Array

_log = logging.getLogger("tilewright.graph")

MAX_PLANS = 8
"""Plans that a part keeps; the one that was used longest ago goes first."""


@dataclass
class Watch:
    """What a run notes down about itself."""

    timed: bool = False
    plans: list[Plan] = field(default_factory=list)
    """The plans in the order in which they ran."""
    rows: list[ProfileRow] = field(default_factory=list)
    """With `timed`: every launch and every host node, in order."""


@dataclass(frozen=True)
class _Ready:
    """A device part for certain sizes."""

    plan: Plan | None = None
    known: Mapping[str, Held] = field(default_factory=dict)
    """Outputs that follow from sizes and steering values."""
    work: HostWork | None = None
    """Computes outputs that follow from small integers on the host."""
    inner: Runner | None = None
    """Runs the part where some of it is for the host."""


class Runner:
    """A graph that is run in parts. One Runner may be used from several threads."""

    def __init__(self, graph: Graph, planner: Planner, forced: Collection[Node] = frozenset()) -> None:
        self.graph = graph
        self.parts = cut(graph, forced)
        self._forced = frozenset(forced)
        self._planner = planner
        on_host = {v.name for v in graph.outputs}.union(*(p.node.inputs for p in self.parts if isinstance(p, HostNode)))
        self._constants = {n: Held(owned(a) if n in on_host else a) for n, a in graph.constants.items()}
        self._bodies = {
            (p.node, name): Runner(body, planner)
            for p in self.parts
            if isinstance(p, HostNode)
            for name, body in p.node.bodies.items()
        }
        self._ready: dict[DevicePart, OrderedDict[object, _Ready]] = {}
        self._deciding = {p: deciding_inputs(p.graph) for p in self.parts if isinstance(p, DevicePart)}
        self._dead = _last_readers(self.parts, graph)

    def run(self, given: Mapping[str, Held], watch: Watch | None = None) -> dict[str, Held]:
        """All outputs by name for the inputs by name."""
        values = {**self._constants, **given}
        for part, dead in zip(self.parts, self._dead, strict=True):
            if isinstance(part, DevicePart):
                values.update(self._run_part(part, {v.name: values[v.name] for v in part.graph.inputs}, watch))
            else:
                values.update(self._run_node(part.node, values, watch))
            for name in dead:
                values.pop(name, None)
        return {v.name: values[v.name] for v in self.graph.outputs}

    def can_cut_again(self, error: NeedsHostError) -> bool:
        """True if the host can compute the nodes that the device cannot."""
        return bool(_for_the_host(self.graph, error))

    # --- the device's parts ---

    def _run_part(self, part: DevicePart, given: Mapping[str, Held], watch: Watch | None) -> dict[str, Held]:
        ready = self._ready_for(part, given)
        if ready.inner is not None:
            return ready.inner.run(given, watch)
        there = {**ready.known, **_worked(ready.work, given, watch)}
        if ready.plan is None:
            return there
        plan, device = ready.plan, self._planner.device
        plan.checks.verify_fed(lambda name: given[name].host)
        feeds = {name: given[name].on(device).buffer for name in plan.inputs}
        if watch is not None:
            watch.plans.append(plan)
            watch.rows += plan.profile(feeds) if watch.timed else []
        made = plan.run_on_device(feeds)
        arrays = {n: Array(b, plan.outputs[n].shape, plan.outputs[n].dtype, device) for n, b in made.items()}
        if watch is not None and watch.timed:
            next(iter(arrays.values())).wait()  # not in the time of the host node that reads them
        return {**there, **{name: Held(a) for name, a in arrays.items()}}

    def _ready_for(self, part: DevicePart, given: Mapping[str, Held]) -> _Ready:
        deciding = self._deciding[part]
        at_hand = frozenset(n for n in deciding if given[n].on_host and is_small_integer(given[n].array))
        key = at_hand, tuple(_key(given[v.name], v.name in part.steering) for v in part.graph.inputs)
        with self._planner.lock:
            kept = self._ready.setdefault(part, OrderedDict())
            ready = kept.get(key)
            if ready is not None and ready.plan is not None and ready.plan.lost:
                self._ready.clear()
                self._planner.forget_constants()
                kept, ready = self._ready.setdefault(part, OrderedDict()), None
            if ready is None:
                ready = kept[key] = self._made(part, given, at_hand)
                while len(kept) > MAX_PLANS:
                    kept.popitem(last=False)
            kept.move_to_end(key)
            return ready

    def _made(self, part: DevicePart, given: Mapping[str, Held], at_hand: Collection[str]) -> _Ready:
        graph = part.graph
        refuse_changed(graph.constants.values())
        types = {v.name: given[v.name].typed(v.name) for v in graph.inputs}
        foreign = {name for name, t in types.items() if t is None}
        if foreign:
            return self._cut_again(graph, [n for n in graph.nodes if foreign & set(n.inputs)])
        inputs = tuple(t for t in types.values() if t is not None)
        shapes = {v.name: v.sizes for v in inputs}
        steering = {name: given[name].host for name in part.steering}
        try:
            sized = passes.specialise(replace(graph, inputs=inputs), shapes, steering)
            known = {v.name: Held(sized.constants[v.name]) for v in sized.outputs if v.name in sized.constants}
            work = host_work(sized, at_hand)
            done = {*known, *(work.outputs if work else ())}
            left = tuple(v for v in sized.outputs if v.name not in done)
            sized = dead_code_removed(replace(sized, outputs=left))
            return _Ready(self._planner.plan(_without_unread(sized)) if left else None, known, work)
        except NeedsHostError as error:
            nodes = _for_the_host(graph, error)
            if not nodes:
                raise
            _log.debug("computed on the host: %s", error)
            return self._cut_again(graph, nodes)

    def _cut_again(self, graph: Graph, nodes: Sequence[Node]) -> _Ready:
        return _Ready(inner=Runner(graph, self._planner, self._forced | set(nodes)))

    # --- the host's nodes ---

    def _run_node(self, node: Node, values: Mapping[str, Held], watch: Watch | None) -> dict[str, Held]:
        inputs = [values[name] if name else None for name in node.inputs]
        start, rows = time.perf_counter(), len(watch.rows) if watch else 0
        in_bodies = 0.0

        def body(name: str, given: Sequence[Held]) -> list[Held]:
            nonlocal in_bodies
            began = time.perf_counter()
            results = self._run_body(node, name, given, watch)
            in_bodies += time.perf_counter() - began
            return results

        if node.op in CONTROL:
            found = run_control(node, self.graph.opset, inputs, body)
        else:
            fetch(inputs)
            found = self._computed(node, [None if held is None else held.host for held in inputs])
        if len(found) < len(node.outputs):
            raise ModelError(f"node {node.label!r} ({node.op}) has {len(node.outputs)} outputs, but gave {len(found)}")
        if watch is not None and watch.timed:
            operands = [held for held in (*inputs, *found) if held is not None]
            watch.rows.insert(rows, _row([node], time.perf_counter() - start - in_bodies, operands))
        return {name: held for name, held in zip(node.outputs, found, strict=False) if name}

    def _computed(self, node: Node, inputs: Sequence[HostValue]) -> list[Held]:
        """The outputs of a node without bodies."""
        self._check_limit(node, inputs)
        self._check_limit_ahead(node, inputs)
        compute = host_operator(node)
        if compute is not None:
            try:
                made = compute(node, inputs)
                return [Held(v) for v in (made if isinstance(made, tuple) else (made,))]
            except (ValueError, IndexError, TypeError, AttributeError) as error:  # NumPy's, about types and sizes
                text = f"node {node.label!r} ({node.op}) cannot be computed from its inputs: {one_sentence(error)}"
                raise ModelError(text) from None
        found = evaluate_any(node, self.graph.opset, self.graph.domains, inputs)
        self._check_limit(node, found)
        for name, value in zip(node.outputs, found, strict=False):
            _check_type(node, self.graph.values.get(name), value)
        return [Held(v) for v in found]

    def _check_limit(self, node: Node, values: Sequence[HostValue]) -> None:
        """InputError for a float tensor that is too large for the host."""
        limit = self._planner.host_limit
        floats = [v.size for v in values if isinstance(v, np.ndarray) and _is_float(v)]
        if limit is not None and max(floats, default=0) > limit:
            raise InputError(f"node {node.label!r} ({node.op}) {beyond_limit(max(floats), limit)}")

    def _check_limit_ahead(self, node: Node, inputs: Sequence[HostValue]) -> None:
        """The same for what a node is going to give, as far as ONNX's inference knows that."""
        limit = self._planner.host_limit
        given = [Value(n, t, i.shape) for n, i, t in zip(node.inputs, inputs, map(_type, inputs), strict=True) if t]
        if limit is None or len(given) < sum(i is not None for i in inputs) or not onnx.defs.has(node.op):
            return
        known = {v.name: v for v in given}
        data = {n: i for n, i in zip(node.inputs, inputs, strict=True) if n in known}
        try:
            found = infer(node, self.graph.opset, [known.get(n) for n in node.inputs], data)
        except ModelError:  # types that the language lacks, or what the evaluator will say itself
            return
        floats = [math.prod(v.sizes) for v in found if v.is_concrete and v.dtype.is_float]
        if max(floats, default=0) > limit:
            raise InputError(f"node {node.label!r} ({node.op}) {beyond_limit(max(floats), limit)}")

    def _run_body(self, node: Node, name: str, values: Sequence[Held], watch: Watch | None) -> list[Held]:
        runner = self._bodies[node, name]
        inputs = [v.name for v in runner.graph.inputs]
        if len(inputs) != len(values):
            raise ModelError(
                f"the body of node {node.label!r} ({node.op}) reads {len(inputs)} values, but is given {len(values)}"
            )
        found = runner.run(dict(zip(inputs, values, strict=True)), watch)
        return [found[v.name] for v in runner.graph.outputs]


def _type(value: HostValue) -> DType | None:
    """The language's type of a tensor's elements."""
    return language_type(value.dtype) if isinstance(value, np.ndarray) else None


def _is_float(array: np.ndarray) -> bool:
    dtype = _type(array)
    return dtype is not None and dtype.is_float


def _check_type(node: Node, declared: Value | None, found: HostValue) -> None:
    """ModelError where the evaluator gives another element type than ONNX's inference: it has its faults."""
    if declared is None or declared.hosted or not isinstance(found, np.ndarray):
        return
    if found.dtype != declared.dtype.numpy:
        raise ModelError(
            f"node {node.label!r} ({node.op}) should give {declared.dtype.numpy}, but the host computes {found.dtype}"
        )


def _for_the_host(graph: Graph, error: NeedsHostError) -> list[Node]:
    """The nodes that an error is about, if the host can compute all of them."""
    nodes = [n for n in graph.nodes if error.sources & _all_sources(n)]
    return nodes if all(n.op in CONTROL or can_evaluate(n, graph.opset, graph.domains) for n in nodes) else []


def _all_sources(node: Node) -> set[str]:
    """The file's nodes behind a node, those of its bodies included."""
    inner = (_all_sources(n) for body in node.bodies.values() for n in body.nodes)
    return set(node.sources).union(*inner)


def _worked(work: HostWork | None, given: Mapping[str, Held], watch: Watch | None) -> dict[str, Held]:
    """What the host computes of a device part."""
    if work is None:
        return {}
    start = time.perf_counter()
    made = {name: Held(array) for name, array in work(lambda name: given[name].host).items()}
    if watch is not None and watch.timed:
        watch.rows.append(_row(work.nodes, time.perf_counter() - start, list(made.values())))
    return made


def _without_unread(graph: Graph) -> Graph:
    """Without the inputs that nothing reads, which need not come to the device."""
    read = graph.consumers.keys() | graph.output_names
    return replace(graph, inputs=tuple(v for v in graph.inputs if v.name in read))


def _key(held: Held, steers: bool) -> object:
    """What a plan depends on: type and sizes, and the elements of what steers."""
    array = held.array
    if array is None:
        return None
    return str(array.dtype), tuple(array.shape), held.host.tobytes() if steers else None


def _last_readers(parts: Sequence[Part], graph: Graph) -> list[tuple[str, ...]]:
    """For each part, the values that nothing after it reads."""
    needed = {v.name for v in graph.outputs}
    dead: list[tuple[str, ...]] = []
    for part in reversed(parts):
        read = {v.name for v in part.graph.inputs} if isinstance(part, DevicePart) else {*part.node.inputs}
        dead.append(tuple(read - needed - {""}))
        needed |= read
    return dead[::-1]


def _row(nodes: Sequence[Node], seconds: float, operands: Sequence[Held]) -> ProfileRow:
    """Nodes on the host in a profile; the rows of bodies follow, and their time is not in it."""
    arrays = [held.array for held in operands if held.array is not None]
    named = ((language_type(a.dtype), a.dtype) for a in arrays)
    types = tuple(dict.fromkeys(dtype.value if dtype else str(other) for dtype, other in named))
    text = f"{'+'.join(n.op for n in nodes)} {nodes[0].label}"
    return ProfileRow(text, "", "host", "", "host", seconds * 1e6, 0.0, 0.0, types)
