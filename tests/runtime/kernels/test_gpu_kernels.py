"""The choice between Triton's kernels and plain torch on a GPU, of which only the capability is made up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ernie_local
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels import gpu
from ernie_local.kernels.attention import gpu_attends
from ernie_local.kernels.gpu import TritonMissing, check_gpu_kernels, find_triton, triton_missing
from ernie_local.loading import loader
from ernie_local.loading.loader import ComputeDemand

PASCAL, AMPERE = (6, 1), (8, 6)
DEVICE = torch.device("meta")


class PlacedError(Exception):
    """Loading got as far as to ask for memory."""


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    gpu.forget_devices()
    yield
    gpu.forget_devices()


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(gpu, "capability_of", lambda device: request.param)
    monkeypatch.setattr(loader, "find_device", lambda name: DEVICE)

    def count_need(*_: object, **__: object) -> None:
        raise PlacedError

    monkeypatch.setattr(loader, "count_need", count_need)


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
def test_triton_is_turned_off_by_who_asks() -> None:
    """And by nobody else: the next one who asks has it."""
    assert find_triton(DEVICE, "torch") is None
    missing = triton_missing(DEVICE, "torch")
    assert missing is not None
    assert "gpu_kernels torch" in missing.why
    for kernels in ("auto", "triton"):
        assert find_triton(DEVICE, kernels) is not None
        assert triton_missing(DEVICE, kernels) is None


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("name", ["auto", "triton", "torch"])
def test_load_chooses_and_leaves_nothing_behind(
    name: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    asked: list[str] = []

    def note(
        _checkpoint: object, _processor: object, _config: object, demand: ComputeDemand, **_: object
    ) -> None:
        asked.append(demand.gpu_kernels)
        raise PlacedError

    monkeypatch.setattr(loader, "count_need", note)
    with pytest.raises(PlacedError):
        ernie_local.load("nano", device="cuda", gpu_kernels=name)
    assert asked == [name]
    assert find_triton(DEVICE) is not None
    assert not recwarn.list


@pytest.mark.parametrize("capability", [PASCAL], indirect=True)
@pytest.mark.usefixtures("capability")
def test_load_refuses_triton_where_it_cannot_run() -> None:
    with pytest.raises(DoesNotFit, match=r"without its Triton kernels on meta\n.*6\.1.*\ntry: use a GPU"):
        ernie_local.load("nano", device="cuda", gpu_kernels="triton")


@pytest.mark.parametrize("capability", [PASCAL], indirect=True)
@pytest.mark.usefixtures("capability")
def test_kernels_that_are_missing_are_told_once(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(TritonMissing, match=r"plain PyTorch computes on meta\n.*6\.1, .* 7\.0\ntry: "):
        check_gpu_kernels(DEVICE, "auto")
    check_gpu_kernels(DEVICE, "auto")
    gpu.forget_devices()
    check_gpu_kernels(DEVICE, "torch")
    assert not recwarn.list


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
def test_graphs_want_an_attention_kernel() -> None:
    with pytest.raises(
        DoesNotFit, match=r"no attention kernel on meta for a cache in torch\.float32\n.*\ntry: use kv"
    ):
        ernie_local.load("nano", device="cuda", dtype="float32", cuda_graphs="on")
    with pytest.raises(DoesNotFit, match="no attention kernel"):
        ernie_local.load("nano", device="cuda", kv_dtype="int8", cuda_graphs="on", gpu_kernels="torch")
    with pytest.raises(PlacedError):
        ernie_local.load("nano", device="cuda", kv_dtype="bfloat16", cuda_graphs="on")


@pytest.mark.parametrize("capability", [(7, 5)], indirect=True)
@pytest.mark.usefixtures("capability")
def test_turing_attends_to_no_bfloat16() -> None:
    assert [gpu_attends(DEVICE, dtype) for dtype in (torch.bfloat16, torch.float16, torch.int8)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("name", ["triton", "torch"])
def test_the_processor_has_no_such_choice(name: str) -> None:
    with pytest.raises(UsageError, match=f'gpu_kernels="{name}" and cuda_graphs="auto" on the CPU'):
        ernie_local.load("nano", gpu_kernels=name)


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda_graphs 'yes' is not one of auto, on, off"):
        ernie_local.load("nano", cuda_graphs="yes")
    with pytest.raises(UsageError, match='gpu_kernels="auto" and cuda_graphs="on" on the CPU'):
        ernie_local.load("nano", cuda_graphs="on")
    with pytest.raises(UsageError, match="gpu_kernels 'cuda' is not one of auto, triton, torch"):
        ernie_local.load("nano", gpu_kernels="cuda")
