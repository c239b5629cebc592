"""The command line: devices, doctor, run, tune, worker, bench, show, explain, check, compare, db, demo.

Every command but worker takes ``--json`` and then writes nothing but JSON to standard output; progress and messages
go to standard error. Status: 0 done, 1 a check failed (doctor, check, compare, db verify), 2 wrong use or a
TilewrightError, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilewright import __version__, log
from tilewright.cli_check import check, compare
from tilewright.cli_db import db
from tilewright.cli_explain import explain
from tilewright.cli_fleet import worker
from tilewright.errors import TilewrightError
from tilewright.options import (
    FILE,
    NEW_FILE,
    batch_option,
    device_option,
    input_option,
    json_option,
    op_options,
    precision_option,
)
from tilewright.output import console, print_table, write_json

if TYPE_CHECKING:
    from tilewright.autotune import TuningReport
    from tilewright.bench import Comparison
    from tilewright.graph.plan import Plan
    from tilewright.graph.session import InferenceSession

DEFAULT_BUDGET = "60s"
PEERS = ("onnxruntime", "openvino", "torch")
FAILED_CHECK = 1
WRONG_USE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Errors become one line on standard error."""
    log.start()
    try:
        status = commands.main(arguments, prog_name="tilewright", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        return INTERRUPTED
    except TilewrightError as error:
        click.echo(f"error: {error}", err=True)
        return WRONG_USE
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tilewright")
def commands() -> None:
    """Short tensor programs to tuned OpenCL kernels, and ONNX networks on any OpenCL device."""


# --- devices and doctor -----------------------------------------------------------------------------------------------


@commands.command()
@json_option
def devices(as_json: bool) -> None:
    """List the OpenCL devices, the default one first."""
    from tilewright.runtime import devices as find
    from tilewright.runtime import select_device

    chosen = select_device(None)
    found = sorted(find(), key=lambda d: d != chosen)
    if as_json:
        write_json(found)
        return
    columns = ("name", "kind", "model", "driver", "OpenCL", "units", "memory", "f16", "f64")
    rows = [
        (
            d.name,
            d.kind,
            d.opencl_name,
            d.driver,
            d.opencl_version.split()[1],
            d.compute_units,
            f"{d.global_memory / 2**30:.1f} GiB",
            *("yes" if has else "no" for has in (d.target.has_f16, d.target.has_f64)),
        )
        for d in found
    ]
    print_table(columns, rows, numbers=("units", "memory"))


@commands.command()
@json_option
def doctor(as_json: bool) -> int:
    """Look for what is wrong: drivers, devices, kernels, caches, database. Status 1 if there is nothing to run on."""
    from tilewright import doctor as practice

    report = practice.examine()
    if as_json:
        write_json(practice.as_json(report))
    else:
        practice.render(report, console())
    return 0 if report.usable else FAILED_CHECK


# --- networks and ops -------------------------------------------------------------------------------------------------


@commands.command()
@click.argument("model", type=FILE)
@input_option
@batch_option
@precision_option
@device_option
@click.option("--repeat", default=5, type=click.IntRange(1), show_default=True, help="Runs that are timed.")
@click.option("--top", default=5, type=click.IntRange(0), show_default=True, help="Largest values shown per output.")
@click.option("--save", type=NEW_FILE, metavar="FILE", help="Write the outputs to an .npz file.")
@json_option
def run(
    model: Path,
    inputs: tuple[str, ...],
    batch: int,
    precision: str | None,
    selector: str | None,
    repeat: int,
    top: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Run the network MODEL and summarise its outputs."""
    from tilewright.running import run_network, save_outputs

    outcome = run_network(_session(model, selector, precision), inputs, batch, repeat, top)
    if save is not None:
        save_outputs(save, outcome.arrays)
    if as_json:
        write_json(outcome.summary)
        return
    columns = ("output", "shape", "type", "min", "max", "mean", "largest")
    rows = [
        (o.name, "×".join(map(str, o.shape)), o.dtype, f"{o.min:.4g}", f"{o.max:.4g}", f"{o.mean:.4g}", o.largest_text)
        for o in outcome.summary.outputs
    ]
    print_table(columns, rows, numbers=("min", "max", "mean"))
    click.echo(f"{outcome.summary.milliseconds:.2f} ms on {outcome.summary.device} (median of {repeat})")


def _session(model: Path, selector: str | None, precision: str | None) -> InferenceSession:
    from tilewright.graph.session import InferenceSession

    return InferenceSession(model, selector, precision=precision or "fp32")


def _is_model(file: Path) -> bool:
    return file.suffix.lower() == ".onnx"


@commands.command()
@click.argument("target", type=FILE)
@click.option("--budget", metavar="TIME", help=f"How long, for example 30s, 2m, 1h.  [default: {DEFAULT_BUDGET}]")
@click.option("--evaluations", type=click.IntRange(0), metavar="N", help="How many candidates to measure at most.")
@click.option("--report", "page", type=NEW_FILE, metavar="FILE", help="Write a page (HTML) about what is known then.")
@click.option("--fleet", metavar="ADDRESS", help="Measure on the workers of this Dask scheduler, see worker.")
@input_option
@batch_option
@op_options
@precision_option
@device_option
@json_option
def tune(
    target: Path,
    budget: str | None,
    evaluations: int | None,
    page: Path | None,
    fleet: str | None,
    inputs: tuple[str, ...],
    batch: int,
    name: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    selector: str | None,
    as_json: bool,
) -> int:
    """Search faster kernels for TARGET, a network (.onnx) or an op file, by measuring on the device.

    With --evaluations 0 and --report nothing is measured: the page is about what the database knows.
    """
    from tilewright import cli_report
    from tilewright.autotune import TuningBar, TuningReport

    if evaluations == 0 and page is None:
        raise click.UsageError("--evaluations 0 measures nothing; it is for --report alone")
    cli_report.prepare(page, selector, console(stderr=True).is_terminal)
    budget = budget if budget or evaluations is not None else DEFAULT_BUDGET
    report = TuningReport((), 0.0, 0, False)
    with TuningBar(console(stderr=True)) as bar:
        if _is_model(target):
            from tilewright.feeds import network_feeds, parse_given

            session = _session(target, selector, precision)
            feeds = network_feeds(session.get_inputs(), [parse_given(text) for text in inputs], batch)
            if evaluations != 0:
                report = session.tune(budget, evaluations=evaluations, feeds=feeds, progress=bar, fleet=fleet)
            if page is not None:
                cli_report.report_network(session, feeds, target.name, page)
        else:
            from tilewright.opfile import read_op_call

            call = read_op_call(target, name, inputs, settings, precision)
            if evaluations != 0:
                tune_op = partial(call.op.tune, device=selector, budget=budget, evaluations=evaluations)
                report = tune_op(progress=bar, fleet=fleet, **call.arguments)
            if page is not None:
                cli_report.report_op(call, selector, page)
    if as_json:
        write_json(report)
    else:
        _print_tuning(report)
    return INTERRUPTED if report.interrupted else 0


def _print_tuning(report: TuningReport) -> None:
    def microseconds(seconds: float | None) -> str:
        return "-" if seconds is None else f"{1e6 * seconds:.1f}"

    rows = [
        (
            stage.name,
            f"{stage.weight:g}",
            microseconds(stage.before),
            microseconds(stage.after),
            f"{stage.before / stage.after:.2f}" if stage.before and stage.after else "-",
            f"{stage.winner.family} ({stage.winner.configuration})" if stage.winner else stage.message or "-",
            stage.evaluations,
        )
        for stage in sorted(report.stages, key=lambda s: -s.weight * (s.after or 0.0))
    ]
    columns = ("stage", "times", "µs before", "µs after", "gain", "winner", "tried")
    print_table(columns, rows, numbers=("times", "µs before", "µs after", "gain", "tried"))
    statuses = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in report.statuses.items())
    click.echo(f"{report.evaluations} candidates in {report.seconds:.1f} s ({statuses or 'none new'})")
    if report.before and report.after:
        click.echo(f"kernels: {1e3 * report.before:.3f} ms before, {1e3 * report.after:.3f} ms after")
    if report.interrupted:
        click.echo("stopped early; everything measured is kept", err=True)


@commands.command()
@click.argument("model", type=FILE)
@input_option
@batch_option
@precision_option
@device_option
@click.option("--seconds", default=5.0, type=click.FloatRange(0), show_default=True, help="How long to measure.")
@click.option("--against", type=click.Choice(PEERS), default=PEERS[0], show_default=True, help="What to run beside it.")
@json_option
def bench(
    model: Path,
    inputs: tuple[str, ...],
    batch: int,
    precision: str | None,
    selector: str | None,
    seconds: float,
    against: str,
    as_json: bool,
) -> None:
    """Time the network MODEL beside another engine, where it is installed, in turns on equal inputs.

    PyTorch runs in eager mode and, on a GPU, as a CUDA graph, which the ratio is about.
    """
    from tilewright.bench import compare, compare_with_torch
    from tilewright.feeds import parse_given

    given = [parse_given(text) for text in inputs]
    session = _session(model, selector, precision)
    if against == "torch":
        result = compare_with_torch(model, session, given, batch, seconds)
    else:
        result = compare(model, session, given, batch, seconds, (against,))
    if as_json:
        write_json(result.to_json())
    else:
        _print_comparison(result)


def _print_comparison(result: Comparison) -> None:
    def row(name: str, times: Mapping[str, float]) -> tuple[object, ...]:
        return name, *(f"{times[figure]:.3f}" for figure in ("median", "best", "worst")), times["runs"]

    values = result.to_json()
    rows = [row(name, times) for name, times in values["milliseconds"].items()]
    rows += [row(f"{name}, by the device's clock", times) for name, times in values["device_milliseconds"].items()]
    print_table(("", "median ms", "best", "worst", "runs"), rows, numbers=("median ms", "best", "worst", "runs"))
    if len(result.bytes) > 1:
        click.echo("device memory: " + ", ".join(f"{name} {n / 2**20:.0f} MiB" for name, n in result.bytes.items()))
    if result.ratio is None:
        click.echo(f"{result.peer} is not installed, so there is nothing to compare with")
        return
    threads = "" if result.threads is None else f", {result.threads} threads"
    difference = "" if result.difference is None else f", largest difference {result.difference:.1e}"
    click.echo(f"ratio {result.ratio:.2f} ({result.peer}'s median / ours, above 1 we are faster){threads}{difference}")


@commands.command()
@click.argument("target", type=FILE)
@input_option
@batch_option
@op_options
@precision_option
@device_option
@click.option("--profile", is_flag=True, help="Networks: time every launch.")
@json_option
def show(
    target: Path,
    inputs: tuple[str, ...],
    batch: int,
    name: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    selector: str | None,
    profile: bool,
    as_json: bool,
) -> None:
    """Show what TARGET runs: the kernels of an op file, or the launches of a network (.onnx)."""
    if _is_model(target):
        _show_network(_session(target, selector, precision), inputs, batch, profile, as_json)
        return
    from tilewright.opfile import read_op_call

    call = read_op_call(target, name, inputs, settings, precision)
    if as_json:
        plan = call.op.plan(device=selector, **call.arguments)
        write_json(_launches([plan], plan.device.name))
    else:
        click.echo(call.op.source(device=selector, **call.arguments))


def _show_network(session: InferenceSession, inputs: tuple[str, ...], batch: int, profile: bool, as_json: bool) -> None:
    from tilewright.feeds import network_feeds, parse_given

    feeds = network_feeds(session.get_inputs(), [parse_given(text) for text in inputs], batch)
    if profile:
        rows = session.profile(feeds)
        if as_json:
            write_json(rows)
            return
        figures = ("µs", "GFLOP/s", "GB/s")
        cells = [
            (
                *(r.op, r.kernel, r.family, r.configuration, r.origin),
                *(f"{figure:.1f}" for figure in (r.microseconds, r.gflops, r.gbytes_per_second)),
            )
            for r in rows
        ]
        print_table(("op", "kernel", "family", "configuration", "origin", *figures), cells, numbers=figures)
        click.echo(f"{1e-3 * sum(r.microseconds for r in rows):.3f} ms in {len(rows)} launches")
        return
    plans = session.plans(feeds)
    launches = _launches(plans, session.device.name)
    if as_json:
        write_json(launches)
        return
    columns = ("op", "kernel", "family", "configuration", "origin", "work-items")
    print_table(columns, [(*(row[name] for name in columns[:-1]), row["global_size"]) for row in launches["launches"]])
    arena, constants = launches["arena_bytes"] / 2**20, launches["constant_bytes"] / 2**20
    memory = f"{arena:.1f} MiB of temporaries, {constants:.1f} MiB of constants"
    click.echo(f"{len(launches['launches'])} launches on {session.device.name}, {memory}")


def _launches(plans: Sequence[Plan], device: str) -> dict[str, Any]:
    """Plans that are run in turn as JSON values, each once; sources are left out for none."""
    different = list(dict.fromkeys(plans))
    shared = {id(b): b.nbytes for plan in different for b in plan.constants}
    return {
        "device": device,
        "arena_bytes": sum(plan.arena_bytes for plan in different),
        "constant_bytes": sum(shared.values()),
        "launches": [
            {
                "op": "+".join(p.planned.call.ops),
                "nodes": list(p.planned.call.sources),
                "kernel": p.launch.kernel,
                "family": p.planned.choice.family,
                "configuration": str(p.planned.choice.configuration),
                "origin": p.planned.choice.origin,
                "global_size": list(p.launch.global_size),
                "local_size": list(p.launch.local_size or ()) or None,
                "source": p.launch.source,
            }
            for plan in different
            for p in plan.launches
        ],
    }


@commands.command()
@click.option("--photo", default="chelsea", show_default=True, help="A photo of scikit-image's, or a picture file.")
@click.option("--budget", default=DEFAULT_BUDGET, metavar="TIME", show_default=True, help="How long to tune.")
@device_option
@json_option
def demo(photo: str, budget: str, selector: str | None, as_json: bool) -> int:
    """Recognise a photo with a trained network: run, tune, and compare with onnxruntime."""
    from tilewright.demo import run_demo

    result = run_demo(selector, photo, budget, console(stderr=as_json))
    if as_json:
        write_json(result)
    return INTERRUPTED if result.interrupted else 0


commands.add_command(check)
commands.add_command(compare)
commands.add_command(db)
commands.add_command(explain)
commands.add_command(worker)
