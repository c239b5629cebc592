"""Input arrays for the command line and the demo: random ones, and ones read from .npy, .npz and picture files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tilewright.dsl.dtypes import DType
from tilewright.errors import InputError

Array = npt.NDArray[Any]

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet's pixels, what most published networks were
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)  # trained with
_MARGIN = 256 / 224
"""The shorter side is scaled to this many times the network's size before the middle is cut out."""

_ONNX_TYPES: Mapping[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "double": np.dtype(np.float64),
    "bool": np.dtype(np.bool_),
    **{f"{u}int{bits}": np.dtype(f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)},
}


class Value(Protocol):
    """An input of a session, as onnxruntime describes it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...
    @property
    def type(self) -> str: ...


@dataclass(frozen=True)
class Given:
    """One ``--input``: a file, or the dtype and shape of a random array; ``name`` is '' if none was given."""

    name: str
    file: Path | None
    dtype: DType = DType.F32
    shape: tuple[int, ...] = ()


_SHAPE = re.compile(r"(?:(?P<dtype>[a-z]+\d*):)?(?P<sizes>\d+(?:[x,]\d+)*|scalar)")


def parse_given(text: str) -> Given:
    """``[NAME=]FILE`` or ``NAME=[DTYPE:]2x3x4`` (``scalar`` for rank 0); InputError for anything else."""
    name, equals, value = text.rpartition("=")
    match = _SHAPE.fullmatch(value)
    if not match:
        file = Path(value)
        if not file.is_file():
            raise InputError(
                f"--input {text}: there is no file {value}; give NAME=FILE (.npy, .npz or a picture) or NAME=f32:2x3"
            )
        return Given(name, file)
    if not equals:
        raise InputError(f"--input {text}: a shape needs the name of its input; write NAME={text}")
    try:
        dtype = DType(match["dtype"] or "f32")
    except ValueError:
        known = ", ".join(d.value for d in DType)
        raise InputError(f"--input {text}: {match['dtype']} is not an element type; use one of {known}") from None
    sizes = () if match["sizes"] == "scalar" else tuple(map(int, re.split("[x,]", match["sizes"])))
    return Given(name, None, dtype, sizes)


def random_array(shape: Sequence[int], dtype: npt.DTypeLike, rng: np.random.Generator) -> Array:
    """Standard normal floats, or 0 and 1 for other types (which are legal as masks and as indices alike)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(tuple(shape), np.float32).astype(kind)
    return rng.integers(0, 2, tuple(shape)).astype(kind)


def network_feeds(values: Sequence[Value], given: Sequence[Given], batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """An array for every input of a network: what was given, random numbers for the rest.

    An open first size becomes ``batch``; InputError for another open size that nothing was given for, an unknown
    name, or a file that cannot be read.
    """
    rng = np.random.default_rng(seed)
    by_name = {value.name: value for value in values}
    feeds: dict[str, Array] = {}
    for g in given:
        for name, array in _arrays(g, values, rng):
            if name not in by_name:
                raise InputError(f"the model has no input {name}; its inputs are {', '.join(by_name)}")
            feeds[name] = array
    for value in values:
        if value.name not in feeds:
            feeds[value.name] = random_array(_concrete(value, batch), _dtype(value), rng)
    return {value.name: feeds[value.name] for value in values}


def _arrays(given: Given, values: Sequence[Value], rng: np.random.Generator) -> list[tuple[str, Array]]:
    name = given.name or (values[0].name if values else "")
    if given.file is None:
        return [(name, random_array(given.shape, given.dtype.numpy, rng))]
    if given.file.suffix in PICTURES:
        target = next((v for v in values if v.name == name), None)
        if target is None:
            raise InputError(f"the model has no input {name} for {given.file}")
        return [(name, network_picture(read_picture(given.file), target))]
    loaded = load_arrays(given.file)
    return [(given.name or key or name, array) for key, array in loaded.items()]


def load_arrays(file: Path) -> Mapping[str, Array]:
    """The arrays of an .npz by name, or the one of an .npy under ''; InputError if the file is neither."""
    try:
        loaded = np.load(file, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read as .npy, .npz or a picture: {error}") from error


def _dtype(value: Value) -> np.dtype[Any]:
    name = value.type.removeprefix("tensor(").removesuffix(")")
    if name not in _ONNX_TYPES:
        raise InputError(f"input {value.name} is a {value.type}, for which there are no random values; give a file")
    return _ONNX_TYPES[name]


def _concrete(value: Value, batch: int) -> tuple[int, ...]:
    sizes = [batch if at == 0 and not isinstance(n, int) else n for at, n in enumerate(value.shape)]
    if not all(isinstance(n, int) and n >= 0 for n in sizes):
        text = "x".join("?" if n is None else str(n) for n in sizes)
        raise InputError(f"input {value.name} has open sizes ({text}); say them with --input {value.name}=2x3x4")
    return tuple(int(n) for n in sizes if n is not None)


# --- pictures -------------------------------------------------------------------------------------------------------


def read_picture(file: Path) -> Array:
    """A picture file as u8 [H, W, 3]; InputError if it is none or Pillow is missing."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError(f"reading {file} needs Pillow; install it with: pip install pillow") from None
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file} cannot be read as a picture: {error}") from error


def prepare_picture(pixels: Array, height: int, width: int) -> npt.NDArray[np.float32]:
    """ImageNet's usual preparation: u8 [H, W, 3] scaled (bicubic), cut from the middle, normalised to f32 [3, h, w]."""
    from PIL import Image

    scale = max(height / pixels.shape[0], width / pixels.shape[1]) * _MARGIN
    high, wide = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    scaled = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - height) // 2, (wide - width) // 2
    middle = scaled[top : top + height, left : left + width].astype(np.float32) / 255
    return np.ascontiguousarray(((middle - _MEAN) / _SPREAD).transpose(2, 0, 1))


def network_picture(pixels: Array, value: Value) -> Array:
    """A picture in the shape and dtype of a network's input, channels first or last, batch 1."""
    shape = [n if isinstance(n, int) else None for n in value.shape]
    if len(shape) == 4 and shape[1] == 3:
        height, width, last = shape[2], shape[3], False
    elif len(shape) == 4 and shape[3] == 3:
        height, width, last = shape[1], shape[2], True
    else:
        raise InputError(f"input {value.name} of shape {list(value.shape)} does not take a picture; give an .npy file")
    prepared = prepare_picture(pixels, height or 224, width or 224)
    return (prepared.transpose(1, 2, 0) if last else prepared)[None].astype(_dtype(value))
