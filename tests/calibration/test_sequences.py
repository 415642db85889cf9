"""Samples as ids: what a chat's own prompt would be, and exactly the answers marked."""

from __future__ import annotations

import pytest
from PIL import Image

import ernie_local
from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import InputUnreadable
from ernie_local.text.template import ChatTemplate, encode_segments, user_message

IMAGE = Image.new("RGB", (308, 196), "white")
TURNS = (
    SampleTurn("What is the total?", "12.50", "total"),
    SampleTurn("And the date?", "2024-05-01", "date"),
)


@pytest.fixture(scope="module")
def encoder() -> SampleEncoder:
    return SampleEncoder.of_model(NANO_DIRECTORY)


def test_one_turn_begins_as_the_prompt_of_a_chat(encoder: SampleEncoder) -> None:
    encoded = encoder.encode(Sample("one", (IMAGE,), TURNS[:1]))
    image_tokens = encoded.patches[0].num_tokens
    segments = ChatTemplate("pt").segments([user_message(TURNS[0].question, (image_tokens,))], thinking=False)
    prompt = encode_segments(encoder.tokenizer, segments, encoder.media).token_ids
    ((start, end),) = encoded.answers
    assert encoded.token_ids[:start] == prompt
    assert end == len(encoded.token_ids)
    model = ernie_local.load("nano")
    assert encoded.token_ids.count(encoder.media.image) == image_tokens
    assert model.logits(encoded.token_ids, encoded.patches).shape[0] == end


def test_answers_are_marked_with_their_end_token(encoder: SampleEncoder) -> None:
    encoded = encoder.encode(Sample("two", (IMAGE,), TURNS))
    end_id = encoder.tokenizer.id_of("<|end_of_sentence|>")
    begin_id = encoder.tokenizer.id_of("<|begin_of_sentence|>")
    written = [encoded.token_ids[start:end] for start, end in encoded.answers]
    assert [ids[-1] for ids in written] == [end_id, end_id]
    assert [encoder.tokenizer.decode(ids[:-1]) for ids in written] == ["12.50", "2024-05-01"]
    assert encoded.token_ids.count(begin_id or -1) == 1


def test_a_picture_alone_and_text_alone_are_sequences_too(encoder: SampleEncoder) -> None:
    alone = encoder.encode(Sample("image", (IMAGE,), ()))
    assert alone.answers == ()
    assert alone.token_ids.count(encoder.media.image) == alone.patches[0].num_tokens
    text = encoder.encode(Sample("text", (), TURNS))
    assert text.patches == ()
    assert encoder.media.image not in text.token_ids
    with pytest.raises(InputUnreadable, match="sample nothing has 0 images and 0 turns"):
        encoder.encode(Sample("nothing", (), ()))
