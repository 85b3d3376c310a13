"""How well a method does what its pretext asks of it, on patients that it was not trained on.

The monitors of the pretext's own loss, of the trained network and of the same network untrained: a broken objective leaves both
alike. They are means over fixed samples of the evaluation pool, drawn and masked as in training, with the network in evaluation
mode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nemesis.evaluation.rows import TRAINED, UNTRAINED
from nemesis.method import Batch, Method, WholeVolume
from nemesis.models.keyed import Keys
from nemesis.training.crops import Crops
from nemesis.training.device import Precision, arithmetic

SEED = 20_040_819  # of samples and masks: one that no training has
SUPERPATCHES, VOLUMES = 64, 16  # samples that are looked at


@torch.no_grad()
def pretext_rows(
    method: Method[Any], trained: nn.Module, untrained: nn.Module, samples: Crops, batch_size: int, device: torch.device,
    precision: Precision,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row ``trained_<monitor>`` for each monitor of the trained network, and ``untrained_<monitor>`` of the untrained one.

    A batch of which a monitor is not finite does not count in its mean, nor in its row's number of superpatches.

    Args:
        trained: on ``device``, in evaluation mode, as is ``untrained``.
        samples: of the evaluation pool, of this module's seed.
        batch_size: of the training: what compares the samples of a batch depends on it.
    """
    scans = samples.scans
    low, high = scans.preparation.hu_window
    total = VOLUMES if isinstance(samples.draw, WholeVolume) else SUPERPATCHES
    batches = math.ceil(total / batch_size)
    seen: dict[str, list[float]] = {}
    for number in range(batches):
        places = list(range(number * batch_size, (number + 1) * batch_size))
        cut = samples[places]
        voxels = ((cut.hu.to(device).float() - low) / (high - low)).clamp_(0.0, 1.0)
        labels = [None if part is None else part.to(device) for part in (cut.classes, cut.known)]
        batch = Batch(voxels, Keys.at(SEED, number, range(batch_size), device), *labels)
        for network, prefix in ((trained, TRAINED), (untrained, UNTRAINED)):
            with arithmetic(device, precision):
                monitors = method.pretext_loss(network, batch).monitors
            for name, value in monitors.items():
                seen.setdefault(f"{prefix}{name}", []).append(float(value))
    cases = scans.cases
    about = {"dataset": "+".join(sorted({case.dataset for case in cases}))}
    return [
        about | {"metric": name, "value": sum(finite) / len(finite), "n_superpatches": len(finite) * batch_size}
        for name, values in seen.items()
        if (finite := [value for value in values if math.isfinite(value)])
    ]
