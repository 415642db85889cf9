"""Bounds on the tokens of images: by a number, and by how closely the model is to look."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    smart_resize as published_resize,
)

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.detail import (
    LOW_DETAIL_TOKENS,
    Detail,
    WantedImage,
    check_detail,
    settle_details,
    with_image_tokens,
)
from ernie_local.media.image_size import measure_image
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig, with_max_pixels

PUBLISHED = ImageProcessorConfig()
A4 = (2480, 3508)


@given(st.integers(4, 16384), st.integers(20, 6000), st.integers(20, 6000))
def test_an_image_takes_at_most_its_bound_and_is_never_enlarged(bound: int, width: int, height: int) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    processor = with_image_tokens(PUBLISHED, bound)
    free = measure_image("x", (width, height), PUBLISHED)
    is_thin = max(width, height) / min(width, height) > bound
    is_tiny = width * height < PUBLISHED.min_pixels and bound < 30
    try:
        bounded = measure_image("x", (width, height), processor)
    except InputUnreadable:
        if not is_thin and not is_tiny:
            raise
        return
    assert bounded.tokens <= min(bound, free.tokens)
    assert (bounded.max_tokens, free.max_tokens) == (bound, None)
    if free.tokens <= bound:
        assert bounded.resized_size == free.resized_size


@given(st.integers(16, 6000), st.integers(200, 4000), st.integers(200, 4000))
def test_a_bound_rounds_as_the_published_processor_does(bound: int, width: int, height: int) -> None:
    resized = measure_image("x", (width, height), with_image_tokens(PUBLISHED, bound)).resized_size
    assert published_resize(height, width, 28, 3136, bound * 784) == resized[::-1]


def test_a_bound_keeps_most_of_the_tokens_that_it_allows() -> None:
    for bound in (100, 256, 800, 2772):
        tokens = measure_image("x", A4, with_image_tokens(PUBLISHED, bound)).tokens
        assert 0.85 * bound < tokens <= bound


@pytest.mark.parametrize("bound", [-1, 0, 1, 3, 16385, 10**9])
def test_a_bound_that_cannot_be_is_refused(bound: int) -> None:
    with pytest.raises(UsageError, match=f"image_tokens is {bound}, 4 to 16384 are possible"):
        with_image_tokens(PUBLISHED, bound)


@pytest.mark.parametrize(
    ("size", "bound", "tokens", "enough"),
    [((5000, 40), 100, 111, 125), ((40, 5000), 100, 111, 125), ((20, 25), 4, 6, 6)],
)
def test_an_image_too_thin_for_its_bound_is_refused(
    size: tuple[int, int], bound: int, tokens: int, enough: int
) -> None:
    width, height = size
    what = f"strip: {width} x {height} pixels take {tokens} tokens, at most {bound} are allowed"
    with pytest.raises(InputUnreadable, match=f"{re.escape(what)}\n.*\ntry: image_tokens={enough} or more"):
        measure_image("strip", size, with_image_tokens(PUBLISHED, bound))
    assert measure_image("strip", size, with_image_tokens(PUBLISHED, enough)).tokens <= enough


def test_the_smallest_of_all_limits_counts() -> None:
    for limits in ((400, 100), (100, 400)):
        processor = with_image_tokens(with_image_tokens(PUBLISHED, limits[0]), limits[1])
        assert (processor.max_tokens, processor.max_pixels) == (100, 100 * 784)
    wide = with_image_tokens(with_max_pixels(PUBLISHED, 50 * 784), 400)
    assert measure_image("x", A4, wide).tokens <= 50
    narrow = with_image_tokens(with_max_pixels(PUBLISHED, 400 * 784), 50)
    assert measure_image("x", A4, narrow).tokens <= 50
    assert with_image_tokens(PUBLISHED, None) is PUBLISHED


def test_settings_of_another_bound_are_other_settings() -> None:
    """What keeps features by pixels and settings must not find those of another bound."""
    bounded = [with_image_tokens(PUBLISHED, bound) for bound in (None, 100, 101, 6177)]
    assert len(set(bounded)) == len(bounded)


def test_patches_are_those_of_the_bound() -> None:
    image = Image.effect_noise((400, 300), 60).convert("RGB")
    patches = image_to_patches(image, with_image_tokens(PUBLISHED, 30))
    assert patches.num_tokens == 24
    assert patches.resized_size == (168, 112)


def wanted(size: tuple[int, int], detail: Detail, processor: ImageProcessorConfig = PUBLISHED) -> WantedImage:
    return WantedImage("page.png", size, detail, processor)


def tokens_of(images: list[WantedImage], context_size: int | None) -> list[int]:
    settled = settle_details(images, context_size)
    return [image.num_tokens(processor) for image, (processor, _) in zip(images, settled, strict=True)]


def test_low_and_high() -> None:
    assert tokens_of([wanted(A4, "low"), wanted(A4, "high")], 1000) == [247, 6138]
    assert settle_details([wanted(A4, "high")], 1000) == [(PUBLISHED, ())]
    small = replace(PUBLISHED, max_pixels=90 * 784)
    assert settle_details([wanted(A4, "low", small)], None) == [(small, ())]


def test_low_stays_within_a_bound_and_above_the_least() -> None:
    assert tokens_of([wanted(A4, "low", with_image_tokens(PUBLISHED, 100))], None)[0] <= 100
    large = replace(PUBLISHED, min_pixels=400 * 784)
    assert tokens_of([wanted(A4, "low", large)], None)[0] > LOW_DETAIL_TOKENS


@given(
    st.lists(st.tuples(st.integers(100, 4000), st.integers(100, 4000)), min_size=1, max_size=5),
    st.integers(1000, 60000),
    st.booleans(),
)
def test_auto_shares_half_of_the_context(
    sizes: list[tuple[int, int]], context_size: int, has_other: bool
) -> None:
    images = [wanted(size, "auto") for size in sizes] + [wanted((800, 600), "high")] * has_other
    high = [image.num_tokens(PUBLISHED) for image in images]
    settled = settle_details(images, context_size)
    tokens = tokens_of(images, context_size)
    notes = [notes for _, notes in settled]
    if sum(high) <= context_size // 2:
        assert tokens == high
        assert not any(notes)
        return
    bounds = {processor.max_tokens for processor, note in settled if note}
    low = tokens_of([replace(image, detail="low") for image in images[: len(sizes)]], None)
    if sum(tokens) > context_size // 2:
        assert tokens[: len(sizes)] == low
        return
    (bound,) = bounds
    assert bound is not None
    assert bound >= LOW_DETAIL_TOKENS
    # It is the largest: one more is too much.
    more = [image.num_tokens(image.limited(bound + 1)) for image in images[: len(sizes)]]
    assert sum(more) + sum(high[len(sizes) :]) > context_size // 2
    for image, before, now, note in zip(images, high, tokens, notes, strict=True):
        assert bool(note) == (now < before)
        assert now == before or image.detail == "auto"


def test_auto_says_what_it_did() -> None:
    ((processor, (note,)),) = settle_details([wanted(A4, "auto")], 8192)
    assert "tokens, as all images take 6138, more than half of the context of 8192" in note
    assert f"at most {processor.max_tokens} tokens" in note
    assert 4000 < wanted(A4, "auto").num_tokens(processor) <= 4096
    assert settle_details([wanted(A4, "auto")], None) == [(PUBLISHED, ())]


def test_an_unknown_detail_is_refused() -> None:
    with pytest.raises(UsageError, match=r"detail=.medium. is unknown\n.*\ntry: one of low, high, auto"):
        check_detail("medium")
