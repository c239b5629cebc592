"""OpenCL devices: finding them, memory, building and running kernels. The only package that imports pyopencl."""

from tilewright.folders import cache_directory
from tilewright.runtime.builds import Builds, building
from tilewright.runtime.cache import CacheUsage, ProgramCache
from tilewright.runtime.diagnosis import Diagnosis, diagnose
from tilewright.runtime.discovery import Device, devices, select_device
from tilewright.runtime.execution import BoundLaunch, Context, context
from tilewright.runtime.pool import Buffer
from tilewright.runtime.programs import Module
from tilewright.runtime.verification import SelfTest, selftest

__all__ = [
    "BoundLaunch",
    "Buffer",
    "Builds",
    "CacheUsage",
    "Context",
    "Device",
    "Diagnosis",
    "Module",
    "ProgramCache",
    "SelfTest",
    "building",
    "cache_directory",
    "context",
    "devices",
    "diagnose",
    "select_device",
    "selftest",
]
