"""pyproject.toml, constraints.txt and the packages say the same."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import ernie_local

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ernie_local", "quant/ernie_quant", "calibration/ernie_calibration", "cli/ernie_cli")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_tells_the_version_of_the_project() -> None:
    assert ernie_local.__version__ == pyproject()["project"]["version"]


def test_every_constraint_is_one_exact_public_version() -> None:
    wrong = [
        line for line in constraint_lines() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)
    ]
    assert wrong == []


def test_every_dependency_is_pinned() -> None:
    pinned = {canonical(line.split("==")[0]) for line in constraint_lines()}
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {canonical(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in wanted}
    assert names - pinned == set()


def test_build_tools_are_pinned() -> None:
    assert all("==" in requirement for requirement in pyproject()["build-system"]["requires"])


def test_every_package_ships_its_types() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []
    assert pyproject()["tool"]["scikit-build"]["wheel"]["packages"] == list(PACKAGES)
