"""Winners that come with tilewright: one JSON Lines file per device in `winners/`, read-only, below the user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tilewright.tuning_db.exchange import measurements_of, parse_lines
from tilewright.tuning_db.records import Measurement, Status, Winner


def file_name(device: str) -> str:
    """The name of a device's file: readable, and unique by a piece of the identity's hash."""
    readable = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(device.encode()).hexdigest()[:8]}.jsonl"


def winners_folder() -> Traversable:
    """Where the shipped files lie."""
    return resources.files("tilewright.tuning_db") / "winners"


@dataclass(frozen=True)
class Shipped:
    """The shipped winners of one device."""

    winners: tuple[Winner, ...] = ()

    def winner(self, driver: str, generator: str, signature: str, exact: bool) -> Winner | None:
        """The fastest for a program, on this very driver or (``exact`` false) on another one."""
        fitting = [
            w
            for w in self.winners
            if w.signature == signature and w.generator == generator and (w.driver == driver) is exact
        ]
        return min(fitting, key=lambda w: w.seconds, default=None)

    def of_structure(self, generator: str, structure: str) -> tuple[Winner, ...]:
        """All winners of a structure, whatever their driver."""
        return tuple(w for w in self.winners if w.structure == structure and w.generator == generator)


def load(device: str, folder: Traversable | None = None) -> Shipped:
    """The winners shipped for a device, if any."""
    file = (folder or winners_folder()) / file_name(device)
    if not file.is_file():
        return Shipped()
    with file.open(encoding="utf-8") as lines:
        rows = list(measurements_of(parse_lines(lines, str(file))))
    return Shipped(tuple(as_winner(m) for m in rows if m.device == device and m.status is Status.OK))


def as_winner(m: Measurement, shipped: bool = True) -> Winner:
    """A row of a winners' file as a Winner."""
    assert m.seconds is not None, "only ok rows are winners"
    return Winner(
        device=m.device,
        driver=m.driver,
        signature=m.signature,
        structure=m.structure,
        sizes=m.sizes,
        program=m.program,
        family=m.family,
        configuration=m.configuration,
        generator=m.generator,
        seconds=m.seconds,
        created=m.created,
        shipped=shipped,
    )


def devices_of(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """Measurements sorted into their devices' files: file name to rows."""
    files: dict[str, list[Measurement]] = {}
    for m in measurements:
        files.setdefault(file_name(m.device), []).append(m)
    return files


__all__ = ["Shipped", "as_winner", "devices_of", "file_name", "load", "winners_folder"]
