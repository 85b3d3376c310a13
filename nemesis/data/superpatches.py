"""Superpatches: where they lie, which of them are empty, the random crops of training and the table of evaluation.

One rule says everywhere what is empty (redraws in training, refusal at ingestion, easy negatives in evaluation): the
mean after windowing, *over the part inside the scan*, lies under the foreground floor. Were padding counted, a slab of
20 slices full of organs would be empty in a superpatch of 128, and many superpatches that hold organs would be called
easy negatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Preparation
from nemesis.data.cases import SCORED_KINDS, check_organs
from nemesis.data.pools import Member, read_pool
from nemesis.data.store import AIR, StoredVolume, pad
from nemesis.errors import Fault, NemesisError

if TYPE_CHECKING:
    import pandas

Position = tuple[int, int, int]


def grid(shape: Sequence[int], edge: int | Position) -> NDArray[np.int64]:
    """Starts (N, 3) of the boxes of ``edge`` voxels that tile a volume (D, H, W), padded at its far ends."""
    edges = (edge,) * 3 if isinstance(edge, int) else edge
    starts = itertools.product(*(range(0, n, e) for n, e in zip(shape, edges, strict=True)))
    return np.array(list(starts), dtype=np.int64).reshape(-1, 3)


def extents(shape: Sequence[int], edge: int | Position) -> NDArray[np.int64]:
    """Extent (N, 3) inside the volume of each superpatch of :func:`grid`."""
    return np.minimum(np.array(shape) - grid(shape, edge), edge)


def foreground(hu: NDArray[np.int16], window: tuple[float, float]) -> float:
    """Mean of an int16 HU array after windowing, in [0, 1].

    The window's ends are rounded to whole HU, so that the sum is exact and no crop is empty on one machine only.
    """
    return float(_clipped(hu, window).sum(dtype=np.int64)) / (hu.size * _width(window))


def brightest(hu: NDArray[np.int16], edge: int, window: tuple[float, float]) -> tuple[Position, float]:
    """The crop with most foreground: its start and its :func:`foreground`.

    Searched on starts an eighth of the edge apart (or less, for the steps to divide the edge). Along an axis on which
    the scan is smaller than the edge, the crop starts at 0.
    """
    step = max(n for n in range(1, max(1, edge // 8) + 1) if edge % n == 0)
    sums = _block_sums(_clipped(hu, window), step)
    voxels = 1
    for axis, n in enumerate(hu.shape):
        if n <= edge:
            sums = sums.sum(axis=axis, keepdims=True)
        else:
            blocks, places = edge // step, (n - edge) // step + 1
            total = np.insert(np.cumsum(sums, axis=axis), 0, 0, axis=axis)
            sums = total.take(range(blocks, blocks + places), axis) - total.take(range(places), axis)
        voxels *= min(n, edge)
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    d, h, w = (int(place) * step for place in best)
    return (d, h, w), float(sums[best]) / (voxels * _width(window))


def grid_foreground(hu: NDArray[np.int16], edge: int, window: tuple[float, float]) -> NDArray[np.float64]:
    """:func:`foreground` (N,) of the superpatches of :func:`grid`, each over its part inside the scan."""
    voxels = np.prod(extents(hu.shape, edge), axis=1)
    means: NDArray[np.float64] = _block_sums(_clipped(hu, window), edge).ravel() / (voxels * _width(window))
    return means


def _clipped(hu: NDArray[np.int16], window: tuple[float, float]) -> NDArray[np.uint16]:
    """HU above the window's lower end, cut at its upper one."""
    low, high = _ends(window)
    clipped = np.clip(hu, np.int16(low), np.int16(high))
    np.subtract(clipped, np.int16(low), out=clipped)  # may wrap around in int16, never in uint16
    return clipped.view(np.uint16)


def _ends(window: tuple[float, float]) -> tuple[int, int]:
    low, high = (max(-32768, min(32767, round(end))) for end in window)
    return low, high


def _width(window: tuple[float, float]) -> int:
    low, high = _ends(window)
    return max(1, high - low)


def _block_sums(values: NDArray[Any], edge: int) -> NDArray[np.int64]:
    """Sums over the cubes of ``edge`` voxels that tile an array, smaller ones at its far ends."""
    for axis in (2, 1, 0):  # the contiguous axis first is the fastest
        values = np.add.reduceat(values, range(0, values.shape[axis], edge), axis=axis, dtype=np.int64)
    return values


class Scans:
    """The scans of a pool, opened as they are needed. May be pickled, forked and shared between threads.

    Raises:
        NemesisError: the index lacks a member of the pool, or was made from other files than the pool.
    """

    def __init__(self, pool: Path, index: Path, preparation: Preparation) -> None:
        from pyarrow import parquet

        self.preparation = preparation
        self.cases: list[Member] = read_pool(pool)
        rows = {(row["dataset"], row["case"]): row for row in parquet.read_table(index).to_pylist()}
        faults = []
        for case in self.cases:
            row = rows.get((case.dataset, case.case))
            stale = row is not None and (
                case.fingerprint != row["fingerprint"]
                or (case.label_fingerprint is not None and case.label_fingerprint != row["label_fingerprint"])
            )
            if row is None or stale:
                what = f"{'holds other files of' if stale else 'lacks'} {case.dataset}/{case.case}, a member of {pool}"
                faults.append(Fault(str(index), what, "Run the workflow again from its data rules."))
        if faults:
            raise NemesisError(faults)
        self._rows: list[dict[str, Any]] = [rows[case.dataset, case.case] for case in self.cases]
        self._hu = [StoredVolume(index.parent / f"{row['store']}.hu.b2nd") for row in self._rows]
        self._labels = [
            None if row["kind"] == "none" else StoredVolume(index.parent / f"{row['store']}.labels.b2nd") for row in self._rows
        ]
        self._brightest: dict[tuple[int, int], Position] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def row(self, i: int) -> dict[str, Any]:
        """What the index says of scan ``i``: see :func:`nemesis.data.ingest.check` for the columns."""
        return self._rows[i]

    def hu(self, i: int) -> StoredVolume:
        """HU of scan ``i``, int16 (D, H, W)."""
        return self._hu[i]

    def labels(self, i: int) -> StoredVolume | None:
        """Label map of scan ``i``, uint8 or uint16 (D, H, W); None where it has none."""
        return self._labels[i]

    def brightest(self, i: int, edge: int) -> Position:
        """Start of the crop of scan ``i`` that holds most foreground; reads the whole scan once.

        Raises:
            NemesisError: even this crop is empty.
        """
        if (i, edge) not in self._brightest:
            start, share = brightest(self._hu[i].whole(), edge, self.preparation.hu_window)
            if share < self.preparation.foreground_floor:
                case = f"{self.cases[i].dataset}/{self.cases[i].case}"
                what = f"holds no superpatch of {edge} voxels above the foreground floor"
                raise NemesisError(Fault(case, what, f"Go on without it: `exclude: [{case}]`."))
            self._brightest[i, edge] = start
        return self._brightest[i, edge]


def draw_crop(scans: Scans, edge: int, seed: int, number: int) -> NDArray[np.int16]:
    """Crop ``number`` of a training: int16 HU (edge, edge, edge), a function of (seed, number) and the pool alone.

    The scan is drawn uniformly, then the position; empty crops (see above) are redrawn within the scan, up to
    ``preparation.max_draws`` tries. Were all of them empty, the scan's brightest crop is taken: ingestion made sure
    that it is not. ``number`` = step × global batch size + index in the global batch.

    Raises:
        NemesisError: see :meth:`Scans.brightest`.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    i = int(random.integers(len(scans)))
    volume, settings = scans.hu(i), scans.preparation
    size: Position = tuple(min(edge, n) for n in volume.shape)  # type: ignore[assignment]
    room = [n - s + 1 for n, s in zip(volume.shape, size, strict=True)]
    for _ in range(settings.max_draws):
        start: Position = tuple(random.integers(room).tolist())
        crop = volume.read(start, size, AIR)
        if foreground(crop, settings.hu_window) >= settings.foreground_floor:
            break
    else:
        crop = volume.read(scans.brightest(i, edge), size, AIR)
    return pad(crop, (edge, edge, edge), AIR)


def evaluation_superpatches(
    scans: Scans, edge: int, organs: Sequence[str], label_numbers: Mapping[str, Mapping[str, int]], positive_voxels: int
) -> pandas.DataFrame:
    """The superpatches of the evaluation grid, in the order of the scans and of :func:`grid`.

    Args:
        scans: the evaluation pool.
        edge: edge of a superpatch in voxels.
        organs: names of the organs whose presence is told.
        label_numbers: dataset → organ → number in its label maps.
        positive_voxels: a superpatch with *more* voxels of an organ than this is positive.

    Returns:
        Columns ``scan`` (position in ``scans``), ``dataset``, ``case``, ``patient``, ``start_d/h/w`` and
        ``valid_d/h/w`` (first voxel; extent inside the scan), ``foreground`` and ``easy`` (it lies under the floor),
        and one int8 column per organ: 1 positive, 0 negative, −1 unknown (not drawn, or only in a pseudo label map).

    Raises:
        NemesisError: an organ that no dataset labels.
    """
    import pandas as pd

    check_organs(organs, label_numbers)
    tables = []
    for i, case in enumerate(scans.cases):
        hu = scans.hu(i).whole()
        starts, valid = grid(hu.shape, edge), extents(hu.shape, edge)
        share = grid_foreground(hu, edge, scans.preparation.hu_window)
        columns: dict[str, Any] = {"scan": i, "dataset": case.dataset, "case": case.case, "patient": case.patient}
        columns |= {f"start_{axis}": starts[:, k] for k, axis in enumerate("dhw")}
        columns |= {f"valid_{axis}": valid[:, k] for k, axis in enumerate("dhw")}
        columns |= {"foreground": share, "easy": share < scans.preparation.foreground_floor}
        numbers, row, labels = label_numbers[case.dataset], scans.row(i), scans.labels(i)
        counts: NDArray[np.int64] | None = None
        if labels is not None and row["kind"] in SCORED_KINDS:
            counts = _label_counts(labels.whole(), edge, max(numbers.values()))
        for organ in organs:
            if counts is None or organ not in row["annotated"]:
                columns[organ] = np.full(len(starts), -1, np.int8)
            else:
                columns[organ] = (counts[:, numbers[organ]] > positive_voxels).astype(np.int8)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _label_counts(labels: NDArray[Any], edge: int, highest: int) -> NDArray[np.int64]:
    """Voxels (N, highest + 1) of each label in each superpatch of :func:`grid`; the background is not counted."""
    places = [-(-n // edge) for n in labels.shape]
    drawn = np.flatnonzero((labels > 0) & (labels <= highest))  # a few per cent of the voxels
    block = np.ravel_multi_index([k // edge for k in np.unravel_index(drawn, labels.shape)], places)
    cells = block * (highest + 1) + labels.ravel()[drawn]
    return np.bincount(cells, minlength=int(np.prod(places)) * (highest + 1)).reshape(-1, highest + 1)
