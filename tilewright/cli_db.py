"""The command line's `db` group: looking into the tuning database, copying results out of it and into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.options import FILE, NEW_FILE, json_option
from tilewright.output import print_table, to_json, write_json

if TYPE_CHECKING:
    from tilewright.tuning_db import Store


@click.group()
@click.option("--db", "place", metavar="PATH", help="File or SQLAlchemy URL.  [default: $TILEWRIGHT_DB or your own]")
@click.pass_context
def db(context: click.Context, place: str | None) -> None:
    """Look into the tuning database, copy results out of it and into it."""
    from tilewright.tuning_db import Store

    context.obj = context.with_resource(Store.open(place))


@db.command()
@click.option("--device", "selector", metavar="NAME", help="Only results of this device.")
@json_option
@click.pass_obj
def ls(store: Store, selector: str | None, as_json: bool) -> None:
    """List the winners: the fastest known configuration of every program on every device."""
    from tilewright.runtime import select_device

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
            w.family,
            w.configuration,
            f"{1e6 * w.seconds:.1f}",
        )
        for w in winners
    ]
    print_table(("device", "program", "sizes", "family", "configuration", "µs"), rows, numbers=("µs",))


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
@click.argument("file", type=NEW_FILE)
@click.option("--winners", is_flag=True, help="Only the measurements that won.")
@json_option
@click.pass_obj
def export(store: Store, file: Path, winners: bool, as_json: bool) -> None:
    """Write the database to FILE as JSON Lines."""
    _report_count(store.export(file, winners_only=winners), f"records written to {file}", as_json)


@db.command("import")
@click.argument("file", type=FILE)
@json_option
@click.pass_obj
def import_(store: Store, file: Path, as_json: bool) -> None:
    """Add the records of an export that this database lacks."""
    _report_count(store.import_(file), f"records added from {file}", as_json)


def _report_count(count: int, what: str, as_json: bool) -> None:
    if as_json:
        write_json({"records": count})
    else:
        click.echo(f"{count} {what}")


@db.command()
@json_option
@click.pass_obj
def verify(store: Store, as_json: bool) -> int:
    """Check the file and every row; status 1 if something is wrong."""
    problems = store.verify()
    if as_json:
        write_json({"url": store.url, "problems": problems})
    else:
        for problem in problems or (f"{store.url} is whole",):
            click.echo(problem)
    return 1 if problems else 0


@db.command()
@json_option
@click.pass_obj
def path(store: Store, as_json: bool) -> None:
    """Say where the database lies."""
    if as_json:
        write_json({"url": store.url, "read_only": store.read_only})
    else:
        click.echo(store.url)
