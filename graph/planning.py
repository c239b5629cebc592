"""From a graph of known sizes to a plan, with a session's settings."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from tilewright.dsl.precision import ROUNDED_TO, has_tf32
from tilewright.graph.batches import in_batches
from tilewright.graph.building import SharedConstants
from tilewright.graph.calls import Network
from tilewright.graph.checks import Checks
from tilewright.graph.fusion import fuse
from tilewright.graph.ir import Graph
from tilewright.graph.layout import lay_out
from tilewright.graph.plan import Plan, build_plan
from tilewright.graph.plan_coding import Bytes
from tilewright.graph.planned import Stage, stages_of
from tilewright.graph.positions import with_checks
from tilewright.graph.precision import NarrowConstants, narrowed
from tilewright.graph.steps import steps_of
from tilewright.runtime import Device
from tilewright.tuning_db import Store


@dataclass(eq=False)
class Planner:
    """Makes plans of a network's parts, which share constants on the device."""

    device: Device
    store: Store | None
    precision: str = "fp32"
    fast_math: bool = False
    host_limit: int | None = None
    """Elements of float tensors up to which the host may compute them; None for any number."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while plans are looked up and made."""
    content: Bytes | None = None
    """The model's bytes: constants in them share memory with those of plans that were kept on disk."""
    shared: SharedConstants = field(default_factory=SharedConstants)

    def __post_init__(self) -> None:
        stored = ROUNDED_TO.get(self.precision)
        self._narrow = None if stored is None else NarrowConstants(stored)

    def plan(self, graph: Graph) -> Plan:
        """The plan of a specialised graph; NeedsHostError for nodes that the device cannot do."""
        network, checks = self.network(graph)
        return build_plan(network, self.device, self.store, self.shared, checks, self.content)

    def stages(self, graph: Graph) -> Counter[Stage]:
        """The different stages of a specialised graph, and how often each runs; nothing is built for that."""
        return stages_of(self.network(graph)[0])

    def forget_constants(self) -> None:
        """After a fault of the device, with which they are gone."""
        self.shared.clear()

    def network(self, graph: Graph) -> tuple[Network, Checks]:
        """The calls for a graph of known sizes, in the session's precision, and what is to be checked in its runs."""
        steps, checks = with_checks(steps_of(graph))
        steps = fuse(steps)
        if self._narrow is not None:
            steps = narrowed(steps, self._narrow)
        network = lay_out(in_batches(steps, self.device.target), self.device.target)
        if self.precision == "tf32" and has_tf32(self.device.target):
            network = network.with_tf32
        return network.with_fast_math if self.fast_math else network, checks
