"""How heads that segment start: with organs as rare as they are."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

PRIOR = 0.01  # what an untrained network gives as the probability of an organ, which fills about that share of a crop or less


def start_rare(convolution: Any) -> None:
    """Set the bias of a last convolution so that sigmoids start at ``PRIOR``: from one half, Dice's gradient is flat before the
    first steps of cross-entropy have said that most voxels are none."""
    nn.init.constant_(convolution.bias, math.log(PRIOR / (1 - PRIOR)))
