"""The turns of a chat and how they are written down as token ids for one model.

Owns the model's template, tokenizer and end tokens, and the check that a prompt fits. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ernie_local.errors import DoesNotFit, ModelUnusable
from ernie_local.session.image import ChatImage
from ernie_local.session.transcript import Turn
from ernie_local.text.template import (
    END_TOKENS,
    IMAGE_START,
    ChatTemplate,
    Message,
    Prompt,
    Segment,
    check_variant,
    encode_segments,
)

if TYPE_CHECKING:
    from ernie_local.config import MediaTokens
    from ernie_local.model_files import ModelFiles
    from ernie_local.text.tokenizer import ErnieTokenizer


class Conversation:
    """What was said so far. `turns` may be changed; everything else is settled at the start.

    stop_ids: tokens that end an answer. close_ids: tokens that close a thought from outside.
    """

    def __init__(
        self,
        files: ModelFiles,
        system: str | None,
        tools: Sequence[Mapping[str, object]],
        variant: str | None,
    ) -> None:
        """ModelUnusable where the tokenizer is missing or another model's, UsageError for tools with PT."""
        self.turns: list[Turn] = []
        self.system = system
        self.tools = tuple(tools)
        self.tokenizer = files.tokenizer
        self._media = files.config.media
        self._template = ChatTemplate(check_variant(variant) if variant else files.template_variant)
        check_same_model(self.tokenizer, self._media)
        # Training ends an answer with </s> and history with <|end_of_sentence|>: either may come.
        ends = [self.tokenizer.id_of(token) for token in END_TOKENS] + list(files.config.eos_token_ids)
        self.stop_ids = frozenset(token_id for token_id in ends if token_id is not None)
        self.close_ids = self._encode(self._template.forced_close()).token_ids
        # An opening that cannot be written down is an error now, not at the first question.
        self.prompt(None)

    @property
    def thinks_by_default(self) -> bool:
        """Whether this model was made to reason before it answers."""
        return self._template.thinks_by_default

    def prompt(self, question: Message | None, thinking: bool | None = None) -> Prompt:
        """All turns, then `question` and the opening of its answer, which `thinking` None leaves out."""
        messages = [message for turn in self.turns for message in turn.messages()]
        if question is not None:
            messages.append(question)
        return self._encode(self._template.segments(messages, self.system, self.tools, thinking))

    def images(self) -> list[ChatImage]:
        """The images of all turns, in the order of their places in the prompt."""
        return [image for turn in self.turns for image in turn.images]

    def _encode(self, segments: Sequence[Segment]) -> Prompt:
        return encode_segments(self.tokenizer, segments, self._media)


def check_same_model(tokenizer: ErnieTokenizer, media: MediaTokens) -> None:
    """ModelUnusable where tokenizer and config.json are not of the same model."""
    start_id = tokenizer.id_of(IMAGE_START)
    if start_id is not None and start_id != media.image_start:
        raise ModelUnusable(
            f"the tokenizer writes {IMAGE_START} as {start_id}, config.json as {media.image_start}",
            "tokenizer.model belongs to another model",
            "use config.json and tokenizer.model of the same repository",
        )


def check_fits(prompt: Prompt, context_size: int) -> None:
    """DoesNotFit, with both numbers, unless the context holds the prompt and one more token."""
    num_tokens = len(prompt.token_ids)
    if num_tokens < context_size:
        return
    image_tokens = sum(span.end - span.start for span in prompt.images)
    raise DoesNotFit(
        f"the prompt of {num_tokens} tokens leaves no room in the context of {context_size} tokens",
        f"{image_tokens} of them are for {len(prompt.images)} images, and the answer needs at least 1 more",
        "a larger context size, a shorter text, fewer or smaller images, or undo earlier turns",
    )
