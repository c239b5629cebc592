"""The command line: output, exit status, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tilewright
from tilewright import cli
from tilewright.runtime import devices
from tilewright.tuning_db import Measurement, Status, Store

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "tuning.sqlite"))


def run(*arguments: str) -> int:
    return cli.main(arguments)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> object:
    """What a command writes with --json, which must be one document and nothing else."""
    assert run(*arguments, "--json") == status
    return json.loads(capsys.readouterr().out)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert tilewright.__version__ in capsys.readouterr().out
    assert run("--help") == 0
    listed = capsys.readouterr().out
    for command in ("bench", "db", "demo", "devices", "doctor", "run", "show", "tune"):
        assert f"  {command} " in listed


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["devices", "--frobnicate"], ["run"], ["db", "import", "/none"]]
)
def test_wrong_use_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: tilewright" in captured.err


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tilewright", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tilewright.__version__ in done.stdout


def test_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run_json(capsys, "devices")
    assert {d["name"] for d in listed} == {d.name for d in devices()}
    assert run("devices") == 0
    table = capsys.readouterr().out
    assert all(d.name in table for d in devices())


def test_the_default_device_comes_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    last = devices()[-1].name
    monkeypatch.setenv("TILEWRIGHT_DEVICE", last)
    assert run_json(capsys, "devices")[0]["name"] == last


def test_errors_are_one_line_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEVICE", "no-such-device")
    assert run("devices") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no device 'no-such-device' (from $TILEWRIGHT_DEVICE)")
    assert captured.err.count("\n") == 1


def test_doctor_finds_the_devices_usable(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "doctor")
    assert report["usable"]
    assert {t["device"] for t in report["tests"] if t["passed"]} == {d.name for d in devices()}
    assert report["database"]["problems"] == []
    assert run("doctor") == 0
    assert "ready, default device" in capsys.readouterr().out


def test_doctor_names_what_is_broken(tmp_path: Path) -> None:
    """In a process of its own, because drivers are loaded once per process."""
    (tmp_path / "broken.icd").write_text("/nowhere/libdriver.so\n")
    (tmp_path / "tuning.sqlite").write_text("this is no database, although it is long enough to look like one" * 100)
    code = (
        "import tilewright.runtime.diagnosis as d; from pathlib import Path; import sys\n"
        f"d.search_folders = lambda: (Path({str(tmp_path)!r}),)\n"
        "d.devices = lambda: (_ for _ in ()).throw(d.DeviceError('no OpenCL device was found'))\n"
        "from tilewright.cli import main; sys.exit(main(['doctor']))"
    )
    environment = {**os.environ, "OCL_ICD_VENDORS": str(tmp_path), "TILEWRIGHT_DB": str(tmp_path / "tuning.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "broken.icd names /nowhere/libdriver.so" in done.stdout
    assert "no OpenCL device was found" in done.stdout
    assert "nothing to run on" in done.stdout
    assert "Traceback" not in done.stderr


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    file = tmp_path / "tuning.sqlite"
    with Store.open(file) as store:
        for seconds, status in ((1e-3, Status.OK), (5e-4, Status.OK), (None, Status.CRASHED)):
            store.record(
                Measurement(
                    device="test device",
                    driver="1.0",
                    signature="0123",
                    structure="4567",
                    sizes=(8, 16),
                    program="op f(x[8,16]) -> y[8,16]:\n    y[i0,i1] = x[i0,i1]\n",
                    family="map",
                    configuration=json.dumps({"width": {1e-3: 4, 5e-4: 8, None: 16}[seconds]}),
                    generator="1",
                    status=status,
                    seconds=seconds,
                )
            )
    return file


def test_db_shows_what_it_holds(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "path") == 0
    assert str(filled) in capsys.readouterr().out
    assert run_json(capsys, "db", "stats")["measurements"] == 3
    (winner,) = run_json(capsys, "db", "ls")
    assert winner["seconds"] == 5e-4
    assert run("db", "ls") == 0
    table = capsys.readouterr().out
    assert "op f(x[8,16]) -> y[8,16]" in table
    assert "500.0" in table
    assert run("db", "stats") == 0
    assert "crashed" in capsys.readouterr().out


def test_db_goes_round(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, other = str(tmp_path / "all.jsonl"), str(tmp_path / "other.sqlite")
    assert run_json(capsys, "db", "export", export) == {"records": 3}
    assert run_json(capsys, "db", "--db", other, "import", export) == {"records": 3}
    assert run_json(capsys, "db", "--db", other, "import", export) == {"records": 0}
    assert run_json(capsys, "db", "--db", other, "verify")["problems"] == []
    assert run("db", "ls") == 0
    assert run("db", "export", "--winners", export) == 0
    assert "1 records written" in capsys.readouterr().out


def test_db_verify_finds_a_changed_row(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE measurements SET seconds = 1e-9 WHERE seconds = 5e-4")
    connection.close()
    assert run("db", "verify") == 1
    assert "was changed after it was stored" in capsys.readouterr().out


def test_an_empty_database_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db", "ls") == 0
    assert "no winners yet" in capsys.readouterr().out
    assert run_json(capsys, "db", "ls") == []
