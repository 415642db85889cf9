"""Reads an adapter's settings: its ranks, its scales, and what must not be in it.

The file may hold what changes how the matrices are meant: each key is read, is known to be harmless, or is
refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ernie_local.config.keys import Keys
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import read_json_object, show

PEFT_SETTINGS, PADDLE_SETTINGS = "adapter_config.json", "lora_config.json"
TRAIN_OTHERWISE = (
    "train without it, or merge the adapter with the library that trained it and load the result"
)

# Which modules were trained, how they began, and what another program did meanwhile.
_PEFT_HARMLESS = """
    auto_mapping corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core
    qalora_group_size revision runtime_config target_modules task_type
"""
_PADDLE_HARMLESS = """
    dtype head_dim lora_dropout lora_plus_scale merge_weights pipeline_model_parallel_size target_modules
    tensor_model_parallel_size tensor_parallel_degree trainable_modules use_intermediate_api use_quick_lora
"""
_PADDLE_VARIANTS = ("do_qat", "loraga", "lorapro", "lora_use_mixer", "nola", "pissa", "use_mora")
# Starts that leave the model's own weights as they are. Others subtract what the adapter begins with.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")

# What a pattern of names may be made of: enough for what people write, and no way to make matching take long.
_LITERAL = re.compile(r"[\w.-]+", re.ASCII)
_SIMPLE_PATTERN = re.compile(r"(?:[\w.^$|()\[\]-]|\\[.dw]|[*+?](?<!\).))+", re.ASCII)
_MOST_PATTERNS, _MOST_REPEATS, _LONGEST_PATTERN = 64, 3, 300


class _AdapterKeys(Keys):
    """Keys of an adapter's settings."""

    unusable: ClassVar[str] = "the adapter cannot be computed from this value, or would give wrong answers"
    hint: ClassVar[str] = TRAIN_OTHERWISE


class _PeftKeys(_AdapterKeys):
    harmless_keys: ClassVar[frozenset[str]] = frozenset(_PEFT_HARMLESS.split())


class _PaddleKeys(_AdapterKeys):
    harmless_keys: ClassVar[frozenset[str]] = frozenset(_PADDLE_HARMLESS.split())


class Patterns:
    """Numbers for modules by patterns of their names: the first that matches counts, as in PEFT.

    A pattern has to match the end of a name, from its beginning or from a dot on.
    """

    def __init__(self, keys: Keys, key: str) -> None:
        self._where = f"{keys.where}: {key}"
        given = keys.mapping(key, {})
        numbers = Keys(given, keys.where, f"{key}.")
        self._values = {pattern: numbers.number(pattern, above_zero=True) for pattern in given}
        self._order = {pattern: position for position, pattern in enumerate(given)}
        self._compiled = {p: self._compile(p) for p in given if not _LITERAL.fullmatch(p)}
        if len(self._compiled) > _MOST_PATTERNS:
            raise keys.refuse(key, f"has {len(self._compiled)} patterns, up to {_MOST_PATTERNS} are tried")
        self._used: set[str] = set()

    def find(self, module: str) -> float | None:
        """The number for `module`; None if no pattern matches its name."""
        steps = module.split(".")
        ends = {".".join(steps[first:]) for first in range(len(steps))}
        matching = [pattern for pattern in ends if pattern in self._values]
        matching += [pattern for pattern, match in self._compiled.items() if match(module)]
        self._used.update(matching)
        return self._values[min(matching, key=self._order.__getitem__)] if matching else None

    def check_used(self, num_modules: int) -> None:
        """ModelUnusable for a pattern that has matched none of the modules that were looked up."""
        for pattern in self._values:
            if pattern not in self._used:
                raise ModelUnusable(
                    f"{self._where} has {show(pattern)}, which matches none of {num_modules} modules",
                    "a number that was meant for a module and does not reach it would give wrong answers",
                    "correct the pattern, or remove it if the training library warned of it too",
                )

    def _compile(self, pattern: str) -> Callable[[str], object]:
        plain = pattern.replace("(?:", "(")
        repeats = sum(plain.count(sign) for sign in "*+?")
        if not _SIMPLE_PATTERN.fullmatch(plain) or repeats > _MOST_REPEATS or len(plain) > _LONGEST_PATTERN:
            raise self._refuse(
                pattern, f"repeats {repeats} times, up to {_MOST_REPEATS} are tried, and no groups"
            )
        try:
            return re.compile(rf"(?:.*\.)?(?:{pattern})$").match
        except re.error as error:
            raise self._refuse(pattern, f"is no pattern: {error}") from error

    def _refuse(self, pattern: str, problem: str) -> ModelUnusable:
        return ModelUnusable(
            f"{self._where} has {show(pattern)}, which {problem}",
            "patterns are names, dots, and simple repeats such as .*",
            "write the names of the modules instead",
        )


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What an adapter's settings say about its matrices."""

    where: str  # the file
    base_model: str | None  # whose weights it was trained beside, as its author named it
    rank: int
    alpha: float
    is_rank_stabilized: bool  # alpha is divided by the root of the rank
    ranks: Patterns
    alphas: Patterns
    target_parameters: tuple[str, ...] = ()  # ends of names of tensors that are no module's `weight`
    version: tuple[int, ...] = ()  # of the library that wrote it; empty if it does not say

    def rank_of(self, module: str) -> int:
        """The width between both matrices of `module`."""
        return int(self.ranks.find(module) or self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of both matrices of `module` is multiplied by."""
        rank = self.rank_of(module)
        alpha = self.alphas.find(module)
        divisor = math.sqrt(rank) if self.is_rank_stabilized else rank
        return (self.alpha if alpha is None else alpha) / divisor


def read_peft_settings(directory: Path) -> AdapterSettings:
    """The adapter_config.json of PEFT in `directory`. ModelUnusable for anything but a plain LoRA adapter."""
    path = directory / PEFT_SETTINGS
    keys = _PeftKeys(read_json_object(path), str(path))
    keys.only("peft_type", "LORA")
    keys.only("bias", "none")
    for key in ("use_dora", "lora_bias", "use_qalora"):
        keys.only(key, False)
    for key in ("modules_to_save", "layer_replication"):
        keys.only(key, [])
    keys.only("init_lora_weights", *_PLAIN_STARTS)
    settings = replace(
        _read_scales(keys, "use_rslora"),
        target_parameters=_texts(keys, "target_parameters"),
        version=_version(keys),
    )
    keys.finish()
    return settings


def read_paddle_settings(directory: Path) -> AdapterSettings:
    """The lora_config.json of PaddleFormers or ERNIEKit in `directory`; ModelUnusable as above.

    The scale that it may hold besides has to be that of its rank and alpha.
    """
    path = directory / PADDLE_SETTINGS
    keys = _PaddleKeys(read_json_object(path), str(path))
    for key in _PADDLE_VARIANTS:
        keys.only(key, False)
    for key in ("enable_lora_list", "trainable_bias"):
        keys.only(key)
    settings = _read_scales(keys, "rslora")
    scale = settings.scale_of("")
    if not math.isclose(keys.number("scaling", scale), scale, rel_tol=1e-6):
        raise keys.refuse("scaling", f"is {show(keys.value('scaling'))}, rank and alpha make {scale:.6g}")
    keys.finish()
    return settings


def _read_scales(keys: Keys, stabilized_key: str) -> AdapterSettings:
    """What both files have."""
    return AdapterSettings(
        keys.where,
        base_model=_text(keys, "base_model_name_or_path"),
        rank=keys.integer("r"),
        alpha=keys.number("lora_alpha"),
        is_rank_stabilized=keys.boolean(stabilized_key, False),
        ranks=Patterns(keys, "rank_pattern"),
        alphas=Patterns(keys, "alpha_pattern"),
    )


def _text(keys: Keys, key: str) -> str | None:
    value = keys.value(key)
    if value is not None and not isinstance(value, str):
        raise keys.refuse(key, f"is {show(value)}, a text is expected")
    return value or None


def _texts(keys: Keys, key: str) -> tuple[str, ...]:
    texts = keys.sequence(key) if keys.value(key) is not None else ()
    for text in texts:
        if not isinstance(text, str):
            raise keys.refuse(key, f"holds {show(text)}, texts are expected")
    return tuple(str(text) for text in texts)


def _version(keys: Keys) -> tuple[int, ...]:
    match = re.match(r"(\d{1,4})\.(\d{1,4})", _text(keys, "peft_version") or "", re.ASCII)
    return (int(match[1]), int(match[2])) if match else ()
