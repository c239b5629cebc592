"""The command line's `explain`: why an op runs as it does, and what tuning chooses from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilewright.errors import InputError
from tilewright.options import FILE, device_option, input_option, json_option, op_options, precision_option
from tilewright.output import write_json

if TYPE_CHECKING:
    from tilewright.choices import Choices


@click.command()
@click.argument("file", type=FILE)
@input_option
@op_options
@precision_option
@device_option
@click.option("--space", is_flag=True, help="Show what tuning chooses from instead.")
@click.option("--stored", is_flag=True, help="Run nothing: take the times of stored winners.")
@click.option("--measure-limits", is_flag=True, help="Measure the device's limits again.")
@json_option
def explain(
    file: Path,
    inputs: tuple[str, ...],
    name: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    selector: str | None,
    space: bool,
    stored: bool,
    measure_limits: bool,
    as_json: bool,
) -> None:
    """Explain the kernels of an op FILE: families, configurations, and their times beside the device's limits."""
    from tilewright.opfile import read_op_call

    if file.suffix.lower() == ".onnx":
        raise InputError(f"{file} is a network; 'tilewright show --profile' shows its launches")
    call = read_op_call(file, name, inputs, settings, precision)
    if space:
        choices = call.op.space(device=selector, **call.arguments)
        if as_json:
            write_json(_space_json(choices))
        else:
            click.echo(str(choices))
        return
    found = call.op.explain(device=selector, measure=not stored, measure_limits=measure_limits, **call.arguments)
    if as_json:
        write_json(found)
    else:
        click.echo(str(found))


def _space_json(choices: Choices) -> dict[str, Any]:
    return {
        "op": choices.op,
        "device": choices.device,
        "stages": [
            {
                "text": stage.text,
                "families": [
                    {
                        "family": f.family,
                        "parameters": [
                            {"name": p.name, "values": p.values, "meaning": p.meaning} for p in f.parameters
                        ],
                        "constraints": [c.reason for c in f.space.constraints],
                        "default": f.default,
                        "raw_size": f.space.raw_size,
                        "legal": f.legal,
                        "undeclared_raw_size": f.undeclared.raw_size,
                        "undeclared_legal": f.undeclared_legal,
                        "narrowed": f.narrowed,
                    }
                    for f in stage.families
                ],
            }
            for stage in choices
        ],
    }
