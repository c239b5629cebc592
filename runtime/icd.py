"""Registering OpenCL drivers that were installed with pip.

An OpenCL loader finds a driver through a text file NAME.icd that holds the path of the driver's library. pyopencl's
wheel finds PoCL's by itself. The wheel of Intel's CPU driver installs none that fits, so we write one into a folder
of ours and name that folder in OCL_ICD_VENDORS. Such a folder replaces /etc/OpenCL/vendors, hence the entries of
that one are carried over.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tilewright.folders import cache_directory

SYSTEM_FOLDER = Path("/etc/OpenCL/vendors")
INTEL_PACKAGE = "intel-opencl-rt"
INTEL_RUNTIME_PACKAGE = "intel-cmplr-lib-rt"
INTEL_LIBRARY = "libintelocl.so"
OUR_ENTRY = "tilewright-intel-cpu.icd"


def vendors_variable() -> str | None:
    """The value of OCL_ICD_VENDORS, None where it is unset or empty."""
    return os.environ.get("OCL_ICD_VENDORS") or None


def is_ours(folder: str | None) -> bool:
    """True for a value of OCL_ICD_VENDORS that `register_drivers` made."""
    return folder is not None and (Path(folder) / OUR_ENTRY).is_file()


def installed_version(package: str) -> str | None:
    """The version of an installed Python package, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def intel_library() -> Path | None:
    """Intel's CPU driver as pip installed it, or None."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        installed = files(INTEL_PACKAGE) or []
    except PackageNotFoundError:
        installed = []
    candidates = [Path(str(file.locate())) for file in installed if file.name == INTEL_LIBRARY]
    candidates.append(Path(sys.prefix) / "lib" / INTEL_LIBRARY)
    for candidate in candidates:
        if candidate.is_file():
            return Path(os.path.normpath(candidate))
    return None


def read_entry(path: Path) -> str:
    """The library an .icd file names ('' if it cannot be read)."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def entries(folder: Path) -> tuple[Path, ...]:
    """The .icd files of a folder in order of their names; none if it cannot be read."""
    try:
        return tuple(sorted(path for path in folder.iterdir() if path.suffix == ".icd"))
    except OSError:
        return ()


def register_drivers() -> None:
    """Make the drivers that pip installed visible to the OpenCL loader; call it before the first OpenCL call.

    Leaves everything alone where the user has set OCL_ICD_VENDORS, where Intel's driver is not installed with pip,
    or where the system already offers an Intel CPU driver (two copies in one process would collide).
    """
    _give_pocl_a_folder()
    if vendors_variable() is not None or not sys.platform.startswith("linux"):
        return
    library = intel_library()
    system = {path.name: read_entry(path) for path in entries(SYSTEM_FOLDER)}
    if library is None or any(Path(named).name == INTEL_LIBRARY for named in system.values()):
        return
    os.environ["OCL_ICD_VENDORS"] = str(_vendors_folder({**system, OUR_ENTRY: str(library)}))


def _vendors_folder(wanted: dict[str, str]) -> Path:
    """A folder with these .icd files (name -> library), made once per content and never changed afterwards."""
    text = "".join(f"{name}\n{library}\n" for name, library in sorted(wanted.items()))
    parent = cache_directory() / "vendors"
    folder = parent / hashlib.sha256(text.encode()).hexdigest()[:16]
    if all(read_entry(folder / name) == library for name, library in wanted.items()):
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent))
    except OSError:  # the cache folder cannot be written: a folder for this process alone
        return _write_entries(_temporary_folder("tilewright-vendors-"), wanted)
    _write_entries(temporary, wanted)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster, or somebody damaged the folder: repair what differs
        shutil.rmtree(temporary, ignore_errors=True)
        damaged = {name: library for name, library in wanted.items() if read_entry(folder / name) != library}
        _write_entries(folder, damaged)
    return folder


def _temporary_folder(prefix: str) -> Path:
    """A folder that is removed when this process ends (not when a forked child of it does)."""
    folder, owner = Path(tempfile.mkdtemp(prefix=prefix)), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def _write_entries(folder: Path, wanted: dict[str, str]) -> Path:
    for name, library in wanted.items():
        (folder / name).write_text(library + "\n")
    return folder


def _give_pocl_a_folder() -> None:
    """PoCL offers no device where its own cache folder cannot be made: give it a temporary one there."""
    if "POCL_CACHE_DIR" in os.environ:
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    existing = base / "pocl"
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing):  # os.access() says yes to root even in /proc
            pass
    except OSError:
        os.environ["POCL_CACHE_DIR"] = str(_temporary_folder("tilewright-pocl-"))
