"""Ops as functions, arrays in device memory, and the examples of the documents."""

from __future__ import annotations

import re
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.runtime import devices

ROOT = Path(__file__).parent.parent

ADD = "op add(x[N,C], b[C]) -> y[N,C]:\n    y[n,c] = x[n,c] + b[c]"
MOMENTS = (
    "op moments(x[N,C]; scale: f32 = 1) -> s[C], q[C]:\n    s[c] = sum(n) x[n,c] * scale\n    q[c] = sum(n) x[n,c]^2"
)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


# --- calling ----------------------------------------------------------------------------------------------------------


def test_numpy_in_numpy_out(device: tw.Device) -> None:
    x, b = arrays((5, 3), (3,))
    y = tw.op(ADD)(x, b, device=device)
    assert isinstance(y, np.ndarray)
    assert np.array_equal(y, x + b)


def test_inputs_by_name_and_parameters(device: tw.Device) -> None:
    (x,) = arrays((5, 3))
    moments = tw.op(MOMENTS)
    s, q = moments(x=x, scale=2.0, device=device.name)
    assert np.allclose(s, 2 * x.sum(0), atol=1e-5)
    assert np.allclose(q, (x * x).sum(0), atol=1e-5)
    s, _ = moments(x, device=device)
    assert np.allclose(s, x.sum(0), atol=1e-5)


def test_arrays_stay_on_the_device(device: tw.Device) -> None:
    x, b = arrays((5, 3), (3,))
    on_device = tw.asarray(x, device=device)
    y = tw.op(ADD)(on_device, b)
    z = tw.op(ADD)(y, tw.asarray(b, device=device), device=device)
    assert isinstance(z, tw.Array)
    assert z.device == device
    assert (z.shape, z.dtype) == ((5, 3), np.float32)
    assert np.allclose(z, x + b + b)
    assert np.array_equal(y.numpy(), x + b), "a result must not share memory with later runs of the op"


def test_results_are_their_own(device: tw.Device) -> None:
    add = tw.op(ADD)
    x, b = arrays((5, 3), (3,))
    first = add(tw.asarray(x, device=device), b)
    second = add(tw.asarray(2 * x, device=device), b)
    assert np.allclose(first, x + b)
    assert np.allclose(second, 2 * x + b)


def test_new_shapes_and_types_make_new_plans(device: tw.Device) -> None:
    add = tw.op(ADD)
    for rows in (1, 4, 7):
        x, b = arrays((rows, 3), (3,))
        assert np.array_equal(add(x, b, device=device), x + b)
    ints = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.array_equal(add(ints, ints[0], device=device), ints + ints[0])
    x, b = arrays((4, 3), (3,))
    assert add.plan(x, b, device=device) is add.plan(x, b, device=device)


def test_any_layout_and_byte_order(device: tw.Device) -> None:
    x, b = arrays((3, 5), (6,))
    expected = x.T + b[::2]
    assert np.array_equal(tw.op(ADD)(x.T, b[::2], device=device), expected)
    assert np.array_equal(tw.op(ADD)(x.T.astype(">f4"), b[::2], device=device), expected)


def test_numbers_and_lists_are_inputs(device: tw.Device) -> None:
    scale = tw.op("op scale(x[N], s[]) -> y[N]:\n    y[n] = x[n] * s[]")
    y = scale(np.ones(3, np.float32), 2.5, device=device)
    assert y.dtype == np.float32
    assert y.tolist() == [2.5] * 3


def test_a_total_has_rank_0(device: tw.Device) -> None:
    (x,) = arrays((4, 5))
    total = tw.op("op total(x[N,C]) -> s[]:\n    s[] = sum(n,c) x[n,c]")(x, device=device)
    assert total.shape == ()
    assert float(total) == pytest.approx(x.sum(), abs=1e-5)


def test_empty_arrays(device: tw.Device) -> None:
    empty = tw.op(ADD)(np.zeros((0, 3), np.float32), np.zeros(3, np.float32), device=device)
    assert empty.shape == (0, 3)
    s, _ = tw.op(MOMENTS)(np.zeros((0, 3), np.float32), device=device)
    assert s.tolist() == [0, 0, 0]


def test_many_threads_share_an_op(device: tw.Device) -> None:
    add = tw.op(ADD)
    wrong = []

    def work(seed: int) -> None:
        x = np.full((16, 3), seed, np.float32)
        for _ in range(20):
            if not (add(x, x[0], device=device) == 2 * seed).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- wrong arguments --------------------------------------------------------------------------------------------------

X, B = np.zeros((5, 3), np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ((X,), {}, r"op add takes 2 inputs \(x, b\), but b is missing"),
        ((), {}, r"op add takes 2 inputs \(x, b\), but x and b are missing"),
        ((X, B, B), {}, r"op add takes 2 inputs \(x, b\), found 3; parameters are given by name"),
        ((X, B), {"b": B}, r"op add: the input b is given twice"),
        ((X, B), {"c": B}, r"op add has no input or parameter c; there is x and b"),
        (
            (X, np.zeros(4, np.float32)),
            {},
            r"dimension 0 of b should be C = 3 \(from dimension 1 of x\), found 4",
        ),
        ((X[0], B), {}, r"op add: x should have 2 dimensions, found 1"),
        ((X, B.astype(complex)), {}, r"op add, the input b: dtype complex128 has no counterpart in the language"),
        ((X, [[1], [2, 3]]), {}, r"op add: the input b is no array"),
        ((X, None), {}, r"op add, the input b: dtype object has no counterpart"),
    ],
)
def test_wrong_arguments_are_explained(inputs: tuple, named: dict, message: str) -> None:
    with pytest.raises(tw.ShapeError, match=message):
        tw.op(ADD)(*inputs, **named)


def test_a_declared_type_is_not_converted() -> None:
    half = tw.op("op half(x[N]: f32) -> y[N]:\n    y[n] = x[n] / 2")
    with pytest.raises(tw.ShapeError, match="the input x should be f32, found f64"):
        half(np.zeros(3))


def test_devices_are_not_mixed() -> None:
    if len(devices()) < 2:
        pytest.skip("needs two devices")
    one, other = devices()[:2]
    x, b = tw.asarray(X, device=one), tw.asarray(B, device=other)
    with pytest.raises(tw.DeviceError, match=f"x on {one.name}, b on {other.name}.*move them with asarray"):
        tw.op(ADD)(x, b)
    with pytest.raises(tw.DeviceError, match=f"is to run on {other.name}, but x lies on {one.name}"):
        tw.op(ADD)(x, B, device=other)
    assert tw.asarray(x, device=other).device == other


def test_unknown_devices_and_wrong_texts() -> None:
    with pytest.raises(tw.DeviceError, match="there is no device 'abacus'"):
        tw.op(ADD)(X, B, device="abacus")
    with pytest.raises(tw.LanguageError, match="line 1, column"):
        tw.op("op f(x -> y")
    with pytest.raises(tw.LanguageError, match="one op is expected here"):
        tw.op(f"{ADD}\n{MOMENTS}\n")


def test_halves_work_on_every_device(device: tw.Device) -> None:
    x, b = (a.astype(np.float16) for a in arrays((5, 3), (3,)))
    y = tw.op(ADD)(x, b, device=device)
    assert y.dtype == np.float16
    assert np.allclose(y, x + b, atol=2e-3)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_describe_themselves(device: tw.Device) -> None:
    a = tw.asarray(X, device=device)
    assert repr(a) == f"<tilewright.Array f32[5, 3] on {device.name}>"
    assert tw.asarray(a) is a
    assert a.wait() is a
    assert np.asarray(a, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(a, copy=False)


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", "i8", "f2", "f4", "f8"])
def test_arrays_keep_every_bit(dtype: str, device: tw.Device) -> None:
    x = np.random.default_rng(0).integers(0, 100, (3, 4)).astype(dtype)
    copy = tw.asarray(x, device=device).numpy()
    assert copy.dtype == x.dtype
    assert np.array_equal(copy, x)


def test_only_numbers_become_arrays() -> None:
    with pytest.raises(tw.ShapeError, match="dtype complex128 has no counterpart in the language"):
        tw.asarray(np.zeros(3, complex))


# --- looking and tuning -----------------------------------------------------------------------------------------------


def test_an_op_shows_its_text() -> None:
    add = tw.op(ADD)
    assert add.__doc__ == ADD
    assert repr(add) == f"<tilewright.Op add>\n{ADD}"


def test_source_names_family_and_configuration(device: tw.Device) -> None:
    source = tw.op(ADD).source(X, B, device=device)
    assert re.match(r"// stage 1 of 1: family \w+, (default|nearest shape|tuned)", source)
    assert "y[n,c] = " in source
    assert "__kernel void" in source
    families = {name for stage in tw.op(ADD).space(X, B, device=device) for name in stage.spaces}
    assert families


def test_the_next_call_uses_what_tuning_found(
    device: tw.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "tuning.sqlite"))
    add = tw.op(ADD)
    x, b = arrays((300, 70), (70,))
    assert add.plan(x, b, device=device).calls[0].choice.origin == "default"
    events = []
    report = add.tune(x, b, device=device, evaluations=2, progress=events.append)
    assert report.evaluations == 2
    assert report.stages[0].name == "add"
    assert events
    assert add.plan(x, b, device=device).calls[0].choice.origin == "tuned"
    assert np.array_equal(add(x, b, device=device), x + b)


def test_a_broken_database_stops_tuning_but_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", "nonsense://nowhere")
    assert np.array_equal(tw.op(ADD)(X, B), X + B)
    assert "kernels run untuned" in caplog.text
    with pytest.raises(tw.DatabaseError):
        tw.op(ADD).tune(X, B, evaluations=1)


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md", "docs/how-to.md"])
def test_the_python_blocks_of_documents_run(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), document, "exec"), {})


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/quickstart.py"), run_name="__main__")
    assert "rows sum to 1: True" in capsys.readouterr().out


OPERANDS = {
    "bias_relu": [(2, 3, 4, 5), (3,)],
    "conv2d": [(1, 3, 8, 8), (4, 3, 3, 3)],
    "gemm": [(8, 16), (16, 12), (12,)],
    "layer_norm": [(6, 40), (40,), (40,)],
    "softmax": [(6, 40)],
}


def test_every_example_op_is_tested() -> None:
    assert {file.stem for file in (ROOT / "examples/ops").glob("*.tw")} == set(OPERANDS)


def _expected(name: str, x: np.ndarray, *more: np.ndarray) -> np.ndarray:
    match name:
        case "bias_relu":
            return np.maximum(x + more[0][:, None, None], 0)
        case "conv2d":
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
            return np.einsum("ncpqrs,ocrs->nopq", windows, more[0])
        case "gemm":
            return np.maximum(x @ more[0] + more[1], 0)
        case "layer_norm":
            return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * more[0] + more[1]
        case _:
            return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize("name", OPERANDS)
def test_example_ops_compute_what_they_say(name: str, device: tw.Device) -> None:
    inputs = arrays(*OPERANDS[name])
    f = tw.op((ROOT / f"examples/ops/{name}.tw").read_text())
    assert np.allclose(f(*inputs, device=device), _expected(name, *inputs), atol=1e-5)
