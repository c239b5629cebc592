"""Programs built in the background, by helper processes, and the parser's tables kept between runs."""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from pathlib import Path

import pytest

from tilewright.dsl import tables
from tilewright.dsl.parse import _parser, _prepared
from tilewright.dsl.tree import Builder
from tilewright.errors import KernelError
from tilewright.runtime import Context, building
from tilewright.runtime.builds import PER_HELPER, Helper, helpers_allowed
from tilewright.runtime.compiler import serve
from tilewright.runtime.execution import Built

pytestmark = pytest.mark.binaries

KERNEL = "__kernel void k{n}(__global float* y) {{ y[get_global_id(0)] = {n}.0f; }} // {salt}"
WRONG = "__kernel void wrong(__global float* y) {{ y[0] = ; }} // {salt}"


def sources(count: int) -> list[str]:
    """Sources that nobody has built before."""
    salt = uuid.uuid4().hex
    return [KERNEL.format(n=n, salt=salt) for n in range(count)]


def test_everything_is_built_at_the_end(ctx: Context) -> None:
    wanted = sources(3)
    with building(ctx) as builds:
        for source in (*wanted, *wanted):
            builds.add(source)
    assert [ctx.built(source) for source in wanted] == [Built.IN_MEMORY] * 3


def test_wrong_programs_are_reported_by_whoever_needs_them(ctx: Context) -> None:
    wrong, (right,) = WRONG.format(salt=uuid.uuid4().hex), sources(1)
    with building(ctx) as builds:
        builds.add(wrong)
        builds.add(right)
    assert ctx.built(right) is Built.IN_MEMORY
    assert ctx.built(wrong) is Built.NOWHERE
    with pytest.raises(KernelError, match="kernel wrong does not compile"):
        ctx.build(wrong)


def test_an_error_in_the_block_is_not_hidden(ctx: Context) -> None:
    (source,) = sources(1)

    def work() -> None:
        with building(ctx) as builds:
            builds.add(source)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert ctx.built(source) is Built.IN_MEMORY


def test_helpers_fill_the_cache_on_disk(ctx: Context) -> None:
    if ctx.device.kind != "cpu":
        pytest.skip("a helper opens the device, which exclusive GPUs do not allow")
    wanted, wrong = sources(2), WRONG.format(salt=uuid.uuid4().hex)
    with Helper(ctx.device.name, ctx.cache.folder.parent) as helper:
        assert helper.compile(wanted[0]) == ""
        assert "kernel wrong does not compile" in (helper.compile(wrong) or "")
        assert helper.compile(wanted[1]) == ""
        helper.kill()
        assert helper.compile(wanted[1]) is None
    assert [ctx.built(source) for source in wanted] == [Built.ON_DISK] * 2
    assert ctx.build(wanted[0]).from_disk


def test_many_programs_are_built_with_helpers(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    if ctx.device.kind != "cpu":
        pytest.skip("a helper opens the device, which exclusive GPUs do not allow")
    monkeypatch.setattr("tilewright.runtime.builds.helpers_allowed", lambda ctx: 1)
    wanted = sources(3 * PER_HELPER)
    with building(ctx) as builds:
        for source in wanted:
            builds.add(source)
        assert len(builds._threads) == 2
    assert {ctx.built(source) for source in wanted} == {Built.IN_MEMORY}


def test_a_dead_helper_costs_nothing_but_time(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.runtime.builds.helpers_allowed", lambda ctx: 1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    wanted = sources(2 * PER_HELPER)
    with building(ctx) as builds:
        for source in wanted:
            builds.add(source)
    assert {ctx.built(source) for source in wanted} == {Built.IN_MEMORY}


def test_where_helpers_are_of_no_use(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert helpers_allowed(ctx) == (5 if ctx.asks_for_binaries else 6)
    monkeypatch.setattr(ctx, "keeps_binaries", False)
    assert helpers_allowed(ctx) == 0
    monkeypatch.setattr(ctx, "keeps_binaries", True)
    monkeypatch.setattr("sys.executable", "/usr/bin/blender")
    assert helpers_allowed(ctx) == 0


def test_the_helper_answers_every_line() -> None:
    built: list[str] = []

    def build(source: str) -> None:
        if source == "wrong":
            raise KernelError("wrong")
        built.append(source)

    answers = io.BytesIO()
    serve([json.dumps(s).encode() + b"\n" for s in ("a", "wrong", "b")], answers, build)
    assert answers.getvalue() == b'""\n"wrong"\n""\n'
    assert built == ["a", "b"]


def test_one_program_is_built_once_by_many_threads(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime import execution

    (source,), made, real = sources(1), [], execution.build_program

    def slow(*arguments: object) -> object:
        made.append(1)
        time.sleep(0.05)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "build_program", slow)
    threads = [threading.Thread(target=ctx.build, args=(source,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert ctx.built(source) is Built.IN_MEMORY


def test_a_build_does_not_stop_other_threads(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime import execution

    (source,), real = sources(1), execution.build_program
    entered, leave = threading.Event(), threading.Event()

    def slow(*arguments: object) -> object:
        entered.set()
        assert leave.wait(30)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "build_program", slow)
    thread = threading.Thread(target=ctx.build, args=(source,))
    thread.start()
    assert entered.wait(30)
    ctx.enqueue([])  # would wait for ever if the build held the context's lock
    leave.set()
    thread.join()


# --- the parser's tables ----------------------------------------------------------------------------------------------

GRAMMAR = 'start: "a" NAME+ | "b" start\nNAME: /[x-z]+/\n%ignore " "\n'


def test_kept_tables_parse_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    made = _parser.__wrapped__()
    kept = _parser.__wrapped__()
    assert made.source_path != "<deserialized>"
    assert kept.source_path == "<deserialized>"
    for file in (Path(__file__).parent.parent / "examples/ops").glob("*.tw"):
        text = _prepared(file.read_text())
        assert kept.parse(text, start="start") == made.parse(text, start="start")


def test_damaged_and_foreign_tables_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    tables.parser(GRAMMAR, ["start"], Builder())
    file = tables.table_file(GRAMMAR, ["start"])
    whole = file.read_bytes()
    for damaged in (b"", b"\n", whole[:-1], whole.replace(b"NAME", b"NAMF", 1), b"0" * 64 + whole[64:]):
        file.write_bytes(damaged)
        assert tables.parser(GRAMMAR, ["start"], Builder()).source_path != "<deserialized>"
        assert file.read_bytes()[:64] == whole[:64] or file.read_bytes() != damaged
    assert tables.table_file(GRAMMAR + " ", ["start"]) != file


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "file"))
    assert tables.parser(GRAMMAR, ["start"], Builder()).parse("b a x", start="start") is not None
