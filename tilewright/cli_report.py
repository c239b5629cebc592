"""What `tilewright tune --report` does beside tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.autotune import stage_key
from tilewright.tuning_page import network_page, write_page
from tilewright.tuning_plots import require

if TYPE_CHECKING:
    from tilewright.graph.session import InferenceSession
    from tilewright.opfile import OpCall
    from tilewright.tuned_ops import Work
    from tilewright.tuning_db import Store


def prepare(file: Path | None, selector: str | None, watched: bool) -> None:
    """Before a search: complain now about what a report lacks, and measure the device's limits if they will be shown.

    ``watched``: somebody sees the progress, which tells the share of the roofline.
    """
    from tilewright.runtime import select_device
    from tilewright.runtime.roofline import device_limits

    if file is not None:
        require()
    if file is not None or watched:
        device_limits(select_device(selector))


def report_network(session: InferenceSession, feeds: Mapping[str, Any], title: str, file: Path) -> None:
    """Write the report on a network with the sizes of `feeds`."""
    calls = [c for plan in session.plans(feeds) for c in plan.calls]
    names: dict[str, list[str]] = {}
    for c in calls:
        names.setdefault(stage_key(c.stage.program, c.stage.constants), []).append("+".join(c.call.ops))
    work: list[Work] = []
    for c in calls:
        ops = names[stage_key(c.stage.program, c.stage.constants)]
        work.append((replace(c.stage.program, name=" / ".join(dict.fromkeys(ops))), c.stage.constants, 1.0))
    write_page(network_page(title, work, session.device, _store(), whole=True), file)


def report_op(call: OpCall, selector: str | None, file: Path) -> None:
    """Write the report on an op called with these arguments."""
    plan = call.op.plan(device=selector, **call.arguments)
    work: list[Work] = [(replace(c.program, name=call.op.name), (), 1.0) for c in plan.calls]
    write_page(network_page(call.op.name, work, plan.device, _store(), whole=False), file)


def _store() -> Store:
    from tilewright.tuning_db import Store
    from tilewright.tuning_db.default import default_store

    return default_store() or Store.open()


__all__ = ["prepare", "report_network", "report_op"]
