"""Choosing and searching configurations.

    choosing.py    which configuration a stage runs with, and why
    tuning.py      searching better ones by measuring    stages.py   its stages     reports.py    what it says
    tuning_run.py  one call of the tuner                 measurer.py  what it asks of what measures
    finals.py      who wins a stage
    search.py      which family is next                  candidates.py  what may be tried       budget.py   limits
    strategies.py  strategies over one space             guided.py      the one that is used    surrogate.py   its model
    grids.py       the points of a space                 space_building.py  how they are listed
    transfer.py    what was measured elsewhere           recorded.py    others' recorded spaces
    compiling.py   candidates compiled ahead             progress.py    a progress bar       bounds.py  the roofline
    supervisor.py  keeps a measuring process alive       worker.py  that process    messages.py  what they say
    fleet.py       measuring on other machines, by Dask     fleet_worker.py  what runs there
    evaluating.py  what it does for a candidate          racing.py      how often it is timed, and who is faster
    checking.py, comparing.py  whether the numbers are right
    kernels.py     kernels of others    kernel_text.py, kernel_arguments.py, kernel_space.py  what they are given
    kernel_result.py  what was found    size_expressions.py  arithmetic as text    subjects.py  what is measured

Names are imported when they are first asked for: the measuring process needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.autotune.budget import Budget
    from tilewright.autotune.choosing import Choice, choose, look_up, lower, stage_key
    from tilewright.autotune.kernel_arguments import InOut, Output
    from tilewright.autotune.kernel_result import KernelResult
    from tilewright.autotune.kernels import tune_kernel
    from tilewright.autotune.progress import TuningBar
    from tilewright.autotune.reports import Event, Progress, StageReport, TuningReport
    from tilewright.autotune.tuning import tune

__all__ = [
    "Budget",
    "Choice",
    "Event",
    "InOut",
    "KernelResult",
    "Output",
    "Progress",
    "StageReport",
    "TuningBar",
    "TuningReport",
    "choose",
    "look_up",
    "lower",
    "stage_key",
    "tune",
    "tune_kernel",
]


_PLACES = {
    "Budget": "budget",
    "Choice": "choosing",
    "Event": "reports",
    "InOut": "kernel_arguments",
    "KernelResult": "kernel_result",
    "Output": "kernel_arguments",
    "Progress": "reports",
    "StageReport": "reports",
    "TuningBar": "progress",
    "TuningReport": "reports",
    "choose": "choosing",
    "look_up": "choosing",
    "lower": "choosing",
    "stage_key": "choosing",
    "tune": "tuning",
    "tune_kernel": "kernels",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilewright.autotune.{_PLACES[name]}"), name)
