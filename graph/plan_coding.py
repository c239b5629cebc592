"""Recipes as JSON and bytes, and back: explicit data, so that reading a file of the cache can execute nothing.

    {"sources": [...], "buffers": [...], "steps": [...], "temporaries": [...], "arenas": ..., "checks": [...]}

Constants that lie in the model's file are places in it (offset, shape, strides); all others, packed weights too, stand
behind the JSON, element after element. Whoever reads has made sure that the bytes are what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch, Scratch
from tilewright.graph.checks import Check, Checks
from tilewright.graph.memory import Arenas, Lifetime, Spot
from tilewright.graph.recipe import BufferSpec, Label, Recipe, Role, Step

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Json = Any

ALIGNMENT = 64
"""Bytes of which the places of constants behind the JSON are multiples."""


@dataclass(frozen=True)
class Encoded:
    """A recipe as it is written."""

    structure: Json
    own: tuple[BufferSpec, ...]
    """Constants that do not lie in the model's file, each followed by zeros up to the next multiple of `ALIGNMENT`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the constants."""
        return sum(map(_room, self.own))


# --- constants --------------------------------------------------------------------------------------------------------


def with_stable_keys(recipe: Recipe, content: Bytes) -> Recipe:
    """The recipe with keys of constants that are the same in a recipe that is read again: places or digests."""
    buffers = {
        name: replace(s, key=_stable_key(s.content, content)) if s.content is not None and s.key is not None else s
        for name, s in recipe.buffers.items()
    }
    return replace(recipe, buffers=buffers)


def _stable_key(array: np.ndarray, content: Bytes) -> object:
    offset = _offset(array, content)
    if offset is not None:
        return "file", offset, array.dtype.str, array.shape, array.strides
    return "own", array.dtype.str, array.size, hashlib.sha256(_flat(array).data).hexdigest()


def _offset(array: np.ndarray, content: Bytes) -> int | None:
    """Where the first element of an array lies in the model's file; None if any element lies elsewhere."""
    start, size = content.__array_interface__["data"][0], content.nbytes
    low, high = np.lib.array_utils.byte_bounds(array)
    offset: int = array.__array_interface__["data"][0] - start
    return offset if start <= low and high <= start + size and array.size else None


def _flat(array: np.ndarray) -> Bytes:
    """An array's bytes in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _room(spec: BufferSpec) -> int:
    return -(-spec.nbytes // ALIGNMENT) * ALIGNMENT


def own_bytes(encoded: Encoded, content: Callable[[BufferSpec], np.ndarray]) -> Iterator[memoryview | bytes]:
    """What is written behind the JSON; `content` gives the elements of a constant when its turn comes."""
    for spec in encoded.own:
        yield _flat(content(spec)).data
        yield bytes(_room(spec) - spec.nbytes)


# --- writing ----------------------------------------------------------------------------------------------------------


def encode(recipe: Recipe, content: Bytes) -> Encoded | None:
    """A recipe of `with_stable_keys` for a model of this content; None where something in it cannot be written."""
    own: list[BufferSpec] = []
    buffers = []
    for spec in recipe.buffers.values():
        array = spec.content
        if array is not None and (array.dtype != spec.dtype.numpy or array.dtype.hasobject):
            return None
        place = _placed(spec, content, own) if spec.role is Role.CONSTANT else None
        buffers.append([spec.name, spec.dtype.value, spec.size, spec.role.value, spec.shape, place, spec.key])
    sources = list(dict.fromkeys(launch.source for s in recipe.steps for launch in s.launches))
    numbers = {source: n for n, source in enumerate(sources)}
    structure = {
        "sources": sources,
        "buffers": buffers,
        "steps": [_step(s, numbers) for s in recipe.steps],
        "temporaries": [astuple(t) for t in recipe.temporaries],
        "arenas": [[[name, s.arena, s.offset] for name, s in recipe.arenas.spots.items()], recipe.arenas.sizes],
        "checks": [[astuple(c) for c in checks] for checks in (recipe.checks.fed, recipe.checks.made)],
    }
    return Encoded(structure, tuple(own))


def _placed(spec: BufferSpec, content: Bytes, own: list[BufferSpec]) -> Json:
    """In the file: offset, shape, strides. Behind the JSON: offset; and the constant goes to `own`."""
    array = spec.content
    offset = None if array is None else _offset(array, content)
    if array is not None and offset is not None:
        return [offset, array.shape, array.strides]
    own.append(spec)
    return [sum(map(_room, own[:-1]))]


def _step(step: Step, numbers: Mapping[str, int]) -> Json:
    launches = [
        [x.kernel, numbers[x.source], x.global_size, x.local_size, x.arguments, x.writes, x.in_place]
        for x in step.launches
    ]
    scratch = [[s.name, s.dtype.value, s.size, s.fill] for s in step.scratch]
    return [
        astuple(step.label),
        launches,
        scratch,
        dict(step.arguments),
        sorted(step.ahead),
        list(step.constants.items()),
    ]


# --- reading ----------------------------------------------------------------------------------------------------------


def decode(structure: Json, own: Bytes, content: Bytes) -> Recipe:
    """What `encode` was given; `own` are the bytes behind the JSON.

    Raises KeyError, IndexError, TypeError or ValueError for anything else.
    """
    sources = structure["sources"]
    buffers = {row[0]: _buffer(row, own, content) for row in structure["buffers"]}
    spots, sizes = structure["arenas"]
    fed, made = (tuple(Check(*row) for row in rows) for rows in structure["checks"])
    return Recipe(
        buffers,
        tuple(_read_step(row, sources) for row in structure["steps"]),
        tuple(
            Lifetime(name, nbytes, first, last, tuple(heirs))
            for name, nbytes, first, last, heirs in structure["temporaries"]
        ),
        Arenas({name: Spot(arena, offset) for name, arena, offset in spots}, tuple(sizes)),
        Checks(fed, made),
    )


def _buffer(row: Sequence[Any], own: Bytes, content: Bytes) -> BufferSpec:
    name, dtype_name, size, role, shape, place, key = row
    dtype = DType(dtype_name)
    spec = BufferSpec(name, dtype, size, Role(role), tuple(shape), None, _frozen(key))
    if place is None:
        return spec
    if len(place) == 3:
        offset, sizes, strides = place
        return replace(spec, content=np.ndarray(tuple(sizes), dtype.numpy, content, offset, tuple(strides)))
    return replace(spec, content=own[place[0] : place[0] + spec.nbytes].view(dtype.numpy))


def _frozen(key: Json) -> object:
    """A key as it was written: JSON has lists for tuples."""
    return tuple(map(_frozen, key)) if isinstance(key, list) else key


def _read_step(row: Sequence[Any], sources: Sequence[str]) -> Step:
    (ops, nodes, *rest), launches, scratch, arguments, ahead, constants = row
    return Step(
        Label(tuple(ops), tuple(nodes), *rest),
        tuple(_read_launch(launch, sources) for launch in launches),
        tuple(Scratch(name, DType(dtype), size, fill) for name, dtype, size, fill in scratch),
        arguments,
        frozenset(ahead),
        dict(constants),
    )


def _read_launch(row: Sequence[Any], sources: Sequence[str]) -> Launch:
    kernel, source, size, group, arguments, writes, in_place = row
    return Launch(
        kernel,
        sources[source],
        tuple(size),
        None if group is None else tuple(group),
        tuple(arguments),
        tuple(writes),
        tuple((read, written) for read, written in in_place),
    )


__all__ = ["ALIGNMENT", "Bytes", "Encoded", "decode", "encode", "own_bytes", "with_stable_keys"]
