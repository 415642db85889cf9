"""Chooses defaults: number types, the length of a conversation, the rule for missing experts.

`load`, the planner and the commands all take them from here.
"""

from __future__ import annotations

from ernie_local.errors import DoesNotFit, parameter

AUTO = "auto"

# float32 takes twice the memory of a 16-bit checkpoint, which is too much for larger ones.
_MOST_FLOAT32_BYTES = 4 << 30
# 1.75 GiB of KV cache for the 28B model in 16 bits; its own limit of 131072 would be 7 GiB.
_MOST_CONTEXT_TOKENS = 32768
MOST_PARALLEL = 8  # twice as many gain little: eight tokens want half of a layer's experts, sixteen most
ANSWER_TOKENS = 512  # that images leave to the question and its answer
_CACHE_BYTES = 1 << 30  # a second question about each of 18 pages of 1000 tokens
_MOST_FEATURE_BYTES = 64 << 20  # of seven such pages in float32


def compute_dtype(plain_bytes: int, *, on_gpu: bool = False) -> str:
    """The number type to compute in. plain_bytes: size of the weight files; 0 for packed weights, which
    float32 does not enlarge."""
    return "bfloat16" if on_gpu or plain_bytes > _MOST_FLOAT32_BYTES else "float32"


def kv_dtype(dtype: str, *, is_packed: bool) -> str:
    """The number type of the KV cache: `dtype`, or, for packed weights, that of the training."""
    return "bfloat16" if is_packed else dtype


def context_tokens(asked: int | None, model_limit: int) -> int:
    """Most tokens of a conversation: as asked, else the model's limit but at most 32768.

    DoesNotFit for more than the model's limit.
    """
    if asked is not None and asked > model_limit:
        raise DoesNotFit(
            f"{parameter('context_size', asked)} is more than the {model_limit} tokens that this model was "
            "made for",
            "it was not trained on later positions",
            f"{parameter('context_size', model_limit)} or less",
        )
    return min(model_limit, _MOST_CONTEXT_TOKENS) if asked is None else asked


def roomier_context(num_tokens: int, model_limit: int) -> int | None:
    """A context for a prompt of `num_tokens` and an answer; None if that is beyond the model's limit."""
    context = -(-(num_tokens + ANSWER_TOKENS) // 1024) * 1024
    return context if context <= model_limit else None


def miss_rule(asked: str, fastest: str | None) -> str:
    """What happens to experts that the GPU lacks: as asked, else the rule measured as fastest, else fetch."""
    return (fastest or "fetch") if asked == AUTO else asked


def cache_bytes(asked: int | None) -> int:
    """The most that a cache folder holds: as asked, else 1 GiB."""
    return _CACHE_BYTES if asked is None else asked


def feature_bytes(spare_bytes: int) -> int:
    """Memory for features of images that were seen before. spare_bytes: what a model leaves of its memory."""
    return min(_MOST_FEATURE_BYTES, spare_bytes)
