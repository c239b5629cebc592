"""What each driver can do beyond what OpenCL reports: the only place that asks which vendor a device is from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilewright.dsl.matrix import MatrixUnit
from tilewright.dsl.target import Handoff, Shape, Target
from tilewright.runtime import halves
from tilewright.runtime.nvidia import handoff, matrix_unit
from tilewright.runtime.prelude import prefetching, prelude
from tilewright.runtime.processor import Processor, processor

if TYPE_CHECKING:
    import pyopencl

# Bytes of shared memory a block may use, per compute capability (CUDA C Programming Guide, technical specifications).
# OpenCL always reports 48 KiB, but the driver accepts `__local` arrays up to these if they are declared in the kernel.
_NVIDIA_LOCAL_MEMORY = {
    (7, 0): 96 << 10, (7, 2): 96 << 10, (7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10,
    (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10, (12, 0): 99 << 10, (12, 1): 99 << 10,
}  # fmt: skip


@dataclass(frozen=True)
class Driver:
    """One OpenCL implementation.

    ``name`` is the stem of its devices' short names. ``rank`` orders the default choice among devices of one kind,
    smallest first.
    """

    name: str
    platform: str
    """Part of the platform's name, in lower case."""
    kinds: tuple[str, ...]
    rank: int


# Searched from the top: drivers that serve other vendors' hardware come before the vendors.
_DRIVERS = (
    Driver("oclgrind", "oclgrind", ("cpu", "gpu", "accelerator"), 9),
    Driver("pocl", "portable computing language", ("cpu",), 2),
    Driver("pocl-gpu", "portable computing language", ("gpu", "accelerator"), 5),
    Driver("rusticl", "rusticl", ("cpu", "gpu", "accelerator"), 4),
    Driver("clover", "clover", ("cpu", "gpu", "accelerator"), 8),
    Driver("nvidia", "nvidia", ("gpu",), 0),
    Driver("amd", "amd", ("gpu",), 0),
    Driver("amd-cpu", "amd", ("cpu",), 3),
    Driver("intel-cpu", "intel", ("cpu",), 1),
    Driver("intel-gpu", "intel", ("gpu",), 1),
    Driver("intel-fpga", "intel", ("accelerator",), 9),
    Driver("apple", "apple", ("gpu",), 0),
    Driver("apple-cpu", "apple", ("cpu",), 3),
    Driver("mali", "arm", ("gpu",), 1),
    Driver("adreno", "qualcomm", ("gpu",), 1),
    Driver("powervr", "powervr", ("gpu",), 1),
)


def driver_of(platform: str, kind: str) -> Driver:
    """The driver behind a platform's name; an unknown one is named after its platform."""
    lowered = platform.lower()
    for driver in _DRIVERS:
        if driver.platform in lowered and kind in driver.kinds:
            return driver
    words = "".join(sign if sign.isalnum() else " " for sign in lowered).split()
    stem = "-".join(word for word in words if word not in ("opencl", "platform", "r", "tm"))[:24].strip("-")
    return Driver(f"{stem or 'unknown'}-{kind}", lowered, (kind,), 6)


def compute_capability(device: pyopencl.Device) -> tuple[int, int] | None:
    """NVIDIA's (major, minor), or None for another vendor's device."""
    if "cl_nv_device_attribute_query" not in device.extensions:
        return None
    return int(device.compute_capability_major_nv), int(device.compute_capability_minor_nv)


def target_of(device: pyopencl.Device, driver: Driver, kind: str) -> Target:
    """What the generator is told about a device."""
    extensions = set(device.extensions.split())
    host = processor()
    shape = Shape.CPU if kind == "cpu" else Shape.GPU
    return Target(
        shape=shape,
        compute_units=int(device.max_compute_units),
        vector_bytes=_vector_bytes(device, host) if shape is Shape.CPU else 16,
        vector_registers=(host.vector_registers or 16) if shape is Shape.CPU else 64,
        max_work_group=int(device.max_work_group_size),
        local_memory=_local_memory(device),
        has_real_local_memory=shape is Shape.GPU and int(device.local_mem_type) == 1,
        sub_group=_sub_group(device, driver, extensions) if shape is Shape.GPU else 1,
        fma=_fma(driver),
        has_f16="cl_khr_fp16" in extensions,
        has_f64="cl_khr_fp64" in extensions,
        l1_bytes=(shape is Shape.CPU and host.l1_bytes) or 32 << 10,
        l2_bytes=(shape is Shape.CPU and host.l2_bytes) or 512 << 10,
        streaming_stores=driver.name in ("pocl", "intel-cpu"),
        # NVIDIA's exp2 scales its argument around the instruction, for results below the normal numbers.
        exp2="native_exp2" if driver.name == "nvidia" else "exp2",
        matrix=_matrix_unit(device),
        handoff=_handoff(device),
        # No fast-math: NaN, infinities and signed zeros follow IEEE 754. Contraction of a*b+c is on by default.
        # PoCL writes the number of warnings to stderr, hence -w.
        build_options="-cl-std=CL1.2 -w" if _is_pocl(driver) else "-cl-std=CL1.2",
    )


def source_prelude(device_name: str, source: str) -> str:
    """What a driver needs before a source.

    PoCL calls its built-in functions and never inlines them; NVIDIA's `vloada_half8` loads one half after the other;
    Intel's CPU compiler makes vectors of work-items even where a work-group has a single one.
    """
    driver = device_name.partition(":")[0]
    if driver == "nvidia":
        return halves.prelude(source)
    if driver == "intel-cpu":
        return _single_items(source) + prefetching(source)
    return prelude(source) if driver == "pocl" else ""


def _single_items(source: str) -> str:
    """For Intel's CPU driver: leave kernels alone whose work-groups have one work-item.

    Its vectoriser ends with a fault on some that prefetch (seen in 2026.22.10).
    """
    groups = set(re.findall(r"reqd_work_group_size\(([^)]*)\)", source))
    alone = groups == {"1, 1, 1"}
    return "#define __kernel __attribute__((intel_vec_len_hint(1))) __kernel\n#line 1\n" if alone else ""


def _vector_bytes(device: pyopencl.Device, host: Processor) -> int:
    """The register width from the processor's flags; the driver's own word where the system gives no flags."""
    if host.vector_bytes:
        return host.vector_bytes
    return max(16, min(64, 4 * int(device.native_vector_width_float)))


def _local_memory(device: pyopencl.Device) -> int:
    reported = int(device.local_mem_size)
    capability = compute_capability(device)
    if capability is None:
        return reported
    return max(reported, _NVIDIA_LOCAL_MEMORY.get(capability, reported))


def _matrix_unit(device: pyopencl.Device) -> MatrixUnit | None:
    capability = compute_capability(device)
    return None if capability is None else matrix_unit(capability)


def _handoff(device: pyopencl.Device) -> Handoff | None:
    capability = compute_capability(device)
    return None if capability is None else handoff(capability)


def _sub_group(device: pyopencl.Device, driver: Driver, extensions: set[str]) -> int:
    """Work-items in lockstep, from the vendor's query where there is one."""
    if "cl_nv_device_attribute_query" in extensions:
        return int(device.warp_size_nv)
    if "cl_amd_device_attribute_query" in extensions:
        # RDNA runs 32 or 64 items together and says 32 here, GCN and CDNA say 64
        return int(device.wavefront_width_amd)
    # (guess) Adreno's half wave and Intel's usual SIMD width; 32 suits Apple and is harmless elsewhere
    return {"adreno": 64, "intel-gpu": 16, "mali": 16}.get(driver.name, 32)


def _fma(driver: Driver) -> str:
    """How to spell a multiply-add.

    PoCL turns fma() into a call of a library function, 2-4 times slower than an instruction, but contracts a*b+c.
    Intel's and NVIDIA's compilers turn fma() into the instruction, which a*b+c becomes only where they choose to.
    """
    return "a * b + c" if _is_pocl(driver) else "fma(a, b, c)"


def _is_pocl(driver: Driver) -> bool:
    return driver.name.startswith("pocl")


def builds_at_once(driver: Driver) -> bool:
    """Whether threads may build programs, or load their binaries, at the same time.

    Intel's driver for CPUs (2026.22) crashes or hangs for ever now and then where one thread builds from source while
    another loads binaries; PoCL compiles one program at a time anyway.
    """
    return driver.name not in ("intel-cpu", "pocl")


def splits_buffers(driver: Driver) -> bool:
    """Whether overlapping sub-buffers are safe.

    NVIDIA's driver (580.159) ends the process when overlapping sub-buffers of one buffer are released, in
    clReleaseMemObject; sub-buffers that lie apart went through 37,000 rounds of the same.
    """
    return driver.name != "nvidia"


def kernels_kept_loaded(driver: Driver) -> int | None:
    """How many kernels a process has loaded at most before the driver loads others again and again; None: any number.

    PoCL 3.0 counts among them, for ever, each kernel that it compiled because its program's binary was asked for.
    """
    return 128 if driver.name == "pocl" else None
