"""The stream of training samples, cut ahead of the device: sample number n is a function of (seed, n), whoever cuts it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nemesis.config import Sampling
from nemesis.data.samples import Labelling, draw_sample
from nemesis.data.scans import Scans
from nemesis.method import Draw, WholeVolume

AHEAD = 2  # batches that are cut while the device computes, where no process does


class Cut(NamedTuple):
    """Samples: int16 HU (B, 1, D, H, W), their numbers (B,), and with labels the classes (B, 1, D, H, W) uint8 and which of
    them are known (B, K) bool (:class:`nemesis.method.Batch`)."""

    hu: Tensor
    numbers: Tensor
    classes: Tensor | None = None
    known: Tensor | None = None


class Crops(Dataset[Cut]):
    """The samples of these numbers."""

    def __init__(
        self, scans: Scans, draw: Draw | WholeVolume, seed: int, sampling: Sampling, labelling: Labelling | None = None
    ) -> None:
        self.scans, self.draw, self.seed, self.sampling, self.labelling = scans, draw, seed, sampling, labelling

    def __getitem__(self, numbers: list[int]) -> Cut:
        drawn = [draw_sample(self.scans, self.draw, self.seed, n, self.sampling, self.labelling) for n in numbers]
        hu, which = torch.from_numpy(np.stack([one.hu for one in drawn]))[:, None], torch.tensor(numbers)
        classes = [one.classes for one in drawn if one.classes is not None]
        known = [one.known for one in drawn if one.known is not None]
        if not classes:
            return Cut(hu, which)
        return Cut(hu, which, torch.from_numpy(np.stack(classes))[:, None], torch.from_numpy(np.stack(known)))


class RankBatches(Sampler[list[int]]):
    """The crop numbers of this rank's share of every batch, from a step on."""

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int, ranks: int) -> None:
        self.first_step, self.steps, self.batch_size, self.rank, self.ranks = first_step, steps, batch_size, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            yield [step * self.batch_size + i for i in range(self.rank, self.batch_size, self.ranks)]

    def __len__(self) -> int:
        return self.steps - self.first_step


def crop_loader(crops: Crops, batches: RankBatches, workers: int, pin: bool) -> Iterable[Cut]:
    """Batches of samples, cut by ``workers`` processes; by a thread where that is 0."""
    if not workers:
        return _ByThread(crops, batches, pin)
    return DataLoader(crops, sampler=batches, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=4)


class _ByThread:
    """Some batches ahead of the device: cutting is left to another thread, so that hardly a step waits for its crops."""

    def __init__(self, crops: Crops, batches: RankBatches, pin: bool) -> None:
        self.crops, self.batches, self.pin = crops, batches, pin

    def _cut(self, numbers: list[int]) -> Cut:
        cut = self.crops[numbers]
        if not self.pin:
            return cut
        classes, known = (part if part is None else part.pin_memory() for part in (cut.classes, cut.known))
        return Cut(cut.hu.pin_memory(), cut.numbers.pin_memory(), classes, known)

    def __iter__(self) -> Iterator[Cut]:
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
