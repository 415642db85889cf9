"""Hands a model's vocabulary to the engine of grammars, once for each tokenizer."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from ernie_local.text.tokenizer import ErnieTokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_NUMBER_BYTES = frozenset(b"0123456789.")


class Vocabulary:
    """engine: the vocabulary as llguidance takes it. number_ids: (n,) int64, tokens with which a number that
    has begun goes on. Special tokens are no text to the engine, so that no form allows them.
    """

    def __init__(self, tokenizer: ErnieTokenizer, stop_ids: frozenset[int]) -> None:
        """stop_ids: tokens that end an answer."""
        from llguidance import LLTokenizer, TokenizerWrapper

        # Ids without a token have no bytes, and are never allowed.
        tokens = [
            tokenizer.token_bytes(token_id) if tokenizer.is_named(token_id) else b""
            for token_id in range(tokenizer.vocab_size)
        ]
        stops = sorted(token_id for token_id in stop_ids if token_id < len(tokens))
        described = _DescribedTokenizer(tokenizer, tokens, stops[0])
        self.engine: LLTokenizer = LLTokenizer(TokenizerWrapper(described), eos_token=stops)
        self.number_ids = np.array(
            [
                token_id
                for token_id, content in enumerate(tokens)
                if content[:1] and content[0] in _NUMBER_BYTES and token_id not in tokenizer.special_ids
            ],
            dtype=np.int64,
        )


class _DescribedTokenizer:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: ErnieTokenizer, tokens: list[bytes], end_id: int) -> None:
        self.tokens, self.eos_token_id = tokens, end_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        # The engine's vocabulary is kept for the tokenizer, and would keep it for ever.
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids that the model was trained to see for a text."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "who has a vocabulary has its tokenizer"
        return tokenizer.encode_part(text.decode() if isinstance(text, bytes) else text)


# 100,000 tokens take a part of a second to prepare, and each answer in a form needs them.
_prepared: weakref.WeakKeyDictionary[ErnieTokenizer, dict[frozenset[int], Vocabulary]]
_prepared = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def vocabulary_of(tokenizer: ErnieTokenizer, stop_ids: frozenset[int]) -> Vocabulary:
    """The vocabulary for these stop tokens, prepared when it is first asked for."""
    with _lock:
        known = _prepared.setdefault(tokenizer, {})
        if stop_ids not in known:
            known[stop_ids] = Vocabulary(tokenizer, stop_ids)
        return known[stop_ids]
