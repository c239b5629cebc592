"""Op files for the command line: choosing an op in one, and arguments from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.api import Op
from tilewright.dsl.parse import parse
from tilewright.errors import InputError, LanguageError
from tilewright.feeds import load_arrays, parse_given, random_array


@dataclass(frozen=True)
class OpCall:
    """An op with arguments: what a command works on."""

    op: Op
    arguments: dict[str, Any]
    """Arrays and parameters by name."""


def read_op_call(
    file: Path, name: str | None, inputs: Sequence[str], settings: Sequence[str], precision: str | None = None
) -> OpCall:
    """The op called ``name`` (or the only one) of a file, with ``--input`` and ``--set`` as arguments.

    ``precision`` takes the place of the op's own line.

    Raises LanguageError if the file is no text in the language, InputError for unknown ops and malformed options.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LanguageError(f"{file} is no text; networks need the ending .onnx") from None
    ops = {definition.name: definition for definition in parse(text)}
    if name is None and len(ops) > 1:
        raise InputError(f"{file} defines {', '.join(ops)}; choose one with --op NAME")
    if name is not None and name not in ops:
        raise InputError(f"{file} defines no op {name}; there is {', '.join(ops)}")
    op = Op(ops[name or next(iter(ops))], precision=precision)
    return OpCall(op, {**_inputs(op, inputs), **dict(map(_setting, settings))})


def _inputs(op: Op, texts: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    first = op.definition.inputs[0].argument if op.definition.inputs else ""
    for given in map(parse_given, texts):
        if given.file is None:
            arrays[given.name] = random_array(given.shape, given.dtype.numpy, rng)
        else:
            arrays |= {given.name or key or first: array for key, array in load_arrays(given.file).items()}
    missing = [t.argument for t in op.definition.inputs if t.argument not in arrays]
    if missing:
        example = " ".join(f"--input {name}=64x128" for name in missing)
        raise InputError(f"op {op.name} needs the sizes of {', '.join(missing)}; give for example {example}")
    return arrays


def _setting(text: str) -> tuple[str, int | float | bool]:
    """``NAME=VALUE``: true, false, an integer or a number."""
    name, equals, value = text.partition("=")
    words = {"true": True, "false": False}
    if name and equals:
        if value in words:
            return name, words[value]
        for kind in (int, float):
            try:
                return name, kind(value)
            except ValueError:
                continue
    raise InputError(f"--set {text} is no parameter; write NAME=VALUE with a number, true or false")
