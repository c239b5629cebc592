"""Large constants of an ONNX file, left where they are: protobuf would copy them twice on their way to an array.

    ModelProto.graph = 7        GraphProto.initializer = 5      TensorProto.name = 8, raw_data = 9

Only this much of protobuf's wire format is read here (a tag is a varint of ``field << 3 | wire type``); the file
without those constants' bytes goes to protobuf as usual. Whatever looks odd is left to protobuf, which says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright.graph.mapped import mapped

_GRAPH, _INITIALIZER, _NAME, _RAW_DATA, _DATA_LOCATION = 7, 5, 8, 9, 14
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
LARGE = 4096
"""Bytes from which a constant is left in place."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _OddError(Exception):
    """Not what is expected: protobuf may know better."""


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    start: int
    """Where its tag lies."""
    payload: int
    end: int


def read_file(path: Path) -> Bytes:
    """A whole file, mapped where that can be; OSError if it cannot be read."""
    found = mapped(path)
    if found is not None:
        return found
    with path.open("rb") as file:
        content = np.empty(path.stat().st_size, np.uint8)
        size = file.readinto(content.data)
        return content[:size]


def take_out(content: Bytes) -> tuple[onnx.ModelProto, dict[str, Bytes]]:
    """The model without the bytes of its large constants, and those by name (views of `content`).

    Raises DecodeError if the content is no ModelProto.
    """
    view = content.data
    try:
        slim, found = _slim_model(view)
    except _OddError:
        slim, found = [view], {}
    model = onnx.ModelProto()
    model.ParseFromString(b"".join(slim))
    return model, {name: content[start:end] for name, (start, end) in found.items()}


def _slim_model(view: memoryview) -> tuple[list[memoryview | bytes], dict[str, tuple[int, int]]]:
    parts: list[memoryview | bytes] = []
    found: dict[str, tuple[int, int]] = {}
    for field in _fields(view, 0, len(view)):
        if field.number == _GRAPH and field.wire == _LENGTH:
            inner: list[memoryview | bytes] = []
            for part in _fields(view, field.payload, field.end):
                is_constant = part.number == _INITIALIZER and part.wire == _LENGTH and part.end - part.payload >= LARGE
                inner += _slim_tensor(view, part, found) if is_constant else [view[part.start : part.end]]
            parts += [_tag(_GRAPH, sum(map(len, inner))), *inner]
        else:
            parts.append(view[field.start : field.end])
    return parts, found


def _slim_tensor(view: memoryview, tensor: _Field, found: dict[str, tuple[int, int]]) -> list[memoryview | bytes]:
    """An initializer without its raw data, whose place goes to `found`; whole if it has none or its name is taken."""
    fields = list(_fields(view, tensor.payload, tensor.end))
    raw = [f for f in fields if f.number == _RAW_DATA]
    names = [bytes(view[f.payload : f.end]) for f in fields if f.number == _NAME]
    elsewhere = any(f.number == _DATA_LOCATION for f in fields)
    if len(raw) != 1 or raw[0].wire != _LENGTH or len(names) != 1 or elsewhere:
        return [view[tensor.start : tensor.end]]
    try:
        name = names[0].decode()
    except UnicodeDecodeError:
        raise _OddError from None
    if not name or name in found:
        raise _OddError
    found[name] = raw[0].payload, raw[0].end
    rest = [view[f.start : f.end] for f in fields if f is not raw[0]]
    return [_tag(_INITIALIZER, sum(map(len, rest))), *rest]


def _fields(view: memoryview, at: int, end: int) -> Iterator[_Field]:
    """The fields of a message that lies in ``view[at:end]``."""
    while at < end:
        tag, payload = _varint(view, at, end)
        wire = tag & 7
        if wire == _LENGTH:
            size, payload = _varint(view, payload, end)
            after = payload + size
        elif wire == _VARINT:
            after = _varint(view, payload, end)[1]
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            after = payload + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise _OddError
        if after > end:
            raise _OddError
        yield _Field(tag >> 3, wire, at, payload, after)
        at = after


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """A base-128 number, lowest group first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _OddError
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _OddError


def _tag(number: int, size: int) -> bytes:
    """The head of a field of `size` bytes."""
    head = bytearray([number << 3 | _LENGTH])
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)


__all__ = ["Bytes", "read_file", "take_out"]
