"""Why a driver is found or not: what `tilewright doctor` prints.

Every driver library is loaded and asked for its platforms in a process of its own first, because a broken one may
end the process. If one does, this process leaves OpenCL alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import DeviceError
from tilewright.runtime import icd
from tilewright.runtime.cache import CacheUsage, ProgramCache
from tilewright.runtime.discovery import INSTALL_COMMAND, Device, devices, handle_of, platforms

_PROBE_SECONDS = 30
# What a loader does with a driver's library: open it, find its entry, count its platforms.
_PROBE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
find = library.clGetExtensionFunctionAddress
find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
address = find(b"clIcdGetPlatformIDsKHR")
if not address:
    sys.exit("it has no clIcdGetPlatformIDsKHR")
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint))
count = ctypes.c_uint(0)
status = kind(address)(0, None, ctypes.byref(count))
if status or not count.value:
    sys.exit(f"it offers no platform (status {status})")
"""


@dataclass(frozen=True)
class DriverEntry:
    """An .icd file and the library it names."""

    path: str
    library: str
    works: bool
    error: str
    """'' or the loader's words on why the library cannot be used."""
    crashes: bool
    """True if loading it ended the process that tried."""


@dataclass(frozen=True)
class PlatformInfo:
    """One OpenCL platform."""

    name: str
    vendor: str
    version: str
    devices: tuple[str, ...]
    """Short names of its devices."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything known about the OpenCL drivers here."""

    pyopencl: str | None
    """Version of pyopencl, None if it is not installed."""
    packages: tuple[tuple[str, str | None], ...]
    """Driver packages of pip that matter, each with its version or None."""
    vendors_variable: str | None
    """OCL_ICD_VENDORS as it is now."""
    vendors_origin: str
    """Who set OCL_ICD_VENDORS: "user", "tilewright" or "unset"."""
    folders: tuple[str, ...]
    """Folders in which .icd files are searched."""
    entries: tuple[DriverEntry, ...]
    platforms: tuple[PlatformInfo, ...]
    devices: tuple[Device, ...]
    cache: CacheUsage
    hints: tuple[str, ...]
    """What to do, one sentence each; empty if nothing is wrong."""

    @property
    def broken(self) -> tuple[DriverEntry, ...]:
        """The entries whose library cannot be used."""
        return tuple(entry for entry in self.entries if not entry.works)


def diagnose() -> Diagnosis:
    """Look at everything; raises nothing of ours. Takes about a second per driver."""
    from concurrent.futures import ThreadPoolExecutor

    icd.register_drivers()
    folders = search_folders()
    with ThreadPoolExecutor(max_workers=4) as workers:
        found = tuple(workers.map(probe, [path for folder in folders for path in icd.entries(folder)]))
    crashing = [entry for entry in found if entry.crashes]
    present: tuple[Device, ...] = ()
    problem = ""
    listed: tuple[PlatformInfo, ...] = ()
    if not crashing:
        try:
            present = devices()
            listed = _platforms()
        except DeviceError as error:
            problem = str(error)
    variable = icd.vendors_variable()
    origin = "unset" if variable is None else "tilewright" if icd.is_ours(variable) else "user"
    return Diagnosis(
        pyopencl=icd.installed_version("pyopencl"),
        packages=tuple((name, icd.installed_version(name)) for name in _PACKAGES),
        vendors_variable=variable,
        vendors_origin=origin,
        folders=tuple(str(folder) for folder in folders),
        entries=found,
        platforms=listed,
        devices=present,
        cache=ProgramCache().usage(),
        hints=tuple(_hints(found, present, problem, origin)),
    )


_PACKAGES = ("pocl-binary-distribution", icd.INTEL_PACKAGE, icd.INTEL_RUNTIME_PACKAGE)


def search_folders() -> tuple[Path, ...]:
    """Where the loader looks: OCL_ICD_VENDORS or else /etc/OpenCL/vendors, then the folder inside pyopencl's wheel."""
    variable = icd.vendors_variable()
    folders = [Path(variable) if variable else icd.SYSTEM_FOLDER]
    wheel = _pyopencl_folder()
    if wheel is not None:
        folders.append(wheel / ".libs")
    return tuple(folders)


def _pyopencl_folder() -> Path | None:
    """pyopencl's folder, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("pyopencl")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def probe(path: Path) -> DriverEntry:
    """Load the library that an .icd file names, in another process."""
    import signal
    import subprocess

    library = icd.read_entry(path)
    if not library:
        return DriverEntry(str(path), "", False, "the file is empty or cannot be read", False)
    beside = path.parent / library  # pyopencl's wheel names PoCL's library relative to its file
    command = [sys.executable, "-c", _PROBE, str(beside) if beside.is_file() else library]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return DriverEntry(str(path), library, False, f"loading it takes longer than {_PROBE_SECONDS} s", True)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return DriverEntry(str(path), library, False, f"loading it ends the process ({name})", True)
    lines = done.stderr.strip().splitlines()
    error = (lines[-1].removeprefix("OSError: ") if lines else "unknown error") if done.returncode else ""
    return DriverEntry(str(path), library, done.returncode == 0, error, False)


def _platforms() -> tuple[PlatformInfo, ...]:
    """Every platform; two drivers of one name are two platforms."""
    found = []
    present = platforms()
    here = [(handle_of(device).platform, device.name) for device in devices()] if present else []
    for platform in present:
        names = tuple(name for owner, name in here if owner == platform)
        found.append(PlatformInfo(platform.name.strip(), platform.vendor.strip(), platform.version.strip(), names))
    return tuple(found)


def _hints(entries: tuple[DriverEntry, ...], present: tuple[Device, ...], problem: str, origin: str) -> list[str]:
    """What to do about what was found."""
    hints = []
    for entry in entries:
        if entry.crashes:
            hints.append(f"{entry.path}: {entry.error}; remove this file or set OCL_ICD_VENDORS to a folder without it")
        elif not entry.works:
            named = entry.library or "nothing"
            hints.append(f"{entry.path} names {named}: {entry.error}; reinstall that driver or remove the file")
    hints += _intel_hints(present, origin)
    if icd.installed_version("pyopencl") is None:
        hints.append("pyopencl is not installed; run pip install pyopencl")
    if problem and not present:
        hints.append(problem)
    elif not present and not hints:
        hints.append(f"no device was found; run {INSTALL_COMMAND}")
    return hints


def _intel_hints(present: tuple[Device, ...], origin: str) -> list[str]:
    """Why Intel's driver from PyPI does not show up."""
    if icd.intel_library() is None or any(device.name == "intel-cpu" for device in present):
        return []
    if icd.installed_version(icd.INTEL_RUNTIME_PACKAGE) is None:
        return [
            f"{icd.INTEL_PACKAGE} is installed, but not {icd.INTEL_RUNTIME_PACKAGE}, without which it offers no "
            f"device; run pip install {icd.INTEL_RUNTIME_PACKAGE}"
        ]
    if origin == "user":
        return [
            f"{icd.INTEL_PACKAGE} is installed, but OCL_ICD_VENDORS, which you have set, does not name it; "
            "unset it, or add a file with the path of its library there"
        ]
    return []
