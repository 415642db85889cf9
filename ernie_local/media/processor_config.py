"""Reads the settings of the image processor, in the spelling of the hub or of transformers.

Settings for which `processor` would make wrong patches are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ernie_local.config import ModelConfig, VisionConfig, image_refusal
from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.strict_json import read_json_object, show

# In the order in which they are looked for.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Defaults of the published processor.
_DEFAULT_MIN_PIXELS = 56 * 56
_DEFAULT_MAX_PIXELS = 28 * 28 * 6177
# Every preprocessor_config.json of Baidu has this max_pixels, and the code published with it uses the default
# above instead. A photo of 12 megapixels is a row of tokens larger by that. Any other value counts.
_UNUSED_MAX_PIXELS = 28 * 28 * 6144
_BICUBIC = 3  # Pillow's number for it
_NUM_CHANNELS = 3
# The largest published max_pixels: every image is enlarged to min_pixels, so this limits memory.
LARGEST_PIXELS = 28 * 28 * 16384
# Beyond these, quotients overflow or lose all differences between bytes in float32.
_SMALLEST_DEVIATION, _FAR = 1e-6, 1e6

# Steps that are always done here, and steps that are never done here.
_STEPS_DONE = ("do_resize", "do_rescale", "do_normalize")
_STEPS_NOT_DONE = ("do_center_crop", "do_pad")
_SIZE_KEYS = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size")
# In a processor_config.json as the published code saves it; the other image settings are in the older file.
_LIMITS_BESIDE = ("image_min_pixels", "image_max_pixels")
_VALUE_KEYS = ("rescale_factor", "image_mean", "image_std", "resample")
_READ_KEYS = frozenset((*_SIZE_KEYS, *_LIMITS_BESIDE, *_VALUE_KEYS, *_STEPS_DONE, *_STEPS_NOT_DONE))
# Without effect on patches: for videos, for steps that are refused, or done when an image is opened.
_VIDEO_KEYS = ("video_min_pixels", "video_max_pixels", "temporal_conv_size", "spatial_conv_size")
_IDLE_KEYS = (
    "do_convert_rgb", "crop_size", "pad_size", "default_to_square", "size_divisor", "image_seq_length",
)  # fmt: skip
_IGNORED_KEYS = frozenset((*_VIDEO_KEYS, *_IDLE_KEYS))
# An unknown key is refused if one of these in its name suggests that it changes the patches.
_TELLING_WORDS = ("do_", "pixel", "size", "patch", "merge", "resample", "mean", "std", "scale", "crop", "pad")


@dataclass(frozen=True, slots=True)
class ImageProcessorConfig:
    """How an image is cut into patches.

    min_pixels, max_pixels: limits on height * width after the resize. patch_size: pixels along each side of
    a patch. merge_size: patches along each side of a token. mean, std: of red, green and blue, after a byte
    is multiplied by rescale_factor. max_tokens: of an image, where a user bounds them (`with_image_tokens`);
    max_pixels is as small then. has_limits: whether a file gives the limits, not the published defaults.
    fault: why these limits are wrong for the model; None where they may be right. reads_images: False for a
    model that reads only text. note: what a file says and
    is not done.
    """

    min_pixels: int = _DEFAULT_MIN_PIXELS
    max_pixels: int = _DEFAULT_MAX_PIXELS
    patch_size: int = 14
    merge_size: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale_factor: float = 1 / 255
    max_tokens: int | None = None
    has_limits: bool = field(default=True, compare=False)
    fault: str | None = field(default=None, compare=False)
    reads_images: bool = True
    note: str | None = field(default=None, compare=False)

    @property
    def factor(self) -> int:
        """Pixels along each side of the square that one token stands for."""
        return self.patch_size * self.merge_size

    def check(self) -> None:
        """Raise ModelUnusable where images would be read at another size than the model was trained on.

        UsageError for a model that reads only text.
        """
        if not self.reads_images:
            raise image_refusal()
        if self.fault is not None:
            raise ModelUnusable(
                f"the model has no {PROCESSOR_FILES[1]} with max_pixels, so it cannot read images",
                self.fault,
                f"copy {PROCESSOR_FILES[1]} from the model's original repository",
            )


def read_processor_config(directory: Path, vision: VisionConfig | None) -> ImageProcessorConfig:
    """Read the image processor's settings of a model directory; vision: None for one that reads only text.

    From processor_config.json (key "image_processor"), else from preprocessor_config.json, as in
    transformers; else the published defaults with the model's patch and merge size. The hub's spelling of
    processor_config.json has limits that count beside those of the other file. ModelUnusable for unreadable
    files, values that are not implemented, and sizes that differ from the model's.
    """
    if vision is None:
        return ImageProcessorConfig(reads_images=False)
    if vision.in_channels != _NUM_CHANNELS:
        raise ModelUnusable(
            f"{directory}: in_channels = {vision.in_channels}, but images have {_NUM_CHANNELS}",
            "images are made into patches of red, green and blue",
            "such a model runs on patches made elsewhere, through `logits`",
        )
    newer, older = (directory / name for name in PROCESSOR_FILES)
    limits: dict[str, object] = {}
    if os.path.lexists(newer):  # a link that leads nowhere is a damaged model
        raw = read_json_object(newer)
        section = raw.get("image_processor")
        if isinstance(section, dict):
            return _parse(_Settings(section, str(newer)), vision)
        if section is not None:
            raise _Settings(raw, str(newer)).unusable("image_processor", section, "an object is expected")
        limits = {key: raw[key] for key in _LIMITS_BESIDE if key in raw}
    if os.path.lexists(older):
        return _parse(_Settings({**read_json_object(older), **limits}, str(older)), vision)
    return _parse(_Settings(limits, str(newer)), vision)


def with_fault(processor: ImageProcessorConfig, config: ModelConfig) -> ImageProcessorConfig:
    """The settings of a model, with a fault where no file gives limits and the published ones are wrong.

    There are none for a model that reads only text.
    """
    is_settled = processor.has_limits or not config.reads_images
    return processor if is_settled else replace(processor, fault=_fault_of_published_limits(config))


def with_max_pixels(processor: ImageProcessorConfig, max_pixels: int | None) -> ImageProcessorConfig:
    """The settings with the limit that a user chose, whatever the files say; None leaves theirs.

    UsageError for less than the smallest image, or more than the model can see, be it no image at all.
    """
    if max_pixels is None:
        return processor
    if not processor.reads_images:
        raise image_refusal()
    least, most = max(processor.min_pixels, processor.factor**2), LARGEST_PIXELS
    if not least <= max_pixels <= most:
        raise UsageError(
            f"{parameter('max_pixels')} is {max_pixels}, {least} to {most} are possible",
            f"smaller images are enlarged to {processor.min_pixels} pixels, and a token stands for "
            f"{processor.factor} x {processor.factor} of them",
            f"{parameter('max_pixels', str(min(max(max_pixels, least), most)))}",
        )
    return replace(processor, max_pixels=max_pixels, has_limits=True, fault=None, note=None)


def _fault_of_published_limits(config: ModelConfig) -> str | None:
    published, vision = ImageProcessorConfig(), config.vision
    if (vision.patch_size, vision.spatial_merge_size) != (published.patch_size, published.merge_size):
        return (
            f"the published limits are for tokens of {published.factor} x {published.factor} pixels, "
            f"this model has {vision.patch_size * vision.spatial_merge_size}"
        )
    num_tokens, limit = published.max_pixels // published.factor**2, config.text.max_position_embeddings
    if num_tokens > limit:
        return f"by the published limits an image takes up to {num_tokens} tokens, this model reads {limit}"
    return None


def _parse(settings: _Settings, vision: VisionConfig) -> ImageProcessorConfig:
    settings.check_steps()
    min_pixels, max_pixels = settings.pixel_limits()
    config = ImageProcessorConfig(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        patch_size=settings.positive("patch_size", vision.patch_size),
        merge_size=settings.positive("merge_size", vision.spatial_merge_size),
        mean=settings.three_numbers("image_mean", CLIP_MEAN),
        std=settings.three_numbers("image_std", CLIP_STD),
        rescale_factor=settings.number("rescale_factor", 1 / 255),
        has_limits=settings.has_limits,
        note=settings.note(max_pixels),
    )
    if config.rescale_factor <= 0:
        raise settings.unusable("rescale_factor", config.rescale_factor, "bytes are multiplied by it")
    if min(config.std) < _SMALLEST_DEVIATION:
        why = f"pixels are divided by it: {min(config.std)}"
        raise settings.unusable("image_std", settings.raw["image_std"], why)
    for key, ours, models in (
        ("patch_size", config.patch_size, vision.patch_size),
        ("merge_size", config.merge_size, vision.spatial_merge_size),
    ):
        if ours != models:
            raise settings.unusable(key, ours, f"the model's config.json says {models}")
    return config


@dataclass(frozen=True, slots=True)
class _Settings:
    """Checks the values of one file. A key that is absent or null takes the default."""

    raw: Mapping[str, object]
    where: str

    def check_steps(self) -> None:
        """ModelUnusable for a step that is not done here, and for an unknown key that may be one."""
        for key in _STEPS_DONE:
            self._only(key, (True,), "this step is always done here")
        for key in _STEPS_NOT_DONE:
            self._only(key, (False,), "this step is not implemented")
        self._only("resample", (_BICUBIC, "bicubic"), "only 3 (bicubic) is implemented")
        # Files of the hub have 2, for videos; an image has 1 time step all the same.
        size = self.raw.get("size")
        is_native = isinstance(size, dict) and "shortest_edge" in size
        self._only("temporal_patch_size", (1,) if is_native else (1, 2), "an image has 1 time step")
        for key in sorted(set(self.raw) - _READ_KEYS - _IGNORED_KEYS):
            if any(word in key for word in _TELLING_WORDS):
                why = "this key is unknown here and may change the patches"
                raise self.unusable(key, self.raw[key], why)

    def pixel_limits(self) -> tuple[int, int]:
        """(min_pixels, max_pixels), which have several names that must agree."""
        size = self.raw.get("size")
        if size is not None and not isinstance(size, dict):
            why = "an object with shortest_edge and longest_edge is expected"
            raise self.unusable("size", size, why)
        smallest = self._limit("min_pixels", "shortest_edge", _DEFAULT_MIN_PIXELS, unused=None)
        largest = self._limit("max_pixels", "longest_edge", _DEFAULT_MAX_PIXELS, unused=_UNUSED_MAX_PIXELS)
        ceiling = min(largest, LARGEST_PIXELS)
        if smallest > ceiling:
            why = f"it may be at most {ceiling} beside max_pixels {largest}"
            raise self.unusable("min_pixels", smallest, why)
        return smallest, largest

    def _limit(self, key: str, native_key: str, default: int, unused: int | None) -> int:
        """The limit `key`, by any of its names. unused: a value that counts under native names only."""
        size = self.raw.get("size") or {}
        assert isinstance(size, dict)  # pixel_limits saw to it
        hub = {key: self.raw.get(key), f"size.{key}": size.get(key)}
        others = {f"image_{key}": self.raw.get(f"image_{key}"), f"size.{native_key}": size.get(native_key)}
        given = {name: value for name, value in {**hub, **others}.items() if value is not None}
        if size and not given:
            raise self.unusable("size", size, f"neither size.{native_key} nor {key} is there")
        counting = {name: value for name, value in given.items() if name in others or value != unused}
        if not counting:
            return default
        last = list(counting)[-1]
        for name, value in counting.items():
            if value != counting[last]:
                raise self.unusable(name, value, f"{last} says {show(counting[last])}")
        return _Settings({key: counting[last]}, self.where).positive(key, default)

    def note(self, max_pixels: int) -> str | None:
        """What is said of max_pixels and not done. max_pixels: the limit that counts."""
        if self.raw.get("max_pixels") != _UNUSED_MAX_PIXELS or max_pixels == _UNUSED_MAX_PIXELS:
            return None
        return (
            f"images get up to {max_pixels} pixels, as in the code that was published with the model; "
            f"max_pixels {_UNUSED_MAX_PIXELS} in {self.where} is not used there"
        )

    @property
    def has_limits(self) -> bool:
        """Whether the largest number of pixels is said, which decides how small a page is made."""
        return any(self.raw.get(key) for key in ("size", "max_pixels", "image_max_pixels"))

    def positive(self, key: str, default: int) -> int:
        """A whole number from 1 on."""
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.unusable(key, value, "a whole number from 1 on is expected")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of at most _FAR either way."""
        value = self.raw.get(key)
        return default if value is None else self._finite(key, value)

    def three_numbers(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """A list of three numbers, or one for all three."""
        value = self.raw.get(key)
        if value is None:
            return default
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3:
            raise self.unusable(key, value, "three numbers are expected, for red, green and blue")
        red, green, blue = (self._finite(key, item) for item in values)
        return red, green, blue

    def unusable(self, key: str, value: object, why: str) -> ModelUnusable:
        """The error for a value, to be raised by the caller."""
        return ModelUnusable(
            f"{self.where}: {key} = {show(value)} is not supported",
            why,
            "use the file that was published with the model, or remove the key",
        )

    def _only(self, key: str, implemented: tuple[object, ...], why: str) -> None:
        value = self.raw.get(key)
        if value is not None and value not in implemented:
            raise self.unusable(key, value, why)

    def _finite(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_FAR < value < _FAR:
            why = f"a number is expected, of at most {_FAR:.0f} either way"
            raise self.unusable(key, value, why)
        return float(value)
