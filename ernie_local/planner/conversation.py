"""The conversation that memory and speed are reckoned for: a context that is filled, images first.

Owns what the runtime would choose where nothing is said. Knows no machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.config import ModelConfig, TextConfig
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import KV_ITEM_BYTES, KVSize
from ernie_local.planner.images import PricedImage, prompt_tokens

WEIGHT_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# float32 doubles what a 16-bit checkpoint takes; past this, most machines would rather have the memory.
_LARGEST_FLOAT32_CHECKPOINT = 4 << 30


@dataclass(frozen=True, slots=True)
class Conversation:
    """context_size: tokens in the end. dtype: of numbers that are computed with; kv_dtype: of the cache."""

    context_size: int
    dtype: str
    kv_dtype: str
    images: tuple[PricedImage, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Of all images with their tags."""
        return prompt_tokens(self.images)

    @property
    def item_bytes(self) -> int:
        """Of a number in weights that are not packed."""
        return WEIGHT_ITEM_BYTES[self.dtype]

    def kv_size(self, config: TextConfig) -> KVSize:
        """Of its cache."""
        return KVSize.of(config, self.context_size, KV_ITEM_BYTES[self.kv_dtype])


def default_dtype(checkpoint_bytes: int, *, is_packed: bool) -> str:
    """What a chat on the CPU computes in where nobody says; packed weights stay as they are in either."""
    return "float32" if is_packed or checkpoint_bytes <= _LARGEST_FLOAT32_CHECKPOINT else "bfloat16"


def default_kv_dtype(dtype: str, *, is_packed: bool) -> str:
    """What the runtime keeps the cache in where nobody says: what models are trained in, if packed."""
    return "bfloat16" if is_packed else dtype


def check_context(asked: int | None, config: ModelConfig) -> int:
    """Tokens that a conversation may have: as asked, else the model's default.

    DoesNotFit for more than the model was made for.
    """
    most = config.text.max_position_embeddings
    if asked is not None and asked > most:
        raise DoesNotFit(
            f"--ctx-size {asked} is more than the {most} tokens that this model was made for",
            "it has never seen positions behind that",
            f"--ctx-size {most} or less",
        )
    return asked or config.text.default_context_size


def check_images(images: tuple[PricedImage, ...], context_size: int, most: int) -> None:
    """DoesNotFit where images alone fill the context; `most` is the model's limit."""
    tokens = prompt_tokens(images)
    if tokens >= context_size:
        roomy = -(-(tokens + 512) // 1024)
        hint = f"--ctx-size {roomy}k" if roomy << 10 <= most else "fewer or smaller images"
        raise DoesNotFit(
            f"the images take {tokens} tokens, the context has {context_size}",
            "a question and an answer have to stand there too",
            hint,
        )
