"""The operator library: ONNX operators as Programs in the language, or as views.

`OPERATORS` is the table; importing this package fills it.
"""

from tilewright.ops import (
    convolution,
    indexing,
    matmul,
    movement,
    normalise,
    pointwise,
    pooling,
    recurrent,
    reduce,
    resize,
    transposed,
)
from tilewright.ops.operator import (
    NOTHING,
    OPERATORS,
    Application,
    Compute,
    Expansion,
    Join,
    Link,
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
    "NOTHING",
    "OPERATORS",
    "Application",
    "Compute",
    "Expansion",
    "Join",
    "Link",
    "Operand",
    "Operator",
    "Permuted",
    "Reshaped",
    "Result",
    "Sliced",
    "View",
    "Views",
    "convolution",
    "indexing",
    "matmul",
    "movement",
    "normalise",
    "pointwise",
    "pooling",
    "recurrent",
    "reduce",
    "resize",
    "transposed",
]
