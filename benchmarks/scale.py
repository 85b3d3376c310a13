"""What a hundred thousand scans take before a voxel is read: planning, the gate, opening the index, sampling it.

    python -m benchmarks.scale --scans 100000 --out benchmarks/results/cpu_scale.json

Scans are tiny files of which only fingerprints are taken; planning is timed with nothing remembered of them and again. Verdicts
are made up, of scans of 512×512×300, a shard for every 500. Peak memory is that of a process of its own for each task (VmHWM of
Linux), above the idle one.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nemesis.config import Preparation
from nemesis.data.cases import Case
from nemesis.data.foreground import map_shape
from nemesis.data.gate import write_index
from nemesis.data.measure import HISTOGRAM
from nemesis.data.pools import write_pool
from nemesis.data.scans import Scans
from nemesis.experiment import plan
from nemesis.files import write_text

SHAPE = (300, 512, 512)
EDGE, DRAWS = 128, 2000
WINDOW = list(Preparation().hu_window)


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=500)
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nemesis-scale-") as name:
        folder = Path(name)
        _make_files(folder, a.scans)
        _make_verdicts(folder, a.scans, a.shard)
        found: dict[str, Any] = {"scans": a.scans, "shard": a.shard}
        tasks = {"plan": _plan, "plan again": _plan, "gate": _gate, "open the index": _open, "sample it": _sample}
        for task, function in tasks.items():
            found[task] = _in_a_process(function, folder, a.shard)
        sizes = {file.name: file.stat().st_size for file in (*folder.glob("index.*"), folder / "pool.json")}
        found["bytes"] = sizes | {"manifests": sum(file.stat().st_size for file in folder.rglob("*.manifest.json"))}
    print_table(found, list(tasks))
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def _make_files(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / "raw" / f"{number // 1000:03d}" / f"s{number:06d}.nii.gz"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % number)
    scans = {"reader": "files", "name": "many", "root": str(folder / "raw"), "image": "*/{case}.nii.gz"}
    labelled = {"reader": "phantom", "subjects": 8}
    config = {
        "experiment": "scale", "datasets": [labelled, scans], "pools": {"evaluation": {"phantom": 4}}, "probe": {"folds": 3},
        "superpatch": 32, "methods": ["ae"],
    }  # fmt: skip
    (folder / "scale.yaml").write_text(json.dumps(config))


def _make_verdicts(folder: Path, count: int, size: int) -> None:
    random = np.random.default_rng(0)
    cubes = int(np.prod(map_shape(SHAPE)))
    coarse = random.integers(0, 256, cubes, dtype=np.uint8)  # no air: every draw is decided by the map
    histogram = random.integers(0, 2_000_000, len(HISTOGRAM) + 1).tolist()
    common = {
        "dataset": "many", "kind": "none", "faults": [], "suspicions": [], "ok": True, "shape": list(SHAPE), "notes": [],
        "spacing": [1.0, 0.8, 0.8], "affine": random.normal(size=16).tolist(), "hu_mean": -500.1, "hu_std": 480.3,
        "hu_min": -1024, "hu_max": 3071, "hu_histogram": histogram, "annotated": [], "hu_window": WINDOW, "foreground": 0.4,
        "label_fingerprint": "",
    }  # fmt: skip
    cases = []
    for number in range(count):
        mark = base64.b16encode(random.bytes(32)).decode().lower()
        case = f"s{number:06d}"
        cases.append(Case("many", case, case, f"{case}.nii.gz", None, "none", None, mark, ""))
    for shard, first in enumerate(range(0, count, size)):
        told = [
            {
                **common,
                "case": c.case,
                "patient": c.patient,
                "stem": c.stem,
                "fingerprint": c.fingerprint,
                "content_hash": c.fingerprint,
            }
            for c in cases[first : first + size]
        ]
        path = folder / "verdicts" / f"{shard}.verdicts.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"volumes": "../store", "cases": told}, indent=1))
        path.with_suffix(".maps").write_bytes(coarse.tobytes() * len(told))
    write_pool(folder / "pool.json", cases, labels=False)


def _plan(folder: Path, size: int) -> None:
    plan([folder / "scale.yaml"], {"ingest_shard": size}, folder / "results")


def _gate(folder: Path, size: int) -> None:
    write_index(sorted((folder / "verdicts").glob("*.verdicts.json")), folder / "index.parquet")


def _scans(folder: Path) -> Scans:
    return Scans(folder / "pool.json", folder / "index.parquet", Preparation())


def _open(folder: Path, size: int) -> None:
    _scans(folder)


def _sample(folder: Path, size: int) -> None:
    """As a draw does, up to the reading of the crop."""
    scans = _scans(folder)
    for number in range(DRAWS):
        random = np.random.Generator(np.random.Philox(key=[0, number]))
        i = scans.draw(random, "scan")
        start = random.integers([n - EDGE + 1 for n in scans.shape(i)])
        scans.foreground_bounds(i, start.tolist(), (EDGE,) * 3)


def _in_a_process(function: Callable[[Path, int], None], folder: Path, size: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_watched, (function, folder, size))


def _watched(function: Callable[[Path, int], None], folder: Path, size: int) -> dict[str, float]:
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401 - imported by whoever opens anything, once

    idle = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    began, computing = time.perf_counter(), time.process_time()
    function(folder, size)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_seconds": time.process_time() - computing, "peak_mib": (_status("VmHWM") - idle) / 2**20}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def print_table(found: dict[str, Any], tasks: list[str]) -> None:
    """The figures for a person."""
    print(f"\n{found['scans']} scans in shards of {found['shard']}, {os.cpu_count()} cores\n")
    print("| task | seconds | of computing | peak memory above idle, MiB |\n| --- | --- | --- | --- |")
    for task in tasks:
        one = found[task]
        print(f"| {task} | {one['seconds']:.2f} | {one['cpu_seconds']:.2f} | {one['peak_mib']:.0f} |")
    taken = (found["sample it"]["cpu_seconds"] - found["open the index"]["cpu_seconds"]) / DRAWS
    print(f"\nA draw, up to the reading of its crop: {1e6 * taken:.0f} µs\n\n| file | MB |\n| --- | --- |")
    for name, size in sorted(found["bytes"].items()):
        print(f"| {name} | {size / 1e6:.1f} |")


if __name__ == "__main__":
    main()
