"""Arrays as the scans of a pool, put into a store without ingestion."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nemesis.config import Preparation
from nemesis.data.foreground import BlockSums
from nemesis.data.scans import Scans
from nemesis.data.store import write_volume


def store_scans(folder, volumes, preparation=Preparation(), datasets=None):  # noqa: B008 - frozen
    """Pool, index, maps and volumes of int16 arrays (D, H, W)."""
    rows, members, offset = [], [], 0
    with (folder / "index.maps").open("wb") as maps:
        for number, hu in enumerate(volumes):
            name = f"s{number:03d}"
            member = {"dataset": datasets[number] if datasets else "ct", "case": name, "patient": name, "fingerprint": "f"}
            members.append(member | {"label_fingerprint": None})
            stored = {"kind": "none", "label_fingerprint": "", "store": name, "shape": list(hu.shape)}
            rows.append(member | stored | {"hu_window": list(preparation.hu_window), "map_offset": offset})
            coarse = BlockSums(hu, preparation.hu_window).map()
            offset += maps.write(coarse.tobytes())
            write_volume(folder, f"{name}.hu", hu)
    pq.write_table(pa.Table.from_pylist(rows), folder / "index.parquet")
    (folder / "pool.json").write_text(json.dumps({"cases": members}))
    return Scans(folder / "pool.json", folder / "index.parquet", preparation)


def blobs(shape, seed, scale=9):
    """int16 HU: smooth random blobs of tissue in air, with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([n // scale + 2 for n in shape]) ** 3
    grown = coarse
    for axis in range(3):
        grown = np.repeat(grown, scale, axis)
    grown = grown[tuple(slice(n) for n in shape)]
    return (1200 * grown - 1000 + rng.normal(0, 15, shape)).astype(np.int16)
