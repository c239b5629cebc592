"""The measuring process: builds, runs, checks and times candidates, one request at a time.

A candidate may crash, hang or ruin the device, so this runs in a process of its own, which its supervisor kills and
replaces at will. It ends by itself when the supervisor is gone, even in the middle of an endless kernel.

    python -m tilewright.autotune.worker FOLDER     # requests on stdin, answers on stdout; see messages.py

FOLDER holds the supervisor's temporary files; they are removed if it is gone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import sys
import threading
from collections import OrderedDict
from typing import BinaryIO

from tilewright.autotune.evaluating import MESSAGE_LENGTH, Failure, Stage, compare, evaluate, make_stage
from tilewright.autotune.messages import (
    Answer,
    Compare,
    Evaluate,
    Hello,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Request,
    receive,
    send,
)
from tilewright.errors import DeviceError, TilewrightError
from tilewright.runtime import Context, context, select_device

STAGE_BYTES = 512 << 20
"""Device memory that prepared stages may hold together, beside the one in use, at least."""
STAGE_SHARE = 8
"""They may also hold this part of the device's memory: preparing a large stage again takes longer than a candidate."""


class _Answers:
    """Sends answers to the supervisor."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, answer: Answer) -> None:
        send(self._stream, answer)


class Server:
    """Serves requests on one device."""

    def __init__(self, answer: _Answers) -> None:
        self._answer = answer
        self._context: Context | None = None
        self._stages: OrderedDict[str, Stage] = OrderedDict()

    def serve(self, request: Request) -> None:
        """Answer one request; errors become answers."""
        try:
            self._answer(self._serve(request))
        except (TilewrightError, Failure, MemoryError) as e:
            lost = self._context is not None and self._context.lost
            self._answer(Refused(str(e)[:MESSAGE_LENGTH] or type(e).__name__, lost))

    def _serve(self, request: Request) -> Answer:
        match request:
            case Hello(device=name):
                device = select_device(name)
                self._context = context(device)
                self._context.keeps_binaries = False
                return Ready(device.identity, device.driver)
            case Prepare():
                stage, seconds = make_stage(self.context, request)
                self._keep(request.stage, stage)
                return Prepared(seconds, stage.nbytes)
            case Evaluate():
                return evaluate(self.context, self._stage(request.stage), request, self._answer)
            case Compare():
                return compare(self.context, self._stage(request.stage), request)

    @property
    def context(self) -> Context:
        """The device's context."""
        if self._context is None:
            raise DeviceError("the measuring process was asked to work before it was given a device")
        return self._context

    def _stage(self, name: str) -> Stage:
        if name not in self._stages:
            raise DeviceError(f"stage {name} is not prepared")
        self._stages.move_to_end(name)
        return self._stages[name]

    def _keep(self, name: str, stage: Stage) -> None:
        self._stages[name] = stage
        self._stages.move_to_end(name)
        limit = max(STAGE_BYTES, self.context.device.global_memory // STAGE_SHARE)
        while len(self._stages) > 1 and sum(s.nbytes for s in self._stages.values()) > limit:
            self._stages.popitem(last=False)


def _read_requests(stream: BinaryIO, requests: queue.SimpleQueue[Request], folder: str) -> None:
    while True:
        message = receive(stream)
        if message is None:  # the supervisor is gone: nobody waits for what the main thread does, however long
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
        requests.put(message)  # type: ignore[arg-type]


def main() -> None:
    """Serve requests from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # drivers print to stdout
    requests_in = os.fdopen(os.dup(0), "rb")
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected; writing core files takes long
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests_in, requests, sys.argv[1]), daemon=True).start()
    server = Server(_Answers(answers))
    while True:
        server.serve(requests.get())


if __name__ == "__main__":
    main()
