"""Pointwise steps computed by the contraction that reads them, on GPUs, where that is little work done twice.

A normalisation ahead of a 1x1 convolution (DenseNet) or the scale of squeeze-and-excitation is applied where the
contraction's kernel reads its operand: once for each tile of columns, which for the narrow products of such networks
is once or twice. What lay between them is neither written nor read. That pays where the contraction's family computes
operands as fast as it reads them (`families.COMPUTING`); asynchronous copies to local memory cannot. Windows of more
than one tap would compute each element once per tap, and stay apart.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.dsl.affine import Affine
from tilewright.dsl.families import COMPUTING, Family, fitting
from tilewright.dsl.program import Inside, Program, Read, Reduce, Tensor, all_indices, walk
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.graph.composing import Work, composed, is_map, item_at
from tilewright.graph.images import IMAGE_RANKS, channels_last_strides
from tilewright.graph.steps import Item, Steps

COLUMNS = 512
"""Most columns of a product, of which a tile has 64 to 256, whose operand is computed on the way."""
BESIDE = 8
"""Operands beside the largest must be this many times smaller."""


def with_prologues(steps: Steps, target: Target) -> Steps:
    """The same network with pointwise steps in the contractions that alone read them."""
    if target.shape is not Shape.GPU:
        return steps
    work = Work(steps, list(steps.steps))
    for position in range(len(work.items)):
        reader = _reader(work, position)
        if reader is not None:
            whole = composed([item_at(work, position), item_at(work, reader)], steps.references)
            family = _family(whole.program, target)
            if family in COMPUTING and family == _family(item_at(work, reader).program, target):
                work.absorb(reader, [position], whole)
    return work.finished()


def _reader(work: Work, position: int) -> int | None:
    """The contraction that is to compute the step at `position`, if there is one."""
    item = work.items[position]
    if not isinstance(item, Item) or not is_map(item.program) or not _is_light(item.program):
        return None
    value = work.steps.written(item)
    readers = work.readers(value)
    if len(readers) != 1 or value in work.steps.graph.output_names:
        return None
    reader = work.items[readers[0]]
    if not isinstance(reader, Item) or not _reads_rows(reader.program, item.output):
        return None
    return readers[0]


def _is_light(program: Program) -> bool:
    """Whether one operand has the output's size and all others together are much smaller."""
    sizes = sorted(t.size for t in program.inputs)
    return bool(sizes) and sizes[-1] == program.outputs[0].size and BESIDE * sum(sizes[:-1]) <= sizes[-1]


def _reads_rows(program: Program, tensor: Tensor) -> bool:
    """Whether a program is one contraction that reads each element of `tensor` once for each of a few columns."""
    if len(program.statements) != 1:
        return False
    (statement,) = program.statements
    found = {e for e in walk(statement.value) if isinstance(e, Read | Inside) and e.tensor == tensor.name}
    sums = {e for e in walk(statement.value) if isinstance(e, Reduce)}
    if len(found) != 1 or len(sums) != 1:
        return False
    (read,), (total,) = found, sums
    if isinstance(read, Inside) or read not in set(walk(total)):
        return False
    extent = {i.name: i.extent for i in all_indices(statement)}
    gone = {name: Affine((), 0) for name, n in extent.items() if n == 1}
    singles = [a.substitute(gone).single for a, n in zip(read.index, tensor.shape, strict=True) if n != 1]
    if None in singles or len(set(singles)) != len(singles):
        return False
    if any(extent.get(str(name)) != n for name, n in zip(singles, (n for n in tensor.shape if n != 1), strict=True)):
        return False
    columns = 1
    for name in extent.keys() - set(singles):
        columns *= extent[name]
    return 1 < columns <= COLUMNS


def _family(program: Program, target: Target) -> Family | None:
    """The family that would run a step, its images lying as they will; None if that takes several kernels."""

    def placed(t: Tensor) -> Tensor:
        image = len(t.shape) in IMAGE_RANKS and t.shape[2:] == program.outputs[0].shape[2:]
        return replace(t, strides=channels_last_strides(t.shape)) if image else t

    stages = split(program, target)
    if len(stages) != 1:
        return None
    (stage,) = stages
    moved = replace(stage, inputs=tuple(map(placed, stage.inputs)), outputs=tuple(map(placed, stage.outputs)))
    return fitting(moved, target)[0]
