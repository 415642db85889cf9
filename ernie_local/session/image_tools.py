"""Makes the published tools that look at images: zoom into a part, and a search by anybody's function.

Both schemas are those that the Thinking model was shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ernie_local.session.image import ChatImage
from ernie_local.session.tools import Arguments, ChatTool, ToolContext, ToolError
from ernie_local.strict_json import show
from ernie_local.text.boxes import Thousandths, is_reversed, read_box

ZOOM_NAME, SEARCH_NAME = "image_zoom_in_tool", "image_search"
_BOX_KEY, _INDEX_KEY = "bbox_2d", "img_idx"
_ZOOM_DESCRIPTION = (
    "Zoom in on a specific region of an image by cropping it based on a bounding box (bbox) and an optional "
    "object label."
)
_ZOOM_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        _BOX_KEY: {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": "The bounding box of the region to zoom in, as [x1, y1, x2, y2], where (x1, y1) "
            "is the top-left corner and (x2, y2) is the bottom-right corner, and the values of x1, y1, x2, "
            "y2 are all normalized to the range 0\u20131000 based on the original image dimensions.",
        },
        "label": {
            "type": "string",
            "description": "The name or label of the object in the specified bounding box (optional).",
        },
    },
    "required": [_BOX_KEY],
}
SEARCH_DESCRIPTION = "search for similar images"
SEARCH_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {_INDEX_KEY: {"type": "number", "description": "The index of the image (starting from 0)"}},
    "required": [_INDEX_KEY],
}


def zoom_tool() -> ChatTool:
    """`image_zoom_in_tool`: gives a part of an image of the chat, cut from the pixels of its original.

    Its schema names no image. It means the only one of the chat, or else of the question; a call may say
    which by `img_idx`, which counts all images of the chat from 0.
    """
    return ChatTool(ZOOM_NAME, _ZOOM_DESCRIPTION, _ZOOM_PARAMETERS, _zoom)


def image_search_tool(search: Callable[[ChatImage], object]) -> ChatTool:
    """`image_search`: what `search` makes of an image of the chat, in any form that tools may give.

    `ChatImage.in_full` has its pixels.
    """

    def run(arguments: Arguments, context: ToolContext) -> object:
        if _INDEX_KEY not in arguments:
            raise ToolError(f"{_INDEX_KEY} is missing: the number of the image, counted from 0")
        return search(_image_at(arguments[_INDEX_KEY], context))

    return ChatTool(SEARCH_NAME, SEARCH_DESCRIPTION, SEARCH_PARAMETERS, run)


def _zoom(arguments: Arguments, context: ToolContext) -> ChatImage:
    place = _place(arguments.get(_BOX_KEY))
    label = arguments.get("label")
    if label is not None and not isinstance(label, str):
        raise ToolError(f"label is {show(label)}, where a text belongs")
    if _INDEX_KEY in arguments:
        return _image_at(arguments[_INDEX_KEY], context).zoomed(place)
    if not context.images:
        raise ToolError("the chat has 0 images, and only they can be zoomed into")
    whole = [image for image in context.images if image.origin is None]
    if len(whole) != 1:
        whole = [image for image in context.asked if image.origin is None]
    if len(whole) != 1:
        raise ToolError(
            f"the chat has {len(context.images)} images: say which by {_INDEX_KEY}, counted from 0"
        )
    return whole[0].zoomed(place)


def _place(value: object) -> Thousandths:
    """The box; ToolError where it is none, or has reversed corners, which are a mistake of the model."""
    if value is None or value == []:
        raise ToolError(f"{_BOX_KEY} is missing: four numbers from 0 to 1000, [left, top, right, bottom]")
    place, problem = read_box(value)
    if place is None:
        raise ToolError(f"{_BOX_KEY}: {problem}")
    if is_reversed(value):
        raise ToolError(f"{_BOX_KEY}: {value} is reversed: it is [left, top, right, bottom]")
    return place


def _image_at(index: object, context: ToolContext) -> ChatImage:
    """The image of this number from 0; ToolError where there is none."""
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    count = len(context.images)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise ToolError(f"{_INDEX_KEY} is {show(index)}: the chat has {count} images, counted from 0")
    return context.images[index]
