"""What fine-tuning costs, and how many steps cost as much as pretraining and fine-tuning together.

Counted are multiply–accumulates of the forward passes (:mod:`nemesis.evaluation.cost`); 1 MAC = 2 FLOP, and a training step is
taken as three passes, of pretraining and fine-tuning alike. Looks at the validation and activations that are computed again are
not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nemesis.evaluation.cost import BATCH, FLOP_PER_MAC, PASSES_PER_STEP, MethodCost
from nemesis.evaluation.counters import by_torch
from nemesis.finetuning import Arm
from nemesis.method import Method


def segmenter_macs(method: Method[Any], classes: int) -> int:
    """MAC of one superpatch through the segmenter, as it trains."""

    def forward(network: nn.Module, voxels: Tensor) -> Any:
        return network(voxels)

    def built(device: str) -> nn.Module:
        with torch.device(device):
            return method.segmenter(method.build(), classes).train()

    def on(device: str) -> int:
        try:
            network = built(device)
        except RuntimeError:  # some constructors read a tensor's value, say a schedule of drop rates; what they make need not
            network = built("cpu").to(device)
        voxels = torch.zeros(BATCH, 1, *(method.superpatch,) * 3, device=device)
        with torch.no_grad():
            return by_torch(forward, network, voxels) // BATCH

    try:
        return on("meta")
    except (RuntimeError, TypeError):
        return on("cpu")


def pretraining_macs(identity: Mapping[str, Any], cost: MethodCost) -> int | None:
    """MAC of all forward passes of a run's pretraining; 0 where there was none, None of published weights: nobody says it."""
    recipe = identity["pretraining"]
    if "weights" in identity:
        return None
    return recipe["steps"] * recipe["batch_size"] * (cost.pretext or 0) if recipe else 0


def matched_steps(steps: int, pretraining: int, of_step: float) -> int:
    """Steps of a control that costs as much as pretraining (MAC) and ``steps`` of fine-tuning (each ``of_step`` MAC) together."""
    return steps + round(pretraining / of_step)


def cost_rows(
    arm: Arm, steps: int, trials: int, of_step: float, voxels: float, pretraining: int | None, protocol: str
) -> Iterator[dict[str, Any]]:
    """Of an arm: steps, voxels and FLOP of one of its trainings, how many the search took, and the FLOP of its pretraining.

    Args:
        of_step: MAC of a step's forward passes.
        voxels: that a step shows.
        pretraining: MAC of the forward passes of pretraining, which count for the pretrained arm alone; None: not known.
    """
    flop = FLOP_PER_MAC * PASSES_PER_STEP
    figures = {
        "downstream_steps": ("steps", steps),
        "downstream_trials": ("trainings", trials),
        "downstream_voxels": ("voxels", steps * voxels),
        "downstream_flop": ("FLOP", flop * steps * of_step),
    }
    if arm != "pretrained" or pretraining is not None:
        figures["pretraining_flop"] = ("FLOP", flop * (pretraining or 0) if arm == "pretrained" else 0)
    for metric, (unit, value) in figures.items():
        yield {"protocol": protocol, "metric": metric, "unit": unit, "value": float(value)}
