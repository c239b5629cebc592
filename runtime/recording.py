"""Lists of launches that the driver keeps and starts by one call (cl_khr_command_buffer), where it can.

On Intel's CPU driver a list of tiny kernels takes 3.6 instead of 5.7 µs per kernel. A list holds the arguments that
were set when it was made, so it is made once they have stayed for some runs, and thrown away when one changes. Only
drivers that let a list be started while it is still at work are used: nobody has to wait then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.runtime import border
from tilewright.runtime.launching import Call

if TYPE_CHECKING:
    import pyopencl

    from tilewright.runtime.execution import BoundLaunch, Context

EXTENSION = "cl_khr_command_buffer"
WORTH_RECORDING = 4
"""Launches from which on a list gains anything."""
SETTLED = 2
"""Starts with unchanged arguments after which a list is made; making one takes as long as starting it twice."""

_CAPABILITIES, _SIMULTANEOUS_USE, _FLAGS = 0x12A9, 4, 0x1293
_POINTER, _UINT, _INT, _SIZE = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "clCreateCommandBufferKHR": (_POINTER, _UINT, _POINTER, _POINTER, _POINTER),
    "clCommandNDRangeKernelKHR": (
        _INT, _POINTER, _POINTER, _POINTER, _POINTER, _UINT, _POINTER, _POINTER, _POINTER, _UINT, _POINTER, _POINTER,
        _POINTER,
    ),
    "clFinalizeCommandBufferKHR": (_INT, _POINTER),
    "clEnqueueCommandBufferKHR": (_INT, _UINT, _POINTER, _POINTER, _UINT, _POINTER, _POINTER),
    "clReleaseCommandBufferKHR": (_INT, _POINTER),
}  # fmt: skip
"""Result and arguments of the extension's functions (OpenCL's extension specification)."""


@dataclass(frozen=True)
class Recorder:
    """Makes lists for one in-order queue; functions of the extension by name."""

    queue: pyopencl.CommandQueue
    functions: dict[str, Callable[..., Any]]

    def record(self, calls: Sequence[Call]) -> Recording | None:
        """The calls as a list with the arguments that their kernels have now; None if the driver refuses."""
        status = _INT(0)
        queues, flags = (_POINTER * 1)(self.queue.int_ptr), (ctypes.c_uint64 * 3)(_FLAGS, _SIMULTANEOUS_USE, 0)
        handle = self.functions["clCreateCommandBufferKHR"](1, queues, flags, ctypes.byref(status))
        if not handle:
            return None
        found = Recording(self, handle)
        add = self.functions["clCommandNDRangeKernelKHR"]
        for _, kernel, dimensions, _, size, group, *_ in calls:
            if add(handle, None, None, kernel, dimensions, None, size, group, 0, None, None, None):
                return None
        return None if self.functions["clFinalizeCommandBufferKHR"](handle) else found


class Recording:
    """A list of launches; it goes back to the driver with the last reference."""

    def __init__(self, recorder: Recorder, handle: int) -> None:
        self._functions = recorder.functions
        self._handle = handle

    def start(self) -> int:
        """Enqueue all launches; OpenCL's status, 0 if it went well."""
        return int(self._functions["clEnqueueCommandBufferKHR"](0, None, self._handle, 0, None, None))

    def __del__(self) -> None:
        if not border.forked():
            self._functions["clReleaseCommandBufferKHR"](self._handle)


class Repeated:
    """Launches that are started again and again; the caller keeps others from using it meanwhile."""

    def __init__(self, ctx: Context, launches: Sequence[BoundLaunch]) -> None:
        self._ctx = ctx
        self._launches = tuple(launches)
        self._calls = [launch.call for launch in launches if not launch.is_empty]
        self._recorder = ctx.recorder if len(self._calls) >= WORTH_RECORDING else None
        self._recording: Recording | None = None
        self._starts = 0
        """Since an argument has changed."""

    @property
    def is_recorded(self) -> bool:
        """Whether the next start is one call."""
        return self._recording is not None

    def changed(self) -> None:
        """To be called when an argument of a launch was set anew."""
        self._recording = None
        self._starts = 0

    def start(self) -> None:
        """Start all launches in order and return at once; KernelError naming the one that cannot start."""
        if self._recorder is not None and self._recording is None and self._starts >= SETTLED:
            self._recording = self._recorder.record(self._calls)
            if self._recording is None:
                self._recorder = None
        self._starts += 1
        if self._recording is not None:
            if self._ctx.start(self._recording):
                return
            self._recording = self._recorder = None  # what is wrong, if anything, is said by a launch
        self._ctx.enqueue(self._launches)


def recorder(
    device: pyopencl.Device, extensions: Sequence[str], queue: pyopencl.CommandQueue, direct: bool
) -> Recorder | None:
    """A recorder where the driver has such lists and lets them be started again while at work.

    ``direct``: whether launches are made by `Launcher` for OpenCL's own function, whose arguments are used here.
    """
    if EXTENSION not in extensions or not direct:
        return None
    library = ctypes.PyDLL(border.opencl()._cl.__file__)
    information, address = library.clGetDeviceInfo, library.clGetExtensionFunctionAddressForPlatform
    information.argtypes = (_POINTER, _UINT, _SIZE, _POINTER, _POINTER)
    address.argtypes, address.restype = (_POINTER, ctypes.c_char_p), _POINTER
    can = ctypes.c_uint64(0)
    if information(device.int_ptr, _CAPABILITIES, 8, ctypes.byref(can), None) or not can.value & _SIMULTANEOUS_USE:
        return None
    functions: dict[str, Callable[..., Any]] = {}
    for name, signature in _SIGNATURES.items():
        found = address(device.platform.int_ptr, name.encode())
        if not found:
            return None
        functions[name] = ctypes.PYFUNCTYPE(*signature)(found)
    return Recorder(queue, functions)


__all__ = ["EXTENSION", "SETTLED", "WORTH_RECORDING", "Recorder", "Recording", "Repeated", "recorder"]
