"""The stream of training crops: crop number n is a function of (seed, n), whoever cuts it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nemesis.config import Sampling
from nemesis.data.scans import Scans
from nemesis.data.superpatches import draw_crop

AHEAD = 2  # batches that are cut while the device computes, where no process does

Batch = tuple[Tensor, Tensor]


class Crops(Dataset[Batch]):
    """Crops of these numbers as int16 HU (B, 1, D, H, W), with the numbers (B,)."""

    def __init__(self, scans: Scans, edge: int, seed: int, sampling: Sampling) -> None:
        self.scans, self.edge, self.seed, self.sampling = scans, edge, seed, sampling

    def __getitem__(self, numbers: list[int]) -> Batch:
        crops = [draw_crop(self.scans, self.edge, self.seed, number, self.sampling) for number in numbers]
        return torch.from_numpy(np.stack(crops))[:, None], torch.tensor(numbers)


class RankBatches(Sampler[list[int]]):
    """The crop numbers of this rank's share of every batch, from a step on."""

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int, ranks: int) -> None:
        self.first_step, self.steps, self.batch_size, self.rank, self.ranks = first_step, steps, batch_size, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            yield [step * self.batch_size + i for i in range(self.rank, self.batch_size, self.ranks)]

    def __len__(self) -> int:
        return self.steps - self.first_step


def crop_loader(crops: Crops, batches: RankBatches, workers: int, pin: bool) -> Iterable[Batch]:
    """Batches of (int16 HU (B, 1, D, H, W), crop numbers (B,)), cut by ``workers`` processes; by a thread where that is 0."""
    if not workers:
        return _ByThread(crops, batches, pin)
    return DataLoader(crops, sampler=batches, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=4)


class _ByThread:
    """Some batches ahead of the device: cutting is left to another thread, so that hardly a step waits for its crops."""

    def __init__(self, crops: Crops, batches: RankBatches, pin: bool) -> None:
        self.crops, self.batches, self.pin = crops, batches, pin

    def _cut(self, numbers: list[int]) -> Batch:
        hu, which = self.crops[numbers]
        return (hu.pin_memory(), which.pin_memory()) if self.pin else (hu, which)

    def __iter__(self) -> Iterator[Batch]:
        numbers = iter(self.batches)
        with ThreadPoolExecutor(1) as thread:
            try:
                waiting = deque(thread.submit(self._cut, some) for some in islice(numbers, AHEAD))
                while waiting:
                    batch = waiting.popleft().result()
                    waiting.extend(thread.submit(self._cut, some) for some in islice(numbers, 1))
                    yield batch
            finally:
                thread.shutdown(cancel_futures=True)
