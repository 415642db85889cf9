"""Adapters baked into weights: the answers of PEFT, and the bytes of a merged checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ernie_local
from ernie_calibration.sequences import EncodedSample
from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.merged import open_merged, read_adapters
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable, Stopped, UsageError
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.recipe import Recipe
from tests.adapters import as_oracle, copy_merged, save_random_adapter, weights_of
from tests.conftest import Layout, Oracle

pytestmark = pytest.mark.usefixtures("short_jobs")


def _merged(source: Path, out: Path, adapter: Path) -> Path:
    added = read_adapters([AdapterSource(adapter)], read_config(source))
    assert added is not None
    return copy_merged(source, out, added)


@pytest.mark.parametrize("layout", ["hub", "native"])
def test_a_merged_model_answers_as_peft_beside_the_weights(
    make_oracle: Callable[..., Oracle], tmp_path: Path, layout: Layout
) -> None:
    oracle = make_oracle()
    source = oracle.save(tmp_path / "model", layout)
    ids, images = oracle.prompt([5, oracle.image(4, 6), 7])
    plain = oracle.run(ids, images).logits
    adapted = save_random_adapter(oracle.model, tmp_path / "first")
    adapted_oracle = as_oracle(adapted, oracle)
    expected = adapted_oracle.run(ids, images).logits
    made = _merged(source, tmp_path / "merged", tmp_path / "first")
    merged = ernie_local.load(made).logits(ids, images)
    spread = expected.max() - expected.min()
    assert (merged - expected).abs().max() < 1e-4 * spread
    assert (merged - plain).abs().max() > 0.1 * spread


def test_two_adapters_add_up_with_their_scales(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    oracle = make_oracle()
    source = oracle.save(tmp_path / "model")
    before = weights_of(oracle.model, oracle.config)
    config = oracle.config
    lora, expected = [], dict(before)
    every_way: list[tuple[float, dict[str, Any]]] = [
        (0.5, {"r": 2}),
        (-2.0, {"use_rslora": True, "target_modules": ["qkv"]}),
    ]
    for number, (scale, options) in enumerate(every_way):
        fresh = make_oracle()
        adapted = save_random_adapter(fresh.model, tmp_path / str(number), seed=number, **options)
        after = weights_of(adapted.merge_and_unload(), config)
        expected = {name: value + scale * (after[name] - before[name]) for name, value in expected.items()}
        lora.append(AdapterSource.parse(f"{tmp_path / str(number)}:{scale}"))
    with open_merged(source, config, read_adapters(lora, config)) as merged:
        for name, value in expected.items():
            found = torch.empty(merged.shape(name))
            merged.read(name, found)
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


def test_bfloat16_weights_are_rounded_as_by_peft(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    """PEFT rounds what is added and then the sum, here the sum alone is rounded."""
    oracle = make_oracle()
    config = oracle.config
    oracle.model.bfloat16()
    source = oracle.save(tmp_path / "model")
    merged_by_peft = save_random_adapter(oracle.model, tmp_path / "adapter").merge_and_unload()
    expected = weights_of(merged_by_peft, config)
    adapter = read_adapters([AdapterSource(tmp_path / "adapter")], config)
    same = total = 0
    with open_merged(source, config, adapter) as merged:
        for name, value in expected.items():
            found = torch.empty(merged.shape(name))
            merged.read(name, found)
            assert torch.equal(found, found.to(merged.dtype(name)).float())
            torch.testing.assert_close(found, value.float(), rtol=2**-7, atol=2e-2)
            same += int((found == value.float()).sum())
            total += value.numel()
    assert same > 0.8 * total


class _Tiny:
    """A tiny model in the hub's layout, an adapter for it, samples, and where to write."""

    def __init__(self, oracle: Oracle, folder: Path) -> None:
        self.source = oracle.save(folder / "model")
        self.config = oracle.config
        self.folder = folder
        ids, images = oracle.prompt([9, oracle.image(4, 6), 30])
        self.samples = [EncodedSample("0", tuple(ids), tuple(images), answers=())]
        save_random_adapter(oracle.model, folder / "adapter")
        self.lora = [AdapterSource(folder / "adapter", 0.5)]

    def adapter(self) -> Adapter:
        found = read_adapters(self.lora, self.config)
        assert found is not None
        return found

    def job(self, source: Path, out: str, method: str, lora: list[AdapterSource]) -> Job:
        tables = format_tables(self.config, FormatChoice(experts="w4"))
        samples = self.samples if method == "gptq" else []
        return Job(source, self.folder / out, tables, Recipe(method), samples, lora=lora)  # type: ignore[arg-type]


@pytest.fixture
def tiny(make_oracle: Callable[..., Oracle], tmp_path: Path) -> _Tiny:
    return _Tiny(make_oracle(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantizing_with_an_adapter_is_quantizing_the_merged_model(tiny: _Tiny, method: str) -> None:
    merged = copy_merged(tiny.source, tiny.folder / "merged", tiny.adapter())
    made = tiny.job(tiny.source, "made", method, tiny.lora)
    expected = tiny.job(merged, "expected", method, [])
    plain = tiny.job(tiny.source, "plain", method, [])
    for job in (made, expected, plain):
        quantize_checkpoint(job)
    weights, wanted, other = (
        [path.read_bytes() for path in sorted(job.out.glob("*.safetensors"))]
        for job in (made, expected, plain)
    )
    assert weights == wanted
    assert weights != other
    source = json.loads((made.out / "config.json").read_text())["quantization_config"]["source"]
    assert source["adapters"].startswith("adapter times 0.5 (")


def test_work_goes_on_with_the_same_adapters_alone(tiny: _Tiny) -> None:
    job = tiny.job(tiny.source, "made", "rtn", tiny.lora)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    def again(lora: list[AdapterSource]) -> Job:
        return tiny.job(tiny.source, "made", "rtn", lora)

    with pytest.raises(Stopped):
        quantize_checkpoint(dataclasses.replace(job, should_stop=should_stop))
    for lora in ([], [AdapterSource(tiny.folder / "adapter", 0.25)]):
        with pytest.raises(UsageError, match="holds other work: adapters differ"):
            quantize_checkpoint(again(lora))
    quantize_checkpoint(again(tiny.lora))


def test_adapters_count_as_memory_of_the_run(tiny: _Tiny) -> None:
    plain, adapted = (plan_checkpoint(tiny.job(tiny.source, "out", "rtn", lora)) for lora in ([], tiny.lora))
    assert adapted.memory_bytes - plain.memory_bytes == tiny.adapter().num_bytes


def test_a_sum_too_large_to_compute_with_is_refused_by_name(tiny: _Tiny) -> None:
    name = "layers.1.self_attn.q_proj.weight"
    low_rank = tiny.adapter().weights[name]
    huge = Adapter({name: type(low_rank)(low_rank.rank_by_columns * 1e20, low_rank.rows_by_rank)})
    with (
        open_merged(tiny.source, tiny.config, huge) as merged,
        pytest.raises(ModelUnusable, match=f"{name} with adapters holds .*e\\+"),
    ):
        merged.read(name, torch.empty(merged.shape(name)))
