"""Says what a file is by its name alone, and in which order people expect names."""

from __future__ import annotations

import mimetypes
import re
from typing import TypeGuard

# Known answers, and the image that those of the published weights ask about (`ernie_local.verify.golden`).
GOLDEN_FILE, GOLDEN_IMAGE = "golden.json", "benchmark.jpg"
# Weights, settings, tokenizers, templates and licences. No code: what is downloaded is never run.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", GOLDEN_IMAGE)
# Python's table lacks them.
_MORE_IMAGES = (".jp2", ".jfif", ".avif", ".heic", ".webp")
# No .ts, which is TypeScript, too. Moving GIFs and WebPs are images by name.
_VIDEOS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts",
    ".m2ts",
)  # fmt: skip
_MOST_NAME_BYTES = 255  # of Linux and of most file systems


def is_file_name(name: object) -> TypeGuard[str]:
    """Whether `name` is a file of a directory itself; a path could lead to any other file of the user."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    # The system refuses longer ones with an error, even where it is only asked whether they are there.
    return len(name.encode("utf-8", "surrogatepass")) <= _MOST_NAME_BYTES


def leads_below(path: str) -> bool:
    """Whether a path with "/" stays below the folder that it counts from."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, or a PDF, whose pages are images."""
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") or kind == "application/pdf" or name.lower().endswith(_MORE_IMAGES)


def is_video_name(name: str) -> bool:
    """Whether a file of this name is a video."""
    return name.lower().endswith(_VIDEOS)


def by_number(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, which puts page2 before page10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]
