"""Trains nano's SentencePiece model: characters, whole words of the questions, specials, byte fallback.

Characters rather than sub-words, because nano copies what it reads glyph by glyph. What the runtime writes
word by word the same in each prompt is a few long pieces: the system text of the Thinking template and the
schema of the zoom tool would else be 1,100 tokens, and are 12.
"""

from __future__ import annotations

import io
import json
import string
from pathlib import Path

import sentencepiece

from ernie_local.session.image_tools import zoom_tool
from ernie_local.text.template import THINKING_SYSTEM

SPECIAL_TOKENS = (
    "<|begin_of_sentence|> <|end_of_sentence|> <think> </think> <|IMAGE_PLACEHOLDER|> <|IMAGE_START|> "
    "<|IMAGE_END|> <|VIDEO_PLACEHOLDER|> <|VIDEO_START|> <|VIDEO_END|> <tool_list> </tool_list> <tool_call> "
    "</tool_call> <tool_output> </tool_output>"
).split()
QUESTION_WORDS = (
    "User: Assistant: Picture What Which When Where total amount invoice number price much many does "
    "cost quantity value highest lowest largest smallest line written read Read text listed shown given "
    "vendor company from date issued printed point picture month after before plus minus entered shop "
    "name Where Locate Mark Show box printed Give JSON Extract fields keys object Answer form string null "
    "page look Look zoom Zoom small Video shown appear time first last word month currency higher lower "
    "larger than rows bars points values have phone street room code age job city Which"
).split()
# Written by the runtime, or by the model in every call and every object.
PHRASES = (
    THINKING_SYSTEM,
    '{"bbox_2d": [',
    '], "label": "',
    '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [',
    "Answer in JSON of this form: ",
    '": string | null',
    '", "',
    '": "',
    '": ',
    ', "',
    '{"',
    '"}',
    "Not on the page.",
    ", ",
)
SCHEMA_PIECE_LETTERS = 100
EXTRA_CHARACTERS = "£°äöüßÄÖÜéèêáàâíóôúñç"


def symbol_pieces() -> list[str]:
    """All pieces longer than a character, in the order of their ids, as SentencePiece spells spaces."""
    schema = json.dumps([zoom_tool().described()], ensure_ascii=False)
    cuts = range(0, len(schema), SCHEMA_PIECE_LETTERS)
    parts = [schema[start : start + SCHEMA_PIECE_LETTERS] for start in cuts]
    texts = dict.fromkeys([*SPECIAL_TOKENS, "\n", *QUESTION_WORDS, *PHRASES, *parts])
    return [text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}") for text in texts]


def train_tokenizer(target: Path) -> None:
    """Write a SentencePiece model to `target`: byte-fallback BPE without merges, ids in a fixed order."""
    characters = sorted(set(string.printable[:95]) - {" "}) + list(EXTRA_CHARACTERS)
    symbols = symbol_pieces()
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
