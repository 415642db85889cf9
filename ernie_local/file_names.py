"""Says what a file is by its name alone."""

from __future__ import annotations

import mimetypes

# Known answers, and the image that those of the published weights ask about (`ernie_local.verify.golden`).
GOLDEN_FILE, GOLDEN_IMAGE = "golden.json", "benchmark.jpg"
# Weights, settings, tokenizers, templates and licences. No code: what is downloaded is never run.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", GOLDEN_IMAGE)
# Python's table lacks them.
_MORE_IMAGES = (".jp2", ".jfif", ".avif", ".heic", ".webp")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, or a PDF, whose pages are images."""
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") or kind == "application/pdf" or name.lower().endswith(_MORE_IMAGES)
