"""The border to pyopencl: where it is imported, and where its errors become ours.

Nothing outside `runtime/` sees pyopencl, and inside it is imported on first use, so that `import tilewright` stays
fast and works on machines without a driver.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tilewright.errors import DeviceError
from tilewright.runtime import icd


@dataclass
class _Process:
    """What this process has done with OpenCL."""

    used: bool = False
    forked: bool = False
    """True in the child of a fork after use."""


_process = _Process()
_lock = threading.Lock()

# Status codes after which a context cannot be used again: the device is gone, a kernel read or wrote outside its
# memory (NVIDIA reports -9999 or OUT_OF_RESOURCES at the next synchronisation), or its queue is invalid.
LOST_CODES = frozenset({-2, -14, -34, -36, -9999})
OUT_OF_RESOURCES = -5


def opencl() -> ModuleType:
    """pyopencl, imported on the first call with the drivers of this Python environment registered before it.

    Raises DeviceError in a forked child of a process that had used OpenCL, or if pyopencl cannot be imported.
    """
    refuse_after_fork()
    return _load()


@functools.cache
def _load() -> ModuleType:
    with _lock:
        icd.register_drivers()
        # pyopencl keeps argument-passing code in a database in the user's cache folder and fails where that folder
        # cannot be written; making the code anew costs as little as reading it.
        os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
        try:
            import pyopencl
        except ImportError as error:
            advice = "install it with 'pip install pyopencl'"
            raise DeviceError(f"pyopencl cannot be imported ({error}); {advice}") from None
        _remember_invokers()
        _process.used = True
        return pyopencl


def _remember_invokers() -> None:
    """Keep the Python code that pyopencl writes for every kernel object; kernels of one name and arity share it.

    Making it anew takes 0.7 ms, and longer with every kernel that there is.
    """
    try:
        from pyopencl import invoker

        generate: Callable[..., Any] = invoker.generate_enqueue_and_set_args
    except (ImportError, AttributeError):  # another version, which does not do so
        return
    known: dict[object, object] = {}

    @functools.wraps(generate)
    def remembered(*arguments: Any, **named: Any) -> Any:
        if arguments[3:] != (None,):  # only kernels without declared types, as all of ours, are alike on all devices
            return generate(*arguments, **named)
        key = (arguments, tuple((name, named[name]) for name in sorted(named) if name != "devs"))
        if key not in known:
            known[key] = generate(*arguments, **named)
        return known[key]

    invoker.generate_enqueue_and_set_args = remembered


def _mark_forked() -> None:
    _process.forked = _process.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def forked() -> bool:
    """True in a forked child of a process that had used OpenCL."""
    return _process.forked


def refuse_after_fork() -> None:
    """Raise DeviceError in a forked child: drivers keep threads and locks that do not survive a fork (PoCL hangs)."""
    if _process.forked:
        raise DeviceError(
            "OpenCL was used before this process was forked and cannot be used in the child; "
            "start the child with multiprocessing.get_context('spawn') instead"
        )


def describe(error: Exception) -> str:
    """A pyopencl error as `ROUTINE: STATUS`, without the build log or the source it may carry."""
    code = getattr(error, "code", None)
    routine = getattr(error, "routine", "") or "OpenCL"
    if code is None:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    status = opencl().status_code.to_string(code, "status %d")
    return f"{routine}: {status}"


def error_code(error: Exception) -> int:
    """The OpenCL status of a pyopencl error, 0 where it has none."""
    code: Any = getattr(error, "code", 0)
    return int(code)


@contextmanager
def guard(action: str, raised: type[DeviceError] = DeviceError) -> Iterator[None]:
    """Turn errors of pyopencl inside the block into `raised` with the text `cannot ACTION: ROUTINE: STATUS`."""
    cl = opencl()
    try:
        yield
    except cl.Error as error:
        raise raised(f"cannot {action}: {describe(error)}") from error
