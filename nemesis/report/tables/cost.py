"""What pretraining and encoding cost: counted, which repeats, and by the clock, which does not."""

from __future__ import annotations

import pandas as pd

from nemesis.report.collect import of_part
from nemesis.report.render import MISSING, Table, number
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import Record, configuration_note, scaled

HOUR = 3600.0  # seconds
CLOCKS = {  # column: stage and name in timings.parquet, and its share of the column's unit
    "pretraining_hours": ("pretrain", "seconds", 1 / HOUR),
    "pretraining_superpatches_per_second": ("pretrain", "superpatches_per_second", 1),
    "pretraining_memory_mib": ("pretrain", "peak_memory_mib", 1),
    "encoding_superpatches_per_second": ("evaluate", "encoded_superpatches_per_second", 1),
}


def cost_table(measured: Measured) -> Table:
    """One row per method; means over seeds."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    for label, entries in measured.labels("methods").items():
        budget = measured.budget(entries)
        counted = measured.rows_of(entries).groupby("metric")["value"].mean()
        times = measured.timings[measured.timings["run"].isin([entry["run"] for entry in entries])]
        record: Record = {"method": label, "device": _device(times)}
        record |= {name: counted.get(name) for name in ("parameters", "encode_macs", "pretext_macs")}
        record |= {"pretraining_voxels": budget.voxels, "pretraining_flop": budget.flop}
        for name, (stage, clock, factor) in CLOCKS.items():
            trained = stage != "pretrain" or budget.steps is not None
            record[name] = _clock(times, stage, clock, factor) if trained else None
        records.append(record)
    columns = (
        "method", "device", "parameters", "MAC to encode", "MAC of the pretext", "pretraining: voxels", "FLOP", "hours",
        "superpatches/s", "peak memory (MiB)", "encoding: superpatches/s",
    )  # fmt: skip
    printed = [
        (
            r["method"], r["device"] or MISSING, scaled(r["parameters"]), scaled(r["encode_macs"]), scaled(r["pretext_macs"]),
            scaled(r["pretraining_voxels"]), scaled(r["pretraining_flop"]), number(r["pretraining_hours"], 3),
            number(r["pretraining_superpatches_per_second"], 1), number(r["pretraining_memory_mib"], 0),
            number(r["encoding_superpatches_per_second"], 1),
        )
        for r in records
    ]  # fmt: skip
    caption = "What each method costs: counted (parameters, MAC, voxels, FLOP), and as the clock and the device had it."
    notes = [
        "MAC are those of one superpatch's forward pass: to its vector with nothing masked, and of the pretext with its decoder. "
        "Voxels are those of scans that pretraining showed the network, FLOP those of all its steps, forward and backward.",
        "Hours, superpatches a second and memory depend on the device and on what else ran on it: they are not the same when "
        "measured again, and compare only within one device. Memory is the process's on a CPU, the device's on a GPU. A sample "
        "of a method that draws whole scans counts as one superpatch.",
        configuration_note(spec),
    ]
    return Table("cost", "Cost", caption, columns, printed, notes, pd.DataFrame(records), text_columns=2)


def _clock(times: pd.DataFrame, stage: str, name: str, factor: float) -> float | None:
    found = times[(times["stage"] == stage) & (times["name"] == name)]["value"]
    return float(found.mean()) * factor if len(found) else None


def _device(times: pd.DataFrame) -> str | None:
    found = times[times["name"] == "device"]["text"].dropna().unique()
    return ", ".join(sorted(text.strip('"') for text in found)) or None
