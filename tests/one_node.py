"""Networks of one operator, run on a device and compared with ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device


def one_node(
    op: str,
    inputs: Sequence[np.ndarray | None],
    constant: Collection[int] = (),
    opset: int = 24,
    outputs: int = 1,
    types: Sequence[int] = (),
    **attributes: object,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node and its feeds; inputs at the `constant` positions are initializers, None is left out.

    ``types`` are the element types of the outputs, the first input's where it is empty.
    """
    names = [f"x{n}" if a is not None else "" for n, a in enumerate(inputs)]
    feeds = {names[n]: a for n, a in enumerate(inputs) if a is not None and n not in constant}
    first = helper.np_dtype_to_tensor_dtype(next(a.dtype for a in inputs if a is not None))
    results = [f"y{n}" for n in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **attributes)],
        op,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(r, t, None) for r, t in zip(results, types or [first] * outputs, strict=True)],
        [numpy_helper.from_array(a, names[n]) for n, a in enumerate(inputs) if a is not None and n in constant],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), feeds


def check(
    device: Device,
    op: str,
    inputs: Sequence[np.ndarray | None],
    constant: Collection[int] = (),
    wanted: Sequence[np.ndarray] | None = None,
    rtol: float = 1e-5,
    **rest: object,
) -> None:
    """Run one node and compare every output with `wanted`, the reference evaluator's where that is left out."""
    proto, feeds = one_node(op, inputs, constant, **rest)  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(proto).run(None, dict(feeds)) if wanted is None else list(wanted)
    found = InferenceSession(proto, device, store=False).run(None, feeds)
    for result, right in zip(found, expected, strict=True):
        wide = np.float64 if np.asarray(right).dtype.name in {"float16", "bfloat16", "float32"} else None
        assert result.dtype == np.asarray(right).dtype, op
        assert result.shape == np.shape(right), op
        np.testing.assert_allclose(
            np.asarray(result, wide), np.asarray(right, wide), rtol=rtol, atol=rtol, err_msg=f"{op} {rest}"
        )
