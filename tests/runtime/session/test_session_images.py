"""Images of a chat that are bounded and trimmed: what the model gets, what is kept, and what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from ernie_local import ImagePart
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import Chat, ChatMessage, open_chat_images
from tests.runtime.conftest import Talk

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks

PUBLISHED = ImageProcessorConfig()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A block of 100 x 60 pixels, away from the middle of white paper."""
    image = Image.new("RGB", (400, 300), "white")
    image.paste((20, 40, 60), (200, 100, 300, 160))
    path = tmp_path / "scan.png"
    image.save(path)
    return path


def test_a_part_says_how_closely_the_model_looks(scan: Path) -> None:
    large = Image.effect_noise((1400, 1000), 60)
    parts = [ImagePart(large), ImagePart(large, detail="low"), ImagePart(large, image_tokens=100)]
    high, low, bounded = open_chat_images(parts, PUBLISHED)
    assert (high.num_tokens, low.num_tokens, bounded.num_tokens) == (1800, 234, 88)
    assert [image.report.max_tokens for image in (high, low, bounded)] == [None, 256, 100]
    assert [image.patches().num_tokens for image in (high, low, bounded)] == [1800, 234, 88]
    assert low.grid == (1, 26, 36)
    (trimmed,) = open_chat_images([ImagePart(str(scan), trim=True)], PUBLISHED)
    assert trimmed.report.crop == trimmed.view.crop
    assert trimmed.report.read_size == trimmed.view.cropped_size
    assert trimmed.report.original_size == (400, 300)
    assert trimmed.path == str(scan)


def test_auto_looks_at_all_images_of_a_message(talk: Talks) -> None:
    large = Image.effect_noise((1400, 1000), 60)
    message = ChatMessage("user", [ImagePart(large, "auto"), " and ", ImagePart(large, "auto"), "?"])
    opened = message.opened(PUBLISHED, 4000)
    assert [type(part) is str for part in opened.parts] == [False, True, False, True]
    assert sum(image.num_tokens for image in opened.images) <= 2000
    for image in opened.images:
        assert any("more than half of the context of 4000" in note for note in image.report.notes)
    alone = message.opened(PUBLISHED, 8000)
    assert [image.num_tokens for image in alone.images] == [1800, 1800]
    # A chat knows its context.
    one = talk(context_size=300)
    one.chat.model.files.image_processor = PUBLISHED
    object.__setattr__(one.chat.model, "image_processor", PUBLISHED)
    answer = one.ask("what?", "a", images=[ImagePart(large, "auto")], thinking=False)
    assert answer.images[0].tokens == 234


def test_images_at_another_size_are_other_images(scan: Path) -> None:
    high, low = open_chat_images([ImagePart(scan), ImagePart(scan, image_tokens=20)], PUBLISHED)
    (again,) = open_chat_images([ImagePart(scan, image_tokens=20)], PUBLISHED)
    assert high != low
    assert low == again
    (whole,) = open_chat_images([scan], PUBLISHED)
    assert high == whole


def test_the_cache_is_not_that_of_another_bound(talk: Talks, scan: Path) -> None:
    one = talk()
    one.ask("q", "a", images=[ImagePart(scan, image_tokens=8)], thinking=False)
    two = [ChatMessage("user", [ImagePart(scan, image_tokens=4), "q"])]
    one.engine.say("b")
    list(one.chat.send(two, thinking=False))
    answer = one.chat.last
    assert answer is not None
    assert answer.images[0].tokens < 8
    # Text before the image at most.
    assert answer.usage.cached_tokens < 20
    assert len(one.engine.prefills[-1][1]) == 1


def test_places_in_an_answer_lead_back_to_the_file(talk: Talks, scan: Path) -> None:
    one = talk()
    one.ask("where?", "there", images=[ImagePart(scan, trim=True)])
    (shown,) = one.chat.history[0].images
    left, top, right, bottom = shown.view.crop
    block = shown.view.box_from_original((200, 100, 300, 160))
    assert min(block) > 0
    assert max(block) < 1000
    assert shown.view.box_to_original(block) == pytest.approx((200, 100, 300, 160))
    assert shown.view.to_original((0, 0)) == pytest.approx((left, top))
    assert shown.view.box_to_original((0, 0, *shown.report.resized_size), "pixels") == pytest.approx(
        (left, top, right, bottom)
    )


def test_a_saved_chat_goes_on_with_the_same_part_and_bound(talk: Talks, scan: Path, tmp_path: Path) -> None:
    one = talk()
    answer = one.ask("q", "a", images=[ImagePart(scan, trim=True, image_tokens=5), scan])
    one.chat.save(tmp_path / "chat.json")
    two = Talk(Chat.load(tmp_path / "chat.json", one.chat.model))
    (before, plain), (after, plain_after) = one.chat.history[0].images, two.chat.history[0].images
    assert after.report == before.report == answer.images[0]
    assert (after, after.view, plain_after) == (before, before.view, plain)
    assert after.report.max_tokens == 5
    # The pixels were dropped with the first patches; the file gives the same part again.
    fresh = before.patches()
    assert fresh.pixel_values.equal(after.patches().pixel_values)
    before.release()
    assert before.patches().pixel_values.equal(fresh.pixel_values)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        chat = json.loads(path.read_text())
        change(chat["turns"][0]["question"][0]["content"][0])
        path.write_text(json.dumps(chat))

    return edit


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda entry: entry.update(crop=[0, 0, 10**9, 10**9]), "does not lie in an image of 400 x 300"),
        (lambda entry: entry.update(crop=[0, 0, 10]), "not enough values"),
        (lambda entry: entry.update(crop="all"), "where a list belongs"),
        (lambda entry: entry.update(max_tokens=0), "image_tokens is 0"),
        (lambda entry: entry.update(max_tokens="5"), "where a int belongs"),
    ],
)
def test_a_saved_chat_with_a_wrong_part_or_bound_is_refused(
    talk: Talks, scan: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    one = talk()
    one.ask("q", "a", images=[ImagePart(scan, trim=True, image_tokens=5)])
    path = tmp_path / "chat.json"
    one.chat.save(path)
    edited(change)(path)
    with pytest.raises(InputUnreadable, match=why):
        Chat.load(path, one.chat.model)


def test_an_opened_image_and_bytes_may_be_parts(scan: Path) -> None:
    (opened,) = open_images(scan)
    sources = [ImagePart(opened, trim=True), ImagePart(scan.read_bytes(), trim=True)]
    first, second = open_chat_images(sources, PUBLISHED)
    assert first == second
    assert (first.path, second.path) == (str(scan), None)


def test_a_wrong_detail_and_a_wrong_bound_are_refused(scan: Path) -> None:
    with pytest.raises(UsageError, match=r"detail=.medium. is unknown"):
        ImagePart(scan, "medium")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="image_tokens is 0, 4 to 16384"):
        open_chat_images([ImagePart(scan, image_tokens=0)], PUBLISHED)
