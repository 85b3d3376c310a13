"""A tiny ingested cohort of phantoms, and runs small enough to be trained within a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemesis.config import Config, Preparation
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.pools import write_pool
from nemesis.datasets import PhantomCohort
from nemesis.runs import Material, plan_runs

EDGE = 16
NEMESIS = {
    "patch": 4, "embed_dim": 32, "depth": 1, "heads": 2, "tokens": 4, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


def ingest_phantoms(folder: Path, subjects: int = 4) -> tuple[Path, Path]:
    """Pool and index of phantoms with voxels of about 12 mm."""
    cohort = PhantomCohort(reader="phantom", subjects=subjects, base_spacing_mm=12.0)
    cases = list_cases(cohort, None)
    write_manifest(folder / "manifest.json", cohort, cases, label_numbers(cohort, None))
    ingest(folder / "manifest.json", None, folder / "store", folder / "verdicts.json", Preparation(), EDGE, 0)
    write_index([folder / "verdicts.json"], folder / "index.parquet")
    write_pool(folder / "pool.json", cases, labels=False)
    return folder / "pool.json", folder / "index.parquet"


def identity_of(settings: dict[str, Any] | None = None, name: str = "nemesis", **pretraining: Any) -> dict[str, Any]:
    """Identity of a small run: 24 steps of 2 superpatches in fp32, unless told otherwise."""
    recipe = {"steps": 24, "batch_size": 2, "learning_rate": 1e-3, "precision": "32-true", **pretraining}
    settings = {**(NEMESIS if name == "nemesis" else {}), **(settings or {})}
    config = Config.model_validate(
        {
            "experiment": "small",
            "datasets": [{"reader": "phantom"}],
            "pools": {"evaluation": 3},
            "superpatch": EDGE,
            "pretraining": recipe,
            "methods": [{"name": name, "settings": settings}],
        }
    )
    return plan_runs(config, Material("pool"))[0].identity
