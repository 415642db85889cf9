"""Reads config.json of a checkpoint strictly into frozen dataclasses, in each of the published forms.

`model` holds the dataclasses. `hub` and `native` read one layout each of a vision-language model, `text_only`
models without a tower, `sections`, `quantization` and `compression` what they share; `keys` reads one JSON
object and refuses unknown keys; `relatives` names models that are not read. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ernie_local.config.hub import parse_hub
from ernie_local.config.model import (
    MODALITIES,
    Bank,
    BankKey,
    ExpertBank,
    MediaTokens,
    Modality,
    ModelConfig,
    TextConfig,
    VisionConfig,
    image_refusal,
)
from ernie_local.config.native import parse_native
from ernie_local.config.quantization import QuantizationConfig
from ernie_local.config.relatives import check_relatives
from ernie_local.config.text_only import parse_dense, parse_with_experts
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import read_json_object, show

__all__ = [
    "MODALITIES",
    "MODEL_TYPES",
    "Bank",
    "BankKey",
    "ExpertBank",
    "MediaTokens",
    "Modality",
    "ModelConfig",
    "QuantizationConfig",
    "TextConfig",
    "VisionConfig",
    "image_refusal",
    "parse_config",
    "read_config",
]

_LAYOUTS = {
    "ernie4_5_moe_vl": parse_hub,
    "ernie4_5_vl_moe": parse_native,
    "ernie4_5_moe": parse_with_experts,
    "ernie4_5": parse_dense,
}
MODEL_TYPES = tuple(_LAYOUTS)


def read_config(directory: Path) -> ModelConfig:
    """config.json of `directory`, read strictly; ModelUnusable naming the file and the key."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelUnusable(
            f"{directory} is not a directory",
            "a model is a directory with config.json and safetensors files",
            "name a directory, hf:org/name, or nano for the model that comes with the package",
        )
    if not path.exists():
        raise ModelUnusable(
            f"{directory} has no config.json",
            "it holds the sizes of the model",
            "name the directory that holds config.json beside the weights, or download the model again",
        )
    return parse_config(read_json_object(path), str(path))


def parse_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """A parsed config.json in any form; `where` names it in the ModelUnusable."""
    check_relatives(raw, where)
    model_type = raw.get("model_type")
    parse = _LAYOUTS.get(model_type) if isinstance(model_type, str) else None
    if parse is None:
        raise ModelUnusable(
            f"{where}: model_type is {show(model_type)}, expected one of {', '.join(MODEL_TYPES)}",
            "only ERNIE 4.5 models can be run",
            "name a directory with an ERNIE-4.5 or ERNIE-4.5-VL checkpoint, or nano",
        )
    return parse(raw, where)
