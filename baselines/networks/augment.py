"""What SuPreM and VoCo do to a crop before they learn from it: mirror, turn, shift; all from the step's keys.

Of a batch each crop is treated by itself, yet without a loop over them and without waiting for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemesis.models.keyed import Keys

AXIAL = (3, 4)  # H and W of (N, C, D, H, W)


@dataclass(frozen=True)
class Moves:
    """How N crops are mirrored and turned: flips (N, 3) bool, along D, H, W; turns (N,) quarter turns in the axial plane."""

    flips: Tensor
    turns: Tensor

    def __call__(self, crops: Tensor) -> Tensor:
        """Crops (N, C, D, H, W), H and W alike, voxels or classes, moved."""
        for axis in range(3):
            crops = torch.where(_each(self.flips[:, axis]), crops.flip(2 + axis), crops)
        turned = crops
        for quarters in (1, 2, 3):
            turned = torch.where(_each(self.turns == quarters), torch.rot90(crops, quarters, AXIAL), turned)
        return turned


def draw_moves(keys: Keys, crops: int, flip: float, turn: float) -> Moves:
    """Moves of ``crops`` crops of each sample (sample after sample): mirrored along each axis with probability ``flip``, turned
    by one, two or three quarters with probability ``turn``."""
    flips = keys.uniform("crop flips", 3 * crops).view(-1, 3) < flip
    chosen, which = keys.uniform("crop turns", 2 * crops).view(-1, 2).unbind(1)
    return Moves(flips, torch.where(chosen < turn, 1 + (3 * which).long(), 0))


def shifted(voxels: Tensor, keys: Keys, crops: int, probability: float, size: float) -> Tensor:
    """Voxels (N, 1, D, H, W), those of some crops raised or lowered by up to ``size``; like the originals, not clipped."""
    chosen, by = keys.uniform("crop shifts", 2 * crops).view(-1, 2).unbind(1)
    return voxels + _each(torch.where(chosen < probability, (2 * by - 1) * size, 0.0)).to(voxels)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]
