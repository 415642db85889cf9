"""Records what one model does with samples: states where it writes an answer, experts chosen, its own
answers.

For each turn the prompt runs once; from there the model writes its own answer, and then reads a given one.
A turn whose image needs a closer look is asked once more, with the zoom tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from PIL import Image

from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.sequences import EncodedSample, clips_to_patches, media_slot
from ernie_local.engine import Engine
from ernie_local.errors import NoAnswer
from ernie_local.loading import LoadedModel
from ernie_local.loading.model import RouteRecord
from ernie_local.media.patches import Patches
from ernie_local.sampling import Sampler, SamplingOptions
from ernie_local.session.chat import Chat
from ernie_local.session.generation import AnswerOptions, Generation
from ernie_local.session.sequence import CachedSequence
from ernie_local.session.writer import ChatWriter
from ernie_local.text.template import Message
from ernie_quant.work import calibration_identity

# An answer is cut at twice the length of the right one, but not below this length.
_FEWEST_TOKENS = 40
# Of all thoughts, calls and texts on the way to an answer with the zoom tool.
ZOOM_TOKENS = 1024

# Number of the turn, the turn, the model's own answer -> the ids that it is forced to read.
ForcedIds = Callable[[int, SampleTurn, str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class ZoomedAnswer:
    """A model's own answer with the zoom tool at hand.

    text: of its last round; empty where it gave no answer. has_zoomed: whether it was shown a part of the
    image on the way.
    """

    text: str
    has_zoomed: bool


@dataclass(frozen=True, slots=True)
class AskedTurn:
    """One turn, asked as the first question of a chat, without thinking.

    turn: without the images of its rounds, which are large. prompt_identity: of the prompt's ids and images.
    token_ids: of the prompt and the answer that the model is forced to read, which are the last `num_forced`.
    answer: the model's own. zoomed: its answer with the zoom tool; None of a turn that needs no closer look.
    """

    document: str
    turn: SampleTurn
    prompt_identity: str
    token_ids: tuple[int, ...]
    num_forced: int
    answer: str
    zoomed: ZoomedAnswer | None

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """Ids of the forced answer."""
        return self.token_ids[len(self.token_ids) - self.num_forced :]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a model did with a turn.

    states: (positions, hidden_size), from which the head makes logits of the first id of the answer, of each
    next one, and of its end: one more than forced ids. choices: (MoE layers, tokens, top_k) integers, of all
    tokens.
    """

    asked: AskedTurn
    states: torch.Tensor
    choices: torch.Tensor


def answer_with_zoom(
    model: LoadedModel, question: str, images: Sequence[Image.Image], max_tokens: int = ZOOM_TOKENS
) -> ZoomedAnswer:
    """Ask as a user does who offers the zoom tool: greedy, thinking, in the one template that has tools.

    max_tokens: of all rounds together. An answer that does not come is an empty one; failed calls are errors
    that the model reads.
    """
    chat = Chat(model, sampling=SamplingOptions(), variant="thinking", zoom=True)
    with suppress(NoAnswer):
        for _ in chat.ask(question, images, thinking=True, max_tokens=max_tokens):
            pass
    steps = () if chat.last is None else chat.last.steps
    return ZoomedAnswer(
        text="".join(turn.answer for turn in chat.history),
        has_zoomed=any(not step.is_error for step in steps),
    )


class Observer:
    """Runs turns through one model."""

    def __init__(self, model: LoadedModel, zoom_tokens: int = ZOOM_TOKENS) -> None:
        """zoom_tokens: as of `answer_with_zoom`.

        ModelUnusable if the model's tokenizer or settings for images are missing.
        """
        self._model, self._zoom_tokens = model, zoom_tokens
        self._writer = ChatWriter(model.files)

    def encode(self, text: str) -> list[int]:
        """Ids of an answer."""
        return self._writer.tokenizer.encode(text, allow_special=False)

    def observe(self, samples: Iterable[Sample], forced_ids: ForcedIds) -> Iterator[list[Observation]]:
        """The observations of each sample's turns."""
        num_turns = 0
        for sample in samples:
            clips = clips_to_patches(sample.clips, self._model.image_processor) if sample.clips else []
            patches = (*self._model.patches(sample.images), *clips)
            observed = []
            for turn in sample.turns:
                zoomed = self._zoomed(turn, sample.images)
                observed.append(self._observe_turn(sample.name, turn, patches, forced_ids, num_turns, zoomed))
                num_turns += 1
            yield observed

    def _zoomed(self, turn: SampleTurn, images: Sequence[Image.Image]) -> ZoomedAnswer | None:
        if not turn.rounds:
            return None
        return answer_with_zoom(self._model, turn.question, images, self._zoom_tokens)

    def _observe_turn(
        self,
        document: str,
        turn: SampleTurn,
        patches: tuple[Patches, ...],
        forced_ids: ForcedIds,
        index: int,
        zoomed: ZoomedAnswer | None,
    ) -> Observation:
        message = Message("user", (*map(media_slot, patches), turn.question))
        prompt_ids = self._writer.prompt([message], thinking=False).token_ids
        max_tokens = max(_FEWEST_TOKENS, 2 * len(self.encode(turn.answer)))
        # The model's own answer may take a few more ids when it is encoded again.
        engine = self._model.engine(context_size=len(prompt_ids) + 2 * max_tokens)
        routes = RouteRecord(engine, engine.context_size)
        with engine.reporting_routes(routes):
            states = self._states(engine, prompt_ids, patches)[-1:].clone()
        behind_prompt = engine.mark()
        answer = self._write(engine, states, prompt_ids, max_tokens)
        engine.rewind(behind_prompt)
        forced = tuple(forced_ids(index, turn, answer))
        if forced:
            with engine.reporting_routes(routes):
                states = torch.cat([states, self._states(engine, forced, ())])
        asked = AskedTurn(
            document,
            replace(turn, rounds=()),
            prompt_identity=calibration_identity([EncodedSample(document, prompt_ids, patches, answers=())]),
            token_ids=(*prompt_ids, *forced),
            num_forced=len(forced),
            answer=answer,
            zoomed=zoomed,
        )
        return Observation(asked, states, _moe_choices(routes, engine.length))

    def _states(self, engine: Engine, token_ids: Sequence[int], patches: Sequence[Patches]) -> torch.Tensor:
        network = self._model.network
        states = torch.empty(len(token_ids), network.config.text.hidden_size, dtype=network.dtype)
        engine.prefill_all(token_ids, patches, out=states, as_states=True)
        return states

    def _write(self, engine: Engine, state: torch.Tensor, prompt_ids: Sequence[int], max_tokens: int) -> str:
        """The greedy answer to the prompt in `engine`; state: (1, hidden_size) of its last token."""
        network, writer = self._model.network, self._writer
        with torch.no_grad():
            logits = network.logits(state.to(network.device))[0]
        options, room = AnswerOptions(max_tokens=max_tokens), engine.context_size - engine.length
        generation = Generation(
            writer, Sampler(SamplingOptions()), options, room, should_stop=lambda: False, thought="closed"
        )
        for _ in generation.pieces(CachedSequence(engine, network.config), lambda: logits, prompt_ids):
            pass
        return generation.text


def _moe_choices(routes: RouteRecord, num_tokens: int) -> torch.Tensor:
    """(MoE layers, tokens, top_k) int16."""
    layers = [choices[:num_tokens] for choices in routes.choices if choices.shape[1]]
    if not layers:
        return torch.empty(0, num_tokens, 0, dtype=torch.int16)
    return torch.stack(layers).to(torch.int16)
