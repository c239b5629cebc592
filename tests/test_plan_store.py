"""Plans that are kept on disk: the same numbers without planning, and new plans whenever anything has changed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from memory_plan import H100
from networks import model, random
from onnx.external_data_helper import convert_model_to_external_data

from tilewright.autotune import stage_key
from tilewright.dsl import families
from tilewright.dsl.program import GENERATOR_VERSION
from tilewright.errors import InputError, ModelError
from tilewright.graph import opened, plan_store, planning
from tilewright.graph.plan_store import Settings, Shelf, shelf_of
from tilewright.graph.session import InferenceSession
from tilewright.runtime import Device, asarray
from tilewright.runtime.cache import FileCache
from tilewright.tuning_db import Measurement, Status, Store, now

pytestmark = pytest.mark.binaries

TEXT = """g (float[N,3,9,11] x) => (float[N,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)  t = Tanh(f)  y = Gemm(t, v)
}"""
"""`w` is large enough to stay in the file, `v` is not."""
X = random(2, 3, 9, 11)


def network(seed: int = 0) -> bytes:
    proto = model(TEXT, w=random(130, 3, 3, 3, seed=seed), v=random(130, 5))
    return proto.SerializeToString()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own for plans."""
    monkeypatch.setattr(plan_store, "FileCache", partial(FileCache, folder=tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What sessions had to do: "import" a network, "plan" it for sizes."""
    done: list[str] = []
    read, plan = opened.import_model, planning.Planner.plan
    monkeypatch.setattr(opened, "import_model", lambda *a, **k: (done.append("import"), read(*a, **k))[1])
    monkeypatch.setattr(planning.Planner, "plan", lambda *a: (done.append("plan"), plan(*a))[1])
    return done


def run(proto: object, device: Device, x: np.ndarray = X, **options: object) -> np.ndarray:
    session = InferenceSession(proto, device, **{"store": False, **options})  # type: ignore[arg-type]
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.plan"), key=lambda p: p.stat().st_size)


def test_the_second_session_neither_imports_nor_plans(device: Device, work: list[str]) -> None:
    first = run(network(), device)
    assert work == ["import", "plan"]
    np.testing.assert_array_equal(run(network(), device), first)
    assert work == ["import", "plan"]


def test_a_kept_plan_does_what_a_plan_does(device: Device, tmp_path: Path, work: list[str]) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(network())
    fresh = InferenceSession(file, device, store=False)
    expected = fresh.run(None, {"x": X})[0]
    kept = InferenceSession(str(file), device, store=False)
    assert [a.shape for a in kept.get_inputs()] == [["N", 3, 9, 11]]
    assert kept.get_outputs() == fresh.get_outputs()
    np.testing.assert_array_equal(kept.run_on_device(None, {"x": asarray(X, device)})[0].numpy(), expected)
    told = [replace(row, microseconds=0, gflops=0, gbytes_per_second=0) for row in fresh.profile({"x": X})]
    rows = kept.profile({"x": X})
    assert [replace(row, microseconds=0, gflops=0, gbytes_per_second=0) for row in rows] == told
    assert all(row.gflops > 0 for row in rows if "Conv" in row.op)
    assert work == ["import", "plan"]
    assert [c.program.signature for c in kept.plan({"x": X}).calls] == [
        c.program.signature for c in fresh.plan({"x": X}).calls
    ]
    assert kept.stages({"x": X}) == fresh.stages({"x": X})
    np.testing.assert_array_equal(kept.run(None, {"x": X})[0], expected)
    with pytest.raises(InputError, match="there is no input"):
        kept.run(None, {"z": X})


def test_other_sizes_are_planned_and_kept(device: Device, work: list[str]) -> None:
    large = random(5, 3, 9, 11)
    run(network(), device)
    session = InferenceSession(network(), device, store=False)
    session.run(None, {"x": X})
    assert work == ["import", "plan"]
    expected = session.run(None, {"x": large})[0]
    assert work == ["import", "plan", "import", "plan"]
    held = {id(b) for plan in session._plans.values() if plan is not None for b in plan.constants}
    assert len(held) < 2 * len(session.plan(batch=5).constants), "weights are on the device once"
    again = InferenceSession(network(), device, store=False)
    np.testing.assert_array_equal(again.run(None, {"x": large})[0], expected)
    assert work == ["import", "plan", "import", "plan"]


def test_fixed_sizes_are_ready_at_once(device: Device, work: list[str]) -> None:
    fixed = onnx.load_from_string(network())
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    expected = run(fixed.SerializeToString(), device)
    np.testing.assert_array_equal(run(fixed.SerializeToString(), device), expected)
    assert work == ["import", "plan"]


def test_other_weights_are_another_network(device: Device, work: list[str]) -> None:
    first, other = run(network(), device), run(network(seed=1), device)
    assert work == ["import", "plan"] * 2
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(run(network(seed=1), device), other)
    np.testing.assert_array_equal(run(network(), device), first)
    assert work == ["import", "plan"] * 2


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"fast_math": True, "host_limit": 10}])
def test_other_settings_are_planned_anew(device: Device, options: dict[str, object], work: list[str]) -> None:
    run(network(), device)
    changed = run(network(), device, **options)
    assert work == ["import", "plan"] * 2
    np.testing.assert_array_equal(run(network(), device, **options), changed)
    assert work == ["import", "plan"] * 2


def test_a_new_winner_makes_a_new_plan(device: Device, tmp_path: Path, work: list[str]) -> None:
    file = tmp_path / "tuning.sqlite"
    Store.open(file).close()
    with Store.open(file) as store:
        session = InferenceSession(network(), device, store=store)
        expected = session.run(None, {"x": X})[0]
        call = next(c for c in session.plan({"x": X}).calls if "Conv" in c.call.ops)
    for named in (file, str(file)):
        run(network(), device, store=named)
    assert work == ["import", "plan"]
    stage = call.stage
    assert call.choice.family != "naive"
    other = families.default(families.by_name("naive"), stage.program, device.target)
    with Store.open(file) as store:
        store.record(
            Measurement(
                device=device.identity,
                driver=device.driver,
                signature=stage_key(stage.program, stage.constants),
                structure=stage.program.structure,
                sizes=stage.program.sizes,
                program=str(stage.program),
                family="naive",
                configuration=other.to_json(),
                generator=GENERATOR_VERSION,
                status=Status.OK,
                seconds=1e-9,
                created=now(),
            )
        )
    tuned = InferenceSession(network(), device, store=str(file))
    np.testing.assert_allclose(tuned.run(None, {"x": X})[0], expected, rtol=1e-4, atol=1e-5)
    assert work == ["import", "plan"] * 2
    kept = InferenceSession(network(), device, store=str(file))
    assert "naive" in {row.family for row in kept.profile({"x": X})}
    assert work == ["import", "plan"] * 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty", "moved"])
def test_a_damaged_entry_is_made_again(device: Device, cache: Path, damage: str, work: list[str]) -> None:
    expected = run(network(), device)
    interface, plan = entries(cache)
    for entry in (interface, plan):
        content = bytearray(entry.read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
        elif damage == "foreign":
            content = bytearray(b"something else altogether" * 9)
        elif damage == "empty":
            content = bytearray()
        else:  # each under the other's name
            content = bytearray((plan if entry is interface else interface).read_bytes())
        entry.with_suffix(".new").write_bytes(content)
    for entry in (interface, plan):
        entry.with_suffix(".new").replace(entry)
    np.testing.assert_array_equal(run(network(), device), expected)
    assert work == ["import", "plan"] * 2
    np.testing.assert_array_equal(run(network(), device), expected)
    assert work == ["import", "plan"] * 2


def test_a_plan_that_is_gone_is_made_again(device: Device, cache: Path, work: list[str]) -> None:
    expected = run(network(), device)
    entries(cache)[-1].unlink()
    np.testing.assert_array_equal(run(network(), device), expected)
    assert work == ["import", "plan"] * 2


def test_processes_may_write_at_once(device: Device, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(network())
    np.save(tmp_path / "x.npy", X)
    program = """
import sys, pathlib, numpy
from functools import partial
from tilewright.graph import plan_store
from tilewright.graph.session import InferenceSession
folder, device = pathlib.Path(sys.argv[1]), sys.argv[2]
plan_store.FileCache = partial(plan_store.FileCache, folder=folder / "cache")
for _ in range(5):
    session = InferenceSession(folder / "net.onnx", device, store=False)
    y = session.run(None, {"x": numpy.load(folder / "x.npy")})[0]
    for entry in (folder / "cache" / "plans").glob("*/*.plan"):
        entry.unlink(missing_ok=True)
sys.stdout.write(y.tobytes().hex())
"""
    command = [sys.executable, "-c", program, str(tmp_path), device.name]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {p.communicate(timeout=120)[0] for p in processes}
    assert [p.returncode for p in processes] == [0, 0]
    assert found == {run(network(), device).tobytes().hex()}
    assert not list(cache.glob("*/*.tmp"))


def test_positions_are_looked_at(device: Device, work: list[str]) -> None:
    text = "g (float[4,3] x, int64[N] i) => (float[N,3] y) { a = Gather(x, i)  y = Relu(a) }"
    proto = model(text).SerializeToString()
    x = random(4, 3)
    for _ in range(2):
        session = InferenceSession(proto, device, store=False)
        at = np.array([3, -4, 0])
        np.testing.assert_array_equal(session.run(None, {"x": x, "i": at})[0], np.maximum(x[at], 0))
        with pytest.raises(InputError, match="is given the position 4"):
            session.run(None, {"x": x, "i": np.array([3, 4, 0])})
    assert work == ["import", "plan"]


def test_a_file_that_is_written_over_is_refused(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(network())
    run(file, device)
    session = InferenceSession(file, device, store=False)
    with file.open("r+b") as f:
        f.write(network(seed=1))
    with pytest.raises(ModelError, match="was changed after it was opened"):
        session.run(None, {"x": X})


def test_a_file_that_is_replaced_stays_what_it_was(device: Device, tmp_path: Path) -> None:
    file, other = tmp_path / "net.onnx", tmp_path / "other.onnx"
    file.write_bytes(network())
    expected = run(file, device)
    session = InferenceSession(file, device, store=False)
    other.write_bytes(network(seed=1))
    other.replace(file)
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], expected)
    assert session.plan(batch=3).calls


def test_what_is_not_kept(device: Device, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(onnx.load_from_string(network()), device)
    apart = onnx.load_from_string(network())
    convert_model_to_external_data(apart, location="weights", size_threshold=4096)
    onnx.save(apart, tmp_path / "net.onnx")
    run(tmp_path / "net.onnx", device)
    steered = model("g (float[4] x, int64[2] s) => (float[A,B] y) { r = Reshape(x, s)  y = Relu(r) }")
    session = InferenceSession(steered.SerializeToString(), device, store=False)
    session.run(None, {"x": random(4), "s": np.array([2, 2])})
    monkeypatch.setenv("TILEWRIGHT_PLANS", "off")
    run(network(), device)
    assert entries(cache) == []
    monkeypatch.delenv("TILEWRIGHT_PLANS")
    monkeypatch.setattr("tilewright.graph.plan_store.OWN_LIMIT", 100)
    expected = run(network(), device)
    assert len(entries(cache)) == 1, "the network's inputs and outputs alone"
    np.testing.assert_array_equal(run(network(), device), expected)


def test_few_packed_weights_are_kept_too(
    device: Device, cache: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(network(), device)
    whole = entries(cache)[-1]
    size = whole.stat().st_size
    np.testing.assert_array_equal(run(network(), device), expected)
    whole.unlink()
    monkeypatch.setattr("tilewright.graph.plan_store.OWN_LIMIT", 4096)
    run(network(), device)
    assert entries(cache)[-1].stat().st_size < size, "packed weights take more than their kernel"
    np.testing.assert_array_equal(run(network(), device), expected)
    assert work == ["import", "plan"] * 2


def test_old_entries_make_room(device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(network(), device)
    size = sum(e.stat().st_size for e in entries(cache))
    monkeypatch.setattr("tilewright.graph.plan_store.LIMIT", 2 * size)
    for n in (3, 4, 5):
        run(network(), device, random(n, 3, 9, 11))
    assert 0 < sum(e.stat().st_size for e in entries(cache)) <= 2 * size


def test_states_tell_settings_devices_and_databases_apart(device: Device, tmp_path: Path) -> None:
    def state(settings: Settings = Settings(), database: Path | None = None, on: Device = device) -> str:  # noqa: B008
        shelf = shelf_of(network(), on, settings, database, database is not None)
        assert isinstance(shelf, Shelf)
        return shelf.state()

    file = tmp_path / "db"
    found = [state(), state(Settings("bf16")), state(database=file), state(on=replace(device, driver="next"))]
    file.write_bytes(b"1")
    found.append(state(database=file))
    Path(f"{file}-wal").write_bytes(b"2")
    found.append(state(database=file))
    assert len(set(found)) == len(found)
    assert state() == found[0]
    assert shelf_of(network(), device, Settings(), None, True) is None, "a database server may change unseen"
    assert shelf_of(b"", device, Settings(), None, False) is not None
    assert shelf_of("no\0file", device, Settings(), None, False) is None
    assert shelf_of(tmp_path / "none.onnx", device, Settings(), None, False) is None


def test_devices_with_matrix_instructions_have_a_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    other = replace(H100, target=replace(H100.target, matrix=None))
    first, again, plain = (shelf_of(b"model", d, Settings(), None, False) for d in (H100, H100, other))
    assert first is not None
    assert again is not None
    assert plain is not None
    assert first._identity == again._identity != plain._identity


def test_the_first_plan_beside_a_new_database_is_found_again(device: Device, tmp_path: Path, work: list[str]) -> None:
    file = tmp_path / "new.sqlite"
    with Store.open(file) as store:
        first = run(network(), device, store=store)
    assert work == ["import", "plan"]
    np.testing.assert_array_equal(run(network(), device, store=file), first)
    assert work == ["import", "plan"]
