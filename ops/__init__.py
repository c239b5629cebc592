"""The operator library: ONNX operators as Programs in the language, or as views.

`OPERATORS` is the table; importing this package fills it.
"""

from tilewright.ops import convolution, matmul, movement, normalise, pointwise, pooling, reduce, resize, transposed
from tilewright.ops.operator import (
    OPERATORS,
    Application,
    Compute,
    Join,
    Operand,
    Operator,
    Permuted,
    Reshaped,
    Result,
    Sliced,
    View,
    Views,
)

__all__ = [
    "OPERATORS",
    "Application",
    "Compute",
    "Join",
    "Operand",
    "Operator",
    "Permuted",
    "Reshaped",
    "Result",
    "Sliced",
    "View",
    "Views",
    "convolution",
    "matmul",
    "movement",
    "normalise",
    "pointwise",
    "pooling",
    "reduce",
    "resize",
    "transposed",
]
