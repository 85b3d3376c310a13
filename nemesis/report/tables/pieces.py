"""Pieces of a row and of what stands around it, shared by the tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nemesis.evaluation.backbones import BACKBONES, how_to_get
from nemesis.evaluation.statistics import Estimate
from nemesis.report.render import MISSING, Table, absent, number

MEASURED, NOT_RUN = "measured", "not run"
NOT_SCORABLE = "not scorable"  # run, but no organ has both classes in any test set
NO_RECONSTRUCTION = "No method of this experiment reconstructs its input."
NOT_MEASURED = "not measured"
SIZES = ("n_patients", "n_superpatches")

Record = dict[str, Any]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of p values; None stays None and does not count."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def add_holm(records: Sequence[Record]) -> None:
    """``difference_p_holm``: ``difference_p`` adjusted within a table."""
    for record, adjusted in zip(records, holm([r["difference_p"] for r in records]), strict=True):
        record["difference_p_holm"] = adjusted


def figures(name: str, estimate: Estimate | None) -> Record:
    """A figure and the ends of its interval."""
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def difference_figures(gap: Estimate | None) -> Record:
    """A paired difference with its p."""
    return figures("difference", gap) | {"difference_p": gap.p if gap else None}


def counts(estimate: Estimate) -> Record:
    """Patients, superpatches and cells behind a score."""
    return {name: getattr(estimate, name) for name in ("n_patients", "n_superpatches", "n_cells")}


def spread(estimate: Estimate) -> float | None:
    """Standard deviation over seeds."""
    return float(np.std(estimate.per_seed, ddof=1)) if len(estimate.per_seed) > 1 else None


def beside(name: str, measured: float | None, published: float | None, comparable: bool = True) -> Record:
    """A published figure, and how far the measured one is from it, where they are comparable."""
    return {f"published_{name}": published, f"{name}_minus_published": minus(measured, published) if comparable else None}


def minus(measured: float | None, published: float | None) -> float | None:
    """Their difference, where both are there."""
    return None if measured is None or published is None else measured - published


def without(
    name: str, title: str, sentence: str, columns: Sequence[str], data: Sequence[str], spec: Mapping[str, Any], text_columns: int
) -> Table:
    """The table of what an experiment does not have: a sentence in place of rows, and of its CSV (columns ``data``) no line."""
    return Table(name, title, sentence, columns, [], [configuration_note(spec)], pd.DataFrame(columns=list(data)), text_columns)


# ----------------------------------------------------------------------------------------------------- texts of cells


def pair(first: float | None, second: float | None, digits: int, more: int, sign: bool = False) -> str:
    """Two figures in one cell."""
    if first is None and second is None:
        return MISSING
    return f"{number(first, digits, sign)} / {number(second, more, sign)}"


def together(*values: float | None, sign: bool = False) -> str:
    """PSNR, SSIM and LPIPS in one cell, as far as they go."""
    if all(absent(value) for value in values):
        return MISSING
    return " / ".join(number(value, digits, sign) for value, digits in zip(values, (2, 3, 3), strict=False))


def measured_text(record: Mapping[str, Any], text: str) -> str:
    """The text of a figure, or why there is none."""
    return text if record["status"] == MEASURED else str(record["status"])


def lpips_text(value: float | None, beside: float | None) -> str:
    """LPIPS; where it was not measured it says so, if the figure beside it was."""
    return NOT_MEASURED if absent(value) and not absent(beside) else number(value, 3)


def scaled(value: float | None) -> str:
    """A large number with three digits and a prefix of the SI: 210 M, 1.33 P."""
    if value is None or not math.isfinite(value):
        return MISSING
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:#.3g}".rstrip(".") + f" {prefix}"
    return f"{value:.3g}"


def p_text(value: float | None) -> str:
    """A p value; the smallest are a bound."""
    return "< 0.001" if value is not None and value < 0.0005 else number(value, 3)


def percent(value: float | None) -> str:
    """A share with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def share(fraction: float) -> str:
    """A label fraction."""
    return f"{100 * fraction:g} %"


# ------------------------------------------------------------------------------------------------------------- notes


def configuration_note(spec: Mapping[str, Any]) -> str:
    """Which configuration made the figures."""
    return f"Configuration {spec['config_hash']}."


def superpatches_of(spec: Mapping[str, Any]) -> str:
    """What is scored."""
    return f"superpatches of {', '.join(spec['datasets'])}"


def sizes_text(estimates: Iterable[Estimate]) -> str:
    """How many patients and superpatches were scored, at most; nothing where there is no score."""
    if (most := max(estimates, key=lambda e: e.n_superpatches, default=None)) is None:
        return ""
    return f"{most.n_patients} patients, {most.n_superpatches} superpatches scored."


def pools_text(spec: Mapping[str, Any]) -> str:
    """What pretraining and evaluation share."""
    if shared := int(spec["transductive"]):
        patients = f"{shared} evaluation patient{'s' * (shared > 1)}"
        return f"TRANSDUCTIVE: encoders were pretrained on scans of {patients}, too (without labels)."
    return "Pretraining and evaluation pools share no patient."


def organs_note(spec: Mapping[str, Any], rows: pd.DataFrame, fraction: float) -> str:
    """Which organs are averaged, with the share of superpatches that hold them."""
    main = rows[rows["easy_negatives"] == "out"]
    scores = main[(main["metric"] == "auroc") & (main["label_fraction"] == fraction)]
    scored = set(scores["organ"])
    shares = main[main["metric"] == "prevalence"].groupby("organ")["value"].first()
    organs = spec["config"]["organs"]
    told = ", ".join(f"{organ} {shares[organ]:.2f}" for organ in organs if organ in scored)
    left = [organ for organ in organs if organ not in scored]
    note = f"Mean over {len(scored)} organs, each with its prevalence: {told or 'none'}."
    note += f" Without both classes in any test set, and left out: {', '.join(left)}." if left else ""
    tuned = set(scores[scores["protocol"] == "finetune"]["organ"])
    if tuned and tuned != scored:
        lacking = [organ for organ in organs if organ in scored - tuned]
        note += f" Fine-tuned rows, of fewer test patients, lack {', '.join(lacking)}."
    return note


def interval_notes(spec: Mapping[str, Any], estimates: Iterable[Estimate]) -> list[str]:
    """What a score is the mean of, and what its interval is, or why there is none."""
    estimates = list(estimates)
    cells = max((e.n_cells for e in estimates), default=0)
    return [f"A score is the mean over up to {cells} cells (folds × draws × organs). {intervals_told(spec, estimates)}"]


def intervals_told(spec: Mapping[str, Any], estimates: Iterable[Estimate]) -> str:
    """What the intervals are, and why some or all figures have none."""
    estimates = list(estimates)
    given = [e for e in estimates if e.low is not None]
    told = []
    if given:
        text = (
            f"Intervals: 95 % by Student's t, of the standard error by {spec['bootstrap']} bootstrap resamples of test patients"
        )
        probes = [e for e in given if e.n_cells]  # the others' figures depend on nobody's labels
        if any(e.training for e in probes):
            where = "" if all(e.training for e in probes) else " where labels were drawn more than once"
            text += f" and, for what other training patients would change, by the draws of label fractions{where}"
        elif probes:
            text += "; what other training patients would change is not in them"
        told.append(text)
    where = "where a figure has none: " if given else ""
    told += [where + note for note in sorted({e.note for e in estimates if e.note})]
    sentence = "; ".join(told)
    return sentence[:1].upper() + sentence[1:] + "." * bool(sentence)


def lpips_note(spec: Mapping[str, Any], values: Iterable[float | None]) -> str:
    """What LPIPS is, or why there is none and what to do."""
    network, backbone = spec["lpips"]["network"], BACKBONES[spec["lpips"]["network"]]
    if not spec["lpips"]["sha256"]:
        return how_to_get(network)
    smallest = f"{backbone.title} takes slices of at least {backbone.smallest} voxels"
    if all(absent(value) for value in values):
        return f"LPIPS not measured: {smallest}, and here none has as many."
    told = f"LPIPS by {backbone.title}, the mean over axial, coronal and sagittal slices; smaller is nearer. {smallest}."
    return f"{told} Which network the published figures are by is not known."


def partly_note(fraction: float) -> list[str]:
    """Why no difference to the paper is taken."""
    if fraction == 1:
        return []
    return [f"Published figures are at 100 % of the labels, measured ones at {share(fraction)}: no difference is taken."]
