"""Arrays in a device's memory, for callers: what ops and sessions take and give without a copy to the host."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.dsl.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.runtime.discovery import Device, select_device
from tilewright.runtime.execution import context
from tilewright.runtime.pool import Buffer


class Array:
    """A contiguous array in a device's memory; `asarray` makes one, ops and sessions give others.

    Work on it may still be under way on the device: everything that looks at its elements waits for that. Nothing ever
    changes the elements of an Array, so one may be handed to any number of runs.
    """

    __slots__ = ("_buffer", "_device", "_dtype", "_shape")

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: DType, device: Device) -> None:
        self._buffer = buffer
        self._shape = shape
        self._dtype = dtype
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes."""
        return self._shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type, as NumPy's."""
        return self._dtype.numpy

    @property
    def device(self) -> Device:
        """Where it lies."""
        return self._device

    @property
    def buffer(self) -> Buffer:
        """Its elements in C order, as kernels are given them; read-only."""
        return self._buffer

    def wait(self) -> Array:
        """Wait until the device has finished everything asked of it so far; DeviceError if that failed."""
        context(self._device).finish()
        return self

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in NumPy."""
        return context(self._device).read(self._buffer, self._shape, self._dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("an array in device memory cannot become a NumPy array without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self._shape))
        return f"<tilewright.Array {self._dtype.value}[{sizes}] on {self._device.name}>"


def asarray(x: npt.ArrayLike | Array, device: str | Device | None = None) -> Array:
    """An array in the memory of a device: ``x`` itself if it lies there, else a copy.

    ``device`` is a name, a Device, or None for the default (for an Array: the device it lies on). Raises ShapeError
    for element types that the language lacks, DeviceError for an unknown device.
    """
    if isinstance(x, Array):
        if device is None or select_device(device) == x.device:
            return x
        x = x.numpy()
    host = np.asarray(x)
    dtype = element_type(host.dtype, "the array")
    chosen = select_device(device)
    ctx = context(chosen)
    buffer = ctx.allocate(host.nbytes)
    ctx.write(buffer, host)
    return Array(buffer, host.shape, dtype, chosen)


def element_type(dtype: np.dtype[Any], what: str) -> DType:
    """The language's name of a NumPy type in any byte order; ShapeError, about `what`, if it has none."""
    try:
        return _language_type(dtype)
    except TypeError as error:
        raise ShapeError(f"{what}: {error}") from None


@functools.cache
def _language_type(dtype: np.dtype[Any]) -> DType:
    return DType.from_numpy(dtype.newbyteorder("="))
