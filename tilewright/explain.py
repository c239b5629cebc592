"""Why an op runs as it does, and how far each kernel is from what the device can do: what `Op.explain` gives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.autotune import stage_key
from tilewright.autotune.bounds import Bound, bound_of
from tilewright.autotune.candidates import REFERENCE_FAMILY
from tilewright.dsl import families
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.dsl.space import Configuration
from tilewright.dsl.text import statement_text
from tilewright.errors import DatabaseError
from tilewright.graph.plan import Feeds, Plan, PlannedCall
from tilewright.runtime import Device
from tilewright.runtime.roofline import Limits, device_limits
from tilewright.tuning_db import Status, Store
from tilewright.wording import duration, quantity, row

REPEATS = 5
"""Samples of which a stage's time is the median."""


@dataclass(frozen=True)
class Verdict:
    """What became of one family for a stage."""

    family: str
    chosen: bool
    refusal: str | None
    """Why it cannot lower the stage; None if it can."""
    seconds: float | None
    """Its fastest time in the tuning database for exactly this stage, device and driver."""
    tried: int
    """Configurations of it in the database."""
    reason: str
    """All this in words."""


@dataclass(frozen=True)
class StageExplanation:
    """One stage of an op."""

    text: str
    """What it computes."""
    family: str
    configuration: Configuration
    origin: str
    """Why this configuration: see `autotune.Choice.origin`."""
    kernels: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    """Every family, most special first."""
    bound: Bound
    seconds: float | None
    """Its time, None if it was neither measured now nor stored."""
    measured_now: bool
    """True if `seconds` was measured now, False if it is the stored winner's."""

    @property
    def share(self) -> float | None:
        """The bound as a part of the time: 1 is as fast as the device can be; None without a time."""
        return None if self.seconds is None else self.bound.seconds / self.seconds

    def __str__(self) -> str:
        b = self.bound
        configuration = f" ({self.configuration})" if len(self.configuration) else ""
        others = [f"{v.family}: {v.reason}" for v in self.verdicts if not v.chosen]
        chosen = next(v.reason for v in self.verdicts if v.chosen)
        parts = f"memory {duration(b.memory_seconds)}, arithmetic {duration(b.arithmetic_seconds)}"
        rows: list[tuple[str, Sequence[str]]] = [
            ("computes", self.text.splitlines()),
            ("family", [f"{self.family}{configuration}: {chosen}"]),
            ("others", others),
            ("kernels", [", ".join(self.kernels)]),
            ("moves", [f"{quantity(b.bytes_moved, 'B')}, {quantity(b.operations, 'op')}, {b.intensity:.3g} per byte"]),
            ("bound", [f"{duration(b.seconds)} by {b.by} ({parts}, launch {duration(b.launch_seconds)})"]),
            ("time", [self._standing()]),
        ]
        return "\n".join(row(name, lines) for name, lines in rows if lines)

    def _standing(self) -> str:
        if self.seconds is None or self.share is None:
            return "not measured"
        source = "measured now" if self.measured_now else "of the stored winner"
        note = "" if self.share <= 1 else ": the limits were measured on a busier device, measure them again"
        return f"{duration(self.seconds)} {source}, {100 * self.share:.0f}% of the bound{note}"


@dataclass(frozen=True)
class Explanation:
    """Why a call of an op runs as it does, stage by stage; its text is for people."""

    op: str
    device: str
    limits: Limits
    stages: tuple[StageExplanation, ...]

    @property
    def seconds(self) -> float | None:
        """The time of all stages, None if one has none."""
        times = [s.seconds for s in self.stages]
        return None if None in times else sum(t for t in times if t is not None)

    def __str__(self) -> str:
        lines = [f"op {self.op} on {self.device}", *textwrap.wrap(limits_text(self.limits), 116)]
        if not self.stages:
            lines.append("nothing runs: all outputs are empty")
        for n, stage in enumerate(self.stages, 1):
            lines += [f"stage {n} of {len(self.stages)}", str(stage)]
        return "\n".join(lines)


def limits_text(limits: Limits) -> str:
    """A device's limits in words."""
    (near, fast), (far, slow) = limits.bandwidths[0], limits.bandwidths[-1]
    rates = ", ".join(f"{quantity(rate, 'op')}/s in {dtype}" for dtype, rate in limits.rates.items())
    return (
        f"limits measured {limits.measured[:10]}: {quantity(slow, 'B')}/s for {far >> 20} MiB, "
        f"{quantity(fast, 'B')}/s for {near >> 20} MiB, {rates} (multiply-adds), "
        f"{duration(limits.launch_seconds)} per launch"
    )


def explain(op: str, plan: Plan, feeds: Feeds, store: Store | None, measure: bool, again: bool) -> Explanation:
    """Explain a plan; with ``measure`` its stages are timed, with ``again`` the device's limits are measured anew."""
    limits = device_limits(plan.device, again)
    times = plan.time_calls(feeds, REPEATS) if measure else ()
    now: Sequence[float | None] = [sorted(t)[len(t) // 2] for t in times] or [None] * len(plan.calls)
    stages = tuple(
        _stage(call, plan.device, limits, store, seconds) for call, seconds in zip(plan.calls, now, strict=True)
    )
    return Explanation(op, plan.device.name, limits, stages)


def _stage(
    call: PlannedCall, device: Device, limits: Limits, store: Store | None, now: float | None
) -> StageExplanation:
    measured = _measured(call, device, store)
    stored = measured.get((call.choice.family, call.choice.configuration.to_json()))
    return StageExplanation(
        "\n".join(statement_text(s) for s in call.call.program.statements),
        call.choice.family,
        call.choice.configuration,
        call.choice.origin,
        tuple(dict.fromkeys(launch.kernel for launch in call.lowering.launches)),
        _verdicts(call, device, measured),
        bound_of(call.program, limits),
        stored if now is None else now,
        now is not None,
    )


Measured = Mapping[tuple[str, str], float]
"""Seconds by family and configuration as JSON."""


def _measured(call: PlannedCall, device: Device, store: Store | None) -> Measured:
    """What the database knows of exactly this stage on this device and driver."""
    if store is None:
        return {}
    try:
        key = stage_key(call.program, call.stage.constants)
        tried = store.tried(device.identity, device.driver, GENERATOR_VERSION, key)
    except DatabaseError:
        return {}
    return {k: m.seconds for k, m in tried.items() if m.status is Status.OK and m.seconds is not None}


def _verdicts(call: PlannedCall, device: Device, measured: Measured) -> tuple[Verdict, ...]:
    chosen, found, after = call.choice.family, [], False
    best: dict[str, float] = {}
    for (name, _), seconds in measured.items():
        best[name] = min(seconds, best.get(name, seconds))
    for family in families.FAMILIES:
        name, known = family.name, best.get(family.name)
        refusal = family.refusal(call.program, device.target)
        tried = sum(name == other for other, _ in measured)
        if name == chosen:
            reason, after = call.choice.origin, True
        elif refusal is not None:
            reason = f"does not fit: {refusal}"
        else:
            reason = f"fits, {_standing(name, known, best.get(chosen), after)}"
        found.append(Verdict(name, name == chosen, refusal, known, tried, reason))
    return tuple(found)


def _standing(name: str, seconds: float | None, winner: float | None, after: bool) -> str:
    """Why a family that fits was not chosen."""
    if seconds is not None and winner is not None:
        word = "slower" if seconds >= winner else "not slower"
        return f"{word} when tuned: {duration(seconds)} against {duration(winner)}"
    if name == REFERENCE_FAMILY:
        return "as everything does; it is for what no other family fits"
    if seconds is not None:
        return f"best measured {duration(seconds)}"
    return "comes later and was not measured" if after else "was not measured"


__all__ = ["Bound", "Explanation", "StageExplanation", "Verdict", "bound_of", "explain"]
