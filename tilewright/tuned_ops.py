"""What the database knows of a network's or an op's kernels, put together for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tilewright.autotune import choose, stage_key
from tilewright.autotune.bounds import Bound, bound_of
from tilewright.dsl.program import GENERATOR_VERSION, Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.text import program_text
from tilewright.errors import UnsupportedError
from tilewright.revalidate import read_back
from tilewright.runtime import Device
from tilewright.runtime.roofline import Limits
from tilewright.tuning_db import Measurement, Status, Store, Winner


@dataclass(frozen=True)
class Tried:
    """One candidate, as it was measured last."""

    family: str
    configuration: Configuration
    seconds: float | None
    status: Status


@dataclass(frozen=True)
class TunedOp:
    """One kernel's tuning."""

    name: str
    text: str
    """The program."""
    weight: float
    """How often it runs."""
    history: tuple[Measurement, ...]
    """Everything measured on one device and driver, oldest first."""
    family: str
    configuration: str
    """The winner's, for people."""
    seconds: float | None
    """Its time; None if nothing works or nothing was measured."""
    bound: Bound | None
    """By the device's limits, where they and the program are known."""
    bytes_moved: int
    operations: int
    default: tuple[str, str] | None
    """Family and configuration (JSON) that would run untuned, where that is known."""

    @cached_property
    def tried(self) -> tuple[Tried, ...]:
        """Every candidate once."""
        newest = {(m.family, m.configuration): m for m in self.history}
        return tuple(
            Tried(m.family, Configuration.from_json(m.configuration), m.seconds, m.status) for m in newest.values()
        )

    @property
    def searched(self) -> tuple[Measurement, ...]:
        """The history without what was measured again in turns."""
        return tuple(m for m in self.history if not m.round)

    @property
    def failures(self) -> Mapping[str, int]:
        """How many candidates failed in which way."""
        return Counter(t.status.value for t in self.tried if t.status is not Status.OK)

    @property
    def share(self) -> float | None:
        """The bound as a part of the time."""
        return self.bound.seconds / self.seconds if self.bound is not None and self.seconds else None

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes_moved if self.bytes_moved else 0.0

    @property
    def default_seconds(self) -> float | None:
        """The time of what would run untuned, if it was measured."""
        rows = [m for m in self.history if (m.family, m.configuration) == self.default and m.seconds is not None]
        return rows[-1].seconds if rows else None

    @property
    def gain(self) -> float | None:
        """How many times faster the winner is than the default."""
        return self.default_seconds / self.seconds if self.default_seconds and self.seconds else None


Work = tuple[Program, Collection[str], float]
"""A stage, its constant inputs, and how often it runs."""


def tuned_ops(work: Iterable[Work], device: Device, store: Store, limits: Limits | None) -> tuple[TunedOp, ...]:
    """What is known of stages on a device, the one that takes longest first; stages with one key are one op."""
    found: dict[str, Work] = {}
    for stage, constants, weight in work:
        key = stage_key(stage, constants)
        found[key] = (stage, constants, weight + (found[key][2] if key in found else 0.0))
    ops = []
    for key, (stage, constants, weight) in found.items():
        won = store.winner(device.identity, device.driver, GENERATOR_VERSION, key)
        winner = (won.family, won.configuration, won.seconds) if won is not None and won.exact else None
        history = store.history(device.identity, device.driver, GENERATOR_VERSION, key)
        text = program_text(stage.canonical)
        ops.append(_op(stage.name, text, weight, history, winner, stage, constants, device, limits))
    return _ordered(ops)


def stored_ops(
    winners: Iterable[Winner], store: Store, device: Device | None, limits: Limits | None
) -> tuple[TunedOp, ...]:
    """What a database knows of the programs of winners on one device; the one that takes longest first.

    ``device`` is that device where it is present: without it nobody knows what would run untuned.
    """
    ops = []
    for won in winners:
        history = store.history(won.device, won.driver, won.generator, won.signature)
        program = read_back(won.program)
        name = won.program.partition("\n")[0].removeprefix("op ").removeprefix("kernel ").partition("(")[0]
        present = device if device is not None and device.driver == won.driver else None
        winner = (won.family, won.configuration, won.seconds)
        ops.append(
            _op(name, won.program, 1.0, history, winner, program, _constants(program, won.signature), present, limits)
        )
    return _ordered(ops)


def _constants(program: Program | None, key: str) -> tuple[str, ...]:
    """The inputs that a stage's key says are constant, see `stage_key`."""
    numbers = key.partition("-c")[2]
    if program is None or not numbers:
        return ()
    return tuple(
        program.inputs[int(n)].name for n in numbers.split(".") if n.isdigit() and int(n) < len(program.inputs)
    )


def _op(
    name: str,
    text: str,
    weight: float,
    history: tuple[Measurement, ...],
    winner: tuple[str, str, float] | None,
    program: Program | None,
    constants: Collection[str],
    device: Device | None,
    limits: Limits | None,
) -> TunedOp:
    default = None
    if program is not None and device is not None:
        try:
            choice = choose(program, device, None, constants)
            default = (choice.family, choice.configuration.to_json())
        except UnsupportedError:  # a program of a larger device: nothing fits it here
            default = None
    family, configuration, seconds = winner if winner is not None else ("", "{}", None)
    return TunedOp(
        name=name,
        text=text,
        weight=weight,
        history=history,
        family=family,
        configuration=str(Configuration.from_json(configuration)),
        seconds=seconds,
        bound=bound_of(program, limits) if program is not None and limits is not None else None,
        bytes_moved=program.bytes_moved if program is not None else 0,
        operations=program.operations if program is not None else 0,
        default=default,
    )


def _ordered(ops: Iterable[TunedOp]) -> tuple[TunedOp, ...]:
    return tuple(sorted(ops, key=lambda op: -op.weight * (op.seconds or 0.0)))


__all__ = ["Tried", "TunedOp", "Work", "stored_ops", "tuned_ops"]
