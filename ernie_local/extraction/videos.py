"""Shows a video on one sheet: the moments that its record names, or frames from start to end."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ernie_local.extraction.boxes import drawing_of, make_place
from ernie_local.extraction.record import Record
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import ChatVideo, VideoPart, open_chat_video, write_sheet
from ernie_local.session.times import locate_times

_SHEET_FRAMES, _SHEET_PIXELS = 8, 480 * 480


def draw_moments(record: Record, video: ChatVideo, folder: Path) -> Path | None:
    """Draw the frames at the times that the fields of a record name; the file, None where they name none.

    The rest is as of `draw_record`.
    """
    times = locate_times(json.dumps(record.fields, ensure_ascii=False), [video], 1)
    path = drawing_of(folder, record)
    if not times:
        return None
    make_place(path)
    return write_sheet(path, times, [video])[0]


def sheet_of_video(path: Path) -> Image.Image:
    """Frames of a video, evenly spread, with their times; errors of `open_video`."""
    processor = ImageProcessorConfig(max_pixels=_SHEET_PIXELS)
    video = open_chat_video(VideoPart(path, frames=_SHEET_FRAMES), processor)
    return video.sheet(_SHEET_FRAMES)
