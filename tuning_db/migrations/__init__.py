"""Schema changes, run by Alembic: `versions/` holds one step per version, each from the one before it.

A step says what changes and never looks at `schema.py`, which describes the newest version only.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's settings for this package; `env.py` finds the connection in them."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring a database to a version inside the caller's transaction; what fails leaves it as it was."""
    command.upgrade(configuration(connection), to)


__all__ = ["configuration", "upgrade"]
