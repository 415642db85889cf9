"""What one model does with samples: states where it writes an answer, choices of experts, its own answers.

Owns how a turn is run: the prompt once, from there the answer of its own, and again the answer that it is
made to read. Knows nothing of other models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ernie_calibration.sample import Sample, Turn
from ernie_local.engine import Engine
from ernie_local.loading import LoadedModel
from ernie_local.loading.routes import RouteRecord
from ernie_local.media.patches import Patches
from ernie_local.sampling import Sampler, SamplingOptions
from ernie_local.session.conversation import Conversation
from ernie_local.session.generation import Generation, find_limits
from ernie_local.session.sequence import CachedSequence
from ernie_local.text.reasoning import ReasoningParser
from ernie_local.text.template import Message
from ernie_quant.identity import calibration_identity

# A model that goes on and on is stopped at twice the length of the right answer, but never before this.
_FEWEST_TOKENS = 40

# From the number of the turn, the turn, and the model's own answer to the ids that it is made to read.
ForcedIds = Callable[[int, Turn, str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Observation:
    """One turn, asked on its own as the first question of a chat, without thoughts.

    prompt_identity: of the prompt's ids and images. states: (positions, hidden_size), what the head makes
    logits of, where the model chooses the first id of the answer, each next one, and its end: one more than
    `forced_ids`. choices: (MoE layers, tokens, top_k) integers, of all tokens of prompt and forced answer.
    """

    document: str
    turn: Turn
    prompt_identity: str
    token_ids: tuple[int, ...]
    forced_ids: tuple[int, ...]
    states: torch.Tensor
    choices: torch.Tensor
    answer: str


@dataclass(frozen=True, slots=True)
class _Prompt:
    token_ids: tuple[int, ...]
    patches: tuple[Patches, ...]


class Observer:
    """Runs turns through one model."""

    def __init__(self, model: LoadedModel) -> None:
        """ModelUnusable where the model's tokenizer or settings for images are missing."""
        self._model = model
        self._conversation = Conversation(model.files, None, (), None)

    def encode(self, text: str) -> list[int]:
        """Ids of an answer."""
        return self._conversation.tokenizer.encode(text, allow_special=False)

    def observe(self, samples: Iterable[Sample], forced_ids: ForcedIds) -> Iterator[list[Observation]]:
        """For each sample the observations of its turns."""
        num_turns = 0
        for sample in samples:
            patches = tuple(self._model.patches(sample.images))
            observed = []
            for turn in sample.turns:
                observed.append(self._observe_turn(sample.name, turn, patches, forced_ids, num_turns))
                num_turns += 1
            yield observed

    def _observe_turn(
        self, document: str, turn: Turn, patches: tuple[Patches, ...], forced_ids: ForcedIds, index: int
    ) -> Observation:
        message = Message("user", turn.question, tuple(image.num_tokens for image in patches))
        prompt = _Prompt(self._conversation.prompt(message, thinking=False).token_ids, patches)
        num_prompt = len(prompt.token_ids)
        max_tokens = max(_FEWEST_TOKENS, 2 * len(self.encode(turn.answer)))
        # An answer of its own may take a few ids more when it is encoded again.
        engine = self._model.engine(context_size=num_prompt + 2 * max_tokens)
        routes = RouteRecord(engine, engine.context_size)
        engine.on_route = routes
        states = self._states(engine, prompt.token_ids, patches)[-1:].clone()
        behind_prompt = engine.mark()
        engine.on_route = None
        answer = self._write(engine, states, prompt.token_ids, max_tokens)
        engine.rewind(behind_prompt)
        engine.on_route = routes
        forced = tuple(forced_ids(index, turn, answer))
        if forced:
            states = torch.cat([states, self._states(engine, forced, ())])
        engine.on_route = None  # each knows the other: only without it is the model's memory free at once
        return Observation(
            document=document,
            turn=turn,
            prompt_identity=calibration_identity([prompt]),
            token_ids=(*prompt.token_ids, *forced),
            forced_ids=forced,
            states=states,
            choices=_moe_choices(routes, engine.length),
            answer=answer,
        )

    def _states(self, engine: Engine, token_ids: Sequence[int], patches: Sequence[Patches]) -> torch.Tensor:
        network = self._model.network
        states = torch.empty(len(token_ids), network.config.text.hidden_size, dtype=network.dtype)
        engine.prefill_states(token_ids, patches, out=states)
        return states

    def _write(self, engine: Engine, state: torch.Tensor, prompt_ids: Sequence[int], max_tokens: int) -> str:
        """The greedy answer behind the prompt in `engine`; state: (1, hidden_size), of its last token."""
        network, conversation = self._model.network, self._conversation
        with torch.no_grad():
            logits = network.logits(state.to(network.device))[0]
        room, close_ids = engine.context_size - engine.length, conversation.close_ids
        generation = Generation(
            conversation.tokenizer,
            Sampler(SamplingOptions()),
            ReasoningParser(in_reasoning=False),
            find_limits(room, max_tokens, None, len(close_ids)),
            conversation.stop_ids,
            close_ids,
            lambda: False,
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
