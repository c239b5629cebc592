"""What tuning a foreign kernel found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.dsl.lowering import Launch
from tilewright.dsl.space import Configuration, Space
from tilewright.tuning_db import Status


@dataclass(frozen=True)
class KernelMeasurement:
    """One configuration, as the database knows it last."""

    configuration: Configuration
    status: Status
    seconds: float | None
    message: str


@dataclass(frozen=True)
class KernelResult:
    """The best configuration of a kernel on a device, and everything that was tried."""

    kernel: str
    device: str
    signature: str
    """What the database calls the kernel with these arguments."""
    best: Configuration | None
    """The fastest configuration whose results are right; None if there is none."""
    launch: Launch | None
    """Its source, with macros, its global and its local size."""
    seconds: float | None
    """Its time."""
    before: float | None
    """That of the default configuration; None if it does not work."""
    bytes_moved: int
    operations: int | None
    evaluations: int
    """Candidates that were measured now; the others were known."""
    measurements: tuple[KernelMeasurement, ...]
    """Every configuration of the space that was ever tried with these arguments on this device and driver."""
    space: Space
    interrupted: bool
    """Ended by Ctrl-C; everything measured until then is kept."""

    @property
    def gbytes_per_second(self) -> float | None:
        """Of the best, in 10⁹ bytes."""
        return None if self.seconds is None else 1e-9 * self.bytes_moved / self.seconds

    @property
    def gflops(self) -> float | None:
        """Of the best, in 10⁹ operations per second; None where their number is not known."""
        return None if self.seconds is None or self.operations is None else 1e-9 * self.operations / self.seconds

    @property
    def gain(self) -> float | None:
        """How many times faster the best is than the default."""
        return None if self.seconds is None or self.before is None else self.before / self.seconds

    @property
    def statuses(self) -> Mapping[str, int]:
        """How many configurations ended in which way."""
        return dict(Counter(m.status.value for m in self.measurements))

    def fastest(self, count: int = 10) -> list[KernelMeasurement]:
        """The fastest configurations, by single measurements."""
        done = [m for m in self.measurements if m.seconds is not None]
        return sorted(done, key=lambda m: m.seconds or 0.0)[:count]

    def __str__(self) -> str:
        statuses = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in self.statuses.items()) or "none tried"
        head = f"kernel {self.kernel} on {self.device}: {statuses}"
        if self.best is None or self.seconds is None:
            failed = Counter(m.message.partition("\n")[0] for m in self.measurements if m.seconds is None)
            why = f"; most of all: {failed.most_common(1)[0][0]}" if failed else ""
            return f"{head}\nno configuration works{why}"
        figures = [f"{1e6 * self.seconds:.1f} µs", f"{self.gbytes_per_second:.3g} GB/s"]
        figures += [f"{self.gflops:.3g} GFLOP/s"] if self.gflops is not None else []
        figures += [f"{self.gain:.2f} times the default's speed"] if self.gain is not None else []
        return f"{head}\n{self.best}\n{', '.join(figures)}"


__all__ = ["KernelMeasurement", "KernelResult"]
