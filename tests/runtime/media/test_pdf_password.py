"""Encrypted PDFs open with their password, which nobody gets to see."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ernie_local.errors import InputUnreadable
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session.image import open_chat_images, open_same_image
from tests.pdf_files import encrypted_red_page

SECRET = "swordfish"
RED = (255, 0, 0)


@pytest.mark.parametrize(
    ("password", "given"), [(SECRET, SECRET), (SECRET, "owner"), ("pässwörd", "pässwörd")]
)
def test_the_user_s_and_the_owner_s_password_open_a_pdf(password: str, given: str) -> None:
    (opened,) = open_images(encrypted_red_page(password), password=given)
    assert opened.image.getpixel((5, 5)) == RED
    assert given not in repr(opened)


@pytest.mark.parametrize("given", [None, "", "wrong", SECRET.upper(), "\udcff", SECRET + "x" * 300])
def test_without_the_right_password_it_is_named_and_not_shown(given: str | None) -> None:
    with pytest.raises(InputUnreadable, match="encrypted") as caught:
        open_images(encrypted_red_page(SECRET), password=given)
    what, _why, hint = str(caught.value).splitlines()
    assert ("does not open it" in what) == bool(given)
    assert hint.startswith('try: password="PASSWORD"')
    assert not given or given not in str(caught.value)


def test_a_pdf_that_needs_none_opens_with_the_password_of_another() -> None:
    """One password is given for a folder of files; an owner's password alone keeps nobody from reading."""
    (opened,) = open_images(encrypted_red_page(""), password=SECRET)
    assert opened.image.getpixel((5, 5)) == RED


def test_no_argument_of_a_process_is_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    original = subprocess.Popen.__init__

    def remember(self: Any, *arguments: Any, **settings: Any) -> None:
        started.append((arguments, settings))
        original(self, *arguments, **settings)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    open_images(encrypted_red_page(SECRET), password=SECRET)
    assert len(started) == 1
    assert SECRET not in repr(started)


def test_an_image_of_a_chat_is_read_again_with_its_password(tmp_path: Path) -> None:
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted_red_page(SECRET))
    processor = ImageProcessorConfig()
    (image,) = open_chat_images(open_images(path, password=SECRET), processor)
    first = image.patches()
    image.release()  # and with the patches goes what is left of the pixels
    assert (image.patches().pixel_values == first.pixel_values).all()
    assert SECRET not in repr(image)
    again = open_same_image(str(path), image.report.original_size, processor, SECRET)
    assert again == image
    assert SECRET not in json.dumps([image.path, again.path])
    with pytest.raises(InputUnreadable, match="encrypted"):
        open_same_image(str(path), image.report.original_size, processor)
