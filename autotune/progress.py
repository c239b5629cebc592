"""A progress bar for tuning runs, for the command line and sessions that ask for one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tilewright.autotune.reports import Event


class TuningBar:
    """Shows a tuning run's events as one line with the time left; a context manager to be handed to `tune`.

    with TuningBar() as bar:
        tune(stages, device, store, budget, bar)
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("tuning", total=None, figures="")

    def __enter__(self) -> TuningBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show where the run stands."""
        total, completed = _share(event)
        best = f", best {event.best * 1e6:,.1f} µs" if event.best is not None else ""
        share = f" ({100 * event.share:.0f}% of the roofline)" if event.share is not None else ""
        failed = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(event.failures.items()))
        self._bar.update(
            self._task,
            total=total,
            completed=completed,
            description=f"tuning {event.stage[:32]}",
            figures=f"{event.evaluations} tried{best}{share}, all stages ×{event.gain:.2f}{failed and f', {failed}'}",
        )


def _share(event: Event) -> tuple[float, float]:
    """(total, completed) of whichever limit is nearer; finished stages where there is no limit."""
    shares = []
    if event.budget.seconds is not None:
        shares.append((event.budget.seconds, min(event.elapsed, event.budget.seconds)))
    if event.budget.evaluations is not None:
        shares.append((float(event.budget.evaluations), float(event.evaluations)))
    return max(shares, key=lambda s: s[1] / s[0], default=(float(event.stages), float(event.finished)))


__all__ = ["TuningBar"]
