"""Random programs: every family computes what NumPy does, whatever the names.

More examples than in the default run: `pytest tests/test_fuzz.py --hypothesis-profile=long`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from oracle import reference
from programs_strategy import Case, general
from programs_templates import contractions, exact_programs, smooth_programs, windows
from running import laid_out, relative, run, shaped
from targets import CPU, GPU

from tilewright.dsl.families import Family, fitting
from tilewright.dsl.parse import parse_op
from tilewright.dsl.program import Program, Tensor
from tilewright.dsl.space import Configuration
from tilewright.dsl.stages import split
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context

BOTH_SHAPES = pytest.mark.parametrize("shape", [Shape.CPU, Shape.GPU], ids=["cpu-shaped", "gpu-shaped"])
FEW = settings(
    max_examples=settings().max_examples * 2 // 5,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""Each example is a handful of kernels to compile."""


# --- legal programs -------------------------------------------------------------------------------------------------


@BOTH_SHAPES
@FEW
@given(exact_programs())
def test_whole_numbers_are_exact_in_every_family(ctx: Context, shape: Shape, case: Case) -> None:
    _check(ctx, shape, case)


@BOTH_SHAPES
@FEW
@given(smooth_programs())
def test_smooth_functions_are_close_in_every_family(ctx: Context, shape: Shape, case: Case) -> None:
    _check(ctx, shape, case)


def _check(ctx: Context, shape: Shape, case: Case) -> None:
    """Each stage with each family that takes it, by NumPy's values of the stages before it."""
    note(f"{case.text}layout {case.layout}, seed {case.seed}")
    whole = parse_op(case.text).specialise(case.shapes)
    target = shaped(ctx.device.target, shape)
    known = case.arrays()
    expected = reference(whole, known)
    for stage in split(whole, target):
        made = laid_out(stage, case.layout)
        arrays = {t.name: known[t.name] for t in made.inputs}
        for name, values in reference(made, arrays).items():
            known[name] = values.astype(made.tensors[name].dtype.numpy)
        for family in fitting(made, target):
            for configuration in _some(family, made, target, case.seed):
                found = run(ctx, family, made, target, configuration, arrays)
                for t in made.outputs:
                    place = f"{family.name}: {configuration}, {t.name}"
                    _compare(found[t.name], known[t.name], _allowed(case, made, t), place)
    for t in whole.outputs:
        _compare(known[t.name], expected[t.name], _allowed(case, whole, t), f"{t.name} by stages")


def _allowed(case: Case, made: Program, output: Tensor) -> float:
    return 0.0 if case.exact else relative(made, output) * case.bound


def _compare(found: np.ndarray, expected: np.ndarray, allowed: float, place: str) -> None:
    wide = expected.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), wide, rtol=0, atol=allowed, err_msg=place)


def _some(family: Family, made: Program, target: Target, seed: int) -> list[Configuration]:
    """The family's own choice and one at random."""
    drawn = family.space(made, target).sample(random.Random(seed), 100)
    return list(dict.fromkeys(c for c in (family.default(made, target), drawn) if c is not None))


# --- names ----------------------------------------------------------------------------------------------------------

_NAMES = [
    "kernel", "half", "float4", "main", "barrier", "item", "group", "sums", "local_a", "get_global_id", "restrict",
    "NULL", "INFINITY", "i_n", "g_x0", "x0", "q_0", "q_1", "k", "k0", "flat", "row", "lane", "step", "depth", "a",
    "b", "c0_0", "tw_max_float", "acc0", "packed_a", "values", "m0", "n0", "vector", "split", "output", "base_0",
    "i", "g", "e", "z", "int_", "char_", "sum", "exp", "max", "pad", "tile", "_", "__", "_Bool", "EOF", "goto",
    "asm", "struct", "t0", "p_0",
]  # fmt: skip
"""Words that mean something in OpenCL C or that generated kernels use themselves."""
_OWN = re.compile(r"\b(?:[xyt]\d+|y|s|[ijk]|r\d+_\d+|[gmnk]\d|n|c|[pr]\d|fuzz)\b(?!\()")


@FEW
@given(st.one_of(general(exact=True), contractions(), windows()), st.permutations(_NAMES))
def test_names_never_matter(ctx: Context, case: Case, names: list[str]) -> None:
    found = dict.fromkeys(_OWN.findall(case.text))
    chosen = dict(zip(found, names, strict=False))
    text = _OWN.sub(lambda m: chosen.get(m[0], m[0]), case.text)
    note(text)
    made = parse_op(text).specialise({chosen.get(name, name): shape for name, shape in case.shapes.items()})
    assert made.signature == parse_op(case.text).specialise(case.shapes).signature
    inputs = tuple(replace(t, name=chosen.get(t.name, t.name)) for t in case.inputs)
    _check(ctx, ctx.device.target.shape, replace(case, text=text, inputs=inputs))


_FORMS = (
    "op f(A[7,13], B[13,21], C[21]) -> Y[7,21]: Y[{0},{1}] = max(sum({2}) A[{0},{2}] * B[{2},{1}] + C[{1}], 0)",
    "op f(A[70]) -> Y[35]: Y[{0}: 35] = A[2*{0} + 1]",
    "op f(A[40,23]) -> Y[23]: Y[{0}] = sum({1}) A[{1},{0}]",
    "op f(A[3,90]) -> Y[3,90]: Y[{0},{1}] = sum({2} <= {1}) A[{0},{2}]",
    "op f(A[9,5,17], B[9,3,2]) -> Y[9,5,17]: Y[{0},{1},u] = sum({2}: 3, w: 2) A[{0},{1}+{2}-1,u+w-1] * B[{0},{2},w]",
    "op f(A[5,40]) -> Y[5,40]:\n e[{0},{1}] = exp(A[{0},{1}])\n Y[{0},{1}] = e[{0},{1}] / sum({2}) e[{0},{2}]",
)


@pytest.mark.parametrize("target", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("text", _FORMS)
def test_kernels_differ_in_the_names_of_their_indices_only(text: str, target: Target) -> None:
    plain = ("za", "zb", "zc")
    expected = _tokens(text.format(*plain), target, "za", "za")
    for name in [n for n in _NAMES if not re.search(rf"\b{n}\b", text)]:
        for at in range(len(set(re.findall(r"{\d}", text)))):
            names = [*plain[:at], name, *plain[at + 1 :]]
            assert _tokens(text.format(*names), target, name, plain[at]) == expected, names


def _tokens(text: str, target: Target, name: str, other: str) -> list[Counter[str]]:
    """How often each token stands in each kernel of every family, with one index renamed; sums may be in any order."""
    sizes = {name: tuple(map(int, size.split(","))) for name, size in re.findall(r"([A-C])\[([\d,]+)\]", text)}
    counts = []
    for stage in split(parse_op(text).specialise(sizes), target):
        for family in fitting(stage, target):
            for configuration in _some(family, stage, target, 1):
                for launch in family.lower(stage, target, configuration).launches:
                    code = re.sub(r"//.*", "", launch.source)
                    code = re.sub(rf"(?:\b|(?<=_))i_{name}(?=\b|_)", f"i_{other}", code)
                    counts.append(Counter(re.findall(r"\w+|\S", code)))
    return counts
