"""What the host's processor can do, for CPU devices: instruction sets, registers and caches (from /proc and /sys)."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

# The instruction sets that change how fast generated code can be; all others are left out of a device's identity.
_SPEED_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    "v", "zvfh",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """The host's processor. Numbers are 0 and texts '' where the system does not tell."""

    vendor: str
    model: str
    """Family/model/stepping numbers on x86, implementer/part on ARM: what separates processors of one name."""
    features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int


@functools.cache
def processor() -> Processor:
    """Read the host's processor once."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    return parse(text, platform.machine(), cache_size(1), cache_size(2))


def parse(cpuinfo: str, machine: str, l1_bytes: int, l2_bytes: int) -> Processor:
    """A Processor from the text of /proc/cpuinfo (first processor) and the machine's name ('x86_64', 'aarch64')."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    numbers = [fields.get(key, "") for key in ("cpu family", "model", "stepping")]
    if not any(numbers):
        numbers = [fields.get(key, "") for key in ("CPU implementer", "CPU part", "CPU variant")]
    width, registers = _vectors(flags, machine)
    return Processor(
        vendor=fields.get("vendor_id", ""),
        model="/".join(numbers).strip("/"),
        features=tuple(name for name in _SPEED_FEATURES if name in flags),
        vector_bytes=width,
        vector_registers=registers,
        l1_bytes=l1_bytes,
        l2_bytes=l2_bytes,
    )


def _vectors(flags: set[str], machine: str) -> tuple[int, int]:
    """Bytes of a vector register and their number; (0, 0) where the flags are unknown."""
    if "avx512f" in flags:
        return 64, 32
    if "avx" in flags:
        return 32, 16
    if machine.lower() in ("aarch64", "arm64") or "asimd" in flags:
        return 16, 32
    if machine.lower() in ("x86_64", "amd64") or "sse2" in flags:
        return 16, 16
    return 0, 0


def cache_size(level: int, folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the first core's data cache of a level (1 or 2), 0 where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in sorted(folder.glob("index*")):
        try:
            found, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if found == str(level) and kind in ("Data", "Unified") and size[:-1].isdigit():
            return int(size[:-1]) * units.get(size[-1], 1)
    return 0
