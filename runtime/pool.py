"""Device memory: buffers from a pool.

Networks and tuners ask for about the same sizes again and again, and drivers take up to milliseconds to make a buffer,
so released memory is kept for the next request of nearly its size.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from typing import TYPE_CHECKING, Any

from tilewright.errors import DeviceError
from tilewright.runtime import border
from tilewright.runtime.resident import return_freed

if TYPE_CHECKING:
    import pyopencl

GRANULE = 256
"""Bytes of which every block is a multiple."""
_WASTE = 8
"""A request takes a block that waits for reuse if it is larger by an eighth at most, or by a few granules."""


def block_size(nbytes: int) -> int:
    """The bytes really allocated for a request."""
    return max(GRANULE, -(-nbytes // GRANULE) * GRANULE)


class Buffer:
    """Device memory of ``nbytes`` bytes; uninitialised when it is new.

    Memory goes back to the pool on `release()` or when the last reference is gone, and launches that were enqueued
    before that still see it: the queue runs in order.
    """

    __slots__ = ("__weakref__", "_block", "_reuse", "base", "handle", "nbytes", "offset", "pool")

    def __init__(
        self,
        handle: pyopencl.Buffer,
        nbytes: int,
        pool: Pool,
        block: int,
        base: Buffer | None = None,
        offset: int = 0,
        reuse: bool = True,
    ) -> None:
        self.handle: pyopencl.Buffer | None = handle
        self.nbytes = nbytes
        self.base = base
        """The buffer of which this one is a view, else None."""
        self.offset = offset
        """Where this view starts in its base, in bytes."""
        self.pool = pool
        """Where its memory is from, and goes back to."""
        self._block = block
        self._reuse = reuse

    @property
    def memory(self) -> pyopencl.Buffer:
        """OpenCL's object; DeviceError after `release()`."""
        root = self if self.base is None else self.base
        if self.handle is None or root.handle is None:
            raise DeviceError(f"a buffer of {self.nbytes} bytes was used after its release")
        return self.handle

    def release(self) -> None:
        """Give the memory back; a second call does nothing. A view gives back nothing, its base does."""
        handle, self.handle = self.handle, None
        if handle is not None and self.base is None:
            self.pool.take_back(handle, self._block, self._reuse)

    def __del__(self) -> None:
        # a failed constructor leaves no handle
        if getattr(self, "handle", None) is not None:
            self.release()

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes{'' if self.base is None else f' at {self.offset} of another'}>"


class Pool:
    """Buffers of one device. Safe to use from several threads.

    ``limit`` bounds the bytes kept for reuse (not those in use).
    """

    def __init__(self, context: pyopencl.Context, name: str, global_memory: int, max_allocation: int) -> None:
        self._context = context
        self._name = name
        self._global_memory = global_memory
        self._max_allocation = max_allocation
        self.limit = global_memory // 16
        self._lock = threading.Lock()
        self._free: dict[int, list[pyopencl.Buffer]] = {}
        self._sizes: list[int] = []
        """The keys of `_free` in order."""
        # `__del__` may run at any point, also while this thread holds the lock, so it only appends here (atomic)
        self._returned: deque[tuple[Any, int, bool]] = deque()
        self._kept = 0
        self._allocated = 0

    @property
    def kept(self) -> int:
        """Bytes that wait for reuse."""
        with self._lock:
            self._collect()
            return self._kept

    @property
    def in_use(self) -> int:
        """Bytes in buffers that are alive."""
        with self._lock:
            self._collect()
            return self._allocated - self._kept

    def allocate(self, nbytes: int, reuse: bool = True) -> Buffer:
        """A buffer of `nbytes` bytes (0 is allowed); DeviceError naming needed and available bytes if impossible.

        ``reuse`` says whether its memory may serve others when it is released.
        """
        if nbytes < 0:
            raise DeviceError(f"a buffer cannot have {nbytes} bytes")
        if nbytes > self._max_allocation:
            raise DeviceError(
                f"{nbytes} bytes are needed in one buffer, but {self._name} allows {self._max_allocation} bytes; "
                "use smaller tensors or another device"
            )
        block = min(block_size(nbytes), max(self._max_allocation, GRANULE))
        with self._lock:
            self._collect()
            found = self._fitting(block)
            if found is not None:
                self._kept -= found
                return Buffer(self._taken(found), nbytes, self, found, reuse=reuse)
            handle = self._create(block)
            self._allocated += block
        return Buffer(handle, nbytes, self, block, reuse=reuse)

    def trim(self) -> int:
        """Hand everything that waits for reuse back to the driver; the number of bytes."""
        with self._lock:
            self._collect()
            freed = self._drop()
        return_freed()  # drivers of CPUs take memory from the heap
        return freed

    def take_back(self, handle: pyopencl.Buffer, block: int, reuse: bool = True) -> None:
        """Accept the memory of a released buffer, to be used again or handed back to the driver."""
        # In a forked child the list only keeps the object alive: releasing it would call the driver, which hangs.
        self._returned.append((handle, block, reuse))

    def _fitting(self, block: int) -> int | None:
        """The size of the smallest block that waits for reuse and is not much larger than `block`."""
        at = bisect_left(self._sizes, block)
        if at == len(self._sizes) or self._sizes[at] > block + max(block // _WASTE, 4 * GRANULE):
            return None
        return self._sizes[at]

    def _taken(self, size: int) -> pyopencl.Buffer:
        """A block of this size, which waits for reuse no longer."""
        handles = self._free[size]
        handle = handles.pop()
        if not handles:
            del self._free[size]
            del self._sizes[bisect_left(self._sizes, size)]
        return handle

    def _collect(self) -> None:
        """Sort returned blocks into the free lists, and let go of those above the limit or not to be used again."""
        while self._returned:  # taken from here only, with the lock held
            handle, block, reuse = self._returned.popleft()
            if not reuse or self._kept + block > self.limit:
                handle.release()
                self._allocated -= block
            else:
                if block not in self._free:
                    self._free[block] = []
                    insort(self._sizes, block)
                self._free[block].append(handle)
                self._kept += block

    def _drop(self) -> int:
        freed = self._kept
        for handles in self._free.values():
            for handle in handles:
                handle.release()
        self._free.clear()
        self._sizes.clear()
        self._allocated -= freed
        self._kept = 0
        return freed

    def _create(self, block: int) -> pyopencl.Buffer:
        """Memory from the driver; once more without what is kept for reuse if it does not suffice."""
        # CPU drivers promise more than there is and the system ends the process when it is touched: count ourselves
        if self._allocated + block > self._global_memory:
            self._drop()
        if self._allocated + block > self._global_memory:
            raise self._exhausted(block, "")
        cl = border.opencl()
        for last in (False, True):
            try:
                handle: pyopencl.Buffer = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, block)
                return handle
            except cl.Error as error:
                if last:
                    raise self._exhausted(block, f" ({border.describe(error)})") from error
                self._drop()
        raise AssertionError("unreachable")

    def _exhausted(self, block: int, reason: str) -> DeviceError:
        available = max(0, self._global_memory - self._allocated)
        return DeviceError(
            f"out of memory on {self._name}: {block} bytes are needed and at most {available} of "
            f"{self._global_memory} bytes are available{reason}; use a smaller batch or release what is not needed"
        )
