"""The driver's program binaries, kept on disk between runs.

A damaged, foreign or unreadable file is a miss, never an error: the program is built from source again. A folder
that cannot be written costs one warning in the log and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
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
    """How much the program binaries take."""

    folder: Path
    files: int
    nbytes: int
    writable: bool


class ProgramCache:
    """Program binaries on disk under `kernels/xx/KEY.bin`, shared by all processes of the user."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_directory()) / "kernels"
        self._writes = 0

    def path(self, key: str) -> Path:
        """The file of a key (64 hexadecimal digits)."""
        return self.folder / key[:2] / f"{key}.bin"

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
        try:
            write_atomically(self.path(key), _MAGIC + _digest(key, payload) + payload)
        except OSError as error:
            self._warn(error)
            return
        self._writes += 1
        if self._writes % _CHECK_EVERY == 0:
            self.prune()

    def remove(self, key: str) -> None:
        """Forget a binary."""
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    @property
    def is_writable(self) -> bool:
        """Whether binaries can be stored, as far as permissions tell."""
        parent = self.folder
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        return os.access(parent, os.W_OK)

    def usage(self) -> CacheUsage:
        """Count what is stored."""
        files = self._files()
        return CacheUsage(self.folder, len(files), sum(size for _, size, _ in files), self.is_writable)

    def prune(self, limit: int = CACHE_LIMIT) -> int:
        """Remove the files used longest ago until three quarters of `limit` bytes are left; how many were removed."""
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
        """Time of writing, bytes and path of every binary; files that vanish meanwhile are left out."""
        found = []
        for path in self.folder.glob("??/*.bin"):
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
                "compiled kernels are not kept between runs, because %s cannot be written (%s); "
                "set TILEWRIGHT_CACHE to a folder of yours",
                self.folder,
                error.strerror or error,
            )


def _digest(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()
