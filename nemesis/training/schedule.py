"""Learning rate as a function of the optimiser step (never of the epoch)."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine that reaches ``floor`` at the last step.

    Args:
        step: 0-based optimiser step.
        steps: how many there are in all.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
