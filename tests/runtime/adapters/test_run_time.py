"""Adapters beside weights give what merged weights give, wherever experts are and however tokens come."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ernie_local.adapters.low_rank import Adapter, join_adapters
from ernie_local.adapters.tables import AdapterTables
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV, PackedTensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import PagingSetup
from ernie_local.experts.resident import ResidentExperts
from ernie_local.loading import LoadedModel, load
from ernie_local.loading.build import build_model
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.layers import AdaptedLinear, PackedGatedMLP
from ernie_local.model.moe import MoEBlock
from ernie_local.packing import dequantize, find_format, unpack_matrix, unpack_page
from tests.conftest import Oracle
from tests.plain_export import export_plainly
from tests.runtime.paged_models import CONTEXT_SIZE, answer_logits, attended_bytes, ids, num_frames, plan_of
from tests.runtime.random_adapters import random_adapter

CLOSE = 1e-4  # of the logits' range
EVERYTHING = (
    r"layers\..*(_proj|_router)\.weight|experts\..*|lm_head\.weight|vision\.patch_embed\.weight|"
    r"(vision\.blocks|resampler)\..*(qkv|proj|fc\d|mlp)\.weight"
)


def weight_of(model: LoadedModel, name: str) -> torch.Tensor:
    """A weight of a plain model, as it is in memory."""
    expert = re.fullmatch(r"experts\.(\d+)\.(\w+)\.(\d+)\.(\w+)", name)
    if expert is None:
        return model.network.get_parameter(name)
    experts = model.network.experts
    assert isinstance(experts, ResidentExperts)
    return experts.banks[int(expert[1]), expert[2]].projection(int(expert[3]), expert[4])


def merge(model: LoadedModel, adapter: Adapter) -> LoadedModel:
    """The plain model with the products added to its weights."""
    with torch.no_grad():
        for name, low_rank in adapter.weights.items():
            weight_of(model, name).add_(low_rank.weight())
    return model


def check_close(actual: torch.Tensor, expected: torch.Tensor, limit: float = CLOSE) -> None:
    assert (actual - expected).abs().max() < limit * (expected.max() - expected.min())


@pytest.mark.parametrize(
    "pattern",
    [
        EVERYTHING,
        r"layers\.1\.self_attn\.[qv]_proj\.weight",
        r"experts\.2\.text\.[135]\.(gate|down)_proj",
        r"experts\.1\.vision\..*|layers\..*shared_experts.up_proj.weight",
    ],
)
def test_an_adapter_beside_plain_weights_gives_what_merged_ones_give(
    tiny_oracle: Oracle, tiny_checkpoint: Path, pattern: str
) -> None:
    adapter = random_adapter(tiny_oracle.config, pattern)
    prompt = tiny_oracle.prompt([5, tiny_oracle.image(4, 6), 20])
    beside, merged = load(tiny_checkpoint, lora=[adapter]), merge(load(tiny_checkpoint), adapter)
    expected = merged.logits(*prompt)
    check_close(beside.logits(*prompt), expected)
    assert all(map(torch.equal, beside.router_choices(*prompt), merged.router_choices(*prompt)))
    # An adapter of this size is no detail.
    before = load(tiny_checkpoint).logits(*prompt)
    assert (before - expected).abs().max() > 100 * CLOSE * (expected.max() - expected.min())
    check_close(decoded(beside, prompt[0][:5], [20, 21, 22]), decoded(merged, prompt[0][:5], [20, 21, 22]))


def decoded(model: LoadedModel, prompt: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
    """Logits after the prompt and after each token."""
    engine = model.engine(context_size=64)
    return torch.stack([engine.prefill(list(prompt)), *map(engine.decode, token_ids)])


def test_adapters_are_added_up(tiny_oracle: Oracle, tiny_checkpoint: Path) -> None:
    first, second = random_adapter(tiny_oracle.config), random_adapter(tiny_oracle.config, rank=2, seed=1)
    prompt = tiny_oracle.prompt([30])
    both = load(tiny_checkpoint, lora=[first, second])
    check_close(both.logits(*prompt), merge(merge(load(tiny_checkpoint), first), second).logits(*prompt))
    assert len(both.adapter_notes) == 2
    assert "rank 3" in both.adapter_notes[0]


def test_a_model_without_an_adapter_is_as_before(tiny_oracle: Oracle, tiny_checkpoint: Path) -> None:
    """With one that adds zeros, too: but for how this processor rounds, nothing else is changed."""
    adapter = random_adapter(tiny_oracle.config, size=0.0)
    prompt = tiny_oracle.prompt([30, tiny_oracle.image(2, 2)])
    plain = load(tiny_checkpoint).logits(*prompt)
    check_close(load(tiny_checkpoint, lora=[adapter]).logits(*prompt), plain, 1e-6)


@pytest.fixture(scope="module")
def nano_adapter() -> Adapter:
    return random_adapter(read_config(NANO_DIRECTORY), rank=4)


@pytest.fixture(scope="module")
def mixed_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano in few bits, each expert in another format than its neighbours."""
    tables, out = format_tables(read_config(NANO_DIRECTORY), FormatChoice()), tmp_path_factory.mktemp("mixed")
    formats = {bank: ("w4", "w3-w4", "w2", "w3") * (len(own) // 4) for bank, own in tables.experts.items()}
    export_plainly(NANO_DIRECTORY, out, dataclasses.replace(tables, experts=formats))
    return out


def dequantized(packed: Path) -> LoadedModel:
    """The plain model with the weights that the packed one means."""
    model, config = load(NANO_DIRECTORY, dtype="float32"), read_config(packed)
    tables, shapes = config.quantization, PackedTensors(config)
    assert tables is not None
    found: dict[str, torch.Tensor] = {}

    def add_page(stem: str, ending: str, page: torch.Tensor) -> None:
        unpacked = unpack_page(page)
        matrices = unpacked.gate, unpacked.up, unpacked.down
        found.update(
            (f"{stem}.{own}{ending}", dequantize(matrix))
            for own, matrix in zip(PROJECTIONS, matrices, strict=True)
        )

    with open_checkpoint(packed, config) as checkpoint:
        for name, stored in checkpoint.packed.items():
            values = torch.empty(stored.shape, dtype=torch.uint8)
            checkpoint.read_packed(name, values)
            stem, _, format_name = name.rpartition(".")
            if stem.startswith("experts."):
                layer_id, bank = stem.split(".")[1:]
                for expert_id, (own, row) in enumerate(shapes.locate_experts(int(layer_id), bank)):
                    if own == name:
                        add_page(f"{stem}.{expert_id}", "", values[row])
            elif stem in tables.gated_mlps:
                add_page(stem, ".weight", values[0])
            else:
                shape = shapes.matrix_shape(stem)
                matrix = dequantize(unpack_matrix(values.view(-1), find_format(format_name), *shape))
                if stem.endswith(QKV):
                    text = config.text
                    sizes = [text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads]
                    parts = matrix.split([size * text.head_dim for size in sizes])
                    stem = stem.removesuffix(QKV)
                    found |= {
                        f"{stem}{which}_proj.weight": part for which, part in zip("qkv", parts, strict=True)
                    }
                else:
                    found[f"{stem}.weight"] = matrix
    with torch.no_grad():
        for name, weight in found.items():
            weight_of(model, name).copy_(weight)
    return model


@pytest.mark.parametrize("bits", ["packed_nano", pytest.param("mixed_nano", marks=pytest.mark.slow)])
def test_an_adapter_beside_packed_weights_gives_what_merged_ones_give(
    request: pytest.FixtureRequest, bits: str, nano_adapter: Adapter
) -> None:
    """As near as packed weights come without one."""
    packed: Path = request.getfixturevalue(bits)
    plain, prompt = dequantized(packed), ids(40, 5)
    without = plain.logits(prompt)
    usual = relative(load(packed, kv_dtype="float32").logits(prompt), without)
    assert usual < 0.15  # some choice between near experts falls the other way
    merged = merge(plain, nano_adapter)
    expected = merged.logits(prompt)
    assert relative(without, expected) > 3 * usual
    beside = load(packed, lora=[nano_adapter], kv_dtype="float32")
    assert relative(beside.logits(prompt), expected) < 3 * usual
    assert relative(decoded(beside, prompt, [20, 30]), decoded(merged, prompt, [20, 30])) < 3 * usual


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_counted_is_what_lies_in_memory(packed_nano: Path, is_packed: bool) -> None:
    directory = packed_nano if is_packed else NANO_DIRECTORY
    config = read_config(directory)
    # Of ranks 3 and 2, and of some experts: tables have the largest rank and all experts of a bank.
    adapter = join_adapters(
        [
            random_adapter(config, r"layers\.\d+\.(self_attn|mlp|moe.shared_experts)\..*weight", rank=3),
            random_adapter(config, r"experts\.\d+\.text\.[13]\.(up|down)_proj", rank=2),
            random_adapter(config, r"experts\.\d+\.text\.3\.gate_proj", rank=5),
        ]
    )
    model = load(directory, lora=[adapter])
    tables: list[torch.Tensor] = []
    for module in model.network.modules():
        if isinstance(module, AdaptedLinear):
            tables += [*module.parts.inward, *module.parts.outward]
        elif isinstance(module, PackedGatedMLP):
            tables += module.adapter or ()
        elif isinstance(module, MoEBlock):
            tables += [table for own in module.adapters.values() for table in own]
    assert sum(table.nbytes for table in tables) == model.weight_bytes - load(directory).weight_bytes > 0


@pytest.mark.parametrize("bits", ["packed_nano", "mixed_nano", None])
def test_paged_experts_give_the_same(
    request: pytest.FixtureRequest, bits: str | None, nano_adapter: Adapter
) -> None:
    """To the bit where weights are packed, with little more memory than one token's experts take."""
    directory = NANO_DIRECTORY if bits is None else request.getfixturevalue(bits)
    turns: list[tuple[list[int], list[Patches], list[int]]] = [(ids(30, 1), [], ids(4, 2))]
    plan = plan_of(directory)
    resident = built(directory, nano_adapter, None)
    expected = answer_logits(resident, turns)
    beside = Engine(resident, CONTEXT_SIZE).kv_cache_bytes + attended_bytes(resident, 64)
    paged = built(directory, nano_adapter, plan.least_bytes + beside)
    actual = answer_logits(paged, turns)
    assert num_frames(paged) * plan.frame_bytes < plan.most_bytes, "everything is in memory"
    if bits is not None:
        assert torch.equal(actual, expected)
    else:
        check_close(actual, expected, 1e-5)


def built(directory: Path, adapter: Adapter, ram_bytes: int | None) -> ErnieModel:
    """ram_bytes: for paged experts; None for all of them in memory."""
    config = read_config(directory)
    setup = None if ram_bytes is None else PagingSetup(ram_bytes)
    with open_checkpoint(directory, config) as checkpoint:
        to_build = checkpoint, config, torch.float32, torch.device("cpu"), setup
        return build_model(*to_build, adapter=AdapterTables.of(adapter, config))
