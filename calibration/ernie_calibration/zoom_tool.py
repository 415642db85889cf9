"""The zoom tool as the original was shown it, and its calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ernie_local.text.reasoning import ToolCall

ZOOM_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "image_zoom_in_tool",
        "description": "Zoom in on a specific region of an image by cropping it based on a bounding box "
        "(bbox) and an optional object label.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "The bounding box of the region to zoom in, as [x1, y1, x2, y2], where "
                    "(x1, y1) is the top-left corner and (x2, y2) is the bottom-right corner, and the values "
                    "of x1, y1, x2, y2 are all normalized to the range 0\u20131000 based on the original "
                    "image dimensions.",
                },
                "label": {
                    "type": "string",
                    "description": "The name or label of the object in the specified bounding box "
                    "(optional).",
                },
            },
            "required": ["bbox_2d"],
        },
    },
}


def zoom_call(box: tuple[int, int, int, int], label: str) -> ToolCall:
    """A call that asks for `box`, in thousandths of the image."""
    return ToolCall(ZOOM_TOOL["function"]["name"], {"bbox_2d": list(box), "label": label})
