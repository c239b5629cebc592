"""The command line: devices, doctor, run, tune, bench, show, db, demo.

Every command takes ``--json`` and then writes nothing but JSON to standard output; progress and messages go to
standard error. Status: 0 done, 1 a check failed (doctor, db verify), 2 wrong use or a TilewrightError, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tilewright import __version__, log
from tilewright.errors import TilewrightError
from tilewright.output import console, print_table, to_json, write_json

if TYPE_CHECKING:
    from tilewright.tuning_db import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])

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


# --- what commands share ----------------------------------------------------------------------------------------------


def _device_option(command: _Command) -> _Command:
    text = (
        "Device by name or part of it, as 'tilewright devices' lists them.  [default: $TILEWRIGHT_DEVICE or the best]"
    )
    return click.option("--device", "selector", metavar="NAME", help=text)(command)


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else.")(
        command
    )


def _input_option(command: _Command) -> _Command:
    text = (
        "An input: NAME=FILE (.npy, .npz or a picture) or a random array NAME=[DTYPE:]2x3x4. Repeat for several; "
        "inputs that are not given are random.  Without NAME a file is the first input."
    )
    return click.option("--input", "inputs", metavar="TEXT", multiple=True, help=text)(command)


def _batch_option(command: _Command) -> _Command:
    return click.option(
        "--batch", default=1, type=click.IntRange(1), show_default=True, help="What an open first size becomes."
    )(command)


def _is_model(file: Path) -> bool:
    return file.suffix.lower() == ".onnx"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tilewright")
def commands() -> None:
    """Short tensor programs to tuned OpenCL kernels, and ONNX networks on any OpenCL device."""


# --- devices and doctor -----------------------------------------------------------------------------------------------


@commands.command()
@_json_option
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
            _gib(d.global_memory),
            *("yes" if has else "no" for has in (d.target.has_f16, d.target.has_f64)),
        )
        for d in found
    ]
    print_table(columns, rows, numbers=("units", "memory"))


@commands.command()
@_json_option
def doctor(as_json: bool) -> int:
    """Look for what is wrong: drivers, devices, kernels, caches, database. Status 1 if there is nothing to run on."""
    from tilewright import doctor as practice

    report = practice.examine()
    if as_json:
        write_json(practice.as_json(report))
    else:
        practice.render(report, console())
    return 0 if report.usable else FAILED_CHECK


# --- the tuning database ----------------------------------------------------------------------------------------------


@commands.group()
@click.option("--db", "place", metavar="PATH", help="File or SQLAlchemy URL.  [default: $TILEWRIGHT_DB or your own]")
@click.pass_context
def db(context: click.Context, place: str | None) -> None:
    """Look into the tuning database, copy results out of it and into it."""
    from tilewright.tuning_db import Store

    context.obj = context.with_resource(Store.open(place))


@db.command()
@click.option("--device", "selector", metavar="NAME", help="Only results of this device.")
@_json_option
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
@_json_option
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
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--winners", is_flag=True, help="Only the measurements that won.")
@_json_option
@click.pass_obj
def export(store: Store, file: Path, winners: bool, as_json: bool) -> None:
    """Write the database to FILE as JSON Lines."""
    _report_count(store.export(file, winners_only=winners), f"records written to {file}", as_json)


@db.command("import")
@click.argument("file", type=_FILE)
@_json_option
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
@_json_option
@click.pass_obj
def verify(store: Store, as_json: bool) -> int:
    """Check the file and every row; status 1 if something is wrong."""
    problems = store.verify()
    if as_json:
        write_json({"url": store.url, "problems": problems})
    else:
        for problem in problems or (f"{store.url} is whole",):
            click.echo(problem)
    return FAILED_CHECK if problems else 0


@db.command()
@_json_option
@click.pass_obj
def path(store: Store, as_json: bool) -> None:
    """Say where the database lies."""
    if as_json:
        write_json({"url": store.url, "read_only": store.read_only})
    else:
        click.echo(store.url)
