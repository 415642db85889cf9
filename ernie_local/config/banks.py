"""Lists a model's banks of routed experts, and says which tokens each one serves.

The only module that knows how many banks there can be: everything else iterates over `TextConfig.banks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The name of a bank, in tensor names and reports: the first modality that it serves. So the bank named "text"
# is the one that decoding uses, and one named "vision" is used by prompts with images alone.
Bank = str
BankKey = tuple[int, Bank]  # layer and bank
Modality = Literal["text", "vision"]  # kinds of tokens; video frames are vision too

MODALITIES: tuple[Modality, Modality] = ("text", "vision")


@dataclass(frozen=True, slots=True)
class ExpertBank:
    """The experts of one layer that serve the same tokens; every layer with experts has the same banks."""

    name: Bank
    num_experts: int
    expert_size: int  # inner width of each expert
    serves: frozenset[Modality]


def one_bank(num_experts: int, expert_size: int) -> tuple[ExpertBank, ...]:
    """The banks of a model whose tokens all go to the same experts."""
    return (ExpertBank("text", num_experts, expert_size, frozenset(MODALITIES)),)


def bank_per_modality(num_experts: int, expert_sizes: tuple[int, ...]) -> tuple[ExpertBank, ...]:
    """The banks of a vision-language model. expert_sizes: inner width of each, in the order of MODALITIES."""
    return tuple(
        ExpertBank(modality, num_experts, size, frozenset({modality}))
        for modality, size in zip(MODALITIES, expert_sizes, strict=True)
    )
