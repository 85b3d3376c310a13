"""Segmentation by fine-tuned networks: Dice, HD95 and surface Dice, the means over organs and each organ's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.finetuning import ARMS, Arm, protocol_of
from nemesis.report.collect import of_part, reference_label
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import MISSING, Table, interval, number
from nemesis.report.tables.finetuned import tuning_cost, tuning_notes
from nemesis.report.tables.measured import Entries, Measured
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
ORGANS_NAME, ORGANS_TITLE = "segmentation_organs", "Segmentation by fine-tuned networks, organ by organ"
ABSENT = "No network of this experiment was fine-tuned to segment."
DATA = ("method", "arm", "label_fraction", "dice")
SURFACES = ("hd95", "surface_dice")
Lines = Sequence[pd.DataFrame]  # a figure of every organ and scan, of each seed


@dataclass(frozen=True)
class _Networks:
    """Those of a method and an arm at a share of labels."""

    measured: Measured
    label: str
    entries: Entries
    arm: Arm
    fraction: float

    def lines(self, metric: str, organ: str | None = None) -> Lines:
        found = self.measured.segmented(self.entries, self.arm, self.fraction, metric)
        return found if organ is None else [part for run in found if len(part := run[run["organ"] == organ])]

    def named(self) -> Record:
        weights, leakage = started(self.measured, self.entries, self.arm)
        return {"method": self.label, "arm": weights, "label_fraction": self.fraction, "leakage": leakage}

    def agreement(self, organ: str | None = None) -> tuple[dict[str, Estimate], Record]:
        """The figures, and their columns: means over organs, or of one."""
        means = {metric: self.measured.over_organs(self.lines(metric, organ)) for metric in ("dice", *SURFACES)}
        record = {name: value for metric, mean in means.items() for name, value in figures(metric, mean).items()}
        distances = self.lines("hd95", organ)
        record["cases"] = float(np.mean([len(run) for run in distances]))
        record["missed"] = float(np.mean([run["value"].isna().sum() for run in distances]))
        record["invented"] = sum(len(run) for run in self.lines("invented", organ)) / len(distances)
        return means, record


def segmentation_table(measured: Measured) -> Table:
    """One row per method, arm and share of labels."""
    spec = of_part(measured.spec, "methods")
    labels, reference = measured.labels("methods"), reference_label(spec)
    records: list[Record] = []
    seen: list[Estimate] = []
    for networks in _segmented(measured):
        entries, arm, fraction = networks.entries, networks.arm, networks.fraction
        means, found = networks.agreement()
        seen += means.values()
        record = networks.named() | found
        against: str | None = None
        other: Lines = ()
        if arm == "pretrained":
            of_reference = measured.segmented(labels[reference], arm, fraction) if reference in labels else []
            scratch = measured.segmented(entries, "scratch", fraction)
            against, other = _counterpart(networks.label, reference, of_reference, scratch)
        gap = measured.over_organs(networks.lines("dice"), other) if other else None
        record |= {"against": against if other else None} | difference_figures(gap)
        record |= tuning_cost(measured, entries, protocol_of("segmentation", arm))
        records.append(record | {"n_patients": means["dice"].n_patients, "seeds": len(networks.lines("dice"))})
    columns = [
        "method", "weights", "labels", "leakage", "mean Dice [95 % CI]", "HD95, mm [95 % CI]", "surface Dice [95 % CI]", "missed",
        "invented", "Δ to", "Δ mean Dice [95 % CI]", "p (Holm)", "patients", "seeds",
    ]  # fmt: skip
    if not records:
        return without(NAME, TITLE, ABSENT, columns, DATA, spec, 4)
    add_holm(records)
    printed = [
        [
            r["method"], r["arm"], share(r["label_fraction"]), r["leakage"] or MISSING, *_figures(r), r["against"] or MISSING,
            interval(r, "difference", 3, sign=True), p_text(r["difference_p_holm"]), number(r["n_patients"], 0),
            number(r["seeds"], 0),
        ]
        for r in records
    ]  # fmt: skip
    notes = [
        *_notes(measured),
        "From scratch: the same network from random weights, those its pretraining started from where it ran here; at matched "
        "compute it trains for so many steps more that it costs what pretraining and fine-tuning cost together.",
        intervals_told(spec, seen),
        "Δ is paired over the same patients; p is adjusted within this table after Holm; neither holds how much another seed "
        "would change.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    caption = _caption(spec, "The means are over organs, of each of which it is over patients in whom it was drawn and is there.")
    return Table(NAME, TITLE, caption, columns, printed, [n for n in notes if n], pd.DataFrame(records), text_columns=4)


def segmentation_organs_table(measured: Measured) -> Table:
    """One row per method, arm, share of labels and organ."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    seen: list[Estimate] = []
    for networks in _segmented(measured):
        for organ in measured.spec["config"]["organs"]:
            if networks.lines("dice", organ):
                means, found = networks.agreement(organ)
                seen += means.values()
                records.append(networks.named() | {"organ": organ} | found | {"n_patients": means["dice"].n_patients})
    columns = [
        "method", "weights", "labels", "leakage", "organ", "Dice [95 % CI]", "HD95, mm [95 % CI]", "surface Dice [95 % CI]",
        "missed", "invented", "patients",
    ]  # fmt: skip
    if not records:
        return without(ORGANS_NAME, ORGANS_TITLE, ABSENT, columns, (*DATA[:3], "organ", "dice"), spec, 5)
    printed = [
        [
            r["method"], r["arm"], share(r["label_fraction"]), r["leakage"] or MISSING, r["organ"], *_figures(r),
            number(r["n_patients"], 0),
        ]
        for r in records
    ]  # fmt: skip
    caption = _caption(spec, "Means over the scans of patients in whom the organ was drawn and is there, and over seeds.")
    notes = [*_notes(measured), intervals_told(spec, seen), LEAKAGE_NOTE, configuration_note(spec)]
    data = pd.DataFrame(records)
    return Table(ORGANS_NAME, ORGANS_TITLE, caption, columns, printed, [n for n in notes if n], data, text_columns=5)


def _segmented(measured: Measured) -> Iterator[_Networks]:
    """By share of labels, method and arm."""
    for fraction in segmented_fractions(measured):
        for label, entries in measured.labels("methods").items():
            for arm in ARMS:
                if (networks := _Networks(measured, label, entries, arm, fraction)).lines("dice"):
                    yield networks


def _figures(record: Record) -> list[str]:
    """Cells of Dice, distances and what was not found where it is, or found where it is not."""
    cells = [interval(record, "dice", 3), interval(record, "hd95", 1), interval(record, "surface_dice", 3)]
    digits = 0 if float(record["missed"]).is_integer() and float(record["invented"]).is_integer() else 1
    missed = f"{number(record['missed'], digits)} of {number(record['cases'], 0)}"
    return [*cells, missed, number(record["invented"], digits)]


def _caption(spec: Mapping[str, Any], means: str) -> str:
    return f"Agreement with what was drawn in whole scans of {', '.join(spec['datasets'])}. {means} {pools_text(spec)}"


def _notes(measured: Measured) -> list[str]:
    """What the figures are, and how their networks came about."""
    tolerance = measured.spec["config"]["finetune"]["surface_tolerance_mm"]
    return [
        "HD95: the larger of the 95th percentiles of the distances between the surfaces, either way. Surface Dice: the share of "
        f"both surfaces that lies within {tolerance:g} mm of the other. Missed: of so many cases of an organ, each counted once "
        "for every draw of the labels, those in which the network sees it nowhere: their Dice and surface Dice are 0, and as "
        "they have no distance, HD95 is of the others alone. "
        "Invented: cases in which it is seen though it was looked for and is not there; they enter no mean.",
        *([f"In no scan that was tested, and so in no mean: {', '.join(absent)}."] if (absent := _absent(measured)) else []),
        *tuning_notes(measured, *(protocol_of("segmentation", arm) for arm in ARMS)),
    ]


def _absent(measured: Measured) -> list[str]:
    """Organs that no tested scan has."""
    there = {organ for lines in measured.segmentations.values() for organ in lines[lines["metric"] == "dice"]["organ"]}
    return [organ for organ in measured.spec["config"]["organs"] if organ not in there]


def started(measured: Measured, entries: Entries, arm: Arm) -> tuple[str, str | None]:
    """What networks were fine-tuned from, as printed, and whether they had seen what they are judged on; None: from scratch."""
    if arm != "pretrained":
        return ARMS[arm], None
    origin = status(measured, entries)
    return ARMS[arm] if origin == MEASURED else origin, measured.leakage(entries)


def segmented_fractions(measured: Measured) -> list[float]:
    """Every share of labels at which a network was fine-tuned to segment."""
    found = {float(f) for frame in measured.segmentations.values() if len(frame) for f in frame["label_fraction"].unique()}
    return sorted(found)


def _counterpart(label: str, reference: str | None, of_reference: Lines, scratch: Lines) -> tuple[str | None, Lines]:
    """What a pretrained network is compared with: the reference's where there is one, else its own random start."""
    if of_reference and label != reference:
        return reference, of_reference
    return "own from scratch", scratch
