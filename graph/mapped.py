"""A model's file as memory whose pages the system reads when they are looked at, and forgets when told to.

Weights are looked at once, on their way to the device: a session would otherwise keep a second copy of them on the
host. A file that is replaced by another of the same name stays what it was; one that is changed in place does not,
which is refused ahead of every new plan.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModelError

Array = np.ndarray[Any, Any]

PIECE = 16 << 20
"""Bytes of a constant that are read at a time: more would lie twice in memory, less would keep devices waiting."""


class MappedFile(mmap.mmap):
    """A whole file, read-only."""

    path: Path
    status: tuple[int, ...]
    """What `_status` said when it was opened."""


def mapped(path: Path) -> Array | None:
    """The bytes of a file; None where there is nothing to map or no way to forget pages. OSError if unreadable."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    with path.open("rb") as file:
        status = _status(os.fstat(file.fileno()))
        try:
            found = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # an empty file, or what is no file at all
            return None
    found.path, found.status = path.absolute(), status
    return np.frombuffer(found, np.uint8)


def file_of(array: object) -> MappedFile | None:
    """The mapped file whose bytes an array shows, if it shows any."""
    while isinstance(array, np.ndarray):
        array = array.base
    found = array.obj if isinstance(array, memoryview) else array
    return found if isinstance(found, MappedFile) else None


def let_go(array: Array) -> None:
    """Have the system forget the pages of an array; they are read again when somebody looks."""
    file = file_of(array)
    if file is not None and array.size:
        start = np.frombuffer(file, np.uint8).__array_interface__["data"][0]
        low, high = np.lib.array_utils.byte_bounds(array)
        first = (low - start) // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_DONTNEED, first, high - start - first)


def pieces(array: Array) -> Iterator[tuple[int, Array]]:
    """An array in parts to look at one after the other, each with the byte at which it begins.

    One of a file in parts of `PIECE` bytes, if it lies there as in memory; any other whole.
    """
    if file_of(array) is None or not array.flags.c_contiguous or not array.dtype.isnative:
        yield 0, array
        return
    content = array.reshape(-1).view(np.uint8)
    for start in range(0, max(array.nbytes, 1), PIECE):
        yield start, content[start : start + PIECE]


def refuse_changed(arrays: Iterable[Array]) -> None:
    """ModelError where a file that arrays show was changed after it was opened."""
    for file in {id(f): f for f in map(file_of, arrays) if f is not None}.values():
        try:
            now = _status(file.path.stat())
        except OSError:  # it was removed, which takes its name alone
            continue
        if now[:2] == file.status[:2] and now != file.status:
            raise ModelError(f"{file.path} was changed after it was opened; make a new session")


def owned(array: Array) -> Array:
    """The array, or a copy of what lies in a file, for those who look again and again."""
    return array if file_of(array) is None else array.copy()


def _status(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


__all__ = ["MappedFile", "file_of", "let_go", "mapped", "owned", "pieces", "refuse_changed"]
