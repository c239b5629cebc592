"""The measuring process: right, wrong, crashing and endless candidates."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from tuning_cases import FAKE, FAULTS, RIGHT, kernel, relu, relu_job

from tilewright.autotune import evaluating
from tilewright.autotune.supervisor import Job, Limits, StageError, Supervisor
from tilewright.dsl.dtypes import DType
from tilewright.dsl.families.naive import NAIVE
from tilewright.dsl.program import (
    Tensor,
)
from tilewright.errors import DeviceError
from tilewright.runtime import Context, Device
from tilewright.tuning_db import Status


@pytest.fixture(scope="module")
def supervisor(device: Device) -> Iterator[Supervisor]:
    with Supervisor(device, Limits(run=1.0, first_run=4.0)) as s:
        yield s


def test_a_right_candidate_is_timed(supervisor: Supervisor) -> None:
    outcome = supervisor.evaluate(relu_job(supervisor.device), kernel(RIGHT))
    assert outcome is not None
    assert (outcome.status, outcome.error, outcome.message) == (Status.OK, 0.0, "")
    assert len(outcome.samples) >= 3
    assert all(0 < s < 1 for s in outcome.samples)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_candidate_gets_its_status_and_the_next_one_runs(supervisor: Supervisor, fault: str) -> None:
    lowering, status, message = FAULTS[fault]
    job = relu_job(supervisor.device)
    outcome = supervisor.evaluate(job, lowering)
    assert outcome is not None
    assert (outcome.status, message in outcome.message) == (status, True), outcome
    assert outcome.samples == ()
    following = supervisor.evaluate(job, kernel(RIGHT))
    assert following is not None
    assert following.status is Status.OK, following


def test_too_much_local_memory_is_refused_before_the_launch(supervisor: Supervisor) -> None:
    size = 64 * supervisor.device.target.local_memory
    greedy = kernel(f"__local char l[{size}]; l[i] = x[i]; barrier(CLK_LOCAL_MEM_FENCE); y[i] = l[i + 1];")
    outcome = supervisor.evaluate(relu_job(supervisor.device), greedy)
    assert outcome is not None
    assert outcome.status in (Status.OUT_OF_RESOURCES, Status.BUILD_FAILED)


def test_candidates_far_behind_the_best_are_timed_once(supervisor: Supervisor) -> None:
    outcome = supervisor.evaluate(relu_job(supervisor.device), kernel(RIGHT), best=1e-12)  # no kernel is as fast
    assert outcome is not None
    assert outcome.status is Status.OK
    assert len(outcome.samples) == 1


@pytest.mark.parametrize(
    ("checked", "factor", "timed"), [(9.0, 0.99, [1, 2, 3, 3]), (9.0, 1.01, []), (0.99, 9.0, [1, 2, 3, 3])]
)
def test_hopeless_candidates_are_not_run_again_to_be_timed(
    checked: float, factor: float, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = 1e-2
    now, asked = [0.0], list[int]()

    class Simulated:
        """A context whose next run takes a known time, and whose others take the best."""

        def enqueue(self, launches: object) -> None:
            now[0] += factor * evaluating.HOPELESS * best

        def finish(self) -> None:
            pass

        def time(self, launches: object, count: int, warmup: int) -> list[float]:
            asked.append(count)
            return [best] * count

    monkeypatch.setattr(evaluating, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    bound = cast("evaluating.Bound", SimpleNamespace(timed=()))
    samples = evaluating._time(cast("Context", Simulated()), bound, best, checked * evaluating.HOPELESS * best)
    assert asked == timed
    assert samples == ((best,) * 9 if timed else pytest.approx((factor * evaluating.HOPELESS * best,)))


def test_candidates_are_compared_in_turns(supervisor: Supervisor) -> None:
    job = relu_job(supervisor.device)
    compared = supervisor.compare(job, (kernel(RIGHT), kernel(f" {RIGHT}")), 3, 1e-3)
    assert compared is not None
    assert [len(s) for s in compared.samples] == [3, 3]
    assert supervisor.compare(job, (kernel("y[i] = 3;"),), 3, 1e-3) is None


def test_a_stage_whose_reference_does_not_run_is_said_so(supervisor: Supervisor) -> None:
    bad = replace(relu_job(supervisor.device), name="bad", reference=kernel("no"))
    with pytest.raises(StageError, match="does not compile"):
        supervisor.prepare(bad)
    crashing = replace(bad, reference=FAULTS["crash"][0])
    with pytest.raises(StageError, match="its reference failed: "):
        supervisor.prepare(crashing)


def test_a_candidate_whose_process_was_killed_is_tried_once_more(supervisor: Supervisor) -> None:
    job = relu_job(supervisor.device)
    supervisor.prepare(job)
    first, started = supervisor.process, supervisor.started
    assert first is not None
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    outcome = supervisor.evaluate(job, FAULTS["endless"][0])
    killer.join()
    assert outcome is not None
    assert (outcome.status, supervisor.started) == (Status.TIMED_OUT, started + 1)


def test_evaluation_ends_with_the_budget(supervisor: Supervisor) -> None:
    endless = FAULTS["endless"][0]
    assert supervisor.evaluate(relu_job(supervisor.device), endless, until=time.monotonic() + 0.3) is None


def test_views_leave_the_elements_between_theirs_alone(supervisor: Supervisor) -> None:
    stage = relu(8)
    strided = replace(stage, outputs=(Tensor("y", DType.F32, (8,), strides=(2,), offset=1),))
    reference = NAIVE.lower(strided, supervisor.device.target, NAIVE.default(strided, supervisor.device.target))
    job = Job("view", strided, reference)
    spilling = kernel("if (i < 8) { y[2 * i + 1] = max(x[i], 0.0f); y[2 * i] = 0; }")
    outcome = supervisor.evaluate(job, spilling)
    assert outcome is not None
    assert (outcome.status, outcome.message) == (Status.WRONG, "wrote between the elements of y")


def test_a_device_that_is_gone_is_a_clear_error() -> None:
    with (
        Supervisor(replace(FAKE, name="no-such-device")) as s,
        pytest.raises(DeviceError, match="no measuring process can be started for no-such-device"),
    ):
        s.prepare(relu_job(FAKE))
