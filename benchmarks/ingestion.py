"""What ingestion takes for each scan of 512×512×300, beside what unpacking its `.nii.gz` alone takes.

    python -m benchmarks.ingestion <folder with scans of 512×512 in plane> --out benchmarks/results/cpu_ingestion.json

Seconds per scan are those of all scans together, divided by their number, by as many processes as asked for; unpacking is
`gzip` alone, in one process. Peak memory is that of a process which ingests one scan, above what it holds idle with everything
imported (VmHWM and VmRSS of Linux). The scan is made of real slices (:mod:`benchmarks.scans`) and stands under many names.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scans import real_scan, write_nifti
from nemesis.config import Preparation
from nemesis.data.cases import write_manifest
from nemesis.data.ingest import ingest
from nemesis.data.listings import list_cases
from nemesis.datasets import ScanFiles
from nemesis.files import write_text

DATASET = ScanFiles(reader="files", name="scans", image="{case}.nii.gz")


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with image.nii.gz files, one folder each")
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plane", type=int, default=512)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--superpatch", type=int, default=128)
    parser.add_argument("--spacing", type=float, help="mm, along every axis, to resample to")
    parser.add_argument("--level", type=int, default=6, help="of gzip")
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nemesis-ingestion-") as folder:
        found = measure(a, Path(folder))
    print_table(found)
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure."""
    hu = real_scan(a.folder, a.plane, a.slices)
    shape, size = list(hu.shape), hu.nbytes
    (folder / "raw").mkdir()
    first = write_nifti(folder / "raw" / "s000.nii.gz", hu, a.level)
    del hu
    for number in range(1, a.scans):
        os.link(first, folder / "raw" / f"s{number:03d}.nii.gz")
    unpacking = []
    for _ in range(3):
        began = time.perf_counter()
        with gzip.open(first) as file:
            while file.read(1 << 20):
                pass
        unpacking.append(time.perf_counter() - began)
    preparation = Preparation(spacing_mm=(a.spacing,) * 3 if a.spacing else None)
    write_manifest(folder / "manifest.json", DATASET, list_cases(DATASET, folder / "raw"), {})
    paths = (folder / "manifest.json", folder / "raw")
    began = time.perf_counter()
    ingest(*paths, folder / "store", folder / "store" / "verdicts.json", preparation, a.superpatch, a.workers)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    ingest(*paths, folder / "store", folder / "store" / "verdicts.json", preparation, a.superpatch, a.workers)
    again = time.perf_counter() - began
    assert all(case["ok"] for case in json.loads((folder / "store" / "verdicts.json").read_text())["cases"])
    stored = sum(file.stat().st_size for file in (folder / "store").iterdir())
    write_manifest(folder / "one.json", DATASET, list_cases(DATASET, folder / "raw")[:1], {})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        idle, peak = pool.apply(_memory, (folder, preparation, a.superpatch))
    return {
        "scan": shape, "int16_bytes": size, "scans": a.scans, "workers": a.workers, "spacing_mm": a.spacing,
        "seconds_per_scan": seconds / a.scans, "gzip_seconds": statistics.median(unpacking),
        "seconds_per_scan_of_a_repeat": again / a.scans, "nii_gz_bytes": first.stat().st_size,
        "stored_bytes_per_scan": stored / a.scans, "idle_bytes": idle, "peak_bytes_above_idle": peak,
    }  # fmt: skip


def _memory(folder: Path, preparation: Preparation, superpatch: int) -> tuple[int, int]:
    """Bytes that this process holds idle, and at most above that while it ingests a scan."""
    import blosc2  # noqa: F401 - what a worker imports with its first scan is not the scan's
    import nibabel  # noqa: F401
    import scipy.ndimage  # noqa: F401

    idle = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    ingest(folder / "one.json", folder / "raw", folder / "alone", folder / "alone" / "verdicts.json", preparation, superpatch, 0)
    return idle, _status("VmHWM") - idle


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def print_table(found: dict[str, Any]) -> None:
    """The figures for a person."""
    shape = "×".join(map(str, found["scan"]))
    print(f"\nIngestion of {found['scans']} scans of {shape} (D×H×W), {found['workers']} processes")
    rows = {
        "seconds per scan, all processes together": f"{found['seconds_per_scan']:.2f}",
        "seconds of a process per scan": f"{found['seconds_per_scan'] * found['workers']:.2f}",
        "gzip alone, one process": f"{found['gzip_seconds']:.2f}",
        "again, nothing changed": f"{found['seconds_per_scan_of_a_repeat']:.4f}",
        "MB of the .nii.gz": f"{found['nii_gz_bytes'] / 1e6:.1f}",
        "MB in the store, with all that belongs to the scan": f"{found['stored_bytes_per_scan'] / 1e6:.1f}",
        "peak memory above idle, MB": f"{found['peak_bytes_above_idle'] / 1e6:.0f}",
        "of the scan's int16": f"{found['peak_bytes_above_idle'] / found['int16_bytes']:.2f} times",
    }
    print("\n| | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
