"""The printed tables: pure functions of what :mod:`nemesis.report.collect` gathered, and of the papers' figures.

    main              NEMESIS Table II, frozen rows: linear probe and k-NN at the largest share of labels
    label_fractions   NEMESIS Table III: AUROC at every share of labels
    reconstruction    PSNR and SSIM, by region, beside what filling with the visible mean reaches

Scores and intervals are those of :mod:`nemesis.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemesis.report.collect import labels_in_order, reference_label
from nemesis.report.render import MISSING, Table, interval, number

if TYPE_CHECKING:
    import pandas as pd

    from nemesis.evaluation.statistics import Estimate

PROTOCOLS = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tune"}
PUBLISHED_ON = "BTCV"  # the data behind the papers' classification tables
MEASURED, NOT_RUN = "measured", "not run"
SIZES = ("n_patients", "n_superpatches")
NOT_SCORABLE = "not scorable"  # run, but no organ has both classes in any test set

MEASURES = {  # how a note calls the figures of reconstructions
    "effective_mask_ratio": "hidden",
    "psnr_masked": "PSNR masked",
    "psnr_visible_mean": "visible-mean fill",
    "psnr_visible": "PSNR visible",
    "psnr_whole": "PSNR pasted",
    "ssim_whole": "SSIM pasted",
    "psnr_unmasked_input": "PSNR of unmasked input",
    "ssim_unmasked_input": "SSIM of unmasked input",
}

Published = dict[str, list[dict[Any, Any]]]
Record = dict[str, Any]


def print_tables(spec: Mapping[str, Any], collected: Path, out: Path) -> None:
    """Job: every name of ``TABLES`` as CSV, Markdown, LaTeX and HTML in ``out``.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote.
    """
    import pandas as pd

    rows = pd.read_parquet(collected / "rows.parquet")
    predictions = read_predictions(collected / "predictions.parquet", spec)
    for table in tables(spec, rows, predictions):
        table.write(out)


def read_predictions(path: Path, spec: Mapping[str, Any]) -> dict[str, list[pd.DataFrame]]:
    """Label → the predictions of each of its runs, in the order of the seeds."""
    import pyarrow.parquet as pq

    words = ["run", "protocol", "organ", "patient"]
    table = partial(pq.read_table, path, read_dictionary=words)
    frames = {run: table(filters=[("run", "==", run)]).to_pandas() for run in {e["run"] for e in spec["runs"]}}
    return {label: [frames[e["run"]] for e in spec["runs"] if e["label"] == label] for label in labels_in_order(spec)}


def tables(
    spec: Mapping[str, Any], rows: pd.DataFrame, predictions: Mapping[str, Sequence[pd.DataFrame]]
) -> tuple[Table, Table, Table]:
    """The tables, in the order of ``TABLES``."""
    published = load_published()
    fractions = sorted({float(f) for runs in predictions.values() for frame in runs for f in frame["label_fraction"].unique()})
    probed = [p for p in PROTOCOLS if any((f["protocol"] == p).any() for runs in predictions.values() for f in runs)]
    return (
        main_table(spec, rows, predictions, published, probed, fractions[-1]),
        fractions_table(spec, rows, predictions, published, probed, fractions),
        reconstruction_table(spec, rows, published),
    )


def load_published() -> Published:
    """The figures that the NEMESIS paper prints, by table."""
    import yaml

    content: dict[str, Published] = yaml.safe_load(files("nemesis.report").joinpath("published.yaml").read_text(encoding="utf-8"))
    return content["nemesis"]


# ------------------------------------------------------------------------------------------------------- Table II


def main_table(
    spec: Mapping[str, Any], rows: pd.DataFrame, predictions: Mapping[str, Sequence[pd.DataFrame]],
    published: Published, probed: Sequence[str], fraction: float,
) -> Table:  # fmt: skip
    """Organ presence from frozen features, one row per method and protocol."""
    import pandas as pd

    from nemesis.evaluation.statistics import paired_difference, summarise

    bootstrap: dict[str, Any] = {"label_fraction": fraction, "resamples": spec["bootstrap"], "seed": spec["seed"]}
    reference = reference_label(spec)
    records: list[Record] = []
    seen: dict[tuple[str, str], Estimate] = {}
    for label, runs in predictions.items():
        for protocol in probed:
            score = partial(summarise, runs, protocol, **bootstrap)
            auroc = seen[label, protocol] = score(metric="auroc")
            paper = _published_row(spec, published["table2_main"], label, protocol)
            record = _record(label, protocol, _status(auroc, runs, protocol), fraction)
            record |= _figures("auroc", auroc) | {"auroc_seed_sd": _spread(auroc)}
            record |= {"published_auroc": paper.get("auroc")}
            comparable = paper if fraction == 1 else {}  # the published figures are at all labels
            record["auroc_minus_published"] = _minus(auroc.point, comparable.get("auroc"))
            f1 = score(metric="f1")
            record |= _figures("f1", f1) | _figures("f1_tuned", score(metric="f1_tuned"))
            record |= {"published_f1": paper.get("f1"), "f1_minus_published": _minus(f1.point, comparable.get("f1"))}
            record |= _figures("average_precision", score(metric="average_precision"))
            record |= _figures("auroc_easy_in", score(metric="auroc", easy_negatives="in"))
            gap = None
            if reference is not None and label != reference:
                gap = paired_difference(runs, predictions[reference], protocol, metric="auroc", **bootstrap)
            record |= _figures("difference", gap) | {"difference_p": gap.p if gap else None}
            records.append(record | _counts(auroc) | {"seeds": len(runs)})
    for record, adjusted in zip(records, holm([r["difference_p"] for r in records]), strict=True):
        record["difference_p_holm"] = adjusted
    for paper in _unmatched(spec, published["table2_main"], records):
        record = dict.fromkeys(records[0]) if records else {}
        records.append(record | _record(paper["method"], paper["protocol"], NOT_RUN)
                       | {"published_auroc": paper["auroc"], "published_f1": paper["f1"]})  # fmt: skip

    name = reference or "NEMESIS"
    columns = (
        "method", "protocol", "AUROC [95 % CI]", "published", "Δ published", "F1 at 0.5 / tuned", "published F1",
        "average precision", f"Δ AUROC to {name} [95 % CI]", "p (Holm)", "AUROC with easy negatives",
    )  # fmt: skip
    printed = []
    for r in records:
        compared = r["method"] != reference or r["status"] != MEASURED
        printed.append((
            r["method"], PROTOCOLS[r["protocol"]],
            _measured(r, interval(r, "auroc", 3)), number(r["published_auroc"], 4),
            number(r["auroc_minus_published"], 3, sign=True),
            _pair(r["f1"], r["f1_tuned"], 3, 3), number(r["published_f1"], 3), number(r["average_precision"], 3),
            interval(r, "difference", 3, sign=True) if compared else "reference", _p(r["difference_p_holm"]),
            number(r["auroc_easy_in"], 3),
        ))  # fmt: skip
    caption = (
        f"Organ presence in superpatches of {', '.join(spec['datasets'])}, read off frozen features at "
        f"{_share(fraction)} of the "
        f"labels. {_sizes(seen.values())} {_pools(spec)}"
    )
    partly = f"Published figures are at 100 % of the labels, measured ones at {_share(fraction)}: no difference is taken."
    notes = [
        *_published_note(spec),
        *([partly] if fraction < 1 else []),
        _organs_note(spec, rows, fraction),
        "Superpatches that are nearly empty (easy negatives) are left out, but in the last column.",
        *_interval_notes(spec, seen.values()),
        _seeds_note(spec, probed, seen),
        *_chance_notes(rows, [fraction]),
        "F1 is taken at the score 0.5, as in the paper, and at a threshold tuned on training patients; p is that of "
        "the paired "
        "bootstrap difference, adjusted within this table after Holm.",
        f"Configuration {spec['config_hash']}.",
    ]
    title = "Frozen encoders: organ presence (NEMESIS Table II)"
    return Table("main", title, caption, columns, printed, notes, pd.DataFrame(records), text_columns=2)


# ------------------------------------------------------------------------------------------------------ Table III


def fractions_table(
    spec: Mapping[str, Any], rows: pd.DataFrame, predictions: Mapping[str, Sequence[pd.DataFrame]],
    published: Published, probed: Sequence[str], fractions: Sequence[float],
) -> Table:  # fmt: skip
    """AUROC at growing shares of labelled training patients; the paper's line stands under the measured one."""
    import pandas as pd

    from nemesis.evaluation.statistics import summarise

    papers = published["table3_label_fraction"]
    records: list[Record] = []
    printed: list[list[str]] = []
    seen: list[Estimate] = []
    for label, runs in predictions.items():
        for protocol in probed:
            paper = _published_row(spec, papers, label, protocol)
            line: list[Record] = []
            for fraction in fractions:
                auroc = summarise(runs, protocol, fraction, metric="auroc", resamples=spec["bootstrap"], seed=spec["seed"])
                seen.append(auroc)
                record = _record(label, protocol, _status(auroc, runs, protocol), fraction) | _figures("auroc", auroc)
                record |= {"auroc_seed_sd": _spread(auroc), "published_auroc": paper.get(fraction)}
                record["auroc_minus_published"] = _minus(auroc.point, paper.get(fraction))
                line.append(record | _counts(auroc) | {"seeds": len(runs)})
            records += line
            name = PROTOCOLS[protocol]
            printed.append([label, name, MEASURED, *(_measured(r, interval(r, "auroc", 3)) for r in line)])
            if paper:
                printed.append([label, name, "published", *(number(r["published_auroc"], 4) for r in line)])
                printed.append([label, name, "Δ", *(number(r["auroc_minus_published"], 3, sign=True) for r in line)])
    for paper in _unmatched(spec, papers, records):
        records += [dict.fromkeys(records[0]) | _record(paper["method"], paper["protocol"], NOT_RUN, f)
                    | {"published_auroc": paper.get(f)} for f in fractions]  # fmt: skip
        texts = (number(paper.get(f), 4) for f in fractions)
        printed.append([paper["method"], PROTOCOLS[paper["protocol"]], f"published; {NOT_RUN}", *texts])
    caption = (
        f"AUROC [95 % CI] of organ presence in superpatches of {', '.join(spec['datasets'])} from frozen features, "
        f"by share of the training patients whose labels are used. {_sizes(seen)} {_pools(spec)}"
    )
    notes = [
        *_published_note(spec),
        *_training_notes(rows, fractions),
        *_interval_notes(spec, seen),
        *_fixed_notes(rows, fractions),
        *_chance_notes(rows, fractions),
        f"Configuration {spec['config_hash']}.",
    ]
    columns = ("method", "protocol", "figure", *(_share(f) for f in fractions))
    title = "Frozen encoders with fewer labels (NEMESIS Table III)"
    return Table("label_fractions", title, caption, columns, printed, notes, pd.DataFrame(records), text_columns=3)


# -------------------------------------------------------------------------------------------------- reconstruction


def reconstruction_table(spec: Mapping[str, Any], rows: pd.DataFrame, published: Published) -> Table:
    """PSNR (dB) and SSIM of every method that reconstructs, by dataset; means over seeds."""
    import pandas as pd

    from nemesis.evaluation.rows import ROW_COLUMNS

    left_out = {"scope": "superpatch", "easy_negatives": "out"}
    base = left_out | {"input_masked": True}
    wanted: dict[str, Record] = {
        "effective_mask_ratio": base | {"metric": "effective_mask_ratio"},
        "psnr_masked": base | {"metric": "psnr", "region": "masked"},
        "psnr_visible_mean": base | {"metric": "psnr_visible_mean"},
        "psnr_visible": base | {"metric": "psnr", "region": "visible"},
        "psnr_whole": base | {"metric": "psnr", "region": "whole"},
        "ssim_whole": base | {"metric": "ssim", "region": "whole"},
        "psnr_unmasked_input": base | {"metric": "psnr", "region": "whole", "input_masked": False},
        "ssim_unmasked_input": base | {"metric": "ssim", "region": "whole", "input_masked": False},
        "psnr_masked_easy_in": base | {"metric": "psnr", "region": "masked", "easy_negatives": "in"},
        "psnr_visible_mean_easy_in": base | {"metric": "psnr_visible_mean", "easy_negatives": "in"},
        "psnr_stitched": base | {"metric": "psnr", "region": "whole", "scope": "stitched", "easy_negatives": "in"},
        "ssim_stitched": base | {"metric": "ssim", "region": "whole", "scope": "stitched", "easy_negatives": "in"},
    }
    measured = rows[rows["metric"].isin({str(w["metric"]) for w in wanted.values()})]
    records: list[Record] = []
    others: list[str] = []  # numbers of superpatches that are not those of the last column
    volumes: dict[str, int] = {}
    for label in labels_in_order(spec):
        ids = [entry["run"] for entry in spec["runs"] if entry["label"] == label]
        own = measured[measured["run"].isin(ids)]
        # The joined name of several datasets is the longest: all of them first, then each by itself.
        for dataset in sorted(own["dataset"].dropna().unique(), key=lambda n: (-n.count("+"), n)):
            here = own[own["dataset"] == dataset]
            record: Record = {"method": label, "dataset": dataset}
            sizes: dict[str, Record] = {}
            for name, conditions in wanted.items():
                chosen = here
                for column in ROW_COLUMNS:
                    if column in conditions:
                        chosen = chosen[chosen[column] == conditions[column]]
                per_seed = chosen.groupby("run")["value"].mean()
                record[name] = float(per_seed.mean()) if len(per_seed) else None
                if len(per_seed):
                    sizes[name] = {size: chosen[size].max() for size in SIZES}
                if name in ("psnr_masked", "psnr_unmasked_input"):
                    record[f"{name}_seed_sd"] = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
            main = next((sizes[name] for name in ("psnr_masked", "psnr_unmasked_input") if name in sizes), {})
            records.append(record | {size: main.get(size) for size in SIZES} | {"seeds": len(ids)})
            if different := _different_sizes({n: s for n, s in sizes.items() if wanted[n].items() >= left_out.items()}, main):
                others.append(f"{label} on {dataset} {different}")
            if "psnr_stitched" in sizes:  # of a stitched volume a row counts the volumes
                volumes[dataset] = max(volumes.get(dataset, 0), int(sizes["psnr_stitched"]["n_patients"]))
    columns = (
        "method", "dataset", "hidden", "PSNR masked", "visible-mean fill", "PSNR visible", "whole, pasted",
        "unmasked input", "masked / fill with easy", "stitched, pasted", "patients", "superpatches",
    )  # fmt: skip
    printed = [
        (
            r["method"], r["dataset"], _percent(r["effective_mask_ratio"]),
            number(r["psnr_masked"], 2), number(r["psnr_visible_mean"], 2), number(r["psnr_visible"], 2),
            _pair(r["psnr_whole"], r["ssim_whole"], 2, 3),
            _pair(r["psnr_unmasked_input"], r["ssim_unmasked_input"], 2, 3),
            _pair(r["psnr_masked_easy_in"], r["psnr_visible_mean_easy_in"], 2, 2),
            _pair(r["psnr_stitched"], r["ssim_stitched"], 2, 3),
            number(r["n_patients"], 0), number(r["n_superpatches"], 0),
        )
        for r in records
    ]  # fmt: skip
    seeds = []
    for label in dict.fromkeys(r["method"] for r in records):
        own_seeds = [str(e["seed"]) for e in spec["runs"] if e["label"] == label]
        seeds.append(f"{label} {', '.join(own_seeds)}" + (" (seed spread not measured)" if len(own_seeds) == 1 else ""))
    axis, plane = (next(r for r in published["table4_masking"] if r["strategy"] == s) for s in ("axis", "plane"))
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
        f"Seeds: {'; '.join(seeds)}.",
        f"The paper prints {plane['psnr']} dB and {plane['ssim']} for plane-wise, {axis['psnr']} dB and {axis['ssim']} "
        "for axis-wise masking at a mask ratio of 0.75. It does not say which voxels count, so no difference is taken.",
        f"Configuration {spec['config_hash']}.",
    ]
    caption = f"Superpatches of {', '.join(spec['datasets'])}, under a fixed mask for each. {_pools(spec)}"
    if not records:
        caption += " No method of this experiment reconstructs its input."
        notes = notes[-1:]
    title = "Reconstruction of hidden voxels"
    empty = pd.DataFrame(columns=["method", "dataset", *wanted])
    return Table("reconstruction", title, caption, columns, printed, notes, pd.DataFrame(records) if records else empty, 2)


# ------------------------------------------------------------------------------------------------- pieces of a row


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of p values; None stays None and does not count."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def _record(method: str, protocol: str, status: str, fraction: float | None = None) -> Record:
    record: Record = {"method": method, "protocol": protocol, "status": status}
    return record if fraction is None else record | {"label_fraction": fraction}


def _figures(name: str, estimate: Estimate | None) -> Record:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _status(estimate: Estimate, runs: Sequence[pd.DataFrame], protocol: str) -> str:
    if estimate.point is not None:
        return MEASURED
    return NOT_SCORABLE if any((frame["protocol"] == protocol).any() for frame in runs) else NOT_RUN


def _counts(estimate: Estimate) -> Record:
    return {name: getattr(estimate, name) for name in ("n_patients", "n_superpatches", "n_cells")}


def _spread(estimate: Estimate) -> float | None:
    return float(np.std(estimate.per_seed, ddof=1)) if len(estimate.per_seed) > 1 else None


def _minus(measured: float | None, published: float | None) -> float | None:
    return None if measured is None or published is None else measured - published


def _pair(first: float | None, second: float | None, digits: int, more: int) -> str:
    return MISSING if first is None and second is None else f"{number(first, digits)} / {number(second, more)}"


def _measured(record: Record, text: str) -> str:
    return text if record["status"] == MEASURED else str(record["status"])


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.0005 else number(value, 3)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def _share(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _printed_name(spec: Mapping[str, Any], papers: Iterable[Mapping[Any, Any]], label: str) -> str | None:
    """What the paper calls a label's method; of several labels of one method only one that bears the paper's name is
    the paper's, the others are variants."""
    names = {_plain(row["method"]): str(row["method"]) for row in papers}
    if _plain(label) in names:
        return names[_plain(label)]
    method = next(e["method"] for e in spec["runs"] if e["label"] == label)
    alone = len({e["label"] for e in spec["runs"] if e["method"] == method}) == 1
    return names.get(_plain(method)) if alone else None


def _published_row(spec: Mapping[str, Any], papers: Sequence[Mapping[Any, Any]], label: str, protocol: str) -> Mapping[Any, Any]:
    name = _printed_name(spec, papers, label)
    return next((row for row in papers if row["method"] == name and row["protocol"] == protocol), {})


def _unmatched(
    spec: Mapping[str, Any], papers: Sequence[Mapping[Any, Any]], records: Sequence[Record]
) -> list[Mapping[Any, Any]]:
    """The published rows that nothing here was measured for."""
    done = {(_printed_name(spec, papers, r["method"]), r["protocol"]) for r in records}
    return [row for row in papers if (row["method"], row["protocol"]) not in done]


# -------------------------------------------------------------------------------------------------------- notes


def _sizes(estimates: Iterable[Estimate]) -> str:
    most = max(estimates, key=lambda e: e.n_superpatches)
    return f"{most.n_patients} patients, {most.n_superpatches} superpatches scored."


def _pools(spec: Mapping[str, Any]) -> str:
    if shared := int(spec["transductive"]):
        patients = f"{shared} evaluation patient{'s' * (shared > 1)}"
        return f"TRANSDUCTIVE: encoders were pretrained on scans of {patients}, too (without labels)."
    return "Pretraining and evaluation pools share no patient."


def _published_note(spec: Mapping[str, Any]) -> list[str]:
    note = (
        f"Published: NEMESIS, arXiv 2604.01612, on {PUBLISHED_ON}; a figure stands beside a measured one of the same "
        "protocol only."
    )
    if {d.lower() for d in spec["datasets"]} != {PUBLISHED_ON.lower()}:
        note += (
            f" These data are not the paper's ({', '.join(spec['datasets'])} instead of {PUBLISHED_ON}), nor need "
            "sizes and training be: the differences are for orientation and test no reproduction."
        )
    return [note]


def _organs_note(spec: Mapping[str, Any], rows: pd.DataFrame, fraction: float) -> str:
    """Which organs are averaged, with the share of superpatches that hold them."""
    main = rows[rows["easy_negatives"] == "out"]
    scored = set(main[(main["metric"] == "auroc") & (main["label_fraction"] == fraction)]["organ"])
    shares = main[main["metric"] == "prevalence"].groupby("organ")["value"].first()
    asked = [organ for organ in spec["config"]["organs"] if organ in shares.index or organ in scored]
    told = ", ".join(f"{organ} {shares[organ]:.2f}" for organ in asked if organ in scored)
    left = [organ for organ in spec["config"]["organs"] if organ not in scored]
    note = f"Mean over {len(scored)} organs, each with its prevalence: {told or 'none'}."
    return note + (f" Without both classes in any test set, and left out: {', '.join(left)}." if left else "")


def _interval_notes(spec: Mapping[str, Any], estimates: Iterable[Estimate]) -> list[str]:
    notes = sorted({e.note for e in estimates if e.note})
    cells = max((e.n_cells for e in estimates), default=0)
    mean = f"A score is the mean over up to {cells} cells (folds × draws × organs). "
    if notes:
        return [mean + "; ".join(notes).capitalize() + "."]
    return [mean + f"Intervals: {spec['bootstrap']} bootstrap resamples of patients."]


def _different_sizes(sizes: Mapping[str, Record], main: Record) -> str:
    """The figures whose mean is over other superpatches than the main one's, by their number."""
    groups: dict[int, list[str]] = {}
    for name, size in sizes.items():
        if size["n_superpatches"] != main.get("n_superpatches"):
            groups.setdefault(int(size["n_superpatches"]), []).append(MEASURES[name])
    return ", ".join(f"{n} ({', '.join(names)})" for n, names in groups.items())


def _volumes(volumes: Mapping[str, int]) -> str:
    told = {dataset: f"{n} volume{'s' * (n > 1)}" for dataset, n in volumes.items()}
    return ", ".join(told.values() if len(told) == 1 else (f"{dataset} {text}" for dataset, text in told.items()))


def _seeds_note(spec: Mapping[str, Any], probed: Sequence[str], seen: Mapping[tuple[str, str], Estimate]) -> str:
    parts = []
    for label in labels_in_order(spec):
        seeds = ", ".join(str(e["seed"]) for e in spec["runs"] if e["label"] == label)
        spreads = {PROTOCOLS[p]: _spread(seen[label, p]) for p in probed}
        told = ", ".join(f"{name} {sd:.3f}" for name, sd in spreads.items() if sd is not None)
        parts.append(f"{label} {seeds} ({f'SD of AUROC over seeds: {told}' if told else 'seed spread not measured'})")
    return f"Seeds: {'; '.join(parts)}. Measured figures are means over seeds."


def _chance_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    """Cells at chance (0.5) for want of a class: they count, so that every fraction averages the same organs."""
    counts = rows[(rows["metric"] == "chance_organs") & (rows["easy_negatives"] == "out")]
    told = []
    for fraction in fractions:
        most = counts[counts["label_fraction"] == fraction]["value"].max()
        if most > 0:
            told.append(f"{most:.0f} at {_share(fraction)}")
    if not told:
        return ["No organ lacked a class among the training patients."]
    return [f"Cells whose training patients lack a class count as chance (0.5): {', '.join(told)}."]


def _training_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    told = []
    for fraction in fractions:
        here = rows[rows["label_fraction"] == fraction]
        patients, superpatches = (here[here["metric"] == f"training_{n}"]["value"] for n in ("patients", "superpatches"))
        if len(patients):
            spread = f"{patients.min():.0f}" if patients.min() == patients.max() else f"{patients.min():.0f}–{patients.max():.0f}"
            draws = here["draw"].dropna().nunique()
            told.append(
                f"{_share(fraction)}: {spread} patients, {superpatches.mean():.0f} superpatches, {draws} draw{'s' * (draws > 1)}"
            )
    return [f"Training sets (superpatches on average): {'; '.join(told)}."] if told else []


def _fixed_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    linear = rows[(rows["metric"] == "auroc") & (rows["protocol"] == "linear") & (rows["easy_negatives"] == "out")]
    told = []
    for fraction in fractions:
        share = (linear[linear["label_fraction"] == fraction]["selection"] == "fixed").mean()
        if share > 0:
            told.append(f"{100 * share:.0f} % of cells at {_share(fraction)}")
    if not told:
        return []
    return [f"The linear probe's L2 strength is fixed, for want of patients to select it on, in {', '.join(told)}."]
