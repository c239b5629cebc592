"""A session's network as its file has it: the graph, its parts, and what makes plans of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tilewright.dsl.precision import known
from tilewright.graph import passes
from tilewright.graph.bodies import with_simple_bodies
from tilewright.graph.building import SharedConstants
from tilewright.graph.host import NeedsHostError
from tilewright.graph.ir import Graph
from tilewright.graph.mapped import refuse_changed
from tilewright.graph.onnx_import import Model, import_model, steering_inputs, unsupported
from tilewright.graph.parts import DevicePart, is_foreign, refused_nodes
from tilewright.graph.plan import Plan
from tilewright.graph.plan_store import Interface, Settings, Shelf
from tilewright.graph.planned import Stage
from tilewright.graph.planning import Planner
from tilewright.graph.runner import Runner
from tilewright.graph.weights import take_out
from tilewright.runtime import Device
from tilewright.tuning_db import Store
from tilewright.tuning_db.default import default_store

Sizes = tuple[tuple[int, ...], ...]
Steering = Mapping[str, np.ndarray[Any, Any]]
"""The elements of the inputs that decide sizes, by name."""


class Opened:
    """A network that was read, checked and cut. Raises ModelError, UnsupportedOperatorError or DeviceError."""

    def __init__(
        self,
        model: Model,
        device: Device,
        store: Store | str | bool | None,
        settings: Settings,
        shelf: Shelf | None,
        lock: threading.RLock,
        shared: SharedConstants,
    ) -> None:
        known(settings.precision)
        content = None if shelf is None else shelf.content
        graph = import_model(model, hosted=True, content=content)
        computed = tuple(v for v in graph.outputs if v.name not in graph.input_names)
        self.graph = with_simple_bodies(passes.simplify(replace(graph, outputs=computed)))
        self.interface = Interface(self.graph.inputs, graph.outputs)
        self.store = _opened(store)
        s = settings
        self.planner = Planner(device, self.store, s.precision, s.fast_math, s.host_limit, lock, content, shared)
        self.runner = Runner(self.graph, self.planner)
        problems = refused_nodes(self.graph, self.runner.parts, s.host_limit)
        if problems:
            raise unsupported("the network", problems)
        passed = (*self.graph.inputs, *self.graph.outputs)
        self.is_one_part = all(isinstance(p, DevicePart) for p in self.runner.parts) and not any(
            is_foreign(self.graph, v.name) for v in passed
        )
        self.steering = steering_inputs(self.graph)
        is_missing = self.store is None and store is not False  # broken: the next session looks at it again
        can_keep = self.is_one_part and not self.steering and not is_missing
        self.shelf = shelf if shelf is not None and can_keep and not _reads_other_files(shelf) else None
        """Where the plans are kept, None for networks whose plans are not."""
        if self.shelf is not None:
            self.shelf.keep_interface(self.shelf.state(), self.interface)

    def plan(self, sizes: Sizes, steering: Steering) -> Plan | None:
        """A new plan, which is kept; None where, with these sizes, some nodes are for the host."""
        refuse_changed(self.graph.constants.values())
        state = None if self.shelf is None else self.shelf.state()
        try:
            plan = self.planner.plan(self.specialised(sizes, steering))
        except NeedsHostError as error:
            if not self.runner.can_cut_again(error):
                raise
            return None
        if self.shelf is not None and state is not None:
            self.shelf.keep(state, sizes, plan)
        return plan

    def stages(self, sizes: Sizes, steering: Steering) -> Counter[Stage]:
        """The different stages of a run, and how often each is run; NeedsHostError if some nodes are for the host."""
        return self.planner.stages(self.specialised(sizes, steering))

    def specialised(self, sizes: Sizes, steering: Steering) -> Graph:
        """The graph for inputs of these sizes."""
        shapes = {v.name: n for v, n in zip(self.graph.inputs, sizes, strict=True)}
        return passes.specialise(self.graph, shapes, steering)

    def renew(self) -> None:
        """Forget the plans of parts: there are better configurations."""
        self.runner = Runner(self.graph, self.planner)


def _opened(store: Store | str | bool | None) -> Store | None:
    if store is None:
        return default_store()
    if isinstance(store, bool):
        return Store.open() if store else None
    return store if isinstance(store, Store) else Store.open(store)


def _reads_other_files(shelf: Shelf) -> bool:
    """Whether the model may have tensors in other files: their entries in it have the key "location"."""
    return b"\n\x08location" in take_out(shelf.content)[0].SerializeToString()


__all__ = ["Opened", "Sizes", "Steering"]
