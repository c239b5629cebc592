"""One pass over keys by matrix instructions: layouts, choices, and numbers with emulated instructions."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import targets
from attention_texts import DOT, TEXTS, program_of, scored
from emulated_matrix import emulated_unit, with_matrix
from oracle import reference
from running import compare, laid_out, run, shaped, values

from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.attention import ATTENTION
from tilewright.dsl.families.attention_form import Attention, recognise
from tilewright.dsl.families.attention_fragments import key_steps, moved, products_of, weight_registers
from tilewright.dsl.families.attention_matrix import plan_of
from tilewright.dsl.families.attention_plan import scores_of
from tilewright.dsl.families.attention_staging import bytes_copied, keys_block, values_block
from tilewright.dsl.matrix import Fragment, MatrixInstruction, Step
from tilewright.dsl.program import Program
from tilewright.dsl.space import Configuration
from tilewright.dsl.target import Shape, Target
from tilewright.runtime import Context
from tilewright.runtime.nvidia import matrix_unit

H100 = replace(targets.GPU, compute_units=132, local_memory=227 << 10, matrix=matrix_unit((9, 0)))
ALLOWED = {"fp16": 2e-3, "bf16": 1.6e-2, "tf32": 4e-3, "fp32": 2e-5}
"""Error allowed relative to the largest output, by the precision of products."""
SMALL = {"B": 1, "H": 2, "M": 18, "N": 37, "D": 12, "E": 10}


def configuration(
    tile_m: int = 16, tile_n: int = 16, item_m: int = 2, split: int = 1, stages: int = 1, query: str = "local"
) -> Configuration:
    fixed = {"unit": "matrix", "item_n": 1, "pad_local": 0}
    chosen = {"tile_m": tile_m, "tile_n": tile_n, "item_m": item_m, "split": split, "stages": stages, "query": query}
    return Configuration.of({**fixed, **chosen})


def check(
    ctx: Context,
    made: Program,
    chosen: Configuration,
    precision: str = "fp32",
    arrays: Mapping[str, np.ndarray] | None = None,
    loads: bool = True,
) -> None:
    """The configuration gives what the program says in float64."""
    target = with_matrix(shaped(ctx.device.target, Shape.GPU), loads)
    made = replace(made, precision=precision)
    assert ATTENTION.space(made, target).violated(chosen) is None
    given = values(made, 1) if arrays is None else arrays
    expected = reference(made, given)[made.outputs[0].name]
    found = run(ctx, ATTENTION, made, target, chosen, given)[made.outputs[0].name]
    products = products_of(formed(made), target)
    assert products is not None
    kind = "fp32" if products.splits else products.instruction.products
    compare(found, expected, ALLOWED[kind], f"{kind}, {chosen}")


def formed(made: Program) -> Attention:
    found = recognise(made)
    assert not isinstance(found, str), found
    return found


# --- layouts ----------------------------------------------------------------------------------------------------------


def places(fragment: Fragment, lane: int, register: int, element: int = 0) -> Step:
    row, column = fragment.offset(register, element)
    for bit, (r, c) in enumerate(fragment.lanes):
        if lane >> bit & 1:
            row, column = row + r, column + c
    return row, column


@pytest.mark.parametrize("instruction", emulated_unit().instructions, ids=lambda i: i.products)
def test_every_weight_is_in_the_register_of_its_score(instruction: MatrixInstruction) -> None:
    steps = key_steps(instruction)
    assert steps is not None
    assert sorted(steps) == sorted(steps.values()) == [1 << bit for bit in range((instruction.k - 1).bit_length())]
    operand = moved(instruction.a, steps)
    met = set()
    for lane in range(instruction.lanes):
        for register, elements in weight_registers(instruction):
            for element, (tile, from_register) in enumerate(elements):
                row, key = places(operand, lane, register, element)
                own_row, column = places(instruction.c, lane, from_register)
                assert (row, key) == (own_row, column + tile * instruction.n)
                met.add((row, key))
    assert len(met) == instruction.m * instruction.k


def test_the_order_of_keys_is_that_of_the_lanes() -> None:
    tf32, half, _ = emulated_unit().instructions
    assert key_steps(tf32) == {1: 2, 2: 4, 4: 1}
    assert key_steps(half) == {1: 1, 2: 2, 4: 4, 8: 8}


def test_instructions_whose_lanes_would_have_to_exchange_are_not_used() -> None:
    tf32 = emulated_unit().instructions[0]
    turned = replace(tf32, a=replace(tf32.a, lanes=((1, 0), (2, 0), (4, 0), (0, 1), (0, 2))))
    assert key_steps(turned) is None
    unit = replace(emulated_unit(), instructions=(turned,))
    assert products_of(formed(program_of(TEXTS["plain"], SMALL)), replace(H100, matrix=unit)) is None


# --- choices ----------------------------------------------------------------------------------------------------------


def test_types_and_precision_choose_the_instruction() -> None:
    def chosen(dtype: DType, precision: str, target: Target = H100) -> tuple[str, bool] | None:
        made = replace(program_of(TEXTS["plain"], SMALL, dtype), precision=precision)
        products = products_of(formed(made), target)
        return None if products is None else (products.instruction.products, products.splits)

    assert chosen(DType.F16, "fp32") == ("fp16", False)
    assert chosen(DType.BF16, "fp32") == ("bf16", False)
    assert chosen(DType.F32, "tf32") == ("tf32", False)
    assert chosen(DType.F32, "fp32") == ("tf32", True)
    assert chosen(DType.F32, "tf32", targets.GPU) is None
    unit = H100.matrix
    assert unit is not None
    assert chosen(DType.F16, "fp32", replace(H100, matrix=replace(unit, shuffle=""))) is None


def test_weights_are_rounded_only_where_the_output_is() -> None:
    """Operands in f16 with an output in f32 are no permission to round the weights to f16."""
    made = program_of(TEXTS["plain"], SMALL, DType.F16)
    wide = replace(made, outputs=(replace(made.outputs[0], dtype=DType.F32),))
    products = products_of(formed(wide), H100)
    assert products is not None
    assert products.splits
    allowed = products_of(formed(replace(wide, precision="tf32")), H100)
    assert allowed is not None
    assert allowed.instruction.operand is DType.F16


def test_stored_winners_without_a_unit_are_plain() -> None:
    made = program_of(TEXTS["plain"], {**SMALL, "M": 197, "N": 197, "D": 64, "E": 64})
    old = Configuration.of({"tile_m": 64, "tile_n": 32, "item_m": 4, "item_n": 4, "pad_local": 4})
    for target in (H100, targets.GPU):
        space = ATTENTION.space(made, target)
        known = space.completed(old)
        assert known["unit"] == "plain"
        assert space.violated(known) is None


def test_the_choice_without_tuning_is_the_matrix_unit_where_there_is_one() -> None:
    for dtype in (DType.F16, DType.BF16, DType.F32):
        for m, n, d, e in ((1, 1, 1, 1), (1, 300, 64, 64), (197, 197, 64, 64), (3, 50, 256, 7), (1000, 17, 20, 256)):
            made = program_of(TEXTS["plain"], {"B": 1, "H": 2, "M": m, "N": n, "D": d, "E": e}, dtype)
            for precision in ("fp32", "tf32"):
                program = replace(made, precision=precision)
                default = ATTENTION.default(program, H100)
                assert ATTENTION.refusal(program, H100) is None
                assert ATTENTION.space(program, H100).violated(default) is None
                assert default["unit"] == "matrix" or d == 256 or e == 256


def test_one_row_is_refused_where_its_keys_take_long() -> None:
    sizes = {"B": 1, "H": 2, "M": 1, "D": 64, "E": 64}
    assert ATTENTION.refusal(program_of(TEXTS["plain"], {**sizes, "N": 4096}), H100) is None
    refused = ATTENTION.refusal(program_of(TEXTS["plain"], {**sizes, "N": 5000}), H100)
    assert "leave the device idle" in str(refused)
    assert ATTENTION.refusal(program_of(TEXTS["plain"], {**sizes, "N": 5000}, DType.F16), H100) is None


def test_what_does_not_fit_is_refused() -> None:
    made = program_of(TEXTS["plain"], {**SMALL, "M": 200, "N": 200, "D": 64, "E": 64}, DType.F16)
    assert "local memory" in str(ATTENTION.refusal(made, replace(H100, local_memory=2 << 10)))


def test_factors_and_masks_are_taken_out_of_the_scores() -> None:
    def form(text: str) -> tuple[float, bool, int, bool]:
        s = scores_of(formed(program_of(text, SMALL)))
        return round(s.factor, 6), s.bare, len(s.masks), s.bounded

    assert form(TEXTS["plain"]) == (1.0, True, 0, True)
    assert form(TEXTS["scaled in the product"]) == (0.15, True, 0, True)
    assert form(TEXTS["causal"]) == (0.25, True, 1, True)
    assert form(TEXTS["window"]) == (0.25, True, 1, True)
    assert form(scored(f"where(true, 2 * ({DOT}), -inf)")) == (2.0, True, 1, True)
    assert form(scored(f"where(j <= i or j < 3, {DOT}, -inf)")) == (1.0, True, 1, False)
    assert form(scored(f"-1 * ({DOT})"))[1] is False
    assert form(TEXTS["added mask"])[1] is False


def test_rows_in_memory_are_copied_16_bytes_at_a_time() -> None:
    def copied(made: Program) -> tuple[int, int]:
        plan = plan_of(formed(made), H100, configuration())
        assert plan is not None
        return bytes_copied(keys_block(plan)), bytes_copied(values_block(plan))

    even = {**SMALL, "D": 16, "E": 24}
    assert copied(program_of(TEXTS["plain"], even)) == (16, 16)
    assert copied(program_of(TEXTS["plain"], even, DType.F16)) == (16, 16)
    assert copied(program_of(TEXTS["plain"], SMALL)) == (16, 4)
    assert copied(program_of(TEXTS["plain"], SMALL, DType.F16)) == (0, 0)
    assert copied(program_of(TEXTS["values computed"], even)) == (16, 0)


# --- numbers ----------------------------------------------------------------------------------------------------------

KINDS = {
    "fp16": (DType.F16, "fp32"),
    "bf16": (DType.BF16, "fp32"),
    "tf32": (DType.F32, "tf32"),
    "fp32": (DType.F32, "fp32"),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("name", TEXTS)
def test_every_spelling(plainly: Context, name: str) -> None:
    sizes = {"B": 2, "H": 4, "M": 18, "N": 21, "D": 12, "E": 10}
    check(plainly, program_of(TEXTS[name], sizes), configuration(query="registers"))


@EACH_KIND
@pytest.mark.parametrize(
    "chosen",
    [
        configuration(32, 16, 4, 1, 2, "registers"),
        configuration(16, 32, 2, 2, 1, "local"),
        configuration(32, 32, 2, 2, 3, "registers"),
    ],
    ids=str,
)
def test_configurations(plainly: Context, kind: str, chosen: Configuration) -> None:
    dtype, precision = KINDS[kind]
    sizes = {"B": 1, "H": 2, "M": 40, "N": 75, "D": 24, "E": 20}
    check(plainly, program_of(TEXTS["causal"], sizes, dtype), chosen, precision)


@EACH_KIND
def test_layouts_and_devices_without_loads_of_fragments(plainly: Context, kind: str) -> None:
    dtype, precision = KINDS[kind]
    made = laid_out(program_of(TEXTS["with what follows"], SMALL, dtype), "scattered")
    check(plainly, made, configuration(), precision, loads=False)
    check(plainly, made, configuration(stages=2), precision)


def test_whole_blocks_in_pairs(plainly: Context) -> None:
    """Sizes at which nothing is filled up, cut off or masked."""
    sizes = {"B": 1, "H": 2, "M": 32, "N": 32, "D": 16, "E": 16}
    for dtype in (DType.F16, DType.F32):
        check(plainly, program_of(TEXTS["plain"], sizes, dtype), configuration(stages=2, query="registers"))


def test_one_row_and_one_of_everything(plainly: Context) -> None:
    check(plainly, program_of(TEXTS["plain"], {**SMALL, "M": 1, "N": 70}), configuration(tile_n=64, split=4))
    ones = dict.fromkeys("BHMNDE", 1)
    check(plainly, program_of(TEXTS["plain"], ones), configuration())
    check(plainly, program_of(TEXTS["plain"], ones, DType.F16), configuration())


@pytest.mark.parametrize("slope", ["0.1", "2", "-1"])
def test_maxima_that_creep_leap_and_fall(plainly: Context, slope: str) -> None:
    """Sums are scaled by a little or by much, or not at all."""
    sizes = {"B": 1, "H": 2, "M": 18, "N": 150, "D": 8, "E": 8}
    made = program_of(scored(f"{slope} * j + {DOT}"), sizes)
    check(plainly, made, configuration(), "tf32")


def test_one_row_of_grouped_heads(plainly: Context) -> None:
    text = TEXTS["grouped heads"].replace("s[b,h,i,j] = ", "s[b,h,i,j] = 0.1 * j + h - i + ")
    made = laid_out(program_of(text, {"B": 2, "H": 6, "M": 1, "N": 77, "D": 16, "E": 16}), "scattered")
    check(plainly, made, configuration(tile_n=32, split=2))


@pytest.mark.parametrize("kind", ["fp16", "tf32", "fp32"])
def test_rows_that_are_masked_as_a_whole_are_nan_as_in_numpy(plainly: Context, kind: str) -> None:
    dtype, precision = KINDS[kind]
    sizes = {"B": 1, "H": 1, "M": 40, "N": 50, "D": 8, "E": 8}
    made = program_of(scored(f"where(j < i - 5 and j > i - 20, {DOT}, -inf)"), sizes, dtype)
    assert np.isnan(reference(made, values(made, 1))["o"][0, 0, :6]).all()
    check(plainly, made, configuration(stages=2), precision)


@EACH_KIND
@pytest.mark.parametrize("split", [1, 2])
def test_masks_of_the_lowest_number_there_is(plainly: Context, kind: str, split: int) -> None:
    """A row that is masked as a whole is a plain mean, as in NumPy: its scores are equal, and finite."""
    dtype, precision = KINDS[kind]
    made = program_of(TEXTS["mask of keys"], {"B": 2, "H": 2, "M": 20, "N": 70, "D": 8, "E": 8}, dtype)
    arrays = values(made, 6)
    arrays["mask"][:] = ml_dtypes.finfo(dtype.numpy).min
    arrays["mask"][0, :30] = 0
    assert np.isfinite(reference(made, arrays)["o"].astype(np.float32)).all()
    check(plainly, made, configuration(tile_n=32, split=split), precision, arrays)


@pytest.mark.parametrize("kind", ["tf32", "fp32"])
def test_infinite_and_undefined_inputs_go_where_they_go_in_numpy(plainly: Context, kind: str) -> None:
    dtype, precision = KINDS[kind]
    made = program_of(TEXTS["added mask"], {"B": 1, "H": 2, "M": 18, "N": 70, "D": 8, "E": 9}, dtype)
    arrays = values(made, 6)
    arrays["q"][0, 0, 3, 2] = np.nan
    arrays["k"][0, 0, 9, 1] = np.inf
    arrays["mask"][0, 0, 5, :] = -np.inf
    arrays["mask"][0, 0, 6, 66] = np.inf
    arrays["mask"][0, 0, 7, :68] = -np.inf
    arrays["v"][0, 1, 40, 3] = np.inf
    expected = reference(made, arrays)["o"]
    assert np.isinf(expected[0, 1, 8, 3])
    assert np.isfinite(expected[0, 1, 8, 4])
    check(plainly, made, configuration(), precision, arrays)


def test_split_products_are_as_exact_as_f32(plainly: Context) -> None:
    """Scores of some hundreds: products wrong by one part in 2**11 would change weights by tens of percent."""
    made = program_of(TEXTS["plain"], {"B": 1, "H": 1, "M": 16, "N": 64, "D": 16, "E": 16})
    arrays = values(made, 3)
    arrays["q"] *= 20
    expected = reference(made, arrays)["o"]
    target = with_matrix(shaped(plainly.device.target, Shape.GPU))
    found = run(plainly, ATTENTION, made, target, configuration(), arrays)["o"]
    rounded = run(plainly, ATTENTION, replace(made, precision="tf32"), target, configuration(), arrays)["o"]
    assert np.abs(found - expected).max() < 5e-5
    assert np.abs(rounded - expected).max() > 20 * np.abs(found - expected).max()


def test_random_configurations(plainly: Context) -> None:
    """Small blocks of every kind, drawn from the space."""
    rng = random.Random(5)
    target = with_matrix(shaped(plainly.device.target, Shape.GPU))
    made = program_of(TEXTS["mask of keys"], {"B": 2, "H": 1, "M": 35, "N": 50, "D": 10, "E": 18}, DType.F16)
    space = ATTENTION.space(made, target).restricted({"unit": ("matrix",), "tile_m": (16, 32), "tile_n": (16, 32, 64)})
    for _ in range(3):
        chosen = space.sample(rng, 20_000)
        assert chosen is not None
        check(plainly, made, chosen)
