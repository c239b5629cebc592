"""Starting kernels from Python: OpenCL's own function, called with arguments that were made ready once.

pyopencl's call makes an event for every launch and takes its arguments apart each time. Here a launch is a tuple of C
values, handed to `clEnqueueNDRangeKernel` of the loader that pyopencl itself is linked with. Where that function
cannot be had (a platform on which libraries hide their dependencies) pyopencl's call stands in.

Python's lock is kept during the call: it takes microseconds, and whoever lets go of the lock may wait milliseconds for
other threads before the next launch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from itertools import starmap
from operator import length_hint
from typing import TYPE_CHECKING, Any

from tilewright.runtime import border

if TYPE_CHECKING:
    import pyopencl

Call = tuple[Any, ...]
"""The arguments of one launch, as `Launcher.call` makes them."""


class LaunchRefused(Exception):
    """A driver's refusal to start a kernel; it has the fields by which `border` describes pyopencl's errors."""

    routine = "clEnqueueNDRangeKernel"

    def __init__(self, code: int, position: int) -> None:
        super().__init__(f"{self.routine} gives {code}")
        self.code = code
        self.position = position
        """Which of the calls it was, from 0."""


class Launcher:
    """How kernels are started on one queue; ``direct`` false has pyopencl do it."""

    def __init__(self, queue: pyopencl.CommandQueue, direct: bool = True) -> None:
        self._queue = queue
        self._direct = direct_function() if direct else None
        self._function: Callable[..., int] = self._direct or _through_pyopencl

    @property
    def is_direct(self) -> bool:
        """False where pyopencl's call stands in."""
        return self._direct is not None

    def call(self, kernel: pyopencl.Kernel, global_size: tuple[int, ...], local_size: tuple[int, ...] | None) -> Call:
        """What `start` needs to launch a kernel, which the caller keeps alive."""
        if self._direct is None:
            return (self._queue, kernel, global_size, local_size)
        sizes = ctypes.c_size_t * len(global_size)
        group = None if local_size is None else ctypes.byref(sizes(*local_size))
        # values that ctypes has converted already are passed on as they are, others are converted by every call
        pointer = ctypes.c_void_p.from_param
        queue, function = pointer(self._queue.int_ptr), pointer(kernel.int_ptr)
        return (queue, function, len(global_size), None, ctypes.byref(sizes(*global_size)), group, 0, None, None)

    def start(self, calls: Sequence[Call]) -> None:
        """Enqueue launches in order; LaunchRefused at the first one that the driver refuses."""
        remaining = iter(calls)
        status = next(filter(None, starmap(self._function, remaining)), 0)
        if status:
            raise LaunchRefused(status, len(calls) - length_hint(remaining) - 1)


@functools.cache
def direct_function() -> Callable[..., int] | None:
    """clEnqueueNDRangeKernel of pyopencl's OpenCL loader, or None: it is looked up among the module's dependencies."""
    try:
        function: Callable[..., int] = ctypes.PyDLL(border.opencl()._cl.__file__).clEnqueueNDRangeKernel
    except (AttributeError, OSError):
        return None
    return function


def _through_pyopencl(
    queue: pyopencl.CommandQueue, kernel: pyopencl.Kernel, global_size: Sequence[int], local_size: Sequence[int] | None
) -> int:
    """One launch by pyopencl; its status."""
    cl = border.opencl()
    try:
        cl._cl.enqueue_nd_range_kernel(queue, kernel, global_size, local_size, None, None, False, False)
    except cl.Error as error:
        return border.error_code(error)
    return 0
