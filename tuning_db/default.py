"""The user's own database, opened once per process."""

from __future__ import annotations

import logging
import os
import threading

from tilewright.errors import DatabaseError
from tilewright.tuning_db.store import Store

log = logging.getLogger("tilewright.tuning_db")

_stores: dict[str | None, Store | None] = {}
_lock = threading.Lock()


def default_store() -> Store | None:
    """The database that $TILEWRIGHT_DB names, else the user's own; None, with a warning, if it is broken.

    Kernels run without their tuned configurations then.
    """
    named = os.environ.get("TILEWRIGHT_DB") or None
    with _lock:
        if named not in _stores:
            try:
                _stores[named] = Store.open()
            except DatabaseError as error:
                log.warning("kernels run untuned: %s", error)
                _stores[named] = None
        return _stores[named]
