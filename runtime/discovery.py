"""Finding OpenCL devices, naming them and choosing one.

A device's short name ("intel-cpu", "pocl", "nvidia:0") stays the same from run to run; OpenCL's own order does not.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilewright.dsl.target import Target
from tilewright.errors import DeviceError
from tilewright.runtime import border
from tilewright.runtime.processor import processor
from tilewright.runtime.resident import forgetting_loaded
from tilewright.runtime.targets import Driver, compute_capability, driver_of, target_of

if TYPE_CHECKING:
    import pyopencl

INSTALL_COMMAND = "pip install 'tilewright[cpu]'"
_PLATFORM_NOT_FOUND = -1001
_DEVICE_NOT_FOUND = -1


@dataclass(frozen=True)
class Device:
    """An OpenCL device; plain data that may be pickled, compared and used as a key."""

    name: str
    """Stable short name: "intel-cpu", "pocl", "nvidia:0"."""
    vendor: str
    driver: str
    """The driver's version as it says it."""
    identity: str
    """What decides speed (driver kind, model, units, instruction sets, memory), without the driver's version."""
    opencl_name: str
    platform: str
    kind: str
    """"cpu", "gpu" or "accelerator"."""
    opencl_version: str
    compute_units: int
    global_memory: int
    """Bytes."""
    max_allocation: int
    """Bytes of the largest single buffer."""
    extensions: tuple[str, ...]
    target: Target


@dataclass(frozen=True)
class _Found:
    """A device before it has a name."""

    handle: pyopencl.Device
    driver: Driver
    kind: str
    platform: str


_lock = threading.Lock()


def devices() -> tuple[Device, ...]:
    """Every OpenCL device of this machine, best first; the same objects on every call.

    Raises DeviceError, with the command that installs a driver, if there is none.
    """
    border.refuse_after_fork()
    with _lock:
        present = tuple(_inventory())
    if not present:
        raise DeviceError(
            f"no OpenCL device was found; install a driver for the processor with {INSTALL_COMMAND}, "
            "or your graphics card's own, and see 'tilewright doctor'"
        )
    return present


@functools.cache
def _inventory() -> dict[Device, pyopencl.Device]:
    """The devices in order of preference, each with pyopencl's object."""
    with forgetting_loaded():
        return {_describe(each, name): each.handle for name, each in _discover()}


def handle_of(device: Device) -> pyopencl.Device:
    """pyopencl's object for a device of this machine; DeviceError for one that is not here."""
    for present in devices():
        if present.name == device.name:
            return _inventory()[present]
    raise DeviceError(f"the device '{device.name}' is not on this machine; {_listing(devices())}")


def select_device(selector: str | Device | None = None) -> Device:
    """The device meant by a short name, or by any part of a name, platform or vendor, whatever the case.

    None means $TILEWRIGHT_DEVICE, and without it the best one: a GPU before Intel's CPU driver before PoCL. A stem
    ("nvidia") means the first of its devices. Raises DeviceError for an unknown or ambiguous selector.
    """
    if isinstance(selector, Device):
        return selector
    present = devices()
    where = ""
    if selector is None:
        selector = os.environ.get("TILEWRIGHT_DEVICE", "").strip() or None
        where = " (from $TILEWRIGHT_DEVICE)"
    if selector is None:
        return present[0]
    wanted = selector.strip().casefold()
    exact = [device for device in present if wanted in (device.name, device.name.partition(":")[0])]
    if exact:
        return exact[0]
    partly = [device for device in present if wanted and wanted in _searched_text(device)]
    if len(partly) == 1:
        return partly[0]
    if partly:
        names = ", ".join(device.name for device in partly)
        raise DeviceError(f"the device '{selector}'{where} is ambiguous, it fits {names}; use one of these names")
    raise DeviceError(f"there is no device '{selector}'{where}; {_listing(present)}")


def _searched_text(device: Device) -> str:
    return "\n".join((device.name, device.opencl_name, device.platform, device.vendor)).casefold()


def _listing(present: tuple[Device, ...]) -> str:
    described = ", ".join(f"{device.name} ({device.opencl_name})" for device in present)
    return f"there is {described}" if described else "there is none at all"


def _discover() -> list[tuple[str, _Found]]:
    """Named devices, best first."""
    found: list[_Found] = []
    for platform in platforms():
        found.extend(_devices_of(platform))
    groups: dict[str, list[_Found]] = {}
    for each in found:
        groups.setdefault(each.driver.name, []).append(each)
    named: list[tuple[str, _Found]] = []
    for name, group in groups.items():
        if group[0].kind == "cpu":
            # two versions of one CPU driver may be installed: the plain name is the newest one's
            group.sort(key=lambda each: _version(each.handle.driver_version), reverse=True)
        for index, each in enumerate(group):
            plain = index == 0 and each.kind == "cpu"
            named.append((name if plain else f"{name}:{index}", each))
    return sorted(named, key=lambda pair: _preference(pair[1]))


def platforms() -> list[pyopencl.Platform]:
    """All platforms; none where no driver is installed."""
    cl = border.opencl()
    try:
        return list(cl.get_platforms())
    except cl.Error as error:
        if border.error_code(error) == _PLATFORM_NOT_FOUND:
            return []
        raise DeviceError(f"the OpenCL platforms cannot be listed: {border.describe(error)}") from error


def _devices_of(platform: pyopencl.Platform) -> list[_Found]:
    """The usable devices of a platform; a platform that cannot list its own has none."""
    cl = border.opencl()
    found = []
    try:
        handles = platform.get_devices()
    except cl.Error:
        return []
    for handle in handles:
        kind = _kind(int(handle.type))
        name = platform.name.strip()
        if handle.available and handle.compiler_available:
            found.append(_Found(handle, driver_of(name, kind), kind, name))
    return found


def _kind(bits: int) -> str:
    """The kind from OpenCL's device type (a bit field: 2 CPU, 4 GPU, 8 accelerator)."""
    if bits & 4:
        return "gpu"
    return "cpu" if bits & 2 else "accelerator"


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a version text, for ordering."""
    digits = "".join(sign if sign.isdigit() else " " for sign in text)
    return tuple(int(number) for number in digits.split())


def _preference(found: _Found) -> tuple[int, int, bool, int]:
    """Sorts the best device first: GPUs, then by driver, own memory before shared, larger memory first."""
    order = {"gpu": 0, "cpu": 1, "accelerator": 2}[found.kind]
    simulator = 3 if found.driver.name == "oclgrind" else 0
    return (
        order + simulator,
        found.driver.rank,
        bool(found.handle.host_unified_memory),
        -int(found.handle.global_mem_size),
    )


def _describe(found: _Found, name: str) -> Device:
    handle = found.handle
    return Device(
        name=name,
        vendor=handle.vendor.strip(),
        driver=handle.driver_version.strip(),
        identity=_identity(found),
        opencl_name=handle.name.strip(),
        platform=found.platform,
        kind=found.kind,
        opencl_version=handle.version.strip(),
        compute_units=int(handle.max_compute_units),
        global_memory=int(handle.global_mem_size),
        max_allocation=int(handle.max_mem_alloc_size),
        extensions=tuple(sorted(handle.extensions.split())),
        target=target_of(handle, found.driver, found.kind),
    )


def _identity(found: _Found) -> str:
    """`driver kind | model | units | what else decides speed`, equal on machines of one kind."""
    handle = found.handle
    parts = [found.driver.name, " ".join(handle.name.split()), f"{int(handle.max_compute_units)} units"]
    if found.kind == "cpu":
        host = processor()
        parts += [f"model {host.model}"] if host.model else []
        parts += [" ".join(host.features)] if host.features else []
        return " | ".join(parts)
    capability = compute_capability(handle)
    if capability is not None:
        parts.append(f"compute capability {capability[0]}.{capability[1]}")
    # rounded, because the memory that firmware sets aside differs by some megabytes between like cards
    parts.append(f"{round(int(handle.global_mem_size) / (1 << 30))} GiB")
    return " | ".join(parts)
