"""Every program of docs/programs.md against NumPy in float64, on random sizes and on sizes of 1."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from program_cases import CASES, KINDS, Case

import tilewright
from tilewright.runtime import Device

PAGE = Path(__file__).parents[1] / "docs" / "programs.md"
LONGEST = 8
"""Most lines of a program."""


def programs() -> dict[str, str]:
    """The programs of the page by name."""
    blocks = re.findall(r"```tilewright\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    texts = [text.strip() for block in blocks for text in re.split(r"\n\s*\n", block.strip())]
    return {re.match(r"op (\w+)", text).group(1): text for text in texts}  # type: ignore[union-attr]


PROGRAMS = programs()


def drawn(case: Case, seed: int, ones: bool) -> list[np.ndarray]:
    """Inputs of a case: sizes from 2 to 23, or 1 where they are free."""
    rng = np.random.default_rng(seed)
    letters = sorted({letter for spec in case.inputs for letter in spec.split(":")[0]})
    sizes = {letter: 1 if ones else int(rng.integers(5, 24)) for letter in letters}
    sizes |= {letter: int(letter) for letter in letters if letter.isdigit()} | dict(case.sizes)
    arrays = []
    for spec in case.inputs:
        dims, kind = spec.split(":")
        shape = tuple(sizes[letter] for letter in dims)
        if kind == "shift64":
            arrays.append(KINDS["shift"](rng, shape).astype(np.int64))
        elif kind == "brain":
            arrays.append(KINDS["any"](rng, shape).astype(ml_dtypes.bfloat16))
        else:
            arrays.append(np.asarray(KINDS[kind](rng, shape)))
    return arrays


def compare(name: str, device: Device, seed: int, ones: bool) -> None:
    case = CASES[name]
    arrays = drawn(case, seed, ones)
    exact = [a if a.dtype.kind in "biu" else a.astype(np.float64) for a in arrays]
    expected = case.reference(*exact, **case.parameters)
    found = tilewright.op(PROGRAMS[name])(*arrays, device=device, **case.parameters)
    pairs = [(found, expected)] if not isinstance(expected, tuple) else list(zip(found, expected, strict=True))
    for ours, theirs in [(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs]:
        assert ours.shape == theirs.shape
        finite = theirs[np.isfinite(theirs)] if theirs.dtype.kind == "f" else theirs
        scale = 1 + float(np.abs(finite.astype(np.float64)).max(initial=0))
        exactly = theirs.dtype.kind in "biu"
        np.testing.assert_allclose(
            ours.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=0 if exactly else case.tolerance * scale
        )


def test_the_page_and_the_references_name_the_same_programs() -> None:
    assert sorted(PROGRAMS) == sorted(CASES)
    assert len(PROGRAMS) >= 60
    assert max(len(text.splitlines()) for text in PROGRAMS.values()) <= LONGEST


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("name", sorted(CASES))
def test_program(name: str, device: Device) -> None:
    compare(name, device, seed=sum(name.encode()), ones=False)


FREE = [n for n, c in CASES.items() if c.inputs and not c.sizes and not any(d.isdigit() for i in c.inputs for d in i)]


@pytest.mark.devices_in_turn
@pytest.mark.parametrize("name", [n for n in sorted(FREE) if n not in ("dilated", "swiglu")])
def test_program_on_sizes_of_one(name: str, device: Device) -> None:
    compare(name, device, seed=1, ones=True)
