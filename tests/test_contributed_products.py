"""Products of com.microsoft whose operands lie in other orders or whose results are activated, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from networks import by_onnxruntime, random
from test_contributed import Case, model_of

from tilewright.errors import UnsupportedOperatorError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device

GEMM = (random(3, 4), random(4, 5), random(5))
SHAPES = {(0, 0): (3, 5, 6), (1, 0): (3, 6, 5), (0, 1): (5, 3, 6), (1, 1): (6, 3, 5)}
"""Those of the first operand, 3 matrices of 5 rows that are 6 long, by transA and transBatchA."""


def check(case: Case, device: Device) -> None:
    """Ours beside onnxruntime's result."""
    proto = model_of(case)
    feeds = {f"i{n}": a for n, a in enumerate(case.inputs) if a is not None}
    (found,) = InferenceSession(proto, device, store=False).run(None, feeds)
    (wanted,) = by_onnxruntime(proto, feeds)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", SHAPES, ids=lambda flags: f"left {flags}")
@pytest.mark.parametrize("right", SHAPES, ids=lambda flags: f"right {flags}")
def test_rows_may_be_the_first_dimension(left: tuple[int, int], right: tuple[int, int], device: Device) -> None:
    """As onnxruntime's optimiser writes products whose operands a Transpose of several axes makes."""
    shape = {(0, 0): (3, 6, 4), (1, 0): (3, 4, 6), (0, 1): (6, 3, 4), (1, 1): (4, 3, 6)}[right]
    attributes = {"transA": left[0], "transBatchA": left[1], "transB": right[0], "transBatchB": right[1], "alpha": 0.5}
    check(Case("FusedMatMul", (random(*SHAPES[left]), random(*shape)), attributes), device)


def test_several_dimensions_of_matrices(device: Device) -> None:
    left, right = random(5, 2, 3, 6), random(4, 2, 3, 6)
    check(Case("FusedMatMul", (left, right), {"transBatchA": 1, "transBatchB": 1, "transB": 1}), device)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("Elu", {"alpha": 0.5}),
        ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}),
        ("LeakyRelu", {"alpha": 0.125}),
        ("Selu", {"alpha": 1.5, "gamma": 1.25}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("ThresholdedRelu", {"alpha": 0.25}),
    ],
)
def test_activated_products(kind: str, parameters: dict[str, float], device: Device) -> None:
    given = {f"activation_{name}": value for name, value in parameters.items()}
    check(Case("FusedGemm", GEMM, {"activation": kind, **given}), device)


def test_activations_that_are_not_known_or_lack_parameters_are_refused() -> None:
    for attributes in ({"activation": "Mish"}, {"activation": "Selu", "activation_alpha": 1.5}):
        with pytest.raises(UnsupportedOperatorError, match="FusedGemm"):
            InferenceSession(model_of(Case("FusedGemm", GEMM, attributes)), store=False)
