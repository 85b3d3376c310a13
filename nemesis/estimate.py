"""What jobs cost that nothing recorded covers: FLOP from counted multiply–accumulates, disk from sizes; nothing is computed.

What is assumed of a scan nobody has read stands here as constants, and :func:`assumptions` says it beside the figures. Time of
the CPU (reading, cutting crops, probes, bootstraps) is not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nemesis.evaluation.backbones import Network
from nemesis.evaluation.cost import FLOP_PER_MAC, PASSES_PER_STEP, VOLUME, MethodCost, counted, superpatches
from nemesis.files import canonical_json
from nemesis.method import create, find
from nemesis.models.architecture import Size
from nemesis.runs import search_run

BYTES_PER_VOXEL = 1.0  # of a stored scan: int16, compressed; CT at its native spacing came to 0.9
BYTES_PER_RECONSTRUCTED_VOXEL = 1.2  # of the volume that a run keeps for the figure
BYTES_PER_NUMBER = 4  # of checkpoints and features
PLANES = 3  # axial, coronal, sagittal: LPIPS sees every voxel in a slice of each
STATE = 3  # what a training that goes on can be resumed from, in checkpoints: weights and both moments of AdamW
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """Arithmetic of a job and what it leaves on disk."""

    flop: float
    disk_mib: float


def volume(stored_mib: float | None) -> Size:
    """Voxels (D, H, W) of a dataset's scan: :data:`nemesis.evaluation.cost.VOLUME`, scaled to what its scans took once stored."""
    scale = 1.0 if stored_mib is None else (stored_mib * MIB / BYTES_PER_VOXEL / math.prod(VOLUME)) ** (1 / 3)
    d, h, w = (max(1, round(n * scale)) for n in VOLUME)
    return d, h, w


def ingestion(scans: int) -> Estimate:
    """The stored scans of a dataset."""
    return Estimate(0.0, scans * math.prod(VOLUME) * BYTES_PER_VOXEL / MIB)


def training(identity: Mapping[str, Any]) -> Estimate:
    """One run's training (:mod:`nemesis.runs`), from the superpatches it sees."""
    cost, recipe = _cost(identity), identity["pretraining"]
    seen = recipe["steps"] * recipe["batch_size"] if recipe else 0
    passes = PASSES_PER_STEP + bool(identity["settings"].get("recompute"))
    return Estimate(FLOP_PER_MAC * passes * (cost.pretext or 0) * seen, cost.parameters * BYTES_PER_NUMBER / MIB)


def evaluation(spec: Mapping[str, Any], volumes: Sequence[Size]) -> Estimate:
    """One run's evaluation (:meth:`nemesis.experiment.Experiment.evaluate_spec`) on scans of these voxels.

    Every superpatch is encoded once and, where the method reconstructs, passes the whole network under its mask and, where the
    whole input is asked for, with nothing hidden; the last is taken as encoder and pretext together, which it never exceeds.
    LPIPS looks at the slices of what was there and of each reconstruction, by superpatch and again in stitched volumes.
    """
    cost, n = _cost(spec["identity"]), sum(superpatches(spec["identity"]["superpatch"], scan) for scan in volumes)
    macs, kept = n * cost.encode, 0.0
    if "reconstruction" in spec:
        pretext, settings = cost.pretext or 0, spec["reconstruction"]
        macs += n * (pretext + (cost.encode + pretext if settings["unmasked"] else 0))
        kept = math.prod(volumes[0]) * BYTES_PER_RECONSTRUCTED_VOXEL
        if "lpips" in spec:
            stitched = volumes if settings["stitched"] == "all" else volumes[: max(1, len(settings["stitched"]))]
            voxels = sum(math.prod(scan) for scan in (*volumes, *stitched))
            macs += PLANES * (2 + settings["unmasked"]) * voxels * _comparing(spec["lpips"]["network"])
    return Estimate(FLOP_PER_MAC * macs, (n * cost.features * BYTES_PER_NUMBER + kept) / MIB)


def finetuning(spec: Mapping[str, Any]) -> Estimate:
    """A job of fine-tuning (:meth:`nemesis.experiment.Experiment.finetune_spec`): every training of the search, for organ
    presence and, of a method that segments, for segmentation. Looks at the validation, and the windows of a voxel size of the
    method's own, are not in it."""
    identity, recipe, cost = spec["identity"], spec["finetune"], _cost(spec["identity"])
    draws = sum(1 if fraction == 1 else recipe["draws"] for fraction in recipe["label_fractions"])
    trainings = (recipe["folds_held_out"] or spec["folds"]) * draws * len(recipe["learning_rates"])
    own, more = identity["pretraining"], 0
    if own and spec["arm"] == "scratch_matched":
        more = (cost.pretext or 0) * own["steps"] * own["batch_size"]
    forward = [cost.encode] if "presence" in recipe["tasks"] else []
    if "segmentation" in recipe["tasks"] and find(identity["method"]).card.segments:
        shape = (identity["method"], canonical_json(identity["settings"]), identity["superpatch"])
        forward.append(_segmenting(*shape, len(spec["organs"])))
    macs = sum(each * recipe["steps"] * recipe["batch_size"] + more for each in forward)
    return Estimate(FLOP_PER_MAC * PASSES_PER_STEP * macs * trainings, STATE * cost.parameters * BYTES_PER_NUMBER / MIB)


def search(spec: Mapping[str, Any], volumes: Sequence[Size]) -> Estimate:
    """At most what an adaptive sweep (:meth:`nemesis.experiment.Experiment.search_spec`) takes on evaluation scans of these
    voxels: every trial the widest, least masked point, trained and scored at every rung to its end; on disk, as if pruned at the
    last rung, for then it leaves the state that it could be resumed from."""
    identity = search_run(spec["template"], max(spec["embed_dims"]), min(spec["mask_ratios"])).identity
    largest, cost = training(identity), _cost(identity)
    superpatches_seen = sum(superpatches(identity["superpatch"], scan) for scan in volumes)
    scored = FLOP_PER_MAC * cost.encode * superpatches_seen * (len(spec["search"]["rungs"]) + 1)
    features = superpatches_seen * cost.features * BYTES_PER_NUMBER / MIB
    trials = spec["search"]["trials"]
    return Estimate(trials * (largest.flop + scored), trials * (STATE * largest.disk_mib + features))


def assumptions(tflops: float, largest_checkpoint_mib: float) -> list[str]:
    """What the figures rest on, a sentence each."""
    size = "×".join(map(str, VOLUME))
    return [
        f"GPU hours are an estimate: {FLOP_PER_MAC} FLOP per multiply–accumulate, {PASSES_PER_STEP} forward passes per training "
        f"step, at {tflops:g} TFLOP/s sustained (--tflops). That is an assumption: an A100 peaks at 312 in bf16, but batches of "
        "few superpatches keep a GPU far below its peak. Cutting crops, probes and bootstraps are not in it.",
        f"Disk marked ≈ is an estimate: a scan of a dataset that was never recorded is taken as {size} voxels "
        f"({superpatches(128)} superpatches of 128³), {BYTES_PER_VOXEL:g} byte each once stored; predictions and tables are "
        f"small. The raw scans come on top, and {STATE * largest_checkpoint_mib:.0f} MiB for the resumable state of a training "
        "while it runs.",
    ]


def _cost(identity: Mapping[str, Any]) -> MethodCost:
    return _counted(identity["method"], canonical_json(identity["settings"]), identity["superpatch"])


@cache
def _segmenting(method: str, settings: str, superpatch: int, classes: int) -> int:
    from nemesis.evaluation.downstream import segmenter_macs  # imports torch, which no other figure of a plan needs

    return segmenter_macs(create(method, json.loads(settings), superpatch), classes)


@cache
def _comparing(network: Network) -> float:
    """MAC of a pixel of a picture that LPIPS looks at."""
    import torch

    from nemesis.evaluation.counters import by_torch
    from nemesis.evaluation.lpips import feature_stack  # imports torch

    edge = 256
    picture = torch.zeros(1, 3, edge, edge, device="meta")
    return by_torch(lambda stack, x: stack(x), feature_stack(network).to("meta"), picture) / edge**2


@cache
def _counted(method: str, settings: str, superpatch: int) -> MethodCost:
    return counted(create(method, json.loads(settings), superpatch))
