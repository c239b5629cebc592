"""The first tables: devices, drivers, programs, configurations, runs and measurements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of version 1."""
    op.create_table(
        "meta", sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "drivers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("device_id", sa.Integer, sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.UniqueConstraint("device_id", "version"),
    )
    op.create_table(
        "programs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("signature", sa.String(128), nullable=False, unique=True),
        sa.Column("structure", sa.String(128), nullable=False, index=True),
        sa.Column("sizes", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "configurations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("family", sa.String(128), nullable=False),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.UniqueConstraint("family", "parameters"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("started", sa.String(40), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("budget", sa.Text, nullable=False),
    )
    _measurements()
    op.bulk_insert(
        sa.table("meta", sa.column("key", sa.String), sa.column("value", sa.Text)),
        [{"key": "schema_version", "value": "1"}],
    )


def _measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("program_id", sa.Integer, sa.ForeignKey("programs.id"), nullable=False),
        sa.Column("driver_id", sa.Integer, sa.ForeignKey("drivers.id"), nullable=False),
        sa.Column("generator", sa.String(64), nullable=False),
        sa.Column("configuration_id", sa.Integer, sa.ForeignKey("configurations.id"), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("seconds", sa.Float(53)),
        sa.Column("samples", sa.Text, nullable=False),
        sa.Column("error", sa.Float(53)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("build_seconds", sa.Float(53)),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("round", sa.String(64), nullable=False),
    )
    key = ["program_id", "driver_id", "generator"]
    op.create_index("measurements_by_key", "measurements", [*key, "configuration_id", "created"])
    op.create_index("measurements_by_round", "measurements", [*key, "round", "created"])
