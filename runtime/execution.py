"""Running kernels on a device: building, binding, launching, timing, and moving arrays.

One `Context` per device and process. All methods may be called from several threads; a sequence handed to
`enqueue` is never interleaved with another thread's.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch
from tilewright.errors import DeviceError, KernelError
from tilewright.runtime import border, timing
from tilewright.runtime.cache import ProgramCache
from tilewright.runtime.discovery import Device, handle_of
from tilewright.runtime.launching import Call, Launcher, LaunchRefused
from tilewright.runtime.libraries import Libraries
from tilewright.runtime.pool import Buffer, Pool
from tilewright.runtime.programs import Module, build_program
from tilewright.runtime.targets import builds_at_once, driver_of, kernels_kept_loaded, source_prelude, splits_buffers
from tilewright.runtime.transfers import Transfers, bytes_of, check_range

if TYPE_CHECKING:
    import pyopencl

_registry: dict[str, Context] = {}
_registry_lock = threading.Lock()

_compilers: dict[str, threading.Lock] = {}
"""Held while one of these drivers' compilers works, by the driver's name: those that cannot build at once."""

FILL = 1 << 30
"""(guess) Bytes filled at once: on an H200 a buffer of 20 GB, filled as one, did not hold it at its end later."""
WIDE_PATTERN = 16
"""Bytes of the pattern for large fills: NVIDIA's driver loses the device 2^31 patterns from the buffer's start."""
HELD_AT_ONCE = 64
"""Launches after which their kernels are held, before the driver unloads any of them."""
MODULES_KEPT = 256
"""Programs that stay in memory though nothing uses them, the latest ones: Intel's driver holds 3 MB for each."""


class Built(Enum):
    """Where a program is found."""

    IN_MEMORY = "in memory"
    ON_DISK = "on disk"
    NOWHERE = "nowhere"


@dataclass(frozen=True, eq=False)
class BoundLaunch:
    """A kernel with its arguments set, ready to be enqueued any number of times. It keeps ``buffers`` alive."""

    name: str
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None
    local_memory: int
    """Bytes of local memory a work-group uses."""
    kernel: pyopencl.Kernel
    """The driver's kernel object, which holds the arguments."""
    call: Call
    """What the launcher is handed for each launch; its sizes and its queue do not change with the arguments."""
    buffers: tuple[Buffer | None, ...]
    """What the arguments were set to by `Context.bind`; None for those left to `Context.rebind`."""

    @property
    def is_empty(self) -> bool:
        """True if there are no work-items; nothing is enqueued then."""
        return 0 in self.global_size


class Launches(tuple[BoundLaunch, ...]):
    """Launches in order, with what the launcher is handed for them made ready: for what is enqueued many times."""

    def __init__(self, launches: Iterable[BoundLaunch]) -> None:
        self.started = tuple(launch for launch in self if not launch.is_empty)
        self.calls = tuple(launch.call for launch in self.started)
        self.stay_loaded = False
        """Whether the driver has been kept from unloading these kernels."""


def context(device: Device) -> Context:
    """The context of a device, made on the first call and again after a fault of the device has destroyed it."""
    border.refuse_after_fork()
    with _registry_lock:
        present = _registry.get(device.name)
        if present is None or present.lost:
            present = _registry[device.name] = Context(device)
        return present


class Context:
    """Everything one device offers; use `context(device)` to get it."""

    def __init__(self, device: Device) -> None:
        cl = border.opencl()
        self.device = device
        self.lost = False
        """True after a fault that makes the context useless; `context(device)` then makes a new one."""
        self.keeps_binaries = True
        """False stops writing program binaries to disk, for tuners that build thousands of kernels once."""
        self._handle = handle_of(device)
        with border.guard(f"use the device {device.name}"):
            self._context = cl.Context([self._handle])
            self._queue = cl.CommandQueue(self._context)
            # profiling makes every launch dearer (12.4 instead of 6.7 µs on NVIDIA), hence a queue of its own
            self._profiling_queue = cl.CommandQueue(
                self._context, properties=cl.command_queue_properties.PROFILING_ENABLE
            )
            self.alignment = max(int(self._handle.mem_base_addr_align) // 8, 16)
        driver = driver_of(device.platform, device.kind)
        self._compiler: AbstractContextManager[object] = (
            nullcontext() if builds_at_once(driver) else _compilers.setdefault(driver.name, threading.Lock())
        )
        self._loaded_at_most = kernels_kept_loaded(driver)
        self._libraries = Libraries()
        self._bound = 0
        """Kernels that were bound so far."""
        self.asks_for_binaries = self._loaded_at_most is None
        """Whether `build` stores what it compiles, or leaves that to `compiler.py`'s processes, which run no kernels.

        A driver that keeps few kernels loaded never lets go of those that it compiled for being asked.
        """
        self.splits_buffers = splits_buffers(driver)
        """Whether `view` may be used for parts that overlap."""
        self.pool = Pool(self._context, device.name, device.global_memory, device.max_allocation)
        self.transfers = Transfers(self._context, self._queue, self._handle.host_unified_memory, self._synchronising)
        self.cache = ProgramCache()
        self._modules: OrderedDict[str, Module] = OrderedDict()
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.RLock()
        self._launcher = Launcher(self._queue)
        self._error = cl.Error

    def allocate(self, nbytes: int, reuse: bool = True) -> Buffer:
        """Uninitialised memory of `nbytes` bytes (0 is allowed); DeviceError if there is not enough.

        Without ``reuse`` it goes back to the driver, not to the next who asks.
        """
        border.refuse_after_fork()
        return self.pool.allocate(nbytes, reuse)

    def owns(self, buffer: Buffer) -> bool:
        """Whether a buffer is memory of this device, from after its last fault."""
        return buffer.pool is self.pool

    def trim(self) -> int:
        """Hand memory that waits for reuse back to the driver; the number of bytes."""
        border.refuse_after_fork()
        self.finish()
        return self.pool.trim()

    def view(self, buffer: Buffer, offset_bytes: int, nbytes: int) -> Buffer:
        """A part of a buffer as a buffer that shares its memory.

        `offset_bytes` must be a multiple of `alignment`; DeviceError otherwise, or where the part leaves the buffer.
        """
        border.refuse_after_fork()
        check_range(buffer, offset_bytes, nbytes)
        if offset_bytes % self.alignment:
            raise DeviceError(
                f"a view starts at byte {offset_bytes}, but {self.device.name} needs a multiple of {self.alignment}"
            )
        root = buffer if buffer.base is None else buffer.base
        start = buffer.offset + offset_bytes
        if nbytes == 0:
            return Buffer(root.memory, 0, self.pool, 0, root, start)
        with border.guard(f"make a view of {nbytes} bytes at {start}"):
            handle = root.memory.get_sub_region(start, nbytes)
        return Buffer(handle, nbytes, self.pool, 0, root, start)

    def write(self, buffer: Buffer, array: np.ndarray[Any, Any], offset_bytes: int = 0) -> None:
        """Copy an array into a buffer in C order and native byte order; returns when the array may be changed."""
        self.transfers.write(buffer, array, offset_bytes)

    def read(self, buffer: Buffer, shape: Sequence[int], dtype: object, offset_bytes: int = 0) -> np.ndarray[Any, Any]:
        """A new array of `shape` and `dtype` (NumPy's or the language's) with a buffer's content in C order."""
        return self.transfers.receive([(buffer, shape, dtype)], offset_bytes)[0]

    def fill(self, buffer: Buffer, value: float, dtype: DType) -> None:
        """Set every element of a buffer, without waiting; bytes that make no whole element at the end stay."""
        border.refuse_after_fork()
        size = buffer.nbytes // dtype.itemsize * dtype.itemsize
        pattern = bytes_of(np.array([value]).astype(dtype.numpy))
        if size >= FILL:
            pattern = np.tile(pattern, WIDE_PATTERN // pattern.nbytes)
        rest = size % pattern.nbytes
        low = border.opencl()._cl
        with self._lock, border.guard(f"fill {size} bytes"):
            for at in range(0, size - rest, FILL):
                low._enqueue_fill_buffer(self._queue, buffer.memory, pattern, at, min(FILL, size - rest - at), None)
            if rest:
                low._enqueue_copy_buffer(self._queue, buffer.memory, buffer.memory, rest, 0, size - rest, None)

    def build(self, source: str, options: str = "") -> Module:
        """Compile OpenCL C, or find it in memory or on disk; KernelError with the trimmed log if that fails.

        `options` are added to those of the device's target. What the driver lacks is put in front of the source.
        Other threads may launch and build meanwhile; one that wants the same program waits.
        """
        border.refuse_after_fork()
        source, every, key = self._program(source, options)
        with self._lock:
            module = self._modules.get(key)
            if module is not None:
                self._modules.move_to_end(key)
                return module
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            module = self._modules.get(key)
            if module is None:
                cache, keep = self.cache, self.keeps_binaries and self.asks_for_binaries
                try:
                    with self._compiler:
                        module = build_program(self._context, self._handle, source, every, key, cache, keep)
                    self._keep(key, module)
                finally:
                    self._turns.pop(key, None)
            return module

    def _keep(self, key: str, module: Module) -> None:
        with self._lock:
            self._modules[key] = module
            while len(self._modules) > MODULES_KEPT:
                self._modules.popitem(last=False)

    def built(self, source: str) -> Built:
        """Whether `build` would have to compile."""
        key = self._program(source, "")[2]
        if key in self._modules:
            return Built.IN_MEMORY
        return Built.ON_DISK if self.cache.path(key).is_file() else Built.NOWHERE

    def _program(self, source: str, options: str) -> tuple[str, str, str]:
        """What the driver is given: source and options; and the key of both on this device and driver."""
        device = self.device
        source = source_prelude(device.name, source) + source
        every = f"{device.target.build_options} {options}".strip()
        fields = (source, every, device.identity, device.driver, device.opencl_version, device.platform)
        return source, every, hashlib.sha256("\0".join(fields).encode()).hexdigest()

    def bind(self, launch: Launch, buffers: Mapping[str, Buffer | None]) -> BoundLaunch:
        """Build a launch's kernel and set its arguments to `buffers` (by the names in ``launch.arguments``).

        None leaves an argument to `rebind`. Everything that could fail or crash a driver at the launch is checked
        here: argument names and count, the work-group's size and its local memory. Raises KernelError.
        """
        module = self.build(launch.source)
        kernel = module.kernel(launch.kernel)
        missing = [name for name in launch.arguments if name not in buffers]
        if missing:
            raise KernelError(f"kernel {launch.kernel} has no buffer for {', '.join(missing)}")
        local_memory = self._check_limits(launch, kernel)
        size, group = launch.global_size, launch.local_size
        call = self._launcher.call(kernel, size, group)
        used = tuple(buffers[name] for name in launch.arguments)
        bound = BoundLaunch(launch.kernel, size, group, local_memory, kernel, call, used)
        self._bound += 1
        for position, buffer in enumerate(used):
            if buffer is not None:
                self.rebind(bound, position, buffer)
        return bound

    def rebind(self, bound: BoundLaunch, position: int, buffer: Buffer) -> None:
        """Set one argument anew, for what is enqueued from now on; KernelError if the driver refuses.

        The caller keeps the buffer until the last such launch is enqueued, and nobody else may enqueue or rebind the
        same launch meanwhile: a kernel object has one set of arguments.
        """
        try:
            bound.kernel.set_arg(position, buffer.memory)
        except self._error as error:
            raise KernelError(f"cannot set the arguments of kernel {bound.name}: {border.describe(error)}") from error

    def set_scalar(self, bound: BoundLaunch, position: int, value: np.generic) -> None:
        """Set an argument that is no buffer; KernelError if the kernel wants another type there."""
        try:
            bound.kernel.set_arg(position, value)
        except self._error as error:
            raise KernelError(f"cannot set the arguments of kernel {bound.name}: {border.describe(error)}") from error

    def _check_limits(self, launch: Launch, kernel: pyopencl.Kernel) -> int:
        """The launch's local memory in bytes; KernelError where the device cannot run it."""
        cl = border.opencl()
        info = cl.kernel_work_group_info
        with border.guard(f"examine kernel {launch.kernel}", KernelError):
            count = int(kernel.num_args)
            limit = int(kernel.get_work_group_info(info.WORK_GROUP_SIZE, self._handle))
            # NVIDIA's driver says 256 even of kernels that it compiled for, and runs with, 1024
            required = math.prod(kernel.get_work_group_info(info.COMPILE_WORK_GROUP_SIZE, self._handle))
            local_memory = int(kernel.get_work_group_info(info.LOCAL_MEM_SIZE, self._handle))
        if count != len(launch.arguments):
            raise KernelError(f"kernel {launch.kernel} takes {count} arguments, but {len(launch.arguments)} are given")
        _check_sizes(launch)
        target = self.device.target
        limit = min(max(limit, required), target.max_work_group)
        group = math.prod(launch.local_size or (1,))
        if group > limit:
            raise KernelError(
                f"kernel {launch.kernel} has {group} work-items in a work-group, but {self.device.name} runs at most "
                f"{limit} of this kernel; use a smaller local size"
            )
        # some drivers end the process instead of refusing such a launch
        if local_memory > target.local_memory:
            raise KernelError(
                f"kernel {launch.kernel} uses {local_memory} bytes of local memory, but {self.device.name} has "
                f"{target.local_memory}; use smaller tiles"
            )
        return local_memory

    def enqueue(self, launches: Sequence[BoundLaunch]) -> None:
        """Start launches in order and return at once; KernelError naming the one that cannot start."""
        border.refuse_after_fork()
        ready = launches if isinstance(launches, Launches) else Launches(launches)
        with self._lock:
            most = self._loaded_at_most
            if most is not None and self._bound > most and ready is launches and not ready.stay_loaded:
                self._start_and_hold(ready)
            else:
                self._start(ready)

    def _start(self, ready: Launches, start: int = 0, stop: int | None = None) -> None:
        try:
            self._launcher.start(ready.calls[start:stop])
        except LaunchRefused as error:
            raise self._launch_error(error, ready.started[start + error.position]) from error

    def _start_and_hold(self, ready: Launches) -> None:
        """Start launches, and keep their kernels loaded from now on: the driver loads a kernel when it first runs."""
        for at in range(0, len(ready.calls), HELD_AT_ONCE):
            self._start(ready, at, at + HELD_AT_ONCE)
            self.finish()
            self._libraries.hold()
        ready.stay_loaded = True

    def _launch_error(self, error: Exception, launch: BoundLaunch) -> KernelError:
        """The error of a launch, with the context marked as lost where it is."""
        self.lost = self.lost or border.error_code(error) in border.LOST_CODES
        return KernelError(f"kernel {launch.name} cannot be launched: {border.describe(error)}{self._advice()}")

    def finish(self) -> None:
        """Wait until everything enqueued is done; DeviceError if a kernel failed meanwhile."""
        border.refuse_after_fork()
        with self._synchronising("finish the work on the device"):
            self._queue.finish()

    def time(self, launches: Sequence[BoundLaunch], repeats: int, warmup: int = 1) -> list[float]:
        """Seconds for the whole sequence, once per repeat, after `warmup` runs that are not counted.

        On GPUs the sum of the kernels' own times by device events; on CPUs the wall time of launching and waiting,
        which is what a user sees. Short sequences are run several times per sample and the mean is returned.
        """
        border.refuse_after_fork()
        with self._lock, self._synchronising("time kernels"):
            if self.device.kind == "gpu":
                return timing.by_events(self, launches, repeats, warmup)
            return timing.by_clock(self, launches, repeats, warmup)

    def profile(self, launches: Sequence[BoundLaunch]) -> list[float]:
        """Seconds per launch by device events, from one run; 0.0 for a launch without work-items."""
        border.refuse_after_fork()
        with self._lock, self._synchronising("profile kernels"):
            return timing.each(self, launches)

    def enqueue_profiled(self, launches: Sequence[BoundLaunch]) -> list[Any]:
        """Start launches on the profiling queue; their events (None for those without work-items)."""
        enqueue = border.opencl()._cl.enqueue_nd_range_kernel
        events: list[Any] = []
        for launch in launches:
            try:
                if launch.is_empty:
                    events.append(None)
                    continue
                sizes = launch.global_size, launch.local_size
                events.append(enqueue(self._profiling_queue, launch.kernel, *sizes, None, None, False, False))
            except self._error as error:
                raise self._launch_error(error, launch) from error
        return events

    def finish_profiled(self) -> None:
        """Wait for the profiling queue."""
        self._profiling_queue.finish()

    @contextmanager
    def _synchronising(self, action: str) -> Iterator[None]:
        """Errors of calls that may wait as DeviceError; a fault of an earlier kernel shows up at these."""
        try:
            yield
        except self._error as error:
            code = border.error_code(error)
            fault = code in border.LOST_CODES or (code == border.OUT_OF_RESOURCES and self.device.kind == "gpu")
            self.lost = self.lost or fault
            raise DeviceError(f"cannot {action}: {border.describe(error)}{self._advice()}") from error

    def _advice(self) -> str:
        if not self.lost:
            return ""
        return "; the device stopped after a fault (a kernel left its memory or ran too long), its buffers are lost"


def _check_sizes(launch: Launch) -> None:
    """KernelError for a launch geometry that OpenCL 1.2 does not allow (drivers hang or crash on some of them)."""
    sizes, group = launch.global_size, launch.local_size
    if not 1 <= len(sizes) <= 3 or any(not 0 <= size < 1 << 48 for size in sizes):
        raise KernelError(f"kernel {launch.kernel} has the global size {sizes}; it needs 1 to 3 sizes below 2**48")
    if group is None:
        return
    if len(group) != len(sizes) or any(part < 1 or size % part for size, part in zip(sizes, group, strict=False)):
        raise KernelError(
            f"kernel {launch.kernel} has the global size {sizes}, which the local size {group} does not divide"
        )
