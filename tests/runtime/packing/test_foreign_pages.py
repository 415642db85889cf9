"""Experts in other libraries' formats: their pages, what is refused, and what the operators make of them.

That the weights are those of the libraries is held in tests/quant/test_foreign.py, where these are imported.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.kernels import native
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import packed_experts
from ernie_local.packing import pack_page
from ernie_local.packing.foreign import ForeignMatrix, dequantize_foreign, foreign_weight, pack_foreign
from ernie_local.packing.layout import ForeignFormat, find_foreign, read_foreign_layout
from ernie_local.packing.page import (
    check_page,
    is_foreign_page,
    pack_foreign_page,
    read_foreign_page,
    seal,
)
from tests.plain_export import export_plainly
from tests.runtime.random_matrices import random_page

NAMES = ("nf4g64", "nf4g512", "qint4g128", "qint4g32", "qint2g128", "qint2g48")
GOLDEN = Path(__file__).parent / "golden_pages"


def found(name: str) -> ForeignFormat:
    foreign = find_foreign(name)
    assert foreign is not None
    return foreign


def pattern_matrix(name: str, rows: int, columns: int, salt: int = 0) -> ForeignMatrix:
    """Bytes that follow from their places; weights of about unit size."""
    foreign, shape = found(name), (rows, columns)
    float_bytes, scale_code_bytes, code_bytes = foreign.part_bytes(*shape)

    def pattern(count: int, step: int) -> torch.Tensor:
        return ((torch.arange(count) * step + salt) % 251).to(torch.uint8)

    if foreign.kind == "nf4":
        floats = (torch.arange(float_bytes // 4) + 1 + salt) / 64
    else:
        floats = ((torch.arange(float_bytes // 2) % 61 + 1 + salt) / 64).half()
    return ForeignMatrix(
        foreign,
        shape,
        floats,
        pattern(scale_code_bytes, 3),
        pattern(code_bytes, 7),
    )


def pattern_page(name: str, hidden_size: int = 80, inner_size: int = 48, salt: int = 0) -> torch.Tensor:
    inner = (inner_size, hidden_size)
    return pack_foreign_page(
        pattern_matrix(name, *inner, salt),
        pattern_matrix(name, *inner, salt + 1),
        pattern_matrix(name, *inner[::-1], salt + 2),
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES), sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)), salt=st.integers(0, 9)
)
def test_a_page_comes_back(name: str, sizes: tuple[int, int], salt: int) -> None:
    hidden_size, inner_size = 16 * sizes[0], 16 * sizes[1]
    page = pattern_page(name, hidden_size, inner_size, salt)
    layout = read_foreign_page(page)
    assert (layout.foreign.name, layout.hidden_size, layout.inner_size) == (name, hidden_size, inner_size)
    assert page.numel() == layout.page_bytes
    assert page.numel() % 4096 == 0
    check_page(page, layout, "the page")
    in_a_slot = torch.cat((page, torch.full((4096,), 7, dtype=torch.uint8)))
    for number in range(3):
        weights = foreign_weight(in_a_slot, layout, number)
        matrix = pattern_matrix(name, *layout.shapes[number], salt + number)
        wanted = dequantize_foreign(pack_foreign(matrix), layout.foreign, *matrix.shape)
        assert torch.equal(weights, wanted)
        assert weights.unique().numel() > 10


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("nf4g64", 4.127),
        ("nf4g512", 4.016),
        ("qint4g128", 4.25),
        ("qint4g64", 4.5),
        ("qint2g128", 2.25),
        ("qint2g64", 2.5),
        ("qint2g32", 3.0),
    ],
)
def test_bits_per_weight_count_everything(name: str, bits: float) -> None:
    for rows, columns in ((1536, 2560), (2560, 1536), (512, 2560), (2560, 512)):
        taken = 8 * found(name).matrix_bytes(rows, columns) / (rows * columns)
        assert taken == pytest.approx(bits, abs=6e-4)
        assert taken == pytest.approx(found(name).nominal_bits, abs=6e-4)


@pytest.mark.parametrize(
    ("columns", "group"), [(2560, 128), (192, 96), (96, 96), (64, 64), (160, 80), (16, 16), (7, 7), (131, 1)]
)
def test_groups_of_a_row_have_one_size(columns: int, group: int) -> None:
    assert found("qint2g128").group_columns(columns) == group


@pytest.mark.parametrize(
    "name", ["nf4", "nf4g1024", "nf4g16", "qint3g128", "qint4", "qint4g0", "qint4g070", "qint4g65537", "w4"]
)
def test_names_that_mean_nothing(name: str) -> None:
    assert find_foreign(name) is None


@pytest.mark.parametrize("name", ["nf4g64", "qint4g128", "qint2g128"])
def test_golden_pages(name: str) -> None:
    """Stored once: a change of these bytes is a change of the format and needs a new page version."""
    stored = torch.frombuffer(bytearray((GOLDEN / f"{name}.bin").read_bytes()), dtype=torch.uint8)
    assert torch.equal(pattern_page(name), stored)


def changed(page: torch.Tensor, position: int, value: int) -> torch.Tensor:
    copy = page.clone()
    copy[position] = value
    return copy


def sealed(page: torch.Tensor) -> torch.Tensor:
    seal(page)
    return page


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda page: page[:-4096], "has 4096 bytes, its header means 8192"),
        (lambda page: page[:10], "wanted bytes"),
        (lambda page: page.int(), "wanted bytes"),
        (lambda page: changed(page, 4, 1), "version 1"),
        (lambda page: changed(page, 6, 9), "kind 9"),
        (lambda page: changed(page, 8, 0), "hidden size 0"),
        (lambda page: changed(page, 24, 65), "groups of 65"),
        (lambda page: sealed(changed(page, 12, 64)), "holds .*inner_size=64.* wanted .*inner_size=48"),
        (lambda page: changed(page, 40, 1), "has the checksum"),
        (lambda page: changed(page, 24, 128), "has the checksum"),
        (lambda page: sealed(changed(page, 24, 128)), "holds .* wanted"),
        (lambda page: sealed(changed(page, 67, 127)), "1 of .* scales are not finite"),
    ],
)
def test_damaged_pages_are_refused(damage: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    page = pattern_page("nf4g64")
    page[66] = 0x80  # with a 127 behind it, the first float is an infinity
    seal(page)
    wanted = read_foreign_page(page)
    with pytest.raises(ModelUnusable, match=message):
        check_page(damage(page), wanted, "the page")


def test_a_page_of_ours_is_none_of_theirs() -> None:
    page = pack_page(random_page("w4", "w4", 80, 48))
    assert not is_foreign_page(page)
    with pytest.raises(ModelUnusable, match=r"ERNX.*version 2, kind 1, groups of 0"):
        read_foreign_layout(page[:64].numpy().tobytes(), "the page")


def test_parts_that_do_not_belong_together_are_refused() -> None:
    matrix = pattern_matrix("qint2g32", 16, 64)
    with pytest.raises(UsageError, match=r"qint2g32 matrix of \(16, 64\) has"):
        ForeignMatrix(matrix.foreign, (16, 64), matrix.floats, matrix.scale_codes, matrix.codes[1:])
    with pytest.raises(UsageError, match="64 of 64 scales are not finite"):
        ForeignMatrix(matrix.foreign, (16, 64), matrix.floats * torch.inf, matrix.scale_codes, matrix.codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", [("nf4g64", "nf4g64"), ("qint2g128", "qint4g32"), ("qint4g128", "w2")])
def test_the_operator_computes_them(names: tuple[str, str], dtype: torch.dtype) -> None:
    """As the sum of each expert alone, beside a shared page in our format and beside pages of ours."""
    hidden_size, inner_size = 80, 48
    pages = [
        pack_page(random_page(name, name, hidden_size, inner_size))
        if name.startswith("w")
        else pattern_page(name, hidden_size, inner_size, salt)
        for salt, name in enumerate(names)
    ]
    longest = max(page.numel() for page in pages)
    slots = torch.stack([functional.pad(page, (0, longest - page.numel())) for page in pages])
    shared = pack_page(random_page("w8", "w8", hidden_size, inner_size, seed=3))[None]
    hidden = (torch.randn(5, hidden_size) / 100).to(dtype)
    ids, weights = torch.tensor([[0, 1]] * 4 + [[1, 0]]), torch.rand(5, 2).to(dtype)
    output = packed_experts(ExpertsCall(hidden, slots, ids, weights, shared))
    assert output.dtype == dtype
    wanted = packed_experts(
        ExpertsCall(hidden, shared, ids[:, :1] * 0, torch.ones(5, 1, dtype=dtype))
    ).float()
    for slot, page in enumerate(pages):
        if not is_foreign_page(page):
            only = torch.zeros(5, 1, dtype=torch.int64)
            alone = packed_experts(
                ExpertsCall(hidden, page[None], only, torch.ones(5, 1, dtype=dtype))
            ).float()
        else:
            layout = read_foreign_page(page)
            gate, up, down = (foreign_weight(page, layout, index) for index in range(3))
            inner = functional.silu(hidden.float() @ gate.t()) * (hidden.float() @ up.t())
            alone = inner @ down.t()
        factors = weights.gather(1, (ids == slot).int().argmax(1, keepdim=True))
        wanted = wanted + alone * factors.float()
    # Pages of ours are computed without rounding activations here.
    limit = 0.02 if "w2" in names or dtype == torch.bfloat16 else 1e-5
    assert (output.float() - wanted).norm() <= limit * wanted.norm()


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
def test_they_need_no_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = pattern_page("qint2g32")[None]
    arguments = (torch.randn(3, 80), slots, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    fast = packed_experts(ExpertsCall(*arguments))
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute in torch"))
    assert torch.equal(packed_experts(ExpertsCall(*arguments)), fast)


def test_a_token_that_is_no_number_and_a_page_of_another_model_are_refused() -> None:
    slots, only = pattern_page("nf4g64")[None], torch.zeros(2, 1, dtype=torch.int64)
    hidden = torch.ones(2, 80)
    hidden[1, 3] = torch.nan
    with pytest.raises(UsageError, match="a NaN or an infinity in token 1"):
        packed_experts(ExpertsCall(hidden, slots, only, torch.ones(2, 1)))
    with pytest.raises(ModelUnusable, match="the slot of expert 0 holds no page of hidden size 96"):
        packed_experts(ExpertsCall(torch.ones(2, 96), slots, only, torch.ones(2, 1)))


def spoil_name(raw: dict[str, dict[str, str]], tensors: dict[str, torch.Tensor]) -> None:
    raw["experts"]["2.text"] = "nf4g1024"


def spoil_scale(raw: dict[str, dict[str, str]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["experts.2.text.qint2g128"][3, 64:66] = torch.tensor([0, 0x7C], dtype=torch.uint8)
    seal(tensors["experts.2.text.qint2g128"][3])


def flip_code(raw: dict[str, dict[str, str]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["experts.2.text.qint2g128"][3, 5000] ^= 1


def spoil_kind(raw: dict[str, dict[str, str]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["experts.2.text.qint2g128"][3, 24] = 64
    seal(tensors["experts.2.text.qint2g128"][3])


def use_for_dense(raw: dict[str, dict[str, str]], tensors: dict[str, torch.Tensor]) -> None:
    raw["gated_mlps"]["layers.0.mlp"] = "nf4g64"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with experts in a foreign format, whose weights mean nothing."""
    out = tmp_path_factory.mktemp("foreign") / "model"
    config = read_config(NANO_DIRECTORY)
    tables = format_tables(config, FormatChoice(experts="qint2g128"))
    export_plainly(NANO_DIRECTORY, out, dataclasses.replace(tables, experts={}))
    raw = json.loads((out / "config.json").read_text())
    raw["quantization_config"] = tables.to_json()
    (out / "config.json").write_text(json.dumps(raw))
    tensors = load_file(out / "model.safetensors")
    for name in [name for name in tensors if name.startswith("experts.")]:
        del tensors[name]
    for layer_id, bank in tables.experts:
        page = pattern_page("qint2g128", config.text.hidden_size, config.text.bank(bank).expert_size)
        tensors[f"experts.{layer_id}.{bank}.qint2g128"] = page.repeat(config.text.bank(bank).num_experts, 1)
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_name, "names the format nf4g1024"),
        (spoil_scale, "page 3 of experts.2.text.qint2g128: 1 of 1280 scales are not finite"),
        (flip_code, "page 3 of experts.2.text.qint2g128 has the checksum"),
        (spoil_kind, "page 3 of experts.2.text.qint2g128 (holds|has .* its header means)"),
        (use_for_dense, "gated_mlps.layers.0.mlp is 'nf4g64'"),
    ],
)
def test_damaged_checkpoints_are_refused(
    model: Path,
    damage: Callable[[dict[str, dict[str, str]], dict[str, torch.Tensor]], None],
    message: str,
    tmp_path: Path,
) -> None:
    raw = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    damage(raw["quantization_config"], tensors)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnusable, match=message):
        ernie_local.load(tmp_path).wait_until_resident()
