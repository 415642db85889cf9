"""Reads how large the frames of a video are made, from a model's files or as published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ernie_local.errors import ModelUnusable
from ernie_local.media.processor_config import PROCESSOR_FILES, ImageProcessorConfig
from ernie_local.strict_json import read_json_object, show

# Of a frame, in the code published with the model, whose files say nothing of videos.
_MIN_PIXELS, _MAX_PIXELS = 28 * 28 * 299, 28 * 28 * 1196
_PUBLISHED_FACTOR = 28
_VIDEO_FILE = "video_preprocessor_config.json"
# Keys that would make other frames, with what is implemented.
_ONLY: Mapping[str, tuple[object, ...]] = {
    "draw_on_frames": (True,),
    "video_frames_sample": ("leading",),
    "video_target_frames": (-1,),
    "temporal_patch_size": (2,),
}


def published_video_processor(image: ImageProcessorConfig) -> ImageProcessorConfig:
    """How a frame is resized and cut where no file says it."""
    return _with_limits(image, {})


def read_video_processor(directory: Path, image: ImageProcessorConfig) -> ImageProcessorConfig:
    """How a frame is resized and cut, by the files of a model directory; image: how its images are.

    The limits are those of processor_config.json (key "video_processor", or in the spelling of the hub), of
    video_preprocessor_config.json, or of preprocessor_config.json; else the published ones, which suit tokens
    of 28 x 28 pixels. ModelUnusable for values that are not implemented.
    """
    limits: dict[str, int] = {}
    for path in (directory / PROCESSOR_FILES[0], directory / _VIDEO_FILE, directory / PROCESSOR_FILES[1]):
        if not os.path.lexists(path):
            continue
        raw = read_json_object(path)
        if isinstance(section := raw.get("video_processor"), dict):
            raw = section
        if path.name != PROCESSOR_FILES[1]:
            _check_steps(raw, path)
        for key, native in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            value = raw.get(f"video_{key}")
            if value is None and (path.name == _VIDEO_FILE or raw is section):
                size = raw.get("size")
                value = size.get(native) if isinstance(size, dict) else None
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _unusable(path, f"video_{key}", value, "a whole number from 1 on is expected")
            limits.setdefault(key, value)
    if limits.get("min_pixels", _MIN_PIXELS) > limits.get("max_pixels", _MAX_PIXELS):
        raise _unusable(directory, "video_min_pixels", limits.get("min_pixels"), "video_max_pixels is less")
    return _with_limits(image, limits)


def _with_limits(image: ImageProcessorConfig, limits: Mapping[str, int]) -> ImageProcessorConfig:
    fault = image.fault
    if limits.keys() >= {"min_pixels", "max_pixels"}:
        fault = None
    elif image.factor != _PUBLISHED_FACTOR:
        fault = (
            f"the published limits of video frames are for tokens of {_PUBLISHED_FACTOR} x "
            f"{_PUBLISHED_FACTOR} pixels, this model has {image.factor}"
        )
    least, most = limits.get("min_pixels", _MIN_PIXELS), limits.get("max_pixels", _MAX_PIXELS)
    return replace(
        image, min_pixels=least, max_pixels=most, max_tokens=None, has_limits=True, fault=fault, note=None
    )


def _check_steps(raw: Mapping[str, object], path: Path) -> None:
    for key, implemented in _ONLY.items():
        value = raw.get(key)
        if value is not None and value not in implemented:
            raise _unusable(path, key, value, f"only {show(implemented[0])} is implemented for videos")


def _unusable(path: Path, key: str, value: object, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path}: {key} = {show(value)} is not supported",
        why,
        "use the file that was published with the model, or remove the key",
    )
