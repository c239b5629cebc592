"""Precision policies in the language: the `precision` line, what it rounds, and how it travels."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from targets import CPU, GPU

from tilewright.autotune.checking import tolerance
from tilewright.dsl.check import Definition
from tilewright.dsl.compose import fuse
from tilewright.dsl.dtypes import DType
from tilewright.dsl.parse import parse_op
from tilewright.dsl.precision import PRECISIONS, allowing_tf32, contracts, rounded
from tilewright.dsl.program import Program
from tilewright.dsl.stages import split
from tilewright.dsl.text import program_text, statement_text
from tilewright.errors import InputError, LanguageError
from tilewright.runtime.nvidia import matrix_unit

WITH_TF32 = replace(GPU, matrix=matrix_unit((8, 0)))
GEMM = "op gemm(a[M,K], b[K,N], bias[N]) -> c[M,N]:\n    c[m,n] = relu(sum(k) a[m,k] * b[k,n] + bias[n])\n"
SHAPES = {"a": (3, 4), "b": (4, 5), "bias": (5,)}


def gemm(precision: str | None = None) -> Program:
    return parse_op(GEMM).specialise(SHAPES, precision=precision)


def test_the_default_is_fp32_and_leaves_the_program_as_it_was() -> None:
    assert gemm() == gemm("fp32")
    assert gemm().precision == "fp32"
    assert "precision" not in program_text(gemm())


def test_every_policy_has_a_signature_of_its_own() -> None:
    assert len({gemm(p).signature for p in PRECISIONS}) == len(PRECISIONS)
    assert len({gemm(p).structure for p in PRECISIONS}) == len(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_line_says_what_the_argument_says(precision: str) -> None:
    written = parse_op(GEMM + f"    precision {precision}\n")
    assert written.specialise(SHAPES) == gemm(precision)
    assert written.specialise(SHAPES, precision="fp32") == gemm()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "f16"), ("bf16", "bf16")])
def test_sixteen_bits_round_the_factors_and_nothing_else(precision: str, dtype: str) -> None:
    text = program_text(gemm(precision))
    assert f"(sum(k:4) (f32({dtype}(a[m, k])) * f32({dtype}(b[k, n])))) + bias[n]" in text
    assert [t.dtype.value for t in gemm(precision).tensors.values()] == ["f32"] * 4


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("op f(x[N,K]) -> y[N]: y[n] = sum(k) x[n,k] * x[n,k]", {"x": (3, 4)}),
        ("op f(x[N,K]) -> y[N,K]: y[n,k] = sum(j <= k) x[n,j]", {"x": (3, 4)}),
        ("op f(x[N], g[N]) -> y[N]: y[n] = x[n] * g[n]", {"x": (3,), "g": (3,)}),
        ("op f(x[N,K]) -> y[N]: y[n] = max(k) 2 * x[n,k]", {"x": (3, 4)}),
    ],
)
def test_what_is_no_contraction_is_the_same_in_all_policies(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    plain = parse_op(text).specialise(shapes)
    assert not contracts(plain.statements)
    assert allowing_tf32(plain) is plain
    for precision in PRECISIONS:
        made = parse_op(text).specialise(shapes, precision=precision)
        assert made.statements == plain.statements
        for target in (CPU, WITH_TF32):
            assert [s.signature for s in split(made, target)] == [s.signature for s in split(plain, target)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x[n,k] * g[k] * w[k,j]", "f32(f16((x[n, k] * g[k]))) * f32(f16(w[k, j]))"),
        ("2 * (x[n,k] * w[k,j])", "2.0 * (f32(f16(x[n, k])) * f32(f16(w[k, j])))"),
        ("exp(x[n,k]) * w[k,j]", "f32(f16(exp(x[n, k]))) * f32(f16(w[k, j]))"),
        ("x[n,k] * g[k]", "f32(f16(x[n, k])) * f32(f16(g[k]))"),
    ],
)
def test_operands_are_rounded_as_a_matrix_product_takes_them(body: str, expected: str) -> None:
    left = "y[n,j]" if "j" in body else "y[n]"
    op = parse_op(f"op f(x[N,K], g[K], w[K,J]) -> y: {left} = sum(k) {body}")
    text = program_text(op.specialise({"x": (3, 4), "g": (4,), "w": (4, 5)}, precision="fp16"))
    assert f"({expected})" in text


def test_operands_may_be_left_as_they_lie_in_memory() -> None:
    op = parse_op("op f(x[N,K], w[K,J]) -> y[N,J]: y[n,j] = sum(k) exp(x[n,k]) * w[k,j]")
    statement = op.specialise({"x": (3, 4), "w": (4, 5)}).statements[0]
    text = statement_text(rounded(statement, DType.F16, stored=False))
    assert text == "y[n,j] = (sum(k) (f32(f16(exp(x[n, k]))) * w[k, j]))"


def test_narrow_factors_are_not_rounded_again() -> None:
    text = GEMM.replace("a[M,K]", "a[M,K]: bf16").replace("b[K,N]", "b[K,N]: f16")
    made = parse_op(text).specialise(SHAPES, precision="fp16")
    assert made.statements == parse_op(text).specialise(SHAPES).statements
    wide = parse_op(GEMM.replace("a[M,K]", "a[M,K]: f64")).specialise(SHAPES, precision="fp16")
    assert "f16(a" not in program_text(wide)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("precision half", "a precision is fp32, tf32, fp16 or bf16"),
        ("precision fp23", "a precision is fp32, tf32, fp16 or bf16; did you mean 'fp32'?"),
        ("precision fp16\n    precision tf32", "the precision is given twice"),
    ],
)
def test_wrong_lines(line: str, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        parse_op(GEMM + f"    {line}\n")


def test_a_wrong_argument_lists_the_policies() -> None:
    with pytest.raises(InputError, match=re.escape("a precision is fp32, tf32, fp16 or bf16, not 'half'")):
        gemm("half")


def test_precision_is_an_ordinary_name_elsewhere() -> None:
    text = "op f(precision[N]) -> y[N]:\n    y[precision2] = precision[precision2]\n    precision3 = sum(precision)\n"
    assert parse_op(text).specialise({"precision": (3,)}).inputs[0].name == "precision"


def test_candidates_may_differ_by_what_a_policy_rounds() -> None:
    allowed = {p: tolerance(made, made.outputs[0]) for p in PRECISIONS for made in [gemm(p)]}
    assert allowed["fp32"] < 2e-5
    assert 2.0**-10 < allowed["tf32"] == allowed["fp16"] < 2.0**-6
    assert 2.0**-7 < allowed["bf16"] < 2.0**-3


# --- ops that call ops, fusion, stages --------------------------------------------------------------------------------


def calling(outer: str, inner: str) -> Definition:
    lines = (f"    precision {p}\n" if p else "" for p in (outer, inner))
    first = "op g(a[M,K], b[K,N], bias[N]) -> d[M,N]:\n    c = gemm(a, b, bias)\n    d = relu(c)\n"
    return parse_op(first + next(lines) + GEMM + next(lines), "g")


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("", "", "fp32"),
        ("", "tf32", "fp32"),
        ("tf32", "", "tf32"),
        ("tf32", "tf32", "tf32"),
        ("tf32", "fp32", "fp32"),
        ("fp16", "fp32", "fp32"),
        ("tf32", "bf16", "tf32"),
    ],
)
def test_tf32_needs_the_consent_of_called_ops(outer: str, inner: str, expected: str) -> None:
    assert calling(outer, inner).specialise(SHAPES).precision == expected


@pytest.mark.parametrize(
    ("outer", "inner", "dtype"), [("fp16", "", "f16"), ("fp16", "bf16", "bf16"), ("", "fp16", "f16")]
)
def test_a_called_op_without_a_line_takes_its_callers(outer: str, inner: str, dtype: str) -> None:
    assert f" (f32({dtype}(a[" in program_text(calling(outer, inner).specialise(SHAPES))


def test_a_called_op_keeps_its_fp32() -> None:
    assert "f16" not in program_text(calling("fp16", "fp32").specialise(SHAPES))


def test_fusion_takes_the_more_precise_of_two_contractions() -> None:
    second = parse_op("op h(c[M,N], d[N,P]) -> e[M,P]: e[m,p] = sum(n) c[m,n] * d[n,p]")
    last = second.specialise({"c": (3, 5), "d": (5, 2)})
    pointwise = parse_op("op r(c[M,N]) -> e[M,N]: e[m,n] = exp(c[m,n])").specialise({"c": (3, 5)})
    allowed = gemm("tf32")
    assert fuse(allowed, pointwise, {"c": "c"}).precision == "tf32"
    assert fuse(gemm(), pointwise, {"c": "c"}).precision == "fp32"
    assert fuse(allowed, last, {"c": "c"}).precision == "fp32"
    assert fuse(allowed, replace(last, precision="tf32"), {"c": "c"}).precision == "tf32"


def test_stages_allow_tf32_where_they_contract() -> None:
    text = "op f(a[M,K], b[K,N]) -> y[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]\n"
    text += "    t[i] = max(j) c[i,j]\n    y[i,j] = c[i,j] - t[i]\n    precision tf32"
    program = parse_op(text).specialise({"a": (3, 4), "b": (4, 5)})
    stages = split(program, WITH_TF32)
    assert [s.precision for s in stages if contracts(s.statements)] == ["tf32"]
    assert {s.precision for s in stages if not contracts(s.statements)} == {"fp32"}
    assert {s.precision for s in split(program, CPU)} == {"fp32"}  # there is nothing to allow
