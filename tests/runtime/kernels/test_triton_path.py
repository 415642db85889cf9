"""Whether the Triton kernels can run, in words; and that nobody meets triton who has no GPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from ernie_local.errors import DoesNotFit
from ernie_local.kernels.attention import attend_token  # noqa: F401
from ernie_local.kernels.gpu import require_triton, triton_absence

TURING = (7, 5)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A Linux machine with all that Triton wants."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return monkeypatch


def test_nothing_is_missing_on_a_gpu_of_2018(complete: pytest.MonkeyPatch) -> None:
    assert triton_absence(TURING) is None


@pytest.mark.parametrize(
    ("capability", "why"),
    [(None, "no NVIDIA GPU that PyTorch can use"), ((6, 1), "compute capability 6.1, Triton needs 7.0")],
)
def test_the_gpu_is_the_reason(
    complete: pytest.MonkeyPatch, capability: tuple[int, int] | None, why: str
) -> None:
    absence = triton_absence(capability)
    assert absence is not None
    assert why in absence.why


@pytest.mark.parametrize(("platform", "wheel"), [("linux", "triton"), ("win32", "triton-windows")])
def test_the_wheel_is_missing(complete: pytest.MonkeyPatch, platform: str, wheel: str) -> None:
    complete.setattr(importlib.util, "find_spec", lambda name: None)
    complete.setattr(sys, "platform", platform)
    absence = triton_absence(TURING)
    assert absence is not None
    assert absence.hint == f"pip install {wheel}"


def test_the_compiler_is_missing(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(shutil, "which", lambda name: None)
    absence = triton_absence(TURING)
    assert absence is not None
    assert "neither gcc nor clang" in absence.why
    assert triton_absence(TURING, c_compiler="clang-19") is None
    complete.setattr(sys, "platform", "win32")
    assert triton_absence(TURING) is None


def test_the_headers_are_missing(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    absence = triton_absence(TURING)
    assert absence is not None
    assert "Python.h" in absence.why


def test_operators_on_a_device_without_kernels_say_why() -> None:
    with pytest.raises(DoesNotFit, match="without its Triton kernels on meta\nthere is no NVIDIA GPU"):
        require_triton(torch.device("meta"))


def test_gpus_have_every_operator_of_packed_weights() -> None:
    for name in ("packed_linear", "packed_rows", "packed_experts", "add_packed_experts", "decode_attention"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ernie_local::{name}", "CUDA")


def test_triton_is_not_imported_before_a_kernel_is_wanted() -> None:
    code = (
        "import sys, ernie_local.kernels.attention, ernie_local.kernels.experts, ernie_local.kernels.triton; "
        "sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
