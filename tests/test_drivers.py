"""Finding drivers and devices: registration, names, selection, identities, targets and the doctor's data."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilewright.dsl.target import Shape
from tilewright.errors import DeviceError
from tilewright.runtime import Device, context, devices, diagnose, select_device
from tilewright.runtime import icd as icd_module
from tilewright.runtime.diagnosis import probe
from tilewright.runtime.processor import cache_size, parse

ROOT = Path(__file__).resolve().parents[1]
DEVICES = "tilewright.runtime.discovery"


def run_python(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own, from the repository's root, with some environment variables changed."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{script}", *arguments]
    changed = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=changed, capture_output=True, text=True, timeout=120, check=False)


def fake_handle(**changes: Any) -> SimpleNamespace:
    """An OpenCL device as pyopencl shows it: an NVIDIA card unless changed."""
    values = {
        "name": "NVIDIA H100  80GB", "vendor": "NVIDIA Corporation", "version": "OpenCL 3.0 CUDA",
        "driver_version": "580.159", "type": 4, "max_compute_units": 132, "max_work_group_size": 1024,
        "local_mem_size": 48 << 10, "local_mem_type": 1, "global_mem_size": 85_000_000_000, "available": 1,
        "max_mem_alloc_size": 21_000_000_000, "native_vector_width_float": 1, "host_unified_memory": 0,
        "compiler_available": 1, "extensions": "cl_khr_fp64 cl_nv_device_attribute_query", "warp_size_nv": 32,
        "compute_capability_major_nv": 9, "compute_capability_minor_nv": 0, "wavefront_width_amd": 64,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def fake_cpu(**changes: Any) -> SimpleNamespace:
    """A CPU device."""
    values = {
        "name": "Processor", "vendor": "Vendor", "driver_version": "3.0", "type": 2, "max_compute_units": 8,
        "local_mem_type": 2, "extensions": "cl_khr_fp16 cl_khr_fp64", "host_unified_memory": 1,
        "native_vector_width_float": 8, "global_mem_size": 8 << 30,
    }  # fmt: skip
    return fake_handle(**{**values, **changes})


@pytest.fixture
def discover(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Device, ...]]:
    """A function that makes the given platforms (name, handle, handle, ...) the only ones."""
    from tilewright.runtime.discovery import _inventory

    def install(*given: tuple[Any, ...]) -> tuple[Device, ...]:
        made = [
            SimpleNamespace(name=name, get_devices=lambda handles=handles: list(handles)) for name, *handles in given
        ]
        monkeypatch.setattr(f"{DEVICES}.platforms", lambda: made)
        monkeypatch.setattr(f"{DEVICES}._inventory", _inventory.__wrapped__)
        return devices()

    return install


NVIDIA = ("NVIDIA CUDA", fake_handle(), fake_handle(name="NVIDIA T4"))
INTEL = ("Intel(R) OpenCL", fake_cpu(name="Intel(R) Xeon(R) Processor", vendor="Intel(R) Corporation"))
POCL = ("Portable Computing Language", fake_cpu(name="pthread-Processor"))


# Names and selection


def test_devices_have_stable_names_and_the_best_is_first(discover: Callable[..., tuple[Device, ...]]) -> None:
    names = [device.name for device in discover(POCL, INTEL, NVIDIA)]
    assert names == ["nvidia:0", "nvidia:1", "intel-cpu", "pocl"]


def test_two_drivers_of_one_name_are_told_apart(discover: Callable[..., tuple[Device, ...]]) -> None:
    found = discover(POCL, ("Portable Computing Language", fake_cpu(driver_version="10.1")))
    assert [(device.name, device.driver) for device in found] == [("pocl", "10.1"), ("pocl:1", "3.0")]


@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("AMD Accelerated Parallel Processing", 4, "amd:0"),
        ("Intel(R) OpenCL Graphics", 4, "intel-gpu:0"),
        ("Intel(R) FPGA Emulation Platform for OpenCL(TM)", 8, "intel-fpga:0"),
        ("rusticl", 4, "rusticl:0"),
        ("Portable Computing Language", 4, "pocl-gpu:0"),
        ("Apple", 4, "apple:0"),
        ("ARM Platform", 4, "mali:0"),
        ("QUALCOMM Snapdragon(TM)", 4, "adreno:0"),
        ("Oclgrind", 2, "oclgrind"),
        ("Vortex OpenCL 3.0", 8, "vortex-3-0-accelerator:0"),
    ],
)
def test_every_vendor_has_a_name(
    discover: Callable[..., tuple[Device, ...]], platform: str, kind: int, name: str
) -> None:
    assert [device.name for device in discover((platform, fake_handle(type=kind, extensions="")))] == [name]


def test_devices_without_a_compiler_are_left_out(discover: Callable[..., tuple[Device, ...]]) -> None:
    assert [d.name for d in discover(INTEL, ("Other", fake_cpu(compiler_available=0), fake_cpu(available=0)))] == [
        "intel-cpu"
    ]


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("nvidia", "nvidia:0"),
        ("NVIDIA:1", "nvidia:1"),
        ("t4", "nvidia:1"),
        ("xeon", "intel-cpu"),
        ("portable", "pocl"),
        (" Pocl ", "pocl"),
        (None, "nvidia:0"),
    ],
)
def test_a_device_is_chosen_by_any_part_of_its_names(
    discover: Callable[..., tuple[Device, ...]], monkeypatch: pytest.MonkeyPatch, selector: str | None, name: str
) -> None:
    monkeypatch.delenv("TILEWRIGHT_DEVICE", raising=False)
    discover(POCL, INTEL, NVIDIA)
    assert select_device(selector).name == name
    assert select_device(select_device(name)).name == name


def test_the_environment_chooses_a_device(
    discover: Callable[..., tuple[Device, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    discover(POCL, INTEL, NVIDIA)
    monkeypatch.setenv("TILEWRIGHT_DEVICE", "pocl")
    assert select_device().name == "pocl"
    monkeypatch.setenv("TILEWRIGHT_DEVICE", "radeon")
    with pytest.raises(
        DeviceError, match=r"there is no device 'radeon' \(from \$TILEWRIGHT_DEVICE\); there is nvidia:0"
    ):
        select_device()


def test_an_unknown_or_ambiguous_device_lists_what_there_is(discover: Callable[..., tuple[Device, ...]]) -> None:
    discover(POCL, INTEL, NVIDIA)
    with pytest.raises(DeviceError, match=r"no device 'radeon'; there is nvidia:0 \(.*intel-cpu \(.*pocl \("):
        select_device("radeon")
    with pytest.raises(DeviceError, match=r"'processor' is ambiguous, it fits intel-cpu, pocl; use one of these names"):
        select_device("processor")
    with pytest.raises(DeviceError, match="there is no device ''"):
        select_device("")


def test_no_driver_says_how_to_install_one(discover: Callable[..., tuple[Device, ...]]) -> None:
    with pytest.raises(DeviceError, match=r"no OpenCL device was found; .*pip install 'tilewright\[cpu\]'"):
        discover()


def test_a_device_of_another_machine_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="'elsewhere:3' is not on this machine; there is "):
        context(dataclasses.replace(device, name="elsewhere:3"))


# Identity and target


def test_a_device_of_this_machine_is_fully_described(device: Device) -> None:
    assert device.identity
    assert device.driver not in device.identity
    assert str(device.compute_units) in device.identity
    assert device.global_memory >= device.max_allocation > 1 << 20
    target = device.target
    assert target.compute_units == device.compute_units
    assert target.has_f64 == ("cl_khr_fp64" in device.extensions)
    if device.kind == "cpu":
        assert target.shape is Shape.CPU
        assert (target.vector_bytes, target.vector_registers) in ((16, 16), (16, 32), (32, 16), (64, 32))
        assert target.sub_group == 1
        assert not target.has_real_local_memory
        assert target.fma == ("a * b + c" if device.name.startswith("pocl") else "fma(a, b, c)")


def test_an_nvidia_card_is_described_beyond_opencl(discover: Callable[..., tuple[Device, ...]]) -> None:
    card = discover(NVIDIA)[0]
    assert card.identity == "nvidia | NVIDIA H100 80GB | 132 units | compute capability 9.0 | 79 GiB"
    target = card.target
    assert (target.shape, target.sub_group, target.local_memory) == (Shape.GPU, 32, 227 << 10)
    assert (target.has_real_local_memory, target.has_f16, target.fma) == (True, False, "fma(a, b, c)")


def test_an_unknown_compute_capability_keeps_the_reported_memory(
    discover: Callable[..., tuple[Device, ...]],
) -> None:
    old = discover(("NVIDIA CUDA", fake_handle(compute_capability_major_nv=5)))[0]
    assert old.target.local_memory == 48 << 10


def test_an_amd_card_tells_its_wavefront(discover: Callable[..., tuple[Device, ...]]) -> None:
    extensions = "cl_khr_fp16 cl_amd_device_attribute_query"
    card = discover(("AMD Accelerated Parallel Processing", fake_handle(extensions=extensions)))[0]
    assert (card.target.sub_group, card.target.has_f16, card.target.local_memory) == (64, True, 48 << 10)


X86 = "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nstepping : 8\nflags : {}\n"


def test_instruction_sets_decide_the_vectors() -> None:
    wide = parse(X86.format("sse2 avx avx2 fma avx512f avx512_vnni amx_tile ht"), "x86_64", 0, 0)
    assert (wide.vector_bytes, wide.vector_registers, wide.model) == (64, 32, "6/143/8")
    assert wide.features == ("avx", "fma", "avx2", "avx512f", "avx512_vnni", "amx_tile")
    half = parse(X86.format("sse2 avx avx2 fma"), "x86_64", 0, 0)
    assert (half.vector_bytes, half.vector_registers) == (32, 16)
    assert parse(X86.format("sse2"), "x86_64", 0, 0).vector_bytes == 16
    arm = parse("CPU implementer : 0x41\nCPU part : 0xd40\nFeatures : fp asimd i8mm\n", "aarch64", 0, 0)
    assert (arm.vector_bytes, arm.vector_registers, arm.features, arm.model) == (
        16,
        32,
        ("asimd", "i8mm"),
        "0x41/0xd40",
    )
    unknown = parse("", "riscv64", 0, 0)
    assert (unknown.vector_bytes, unknown.model, unknown.features) == (0, "", ())


def test_cache_sizes_are_read(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Instruction", "64K"), ("1", "Data", "48K"), ("2", "Unified", "2M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "index3").mkdir()
    assert (cache_size(1, tmp_path), cache_size(2, tmp_path), cache_size(3, tmp_path)) == (48 << 10, 2 << 20, 0)


# Registration of drivers


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without OCL_ICD_VENDORS, with Intel's driver from pip and one driver of the system."""
    monkeypatch.setenv("OCL_ICD_VENDORS", "")
    monkeypatch.setenv("POCL_CACHE_DIR", "unused")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    system = tmp_path / "system"
    system.mkdir()
    (system / "nvidia.icd").write_text("libnvidia-opencl.so.1\n")
    (system / "notes.txt").write_text("not an entry")
    monkeypatch.setattr(icd_module, "SYSTEM_FOLDER", system)
    monkeypatch.setattr(icd_module, "intel_library", lambda: Path("/somewhere/libintelocl.so"))
    return system


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drivers are registered on Linux only")


@linux
def test_intels_driver_is_registered_beside_those_of_the_system(clean: Path) -> None:
    icd_module.register_drivers()
    folder = Path(os.environ["OCL_ICD_VENDORS"])
    found = {path.name: icd_module.read_entry(path) for path in icd_module.entries(folder)}
    assert found == {"nvidia.icd": "libnvidia-opencl.so.1", icd_module.OUR_ENTRY: "/somewhere/libintelocl.so"}
    assert icd_module.is_ours(str(folder))
    os.environ["OCL_ICD_VENDORS"] = ""
    icd_module.register_drivers()
    assert os.environ["OCL_ICD_VENDORS"] == str(folder)


def test_a_users_own_choice_is_left_alone(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCL_ICD_VENDORS", "/my/drivers")
    icd_module.register_drivers()
    assert os.environ["OCL_ICD_VENDORS"] == "/my/drivers"
    assert not icd_module.is_ours("/my/drivers")


def test_a_system_with_intels_driver_is_left_alone(clean: Path) -> None:
    (clean / "intel.icd").write_text("/opt/intel/lib/libintelocl.so\n")
    icd_module.register_drivers()
    assert not os.environ["OCL_ICD_VENDORS"]


def test_without_intels_driver_nothing_happens(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icd_module, "intel_library", lambda: None)
    icd_module.register_drivers()
    assert not os.environ["OCL_ICD_VENDORS"]


@linux
def test_a_damaged_folder_is_repaired(clean: Path) -> None:
    icd_module.register_drivers()
    folder = Path(os.environ["OCL_ICD_VENDORS"])
    (folder / "nvidia.icd").write_text("")
    (folder / icd_module.OUR_ENTRY).unlink()
    os.environ["OCL_ICD_VENDORS"] = ""
    icd_module.register_drivers()
    assert icd_module.read_entry(folder / "nvidia.icd") == "libnvidia-opencl.so.1"
    assert icd_module.is_ours(str(folder))


@linux
def test_an_unwritable_cache_does_not_hide_the_driver(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(clean / "nvidia.icd" / "below-a-file"))
    icd_module.register_drivers()
    assert icd_module.is_ours(os.environ["OCL_ICD_VENDORS"])


@linux
def test_many_may_register_at_once(clean: Path) -> None:
    wanted = {f"{number}.icd": f"/lib/{number}.so" for number in range(40)}
    folders: set[Path] = set()
    threads = [threading.Thread(target=lambda: folders.add(icd_module._vendors_folder(wanted))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder,) = folders
    assert {path.name: icd_module.read_entry(path) for path in icd_module.entries(folder)} == wanted
    assert list(folder.parent.iterdir()) == [folder]


def test_a_broken_entry_hides_no_other_driver(device: Device, tmp_path: Path) -> None:
    variable = os.environ.get("OCL_ICD_VENDORS")
    for path in icd_module.entries(Path(variable) if variable else icd_module.SYSTEM_FOLDER):
        (tmp_path / path.name).write_text(icd_module.read_entry(path))
    (tmp_path / "gone.icd").write_text("/nowhere/libgone.so\n")
    (tmp_path / "text.icd").write_text(f"{tmp_path}/gone.icd\n")
    script = "import tilewright.runtime as r; print(r.select_device(sys.argv[1]).name)"
    done = run_python(script, device.name, OCL_ICD_VENDORS=str(tmp_path))
    assert done.stdout == f"{device.name}\n", done.stderr


@linux
def test_a_home_that_cannot_be_written_is_no_obstacle(device: Device) -> None:
    script = "import tilewright.runtime as r; print(r.selftest(r.select_device(sys.argv[1])).message)"
    nowhere = {
        "HOME": "/proc/nowhere",
        "XDG_CACHE_HOME": "/proc/nowhere",
        "TILEWRIGHT_CACHE": "",
        "OCL_ICD_VENDORS": "",
    }
    done = run_python(script, device.name, **nowhere)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


# The doctor's data


def test_the_diagnosis_finds_what_is_here(device: Device) -> None:
    found = diagnose()
    assert device in found.devices
    assert any(device.name in platform.devices for platform in found.platforms)
    assert found.pyopencl
    assert found.folders
    assert not any(entry.crashes for entry in found.entries)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.icd").write_text("/nowhere/libgone.so\n")
    entry = probe(tmp_path / "gone.icd")
    assert (entry.works, entry.crashes, entry.library) == (False, False, "/nowhere/libgone.so")
    assert "/nowhere/libgone.so: cannot open shared object file" in entry.error


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    (tmp_path / "text.icd").write_text("text.so\n")
    assert "text.so: " in probe(tmp_path / "text.icd").error
    (tmp_path / "empty.icd").write_text("")
    assert probe(tmp_path / "empty.icd").error == "the file is empty or cannot be read"


def test_a_library_that_is_no_driver_is_named(tmp_path: Path) -> None:
    (tmp_path / "libm.icd").write_text("libm.so.6\n")
    entry = probe(tmp_path / "libm.icd")
    assert not entry.works
    assert "clGetExtensionFunctionAddress" in entry.error


def test_a_crashing_driver_is_reported_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.icd").write_text("libbad.so\n")
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    monkeypatch.setattr("tilewright.runtime.diagnosis._PROBE", "import os; os.abort()")

    def forbidden() -> None:
        raise AssertionError("a driver that crashes must not be loaded here")

    monkeypatch.setattr("tilewright.runtime.diagnosis.devices", forbidden)
    found = diagnose()
    assert found.broken[0].crashes
    assert (found.devices, found.platforms, found.vendors_origin) == ((), (), "user")
    assert any("bad.icd: loading it ends the process (SIGABRT); remove this file" in hint for hint in found.hints)


def test_broken_and_half_installed_drivers_give_hints(
    discover: Callable[..., tuple[Device, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.icd").write_text("/nowhere/libgone.so\n")
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    monkeypatch.setattr(icd_module, "intel_library", lambda: Path("/somewhere/libintelocl.so"))
    monkeypatch.setattr(icd_module, "installed_version", lambda _: "2026.0")
    monkeypatch.setattr("tilewright.runtime.diagnosis._platforms", tuple)
    discover(POCL)
    hints = "\n".join(diagnose().hints)
    assert "gone.icd names /nowhere/libgone.so: " in hints
    assert "OCL_ICD_VENDORS, which you have set, does not name it" in hints
    monkeypatch.setattr(icd_module, "installed_version", lambda _: None)
    hints = "\n".join(diagnose().hints)
    assert "run pip install intel-cmplr-lib-rt" in hints
    assert "run pip install pyopencl" in hints


def test_no_device_at_all_is_a_hint(
    discover: Callable[..., tuple[Device, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    with pytest.raises(DeviceError):
        discover()
    monkeypatch.setattr("tilewright.runtime.diagnosis.platforms", list)
    found = diagnose()
    assert (found.devices, found.platforms) == ((), ())
    assert any("pip install 'tilewright[cpu]'" in hint for hint in found.hints)
