"""What a training step learns from, as the method's draw asks for it: superpatches, with or without labels, or whole volumes.

Sample number n of a training is a function of (seed, n) and the pool alone, whoever draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Sampling
from nemesis.data.foreground import Position
from nemesis.data.scans import Scans
from nemesis.data.store import AIR, pad
from nemesis.data.superpatches import draw_crop, draw_start
from nemesis.method import Draw, WholeVolume

REMEMBERED = 64  # scans whose labelled voxels a process keeps in mind
POSITIONS = 1 << 16  # of them at most, evenly spread: enough that none is drawn often, half a MiB


@dataclass(frozen=True)
class Sample:
    """hu: int16 (D, H, W). classes: uint8 (D, H, W), k where the k-th class is (from 1), else 0; known: (K,) bool, whether a
    class was drawn in the scan at all. Both None without labels."""

    hu: NDArray[np.int16]
    classes: NDArray[np.uint8] | None = None
    known: NDArray[np.bool_] | None = None


class Labelling:
    """The classes that a training learns, in the label maps of a pool's scans. May be pickled and forked."""

    def __init__(self, scans: Scans, classes: Sequence[str], label_numbers: Mapping[str, Mapping[str, int]]) -> None:
        """classes: names, at most 255; label_numbers: dataset → name → number in its label maps."""
        self.scans, self.classes, self.label_numbers = scans, tuple(classes), label_numbers
        self._start()

    def _start(self) -> None:
        self._positions = lru_cache(maxsize=REMEMBERED)(self._find)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_positions"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def known(self, i: int) -> NDArray[np.bool_]:
        """(K,): which classes were drawn in scan ``i``."""
        annotated = set(self.scans.row(i)["annotated"] or ())
        return np.array([name in annotated for name in self.classes])

    def classes_of(self, i: int, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Numbers of the dataset's label maps → numbers of classes, from 1; what is no class, or not drawn in full, is 0."""
        numbers, known = self.label_numbers[self.scans.cases[i].dataset], self.known(i)
        table = np.zeros(max(int(labels.max(initial=0)), *numbers.values()) + 1, np.uint8)
        for k, name in enumerate(self.classes):
            if known[k]:
                table[numbers[name]] = k + 1
        return table[labels]

    def position(self, random: np.random.Generator, i: int) -> Position | None:
        """A voxel (D, H, W) of scan ``i`` that belongs to a class, drawn uniformly; None: it has none."""
        found = self._positions(i)
        if not len(found):
            return None
        d, h, w = np.unravel_index(int(found[int(random.integers(len(found)))]), self.scans.shape(i))
        return int(d), int(h), int(w)

    def _find(self, i: int) -> NDArray[np.int64]:
        labels = self.scans.labels(i)
        if labels is None:
            return np.empty(0, np.int64)
        found = np.flatnonzero(self.classes_of(i, labels.whole()))
        return found[:: max(1, -(-len(found) // POSITIONS))]


def draw_sample(
    scans: Scans,
    draw: Draw | WholeVolume,
    seed: int,
    number: int,
    sampling: Sampling = "scan",
    labelling: Labelling | None = None,
) -> Sample:
    """Sample ``number`` of a training, of ``draw.size`` voxels.

    A superpatch without labels is :func:`nemesis.data.superpatches.draw_crop`. With them, a share ``draw.centred`` lies about
    a labelled voxel, as far as the scan's borders and its labels allow, and the rest is placed as without.

    Raises:
        NemesisError: see :meth:`nemesis.data.scans.Scans.brightest`.
    """
    if isinstance(draw, Draw) and labelling is None:
        return Sample(draw_crop(scans, draw.edge, seed, number, sampling))
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    i = scans.draw(random, sampling)
    if isinstance(draw, WholeVolume):
        return Sample(resized_body(scans.hu(i).whole(), draw.size, scans.preparation.hu_window[0]))
    assert labelling is not None
    labels, shape = scans.labels(i), scans.shape(i)
    assert labels is not None  # the pool holds labelled scans alone
    about = labelling.position(random, i) if random.random() < draw.centred else None
    size: Position = tuple(min(draw.edge, n) for n in shape)  # type: ignore[assignment]
    if about is None:
        start = draw_start(scans, i, draw.edge, random)
    else:
        start = tuple(min(max(p - s // 2, 0), n - s) for p, s, n in zip(about, size, shape, strict=True))  # type: ignore[assignment]
    classes = labelling.classes_of(i, labels.read(start, size, 0))
    hu = pad(scans.hu(i).read(start, size, AIR), draw.size, AIR)
    return Sample(hu, pad(classes, draw.size, 0), labelling.known(i))


def resized_body(hu: NDArray[np.int16], size: Position, low: float) -> NDArray[np.int16]:
    """The box of all voxels above ``low`` HU of a scan (D, H, W), resized (trilinear) to ``size``; all if there are none."""
    import torch
    from torch.nn import functional

    above, box = hu > low, []
    for axis in range(3):
        inside = np.flatnonzero(above.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(None))
    body = torch.from_numpy(np.ascontiguousarray(hu[tuple(box)])).float()[None, None]
    resized = functional.interpolate(body, size, mode="trilinear", align_corners=False)[0, 0]
    return resized.round_().to(torch.int16).numpy()
