"""The element types of the language and how each is spelled in NumPy and in OpenCL C."""

from __future__ import annotations

import functools
from enum import Enum
from typing import cast

import numpy as np


class DType(Enum):
    """An element type; the value is its name in the language."""

    BOOL = "bool"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    U8 = "u8"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype that has the same bytes (bf16: ml_dtypes' extension type)."""
        return _numpy(self)

    @property
    def opencl(self) -> str:
        """The OpenCL C type that has the same bytes (bool is stored as uchar, bf16 as ushort)."""
        return _OPENCL[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _ITEMSIZE[self]

    @property
    def is_float(self) -> bool:
        """True for f16, bf16, f32 and f64."""
        return self in (DType.F16, DType.BF16, DType.F32, DType.F64)

    @property
    def is_unsigned(self) -> bool:
        """True for u8, u16, u32 and u64."""
        return self.value.startswith("u")

    @property
    def accumulator(self) -> DType:
        """The type in which sums and products of this type are accumulated."""
        if self in (DType.F16, DType.BF16):
            return DType.F32
        if self in (DType.BOOL, DType.I8, DType.I16, DType.U8, DType.U16):
            return DType.I32
        return self

    @staticmethod
    def from_numpy(dtype: object) -> DType:
        """The element type of a NumPy dtype; TypeError for one the language lacks (complex, object, ...)."""
        wanted: np.dtype[np.generic] = np.dtype(dtype)  # type: ignore[call-overload]
        found = _of_numpy(wanted)
        if found is None:
            known = ", ".join(_NUMPY.values())
            raise TypeError(f"dtype {wanted} has no counterpart in the language; use one of {known}")
        return found


_NUMPY = {
    DType.BOOL: "bool",
    DType.I8: "int8",
    DType.I16: "int16",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.U8: "uint8",
    DType.U16: "uint16",
    DType.U32: "uint32",
    DType.U64: "uint64",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.F64: "float64",
}

_OPENCL = {
    DType.BOOL: "uchar",
    DType.I8: "char",
    DType.I16: "short",
    DType.I32: "int",
    DType.I64: "long",
    DType.U8: "uchar",
    DType.U16: "ushort",
    DType.U32: "uint",
    DType.U64: "ulong",
    DType.F16: "half",
    DType.BF16: "ushort",
    DType.F32: "float",
    DType.F64: "double",
}


_ITEMSIZE = {d: 1 if d is DType.BOOL else 2 if d is DType.BF16 else np.dtype(_NUMPY[d]).itemsize for d in DType}


@functools.cache
def _numpy(dtype: DType) -> np.dtype[np.generic]:
    if dtype is DType.BF16:
        import ml_dtypes

        return cast("np.dtype[np.generic]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(_NUMPY[dtype])


@functools.lru_cache(64)
def _of_numpy(wanted: np.dtype[np.generic]) -> DType | None:
    return next((member for member in DType if _numpy(member) == wanted), None)


def promote(a: DType, b: DType) -> DType:
    """The common type of two operands, by NumPy's rules except that integers meeting a float take the float's type.

    f16 and bf16, of which neither holds the other, give f32.
    """
    if a is b:
        return a
    if a.is_float and not b.is_float:
        return a
    if b.is_float and not a.is_float:
        return b
    if DType.BF16 in (a, b):
        return DType.F64 if DType.F64 in (a, b) else DType.F32
    return DType.from_numpy(np.promote_types(a.numpy, b.numpy))
