"""How much a tuning run may spend."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tilewright.errors import InputError

_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Budget:
    """Limits of a tuning run over all of its stages together; None is no limit. Whichever is met first ends it.

    With neither limit, every stage is searched until nothing better has turned up for a while.
    """

    seconds: float | None = None
    evaluations: int | None = None
    """New candidates measured; those known from the database do not count."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"a budget of {self.seconds} seconds is no time; give a positive number")
        if self.evaluations is not None and self.evaluations < 1:
            raise InputError(f"a budget of {self.evaluations} evaluations measures nothing; give at least 1")

    @staticmethod
    def parse(time: str | float | Budget | None = None, evaluations: int | None = None) -> Budget:
        """A budget from "30s", "2m", "1.5h", "90" (seconds) or a number of seconds; InputError for anything else."""
        if isinstance(time, Budget):
            return time if evaluations is None else Budget(time.seconds, evaluations)
        if time is None:
            return Budget(None, evaluations)
        if not isinstance(time, str):
            return Budget(float(time), evaluations)
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", time.lower())
        if found is None or found[2] not in _UNITS:
            raise InputError(f"{time!r} is no time; write for example 30s, 2m, 1h, or a number of seconds")
        return Budget(float(found[1]) * _UNITS[found[2]], evaluations)

    def __str__(self) -> str:
        parts = []
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s")
        if self.evaluations is not None:
            parts.append(f"{self.evaluations} evaluations")
        return ", ".join(parts) or "until nothing improves"


__all__ = ["Budget"]
