"""Which tokens a masked autoencoder sees. Pure functions of (grid, ratios, random scores), for a whole batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nemesis.models.architecture import Size
from nemesis.models.keyed import Keys

PlaneMasking = Literal["columns", "per_slice", "thinned", "uniform"]
AxisMasking = Literal["random", "contiguous"]


class Mask(NamedTuple):
    """keep (B, T', n) int64: the visible token numbers as T' slices of n tokens; hidden (B, N) bool, True where masked."""

    keep: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Masking:
    """A strategy and its ratios.

    plane: how tokens are hidden within slices, by ``plane_ratio``:

    - ``columns``: the same in-plane places in every slice; with whole slices hidden, a regular grid stays (NEMESIS's paper);
    - ``per_slice``: other places in every slice (MAESIL's paper);
    - ``thinned``: ``plane_ratio`` hides columns, then every slice loses ``axis_ratio`` of what is left, each its own; no slice
      is hidden (the released code);
    - ``uniform``: any tokens of the superpatch, as many in all as ``columns`` would hide; in token order they are cut into
      equal rows, which stand for the slices.

    axis: the slices that ``axis_ratio`` hides are any of them, or one block (``columns`` and ``per_slice``).
    """

    plane: PlaneMasking = "columns"
    axis: AxisMasking = "random"
    plane_ratio: float = 0.5
    axis_ratio: float = 0.5

    def __post_init__(self) -> None:
        for name, ratio in (("plane_ratio", self.plane_ratio), ("axis_ratio", self.axis_ratio)):
            if not 0.0 <= ratio < 1.0:
                raise ValueError(f"{name} {ratio} is not in [0, 1)")

    def visible(self, grid: Size) -> tuple[int, int]:
        """Shape (T', n) of the visible tokens."""
        slices, columns = grid[0], grid[1] * grid[2]
        n_columns = visible_count(columns, self.plane_ratio)
        if self.plane == "thinned":
            return slices, visible_count(n_columns, self.axis_ratio)
        return visible_count(slices, self.axis_ratio), n_columns

    def hidden_share(self, grid: Size) -> float:
        """The effective mask ratio: share of all tokens that is hidden."""
        return 1.0 - math.prod(self.visible(grid)) / math.prod(grid)


def visible_count(n: int, ratio: float) -> int:
    """How many of ``n`` stay visible at a mask ratio: rounded down, at least one."""
    return max(1, math.floor(n * (1.0 - ratio) + 1e-9))  # the epsilon keeps 10 × (1 − 0.1) at 9


def draw_mask(grid: Size, masking: Masking, scores: Tensor) -> Mask:
    """The masks that these random numbers mean.

    Args:
        grid: tokens along (D, H, W): T slices of h·w columns.
        masking: strategy and ratios.
        scores: (B, N) uniform random numbers in [0, 1), N = T·h·w; a sample's mask depends on its own row alone.

    Raises:
        ValueError: scores of another grid.
    """
    slices, columns = grid[0], grid[1] * grid[2]
    batch = scores.shape[0]
    if scores.shape[1] != slices * columns:
        raise ValueError(f"scores must be (B, {slices * columns}), not {tuple(scores.shape)}")
    n_slices, n_tokens = masking.visible(grid)
    table = scores.view(batch, slices, columns)
    if masking.plane == "uniform":
        keep = _lowest(scores, n_slices * n_tokens).view(batch, n_slices, n_tokens)
        return _mask(keep, scores)
    if masking.plane == "thinned":
        kept_columns = _lowest(_unlike(_sums(table, 1)), visible_count(columns, masking.plane_ratio))
        within = table.gather(2, kept_columns[:, None, :].expand(-1, slices, -1))
        places = kept_columns[:, None, :].expand(-1, slices, -1).gather(2, _lowest(within, n_tokens))
        return _mask(torch.arange(slices, device=scores.device)[:, None] * columns + places, scores)
    slice_scores = _sums(table, 2)
    kept_slices = _block(slice_scores, n_slices) if masking.axis == "contiguous" else _lowest(slice_scores, n_slices)
    if masking.plane == "columns":
        places = _lowest(_sums(table, 1), n_tokens)[:, None, :]
    else:
        places = _lowest(table.gather(1, kept_slices[:, :, None].expand(-1, -1, columns)), n_tokens)
    return _mask(kept_slices[:, :, None] * columns + places, scores)


def keyed_mask(grid: Size, masking: Masking, keys: Keys) -> Mask:
    """The masks of a batch, each from its sample's key alone."""
    return draw_mask(grid, masking, keys.uniform("mask", math.prod(grid)))


def mask_of(hidden: Tensor, grid: Size, rows: tuple[int, int] | None = None) -> Mask:
    """An explicit mask: hidden (B, N) bool, True where masked, with equally many visible tokens in every slice that has any.

    Args:
        rows: shape (T', n) of the visible tokens where they keep no grid (``uniform``).

    Raises:
        ValueError: another shape, nothing visible, or slices that differ in their number of visible tokens.
    """
    slices, columns = grid[0], grid[1] * grid[2]
    if hidden.dtype != torch.bool or hidden.shape[1:] != (slices * columns,):
        raise ValueError(f"a mask is bool (B, {slices * columns}), not {hidden.dtype} {tuple(hidden.shape)}")
    if rows and bool(((~hidden).sum(1) == math.prod(rows)).all()):
        return Mask((~hidden).nonzero()[:, 1].view(len(hidden), *rows), hidden)
    counts = (~hidden).view(-1, slices, columns).sum(2)
    n = int(counts.max())
    used = (counts > 0).sum(1)
    if n == 0 or not bool(((counts == n) | (counts == 0)).all()) or bool((used != used[0]).any()):
        raise ValueError("the slices of a mask must show equally many tokens, or none, and every sample equally many slices")
    return Mask((~hidden).nonzero()[:, 1].view(len(hidden), int(used[0]), n), hidden)


def nothing_masked(grid: Size, batch: int, device: torch.device) -> Mask:
    """Every token visible."""
    slices, columns = grid[0], grid[1] * grid[2]
    keep = torch.arange(slices * columns, device=device).view(1, slices, columns).expand(batch, -1, -1)
    return Mask(keep, torch.zeros(batch, slices * columns, dtype=torch.bool, device=device))


def _mask(keep: Tensor, scores: Tensor) -> Mask:
    return Mask(keep, torch.ones_like(scores, dtype=torch.bool).scatter_(1, keep.flatten(1), False))


def _sums(table: Tensor, axis: int) -> Tensor:
    """Sums modulo 1: uniform again, and independent of any one of their numbers. In whole 2⁻²⁴, which is what scores are made of,
    so that no device's order of summation changes them."""
    return (table * 2**24).long().sum(axis) % 2**24 * 2.0**-24


def _unlike(scores: Tensor) -> Tensor:
    """Scores in an order that has nothing to do with their own: of two slices, one would else follow from the other and their
    columns' sums. An integer hash of their 24 bits (multiply, shift, exclusive or)."""
    x = (scores * 2**24).long()
    for factor, shift in ((0x9E3779B1, 15), (0x45D9F3B, 13)):
        x = x * factor % 2**32
        x = x ^ (x >> shift)
    return x % 2**24 * 2.0**-24


def _lowest(scores: Tensor, n: int) -> Tensor:
    """Places of the n lowest scores along the last axis, in rising order of place."""
    return scores.argsort(dim=-1, stable=True)[..., :n].sort(dim=-1).values


def _block(scores: Tensor, n: int) -> Tensor:
    """n of the places of each row, all but one block that begins at 0 … n, by the row's first score."""
    n_hidden = scores.shape[1] - n
    start = (scores[:, :1] * (n + 1)).long()
    kept = torch.arange(n, device=scores.device)
    return kept + torch.where(kept >= start, n_hidden, 0)
