"""OpenCL devices: finding them, memory, building and running kernels. The only package that imports pyopencl."""

from tilewright.runtime.cache import CacheUsage, ProgramCache, cache_directory
from tilewright.runtime.context import BoundLaunch, Context, context
from tilewright.runtime.devices import Device, devices, select_device
from tilewright.runtime.pool import Buffer
from tilewright.runtime.programs import Module

__all__ = [
    "BoundLaunch",
    "Buffer",
    "CacheUsage",
    "Context",
    "Device",
    "Module",
    "ProgramCache",
    "cache_directory",
    "context",
    "devices",
    "select_device",
]
