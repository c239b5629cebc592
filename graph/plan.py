"""Plans: a network's calls as launches with every buffer bound; the one way in which programs are executed.

Built once, a Plan holds one arena for everything that is written and read within a run, the packed constants, and the
list of launches. Which configuration a call runs with: `planned.py`; where memory comes from: `footprint.py` and
`memory.py`; what is done with it: `building.py`; what a run does: `running.py`.
"""

from __future__ import annotations

from tilewright.dsl.program import Program
from tilewright.graph.building import SharedConstants, bound_launches, build_all
from tilewright.graph.calls import Network, Role, network_of
from tilewright.graph.checks import Checks
from tilewright.graph.footprint import place, temporaries
from tilewright.graph.megakernels import Started, started
from tilewright.graph.packing import packed_in_runs
from tilewright.graph.plan_coding import Bytes, with_stable_keys
from tilewright.graph.planned import PlannedCall, PlannedLaunch, launches_of_runs, planned_calls, step_of
from tilewright.graph.recipe import Recipe
from tilewright.graph.running import Feeds, Prepared, ProfileRow
from tilewright.runtime import Context, Device, building, context
from tilewright.tuning_db import Store


class Plan(Prepared):
    """Launches that are ready to run, and the calls they were made of; by `build_plan` and `plan_program`."""

    def __init__(
        self,
        network: Network,
        calls: tuple[PlannedCall, ...],
        recipe: Recipe,
        run: tuple[Started, ...],
        ctx: Context,
        shared: SharedConstants,
    ) -> None:
        super().__init__(recipe, run, *bound_launches(recipe, run, ctx, shared), ctx)
        self.network = network
        self.calls = calls

    @property
    def launches(self) -> tuple[PlannedLaunch, ...]:
        """The launches of every run, in order."""
        return launches_of_runs(self.calls)


def plan_program(program: Program, device: Device, store: Store | None = None) -> Plan:
    """A Program on its own as a plan; inputs and outputs are named by its tensors."""
    return build_plan(network_of(program, device.target), device, store)


def build_plan(
    network: Network,
    device: Device,
    store: Store | None = None,
    shared: SharedConstants | None = None,
    checks: Checks | None = None,
    content: Bytes | None = None,
) -> Plan:
    """Choose a configuration for every call, lay out memory, build the kernels, and run once what needs no input.

    ``shared`` keeps constants on the device for several plans of one network; ``checks`` are done in every run; with
    ``content``, a model's bytes, constants are known by their place in it. Raises KernelError or DeviceError if the
    device cannot do it.
    """
    ctx = context(device)
    with building(ctx) as builds:
        early = builds if device.target.handoff is None else None
        calls = packed_in_runs(network, planned_calls(network, device, store, early), device)
        recipe = recipe_of(network, calls, ctx, checks or Checks())
        if content is not None:
            recipe = with_stable_keys(recipe, content)
        run = started(recipe, device.target)
        build_all(recipe, run, builds)
    return Plan(network, calls, recipe, run, ctx, shared or SharedConstants())


def recipe_of(network: Network, calls: tuple[PlannedCall, ...], ctx: Context, checks: Checks) -> Recipe:
    """All of a plan but the device's objects."""
    lifetimes = temporaries(network, calls)
    arenas = place(lifetimes, ctx.splits_buffers, ctx.alignment, ctx.device.max_allocation)
    buffers = {name: s for name, s in network.buffers.items() if s.role is not Role.TEMPORARY}
    steps = tuple(step_of(call, network) for call in calls)
    return Recipe(buffers, steps, tuple(lifetimes), arenas, checks)


__all__ = [
    "Feeds",
    "Plan",
    "PlannedCall",
    "PlannedLaunch",
    "ProfileRow",
    "SharedConstants",
    "build_plan",
    "plan_program",
    "recipe_of",
]
