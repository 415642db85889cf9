"""Experts in other libraries' formats as on a GPU: on their own device, nf4 by bitsandbytes' kernels.

There is no GPU here: bitsandbytes runs on the processor. With `meta` as torch's default device every tensor
that is made without naming a device would have no values, and whatever it meets would fail.
"""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import DoesNotFit
from ernie_local.experts.math import TorchPageMath, check_triton_formats, gpu_math
from ernie_local.kernels import nf4, reference
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.nf4 import Nf4KernelsMissing, dequantize_by_bitsandbytes, nf4_absence
from ernie_local.packing.foreign import (
    Dequantize,
    _nf4_pairs,
    absmax_levels,
    dequantize_foreign,
    pack_foreign,
)
from ernie_local.packing.layout import ForeignFormat
from tests.runtime.packing.test_foreign_pages import found, pattern_matrix, pattern_page

HOST = torch.device("cpu")
HIDDEN, INNER = 80, 48
# Rows divided by a block and not, more blocks than share a scale, a last block that is not full.
SHAPES = [(96, 192), (5, 192), (96, 48), (4, 80), (3, 48), (128, 2560)]


@pytest.fixture(autouse=True)
def afresh() -> None:
    for cached in (_nf4_pairs, absmax_levels, nf4_absence, nf4.warn_without_nf4_kernels):
        cached.cache_clear()


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 512])
def test_a_matrix_is_unpacked_as_by_plain_torch(shape: tuple[int, int], block_size: int) -> None:
    name = f"nf4g{block_size}"
    packed = pack_foreign(pattern_matrix(name, *shape))
    actual = dequantize_by_bitsandbytes(packed, found(name), *shape)
    torch.testing.assert_close(actual, dequantize_foreign(packed, found(name), *shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dequantize", [dequantize_foreign, dequantize_by_bitsandbytes])
@pytest.mark.parametrize("name", ["nf4g64", "nf4g512", "qint4g128", "qint2g48"])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_experts_are_those_of_the_reference(name: str, num_tokens: int, dequantize: Dequantize) -> None:
    torch.manual_seed(0)
    pages = [pattern_page(name, HIDDEN, INNER, salt) for salt in range(3)]
    memory = torch.cat(pages).view(-1, 4096)
    units = len(pages[0]) // 4096
    places = torch.tensor([2 * units, -1, 0, units])
    ids = torch.tensor([[0, 1], [3, 2], [1, 1]])[:num_tokens]  # 1 is computed elsewhere
    hidden = torch.randn(num_tokens, HIDDEN) / 100
    call = ExpertsCall(hidden, memory, ids, torch.rand(num_tokens, 2), None, places)
    expected, actual = torch.zeros(2, num_tokens, HIDDEN)
    reference.add_plain_experts(expected, call)
    assert expected[0].abs().max() > 0
    for cached in (_nf4_pairs, absmax_levels):
        cached.cache_clear()
    with torch.device("meta"):
        TorchPageMath(dequantize).add(actual, call)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_unpacked_for_no_token() -> None:
    """A chunk of a prompt may have no token for a bank, or for the experts that are here."""
    memory = pattern_page("nf4g64", HIDDEN, INNER).view(-1, 4096)

    def never(*_: object) -> torch.Tensor:
        raise AssertionError("no expert was asked for")

    none = torch.empty(0, 2, dtype=torch.int64)
    places = torch.zeros(1, dtype=torch.int64)
    call = ExpertsCall(torch.empty(0, HIDDEN), memory, none, torch.empty(0, 2), None, places)
    output = torch.empty(0, HIDDEN)
    TorchPageMath(never).add(output, call)
    assert output.shape == (0, HIDDEN)
    only, absent = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([-1])
    call = ExpertsCall(torch.randn(1, HIDDEN), memory, only, torch.ones(1, 1), None, absent)
    output = torch.zeros(1, HIDDEN)
    TorchPageMath(never).add(output, call)
    assert not output.any()


def test_what_was_chosen_unpacks_each_matrix() -> None:
    asked: list[tuple[int, int]] = []

    def noted(packed: torch.Tensor, foreign: ForeignFormat, rows: int, columns: int) -> torch.Tensor:
        asked.append((rows, columns))
        return dequantize_foreign(packed, foreign, rows, columns)

    only, memory = torch.zeros(1, 1, dtype=torch.int64), pattern_page("nf4g64", HIDDEN, INNER).view(-1, 4096)
    call = ExpertsCall(torch.randn(1, HIDDEN), memory, only, torch.ones(1, 1), None, only[0])
    TorchPageMath(noted).add(torch.zeros(1, HIDDEN), call)
    assert asked == [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]


def test_bitsandbytes_runs_here() -> None:
    assert nf4_absence(HOST) is None


def test_kernels_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "dequantize_by_bitsandbytes", lambda *given: dequantize_foreign(*given) + 0.5)
    absence = nf4_absence(HOST)
    assert absence is not None
    assert absence.why == "they are 0.5 off in a test"


def test_kernels_that_do_not_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(nf4, "dequantize_by_bitsandbytes", fail)
    absence = nf4_absence(HOST)
    assert absence is not None
    assert absence.why == "they do not run here: no kernel image"


@pytest.fixture(scope="module")
def nf4_config() -> ModelConfig:
    config = read_config(NANO_DIRECTORY)
    tables = format_tables(config, FormatChoice(experts="nf4g64"))
    return dataclasses.replace(config, quantization=tables)


def chosen_math(nf4_config: ModelConfig, gpu_kernels: str = "auto") -> TorchPageMath:
    """What computes experts of all banks alike."""
    (math,) = set(gpu_math(nf4_config, HOST, gpu_kernels).values())
    assert isinstance(math, TorchPageMath)
    return math


def test_a_checkpoint_chooses_bitsandbytes(nf4_config: ModelConfig) -> None:
    math = chosen_math(nf4_config)
    assert math.foreign is dequantize_by_bitsandbytes


def test_without_bitsandbytes_plain_torch_computes_and_is_named(
    nf4_config: ModelConfig, without_bitsandbytes: None
) -> None:
    with pytest.warns(Nf4KernelsMissing, match=r"plain PyTorch.*\n.*not installed\ntry: pip install"):
        math = chosen_math(nf4_config)
    assert math.foreign is dequantize_foreign


def test_plain_torch_that_was_asked_for_is_not_warned_of(
    nf4_config: ModelConfig, without_bitsandbytes: None, recwarn: pytest.WarningsRecorder
) -> None:
    math = chosen_math(nf4_config, "torch")
    assert math.foreign is dequantize_foreign
    assert not recwarn.list


def test_there_are_no_triton_kernels_for_nf4(nf4_config: ModelConfig) -> None:
    check_triton_formats(read_config(NANO_DIRECTORY))
    with pytest.raises(DoesNotFit, match=r"0 Triton kernels.*\n.*\n.*quantize the original"):
        check_triton_formats(nf4_config)
