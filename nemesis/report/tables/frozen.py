"""Organ presence, read off frozen features and by fine-tuned networks: NEMESIS Tables II and III."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.report.collect import of_part, reference_label
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import NEMESIS, load_published, published_note, published_row, unmatched
from nemesis.report.render import INTERVAL, MISSING, Table, interval, number
from nemesis.report.tables.finetuned import tuning_notes
from nemesis.report.tables.measured import PROTOCOLS, Entries, Measured
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
    measured_text,
    organs_note,
    p_text,
    pair,
    partly_note,
    pools_text,
    scaled,
    share,
    sizes_text,
    spread,
    superpatches_of,
)

PUBLISHED_ON = ("BTCV",)


def main_table(measured: Measured) -> Table:
    """One row per method and protocol, at the protocol's largest share of labels."""
    spec, fraction, probed = of_part(measured.spec, "methods"), measured.fractions[-1], measured.probed
    largest = {protocol: measured.fractions_of(protocol)[-1] for protocol in probed}
    rows, papers = measured.rows_of(spec["runs"]), load_published()["table2_main"]
    reference = reference_label(spec)
    labels = measured.labels("methods")
    seen = {
        (label, protocol): measured.score(labels[label], protocol, largest[protocol]) for label in labels for protocol in probed
    }
    records: list[Record] = []
    for (label, protocol), auroc in seen.items():
        own, fraction = measured.under(labels[label], protocol), largest[protocol]
        comparable = fraction == 1  # the published figures are at all labels
        paper = published_row(spec, papers, label, protocol=protocol)
        record = _record(label, protocol, _status(measured, auroc, own, protocol, fraction), fraction, measured.leakage(own))
        record |= figures("auroc", auroc) | {"auroc_seed_sd": spread(auroc)}
        record |= beside("auroc", auroc.point, paper.get("auroc"), comparable)
        f1 = measured.score(own, protocol, fraction, "f1")
        record |= figures("f1", f1) | figures("f1_tuned", measured.score(own, protocol, fraction, "f1_tuned"))
        record |= beside("f1", f1.point, paper.get("f1"), comparable)
        record |= figures("average_precision", measured.score(own, protocol, fraction, "average_precision"))
        record |= figures("auroc_easy_in", measured.score(own, protocol, fraction, easy_negatives="in"))
        gap = None
        if reference is not None and label != reference and None not in (auroc.point, seen[reference, protocol].point):
            gap = measured.difference(own, labels[reference], protocol, fraction)
        budget = measured.budget(own)
        record |= {"pretraining_voxels": budget.voxels, "pretraining_flop": budget.flop}
        records.append(record | difference_figures(gap) | counts(auroc) | {"seeds": len(own)})
    add_holm(records)
    told = [(r["protocol"], estimate) for r, estimate in zip(records, seen.values(), strict=True) if r["status"] != NOT_RUN]
    for row in unmatched(spec, papers, records, "protocol"):
        record = dict.fromkeys(records[0]) | _record(row["method"], row["protocol"], NOT_RUN)
        records.append(record | {"published_auroc": row["auroc"], "published_f1": row["f1"]})

    name = reference or "NEMESIS"
    columns = (
        "method", "protocol", "leakage", "AUROC [95 % CI]", "published", "Δ published", "F1 at 0.5 / tuned", "published F1",
        "average precision", f"Δ AUROC to {name} [95 % CI]", "p (Holm)", "AUROC with easy negatives", "seeds: SD of AUROC",
        "pretraining: voxels / FLOP",
    )  # fmt: skip
    printed = []
    for r in records:
        compared = r["method"] != reference or r["status"] != MEASURED
        printed.append((
            r["method"], PROTOCOLS[r["protocol"]], r["leakage"] or MISSING,
            measured_text(r, interval(r, "auroc", 3)), number(r["published_auroc"], 4),
            number(r["auroc_minus_published"], 3, sign=True),
            pair(r["f1"], r["f1_tuned"], 3, 3), number(r["published_f1"], 3), number(r["average_precision"], 3),
            interval(r, "difference", 3, sign=True) if compared else "reference", p_text(r["difference_p_holm"]),
            number(r["auroc_easy_in"], 3), _seeds(r), _spent(r),
        ))  # fmt: skip
    fraction, tuned = measured.fractions[-1], "finetune" in probed
    also = f", and by networks fine-tuned at {share(largest['finetune'])} of them" if tuned else ""
    caption = (
        f"Organ presence in {superpatches_of(spec)}, read off frozen features at {share(fraction)} of the labels{also}. "
        f"{_sizes(told)} {pools_text(spec)}"
    )
    notes = [
        published_note(spec, NEMESIS, PUBLISHED_ON, "the same protocol"),
        *partly_note(fraction),
        *tuning_notes(measured, "finetune"),
        organs_note(spec, rows, fraction),
        "Superpatches that are nearly empty (easy negatives) are left out, but in the column that says so.",
        *interval_notes(spec, [estimate for _, estimate in told]),
        _seeds_note(measured, seen),
        *_chance_notes(rows, [fraction]),
        "F1 is taken at the score 0.5, as in the paper, and at a threshold tuned on training patients; p is that of the paired "
        "difference, adjusted within this table after Holm.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    title = f"Frozen{' and fine-tuned' * tuned} encoders: organ presence (NEMESIS Table II)"
    return Table("main", title, caption, columns, printed, notes, pd.DataFrame(records), text_columns=3)


def fractions_table(measured: Measured) -> Table:
    """AUROC at growing shares of labelled training patients; the paper's line stands under the measured one."""
    spec, fractions = of_part(measured.spec, "methods"), measured.fractions_of(*PROTOCOLS)
    rows, papers = measured.rows_of(spec["runs"]), load_published()["table3_label_fraction"]
    records: list[Record] = []
    printed: list[list[str]] = []
    seen: list[tuple[str, Estimate]] = []  # under which protocol, of what was run
    for label, entries in measured.labels("methods").items():
        leakage = measured.leakage(entries)
        for protocol in measured.probed:
            paper = published_row(spec, papers, label, protocol=protocol)
            line: list[Record] = []
            for fraction in fractions:
                auroc = measured.score(entries, protocol, fraction)
                status = _status(measured, auroc, entries, protocol, fraction)
                seen += [(protocol, auroc)] * (status != NOT_RUN)
                record = _record(label, protocol, status, fraction, leakage)
                record |= figures("auroc", auroc) | {"auroc_seed_sd": spread(auroc)}
                record |= beside("auroc", auroc.point, paper.get(fraction))
                line.append(record | counts(auroc) | {"seeds": len(measured.under(entries, protocol))})
            records += line
            name = PROTOCOLS[protocol]
            printed.append([label, name, leakage, MEASURED, *(measured_text(r, interval(r, "auroc", 3)) for r in line)])
            if paper:
                printed.append([label, name, MISSING, "published", *(number(r["published_auroc"], 4) for r in line)])
                printed.append([label, name, MISSING, "Δ", *(number(r["auroc_minus_published"], 3, sign=True) for r in line)])
    for paper in unmatched(spec, papers, records, "protocol"):
        records += [dict.fromkeys(records[0]) | _record(paper["method"], paper["protocol"], NOT_RUN, f)
                    | {"published_auroc": paper.get(f)} for f in fractions]  # fmt: skip
        texts = (number(paper.get(f), 4) for f in fractions)
        printed.append([paper["method"], PROTOCOLS[paper["protocol"]], MISSING, f"published; {NOT_RUN}", *texts])
    tuned = "finetune" in measured.probed
    also = " and by fine-tuned networks" * tuned
    score = f"AUROC{INTERVAL * any(estimate.low is not None for _, estimate in seen)}"
    caption = (
        f"{score} of organ presence in {superpatches_of(spec)} from frozen features{also}, "
        f"by share of the training patients whose labels are used. {_sizes(seen)} {pools_text(spec)}"
    )
    notes = [
        published_note(spec, NEMESIS, PUBLISHED_ON, "the same protocol"),
        organs_note(spec, rows, fractions[-1]),
        *_training_notes(rows, fractions),
        *tuning_notes(measured, "finetune"),
        *interval_notes(spec, [estimate for _, estimate in seen]),
        *_fixed_notes(rows, fractions),
        *_chance_notes(rows, fractions),
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    columns = ("method", "protocol", "leakage", "figure", *(share(f) for f in fractions))
    title = f"Frozen{' and fine-tuned' * tuned} encoders with fewer labels (NEMESIS Table III)"
    return Table("label_fractions", title, caption, columns, printed, notes, pd.DataFrame(records), text_columns=4)


def _record(method: str, protocol: str, status: str, fraction: float | None = None, leakage: str | None = None) -> Record:
    record: Record = {"method": method, "protocol": protocol, "status": status, "leakage": leakage}
    return record if fraction is None else record | {"label_fraction": fraction}


def _sizes(seen: Sequence[tuple[str, Estimate]]) -> str:
    """How many patients and superpatches were scored, and of fine-tuned networks, where these were others."""
    frozen, tuned = (sizes_text(e for protocol, e in seen if (protocol == "finetune") is kind) for kind in (False, True))
    return frozen if tuned in ("", frozen) else f"{frozen} Fine-tuned rows: {tuned}"


def _seeds(record: Record) -> str:
    """How many were trained, and how far they are apart."""
    if record["status"] == NOT_RUN:
        return MISSING
    return f"{record['seeds']}: {number(record['auroc_seed_sd'], 3) if record['seeds'] > 1 else 'not measured'}"


def _spent(record: Record) -> str:
    """What was pretrained on, and for how much computing."""
    voxels, flop = record["pretraining_voxels"], record["pretraining_flop"]
    return MISSING if voxels is None else f"{scaled(voxels)} / {scaled(flop)}"


def _status(measured: Measured, estimate: Estimate, entries: Entries, protocol: str, fraction: float) -> str:
    if estimate.point is not None:
        return MEASURED
    frames = [scores.predictions for scores in measured.scores(entries)]
    probed = any(((frame["protocol"] == protocol) & (frame["label_fraction"] == fraction)).any() for frame in frames)
    return NOT_SCORABLE if probed else NOT_RUN


def _seeds_note(measured: Measured, seen: Mapping[tuple[str, str], Estimate]) -> str:
    parts = []
    for label, entries in measured.labels("methods").items():
        seeds = ", ".join(str(entry["seed"]) for entry in entries)
        spreads = {PROTOCOLS[p]: spread(seen[label, p]) for p in measured.probed}
        told = ", ".join(f"{name} {sd:.3f}" for name, sd in spreads.items() if sd is not None)
        parts.append(f"{label} {seeds} ({f'SD of AUROC over seeds: {told}' if told else 'seed spread not measured'})")
    return f"Seeds: {'; '.join(parts)}. Measured figures are means over seeds."


def _chance_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    """Cells at chance (0.5) for want of a class: they count, so that every fraction averages the same organs."""
    chance = rows[(rows["metric"] == "chance_organs") & (rows["easy_negatives"] == "out")]
    told = []
    for fraction in fractions:
        most = chance[chance["label_fraction"] == fraction]["value"].max()
        if most > 0:
            told.append(f"{most:.0f} at {share(fraction)}")
    if not told:
        return ["No organ lacked a class among the training patients."]
    return [f"Cells whose training patients lack a class count as chance (0.5): {', '.join(told)}."]


def _training_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    told = []
    for fraction in fractions:
        here = rows[rows["label_fraction"] == fraction]
        patients, superpatches = (here[here["metric"] == f"training_{n}"]["value"] for n in ("patients", "superpatches"))
        if len(patients):
            low, high = f"{patients.min():.0f}", f"{patients.max():.0f}"
            number_of_patients = low if low == high else f"{low}–{high}"
            draws = here["draw"].dropna().nunique()
            told.append(
                f"{share(fraction)}: {number_of_patients} patients, {superpatches.mean():.0f} superpatches, "
                f"{draws} draw{'s' * (draws > 1)}"
            )
    return [f"Training sets (superpatches on average): {'; '.join(told)}."] if told else []


def _fixed_notes(rows: pd.DataFrame, fractions: Sequence[float]) -> list[str]:
    linear = rows[(rows["metric"] == "auroc") & (rows["protocol"] == "linear") & (rows["easy_negatives"] == "out")]
    told = []
    for fraction in fractions:
        part = (linear[linear["label_fraction"] == fraction]["selection"] == "fixed").mean()
        if part > 0:
            told.append(f"{100 * part:.0f} % of cells at {share(fraction)}")
    if not told:
        return []
    return [f"The linear probe's L2 strength is fixed, for want of patients to select it on, in {', '.join(told)}."]
