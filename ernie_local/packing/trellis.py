"""The trellis of `w2t`: what its stored bits mean, and which of its paths comes nearest to given numbers.

A code is `first + 2 * second`. The first bit of a step goes through a short memory; the two bits that come
out of it pick a subset of two levels, and the second bit picks one of these. So a path comes nearer to its
numbers than two bits for each number alone would. A row has TRELLIS_STRIDE paths: step `t` of path `k` is
column `t * TRELLIS_STRIDE + k`. A path is a ring: before its first step comes its last one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ernie_local.packing.formats import TRELLIS_DELAYS, TRELLIS_LEVELS, TRELLIS_STRIDE, TRELLIS_ZERO

MEMORY = max(TRELLIS_DELAYS)  # first bits that a state holds, the newest one highest
_NUM_STATES = 1 << MEMORY
_ROWS_AT_ONCE = 256  # what they choose at every step takes some megabytes
# Steps. Of longer rings one state is tried at the seam: 24 steps lose 4 percent more by that, 64 one percent.
_EXACT_UP_TO = 16
_FORGOTTEN_AFTER = 32  # so many steps later hardly any path depends on where it began


def levels_of(codes: Tensor) -> Tensor:
    """codes: (rows, columns) uint8 of 0 to 3 -> (rows, columns) uint8, of TRELLIS_LEVELS."""
    steps = codes.unflatten(1, (-1, TRELLIS_STRIDE))  # (rows, steps, paths)
    first = steps & 1
    delayed = [first.roll(delay, dims=1) for delay in TRELLIS_DELAYS]
    places = (steps ^ delayed[1] ^ delayed[2]) | (delayed[0] << 2)
    return torch.tensor(TRELLIS_LEVELS, dtype=torch.uint8, device=codes.device)[places.long()].flatten(1)


def pairs_of_windows(device: torch.device | str = "cpu") -> Tensor:
    """(2 << MEMORY, 2) float32: for every window of first bits its two levels, less TRELLIS_ZERO.

    A window is a step's own first bit and, in the bits below it, the state before; without its lowest bit it
    is the state after.
    """
    windows = torch.arange(2 * _NUM_STATES, device=device)
    own, *delayed = (windows >> (MEMORY - delay) & 1 for delay in (0, *TRELLIS_DELAYS))
    places = (own ^ delayed[1] ^ delayed[2]) | (delayed[0] << 2)
    levels = torch.tensor(TRELLIS_LEVELS, dtype=torch.float32, device=device) - TRELLIS_ZERO
    return levels[torch.stack((places, places | 2), dim=1)]


def nearest_codes(targets: Tensor, importance: Tensor) -> Tensor:
    """(rows, columns) uint8: paths of least squared error, each column's times its importance.

    targets: (rows, columns) float32, in levels less TRELLIS_ZERO; importance: like it. Of rings longer than
    _EXACT_UP_TO a slightly better one may exist.
    """
    strips = zip(targets.split(_ROWS_AT_ONCE), importance.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([_nearest_in_strip(*strip) for strip in strips])


def _nearest_in_strip(targets: Tensor, importance: Tensor) -> Tensor:
    by_path = [one.unflatten(1, (-1, TRELLIS_STRIDE)).transpose(0, 1) for one in (targets, importance)]
    search = _Search(*(one.flatten(1) for one in by_path))  # (steps, rows * paths)
    codes = search.short_rings() if len(by_path[0]) <= _EXACT_UP_TO else search.long_rings()
    by_row: Tensor = codes.unflatten(1, (-1, TRELLIS_STRIDE)).transpose(0, 1).flatten(1)  # (rows, columns)
    return by_row


class _Search:
    """Viterbi's search for rings. targets, importance: (steps, paths) float32."""

    def __init__(self, targets: Tensor, importance: Tensor) -> None:
        self._targets, self._importance = targets, importance
        self._pairs = pairs_of_windows(targets.device)

    def short_rings(self) -> Tensor:
        """(steps, paths) uint8: the best of those that begin and end in each state."""
        states = torch.arange(_NUM_STATES, device=self._targets.device)
        found = [self._closed(state.expand(self._targets.shape[1])) for state in states]
        costs = torch.stack([cost for cost, _ in found])  # (states, paths)
        codes = torch.stack([codes for _, codes in found])  # (states, steps, paths)
        best = costs.argmin(0).expand(1, *self._targets.shape)
        return codes.gather(0, best)[0]

    def long_rings(self) -> Tensor:
        """(steps, paths) uint8: the best through the state that a path over the seam comes through."""
        length = min(len(self._targets), _FORGOTTEN_AFTER)
        over_seam = [torch.cat((one[-length:], one[:length])) for one in (self._targets, self._importance)]
        anywhere = torch.zeros(self._targets.shape[1], _NUM_STATES, device=self._targets.device)
        costs, lost = _Search(*over_seam)._forward(anywhere)
        states = costs.argmin(1)
        for step in reversed(range(length, 2 * length)):
            states = _windows(states, lost[step]) & (_NUM_STATES - 1)
        return self._closed(states)[1]

    def _closed(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Costs (paths,) and codes of paths that begin and end in `states`, (paths,)."""
        costs = torch.full((len(states), _NUM_STATES), torch.inf, device=states.device)
        costs, lost = self._forward(costs.scatter(1, states[:, None], 0.0))
        codes = torch.empty(self._targets.shape, dtype=torch.uint8, device=states.device)
        reached = costs.gather(1, states[:, None])[:, 0]
        for step in reversed(range(len(codes))):
            windows = _windows(states, lost[step])
            second = (self._targets[step, :, None] - self._pairs[windows]).square().argmin(1)
            codes[step] = (windows >> MEMORY) | (second << 1)
            states = windows & (_NUM_STATES - 1)
        return reached, codes

    def _forward(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Costs of the states after all steps, (paths, states); the best windows' oldest bits by step."""
        lost = torch.empty(len(self._targets), *costs.shape, dtype=torch.uint8, device=costs.device)
        for step, (targets, importance) in enumerate(zip(self._targets, self._importance, strict=True)):
            errors = (targets[:, None, None] - self._pairs).square().amin(-1)  # (paths, windows)
            reached = costs.repeat(1, 2) + errors * importance[:, None]
            # Two windows lead to each state: their oldest bits differ.
            costs, oldest = reached.unflatten(1, (-1, 2)).min(dim=-1)
            lost[step] = oldest
        return costs, lost


def _windows(states: Tensor, lost: Tensor) -> Tensor:
    """The best windows that lead to `states`, (paths,). lost: (paths, states) their oldest bits."""
    return states * 2 + lost.gather(1, states[:, None])[:, 0].long()
