"""Choosing and searching configurations.

    choosing.py    which configuration a stage runs with, and why
    tuning.py      searching better ones by measuring    stages.py   its stages     reports.py    what it says
    search.py      which family is next                  candidates.py  what may be tried       budget.py   limits
    strategies.py  strategies over one space             guided.py      the one that is used    surrogate.py   its model
    grids.py       the points of a space                 space_building.py  how they are listed
    transfer.py    what was measured elsewhere           recorded.py    others' recorded spaces
    compiling.py   candidates compiled ahead             progress.py    a progress bar
    supervisor.py  keeps a measuring process alive       worker.py  that process    messages.py  what they say
    evaluating.py  what it does for a candidate          checking.py, comparing.py  whether the numbers are right

Names are imported when they are first asked for: the measuring process needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.autotune.budget import Budget
    from tilewright.autotune.choosing import Choice, choose, look_up, lower, stage_key
    from tilewright.autotune.progress import TuningBar
    from tilewright.autotune.reports import Event, StageReport, TuningReport
    from tilewright.autotune.tuning import tune

__all__ = [
    "Budget",
    "Choice",
    "Event",
    "StageReport",
    "TuningBar",
    "TuningReport",
    "choose",
    "look_up",
    "lower",
    "stage_key",
    "tune",
]


_PLACES = {
    "Budget": "budget",
    "Choice": "choosing",
    "Event": "reports",
    "StageReport": "reports",
    "TuningBar": "progress",
    "TuningReport": "reports",
    "choose": "choosing",
    "look_up": "choosing",
    "lower": "choosing",
    "stage_key": "choosing",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilewright.autotune.{_PLACES[name]}"), name)
