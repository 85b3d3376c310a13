"""The gate: no training starts before every scan is known to be good, and then all that is known of them stands in one index."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemesis.data.foreground import map_shape
from nemesis.errors import Fault, NemesisError
from nemesis.files import replacing, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

AGAIN = "Run the workflow again with --forcerun ingest_scans resample_scans: what is stored is not read again."


def write_index(verdict_paths: Sequence[Path], out: Path, accept: Collection[str] = ()) -> None:
    """Write the index of all datasets' scans, or stop with every fault of every one of them.

    The index is a Parquet file of one row per case, sorted by dataset and case: dataset, case, patient, kind, annotated
    (names of the organs drawn), voxels (of each organ; null without labels), store (path of its volumes without their endings,
    relative to the index), shape (voxels) and spacing (mm), both (D, H, W), affine (16 numbers, row by row, of the RAS array),
    hu_mean, hu_std, hu_min, hu_max, hu_histogram (:func:`nemesis.data.measure.intensities`), foreground (share of grid
    superpatches that are not empty), content_hash (sha256 of the HU), notes (what reading it did that a person should know),
    fingerprint, label_fingerprint, hu_window, map_offset. Beside it, under the same name ending in `.maps`, lie the scans'
    foreground maps (:meth:`nemesis.data.foreground.BlockSums.map`), each from its row's map_offset on. Equal stores give equal
    bytes.

    Args:
        verdict_paths: what ingestion wrote.
        out: the index.
        accept: cases (dataset/case) whose labels may contradict anatomy.

    Raises:
        NemesisError: with every fault of every refused scan, everything that anatomy speaks against, and all scans that their
            dataset holds twice; a file of ingestion that is damaged.
    """
    import pyarrow as pa

    faults: list[Fault] = []
    tables = []
    known: dict[tuple[str, str], str] = {}  # dataset and content hash → the case that has it
    for number, path in enumerate(verdict_paths):
        content = _content(path)
        for verdict in content["cases"]:
            for fault in verdict["faults"]:
                remedy = f"{fault['remedy']} Or go on without it: `exclude: [{verdict['dataset']}/{verdict['case']}]`."
                faults.append(Fault(fault["where"], fault["what"], remedy))
            if verdict["ok"]:
                faults += _doubts(verdict, known, accept)
        volumes = Path(os.path.relpath(path.parent / content["volumes"], out.parent))
        rows = list(_rows(content["cases"], volumes, number))
        tables.append(pa.Table.from_pylist(rows, schema=_schema()))  # here, for rows of a hundred thousand cases are large
        wanted, beside = sum(row["map_size"] for row in rows), path.with_suffix(".maps")
        if (there := beside.stat().st_size if beside.is_file() else 0) != wanted:  # what it lacks would pass for air
            faults.append(Fault(str(beside), f"holds {there} bytes of foreground maps, not {wanted}", AGAIN))
    if faults:
        raise NemesisError(faults)
    table = pa.concat_tables(tables).sort_by([("dataset", "ascending"), ("case", "ascending")])
    files, starts, sizes = (table[name].to_numpy() for name in ("map_file", "map_offset", "map_size"))
    offsets = np.cumsum(sizes) - sizes
    with replacing(out.with_suffix(".maps")) as temporary, temporary.open("wb") as file:
        for number, path in enumerate(verdict_paths):  # one after another, for all together are gigabytes
            maps = path.with_suffix(".maps").read_bytes()
            for row in np.flatnonzero(files == number).tolist():
                file.seek(int(offsets[row]))
                file.write(maps[starts[row] : starts[row] + sizes[row]])
    table = table.drop_columns(["map_file", "map_size"])
    table = table.set_column(table.schema.get_field_index("map_offset"), "map_offset", pa.array(offsets, pa.int64()))
    write_parquet(out, table)


def _content(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise NemesisError(Fault(str(path), f"cannot be read ({error})", AGAIN)) from None


def _doubts(verdict: dict[str, Any], known: dict[tuple[str, str], str], accept: Collection[str]) -> Iterator[Fault]:
    """What a person has to look at before a stored scan is used: its labels contradict anatomy, or its dataset has it twice."""
    name = f"{verdict['dataset']}/{verdict['case']}"
    for fault in verdict["suspicions"] if name not in accept else ():
        remedy = f"{fault['remedy']} Go on without it: `exclude: [{name}]`; or, if it is right as it is: `accept: [{name}]`."
        yield Fault(fault["where"], fault["what"], remedy)
    first = known.setdefault((verdict["dataset"], verdict["content_hash"]), name)
    if first != name:
        yield Fault(name, f"is the same scan as {first}: equal HU", f"Keep one: `exclude: [{name}]`.")


def _rows(verdicts: Sequence[dict[str, Any]], volumes: Path, number: int) -> Iterator[dict[str, Any]]:
    offset = 0
    for verdict in verdicts:
        if verdict["ok"]:
            size = int(np.prod(map_shape(verdict["shape"])))
            place = {"map_file": number, "map_offset": offset, "map_size": size}
            offset += size
            voxels = verdict.get("voxels")
            counted = None if voxels is None else list(voxels.items())
            yield verdict | place | {"voxels": counted, "store": (volumes / verdict["stem"]).as_posix()}


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    columns = {"dataset": text, "case": text, "patient": text, "kind": text, "annotated": pa.list_(text)}
    columns |= {"voxels": pa.map_(text, whole), "store": text}
    columns |= {"shape": pa.list_(whole), "spacing": pa.list_(number), "affine": pa.list_(number)}
    columns |= {"hu_mean": number, "hu_std": number, "hu_min": whole, "hu_max": whole, "hu_histogram": pa.list_(whole)}
    columns |= {"foreground": number, "content_hash": text, "notes": pa.list_(text)}
    columns |= {"fingerprint": text, "label_fingerprint": text}
    columns |= {"hu_window": pa.list_(number), "map_offset": whole, "map_file": whole, "map_size": whole}
    return pa.schema(list(columns.items()))
