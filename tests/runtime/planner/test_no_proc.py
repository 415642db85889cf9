"""A system that does not tell how much memory it has, as where /proc is hidden, is a refusal."""

from __future__ import annotations

import psutil
import pytest

from ernie_local.errors import DoesNotFit
from ernie_local.planner.free_memory import free_memory, process_memory


def hidden(*_: object) -> None:
    raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")


def gone(*_: object) -> None:
    raise psutil.NoSuchProcess(7)


def test_memory_of_the_machine_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    with pytest.raises(DoesNotFit, match="/proc"):
        free_memory()


@pytest.mark.parametrize("raising", [hidden, gone])
def test_memory_of_the_process_that_is_not_told(monkeypatch: pytest.MonkeyPatch, raising: object) -> None:
    monkeypatch.setattr(psutil, "Process", raising)
    with pytest.raises(DoesNotFit, match="/proc"):
        process_memory()
