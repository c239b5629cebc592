"""Messages of the ``tilewright`` logger on standard error, from the level that $TILEWRIGHT_LOG names."""

from __future__ import annotations

import logging
import os

LEVELS = ("debug", "info", "warning", "error")


def start() -> None:
    """Attach a handler once; warnings and worse are shown where $TILEWRIGHT_LOG is unset or no level."""
    logger = logging.getLogger("tilewright")
    wanted = os.environ.get("TILEWRIGHT_LOG", "").strip().lower() or "warning"
    known = wanted in LEVELS
    logger.setLevel((wanted if known else "warning").upper())
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    if not known:
        logger.warning("TILEWRIGHT_LOG=%s is no level; use one of %s", wanted, ", ".join(LEVELS))
