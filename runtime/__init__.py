"""OpenCL devices: finding them, memory, building and running kernels. The only package that imports pyopencl.

What only a doctor asks for is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tilewright.folders import cache_directory
from tilewright.runtime.arrays import Array, asarray, element_type
from tilewright.runtime.builds import Builds, building
from tilewright.runtime.cache import CacheUsage, ProgramCache
from tilewright.runtime.discovery import Device, devices, select_device
from tilewright.runtime.execution import BoundLaunch, Context, Launches, context
from tilewright.runtime.pool import Buffer
from tilewright.runtime.programs import Module
from tilewright.runtime.transfers import Mark

if TYPE_CHECKING:
    from tilewright.runtime.diagnosis import Diagnosis, diagnose
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
    "Launches",
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

_LATE = {"Diagnosis": "diagnosis", "SelfTest": "verification", "diagnose": "diagnosis", "selftest": "verification"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilewright.runtime.{_LATE[name]}"), name)
