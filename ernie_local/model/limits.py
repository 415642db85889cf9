"""Checks ids, positions and numbers of tokens against what a model has, and cuts prompts into chunks."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_local.errors import DoesNotFit, UsageError


def chunk_stops(num_tokens: int, chunk_tokens: int, cuts: Sequence[int] = ()) -> list[int]:
    """Where the chunks of a prompt end: after `chunk_tokens`, at each of the ascending `cuts`, at its end."""
    stops: list[int] = []
    start = 0
    for cut in (*(cut for cut in cuts if 0 < cut < num_tokens), num_tokens):
        stops += [*range(start + chunk_tokens, cut, chunk_tokens), cut]
        start = cut
    return stops


def check_token_counts(context_size: int, chunk_tokens: int) -> None:
    """Raise UsageError for a number that no engine can have."""
    for name, value in (("context size", context_size), ("chunk size", chunk_tokens)):
        if value < 1:
            raise UsageError(
                f"{name} of {value} tokens, at least 1 is needed",
                "every token needs a place",
                f"give a {name} of 1 or more",
            )


def check_position(largest: int, num_positions: int) -> None:
    """Raise DoesNotFit for a position that the model does not know."""
    # Not the number of tokens: an image of 6000 tokens moves the position by its longer side only.
    if largest >= num_positions:
        raise DoesNotFit(
            f"the text reaches position {largest}, the model knows 0 to {num_positions - 1}",
            "the model was not trained on positions beyond (max_position_embeddings in config.json)",
            "shorten the text, or start a new conversation",
        )


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise UsageError for a token id outside of the vocabulary."""
    lowest, highest = min(ids), max(ids)
    if lowest < 0 or highest >= vocab_size:
        raise UsageError(
            f"token id {lowest if lowest < 0 else highest} is outside of 0 to {vocab_size - 1}",
            f"the model's vocabulary has {vocab_size} tokens",
            "make the ids with this model's own tokenizer",
        )
