"""Lists of launches that the driver keeps: when they are made, what they run with, and what happens without them."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import onnx
import pytest
from networks import model, random

from tilewright.graph.session import InferenceSession
from tilewright.runtime import Context, Device, asarray, context
from tilewright.runtime.recording import EXTENSION, SETTLED, WORTH_RECORDING, Recorder, Recording, recorder


def chain(count: int) -> onnx.ModelProto:
    """A network of `count` poolings, after which every element is the largest of its channel."""
    pool = "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1]>"
    names = ["x", *(f"t{n}" for n in range(count - 1)), "y"]
    lines = "\n".join(f"{b} = {pool}({a})" for a, b in itertools.pairwise(names))
    return model(f"g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {{\n{lines}\n}}")


def expected(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x.max((2, 3), keepdims=True), x.shape)


@pytest.fixture
def session(device: Device) -> InferenceSession:
    return InferenceSession(chain(WORTH_RECORDING + 1), device=device, store=False)


def images(count: int) -> list[np.ndarray]:
    return [random(1, 2, 4, 4, seed=seed) for seed in range(count)]


def test_a_list_is_made_once_the_arguments_have_settled(session: InferenceSession, ctx: Context) -> None:
    repeated = session.plan()._repeated
    for turn, x in enumerate(images(6)):
        assert repeated.is_recorded == (turn > SETTLED and ctx.recorder is not None)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected(x))


def test_other_memory_is_what_the_next_run_uses(session: InferenceSession, device: Device) -> None:
    given = images(8)
    kept = []
    for x in given:  # every other result stays where it is, so that the next run has other memory
        for _ in range(SETTLED + 2):
            session.run(None, {"x": given[0]})
        kept.append(session.run_on_device(None, {"x": asarray(x, device)})[0])
    for x, y in zip(given, kept, strict=True):
        np.testing.assert_array_equal(y.numpy(), expected(x))


def test_a_list_may_be_at_work_more_than_once(session: InferenceSession, device: Device) -> None:
    x = images(1)[0]
    on_device = asarray(x, device)
    for _ in range(50):
        result = session.run_on_device(None, {"x": on_device})[0]
    np.testing.assert_array_equal(result.numpy(), expected(x))


def test_sessions_in_threads_have_lists_of_their_own(device: Device) -> None:
    sessions = [InferenceSession(chain(WORTH_RECORDING + n), device=device, store=False) for n in (1, 2)]
    wrong: list[int] = []

    def work(n: int) -> None:
        x = random(1, 2, 4, 4, seed=n)
        for _ in range(20):
            if not np.array_equal(sessions[n % 2].run(None, {"x": x})[0], expected(x)):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("refused", ["recording", "starting"])
def test_launches_stand_in_where_the_driver_refuses(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    if refused == "recording":
        monkeypatch.setattr(Recorder, "record", lambda self, calls: None)
    else:
        monkeypatch.setattr(Recording, "start", lambda self: -59)
    for x in images(SETTLED + 3):
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected(x))
    assert not session.plan()._repeated.is_recorded


def test_there_is_a_recorder_only_where_all_that_it_needs_is_there(ctx: Context, device: Device) -> None:
    assert context(device).recorder is None or EXTENSION in device.extensions
    assert recorder(ctx._handle, (), ctx._queue, True) is None
    assert recorder(ctx._handle, (EXTENSION,), ctx._queue, False) is None


def test_short_lists_are_not_worth_it(device: Device) -> None:
    session = InferenceSession(chain(WORTH_RECORDING - 1), device=device, store=False)
    for x in images(SETTLED + 2):
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected(x))
    assert not session.plan()._repeated.is_recorded
