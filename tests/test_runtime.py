"""The runtime on every device: numbers, memory, refusals before a driver crashes, caches, threads and forks."""

from __future__ import annotations

import dataclasses
import gc
import logging
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tilewright.runtime
from tilewright.dsl.dtypes import DType
from tilewright.dsl.lowering import Launch
from tilewright.errors import DeviceError, KernelError
from tilewright.runtime import (
    BoundLaunch,
    Buffer,
    Context,
    Device,
    ProgramCache,
    context,
    execution,
    launching,
    selftest,
    transfers,
)
from tilewright.runtime import programs as programs_module
from tilewright.runtime.pool import GRANULE, Pool, block_size
from tilewright.runtime.targets import builds_at_once, driver_of

pytestmark = pytest.mark.binaries

SAXPY = """
__kernel void saxpy(__global const float* x, __global float* y) {
    size_t i = get_global_id(0);
    y[i] = 2.0f * x[i] + y[i];
}
"""
ROOT = Path(__file__).resolve().parents[1]


def saxpy(ctx: Context, size: int = 256, group: int | None = 64) -> tuple[BoundLaunch, Buffer, Buffer]:
    """y = 2x + y over `size` floats, with x = 0, 1, 2, ... and y = 1."""
    x, y = ctx.allocate(4 * size), ctx.allocate(4 * size)
    ctx.write(x, np.arange(size, dtype=np.float32))
    ctx.fill(y, 1, DType.F32)
    launch = Launch("saxpy", SAXPY, (size,), None if group is None else (group,), ("x", "y"), ("y",))
    return ctx.bind(launch, {"x": x, "y": y}), x, y


def run_python(script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own, from the repository's root, with this session's cache."""
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, '.')\n" + textwrap.dedent(script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


# Launching


def test_a_kernel_computes_what_numpy_computes(ctx: Context) -> None:
    bound, _, y = saxpy(ctx)
    ctx.enqueue([bound])
    np.testing.assert_array_equal(ctx.read(y, (256,), np.float32), 2 * np.arange(256, dtype=np.float32) + 1)


def test_launches_run_in_the_order_given(ctx: Context) -> None:
    bound, _, y = saxpy(ctx)
    ctx.enqueue([bound, bound, bound])
    np.testing.assert_array_equal(ctx.read(y, (256,), np.float32), 6 * np.arange(256, dtype=np.float32) + 1)


def test_two_bindings_of_one_kernel_keep_their_own_arguments(ctx: Context) -> None:
    (first, _, y1), (second, _, y2) = saxpy(ctx), saxpy(ctx)
    ctx.enqueue([first, second, first])
    assert ctx.read(y1, (256,), np.float32)[1] == 5
    assert ctx.read(y2, (256,), np.float32)[1] == 3


def test_the_driver_may_choose_the_work_group(ctx: Context) -> None:
    bound, _, y = saxpy(ctx, 100, None)
    ctx.enqueue([bound])
    assert ctx.read(y, (100,), np.float32)[99] == 199


def test_no_work_items_means_no_launch(ctx: Context) -> None:
    x = ctx.allocate(0)
    bound = ctx.bind(Launch("saxpy", SAXPY, (0,), (64,), ("x", "y"), ("y",)), {"x": x, "y": x})
    assert bound.is_empty
    ctx.enqueue([bound])
    ctx.finish()
    assert ctx.profile([bound]) == [0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_size": (300,), "local_size": (7,)}, "the local size .7,. does not divide"),
        ({"global_size": (64, 64), "local_size": (64,)}, "the local size .64,. does not divide"),
        ({"global_size": (64,), "local_size": (0,)}, "does not divide"),
        ({"global_size": (1 << 63,)}, "it needs 1 to 3 sizes"),
        ({"global_size": (-1,)}, "it needs 1 to 3 sizes"),
        ({"global_size": (1, 1, 1, 1)}, "it needs 1 to 3 sizes"),
        ({"arguments": ("x",)}, "takes 2 arguments, but 1 are given"),
        ({"arguments": ("x", "z")}, "has no buffer for z"),
        ({"kernel": "other"}, "find kernel other"),
    ],
)
def test_an_impossible_launch_is_refused(ctx: Context, changes: dict[str, object], message: str) -> None:
    buffer = ctx.allocate(4096)
    good = Launch("saxpy", SAXPY, (64,), None, ("x", "y"), ("y",))
    with pytest.raises(KernelError, match=message):
        ctx.bind(dataclasses.replace(good, **changes), {"x": buffer, "y": buffer})  # type: ignore[arg-type]


def test_a_too_large_work_group_is_refused(ctx: Context) -> None:
    size = 2 * ctx.device.target.max_work_group
    with pytest.raises(KernelError, match=f"has {size} work-items in a work-group.*use a smaller local size"):
        saxpy(ctx, size, size)


def test_too_much_local_memory_is_refused(ctx: Context) -> None:
    floats = ctx.device.target.local_memory // 4 + 1024
    source = f"""
    __kernel void hungry(__global float* y) {{
        __local float t[{floats}];
        size_t l = get_local_id(0);
        for (int i = 0; i < {floats}; i++) t[i] = y[l];
        barrier(CLK_LOCAL_MEM_FENCE);
        y[l] = t[(l * 77) % {floats}];
    }}"""
    # a driver may refuse it in its compiler already
    with pytest.raises(KernelError, match=r"bytes of local memory.*use smaller tiles|does not compile"):
        ctx.bind(Launch("hungry", source, (1,), (1,), ("y",), ("y",)), {"y": ctx.allocate(1024)})


def test_a_failing_launch_names_its_kernel(ctx: Context) -> None:
    bound, x, y = saxpy(ctx)
    kernel = ctx.build(SAXPY).kernel("saxpy")
    kernel.set_args(x.memory, y.memory)
    broken = dataclasses.replace(bound, kernel=kernel, call=ctx._launcher.call(kernel, (10,), (3,)))
    with pytest.raises(KernelError, match=r"kernel saxpy cannot be launched: .*INVALID_WORK_GROUP_SIZE"):
        ctx.enqueue([broken])
    assert not ctx.lost


def test_a_refused_launch_is_the_one_that_is_named(ctx: Context) -> None:
    good, x, y = saxpy(ctx)
    other = Launch("other", SAXPY.replace("saxpy", "other"), (256,), (64,), ("x", "y"), ("y",))
    unset = ctx.bind(other, {"x": x, "y": None})
    with pytest.raises(KernelError, match=r"kernel other cannot be launched: .*INVALID_KERNEL_ARGS"):
        ctx.enqueue([good, good, unset, good])
    assert ctx.read(y, (256,), np.float32)[1] == 5, "what came before the refusal has been started"
    ctx.rebind(unset, 1, y)
    ctx.enqueue([unset])
    assert ctx.read(y, (256,), np.float32)[1] == 7


def test_arguments_may_be_set_anew_while_launches_wait(ctx: Context) -> None:
    bound, _, y = saxpy(ctx)
    others = [ctx.allocate(4 * 256) for _ in range(20)]
    for other in others:
        ctx.fill(other, 1, DType.F32)
        ctx.rebind(bound, 1, other)
        ctx.enqueue([bound])
    expected = 2 * np.arange(256, dtype=np.float32) + 1
    for found in ctx.transfers.receive([(other, (256,), np.float32) for other in others]):
        np.testing.assert_array_equal(found, expected)
    assert ctx.read(y, (256,), np.float32)[1] == 1


def test_both_ways_to_launch_do_the_same(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.direct_function() is not None, "this platform hides OpenCL's functions"
    assert ctx._launcher.is_direct
    monkeypatch.setattr(ctx, "_launcher", launching.Launcher(ctx._queue, direct=False))
    assert not ctx._launcher.is_direct
    bound, _, y = saxpy(ctx)
    ctx.enqueue([bound, bound])
    assert ctx.read(y, (256,), np.float32)[3] == 13
    kernel = ctx.build(SAXPY).kernel("saxpy")
    kernel.set_args(y.memory, y.memory)
    broken = dataclasses.replace(bound, kernel=kernel, call=ctx._launcher.call(kernel, (10,), (3,)))
    with pytest.raises(KernelError, match=r"kernel saxpy cannot be launched: .*INVALID_WORK_GROUP_SIZE"):
        ctx.enqueue([bound, broken])


# Memory


def test_what_is_sent_and_received_together(ctx: Context) -> None:
    arrays = [np.arange(n, dtype=np.float32).reshape(-1, 2).T for n in (0, 2, 1000, 100_000)]
    buffers = [ctx.allocate(a.nbytes) for a in arrays]
    sent = [ctx.transfers.send(b, a) for b, a in zip(buffers, arrays, strict=True)]
    found = ctx.transfers.receive([(b, a.shape, DType.F32) for b, a in zip(buffers, arrays, strict=True)])
    del sent
    for result, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(result, expected)
    assert ctx.transfers.receive([]) == []


def test_every_dtype_survives_a_round_trip(ctx: Context) -> None:
    for dtype in DType:
        values = np.array([0, 1, 1, 0, 1], dtype.numpy)
        buffer = ctx.allocate(values.nbytes)
        ctx.write(buffer, values)
        found = ctx.read(buffer, (5,), dtype)
        assert found.dtype == dtype.numpy
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
        np.arange(24, dtype=np.float32).reshape(4, 6).T,
        np.arange(24, dtype=np.float32)[::-1],
        np.broadcast_to(np.float32(3), (4, 6)),
        np.arange(24, dtype=">f4"),
        np.arange(6, dtype=np.float16),
        np.array(7.0, np.float32),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
    ],
    ids=["strided", "transposed", "reversed", "broadcast", "big-endian", "half", "scalar", "empty", "bool"],
)
def test_any_array_is_written_in_c_order(ctx: Context, array: np.ndarray) -> None:
    array.flags.writeable = False
    buffer = ctx.allocate(array.nbytes)
    ctx.write(buffer, array)
    native = array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(ctx.read(buffer, array.shape, native), array)


def test_offsets_count_bytes(ctx: Context) -> None:
    buffer = ctx.allocate(40)
    ctx.fill(buffer, 0, DType.F32)
    ctx.write(buffer, np.array([5, 6], np.float32), offset_bytes=12)
    assert list(ctx.read(buffer, (4,), np.float32, offset_bytes=8)) == [0, 5, 6, 0]


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (4, 4), (-4, 1), (1000, 0)])
def test_access_outside_a_buffer_is_refused(ctx: Context, offset: int, size: int) -> None:
    buffer = ctx.allocate(16)
    with pytest.raises(DeviceError, match="do not fit into a buffer of 16 bytes"):
        ctx.read(buffer, (size,), np.float32, offset)
    with pytest.raises(DeviceError, match="do not fit into a buffer of 16 bytes"):
        ctx.write(buffer, np.zeros(size, np.float32), offset)
    with pytest.raises(DeviceError, match="do not fit into a buffer of 16 bytes"):
        ctx.view(buffer, offset, 4 * size)


def test_python_objects_are_refused(ctx: Context) -> None:
    with pytest.raises(DeviceError, match="dtype object has no bytes"):
        ctx.write(ctx.allocate(64), np.array([None]))


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_fill_sets_every_element(ctx: Context, dtype: DType) -> None:
    buffer = ctx.allocate(7 * dtype.itemsize)
    ctx.fill(buffer, 1, dtype)
    np.testing.assert_array_equal(ctx.read(buffer, (7,), dtype), np.ones(7, dtype.numpy))


def test_fill_takes_nan_and_leaves_odd_bytes(ctx: Context) -> None:
    buffer = ctx.allocate(11)
    ctx.write(buffer, np.full(11, 9, np.uint8))
    ctx.fill(buffer, float("nan"), DType.F32)
    assert np.isnan(ctx.read(buffer, (2,), np.float32)).all()
    assert list(ctx.read(buffer, (3,), np.uint8, 8)) == [9, 9, 9]


def test_a_buffer_may_have_no_bytes(ctx: Context) -> None:
    buffer = ctx.allocate(0)
    ctx.write(buffer, np.zeros(0, np.float32))
    ctx.fill(buffer, 1, DType.F32)
    assert ctx.read(buffer, (0, 4), np.float32).shape == (0, 4)
    assert ctx.view(buffer, 0, 0).nbytes == 0


def test_a_view_shares_memory(ctx: Context) -> None:
    step = ctx.alignment
    base = ctx.allocate(8 * step)
    ctx.fill(base, 0, DType.U8)
    view = ctx.view(base, 2 * step, 4 * step)
    inner = ctx.view(view, step, step)
    ctx.fill(inner, 7, DType.U8)
    content = ctx.read(base, (8, step), np.uint8)
    assert [int(row[0]) for row in content] == [0, 0, 0, 7, 0, 0, 0, 0]
    assert (inner.base, inner.offset) == (base, 3 * step)
    view.release()
    assert ctx.read(inner, (1,), np.uint8)[0] == 7


def test_a_view_must_be_aligned(ctx: Context) -> None:
    with pytest.raises(DeviceError, match=f"a view starts at byte 1, .* multiple of {ctx.alignment}"):
        ctx.view(ctx.allocate(4096), 1, 16)


def test_use_after_release_is_refused(ctx: Context) -> None:
    base = ctx.allocate(4096)
    view = ctx.view(base, 0, 64)
    base.release()
    base.release()
    for dead in (base, view):
        with pytest.raises(DeviceError, match="used after its release"):
            ctx.read(dead, (1,), np.uint8)


def test_released_memory_is_used_again(ctx: Context) -> None:
    gc.collect()
    ctx.trim()
    first = ctx.allocate(100_000)
    memory = first.memory
    first.release()
    assert ctx.pool.kept == block_size(100_000)
    second = ctx.allocate(90_000)
    assert second.memory is memory
    before = ctx.pool.in_use
    del second
    gc.collect()
    assert ctx.pool.in_use == before - block_size(100_000)
    assert ctx.allocate(80_000).memory is not memory, "more than an eighth would be wasted"
    assert ctx.trim() >= block_size(100_000)
    assert ctx.pool.kept == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_pool_counts_what_is_there(ctx: Context, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = Pool(ctx._context, "here", 1 << 26, 1 << 22)
    pool.limit = 40_000
    held: list[Buffer] = []
    for _ in range(300):
        if held and rng.random() < 0.5:
            held.pop(rng.integers(len(held))).release()
        else:
            held.append(pool.allocate(int(rng.integers(0, 9000))))
        assert sum(b.nbytes for b in held) <= pool.in_use
        assert pool.in_use <= sum(b.nbytes + b.nbytes // 8 + 5 * GRANULE for b in held)
        assert pool.kept <= pool.limit
        assert len({id(b.memory) for b in held}) == len(held)
    for buffer in held:
        buffer.release()
    assert pool.in_use == 0
    pool.trim()
    assert (pool.kept, pool._sizes, pool._free) == (0, [], {})


def test_memory_above_the_limit_goes_back_to_the_driver(ctx: Context) -> None:
    pool = Pool(ctx._context, "here", 1 << 30, 1 << 20)
    pool.limit = 1000
    small, large = pool.allocate(512), pool.allocate(4096)
    large.release()
    small.release()
    assert (pool.kept, pool.in_use) == (512, 0)


def test_exhausted_memory_is_an_error_with_numbers(ctx: Context) -> None:
    pool = Pool(ctx._context, "here", 10_000, 8192)
    kept = pool.allocate(4096)
    pool.allocate(4096).release()
    assert pool.allocate(5000).nbytes == 5000, "what waits for reuse must make room"
    with pytest.raises(DeviceError, match="out of memory on here: 8192 bytes are needed and at most 5904 of 10000"):
        pool.allocate(8192)
    assert kept.nbytes == 4096
    with pytest.raises(DeviceError, match="9000 bytes are needed in one buffer, but here allows 8192"):
        pool.allocate(9000)
    with pytest.raises(DeviceError, match="cannot have -1 bytes"):
        pool.allocate(-1)


def test_blocks_are_as_large_as_asked_for() -> None:
    for nbytes in [0, *range(1, 5000), 2**20 - 1, 2**20, 2**20 + 1, 2**33 + 12345]:
        assert max(nbytes, 1) <= block_size(nbytes) < nbytes + GRANULE + (nbytes == 0)
        assert block_size(nbytes) % GRANULE == 0


def test_a_tensor_larger_than_the_device_is_refused(ctx: Context) -> None:
    with pytest.raises(DeviceError, match=r"bytes are needed in one buffer, but .* allows \d+ bytes"):
        ctx.allocate(1 << 45)


@pytest.mark.parametrize("threads", [1, 3])
def test_pinned_memory_is_used_in_turns(ctx: Context, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(transfers, "PIECE", 1000)
    monkeypatch.setattr(transfers, "PIECES", 5)
    monkeypatch.setattr(transfers, "WORTH_STAGING", 900)
    staged = transfers.Transfers(ctx._context, ctx._queue, False, ctx._synchronising)
    wrong: list[int] = []

    def work(number: int) -> None:
        for size in (0, 1, 250, 999, 1000, 1001, 5000, 33_333):
            array = np.random.default_rng(number * size).integers(0, 255, size, np.uint8)
            kept, buffer = array.copy(), ctx.allocate(size)
            staged.write(buffer, array)
            array[:] = 0
            other = ctx.allocate(size)
            staged.upload(other, kept, staged.mark())
            for found in staged.receive([(buffer, (size,), np.uint8), (other, (size,), np.uint8)]):
                if not np.array_equal(found, kept):
                    wrong.append(size)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_marks_are_passed_in_order(ctx: Context) -> None:
    bound, _, _ = saxpy(ctx)
    marks = []
    for _ in range(5):
        ctx.enqueue([bound])
        marks.append(ctx.transfers.mark())
    ctx.finish()
    assert all(mark.is_passed for mark in marks)


# Programs


def test_a_failed_build_says_what_and_where(ctx: Context) -> None:
    source = "__kernel void broken(__global float* y) {\n    y[0] = undeclared_name;\n}\n"
    with pytest.raises(KernelError, match=r"(?s)kernel broken does not compile on .*undeclared_name") as caught:
        ctx.build(source)
    assert len(str(caught.value).splitlines()) <= 13


def test_build_logs_are_trimmed() -> None:
    noise = "\n".join(f"line {i}: warning: something" for i in range(500))
    log = programs_module.trim_log(f"{noise}\nx.cl:3: error: no\n code\n ^\n{noise}")
    assert log == "x.cl:3: error: no\n code\n ^"
    assert len(programs_module.trim_log(noise).splitlines()) == 12
    assert len(programs_module.trim_log("x" * 10_000)) == 240


def test_kernel_names_are_found() -> None:
    source = "kernel void a(){} __kernel __attribute__((reqd_work_group_size(8, 8, 1)))\nvoid b_2 (global int* p) {}"
    assert programs_module.kernel_names(source) == ("a", "b_2")


def test_a_program_is_built_once(ctx: Context) -> None:
    assert ctx.build(SAXPY) is ctx.build(SAXPY)
    assert ctx.build(SAXPY) is not ctx.build(SAXPY, "-DOTHER")


def fresh(ctx: Context, folder: Path) -> Context:
    """A context of the same device with an empty memory and a cache folder of its own, which it fills itself."""
    other = Context(ctx.device)
    other.asks_for_binaries = True
    other.cache = ProgramCache(folder)
    return other


def test_binaries_are_kept_between_processes(ctx: Context, tmp_path: Path) -> None:
    built = fresh(ctx, tmp_path).build(SAXPY)
    assert not built.from_disk
    again = fresh(ctx, tmp_path)
    assert again.build(SAXPY).from_disk
    bound, _, y = saxpy(again)
    again.enqueue([bound])
    assert again.read(y, (256,), np.float32)[3] == 7


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other key", "refused by the driver"])
def test_a_damaged_binary_is_built_again(ctx: Context, tmp_path: Path, damage: str) -> None:
    key = fresh(ctx, tmp_path).build(SAXPY).key
    cache = ProgramCache(tmp_path)
    path = cache.path(key)
    content = path.read_bytes()
    if damage == "refused by the driver":
        cache.write(key, b"no program at all" * 40)
    elif damage == "other key":
        cache.write("ab" * 32, content)
        path.write_bytes(cache.path("ab" * 32).read_bytes())
    else:
        path.write_bytes({"empty": b"", "cut": content[:-9], "flipped": content[:-1] + b"\x01\x02"}[damage])
    again = fresh(ctx, tmp_path)
    assert not again.build(SAXPY).from_disk
    bound, _, y = saxpy(again)
    again.enqueue([bound])
    assert again.read(y, (256,), np.float32)[3] == 7
    assert fresh(ctx, tmp_path).build(SAXPY).from_disk, "the file must have been written anew"


def test_a_tuner_may_keep_its_binaries_out(ctx: Context, tmp_path: Path) -> None:
    other = fresh(ctx, tmp_path)
    other.keeps_binaries = False
    other.build(SAXPY)
    assert other.cache.usage().files == 0


def test_an_unwritable_cache_is_reported_once(ctx: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "tilewright"):
        for define in ("-DA", "-DB"):
            assert not fresh(ctx, tmp_path / "file").build(SAXPY, define).from_disk
    assert [record.message.startswith("compiled kernels are not kept") for record in caplog.records] == [True]


def test_a_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    cache = ProgramCache(tmp_path)
    cache.write("cd" * 32, b"binary")
    assert cache.read("cd" * 32) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_oldest_binaries_are_removed(tmp_path: Path) -> None:
    import os

    cache = ProgramCache(tmp_path)
    keys = [f"{i:02x}" * 32 for i in range(8)]
    for age, key in enumerate(keys):
        cache.write(key, bytes(1000))
        os.utime(cache.path(key), (age, age))
    assert cache.usage().files == 8
    assert cache.prune(100_000) == 0
    assert cache.prune(5000) == 5
    assert [cache.read(key) is not None for key in keys] == [False] * 5 + [True] * 3


def test_drivers_for_cpus_build_one_program_at_a_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if builds_at_once(driver_of(device.platform, device.kind)):
        pytest.skip("this driver may be asked for several programs at once")
    inside: list[int] = []
    together: list[int] = []

    def build(*_arguments: object) -> programs_module.Module:
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return programs_module.Module(None, "", False)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "build_program", build)
    contexts = [Context(device) for _ in range(3)]
    threads = [
        threading.Thread(target=each.build, args=(SAXPY, f"-DNUMBER={number}"))
        for number in range(4)
        for each in contexts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * len(threads)


BUILD_IN_A_PROCESS = """
    from pathlib import Path
    import numpy as np
    from tilewright.runtime import ProgramCache, context, select_device
    from tests.test_runtime import SAXPY, saxpy
    ctx = context(select_device(sys.argv[1]))
    ctx.cache, ctx.asks_for_binaries = ProgramCache(Path(sys.argv[2])), True
    for number in range(4):
        ctx.build(SAXPY, f"-DNUMBER={number}")
    bound, _, y = saxpy(ctx)
    ctx.enqueue([bound])
    print(ctx.read(y, (256,), np.float32)[3])
"""


def test_two_processes_build_at_once(device: Device, tmp_path: Path) -> None:
    done: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda: done.append(run_python(BUILD_IN_A_PROCESS, device.name, str(tmp_path))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(each.stdout, each.returncode) for each in done] == [("7.0\n", 0)] * 2, done
    cache = ProgramCache(tmp_path)
    files = list(cache.folder.rglob("*.bin"))
    assert len(files) == 5
    assert all(cache.read(path.stem) for path in files)
    assert [path for path in cache.folder.rglob("*.tmp")] == []


# Timing


def test_time_gives_one_positive_number_per_repeat(ctx: Context) -> None:
    bound, _, _ = saxpy(ctx)
    for launches in ([bound], [bound] * 5, []):
        samples = ctx.time(launches, repeats=3)
        assert len(samples) == 3
        assert all(0 < sample < 1 for sample in samples)


def test_time_grows_with_the_work(ctx: Context) -> None:
    source = """
    __kernel void slow(__global float* y) {
        float v = y[get_global_id(0)];
        for (int i = 0; i < 20000; i++) v = v * 0.999f + 0.5f;
        y[get_global_id(0)] = v;
    }"""
    y = ctx.allocate(4096)
    ctx.fill(y, 1, DType.F32)
    slow = ctx.bind(Launch("slow", source, (1024,), (64,), ("y",), ("y",)), {"y": y})
    rounds = [(min(ctx.time([slow], 3)), min(ctx.time([slow] * 3, 3))) for _ in range(12)]
    once, thrice = (min(times) for times in zip(*rounds, strict=True))  # in turns: others use the cores now and then
    assert 1.5 < thrice / once < 6


def test_profile_gives_one_number_per_launch(ctx: Context) -> None:
    bound, _, y = saxpy(ctx)
    parts = ctx.profile([bound, bound])
    assert len(parts) == 2
    assert all(0 <= part < 1 for part in parts)
    assert ctx.read(y, (256,), np.float32)[1] == 5


def test_the_self_test_passes(device: Device) -> None:
    result = selftest(device)
    assert result.passed, result.message
    assert result.max_error < 1e-5
    assert result.bandwidth > 1e8
    assert 0 < result.launch_seconds < 1e-2


# Processes and threads


def test_one_context_per_device(device: Device) -> None:
    assert context(device) is context(pickle.loads(pickle.dumps(device)))


def test_a_lost_context_is_replaced(device: Device) -> None:
    lost = Context(device)
    registry = execution._registry
    kept = registry.get(device.name)
    try:
        registry[device.name] = lost
        lost.lost = True
        assert context(device) is not lost
    finally:
        registry[device.name] = kept or context(device)


def test_threads_share_a_context(ctx: Context) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        bound, _, y = saxpy(ctx, 1024)
        for step in range(1, 41):
            ctx.enqueue([bound])
            if ctx.read(y, (1024,), np.float32)[number] != 2 * number * step + 1:
                wrong.append(number)
            ctx.allocate(4096)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused_clearly(device: Device) -> None:
    done = run_python(
        """
        import os
        from tests.test_runtime import saxpy
        from tilewright.errors import DeviceError
        from tilewright.runtime import context, devices, select_device
        ctx = context(select_device(sys.argv[1]))
        bound, x, y = saxpy(ctx)
        ctx.enqueue([bound])
        ctx.finish()
        child = os.fork()
        if child == 0:
            calls = [
                devices, lambda: select_device(None), lambda: context(ctx.device), lambda: ctx.allocate(16),
                lambda: ctx.enqueue([bound]), ctx.finish, lambda: ctx.read(y, (1,), "f4"), lambda: ctx.build("x"),
                lambda: ctx.time([bound], 1), lambda: ctx.view(x, 0, 16),
            ]
            refused = 0
            for call in calls:
                try:
                    call()
                except DeviceError as error:
                    refused += "start the child with multiprocessing" in str(error)
            del bound, x, y
            os._exit(0 if refused == len(calls) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        device.name,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_a_fork_before_any_use_is_fine(device: Device) -> None:
    done = run_python(
        """
        import os
        import tilewright.runtime as runtime
        child = os.fork()
        if child == 0:
            result = runtime.selftest(runtime.select_device(sys.argv[1]))
            os._exit(0 if result.passed else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        device.name,
    )
    assert done.stdout == "0\n", done.stderr


def test_importing_the_runtime_does_not_load_opencl() -> None:
    done = run_python("import tilewright.runtime; print('pyopencl' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_the_exports_exist() -> None:
    exported = tilewright.runtime.__all__
    assert exported == sorted(exported, key=lambda name: (name[0].islower(), name))
    assert all(hasattr(tilewright.runtime, name) for name in exported)
