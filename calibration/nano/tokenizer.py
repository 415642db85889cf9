"""Trains nano's SentencePiece model: characters, whole words of the questions, specials, byte fallback.

Characters rather than sub-words, because nano copies what it reads glyph by glyph.
"""

from __future__ import annotations

import io
import string
from pathlib import Path

import sentencepiece

SPECIAL_TOKENS = (
    "<|begin_of_sentence|> <|end_of_sentence|> <think> </think> <|IMAGE_PLACEHOLDER|> <|IMAGE_START|> "
    "<|IMAGE_END|> <|VIDEO_PLACEHOLDER|> <|VIDEO_START|> <|VIDEO_END|>"
).split()
QUESTION_WORDS = (
    "User: Assistant: Picture What Which When Where total amount invoice number price much many does "
    "cost quantity value highest lowest largest smallest line written read Read text listed shown given "
    "vendor company from date issued printed point picture month after before plus minus entered shop "
    "name"
).split()
EXTRA_CHARACTERS = "£°äöüßÄÖÜéèêáàâíóôúñç"


def train_tokenizer(target: Path) -> None:
    """Write a SentencePiece model to `target`: byte-fallback BPE without merges, ids in a fixed order."""
    characters = sorted(set(string.printable[:95]) - {" "}) + list(EXTRA_CHARACTERS)
    symbols = [*SPECIAL_TOKENS, "\n", *QUESTION_WORDS]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(characters), *characters, "a b"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=3 + len(symbols) + 256 + len(characters) + 1,
        user_defined_symbols=symbols,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    target.write_bytes(model.getvalue())
