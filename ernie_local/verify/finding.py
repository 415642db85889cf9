"""What is wrong with a model, and the list that it is entered into while everything else is looked at too."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from ernie_local.errors import ModelUnusable


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, in the three parts of an error; file, tensor (its name there) and page where it has them."""

    error: ModelUnusable
    file: str | None = None
    tensor: str | None = None
    page: int | None = None


class Findings:
    """All faults, in the order in which they were met; what says the same is kept once."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Enter a fault."""
        if all(str(finding.error) != str(other.error) for other in self.all):
            self.all.append(finding)

    def catch(self, file: str | None = None, tensor: str | None = None, page: int | None = None) -> _Catch:
        """A context that enters the ModelUnusable raised in it; what was to follow in it is left out."""
        return _Catch(self, file, tensor, page)


@dataclass(frozen=True, slots=True)
class _Catch:
    findings: Findings
    file: str | None
    tensor: str | None
    page: int | None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, ModelUnusable):
            self.findings.add(Finding(error, self.file, self.tensor, self.page))
            return True
        return False
