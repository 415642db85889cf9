"""Samples as ids: what a chat's own prompt would be, and exactly the answers marked."""

from __future__ import annotations

import pytest
from PIL import Image

import ernie_local
from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.sequences import SampleEncoder
from ernie_calibration.skills.samples import clip_samples, closeup_samples
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import InputUnreadable
from ernie_local.session.image_tools import zoom_tool
from ernie_local.text.template import ChatTemplate, ImageSlot, Message, encode_segments, user_message

IMAGE = Image.new("RGB", (308, 196), "white")
TURNS = (
    SampleTurn("What is the total?", "12.50", "total"),
    SampleTurn("And the date?", "2024-05-01", "date"),
)


MEDIA = read_config(NANO_DIRECTORY).media


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
    assert encoded.token_ids.count(MEDIA.image) == image_tokens
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
    assert alone.token_ids.count(MEDIA.image) == alone.patches[0].num_tokens
    text = encoder.encode(Sample("text", (), TURNS))
    assert text.patches == ()
    assert MEDIA.image not in text.token_ids
    with pytest.raises(InputUnreadable, match="sample nothing has 0 images and 0 turns"):
        encoder.encode(Sample("nothing", (), ()))


def test_a_clip_is_a_video_before_the_first_question(encoder: SampleEncoder) -> None:
    sample = next(clip_samples(3, held_out=False))
    encoded = encoder.encode(sample)
    (patches,), frames = encoded.patches, sample.clips[0].frames
    assert patches.grid[0] == len(frames) + len(frames) % 2
    assert patches.num_tokens == len(patches.pixel_values) // 8
    ids = encoded.token_ids
    assert ids.count(MEDIA.video) == patches.num_tokens
    assert ids.index(MEDIA.video_start) < ids.index(MEDIA.video) < encoded.answers[0][0]
    model = ernie_local.load("nano")
    assert model.logits(ids, encoded.patches).shape[0] == len(ids)


def test_a_closeup_is_a_prompt_with_tools_then_a_call_then_a_prompt_with_its_picture(
    encoder: SampleEncoder,
) -> None:
    sample = next(closeup_samples(1, held_out=False))
    encoded, (turn,) = encoder.encode(sample), sample.turns
    sheet, crop = (ImageSlot(one.num_tokens) for one in encoded.patches)
    messages = [Message("user", (sheet, turn.question))]
    template, tools = ChatTemplate("thinking"), [zoom_tool().described()]

    def prompt() -> tuple[int, ...]:
        segments = template.segments(messages, tools=tools, thinking=True)
        return encode_segments(encoder.tokenizer, segments, encoder.media).token_ids

    assert encoded.token_ids[: len(prompt())] == prompt()
    (look,) = turn.rounds
    messages += [Message("assistant", "", look.thought, (look.call,)), Message("tool", (crop,))]
    second = prompt()
    assert encoded.token_ids[: len(second)] == second
    ((start, end),) = encoded.answers
    written = encoder.tokenizer.decode(encoded.token_ids[len(second) :])
    assert written == f"{turn.thought}\n</think>\n\n{turn.answer}<|end_of_sentence|>"
    assert encoder.tokenizer.decode(encoded.token_ids[start : end - 1]) == turn.answer
