"""Halves in memory for NVIDIA's driver: whole vectors moved at once.

`vloada_half8` promises 16 bytes in one piece, but the driver (580.159) loads the halves one by one, and stores them so.
`prelude(source)` defines what a source calls of that kind by accesses of 4 to 16 bytes to global memory. Between these
and registers the driver's own conversions from and to private memory become instructions without any memory.
"""

from __future__ import annotations

import re

_CALL = re.compile(r"\bv(load|store)a_half(2|4|8)\s*\(")
_INLINE = "static inline __attribute__((always_inline)) "
_PIECES = {2: "uint", 4: "uint2", 8: "uint4"}


def prelude(source: str) -> str:
    """What to put before `source`; '' if it moves no aligned vectors of halves."""
    called = sorted({(match[1], int(match[2])) for match in _CALL.finditer(source)})
    parts = []
    for kind, width in called:
        parts.append(_load(width) if kind == "load" else _store(width))
        parts.append(f"#define v{kind}a_half{width} twn_v{kind}a_half{width}\n")
    return "".join(parts)


def _load(width: int) -> str:
    piece = _PIECES[width]
    return (
        f"{_INLINE}float{width} twn_vloada_half{width}(size_t o, const __global half* p) {{\n"
        f"    const {piece} h = *((const __global {piece}*)p + o); return vload_half{width}(0, (const half*)&h); }}\n"
    )


def _store(width: int) -> str:
    piece = _PIECES[width]
    return (
        f"{_INLINE}void twn_vstorea_half{width}(float{width} x, size_t o, __global half* p) {{\n"
        f"    {piece} h; vstore_half{width}(x, 0, (half*)&h); *((__global {piece}*)p + o) = h; }}\n"
    )
