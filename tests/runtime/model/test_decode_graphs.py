"""Decode that is recorded and replayed gives what decode gives, whatever happens in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.engine import Engine
from ernie_local.errors import UsageError
from ernie_local.kernels import attention, experts, linear, norm_route
from ernie_local.kernels.arguments import LayerStorage, NewToken
from ernie_local.model import attention as model_attention
from ernie_local.model import ernie
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.host_parts import HostParts
from ernie_local.model.kv_cache import CacheLayout
from ernie_local.model.moe import RouteHook
from tests.runtime import paged_models
from tests.runtime.tape import Tape

TOKENS = (60, 61, 30, 62, 45)


def attend_token(new_token: NewToken, cache: LayerStorage, length: torch.Tensor) -> torch.Tensor:
    """As the GPU's kernel, by torch: how far it looks and where it writes is in a tensor."""
    assert cache.key_scales is None
    assert cache.value_scales is None
    queries, keys, values, cosines, sines = new_token
    turned = []
    for states in (queries.float(), keys.float()):
        even, odd = states[:, 0::2], states[:, 1::2]
        pairs = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), dim=-1)
        turned.append(pairs.flatten(-2))
    cache.keys.index_copy_(1, length, turned[1].to(cache.keys.dtype)[:, None])
    cache.values.index_copy_(1, length, values.to(cache.values.dtype)[:, None])
    grouped = turned[0].view(len(keys), -1, queries.shape[-1])  # (kv_heads, group, head_dim)
    scores = grouped @ cache.keys.float().mT / queries.shape[-1] ** 0.5  # (kv_heads, group, capacity)
    is_hidden = torch.arange(cache.keys.shape[1]) > length
    attended: torch.Tensor = scores.masked_fill(is_hidden, -torch.inf).softmax(-1) @ cache.values.float()
    return attended.reshape(queries.shape)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token attends by a kernel, and torch sees every call."""
    for module in (model_attention, ernie):
        monkeypatch.setattr(
            module,
            "token_kernel",
            lambda device, kv_dtype, kernels: None if kv_dtype == torch.float32 else attend_token,
        )
    for module in (attention, experts, linear, norm_route):
        monkeypatch.setattr(module, "needs_no_dispatch", lambda tensor: False)


@pytest.fixture(scope="module")
def packed(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture(params=["plain", "packed", "paged"])
def model(request: pytest.FixtureRequest, packed: Path) -> ErnieModel:
    if request.param == "plain":
        return paged_models.build(NANO_DIRECTORY, None)
    needed = paged_models.plan_of(packed).least_bytes * 3 if request.param == "paged" else None
    return paged_models.build(packed, needed)


def engines(model: ErnieModel) -> tuple[Engine, Engine, Tape]:
    """One without graphs, one with."""
    tape = Tape()
    plain = Engine(model, 128, torch.bfloat16)
    model.attach(model.experts, tape)
    graphed = Engine(model, 128, torch.bfloat16)
    model.attach(model.experts)
    return plain, graphed, tape


def assert_same(plain: Engine, graphed: Engine, tokens: Sequence[int] = TOKENS) -> None:
    for token in tokens:
        torch.testing.assert_close(graphed.decode(token), plain.decode(token), rtol=1e-4, atol=1e-4)


def num_pieces(model: ErnieModel) -> int:
    return sum(model.config.text.moe_layers) + 1


def test_every_token_is_that_of_decode(model: ErnieModel) -> None:
    plain, graphed, tape = engines(model)
    for engine in (plain, graphed):
        engine.prefill([20, 21, 22])
    assert_same(plain, graphed)
    assert tape.num_recorded == num_pieces(model)
    # Another turn, a token of an image on its own, which no graph runs, and a point to go back to.
    mark = graphed.mark()
    for engine in (plain, graphed):
        engine.prefill([23, 24])
    assert_same(plain, graphed, [70, model.config.media.image_start, 71])
    for engine in (plain, graphed):
        engine.rewind(mark)
    assert_same(plain, graphed)
    assert tape.num_recorded == num_pieces(model)


@pytest.mark.parametrize("num_layers", [2, 6])
def test_layers_that_attend_on_the_cpu_are_not_recorded(packed: Path, num_layers: int) -> None:
    model = paged_models.build(packed, None)
    model.host = HostParts(num_layers)
    plain, graphed, tape = engines(model)
    for engine in (plain, graphed):
        engine.prefill([20, 21, 22])
    assert_same(plain, graphed)
    recorded = sum(model.config.text.moe_layers[num_layers:]) + 1
    assert tape.num_recorded == (recorded if num_layers < 6 else 0)


def test_engines_do_not_share_graphs(packed: Path) -> None:
    model = paged_models.build(packed, None)
    plain, graphed, _ = engines(model)
    other_plain, other, _ = engines(model)
    for engine, prompt in ((plain, 20), (graphed, 20), (other_plain, 40), (other, 40)):
        engine.prefill([prompt, prompt + 1])
    for token in TOKENS:
        assert_same(plain, graphed, [token])
        assert_same(other_plain, other, [token + 1])


@pytest.mark.parametrize("host_layers", [0, 2])
def test_a_cache_that_moved_is_recorded_anew(packed: Path, host_layers: int) -> None:
    model = paged_models.build(packed, None)
    model.host = HostParts(host_layers)
    plain, graphed, tape = engines(model)
    for engine in (plain, graphed):
        engine.prefill([20, 21])
    assert_same(plain, graphed)
    cache = graphed._cache
    size, text = cache._size, model.config.text
    cache._move_to(CacheLayout.allocate(size, text, torch.bfloat16, torch.device("cpu")), lambda: None)
    assert_same(plain, graphed)
    assert tape.num_recorded == 2 * (num_pieces(model) - sum(model.config.text.moe_layers[:host_layers]))


def test_an_interrupted_recording_goes_on(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = paged_models.build(packed, None)
    plain, graphed, tape = engines(model)
    for engine in (plain, graphed):
        engine.prefill([20, 21])
    compute, calls = model.experts.compute, []

    def interrupt(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model.experts, "compute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        graphed.decode(60)
    assert graphed.length == 2
    assert_same(plain, graphed)
    assert tape.num_recorded == num_pieces(model)


def test_a_cache_without_a_kernel_is_refused(packed: Path) -> None:
    model = paged_models.build(packed, None)
    model.attach(model.experts, Tape())
    with pytest.raises(UsageError, match=r'a KV cache in torch\.float32 with cuda_graphs="on"'):
        Engine(model, 64, torch.float32)


def note_ids(told: list[list[int]]) -> RouteHook:
    return lambda layer, bank, ids, weights, rows: told.append(ids.tolist())


def test_routes_are_told_of_replayed_tokens_too(packed: Path) -> None:
    model = paged_models.build(packed, None)
    told: dict[str, list[list[int]]] = {"plain": [], "graphed": []}
    plain, graphed, _ = engines(model)
    for name, engine in (("plain", plain), ("graphed", graphed)):
        with engine.reporting_routes(note_ids(told[name])):
            for token in TOKENS:
                engine.decode(token)
    assert told["plain"] == told["graphed"]
