"""What pip builds: the wheel's contents, and an install where nothing compiles. Asks the package registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CAN_COMPILE = shutil.which("c++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
PACKAGES = {"ernie_local", "ernie_quant", "ernie_calibration", "ernie_cli"}
NOTICE_SCRIPT = """
import sys
from ernie_local.kernels.native import native_module, native_notice
print(sys.modules["ernie_local"].__file__, native_module(), native_notice(), sep="\\n")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from, so that no build folder of the checkout is used or left."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    ignored = shutil.ignore_patterns("__pycache__", "_kernels*.so")
    for folder in ("ernie_local", "quant", "calibration", "cli", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    return copy


def build_wheel(source: Path, out: Path, environment: dict[str, str]) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), str(source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped_files(root: Path) -> set[str]:
    """Every file of the four packages, as a wheel names it."""
    folders = {"ernie_local": root, "ernie_quant": root / "quant"}
    folders |= {"ernie_calibration": root / "calibration", "ernie_cli": root / "cli"}
    return {
        path.relative_to(base).as_posix()
        for package, base in folders.items()
        for path in (base / package).rglob("*")
        if path.is_file()
    }


@pytest.mark.skipif(not CAN_COMPILE, reason="no C++ compiler or no Python headers here")
def test_an_install_from_a_clone(source: Path, tmp_path: Path) -> None:
    """The wheel is whole; the clone has the compiled module too, for a Python that starts there."""
    clone = shutil.copytree(source, tmp_path / "clone")
    (clone / ".git").mkdir()
    names = names_in(build_wheel(clone, tmp_path, dict(os.environ)))
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top_level == PACKAGES
    assert any(name.startswith("ernie_local/_kernels.") and name.endswith(".so") for name in names)
    # nano's weights and every other data file lie in the packages, so this holds for them too.
    assert shipped_files(source) - names == set()

    # -S: an editable install of this checkout would answer before the folder that Python starts in.
    done = subprocess.run(
        [sys.executable, "-S", "-c", NOTICE_SCRIPT],
        cwd=clone,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    origin, module, notice = done.stdout.splitlines()
    assert origin == str(clone / "ernie_local" / "__init__.py")
    assert str(clone / "ernie_local" / "_kernels") in module
    assert notice == "None"


@pytest.mark.parametrize("case", ["compiler fails", "nothing on the PATH"])
def test_installs_and_says_so_without_a_compiler(source: Path, tmp_path: Path, case: str) -> None:
    without = {key: value for key, value in os.environ.items() if key not in {"CC", "CXX", "CMAKE_GENERATOR"}}
    changes = (
        {"CC": "/bin/false", "CXX": "/bin/false"}
        if case == "compiler fails"
        else {"PATH": str(tmp_path / "none")}
    )
    wheel = build_wheel(source, tmp_path, without | changes)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any("/_kernels." in name and not name.endswith(".pyi") for name in names_in(wheel))

    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    # -S and cwd: neither an editable install of this checkout nor the checkout itself may answer instead.
    done = subprocess.run(
        [sys.executable, "-S", "-c", NOTICE_SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    origin, module, *notice = done.stdout.splitlines()
    assert origin.startswith(str(target))
    assert module == "None"
    assert len(notice) == 3
    assert "slower" in notice[0]
    assert notice[2].startswith("try: ")
