"""The command line's `db` group: looking into the tuning database, copying results out of it and into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.errors import DeviceError
from tilewright.options import FILE, NEW_FILE, json_option
from tilewright.output import print_table, to_json, write_json

if TYPE_CHECKING:
    from tilewright.runtime import Device
    from tilewright.tuning_db import Store


@click.group()
@click.option("--db", "place", metavar="PATH", help="File or SQLAlchemy URL.  [default: $TILEWRIGHT_DB or your own]")
@click.pass_context
def db(context: click.Context, place: str | None) -> None:
    """Look into the tuning database, copy results out of it and into it."""
    from tilewright.tuning_db import Store

    if context.invoked_subcommand == "recover":  # what it is for cannot be opened
        context.obj = place
    else:
        context.obj = context.with_resource(Store.open(place))


@db.command()
@click.option("--device", "selector", metavar="NAME", help="Only results of this device.")
@json_option
@click.pass_obj
def ls(store: Store, selector: str | None, as_json: bool) -> None:
    """List the winners: the fastest known configuration of every program on every device."""
    from tilewright.runtime import select_device
    from tilewright.tuning_db.records import precision_of

    winners = store.ls(select_device(selector).identity if selector else None)
    if as_json:
        write_json(winners)
        return
    if not winners:
        click.echo("no winners yet; 'tilewright tune' finds some")
        return
    rows = [
        (
            w.device,
            _op_header(w.program),
            "×".join(map(str, w.sizes)),
            precision_of(w.program),
            w.family,
            w.configuration,
            f"{1e6 * w.seconds:.1f}",
        )
        for w in winners
    ]
    print_table(("device", "program", "sizes", "precision", "family", "configuration", "µs"), rows, numbers=("µs",))


def _op_header(program: str) -> str:
    return program.partition("\n")[0].rstrip(":")


@db.command()
@json_option
@click.pass_obj
def stats(store: Store, as_json: bool) -> None:
    """Count what the database holds."""
    figures = to_json(store.stats())
    if as_json:
        write_json(figures)
        return
    statuses = figures.pop("statuses")
    rows = [(name.replace("_", " "), "-" if value is None else value) for name, value in figures.items()]
    print_table(("", ""), [*rows, *((f"  {name}", number) for name, number in statuses.items())])


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--winners", is_flag=True, help="Only the measurements that won.")
@click.option("--t4", is_flag=True, help="T4 results instead, in a folder FILE: one file per program and device.")
@json_option
@click.pass_obj
def export(store: Store, file: Path, winners: bool, t4: bool, as_json: bool) -> None:
    """Write the database to FILE as JSON Lines."""
    if winners and t4:
        raise click.UsageError("--winners and --t4 cannot be combined")
    if t4:
        _report_count(store.export_recorded(file), f"files written to {file}", as_json)
        return
    if file.is_dir():
        raise click.UsageError(f"{file} is a folder; name a file")
    _report_count(store.export(file, winners_only=winners), f"records written to {file}", as_json)


@db.command("import")
@click.argument("file", type=FILE)
@click.option("--device", default="", metavar="TEXT", help="What T4 results were measured on, where they don't say it.")
@click.option("--kernel", default="", metavar="TEXT", help="What T4 results are of, where they don't say it.")
@json_option
@click.pass_obj
def import_(store: Store, file: Path, device: str, kernel: str, as_json: bool) -> None:
    """Add the records of an export that this database lacks.

    FILE is JSON Lines, T4 results or a Kernel Tuner cache; the last two may be compressed with gzip.
    """
    from tilewright.tuning_db.recorded import is_recorded

    added = store.import_recorded(file, device, kernel) if is_recorded(file) else store.import_(file)
    _report_count(added, f"records added from {file}", as_json)


@db.command()
@click.argument("other", metavar="DATABASE")
@json_option
@click.pass_obj
def merge(store: Store, other: str, as_json: bool) -> None:
    """Add what another DATABASE (a file or an SQLAlchemy URL) holds and this one lacks; that one is only read."""
    from tilewright.tuning_db import Store

    with Store.open(other, read_only=True) as source:
        _report_count(store.merge(source), f"records added from {source.url}", as_json)


@db.command()
@click.option("--older-generators", is_flag=True, help="Results of other versions of the code generator.")
@click.option("--losers", "days", type=click.FloatRange(0), metavar="DAYS", help="Older results that did not win.")
@click.option("--device", "selector", metavar="NAME", help="Only results of this device.")
@json_option
@click.pass_obj
def prune(store: Store, older_generators: bool, days: float | None, selector: str | None, as_json: bool) -> None:
    """Delete results that are no longer of use."""
    from tilewright.runtime import select_device

    if not older_generators and days is None:
        raise click.UsageError("say what is to go: --older-generators, --losers DAYS, or both")
    before = None
    if days is not None:
        before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")
    removed = store.prune(
        _current_generators() if older_generators else None,
        before,
        select_device(selector).identity if selector else None,
    )
    _report_count(removed, "measurements deleted", as_json)


def _current_generators() -> tuple[str, ...]:
    """What `Measurement.generator` says of kernels that can still be made, and of those that nobody here made."""
    from tilewright.autotune.kernels import GENERATOR
    from tilewright.dsl.program import GENERATOR_VERSION
    from tilewright.tuning_db.records import RECORDED

    return GENERATOR_VERSION, GENERATOR, RECORDED


def _report_count(count: int, what: str, as_json: bool) -> None:
    if as_json:
        write_json({"records": count})
    else:
        click.echo(f"{count} {what}")


@db.command()
@click.argument("file", type=NEW_FILE)
@click.option("--device", "selector", metavar="NAME", help="Which device, by a part of its name or identity.")
@click.option(
    "--most", default=200, type=click.IntRange(1), show_default=True, help="Programs: those that take longest."
)
@json_option
@click.pass_obj
def report(store: Store, file: Path, selector: str | None, most: int, as_json: bool) -> None:
    """Write a page (HTML) about everything tuned on a device to FILE. The device need not be here."""
    from tilewright.tuning_page import database_page, write_page

    identity, present = _reported(store, selector)
    page = database_page(store, identity, present, most)
    write_page(page, file)
    _report_count(len(page.ops), f"programs reported in {file}", as_json)


def _reported(store: Store, selector: str | None) -> tuple[str, Device | None]:
    """The identity of the device to report on, and the device where it is present."""
    from tilewright.runtime import devices

    try:
        present = devices()
    except DeviceError:
        present = ()
    known = sorted({w.device for w in store.ls()})
    named = {i for i in known if selector is not None and selector.lower() in i.lower()}
    named |= {d.identity for d in present if selector is not None and selector.lower() in d.name.lower()} & set(known)
    found = sorted(named) if selector is not None else known
    if len(found) != 1:
        fitting = f"{len(found)} devices of {store.url} fit" if found else f"no device of {store.url} fits"
        raise click.UsageError(f"{fitting}; name one with --device: {', '.join(found or known) or 'it has none'}")
    return found[0], next((d for d in present if d.identity == found[0]), None)


@db.command()
@json_option
@click.pass_obj
def verify(store: Store, as_json: bool) -> int:
    """Check the file, every row, and the winners against their spaces; status 1 if something is wrong.

    Winners of devices that are present here are checked against the space that their kernels have now.
    """
    from tilewright.revalidate import outdated_winners

    problems = [*store.verify(), *outdated_winners(store)]
    if as_json:
        write_json({"url": store.url, "problems": problems})
    else:
        for problem in problems or (f"{store.url} is whole",):
            click.echo(problem)
    return 1 if problems else 0


@db.command()
@json_option
@click.pass_obj
def recover(place: str | None, as_json: bool) -> None:
    """Put a damaged file aside, and keep what can be read of it in a new one."""
    from tilewright.tuning_db.engine import file_of
    from tilewright.tuning_db.recovery import recover as recover_

    found = recover_(file_of(place))
    if as_json:
        write_json({"aside": found.aside, "measurements": found.measurements})
    else:
        click.echo(f"{found.measurements} measurements recovered; the damaged file is {found.aside}")


@db.command()
@json_option
@click.pass_obj
def path(store: Store, as_json: bool) -> None:
    """Say where the database lies."""
    if as_json:
        write_json({"url": store.url, "read_only": store.read_only})
    else:
        click.echo(store.url)
