"""The settings of the image processor, read from a model directory.

Owns which files are looked into, the two spellings of their keys (hub and native), and what is refused
because `processor` would make other patches than the settings ask for. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ernie_local.config import VisionConfig
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import read_json_object, show

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What the published processor has when a file leaves a key out.
_DEFAULT_MIN_PIXELS = 56 * 56
_DEFAULT_MAX_PIXELS = 28 * 28 * 6177
_BICUBIC = 3  # Pillow's number for it
_NUM_CHANNELS = 3
# Every image is enlarged to min_pixels, so a file may not ask for more than the largest published
# max_pixels.
_LARGEST_MIN_PIXELS = 28 * 28 * 16384
# float32 divides by the deviation, and shows no difference between values far from the bytes it came from.
_SMALLEST_DEVIATION, _FAR = 1e-6, 1e6

# Steps that are always done here (a file that turns one off means another processor), and never done here.
_STEPS_DONE = ("do_resize", "do_rescale", "do_normalize")
_STEPS_NOT_DONE = ("do_center_crop", "do_pad")
_SIZE_KEYS = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size")
_VALUE_KEYS = ("rescale_factor", "image_mean", "image_std", "resample")
_READ_KEYS = frozenset((*_SIZE_KEYS, *_VALUE_KEYS, *_STEPS_DONE, *_STEPS_NOT_DONE))
# No effect on patches: of the video side, of steps refused above, or done before an image comes here.
_VIDEO_KEYS = ("video_min_pixels", "video_max_pixels", "temporal_conv_size", "spatial_conv_size")
_IDLE_KEYS = (
    "do_convert_rgb",
    "crop_size",
    "pad_size",
    "default_to_square",
    "size_divisor",
    "image_seq_length",
)
_IGNORED_KEYS = frozenset((*_VIDEO_KEYS, *_IDLE_KEYS))
# An unknown key with one of these in its name would change the patches, so it is refused; others are labels.
_TELLING_WORDS = ("do_", "pixel", "size", "patch", "merge", "resample", "mean", "std", "scale", "crop", "pad")


@dataclass(frozen=True, slots=True)
class ImageProcessorConfig:
    """How an image is made into patches.

    min_pixels, max_pixels: limits on height * width after the resize. patch_size: pixels along each side of
    a patch. merge_size: patches along each side of a token. mean, std: of red, green and blue, after a byte
    is multiplied by rescale_factor.
    """

    min_pixels: int = _DEFAULT_MIN_PIXELS
    max_pixels: int = _DEFAULT_MAX_PIXELS
    patch_size: int = 14
    merge_size: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale_factor: float = 1 / 255

    @property
    def factor(self) -> int:
        """The side, in pixels, of the square that one token stands for."""
        return self.patch_size * self.merge_size


def read_processor_config(directory: Path, vision: VisionConfig) -> ImageProcessorConfig:
    """Read the image processor's settings of a model directory.

    Looks into processor_config.json (key "image_processor"), then preprocessor_config.json, as transformers
    does. Neither there: the published defaults with the model's own patch and merge size. Unreadable files,
    values that this code does not implement and sizes that differ from the model's raise ModelUnusable.
    """
    _refuse_other_channels(directory, vision)
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = directory / name
        if not path.is_file():
            continue
        raw = read_json_object(path)
        section = raw if key is None else raw.get(key)
        if isinstance(section, dict):
            return parse_processor_config(section, str(path), vision)
    return ImageProcessorConfig(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)


def parse_processor_config(
    raw: Mapping[str, object], where: str, vision: VisionConfig
) -> ImageProcessorConfig:
    """Check the settings `raw`, read from the file `where`, against this code and against the model."""
    _refuse_other_processors(raw, where)
    min_pixels, max_pixels = _pixel_limits(raw, where)
    config = ImageProcessorConfig(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        patch_size=_positive_int(raw, "patch_size", vision.patch_size, where),
        merge_size=_positive_int(raw, "merge_size", vision.spatial_merge_size, where),
        mean=_three_numbers(raw, "image_mean", CLIP_MEAN, where),
        std=_three_numbers(raw, "image_std", CLIP_STD, where),
        rescale_factor=_number(raw, "rescale_factor", 1 / 255, where),
    )
    if config.rescale_factor <= 0:
        raise _unusable(where, "rescale_factor", config.rescale_factor, "bytes are multiplied by it")
    if min(config.std) < _SMALLEST_DEVIATION:
        raise _unusable(where, "image_std", raw["image_std"], f"pixels are divided by it: {min(config.std)}")
    for key, ours, models in (
        ("patch_size", config.patch_size, vision.patch_size),
        ("merge_size", config.merge_size, vision.spatial_merge_size),
    ):
        if ours != models:
            raise _unusable(where, key, ours, f"the model's config.json says {models}")
    return config


def _refuse_other_channels(directory: Path, vision: VisionConfig) -> None:
    if vision.in_channels != _NUM_CHANNELS:
        raise ModelUnusable(
            f"{directory}: in_channels = {vision.in_channels}, but images have {_NUM_CHANNELS}",
            "images are made into patches of red, green and blue",
            "such a model runs on patches made elsewhere, through `logits`",
        )


def _refuse_other_processors(raw: Mapping[str, object], where: str) -> None:
    for key in _STEPS_DONE:
        if raw.get(key) not in (None, True):
            raise _unusable(where, key, raw[key], "this step is always done here")
    for key in _STEPS_NOT_DONE:
        if raw.get(key) not in (None, False):
            raise _unusable(where, key, raw[key], "this step is not implemented")
    if raw.get("resample") not in (None, _BICUBIC, "bicubic"):
        raise _unusable(where, "resample", raw["resample"], "only 3 (bicubic) is implemented")
    # The hub's processor handles videos too and gives their 2 here; images never widen by it.
    size, steps = raw.get("size"), raw.get("temporal_patch_size")
    is_native = isinstance(size, dict) and "shortest_edge" in size
    if steps not in (None, 1) and (steps != 2 or is_native):
        raise _unusable(where, "temporal_patch_size", steps, "an image has 1 time step")
    for key in sorted(set(raw) - _READ_KEYS - _IGNORED_KEYS):
        if any(word in key for word in _TELLING_WORDS):
            raise _unusable(where, key, raw[key], "this key is unknown here and may change the patches")


def _pixel_limits(raw: Mapping[str, object], where: str) -> tuple[int, int]:
    """(min_pixels, max_pixels), from the native `size` or the hub's keys; if both are there, they agree."""
    size = raw.get("size")
    if size is not None and not isinstance(size, dict):
        raise _unusable(where, "size", size, "an object with shortest_edge and longest_edge is expected")
    limits: list[int] = []
    for hub_key, native_key, default in (
        ("min_pixels", "shortest_edge", _DEFAULT_MIN_PIXELS),
        ("max_pixels", "longest_edge", _DEFAULT_MAX_PIXELS),
    ):
        native = (size or {}).get(native_key)
        hub = raw.get(hub_key)
        if size and native is None and hub is None:
            raise _unusable(where, "size", size, f"neither size.{native_key} nor {hub_key} is there")
        if native is not None and hub is not None and native != hub:
            raise _unusable(where, hub_key, hub, f"size.{native_key} says {show(native)}")
        value = native if native is not None else hub
        limits.append(_positive_int({hub_key: value}, hub_key, default, where))
    ceiling = min(limits[1], _LARGEST_MIN_PIXELS)
    if limits[0] > ceiling:
        raise _unusable(
            where, "min_pixels", limits[0], f"it may be at most {ceiling} beside max_pixels {limits[1]}"
        )
    return limits[0], limits[1]


def _positive_int(raw: Mapping[str, object], key: str, default: int, where: str) -> int:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unusable(where, key, value, "a whole number from 1 on is expected")
    return value


def _number(raw: Mapping[str, object], key: str, default: float, where: str) -> float:
    value = raw.get(key)
    return default if value is None else _finite(value, key, where)


def _finite(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_FAR < value < _FAR:
        raise _unusable(where, key, value, f"a number is expected, of at most {_FAR:.0f} either way")
    return float(value)


def _three_numbers(
    raw: Mapping[str, object], key: str, default: tuple[float, float, float], where: str
) -> tuple[float, float, float]:
    value = raw.get(key)
    if value is None:
        return default
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        raise _unusable(where, key, value, "three numbers are expected, for red, green and blue")
    red, green, blue = (_finite(item, key, where) for item in values)
    return red, green, blue


def _unusable(where: str, key: str, value: object, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{where}: {key} = {show(value)} is not supported",
        why,
        "use the file that was published with the model, or remove the key",
    )
