"""Kernels that a driver would unload and load again stay loaded, and who may ask for their binaries."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tilewright.dsl.lowering import Launch
from tilewright.errors import KernelError
from tilewright.runtime import Buffer, Context
from tilewright.runtime.cache import ProgramCache
from tilewright.runtime.execution import HELD_AT_ONCE, BoundLaunch, Launches
from tilewright.runtime.libraries import Libraries, kernels_in

MAPS = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 11  /home/a b/pocl/kcache/AB/CDEF/gemm/16-1-1-goffs0-smallgrid/gemm.so
7f0000001000-7f0000002000 r-xp 00001000 fe:00 11  /home/a b/pocl/kcache/AB/CDEF/gemm/16-1-1-goffs0-smallgrid/gemm.so
7f0000002000-7f0000003000 r--p 00000000 fe:00 12  /tmp/pocl/tempfile/k/0-0-0/k.so
7f0000003000-7f0000004000 r--p 00000000 fe:00 13  /usr/lib/x86_64-linux-gnu/libc.so
7f0000004000-7f0000005000 rw-p 00000000 00:00 0
7f0000005000-7f0000006000 r--p 00000000 fe:00 14  /usr/lib/2024-01-02/plugin.so.1
"""
SOURCE = "__kernel void k{n}(__global float* y) {{ y[get_global_id(0)] += {n}.0f; }}"
COUNT = 5


@pytest.fixture
def limited(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context whose driver is taken to keep four kernels loaded."""
    other = Context(ctx.device)
    other.keeps_binaries = False
    monkeypatch.setattr(other, "_loaded_at_most", COUNT - 1)
    monkeypatch.setattr("tilewright.runtime.execution.HELD_AT_ONCE", 2)
    return other


def bound(ctx: Context, y: Buffer, count: int = COUNT) -> Launches:
    return Launches(
        ctx.bind(Launch(f"k{n}", SOURCE.format(n=n), (8,), None, ("y",), ("y",)), {"y": y}) for n in range(1, count + 1)
    )


def zeros(ctx: Context) -> Buffer:
    y = ctx.allocate(32)
    ctx.write(y, np.zeros(8, np.float32))
    return y


def test_only_kernels_are_found() -> None:
    folder = "/home/a b/pocl/kcache/AB/CDEF"
    assert kernels_in(MAPS) == {f"{folder}/gemm/16-1-1-goffs0-smallgrid/gemm.so", "/tmp/pocl/tempfile/k/0-0-0/k.so"}
    assert kernels_in("") == set()


def test_more_kernels_than_stay_loaded_are_held_in_parts(limited: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[float] = []
    y = zeros(limited)
    monkeypatch.setattr(limited._libraries, "hold", lambda: held.append(limited.read(y, (8,), np.float32)[0]))
    launches = bound(limited, y)
    limited.enqueue(launches)
    assert held == [1 + 2, 1 + 2 + 3 + 4, 15]
    limited.enqueue(launches)
    assert len(held) == 3, "once is enough"
    assert (limited.read(y, (8,), np.float32) == 30).all()


@pytest.mark.parametrize("few", [True, False], ids=["few kernels", "started once"])
def test_nothing_is_held_without_need(limited: Context, monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    monkeypatch.setattr(limited._libraries, "hold", lambda: pytest.fail("not needed"))
    y = zeros(limited)
    launches: Sequence[BoundLaunch] = bound(limited, y, COUNT - 1) if few else tuple(bound(limited, y))
    limited.enqueue(launches)
    assert limited.read(y, (8,), np.float32)[7] == (10 if few else 15)


def test_a_refused_launch_is_named_while_kernels_are_held(limited: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime.launching import Launcher, LaunchRefused

    y = zeros(limited)
    launches = bound(limited, y)
    real = Launcher.start

    def start(self: Launcher, calls: Sequence[object]) -> None:
        if calls[0] is launches.calls[2]:
            raise LaunchRefused(-5, 1)
        real(self, calls)  # type: ignore[arg-type]

    monkeypatch.setattr(Launcher, "start", start)
    with pytest.raises(KernelError, match="kernel k4 cannot be launched"):
        limited.enqueue(launches)


def test_kernels_stay_loaded_on_pocl(ctx: Context) -> None:
    if ctx.device.name != "pocl" or not sys.platform.startswith("linux"):
        pytest.skip("other drivers keep every kernel")
    libraries, y = Libraries(), zeros(ctx)
    ctx.enqueue(bound(ctx, y))
    ctx.finish()
    libraries.hold()
    count = len(libraries)
    assert count >= COUNT
    libraries.hold()
    assert len(libraries) == count
    assert HELD_AT_ONCE < 128


def test_no_more_than_so_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.runtime.libraries.MOST_HELD", 0)
    monkeypatch.setattr(
        "tilewright.runtime.libraries.kernels_in", lambda maps: pytest.fail("looked through for nothing")
    )
    libraries = Libraries()
    libraries.hold()
    assert len(libraries) == 0


def test_binaries_are_left_to_helpers_where_asking_has_a_price(ctx: Context, tmp_path: Path) -> None:
    other = Context(ctx.device)
    other.cache = ProgramCache(tmp_path)
    assert other.asks_for_binaries == (ctx.device.name != "pocl")
    other.build(SOURCE.format(n=1))
    assert other.cache.usage().files == int(other.asks_for_binaries)
