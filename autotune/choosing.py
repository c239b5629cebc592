"""Which configuration a stage runs with: the tuned one, that of the nearest tuned shape, or the family's default."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tilewright.autotune.candidates import FamilySource
from tilewright.dsl import families
from tilewright.dsl.lowering import Lowering
from tilewright.dsl.program import GENERATOR_VERSION, OLDER_GENERATORS, Program
from tilewright.dsl.space import Configuration, Space
from tilewright.errors import DatabaseError, UnsupportedError
from tilewright.runtime import Device

if TYPE_CHECKING:
    from tilewright.tuning_db import Store, Winner

log = logging.getLogger("tilewright.autotune")

TUNED = "tuned"
OTHER_DRIVER = "tuned on another driver version"
OLDER_GENERATOR = "tuned with an older generator"
NEAREST = "nearest shape"
DEFAULT = "default"

NEAREST_LIMIT = 5
"""Nearest shapes that are looked at before the default is taken."""
NEAREST_DISTANCE = 1.0
"""Farthest shape whose winner is used untried: twice the work in all (`Store.nearest`).

Beyond that a family's own model is nearer the truth: winners of batch 1, whose tiles give few work-groups something to
do, took twice as long at batch 64 on an H100 as what the families chose. A search still starts with them.
"""
_REMEMBERED = 4096
_VERSIONS = (GENERATOR_VERSION, *OLDER_GENERATORS)


@dataclass(frozen=True)
class Choice:
    """How a stage is to be lowered, and why."""

    family: str
    configuration: Configuration
    origin: str
    """One of TUNED, OTHER_DRIVER, OLDER_GENERATOR, NEAREST, DEFAULT."""


_choices: OrderedDict[tuple[object, ...], Choice] = OrderedDict()
_lock = threading.Lock()


def stage_key(stage: Program, constants: Collection[str] = ()) -> str:
    """Under what a stage's results are stored: its signature, and which of its inputs never change between runs.

    Work that depends on constant inputs alone (packing weights) is done once and not timed, so other configurations
    may win. ``constants`` are names of inputs.
    """
    fixed = [str(n) for n, t in enumerate(stage.inputs) if t.name in constants]
    return f"{stage.signature}-c{'.'.join(fixed)}" if fixed else stage.signature


def choose(
    stage: Program,
    device: Device,
    store: Store | None = None,
    constants: Collection[str] = (),
    source: FamilySource | None = None,
) -> Choice:
    """The best known way to run a stage on a device; never fails for a program that some family fits.

    In this order: the stored winner of this very stage; one measured on another version of the driver; one of an older
    generator's kernels; the winner of the nearest sizes of the same structure; the default of the first family that
    fits. A stored configuration is taken only if it lies in its family's space for this stage and device.
    ``constants``: see `stage_key`.
    """
    key = stage_key(stage, constants)
    if source is not None:
        return _choose(stage, device, store, key, source)
    asked = (key, device, store.generation if store else 0)
    with _lock:
        known = _choices.get(asked)
        if known is not None:
            _choices.move_to_end(asked)
            return known
    choice = _choose(stage, device, store, key, families.fitting)
    with _lock:
        _choices[asked] = choice
        if len(_choices) > _REMEMBERED:
            _choices.popitem(last=False)
    return choice


def look_up(stages: Iterable[tuple[Program, Collection[str]]], device: Device, store: Store | None) -> None:
    """Ask the database about many stages (each with its constant inputs) at once: `choose` is faster afterwards."""
    if store is None:
        return
    programs = {stage_key(s, constants): partial(getattr, s, "structure") for s, constants in stages}
    with contextlib.suppress(DatabaseError):  # `choose` says so
        for version in _VERSIONS:
            store.look_up(device.identity, device.driver, version, programs)


def _choose(stage: Program, device: Device, store: Store | None, key: str, source: FamilySource) -> Choice:
    legal = _Legal(stage, device, source)
    if store is not None:
        try:
            known = _stored(stage, device, store, key, legal)
        except DatabaseError as e:  # a database that cannot be read makes programs slower, not impossible
            log.warning("%s: the default configuration is used", e)
            known = None
        if known is not None:
            return known
    first = source(stage, device.target)[0]
    return Choice(first.name, families.default(first, stage, device.target), DEFAULT)


def _stored(stage: Program, device: Device, store: Store, key: str, legal: _Legal) -> Choice | None:
    """What the database says, or None if nothing in it may be used."""
    exact = store.winner(device.identity, device.driver, GENERATOR_VERSION, key)
    if exact is not None and exact.exact:
        found = legal.configuration(exact)
        if found is not None:
            return Choice(exact.family, found, TUNED)
    for near in start_winners(stage, device, store, key):
        found = legal.configuration(near)
        origin = _origin(near, key)
        if found is None or (origin == NEAREST and (near.distance > NEAREST_DISTANCE or legal.outdated(near))):
            continue
        return Choice(near.family, found, origin)
    return None


def _origin(winner: Winner, key: str) -> str:
    if winner.signature != key:
        return NEAREST
    return OTHER_DRIVER if winner.generator == GENERATOR_VERSION else OLDER_GENERATOR


def start_winners(stage: Program, device: Device, store: Store, key: str) -> Iterator[Winner]:
    """Winners worth trying for a stage, best first: its own on any driver and generator, then those of near sizes."""
    for version in _VERSIONS:
        own = store.winner(device.identity, device.driver, version, key)
        if own is not None:
            yield own
    for version in _VERSIONS:
        near = store.nearest(device.identity, device.driver, version, stage.structure, stage.sizes, NEAREST_LIMIT)
        yield from (w for w in near if w.signature != key)


class _Legal:
    """Checks stored configurations against the families' spaces for one stage."""

    def __init__(self, stage: Program, device: Device, source: FamilySource) -> None:
        self._stage = stage
        self._target = device.target
        self._source = source
        self._spaces: dict[str, Space | None] = {}

    def configuration(self, winner: Winner) -> Configuration | None:
        """The winner's configuration if it may be used for this stage, else None."""
        if winner.family not in self._spaces:
            self._spaces[winner.family] = self._space(winner.family)
        space = self._spaces[winner.family]
        if space is None:
            return None
        configuration = space.completed(Configuration.from_json(winner.configuration))
        return configuration if space.violated(configuration) is None else None

    def outdated(self, winner: Winner) -> bool:
        """True for the winner of an older generator that may not have had the family which comes first here."""
        return (
            winner.generator != GENERATOR_VERSION and winner.family != self._source(self._stage, self._target)[0].name
        )

    def _space(self, name: str) -> Space | None:
        """The space of a family for the stage, None if it does not fit; asks no other family (that takes longer)."""
        known = families.FAMILIES if self._source is families.fitting else self._source(self._stage, self._target)
        family = next((f for f in known if f.name == name), None)
        if family is None or family.refusal(self._stage, self._target) is not None:
            return None
        try:
            return families.space(family, self._stage, self._target)
        except UnsupportedError:  # its tuning lines leave nothing
            return None


def lower(stage: Program, device: Device, choice: Choice, source: FamilySource | None = None) -> Lowering:
    """The kernels of a choice; UnsupportedError if its family does not exist."""
    if source is None:
        return families.by_name(choice.family).lower(stage, device.target, choice.configuration)
    for family in source(stage, device.target):
        if family.name == choice.family:
            return family.lower(stage, device.target, choice.configuration)
    raise UnsupportedError(f"family {choice.family!r} does not fit {stage.name}")


__all__ = [
    "DEFAULT",
    "NEAREST",
    "OLDER_GENERATOR",
    "OTHER_DRIVER",
    "TUNED",
    "Choice",
    "choose",
    "look_up",
    "lower",
    "stage_key",
    "start_winners",
]
