"""The files beside the weights that a conversation needs: tokenizer, template, image processor.

Each is read as `chat` reads it, and one question with an image is written down as token ids.
"""

from __future__ import annotations

from pathlib import Path

from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.media.processor_config import read_processor_config
from ernie_local.session.writer import check_same_model
from ernie_local.strict_json import read_json_object
from ernie_local.text.template import ChatTemplate, detect_variant, encode_segments, user_message
from ernie_local.text.tokenizer import TOKENIZER_MODEL_NAME, ErnieTokenizer
from ernie_local.verify.finding import Findings


def check_companions(directory: Path, config: ModelConfig, findings: Findings) -> None:
    """Enter what keeps them from being read, or from belonging to this model."""
    with findings.catch():
        read_processor_config(directory, config.vision)
    generation = directory / "generation_config.json"
    if generation.exists():
        with findings.catch(generation.name):
            read_json_object(generation)
    with findings.catch(TOKENIZER_MODEL_NAME):
        _try_question(directory, config)


def _try_question(directory: Path, config: ModelConfig) -> None:
    tokenizer = ErnieTokenizer.from_directory(directory)
    check_same_model(tokenizer, config.media)
    template = ChatTemplate(detect_variant(directory))
    question = user_message("What is the total?", (4,))
    prompt = encode_segments(tokenizer, template.segments([question]), config.media)
    highest = max(prompt.token_ids)
    if highest >= config.text.vocab_size:
        raise ModelUnusable(
            f"{directory / TOKENIZER_MODEL_NAME} writes a question with the id {highest}, "
            f"config.json has a vocab_size of {config.text.vocab_size}",
            "the tokenizer belongs to another model",
            "use config.json and tokenizer.model of the same repository",
        )
