"""Variants of one method: NEMESIS Table IV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import NEMESIS, Paper, load_published
from nemesis.report.render import MISSING, Table, interval, number
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import (
    MEASURED,
    NOT_RUN,
    NOT_SCORABLE,
    Record,
    add_holm,
    beside,
    configuration_note,
    counts,
    difference_figures,
    figures,
    interval_notes,
    lpips_note,
    lpips_text,
    measured_text,
    organs_note,
    p_text,
    percent,
    pools_text,
    share,
    sizes_text,
    superpatches_of,
    together,
    without,
)

NAME, TITLE = "ablations", "Ablations: one thing varied at a time (NEMESIS Table IV)"
PUBLISHED_TOTAL = 0.75  # share that the strategies of the paper's table hide
MASKING_KEYS = ("plane_masking", "axis_masking", "plane_mask_ratio", "axis_mask_ratio")
PUBLISHED = {
    "psnr": "psnr_masked",
    "ssim": "ssim_whole",
    "lpips": "lpips_whole",
}  # the paper's figures, and which stand beside them
DATA = ("group", "variant", "superpatch", "status", "psnr_masked", "ssim_whole", "auroc")


def ablations_table(measured: Measured) -> Table:
    """The method as configured, then its variants by group, each beside its difference to the first row."""
    spec, fraction = measured.spec, measured.fractions[-1]
    variants = measured.labels("ablations")
    if not variants:
        columns = ("group", "variant", "PSNR masked", "SSIM pasted", "AUROC")
        return without(NAME, TITLE, "This experiment has no ablations.", columns, DATA, spec, 2)
    (first, base), *others = variants.items()
    groups = [entries[0]["group"] for _, entries in others]
    ordered = [(first, base), *sorted(others, key=lambda variant: groups.index(variant[1][0]["group"]))]
    papers = load_published()["table4_masking"]
    seen: list[Estimate] = []
    records: list[Record] = []
    for label, entries in ordered:
        identity = measured.identities[entries[0]["run"]]
        seen.append(auroc := measured.score(entries, "linear", fraction))
        record: Record = {"group": entries[0]["group"], "variant": label, "superpatch": identity["superpatch"]}
        record["status"] = MEASURED if auroc.point is not None else NOT_SCORABLE
        record["leakage"] = measured.leakage(entries)
        record["effective_mask_ratio"] = measured.reconstructed(entries, "effective_mask_ratio").point
        for measure in ("psnr_masked", "psnr_visible_mean", "ssim_whole", "lpips_whole"):
            record |= figures(measure, measured.reconstructed(entries, measure))
        gap = None
        if label != first and _same_superpatches(measured, entries, base) and None not in (auroc.point, seen[0].point):
            gap = measured.difference(entries, base, "linear", fraction)
        record |= figures("auroc", auroc) | difference_figures(gap)
        paper = _published(papers, identity, measured.identities[base[0]["run"]])
        for name, measure in PUBLISHED.items():
            record |= beside(name, record[measure], paper.get(name))
        records.append(record | {"strategy": paper.get("strategy")} | counts(auroc) | {"seeds": len(entries)})
    add_holm(records)
    done = {record["strategy"] for record in records}
    for paper in papers:
        if paper["strategy"] not in done:
            told = {f"published_{name}": paper[name] for name in PUBLISHED} | {"strategy": paper["strategy"], "status": NOT_RUN}
            records.append(dict.fromkeys(records[0]) | {"group": "masking", "variant": f"{paper['strategy']}-wise"} | told)
    return _printed(measured, records, first, seen, fraction)


def _same_superpatches(measured: Measured, entries: Entries, base: Entries) -> bool:
    """Scores on superpatches of another size are scores on other superpatches."""
    ours, theirs = (measured.identities[runs[0]["run"]]["superpatch"] for runs in (entries, base))
    return bool(ours == theirs)


def _published(papers: Sequence[Paper], identity: Mapping[str, Any], base: Mapping[str, Any]) -> Paper:
    """The paper's line of a strategy, where the masking alone is varied and hides the paper's share; empty without one."""
    settings = identity["settings"]
    if any(name not in settings for name in MASKING_KEYS) or _but_masking(identity) != _but_masking(base):
        return {}
    plane, axis = settings["plane_mask_ratio"], settings["axis_mask_ratio"]
    if not math.isclose(1 - (1 - plane) * (1 - axis), PUBLISHED_TOTAL):
        return {}
    strategy = None
    if axis == 0 and settings["plane_masking"] == "columns":
        strategy = "plane"
    elif plane == 0 and settings["plane_masking"] in ("columns", "per_slice"):  # with the others the axis hides no whole slices
        strategy = "axis"
    return next((paper for paper in papers if paper["strategy"] == strategy), {})


def _but_masking(identity: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in identity["settings"].items() if name not in MASKING_KEYS}
    return {"settings": settings} | {name: identity[name] for name in ("method", "superpatch", "pretraining")}


def _printed(measured: Measured, records: list[Record], first: str, seen: Sequence[Estimate], fraction: float) -> Table:
    spec = measured.spec
    columns = [
        "group", "variant", "leakage", "hidden", "PSNR masked [95 % CI]", "visible-mean fill", "SSIM pasted [95 % CI]",
        "AUROC [95 % CI]", f"Δ AUROC to {first} [95 % CI]", "p (Holm)", "seeds", "LPIPS pasted",
        "published PSNR / SSIM / LPIPS", "Δ published PSNR / SSIM / LPIPS",
    ]  # fmt: skip
    printed = []
    for r in records:
        own = r["status"] == NOT_RUN or r["variant"] != first
        printed.append([
            r["group"] or MISSING, r["variant"], r["leakage"] or MISSING, percent(r["effective_mask_ratio"]),
            NOT_RUN if r["status"] == NOT_RUN else interval(r, "psnr_masked", 2), number(r["psnr_visible_mean"], 2),
            interval(r, "ssim_whole", 3), measured_text(r, interval(r, "auroc", 3)),
            interval(r, "difference", 3, sign=True) if own else "reference", p_text(r["difference_p_holm"]),
            number(r["seeds"], 0), lpips_text(r["lpips_whole"], r["ssim_whole"]),
            together(r["published_psnr"], r["published_ssim"], r["published_lpips"]),
            together(r["psnr_minus_published"], r["ssim_minus_published"], r["lpips_minus_published"], sign=True),
        ])  # fmt: skip
    method = spec["config"]["ablations"]["method"]
    caption = (
        f"Variants of {method}: reconstruction of hidden voxels, and organ presence by the linear probe at {share(fraction)} of "
        f"the labels, in {superpatches_of(spec)}. {sizes_text(seen[:1])} {measured.training('ablations')} {pools_text(spec)}"
    )
    edge = records[0]["superpatch"]
    sizes = {r["variant"]: r["n_superpatches"] or "no" for r in records if r["superpatch"] not in (None, edge)}
    other = ", ".join(f"{variant} ({n} superpatches scored)" for variant, n in sizes.items())
    notes = [
        f"Published: {NEMESIS}; a figure stands beside a measured one of the same strategy by itself (75 % hidden in all) only. "
        "Data, sizes and training need not be the paper's, which does not say either which voxels its figures count: the "
        "differences, of PSNR masked and of SSIM and LPIPS pasted, are for orientation and test no reproduction.",
        "PSNR in dB and SSIM as in the table of reconstructions, over superpatches above the foreground floor; hidden: the "
        "effective share of tokens. Variants that hide other shares, or other shapes, are asked different questions: compare a "
        "PSNR with the fill beside it before comparing it with another row's.",
        *([f"Superpatches of another size are other superpatches: no difference is taken of {other}."] if other else []),
        lpips_note(spec, [r["lpips_whole"] for r in records]),
        organs_note(spec, measured.rows_of([e for own in measured.labels("ablations").values() for e in own]), fraction),
        *interval_notes(spec, seen),
        "p is that of the paired difference, adjusted within this table after Holm; intervals and p are over patients "
        "and do not hold how much another seed would change.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]  # fmt: skip
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=3)
