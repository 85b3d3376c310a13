"""How well superpatches and whole volumes are reconstructed, in every cell: by region, input, scope and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import load_published
from nemesis.report.render import Table, interval, number
from nemesis.report.tables.measured import Measured, Scope
from nemesis.report.tables.pieces import (
    NO_RECONSTRUCTION,
    SIZES,
    Record,
    configuration_note,
    figures,
    intervals_told,
    lpips_note,
    lpips_text,
    pair,
    percent,
    pools_text,
    spread,
    superpatches_of,
    without,
)

NAME, TITLE = "reconstruction", "Reconstruction"
SCOPES: dict[Scope, str] = {"superpatch": "superpatch", "stitched": "stitched volume"}
EASY_IN = ("psnr_masked", "psnr_visible_mean")  # are told with the easy negatives, too
NAMES = {  # how a note calls the figures
    "effective_mask_ratio": "hidden",
    "psnr_masked": "PSNR masked",
    "psnr_visible_mean": "visible-mean fill",
    "psnr_visible": "PSNR visible",
    "psnr_whole": "PSNR pasted",
    "ssim_whole": "SSIM pasted",
    "lpips_whole": "LPIPS pasted",
    "psnr_masked_unmasked_input": "PSNR masked of unmasked input",
    "psnr_visible_unmasked_input": "PSNR visible of unmasked input",
    "psnr_unmasked_input": "PSNR of unmasked input",
    "ssim_unmasked_input": "SSIM of unmasked input",
    "lpips_unmasked_input": "LPIPS of unmasked input",
}


def reconstruction_table(measured: Measured) -> Table:
    """PSNR (dB), SSIM and LPIPS in every cell: by region, input, scope and dataset, of every method that reconstructs; means over
    seeds."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    others: list[str] = []  # numbers of superpatches that are not those of the last column
    seen: list[Estimate] = []
    together_first = [None, *spec["datasets"]] if len(spec["datasets"]) > 1 else list(spec["datasets"])
    for label, entries in measured.labels("methods").items():
        for dataset, scope in product(together_first, SCOPES):
            found = {name: measured.reconstructed(entries, name, dataset, scope) for name in NAMES}
            found = {name: estimate for name, estimate in found.items() if estimate.point is not None}
            if not found:
                continue
            main = found["psnr_masked" if "psnr_masked" in found else "psnr_unmasked_input"]
            seen.append(main)
            record: Record = {"method": label, "dataset": dataset or "+".join(spec["datasets"]), "scope": scope}
            record["leakage"] = measured.leakage(entries, dataset)
            for name in NAMES:
                record |= figures(name, found.get(name))
            for name in EASY_IN:
                easy = measured.reconstructed(entries, name, dataset, scope, "in") if scope == "superpatch" else None
                record[f"{name}_easy_in"] = easy.point if easy else None
            for name in ("psnr_masked", "psnr_unmasked_input"):
                record[f"{name}_seed_sd"] = spread(found[name]) if name in found else None
            records.append(record | {size: getattr(main, size) for size in SIZES} | {"seeds": len(entries)})
            if different := _different_sizes(found, main.n_superpatches):
                others.append(f"{label} on {record['dataset']}, {SCOPES[scope]}, {different}")
    columns = (
        "method", "dataset", "scope", "leakage", "hidden", "PSNR masked [95 % CI]", "visible-mean fill",
        "masked / fill with easy", "PSNR visible", "PSNR pasted [95 % CI]", "SSIM pasted", "LPIPS pasted",
        "unmasked input: PSNR masked / visible", "whole: PSNR [95 % CI]", "SSIM", "LPIPS", "patients", "superpatches or volumes",
    )  # fmt: skip
    printed = [
        (
            r["method"], r["dataset"], SCOPES[r["scope"]], r["leakage"], percent(r["effective_mask_ratio"]),
            interval(r, "psnr_masked", 2), number(r["psnr_visible_mean"], 2),
            pair(r["psnr_masked_easy_in"], r["psnr_visible_mean_easy_in"], 2, 2), number(r["psnr_visible"], 2),
            interval(r, "psnr_whole", 2), number(r["ssim_whole"], 3), lpips_text(r["lpips_whole"], r["psnr_whole"]),
            pair(r["psnr_masked_unmasked_input"], r["psnr_visible_unmasked_input"], 2, 2),
            interval(r, "psnr_unmasked_input", 2), number(r["ssim_unmasked_input"], 3),
            lpips_text(r["lpips_unmasked_input"], r["psnr_unmasked_input"]),
            number(r["n_patients"], 0), number(r["n_superpatches"], 0),
        )
        for r in records
    ]  # fmt: skip
    if not records:
        return without(NAME, TITLE, NO_RECONSTRUCTION, columns, ("method", "dataset", "scope", *NAMES), spec, 4)
    seeds = []
    for label in dict.fromkeys(r["method"] for r in records):
        own_seeds = [str(e["seed"]) for e in spec["runs"] if e["label"] == label]
        seeds.append(f"{label} {', '.join(own_seeds)}" + (" (seed spread not measured)" if len(own_seeds) == 1 else ""))
    axis, plane = (next(r for r in load_published()["table4_masking"] if r["strategy"] == s) for s in ("axis", "plane"))
    notes = [
        "PSNR in dB and SSIM (3D, Gaussian window of 11 voxels, σ 1.5), data range 1; pairs are PSNR / PSNR. Measured per "
        "superpatch, or on the volume put together from them, and averaged; padding never counts.",
        lpips_note(spec, [r[name] for r in records for name in ("lpips_whole", "lpips_unmasked_input")]),
        "Visible-mean fill: the hidden voxels of a superpatch filled with the mean of its visible ones; 'PSNR masked' "
        "should beat it. Neither counts superpatches whose part inside the scan is wholly hidden or wholly visible.",
        *([f"Averaged, where not as many as the last column says: {'; '.join(others)}."] if others else []),
        "Pasted: visible voxels are the input's own. Unmasked input: nothing hidden, the whole prediction is judged, and by "
        "itself on the voxels that the mask would hide and leave.",
        "Nearly empty superpatches (easy) are left out but where a column says otherwise; a stitched volume has them. "
        "On plain air the fill is exact and counts as 100 dB, the largest PSNR.",
        f"Seeds: {'; '.join(seeds)}. {intervals_told(spec, seen)}".strip(),
        f"The NEMESIS paper prints {plane['psnr']} dB and {plane['ssim']} for plane-wise, {axis['psnr']} dB and {axis['ssim']} "
        "for axis-wise masking at a mask ratio of 0.75, and does not say which voxels count: see the table of ablations.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    caption = f"S{superpatches_of(spec)[1:]}, under a fixed mask for each. {pools_text(spec)}"
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=4)


def _different_sizes(found: Mapping[str, Estimate], usual: int) -> str:
    """The figures whose mean is over another number of superpatches or volumes than the main one's, by that number."""
    groups: dict[int, list[str]] = {}
    for name, estimate in found.items():
        if estimate.n_superpatches != usual:
            groups.setdefault(estimate.n_superpatches, []).append(NAMES[name])
    return ", ".join(f"{n} ({', '.join(names)})" for n, names in groups.items())
