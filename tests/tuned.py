"""A fine-tuning job small enough for a test: ten labelled phantoms, superpatches of 16³, and a method that segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from phantoms import EDGE, identity_of
from torch import nn

from nemesis.config import Preparation
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.pools import write_pool
from nemesis.datasets import PhantomCohort
from nemesis.evaluation.finetune import finetune
from nemesis.method import Method, MethodCard, Settings, create
from nemesis.models.checkpoint import save_weights

ORGANS = ["liver", "spleen", "left kidney"]
RECIPE = {"tasks": ["presence"], "steps": 6, "batch_size": 4, "learning_rates": [1e-3, 3e-3], "checks": 2, "precision": "32-true"}


class SegmentingNetwork(nn.Module):
    """Two convolutions; ``head`` is what the segmenter adds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.GELU(), nn.Conv3d(6, 6, 3, padding=1))
        self.head: nn.Module | None = None

    def forward(self, voxels: torch.Tensor) -> Any:
        """Features, or logits where there is a head; in training at two resolutions."""
        features = self.body(voxels)
        if self.head is None:
            return features
        logits = self.head(features)
        return [logits, nn.functional.avg_pool3d(logits, 2)] if self.training else logits


class Segmenting(Method[Settings]):
    """Learns nothing, and segments."""

    card = MethodCard(
        name="segmenting", title="Segmenting", paper="–", licence="MIT", version=1, pretext=False, reconstructs=False,
        segments=True, smallest_input=8, native_input="–",
    )  # fmt: skip
    settings_type = Settings

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        return SegmentingNetwork()

    def encode(self, network: Any, voxels: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.encode`."""
        return network.body(voxels).mean(dim=(2, 3, 4))

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """See :meth:`Method.segmenter`."""
        network.head = nn.Conv3d(6, classes, 1)
        return network


def labelled_phantoms(folder: Path, subjects: int = 10) -> dict[str, Any]:
    """Ingested below ``folder``: pool, index and label numbers of a job's specification."""
    cohort = PhantomCohort(reader="phantom", subjects=subjects, base_spacing_mm=12.0)
    cases, numbers = list_cases(cohort, None), label_numbers(cohort, None)
    write_manifest(folder / "manifest.json", cohort, cases, numbers)
    ingest(folder / "manifest.json", None, folder / "store", folder / "verdicts.json", Preparation(), EDGE, 0)
    write_index([folder / "verdicts.json"], folder / "index.parquet")
    write_pool(folder / "pool.json", cases, labels=True)
    return {
        "pool": str(folder / "pool.json"),
        "index": str(folder / "index.parquet"),
        "label_numbers": {cohort.name: numbers},
    }


def job(cohort: dict[str, Any], out: Path, name: str = "nemesis", arm: str = "pretrained", **recipe: Any) -> dict[str, Any]:
    """A specification; the checkpoint is the network of another seed, so that it can be told from a random start."""
    identity = identity_of(name=name) if name != "segmenting" else {
        "method": name, "settings": {}, "superpatch": EDGE, "seed": 0, "pretraining": None,
    }  # fmt: skip
    method = create(name, identity["settings"], EDGE)
    torch.manual_seed(77)
    checkpoint = out.parent / f"{name}.safetensors"
    if not checkpoint.exists():
        save_weights(method.build(), checkpoint, {})
    return cohort | {
        "run": f"{name}-s0-0123456789ab", "arm": arm, "identity": identity, "checkpoint": str(checkpoint), "organs": ORGANS,
        "preparation": Preparation().model_dump(mode="json"), "folds": 5, "split_seed": 0, "positive_voxels": 20,
        "finetune": RECIPE | {"folds_held_out": 1} | recipe, "out": str(out), "version": 1,
    }  # fmt: skip


def fine_tune(spec: dict[str, Any]) -> None:
    """Do the job on the CPU; the index stands in the specification for brevity."""
    index = Path(spec["index"])
    finetune({name: value for name, value in spec.items() if name != "index"}, index, index, "cpu")
