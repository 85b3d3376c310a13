"""Predictions of a probe from a formula, and scikit-learn's score of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from nemesis.evaluation.cells import Metric


def predictions(
    patients: int = 12,
    folds: int = 3,
    draws: int = 2,
    skill: float = 1.0,
    seed: int = 0,
    per_patient: int = 12,
    label_fraction: float = 1.0,
) -> pd.DataFrame:
    """Two organs; scores are rounded so that ties occur; a third of the superpatches are easy negatives."""
    world, own = np.random.default_rng(0), np.random.default_rng([seed, round(100 * label_fraction)])
    frames = []
    for organ in ("liver", "spleen"):
        truth = world.random((patients, per_patient)) < 0.4
        easy = ~truth & (world.random(truth.shape) < 0.3)
        for draw in range(draws):
            noise = own.normal(size=truth.shape) + 0.3 * own.normal(size=(patients, 1))
            score = np.round(1 / (1 + np.exp(-(skill * (2.0 * truth - 1) + noise))), 2)
            frames.append(
                pd.DataFrame(
                    {
                        "protocol": "linear",
                        "label_fraction": label_fraction,
                        "draw": draw,
                        "fold": np.repeat(np.arange(patients) % folds, per_patient),
                        "organ": organ,
                        "superpatch": np.arange(truth.size),
                        "patient": np.repeat([f"p{i:02d}" for i in range(patients)], per_patient),
                        "truth": truth.ravel(),
                        "score": score.ravel().astype(np.float32),
                        "threshold": np.float32(0.4),
                        "easy": easy.ravel(),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def score_of(metric: Metric, frame: pd.DataFrame) -> float:
    """scikit-learn's, of all these superpatches together."""
    truth, score = frame["truth"], frame["score"]
    if metric == "auroc":
        return float(roc_auc_score(truth, score))
    if metric == "average_precision":
        return float(average_precision_score(truth, score))
    return float(f1_score(truth, score > (0.5 if metric == "f1" else frame["threshold"])))
