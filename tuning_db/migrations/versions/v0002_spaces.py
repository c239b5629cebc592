"""Spaces that configurations were taken from, precisions of programs, and an index that finds the fastest at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tilewright.tuning_db.records import precision_of

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """From version 1 to 2; nothing that was stored changes."""
    op.create_table(
        "spaces",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("family", sa.String(128), nullable=False),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.Column("constraints", sa.Text, nullable=False),
    )
    space = sa.Column("space_id", sa.Integer, sa.ForeignKey("spaces.id"))
    op.add_column("measurements", space, inline_references=True)
    op.add_column("programs", sa.Column("precision", sa.String(16), nullable=False, server_default=""))
    op.create_index(
        "measurements_by_speed", "measurements", ["program_id", "driver_id", "generator", "status", "seconds"]
    )
    _fill_precisions()
    meta = sa.table("meta", sa.column("key", sa.String), sa.column("value", sa.Text))
    op.execute(sa.update(meta).where(meta.c.key == "schema_version").values(value="2"))


def _fill_precisions() -> None:
    connection = op.get_bind()
    programs = sa.table(
        "programs", sa.column("id", sa.Integer), sa.column("text", sa.Text), sa.column("precision", sa.String)
    )
    found = connection.execute(sa.select(programs.c.id, programs.c.text)).all()
    for number, text in found:
        connection.execute(sa.update(programs).where(programs.c.id == number).values(precision=precision_of(text)))
