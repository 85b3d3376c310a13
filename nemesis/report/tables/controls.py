"""What pretraining is worth: the same network fine-tuned from its weights, from random ones, and from random ones for as long as
both cost together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nemesis.evaluation.statistics import Estimate, paired_difference, summarise
from nemesis.finetuning import ARMS, Arm, Task, protocol_of
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import MISSING, Table, interval, number
from nemesis.report.tables.finetuned import tera, tuning_cost, tuning_notes
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import (
    Record,
    add_holm,
    configuration_note,
    difference_figures,
    figures,
    intervals_told,
    organs_note,
    p_text,
    pools_text,
    share,
    without,
)
from nemesis.report.tables.segmentation import segmented_fractions

NAME, TITLE = "controls", "Pretraining beside its controls: from scratch, and from scratch at matched compute"
ABSENT = "No control was fine-tuned in this experiment (`finetune.controls`)."
DATA = ("task", "method", "arm", "label_fraction", "score")
SCORES: dict[Task, str] = {"presence": "organ presence, AUROC", "segmentation": "segmentation, mean Dice"}


@dataclass(frozen=True)
class _Side:
    """An arm of a method: its score, and how it compares."""

    measured: Measured
    task: Task
    fraction: float
    runs: list[Any]  # Scores, or Dice by organ and scan, of each seed

    @property
    def score(self) -> Estimate:
        if self.task == "segmentation":
            return self.measured.over_organs(self.runs)
        resamples, seed = self.measured.spec["bootstrap"], self.measured.spec["seed"]
        return summarise(self.runs, "finetune", self.fraction, resamples=resamples, seed=seed)

    def minus(self, other: _Side) -> Estimate:
        """This score less the other's, paired over patients."""
        if self.task == "segmentation":
            return self.measured.over_organs(self.runs, other.runs)
        resamples, seed = self.measured.spec["bootstrap"], self.measured.spec["seed"]
        return paired_difference(self.runs, other.runs, "finetune", self.fraction, resamples=resamples, seed=seed)


def controls_table(measured: Measured) -> Table:
    """One row per task, method and arm, of the methods that have a control."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    seen: list[Estimate] = []
    for task, fraction, label, entries in _asked(measured):
        sides = {arm: side for arm in ARMS if (side := _side(measured, task, entries, arm, fraction)).runs}
        if len(sides) < 2 or "pretrained" not in sides:
            continue
        for arm, side in sides.items():
            seen.append(score := side.score)
            record: Record = {"task": task, "method": label, "arm": arm, "label_fraction": fraction}
            record |= {"leakage": measured.leakage(entries) if arm == "pretrained" else None}
            record |= tuning_cost(measured, entries, protocol_of(task, arm))
            gap = None
            if arm != "pretrained" and None not in (score.point, sides["pretrained"].score.point):
                gap = sides["pretrained"].minus(side)
            record |= figures("score", score) | difference_figures(gap)
            records.append(record | {"n_patients": score.n_patients, "seeds": len(side.runs)})
    columns = (
        "task", "method", "weights", "labels", "leakage", "steps", "pretraining, TFLOP", "fine-tuning, TFLOP",
        "score [95 % CI]", "pretrained − this [95 % CI]", "p (Holm)", "patients", "seeds",
    )  # fmt: skip
    if not records:
        return without(NAME, TITLE, ABSENT, columns, DATA, spec, 5)
    add_holm(records)
    printed = [
        (
            SCORES[r["task"]], r["method"], ARMS[r["arm"]], share(r["label_fraction"]), r["leakage"] or MISSING,
            number(r["downstream_steps"], 0), tera(r["pretraining_flop"]), tera(r["downstream_flop"]), interval(r, "score", 3),
            "reference" if r["arm"] == "pretrained" else interval(r, "difference", 3, sign=True),
            p_text(r["difference_p_holm"]), number(r["n_patients"], 0), number(r["seeds"], 0),
        )
        for r in records
    ]  # fmt: skip
    caption = (
        f"The same networks on {', '.join(spec['datasets'])}, fine-tuned by one recipe from pretrained and from random weights. "
        f"{pools_text(spec)}"
    )
    notes = [
        *tuning_notes(measured),
        "From scratch: started from random weights, those that pretraining started from where it ran here. Matched compute: "
        "trained for so many steps more that a training costs what pretraining and fine-tuning cost together; what published "
        "weights cost is not known. TFLOP: 10¹² FLOP of one training, counted on the network (2 per multiply–accumulate, three "
        "passes a step); the search takes as many trainings for every arm.",
        *(
            [organs_note(spec, measured.rows_of(spec["runs"]), presence[-1])]
            if (presence := measured.fractions_of("finetune"))
            else []
        ),
        intervals_told(spec, seen),
        "Differences are paired over the same patients; p is adjusted within this table after Holm; neither holds how much "
        "another seed would change.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    return Table(NAME, TITLE, caption, columns, printed, [n for n in notes if n], pd.DataFrame(records), text_columns=5)


def _asked(measured: Measured) -> Iterator[tuple[Task, float, str, Entries]]:
    fractions: dict[Task, list[float]] = {
        "presence": measured.fractions_of("finetune"),
        "segmentation": segmented_fractions(measured),
    }
    for task in SCORES:
        for fraction in fractions[task]:
            for label, entries in measured.labels("methods").items():
                yield task, fraction, label, entries


def _side(measured: Measured, task: Task, entries: Entries, arm: Arm, fraction: float) -> _Side:
    if task == "segmentation":
        return _Side(measured, task, fraction, list(measured.segmented(entries, arm, fraction)))
    return _Side(measured, task, fraction, list(measured.tuned(entries, arm)))
