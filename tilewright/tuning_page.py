"""The tuning report: one HTML file that needs nothing else, for a tuned network or op, or for what a database holds.

Names come from models and databases of others: jinja2 escapes all of them, and the pictures hold parameters alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tilewright import __version__
from tilewright.errors import InputError
from tilewright.explain import limits_text
from tilewright.page_template import TEMPLATE
from tilewright.runtime import Device
from tilewright.runtime.roofline import Limits, device_limits, known_limits
from tilewright.tuned_ops import TunedOp, Work, stored_ops, tuned_ops
from tilewright.tuning_db import Store
from tilewright.tuning_plots import op_picture, require, roofline_picture, time_picture
from tilewright.wording import duration

PICTURED = 30
"""Ops that have pictures of their own: those that take longest."""


@dataclass(frozen=True)
class Page:
    """What a report is about."""

    title: str
    device: str
    driver: str
    ops: Sequence[TunedOp]
    """The one that takes longest first."""
    limits: Limits | None
    whole: bool
    """True if the ops together are one network, so that their times may be summed."""


def network_page(title: str, work: Iterable[Work], device: Device, store: Store, whole: bool) -> Page:
    """A report on the stages of a network (``whole``) or an op; the device's limits are measured if they are not known.

    ``work``: each stage, its constant inputs, and how often it runs.
    """
    require()
    limits = device_limits(device)
    ops = tuned_ops(work, device, store, limits)
    return Page(title, device.name, device.driver, ops, limits, whole)


def database_page(store: Store, identity: str, present: Device | None, most: int) -> Page:
    """A report on what a database knows of a device, of its driver that was measured last, for at most `most` programs.

    ``present`` is the device where it is here. InputError if nothing is known of it.
    """
    require()
    won = sorted(store.ls(identity), key=lambda w: w.created)
    if not won:
        raise InputError(f"{store.url} has no measurement of {identity}")
    driver = won[-1].driver
    newest = {w.signature: w for w in won if w.driver == driver}  # of several generators, the one measured last
    slowest = sorted(newest.values(), key=lambda w: (-w.seconds, w.signature))[:most]
    here = present if present is not None and present.driver == driver else None
    limits = known_limits(here) if here is not None else None
    return Page(
        f"tuning database {store.url}", identity, driver, stored_ops(slowest, store, here, limits), limits, False
    )


def write_page(page: Page, file: Path) -> None:
    """Write the report; InputError if there is nothing to report or the file cannot be written."""
    text = render(page)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise InputError(f"the report cannot be written to {file}: {e.strerror or e}") from e


def render(page: Page) -> str:
    """The report as HTML; UnsupportedError where the packages that it needs are missing."""
    require()
    from jinja2 import Environment, StrictUndefined

    if not any(op.history for op in page.ops):
        raise InputError(f"nothing has been measured of {page.title} on {page.device}; tune it first")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pictured = [op for op in page.ops if op.history][:PICTURED]
    return template.from_string(TEMPLATE).render(
        page=page,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        limits=None if page.limits is None else limits_text(page.limits),
        summary=_summary(page),
        rows=[_row(n, op, page) for n, op in enumerate(page.ops, 1)],
        times=time_picture(page.ops) if sum(op.seconds is not None for op in page.ops) > 1 else "",
        roofline=roofline_picture(page.ops, page.limits) if any(op.operations for op in page.ops) else "",
        details=[(n, op, op_picture(op)) for n, op in enumerate(page.ops, 1) if op in pictured],
        left_out=sum(1 for op in page.ops if op.history) - len(pictured),
    )


def _summary(page: Page) -> list[tuple[str, str]]:
    measured = [op for op in page.ops if op.seconds is not None]
    failures: Counter[str] = sum((Counter(op.failures) for op in page.ops), Counter())
    rows = [("kernels", f"{len(page.ops)} different, {len(measured)} tuned")]
    if page.whole and measured:
        total = sum(op.weight * (op.seconds or 0.0) for op in measured)
        rows.append(("time of all kernels", duration(total)))
        known = [op for op in measured if op.default_seconds is not None]
        if known:
            before = sum(op.weight * (op.default_seconds or 0.0) for op in known)
            after = sum(op.weight * (op.seconds or 0.0) for op in known)
            rows.append(
                ("gain over untuned", f"{before / after:.2f} times ({len(known)} kernels where both are known)")
            )
        bounded = [op for op in measured if op.bound is not None]
        if bounded:
            least = sum(op.weight * op.bound.seconds for op in bounded if op.bound is not None)
            spent = sum(op.weight * (op.seconds or 0.0) for op in bounded)
            rows.append(("share of the roofline", f"{100 * least / spent:.0f}%"))
    rows.append(("candidates tried", str(sum(len(op.tried) for op in page.ops))))
    rows.append(("failed", _failures(failures) or "none"))
    return rows


def _failures(found: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(found.items()))


def _row(number: int, op: TunedOp, page: Page) -> dict[str, Any]:
    total = sum(o.weight * (o.seconds or 0.0) for o in page.ops)
    return {
        "number": number,
        "op": op,
        "header": op.text.partition("\n")[0].rstrip(":"),
        "time": "-" if op.seconds is None else duration(op.seconds),
        "part": f"{100 * op.weight * op.seconds / total:.1f}%" if op.seconds and total else "-",
        "share": "-" if op.share is None else f"{100 * op.share:.0f}%",
        "by": "" if op.bound is None else op.bound.by,
        "gain": "-" if op.gain is None else f"{op.gain:.2f}",
        "failures": _failures(op.failures) or "-",
    }


__all__ = ["PICTURED", "Page", "database_page", "network_page", "render", "write_page"]
