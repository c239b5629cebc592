"""Plans kept on disk, so that the next session of the same network needs neither ONNX nor the planner.

A network has an entry with its inputs and outputs, and one with the recipe for each choice of its inputs' sizes, in the
folder `plans` of the cache. Entries lie under digests of all that decides them:

    the model's bytes, the device and its driver, precision, fast_math and host_limit, the state of the tuning database
    (any measurement recorded makes plans anew), tilewright's own files, and for recipes the inputs' sizes

An entry is a head (magic, length of the JSON), JSON, bytes of constants (`plan_coding.py`) and a digest of all that. A
damaged or unreadable one counts for none. Packed weights are constants too where all that the model's file does not
hold takes `OWN_LIMIT` bytes at most; larger ones are packed by every session. Networks that run in parts or whose sizes
depend on elements of inputs, models with data in other files and those given as ModelProto are not kept, and nothing is
with a tuning database that is named by a URL: a server's may change unseen.
$TILEWRIGHT_PLANS=off keeps and reads nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tilewright.dsl.dtypes import DType
from tilewright.graph.ir import Value
from tilewright.graph.mapped import let_go, mapped
from tilewright.graph.plan_coding import ALIGNMENT, Bytes, decode, encode, own_bytes
from tilewright.graph.recipe import Recipe, with_packed_constants
from tilewright.graph.running import Prepared
from tilewright.runtime import Device
from tilewright.runtime.cache import FileCache
from tilewright.tuning_db.places import stamp

log = logging.getLogger("tilewright.graph")

LIMIT = 512 << 20
"""Bytes of entries above which those written first are removed."""
OWN_LIMIT = 64 << 20
"""Bytes of constants that an entry may hold."""

_MAGIC = b"tilewright-plan-1\n".ljust(ALIGNMENT - 8)
_HEAD = ALIGNMENT
_DIGEST = 32
_CHUNK = 4 << 20
_Made = TypeVar("_Made")
_SOURCES = ("autotune", "dsl", "graph", "ops", "runtime", "tuning_db")


@dataclass(frozen=True)
class Settings:
    """A session's options that change its plans."""

    precision: str = "fp32"
    fast_math: bool = False
    host_limit: int | None = None


@dataclass(frozen=True)
class Interface:
    """What goes in and out of a network."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Shelf:
    """The entries of one network on one device."""

    content: Bytes
    """The model's bytes."""
    _cache: FileCache
    _identity: str
    """Of everything but the tuning database."""
    _database: Callable[[], str]
    """Its state."""

    def state(self) -> str:
        """What entries depend on now; asked before a plan is made that is to be kept."""
        return _digest_of(self._identity, self._database())

    def interface(self) -> Interface | None:
        """The network's inputs and outputs, if they are kept."""
        return self._read(self.state(), lambda found, _: Interface(*(tuple(map(_value, part)) for part in found)))

    def keep_interface(self, state: str, interface: Interface) -> None:
        """Keep a network's inputs and outputs."""
        self._write(state, [[_plain(v) for v in part] for part in (interface.inputs, interface.outputs)], ())

    def recipe(self, sizes: Sequence[Sequence[int]]) -> Recipe | None:
        """The recipe for inputs of these sizes, if it is kept."""
        key = _digest_of(self.state(), sizes)
        return self._read(key, lambda found, own: decode(found, own, self.content))

    def keep(self, state: str, sizes: Sequence[Sequence[int]], plan: Prepared) -> None:
        """Keep the recipe of a plan that was made in a state: with packed weights if they are few, else without."""
        for recipe in (with_packed_constants(plan.recipe), plan.recipe):
            encoded = encode(recipe, self.content)
            if encoded is not None and encoded.nbytes <= OWN_LIMIT:
                self._write(_digest_of(state, sizes), encoded.structure, own_bytes(encoded, plan.content))
                return
        log.debug("the plan is not kept: it has constants that cannot be written, or too many")

    def _read(self, key: str, make: Callable[[Any, Bytes], _Made]) -> _Made | None:
        try:
            found = mapped(self._cache.path(key))
            if found is None:
                found = np.frombuffer(self._cache.path(key).read_bytes(), np.uint8)
        except OSError:
            return None
        try:
            return make(*_opened(key, found))
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            log.info("ignoring the damaged file %s (%s)", self._cache.path(key), error)
            self._cache.remove(key)
            return None

    def _write(self, key: str, structure: Any, own: Iterable[bytes | memoryview]) -> None:
        text = json.dumps(structure, default=_number).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        head = _MAGIC + struct.pack("<Q", len(text))
        self._cache.store(key, _with_digest(key, chain((head, text), own)))


def shelf_of(
    model: object, device: Device, settings: Settings, database: Path | None, has_database: bool
) -> Shelf | None:
    """Where the plans of a session are kept; None where they are not.

    ``database``: the tuning database's file; without, plans are kept only where `has_database` is false.
    """
    if os.environ.get("TILEWRIGHT_PLANS", "").strip().lower() == "off" or (has_database and database is None):
        return None
    content, sources = _content(model), _sources()
    if content is None or sources is None:
        return None
    identity = _digest_of(_digest(content), device, settings, sources)
    cache = FileCache("plans of networks", "plans", ".plan", LIMIT)
    return Shelf(content, cache, identity, lambda: "none" if database is None else stamp(database))


def _content(model: object) -> Bytes | None:
    """The bytes of a file, or those that were given; None for other models, and for what cannot be read."""
    if isinstance(model, bytes):
        return np.frombuffer(model, np.uint8)
    try:
        return mapped(Path(model)) if isinstance(model, str | Path) else None
    except (OSError, ValueError):  # the latter for names that no file can have
        return None


def _opened(key: str, content: Bytes) -> tuple[Any, Bytes]:
    """The JSON of a file and the bytes behind it; ValueError if it is not what was written under the key."""
    head = content[:_HEAD].tobytes()
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        raise ValueError("it is of another kind")
    if _digest(content[:-_DIGEST], key.encode()) != content[-_DIGEST:].tobytes().hex():
        raise ValueError("its digest does not fit")
    end = _HEAD + struct.unpack("<Q", head[-8:])[0]
    return json.loads(content[_HEAD:end].tobytes()), content[end:-_DIGEST]


def _with_digest(key: str, parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The parts of a file, and behind them the digest of its key and all of them."""
    digest = hashlib.sha256(key.encode())
    for part in parts:
        digest.update(part)
        yield part
    yield digest.digest()


def _digest(content: Bytes, prefix: bytes = b"") -> str:
    """SHA-256 of bytes whose pages, where they are a file's, are forgotten on the way."""
    found = hashlib.sha256(prefix)
    for start in range(0, content.size, _CHUNK):
        part = content[start : start + _CHUNK]
        found.update(part.data)
        let_go(part)
    return found.hexdigest()


def _digest_of(*values: object) -> str:
    """Of plain data, dataclasses of it included: what they show is all that they hold."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


@functools.cache
def _sources() -> str | None:
    """Which tilewright this is: names, sizes and times of change of its files, as Python knows what it compiled.

    None where they are no files of their own.
    """
    found = []
    for name in _SOURCES:
        spec = importlib.util.find_spec(f"tilewright.{name}")
        waiting = list(spec.submodule_search_locations or ()) if spec is not None else []
        while waiting:
            try:
                entries = [e for e in os.scandir(waiting.pop()) if e.name != "__pycache__"]
                found += [(e.path, e.stat().st_size, e.stat().st_mtime_ns) for e in entries if not e.is_dir()]
            except OSError:
                return None
            waiting += [e.path for e in entries if e.is_dir()]
    return _digest_of(sorted(found))


def _plain(value: Value) -> list[Any]:
    return [value.name, value.dtype.value, value.shape, value.hosted]


def _value(row: Sequence[Any]) -> Value:
    name, dtype, shape, hosted = row
    return Value(name, DType(dtype), None if shape is None else tuple(shape), hosted)


def _number(value: object) -> Any:
    """A NumPy number as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written")


__all__ = ["Interface", "Settings", "Shelf", "shelf_of"]
