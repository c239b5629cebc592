"""The tuning database: every measurement and every winner, per device and program.

    default.py   the user's own database    places.py  where it lies, and whether it has changed
    store.py     Store: record, winner, nearest, tried, stats, export ...
    records.py   Measurement, Space, Winner, Status, Run, Stats
    schema.py    tables and their version
    migrations/  changes of the schema, by Alembic
    queries.py   what a winner is
    reading.py   rows to records, a page at a time; what is wrong with them
    writing.py   records to rows, a batch at a time
    engine.py    opening, locking, errors
    exchange.py  JSON Lines
    recovery.py  what can still be read of a damaged file
    recorded.py  T4 results and Kernel Tuner caches: spaces that others have measured
    shipped.py   winners that come with tilewright

Names are imported when they are first asked for: SQLAlchemy takes a while, and `places` needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.tuning_db.records import Measurement, Run, Space, Stats, Status, Winner, now
    from tilewright.tuning_db.store import Store

__all__ = ["Measurement", "Run", "Space", "Stats", "Status", "Store", "Winner", "now"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilewright.tuning_db.{'store' if name == 'Store' else 'records'}"), name)
