"""tilewright: short tensor programs to tuned OpenCL kernels, and ONNX networks on any OpenCL device.

    import tilewright as tw

    relu = tw.op("op relu(x[N,C], b[C]) -> y[N,C]:\\n    y[n,c] = max(x[n,c] + b[c], 0)")
    y = relu(x, b)                               # NumPy in, NumPy out
    session = tw.InferenceSession("model.onnx")  # onnxruntime's interface
    tw.devices()                                 # what there is to run on

Names are imported on first use, so that `import tilewright` loads neither an OpenCL driver nor onnx.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilewright.errors import (
    DatabaseError,
    DeviceError,
    InputError,
    KernelError,
    LanguageError,
    ModelError,
    ShapeError,
    TilewrightError,
    UnsupportedError,
    UnsupportedOperatorError,
)

if TYPE_CHECKING:
    from tilewright.api import Op, op
    from tilewright.dsl import lang
    from tilewright.dsl.symbols import indices
    from tilewright.graph.session import InferenceSession
    from tilewright.runtime import Array, Device, asarray, devices, select_device

__version__ = "0.1.0"

_LAZY = {
    "Array": "tilewright.runtime",
    "Device": "tilewright.runtime",
    "InferenceSession": "tilewright.graph.session",
    "Op": "tilewright.api",
    "asarray": "tilewright.runtime",
    "devices": "tilewright.runtime",
    "indices": "tilewright.dsl.symbols",
    "lang": "tilewright.dsl",
    "op": "tilewright.api",
    "select_device": "tilewright.runtime",
}

__all__ = [
    "Array",
    "DatabaseError",
    "Device",
    "DeviceError",
    "InferenceSession",
    "InputError",
    "KernelError",
    "LanguageError",
    "ModelError",
    "Op",
    "ShapeError",
    "TilewrightError",
    "UnsupportedError",
    "UnsupportedOperatorError",
    "__version__",
    "asarray",
    "devices",
    "indices",
    "lang",
    "op",
    "select_device",
]


if os.environ.get("TILEWRIGHT_LOG"):
    from tilewright import log

    log.start()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    value = import_module("tilewright.dsl.lang") if name == "lang" else getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
