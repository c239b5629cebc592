"""Arrays for network inputs from shapes and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError
from tilewright.feeds import Given, network_feeds, parse_given, random_array


@dataclass(frozen=True)
class _Value:
    name: str
    shape: tuple[int | str | None, ...]
    type: str = "tensor(float)"


IMAGE = _Value("image", ("N", 3, 8, 8))
MASK = _Value("mask", ("N", 4), "tensor(int64)")


def test_random_feeds_fill_the_batch() -> None:
    feeds = network_feeds((IMAGE, MASK), (), batch=2)
    assert feeds["image"].shape == (2, 3, 8, 8)
    assert feeds["image"].dtype == np.float32
    assert feeds["mask"].shape == (2, 4)
    assert set(feeds["mask"].ravel()) <= {0, 1}
    again = network_feeds((IMAGE, MASK), (), batch=2)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_files_are_read_by_name(tmp_path: Path) -> None:
    image, mask = np.ones((1, 3, 8, 8), np.float32), np.zeros((1, 4), np.int64)
    np.save(tmp_path / "image.npy", image)
    np.savez(tmp_path / "both.npz", image=image, mask=mask)
    for text in (f"image={tmp_path / 'image.npy'}", str(tmp_path / "image.npy"), str(tmp_path / "both.npz")):
        feeds = network_feeds((IMAGE, MASK), [parse_given(text)])
        assert np.array_equal(feeds["image"], image)


def test_pictures_fit_either_layout(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((20, 30, 3), 255, np.uint8)).save(tmp_path / "white.png")
    given = [parse_given(str(tmp_path / "white.png"))]
    first = network_feeds((IMAGE,), given)["image"]
    last = network_feeds((_Value("image", (None, 8, 8, 3)),), given)["image"]
    assert first.shape == (1, 3, 8, 8)
    assert np.array_equal(first, last.transpose(0, 3, 1, 2))
    assert first[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)
    with pytest.raises(InputError, match=r"input mask of shape \['N', 4\] does not take a picture"):
        network_feeds((MASK,), given)


def test_shapes_are_parsed() -> None:
    assert parse_given("x=2x3") == Given("x", None, DType.F32, (2, 3))
    assert parse_given("x=i64:7") == Given("x", None, DType.I64, (7,))
    assert parse_given("x=f16:scalar") == Given("x", None, DType.F16, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=nothing.npy", "there is no file nothing.npy"),
        ("2x3", "a shape needs the name of its input; write NAME=2x3"),
        ("x=f33:2", "f33 is not an element type; use one of bool, i8"),
    ],
)
def test_wrong_inputs_are_explained(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_given(text)


def test_wrong_feeds_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model has no input y; its inputs are image, mask"):
        network_feeds((IMAGE, MASK), [parse_given("y=2x3")])
    with pytest.raises(InputError, match=r"input ids has open sizes \(1xT\); say them with --input ids="):
        network_feeds((_Value("ids", ("N", "T"), "tensor(int64)"),), ())
    with pytest.raises(InputError, match="for which there are no random values"):
        network_feeds((_Value("words", (1,), "tensor(string)"),), ())
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"broken.npy cannot be read"):
        network_feeds((IMAGE,), [parse_given(str(tmp_path / "broken.npy"))])
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"broken.png cannot be read as a picture|needs Pillow"):
        network_feeds((IMAGE,), [parse_given(str(tmp_path / "broken.png"))])


def test_random_arrays_have_the_dtype_asked_for() -> None:
    rng = np.random.default_rng(0)
    for dtype in DType:
        assert random_array((3, 2), dtype.numpy, rng).dtype == dtype.numpy
