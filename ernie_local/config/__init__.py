"""config.json of a checkpoint, read strictly into frozen dataclasses.

`model` holds the dataclasses, `keys` the strict access to a JSON object, `ignored` the rule for keys that
are not read, `hub` and `native` the two layouts, `parse` the choice between them. No torch here.
"""

from __future__ import annotations

from ernie_local.config.banks import MODALITIES, Bank, BankKey, ExpertBank, Modality
from ernie_local.config.model import ConfigLayout, MediaTokens, ModelConfig, TextConfig, VisionConfig
from ernie_local.config.parse import parse_config, read_config
from ernie_local.config.quantization import QuantizationConfig

__all__ = [
    "MODALITIES",
    "Bank",
    "BankKey",
    "ConfigLayout",
    "ExpertBank",
    "MediaTokens",
    "Modality",
    "ModelConfig",
    "QuantizationConfig",
    "TextConfig",
    "VisionConfig",
    "parse_config",
    "read_config",
]
