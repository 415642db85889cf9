"""Collects the faults of a model, so that a check can go on after the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ernie_local.errors import ModelUnusable

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault and its place, where it has one: file, tensor (its name in the file), page of the tensor."""

    error: ModelUnusable
    file: str | None = None
    tensor: str | None = None
    page: int | None = None


class Findings:
    """All faults in the order in which they were found. Faults with the same text are kept once."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Keep a fault, unless one with the same text is there."""
        if all(str(finding.error) != str(other.error) for other in self.all):
            self.all.append(finding)

    def attempt(
        self,
        check: Callable[[], _Result],
        file: str | None = None,
        tensor: str | None = None,
        page: int | None = None,
    ) -> _Result | None:
        """The result of `check`; None if it raises ModelUnusable, which is kept as a fault of this place."""
        try:
            return check()
        except ModelUnusable as error:
            self.add(Finding(error, file, tensor, page))
            return None
