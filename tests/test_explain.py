"""Explanations of ops: families and refusals, bounds from measured limits, spaces and what narrows them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.choices import COUNTED, count_legal
from tilewright.cli import commands
from tilewright.dsl import families
from tilewright.dsl.parse import parse_op
from tilewright.dsl.space import Configuration, Constraint, Parameter, Space
from tilewright.explain import Bound, bound_of
from tilewright.runtime import roofline
from tilewright.runtime.roofline import Limits, device_limits, limits_file
from tilewright.wording import duration, quantity, row

ROOT = Path(__file__).parent.parent
GEMM = "op gemm(a[M,K], b[K,N]) -> c[M,N]:\n    c[m,n] = sum(k) a[m,k] * b[k,n]"
PRODUCTS = ("contract", "matrix", "wgmma")
"""Families of matrix products."""
SOFTMAX = """op softmax(x[R,K]) -> y[R,K]:
    m[r] = max(k) x[r,k]
    y[r,k] = exp(x[r,k] - m[r])"""
A, B = np.ones((60, 70), np.float32), np.ones((70, 50), np.float32)

LIMITS = Limits("d", "v", 1e-6, ((1 << 20, 4e10), (1 << 24, 1e10)), {"f32": 1e11, "f64": 5e10}, "2026-01-01T00:00:00")


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_product_is_its_arithmetic() -> None:
    program = parse_op(GEMM).specialise({"a": (512, 512), "b": (512, 512)})
    bound = bound_of(program, LIMITS)
    assert bound.bytes_moved == 3 * 4 * 512**2
    assert bound.operations == 2 * 512**3
    assert bound.intensity == pytest.approx(2 * 512**3 / (12 * 512**2))
    assert bound.by == "arithmetic"
    assert bound.seconds == pytest.approx(1e-6 + 2 * 512**3 / 1e11)


def test_the_bound_of_a_pointwise_op_is_its_memory() -> None:
    program = parse_op("op f(x[N]: f64) -> y[N]: f64:\n    y[n] = x[n] + 1").specialise({"x": (1 << 20,)})
    bound = bound_of(program, LIMITS)
    assert bound.bytes_moved == 1 << 24
    assert bound.by == "memory"
    assert bound.rate == 5e10, "f64 has a rate of its own"
    assert bound.seconds == pytest.approx(1e-6 + (1 << 24) / 1e10)


def test_tiny_and_empty_stages_are_bound_by_the_launch() -> None:
    for n in (1, 0):
        bound = bound_of(parse_op("op f(x[N]) -> y[N]:\n    y[n] = x[n] + 1").specialise({"x": (n,)}), LIMITS)
        assert bound.by == "launch"
        assert bound.intensity == (1 / 8 if n else 0)


def test_bandwidths_between_measured_sizes() -> None:
    assert LIMITS.bandwidth(1) == 4e10
    assert LIMITS.bandwidth(1 << 22) == pytest.approx(2.5e10)
    assert LIMITS.bandwidth(1 << 40) == 1e10
    assert LIMITS.rate("i32") == 1e11


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_measured_once(device: tw.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    first = device_limits(device)
    assert first.device == device.identity
    assert set(first.rates) == ({"f32", "f64"} if device.target.has_f64 else {"f32"})
    figures = (first.launch_seconds, *first.rates.values(), *(speed for _, speed in first.bandwidths))
    assert all(math.isfinite(f) and f > 0 for f in figures)
    assert 1e8 < first.rates["f32"] < 1e15
    assert all(1e8 < speed < 1e14 for _, speed in first.bandwidths)
    assert [size for size, _ in first.bandwidths] == sorted(size for size, _ in first.bandwidths)

    def refuse(ctx: object) -> Limits:
        raise AssertionError("measured again")

    monkeypatch.setattr(roofline, "measure", refuse)
    assert device_limits(device) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: {},
        lambda fields: {**fields, "version": 0},
        lambda fields: {**fields, "device": "another"},
        lambda fields: {**fields, "bandwidths": []},
        lambda fields: {**fields, "bandwidths": [[1, "fast"]]},
        lambda fields: {**fields, "rates": {"f64": 1.0}},
        lambda fields: {**fields, "launch_seconds": -1.0},
        lambda fields: {**fields, "odd": 1},
        lambda fields: [fields],
    ],
)
def test_damaged_limits_are_measured_again(
    damage: object, device: tw.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    right = replace(LIMITS, device=device.identity, driver=device.driver)
    monkeypatch.setattr(roofline, "measure", lambda ctx: right)
    assert device_limits(device) == right
    file = limits_file(device)
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))  # type: ignore[operator]
    again = replace(right, launch_seconds=2e-6)
    monkeypatch.setattr(roofline, "measure", lambda ctx: again)
    assert device_limits(device) == again
    file.write_bytes(b"\xff{")
    assert device_limits(device) == again
    monkeypatch.setattr(roofline, "measure", lambda ctx: right)
    assert device_limits(device) == again
    assert device_limits(device, again=True) == right


# --- explanations -----------------------------------------------------------------------------------------------------


def test_every_family_is_accounted_for(device: tw.Device) -> None:
    found = tw.op(GEMM).explain(A, B, device=device, measure=False)
    (stage,) = found.stages
    assert [v.family for v in stage.verdicts] == [f.name for f in families.FAMILIES]
    by_name = {v.family: v for v in stage.verdicts}
    assert stage.family in PRODUCTS
    assert by_name[stage.family].chosen
    assert by_name["map"].reason == "does not fit: it has a reduction"
    assert by_name["naive"].reason == "fits, as everything does; it is for what no other family fits"
    assert by_name["reduce"].reason == "fits, comes later and was not measured"
    assert sum(v.chosen for v in stage.verdicts) == 1
    assert stage.origin in ("default", "nearest shape")  # what is shipped for this device may be near
    assert stage.seconds is None
    assert stage.share is None
    assert found.seconds is None


def test_stages_are_timed(device: tw.Device) -> None:
    found = tw.op(GEMM).explain(A, B, device=device)
    (stage,) = found.stages
    assert stage.measured_now
    assert stage.seconds is not None
    assert stage.share is not None
    assert stage.seconds > 0
    assert stage.share == pytest.approx(stage.bound.seconds / stage.seconds)
    assert found.seconds == stage.seconds
    text = str(found)
    assert text.startswith(f"op gemm on {device.name}\nlimits measured ")
    for part in (
        "computes  c[m,n] = ",
        f"family    {stage.family} (",
        f": {stage.origin}",
        "map: does not fit: it has a reduction",
        "bound  ",
    ):
        assert part in text
    assert f"{100 * stage.share:.0f}% of the bound" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_results_are_right_after_an_explanation(device: tw.Device) -> None:
    softmax, x = tw.op(SOFTMAX), np.random.default_rng(0).standard_normal((30, 40), np.float32)
    found = softmax.explain(x, device=device)
    assert all(stage.seconds for stage in found.stages)
    assert np.allclose(softmax(x, device=device), np.exp(x - x.max(1, keepdims=True)), atol=1e-6)
    on_device = tw.asarray(x, device=device)
    assert len(softmax.explain(on_device).stages) == len(found.stages)


def test_nothing_to_run(device: tw.Device) -> None:
    found = tw.op(GEMM).explain(np.zeros((0, 7), np.float32), np.zeros((7, 5), np.float32), device=device)
    assert found.stages == ()
    assert found.seconds == 0
    assert "nothing runs: all outputs are empty" in str(found)


def test_a_tuned_stage_names_its_rivals(device: tw.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "tuning.sqlite"))
    gemm = tw.op(GEMM)
    gemm.tune(A, B, device=device, evaluations=6)
    (stage,) = gemm.explain(A, B, device=device, measure=False).stages
    assert stage.origin == "tuned"
    assert not stage.measured_now
    chosen = next(v for v in stage.verdicts if v.chosen)
    assert chosen.tried >= 1
    assert stage.seconds is not None
    assert "of the stored winner" in str(stage)
    for verdict in stage.verdicts:
        if verdict.tried and not verdict.chosen and verdict.refusal is None:
            assert "when tuned: " in verdict.reason


def test_bounds_that_are_beaten_are_pointed_out(device: tw.Device) -> None:
    (stage,) = tw.op(GEMM).explain(A, B, device=device).stages
    slow = replace(stage, bound=Bound(1, 1, 1.0, 1.0, 100.0), seconds=1.0)
    assert slow.share == 101
    assert "the limits were measured on a busier device, measure them again" in str(slow)


# --- spaces -----------------------------------------------------------------------------------------------------------


def test_spaces_show_parameters_and_counts(device: tw.Device) -> None:
    found = tw.op(GEMM).space(A, B, device=device)
    assert len(found) == 1
    contract = next(f for f in found[0].families if f.family == "contract")
    assert contract.space.raw_size == math.prod(len(p.values) for p in contract.parameters)
    assert contract.space.violated(contract.default) is None
    assert 0 < contract.legal.number <= contract.space.raw_size
    assert contract.narrowed == ()
    assert contract.legal == contract.undeclared_legal
    text = str(found)
    assert f"contract: {contract.legal} legal of {contract.space.raw_size:,} configurations" in text
    assert all(p.meaning.split()[0] in text for p in contract.parameters)
    assert found[0].spaces["contract"] is contract.space


def test_the_texts_own_lines_narrow_the_space(device: tw.Device) -> None:
    tiled = tw.op(f"{GEMM}\n    unroll k: 4\n    tile k: 16")  # one of them for each kind of device
    whole, (stage,) = tw.op(GEMM).space(A, B, device=device), tiled.space(A, B, device=device).stages
    contract = next(f for f in stage.families if f.family == "contract")
    free = next(f for f in whole[0].families if f.family == "contract")
    assert contract.narrowed
    assert contract.undeclared.raw_size == free.space.raw_size
    assert contract.undeclared_legal == free.legal
    for n in contract.narrowed:
        assert len(n.after) < len(n.before)
        assert set(n.after) <= set(n.before)
        assert f"{', '.join(map(str, n.before))} -> {', '.join(map(str, n.after))}" in " ".join(str(stage).split())
    assert contract.legal.number < contract.undeclared_legal.number
    assert "without the op's own lines" in str(stage)


def space_of(sizes: tuple[int, ...], *constraints: Constraint) -> Space:
    return Space(tuple(Parameter(f"p{n}", tuple(range(size)), "one") for n, size in enumerate(sizes)), constraints)


def test_small_spaces_are_counted_exactly() -> None:
    space = space_of((7, 11, 3), Constraint("odd", lambda c: (c.integer("p0") + c.integer("p1")) % 2 == 0))
    found = count_legal(space)
    assert found.exact
    assert found.number == sum((a + b) % 2 == 0 for a in range(7) for b in range(11)) * 3
    assert str(found) == f"{found.number}"
    assert count_legal(space_of(())).number == 1


def test_huge_spaces_are_counted_in_part() -> None:
    even = Constraint("odd", lambda c: c.integer("p0") % 2 == 0)
    start = time.perf_counter()
    found = count_legal(space_of((1000,) * 12, even))
    assert time.perf_counter() - start < 30
    assert not found.exact
    assert 0.3 * COUNTED < found.number < 0.7 * COUNTED, "the points that are looked at are spread over the space"
    assert str(found).startswith("at least ")
    never = Constraint("never", lambda c: c.integer("p0") == 999 and c.integer("p1") == 999 and c.integer("p2") == 999)
    assert count_legal(space_of((1000,) * 12, never), Configuration.of({"p0": 999})).number >= 1


def test_points_are_numbered_in_the_order_of_iteration() -> None:
    space = space_of((3, 4, 2))
    assert [space.point(n) for n in range(space.raw_size)] == list(space)


# --- in words and on the command line ---------------------------------------------------------------------------------


def test_figures_in_words() -> None:
    assert [duration(s) for s in (2.5, 0.0123, 4.56e-5, 0)] == ["2.5 s", "12.3 ms", "45.6 µs", "0 µs"]
    assert [quantity(n, "B") for n in (0, 999, 1234, 5e6, 7.77e9, 2e12)] == [
        "0 B", "999 B", "1.23 kB", "5 MB", "7.77 GB", "2 TB",
    ]  # fmt: skip
    assert row("name", ["a", "b"]) == "  name      a\n            b"


def command(*arguments: str) -> str:
    result = CliRunner().invoke(commands, ["explain", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


GEMM_FILE = str(ROOT / "examples/ops/gemm.tw")
SHAPES = ("--shape", "a=32x48", "--shape", "b=48x40", "--input", "bias=40")


def test_the_command_explains(device: tw.Device) -> None:
    text = command(GEMM_FILE, *SHAPES, "--device", device.name)
    assert "% of the bound" in text
    found = json.loads(command(GEMM_FILE, *SHAPES, "--device", device.name, "--json", "--stored"))
    assert found["op"] == "gemm"
    assert found["stages"][0]["family"] in PRODUCTS
    assert found["limits"]["rates"]["f32"] > 0
    assert {v["family"] for v in found["stages"][0]["verdicts"]} == {f.name for f in families.FAMILIES}


def test_the_command_shows_spaces(device: tw.Device) -> None:
    assert "legal of" in command(GEMM_FILE, *SHAPES, "--device", device.name, "--space")
    found = json.loads(command(GEMM_FILE, *SHAPES, "--device", device.name, "--space", "--json"))
    first = found["stages"][0]["families"][0]
    assert first["family"] in PRODUCTS
    assert first["legal"]["number"] > 0
    assert first["default"].keys() == {p["name"] for p in first["parameters"]}


def test_networks_are_shown_otherwise(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    with pytest.raises(tw.InputError, match="is a network; 'tilewright show --profile' shows its launches"):
        CliRunner().invoke(commands, ["explain", str(model)], catch_exceptions=False)
