"""How well hidden voxels are reconstructed, by region, beside what filling with the visible mean reaches."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from nemesis.evaluation.rows import ROW_COLUMNS
from nemesis.evaluation.statistics import Estimate
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import load_published
from nemesis.report.render import Table, interval, number
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import (
    NO_RECONSTRUCTION,
    SIZES,
    Record,
    configuration_note,
    intervals_told,
    pair,
    percent,
    pools_text,
    superpatches_of,
    without,
)

NAME, TITLE = "reconstruction", "Reconstruction of hidden voxels"
LEFT_OUT: Record = {"scope": "superpatch", "easy_negatives": "out"}
BASE = LEFT_OUT | {"input_masked": True}
WANTED: dict[str, Record] = {
    "effective_mask_ratio": BASE | {"metric": "effective_mask_ratio"},
    "psnr_masked": BASE | {"metric": "psnr", "region": "masked"},
    "psnr_visible_mean": BASE | {"metric": "psnr_visible_mean"},
    "psnr_visible": BASE | {"metric": "psnr", "region": "visible"},
    "psnr_whole": BASE | {"metric": "psnr", "region": "whole"},
    "ssim_whole": BASE | {"metric": "ssim", "region": "whole"},
    "psnr_unmasked_input": BASE | {"metric": "psnr", "region": "whole", "input_masked": False},
    "ssim_unmasked_input": BASE | {"metric": "ssim", "region": "whole", "input_masked": False},
    "psnr_masked_easy_in": BASE | {"metric": "psnr", "region": "masked", "easy_negatives": "in"},
    "psnr_visible_mean_easy_in": BASE | {"metric": "psnr_visible_mean", "easy_negatives": "in"},
    "psnr_stitched": BASE | {"metric": "psnr", "region": "whole", "scope": "stitched", "easy_negatives": "in"},
    "ssim_stitched": BASE | {"metric": "ssim", "region": "whole", "scope": "stitched", "easy_negatives": "in"},
}
NAMES = {  # how a note calls the figures
    "effective_mask_ratio": "hidden",
    "psnr_masked": "PSNR masked",
    "psnr_visible_mean": "visible-mean fill",
    "psnr_visible": "PSNR visible",
    "psnr_whole": "PSNR pasted",
    "ssim_whole": "SSIM pasted",
    "psnr_unmasked_input": "PSNR of unmasked input",
    "ssim_unmasked_input": "SSIM of unmasked input",
}


def reconstruction_table(measured: Measured) -> Table:
    """PSNR (dB) and SSIM by region, of every method that reconstructs, by dataset; means over seeds."""
    spec = of_part(measured.spec, "methods")
    rows = measured.rows[measured.rows["metric"].isin({str(conditions["metric"]) for conditions in WANTED.values()})]
    records: list[Record] = []
    others: list[str] = []  # numbers of superpatches that are not those of the last column
    volumes: dict[str, int] = {}
    estimates: list[Estimate] = []
    for label, entries in measured.labels("methods").items():
        own = rows[rows["run"].isin([entry["run"] for entry in entries])]
        # The joined name of several datasets is the longest: all of them first, then each by itself.
        for dataset in sorted(own["dataset"].dropna().unique(), key=lambda n: (-n.count("+"), n)):
            here = own[own["dataset"] == dataset]
            record: Record = {"method": label, "dataset": dataset}
            record["leakage"] = measured.leakage(entries, None if dataset.count("+") else dataset)
            sizes: dict[str, Record] = {}
            for name, conditions in WANTED.items():
                chosen = here
                for column in ROW_COLUMNS:
                    if column in conditions:
                        chosen = chosen[chosen[column] == conditions[column]]
                per_seed = chosen.groupby("run")["value"].mean()
                record[name] = float(per_seed.mean()) if len(per_seed) else None
                if len(per_seed):
                    sizes[name] = {size: chosen[size].max() for size in SIZES}
                if name == "psnr_masked":
                    alone = None if dataset.count("+") else dataset
                    psnr = measured.reconstructed(entries, name, alone)
                    estimates.append(psnr)
                    record |= {f"{name}_low": psnr.low, f"{name}_high": psnr.high}
                if name in ("psnr_masked", "psnr_unmasked_input"):
                    record[f"{name}_seed_sd"] = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
            main = next((sizes[name] for name in ("psnr_masked", "psnr_unmasked_input") if name in sizes), {})
            records.append(record | {size: main.get(size) for size in SIZES} | {"seeds": len(entries)})
            if different := _different_sizes({n: s for n, s in sizes.items() if WANTED[n].items() >= LEFT_OUT.items()}, main):
                others.append(f"{label} on {dataset} {different}")
            if "psnr_stitched" in sizes:  # of a stitched volume a row counts the volumes
                volumes[dataset] = max(volumes.get(dataset, 0), int(sizes["psnr_stitched"]["n_patients"]))
    columns = (
        "method", "dataset", "leakage", "hidden", "PSNR masked [95 % CI]", "visible-mean fill", "PSNR visible", "whole, pasted",
        "unmasked input", "masked / fill with easy", "stitched, pasted", "patients", "superpatches",
    )  # fmt: skip
    printed = [
        (
            r["method"], r["dataset"], r["leakage"], percent(r["effective_mask_ratio"]),
            interval(r, "psnr_masked", 2), number(r["psnr_visible_mean"], 2), number(r["psnr_visible"], 2),
            pair(r["psnr_whole"], r["ssim_whole"], 2, 3),
            pair(r["psnr_unmasked_input"], r["ssim_unmasked_input"], 2, 3),
            pair(r["psnr_masked_easy_in"], r["psnr_visible_mean_easy_in"], 2, 2),
            pair(r["psnr_stitched"], r["ssim_stitched"], 2, 3),
            number(r["n_patients"], 0), number(r["n_superpatches"], 0),
        )
        for r in records
    ]  # fmt: skip
    if not records:
        return without(NAME, TITLE, NO_RECONSTRUCTION, columns, ("method", "dataset", *WANTED), spec, 3)
    seeds = []
    for label in dict.fromkeys(r["method"] for r in records):
        own_seeds = [str(e["seed"]) for e in spec["runs"] if e["label"] == label]
        seeds.append(f"{label} {', '.join(own_seeds)}" + (" (seed spread not measured)" if len(own_seeds) == 1 else ""))
    axis, plane = (next(r for r in load_published()["table4_masking"] if r["strategy"] == s) for s in ("axis", "plane"))
    notes = [
        "PSNR in dB and SSIM (3D, Gaussian window of 11 voxels, σ 1.5), data range 1; single figures are PSNR, pairs "
        "PSNR / SSIM (with easy: PSNR / PSNR of the fill). Measured per superpatch and averaged; padding never counts.",
        "Visible-mean fill: the hidden voxels of a superpatch filled with the mean of its visible ones; 'PSNR masked' "
        "should beat it. Neither counts superpatches whose part inside the scan is wholly hidden or wholly visible.",
        *([f"Superpatches averaged, where not those of the last column: {'; '.join(others)}."] if others else []),
        "Pasted: visible voxels are the input's own. Unmasked input: nothing hidden, the whole prediction is judged.",
        "Nearly empty superpatches (easy) are left out but where a column says otherwise; a stitched volume has them. "
        "On plain air the fill is exact and counts as 100 dB, the largest PSNR.",
        *([f"Stitched: {_volumes(volumes)}."] if volumes else []),
        f"Seeds: {'; '.join(seeds)}. {intervals_told(spec, estimates)}".strip(),
        f"The NEMESIS paper prints {plane['psnr']} dB and {plane['ssim']} for plane-wise, {axis['psnr']} dB and {axis['ssim']} "
        "for axis-wise masking at a mask ratio of 0.75, and does not say which voxels count: see the table of ablations.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    caption = f"S{superpatches_of(spec)[1:]}, under a fixed mask for each. {pools_text(spec)}"
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=3)


def _different_sizes(sizes: Mapping[str, Record], main: Record) -> str:
    """The figures whose mean is over other superpatches than the main one's, by their number."""
    groups: dict[int, list[str]] = {}
    for name, size in sizes.items():
        if size["n_superpatches"] != main.get("n_superpatches"):
            groups.setdefault(int(size["n_superpatches"]), []).append(NAMES[name])
    return ", ".join(f"{n} ({', '.join(names)})" for n, names in groups.items())


def _volumes(volumes: Mapping[str, int]) -> str:
    told = {dataset: f"{n} volume{'s' * (n > 1)}" for dataset, n in volumes.items()}
    return ", ".join(told.values() if len(told) == 1 else (f"{dataset} {text}" for dataset, text in told.items()))
