"""Stored winners against the spaces that their programs have now, on the devices that are present.

A winner's program is stored as text. It is read back, and taken only if that gives the very signature it is stored
under; what the language cannot spell (some of a network's layouts) is left to the check that is made before a winner is
used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tilewright.dsl import families
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import GENERATOR_VERSION, Program
from tilewright.dsl.space import Configuration
from tilewright.errors import TilewrightError, UnsupportedError
from tilewright.runtime import Device, devices
from tilewright.tuning_db import Store, Winner

_LAYOUT = re.compile(r"(\w+)(\[[\d, ]*\]: \w+(?: pad \S+)?) strides \[([\d, ]*)\] offset (\d+)")
_INPUT = re.compile(r"(\w+)\[([\d, ]*)\]: ")


def outdated_winners(store: Store) -> Iterator[str]:
    """Winners of this generator that would not be used, one sentence each."""
    for device in devices():
        for winner in store.ls(device.identity):
            if winner.generator == GENERATOR_VERSION:
                problem = _problem(winner, device)
                if problem:
                    yield f"the winner of {winner.signature} on {device.name}, {winner.family}: {problem}"


def _problem(winner: Winner, device: Device) -> str | None:
    """Why a winner may not be used on a device; None if it may, or if its program cannot be read back."""
    program = read_back(winner.program)
    if program is None or program.signature != winner.signature.partition("-")[0]:
        return None
    family = next((f for f in families.FAMILIES if f.name == winner.family), None)
    if family is None:
        return "there is no such family of kernels"
    refusal = family.refusal(program, device.target)
    if refusal is not None:
        return f"the family does not fit: {refusal}"
    try:
        space = families.space(family, program, device.target)
    except UnsupportedError as e:
        return str(e)
    return space.violated(space.completed(Configuration.from_json(winner.configuration)))


def read_back(text: str) -> Program | None:
    """The program that a stored text describes, or None where the language cannot spell it."""
    layouts = {m[1]: m for m in _LAYOUT.finditer(text)}
    shapes = {m[1]: _numbers(m[2]) for m in _INPUT.finditer(text.partition(" -> ")[0])}
    try:
        program = parse_op(_LAYOUT.sub(r"\1\2", text)).specialise(shapes)
    except TilewrightError:
        return None
    tensors = {}
    for tensor in (*program.inputs, *program.outputs):
        found = layouts.get(tensor.name)
        strides = _numbers(found[3]) if found else tensor.strides
        tensors[tensor.name] = replace(tensor, strides=strides, offset=int(found[4]) if found else 0)
    return replace(
        program,
        inputs=tuple(tensors[t.name] for t in program.inputs),
        outputs=tuple(tensors[t.name] for t in program.outputs),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(", ") if n)


__all__ = ["outdated_winners", "read_back"]
