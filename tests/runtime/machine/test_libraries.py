"""Libraries that cannot be loaded: told from other errors by where they are raised, each with its reason."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from ernie_local.errors import DoesNotFit
from ernie_local.machine import libraries
from ernie_local.machine.libraries import load_failure, torch_failure


def failing_import(folder: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> BaseException:
    """What the import of a library raises whose part executes `statement`."""
    package = folder / "brokenlib"
    package.mkdir()
    (package / "__init__.py").write_text("from brokenlib import part")
    (package / "part.py").write_text(statement)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(BaseException) as caught:  # noqa: PT011  each statement has its own
        importlib.import_module("brokenlib")
    return caught.value


@pytest.mark.parametrize(
    "statement",
    [
        "raise ImportError('libfoo.so: cannot open shared object file')",
        "raise OSError('libfoo.so: cannot map')",
        "raise RuntimeError('no device')",
        "raise SystemError('error return without exception set')",
        "import nowhere_to_be_found",
    ],
)
def test_what_fails_inside_an_import_is_a_library_that_cannot_be_loaded(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = load_failure(failing_import(tmp_path, monkeypatch, statement))
    assert isinstance(failed, DoesNotFit)
    assert failed.what.startswith("brokenlib cannot be loaded: ")
    assert failed.hint.endswith("brokenlib")


def test_a_limit_of_addresses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failing_import(tmp_path, monkeypatch, "raise MemoryError")
    monkeypatch.setattr(libraries, "address_limit", lambda: None)
    assert load_failure(error) is None
    assert torch_failure() is None
    monkeypatch.setattr(libraries, "address_limit", lambda: 600 << 20)
    for failed in (load_failure(error), torch_failure()):
        assert failed is not None
        assert "600.0 MiB (ulimit -v)" in failed.why
    monkeypatch.setattr(libraries, "address_limit", lambda: 1 << 30)
    assert torch_failure() is None


@pytest.mark.parametrize(
    ("line", "folder"), [("Unable to open /dev/urandom", "/dev"), ("Failed to initialize cpuinfo!", "/proc")]
)
def test_files_of_the_system_that_pytorch_lacks_are_named(line: str, folder: str) -> None:
    failed = load_failure(RuntimeError(line))
    assert failed is not None
    assert f"{folder} is mounted" in failed.hint


def test_the_package_of_a_library_is_advised() -> None:
    failed = load_failure(ImportError("no libjpeg.so", name="PIL"))
    assert failed is not None
    assert failed.hint.lower().endswith(" pillow")


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), ValueError("no"), KeyError(3), ImportError("no", name="ernie_local.gone")]
)
def test_other_errors_are_none(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raise error
    assert load_failure(caught.value) is None


def test_ctrl_c_while_a_library_is_imported_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_failure(failing_import(tmp_path, monkeypatch, "raise KeyboardInterrupt")) is None
