"""Superpatches as batches for a network, and the features a frozen encoder says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemesis.data.store import AIR, normalise
from nemesis.evaluation.progress import progress
from nemesis.method import Method
from nemesis.training.device import Precision, arithmetic

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from nemesis.data.superpatches import Scans

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
) -> NDArray[np.float32]:
    """Features (N, F) of the N superpatches of ``table``; the network is on ``device``, in evaluation mode."""
    found = []
    for places, voxels in batches(scans, table, edge):
        with arithmetic(device, precision):
            vectors = method.encode(network, voxels.to(device))
        found.append(vectors.float().cpu().numpy())
        for place in places:
            progress("features", int(place) + 1, len(table))
    return np.concatenate(found)
