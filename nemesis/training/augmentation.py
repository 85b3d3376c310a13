"""Random changes of crops, made on the training device and keyed like everything random: by seed, step and place in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemesis.config import Augmentation
from nemesis.models.keyed import Keys

AXES, IN_PLANE = (2, 3, 4), (3, 4)  # of tensors (B, C, D, H, W)


@dataclass(frozen=True)
class Moves:
    """How each crop of a batch is turned and mirrored: for voxels and masks alike.

    ``flips``: per crop the axes (of B, C, D, H, W) that are mirrored; ``turns``: quarter turns in the axial plane, before that.
    """

    flips: list[list[int]]
    turns: list[int]

    def __call__(self, batch: Tensor) -> Tensor:
        """The same batch (B, C, D, H, W), H and W alike, with every crop turned and mirrored."""
        if not any(self.turns) and not any(self.flips):
            return batch
        crops = zip(torch.split(batch, 1), self.turns, self.flips, strict=True)
        return torch.cat([torch.rot90(crop, turn, IN_PLANE).flip(axes) for crop, turn, axes in crops])


def draw_moves(keys: Keys, settings: Augmentation) -> Moves:
    """The moves of a batch. ``keys`` lie on the CPU, for a GPU would have to be waited for."""
    flips = keys.uniform("flip", 3) < settings.flip
    turned, turns = keys.uniform("rotate", 2).unbind(1)
    quarters = torch.where(turned < settings.rotate, 1 + (3 * turns).long(), 0)
    return Moves([[axis for axis, yes in zip(AXES, row, strict=True) if yes] for row in flips.tolist()], quarters.tolist())


def shifted(voxels: Tensor, keys: Keys, settings: Augmentation) -> Tensor:
    """Voxels (B, 1, D, H, W) in [0, 1], those of some crops raised or lowered and clipped; ``keys`` lie on their device."""
    if not settings.shift:
        return voxels
    chosen, size = keys.uniform("shift", 2).unbind(1)
    by = torch.where(chosen < settings.shift, (2 * size - 1) * settings.shift_size, 0.0)
    return (voxels + by.to(voxels)[:, None, None, None, None]).clamp(0.0, 1.0)
