"""The native module: found where it was built, named once where it was not, right about this processor."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ernie_local.kernels import native

CPUINFO = Path("/proc/cpuinfo")
LINUX_NAMES = {
    "x86_64": {
        "avx2": "avx2",
        "fma": "fma",
        "f16c": "f16c",
        "avxvnni": "avx_vnni",
        "avx512f": "avx512f",
        "avx512dq": "avx512dq",
        "avx512bw": "avx512bw",
        "avx512vl": "avx512vl",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
        "amx_bf16": "amx_bf16",
        "amx_int8": "amx_int8",
    },
    "aarch64": {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"},
}


@pytest.fixture(autouse=True)
def fresh_search() -> Iterator[None]:
    """What one test made the search remember is forgotten before and after it."""
    for remembered in (native.find_module, native.warn_without_native):
        remembered.cache_clear()
    yield
    for remembered in (native.find_module, native.warn_without_native):
        remembered.cache_clear()


@pytest.fixture
def built() -> ModuleType:
    module = native.native_module()
    if module is None:
        pytest.skip("the native module was not built here")
    return module


def hide_module(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)


def test_a_module_that_was_installed_is_found() -> None:
    try:
        installed = importlib.metadata.distribution("ernie-local")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ernie-local is not installed here")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable", False):
        pytest.skip("installed without -e: the checkout's package hides the installed one")
    if not any(file.name.startswith("_kernels.") for file in installed.files or []):
        pytest.skip("installed without a C++ compiler")
    assert native.native_module() is not None
    assert native.native_notice() is None


def test_a_missing_module_is_named_in_three_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_module(monkeypatch, ModuleNotFoundError("No module", name=native.MODULE_NAME))
    assert native.native_module() is None
    notice = native.native_notice()
    assert notice is not None
    what, why, hint = notice.splitlines()
    assert "slower PyTorch code" in what
    assert "C++ build failed" in why
    assert hint.startswith("try: ")


def test_a_module_that_does_not_load_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_module(monkeypatch, ImportError("undefined symbol: x"))
    assert native.native_module() is None
    assert "undefined symbol: x" in (native.native_notice() or "")


def test_a_missing_module_of_somebody_else_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_module(monkeypatch, ModuleNotFoundError("No module named 'other'", name="other"))
    with pytest.raises(ModuleNotFoundError, match="other"):
        native.native_module()


def test_the_warning_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_module(monkeypatch, ModuleNotFoundError("No module", name=native.MODULE_NAME))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.warn_without_native()
        native.warn_without_native()
    assert [warning.category for warning in caught] == [native.NativeModuleMissing]


def test_no_warning_where_the_module_is(built: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.warn_without_native()


def test_cpu_features_agree_with_the_kernel(built: ModuleType) -> None:
    names = LINUX_NAMES.get(platform.machine())
    if names is None or not CPUINFO.exists():
        pytest.skip("nothing to compare with on this machine")
    flags: set[str] = set()
    for line in CPUINFO.read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            break
    expected = [ours for ours, theirs in names.items() if theirs in flags]
    assert built.cpu_features() == expected


def test_build_info_names_version_and_compiler(built: ModuleType) -> None:
    info = built.build_info()
    assert set(info) == {"version", "build_type", "compiler", "nanobind", "python"}
    assert all(info.values())
    assert info["python"].split(".")[:2] == list(platform.python_version_tuple()[:2])
