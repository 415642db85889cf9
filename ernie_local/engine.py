"""Runs one sequence over a model: prefill in chunks, decode token by token, mark and rewind.

Works on token ids and image patches; the state is the KV cache and the next position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import pairwise
from typing import Concatenate, ParamSpec, TypeVar

import torch

from ernie_local.encoding import encode_in_turn
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.memory import send
from ernie_local.media.patches import EncodedImage, MediaInput, MediaPatches
from ernie_local.media.tokens import TEXT, MediaPrompt, VisionRule, token_types
from ernie_local.model.decode_step import Mark, TokenRequest, compute_tokens, free_logits
from ernie_local.model.ernie import ErnieModel, NextToken
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.limits import check_ids, check_position, check_token_counts, chunk_stops
from ernie_local.model.memory_use import (
    DEFAULT_CHUNK_TOKENS,
    attention_bytes,
    chunk_bytes_on_gpu,
    image_prompt_bytes,
    logits_rows,
)
from ernie_local.model.moe import RouteHook
from ernie_local.progress import OnEncoded, OnProgress, Pause, Pauses, StopQuestion

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


def _alone(
    method: Callable[Concatenate[Engine, _P], _Result],
) -> Callable[Concatenate[Engine, _P], _Result]:
    """Run the method while no other thread computes with the engine's model; all of it, or nothing."""

    @wraps(method)
    def run(engine: Engine, /, *arguments: _P.args, **keywords: _P.kwargs) -> _Result:
        def whole() -> _Result:
            with engine._all_or_nothing():
                return method(engine, *arguments, **keywords)

        return engine.model.alone(whole)

    return run


class Engine:
    """Runs one sequence over a model.

    Several engines of a model may be used from several threads. A prompt waits until the model is free, and
    lets tokens be decoded before each of its chunks where they can be joined (`ErnieModel.joins_sequences`);
    elsewhere, as on a GPU, they wait for its end. Tokens that are wanted at about the same time are decoded
    together where each gets the same bits as alone. Calls of one engine are computed in their order: a
    sequence belongs to one thread at a time. After any exception, Ctrl-C too, the sequence is as it was
    before the call, and the model computes as if it had not been made.
    """

    def __init__(
        self,
        model: ErnieModel,
        context_size: int,
        kv_dtype: torch.dtype | None = None,
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        vision_rule: VisionRule = "tags",
        on_route: RouteHook | None = None,
    ) -> None:
        """context_size: most tokens the sequence can have; the cache for them is allocated here, once, unless
        it shares memory with experts: then it grows with the sequence, and experts give way.

        kv_dtype: None for the model's dtype. chunk_tokens: most tokens computed at a time in prefill.
        vision_rule: whether an image's start and end tags count as vision ("tags") or not ("placeholder").
        on_route: sees every routing decision.
        """
        check_token_counts(context_size, chunk_tokens)
        self.model = model
        self.context_size = context_size
        self.chunk_tokens = chunk_tokens
        self.vision_rule: VisionRule = vision_rule
        self.next_position = 0  # of the next text token, on all three axes
        self.on_route = on_route
        self._needed_bytes = 0  # the most so far: the cache gives no memory back before it is gone
        where = model.device, model.experts.cache_memory(), model.host.num_layers
        self._cache = KVCache(model.config.text, context_size, kv_dtype or model.dtype, *where)
        self._graphs = model.decode_graphs(self._cache.dtype)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values in the cache."""
        return self._cache.dtype

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes allocated for keys and values now."""
        return self._cache.num_bytes

    @contextmanager
    def reporting_routes(self, hook: RouteHook) -> Iterator[None]:
        """Inside, `hook` sees every routing decision, and no other hook does."""
        before, self.on_route = self.on_route, hook
        try:
            yield
        finally:
            self.on_route = before

    def mark(self) -> Mark:
        """Remember this point of the sequence."""
        with self.model.lock:
            return Mark(self._cache.length, self.next_position)

    def rewind(self, mark: Mark) -> None:
        """Forget every token after `mark`, which must come from this sequence and not lie ahead of it."""
        with self.model.lock:
            self._cache.truncate(mark.length)
            self.next_position = mark.next_position

    @_alone
    def prefill(
        self,
        token_ids: Sequence[int],
        images: Sequence[MediaInput] = (),
        should_stop: StopQuestion | None = None,
        on_progress: OnProgress | None = None,
        *,
        on_encoded: OnEncoded | None = None,
        cuts: Sequence[int] = (),
    ) -> torch.Tensor:
        """Append tokens; give back the logits after the last, (vocab_size,) float32, where the head is.

        token_ids: at least one; placeholders are expanded already, one for each token of each image, in the
        order of `images`. Raises DoesNotFit before any computing if they exceed the context, UsageError if
        placeholders and images disagree, and Interrupted, with the sequence as it was, if `should_stop`
        says so before a layer of a chunk or a block of the tower. on_progress: gets "images" or "tokens",
        those that are computed, and all. on_encoded: gets what the tower made of an image, at once.
        cuts: numbers of tokens after which a chunk ends, ascending, besides those that `chunk_tokens` makes.
        """
        pauses = Pauses(should_stop, on_progress, on_encoded)
        # A copy of one row: a part of the chunk would keep all of it.
        hidden = self._append(token_ids, images, pauses, lambda _start, chunk: chunk[-1:].clone(), cuts)
        return free_logits(self.model, hidden)[0]

    @_alone
    def prefill_all(
        self,
        token_ids: Sequence[int],
        images: Sequence[MediaPatches] = (),
        *,
        out: torch.Tensor,
        as_states: bool = False,
    ) -> None:
        """As `prefill`, with the logits of every position written to `out`, (tokens, vocab_size) float32.

        as_states: write what the head takes instead, (tokens, hidden_size) normed states.
        """

        num_rows = logits_rows(self.model.config.text)

        def keep_rows(start: int, chunk: torch.Tensor) -> torch.Tensor:
            for place, part in zip(out[start:].split(num_rows), chunk.split(num_rows), strict=False):
                place[: len(part)] = part if as_states else self.model.logits(part)
            return chunk[-1:]

        self._append(token_ids, images, Pauses(), keep_rows)

    def row_bytes(self, num_tokens: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return self._cache.row_bytes(num_tokens)

    def read_rows(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Keys and values of these tokens, as `KVCache.read_rows` gives them.

        The model is free while the caller has a piece; then the rows may be moved.
        """
        pieces = self._cache.read_rows(start, stop)
        while True:
            with self.model.lock:
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @_alone
    def restore(self, num_tokens: int, fill: Callable[[Iterable[torch.Tensor]], bool]) -> bool:
        """Append tokens whose keys and values are known; whether that was done.

        fill: fills the pieces that `KVCache.write_rows` describes, and says whether they are what they should
        be. Only a call of `rewind` sets the position of the next token then.
        """
        self._check_room(num_tokens)
        self._cache.reserve(self._cache.length + num_tokens)
        self._make_room(num_tokens, num_attending=1)
        is_filled = fill(self._cache.write_rows(num_tokens))
        if is_filled:
            self._cache.advance(num_tokens)
        return is_filled

    def decode(self, token_id: int) -> torch.Tensor:
        """Append one token and give back the logits after it, as `prefill` does.

        A vision token is served by the vision bank like any other and takes an ordinary position; its
        embedding is its own, as no image comes with it. Raises DoesNotFit at the end of the context.
        """
        is_text = bool((token_types([token_id], self.model.config.media_ids, self.vision_rule) == TEXT).all())
        request = TokenRequest(self, token_id, is_text=is_text)
        try:
            self.model.compute_step(request, compute_tokens)
        except BaseException:
            with self.model.lock:  # a thread that computes it has ended
                if request.before is not None and request.is_done:
                    self.rewind(request.before)
            raise
        assert request.logits is not None
        return request.logits

    def decode_alone(self, token_id: int) -> torch.Tensor:
        """As `decode`, for a step of the model."""
        self.begin_token(token_id)
        is_vision = token_types([token_id], self.model.config.media_ids, self.vision_rule) != TEXT
        position = torch.full((3, 1), self.next_position, device=self.model.device)
        with torch.inference_mode():
            token = self.model.embed_one(token_id)
            hidden = self.model(token, position, is_vision, self._cache, self.on_route, self._graphs)
            logits = free_logits(self.model, hidden)[0]
            self.next_position += 1
        return logits

    def begin_token(self, token_id: int) -> NextToken:
        """Check that the token can be decoded, and make room for it; for a step of the model."""
        self._check_room(1)
        check_position(self.next_position, self.model.config.text.max_position_embeddings)
        check_ids([token_id], self.model.config.text.vocab_size)
        self._cache.reserve(self._cache.length + 1)
        self._make_room(1)
        return NextToken(token_id, self.next_position, self._cache)

    def end_token(self) -> None:
        """The token that was begun has been computed, and is in the cache."""
        self._cache.advance(1)
        self.next_position += 1

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Whatever goes wrong inside, Ctrl-C included, the sequence is as it was before."""
        before = self.mark()
        try:
            yield
        except BaseException:
            self.undo(before)
            raise

    def undo(self, before: Mark) -> None:
        """Forget what was begun after `before` and did not end."""
        self.rewind(before)
        self.model.abort()
        for owner in (self, self.model):
            self.model.experts.make_room(owner, 0)

    def _append(
        self,
        token_ids: Sequence[int],
        images: Sequence[MediaInput],
        pauses: Pauses,
        keep: Callable[[int, torch.Tensor], torch.Tensor],
        cuts: Sequence[int] = (),
    ) -> torch.Tensor:
        """Run all chunks; `keep(start, hidden)` takes what is wanted of each. Returns that of the last."""
        prompt = self._prepare(token_ids, images)
        length = self._cache.length + prompt.num_tokens
        # For all chunks at once, before anything is computed; but on a GPU images have that memory first.
        images_first = images and self._cache.is_lent
        self._cache.reserve(self._cache.length if images_first else length)
        with torch.inference_mode():
            features = _encode(self, images, prompt.num_tokens, pauses)
            self._cache.reserve(length)  # as it is, unless images came first
            stops = chunk_stops(prompt.num_tokens, self.chunk_tokens, cuts)
            for start, stop in pairwise((0, *stops)):
                pauses.reach("tokens", start, prompt.num_tokens)
                self.model.steps.serve(compute_tokens)  # answers go on meanwhile
                ask = partial(pauses.ask, "tokens", start, prompt.num_tokens)
                kept = keep(start, self._run_chunk(prompt, start, stop, features, ask))
            self.next_position = prompt.next_position
        if images:
            self.model.experts.make_room(self, 0)
        return kept

    def _run_chunk(
        self, prompt: MediaPrompt, start: int, stop: int, features: torch.Tensor, before_layer: Pause
    ) -> torch.Tensor:
        """States, (stop - start, hidden_size), of the prompt's tokens from `start` to before `stop`.

        features: (placeholders of the prompt, hidden_size), which a chunk boundary may cut anywhere.
        """
        device = self.model.device
        self._make_room(stop - start)
        hidden = self.model.embed(prompt.token_ids[start:stop])  # (chunk, hidden_size)
        placeholders = prompt.is_placeholder[start:stop].nonzero()[:, 0]  # (placeholders of the chunk,)
        if len(placeholders):
            first = int(prompt.is_placeholder[:start].sum())
            hidden.index_copy_(0, send(placeholders, device), features[first : first + len(placeholders)])
        states: torch.Tensor = self.model(
            hidden,
            send(prompt.positions[:, start:stop], device),
            prompt.is_vision[start:stop],
            self._cache,
            self.on_route,
            before_layer=before_layer,
        )
        return states

    def _make_room(self, num_new: int, num_attending: int | None = None) -> None:
        """Keep memory for states and attention of the next tokens, of that which experts may take.

        num_attending: how many attend at once; None for all of them.
        """
        text, num_all = self.model.config.text, self._cache.length + num_new
        num_attending = num_new if num_attending is None else num_attending
        sizes = text, num_attending, num_all, self.model.attention_way
        if self._cache.is_lent:  # on a GPU; what computes there does so for one engine at a time
            self.model.experts.make_room(self.model, chunk_bytes_on_gpu(*sizes))
            return
        needed = self._cache.touched_bytes(num_all) + attention_bytes(*sizes)
        if needed > self._needed_bytes:
            self.model.experts.make_room(self._cache, needed)
            self._needed_bytes = needed

    def _prepare(self, token_ids: Sequence[int], images: Sequence[MediaInput]) -> MediaPrompt:
        ids = list(token_ids)
        if not ids:
            raise _empty_prompt()
        self._check_room(len(ids))
        check_ids(ids, self.model.config.text.vocab_size)
        prompt = MediaPrompt.of(ids, images, self.model.config, self.vision_rule, self.next_position)
        check_position(prompt.next_position - 1, self.model.config.text.max_position_embeddings)
        return prompt

    def _check_room(self, num_new: int) -> None:
        if self._cache.length + num_new > self.context_size:
            raise DoesNotFit(
                f"{self._cache.length + num_new} tokens do not fit into a context of {self.context_size}",
                f"{self._cache.length} are in use and {num_new} more are asked for",
                "shorten the text, give fewer or smaller images, or raise the context size",
            )


def _empty_prompt() -> UsageError:
    return UsageError(
        "a prompt of 0 tokens, at least 1 is needed",
        "the model predicts what follows a token",
        "give a prompt that is not empty",
    )


def _held_patches(image: MediaPatches) -> int:
    """How many are in memory until they have been encoded: of a video, those of two frames."""
    return max(piece.num_patches for piece in image.pieces)


def _encode(engine: Engine, images: Sequence[MediaInput], num_tokens: int, pauses: Pauses) -> torch.Tensor:
    """Features of all images, (placeholders, hidden_size). num_tokens: of their prompt."""
    model = engine.model
    if not images:
        return torch.empty(0, model.config.text.hidden_size)
    experts = model.experts
    new = [(index, image) for index, image in enumerate(images) if not isinstance(image, EncodedImage)]
    held = image_prompt_bytes(
        model.config,
        sum(_held_patches(image) for _, image in new),
        sum(image.num_tokens for image in images),
        min(engine.chunk_tokens, num_tokens),
        model.dtype.itemsize,
    )
    experts.make_room(engine, held)
    features = {
        index: send(image.features, model.device)
        for index, image in enumerate(images)
        if isinstance(image, EncodedImage)
    }
    encoded = encode_in_turn(model, [image for _, image in new], pauses)
    for (index, _), one in zip(new, encoded, strict=True):
        model.steps.serve(compute_tokens)
        features[index] = one
        if pauses.on_encoded is not None:
            pauses.on_encoded(index, one)
    model.drop_image_weights()
    experts.make_room(model, 0)
    return torch.cat([features[index] for index in range(len(images))])
