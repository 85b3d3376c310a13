"""How long it takes to probe one encoder at every share of the labels, beside encoding anew in every epoch.

    python -m benchmarks.probe --out benchmarks/results/probe.json

Features are cached once per checkpoint, so the probes of all label fractions, draws, folds and organs work on vectors. The
released code encodes the superpatches again in each of the 100 epochs that its linear head is trained for, and looks at the test
superpatches after each: what that would take is the number of encodings times the rate of the official encoder, timed here on a
few superpatches. Vectors are random with a direction for each organ, of patients with as many superpatches each.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from nemesis.config import Probe
from nemesis.evaluation.features import batch_size
from nemesis.evaluation.probe import probe
from nemesis.evaluation.problems import belongs, data_of, problems
from nemesis.files import write_text
from nemesis.models.architecture import OFFICIAL, Architecture
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.training.device import arithmetic, resolve_precision

EPOCHS = 100  # of the released linear evaluation
PREVALENCE = 0.25


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--superpatches", type=int, default=2500)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--organs", type=int, default=8)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--superpatch", type=int, default=128, help="edge of those that are encoded for the comparison")
    parser.add_argument("--encoded", type=int, default=8, help="how many of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    settings = Probe(threads=a.threads)
    table, vectors = cohort(a.superpatches, a.patients, a.organs, a.features)
    organs = organ_names(a.organs)
    wall, cpu = time.perf_counter(), time.process_time()
    predictions, rows = probe(vectors, table, organs, settings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    each, cpu_each = encoding_seconds(a.features, a.superpatch, a.encoded)
    encodings = EPOCHS * encoded_in_an_epoch(table, organs, settings)
    scores = [row["value"] for row in rows if row["metric"] == "auroc"]
    found: dict[str, Any] = {
        "superpatches": a.superpatches, "patients": a.patients, "organs": a.organs, "features": a.features, "threads": a.threads,
        "label_fractions": settings.label_fractions, "draws": settings.draws, "folds": settings.folds,
        "protocols": settings.protocols, "device": platform.processor() or platform.machine(),
        "predictions": len(predictions), "mean_auroc": float(np.mean(scores)),
        "wall_seconds": wall, "cpu_seconds": cpu,
        "superpatch": a.superpatch, "encoding_seconds": each, "encoding_cpu_seconds": cpu_each,
        "released_encodings": encodings, "released_seconds": encodings * each,
        "seconds": a.superpatches * each + wall, "ratio": encodings * each / (a.superpatches * each + wall),
    }  # fmt: skip
    vectors_told = f"{a.superpatches} vectors of {a.features}"
    print(
        f"{len(settings.label_fractions)} fractions × {settings.draws} draws × {settings.folds} folds × {a.organs} organs, "
        f"{' and '.join(settings.protocols)}, {vectors_told}: {wall:.1f} s of wall, {cpu:.1f} s of CPU\n"
        f"with one encoding of each before them: {found['seconds']:,.0f} s; encoding anew in each of {EPOCHS} epochs, "
        f"{encodings:,} encodings of {each:.3g} s: {found['released_seconds'] / 3600:,.0f} hours, "
        f"{found['ratio']:,.0f} times as long"
    )
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def organ_names(organs: int) -> list[str]:
    """Columns of the table."""
    return [f"organ {number}" for number in range(organs)]


def cohort(superpatches: int, patients: int, organs: int, features: int) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """A table of superpatches as :func:`nemesis.evaluation.problems.data_of` takes it, none easy, and their vectors."""
    rng = np.random.default_rng(0)
    truth = rng.random((superpatches, organs)) < PREVALENCE
    vectors = rng.normal(size=(superpatches, features)) + 0.1 * truth @ rng.normal(size=(organs, features))
    table = pd.DataFrame(truth.astype(np.int8), columns=organ_names(organs))
    patient = [f"{number * patients // superpatches:03}" for number in range(superpatches)]
    return table.assign(dataset="simulated", patient=patient, easy=False), vectors.astype(np.float32)


def encoded_in_an_epoch(table: pd.DataFrame, organs: list[str], settings: Probe) -> int:
    """How many superpatches are encoded in one epoch of every problem: those of its training and of its test patients."""
    data = data_of(table, organs)
    asked = problems(data, settings.folds, settings.split_seed, settings.label_fractions, settings.draws)
    return sum(int(belongs(data.patient, problem.train | problem.test).sum()) for problem in asked)


@torch.no_grad()
def encoding_seconds(embed_dim: int, edge: int, count: int) -> tuple[float, float]:
    """Seconds of wall and of CPU that the official encoder takes for a superpatch, in the batches of an evaluation, after a first
    batch that is not timed."""
    patch = 16 if edge >= 64 else edge // 4
    torch.manual_seed(0)
    network = MaskedAutoencoder(Architecture((edge,) * 3, (patch,) * 3, embed_dim=embed_dim, **OFFICIAL)).eval()
    size = min(batch_size(edge**3), count)
    x = torch.rand(size, 1, edge, edge, edge)
    device = torch.device("cpu")
    with arithmetic(device, resolve_precision("auto", device)):
        network.encoder.embed(x)
        batches = max(1, count // size)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            network.encoder.embed(x)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall / (batches * size), cpu / (batches * size)


if __name__ == "__main__":
    main()
