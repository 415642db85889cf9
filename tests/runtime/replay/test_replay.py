"""A trace of a paged nano, replayed: the same pages found and read as the engine counted, to the last one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ernie_local
from ernie_calibration.images import draw_image
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.options import PagingStats
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel
from ernie_local.loading.model import EngineSettings
from ernie_local.model_files import ModelFiles
from ernie_local.replay.replay import replay_trace
from ernie_local.replay.trace import Trace, read_trace, write_trace
from tests.plain_export import export_plainly
from tests.runtime.paged_models import build, ids, paged_experts, plan_of
from tests.runtime.test_threads import in_threads

pytestmark = pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")


@pytest.fixture(scope="module", params=["bf16", "w4", "mixed"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano, or nano in 4 bits, or with text pages of two sizes."""
    if request.param == "bf16":
        return NANO_DIRECTORY
    out = tmp_path_factory.mktemp(request.param)
    config = read_config(NANO_DIRECTORY)
    tables = format_tables(config, FormatChoice("w4", "w8", embedding=None, vision=None))
    if request.param == "mixed":
        mixed = {
            (layer_id, bank): tuple(
                "w2" if (index + layer_id) % 3 == 0 else name for index, name in enumerate(names)
            )
            for (layer_id, bank), names in tables.experts.items()
        }
        tables = dataclasses.replace(tables, experts=mixed)
    export_plainly(NANO_DIRECTORY, out, tables)
    return out


def paged_model(directory: Path, share: float) -> tuple[LoadedModel, int]:
    """The model with experts in this share of what holds all, and that in bytes."""
    plan = plan_of(directory)
    memory_bytes = max(plan.least_bytes, int(share * plan.most_bytes))
    settings = EngineSettings(1500, torch.float32, chunk_tokens=100)
    network = build(directory, memory_bytes)
    files = ModelFiles(directory, network.config)
    return LoadedModel(network, files, settings, 0, 0.0), memory_bytes


@pytest.fixture
def fixed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversation and images take memory of their own, not that of experts."""
    monkeypatch.setattr(PagedExperts, "make_room", lambda *_: None)


def counted(stats: PagingStats) -> PagingStats:
    return dataclasses.replace(stats, decode_wait_seconds=0.0, prompt_wait_seconds=0.0)


def run_chat(model: LoadedModel) -> None:
    """Two images, chunks of a prompt, a vision token in decode, a turn taken back."""
    image = draw_image("invoice", 7, width=308, height=200)
    chat = ernie_local.Chat(model)
    for question in image.questions[:2]:
        list(chat.ask(question.text, images=[image.image], max_tokens=12))
    chat.undo()
    list(chat.ask("What is 3 plus 4?", max_tokens=12))
    engine = model.engine(context_size=64)
    engine.prefill([1, 20, 21])
    engine.decode(model.config.media.image_start)
    engine.decode(30)


@pytest.mark.usefixtures("fixed_memory")
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_replay_counts_what_the_engine_counted(directory: Path, tmp_path: Path, share: float) -> None:
    model, memory_bytes = paged_model(directory, share)
    recorder = model.record_trace()
    run_chat(model)
    experts = model.network.experts
    assert isinstance(experts, PagedExperts)
    stats = counted(experts.stats)
    assert stats.decoded_tokens > 10
    assert stats.banks["text"].decode_hits > 10
    assert stats.banks["vision"].decode_misses + stats.banks["vision"].decode_hits == 5 * 4
    assert counted(replay_trace(recorder.trace(), memory_bytes)) == stats

    write_trace(tmp_path / "chat.trace", recorder.trace())
    assert counted(replay_trace(read_trace(tmp_path / "chat.trace"), memory_bytes)) == stats
    experts.close()


@pytest.mark.usefixtures("fixed_memory")
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_steps_of_several_sequences_are_replayed(packed_nano: Path, share: float) -> None:
    model, memory_bytes = paged_model(packed_nano, share)
    recorder = model.record_trace()

    def run(engine: Engine, seed: int) -> None:
        engine.prefill(ids(9, seed))
        for token in ids(12, seed + 50):
            engine.decode(token)

    in_threads([partial(run, model.engine(context_size=32), seed) for seed in range(5)])
    trace, experts = recorder.trace(), paged_experts(model.network)
    assert max(forward.num_sequences for forward in trace.forwards) > 2
    assert trace.decoded_tokens == experts.stats.decoded_tokens == 5 * 12
    assert counted(replay_trace(trace, memory_bytes)) == counted(experts.stats)
    experts.close()


@pytest.mark.usefixtures("fixed_memory")
def test_an_interrupted_forward_is_replayed_as_far_as_it_came(tmp_path: Path) -> None:
    model, memory_bytes = paged_model(NANO_DIRECTORY, 0.4)
    recorder = model.record_trace()
    engine = model.engine(context_size=64)
    engine.prefill(list(range(20, 50)))
    layer = model.network.layers[3]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = layer.register_forward_pre_hook(interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            engine.decode(50)
    handle.remove()
    for token_id in range(50, 60):
        engine.decode(token_id)
    trace = recorder.trace()
    assert [len(forward.expert_ids) for forward in trace.forwards] == [30 * 5, 2, 2, *[5] * 10]
    experts = model.network.experts
    assert isinstance(experts, PagedExperts)
    assert counted(replay_trace(trace, memory_bytes)) == counted(experts.stats)
    write_trace(tmp_path / "t", trace)
    assert len(read_trace(tmp_path / "t").forwards) == 13
    experts.close()


def test_a_trace_holds_what_the_router_chose() -> None:
    model = ernie_local.load("nano", context_size=400)
    recorder = model.record_trace()
    image = draw_image("table", 3, width=224, height=140)
    ids = [1, 20, model.config.media.image_start, model.config.media.image, model.config.media.image_end, 30]
    model.logits(ids, images=[image.image])
    (forward,) = recorder.trace().forwards
    choices = model.router_choices(ids, images=[image.image])
    is_vision = torch.from_numpy(forward.is_vision)
    assert is_vision[:2].tolist() == [False, False]
    assert int((~is_vision).sum()) == 3
    rows = {bank: is_vision == (bank == "vision") for bank in ("text", "vision")}
    for call in Trace.calls(recorder.trace(), forward):
        assert np.array_equal(call.expert_ids, choices[call.layer_id][rows[call.bank]])
    assert np.allclose(forward.expert_weights.sum(axis=-1), 1, atol=1e-5)
