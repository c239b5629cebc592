"""Kernels under Oclgrind (James Price), an OpenCL simulator that checks every access: the client of `worker.py`.

Oclgrind 21.10 runs as an OpenCL driver in a process of its own, because a loader reads its settings once. It reports to
a log, never by exit status. Reported are accesses outside of global, local and private memory, data races in local and
global memory, barriers that only a part of a work-group reaches, and, in the worker that `watches` them, uninitialised
values on which a branch depends or which are written to memory.

What it does not see, or sees wrongly:

* uninitialised values in vector code. Its check of them mistakes lanes of shuffled vectors for others (false reports,
  crashes: https://github.com/jrprice/Oclgrind/issues/126), so kernels with vector types run without it. Instead local
  memory, scratch and outputs hold NaN there at the start, which the comparison of numbers would meet;
* the number 1 that a lane's truth value should be: converted to an integer type it is 255 there (a lane's single bit is
  kept as a byte of ones), so examples do not calculate with truth values of vectors;
* memory filled by clEnqueueFillBuffer counts as uninitialised, so scratch is filled by copies;
* reads of the gaps between a strided tensor's rows: they lie within its memory. The gaps hold NaN as well;
* races between writes of the same value, by default;
* half arithmetic and sub-groups, which it does not support (the generator computes f16 in float).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = tuple(
    Path(folder) / "oclgrind" / "liboclgrind-rt-icd.so"
    for folder in (
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    )
)
MISSING = (
    "Oclgrind is not installed: no kernel was checked for memory errors (Debian, Ubuntu: apt-get install oclgrind)"
)
DEADLINE = 120.0
"""Seconds for one kernel; the largest takes some."""

_VECTOR = re.compile(r"\b(?:u?(?:char|short|int|long)|float|double|half)(?:2|3|4|8|16)\b|\bv(?:load|store)_?half")


def library() -> Path | None:
    """Oclgrind's driver, or None where it is not installed."""
    return next((path for path in LIBRARIES if path.is_file()), None)


def is_scalar(source: str) -> bool:
    """True if a source names no vector types, so that uninitialised values can be watched."""
    return _VECTOR.search(source) is None


@dataclass(frozen=True)
class Report:
    """One report of the simulator."""

    message: str
    """Its first line, such as 'Invalid read of size 4 at global memory address 0x1000000000a64'."""
    details: str
    """All of it: kernel, work-item and the line of the source."""


def reports(log: str) -> tuple[Report, ...]:
    """The reports in a piece of the log: a line each, and the indented lines that follow it."""
    found: list[list[str]] = []
    for line in log.splitlines():
        if line and not line[0].isspace():
            found.append([line])
        elif line.strip() and found:
            found[-1].append(line.strip())
    # what names no kernel is a remark of the compiler or of the simulator itself
    return tuple(Report(r[0], "\n".join(r)) for r in found if any(line.startswith("Kernel:") for line in r))


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    reports: tuple[Report, ...]
    wrong: str
    """What is wrong with the numbers or the launch, '' if nothing is."""


class Simulator:
    """A worker process under Oclgrind, started on first use and again after it has reported, crashed or hung.

    A fresh one after reports, because Oclgrind falls silent after 1,000 of them.
    """

    def __init__(self, driver: Path, watches: bool) -> None:
        self._driver = driver
        self._watches = watches
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-oclgrind-")
        self._process: subprocess.Popen[str] | None = None
        self._read = 0

    def run(self, **case: Any) -> Outcome:
        """Run one case of `worker.py` (family, program, target, configuration, fault)."""
        answer = self._ask(json.dumps(case))
        with contextlib.suppress(FileNotFoundError):
            text = self._log.read_text(errors="replace")
            found, self._read = reports(text[self._read :]), len(text)
        if answer is None or found:
            self._end()
        wrong = (
            "the worker crashed or hung:\n" + self._errors.read_text()[-2000:] if answer is None else answer["wrong"]
        )
        return Outcome(found, wrong)

    def close(self) -> None:
        """End the process and remove its files."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log"

    @property
    def _errors(self) -> Path:
        return Path(self._folder.name) / "errors"

    def _ask(self, line: str) -> Any:
        """The answer to one line, or None if the process ends or takes too long."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line + "\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answered = selector.select(DEADLINE)
        text = process.stdout.readline() if answered else ""
        return json.loads(text) if text else None

    def _start(self) -> subprocess.Popen[str]:
        vendors = Path(self._folder.name) / "vendors"
        vendors.mkdir(exist_ok=True)
        (vendors / "oclgrind.icd").write_text(f"{self._driver}\n")
        self._log.write_text("")
        self._read = 0
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OCL_ICD_VENDORS": str(vendors),
            "OCLGRIND_LOG": str(self._log),
            "OCLGRIND_NUM_THREADS": "1",
            "OCLGRIND_GLOBAL_MEM_SIZE": str(1 << 30),
        }
        if self._watches:
            environment |= {"OCLGRIND_UNINITIALIZED": "1", "OCLGRIND_BUILD_OPTIONS": "-cl-opt-disable"}
        else:
            environment |= {"OCLGRIND_DATA_RACES": "1"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "memory.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip
        return self._process
