"""The papers' statements, each with the verdict of this experiment and the figures behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from nemesis.report.claims import METRICS, Claim, Comparison, Figures, Side, load_claims
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import published_figures
from nemesis.report.render import INTERVAL, MISSING, Table, interval, number
from nemesis.report.tables.differences import Differences
from nemesis.report.tables.finetuned import tuning_notes
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import Record, configuration_note, counts, figures, intervals_told, organs_note, pools_text
from nemesis.report.tables.sides import Found, NotMeasured, find, name_of
from nemesis.report.verdicts import (
    VERDICTS,
    Compared,
    own_figures,
    together,
    value_of,
    verdict_of,
)

NAME, TITLE = "claims", "What the papers say, and what was found"


def claims_table(measured: Measured, claims: Sequence[Claim] | None = None) -> Table:
    """One row per claim, and in the CSV per comparison; the claims of the house where none are given."""
    differences, spec = Differences(measured), measured.spec
    records: list[Record] = []
    printed: list[list[str]] = []
    seen = []
    for claim in load_claims() if claims is None else claims:
        found = own_figures(claim) if claim.kind == "inconsistent" else list(compare(differences, claim))
        verdict = together(claim, found)
        told = [_record(claim, each, verdict) for each in found]
        records += told
        seen += [each.difference for each in found if each.difference is not None and claim.kind == "measured"]
        leakage = " / ".join(dict.fromkeys(each.leakage for each in found if each.leakage))
        texts = list(dict.fromkeys(_text(claim, record) for record in told))
        published = [number(e.published, _digits(claim), sign=bool(e.right)) for e in found if e.published is not None]
        place = f"{claim.paper}, {claim.place}"
        printed.append([claim.statement, place, verdict, leakage or MISSING, "; ".join(texts), "; ".join(published) or MISSING])
    verdicts = Counter(row[2] for row in printed)
    said = ", ".join(f"{verdicts[each]} {each}" for each in VERDICTS if verdicts[each])
    caption = f"{_setting(measured)} Of {len(printed)} statements: {said}. {pools_text(spec)}"
    notes = [
        "One rule: a statement is supported where the 95 % interval of the difference, left minus right, lies on the claimed "
        "side of the claimed margin (0 where none is said), contradicted where it lies wholly on the other, not decidable with "
        "this much data where it lies on both, where there is no interval (the reason is told), or where a side was not "
        "measured: the key of the configuration that would measure it is then named. Of several comparisons all have "
        "to hold; one that fails contradicts. What is counted has no interval.",
        "A verdict speaks of the setting above alone: of these data, sizes and lengths of training. It says whether the "
        "statement holds there, not whether the paper's figures would come out again.",
        "Differences are paired over the patients of the folds that both sides were tested on; those of two datasets are of "
        "independent samples. Intervals are not adjusted for the number of statements, and do not hold how much another seed "
        "would change.",
        *tuning_notes(measured),
        organs_note(spec, measured.rows_of(of_part(spec, "methods")["runs"]), measured.fractions[-1]),
        intervals_told(spec, seen),
        "Inconsistent: what the paper says is denied by its own figures, or by those of what was released with it, whatever is "
        "measured here.",
        "Published: the same difference by the paper's figures, or the figure itself where it is not compared with another.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    columns = ["statement", "where", "verdict", "leakage", f"difference{INTERVAL}", "published"]
    return Table(NAME, TITLE, caption, columns, printed, [n for n in notes if n], pd.DataFrame(records), 6, wraps=(0, 1, 4))


def compare(differences: Differences, claim: Claim) -> Iterator[Compared]:
    """The comparisons of a measured or counted claim; of one that was not measured, what is missing."""
    measured = differences.measured
    for comparison in claim.comparisons:
        left, right = comparison.left, comparison.right
        assert isinstance(left, Side)  # as the claim's own check says
        published = _published(comparison)
        try:
            _require_superpatch(measured, claim)
            (ours,) = find(measured, left)
            others = find(measured, right, ours) if isinstance(right, Side) else [right]
        except NotMeasured as missing:
            names = (name_of(left), name_of(right) if isinstance(right, Side) else "")
            yield Compared(*names, None, str(missing), published=published)
            continue
        for theirs in others:
            yield _compared(differences, claim, ours, theirs, published)


def _compared(
    differences: Differences, claim: Claim, left: Found, right: Found | Figures | None, published: float | None
) -> Compared:
    assert claim.metric is not None  # as the claim's own check says
    sides = [side for side in (left, right) if isinstance(side, Found)]
    names = (left.name, right.name if isinstance(right, Found) else "published" if right else "")
    pretrained = [side for side in sides if side.side.arm == "pretrained"]
    leakage = " / ".join(dict.fromkeys(differences.measured.leakage(side.entries) for side in pretrained))
    try:
        gap = differences.between(claim.metric, left, value_of(right) if isinstance(right, Figures) else right)
    except NotMeasured as missing:
        return Compared(*names, None, str(missing), published=published)
    return Compared(*names, gap, gap.note, leakage, published)


def _published(comparison: Comparison) -> float | None:
    values = [published_figures(place)[0] for place in comparison.published]
    return values[0] - sum(values[1:]) if values else None


def _require_superpatch(measured: Measured, claim: Claim) -> None:
    edge = measured.spec["config"]["superpatch"]
    if claim.superpatch not in (None, edge):
        raise NotMeasured(f"it is about superpatches of {claim.superpatch}³, these are of {edge}³ (`superpatch`)")


def _record(claim: Claim, compared: Compared, verdict: str) -> Record:
    gap = compared.difference
    record: Record = {"claim": claim.id, "paper": claim.paper, "place": claim.place, "statement": claim.statement}
    record |= {"kind": claim.kind, "verdict": verdict, "metric": claim.metric, "left": compared.left, "right": compared.right}
    record |= {"relation": claim.relation, "margin": claim.margin} | figures("difference", gap)
    record |= {"published": compared.published, "comparison": verdict_of(claim, compared), "told": compared.told or None}
    record |= {"missing": compared.missing or None, "leakage": compared.leakage or None}
    return record | (counts(gap) if gap else dict.fromkeys(("n_patients", "n_superpatches", "n_cells")))


def _text(claim: Claim, record: Record) -> str:
    """What a comparison found, or what it lacks."""
    if record["told"]:
        return str(record["told"])
    if record["difference"] is None:
        return str(record["missing"])
    assert claim.metric is not None  # inconsistent claims tell their figures
    name, digits = METRICS[claim.metric]
    sides = f"{record['left']} − {record['right']}" if record["right"] else str(record["left"])
    if record["difference_low"] == record["difference_high"] and claim.kind == "counted":
        return f"{sides}: {name} {number(record['difference'], digits, sign=bool(record['right']))}"
    text = f"{sides}: {name} {interval(record, 'difference', digits, sign=bool(record['right']))}"
    patients = f", {record['n_patients']} patients" if record["n_patients"] else ""
    return f"{text}{patients}" + (f" ({record['missing']})" if record["missing"] else "")


def _digits(claim: Claim) -> int:
    return METRICS[claim.metric][1] + 1 if claim.metric else 0


def _setting(measured: Measured) -> str:
    """On what the verdicts were reached."""
    data, edge = ", ".join(measured.spec["datasets"]), measured.spec["config"]["superpatch"]
    return f"Tested on {data} with superpatches of {edge}³. {measured.training('methods')}"
