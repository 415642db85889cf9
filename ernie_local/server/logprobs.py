"""Writes the probabilities of tokens as clients of the newer interfaces read them, and of the oldest."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from ernie_local.text.reasoning import ScoredToken, TokenScore


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """The object of POST /v1/chat/completions."""
    return {"content": token_objects(scores), "refusal": None}


def token_objects(scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """One for each token, as of /v1/responses. A token that is a part of a character is told by its bytes."""
    return [
        {**_token(one.chosen), "top_logprobs": [_token(other) for other in one.likeliest]} for one in scores
    ]


def _token(token: ScoredToken) -> dict[str, Any]:
    text = token.text.decode("utf-8", "replace")
    return {"token": text, "logprob": token.logprob, "bytes": list(token.text)}


class CompletionLogprobs:
    """The objects of POST /v1/completions, whose tokens have places in the whole text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._num_written = 0  # whole characters

    def object(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """That of the next tokens. The chosen token is among the likeliest ones, however unlikely."""
        offsets = []
        for one in scores:
            offsets.append(self._num_written)
            self._num_written += len(self._decoder.decode(one.chosen.text))
        return {
            "tokens": [_spelled(one.chosen) for one in scores],
            "token_logprobs": [one.chosen.logprob for one in scores],
            "top_logprobs": [
                {_spelled(token): token.logprob for token in (*one.likeliest, one.chosen)} for one in scores
            ],
            "text_offset": offsets,
        }


def _spelled(token: ScoredToken) -> str:
    """The text of a token, or the bytes of one that is a part of a character, as OpenAI writes them."""
    try:
        return token.text.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.text)
