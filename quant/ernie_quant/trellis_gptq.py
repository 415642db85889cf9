"""Chooses the codes of w2t column by column: GPTQ (gptq.py), with a search along trellises for rounding.

The order of the columns is that of the trellises, one after the other: each is a ring of columns. Viterbi's
search keeps, of all codes so far, one survivor for each state. What later columns should become depends on a
survivor's codes, so each one carries its own error feedback (per-survivor processing; Raheli, Polydoros,
Tzou, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.packing.formats import TRELLIS_STRIDE
from ernie_local.packing.trellis import MEMORY, pairs_of_windows
from ernie_quant.hessian import inverse_factor
from ernie_quant.native_steps import BLOCK, has_native_steps, run_native_step

Tensor = torch.Tensor
NUM_STATES = 1 << MEMORY
# The next three mirror csrc/trellis_kernel.hpp.
DECIDED = 24  # columns that are decided at a time
LOOK_AHEAD = 24  # columns after them that have a say
LONGEST_RING = 24  # up to so many columns, every state is tried as the first one
ANY_STATE = -1


def ring_order(columns: int) -> Tensor:
    """Columns of a row in the order of its rings, (columns,): those of each residue one after the other."""
    order: Tensor = torch.arange(columns).unflatten(0, (-1, TRELLIS_STRIDE)).t().flatten()
    return order


def ring_order_and_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The columns ring by ring, and how the error of each goes to later ones, as gptq.order_and_factor."""
    order = ring_order(len(hessian))
    return order, inverse_factor(hessian[order][:, order]).contiguous()


def choose_paths(weights: Tensor, feedback: tuple[Tensor, Tensor], group_size: int, steps: Tensor) -> Tensor:
    """Codes, (rows, columns) uint8. weights: (rows, columns); steps: (rows, groups) float32, of a level.

    feedback: of `ring_order_and_factor`.
    """
    columns = weights.shape[1]
    order, factor = feedback
    walk = _Walk(
        left=weights.float().t()[order].contiguous(),
        factor=factor,
        group_ids=order // group_size,
        steps=steps.t().contiguous(),
        codes=torch.empty(columns, weights.shape[0], dtype=torch.uint8),
    )
    for first in range(0, columns, columns // TRELLIS_STRIDE):
        walk.ring(first, first + columns // TRELLIS_STRIDE)
    back = torch.empty_like(walk.codes)
    back[order] = walk.codes
    return back.t().contiguous()


@dataclass(frozen=True, slots=True)
class _Walk:
    """Everything in the order of the work, a column a row of memory."""

    left: Tensor  # (columns, rows) float32, what each column should become
    factor: Tensor  # (columns, columns)
    group_ids: Tensor  # (columns,) int64
    steps: Tensor  # (groups, rows)
    codes: Tensor  # (columns, rows) uint8

    def ring(self, first: int, end: int) -> None:
        """Decide the columns of one ring."""
        columns, rows = self.left.shape
        # Before what comes next, and before the first column.
        states = torch.zeros(2, rows, dtype=torch.uint8)
        is_native = has_native_steps()
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            errors = torch.empty(stop - start, rows)  # over the factor's diagonal
            if is_native:
                read = self.left, self.factor, self.group_ids, self.steps, first, start, stop, end
                run_native_step("walk_trellis", *read, states, self.codes, errors)
            else:
                self._block(slice(first, end), slice(start, stop), states, errors)
            if stop < columns:
                self.left[stop:].addmm_(self.factor[start:stop, stop:].t(), errors, alpha=-1)

    def _block(self, ring: slice, block: slice, states: Tensor, errors: Tensor) -> None:
        """Write the codes of the block's columns, their errors, (block, rows), and the states after them."""
        look_end = min(block.stop + LOOK_AHEAD, ring.stop)
        left = self.left[block.start : look_end].clone()
        state, first_state = states.long()
        for start in range(block.start, block.stop, DECIDED):
            stop = min(start + DECIDED, block.stop)
            seen = slice(start, min(stop + LOOK_AHEAD, ring.stop))
            rest = left[start - block.start : seen.stop - block.start]
            stretch = Stretch(rest, self.steps[self.group_ids[seen]], self.factor[seen, seen])
            if ring.stop - ring.start <= LONGEST_RING:
                codes, _ = stretch.search_ring()
                state = states_before(codes, 0).long()
            else:
                if start == ring.start:
                    state = first_state = self._seam(ring)
                closes = seen.stop == ring.stop
                end = first_state if closes else torch.full_like(state, ANY_STATE)
                codes, _, _ = stretch.search(state, end)
            size = stop - start
            decided = Stretch(rest[:size], stretch.steps[:size], stretch.factor[:size, :size])
            own = decided.errors(codes[:size], state)
            rest[size:].addmm_(stretch.factor[:size, size:].t(), own, alpha=-1)
            for code in codes[:size].long():
                state = (state | (code & 1) * NUM_STATES) >> 1
            self.codes[start:stop] = codes[:size]
            errors[start - block.start : stop - block.start] = own
        states.copy_(torch.stack((state, first_state)))

    def _seam(self, ring: slice) -> Tensor:
        """The state before a ring's first column, (rows,), as its last columns and its first ones want it.

        Of the best path through both, each half with its own feedback.
        """
        half = min(LOOK_AHEAD, (ring.stop - ring.start) // 2)
        last, first = torch.arange(ring.stop - half, ring.stop), torch.arange(ring.start, ring.start + half)
        columns = torch.cat((last, first))
        factor = torch.block_diag(*(self.factor[one][:, one] for one in (last, first)))
        stretch = Stretch(self.left[columns], self.steps[self.group_ids[columns]], factor)
        anywhere = torch.full((self.left.shape[1],), ANY_STATE)
        codes, _, state = stretch.search(anywhere, anywhere)
        for code in codes[:half].long():
            state = (state | (code & 1) * NUM_STATES) >> 1
        return state


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring columns of one ring, and what is minimized: the sum of square(error / diagonal of factor).

    left: (columns, rows), what they should become; steps: (columns, rows), of a level; factor: (columns,
    columns), upper: by its rows a column's error over the diagonal goes into the columns after it.
    """

    left: Tensor
    steps: Tensor
    factor: Tensor

    def errors(self, codes: Tensor, start: Tensor) -> Tensor:
        """Of given codes, over the factor's diagonal, (columns, rows). start: (rows,), the states before."""
        left = self.left.clone()
        values = levels_behind(codes, start).mul_(self.steps)
        errors = torch.empty_like(left)
        for column, error in enumerate(errors):
            torch.sub(left[column], values[column], out=error)
            error.div_(self.factor[column, column])
            left[column + 1 :].addr_(self.factor[column, column + 1 :], error, alpha=-1)
        return errors

    def search(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (columns, rows) of least cost between two states, that cost (rows,), and the first states.

        start, end: (rows,) int64, or ANY_STATE.
        """
        states = torch.arange(NUM_STATES)
        pairs = pairs_of_windows()
        columns, rows = self.left.shape
        rest = self.left.t()[:, None].repeat(1, NUM_STATES, 1)  # (rows, states, columns)
        is_start = (start[:, None] == ANY_STATE) | (start[:, None] == states)
        costs = torch.zeros(is_start.shape).masked_fill_(~is_start, torch.inf)  # (rows, states)
        # A window and, above it, the second bit.
        chosen = torch.empty(columns, rows, NUM_STATES, dtype=torch.long)
        for column in range(columns):
            values = self.steps[column][:, None, None] * pairs
            away = rest[:, :, column].repeat(1, 2)[..., None] - values  # (rows, windows, 2)
            second = away.square().argmin(-1)
            errors = away.gather(-1, second[..., None])[..., 0] / self.factor[column, column]
            reached = costs.repeat(1, 2) + errors.square()
            costs, oldest = reached.unflatten(1, (-1, 2)).min(-1)  # two windows lead to each state
            windows = states * 2 + oldest
            chosen[column] = windows | second.gather(1, windows) << (MEMORY + 1)
            before = (windows & (NUM_STATES - 1))[..., None].expand(rest.shape)
            rest = rest.gather(1, before)
            later = self.factor[column].where(torch.arange(columns) > column, 0)
            rest -= errors.gather(1, windows)[..., None] * later
        is_end = (end[:, None] == ANY_STATE) | (end[:, None] == states)
        cost, state = costs.masked_fill(~is_end, torch.inf).min(1)
        codes = torch.empty(columns, rows, dtype=torch.uint8)
        for column in reversed(range(columns)):
            choice = chosen[column].gather(1, state[:, None])[:, 0]
            codes[column] = choice >> MEMORY
            state = choice & (NUM_STATES - 1)
        return codes, cost, state

    def search_ring(self) -> tuple[Tensor, Tensor]:
        """Codes of a whole ring of least cost over all states that it can come back to, and that cost."""
        columns, rows = self.left.shape
        best, least = torch.zeros(columns, rows, dtype=torch.uint8), torch.full((rows,), torch.inf)
        for tried in range(NUM_STATES):
            states = torch.full((rows,), tried)
            codes, cost, _ = self.search(states, states)
            best, least = torch.where(cost < least, codes, best), torch.minimum(cost, least)
        return best, least


def levels_behind(codes: Tensor, start: Tensor) -> Tensor:
    """Levels less the zero, (columns, rows) float32, of codes that follow the states `start`, (rows,)."""
    pairs, state = pairs_of_windows(), start.long()
    levels = torch.empty(codes.shape)
    for code, level in zip(codes.long(), levels, strict=True):
        window = (code & 1) << MEMORY | state
        level.copy_(pairs[window, code >> 1])
        state = window >> 1
    return levels


def states_before(ring: Tensor, column: int) -> Tensor:
    """The states before a column of a ring, (rows,) uint8. ring: (columns, rows) codes."""
    state = torch.zeros(ring.shape[1], dtype=torch.uint8)
    for back in range(MEMORY, 0, -1):
        state = state >> 1 | (ring[(column - back) % len(ring)] & 1) << (MEMORY - 1)
    return state
