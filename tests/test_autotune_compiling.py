"""Helper processes that compile candidates ahead."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_cases import FAKE, RIGHT, kernel, relu_job

from tilewright.autotune.compiling import Compilers, helpers_wanted
from tilewright.autotune.supervisor import Limits, Supervisor
from tilewright.dsl.lowering import Lowering
from tilewright.runtime import Device
from tilewright.runtime.builds import HELPER_BYTES, helpers_possible
from tilewright.tuning_db import Status


def fresh(body: str = RIGHT) -> Lowering:
    """A kernel that nobody has compiled before."""
    return kernel(f"{body} // {uuid.uuid4().hex}\n")


def binaries(folder: Path) -> int:
    return len(list(folder.glob("kernels/??/*.bin")))


def test_candidates_are_compiled_in_other_processes(device: Device, tmp_path: Path) -> None:
    compilers = Compilers(device, tmp_path, 2, 60.0)
    assert compilers.look_ahead > 2
    wanted = [compilers.submit(fresh()) for _ in range(4)]
    wrong = compilers.submit(fresh("this is not C"))
    assert [c.result(60.0) for c in wanted] == [None] * 4
    outcome = wrong.result(60.0)
    compilers.close()
    assert binaries(tmp_path) == 4
    assert outcome is not None
    assert outcome.status is Status.BUILD_FAILED
    assert "does not compile" in outcome.message


def test_what_takes_too_long_is_ended_and_said_so(device: Device, tmp_path: Path) -> None:
    compilers = Compilers(device, tmp_path, 1, 0.05)  # less than a helper takes to start
    slow = compilers.submit(fresh()).result(60.0)
    compilers.close()
    assert slow is not None
    assert (slow.status, slow.message) == (Status.TIMED_OUT, "the build did not end in time")


def test_closing_waits_for_nothing(device: Device, tmp_path: Path) -> None:
    compilers = Compilers(device, tmp_path, 1, 60.0)
    waiting = [compilers.submit(fresh()) for _ in range(50)]
    start = time.monotonic()
    compilers.close()
    assert time.monotonic() - start < 5.0
    assert waiting[-1].cancelled()


def test_a_device_that_helpers_cannot_open_is_left_to_the_measuring_process(tmp_path: Path) -> None:
    compilers = Compilers(replace(FAKE, name="no-such-device"), tmp_path, 1, 60.0)
    assert [compilers.submit(fresh()).result(60.0) for _ in range(3)] == [None] * 3
    assert len(compilers._helpers) == 1
    compilers.close()


def test_without_helpers_everything_is_ready_at_once(tmp_path: Path) -> None:
    compilers = Compilers(FAKE, tmp_path, 0, 60.0)
    assert (compilers.look_ahead, compilers.submit(fresh()).done()) == (1, True)
    compilers.close()


def test_the_measuring_process_loads_what_helpers_compiled(device: Device) -> None:
    with Supervisor(device, Limits(), helpers=1) as supervisor:
        candidate = fresh("for (int n = 0; n < 4; ++n) y[i] = max(x[i], 0.0f);")
        assert supervisor.compile(candidate).result(60.0) is None
        outcome = supervisor.evaluate(relu_job(device), candidate)
        other = supervisor.evaluate(relu_job(device), fresh("for (int n = 0; n < 4; ++n) y[i] = max(x[i], 0.0f);"))
    assert outcome is not None
    assert other is not None
    assert (outcome.status, other.status) == (Status.OK, Status.OK)
    assert (outcome.build_seconds or 9.0) < (other.build_seconds or 0.0)


def test_processors_are_not_disturbed_and_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert helpers_wanted(FAKE) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert helpers_wanted(replace(FAKE, kind="gpu", global_memory=80 << 30)) == 12
    assert helpers_wanted(replace(FAKE, kind="gpu", global_memory=8 << 30)) == 4
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 5 * HELPER_BYTES)
    assert helpers_possible() == 2
