"""The operator library against ONNX's own test cases, interpreted by NumPy (no device), and on every device."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import onnx
import pytest
from networks import by_numpy, by_onnxruntime, model, planned, random
from onnx.backend.test.case import node as onnx_cases

from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.session import InferenceSession
from tilewright.ops import OPERATORS
from tilewright.runtime import Device

CASES = """
abs acos acosh add and_ argmax argmin asin asinh atan atanh averagepool batch_normalization ceil celu clip concat conv cos cosh cumsum
depthtospace div dropout einsum elu equal erf exp expand flatten floor gather gelu gemm globalaveragepool globalmaxpool
greater greater_or_equal groupnormalization hardmax hardsigmoid hardswish identity instance_normalization isinf isnan layernormalization leakyrelu less less_or_equal
log logsoftmax lppool lpnormalization lrn matmul max maxpool mean min mish mod mul neg not_ onehot or_ pad pow prelu reciprocal
reduce_log_sum reduce_log_sum_exp reducel1 reducel2 reducemax reducemean reducemin reduceprod reducesum reducesumsquare relu
reshape resize rmsnormalization round selu shape shrink sigmoid sign sin sinh size slice softmax softplus softsign
spacetodepth split sqrt squeeze sub sum swish tan tanh thresholdedrelu tile transpose trilu unsqueeze upsample where xor
""".split()
"""Modules of onnx.backend.test.case.node."""

KNOWN_DIFFERENCES = {
    "test_mod_float_edge_cases_fmod_0_float16": "remainders of infinities and by zero",
    "test_mod_float_edge_cases_fmod_0_float32": "remainders of infinities and by zero",
    "test_mod_float_edge_cases_fmod_0_float64": "remainders of infinities and by zero",
    "test_training_dropout_default": "random",
}


def cases(module: str) -> list[onnx_cases.TestCase]:
    """ONNX's test cases of one module."""
    before = len(onnx_cases._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    return list(onnx_cases._NodeTestCases[before:])


@pytest.mark.parametrize("module", CASES)
def test_conformance(module: str) -> None:
    """Every case of an operator gives ONNX's numbers or is refused with a reason."""
    ran, refused = 0, []
    for case in cases(module):
        arrays = all(isinstance(a, np.ndarray | np.generic) for inputs, _ in case.data_sets for a in inputs)
        if "_expanded" in case.name or case.name in KNOWN_DIFFERENCES or not arrays:
            continue
        try:
            for inputs, outputs in case.data_sets:
                _check_case(case.model, inputs, outputs, case.name)
            ran += 1
        except (UnsupportedError, ModelError) as error:
            refused.append(f"{case.name}: {error}")
        except Exception as error:
            raise AssertionError(f"{case.name}: {error!r}") from error
    assert ran, refused


def _check_case(proto: onnx.ModelProto, inputs: list[np.ndarray], outputs: list[np.ndarray], name: str) -> None:
    feeds = {i.name: np.asarray(a) for i, a in zip(proto.graph.input, inputs, strict=True)}
    found = by_numpy(planned(proto, feeds), feeds)
    for info, expected in zip(proto.graph.output, outputs, strict=True):
        result = found[info.name]
        assert result.shape == np.shape(expected), name
        assert result.dtype == np.asarray(expected).dtype, name
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6, err_msg=name)
