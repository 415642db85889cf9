"""The mix: the same every time, each family where it belongs, the two worlds apart."""

from __future__ import annotations

from typing import get_args

import pytest

from ernie_calibration.generated import MIX, SampleFamily, generated_samples
from ernie_calibration.sample import Sample


def pixels(sample: Sample) -> bytes:
    return b"".join(image.tobytes() for image in sample.images)


@pytest.fixture(scope="module")
def worlds() -> dict[bool, list[Sample]]:
    """13 samples of calibration, and as many that are held out, by that."""
    return {held_out: list(generated_samples(13, seed=3, held_out=held_out)) for held_out in (False, True)}


@pytest.mark.parametrize("held_out", [False, True])
def test_samples_are_the_same_every_time_and_begin_alike(
    worlds: dict[bool, list[Sample]], held_out: bool
) -> None:
    few = list(generated_samples(7, seed=3, held_out=held_out))
    more = worlds[held_out]
    assert [sample.name for sample in more[:7]] == [sample.name for sample in few]
    assert len({sample.name for sample in more}) == 13
    for sample, again in zip(few, more, strict=False):
        assert sample.turns == again.turns
        assert pixels(sample) == pixels(again)


def test_other_seeds_and_the_other_world_have_other_samples(worlds: dict[bool, list[Sample]]) -> None:
    for other in (list(generated_samples(13, seed=4)), worlds[True]):
        for sample, changed in zip(worlds[False], other, strict=True):
            assert sample.turns != changed.turns
            assert not sample.images or pixels(sample) != pixels(changed)
            assert sample.name != changed.name


def test_the_mix_has_its_shares_and_a_family_is_the_same_alone() -> None:
    samples = list(generated_samples(12))
    for family in get_args(SampleFamily):
        mixed = [sample for sample, name in zip(samples, MIX, strict=True) if name == family]
        alone = list(generated_samples(len(mixed), families=(family,)))
        assert len(mixed) == MIX.count(family)
        assert [sample.name for sample in mixed] == [sample.name for sample in alone]
        assert [sample.turns for sample in mixed] == [sample.turns for sample in alone]
        assert not mixed or bool(mixed[0].images) == (family != "texts")
    with pytest.raises(KeyError):
        next(generated_samples(1, families=("films",)))


def test_a_third_of_the_small_images_is_read_out_whole() -> None:
    samples = generated_samples(30, families=("images",))
    kinds = [[turn.kind for turn in sample.turns] for sample in samples]
    assert sum(kind == ["transcript"] for kind in kinds) == 10
    assert all(1 <= len(kind) <= 3 for kind in kinds)


def test_most_pages_begin_with_their_transcript_and_all_have_questions() -> None:
    kinds = [
        [turn.kind for turn in sample.turns] for sample in generated_samples(14, families=("documents",))
    ]
    assert 7 < sum(kind[0] == "transcript" for kind in kinds) < 14
    assert all(len(kind) >= 3 for kind in kinds)
