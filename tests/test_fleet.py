"""A fleet: workers of both CPU drivers behind a scheduler, one of them killed, and everything that may be missing."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_cases import FAKE, relu

from tilewright.autotune import Budget, Event, fleet, tune
from tilewright.autotune.fleet import Advertised, Fleet, missing
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.errors import DeviceError, InputError, TilewrightError
from tilewright.runtime import Device, select_device
from tilewright.tuning_db import Status, Store

distributed = pytest.importorskip("distributed")

HERE = Advertised.of(FAKE)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours as a process; ended by its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tilewright", *command], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler in this process."""
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def measuring(worker: subprocess.Popen[str]) -> str:
    """The line with which a worker says that it has begun."""
    assert worker.stderr is not None
    return next(line for line in worker.stderr if line.startswith("measuring on"))


def test_programs_are_tuned_on_both_drivers_by_workers_of_which_one_is_killed(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [select_device("intel"), select_device("pocl")]
    names = [devices[0].name, devices[0].name, devices[1].name]
    with (
        running("worker", scheduler, "--device", names[0]) as doomed,
        running("worker", scheduler, "--device", names[1]) as second,
        running("worker", scheduler, "--device", names[2]) as third,
        Store.open(tmp_path / "tuning.sqlite") as store,
    ):
        for worker, name in zip((doomed, second, third), names, strict=True):
            assert f"measuring on {name} for {scheduler}" in measuring(worker)
        evaluations = Counter[str]()
        programs = [relu(1000), relu(77, "small")]

        def tuned(device: Device) -> None:
            def progress(event: Event) -> None:
                if device is devices[0] and event.evaluations == 3:
                    doomed.send_signal(signal.SIGKILL)

            budget = Budget(evaluations=8)
            evaluations[device.name] = tune(programs, device, store, budget, progress, fleet=scheduler).evaluations

        threads = [threading.Thread(target=tuned, args=(d,)) for d in devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert doomed.wait(5) == -signal.SIGKILL
        assert (second.poll(), third.poll()) == (None, None)
        rows = Counter(m.device for m in store.measurements() if not m.round)
        for device in devices:
            assert evaluations[device.name] == rows[device.identity] > 0
            winners = {w.signature for w in store.ls(device.identity)}
            assert winners == {p.signature for p in programs}
        assert not [m for m in store.measurements() if m.status in (Status.CRASHED, Status.TIMED_OUT)]
        assert store.verify() == ()
        _stopped_and_left_alone(scheduler, devices[0], store, second, monkeypatch)


def _stopped_and_left_alone(
    scheduler: str, device: Device, store: Store, last: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C keeps what has arrived; without any worker left tuning ends with an error, and keeps it as well."""

    def stop(event: Event) -> None:
        if event.evaluations == 2:
            raise KeyboardInterrupt

    def kill(event: Event) -> None:
        if event.evaluations == 2:
            last.kill()
            last.wait()

    report = tune([relu(500)], device, store, None, stop, fleet=scheduler)
    assert report.interrupted
    assert len(store.tried(device.identity, device.driver, GENERATOR_VERSION, relu(500).signature)) == 2
    monkeypatch.setattr(fleet, "LOST_SECONDS", 0.5)
    with pytest.raises(DeviceError, match=r"has had no worker with .* for 0.5 s; start one with 'tilewright worker"):
        tune([relu(600)], device, store, None, kill, fleet=scheduler)
    assert len(store.tried(device.identity, device.driver, GENERATOR_VERSION, relu(600).signature)) == 2


def test_an_answer_that_takes_long_to_fetch_ends_no_other_wait(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "_join", lambda self, seconds: None)
    with Fleet(scheduler, FAKE) as asking:
        client = asking._client
        asked = [client.submit(abs, n, key=f"answer {n}", resources={HERE.resource: 1}) for n in range(2)]

        async def fetch(*arguments: object) -> dict[str, object]:
            await asyncio.sleep(0.8)  # as where the worker that has the answers was killed
            return {"status": "OK", "data": {f"answer {n}": n for n in range(2)}}

        monkeypatch.setattr(client, "_gather_remote", fetch)

        def answer(n: int) -> object:
            time.sleep(0.3 * n)  # both are fetched at once, the first has been waited for longer
            client.loop.add_callback(asked[n]._state.finish)
            return asking._answer(asked[n], None)

        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(answer, range(2))) == [0, 1]


def test_a_scheduler_that_is_killed_ends_tuning_with_one_error(tmp_path: Path) -> None:
    device = select_device("pocl")
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    note = tmp_path / "scheduler.json"
    with subprocess.Popen(
        [*command, "--no-dashboard", "--scheduler-file", str(note)], stderr=subprocess.DEVNULL
    ) as killed:
        try:
            end = time.monotonic() + 30
            while not (note.exists() and note.read_text().strip().endswith("}")) and time.monotonic() < end:
                time.sleep(0.1)
            address = json.loads(note.read_text())["address"]
            with running("worker", address, "--device", device.name) as worker:
                measuring(worker)
                logging.getLogger("distributed.client").addHandler(handler)
                with Fleet(address, device) as opened, Store.open("sqlite://") as store:
                    assert opened.slots == 1
                    killed.kill()
                    killed.wait()
                    with pytest.raises(DeviceError, match="is gone; start it and its workers, and tune again"):
                        tune([relu()], device, store, Budget(60), measurer=opened)
                assert worker.wait(30) == 0
        finally:
            logging.getLogger("distributed.client").removeHandler(handler)
            killed.kill()
    assert [record.getMessage() for record in heard if record.levelno >= logging.ERROR] == []


def test_a_device_that_no_worker_has_is_said_so_before_anything_is_measured(scheduler: str) -> None:
    with pytest.raises(
        DeviceError, match=r"no worker at tcp://.* has fake \(fake cpu\); there are: .*tilewright worker"
    ):
        Fleet(scheduler, FAKE, join_seconds=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": "0.0.1"}, "run tilewright 0.0.1, generator .* install the same on both sides"),
        ({"generator": "0"}, "run tilewright .*, generator 0, this is"),
        ({"driver": "0.9"}, "have fake with driver 0.9, this machine has driver 1.0, for which other kernels may win"),
        ({"identity": "gpu", "device": "other"}, "there are: 2 × other. On a machine that has it, start 'tilewright"),
    ],
)
def test_workers_that_do_not_suit_are_told_apart(change: dict[str, str], complaint: str) -> None:
    other = replace(HERE, **change)
    assert other.resource != HERE.resource or "device" in change
    with pytest.raises(DeviceError, match=complaint):
        raise DeviceError(missing("tcp://10.0.0.1:8786", HERE, [other, other]))


@pytest.mark.parametrize("address", ["", "here", "tcp://:", "tcp://host", "no://host:1", "host:port"])
def test_what_is_no_address_is_said_so(address: str) -> None:
    with pytest.raises(InputError, match="is no address of a scheduler; write it as host:port"):
        Fleet(address, FAKE)


def test_a_scheduler_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "CONNECT_SECONDS", 0.3)
    with pytest.raises(
        DeviceError, match=r"no scheduler answers at 127.0.0.1:1 within 0.3 s; start one with 'dask sch"
    ):
        Fleet("127.0.0.1:1", FAKE)


def test_without_dask_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TilewrightError, match=r'pip install "tilewright\[fleet\]"'):
        Fleet("127.0.0.1:1", FAKE)
