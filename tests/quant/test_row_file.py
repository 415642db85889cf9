"""Rows in a file against the same rows in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from ernie_quant.tokens import RowFile


def test_rows_come_back_whatever_their_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(50, 7)
    with RowFile(tmp_path / "rows", 50, 7, is_new=True) as rows:
        assert torch.equal(rows.read(slice(None)), expected)
        for ids in ([3, 4, 5, 9], [49], [20, 10, 11, 0], [], list(range(50))):
            places = torch.tensor(ids, dtype=torch.int64)
            values = torch.randn(len(ids), 7, generator=generator)
            rows.write(places, values)
            expected[places] = values
            assert torch.equal(rows.read(places), values)
            rows.add(places, values)
            expected[places] += values
            assert torch.equal(rows.read(slice(0, 50)), expected)
        rows.write(slice(5, 8), torch.ones(3, 7))
        expected[5:8] = 1
        assert torch.equal(rows.read(slice(4, 90)), expected[4:])
    with RowFile(tmp_path / "rows", 50, 7) as again:
        assert torch.equal(again.read(torch.tensor([7, 2])), expected[[7, 2]])
