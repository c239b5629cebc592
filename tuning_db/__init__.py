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

SQLAlchemy takes a while to import, so `Store` is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.tuning_db.records import Measurement, Run, Space, Stats, Status, Winner, now

if TYPE_CHECKING:
    from tilewright.tuning_db.store import Store

__all__ = ["Measurement", "Run", "Space", "Stats", "Status", "Store", "Winner", "now"]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from tilewright.tuning_db.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
