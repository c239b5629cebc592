"""OpenCL devices: finding them, memory, building and running kernels. The only package that imports pyopencl."""

from tilewright.folders import cache_directory
from tilewright.runtime.arrays import Array, asarray, element_type
from tilewright.runtime.builds import Builds, building
from tilewright.runtime.cache import CacheUsage, ProgramCache
from tilewright.runtime.diagnosis import Diagnosis, diagnose
from tilewright.runtime.discovery import Device, devices, select_device
from tilewright.runtime.execution import BoundLaunch, Context, context
from tilewright.runtime.pool import Buffer
from tilewright.runtime.programs import Module
from tilewright.runtime.transfers import Mark
from tilewright.runtime.verification import SelfTest, selftest

__all__ = [
    "Array",
    "BoundLaunch",
    "Buffer",
    "Builds",
    "CacheUsage",
    "Context",
    "Device",
    "Diagnosis",
    "Mark",
    "Module",
    "ProgramCache",
    "SelfTest",
    "asarray",
    "building",
    "cache_directory",
    "context",
    "devices",
    "diagnose",
    "element_type",
    "select_device",
    "selftest",
]
