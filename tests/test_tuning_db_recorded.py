"""Recorded spaces in and out (T4, Kernel Tuner), merging, pruning, and the `db` commands."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from database_cases import DEVICE, DRIVER, GENERATOR, at, measured

from tilewright.autotune import kernels
from tilewright.cli import main
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.errors import DatabaseError
from tilewright.revalidate import outdated_winners, read_back
from tilewright.runtime import Device
from tilewright.tuning_db import Measurement, Run, Space, Status, Store, exchange, shipped
from tilewright.tuning_db import store as stores
from tilewright.tuning_db.records import RECORDED

CACHE = {
    "device_name": "NVIDIA Test",
    "kernel_name": "mm",
    "problem_size": [64, 32],
    "tune_params_keys": ["tile", "half"],
    "tune_params": {"tile": [4, 8, 16], "half": [0.5, 1.0]},
    "objective": "time",
    "cache": {
        "4,0.5": {
            "tile": 4,
            "half": 0.5,
            "time": 2.0,
            "times": [1.5, 2.0, 2.5],
            "compile_time": 30.0,
            "timestamp": "2026-01-01 00:00:01.000000+00:00",
        },
        "8,1.0": {"tile": 8, "half": 1.0, "time": 1.0},
        "16,0.5": {"tile": 16, "half": 0.5, "time": "CompilationFailedConfig", "compile_time": 10.0},
        "16,1.0": {"tile": 16, "half": 1.0, "time": "RuntimeFailedConfig"},
    },
}
SPACE = Space("contract", (("tile", (4, 8, 16)),), ("tiles fit into local memory",))


def cache_file(folder: Path, **changes: object) -> Path:
    path = folder / "cache.json"
    path.write_text(json.dumps({**CACHE, **changes}))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "tuning.sqlite") as s:
        yield s


# --- Kernel Tuner and T4 ------------------------------------------------------------------------------------------


def test_a_kernel_tuner_cache_is_read_with_its_failures(store: Store, tmp_path: Path) -> None:
    path = cache_file(tmp_path)
    assert store.import_recorded(path) == 5  # a space and four measurements
    assert store.import_recorded(path) == 0
    rows = store.measurements()
    assert [(m.status, m.seconds) for m in rows] == [
        (Status.OK, 2e-3),
        (Status.OK, 1e-3),
        (Status.BUILD_FAILED, None),
        (Status.LAUNCH_FAILED, None),
    ]
    assert rows[0].samples == (1.5e-3, 2e-3, 2.5e-3)
    assert rows[0].build_seconds == 30e-3
    assert rows[0].created == "2026-01-01T00:00:01.000000+00:00"
    assert {(m.device, m.family, m.sizes, m.program) for m in rows} == {("NVIDIA Test", "mm", (64, 32), "mm [64, 32]")}
    (winner,) = store.ls()
    assert winner.configuration == '{"half": 1.0, "tile": 8}'
    assert store.verify() == ()


def test_a_cache_that_was_not_closed_and_one_in_gzip_are_read(store: Store, tmp_path: Path) -> None:
    text = json.dumps(CACHE)
    (tmp_path / "open.json").write_text(text.removesuffix("}}") + ",\n")
    with gzip.open(tmp_path / "cache.json.gz", "wt") as file:
        file.write(text)
    assert store.import_recorded(tmp_path / "open.json") == 5
    assert store.import_recorded(tmp_path / "cache.json.gz") == 0


def test_t4_goes_round(store: Store, tmp_path: Path) -> None:
    store.record_spaces([SPACE])
    for n, m in enumerate(
        (
            measured(1e-3, tile=4, samples=(1e-3, 2e-3), build_seconds=0.25, error=1e-7),
            measured(None, tile=8, status=Status.CRASHED, message="killed"),
            measured(None, tile=16, status=Status.TIMED_OUT),
            measured(2e-3, tile=4, signature="bbbb"),
        )
    ):
        store.record(replace(m, space=SPACE.digest, created=at(n)))
    assert store.export_recorded(tmp_path) == 2
    with Store.open(tmp_path / "other.sqlite") as other:
        for file in sorted(tmp_path.glob("contract-*.json")):
            assert other.import_recorded(file) > 0
            assert other.import_recorded(file) == 0
        expected = {replace(m, host="") for m in store.measurements()}
        assert set(other.measurements()) == expected
        assert other.stats().spaces == 1
        assert other.verify() == ()


def test_t4_files_hold_what_the_format_asks_for(store: Store, tmp_path: Path) -> None:
    store.record(measured(None, tile=8, status=Status.WRONG))
    store.export_recorded(tmp_path)
    (file,) = tmp_path.glob("*.json")
    values = json.loads(file.read_text())
    (result,) = values["results"]
    assert values["schema_version"] == "1.0.0"
    assert {"configuration", "times", "invalidity", "correctness"} <= set(result)
    assert (result["invalidity"], result["correctness"]) == ("correctness", 0)


def test_t4_of_others_needs_names(store: Store, tmp_path: Path) -> None:
    result = {"configuration": {"a": 1}, "times": {"runtimes": [2.0, 4.0]}, "invalidity": "correct", "correctness": 1}
    failed = {"configuration": {"a": 2}, "times": {}, "invalidity": "compile", "correctness": 1}
    path = tmp_path / "t4.json"
    path.write_text(json.dumps({"schema_version": "1.0.0", "results": [result, failed]}))
    with pytest.raises(DatabaseError, match="neither device nor kernel: give both"):
        store.import_recorded(path)
    assert store.import_recorded(path, device="A100", kernel="mm") == 3
    assert [m.seconds for m in store.measurements()] == [3e-3, None]
    assert store.verify() == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ("[]", "must be a JSON object"),
        ("{}", 'neither "results"'),
        ('{"cache": {}}', "no T4 or Kernel Tuner file: KeyError: 'kernel_name'"),
        (json.dumps({**CACHE, "cache": {"x": {"tile": 4, "half": 1, "time": -1.0}}}), "not a positive finite number"),
        (json.dumps({**CACHE, "cache": {"x": {"tile": 4, "time": 1.0}}}), "KeyError: 'half'"),
        (json.dumps({"results": [{"configuration": {}}], "tilewright": {}}), "KeyError"),
    ],
)
def test_files_that_record_nothing_are_refused_whole(store: Store, tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DatabaseError, match=complaint):
        store.import_recorded(path)
    assert list(store.records()) == []


# --- spaces -------------------------------------------------------------------------------------------------------


def test_a_space_is_kept_once_and_travels_with_its_measurements(store: Store, tmp_path: Path) -> None:
    store.record_spaces([SPACE, SPACE])
    store.record_spaces([SPACE])
    store.record(measured(space=SPACE.digest))
    store.export(tmp_path / "out.jsonl")
    store.export(tmp_path / "winners.jsonl", winners_only=True)
    for name in ("out.jsonl", "winners.jsonl"):
        with Store.open(tmp_path / f"{name}.sqlite") as other:
            assert other.import_(tmp_path / name) == 2
            assert list(other.records()) == list(store.records())


def test_a_measurement_of_an_unknown_space_is_refused(store: Store) -> None:
    with pytest.raises(DatabaseError, match="of which there is no record"):
        store.record(measured(space="f" * 64))
    assert store.measurements() == ()


@pytest.mark.parametrize(
    ("configuration", "complaint"),
    [('{"tile": 5}', "tile=5 is not one of 4, 8, 16"), ('{"m": 4}', "parameters do not match the space's")],
)
def test_verify_finds_configurations_outside_their_space(store: Store, configuration: str, complaint: str) -> None:
    store.record_spaces([SPACE])
    store.record(measured(space=SPACE.digest, configuration=configuration))
    (problem,) = store.verify()
    assert complaint in problem


def test_spaces_that_cannot_be_are_refused() -> None:
    with pytest.raises(DatabaseError, match="only numbers and texts"):
        Space("f", (("a", (None,)),))  # type: ignore[arg-type]
    with pytest.raises(DatabaseError, match="a parameter twice"):
        Space("f", (("a", (1,)), ("a", (2,))))
    for record in ({}, {"family": "f", "parameters": [], "constraints": []}):
        with pytest.raises(DatabaseError, match="a space"):
            Space.from_record(record)


def test_verify_reports_rows_that_nothing_refers_to(store: Store) -> None:
    store.record(measured())
    with store._place.engine.connect() as c, c.begin():
        c.exec_driver_sql("insert into configurations (family, parameters) values ('f', '{}')")
    (problem,) = store.verify()
    assert "table configurations, row 2: no measurement refers to it" in problem
    store.prune(losers_before=at(0))
    assert store.verify() == ()


# --- merging, memory ----------------------------------------------------------------------------------------------


def test_merging_loses_nothing_and_is_idempotent(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.sqlite") as a, Store.open(tmp_path / "b.sqlite") as b:
        a.record_run(Run("run", at(0), "host", "30 s"))
        a.record_spaces([SPACE])
        shared = measured(1e-3, tile=4, space=SPACE.digest, run="run")
        for store in (a, b):
            store.record_spaces([SPACE])
            store.record(shared)
        a.record(measured(2e-3, tile=8))
        b.record(measured(None, tile=16, driver="0.9", device="other"))
        assert (a.merge(b), a.merge(b), b.merge(a), a.merge(a)) == (1, 0, 2, 0)
        assert set(a.records()) == set(b.records())
        assert a.verify() == b.verify() == ()


def test_merging_refuses_a_signature_that_stands_for_another_program(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.sqlite") as a, Store.open(tmp_path / "b.sqlite") as b:
        a.record(measured())
        b.record(measured(tile=16, program="op other"))
        b.record(measured(tile=16, signature="bbbb"))
        with pytest.raises(DatabaseError, match="stands for another program here; nothing was added"):
            a.merge(b)
        assert len(a.measurements()) == 1


def test_export_and_import_need_no_more_memory_for_more_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "BATCH", 50)
    monkeypatch.setattr("tilewright.tuning_db.reading.PAGE", 50)
    peaks = []
    for count in (100, 200, 2000):  # the first fills SQLAlchemy's cache of statements
        with Store.open(tmp_path / f"{count}.sqlite") as s, Store.open(tmp_path / f"to{count}.sqlite") as to:
            s.add(measured(tile=n, message="x" * 2000, created=at(0)) for n in range(count))
            tracemalloc.start()
            assert s.export(tmp_path / "out.jsonl") == count
            assert to.import_(tmp_path / "out.jsonl") == count
            assert to.merge(s) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1.2e6  # the rows between them are 3.6 MB of messages alone


IMPORTER = """
import sys
from tilewright.tuning_db import Store, store
store.BATCH = 50
class Told(Store):
    def _write(self, work):
        done = super()._write(work)
        print(done, flush=True)
        return done
with Store.open(sys.argv[1]) as opened:
    Told(opened._place).import_(sys.argv[2])
"""


def test_an_import_that_was_killed_is_repeated(store: Store, tmp_path: Path) -> None:
    count = 1000
    with Store.open(tmp_path / "other.sqlite") as other:
        other.add(measured(tile=n, created=at(0)) for n in range(count))
        other.export(tmp_path / "out.jsonl")
    importer = subprocess.Popen(
        [sys.executable, "-c", IMPORTER, str(tmp_path / "tuning.sqlite"), str(tmp_path / "out.jsonl")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert importer.stdout is not None
    told = int(importer.stdout.readline())
    importer.kill()
    told += sum(int(line) for line in importer.stdout if line.endswith("\n"))
    importer.stdout.close()
    importer.wait()
    there = store.stats().measurements
    assert told <= there
    assert store.import_(tmp_path / "out.jsonl") == count - there
    assert store.stats().measurements == count
    assert store.verify() == ()


# --- what is out of date ------------------------------------------------------------------------------------------


def test_every_shipped_program_is_read_back_as_it_was() -> None:
    for file in shipped.winners_folder().iterdir():
        if file.name.endswith(".jsonl"):
            with file.open(encoding="utf-8") as lines:
                for m in exchange.measurements_of(exchange.parse_lines(lines, file.name)):
                    program = read_back(m.program)
                    assert program is not None
                    assert program.signature == m.signature.partition("-")[0]


def test_a_winner_that_its_space_does_not_have_any_more_is_found(store: Store, device: Device) -> None:
    program = read_back("op program(t0[64]: f32) -> t1[64]: f32:\n    t1[i0:64] = relu(t0[i0])\n")
    assert program is not None
    text = "op program(t0[64]: f32) -> t1[64]: f32:\n    t1[i0:64] = relu(t0[i0])\n"
    same = {"device": device.identity, "driver": device.driver, "generator": GENERATOR_VERSION, "program": text}
    store.record(measured(signature=program.signature, family="map", **same))
    store.record(measured(signature=f"{program.signature}-c0", family="gone", **same))
    store.record(measured(signature="unreadable", **{**same, "program": "mm [64]"}))
    first, second = sorted(outdated_winners(store))
    assert "do not match the space's" in first
    assert "there is no such family" in second
    store.prune(losers_before=at(0))
    assert read_back("mm [64]") is None


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(store: Store, tmp_path: Path) -> str:
    store.record(measured(1e-3, tile=4, created=at(1)))
    store.record(measured(2e-3, tile=8, created=at(2)))
    store.record(measured(2e-3, tile=8, generator="older", created=at(2)))
    return str(tmp_path / "tuning.sqlite")


def run(*arguments: str) -> int:
    return main(arguments)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert run(*map(str, arguments), "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_commands_merge_prune_and_import(filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(tmp_path / "other.sqlite")
    assert run_json(capsys, "db", "--db", other, "merge", filled) == {"records": 3}
    assert run_json(capsys, "db", "--db", other, "merge", filled) == {"records": 0}
    assert run_json(capsys, "db", "--db", other, "import", cache_file(tmp_path)) == {"records": 5}
    assert run_json(capsys, "db", "--db", other, "export", tmp_path / "t4", "--t4") == {"records": 3}
    assert len(list((tmp_path / "t4").iterdir())) == 3
    assert run_json(capsys, "db", "--db", other, "prune", "--losers", "1") == {"records": 1 + 3}
    assert run_json(capsys, "db", "--db", filled, "prune", "--older-generators") == {"records": 3}
    assert run_json(capsys, "db", "--db", filled, "verify")["problems"] == []


def test_pruning_older_generators_keeps_kernels_that_no_generator_made(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {GENERATOR_VERSION, kernels.GENERATOR, RECORDED}
    for n, generator in enumerate((*sorted(kept), "opencl-0", "older")):
        store.record(measured(1e-3, generator=generator, created=at(n)))
    file = tmp_path / "tuning.sqlite"
    assert run_json(capsys, "db", "--db", file, "prune", "--older-generators") == {"records": 2}
    assert {m.generator for m in store.measurements()} == kept


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("prune",), "say what is to go"),
        (("merge", "/none/at/all.sqlite"), "does not exist"),
        (("export", "/tmp"), "is a folder"),
        (("export", "x", "--t4", "--winners"), "cannot be combined"),
    ],
)
def test_commands_explain_what_is_wrong(
    filled: str, arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("db", "--db", filled, *arguments) != 0
    assert complaint in capsys.readouterr().err


def test_merging_only_reads_the_other(filled: str, tmp_path: Path) -> None:
    before = Path(filled).read_bytes()
    with Store.open(filled, read_only=True) as source, Store.open(tmp_path / "new.sqlite") as new:
        assert new.merge(source) == 3
        assert new.winner(DEVICE, DRIVER, GENERATOR, "aaaa") is not None
    assert Path(filled).read_bytes() == before


def test_measurements_keep_their_identity_across_versions() -> None:
    old = measured(created=at(1), host="h")
    assert "space" not in old.to_record()
    assert Measurement.from_record(old.to_record()) == old
    assert replace(old, space=SPACE.digest).digest != old.digest
