"""Kernels are tested with more than one thread, whatever other tests have."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _several_threads(two_threads: None) -> None:
    """Two, where a test does not set others."""
