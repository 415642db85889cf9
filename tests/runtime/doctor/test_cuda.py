"""The doctor's checks of the software for GPUs."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_local.kernels.native import Absence
from ernie_local.machine.hardware import GpuStatus
from tests.runtime.doctor.looking import look
from tests.runtime.doctor.made_up import ONE, one


def versions(triton: str | None) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package != "triton" or triton is None:
            raise PackageNotFoundError(package)
        return triton

    return version


# cuda


def fake_cuda(monkeypatch: pytest.MonkeyPatch, built_for: str | None, is_available: Any) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("built_for", "text"),
    [(None, "not used: this PyTorch is built without CUDA"), ("12.8", "not used: no CUDA device")],
)
def test_no_cuda_is_ok_and_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, text: str
) -> None:
    fake_cuda(monkeypatch, built_for, lambda: False)
    found = look("cuda", gpus=None)
    assert (found.verdict, found.text) == ("ok", text)
    assert found.facts == {"built_for": built_for, "driver": None, "is_available": False, "devices": []}


def test_a_cuda_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, "12.8", lambda: True)
    gpu = SimpleNamespace(name="GPU 9000", total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    found = look("cuda", gpus=None)
    assert found.verdict == "ok"
    assert found.text.startswith("CUDA 12.8: GPU 9000; ")
    assert found.facts["is_available"] is True
    assert found.facts["devices"] == [{"name": "GPU 9000", "total_bytes": 8 << 30}]


def test_a_driver_that_torch_complains_of_is_slow_and_no_warning_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complain() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    fake_cuda(monkeypatch, "12.8", complain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = look("cuda", gpus=None)
    assert (found.verdict, found.text) == ("slow", "not used: The NVIDIA driver on your system is too old")


def test_a_device_that_does_not_start_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> Any:
        raise RuntimeError("CUDA error: out of sorts\nmore")

    fake_cuda(monkeypatch, "12.8", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    found = look("cuda", gpus=None)
    assert (found.verdict, found.text) == ("slow", "not used: CUDA error: out of sorts more")
    assert found.facts["is_available"] is False


@pytest.mark.parametrize(
    ("built_for", "driver", "text"),
    [
        (None, "550.1", "GPU 9000 is there, this PyTorch is built without CUDA"),
        ("12.8", "470.82", "driver 470.82, CUDA 12.8 needs 525 or newer"),
        ("13.0", "566.03", "driver 566.03, CUDA 13.0 needs 580 or newer"),
        ("12.8", "525.60.13", "PyTorch for CUDA 12.8 does not see it"),
        ("99.1", "470.82", "PyTorch for CUDA 99.1 does not see it"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_slow_and_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, driver: str, text: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = look("cuda", gpus=one(driver_version=driver))
    assert found.verdict == "slow"
    assert text in found.text
    assert found.facts["driver"] == driver


@pytest.mark.parametrize(
    ("capability", "built_for", "is_served"),
    [
        ((6, 1), ["sm_50", "sm_60", "sm_70", "sm_75"], True),
        ((7, 0), ["sm_60", "sm_70"], True),
        ((6, 1), ["sm_70", "sm_75"], False),
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_80"], True),  # newer GPUs can be served by code for virtual ones
    ],
)
def test_an_old_gpu_that_this_pytorch_leaves_out_is_told_the_last_one(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str], is_served: bool
) -> None:
    fake_cuda(monkeypatch, "12.6", lambda: True)
    device = SimpleNamespace(name="GPU 9000", total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    found = look("cuda", gpus=one(compute_capability=capability))
    assert found.verdict == ("ok" if is_served else "slow")
    assert ("torch<2.15" in (found.fix or "")) == (not is_served)


# triton


@pytest.mark.parametrize(
    ("version", "absence", "verdict", "fallback", "text"),
    [
        ("3.7", None, "ok", None, "Triton 3.7"),
        (
            None,
            Absence("a", "the module is not installed", "pip install it"),
            "slow",
            "torch",
            "not installed",
        ),
        (
            "3.7",
            Absence("a", "neither gcc nor clang", "install gcc"),
            "slow",
            "torch",
            "neither gcc nor clang",
        ),
    ],
)
def test_triton_is_missed_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    absence: Absence | None,
    verdict: str,
    fallback: str | None,
    text: str,
) -> None:
    asked: list[tuple[int, int] | None] = []

    def triton_absence(capability: tuple[int, int] | None) -> Absence | None:
        asked.append(capability)
        return absence

    monkeypatch.setattr("importlib.metadata.version", versions(version))
    monkeypatch.setattr("ernie_local.kernels.gpu.triton_absence", triton_absence)
    gpus = [dataclasses.replace(ONE, compute_capability=one) for one in ((6, 1), (8, 6), None)]
    found = look("triton", gpus=gpus)
    assert asked == [(8, 6)]
    assert (found.verdict, found.facts["fallback"]) == (verdict, fallback)
    assert text in found.text
    assert found.fix == (None if absence is None else absence.hint)


@pytest.mark.parametrize("gpus", [None, ()])
def test_triton_is_not_missed_without_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: tuple[()] | None) -> None:
    monkeypatch.setattr("importlib.metadata.version", versions(None))
    found = look("triton", gpus=gpus)
    assert (found.verdict, found.text) == ("ok", "absent, and only a GPU would use it")


# nf4


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("gpus", [None, one()])
def test_who_unpacks_nf4_on_a_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[GpuStatus, ...] | None, is_there: bool
) -> None:
    absence = None if is_there else Absence("a", "it is not installed", "install it")
    monkeypatch.setattr("ernie_local.kernels.nf4.nf4_package_absence", lambda: absence)
    found = look("nf4", gpus=gpus)
    is_missed = gpus is not None and not is_there
    assert (found.verdict, found.facts["fallback"]) == (("slow", "torch") if is_missed else ("ok", None))
    assert found.fix == ("install it" if is_missed else None)
    assert ("plain PyTorch" in found.text) == is_missed
    assert (found.facts["bitsandbytes"] is not None) == is_there
