"""The tokenizer of ERNIE-4.5-VL over its SentencePiece file, for engines that run code of a model.

Written by ernie-local beside an exported model. It needs transformers 5 and sentencepiece.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

_SPACE_MARK = "\u2581"
# A second normalizer_spec of the file's protobuf message, merged into the first: add_dummy_prefix is false.
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class Ernie4_5_VLTokenizer(PreTrainedTokenizer):
    """Encodes without a begin token; texts between special tokens go to SentencePiece as they are."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, add_prefix_space: bool | None = None, **others: Any) -> None:
        self.vocab_file = vocab_file
        model = Path(vocab_file).read_bytes()
        if add_prefix_space is False:
            model += _NO_PREFIX
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        super().__init__(add_prefix_space=add_prefix_space, **others)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Number of pieces, without the tokens that other files add."""
        return int(self._pieces.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Every piece and added token with its id."""
        vocab = {self._pieces.id_to_piece(token_id): token_id for token_id in range(self.vocab_size)}
        return vocab | self.get_added_vocab()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces, where those of single bytes make characters together."""
        parts = (
            bytes([int(token[3:5], 16)])
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            else token.replace(_SPACE_MARK, " ").encode()
            for token in tokens
        )
        return b"".join(parts).decode(errors="replace")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Nothing is added: the chat template writes what begins a conversation."""
        return token_ids_0 + (token_ids_1 or [])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the SentencePiece file."""
        name = f"{filename_prefix}-tokenizer.model" if filename_prefix else "tokenizer.model"
        path = Path(save_directory) / name
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._pieces.id_to_piece(token_id) for token_id in self._pieces.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self._pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self._pieces.id_to_piece(index))
