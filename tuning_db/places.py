"""Where the user's own database lies, and whether a database has changed, told without opening it."""

from __future__ import annotations

import os
from pathlib import Path


def default_path() -> Path:
    """The user's own database file (not created)."""
    import platformdirs

    return Path(platformdirs.user_data_dir("tilewright", appauthor=False)) / "tuning.sqlite"


def plain_path(where: str | Path | None) -> Path | None:
    """The file meant by a path (None: $TILEWRIGHT_DB, else the user's own); None where it is a URL."""
    named = where if where is not None else os.environ.get("TILEWRIGHT_DB") or None
    if named is None:
        return default_path()
    return None if "://" in str(named) else Path(named).expanduser()


def stamp(path: Path) -> str:
    """Other than before whenever something was written to an SQLite file, or to the log beside it."""
    return " ".join(map(_state, (path, path.with_name(path.name + "-wal"))))


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):  # the latter for names that no file can have
        return "-"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}" if found.st_size else "-"


__all__ = ["default_path", "plain_path", "stamp"]
