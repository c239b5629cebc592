"""The kernels of the `reduce` family for GPUs; the family describes them."""

from __future__ import annotations

import math

from tilewright.dsl.families.reduce import Plan, accumulator
from tilewright.dsl.families.reduce_kernels import Writer, acc
from tilewright.dsl.families.shared import ceil_div, decode, gpu_geometry, power_below
from tilewright.dsl.lowering import Launch
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.dsl.writer import variable, vector_type


def gpu(plan: Plan, configuration: Configuration) -> Launch:
    """A work-group per `outputs` outputs (or vectors of outputs) and split."""
    lanes, group, outputs, splits = (
        configuration.integer(name) for name in ("lanes", "work_group", "outputs", "splits")
    )
    writer = Writer(plan, configuration, lanes)
    body, ctype = writer.body, writer.ctype
    sharers = group // outputs
    slots = plan.outputs if plan.rows else plan.others * ceil_div(plan.vector.extent, lanes)
    groups = ceil_div(slots, outputs)
    if plan.vector.extent % lanes == 0:
        writer.multiples = {plan.vector.name: lanes}
    _place(writer, sharers, outputs)
    body.line(f"const {ctype} group = ({ctype})get_group_id(0);")
    decode(body, "group", [("block", groups), ("split", splits)], ctype, ("split",))
    body.line(f"const {ctype} wanted = block * {outputs} + slot;")
    body.line(f"const {ctype} flat = {'wanted' if slots % outputs == 0 else f'min(wanted, ({ctype}){slots - 1})'};")
    _slot(writer)
    unroll = configuration.integer("unroll")
    writer.declare(unroll)
    _loop(writer, sharers, splits, unroll)
    writer.merge(0, list(range(1, unroll)))
    results = [writer.across(j, 0) if plan.rows else acc(j, 0) for j in range(len(plan.reduces))]
    width = 1 if plan.rows else lanes
    results = _combined(writer, results, width, group, sharers, 1 if plan.rows else outputs)
    with body.block(f"if (sharer == 0 && wanted < {slots})"):
        if splits == 1:
            writer.finish(results, width)
        else:
            for j, value in enumerate(results):
                writer.keep(j, value, width)
    return writer.launch(gpu_geometry(groups * splits * group, group), splits > 1)


def _place(writer: Writer, sharers: int, outputs: int) -> None:
    """Declare which output of the work-group an item works on, and as which of its sharers.

    Neighbouring items read neighbouring memory: in rows they share an output, in columns they are different outputs.
    """
    body = writer.body
    body.line("const int local_id = (int)get_local_id(0);")
    if writer.plan.rows:
        body.line(f"const int sharer = local_id % {sharers}, slot = local_id / {sharers};")
    else:
        body.line(f"const int sharer = local_id / {outputs}, slot = local_id % {outputs};")


def _slot(writer: Writer) -> None:
    """Declare the kept loop variables from `flat`."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    kept = [(variable(d.name), d.extent) for d in plan.kept]
    if plan.rows:
        decode(body, "flat", kept, ctype)
        return
    decode(body, "flat", [*kept, ("vector", ceil_div(plan.vector.extent, lanes))], ctype)
    text = f"vector * {lanes}"
    if plan.vector.extent % lanes:
        text = f"min({text}, ({ctype}){plan.vector.extent - lanes})"
    body.line(f"const {ctype} {writer.names[plan.vector.name]} = {text};")


def _loop(writer: Writer, sharers: int, splits: int, unroll: int) -> None:
    """Each sharer takes every `sharers`-th step of the split's part of the reduction, `unroll` of them at a time."""
    plan, body, ctype = writer.plan, writer.body, writer.ctype
    loops = [(d.name, d.extent) for d in plan.reduced]
    if plan.rows:
        loops.append((plan.vector.name, plan.vector.extent // writer.lanes))
    count = math.prod(n for _, n in loops)
    part = ceil_div(count, splits)
    end = str(count)
    if splits > 1:
        body.line(f"const {ctype} end = min(split * {part} + {part}, ({ctype}){count});")
        end = "end"
    body.line(f"{ctype} step = {f'split * {part} + sharer' if splits > 1 else 'sharer'};")
    if unroll > 1 and part >= sharers * unroll:
        far = (unroll - 1) * sharers
        with body.block(f"for (; step < {end} - {far}; step += {unroll * sharers})"):
            for chain in range(unroll):
                _step(writer, loops, chain, sharers, f"_{chain}")
    with body.block(f"for (; step < {end}; step += {sharers})"):
        _step(writer, loops, 0, sharers, "")


def _step(writer: Writer, loops: list[tuple[str, int]], chain: int, sharers: int, suffix: str) -> None:
    """Add the vector that lies `chain` steps after `step`; its loop variables end in `suffix`."""
    plan, body, ctype, lanes = writer.plan, writer.body, writer.ctype, writer.lanes
    kept = writer.names
    places = []
    for name, extent in loops:
        is_vector = plan.rows and name == plan.vector.name
        places.append((f"vector{suffix}" if is_vector else f"{kept[name]}{suffix}", extent))
    at = f"at{suffix.strip('_')}"
    body.line(f"const {ctype} {at} = step + {chain * sharers};")
    decode(body, at, places, ctype)
    writer.names = {**kept, **{name: f"{kept[name]}{suffix}" for name, _ in loops}}
    if plan.rows:
        body.line(f"const {ctype} {writer.names[plan.vector.name]} = vector{suffix} * {lanes};")
    writer.step(chain)
    writer.names = kept


def _combined(writer: Writer, results: list[str], width: int, group: int, sharers: int, stride: int) -> list[str]:
    """Combine the sharers' results through local memory; the first sharer gets the variables returned."""
    plan, body = writer.plan, writer.body
    if sharers == 1:
        return results
    expressions = writer.expressions(width, {}, "")
    for j, e in enumerate(plan.reduces):
        body.line(f"__local {vector_type(accumulator(e), width)} shared{j}[{group}];")
        body.line(f"shared{j}[local_id] = {results[j]};")
    body.line("barrier(CLK_LOCAL_MEM_FENCE);")
    half = sharers // 2
    while half:
        with body.block(f"if (sharer < {half})"):
            for j, e in enumerate(plan.reduces):
                mine, other = f"shared{j}[local_id]", f"shared{j}[local_id + {half * stride}]"
                body.line(expressions.accumulate(e.kind, mine, other, e.dtype))
        body.line("barrier(CLK_LOCAL_MEM_FENCE);")
        half //= 2
    return [f"shared{j}[local_id]" for j in range(len(plan.reduces))]


def combine(plan: Plan, configuration: Configuration, target: Target) -> Launch:
    """The second launch: combine the partial results of all splits and compute the outputs.

    A work-group shares the splits of some neighbouring outputs, as in columns.
    """
    writer = Writer(plan, configuration, 1, "_combine")
    body, ctype, splits = writer.body, writer.ctype, configuration.integer("splits")
    group = power_below(min(256, target.max_work_group))
    sharers = min(group, power_below(splits))
    outputs = group // sharers
    groups = ceil_div(plan.outputs, outputs)
    body.line("const int local_id = (int)get_local_id(0);")
    body.line(f"const int sharer = local_id / {outputs}, slot = local_id % {outputs};")
    body.line(f"const {ctype} wanted = ({ctype})get_group_id(0) * {outputs} + slot;")
    body.line(f"const {ctype} output = min(wanted, ({ctype}){plan.outputs - 1});")
    decode(body, "output", [(variable(d.name), d.extent) for d in plan.loops.kept], ctype)
    writer.declare(1)
    with body.block(f"for ({writer.ctype} split = sharer; split < {splits}; split += {sharers})"):
        writer.add_partials()
    results = _combined(writer, [acc(j, 0) for j in range(len(plan.reduces))], 1, group, sharers, outputs)
    with body.block(f"if (sharer == 0 && wanted < {plan.outputs})"):
        writer.finish(results, 1)
    return writer.launch(gpu_geometry(groups * group, group), False, combines=True)
