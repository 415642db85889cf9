"""Samples to judge on: the same every time, one kind after the other, and unknown to calibration."""

from __future__ import annotations

from ernie_calibration.generated import LONG_KINDS, PAGES, TRANSCRIPT, generated_samples, held_out_samples
from ernie_calibration.images import draw_image
from ernie_calibration.sample import Sample


def facts(sample: Sample) -> tuple[object, ...]:
    return sample.name, sample.turns, sample.images[0].tobytes()


def test_more_samples_begin_with_the_same_and_another_seed_with_others() -> None:
    few, more = list(held_out_samples(7)), list(held_out_samples(9))
    assert [facts(sample) for sample in more[:7]] == [facts(sample) for sample in few]
    other = list(held_out_samples(7, seed=1))
    assert not {facts(sample)[2] for sample in other} & {facts(sample)[2] for sample in few}
    assert len({sample.name for sample in [*more, *other]}) == 16


def test_every_third_is_read_out_whole_behind_its_questions() -> None:
    kinds = [[turn.kind for turn in sample.turns] for sample in held_out_samples(7, questions_each=2)]
    assert [kind.count(TRANSCRIPT) for kind in kinds] == [1, 0, 0, 1, 0, 0, 1]
    assert all(kind[2:] == [TRANSCRIPT] for kind in kinds[::3])
    assert all(len(kind) == 2 for kind in kinds[1::3])
    bare = held_out_samples(4, transcript_every=0)
    assert [len(sample.turns) for sample in bare] == [1, 1, 1, 1]


def test_they_are_the_published_ones() -> None:
    """nano's own figures come from these seeds: others would be other questions."""
    sample = next(iter(held_out_samples(1)))
    assert sample.name == "invoice/held out/5000000"
    assert sample.name.startswith(next(iter(PAGES)))
    printed = [
        draw_image("invoice", 5_000_000, width=width, height=height, held_out=True)
        for width, height in PAGES["invoice"]
    ]
    answers = {question.answer for drawn in printed for question in drawn.questions}
    assert sample.turns[0].answer in answers
    assert sample.turns[1].answer in {drawn.transcript for drawn in printed}


def test_no_answer_long_enough_to_be_a_name_comes_from_calibration() -> None:
    known = {
        turn.answer
        for sample in generated_samples(30, families=("images",))
        for turn in sample.turns
        if turn.kind == "vendor"
    }
    new = {
        turn.answer
        for sample in held_out_samples(30, questions_each=9)
        for turn in sample.turns
        if turn.kind == "vendor"
    }
    assert known
    assert new
    assert not known & new


def test_families_come_in_turn_with_all_long_turns_and_few_questions() -> None:
    mixed = list(held_out_samples(4, families=("documents", "texts"), questions_each=1))
    pages, texts = mixed[::2], mixed[1::2]
    assert all("page" in sample.name or "strip" in sample.name for sample in pages)
    assert all(sum(turn.kind not in LONG_KINDS for turn in sample.turns) == 1 for sample in pages)
    assert any(turn.kind == TRANSCRIPT for sample in pages for turn in sample.turns)
    assert all({turn.kind for turn in sample.turns} == {"text"} and not sample.images for sample in texts)
