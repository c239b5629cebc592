"""The element types of the language and how each is spelled in NumPy and in OpenCL C."""

from __future__ import annotations

from enum import Enum

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
    F32 = "f32"
    F64 = "f64"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype that has the same bytes."""
        return np.dtype(_NUMPY[self])

    @property
    def opencl(self) -> str:
        """The OpenCL C type that has the same bytes (bool is stored as uchar)."""
        return _OPENCL[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """True for f16, f32 and f64."""
        return self in (DType.F16, DType.F32, DType.F64)

    @property
    def accumulator(self) -> DType:
        """The type in which sums and products of this type are accumulated."""
        if self is DType.F16:
            return DType.F32
        if self in (DType.BOOL, DType.I8, DType.I16, DType.U8, DType.U16):
            return DType.I32
        return self

    @staticmethod
    def from_numpy(dtype: object) -> DType:
        """The element type of a NumPy dtype; TypeError for one the language lacks (complex, object, ...)."""
        wanted = np.dtype(dtype)  # type: ignore[call-overload]
        for member, name in _NUMPY.items():
            if np.dtype(name) == wanted:
                return member
        raise TypeError(f"dtype {wanted} has no counterpart in the language; use one of {', '.join(_NUMPY.values())}")


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
    DType.F32: "float",
    DType.F64: "double",
}


def promote(a: DType, b: DType) -> DType:
    """The common type of two operands, by NumPy's rules except that integers meeting a float take the float's type."""
    if a is b:
        return a
    if a.is_float and not b.is_float:
        return a
    if b.is_float and not a.is_float:
        return b
    return DType.from_numpy(np.promote_types(a.numpy, b.numpy))
