"""How fast random crops come from the store, beside reading the whole `.nii.gz` (int16) and cutting them out of it.

    python -m benchmarks.loading crops <folder with scans of 512×512 in plane> --out benchmarks/results/cpu_loading_crops.json
    python -m benchmarks.loading waiting <the same> --superpatch 128

`crops` alternates both on one thread in one process, a round being one whole read and a hundred crops, each from a file that is
opened anew, and prints the ratio of every round; the sizes of the stored file and of the `.nii.gz`; and crops a second with more
and more loader processes. `waiting` trains for some steps as a run does and prints the share of their time that was spent waiting
for data: at the demo's size (its phantoms, its network, its recipe) unless told otherwise; with --superpatch the paper's network.
The scan is made of real slices (:mod:`benchmarks.scans`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scans import real_scan, write_nifti
from nemesis.config import Preparation, Pretraining, merged
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.pools import write_pool
from nemesis.data.scans import Scans
from nemesis.data.store import AIR, StoredVolume, pad, write_volume
from nemesis.datasets import Dataset, PhantomCohort, ScanFiles
from nemesis.files import write_text
from nemesis.method import Draw, create
from nemesis.training.crops import Crops, Cut, RankBatches, crop_loader
from nemesis.training.device import device_for
from nemesis.training.live import LiveCurve
from nemesis.training.pretrain import _Training

CROPS = 100  # of a round
BATCHES = 250  # of four crops, handed out by a loader; the first fifth is not counted
LEVELS = (1, 6, 9)  # of gzip; nibabel writes 1, dcm2niix 6
DEMO = Path("config/config.yaml")


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["crops", "waiting"])
    parser.add_argument("folder", type=Path, help="with image.nii.gz files, one folder each")
    parser.add_argument("--superpatch", type=int, help="edge of a crop; crops: 128, waiting: the demo's")
    parser.add_argument("--plane", type=int, default=512, help="voxels of the scan along both axes of a plane")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loader processes; 0 is a thread")
    parser.add_argument("--steps", type=int, default=60, help="of a training; the first ten are not counted")
    parser.add_argument("--threads", type=int, default=1, help="of a training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nemesis-loading-") as folder:
        found = crops(a, Path(folder)) if a.task == "crops" else waiting(a, Path(folder))
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def crops(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratio of both ways, sizes, and crops a second by loader processes."""
    import nibabel

    library: Any = nibabel
    edge = a.superpatch or 128
    hu = real_scan(a.folder, a.plane, a.slices)
    sizes = {f"gzip {level}": write_nifti(folder / "scan.nii.gz", hu, level).stat().st_size for level in LEVELS}
    whole = write_nifti(folder / "scan.nii.gz", hu, 6)
    started = time.perf_counter()
    write_volume(folder, "scan.hu", hu)
    found: dict[str, Any] = {
        "scan": list(hu.shape),
        "crop": edge,
        "bytes": hu.nbytes,
        "write_seconds": time.perf_counter() - started,
    }
    found["stored_bytes"], found["nii_gz_bytes"] = (folder / "scan.hu.b2nd").stat().st_size, sizes
    random = np.random.default_rng(0)
    rounds, io = [], {"rchar": 0, "syscr": 0}
    for _ in range(a.rounds):
        starts = random.integers(np.maximum(np.array(hu.shape) - edge + 1, 1), size=(CROPS, 3)).tolist()
        (d, h, w), began = starts[0], time.perf_counter()
        array = np.asarray(library.load(whole).dataobj)
        plain = array[h : h + edge, w : w + edge, d : d + edge].copy()
        read = time.perf_counter() - began
        assert array.dtype == np.int16
        before, began = _io(), time.perf_counter()
        for i, j, k in reversed(starts):
            crop = StoredVolume(folder / "scan.hu.b2nd").read((i, j, k), (edge,) * 3, AIR)
        rounds.append({"whole_seconds": read, "crop_seconds": (time.perf_counter() - began) / CROPS})
        io = {name: io[name] + count - before[name] for name, count in _io().items()}
        np.testing.assert_array_equal(crop, pad(plain.transpose(2, 0, 1), (edge,) * 3, AIR))
    ratios = sorted(one["whole_seconds"] / one["crop_seconds"] for one in rounds)
    found |= {"crop_read_bytes": io["rchar"] / a.rounds / CROPS, "crop_reads": io["syscr"] / a.rounds / CROPS}
    found |= {"rounds": rounds, "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}}
    dataset = ScanFiles(reader="files", name="scan", image="{case}.nii.gz")
    scans = _ingested(dataset, folder, folder / "store", edge)
    found["crops_per_second"] = {str(n): _rate(Crops(scans, Draw(edge), 0, "scan"), n) for n in a.workers}
    _print_crops(found)
    return found


def _io() -> dict[str, int]:
    """Bytes that this process has read so far, from files in memory or not, and in how many calls (Linux)."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(count) for name, count in lines if name in ("rchar", "syscr")}


def _rate(of: Crops, workers: int) -> float:
    """Crops a second that a loader hands out, once it runs."""
    stream = iter(crop_loader(of, RankBatches(0, BATCHES, 4, 0, 1), workers, pin=False))
    for _ in range(BATCHES // 5):
        next(stream)
    began, count = time.perf_counter(), 0
    for hu, *_ in stream:
        count += len(hu)
    return count / (time.perf_counter() - began)


def _print_crops(found: dict[str, Any]) -> None:
    shape, ratio = "×".join(map(str, found["scan"])), found["ratio"]
    read, crop = (statistics.median(one[name] for one in found["rounds"]) for name in ("whole_seconds", "crop_seconds"))
    print(f"\nRandom crops of {found['crop']}³ from a scan of {shape} (D×H×W), one thread")
    print(f"whole .nii.gz, then crop: {read:.2f} s; from the store: {1000 * crop:.1f} ms")
    print(f"{ratio['median']:.0f} times as fast (rounds: {ratio['least']:.0f} to {ratio['most']:.0f})")
    print(f"{found['crop_reads']:.0f} reads of {found['crop_read_bytes'] / 1e6:.2f} MB in all for a crop, the opening among them")
    print("\n| file | MB | of the int16 |\n| --- | --- | --- |")
    for name, size in {"store": found["stored_bytes"], **found["nii_gz_bytes"]}.items():
        print(f"| {name} | {size / 1e6:.1f} | {size / found['bytes']:.1%} |")
    print("\n| loader processes | crops/s |\n| --- | --- |")
    for workers, rate in found["crops_per_second"].items():
        print(f"| {'0 (a thread)' if workers == '0' else workers} | {rate:.0f} |")


def waiting(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Share of the time of training steps that was spent waiting for the next batch, by loader processes."""
    demo = merged([DEMO])
    dataset: Dataset
    if a.superpatch is None:
        edge, recipe = demo["superpatch"], {**demo["pretraining"], "steps": a.steps, "threads": a.threads}
        settings = next(entry["settings"] for entry in demo["methods"] if entry["name"] == "nemesis")
        dataset = PhantomCohort(reader="phantom", subjects=8, base_spacing_mm=demo["datasets"][0]["base_spacing_mm"])
    else:
        edge, settings, recipe = a.superpatch, {}, {"steps": a.steps, "batch_size": 4, "threads": a.threads}
        dataset = ScanFiles(reader="files", name="scan", image="{case}.nii.gz")
        write_nifti(folder / "scan.nii.gz", real_scan(a.folder, a.plane, a.slices), 1)
    scans = _ingested(dataset, folder, folder / "store", edge)
    method = create("nemesis", settings, edge)
    found: dict[str, Any] = {"superpatch": edge, "batch": recipe["batch_size"], "threads": a.threads, "workers": {}}
    with device_for(a.device) as device, LiveCurve(None, "", "", {}) as live:
        found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        torch.set_num_threads(a.threads)
        for workers in a.workers:
            checked = Pretraining.model_validate(recipe)
            run = folder / f"run{workers}"
            run.mkdir()
            training = _Training(
                method, method.build(), checked, Crops(scans, method.draw(), 0, "scan"), run, device, workers, a.steps, None
            )
            watched = _Watched(training.loader)
            training.loader = watched
            training.run(live)
            found["workers"][str(workers)] = {"share": watched.waited / watched.all, "step_seconds": watched.all / watched.steps}
    print(f"\nWaiting for crops of {edge}³, batches of {recipe['batch_size']}, {found['device']}, {a.threads} threads")
    print("\n| loader processes | share of a step spent waiting | step, s |\n| --- | --- | --- |")
    for name, one in found["workers"].items():
        print(f"| {'0 (a thread)' if name == '0' else name} | {one['share']:.2%} | {one['step_seconds']:.3f} |")
    return found


class _Watched:
    """A loader, and how long its user waited for it; the first ten batches, which start everything up, do not count."""

    def __init__(self, loader: Iterable[Cut]) -> None:
        self.loader, self.waited, self.all, self.steps = loader, 0.0, 0.0, 0

    def __iter__(self) -> Iterator[Cut]:
        stream, began = iter(self.loader), 0.0
        number = 0
        while True:
            asked = time.perf_counter()
            try:
                batch = next(stream)
            except StopIteration:
                return
            given = time.perf_counter()
            if number == 10:
                began = given
            elif number > 10:
                self.waited, self.all, self.steps = self.waited + given - asked, given - began, number - 10
            yield batch
            number += 1


def _ingested(dataset: Dataset, root: Path, folder: Path, edge: int) -> Scans:
    raw = None if isinstance(dataset, PhantomCohort) else root
    cases, numbers = list_cases(dataset, raw), label_numbers(dataset, raw)
    write_manifest(folder / "manifest.json", dataset, cases, numbers)
    ingest(folder / "manifest.json", raw, folder, folder / "verdicts.json", Preparation(), edge, 0)
    write_index([folder / "verdicts.json"], folder / "index.parquet")
    write_pool(folder / "pool.json", cases, labels=False)
    return Scans(folder / "pool.json", folder / "index.parquet", Preparation())


if __name__ == "__main__":
    main()
