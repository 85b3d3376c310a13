"""Superpatches: the random crops of training and the table of evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Sampling
from nemesis.data.cases import SCORED_KINDS, check_organs
from nemesis.data.foreground import BlockSums, Position, extents, foreground, grid
from nemesis.data.scans import Scans
from nemesis.data.store import AIR, pad

if TYPE_CHECKING:
    import pandas


def draw_crop(scans: Scans, edge: int, seed: int, number: int, sampling: Sampling = "scan") -> NDArray[np.int16]:
    """Crop ``number`` of a training: int16 HU (edge, edge, edge), a function of (seed, number) and the pool alone.

    The scan is drawn, then the position, uniformly; empty crops (:mod:`nemesis.data.foreground`) are redrawn within the scan, up
    to ``preparation.max_draws`` tries. Were all of them empty, the scan's brightest crop is taken: ingestion made sure
    that it is not. Where the scan's coarse map tells that a crop is empty, it is not read. ``number`` = step × global batch
    size + index in the global batch.

    Raises:
        NemesisError: see :meth:`Scans.brightest`.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    i = scans.draw(random, sampling)
    size: Position = tuple(min(edge, n) for n in scans.shape(i))  # type: ignore[assignment]
    start, crop = _drawn(scans, i, size, edge, random)
    return pad(scans.hu(i).read(start, size, AIR) if crop is None else crop, (edge, edge, edge), AIR)


def draw_start(scans: Scans, i: int, edge: int, random: np.random.Generator) -> Position:
    """Where (D, H, W) a crop of scan ``i`` starts that is drawn as :func:`draw_crop` does."""
    return _drawn(scans, i, tuple(min(edge, n) for n in scans.shape(i)), edge, random)[0]  # type: ignore[arg-type]


def _drawn(
    scans: Scans, i: int, size: Position, edge: int, random: np.random.Generator
) -> tuple[Position, NDArray[np.int16] | None]:
    """A start, and the crop where it had to be read to be judged."""
    settings = scans.preparation
    room = [n - s + 1 for n, s in zip(scans.shape(i), size, strict=True)]
    for _ in range(settings.max_draws):
        start: Position = tuple(random.integers(room).tolist())
        least, most = scans.foreground_bounds(i, start, size)
        if most < settings.foreground_floor:
            continue
        if least >= settings.foreground_floor:
            return start, None
        crop = scans.hu(i).read(start, size, AIR)
        if foreground(crop, settings.hu_window) >= settings.foreground_floor:
            return start, crop
    return scans.brightest(i, edge), None


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
        share = BlockSums(hu, scans.preparation.hu_window).grid_foreground(edge)
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
