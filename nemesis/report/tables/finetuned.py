"""What stands around fine-tuned figures: how they came about, and what they do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nemesis.report.render import MISSING
from nemesis.report.tables.measured import Measured

FIGURES = ("downstream_steps", "downstream_trials", "downstream_voxels", "downstream_flop", "pretraining_flop")


def tuning_notes(measured: Measured, *protocols: str) -> list[str]:
    """The recipe, the folds, draws and seeds behind rows of these protocols (of all fine-tuning where none is named), and which
    cells chose nothing; none without such rows."""
    rows = measured.rows[measured.rows["protocol"].isin(protocols)] if protocols else measured.rows
    chosen = rows[rows["metric"] == "learning_rate"]
    if chosen.empty:
        return []
    config = measured.spec["config"]
    recipe, folds = config["finetune"], config["probe"]["folds"]
    shared = rows[(rows["metric"] == "downstream_steps") & ~rows["protocol"].str.endswith("_scratch_matched")]
    steps = sorted({f"{value:.0f}" for value in shared["value"]}, key=int)
    rates = ", ".join(f"{rate:g}" for rate in recipe["learning_rates"])
    looks = f"{recipe['checks']} look{'s' * (recipe['checks'] > 1)}"
    tested, draws = int(chosen["fold"].nunique()), int(chosen["draw"].nunique())
    told = [
        f"Fine-tuning, alike for all: {' or '.join(steps)} steps of {recipe['batch_size']} superpatches, peak learning rate of "
        f"{rates}, the best of {looks} at a fifth of the training patients, who do not train; test patients are looked at once."
    ]
    few = [
        *([f"one fold of {folds}" if tested == 1 else f"{tested} folds of {folds}"] if tested < folds else []),
        *(["one draw"] if draws == 1 and min(chosen["label_fraction"]) < 1 else []),
    ]
    if few:
        told.append(f"Fine-tuned rows are of {' and '.join(few)}: what other folds or draws would give is not measured.")
    if alone := _single_seeds(measured, chosen):
        told.append(f"One seed was fine-tuned of {', '.join(alone)}: seed spread not measured.")
    if (fixed := float((chosen["selection"] == "fixed").mean())) > 0:
        rate = f"{recipe['fixed_learning_rate']:g}"
        told.append(f"In {100 * fixed:.0f} % of the trainings nothing could be chosen: learning rate {rate}, last step (fixed).")
    return [" ".join(told)]


def _single_seeds(measured: Measured, chosen: pd.DataFrame) -> list[str]:
    runs = set(chosen["run"])
    return [label for label, own in measured.labels("methods").items() if len({e["run"] for e in own} & runs) == 1]


def tuning_cost(measured: Measured, entries: Sequence[Mapping[str, Any]], protocol: str) -> dict[str, float | None]:
    """``FIGURES`` of a protocol, each the mean over the runs that have it."""
    rows = measured.rows_of(entries, protocol=protocol)
    means = rows[rows["metric"].isin(FIGURES)].groupby("metric")["value"].mean()
    return {name: float(means[name]) if name in means else None for name in FIGURES}


def tera(value: float | None) -> str:
    """FLOP in 10¹², three digits."""
    return MISSING if value is None else f"{value / 1e12:.3g}"
