"""What every network was pretrained for, and how well it does what its pretext asks of it, on patients it was not trained on."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nemesis.evaluation.rows import TRAINED, UNTRAINED
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import MISSING, Table, number
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import MEASURED, Record, configuration_note, pools_text, scaled

NOT_PRETRAINED, PUBLISHED = "not pretrained", "published weights"
MONITORS = {  # what monitors are called in print; others by their own names
    "psnr": "PSNR, all voxels (dB)",
    "psnr_masked": "PSNR, hidden voxels (dB)",
    "kl": "KL to the prior (nats)",
    "perplexity": "codes in use (perplexity)",
    "overlap_correlation": "correlation of predicted with true overlap",
    "dice": "Dice at 0.5",
}


def pretraining_table(measured: Measured) -> Table:
    """A row for each method and each number that its pretext reports; means over seeds."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    for label, entries in measured.labels("methods").items():
        budget = measured.budget(entries)
        told: Record = {"method": label, "leakage": measured.leakage(entries), "status": status(measured, entries)}
        told["seeds"] = len(entries)
        told |= {"steps": budget.steps, "samples": budget.samples, "voxels": budget.voxels, "flop": budget.flop}
        told["parameters"] = _mean(measured, entries, "parameters")
        found = [_record(measured, entries, name) for name in _monitors(measured, entries)]
        records += [told | record for record in found or [{"monitor": None, "untrained": None, "trained": None}]]
    columns = (
        "method", "leakage", "parameters", "steps", "voxels seen", "FLOP", "its pretext, on held-out patients", "untrained",
        "trained",
    )  # fmt: skip
    printed = []
    for r in records:
        spent = (number(r["steps"], 0), scaled(r["voxels"]), scaled(r["flop"]))
        if r["status"] != MEASURED:
            spent = (r["status"], MISSING, MISSING)
        monitor = MONITORS.get(r["monitor"], r["monitor"]) or MISSING
        reached = (_text(r[name]) for name in ("untrained", "trained"))
        printed.append((r["method"], r["leakage"], scaled(r["parameters"]), *spent, monitor, *reached))
    equal = {"voxels": "the same number of voxels", "flop": "the same FLOP", "steps": "the same number of steps"}
    notes = [
        f"Every pretraining gets {equal[spec['config'].get('budget', 'voxels')]}, but where an entry of the configuration names "
        "steps of its own. Voxels are those of scans that the network is shown, before a method resizes them; FLOP those of all "
        "steps, forward and backward.",
        "Untrained: the same network as it was initialised. A broken objective leaves both alike. All are means over fixed "
        "samples of the evaluation pool, drawn and masked as in training; each method's numbers are its own, and compare with no "
        "other's.",
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    title = "Pretraining: budgets, and what the pretexts reach"
    return Table("pretraining", title, pools_text(spec), columns, printed, notes, pd.DataFrame(records), text_columns=2)


def status(measured: Measured, entries: Entries) -> str:
    """Whether networks were pretrained here, come with published weights, or learnt nothing."""
    identity = measured.identities[entries[0]["run"]]
    if identity["pretraining"] is not None:
        return MEASURED
    return PUBLISHED if "weights" in identity else NOT_PRETRAINED


def _monitors(measured: Measured, entries: Entries) -> list[str]:
    """The monitors that were measured, those with a name in print first."""
    metrics = measured.rows_of(entries)["metric"]
    found = sorted({name.removeprefix(TRAINED) for name in metrics if name.startswith(TRAINED)})
    order = list(MONITORS)
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def _record(measured: Measured, entries: Entries, monitor: str) -> dict[str, Any]:
    return {
        "monitor": monitor,
        "untrained": _mean(measured, entries, f"{UNTRAINED}{monitor}"),
        "trained": _mean(measured, entries, f"{TRAINED}{monitor}"),
    }


def _mean(measured: Measured, entries: Entries, metric: str) -> float | None:
    values = measured.rows_of(entries, metric=metric).groupby("run")["value"].mean()
    return float(values.mean()) if len(values) else None


def _text(value: float | None) -> str:
    """Three significant digits of what is 1 or more, three decimals of what is less."""
    if value is None or abs(value) < 1:
        return number(value, 3)
    return number(value, max(0, 3 - len(f"{abs(value):.0f}")))
