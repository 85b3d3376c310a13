"""Whole superpatches as the methods reconstruct them: MAESIL Tables II and III."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import MAESIL, load_published, plain, printed_name, published_note, published_row, unmatched
from nemesis.report.render import MISSING, Table, absent, interval, number
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import (
    MEASURED,
    NO_RECONSTRUCTION,
    NOT_RUN,
    Record,
    beside,
    configuration_note,
    figures,
    intervals_told,
    lpips_note,
    lpips_text,
    measured_text,
    pools_text,
    superpatches_of,
    without,
)

NAME, TITLE = "maesil_reconstruction", "Reconstruction of whole superpatches (MAESIL Table II)"
NAME_BY_DATASET, TITLE_BY_DATASET = "maesil_datasets", "Reconstruction by dataset (MAESIL Table III)"
DATASETS = ("BTCV", "LIDC-IDRI", "TotalSegmentator")
METRICS = ("psnr", "ssim", "lpips")
WHICH_INPUT = (
    "Judged on the whole superpatch: of methods that hide what they say of a masked input, pasted into what they saw of it; of "
    "the others the prediction from the unmasked input. What is pasted is exact, and what is seen is easier than what is "
    "hidden: the two are not the same task. The paper does not say which it measured."
)


def maesil_table(measured: Measured) -> Table:
    """PSNR (dB), SSIM and LPIPS of every method that reconstructs, over all datasets together."""
    spec = of_part(measured.spec, "methods")
    papers = load_published("maesil")["table2_reconstruction"]
    records: list[Record] = []
    seen: list[Estimate] = []
    for label, entries in _reconstructing(measured).items():
        psnr, ssim, lpips = (measured.whole(entries, metric) for metric in METRICS)
        seen.append(psnr)
        record = _record(measured, label, entries, psnr) | figures("psnr", psnr) | figures("ssim", ssim)
        record |= figures("lpips", lpips)
        paper = published_row(spec, papers, label)
        for metric in METRICS:
            record |= beside(metric, record[metric], paper.get(metric))
        records.append(record)
    if not records:
        return without(NAME, TITLE, NO_RECONSTRUCTION, ("method", "PSNR", "SSIM"), ("method", "status", "psnr", "ssim"), spec, 1)
    for paper in unmatched(spec, papers, records):
        published = {f"published_{metric}": paper[metric] for metric in METRICS}
        records.append(dict.fromkeys(records[0]) | {"method": paper["method"], "status": NOT_RUN} | published)

    columns = [
        "method", "leakage", "input", "PSNR [95 % CI]", "published", "Δ published", "SSIM [95 % CI]", "published", "Δ published",
        "LPIPS [95 % CI]", "published", "Δ published", "patients", "superpatches",
    ]  # fmt: skip
    printed = [
        [
            r["method"], r["leakage"] or MISSING, _input_text(r), measured_text(r, interval(r, "psnr", 2)),
            number(r["published_psnr"], 2), number(r["psnr_minus_published"], 2, sign=True), interval(r, "ssim", 3),
            number(r["published_ssim"], 2), number(r["ssim_minus_published"], 3, sign=True),
            lpips_text(r["lpips"], r["psnr"]) if absent(r["lpips"]) else interval(r, "lpips", 3), number(r["published_lpips"], 2),
            number(r["lpips_minus_published"], 3, sign=True), number(r["n_patients"], 0), number(r["n_superpatches"], 0),
        ]
        for r in records
    ]  # fmt: skip
    caption = f"Whole {superpatches_of(spec)} above the foreground floor. {measured.training('methods')} {pools_text(spec)}"
    told = lpips_note(spec, [r["lpips"] for r in records])
    notes = [published_note(spec, MAESIL, DATASETS, "the same method"), *_notes(spec, seen, told)]
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=3)


def maesil_datasets_table(measured: Measured) -> Table:
    """PSNR (dB) of every method that reconstructs, by dataset."""
    spec = of_part(measured.spec, "methods")
    papers = load_published("maesil")
    by_dataset: Mapping[str, float] = papers["table3_psnr_by_dataset"]
    records: list[Record] = []
    seen: list[Estimate] = []
    for label, entries in _reconstructing(measured).items():
        theirs = by_dataset if printed_name(spec, papers["table2_reconstruction"], label) == "MAESIL" else {}
        for dataset in spec["datasets"]:
            seen.append(psnr := measured.whole(entries, "psnr", dataset))
            published = next((theirs[name] for name in theirs if plain(name) == plain(dataset)), None)
            record = _record(measured, label, entries, psnr, dataset) | {"dataset": dataset} | figures("psnr", psnr)
            records.append(record | beside("psnr", psnr.point, published))
    columns = ("method", "dataset", "leakage", "input", "PSNR [95 % CI]", "published", "Δ published", "patients", "superpatches")
    if not records:
        data = ("method", "dataset", "status", "psnr")
        return without(NAME_BY_DATASET, TITLE_BY_DATASET, NO_RECONSTRUCTION, columns, data, spec, 4)
    done = {plain(r["dataset"]) for r in records if r["published_psnr"] is not None}
    for dataset, published in by_dataset.items():
        if plain(dataset) not in done:
            row = {"method": "MAESIL", "dataset": dataset, "status": NOT_RUN, "published_psnr": published}
            records.append(dict.fromkeys(records[0]) | row)
    printed = [
        (
            r["method"], r["dataset"], r["leakage"] or MISSING, _input_text(r), measured_text(r, interval(r, "psnr", 2)),
            number(r["published_psnr"], 2), number(r["psnr_minus_published"], 2, sign=True), number(r["n_patients"], 0),
            number(r["n_superpatches"], 0),
        )
        for r in records
    ]  # fmt: skip
    caption = f"Whole {superpatches_of(spec)} above the foreground floor, each dataset by itself. {pools_text(spec)}"
    note = f"Published: {MAESIL}; a figure stands beside MAESIL's on the same dataset only, whatever sizes and training were."
    notes = [note, *_notes(spec, seen)]
    return Table(NAME_BY_DATASET, TITLE_BY_DATASET, caption, columns, printed, notes, pd.DataFrame(records), text_columns=4)


def _reconstructing(measured: Measured) -> dict[str, Entries]:
    """The labels of methods that reconstruct."""
    labels = measured.labels("methods").items()
    return {label: entries for label, entries in labels if any(len(measured.reconstructions[e["run"]]) for e in entries)}


def _record(measured: Measured, label: str, entries: Entries, psnr: Estimate, dataset: str | None = None) -> Record:
    record: Record = {"method": label, "status": MEASURED, "leakage": measured.leakage(entries, dataset)}
    record["input_masked"] = measured.hides(entries)
    return record | {"n_patients": psnr.n_patients, "n_superpatches": psnr.n_superpatches, "seeds": len(entries)}


def _input_text(record: Mapping[str, Any]) -> str:
    return {True: "masked, pasted", False: "unmasked", None: "not said"}[record["input_masked"]]


def _notes(spec: Mapping[str, Any], seen: Iterable[Estimate], *more: str) -> list[str]:
    return [
        WHICH_INPUT,
        "PSNR in dB and SSIM (3D, Gaussian window of 11 voxels, σ 1.5), data range 1, per superpatch and averaged; padding never "
        "counts.",
        *more,
        f"{intervals_told(spec, seen)} Figures are means over seeds.".strip(),
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
