"""`extract` over a thousand files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.extraction.record_file import read_records
from tests.cli.running import Command
from tests.cli.test_extract import WIDTH, StubReader, find_width


@pytest.mark.slow
def test_of_a_thousand_files_the_broken_ones_are_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """950 results, 50 errors by name, and exit code 1 with the count, or 0 where that is asked for."""
    readers = [StubReader(find_width) for _ in range(2)]
    monkeypatch.setattr("ernie_cli.extract.job.load_readers", lambda *_: readers)
    good, cut = io.BytesIO(), Image.new("RGB", (10, 9))
    cut.save(good, "PNG")
    broken = {f"{number:04}.png" for number in range(7, 1000, 20)}
    for number in range(1000):
        name = f"{number:04}.png"
        content = good.getvalue()
        # Cut, empty, of another kind, and of bytes that are none.
        faults = (content[:40], b"", b"%PDF-1.7", bytes(range(256)))
        (tmp_path / name).write_bytes(faults[number // 20 % 4] if name in broken else content)
    out = tmp_path / "out.jsonl"
    result = command("extract", str(tmp_path), *WIDTH, "--out", str(out), "--parallel", "2")
    records = list(read_records(out))
    assert {record.file for record in records if record.error is not None} == broken
    assert (len(records), sum(record.fields == {"width": 10} for record in records)) == (1000, 950)
    assert result.exit_code == 1
    assert "50 of 1000 documents have no fields" in result.stderr
    assert all(name in result.stderr for name in broken)
    again = command("extract", str(tmp_path), *WIDTH, "--out", str(out), "--skip-errors")
    assert again.exit_code == 0
