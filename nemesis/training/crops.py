"""The stream of training crops: crop number n is a function of (seed, n), whoever cuts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nemesis.data.superpatches import Scans, draw_crop


class Crops(Dataset[tuple[Tensor, int]]):
    """Crop ``number`` as int16 HU (1, D, H, W), with its number."""

    def __init__(self, scans: Scans, edge: int, seed: int) -> None:
        self.scans, self.edge, self.seed = scans, edge, seed

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        crop = draw_crop(self.scans, self.edge, self.seed, number)
        return torch.from_numpy(np.ascontiguousarray(crop))[None], number


class RankBatches(Sampler[list[int]]):
    """The crop numbers of this rank's share of every batch, from a step on."""

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int, ranks: int) -> None:
        self.first_step, self.steps, self.batch_size, self.rank, self.ranks = first_step, steps, batch_size, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            yield [step * self.batch_size + i for i in range(self.rank, self.batch_size, self.ranks)]

    def __len__(self) -> int:
        return self.steps - self.first_step


def crop_loader(crops: Crops, batches: RankBatches, workers: int, pin: bool) -> DataLoader[Any]:
    """Batches of (int16 HU (B, 1, D, H, W), crop numbers (B,))."""
    return DataLoader(
        crops, batch_sampler=batches, num_workers=workers, pin_memory=pin, persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )  # fmt: skip
