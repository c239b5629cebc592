"""What an installation contains, and what `import tilewright` costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import tilewright

ROOT = Path(__file__).parent.parent
FOLDERS = ("autotune", "dsl", "graph", "ops", "runtime", "tuning_db")
DATA_SUFFIXES = (".py", ".lark", ".jsonl")


@pytest.fixture(scope="module")
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and a source archive, built in a copy so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("build") / "source"
    ignored = ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    copytree(ROOT, copy, symlinks=True, ignore=ignored)
    code = "import setuptools.build_meta as b, json; print(json.dumps([b.build_wheel('.'), b.build_sdist('.')]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel, archive = json.loads(done.stdout.splitlines()[-1])
    return copy / wheel, copy / archive


def test_links_point_to_the_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "tilewright" / folder
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{folder}"


def test_every_package_is_listed(settings: dict) -> None:
    found = {"tilewright"}
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("tilewright", *file.parent.relative_to(ROOT).parts)))
    assert set(settings["packages"]) == found
    assert settings["package-dir"] == {"tilewright": "tilewright"} | {f"tilewright.{f}": f for f in FOLDERS}


def test_wheel_installs_nothing_but_tilewright(distributions: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(distributions[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tilewright", f"tilewright-{tilewright.__version__}.dist-info"}


def test_wheel_holds_every_source_and_data_file(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    expected = {f"tilewright/{file.name}" for file in (ROOT / "tilewright").glob("*.py")} | {"tilewright/py.typed"}
    for folder in FOLDERS:
        files = (f for f in (ROOT / folder).rglob("*") if f.suffix in DATA_SUFFIXES)
        expected |= {f"tilewright/{f.relative_to(ROOT).as_posix()}" for f in files}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_source_archive_holds_tests_and_documents(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", "docs/architecture.md", "dsl/program.py"} <= names
    assert f"tests/{Path(__file__).name}" in names


def _fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_import_loads_no_driver_no_onnx_no_database() -> None:
    loaded = _fresh_python("import sys, tilewright; print(*sys.modules)").split()
    assert not {"numpy", "pyopencl", "onnx", "sqlalchemy", "scipy", "lark", "rich", "click"} & set(loaded)


def test_import_is_fast() -> None:
    code = "import time; t = time.perf_counter(); import tilewright; print(time.perf_counter() - t)"
    assert min(float(_fresh_python(code)) for _ in range(3)) < 0.25  # seconds; the best, as other tests run beside


def test_version_is_the_changelogs() -> None:
    versions = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert any(line.startswith(f"## [{tilewright.__version__}]") for line in versions)


def test_exports_are_listed_and_exist() -> None:
    assert sorted(tilewright.__all__) == tilewright.__all__
    assert set(tilewright.__all__) <= set(dir(tilewright))
    for name in tilewright.__all__:
        assert getattr(tilewright, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'tilewright' has no attribute 'tensor'"):
        tilewright.tensor  # noqa: B018 - the access itself is what is tested
