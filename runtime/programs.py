"""Building programs: from the driver's binary on disk where there is one, else from source."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from tilewright.errors import KernelError
from tilewright.runtime import border
from tilewright.runtime.cache import ProgramCache
from tilewright.runtime.nvidia_wgmma import needs_retargeting, retargeted

if TYPE_CHECKING:
    import pyopencl

_LOG_LINES = 12
_LINE_LENGTH = 240


class Module:
    """A built program."""

    def __init__(self, program: pyopencl._cl._Program, key: str, from_disk: bool) -> None:
        self._program = program
        self.key = key
        self.from_disk = from_disk
        """True if it was loaded from a binary of an earlier run."""

    def kernel(self, name: str) -> pyopencl.Kernel:
        """A new kernel object, with arguments of its own; KernelError if the program has none of that name."""
        with border.guard(f"find kernel {name} in its program", KernelError):
            kernel: pyopencl.Kernel = border.opencl().Kernel(self._program, name)
        return kernel


def build_program(
    context: pyopencl.Context,
    device: pyopencl.Device,
    source: str,
    options: str,
    key: str,
    cache: ProgramCache,
    keep: bool,
) -> Module:
    """Load the binary stored under `key`, else compile `source` and store its binary if `keep`.

    pyopencl's own `Program` is passed by: it has a second cache, adds an include folder to the options and turns
    compiler remarks into Python warnings. Raises KernelError.
    """
    low = border.opencl()._cl
    binary = cache.read(key)
    if binary is not None:
        program = _load(context, device, binary, options)
        if program is not None:
            return Module(program, key, True)
        cache.remove(key)  # a driver that was changed without changing its version
    with border.guard("hand a program to the driver", KernelError):
        program = low._Program(context, source)
    try:
        program._build(options.encode(), [device])
    except border.opencl().Error as error:
        raise KernelError(_failure(program, device, source, border.describe(error))) from None
    if needs_retargeting(source):
        program, binary = _retarget(program, context, device, source, options)
        if keep:
            cache.write(key, binary)
    elif keep:
        _store(program, cache, key)
    return Module(program, key, False)


def _retarget(
    program: pyopencl._cl._Program, context: pyopencl.Context, device: pyopencl.Device, source: str, options: str
) -> tuple[pyopencl._cl._Program, bytes]:
    """The program with the instructions that the compiler took for comments, and its binary; KernelError without."""
    found = _binary(program)
    binary = None if found is None else retargeted(found)
    if binary is None:
        names = ", ".join(kernel_names(source))
        raise KernelError(
            f"kernel {names} needs instructions that {device.name.strip()} has no compiler for: the driver's binary is "
            f"not the PTX text that they could be put into; choose another family"
        )
    low = border.opencl()._cl
    with border.guard("hand a program to the driver", KernelError):
        ready = low._Program(context, [device], [binary])
    try:
        ready._build(options.encode(), [device])
    except border.opencl().Error as error:
        raise KernelError(_failure(ready, device, source, border.describe(error))) from None
    return ready, binary


def _load(
    context: pyopencl.Context, device: pyopencl.Device, binary: bytes, options: str
) -> pyopencl._cl._Program | None:
    """The program of a binary, or None if the driver refuses it."""
    cl = border.opencl()
    try:
        program: pyopencl._cl._Program = cl._cl._Program(context, [device], [binary])
        program._build(options.encode(), [device])
    except cl.Error:
        return None
    return program


def _store(program: pyopencl._cl._Program, cache: ProgramCache, key: str) -> None:
    """Keep the binary; a driver that gives none is no error."""
    binary = _binary(program)
    if binary is not None:
        cache.write(key, binary)


def _binary(program: pyopencl._cl._Program) -> bytes | None:
    """The driver's binary of a built program for one device, or None if it gives none."""
    cl = border.opencl()
    try:
        binaries = cast("list[bytes]", program.get_info(cl.program_info.BINARIES))
    except cl.Error:
        return None
    return binaries[0] if len(binaries) == 1 and binaries[0] else None


def _failure(program: pyopencl._cl._Program, device: pyopencl.Device, source: str, status: str) -> str:
    """What to say about a build that failed: the kernels' names and the log's lines that matter."""
    cl = border.opencl()
    try:
        text = str(program.get_build_info(device, cl.program_build_info.LOG) or "")
    except cl.Error:
        text = ""
    names = ", ".join(kernel_names(source)) or "without a name"
    log = trim_log(text)
    return f"kernel {names} does not compile on {device.name.strip()} ({status})" + (f":\n{log}" if log else "")


def kernel_names(source: str) -> tuple[str, ...]:
    """The names of the `__kernel` functions in a source, in order."""
    return tuple(re.findall(r"\b(?:__)?kernel\s+(?:__attribute__\s*\(\(.*?\)\)\s*)*void\s+(\w+)", source, re.DOTALL))


def trim_log(log: str) -> str:
    """The first lines of a build log that speak of errors, each with the two that follow (code and caret)."""
    lines = [line.rstrip() for line in log.replace("\0", "").splitlines() if line.strip()]
    wanted: list[str] = []
    rest = 0
    for line in lines:
        rest = 3 if re.search(r"\berror\b", line, re.IGNORECASE) else rest
        if rest > 0:
            wanted.append(line)
            rest -= 1
    chosen = (wanted or lines)[:_LOG_LINES]
    return "\n".join(line[:_LINE_LENGTH] for line in chosen)
