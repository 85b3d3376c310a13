"""Segmentation by fine-tuned networks: Dice per organ, and their mean with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.finetuning import ARMS, protocol_of
from nemesis.report.collect import of_part, reference_label
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import Table, interval, number
from nemesis.report.tables.finetuned import tuning_cost, tuning_notes
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import (
    MEASURED,
    Record,
    add_holm,
    configuration_note,
    difference_figures,
    figures,
    intervals_told,
    p_text,
    pools_text,
    share,
    without,
)
from nemesis.report.tables.pretraining import status

NAME, TITLE = "segmentation", "Segmentation by fine-tuned networks"
ABSENT = "No network of this experiment was fine-tuned to segment."
DATA = ("method", "arm", "label_fraction", "dice")
Dice = Sequence[pd.DataFrame]  # of each seed


def segmentation_table(measured: Measured) -> Table:
    """One row per method, arm and share of labels."""
    spec, organs = of_part(measured.spec, "methods"), measured.spec["config"]["organs"]
    labels, reference = measured.labels("methods"), reference_label(of_part(measured.spec, "methods"))
    records: list[Record] = []
    seen: list[Estimate] = []
    for fraction in segmented_fractions(measured):
        of_reference = measured.segmented(labels[reference], "pretrained", fraction) if reference in labels else []
        for label, entries in labels.items():
            scratch = measured.segmented(entries, "scratch", fraction)
            for arm, name in ARMS.items():
                if not (runs := measured.segmented(entries, arm, fraction)):
                    continue
                origin = status(measured, entries)
                weights = origin if arm == "pretrained" and origin != MEASURED else name
                record: Record = {"method": label, "arm": weights, "label_fraction": fraction}
                record["leakage"] = measured.leakage(entries) if arm == "pretrained" else None
                seen.append(mean := measured.dice(runs))
                record |= figures("dice", mean) | {f"dice_{organ}": value for organ, value in _by_organ(runs, organs).items()}
                against, other = _counterpart(label, reference, of_reference, scratch) if arm == "pretrained" else (None, [])
                gap = measured.dice(runs, other) if other else None
                record |= {"against": against if other else None} | difference_figures(gap)
                record |= tuning_cost(measured, entries, protocol_of("segmentation", arm))
                records.append(record | {"n_patients": mean.n_patients, "seeds": len(runs)})
    columns = [
        "method", "weights", "labels", "leakage", "mean Dice [95 % CI]", *organs, "Δ to", "Δ mean Dice [95 % CI]", "p (Holm)",
        "patients", "seeds",
    ]  # fmt: skip
    if not records:
        return without(NAME, TITLE, ABSENT, columns, DATA, spec, 4)
    add_holm(records)
    printed = [
        [
            r["method"], r["arm"], share(r["label_fraction"]), r["leakage"] or "–", interval(r, "dice", 3),
            *(number(r[f"dice_{organ}"], 3) for organ in organs), r["against"] or "–", interval(r, "difference", 3, sign=True),
            p_text(r["difference_p_holm"]), number(r["n_patients"], 0), number(r["seeds"], 0),
        ]
        for r in records
    ]  # fmt: skip
    caption = (
        f"Dice of whole scans of {', '.join(spec['datasets'])}, by the sliding window. The mean is over organs, of each of which "
        f"it is over patients in whom it was drawn and is there. {pools_text(spec)}"
    )
    protocols = [protocol_of("segmentation", arm) for arm in ARMS]
    notes = [
        *tuning_notes(measured, *protocols),
        "From scratch: the same network from random weights, those its pretraining started from where it ran here; at matched "
        "compute it trains for so many steps more that it costs what pretraining and fine-tuning cost together.",
        intervals_told(spec, seen),
        "Δ is paired over the same patients; p is adjusted within this table after Holm; neither holds how much another seed "
        "would change.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    return Table(NAME, TITLE, caption, columns, printed, [n for n in notes if n], pd.DataFrame(records), text_columns=4)


def segmented_fractions(measured: Measured) -> list[float]:
    """Every share of labels at which a network was fine-tuned to segment."""
    found = {float(f) for frame in measured.segmentations.values() if len(frame) for f in frame["label_fraction"].unique()}
    return sorted(found)


def _counterpart(label: str, reference: str | None, of_reference: Dice, scratch: Dice) -> tuple[str | None, Dice]:
    """What a pretrained network is compared with: the reference's where there is one, else its own random start."""
    if of_reference and label != reference:
        return reference, of_reference
    return "own from scratch", scratch


def _by_organ(runs: Dice, organs: Sequence[str]) -> Mapping[str, float | None]:
    """Mean over scans, then over seeds; None where no patient has the organ."""
    means = pd.concat([run.groupby("organ", observed=True)["value"].mean() for run in runs], axis=1).mean(axis=1)
    return {organ: float(means[organ]) if organ in means else None for organ in organs}
