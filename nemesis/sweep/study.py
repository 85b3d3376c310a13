"""The study of a grid, rebuilt from what its cells measured: a trial per cell, for Optuna's plots and its dashboard.

``optuna-dashboard sqlite:///results/<experiment>/sweep/study.db`` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.files import replacing
from nemesis.report.collect import of_part

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

STUDY = "sweep"  # name of the only study in a file
OUTCOMES: dict[str, dict[str, Any]] = {  # beside the value of a trial: which rows they are the mean of
    "test_auroc": {"metric": "auroc", "protocol": "linear", "easy_negatives": "out"},
    "psnr_masked": {
        "metric": "psnr", "region": "masked", "scope": "superpatch", "easy_negatives": "out", "input_masked": True,
    },
}  # fmt: skip


def rebuild_study(spec: Mapping[str, Any], collected: Path, out: Path) -> None:
    """Job: the study ``sweep`` in the SQLite file ``out``, which is replaced: the same rows give the same trials.

    A trial's value is the validation AUROC of the linear probe at the largest share of labels, the mean over seeds, folds and
    organs; what test patients say stands beside it (user attributes ``test_auroc`` and ``psnr_masked`` in dB). A cell that
    could not be validated, for want of training patients, is a failed trial.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote.
    """
    import optuna
    import pandas as pd

    rows = pd.read_parquet(collected / "rows.parquet")
    # of several datasets their joined name is all of them together
    everywhere = rows[rows["dataset"].isna() | (rows["dataset"] == "+".join(spec["datasets"]))]
    trials = _trials(of_part(spec, "sweep")["runs"], everywhere)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with replacing(out) as temporary:
        storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
        study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
        for trial in trials:
            study.add_trial(trial)
        storage.engine.dispose()


def _trials(runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> list[FrozenTrial]:
    """A trial per cell, in the order of the configuration."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState, create_trial

    cells: dict[tuple[int, float], list[str]] = {}
    for entry in runs:
        cells.setdefault((entry["embed_dim"], entry["mask_ratio"]), []).append(entry["run"])
    ratios = [ratio for _, ratio in cells]
    widths = CategoricalDistribution(list(dict.fromkeys(width for width, _ in cells)))
    distributions = {"embed_dim": widths, "mask_ratio": FloatDistribution(min(ratios), max(ratios))}
    labels = rows["label_fraction"].max()
    trials = []
    for (width, ratio), of_cell in cells.items():
        measured = rows[rows["run"].isin(of_cell) & (rows["label_fraction"].isna() | (rows["label_fraction"] == labels))]
        value = _mean(measured, {"metric": "validation_auroc", "protocol": "linear"})
        outcomes = {name: _mean(measured, wanted) for name, wanted in OUTCOMES.items()}
        known = math.isfinite(value)
        trial = create_trial(
            state=TrialState.COMPLETE if known else TrialState.FAIL,
            value=value if known else None,
            params={"embed_dim": width, "mask_ratio": ratio},
            distributions=distributions,
            user_attrs={"runs": of_cell, **{name: mean for name, mean in outcomes.items() if math.isfinite(mean)}},
        )
        trials.append(trial)
    return trials


def _mean(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> float:
    """Mean of the rows that say so; NaN where there are none."""
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return float(rows["value"].mean())
