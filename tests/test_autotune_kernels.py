"""Tuning kernels that are not ours: arguments, spaces, checks, isolation, and what the database keeps of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning_cases import FAKE

from tilewright.autotune import InOut, Output, tune_kernel
from tilewright.autotune.kernel_text import kernel_parameters, words
from tilewright.autotune.size_expressions import expression
from tilewright.autotune.supervisor import Limits
from tilewright.errors import InputError, ShapeError
from tilewright.runtime import Device
from tilewright.tuning_db import Store

N = 1000
X = np.random.default_rng(5).standard_normal(N).astype(np.float32)

SCALE = """
__kernel void scale(__global const float *x, __global float *y, const float factor, const int n) {
    const int first = get_global_id(0) * ITEMS;
    for (int i = first; i < min(n, first + ITEMS); ++i)
        y[i] = factor * x[i];
}
"""
SPACE: Mapping[str, Any] = {"GROUP": (1, 4, 16), "ITEMS": (1, 8)}
SIZES: Mapping[str, Any] = {"global_size": "round_up(ceil_div(n, ITEMS), GROUP)", "local_size": "GROUP"}


def scaled(x: Any, factor: Any, n: Any) -> Any:
    return factor * x


def arguments() -> list[Any]:
    return [X, Output((N,)), 2.5, N]


# --- on a device ------------------------------------------------------------------------------------------------------


def test_a_kernel_is_tuned_and_known_afterwards(device: Device, store: Store) -> None:
    def ask(**changes: Any) -> Any:
        given = {"args": arguments(), "reference": scaled, "device": device, "store": store, "operations": N, **SIZES}
        return tune_kernel(SCALE, SPACE, **{**given, **changes})

    first = ask()
    assert (first.evaluations, first.statuses) == (6, {"ok": 6})
    assert first.best is not None
    assert first.launch is not None
    assert f"#define ITEMS {first.best['ITEMS']}\n" in first.launch.source
    assert first.launch.local_size == (first.best["GROUP"],)
    assert first.bytes_moved == 8 * N
    assert first.seconds == pytest.approx(8e-9 * N / first.gbytes_per_second)
    assert first.gflops == pytest.approx(first.gbytes_per_second / 8)
    assert "GFLOP/s" in str(first)
    again = ask()
    assert (again.evaluations, again.best, again.statuses) == (0, first.best, first.statuses)
    other = ask(args=[X[:500], Output((500,)), 2.5, 500])
    assert (other.evaluations, other.signature == first.signature) == (6, False)
    narrower = ask(constraints=[lambda c: (c["GROUP"], c["ITEMS"]) != (first.best["GROUP"], first.best["ITEMS"])])
    assert (narrower.evaluations, len(narrower.measurements)) == (0, 5)
    assert narrower.best not in (None, first.best)
    assert store.verify() == ()


FAULTS = """
__kernel void faults(__global const float *x, __global float *y, __global int *count) {
    const int i = get_global_id(0);
#if FAULT == 1
    this is not C
#elif FAULT == 2
    y[i] = x[i] + 1.0f;
#elif FAULT == 3
    if (i) y[i] = x[i];
#elif FAULT == 4
    y[i] = x[i]; if (!i) y[-1] = 0;
#elif FAULT == 5
    y[i] = x[i]; ((__global volatile int *)(ulong)8)[0] = 1;
#elif FAULT == 6
    y[i] = x[i]; while (((volatile __global float *)x)[i] < 99.0f) {}
#else
    y[i] = x[i];
#endif
    count[i] += FAULT == 7 ? 2 : 1;
}
"""


def test_every_fault_has_its_status_and_is_not_tried_again(device: Device, store: Store) -> None:
    def ask(**changes: Any) -> Any:
        return tune_kernel(
            FAULTS,
            {"FAULT": range(8)},
            [X, Output((N,)), InOut(np.arange(N, dtype=np.int32))],
            lambda x, count: (x, count + 1),
            global_size=N,
            device=device,
            store=store,
            limits=Limits(run=1.0, first_run=4.0),
            **changes,
        )

    first = ask()
    found = {m.configuration["FAULT"]: m.status.value for m in first.measurements}
    wrong = dict.fromkeys((2, 3, 4, 7), "wrong")
    assert found == {0: "ok", 1: "build_failed", **wrong, 5: "crashed", 6: "timed_out"}
    assert first.best is not None
    assert dict(first.best) == {"FAULT": 0}
    assert ask().evaluations == 0
    assert ask(retry=["build_failed"]).evaluations == 1
    assert "wrote 4 bytes before y" in next(m.message for m in first.measurements if m.configuration["FAULT"] == 4)


def test_a_kernel_that_is_right_for_some_inputs_alone_is_wrong(device: Device, store: Store) -> None:
    first = float(np.random.default_rng(0).standard_normal(N).astype(np.float32)[0])
    source = f"""
__kernel void copy(__global const float *x, __global float *y) {{
    const int i = get_global_id(0);
    y[i] = CHEATS && x[0] != {first!r}f ? 0.0f : x[i];
}}"""
    found = tune_kernel(
        source,
        {"CHEATS": (1, 0)},
        lambda rng: {"x": rng.standard_normal(N).astype(np.float32), "y": Output((N,))},
        lambda x: x,
        global_size=(N,),
        device=device,
        store=store,
    )
    assert {m.configuration["CHEATS"]: m.status.value for m in found.measurements} == {1: "wrong", 0: "ok"}


@pytest.mark.parametrize("strategy", ["exhaustive", "random", "evolution"])
def test_texts_that_are_written_and_two_dimensions(device: Device, store: Store, strategy: str) -> None:
    a = np.arange(35, dtype=np.float64).reshape(5, 7)

    def write(c: Mapping[str, Any]) -> str:
        row, column = (0, 1) if c["order"] == "rows" else (1, 0)
        return f"""__kernel void turn(__global const double *a, __global double *b) {{
            const int i = get_global_id({row}), j = get_global_id({column});
            b[j * 5 + i] = a[i * 7 + j];
        }}"""

    found = tune_kernel(
        write,
        {"order": ("rows", "columns")},
        [a, Output((7, 5), np.float64)],
        a.T,
        global_size=lambda c: (5, 7) if c["order"] == "rows" else (7, 5),
        local_size=(1, 1),
        device=device,
        store=store,
        strategy=strategy,
    )
    assert found.statuses == {"ok": 2}


def test_nothing_right_is_said_so(device: Device, store: Store) -> None:
    found = tune_kernel(SCALE, {"GROUP": (1,), "ITEMS": (1,)}, arguments(), X, device=device, store=store, **SIZES)
    assert (found.best, found.seconds, found.statuses) == (None, None, {"wrong": 1})
    assert "no configuration works; most of all: y has error" in str(found)


# --- wrong use: nothing is compiled -----------------------------------------------------------------------------------

TWO = SCALE + SCALE.replace("void scale", "void other")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no kernel": ({"source": "int f() { return 1; }"}, "the source has no kernel"),
    "two kernels": ({"source": TWO}, r"has 2 kernels \(scale, other\); say which"),
    "another name": ({"kernel": "scales"}, "kernel scales is not in the source; there is scale"),
    "no macro": ({"space": {**SPACE, "TILE": (1, 2)}}, "the parameter TILE is no macro"),
    "too few": ({"args": arguments()[:3]}, r"takes 4 arguments \(x, y, factor, n\), but 3 are given"),
    "unknown": ({"args": {"x": X, "y": Output((N,)), "factor": 1, "m": 1}}, "m is none of them"),
    "no output": ({"args": [X, X, 1.0, N]}, "has no output with elements"),
    "const output": ({"args": [InOut(X), Output((N,)), 1.0, N]}, "argument x .* declares it const"),
    "types": ({"args": [X.astype(np.float64), Output((N,)), 1.0, N]}, "argument x .* array of float64"),
    "sign": (
        {"args": [X.view(np.int32), Output((N,)), 1.0, N]},
        "points to float in the source, but is an array of int",
    ),
    "no array": ({"args": [1.0, Output((N,)), 1.0, N]}, "argument x of kernel scale is memory"),
    "no number": ({"args": [X, Output((N,)), X, N]}, "argument factor .* give a number"),
    "number's type": ({"args": [X, Output((N,)), np.float64(1), N]}, "factor .* is a float in the source, but float64"),
    "number's range": ({"args": [X, Output((N,)), 1.0, 1 << 40]}, "argument n .* is no int"),
    "constraint": ({"constraints": ["GROUP * TILES < 4"]}, "constraint 1, .* names TILES"),
    "no expression": ({"constraints": ["GROUP <"]}, "constraint 1, 'GROUP <', is no expression"),
    "python": ({"constraints": ["open('x')"]}, "calls something other than"),
    "division": ({"global_size": "n / ITEMS"}, "divides with /; write //"),
    "by zero": ({"constraints": ["GROUP // (ITEMS - 1) > 2"]}, "divides by zero"),
    "text in a sum": ({"space": {"GROUP": ("a",), "ITEMS": (1,)}}, "computes with a text"),
    "too large": ({"space": {"GROUP": (1 << 20,), "ITEMS": (1,)}}, "a work-group has 1 to .* work-items on"),
    "no divisor": ({"local_size": 11}, "the work-group divides the global size"),
    "dimensions": ({"local_size": (1, 1)}, "global_size has 1 sizes, but local_size has 2"),
    "four dimensions": ({"global_size": (1, 1, 1, 1)}, "has 4 sizes"),
    "no sizes": ({"global_size": "0 * GROUP"}, "the global size is positive"),
    "no values": ({"space": {"GROUP": (), "ITEMS": (1,)}}, "GROUP needs a list of values"),
    "a fraction": ({"space": {"GROUP": (1.5,), "ITEMS": (1,)}}, "1.5 cannot be a value of GROUP"),
    "twice": ({"space": {"GROUP": (1, True), "ITEMS": (1,)}}, "GROUP has a value twice"),
    "no name": ({"space": {"a b": (1,)}}, "'a b' cannot be a macro"),
    "an argument's name": ({"space": {**SPACE, "n": (1,)}}, "n is a parameter of the space and an argument"),
    "default": ({"default": {"GROUP": 1, "ITEMS": 3}}, "default configuration .* ITEMS=3 is not one of 1, 8"),
    "results": ({"reference": lambda *a: (X, X)}, r"has 1 outputs \(y\), but its reference gives 2"),
    "shape": ({"reference": X[:3]}, r"gives y the shape \(3,\), but it has \(1000,\)"),
    "tolerance": ({"tolerance": -1.0}, "the tolerance of y is -1"),
    "its name": ({"tolerance": {"z": 1.0}}, "a tolerance is given for z"),
    "strategy": ({"strategy": "best"}, "there is no strategy 'best'"),
    "status": ({"retry": ["broken"]}, "'broken' is not a valid Status"),
    "drawn": ({"args": lambda rng: arguments(), "reference": X}, "need a reference that is a function"),
    "local memory": ({"source": "__kernel void k(__local float *l) {}"}, "parameter l of kernel k is local memory"),
    "an image": (
        {"source": "__kernel void k(read_only image2d_t i) {}"},
        "parameter i of kernel k is of type image2d_t",
    ),
    "directives": ({"source": "__kernel void k(int a\n#ifdef B\n, int b\n#endif\n) {}"}, "depend on the preprocessor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_error(case: str, store: Store) -> None:
    changes, message = WRONG[case]
    given = {"source": SCALE, "space": SPACE, "args": arguments(), "reference": scaled, **SIZES}
    with pytest.raises(InputError, match=message):
        tune_kernel(**{**given, **changes}, device=FAKE, store=store)
    assert store.stats().measurements == 0


def test_types_without_a_counterpart_are_refused(store: Store) -> None:
    source = "__kernel void k(__global const T *x, __global float *y) { y[0] = T1; }"
    x = np.zeros(2, np.complex64)
    with pytest.raises(ShapeError, match="argument x of kernel k: dtype complex64 has no counterpart"):
        tune_kernel(source, {"T1": (1,)}, [x, Output((1,))], x, global_size=1, device=FAKE, store=store)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_what_a_text_says_of_its_kernel() -> None:
    text = """// __kernel void commented(int a) {}
    __kernel __attribute__((reqd_work_group_size(W, 1, 1))) void k(__global const float4 *restrict x,
        /* one, two */ global T *y, unsigned int n, __constant double *c, float a[4]) {}"""
    name, parameters = kernel_parameters(text, None)
    assert name == "k"
    found = [(p.name, p.space, str(p.dtype), p.is_constant) for p in parameters]
    assert found == [
        ("x", "global", "float32", True),
        ("y", "global", "None", False),
        ("n", "private", "uint32", False),
        ("c", "constant", "float64", True),
        ("a", "global", "float32", False),
    ]
    assert "commented" not in words(text)
    assert kernel_parameters("kernel void k(void) {}", "k") == ("k", ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ceil_div(n, A) * B", 24),
        ("round_up(n, A)", 12),
        ("A * B <= 32 and not n == 3", True),
        ("1 < A < B < 9", True),
        ("min(A, B, n) if P == 'x' else -1", 4),
        ("n // A % 2 - 1", -1),
        ("A > 100 or P != 'x'", False),
    ],
)
def test_expressions(text: str, value: int) -> None:
    values = {"A": 4, "B": 8, "n": 10, "P": "x"}
    assert expression(text, "the text")(values.__getitem__) == value


@pytest.mark.parametrize("text", ["a.b", "[1]", "f'{A}'", "1.5", "A ** 2", "A is B", "lambda: 1", "min(1)", "x" * 2000])
def test_expressions_are_arithmetic_alone(text: str) -> None:
    with pytest.raises(InputError, match="the text"):
        expression(text, "the text")


def test_the_document_is_true(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEVICE", device.name)
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "tuning.sqlite"))
    text = (Path(__file__).parent.parent / "docs/kernels.md").read_text()
    scope: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, scope)
        assert scope["result"].best is not None
    assert scope["result"].statuses == {"ok": 2}
