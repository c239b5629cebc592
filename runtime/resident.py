"""Giving memory back that a process holds without need: what was read once, and what was freed.

A driver's libraries are looked through once when they are loaded: tables of symbols and relocations, and whatever the
system reads around what is touched. On Linux such pages count as the process's memory until the system needs them for
something else: 110 MiB with Intel's driver and PoCL, 160 after they have compiled, of which running a network needs 30.
Pages that are as the file has them are given up here; they are read again, mostly from the system's cache, when
somebody looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

WORTH_FORGETTING = 1 << 20
"""Bytes of a mapping from which on it is looked at."""

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ ([1-9]\d*) +(/.*)$", re.MULTILINE)
_OF_A_FILE, _SWAPPED, _PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))
"""Bits of an entry of /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst)."""

_loaded: set[str] = set()
"""Paths of files that were mapped first in a block of `forgetting_loaded`."""


class _Mapping(NamedTuple):
    """A line of /proc/self/maps that is about a file."""

    start: int
    end: int
    permissions: str
    inode: str
    path: str


@contextmanager
def forgetting_loaded() -> Iterator[None]:
    """Of the files that are mapped first in the block, forget the unchanged pages that nobody may write to."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = {m.path for m in _mappings()}
    yield
    _loaded.update(m.path for m in _mappings() if m.path not in before)
    forget_again()


def forget_again() -> None:
    """Forget what has been read since of the files that were mapped first in a block of `forgetting_loaded`."""
    if _loaded:
        with contextlib.suppress(OSError):  # no /proc, or none that tells: what is read stays
            _forget([m for m in _mappings() if m.path in _loaded])


def return_freed() -> None:
    """Have the C library hand freed memory back to the system, which glibc keeps for itself up to tens of megabytes."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)


def _mappings() -> tuple[_Mapping, ...]:
    try:
        text = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return ()
    return tuple(
        _Mapping(int(start, 16), int(end, 16), permissions, inode, path)
        for start, end, permissions, inode, path in _MAPPING.findall(text)
    )


def _forget(found: list[_Mapping]) -> None:
    """Give up the pages of private mappings, if none of a mapping's has been written to."""
    large = [m for m in found if m.end - m.start >= WORTH_FORGETTING and m.permissions in ("r--p", "r-xp")]
    unchanged = [m for m in large if _is_unchanged(m)]
    # A library that another thread was about to load looks different by now: it is mapped as a whole at first, parts
    # that are written to later included.
    present = set(_mappings())
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    for m in unchanged:
        if m in present:
            advise(m.start, m.end - m.start, mmap.MADV_DONTNEED)


def _is_unchanged(mapping: _Mapping) -> bool:
    """Whether there are pages, and all are as the file has them, unlike those that the loader has relocated."""
    first, count = mapping.start // mmap.PAGESIZE, (mapping.end - mapping.start) // mmap.PAGESIZE
    file = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        pages = np.frombuffer(os.pread(file, 8 * count, 8 * first), np.uint64)
    finally:
        os.close(file)
    held = (pages & (_PRESENT | _SWAPPED)) != 0
    return len(pages) == count and bool(held.any()) and not np.any(held & ((pages & _OF_A_FILE) == 0))


__all__ = ["forget_again", "forgetting_loaded", "return_freed"]
