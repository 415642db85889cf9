"""Predicts the seconds of attention and head where the processor computes them beside a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.checkpoint.parts import ATTENTION_PART, EMBEDDING_PART, HEAD_PART
from ernie_local.model.host_parts import HostParts
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.rates import Rates
from ernie_local.planner.tiers import COPY_SECONDS


@dataclass(frozen=True, slots=True)
class HostWork:
    """For each token of a chat. weight_bytes: of projections and head, in `weight_format`; context_bytes: of
    keys and values, read for a token in the middle of the chat; operations: multiplications and additions of
    such a token in a prompt. num_trips: of its state to the processor and back.
    """

    weight_bytes: int
    weight_format: str
    context_bytes: int
    operations: int
    num_layers: int
    num_trips: int

    @staticmethod
    def of(model: ModelSize, chat: ChatPlan, host: HostParts) -> HostWork:
        """host: what the processor computes."""
        weights, always = model.weights(chat.item_bytes), model.decode_work(chat.dtype).always_bytes
        head_bytes = weights.parts.get(HEAD_PART) or weights.parts.get(EMBEDDING_PART, 0)
        text = model.config.text
        projections = next(part.weights for part in model.parts if part.name == ATTENTION_PART)
        scores = (
            text.num_attention_heads * text.head_dim * chat.context_size
        )  # of keys, and of values: half each
        products = projections // text.num_hidden_layers + scores
        return HostWork(
            weight_bytes=sum(one.as_is for one in weights.projections[: host.num_layers])
            + host.has_head * head_bytes,
            weight_format=max(always, key=always.__getitem__),
            context_bytes=context_bytes(model, chat) * host.num_layers // text.num_hidden_layers,
            operations=2 * products * host.num_layers,
            num_layers=host.num_layers,
            num_trips=host.num_layers + host.has_head,
        )

    @property
    def all_bytes(self) -> int:
        """That the GPU does not read for a token."""
        return self.weight_bytes + self.context_bytes

    def decode_seconds(self, host: Rates) -> float:
        """Of a decoded token."""
        seconds = 2 * COPY_SECONDS * self.num_trips + self.num_layers * host.layer_seconds
        seconds += self.weight_bytes / host.bytes_per_second(self.weight_format)
        return seconds + self.context_bytes / host.memory_bytes_per_second

    def prompt_seconds(self, host: Rates) -> float:
        """Of a token of a prompt."""
        return self.operations / host.operations_per_second


def context_bytes(model: ModelSize, chat: ChatPlan) -> int:
    """Of the KV cache that a token in the middle of the chat reads."""
    return chat.kv_size(model.config.text).bytes_per_token * chat.context_size // 2
