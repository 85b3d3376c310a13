"""Which tokens a masked autoencoder sees. Pure functions of (grid, ratios, random scores), for a whole batch at once."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """keep (B, T', n) int64: the visible token numbers as T' slices of n tokens; hidden (B, N) bool, True where masked."""

    keep: Tensor
    hidden: Tensor


def visible_count(n: int, ratio: float) -> int:
    """How many of ``n`` stay visible at a mask ratio: rounded down, at least one."""
    return max(1, math.floor(n * (1.0 - ratio) + 1e-9))  # the epsilon keeps 10 × (1 − 0.1) at 9


def plane_axis_mask(
    grid: tuple[int, int, int],
    plane_ratio: float,
    axis_ratio: float,
    scores: Tensor,
    axis: Literal["contiguous", "random"] = "random",
) -> Mask:
    """NEMESIS's masking (arXiv 2604.01612): in-plane columns times whole slices, so that the visible tokens keep a grid.

    Args:
        grid: tokens along (D, H, W): T slices of h·w columns.
        plane_ratio, axis_ratio: share of the columns, and of the slices, that is hidden.
        scores: (B, N) uniform random numbers, N = T·h·w.
        axis: the hidden slices are one block, or any.
    """
    slices, columns = grid[0], grid[1] * grid[2]
    batch = scores.shape[0]
    if scores.shape[1] != slices * columns:
        raise ValueError(f"scores must be (B, {slices * columns}), not {tuple(scores.shape)}")
    table = scores.view(batch, slices, columns)
    # sums modulo 1 of uniform numbers are uniform, and no row sum depends on a single column sum
    column_scores, slice_scores = table.sum(1) % 1.0, table.sum(2) % 1.0
    n_columns, n_slices = visible_count(columns, plane_ratio), visible_count(slices, axis_ratio)
    kept_columns = _lowest(column_scores, n_columns)
    if axis == "random":
        kept_slices = _lowest(slice_scores, n_slices)
    else:
        n_hidden = slices - n_slices
        start = (slice_scores[:, :1] * (n_slices + 1)).long()  # first hidden slice, 0 … T'
        kept = torch.arange(n_slices, device=scores.device)
        kept_slices = kept + torch.where(kept >= start, n_hidden, 0)
    keep = kept_slices[:, :, None] * columns + kept_columns[:, None, :]
    hidden = torch.ones_like(scores, dtype=torch.bool).scatter_(1, keep.flatten(1), False)
    return Mask(keep, hidden)


def nothing_masked(grid: tuple[int, int, int], batch: int, device: torch.device) -> Mask:
    """Every token visible."""
    slices, columns = grid[0], grid[1] * grid[2]
    keep = torch.arange(slices * columns, device=device).view(1, slices, columns).expand(batch, -1, -1)
    return Mask(keep, torch.zeros(batch, slices * columns, dtype=torch.bool, device=device))


def _lowest(scores: Tensor, n: int) -> Tensor:
    """Places of the n lowest scores of each row, in rising order of place."""
    return scores.argsort(dim=1, stable=True)[:, :n].sort(dim=1).values
