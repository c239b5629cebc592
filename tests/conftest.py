"""Devices for the tests, and folders of their own.

`--device NAME` (repeatable, or several names separated by commas) chooses where the numbers are tested; without it
they are tested on every CPU driver that is installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from tilewright.errors import DeviceError
from tilewright.graph import megakernels
from tilewright.runtime import Context, Device, context, devices, select_device
from tilewright.tuning_db import Store

hypothesis.settings.register_profile("tilewright", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=500, derandomize=False)
hypothesis.settings.load_profile("tilewright")

_HOME = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--device`."""
    parser.addoption(
        "--device", action="append", default=[], metavar="NAME", help="test on this device (default: all CPU drivers)"
    )
    parser.addoption(
        "--every-device", action="store_true", help="run each case of the long matrices on every device, not on one"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Point cache and database to a folder of this session, before any test asks for a device.

    Workers of pytest-xdist inherit the variables and share the folder; the process that made it removes it.
    """
    if hasattr(config, "workerinput"):
        return
    home = Path(tempfile.mkdtemp(prefix="tilewright-tests-"))
    config.stash[_HOME] = home
    os.environ["TILEWRIGHT_CACHE"] = str(home / "cache")
    os.environ["TILEWRIGHT_DB"] = str(home / "tuning.sqlite")
    os.environ.pop("TILEWRIGHT_DEVICE", None)
    os.environ["POCL_SIGFPE_HANDLER"] = "0"  # PoCL would hide a division that traps


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse an unknown `--device` at once."""
    if session.config.getoption("--device"):
        chosen_devices(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's folder."""
    home = config.stash.get(_HOME, None)
    if home is not None:
        shutil.rmtree(home, ignore_errors=True)


def chosen_devices(config: pytest.Config) -> list[Device]:
    """The devices of `--device`, else all CPU drivers; a usage error for an unknown name."""
    names = [name.strip() for given in config.getoption("--device") for name in given.split(",") if name.strip()]
    try:
        if names:
            return [select_device(name) for name in names]
        return [device for device in devices() if device.kind == "cpu"]
    except DeviceError as error:
        if names:
            raise pytest.UsageError(str(error)) from error
        return []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that asks for `device` (or `ctx`) on each chosen device."""
    if "device" in metafunc.fixturenames:
        chosen = chosen_devices(metafunc.config)
        metafunc.parametrize("device", chosen, ids=[device.name for device in chosen], scope="session", indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a test is marked `devices_in_turn`, leave each of its cases to one of the devices."""
    chosen = [device.name for device in chosen_devices(config)]
    if len(chosen) < 2 or config.getoption("--every-device"):
        return
    left = {item for item in items if item.get_closest_marker("devices_in_turn") and not _has_turn(item, chosen)}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def _has_turn(item: pytest.Item, chosen: list[str]) -> bool:
    """Whether a case is one of its device's: by its name, so that no parameter decides it alone."""
    assert isinstance(item, pytest.Function)
    device: Device = item.callspec.params["device"]
    case = item.nodeid.replace(device.name, "", 1)
    return zlib.crc32(case.encode()) % len(chosen) == chosen.index(device.name)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    """A device to compute on."""
    chosen: Device = request.param
    return chosen


@pytest.fixture(scope="session")
def ctx(device: Device) -> Iterator[Context]:
    """The context of `device`, idle again at the end."""
    opened = context(device)
    yield opened
    if not opened.lost:
        opened.finish()


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test draws the same numbers from its module's `RNG`, whichever tests ran before it."""
    generator = getattr(request.module, "RNG", None)
    if generator is None:
        yield
        return
    state = generator.bit_generator.state
    yield
    generator.bit_generator.state = state


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A tuning database of the test's own."""
    with Store.open(tmp_path / "tuning.sqlite") as opened:
        yield opened


@pytest.fixture(autouse=True)
def few_binaries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store no binaries of kernels on PoCL but in tests marked `binaries`.

    PoCL compiles kernels a second time for that, and has a cache of its own.
    """
    if "device" in request.fixturenames and request.node.get_closest_marker("binaries") is None:
        chosen: Device = request.getfixturevalue("device")
        if chosen.name == "pocl":
            monkeypatch.setattr(context(chosen), "keeps_binaries", False)


@pytest.fixture(scope="module")
def plainly(ctx: Context) -> Iterator[Context]:
    """A context whose compiler does not optimise: it would take minutes over so many barriers."""
    device = ctx.device
    if device.kind != "cpu":
        yield ctx
        return
    options = f"{device.target.build_options} -cl-opt-disable"
    opened = Context(replace(device, target=replace(device.target, build_options=options)))
    yield opened
    if not opened.lost:
        opened.finish()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch is started by itself, on devices too where short ones are joined (and given counters)."""
    monkeypatch.setattr(megakernels, "MOST_PARTS", 1)
