"""What is kept on disk between runs: files by key, such as the driver's program binaries.

A damaged, foreign or unreadable file is a miss, never an error: what it holds is made again. A folder that cannot be
written costs one warning in the log and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tilewright.folders import cache_directory, write_atomically

log = logging.getLogger("tilewright")

_MAGIC = b"tilewright-kernel-1\n"
_DIGEST_BYTES = 32
_CHECK_EVERY = 64
CACHE_LIMIT = 1 << 30
"""Bytes of program binaries above which the oldest are removed."""

_warned: set[Path] = set()


@dataclass(frozen=True)
class CacheUsage:
    """How much the files take."""

    folder: Path
    files: int
    nbytes: int
    writable: bool


class FileCache:
    """Files under `NAME/xx/KEYSUFFIX` in the cache folder, shared by all processes of the user."""

    def __init__(
        self, what: str, name: str, suffix: str, limit: int, folder: Path | None = None, check_every: int = 1
    ) -> None:
        """`limit` in bytes, looked after once in `check_every` writes; `folder` stands for the cache folder.

        ``what`` is what messages call the content.
        """
        self.folder = (folder or cache_directory()) / name
        self._what = what
        self._suffix = suffix
        self._limit = limit
        self._check_every = check_every
        self._writes = 0

    def path(self, key: str) -> Path:
        """The file of a key (64 hexadecimal digits)."""
        return self.folder / key[:2] / f"{key}{self._suffix}"

    def store(self, key: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file at once, part by part; a folder that cannot be written is reported once in the log."""
        try:
            write_atomically(self.path(key), parts)
            self._writes += 1
            if self._writes % self._check_every == 0:
                self.prune()
        except OSError as error:
            self._warn(error)

    def remove(self, key: str) -> None:
        """Forget a file."""
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    @property
    def is_writable(self) -> bool:
        """Whether files can be stored, as far as permissions tell."""
        parent = self.folder
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        return os.access(parent, os.W_OK)

    def usage(self) -> CacheUsage:
        """Count what is stored."""
        files = self._files()
        return CacheUsage(self.folder, len(files), sum(size for _, size, _ in files), self.is_writable)

    def prune(self, limit: int | None = None) -> int:
        """Remove the files written longest ago until three quarters of the limit are left; how many were removed.

        ``limit`` in bytes stands for the cache's own.
        """
        limit = self._limit if limit is None else limit
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= limit:
            return 0
        removed = 0
        for _, size, path in files:
            if total <= limit * 3 // 4:
                break
            path.unlink(missing_ok=True)
            total -= size
            removed += 1
        return removed

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of writing, bytes and path of every file; files that vanish meanwhile are left out."""
        found = []
        for path in self.folder.glob(f"??/*{self._suffix}"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _warn(self, error: OSError) -> None:
        if self.folder not in _warned:
            _warned.add(self.folder)
            log.warning(
                "%s are not kept between runs, because %s cannot be written (%s); "
                "set TILEWRIGHT_CACHE to a folder of yours",
                self._what,
                self.folder,
                error.strerror or error,
            )


class ProgramCache(FileCache):
    """Program binaries."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__("compiled kernels", "kernels", ".bin", CACHE_LIMIT, folder, _CHECK_EVERY)

    def read(self, key: str) -> bytes | None:
        """The binary stored under `key`, or None if there is none or it is damaged (then it is removed)."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        payload = content[start:]
        if content[:start] == _MAGIC + _digest(key, payload) and payload:
            return payload
        log.info("ignoring the damaged file %s", path)
        self.remove(key)
        return None

    def write(self, key: str, payload: bytes) -> None:
        """Store a binary; a folder that cannot be written is reported once in the log."""
        self.store(key, (_MAGIC, _digest(key, payload), payload))


def _digest(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()
