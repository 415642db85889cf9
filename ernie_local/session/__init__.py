"""Chats on text and images: the only place that joins the text, media and engine packages.

`open` checks a question and loads a model, `chat` asks and answers, `transcript` saves and reads chats.
"""

from __future__ import annotations

from ernie_local.media.image_size import ImageReport
from ernie_local.media.image_view import ImageView
from ernie_local.session.answer import Answer, Timings, Usage
from ernie_local.session.boxes import AnswerBox, drawing_paths, write_drawings
from ernie_local.session.chat import Chat
from ernie_local.session.image import ChatImage, ImagePart, open_chat_images
from ernie_local.session.image_tools import image_search_tool
from ernie_local.session.messages import ChatMedia, ChatMessage, ChatTurn, FinishReason, MessagePart
from ernie_local.session.open import check_first_question, open_model, opening_notes
from ernie_local.session.times import AnswerTime, sheet_path, write_sheet
from ernie_local.session.tool_programs import ToolProgram
from ernie_local.session.tools import ChatTool, ToolContext, ToolError, ToolStep
from ernie_local.session.transcript import SavedChat, read_saved_chat
from ernie_local.session.video import ChatVideo, VideoPart, open_chat_video
from ernie_local.text.reasoning import Piece, ToolCall

__all__ = [
    "Answer",
    "AnswerBox",
    "AnswerTime",
    "Chat",
    "ChatImage",
    "ChatMedia",
    "ChatMessage",
    "ChatTool",
    "ChatTurn",
    "ChatVideo",
    "FinishReason",
    "ImagePart",
    "ImageReport",
    "ImageView",
    "MessagePart",
    "Piece",
    "SavedChat",
    "Timings",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolProgram",
    "ToolStep",
    "Usage",
    "VideoPart",
    "check_first_question",
    "drawing_paths",
    "image_search_tool",
    "open_chat_images",
    "open_chat_video",
    "open_model",
    "opening_notes",
    "read_saved_chat",
    "sheet_path",
    "write_drawings",
    "write_sheet",
]
