"""Segmentation of organs by fine-tuning: crops with their label maps to train on, whole scans to judge by.

The loss is :func:`nemesis.evaluation.segmentation.dice_bce`. A scan is predicted by MONAI's sliding window (windows of the
superpatch's size, blended by a Gaussian); a voxel is an organ's where its sigmoid is above one half, so organs may overlap. A
method with a voxel size of its own sees the scan's view, where the labels of the nearest voxels stand; what it says is resampled
(trilinear) to the scan's grid, on which all methods are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nemesis.data.cases import SCORED_KINDS
from nemesis.data.foreground import Position
from nemesis.data.samples import Labelling
from nemesis.data.scans import Scans
from nemesis.data.store import AIR, normalise, pad
from nemesis.data.superpatches import draw_start
from nemesis.evaluation.agreement import agreement, dice
from nemesis.evaluation.features import batch_size
from nemesis.evaluation.segmentation import dice_bce
from nemesis.training.device import Precision, arithmetic

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelledScans:
    """The scans of the evaluation pool whose label maps count, with their views where the method has a voxel size of its own."""

    scans: Scans
    view: Scans | None
    labelling: Labelling
    edge: int

    def of(self, patients: frozenset[str]) -> list[int]:
        """Scans of these patients (dataset/patient) in which an organ was drawn, in the order of the pool."""
        found = []
        for i, case in enumerate(self.scans.cases):
            scored = self.scans.row(i)["kind"] in SCORED_KINDS and bool(self.labelling.known(i).any())
            if scored and f"{case.dataset}/{case.patient}" in patients:
                found.append(i)
        return found

    def crop(self, i: int, centred: float, random: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """HU and classes (D, H, W) of a crop of scan ``i`` (its view): about a labelled voxel in a share ``centred`` of all."""
        source = self.view or self.scans
        shape, native, edge = source.shape(i), self.scans.shape(i), self.edge
        size = [min(edge, n) for n in shape]
        about = self.labelling.position(random, i) if random.random() < centred else None
        if about is None:
            start = list(draw_start(source, i, edge, random))
        else:
            there = [int((p + 0.5) * n / m) for p, n, m in zip(about, shape, native, strict=True)]
            start = [min(max(p - s // 2, 0), n - s) for p, s, n in zip(there, size, shape, strict=True)]
        hu = pad(source.hu(i).read(_three(start), _three(size), AIR), (edge,) * 3, AIR)
        nearest = [
            ((np.arange(a, a + s) + 0.5) * m / n).astype(np.intp) for a, s, n, m in zip(start, size, shape, native, strict=True)
        ]
        first = [int(axis[0]) for axis in nearest]
        volume = self.scans.labels(i)
        assert volume is not None
        box = volume.read(_three(first), _three([int(axis[-1]) + 1 - a for axis, a in zip(nearest, first, strict=True)]), 0)
        labels = box[np.ix_(*(axis - a for axis, a in zip(nearest, first, strict=True)))]
        return hu, pad(self.labelling.classes_of(i, labels), (edge,) * 3, 0)

    def truth(self, i: int) -> NDArray[np.uint8]:
        """Classes (D, H, W) of scan ``i`` on its own grid, from 1; 0 where there is none."""
        volume = self.scans.labels(i)
        assert volume is not None
        return self.labelling.classes_of(i, volume.whole())


@dataclass(frozen=True)
class SegmentationTask:
    """One problem's training (:class:`nemesis.evaluation.tuning.Task`)."""

    make: Callable[[], nn.Module]  # a segmenter as training begins
    scans: LabelledScans
    train: list[int]
    validation: list[int]
    batch: int
    centred: float
    overlap: float
    seed: int
    device: torch.device
    precision: Precision

    @property
    def validates(self) -> bool:
        """Whether the validation tells anything: its scans hold a labelled voxel."""
        nobody = np.random.default_rng(0)
        return any(self.scans.labelling.position(nobody, i) is not None for i in self.validation)

    def module(self) -> nn.Module:
        """See :class:`nemesis.evaluation.tuning.Task`."""
        return self.make()

    def sample(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels (B, 1, D, H, W) in [0, 1], classes (B, 1, D, H, W) uint8, and which are known (B, K)."""
        voxels, classes, known = [], [], []
        window = self.scans.scans.preparation.hu_window
        for number in range(step * self.batch, (step + 1) * self.batch):
            random = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            i = self.train[int(random.integers(len(self.train)))]
            hu, here = self.scans.crop(i, self.centred, random)
            voxels.append(normalise(hu, window))
            classes.append(here)
            known.append(self.scans.labelling.known(i))
        whole, maps = (torch.from_numpy(np.stack(what))[:, None] for what in (voxels, classes))
        return whole, maps, torch.from_numpy(np.stack(known))

    def loss(self, module: nn.Module, sample: tuple[Tensor, ...]) -> Tensor:
        """See :func:`nemesis.evaluation.segmentation.dice_bce`."""
        voxels, classes, known = (part.to(self.device) for part in sample)
        return dice_bce(module(voxels), classes, known)

    def validate(self, module: nn.Module) -> float:
        """Mean Dice: over the scans of each organ, then over the organs."""
        each = np.stack([self.dice(module, i) for i in self.validation])
        with_one = ~np.isnan(each).all(0)
        return float(np.nanmean(each[:, with_one], axis=0).mean()) if with_one.any() else float("nan")

    def dice(self, module: nn.Module, i: int) -> Floats:
        """(K,): see :func:`nemesis.evaluation.agreement.dice`; NaN, too, of organs that were not drawn in the scan."""
        found = dice(self.masks(module, i), self.scans.truth(i))
        return np.where(self.scans.labelling.known(i), found, np.nan)

    def judged(self, module: nn.Module, i: int, tolerance: float) -> Iterator[tuple[str, str, float | None]]:
        """(organ, metric, value) of scan ``i``: the figures of :func:`nemesis.evaluation.agreement.agreement` of every organ that
        is there, and ``invented``, 1, of one that is not there but seen; nothing of those that were not drawn in the scan."""
        masks, truth, known = self.masks(module, i), self.scans.truth(i), self.scans.labelling.known(i)
        spacing = self.scans.scans.row(i)["spacing"]
        for k, organ in enumerate(self.scans.labelling.classes):
            if known[k] and (there := truth == k + 1).any():
                yield from ((organ, *figure) for figure in agreement(masks[k], there, spacing, tolerance).items())
            elif known[k] and masks[k].any():
                yield organ, "invented", 1.0

    @torch.no_grad()
    def masks(self, module: nn.Module, i: int) -> NDArray[np.bool_]:
        """(K, D, H, W): where a module in evaluation mode sees each organ in scan ``i``."""
        from monai.inferers.utils import sliding_window_inference

        source, edge = self.scans.view or self.scans.scans, self.scans.edge
        voxels = torch.from_numpy(normalise(source.hu(i).whole(), source.preparation.hu_window))[None, None]

        def predict(windows: Tensor) -> Tensor:
            with arithmetic(self.device, self.precision):
                logits: Tensor = module(windows)
            return logits.float()

        said = sliding_window_inference(
            voxels, (edge,) * 3, batch_size(edge**3), predict, overlap=self.overlap, mode="gaussian", sw_device=self.device,
            device="cpu",
        )  # fmt: skip
        assert isinstance(said, Tensor)
        native = self.scans.scans.shape(i)
        if said.shape[2:] != native:
            said = functional.interpolate(said, native, mode="trilinear", align_corners=False)
        return np.asarray((said[0] > 0).numpy())


def _three(values: list[int]) -> Position:
    d, h, w = values
    return d, h, w
