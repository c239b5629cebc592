"""The GPU benchmark without a GPU: peers that are stand-ins, networks that are small."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import gpu
import gpu_kernels
import gpu_networks
import gpu_report
import models
import numpy as np
import onnx
import pytest
from networks import model

from tilewright import torch_peer
from tilewright.bench import OURS_NUMPY, beside_torch, compare_with_torch
from tilewright.cli import main as command_line
from tilewright.errors import DeviceError, InputError
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, devices
from tilewright.torch_peer import EAGER, GRAPH, TorchRunners

SMALL = """
small (float[N,2,6,6] x) => (float[N,3] y) {
    c = Conv(x, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    y = Flatten(p)
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network, `small`, and a file that is none."""
    made = tmp_path_factory.mktemp("networks")
    weights = np.random.default_rng(0).standard_normal((3, 2, 3, 3), np.float32)
    onnx.save(model(SMALL, w=weights), made / "small.onnx")
    (made / "broken.onnx").write_bytes(b"nothing")
    return made


class Fake:
    """Stands for PyTorch: knows its networks by name, and gives runners that only count."""

    def __init__(self) -> None:
        self.calls = {EAGER: 0, GRAPH: 0}
        self.precisions: list[str] = []

    def runners(self, network: str, arrays: Sequence[Any], precision: str, on_gpu: bool) -> TorchRunners:
        """As `torch_peer.runners`."""
        assert network == "a module"
        self.precisions.append(precision)
        output = np.zeros((len(arrays[0]), 3), np.float32)
        return TorchRunners({EAGER: self._runner(EAGER), GRAPH: self._runner(GRAPH)}, lambda: 2e-3, (output,), 1 << 20)

    def _runner(self, name: str) -> Callable[[], None]:
        def count() -> None:
            self.calls[name] += 1

        return count

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of PyTorch."""
        monkeypatch.setattr(torch_peer, "versions", lambda: {"torch": "9.9", "torchvision": "0.9"})
        monkeypatch.setattr(torch_peer, "has_cuda", lambda: False)
        monkeypatch.setattr(torch_peer, "torchvision_network", lambda name: "a module")
        monkeypatch.setattr(torch_peer, "runners", self.runners)
        monkeypatch.setattr(torch_peer, "forget", lambda: None)
        monkeypatch.setattr(torch_peer, "torch_module", lambda: type("torch", (), {"get_num_threads": lambda: 2}))


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A PyTorch that is not there, and has no CUDA."""
    if "device" in request.fixturenames and request.getfixturevalue("device").kind == "gpu":
        pytest.skip("on GPUs a PyTorch without CUDA is no peer")
    made = Fake()
    made.install(monkeypatch)
    return made


def options(device: Device, folder: Path, **changes: Any) -> gpu_networks.Options:
    """A benchmark of the small network."""
    made = gpu_networks.Options(device, ("small",), (1, 3), ("fp32",), 0.0, folder, None, True, "2026-11-22")
    return replace(made, **changes)


def test_a_row_for_every_network_precision_and_batch(device: Device, folder: Path, fake: Fake) -> None:
    skipped: list[str] = []
    chosen = options(device, folder, precisions=("fp32", "fp16"))
    rows = list(gpu_networks.network_rows(chosen, skipped.append))
    assert not skipped
    assert [r.key for r in rows] == [(p, "small", n) for p in ("fp32", "fp16") for n in (1, 3)]
    assert fake.precisions == ["fp32", "fp32", "fp16", "fp16"]
    row = rows[1]
    assert set(row.wall) == {"tilewright", OURS_NUMPY, EAGER, GRAPH}
    assert row.wall[GRAPH].runs >= 5
    assert fake.calls[GRAPH] > 5
    ratio = row.ratio()
    assert ratio == row.wall[GRAPH].median / row.wall["tilewright"].median
    assert row.launches >= 1
    assert sum(row.origins.values()) >= 1
    # 3 images of 2×6×6 and 3 outputs of 3 numbers in f32 are the least that there is in memory
    assert row.memory["tilewright"] >= 4 * (3 * 72 + 9)
    assert row.memory[EAGER] == 1 << 20
    assert row.date == "2026-11-22"


def test_what_cannot_be_measured_is_told_and_left_out(device: Device, folder: Path, fake: Fake) -> None:
    skipped: list[str] = []
    chosen = options(device, folder, networks=("absent", "broken", "small"), batches=(1,))
    assert [r.network for r in gpu_networks.network_rows(chosen, skipped.append)] == ["small"]
    assert len(skipped) == 2
    assert "holds no absent.onnx; put it there" in skipped[0]
    assert skipped[1].startswith("broken fp32: ModelError: ")


def test_without_pytorch_there_are_our_figures_alone(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = list(gpu_networks.network_rows(options(device, folder, batches=(2,)), pytest.fail))
    assert set(rows[0].wall) == {"tilewright", OURS_NUMPY}
    assert rows[0].ratio() is None
    assert torch_peer.versions() == {}
    assert not torch_peer.has_cuda()


def test_equal_weights_are_compared(device: Device, folder: Path, fake: Fake) -> None:
    session = InferenceSession(folder / "small.onnx", device)
    feeds = {"x": np.ones((2, 2, 6, 6), np.float32)}
    assert beside_torch("small", session, feeds, "a module", 0.0).difference is None
    # the stand-in's outputs are zeros, so that the difference is that of ours from nothing
    difference = beside_torch("small", session, feeds, "a module", 0.0, True).difference
    assert difference == pytest.approx(float(np.abs(session.run(None, feeds)[0]).max()))


def test_kernels_are_right_in_every_layout(device: Device, folder: Path) -> None:
    for case in (gpu_kernels.conv_case(last, "fp32", 1, 8, 5) for last in (False, True)):
        row = gpu_kernels.measure(case, options(device, folder), False)
        assert row.ratio is None
        assert not row.errors  # without PyTorch nobody has the answer
        x, w = case.arrays.values()
        if "NHWC" in case.name:
            x, w = x.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2)
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        expected = np.einsum("nchwrs,ocrs->nohw", windows, w.astype(np.float64))
        result = np.asarray(gpu_kernels.op_of(case.text, "fp32")(*case.arrays.values(), device=device))
        result = result.transpose(0, 3, 1, 2) if "NHWC" in case.name else result
        assert np.abs(result - expected).max() < 1e-5 * np.abs(expected).max()
        assert row.operations == 2 * expected.size * 8 * 9


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("tf32", 2e-3), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_products_in_every_precision(device: Device, folder: Path, precision: str, tolerance: float) -> None:
    row = gpu_kernels.measure(gpu_kernels.gemm_case(33, precision), options(device, folder), False)
    assert row.errors["tilewright"] < tolerance
    assert row.operations == 2 * 33**3
    assert row.choice


def test_everything_together_as_tables_and_json(
    device: Device, folder: Path, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "results.json"
    monkeypatch.setattr(gpu_kernels, "conv_case", lambda last, p: gpu_kernels.gemm_case(9 + last, p))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    arguments = ["gpu.py", "--device", device.name, "--networks", "small", "--precisions", "fp32", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--models", str(folder), "--batches", "1", "--gemm", "8",
                                      "--json", str(file)])  # fmt: skip
    gpu.main()
    values = json.loads(file.read_text())
    assert values["machine"]["driver"] == device.driver
    assert values["networks"][0]["ratio"] > 0
    assert [k["kernel"] for k in values["kernels"]] == ["GEMM 8", "GEMM 9", "GEMM 10"]
    shown = capsys.readouterr().out
    assert "| small " in shown
    assert "| GEMM 8 " in shown
    assert device.opencl_name in shown
    # a second part is added to the first
    monkeypatch.setattr(sys, "argv", [*arguments, "--models", str(folder), "--batches", "2", "--gemm", "",
                                      "--json", str(file)])  # fmt: skip
    gpu.main()
    assert [r["batch"] for r in json.loads(file.read_text())["networks"]] == [1, 2]
    assert len(gpu_report.read(file).kernels) == 3
    # what is there is not measured again where that is not wanted
    calls = fake.calls[GRAPH]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--missing", "--gemm", "8"])
    gpu.main()
    assert fake.calls[GRAPH] == calls
    assert gpu_report.read(file).kernels[0].device == gpu_report.from_json(values).kernels[0].device


def test_what_was_measured_before_a_stop_is_shown(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: object) -> Iterator[gpu_report.KernelRow]:
        yield gpu_report.KernelRow("GEMM 8", "fp32", {"tilewright": figures.timing([1.0])}, 1024.0, {})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "network_rows", lambda *_: iter(()))
    monkeypatch.setattr(gpu, "kernel_rows", rows)
    kept: list[gpu_report.Report] = []
    found = gpu.measured(gpu_report.Report({}), options(device, Path()), (8,), kept.append)
    assert [k.kernel for k in found.kernels] == ["GEMM 8"] == [k.kernel for k in kept[-1].kernels]
    assert found.skipped == ("the rest: stopped",)


def test_files_are_shown_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    m = {"device": "a card", "driver": "1", "date": "2026-11-22", "tilewright": "1.0"}
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for n, file in enumerate(files):
        row = gpu_report.KernelRow(f"GEMM {8 << n}", "fp32", {"tilewright": figures.timing([1.0])}, 1024.0, {})
        file.write_text(json.dumps(gpu_report.to_json(gpu_report.Report(m, (), (row,)))))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--show", *map(str, files)])
    gpu.main()
    shown = capsys.readouterr().out
    assert "a card, driver 1, 2026-11-22" in shown
    assert "| GEMM 8 " in shown
    assert "| GEMM 16 " in shown
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--show", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no file" in capsys.readouterr().err


def test_without_a_gpu_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: tuple(d for d in devices() if d.kind == "cpu"))
    with pytest.raises(DeviceError, match=r"OpenCL finds no GPU here .*, so nothing is measured; --device takes"):
        gpu.chosen_device(None)


def test_unknown_words_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TILEWRIGHT_MODELS", raising=False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--networks", "alexnet,lenet", "--precisions", "fp12"])
    monkeypatch.setattr(gpu, "default_folder", lambda: None)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "lenet, fp12 is unknown" in capsys.readouterr().err


# --- where networks come from -----------------------------------------------------------------------------------------

SCRIPT = """
import onnx
def materialize(path):
    model = onnx.load(path)
    model.doc_string = "filled"
    return model
"""


def test_graphs_without_weights_are_filled_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    graphs = tmp_path / "set" / models.GRAPHS
    graphs.mkdir(parents=True)
    (graphs / "net.onnx").write_bytes((folder / "small.onnx").read_bytes())
    with pytest.raises(InputError, match=r"graphs without weights, but no materialize\.py"):
        models.source("net", tmp_path / "set")
    (tmp_path / "set" / "materialize.py").write_text(SCRIPT)
    found = models.source("net", tmp_path / "set")
    assert onnx.load(found.file).doc_string == "filled"
    assert not found.same_weights
    (tmp_path / "set" / "materialize.py").unlink()
    assert models.source("net", tmp_path / "set") == found


def test_exported_networks_have_the_peers_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch_peer, "export", lambda name, file: file.parent.mkdir(parents=True) or file.touch())
    found = models.source("alexnet", None)
    assert found.same_weights
    assert found.file.is_file()
    assert found.file.name == "alexnet.onnx"


# --- tilewright bench --against torch ---------------------------------------------------------------------------------


def test_against_pytorch_says_what_is_missing(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command_line(["bench", str(folder / "small.onnx"), "--against", "torch", "--device", device.name]) == 2
    assert "PyTorch is not installed; install it with: pip install torch torchvision" in capsys.readouterr().err


def test_against_pytorch_takes_other_files_through_onnx2torch(
    device: Device, folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(folder / "small.onnx"), "--against", "torch", "--device", device.name, "--seconds", "0"]
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    assert command_line(arguments) == 2
    assert "small.onnx is none of torchvision's networks known here" in capsys.readouterr().err
    monkeypatch.setattr(torch_peer, "network_of_file", lambda file: "a module")
    assert command_line([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["peer"] == GRAPH
    assert values["ratio"] == pytest.approx(
        values["milliseconds"][GRAPH]["median"] / values["milliseconds"]["tilewright"]["median"]
    )
    assert values["largest_difference"] > 0
    assert command_line(arguments) == 0
    shown = capsys.readouterr().out
    assert f"({GRAPH}'s median / ours, above 1 we are faster)" in shown
    assert "device memory: tilewright " in shown


def test_a_gpu_needs_a_pytorch_with_cuda(folder: Path, device: Device, fake: Fake) -> None:
    session = InferenceSession(folder / "small.onnx", device)
    session.device = replace(device, kind="gpu")
    with pytest.raises(InputError, match=r"PyTorch finds no CUDA device to stand beside .*; install a PyTorch"):
        compare_with_torch(folder / "small.onnx", session)


# --- PyTorch itself, where it is installed ----------------------------------------------------------------------------


def test_pytorch_on_the_cpu_gives_its_numbers() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU()).eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 5), np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    found = torch_peer.runners(module, [x], "fp32", False)
    assert set(found.functions) == {EAGER}
    np.testing.assert_allclose(found.outputs[0], expected, rtol=1e-6, atol=1e-6)
    assert not torch.backends.cuda.matmul.allow_tf32
    halves = torch_peer.runners(module, [x], "bf16", False)
    np.testing.assert_allclose(halves.outputs[0], expected, rtol=0.1, atol=0.05)
    torch_peer.set_precision("tf32")
    assert torch.backends.cudnn.allow_tf32


def test_bfloat16_arrays_reach_pytorch() -> None:
    torch = pytest.importorskip("torch")
    array = gpu_kernels.gemm_case(3, "bf16").arrays["a"]
    tensor = torch_peer.on_device(array, "cpu")
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_errors_are_those_from_pytorchs_product_in_f64(precision: str) -> None:
    torch = pytest.importorskip("torch")
    for case in (gpu_kernels.gemm_case(9, precision), gpu_kernels.conv_case(True, precision, 1, 4, 5)):
        inputs = [torch_peer.on_device(a, "cpu") for a in case.arrays.values()]
        exact = case.torch(torch, [x.double() for x in inputs]).numpy()
        result = exact.astype(case.arrays[next(iter(case.arrays))].dtype)
        result[0, 0] += 1
        found = gpu_kernels.torch_errors(case, torch, inputs, result)
        assert found["tilewright"] == pytest.approx(1 / np.abs(exact).max(), rel=0.02)
        assert 0 < found[case.peer] < 0.02
