"""Networks beside PyTorch on a GPU, one row per network, precision and batch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import timing
from gpu_report import NetworkRow
from models import source

import tilewright as tw
from tilewright import torch_peer
from tilewright.bench import Comparison, beside_torch
from tilewright.feeds import network_feeds
from tilewright.runtime import context


@dataclass(frozen=True)
class Options:
    """What is to be measured, and how."""

    device: tw.Device
    networks: tuple[str, ...]
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    seconds: float
    """Of measuring, per row."""
    models: Path | None
    tune: str | None
    """Budget of tuning per row before it is measured."""
    peers: bool
    """Whether PyTorch is to run beside it, where it can."""
    date: str
    known: frozenset[tuple[object, ...]] = frozenset()
    """Keys of rows that are left out."""


Skip = Callable[[str], None]


def network_rows(options: Options, skip: Skip) -> Iterator[NetworkRow]:
    """A row for everything that can be measured; ``skip`` is told what cannot, and why."""
    with_torch = options.peers and (torch_peer.has_cuda() or options.device.kind != "gpu")
    with_torch = with_torch and bool(torch_peer.versions().get("torchvision"))
    for name in options.networks:
        try:
            found = source(name, options.models)
        except tw.TilewrightError as error:
            skip(f"{name}: {error}")
            continue
        for precision in options.precisions:
            if not _batches(options, name, precision):
                continue
            module = torch_peer.torchvision_network(name) if with_torch else None
            yield from _of_precision(options, name, precision, (found.file, found.same_weights, module), skip)
            del module
            if with_torch:
                torch_peer.forget()
            context(options.device).trim()


def _of_precision(
    options: Options, name: str, precision: str, network: tuple[Path, bool, Any | None], skip: Skip
) -> Iterator[NetworkRow]:
    """The rows of one session."""
    file, same_weights, module = network
    start = time.perf_counter()
    try:
        session = tw.InferenceSession(file, options.device, precision=precision)
    except Exception as error:  # what one network cannot do must not end the measuring of the others
        skip(f"{name} {precision}: {reason(error)}")
        return
    loading = time.perf_counter() - start
    for batch in _batches(options, name, precision):
        what = f"{name} {precision} batch {batch}"
        try:
            start = time.perf_counter()
            if options.tune:
                session.tune(options.tune, batch=batch)
            feeds = network_feeds(session.get_inputs(), (), batch)
            session.plan(feeds)
            planning = time.perf_counter() - start
            result = beside_torch(name, session, feeds, module, options.seconds, same_weights)
            row = network_row(result, session, batch, options.date)
        except Exception as error:
            skip(f"{what}: {reason(error)}")
            continue
        rest = time.perf_counter() - start - planning
        say(f"{what}: {shown(row)} (load {loading:.1f} s, plan {planning:.1f} s, peers and measuring {rest:.1f} s)")
        loading = 0.0
        yield row


def _batches(options: Options, name: str, precision: str) -> list[int]:
    """The batch sizes that there is no row of."""
    return [n for n in options.batches if (precision, name, n) not in options.known]


def network_row(result: Comparison, session: tw.InferenceSession, batch: int, date: str) -> NetworkRow:
    """A comparison as a row."""
    plan = session.plan(batch=batch)
    return NetworkRow(
        result.model,
        batch,
        result.precision,
        {name: timing(seconds) for name, seconds in result.seconds.items()},
        {name: timing(seconds) for name, seconds in result.device_seconds.items()},
        result.bytes,
        plan.kernels,
        dict(Counter(call.choice.origin for call in plan.calls)),
        result.difference,
        date,
    )


def shown(row: NetworkRow) -> str:
    """A row in a few words, while the others are under way."""
    times = ", ".join(f"{name} {t.median:.3f} ms" for name, t in row.wall.items())
    ratio = row.ratio()
    return times if ratio is None else f"{times}, ratio {ratio:.2f}"


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """An error in one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:300]}"
