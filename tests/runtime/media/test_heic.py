"""HEIC, which an optional plugin of Pillow reads: with it, and what is said without it."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.open_image import open_images

HEADER = b"\0\0\0\x18ftypheic" + bytes(40)


@pytest.fixture
def plugin() -> ModuleType:
    """The plugin, made known to Pillow for writing."""
    module: ModuleType = pytest.importorskip("pillow_heif", reason="pip install 'ernie-local[heic]'")
    module.register_heif_opener()
    return module


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_without_the_plugin_its_name_and_a_conversion_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputUnreadable, match="HEIC data, which this installation cannot read") as caught:
        open_images(HEADER)
    assert len(str(caught.value).splitlines()) == 3
    assert "pip install 'ernie-local[heic]'" in caught.value.hint
    assert "heif-convert" in caught.value.hint


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once_as_the_same_png_is(plugin: ModuleType, orientation: int) -> None:
    """The plugin writes the turn twice, as phones do: into the EXIF data, and as a property of the image."""
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:20, :32], pixels[:20, 32:], pixels[20:, :32], pixels[20:, 32:] = 0, 80, 160, 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    data = encode(image, "HEIF", exif=exif.tobytes())
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    (ours,), (upright,) = open_images(data), open_images(encode(image, "PNG", exif=exif))
    assert (ours.image.size, ours.notes) == (upright.image.size, ())
    assert np.abs(np.asarray(ours.image).astype(int) - np.asarray(upright.image)).max() <= 12


def test_the_main_image_of_several_is_read_and_that_is_noted(plugin: ModuleType) -> None:
    images = plugin.from_pillow(Image.new("RGB", (64, 64), "red"))
    images.add_from_pillow(Image.new("RGB", (64, 64), "blue"))
    buffer = io.BytesIO()
    images.save(buffer, primary_index=1)
    (opened,) = open_images(buffer.getvalue())
    red, _green, blue = opened.image.getpixel((30, 30))  # type: ignore[misc]
    assert blue > 240 > 20 > red
    assert opened.notes == ("a file of several images, of which the main one is read",)


def test_transparency_lies_on_white(plugin: ModuleType) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 20))
    (opened,) = open_images(encode(image, "HEIF", quality=-1))
    assert opened.image.getpixel((5, 5)) == (0, 0, 0)
    assert opened.image.getpixel((50, 50)) == (255, 255, 255)


def test_damaged_and_huge_ones_are_refused(plugin: ModuleType) -> None:
    data = encode(Image.effect_noise((64, 64), 80).convert("RGB"), "HEIF")
    for damaged in (HEADER, data[:50], data[: len(data) // 2], data[:-20]):
        with pytest.raises(InputUnreadable, match="this HEIC image cannot be decoded"):
            open_images(damaged)
    size = (64).to_bytes(4, "big") * 2
    assert size in data
    for side, message in ((20_000, "400,000,000 pixels, at most"), (9000, "to decode, at most 512.0 MiB")):
        with pytest.raises(InputUnreadable, match=message):
            open_images(data.replace(size, side.to_bytes(4, "big") * 2))
