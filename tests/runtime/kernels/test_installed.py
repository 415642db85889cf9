"""The compiled module of an installed package serves the sources of a clone that was installed without -e."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_local.kernels.native import native_module

PACKAGE = Path(__file__).resolve().parents[3] / "ernie_local"
SCRIPT = """
from ernie_local.kernels.native import native_module, native_notice
print(native_module().__file__ if native_module() else "", native_notice(), sep="\\n")
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The sources without a compiled module."""
    ignored = shutil.ignore_patterns("nano", "__pycache__", "_kernels.*.so")
    shutil.copytree(PACKAGE, tmp_path / "clone" / "ernie_local", ignore=ignored)
    return tmp_path / "clone"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages: the module, its declaration, and the record of both."""
    module = native_module()
    if module is None or module.__file__ is None:
        pytest.skip("the native module was not built here")
    binary = Path(module.__file__)
    site = tmp_path / "site"
    for folder in ("ernie_local", "ernie_local-0.dist-info"):
        (site / folder).mkdir(parents=True)
    shutil.copy(binary, site / "ernie_local" / binary.name)
    shutil.copy(PACKAGE / "_kernels.pyi", site / "ernie_local")
    information = site / "ernie_local-0.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: ernie-local\nVersion: 0\n")
    (information / "RECORD").write_text(f"ernie_local/{binary.name},,\nernie_local/_kernels.pyi,,\n")
    return site


def ask(clone: Path, site: Path) -> list[str]:
    """The path of the module that the clone's sources found, and its notice in lines."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=clone, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_clone_takes_the_installed_module(clone: Path, site: Path) -> None:
    path, notice = ask(clone, site)
    assert Path(path).parent == site / "ernie_local"
    assert notice == "None"


def test_a_module_of_another_version_is_named_and_not_used(clone: Path, site: Path) -> None:
    (site / "ernie_local" / "_kernels.pyi").write_text("def other() -> None: ...\n")
    path, *notice = ask(clone, site)
    assert path == ""
    assert str(site) in notice[1]
    assert str(clone) in notice[1]
    assert "pip install" in notice[2]
