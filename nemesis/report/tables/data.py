"""Who is pretrained on and who is evaluated on: NEMESIS Table I and MAESIL Table I."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nemesis.report.published import MAESIL, NEMESIS, load_published, plain
from nemesis.report.render import MISSING, Table, number
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import MEASURED, Record, configuration_note, pools_text

TITLE = "Data (NEMESIS Table I, MAESIL Table I)"
NOT_USED = "not used"
POOLS = {"pretraining": "pretraining", "downstream": "evaluation"}  # as NEMESIS prints them


def data_table(measured: Measured) -> Table:
    """One row per dataset and pool; what is labelled and how many superpatches it makes, where it is evaluated."""
    spec = measured.spec
    scored = _scored(measured)
    records: list[Record] = []
    organs: list[str] = []
    for entry in spec["data"]:
        record: Record = {name: entry[name] for name in ("dataset", "pool", "patients", "scans")} | {"status": MEASURED}
        record |= {f"{kind}_maps": n for kind, n in entry["kinds"].items() if kind != "none"}
        own = scored[(scored["dataset"] == entry["dataset"]) & (entry["pool"] == "evaluation")]
        if len(own):
            record |= {"organs": own["organ"].nunique(), "superpatches": own["superpatch"].nunique()}
            record["superpatches_above_floor"] = _above(own)["superpatch"].nunique()
            organs.append(_organs_text(entry["dataset"], own, spec["config"]["organs"]))
        records.append(record)
    unmatched = _add_published(records)
    columns_of_data = (
        "dataset", "pool", "status", "patients", "scans", "exhaustive_maps", "partial_maps", "pseudo_maps", "superpatches",
        "superpatches_above_floor", "organs", "published_nemesis", "published_maesil_scans",
    )  # fmt: skip
    data = pd.DataFrame([{name: record.get(name) for name in columns_of_data} for record in [*records, *unmatched]])
    columns = (
        "dataset", "pool", "label maps", "patients", "scans", "superpatches above the floor / all", "organs with labels",
        "NEMESIS published", "MAESIL published, scans",
    )  # fmt: skip
    printed = [
        (
            r["dataset"], r["pool"] or MISSING, _maps_text(r) if r["status"] == MEASURED else NOT_USED,
            number(r.get("patients"), 0), number(r.get("scans"), 0),
            f"{number(r['superpatches_above_floor'], 0)} / {number(r['superpatches'], 0)}" if "superpatches" in r else MISSING,
            number(r.get("organs"), 0), r.get("published_nemesis") or MISSING, number(r.get("published_maesil_scans"), 0),
        )
        for r in [*records, *unmatched]
    ]  # fmt: skip
    notes = [
        f"Superpatches of {spec['config']['superpatch']}³ voxels: in evaluation a grid over every scan that has labels of the "
        "organs, where those whose mean is under the foreground floor are nearly empty; pretraining draws its own at random and "
        f"sees no label. {measured.training('methods')}",
        *([f"Organs, each with the patients in whom it was annotated and its prevalence above the floor: {'; '.join(organs)}."]
          if organs else []),
        f"Published: {NEMESIS}, per pool; {MAESIL}, which counts a dataset's scans as a whole.",
        configuration_note(spec),
    ]  # fmt: skip
    caption = f"Patients are split once. {pools_text(spec)}"
    return Table("data", TITLE, caption, columns, printed, notes, data, text_columns=3)


def _scored(measured: Measured) -> pd.DataFrame:
    """Dataset, patient, organ, superpatch, truth, easy of every superpatch that some method of the table is tested on, once."""
    first = next(iter(measured.labels("methods").values()))
    found = measured.predictions[first[0]["run"]].predictions
    found = found[(found["protocol"] == measured.probed[0]) & (found["label_fraction"] == measured.fractions[-1])]
    found = found[found["draw"] == found["draw"].min()]
    return found.assign(dataset=found["patient"].astype(str).str.partition("/")[0])


def _above(scored: pd.DataFrame) -> pd.DataFrame:
    return scored[~scored["easy"].astype(bool)]


def _organs_text(dataset: str, scored: pd.DataFrame, organs: list[str]) -> str:
    told = []
    for organ in organs:
        own = scored[scored["organ"] == organ]
        if len(own):
            told.append(f"{organ} {own['patient'].nunique()}, {number(_above(own)['truth'].mean(), 2)}")
    return f"{dataset}: {'; '.join(told)}"


def _maps_text(record: Mapping[str, Any]) -> str:
    told = [f"{record[f'{kind}_maps']} {kind}" for kind in ("exhaustive", "partial", "pseudo") if record.get(f"{kind}_maps")]
    return ", ".join(told) or "none"


def _add_published(records: list[Record]) -> list[Record]:
    """Put the papers' counts beside the measured ones; those that nothing here belongs to, as records of their own."""
    unmatched: list[Record] = []
    for pool, told in load_published()["table1_data"].items():
        for names, text in told.items():
            several = names.split(" + ")
            own = [r for r in records if r["pool"] == POOLS[pool] and plain(r["dataset"]) in map(plain, several)]
            count = text.partition(",")[0]
            for record in own:
                record["published_nemesis"] = count + (f" with {names}" if len(several) > 1 else "")
            if not own:
                told = {"status": NOT_USED, "published_nemesis": count}
                unmatched.append({"dataset": names, "pool": POOLS[pool]} | told)
    for name, scans in load_published("maesil")["table1_data"].items():
        own = [r for r in [*records, *unmatched] if plain(r["dataset"]) == plain(name)]
        for record in own:
            record["published_maesil_scans"] = scans
        if not own:
            unmatched.append({"dataset": name, "pool": None, "status": NOT_USED, "published_maesil_scans": scans})
    return unmatched
