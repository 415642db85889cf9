"""Which adapter is meant, and how results with it are told from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.source import AdapterSource
from ernie_local.errors import UsageError
from ernie_local.reuse.identity import adapter_digest
from tests.runtime.random_adapters import low_rank


@pytest.mark.parametrize(
    ("given", "directory", "scale"),
    [
        ("some/where", "some/where", 1.0),
        ("some/where:0.5", "some/where", 0.5),
        ("some:where:-2", "some:where", -2.0),
        ("some:where", "some:where", 1.0),
        (Path("here"), "here", 1.0),
    ],
)
def test_a_scale_may_follow_the_directory(given: str | Path, directory: str, scale: float) -> None:
    assert AdapterSource.parse(given) == AdapterSource(Path(directory), scale)


def test_a_directory_may_end_like_a_scale(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert AdapterSource.parse(tmp_path / "run:2") == AdapterSource(tmp_path / "run:2", 1.0)
    assert AdapterSource.parse(f"{tmp_path}/run:2:3") == AdapterSource(tmp_path / "run:2", 3.0)


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "0", "1e999"])
def test_a_scale_that_means_nothing_is_refused(scale: str) -> None:
    with pytest.raises(UsageError, match=f"an adapter times {scale}"):
        AdapterSource.parse(f"here:{scale}")


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    source = AdapterSource(tmp_path)
    empty = source.stamp()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"some")
    assert empty != source.stamp() != AdapterSource(tmp_path, 0.5).stamp()


def test_an_adapter_with_another_number_name_or_scale_has_another_digest() -> None:
    one = low_rank(4, 6, 2, seed=0)
    changed = low_rank(4, 6, 2, seed=0)
    changed.rows_by_rank[3, 1] *= 2
    digests = [
        adapter_digest(Adapter({name: value})) for name, value in (("a", one), ("b", one), ("a", changed))
    ]
    assert len(set(digests)) == 3
    assert adapter_digest(Adapter({"a": low_rank(4, 6, 2, seed=0)})) == digests[0]
