"""The tuning database: every measurement and every winner, per device and program.

    default.py   the user's own database
    store.py     Store: record, winner, nearest, tried, stats, export ...
    records.py   Measurement, Winner, Status, Run, Stats
    schema.py    tables, their version, migrations
    queries.py   what a winner is
    engine.py    opening, locking, errors
    exchange.py  JSON Lines
    shipped.py   winners that come with tilewright

SQLAlchemy takes a while to import, so `Store` is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.tuning_db.records import Measurement, Run, Stats, Status, Winner, now

if TYPE_CHECKING:
    from tilewright.tuning_db.store import Store

__all__ = ["Measurement", "Run", "Stats", "Status", "Store", "Winner", "now"]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from tilewright.tuning_db.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
