"""Writes the messages of a chat down as token ids for one model, and checks that they fit its context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ernie_local.config import MediaTokens
from ernie_local.errors import DoesNotFit, ModelUnusable, UsageError, parameter
from ernie_local.model_files import ModelFiles
from ernie_local.text.reasoning import THINK_CLOSE
from ernie_local.text.template import (
    BEGIN,
    END_TOKENS,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    VIDEO_END,
    VIDEO_START,
    Message,
    Segment,
    Tag,
    TextPrompt,
    Thinking,
    encode_segments,
    user_message,
)
from ernie_local.text.tokenizer import ErnieTokenizer


class ChatWriter:
    """A model's chat template with its tokenizer.

    system: the system text of chats that do not begin with one; None is the model's own, "" is none. tools:
    as JSON values; may be changed. stop_ids: tokens that end an answer. close_ids: tokens that close a
    thought from outside; separator_ids: those of them that stand between a thought's end and the answer.
    """

    def __init__(
        self,
        files: ModelFiles,
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        variant: str | None = None,
    ) -> None:
        """variant: as of `ModelFiles.template`.

        ModelUnusable where the tokenizer is missing or another model's, or the template of the files cannot
        be used; UsageError for tools with PT.
        """
        self.system = system
        self.tools = tuple(tools)
        self.tokenizer = files.tokenizer
        self._media = files.config.media_ids
        self._template = files.template(variant)
        check_same_model(self.tokenizer, self._media)
        # Training ends an answer with </s> and history with <|end_of_sentence|>: either may come.
        ends = [self.tokenizer.id_of(token) for token in END_TOKENS]
        known = frozenset(token_id for token_id in ends if token_id is not None)
        self.stop_ids = known.union(files.config.eos_token_ids, files.stop_ids)
        self.close_ids = self._encode(self._template.forced_close()).token_ids
        self.separator_ids = _after(self.close_ids, self.tokenizer.id_of(THINK_CLOSE))
        # An opening that cannot be written down is an error now, not at the first question.
        self.prompt([user_message("?")])

    @property
    def thinks_by_default(self) -> Thinking:
        """Whether this model reasons before it answers, where nobody says so."""
        return self._template.thinks_by_default

    def prompt(self, messages: Sequence[Message], thinking: Thinking | None = None) -> TextPrompt:
        """The messages, then the opening of an answer, which `thinking` None leaves out.

        A thought that a template opens whatever `thinking` says is closed again where that is False.
        """
        segments = self._template.segments(messages, self.system, self.tools, thinking)
        prompt = self._encode(segments)
        if thinking is False and prompt.thought == "open":
            return self._encode([*segments, *self._template.forced_close()])
        return prompt

    def begun_prompt(self, messages: Sequence[Message], begun: Message) -> TextPrompt:
        """The messages, then the opening of an answer with what the assistant has begun to say.

        UsageError where it has begun a thought, and the template opens none.
        """
        segments = self._template.segments(messages, self.system, self.tools, bool(begun.reasoning))
        thought, text = begun.reasoning.lstrip("\n"), begun.text.lstrip("\n")
        segments += [thought] if thought else []
        if text:
            segments += [*(self._template.forced_close() if thought else ()), text]
        prompt = self._encode(segments)
        if not text and prompt.thought != "open":
            raise UsageError(
                f"a thought of {len(thought)} characters to go on with",
                "this model's chat template opens no thought",
                "give the text of the answer with it",
            )
        return prompt

    def plain(self, text: str) -> TextPrompt:
        """The begin token and a text, in which tags are letters."""
        return self._encode([Tag(BEGIN, required=True), text])

    def _encode(self, segments: Sequence[Segment]) -> TextPrompt:
        return encode_segments(self.tokenizer, segments, self._media)


def _after(token_ids: tuple[int, ...], token_id: int | None) -> tuple[int, ...]:
    """What stands behind this id; nothing where it is not there."""
    return token_ids[token_ids.index(token_id) + 1 :] if token_id in token_ids else ()


def check_same_model(tokenizer: ErnieTokenizer, media: MediaTokens | None) -> None:
    """ModelUnusable where tokenizer and config.json are not of the same model.

    media: None for a model that reads only text, whose config.json names no tokens to compare.
    """
    if media is None:
        return
    ids = {
        IMAGE_START: media.image_start,
        IMAGE_END: media.image_end,
        IMAGE_PLACEHOLDER: media.image,
        VIDEO_START: media.video_start,
        VIDEO_END: media.video_end,
    }
    for tag, configured in ids.items():
        token_id = tokenizer.id_of(tag)
        written = tag if token_id == configured else tokenizer.decode([configured])
        if token_id not in (configured, None) or written in tokenizer.special_texts - {tag}:
            raise ModelUnusable(
                f"the tokenizer writes {tag} as {'no token' if token_id is None else token_id}, "
                f"config.json as {configured}",
                "tokenizer.model or the file of its special tokens belongs to another model, or config.json "
                f"was changed: the tokenizer's {configured} is {written}",
                "use config.json and the tokenizer files of the same repository",
            )


def check_may_fit(texts: Iterable[str], context_size: int, longest_bytes: int) -> None:
    """DoesNotFit for texts that must be too long, before memory is spent on their tokens.

    longest_bytes: of a token.
    """
    num_characters = sum(map(len, texts))
    if num_characters > context_size * longest_bytes:
        raise DoesNotFit(
            f"{num_characters} characters of text leave no room in the context of {context_size} tokens",
            f"a token has at most {longest_bytes} characters",
            f"a larger {parameter('context_size')}, or a shorter text",
        )


def check_fits(prompt: TextPrompt, context_size: int) -> None:
    """DoesNotFit, with both numbers, unless the context holds the prompt and one more token."""
    num_tokens = len(prompt.token_ids)
    if num_tokens < context_size:
        return
    raise DoesNotFit(
        f"the prompt of {num_tokens} tokens leaves no room in the context of {context_size} tokens",
        f"{sum(map(len, prompt.media))} are for {len(prompt.media)} images and videos, and an answer needs at"
        " least 1 more",
        f"a larger {parameter('context_size')}, a shorter text, a smaller {parameter('image_tokens')}, or "
        "fewer turns",
    )
