"""Experts by bitsandbytes and optimum-quanto: what we store of them means what the libraries say it means."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from optimum.quanto import WeightQBitsTensor, qint2, qint4
from optimum.quanto.library.extensions import get_extension
from optimum.quanto.tensor.packed import PackedTensor, pack_weights

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.experts.resident import ResidentExperts
from ernie_local.kernels import native
from ernie_local.packing import dequantize, find_format
from ernie_local.packing.foreign import (
    absmax_levels,
    dequantize_foreign,
    pack_foreign,
    unpack_quanto,
)
from ernie_local.packing.layout import find_foreign
from ernie_quant.foreign import choose_expert_format, quantize_foreign
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.plan import unit_costs
from ernie_quant.recipe import METHODS, Recipe, quantize_matrix
from ernie_quant.work import version_identity

CONFIG = read_config(NANO_DIRECTORY)
# Rows divided by a block and not, blocks that a row cuts, a last block that is not full.
SHAPES = [(96, 192), (192, 64), (5, 192), (96, 48), (4, 80), (3, 48), (128, 2560)]


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator)
    return 0.03 * weights / (0.3 + torch.rand(rows, columns, generator=generator))


def stored_weights(weights: torch.Tensor, name: str, method: str) -> torch.Tensor:
    foreign = find_foreign(name)
    assert foreign is not None
    packed = pack_foreign(quantize_foreign(weights, foreign, method))
    return dequantize_foreign(packed, foreign, *weights.shape)


def relative_error(weights: torch.Tensor, found: torch.Tensor) -> float:
    return float((weights - found).norm() / weights.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512])
def test_nf4_is_what_bitsandbytes_dequantizes(shape: tuple[int, int], block_size: int) -> None:
    """Bit for bit, asked in the one way in which it is right for all shapes: as one row of whole blocks."""
    weights = heavy_tailed(*shape)
    codes, state = bnb.quantize_4bit(
        weights, blocksize=block_size, quant_type="nf4", compress_statistics=True
    )
    missing = -weights.numel() % block_size
    codes = torch.nn.functional.pad(codes.flatten(), (0, missing // 2))
    state.shape = (weights.numel() + missing,)
    wanted = bnb.dequantize_4bit(codes, state).flatten()[: weights.numel()].view(shape)
    assert torch.equal(stored_weights(weights, f"nf4g{block_size}", "nf4"), wanted)


def test_the_levels_of_scales_are_those_of_bitsandbytes() -> None:
    assert torch.equal(absmax_levels(), bnb.create_dynamic_map())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["qint2g128", "qint2g32", "qint4g128", "qint4g64"])
@pytest.mark.parametrize("method", ["quanto", "quanto-hqq"])
def test_quanto_is_what_the_library_dequantizes(shape: tuple[int, int], name: str, method: str) -> None:
    """Bit for bit from its scales in float32, within the rounding of float16 from them as they are."""
    rows, columns = shape
    foreign = find_foreign(name)
    assert foreign is not None
    matrix = quantize_foreign(heavy_tailed(rows, columns), foreign, method)
    scales, shifts = matrix.floats.unsqueeze(-1)
    group = foreign.group_columns(columns)
    size, stride = torch.Size(shape), (columns, 1)

    def dequantized(dtype: torch.dtype) -> torch.Tensor:
        codes = PackedTensor(
            matrix.codes.view(-1, group), foreign.bits, torch.Size((len(scales), group)), (group, 1)
        )
        qtype = qint2 if foreign.bits == 2 else qint4
        floats = (scales.to(dtype), shifts.to(dtype))
        tensor = WeightQBitsTensor(qtype, 0, group, size, stride, codes, *floats)
        values: torch.Tensor = tensor.dequantize()
        return values

    found = dequantize_foreign(pack_foreign(matrix), foreign, rows, columns)
    assert torch.equal(found, dequantized(torch.float32))
    largest = float(found.abs().max() + shifts.abs().max())
    torch.testing.assert_close(found, dequantized(torch.float16).float(), rtol=0, atol=largest / 1024)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 64])
def test_codes_come_back_from_quantos_packing(bits: int, rows: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, 24), dtype=torch.uint8)
    assert torch.equal(unpack_quanto(pack_weights(codes, bits), bits)[:rows], codes)


def test_errors_are_those_known_of_the_methods() -> None:
    """Normal weights, 512 x 2560; figures of optimum-quanto 0.2.7 and bitsandbytes 0.50.2, measured apart."""
    weights = torch.randn(512, 2560, generator=torch.Generator().manual_seed(1))
    error = {
        (name, method): relative_error(weights, stored_weights(weights, name, method))
        for name, method in (
            ("nf4g64", "nf4"),
            ("qint4g128", "quanto"),
            ("qint4g128", "quanto-hqq"),
            ("qint2g128", "quanto"),
            ("qint2g128", "quanto-hqq"),
        )
    }
    assert list(error.values()) == pytest.approx([0.0920, 0.0998, 0.0967, 0.501, 0.487], rel=0.02)
    assert error["qint2g128", "quanto-hqq"] < error["qint2g128", "quanto"]
    ours = quantize_matrix(weights, find_format("w2"), Recipe("clip"))
    assert relative_error(weights, dequantize(ours)) < 0.7 * error["qint2g128", "quanto-hqq"]


@pytest.mark.parametrize(
    ("name", "method"),
    [("nf4g64", "nf4"), ("qint2g64", "quanto"), ("qint2g64", "quanto-hqq"), ("qint4g64", "quanto-hqq")],
)
def test_groups_of_equal_weights_keep_their_value(name: str, method: str) -> None:
    weights = torch.zeros(32, 128)
    weights[8:16], weights[16:24] = 0.25, -3.0
    found = stored_weights(weights, name, method)
    assert float(found[:8].abs().max()) < 0.01
    torch.testing.assert_close(found, weights, rtol=0.02, atol=0.02)


def test_hqq_does_not_wait_for_a_compiler() -> None:
    foreign = find_foreign("qint2g64")
    assert foreign is not None
    started = time.monotonic()
    quantize_foreign(torch.randn(16, 64), foreign, "quanto-hqq")
    assert isinstance(get_extension("quanto_cpp").lib, SimpleNamespace)  # no compiled module
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def dense(small_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small nano with plain experts; all else as beside experts of any format."""
    out = tmp_path_factory.mktemp("dense") / "model"
    tables = format_tables(read_config(small_nano), FormatChoice(experts=None))
    quantize_checkpoint(Job(small_nano, out, tables, Recipe("clip")))
    return out


def foreign_job(out: Path, method: Any, name: str, source: Path = NANO_DIRECTORY) -> Job:
    return Job(source, out, format_tables(read_config(source), FormatChoice(experts=name)), Recipe(method))


@pytest.mark.parametrize(
    ("method", "name"), [("nf4", "nf4g64"), ("quanto", "qint2g128"), ("quanto", "qint4g64")]
)
@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
def test_a_checkpoint_is_what_its_pages_mean(
    method: str,
    name: str,
    dense: Path,
    small_nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the plain model, its experts overwritten by what the method makes of them; in torch, where
    activations are not rounded."""
    quantize_checkpoint(foreign_job(tmp_path / "model", method, name, small_nano))
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with exact activations"))
    model, plain = (ernie_local.load(each, kv_dtype="float32") for each in (tmp_path / "model", dense))
    ids = list(range(20, 60))
    before = plain.logits(ids)
    assert isinstance(plain.network.experts, ResidentExperts)
    for bank in plain.network.experts.banks.values():
        inner_size = bank.down.shape[-1]
        for expert in range(plain.config.text.banks[0].num_experts):
            for view in (
                bank.gate_up[expert, :inner_size],
                bank.gate_up[expert, inner_size:],
                bank.down[expert],
            ):
                view.copy_(stored_weights(view.contiguous(), name, method))
    wanted = plain.logits(ids)
    assert (wanted - before).abs().max() > 1e-2  # the experts are not what they were
    torch.testing.assert_close(model.logits(ids), wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_nothing_of_the_libraries_is_needed_to_run(tmp_path: Path) -> None:
    quantize_checkpoint(foreign_job(tmp_path / "model", "nf4", "nf4g64"))
    code = (
        "import sys; sys.modules['bitsandbytes'] = sys.modules['optimum'] = None; "
        "from ernie_cli.main import run; "
        f"sys.exit(run(['chat', {str(tmp_path / 'model')!r}, '-p', 'What is the total?', "
        "'--image', 'examples/invoice.png']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "£84.84"), result.stderr


@pytest.mark.parametrize(
    ("method", "bits", "group_size", "name"),
    [
        ("nf4", "4", None, "nf4g64"),
        ("nf4", "4", 512, "nf4g512"),
        ("quanto", "2", None, "qint2g128"),
        ("quanto-hqq", "4", None, "qint4g128"),
        ("quanto", "2", 32, "qint2g32"),
        ("gptq", "2", None, "w2"),
        ("rtn", "4", None, "w4"),
        ("gptq", "w2t", None, "w2t"),
    ],
)
def test_a_method_has_its_format(method: str, bits: str, group_size: int | None, name: str) -> None:
    assert choose_expert_format(method, bits, group_size) == name


@pytest.mark.parametrize(
    ("method", "bits", "group_size", "message"),
    [
        ("nf4", "2", None, "nf4 with 2 bits"),
        ("nf4", "4", 1024, "nf4 with groups of 1024, allowed are 32, 64, 128, 256, 512"),
        ("quanto", "4", 65537, "allowed are 1 to 65536"),
        ("clip", "4", 64, "groups of 64 with the method clip"),
        ("gptq", "w2t", 64, "groups of 64 with the method gptq"),
        ("nf4", "w2t", None, "nf4 with w2t bits"),
        ("quanto", "w2t", None, "quanto with w2t bits"),
    ],
)
def test_what_a_method_cannot_make_is_refused(
    method: str, bits: str, group_size: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_expert_format(method, bits, group_size)


@pytest.mark.parametrize(
    ("method", "package"),
    [("nf4", "bitsandbytes"), ("quanto", "optimum-quanto"), ("quanto-hqq", "optimum-quanto")],
)
def test_a_missing_library_is_told_with_the_command(
    method: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DoesNotFit, match=f"needs {package}, .*\n.*\ntry: pip install {package}$"):
        quantize_checkpoint(foreign_job(tmp_path / "model", method, choose_expert_format(method, "4")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "name"), [("nf4", "w4"), ("rtn", "nf4g64"), ("gptq", "qint2g128")])
def test_method_and_format_that_do_not_belong_together_are_refused(
    method: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"experts in {name} by the method {method}"):
        quantize_checkpoint(foreign_job(tmp_path / "model", method, name))


def test_work_knows_the_library_that_it_was_begun_with() -> None:
    named = {method: version_identity(Recipe(method)) for method in METHODS}
    assert "bitsandbytes 0" in named["nf4"]
    assert "optimum-quanto 0" in named["quanto-hqq"]
    assert named["gptq"] == named["rtn"] == named["nf4"].partition(", bitsandbytes")[0]


def test_the_slow_search_is_reckoned_with() -> None:
    """Or the time left would be told forty times too short while dense matrices are made, which come last."""
    entries = [
        TensorEntry("experts.1.text.qint2g128", torch.uint8, (16, 4096)),
        TensorEntry("layers.1.self_attn.o_proj.w8", torch.uint8, (4096,)),
    ]
    plain, searched = (unit_costs(CONFIG, entries, (), Recipe(method)) for method in ("quanto", "quanto-hqq"))
    assert searched["experts.1.text.qint2g128"] > 20 * plain["experts.1.text.qint2g128"]
    assert searched["layers.1.self_attn.o_proj.w8"] == plain["layers.1.self_attn.o_proj.w8"]
