"""Finds the compiled module of the installed package, for sources that have none next to them.

In a clone after `pip install .` Python imports the clone's files, since the working folder comes first, and
the compiled module lies with the installed ones. It is used if both declare the same functions.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

DISTRIBUTION = "ernie-local"
PACKAGE = Path(__file__).resolve().parents[1]
NOT_BUILT = "the C++ build failed when it was installed, or nothing was installed from this checkout"


def load_installed_module(name: str) -> tuple[ModuleType | None, str]:
    """Load the module `name` of the installed package; None and the reason where that cannot be."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None, NOT_BUILT
    stem = name.rpartition(".")[2]
    paths = [Path(str(file.locate())) for file in files if file.name.startswith(f"{stem}.")]
    binary = next((path for path in paths if path.suffix in {".so", ".pyd"} and path.is_file()), None)
    if binary is None:
        return None, NOT_BUILT
    if not _declares_the_same(binary.with_name(f"{stem}.pyi"), PACKAGE / f"{stem}.pyi"):
        return (
            None,
            f"the installed package ({binary.parent}) is of another version than the code in {PACKAGE}",
        )
    return _load(name, binary), ""


def _declares_the_same(installed: Path, here: Path) -> bool:
    return installed.is_file() and here.is_file() and installed.read_bytes() == here.read_bytes()


def _load(name: str, binary: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, binary)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        raise
    return module
