"""The command line's `compare`: whether a network gives onnxruntime's values, and where they begin to differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.options import FILE, batch_option, device_option, input_option, json_option, precision_option
from tilewright.output import console, print_table, write_json

if TYPE_CHECKING:
    from tilewright.compare import Difference, ValueComparison

FAILED_CHECK = 1
SHOWN_BEFORE = 3
"""Values shown ahead of the first one that differs."""


@click.command()
@click.argument("model", type=FILE)
@input_option
@batch_option
@precision_option
@device_option
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="T",
    help="Largest difference as a part of a value's largest element.  [default: 1e-4, more where types are narrower]",
)
@click.option("--chunk", type=click.IntRange(1), default=32, show_default=True, help="Values compared in one run.")
@click.option("--all", "every", is_flag=True, help="Show every value that was compared.")
@json_option
def compare(
    model: Path,
    inputs: tuple[str, ...],
    batch: int,
    precision: str | None,
    selector: str | None,
    tolerance: float | None,
    chunk: int,
    every: bool,
    as_json: bool,
) -> int:
    """Compare the network MODEL with onnxruntime, value by value; status 1 if they differ.

    Values are compared in the order of the file until one differs beyond the tolerance.
    """
    from rich.progress import Progress

    from tilewright.compare import compare_values

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        result = compare_values(
            model,
            inputs,
            device=selector,
            precision=precision or "fp32",
            batch=batch,
            tolerance=tolerance,
            chunk=chunk,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        write_json({"first": result.first, **vars(result)})
    else:
        _print_comparison(result, every)
    return 0 if result.first is None else FAILED_CHECK


def _print_comparison(result: ValueComparison, every: bool) -> None:
    listed = [*result.values, *result.outputs]
    first = result.first
    if first is not None and not every:
        at = listed.index(first)
        listed = [*listed[max(at - SHOWN_BEFORE, 0) : at], *(d for d in listed[at:] if d.reason)]
    elif not every:
        listed = list(result.outputs)
    columns = ("node", "op", "value", "shape", "type", "difference", "relative", "allowed", "")
    print_table(columns, [_row(d) for d in listed], numbers=("difference", "relative", "allowed"))
    where = f"{result.device} beside {result.peer}"
    if first is None:
        count = len(result.values) + len(result.outputs)
        click.echo(f"all {count} values agree, {where}")
    else:
        reason = (
            f"the first value that differs is {first.value!r}, written by {first.node!r} ({first.op}): {first.reason}"
        )
        click.echo(f"{reason}, {where}")


def _row(d: Difference) -> Sequence[object]:
    figures = (f"{n:.2e}" for n in (d.largest, d.relative, d.tolerance))
    return d.node, d.op, d.value, "×".join(map(str, d.shape)), d.dtype, *figures, d.reason or ""
