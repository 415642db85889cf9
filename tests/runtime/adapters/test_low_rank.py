"""What an adapter adds, and several of them as one."""

import torch

from ernie_local.adapters.low_rank import Adapter, LowRank, join_adapters


def _low_rank(rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, 6, generator=generator), torch.randn(4, rank, generator=generator))


def test_joined_adapters_add_the_sum_of_what_each_adds() -> None:
    first, second, alone = _low_rank(2, 0), _low_rank(3, 1), _low_rank(1, 2)
    joined = join_adapters([Adapter({"a": first}), Adapter({"a": second, "b": alone})])
    assert joined.weights["a"].rank == 5
    torch.testing.assert_close(joined.weights["a"].weight(), first.weight() + second.weight())
    torch.testing.assert_close(joined.weights["b"].weight(), alone.weight())
    assert joined.num_bytes == 4 * (5 * 6 + 4 * 5 + 6 + 4)
