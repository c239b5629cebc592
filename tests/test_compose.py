"""Inlining, fusion, hoisting and stages: the same numbers before and after, and as many stages as expected."""

from __future__ import annotations

import numpy as np
import pytest
from interpret import interpret
from targets import CPU

from tilewright.dsl.compose import fuse, inline, rename
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.stages import split

SOFTMAX = """op softmax(x[R,K]) -> y[R,K]:
    m[r]   = max(k) x[r,k]
    e[r,k] = exp(x[r,k] - m[r])
    y[r,k] = e[r,k] / sum(j) e[r,j]"""
CASES = {
    SOFTMAX: 1,
    "op f(x[R,K]) -> y[R,K]: y[r,k] = (x[r,k] - mean(j) x[r,j]) / sqrt(mean(j) x[r,j]^2 + sum(n,i) x[n,i]^2)": 2,
    "op moments(x[R,K]) -> s[K], q[K]:\n    s[k] = sum(r) x[r,k]\n    q[k] = sum(r) x[r,k]^2": 1,
    "op f(x[R,K]) -> y[R,K]:\n    t[r,k] = x[r,k] * 2\n    y[r,k] = t[r,k] + 1": 1,
    "op f(x[R,K]) -> y[R,K]:\n    t[r,k] = exp(x[r,k])\n    y[r,k] = t[r,k] + t[r,0]": 2,
    "op f(x[R,K]) -> y[R]:\n    t[r] = sum(k) x[r,k]\n    y[r] = t[r] * sigmoid(t[r])": 1,
    "op f(x[R,K]) -> y[R,K]:\n    t[r] = sum(k) x[r,k]\n    y[r,k] = x[r,k] - t[r]": 1,
    "op shifted(x[R,K]) -> y[R,K]:\n    t[r,k] = x[r,k] + 1\n    y[r,k] = t[r,k-1]": 1,
    "op unused(x[R,K]) -> y[R,K]:\n    t[r,k] = exp(x[r,k])\n    y[r,k] = x[r,k]": 1,
}


def run_stages(stages: tuple[Program, ...], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = dict(arrays)
    for stage in stages:
        known.update(interpret(stage, {t.name: known[t.name] for t in stage.inputs}))
    return known


@pytest.mark.parametrize("text", CASES, ids=range(len(CASES)))
def test_stages_compute_what_the_program_does(text: str) -> None:
    program = parse_op(text).specialise({"x": (5, 7)})
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    expected = interpret(program, {"x": x})
    stages = split(program, CPU)
    assert len(stages) == CASES[text]
    found = run_stages(stages, {"x": x})
    for t in program.outputs:
        np.testing.assert_allclose(found[t.name], expected[t.name], rtol=1e-5, atol=1e-6)


def test_average_over_what_is_inside_stays_one_stage() -> None:
    text = """op pool(x[N,C,H,W]) -> y[N,C,P,Q]:
    P = H
    Q = W
    y[n,c,p,q] = (sum(r: 3, s: 3) x[n,c,p+r-1,q+s-1]) / (sum(r: 3, s: 3) f32(inside(x[n,c,p+r-1,q+s-1])))"""
    assert len(split(parse_op(text).specialise({"x": (2, 3, 5, 5)}), CPU)) == 1


def test_an_epilogue_joins_its_producer() -> None:
    product = parse_op("op gemm(a[M,K], b[K,N]) -> c[M,N]: c[m,n] = sum(k) a[m,k] * b[k,n]")
    gemm = product.specialise({"a": (4, 5), "b": (5, 6)})
    add = parse_op("op add(x[M,N], r[N]) -> y[M,N]: y[m,n] = max(x[m,n] + r[n], 0)")
    fused = fuse(gemm, add.specialise({"x": (4, 6), "r": (6,)}), {"c": "x"})
    assert len(fused.statements) == 1
    assert [t.name for t in fused.inputs] == ["a", "b", "r"]
    rng = np.random.default_rng(1)
    arrays = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in fused.inputs}
    expected = np.maximum(arrays["a"] @ arrays["b"] + arrays["r"], 0)
    np.testing.assert_allclose(interpret(fused, arrays)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_padded_read_of_an_inlined_value_gives_the_pad_not_the_value_of_the_pad() -> None:
    made = parse_op("op one(x[N]) -> t[N]: t[n] = x[n] + 1").specialise({"x": (4,)})
    used = parse_op("op two(u[N]) -> y[N]: y[n] = u[n-1]").specialise({"u": (4,)})
    x = np.arange(4, dtype=np.float32)
    assert interpret(fuse(made, used, {"t": "u"}), {"x": x})["y"].tolist() == [0, 1, 2, 3]


def test_connected_tensors_must_agree() -> None:
    made = parse_op("op one(x[N]) -> t[N]: t[n] = x[n] + 1").specialise({"x": (4,)})
    used = parse_op("op two(u[N]) -> y[N]: y[n] = u[n]").specialise({"u": (5,)})
    with pytest.raises(ValueError, match="t is f32"):
        fuse(made, used, {"t": "u"})


def test_renaming_and_inlining_keep_the_signature_of_what_does_not_change() -> None:
    program = parse_op("op f(x[N]) -> y[N]: y[n] = x[n] + 1").specialise({"x": (4,)})
    renamed = rename(program, {"x": "a", "y": "b"})
    assert renamed.inputs == (Tensor("a", program.inputs[0].dtype, (4,)),)
    assert renamed.signature == program.signature
    assert inline(program) == program


def test_statements_without_reductions_are_never_tried_as_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.dsl.stages.CHAINS", (None,))  # asking it would fail
    lines = "\n".join(f"t{n}[n] = t{n - 1}[n] * t{n - 1}[n]" for n in range(1, 60))
    program = parse_op(f"op f(x[N]) -> y[N]:\nt0[n] = x[n]\n{lines}\ny[n] = t59[n]").specialise({"x": (5,)})
    stages = split(program, CPU)
    assert len(stages) > 1
    assert [len(stage.statements) for stage in stages] == [1] * len(stages)
