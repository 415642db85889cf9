"""How the tokens of an answer are drawn: flags over the model's own generation_config.json over greedy.

Owns the meaning of that file. Knows nothing of the other options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_cli.chat_options import ChatOptions
from ernie_local.strict_json import read_json_object

if TYPE_CHECKING:
    from ernie_local.sampling import SamplingOptions


def sampling_options(options: ChatOptions, generation_config: Mapping[str, object]) -> SamplingOptions:
    """How tokens are drawn: flags over the model's generation_config.json over greedy decoding."""
    from ernie_local.sampling import SamplingOptions

    defaults = _defaults_of_model(generation_config)
    flags: dict[str, Any] = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
    }
    chosen = {**defaults, **{name: value for name, value in flags.items() if value is not None}}
    return replace(SamplingOptions(temperature=0.0), **chosen)


def _defaults_of_model(generation_config: Mapping[str, object]) -> dict[str, Any]:
    """The sampling keys of generation_config.json, as `SamplingOptions` names them."""
    defaults: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        value = generation_config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            defaults[name] = float(value)
    top_k = generation_config.get("top_k")
    if isinstance(top_k, int) and not isinstance(top_k, bool):
        defaults["top_k"] = top_k
    if generation_config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults


def read_generation_config(directory: Path) -> Mapping[str, object]:
    """generation_config.json of a model directory; empty where there is none."""
    path = directory / "generation_config.json"
    return read_json_object(path) if path.exists() else {}
