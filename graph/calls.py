"""What a plan is made of: single-kernel programs, and the buffers that their tensors lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.dsl.precision import allowing_tf32
from tilewright.dsl.program import Program
from tilewright.dsl.splitting import linearised
from tilewright.dsl.stages import split
from tilewright.dsl.target import Target
from tilewright.graph.recipe import BufferSpec, Role


@dataclass(frozen=True, eq=False)
class Call:
    """One stage to run: its program, whose tensors carry strides and offsets, and the buffer of each tensor."""

    program: Program
    buffers: Mapping[str, str]
    """Buffer name of each input and output, by tensor name."""
    ops: tuple[str, ...] = ()
    """What it computes, in ONNX operators (or the op's name in the language)."""
    sources: tuple[str, ...] = ()
    """Names of the network's nodes that it belongs to."""


@dataclass(frozen=True, eq=False)
class Network:
    """All calls of one run in order, and all buffers."""

    calls: tuple[Call, ...]
    buffers: Mapping[str, BufferSpec]

    @property
    def with_fast_math(self) -> Network:
        """The same network with NaN, infinities and the last bits of functions given up for speed."""
        return replace(self, calls=tuple(replace(c, program=replace(c.program, fast_math=True)) for c in self.calls))

    @property
    def with_tf32(self) -> Network:
        """The same network with TF32 allowed for its contractions."""
        return replace(self, calls=tuple(replace(c, program=allowing_tf32(c.program)) for c in self.calls))

    def constant_inputs(self, call: Call) -> tuple[str, ...]:
        """The call's input tensors that never change between runs."""
        return tuple(t.name for t in call.program.inputs if self.buffers[call.buffers[t.name]].role is Role.CONSTANT)


def network_of(program: Program, target: Target) -> Network:
    """A single Program as a network: its inputs and outputs are the buffers of the caller."""
    stages = split(program, target)
    roles = {t.name: Role.OUTPUT for t in program.outputs} | {t.name: Role.INPUT for t in program.inputs}
    buffers: dict[str, BufferSpec] = {}
    for t in (*program.inputs, *program.outputs, *(t for stage in stages for t in stage.outputs)):
        role = roles.get(t.name, Role.TEMPORARY)
        buffers.setdefault(t.name, BufferSpec(t.name, t.dtype, max(t.span, t.size), role, t.shape))
    calls = tuple(
        Call(
            linearised(stage),
            {t.name: t.name for t in (*stage.inputs, *stage.outputs)},
            (program.name,),
            (program.name,),
        )
        for stage in stages
    )
    return Network(calls, buffers)


__all__ = ["BufferSpec", "Call", "Network", "Role", "network_of"]
