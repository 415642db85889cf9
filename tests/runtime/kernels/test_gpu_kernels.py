"""The choice between Triton's kernels and plain torch on a GPU, of which only the capability is made up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ernie_local
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels import cuda_ops
from ernie_local.kernels.cuda_ops import (
    TritonMissing,
    check_gpu_kernels,
    find_gpu,
    gpu_attends,
    triton_missing,
)
from ernie_local.kernels.gpu_kernels import CHOICE
from ernie_local.loading import loader

PASCAL, AMPERE = (6, 1), (8, 6)
DEVICE = torch.device("meta")


class Model:
    """Something that can be held weakly."""


class PlacedError(Exception):
    """Loading got as far as to ask for memory."""


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    caches = (cuda_ops._find_gpu, cuda_ops._triton_absence, cuda_ops._warn_without_triton)
    for cached in caches:
        cached.cache_clear()
    yield
    CHOICE._users.clear()
    CHOICE.choose("auto")
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(cuda_ops, "_capability", lambda device: request.param)
    monkeypatch.setattr(loader, "find_device", lambda name: DEVICE)

    def place(*_: object) -> None:
        raise PlacedError

    monkeypatch.setattr(loader, "place_experts", place)


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
def test_triton_is_turned_off_and_on() -> None:
    assert find_gpu(DEVICE) is not None
    CHOICE.choose("torch")
    assert find_gpu(DEVICE) is None
    missing = triton_missing(DEVICE)
    assert missing is not None
    assert "plain PyTorch was asked for" in missing.why
    CHOICE.choose("triton")
    assert find_gpu(DEVICE) is not None
    assert triton_missing(DEVICE) is None


def test_the_choice_stays_while_a_model_lives() -> None:
    model = Model()
    CHOICE.choose("auto")
    CHOICE.hold(model)
    CHOICE.choose("triton")
    with pytest.raises(UsageError, match='gpu_kernels="torch" was asked for, 1 model on a GPU uses triton'):
        CHOICE.choose("torch")
    assert CHOICE.is_triton_forced
    del model
    CHOICE.choose("torch")
    assert CHOICE.absence is not None


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("name", ["auto", "triton", "torch"])
def test_load_chooses(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(PlacedError):
        ernie_local.load("nano", device="cuda", gpu_kernels=name)
    assert (find_gpu(DEVICE) is None) == (name == "torch")
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
        check_gpu_kernels(DEVICE)
    check_gpu_kernels(DEVICE)
    cuda_ops._warn_without_triton.cache_clear()
    CHOICE.choose("torch")
    check_gpu_kernels(DEVICE)
    assert not recwarn.list


@pytest.mark.parametrize("capability", [AMPERE], indirect=True)
@pytest.mark.usefixtures("capability")
def test_graphs_want_an_attention_kernel() -> None:
    with pytest.raises(
        DoesNotFit, match=r"no attention kernel on meta for a cache in torch\.float32\n.*\ntry: kv"
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
    with pytest.raises(UsageError, match=f'gpu_kernels="{name}" and cuda_graphs="auto" with device="cpu"'):
        ernie_local.load("nano", gpu_kernels=name)


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda_graphs 'yes' is not auto or on or off"):
        ernie_local.load("nano", cuda_graphs="yes")
    with pytest.raises(UsageError, match='gpu_kernels="auto" and cuda_graphs="on" with device="cpu"'):
        ernie_local.load("nano", cuda_graphs="on")
    with pytest.raises(UsageError, match="gpu_kernels 'cuda' is not one of auto, triton, torch"):
        ernie_local.load("nano", gpu_kernels="cuda")
