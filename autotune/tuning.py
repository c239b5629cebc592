"""Tuning: search every stage's candidates by measuring, share the budget by expected gain, remember everything.

Each stage goes through: what the database knows, its start set, search, and a final in which its fastest
candidates and the configuration used so far are timed in turns. Every measurement is stored when it is made, so
Ctrl-C, a kill or a power cut loses at most the candidate being measured.

Candidates of all stages are compiled ahead of their measurement, as many as keep the compilers busy; what is compiled
first is measured first.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Sequence

from tilewright.autotune.budget import Budget
from tilewright.autotune.candidates import FamilySource
from tilewright.autotune.compiling import helpers_wanted
from tilewright.autotune.measurer import Measurer
from tilewright.autotune.reports import Event, Progress, StageReport, TuningReport
from tilewright.autotune.stages import StageTuner, stage_tuners
from tilewright.autotune.supervisor import Limits, Supervisor
from tilewright.autotune.tuning_run import TuningRun
from tilewright.dsl import families
from tilewright.dsl.program import Program
from tilewright.errors import DatabaseError
from tilewright.runtime import Device
from tilewright.tuning_db import Run, Store, now


def tune(
    stages: Sequence[Program],
    device: Device,
    store: Store,
    budget: Budget | None = None,
    progress: Progress | None = None,
    *,
    weights: Sequence[float] | None = None,
    constants: Sequence[Collection[str]] | None = None,
    source: FamilySource | None = None,
    limits: Limits | None = None,
    measurer: Measurer | None = None,
    fleet: str | None = None,
    helpers: int | None = None,
    seed: int = 0,
) -> TuningReport:
    """Search the fastest configuration of every stage by measuring on the device.

    Stages with the same `stage_key` are tuned once. ``weights`` say how often each stage runs (default 1), which
    together with its time decides its share of the budget. ``constants`` name, per stage, the inputs that never
    change between runs. Candidates that the database knows for this device, driver and generator are not measured
    again. Ctrl-C ends the run with everything measured kept. ``source``, ``limits`` and ``measurer`` replace the
    families, the deadlines and the measuring process, which is closed by whoever gives it; ``helpers`` is the number of
    processes that compile meanwhile (by default one per core for GPUs, and none for processors, whose measurements they
    would disturb). ``fleet`` is the address of a Dask scheduler whose workers measure in place of this machine
    (`autotune/fleet.py`).

    DatabaseError if the store cannot be written, DeviceError if no measuring process can be started or the fleet has
    none for this device.
    """
    if store.read_only:
        raise DatabaseError(f"tuning needs a database it may write, and {store.url} is read-only; set TILEWRIGHT_DB")
    tuners = stage_tuners(stages, device, store, weights, constants, source or families.fitting, seed)
    if fleet is None:
        return tune_all(tuners, device, store, budget, progress, limits=limits, measurer=measurer, helpers=helpers)
    from tilewright.autotune.fleet import Fleet

    with Fleet(fleet, device) as workers:
        return tune_all(tuners, device, store, budget, progress, measurer=workers)


def tune_all(
    tuners: Sequence[StageTuner],
    device: Device,
    store: Store,
    budget: Budget | None = None,
    progress: Progress | None = None,
    *,
    limits: Limits | None = None,
    measurer: Measurer | None = None,
    helpers: int | None = None,
) -> TuningReport:
    """What `tune` does, for searches that are ready to begin."""
    start = time.monotonic()
    limit = budget or Budget()
    measuring = measurer or Supervisor(device, limits, helpers_wanted(device) if helpers is None else helpers)
    interrupted = False
    run = TuningRun(tuners, device, store, limit, progress, measuring)
    try:
        store.record_run(Run(run.id, now(), platform.node(), str(limit)))
        store.record_spaces(tuple(run.spaces.values()))
        try:
            run.search()
            run.finals()
        except KeyboardInterrupt:
            interrupted = True
    finally:
        run.close(owned=measurer is None)
    reports = tuple(run.stage_report(t) for t in tuners)
    return TuningReport(reports, time.monotonic() - start, run.evaluations, interrupted)


__all__ = ["Event", "Measurer", "Progress", "StageReport", "TuningReport", "tune", "tune_all"]
