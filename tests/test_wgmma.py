"""Contractions by warpgroup instructions: sources and spaces without a device, numbers where there are such."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import run
from targets import CPU, GPU
from warpgroup_emulation import available, emulate, emulated
from wgmma_cases import H100, Case, convolution, gemm

from tilewright.autotune.candidates import stage_space
from tilewright.autotune.space_building import table
from tilewright.dsl import families
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.contraction import recognise
from tilewright.dsl.families.matrix_operands import products, sides
from tilewright.dsl.families.wgmma import WGMMA
from tilewright.dsl.families.wgmma_pack import Panels, pack
from tilewright.dsl.families.wgmma_plan import Plan
from tilewright.dsl.parse import parse_op
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Target
from tilewright.errors import KernelError
from tilewright.runtime import Context, Device
from tilewright.runtime.nvidia import matrix_unit
from tilewright.runtime.nvidia_wgmma import MARK, needs_retargeting, retargeted

KINDS = ("fp16", "bf16", "tf32", "fp32")
FIRST = (("fp16", 64, 1), ("bf16", 40, 2), ("tf32", 64, 2), ("fp32", 36, 1))
"""Kind, channels and step of convolutions with channels first: whole steps of the depth and parts of one."""


def cases() -> list[Case]:
    """Every kind of products with every way of loading: boxes of both orders, pieces, panels."""
    found = [gemm(kind, 200, 152, 136) for kind in KINDS]
    found += [gemm("fp16", 72, 264, 96, b="n,k", batch=3), gemm("bf16", 65, 72, 40, a="k,m", seed=1)]
    found += [convolution(kind, 2, 24, 9, 40, 3, 1, 1) for kind in KINDS]
    found += [convolution("fp16", 3, 40, 8, 48, 1, 1, 0, "rows"), convolution("tf32", 1, 64, 11, 37, 5, 2, 2)]
    found += [convolution(kind, 2, c, 9, 40, 3, step, 1, "rows") for kind, c, step in FIRST]
    return found


CASES = cases()
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[f"{c.program.name}-{c.kind}-{n}" for n, c in enumerate(CASES)])


def configurations(case: Case, seed: int, count: int) -> list[Configuration]:
    """The default and some at random."""
    space, rng = WGMMA.space(case.program, H100), random.Random(seed)
    drawn = [space.sample(rng) for _ in range(count)]
    return [WGMMA.default(case.program, H100), *(c for c in drawn if c is not None)]


def test_a_target_with_warpgroup_instructions_is_a_key() -> None:
    assert {H100: "found"}[replace(H100)] == "found"


@EVERY_CASE
def test_every_configuration_is_written_within_the_limits_of_its_plan(case: Case) -> None:
    assert WGMMA.refusal(case.program, H100) is None
    space = WGMMA.space(case.program, H100)
    chosen = configurations(case, 0, 12)
    assert len(chosen) > 6
    for configuration in chosen:
        assert space.violated(configuration) is None
        lowering = WGMMA.lower(case.program, H100, configuration)
        source = next(x.source for x in lowering.launches if "TW_BAR_INIT(full" in x.source)
        room = int(re.search(r"uint4 room\[(\d+)\]", source)[1]) * 16
        results = int(re.search(r"float results\[(\d+)\]", source)[1]) * 4
        view = recognise(case.program)[configuration.integer("view")]
        plan = Plan.of(view, case.program, H100, configuration)
        assert room + results <= plan.local_bytes <= H100.local_memory
        assert lowering.launches[-1].writes[0] == case.program.outputs[0].name


@pytest.mark.parametrize("target", [H100, CPU], ids=["gpu", "cpu"])
def test_constraints_read_only_what_decides_them(target: Target) -> None:
    """Listing a space asks each constraint about all values that it reads: thousands of questions take seconds."""
    program = convolution("fp32", 2, 64, 14, 96, 3, 1, 1).program
    for name, space in stage_space(program, target, families.fitting).spaces.items():
        for constraint in space.constraints:
            assert table(constraint.holds, space, asked=4500) is not None, f"{name}: {constraint.reason}"


def test_a_source_is_complete_without_the_marked_instructions() -> None:
    """A compiler for plain sm_90 must see none of them: each stands behind the mark, in a comment of its own."""
    source = WGMMA.lower(CASES[0].program, H100, WGMMA.default(CASES[0].program, H100)).launches[-1].source
    assert needs_retargeting(source)
    for line in source.split("\n"):
        for name in ("wgmma.", "cp.async.bulk", "mbarrier.", "fence.proxy"):
            if name in line and not line.lstrip().startswith("//"):
                assert line.index(MARK) < line.index(name)


REFUSED = [
    (CPU, "f16", (64, 64, 64), "no matrix instructions for groups of sub-groups"),
    (GPU, "f16", (64, 64, 64), "no matrix instructions for groups of sub-groups"),
    (replace(GPU, matrix=matrix_unit((8, 0))), "f16", (64, 64, 64), "no matrix instructions for groups"),
    (H100, "f64", (64, 64, 64), "its sums are f64, not f32"),
    (H100, "f16", (64, 31, 64), "fewer than 32 rows, columns or steps of depth"),
]


@pytest.mark.parametrize(("target", "dtype", "sizes", "reason"), REFUSED)
def test_what_does_not_fit_is_refused_with_a_reason(target, dtype, sizes, reason) -> None:
    m, n, k = sizes
    wide = "f64" if dtype == "f64" else "f32"
    head = f"op g(a[M,K]: {dtype}, b[K,N]: {dtype}) -> c[M,N]: {wide}:\n"
    text = f"{head}    c[m,n] = sum(k) {wide}(a[m,k]) * {wide}(b[k,n])"
    program = parse_op(text).specialise({"a": (m, k), "b": (k, n)})
    assert reason in str(WGMMA.refusal(program, target))


def test_an_image_that_would_be_packed_nine_times_is_refused() -> None:
    case = convolution("fp16", 2, 36, 9, 40, 3, 1, 1, "rows")  # 72 bytes of channels are no whole pieces
    assert "by single elements only" in str(WGMMA.refusal(case.program, H100))


# --- retargeting ----------------------------------------------------------------------------------------------------

PTX = """//
// Generated by NVIDIA NVVM Compiler
//
.version {version}
.target sm_90, texmode_independent
.address_size 64
.entry k() {{
	// begin inline asm
	{mark}wgmma.fence.sync.aligned;
	// end inline asm
	ret;
}}
"""


@pytest.mark.parametrize(("version", "expected"), [("7.8", "8.3"), ("8.3", "8.3"), ("9.0", "9.0")])
def test_marked_instructions_come_into_force(version: str, expected: str) -> None:
    binary = PTX.format(version=version, mark=MARK).encode() + b"\0"
    text = (retargeted(binary) or b"").decode()
    assert f".version {expected}\n.target sm_90a, texmode_independent\n" in text
    assert "\n\twgmma.fence.sync.aligned;\n" in text
    assert MARK not in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    "binary",
    [
        b"\x7fELF\0\0",
        PTX.format(version="8.3", mark="").encode(),
        PTX.format(version="8.3", mark=MARK).replace(".target sm_90", ".target sm_80").encode(),
    ],
    ids=["no text", "marks dropped", "another target"],
)
def test_binaries_that_cannot_be_retargeted_are_told(binary: bytes) -> None:
    assert retargeted(binary) is None


def test_a_driver_whose_binary_is_no_text_says_so(ctx: Context, device: Device) -> None:
    if device.target.matrix is not None and device.target.matrix.warpgroup is not None:
        pytest.skip("this driver's binary is PTX text")
    source = f"__kernel void plain(__global int* a) {{ a[0] = 1; }} {MARK}ret;\n"
    with pytest.raises(KernelError, match=r"kernel plain needs instructions .* is not the PTX text .* another family"):
        ctx.build(source)


# --- tensor maps ----------------------------------------------------------------------------------------------------

ENCODED = [
    (DType.F16, [8192, 4096], [16384], [64, 128], "40000046310 0 0 fff00001fff 0 3f00000000000000 7f 4000 400"),
    (DType.F32, [8192, 4096], [65536], [16, 128], "100000046390 0 0 fff00001fff 0 f00000000000000 7f 2000 400"),
    (DType.BF16, [8192, 4096], [65536], [16, 128], "100000046510 0 0 fff00001fff 0 f00000000000000 7f 1000 400"),
    (
        DType.F16, [8192, 40, 50, 7, 3], [16384, 655360, 32768000, 229376000], [64, 8, 4, 2, 1],
        "40000046340 1f40000000a000 dac000 2700001fff 600000031 3f00000000000002 10307 2000 400",
    ),
]  # fmt: skip
"""What `cuTensorMapEncodeTiled` wrote, from the second word on, on an H100 with driver 580.159."""


@pytest.mark.parametrize(("dtype", "sizes", "strides", "box", "words"), ENCODED)
def test_tensor_maps_are_those_of_the_driver(dtype, sizes, strides, box, words) -> None:
    unit = H100.matrix.warpgroup
    expected = [0, *(int(word, 16) for word in words.split()), *[0] * 6]
    assert unit.maps.words(dtype, sizes, strides, box) == expected


# --- panels, on every device ----------------------------------------------------------------------------------------


def unswizzled(memory: np.ndarray, panels: Panels) -> np.ndarray:
    """Panels as [group, part, row, depth]."""
    per_piece = 16 // memory.itemsize
    tiles = memory.reshape(panels.side.c.g, panels.blocks, panels.tiles, panels.parts, panels.rows, 8, per_piece)
    rows = np.arange(panels.rows)
    found = np.empty_like(tiles)
    for piece in range(8):
        found[..., rows, piece, :] = tiles[..., rows, piece ^ (rows & 7), :]
    found = found.transpose(0, 3, 1, 4, 2, 5, 6)
    return found.reshape(panels.side.c.g, panels.parts, panels.blocks * panels.rows, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", ["k,n", "n,k"])
def test_panels_hold_the_operand_with_zeros_around_it(ctx: Context, kind: str, b: str) -> None:
    case = gemm(kind, 40, 45, 70, b=b, batch=2)
    view = recognise(case.program)[0]
    assert not isinstance(view, str)
    found = products(view, case.program)
    assert not isinstance(found, str)
    side = sides(view, found)[1]
    panels = Panels(side, case.program, "panels_b", 64, 2 if found.splits else 1, "int")
    launch = pack(panels, "pack")
    source = case.arrays[side.operand.read.tensor]
    buffers = {side.operand.read.tensor: ctx.allocate(source.nbytes), "panels_b": ctx.allocate(panels.scratch.size * 4)}
    ctx.write(buffers[side.operand.read.tensor], source)
    ctx.enqueue([ctx.bind(launch, buffers)])
    ctx.finish()
    packed = unswizzled(ctx.read(buffers["panels_b"], (panels.scratch.size,), found.operand), panels)
    rows_first = source if [i.name for i in view.columns] == ["m"] or b == "n,k" else source.swapaxes(-1, -2)
    rows, depth = rows_first.shape[1:]
    total = packed.astype(np.float64).sum(axis=1)
    exact = rows_first.astype(np.float64)
    allowed = {"tf32": 2.0**-11, "fp32": 2.0**-21}.get(kind, 0) * np.abs(exact)
    assert (np.abs(total[:, :rows, :depth] - exact) <= allowed).all()
    assert not total[:, rows:].any()
    assert not total[:, :, depth:].any()
    if found.operand is DType.F32 and kind != "fp16":
        bits = packed.view(np.uint32) & 0x1FFF
        assert not bits.any(), "parts are TF32 numbers"


# --- numbers --------------------------------------------------------------------------------------------------------


@EVERY_CASE
def test_numbers(ctx: Context, device: Device, case: Case) -> None:
    target = device.target
    if WGMMA.refusal(case.program, target) is not None:
        pytest.skip("the device has no such instructions")
    space, rng = WGMMA.space(case.program, target), random.Random(3)
    drawn = [space.sample(rng) for _ in range(2)]
    for configuration in [WGMMA.default(case.program, target), *(c for c in drawn if c is not None)]:
        found = run(ctx, WGMMA, case.program, target, configuration, case.arrays)
        case.check(found[case.program.outputs[0].name], str(configuration))


@pytest.mark.skipif(not available(), reason="no clang")
@EVERY_CASE
def test_numbers_by_emulated_instructions(case: Case, tmp_path: Path) -> None:
    target = emulated(H100)
    space, rng = WGMMA.space(case.program, target), random.Random(5)
    for number, configuration in enumerate([WGMMA.default(case.program, target), space.sample(rng)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if configuration is not None and configuration["split_k"] == 1:
            found = emulate(WGMMA, case.program, target, configuration, case.arrays, folder)
            case.check(found, str(configuration))


@pytest.mark.skipif(not available(), reason="no clang")
@pytest.mark.parametrize("kind", KINDS)
def test_infinities_and_nan_are_those_of_plain_products(kind: str, tmp_path: Path) -> None:
    case, target = gemm(kind, 70, 40, 64), emulated(H100)
    a, b = (case.arrays[name].copy() for name in "ab")
    a[3, 5], a[9, 0], b[2, 7], b[8, 0] = np.inf, np.nan, -np.inf, 0
    with np.errstate(invalid="ignore"):
        exact = a.astype(np.float64) @ b.astype(np.float64) + case.arrays["bias"].astype(np.float64)
    configuration = WGMMA.default(case.program, target)
    found = emulate(WGMMA, case.program, target, configuration, {**case.arrays, "a": a, "b": b}, tmp_path)
    number = ~np.isnan(exact)
    assert np.isinf(exact).sum() > 50
    np.testing.assert_allclose(found[number].astype(np.float64), np.maximum(exact, 0)[number], 2e-2, 2e-2)


@pytest.mark.skipif(not available(), reason="no clang")
@pytest.mark.parametrize("load_a", ["tiles", "pieces", "panels"])
def test_mended_sums_come_from_wherever_operands_are_loaded(load_a: str, tmp_path: Path) -> None:
    case, target = gemm("fp32", 70, 40, 68, batch=2), emulated(H100)
    chosen = WGMMA.default(case.program, target)
    configuration = Configuration.of({**chosen, "view": 0, "load_a": load_a, "load_b": "panels", "split_k": 1})
    assert WGMMA.space(case.program, target).violated(configuration) is None
    a, b = case.arrays["a"].copy(), case.arrays["b"].copy()
    a[1, 69, 67], b[0, 1, 39] = np.inf, np.inf
    exact = np.maximum(a.astype(np.float64) @ b.astype(np.float64) + case.arrays["bias"], 0)
    found = emulate(WGMMA, case.program, target, configuration, {**case.arrays, "a": a, "b": b}, tmp_path)
    assert 50 < np.isinf(exact).sum() < 110
    np.testing.assert_allclose(found, exact, 1e-4, 1e-4)
    assert "b" not in WGMMA.lower(case.program, target, configuration).launches[-1].arguments
