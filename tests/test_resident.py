"""Pages that loading drivers has read are given up, and none that were written to; freed memory is given back."""

import ctypes
import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.runtime import resident
from tilewright.runtime.resident import forget_again, forgetting_loaded, return_freed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SIZE = 4 << 20


@pytest.fixture(autouse=True)
def no_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves those that this process has loaded out of it."""
    monkeypatch.setattr(resident, "_loaded", set())


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[[str, int], mmap.mmap]:
    """Maps a new file of `SIZE` bytes privately."""

    def make(name: str, protection: int) -> mmap.mmap:
        path = tmp_path / name
        path.write_bytes(bytes([7]) * SIZE)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE, protection)

    return make


def touched(memory: mmap.mmap) -> int:
    """The sum of one byte of each page."""
    return sum(memory[:: mmap.PAGESIZE])


def resident_bytes(name: str) -> int:
    """How much of the mappings of a file counts as memory of this process."""
    text = Path("/proc/self/smaps").read_text()
    sizes = re.findall(rf"/{re.escape(name)}\nSize:.*\n(?:\w+: .*\n)*?Rss: +(\d+) kB", text)
    return sum(int(size) << 10 for size in sizes)


def process_bytes() -> int:
    """What counts as memory of this process, as of now."""
    found = re.search(r"^Rss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def protect(memory: mmap.mmap, size: int, protection: int) -> None:
    """Change what may be done with the first bytes of a mapping."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    change = ctypes.CDLL(None).mprotect
    change.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    assert change(address, size, protection) == 0


def test_what_a_block_maps_and_reads_is_forgotten_and_read_again(mapped: Callable[[str, int], mmap.mmap]) -> None:
    earlier = mapped("earlier.bin", mmap.PROT_READ)
    assert touched(earlier) == 7 * (SIZE // mmap.PAGESIZE)
    with forgetting_loaded():
        library = mapped("library.bin", mmap.PROT_READ)
        assert touched(library) == 7 * (SIZE // mmap.PAGESIZE)
        assert resident_bytes("library.bin") == SIZE
    assert resident_bytes("library.bin") == 0
    assert resident_bytes("earlier.bin") == SIZE
    assert touched(library) == 7 * (SIZE // mmap.PAGESIZE)


def test_what_is_read_later_is_forgotten_when_asked(mapped: Callable[[str, int], mmap.mmap]) -> None:
    earlier = mapped("earlier.bin", mmap.PROT_READ)
    with forgetting_loaded():
        library = mapped("library.bin", mmap.PROT_READ)
    assert touched(earlier) == touched(library) == 7 * (SIZE // mmap.PAGESIZE)
    assert resident_bytes("library.bin") == SIZE
    forget_again()
    assert resident_bytes("library.bin") == 0
    assert resident_bytes("earlier.bin") == SIZE


def test_pages_that_were_written_to_stay(mapped: Callable[[str, int], mmap.mmap]) -> None:
    with forgetting_loaded():
        writable = mapped("writable.bin", mmap.PROT_READ | mmap.PROT_WRITE)
        relocated = mapped("relocated.bin", mmap.PROT_READ | mmap.PROT_WRITE)
        for memory in (writable, relocated):
            memory[SIZE // 2] = 9
        protect(relocated, SIZE, mmap.PROT_READ)  # as loaders do with what they have relocated
    assert writable[SIZE // 2] == relocated[SIZE // 2] == 9


def test_a_mapping_that_another_thread_changes_meanwhile_stays(
    mapped: Callable[[str, int], mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaders map a library as a whole, and then parts of it anew, which are written to."""
    found: list[mmap.mmap] = []

    def changed(mapping: object) -> bool:
        memory = found[0]
        protect(memory, SIZE // 2, mmap.PROT_READ | mmap.PROT_WRITE)
        memory[0] = 9
        return True

    monkeypatch.setattr(resident, "_is_unchanged", changed)
    with forgetting_loaded():
        library = mapped("library.bin", mmap.PROT_READ | mmap.PROT_WRITE)
        found.append(library)
        protect(library, SIZE, mmap.PROT_READ)
    assert library[0] == 9


def test_where_the_system_does_not_tell_nothing_is_forgotten(
    mapped: Callable[[str, int], mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(mapping: object) -> bool:
        raise PermissionError

    monkeypatch.setattr(resident, "_is_unchanged", unreadable)
    with forgetting_loaded():
        library = mapped("library.bin", mmap.PROT_READ)
        touched(library)
    assert resident_bytes("library.bin") == SIZE


def test_what_was_freed_goes_back_to_the_system() -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        pytest.skip("the C library is not glibc")
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.restype, library.free.argtypes = None, (ctypes.c_void_p,)
    block = 64 << 10
    blocks = [library.malloc(block) for _ in range(512)]
    for address in blocks:
        ctypes.memset(address, 1, block)
    for address in blocks[:-1]:  # the last keeps the heap from shrinking by itself
        library.free(address)
    before = process_bytes()
    return_freed()
    assert process_bytes() < before - 256 * block
    library.free(blocks[-1])
