"""Every family's kernels under Oclgrind: no stray access, no race, no divergent barrier, and the right numbers.

Each family of `FAMILIES` lowers every example that it takes, with an all-pairs covering sample of its configurations,
for CPU-shaped and GPU-shaped targets; every sixth one by default, the others with ``-m memory_full``. Uninitialised
values are watched in the cheapest few scalar kernels of each family, because that makes the simulator ten times slower;
elsewhere unwritten memory holds NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from memory import simulator
from memory.covering import covering
from memory.programs import TARGETS, programs
from memory.simulator import Outcome, Simulator, is_scalar
from tilewright.dsl.families import FAMILIES, Family, by_name
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration

EMULATED = {"matrix", "wgmma"}
"""Families whose instructions the simulator lacks; `test_matrix.py` and `test_wgmma.py` emulate them."""
WATCHED = 6
"""Kernels per family and target in which uninitialised values are watched."""


@dataclass(frozen=True)
class Case:
    """One lowering of one example."""

    family: str
    program: str
    target: str
    configuration: Configuration

    def __str__(self) -> str:
        return f"{self.target}-{self.family}-{self.program}({self.configuration})"

    def run(self, worker: Simulator) -> Outcome:
        """What the simulator says."""
        return worker.run(
            family=self.family,
            program=self.program,
            target=self.target,
            configuration=dict(self.configuration),
            fault="",
        )


@functools.cache
def _programs(target: str) -> dict[str, Program]:
    return programs(TARGETS[target])


def _sample(family: Family, target: str) -> list[Case]:
    """The covering sample of one family on one target."""
    fits = {
        name: family.space(p, TARGETS[target])
        for name, p in _programs(target).items()
        if family.refusal(p, TARGETS[target]) is None
    }
    return [Case(family.name, row.space, target, row.configuration) for row in covering(fits)]


def _watched(family: Family, target: str) -> list[Case]:
    """A few scalar kernels of one family, one per example: small tiles are as telling here, and cheap."""
    chosen: dict[str, Case] = {}
    for case in sorted(_sample(family, target), key=_volume):
        if len(chosen) < WATCHED and case.program not in chosen and _all_scalar(case):
            chosen[case.program] = case
    return list(chosen.values())


def _volume(case: Case) -> int:
    return math.prod(max(1, v) for v in case.configuration.values() if isinstance(v, int))


def _all_scalar(case: Case) -> bool:
    program = _programs(case.target)[case.program]
    launches = by_name(case.family).lower(program, TARGETS[case.target], case.configuration).launches
    return all(is_scalar(launch.source) for launch in launches)


def _parameters(cases: Sequence[Case], left_out: Callable[[int], bool] = lambda _: False) -> list[object]:
    if simulator.library() is None:
        return [pytest.param(None, marks=pytest.mark.skip(simulator.MISSING), id="without-oclgrind")]
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.memory_full] * left_out(n)) for n, case in enumerate(cases)
    ]


@pytest.mark.parametrize(
    "case",
    _parameters([c for t in ("cpu", "gpu") for f in FAMILIES for c in _sample(f, t)], lambda number: number % 6 != 0),
)
def test_no_memory_errors_and_right_numbers(plain: Simulator, case: Case) -> None:
    _clean(case, case.run(plain))


@pytest.mark.parametrize(
    "case", _parameters([c for t in ("cpu-scalar", "gpu") for f in FAMILIES for c in _watched(f, t)])
)
def test_no_uninitialised_values(watching: Simulator, case: Case) -> None:
    _clean(case, case.run(watching))


def _clean(case: Case, outcome: Outcome) -> None:
    if outcome.reports:
        pytest.fail(f"{case}: {len(outcome.reports)} reports, the first:\n{outcome.reports[0].details}", pytrace=False)
    if outcome.wrong:
        pytest.fail(f"{case}: {outcome.wrong}", pytrace=False)


def test_every_family_is_met() -> None:
    met = {f.name for f in FAMILIES for t in TARGETS if _sample(f, t)}
    assert met == {f.name for f in FAMILIES} - EMULATED, "an example that the family takes is missing from programs.py"
