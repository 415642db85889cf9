"""A whole model decoding with the native operators against torch, for every format of the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ernie_local.kernels import attention, norm_route

if TYPE_CHECKING:
    from ernie_local.config import Bank
    from ernie_local.loading import LoadedModel
    from tests.conftest import Oracle

USERS = ("layers", "moe", "attention")


def use_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in USERS:
        monkeypatch.setattr(f"ernie_local.model.{module}.suits_decode_ops", lambda *given: False)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the model asks for each operator, from now on."""
    calls: dict[str, int] = {}
    for module, name in zip(USERS, ("rms_norm", "route", "decode_attention"), strict=True):
        original = getattr(attention if name == "decode_attention" else norm_route, name)

        def counted(*arguments: object, _original: object = original, _name: str = name) -> object:
            calls[_name] = calls.get(_name, 0) + 1
            return _original(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(f"ernie_local.model.{module}.{name}", counted)
    return calls


def decode_all(
    model: LoadedModel, kv_dtype: str, prompt: list[int], answer: list[int]
) -> tuple[torch.Tensor, list[tuple[int, Bank, list[list[int]]]]]:
    """Logits after each token of the answer, and what the route hook saw meanwhile."""
    engine = model.engine(context_size=len(prompt) + len(answer), kv_dtype=kv_dtype)
    engine.prefill(prompt)
    routes: list[tuple[int, Bank, list[list[int]]]] = []

    def note(
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        assert expert_weights.shape == expert_ids.shape
        assert token_indices.tolist() == [0]
        routes.append((layer_id, bank, expert_ids.tolist()))

    with engine.reporting_routes(note):
        return torch.stack([engine.decode(token_id) for token_id in answer]), routes


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16", "int8"])
def test_decode_gives_the_logits_of_torch(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, kv_dtype: str
) -> None:
    prompt, answer = tiny_oracle.prompt([70])[0], tiny_oracle.prompt([25], seed=1)[0]
    with monkeypatch.context() as patched:
        calls = count_calls(patched)
        actual, routes = decode_all(tiny_model, kv_dtype, prompt, answer)
    text = tiny_oracle.config.text
    num_layers = text.num_hidden_layers
    assert calls == {
        "rms_norm": (2 * num_layers + 1) * len(answer),
        "route": sum(text.moe_layers) * len(answer),
        "decode_attention": num_layers * len(answer),
    }
    use_torch(monkeypatch)
    assert count_calls(monkeypatch) == {}
    expected, expected_routes = decode_all(tiny_model, kv_dtype, prompt, answer)
    # A state next to a rounding edge may fall to the other side: a rounded cache is equal only in the main.
    bound = 1e-5 if kv_dtype == "float32" else 0.02
    torch.testing.assert_close(actual, expected, atol=bound, rtol=1e-5)
    assert routes == expected_routes


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_any_model_decodes_as_it_prefills(
    make_random_oracle: Callable[[int], Oracle], tmp_path: Path, seed: int
) -> None:
    """Random numbers of heads and their sizes; a prompt of one token at a time is decode by another name."""
    oracle = make_random_oracle(seed)
    model = oracle.load(tmp_path, "native")
    ids, _ = oracle.prompt([40])
    engine = model.engine(context_size=40)
    engine.prefill(ids[:1])
    actual = torch.stack([engine.decode(token_id) for token_id in ids[1:]])
    torch.testing.assert_close(actual, model.logits(ids)[1:], atol=1e-5, rtol=1e-5)
