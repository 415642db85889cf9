"""Wears the image of a page as scanners, copiers and cameras do."""

from __future__ import annotations

import io
from collections.abc import Callable
from random import Random
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

MOST_DEGREES = 2.5
Wear = Callable[[Random, Image.Image], Image.Image]


def worn(random: Random, image: Image.Image) -> Image.Image:
    """An RGB image of the same size with at least one kind of wear; still legible."""
    chosen = [wear for wear, share in WEARS.items() if random.random() < share]
    for wear in chosen or [random.choice(list(WEARS))]:
        image = wear(random, image)
    return image


def tint(random: Random, image: Image.Image) -> Image.Image:
    """Paper that is not white: every colour is multiplied by that of the paper."""
    red = random.uniform(0.9, 1.0)
    paper = numpy.array([red, red * random.uniform(0.93, 1.0), red * random.uniform(0.75, 0.97)])
    return _to_image(numpy.asarray(image) * paper)


def low_contrast(random: Random, image: Image.Image) -> Image.Image:
    """Faded ink, as if the toner ran out."""
    return ImageEnhance.Contrast(image).enhance(random.uniform(0.45, 0.85))


def shadow(random: Random, image: Image.Image) -> Image.Image:
    """Light that falls off from one edge to another, or a fold."""
    across = random.random() < 0.5
    steps = numpy.linspace(0.0, 1.0, image.width if across else image.height)
    depth = random.uniform(0.15, 0.45)
    if random.random() < 0.5:
        middle, reach = random.uniform(0.2, 0.8), random.uniform(0.03, 0.15)
        light = 1.0 - depth * numpy.exp(-(((steps - middle) / reach) ** 2))
    else:
        light = 1.0 - depth * (steps if random.random() < 0.5 else steps[::-1]) ** 1.5
    return _to_image(numpy.asarray(image) * (light[None, :, None] if across else light[:, None, None]))


def rotation(random: Random, image: Image.Image) -> Image.Image:
    """A page laid down a little askew, shrunk as much as it takes to lose no corner; paper fills the rest."""
    degrees = random.uniform(0.3, MOST_DEGREES) * random.choice((1, -1))
    paper = image.getpixel((0, image.height - 1))
    assert isinstance(paper, tuple)
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    return turned.resize(image.size, Image.Resampling.BICUBIC)


def blur(random: Random, image: Image.Image) -> Image.Image:
    """A lens a little out of focus."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9) * max(image.size) / 1400))


def noise(random: Random, image: Image.Image) -> Image.Image:
    """A sensor's grain, and now and then specks of dirt."""
    generator = numpy.random.default_rng(random.getrandbits(64))
    grain = generator.standard_normal((*image.size[::-1], 1), dtype=numpy.float32)
    pixels = numpy.asarray(image) + grain * numpy.float32(random.uniform(2.0, 11.0))
    if random.random() < 0.4:
        specks = generator.random(image.size[::-1]) < random.uniform(0.0002, 0.002)
        pixels[specks] = generator.integers(0, 256, (int(specks.sum()), 1))
    return _to_image(pixels)


def jpeg(random: Random, image: Image.Image) -> Image.Image:
    """What a JPEG file of poor quality leaves."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=random.randint(22, 70))
    return Image.open(stream).convert("RGB")


# In the order of application, each with the share of worn pages that have it.
WEARS: dict[Wear, float] = {
    tint: 0.4,
    low_contrast: 0.35,
    shadow: 0.35,
    rotation: 0.6,
    blur: 0.4,
    noise: 0.6,
    jpeg: 0.6,
}


def _to_image(pixels: NDArray[numpy.floating[Any]]) -> Image.Image:
    return Image.fromarray(numpy.clip(pixels, 0, 255).round().astype(numpy.uint8))
