"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


def device_option(command: _Command) -> _Command:
    """``--device NAME`` as ``selector``."""
    text = "Device by name or part of it, see 'tilewright devices'.  [default: $TILEWRIGHT_DEVICE or the best]"
    return click.option("--device", "selector", metavar="NAME", help=text)(command)


def json_option(command: _Command) -> _Command:
    """``--json`` as ``as_json``."""
    text = "Write JSON to standard output, and nothing else."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def input_option(command: _Command) -> _Command:
    """``--input TEXT``, any number of times, as ``inputs``."""
    text = (
        "An input, any number of times: NAME=FILE (.npy, .npz, or a picture) or random numbers of a shape, "
        "NAME=[DTYPE:]2x3x4. A FILE without NAME is the first input. Inputs that are not given are random."
    )
    return click.option("--input", "--shape", "inputs", metavar="INPUT", multiple=True, help=text)(command)


def batch_option(command: _Command) -> _Command:
    """``--batch N``."""
    text = "What an open first size becomes."
    return click.option("--batch", default=1, type=click.IntRange(1), show_default=True, help=text)(command)


def precision_option(command: _Command) -> _Command:
    """``--precision NAME``, None where it is left out."""
    text = "fp32, tf32 (products), fp16 or bf16 (products, and a network's storage).  [default: fp32, or an op's own]"
    return click.option("--precision", metavar="NAME", help=text)(command)


def op_options(command: _Command) -> _Command:
    """``--op NAME`` and ``--set NAME=VALUE`` (as ``settings``), for op files."""
    command = click.option("--op", "name", metavar="NAME", help="Which op, where the file defines several.")(command)
    text = "A parameter of the op, any number of times."
    return click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help=text)(command)
