"""Building many programs at once, while their sources are still being written.

Drivers let go of Python's lock while they compile, but Intel's and PoCL's compile one program at a time in a process.
So a thread builds what it is handed, and where a lot has to be compiled, helper processes (`compiler.py`) compile as
well and leave their binaries in the cache on disk, from where this process loads them. Where a process that runs
kernels must not ask for binaries (PoCL), helpers do all of that.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.errors import TilewrightError
from tilewright.runtime.resident import forget_again

if TYPE_CHECKING:
    from tilewright.runtime.execution import Context

PER_HELPER = 4
"""Programs to compile that make one more helper worth its start, about a second."""
MOST_HELPERS = 8
HELPER_BYTES = 300 << 20
"""Memory that a helper takes, mostly its driver's."""


class Builds:
    """Programs that are being built in the background; `building` makes one and waits for the end.

    Nothing is raised here: a program that cannot be built is built again, and complained about, when it is bound.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._helpers = helpers_allowed(ctx)
        self._sources: deque[str] = deque()
        """What is built in this process."""
        self._missing: deque[str] = deque() if self._helpers and not ctx.asks_for_binaries else self._sources
        """What has to be compiled, by whoever comes first unless that is helpers' work."""
        self._changed = threading.Condition()
        self._open = True
        self._seen: set[str] = set()
        self._to_compile = 0
        self._threads: list[threading.Thread] = []

    def add(self, source: str) -> None:
        """Build this program soon, unless it is there already."""
        from tilewright.runtime.execution import Built

        if source in self._seen:
            return
        self._seen.add(source)
        found = self._ctx.built(source)
        if found is Built.IN_MEMORY:
            return
        self._to_compile += found is Built.NOWHERE
        with self._changed:
            (self._missing if found is Built.NOWHERE else self._sources).append(source)
            self._changed.notify_all()
        if not self._threads:
            self._start(lambda: self._build(self._sources))
        elif self._to_compile >= PER_HELPER * len(self._threads) and len(self._threads) <= self._helpers:
            self._start(self._compile_elsewhere)

    def finish(self) -> None:
        """Wait until everything is built."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._build(self._missing)  # what was too little to start a helper for, or was left by one that died
        if self._threads:
            forget_again()

    def _start(self, work: object) -> None:
        thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _next(self, sources: deque[str]) -> str | None:
        with self._changed:
            while not sources and self._open:
                self._changed.wait()
            return sources.popleft() if sources else None

    def _build(self, sources: deque[str]) -> None:
        while (source := self._next(sources)) is not None:
            with contextlib.suppress(TilewrightError):
                self._ctx.build(source)

    def _compile_elsewhere(self) -> None:
        with contextlib.suppress(OSError), Helper(self._ctx.device.name, self._ctx.cache.folder.parent) as helper:
            while (source := self._next(self._missing)) is not None:
                if helper.compile(source) is None:
                    with self._changed:
                        self._missing.append(source)  # whoever is left builds it
                        self._changed.notify_all()
                    return
                with contextlib.suppress(TilewrightError):
                    self._ctx.build(source)


@contextmanager
def building(ctx: Context) -> Iterator[Builds]:
    """Builds that are finished when the block ends."""
    builds = Builds(ctx)
    try:
        yield builds
    finally:
        builds.finish()


def helpers_allowed(ctx: Context) -> int:
    """How many processes may compile: a core each, none where binaries cannot be handed over.

    This process has a core too, unless it leaves compiling to them.
    """
    possible = helpers_possible() if ctx.keeps_binaries and ctx.cache.is_writable else 0
    return min(possible if ctx.asks_for_binaries or not possible else possible + 1, MOST_HELPERS)


def helpers_possible() -> int:
    """How many helpers this machine carries: a core each beside this process's, and half of the memory in all."""
    interpreter = Path(sys.executable or "").name
    if not interpreter.startswith(("python", "pypy")) or getattr(sys, "frozen", False):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    return max(0, min(cores - 1, memory // 2 // HELPER_BYTES))


class Helper:
    """A process that compiles for the cache on disk; ends when its input does.

    ``device`` is the device's short name, ``cache`` the cache folder that binaries are left in.
    """

    def __init__(self, device: str, cache: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TILEWRIGHT_CACHE": str(cache),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tilewright.runtime.compiler", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, with which the helper's input ends
        )

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_exception: object) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def kill(self) -> None:
        """End the process, whatever it does; `compile` then answers None."""
        self._process.kill()

    def compile(self, source: str) -> str | None:
        """Have a program compiled: '' if that went well, the complaint if it is wrong, None if the process has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(source).encode() + b"\n")
            stdin.flush()
            answer = stdout.readline()
        except (OSError, ValueError):  # it is gone, or its pipes are closed
            return None
        return str(json.loads(answer)) if answer else None


__all__ = ["Builds", "Helper", "building", "helpers_allowed", "helpers_possible"]
