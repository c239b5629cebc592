"""The GPU benchmark's figures, tables and picture; tuning many networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from figures import Timing, geometric_mean, markdown, timing
from gpu_plot import plot
from gpu_report import (
    EAGER,
    GRAPH,
    OURS,
    KernelRow,
    NetworkRow,
    Report,
    from_json,
    kernel_table,
    means,
    network_tables,
    overview,
    resume,
    to_json,
)

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "date": "2026-11-22"}


def at(median: float) -> Timing:
    """A timing of ten equal runs."""
    return Timing(median, median, median, 10)


def network(name: str, batch: int, precision: str, ours: float, graph: float | None = None) -> NetworkRow:
    """A row; eager mode takes twice as long as the graph."""
    wall = {OURS: at(ours)} | ({} if graph is None else {GRAPH: at(graph), EAGER: at(2 * graph)})
    memory = {OURS: 30 << 20} | ({} if graph is None else {EAGER: 40 << 20})
    return NetworkRow(name, batch, precision, wall, {OURS: at(ours)}, memory, 20, {"tuned": 3, "default": 1})


ROWS = (
    network("resnet50", 1, "fp32", 1.0, 2.0),
    network("resnet50", 16, "fp32", 4.0, 2.0),
    network("vit_b_16", 1, "fp32", 1.0, 8.0),
    network("vit_b_16", 1, "fp16", 1.0, None),
)
KERNEL = KernelRow("GEMM 1000", "fp32", {OURS: at(0.1), "cuBLAS": at(0.05)}, 2e9, {OURS: 1e-7}, "contract a=1 (tuned)")


def test_ratios_are_the_peers_time_over_ours() -> None:
    assert ROWS[0].ratio() == 2.0
    assert ROWS[0].ratio(EAGER) == 4.0
    assert ROWS[3].ratio() is None
    assert ROWS[0].memory_ratio == 0.75
    assert ROWS[3].memory_ratio is None
    assert KERNEL.ratio == 0.5
    assert KERNEL.peer == "cuBLAS"
    assert KERNEL.tflops(OURS) == pytest.approx(20.0)


def test_published_times_count_for_their_device_and_precision_alone() -> None:
    assert ROWS[0].dlprimitives("NVIDIA H100 80GB HBM3") == pytest.approx(5.20)
    assert ROWS[0].dlprimitives("NVIDIA A100") is None
    assert network("resnet50", 1, "fp16", 1.0).dlprimitives("NVIDIA H100 80GB HBM3") is None
    assert ROWS[2].dlprimitives("NVIDIA H100 80GB HBM3") is None


def test_means_are_geometric_by_precision_and_batch() -> None:
    found = means(ROWS)
    assert [(m.precision, m.batch, m.networks) for m in found] == [("fp32", 1, 2), ("fp32", 16, 1), ("fp32", None, 3)]
    assert [m.mean for m in found] == pytest.approx([4.0, 0.5, 2.0])
    assert [m.least for m in found] == [2.0, 0.5, 0.5]
    assert math.isnan(geometric_mean([]))


def test_timings_hold_the_middle_and_the_spread() -> None:
    found = timing([1e-3 * n for n in range(1, 12)])
    assert (found.median, found.low, found.high, found.runs) == pytest.approx((6.0, 2.0, 10.0, 11))
    assert found.spread == pytest.approx(8 / 6)


def test_json_and_back() -> None:
    report = Report(MACHINE, ROWS, (KERNEL,))
    values = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert values["networks"][0]["ratio"] == 2.0
    assert values["networks"][0]["ratio_dlprimitives"] == pytest.approx(5.2)
    assert values["geometric_means"][2] == {
        "precision": "fp32",
        "batch": None,
        "mean": pytest.approx(2.0),
        "least": 0.5,
        "networks": 3,
    }
    assert from_json(values) == report


def test_rows_replace_older_ones_of_the_same_key() -> None:
    newer = replace(ROWS[0], date="2026-11-23")
    report = Report(MACHINE, ROWS, (KERNEL,)).with_rows([newer], [replace(KERNEL, date="2026-11-23")])
    assert len(report.networks) == len(ROWS)
    assert report.networks[0] is newer
    assert [k.date for k in report.kernels] == ["2026-11-23"]


def test_results_are_added_to_those_of_the_same_device(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert resume(file, MACHINE) == Report(MACHINE)
    file.write_text(json.dumps(to_json(Report(MACHINE, ROWS))))
    later = {**MACHINE, "date": "2026-12-01"}
    assert resume(file, later) == Report(later, ROWS)
    with pytest.raises(ValueError, match=r"holds results of driver '580\.1', not '590\.2'; give another file"):
        resume(file, {**MACHINE, "driver": "590.2"})
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no results of this benchmark"):
        resume(file, MACHINE)


def test_tables_in_markdown() -> None:
    text = markdown(["name", "ms"], [["a", "1.00"], ["longer", "12.00"]])
    assert text.splitlines() == [
        "| name   |    ms |",
        "| ------ | ----: |",
        "| a      |  1.00 |",
        "| longer | 12.00 |",
    ]
    tables = network_tables(Report(MACHINE, ROWS))
    assert "fp32: milliseconds per batch" in tables
    assert "DLPrimitives/ours" in tables.split("fp16: milliseconds per batch")[0]
    first = next(line for line in tables.splitlines() if line.startswith("| resnet50"))
    cells = [cell.strip() for cell in first.strip("| ").split("|")]
    assert cells[:3] == ["resnet50", "1", "1.000"]
    assert "2.00" in cells  # the ratio to the graph
    assert "0.75" in cells  # our memory over PyTorch's
    assert "3/4" in cells  # tuned stages
    assert "geometric mean" in tables
    assert "| GEMM 1000 |" in kernel_table(Report(MACHINE, (), (KERNEL,)))
    assert network_tables(Report(MACHINE)) == ""


def test_an_overview_has_a_column_per_precision() -> None:
    lines = overview(Report(MACHINE, ROWS)).splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert rows[0] == ["network", "batch", "fp32", "fp16", "memory, fp32"]
    assert rows[2] == ["resnet50", "1", "1.00 / 2.00 = 2.00", "-", "0.75"]
    assert rows[4] == ["vit_b_16", "1", "1.00 / 8.00 = 8.00", "1.00", "0.75"]
    assert overview(Report(MACHINE)) == ""


def test_the_picture_has_a_panel_per_precision(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = (*ROWS[:3], network("vit_b_16", 1, "fp16", 1.0, 0.9))
    assert plot(Report(MACHINE, rows), tmp_path / "new" / "bars.png")
    one = (tmp_path / "new" / "bars.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert plot(Report(MACHINE, ROWS), tmp_path / "narrower.png")

    def width(png: bytes) -> int:
        return int.from_bytes(png[16:20], "big")

    assert width(one) > width((tmp_path / "narrower.png").read_bytes())
    assert not plot(Report(MACHINE, ROWS[3:]), tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
