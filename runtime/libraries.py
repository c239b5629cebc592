"""Keeping compiled kernels loaded that a driver would load again for every launch.

PoCL makes a shared library of each kernel and keeps 128 of them open: a process that runs more has others unloaded and
loaded all the time. A library stays in memory as long as anybody has it open, so we open those of networks too.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

MOST_HELD = 1024
"""Libraries that are held: each has five mappings to look through, and Linux allows a process 65,530."""

_MAPS = Path("/proc/self/maps")
_KERNEL = re.compile(r" (/\S.*/\d+-\d+-\d+[^/\n]*/[^/\n]+\.so)$", re.MULTILINE)
"""PoCL's files end in <work-group's size>-<what it was compiled for>/<kernel>.so."""


class Libraries:
    """The kernels' libraries that this process holds, whatever the driver does. Linux only: elsewhere it holds none."""

    def __init__(self) -> None:
        self._held: dict[str, ctypes.CDLL] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self) -> None:
        """Hold those that are loaded now, `MOST_HELD` in all."""
        if len(self._held) >= MOST_HELD or not sys.platform.startswith("linux"):
            return
        for path in kernels_in(_MAPS.read_text(encoding="utf-8", errors="surrogateescape")):
            if path not in self._held and len(self._held) < MOST_HELD:
                try:
                    self._held[path] = ctypes.CDLL(path)
                except OSError:  # the file has been removed since
                    continue


def kernels_in(maps: str) -> set[str]:
    """The paths of kernels' libraries in the text of /proc/self/maps."""
    return set(_KERNEL.findall(maps))


__all__ = ["MOST_HELD", "Libraries", "kernels_in"]
