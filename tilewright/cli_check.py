"""The command line's `check` and `compare`: where a network's nodes run, and whether it gives onnxruntime's values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.errors import InputError
from tilewright.options import FILE, batch_option, device_option, input_option, json_option, precision_option
from tilewright.output import console, print_table, write_json

if TYPE_CHECKING:
    from tilewright.compare import Difference, ValueComparison
    from tilewright.decisions import DecisionComparison
    from tilewright.graph.placement import PlacedNode

FAILED_CHECK = 1
SHOWN_BEFORE = 3
"""Values shown ahead of the first one that differs."""
FIGURES = ("difference", "relative", "allowed")
COLUMNS = ("node", "op", "value", "shape", "type", *FIGURES, "")


@click.command()
@click.argument("model", type=FILE)
@click.option("--input", "--shape", "inputs", metavar="NAME=SHAPE", multiple=True, help="Sizes of an input: x=2x3x4.")
@click.option("--all", "every", is_flag=True, help="Show every node.")
@json_option
def check(model: Path, inputs: tuple[str, ...], every: bool, as_json: bool) -> int:
    """Show where the nodes of the network MODEL run: device, host, or nowhere; status 1 if it cannot run.

    No device is needed. Folded nodes follow from constants and sizes, or are merged into others. Whether the device has
    a form for a node may depend on sizes: those that the file leaves open can be given.
    """
    from tilewright.feeds import parse_given
    from tilewright.graph.placement import Place, placed_nodes

    given = [parse_given(text) for text in inputs]
    files = [str(g.file) for g in given if g.file is not None]
    if files:
        raise InputError(f"check takes shapes of inputs, such as x=2x3x4, not the file {files[0]}")
    nodes = placed_nodes(model, {g.name: g.shape for g in given})
    counts = {place.value: sum(n.place is place for n in nodes) for place in Place}
    runs = not counts[Place.MISSING.value]
    if as_json:
        write_json({"runs": runs, "counts": counts, "nodes": nodes})
        return 0 if runs else FAILED_CHECK
    if every:
        columns = ("node", "op", "runs on", "inside", "remark")
        print_table(columns, [(n.name, n.op, n.place.value, n.inside or "", n.reason or "") for n in nodes])
    else:
        _print_operators(nodes)
    click.echo(", ".join(f"{n} {place}" for place, n in counts.items() if n or place == Place.DEVICE.value))
    if not runs:
        click.echo("the network cannot run: nothing here computes the nodes that are missing", err=True)
    return 0 if runs else FAILED_CHECK


def _print_operators(nodes: Sequence[PlacedNode]) -> None:
    """A row per operator, place and reason, with the first node of that kind."""
    groups = Counter((n.place.value, n.op, n.opset, n.reason or "") for n in nodes)
    first = {(n.place.value, n.op, n.opset, n.reason or ""): n.name for n in reversed(nodes)}
    order = {"missing": 0, "host": 1, "device": 2, "folded": 3}
    ranked = sorted(groups.items(), key=lambda g: (order[g[0][0]], -g[1], g[0]))
    rows = [(op, opset, place, n, first[place, op, opset, why], why) for (place, op, opset, why), n in ranked]
    columns = ("op", "opset", "runs on", "nodes", "first of them", "remark")
    print_table(columns, rows, numbers=("opset", "nodes"))


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
@click.option(
    "--decisions",
    is_flag=True,
    help="Compare decisions (ranks, boxes that stay, thresholds) on equal numbers, all else after equal decisions.",
)
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
    decisions: bool,
    as_json: bool,
) -> int:
    """Compare the network MODEL with onnxruntime, value by value; status 1 if they differ.

    Values are compared in the order of the file until one differs beyond the tolerance. Where scores nearly tie, two
    right runs differ: --decisions tells that from a fault.
    """
    if decisions:
        return _decisions(model, inputs, batch, precision, selector, tolerance, every, as_json)
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


def _decisions(
    model: Path,
    inputs: tuple[str, ...],
    batch: int,
    precision: str | None,
    selector: str | None,
    tolerance: float | None,
    every: bool,
    as_json: bool,
) -> int:
    from tilewright.decisions import compare_decisions

    result = compare_decisions(
        model, inputs, device=selector, precision=precision or "fp32", batch=batch, tolerance=tolerance
    )
    if as_json:
        write_json({"first": result.first, **vars(result)})
    else:
        _print_decisions(result, every)
    return 0 if result.first is None else FAILED_CHECK


def _print_decisions(result: DecisionComparison, every: bool) -> None:
    compared = [*result.decisions, *result.values]
    listed = compared if every else [d for d in compared if d.reason or d.value in {o.value for o in result.outputs}]
    print_table(COLUMNS, [_row(d) for d in listed], numbers=FIGURES)
    where = f"{result.device} beside {result.peer}"
    for d in result.outputs:
        if d.reason:
            click.echo(f"output {d.value!r} of runs that decide for themselves: {d.reason}")
    if not result.is_undisturbed:
        click.echo(
            "the outputs changed in the last digits when values between became outputs, which are not fused away"
        )
    if result.first is None:
        read = len(result.values)
        click.echo(f"all {len(result.decisions)} results of decisions are equal, and all {read} values agree, {where}")
    else:
        d = result.first
        kind = "decided otherwise" if d in result.decisions else "after equal decisions"
        click.echo(f"{d.value!r}, written by {d.node!r} ({d.op}), {kind}: {d.reason}, {where}")


def _print_comparison(result: ValueComparison, every: bool) -> None:
    listed = [*result.values, *result.outputs]
    first = result.first
    if first is not None and not every:
        at = listed.index(first)
        listed = [*listed[max(at - SHOWN_BEFORE, 0) : at], *(d for d in listed[at:] if d.reason)]
    elif not every:
        listed = list(result.outputs)
    print_table(COLUMNS, [_row(d) for d in listed], numbers=FIGURES)
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
