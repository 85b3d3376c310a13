"""Superpatches as batches for a network, and the features a frozen encoder says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemesis.data.store import AIR, normalise, pad
from nemesis.data.views import windows
from nemesis.evaluation.progress import progress
from nemesis.method import Method
from nemesis.training.device import Precision, arithmetic

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from nemesis.data.scans import Scans

ENCODING = 1  # raised whenever the features of the same network change: part of their cache's key
BATCH_VOXELS = 2**22  # 2 superpatches of 128³, 128 of 32³
MAX_BATCH = 64


def batch_size(voxels: int) -> int:
    """How many superpatches of so many voxels are encoded together."""
    return max(1, min(MAX_BATCH, BATCH_VOXELS // voxels))


def batches(scans: Scans, table: pd.DataFrame, edge: int) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Superpatches in the order of ``table``: places in it (B,) and voxels (B, 1, D, H, W), float32 in [0, 1].

    What lies beyond a scan's far ends is air.
    """
    size = batch_size(edge**3)
    starts = table[["start_d", "start_h", "start_w"]].to_numpy()
    scan = table["scan"].to_numpy()
    for first in range(0, len(table), size):
        places = np.arange(first, min(first + size, len(table)))
        hu = [scans.hu(int(scan[i])).read(tuple(starts[i].tolist()), (edge,) * 3, AIR) for i in places]
        yield places, torch.from_numpy(normalise(np.stack(hu), scans.preparation.hu_window))[:, None]


@torch.no_grad()
def features(
    method: Method[Any],
    network: nn.Module,
    scans: Scans,
    table: pd.DataFrame,
    edge: int,
    device: torch.device,
    precision: Precision = "32-true",
    view: Scans | None = None,
) -> NDArray[np.float32]:
    """Features (N, F) of the N superpatches of ``table``; the network is on ``device``, in evaluation mode.

    With a ``view`` (the same scans at a voxel size of the method's own) a superpatch is what lies at its place there: what is
    shorter than ``edge`` is padded with air, and of what is longer the features are the mean over its windows
    (:func:`nemesis.data.views.windows`).
    """
    found: list[NDArray[np.float32]] = []
    counts = np.zeros(len(table), np.int64)
    for places, voxels in batches(scans, table, edge) if view is None else _view_batches(scans, view, table, edge):
        with arithmetic(device, precision):
            vectors = method.encode(network, voxels.to(device)).float().cpu().numpy()
        for place, vector in zip(places.tolist(), vectors, strict=True):
            if counts[place]:
                found[place] = found[place] + vector
            else:
                found.append(vector)
                progress("features", place + 1, len(table))
            counts[place] += 1
    return np.divide(np.stack(found), counts[:, None], dtype=np.float32)


def _view_batches(scans: Scans, view: Scans, table: pd.DataFrame, edge: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """As :func:`batches`, of the windows in the view; the rows of ``table`` in their order, some more than once."""
    starts, extents = (table[[f"{what}_{axis}" for axis in "dhw"]].to_numpy() for what in ("start", "valid"))
    boxes = [
        (row, scan, *window)
        for row, scan in enumerate(table["scan"].tolist())
        for window in windows(starts[row].tolist(), extents[row].tolist(), scans.shape(scan), view.shape(scan), edge)
    ]
    size = batch_size(edge**3)
    for first in range(0, len(boxes), size):
        some = boxes[first : first + size]
        hu = [pad(view.hu(scan).read(start, extent, AIR), (edge,) * 3, AIR) for _, scan, start, extent in some]
        voxels = torch.from_numpy(normalise(np.stack(hu), scans.preparation.hu_window))[:, None]
        yield np.array([row for row, *_ in some]), voxels
