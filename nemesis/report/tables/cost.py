"""What pretraining and encoding cost: counted, which repeats, and by the clock, which does not."""

from __future__ import annotations

import pandas as pd

from nemesis.evaluation.cost import FLOP_PER_MAC, VOLUME, superpatches
from nemesis.report.collect import of_part
from nemesis.report.render import MISSING, Table, number
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import Record, configuration_note, scaled

HOUR = 3600.0  # seconds
COUNTED = ("encoder_parameters", "parameters", "encode_macs", "reconstruct_macs", "pretext_macs")
OTHERS = ("fvcore", "formula")
CLOCKS = {  # column: stage and name in timings.parquet, and its share of the column's unit
    "pretraining_hours": ("pretrain", "seconds", 1 / HOUR),
    "pretraining_superpatches_per_second": ("pretrain", "superpatches_per_second", 1),
    "pretraining_memory_mib": ("pretrain", "peak_memory_mib", 1),
    "encoding_superpatches_per_second": ("evaluate", "encoded_superpatches_per_second", 1),
    "evaluation_memory_mib": ("evaluate", "peak_memory_mib", 1),
}


def cost_table(measured: Measured) -> Table:
    """One row per method; means over seeds."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    for label, entries in measured.labels("methods").items():
        budget = measured.budget(entries)
        counted = measured.rows_of(entries).groupby("metric")["value"].mean()
        times = measured.timings[measured.timings["run"].isin([entry["run"] for entry in entries])]
        tiles = superpatches(int(measured.identities[entries[0]["run"]]["superpatch"]))
        record: Record = {"method": label, "device": _device(times)}
        record |= {name: counted.get(name) for name in COUNTED}
        for name in ("encode", "reconstruct"):
            macs = record[f"{name}_macs"]
            record[f"{name}_macs_volume"] = None if macs is None else tiles * macs
            record[f"{name}_flop"] = None if macs is None else FLOP_PER_MAC * macs
            for other in OTHERS:
                again = counted.get(f"{name}_macs_{other}")
                record[f"{name}_{other}_off"] = None if again is None or not macs else again / macs - 1
        record |= {"pretraining_voxels": budget.voxels, "pretraining_flop": budget.flop}
        for name, (stage, clock, factor) in CLOCKS.items():
            trained = stage != "pretrain" or budget.steps is not None
            record[name] = _clock(times, stage, clock, factor) if trained else None
        records.append(record)
    columns = (
        "method", "device", "parameters: encoder", "whole network", "MAC of a superpatch: encoder", "whole network",
        "pretext", "MAC of a scan: encoder", "whole network", "fvcore", "formula", "pretraining: voxels", "FLOP", "hours",
        "superpatches/s", "peak memory (MiB)", "encoding: superpatches/s", "evaluation: peak memory (MiB)",
    )  # fmt: skip
    printed = [
        (
            r["method"], r["device"] or MISSING, scaled(r["encoder_parameters"]), scaled(r["parameters"]),
            scaled(r["encode_macs"]), scaled(r["reconstruct_macs"]), scaled(r["pretext_macs"]),
            scaled(r["encode_macs_volume"]), scaled(r["reconstruct_macs_volume"]), *(_off(r, other) for other in OTHERS),
            scaled(r["pretraining_voxels"]), scaled(r["pretraining_flop"]), number(r["pretraining_hours"], 3),
            number(r["pretraining_superpatches_per_second"], 1), number(r["pretraining_memory_mib"], 0),
            number(r["encoding_superpatches_per_second"], 1), number(r["evaluation_memory_mib"], 0),
        )
        for r in records
    ]  # fmt: skip
    caption = "What each method costs: counted (parameters, MAC, voxels, FLOP), and as the clock and the device had it."
    scan = "×".join(map(str, reversed(VOLUME)))
    notes = [
        "MAC (1 MAC = 2 FLOP) are those of a forward pass, attention included: of the encoder from a superpatch to its vector "
        "and of the whole network to its voxels, both with nothing masked; of the pretext as it is trained, on what it draws. A "
        f"scan is of {scan} voxels, cut into superpatches without overlap.",
        "Counted by PyTorch's counter. fvcore, formula: how far fvcore's count and, of the NEMESIS network, the analytic one are "
        "from that, of the encoder and, where it reconstructs, of the whole network, whichever is further.",
        "Voxels are those of scans that pretraining showed the network, FLOP those of all its steps, forward and backward.",
        "Hours, superpatches a second and memory depend on the device and on what else ran on it: they are not the same when "
        "measured again, and compare only within one device. Memory is the process's on a CPU, the device's on a GPU; that of "
        "evaluation is the most that encoding, probes or the judging of reconstructions took. A sample of a method that draws "
        "whole scans counts as one superpatch.",
        configuration_note(spec),
    ]
    return Table("cost", "Cost", caption, columns, printed, notes, pd.DataFrame(records), text_columns=2)


def _off(record: Record, other: str) -> str:
    """The larger of the differences to another count."""
    found = [record[f"{name}_{other}_off"] for name in ("encode", "reconstruct")]
    known = [value for value in found if value is not None]
    return f"{number(100 * max(known, key=abs), 1, sign=True)} %" if known else MISSING


def _clock(times: pd.DataFrame, stage: str, name: str, factor: float) -> float | None:
    found = times[(times["stage"] == stage) & (times["name"] == name)]["value"]
    return float(found.mean()) * factor if len(found) else None


def _device(times: pd.DataFrame) -> str | None:
    found = times[times["name"] == "device"]["text"].dropna().unique()
    return ", ".join(sorted(text.strip('"') for text in found)) or None
