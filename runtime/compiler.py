"""The helper process of `builds.py`: compiles programs so that their binaries lie in the cache on disk.

    python -m tilewright.runtime.compiler DEVICE

Standard input holds one source per line, as a JSON string; each is answered by a line with another one: what is wrong
with the program, empty if it is built.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO

from tilewright.errors import TilewrightError
from tilewright.runtime import context, select_device


def serve(requests: Iterable[bytes], answers: IO[bytes], build: Callable[[str], object]) -> None:
    """Answer each request when its program is built or has turned out to be wrong."""
    for line in requests:
        try:
            build(json.loads(line))
            answer = ""
        except TilewrightError as e:
            answer = str(e)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main(device: str) -> None:
    """Serve standard input; what drivers print goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        ctx = context(select_device(device))
        ctx.asks_for_binaries = True
        serve(sys.stdin.buffer, answers, ctx.build)


if __name__ == "__main__":
    main(sys.argv[1])
