"""From raw scans to the store, and the gate that stops everything before training if a single scan is faulty.

Ingestion never raises on a bad scan: its verdict says what is wrong. Each case leaves a small record beside its
volumes, so that an interrupted ingestion goes on where it was; the verdicts are written when every case has one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Dataset, PhantomCohort, Preparation
from nemesis.data import VERSION
from nemesis.data.cases import Case, read_manifest
from nemesis.data.readers import SMALLEST, Volume, read_labels, read_volume, resample
from nemesis.data.store import write_volume
from nemesis.data.superpatches import brightest, grid_foreground
from nemesis.errors import Fault, NemesisError
from nemesis.files import write_parquet, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """Everything that the verdict of one case depends on, and where to put it."""

    dataset: Dataset
    label_numbers: dict[str, int]
    case: Case
    root: Path | None
    volumes: Path
    preparation: Preparation
    superpatch: int

    @property
    def identity(self) -> str:
        """Stays the same as long as ingesting the case again would give the same volumes and the same verdict."""
        settings = [self.label_numbers, self.preparation.model_dump(), self.superpatch]
        parts = [VERSION, asdict(self.case), *settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def record(self) -> Path:
        return self.volumes / f"{self.case.stem}.json"

    def known_verdict(self) -> dict[str, Any] | None:
        """The verdict of an earlier run, if the case has not changed and its volumes are there."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if record["identity"] != self.identity:
            return None
        names = ["hu"] if self.case.kind == "none" else ["hu", "labels"]
        there = all((self.volumes / f"{self.case.stem}.{name}.b2nd").is_file() for name in names)
        return record["verdict"] if there or not record["verdict"]["ok"] else None


def ingest(
    manifest_path: Path,
    root: Path | None,
    volumes: Path,
    verdicts_path: Path,
    preparation: Preparation,
    superpatch: int,
    workers: int,
) -> None:
    """Read, check, prepare and store every case of a manifest in the folder ``volumes``; write the verdicts.

    Cases that an earlier, perhaps interrupted, run has dealt with are not read again. The result does not depend on
    ``workers`` (processes). A scan of which no crop of edge ``superpatch`` reaches the foreground floor is refused.

    Raises:
        NemesisError: the folder cannot be written, or a worker process died. A bad scan raises nothing.
    """
    manifest = read_manifest(manifest_path)
    common = (manifest.dataset, manifest.label_numbers)
    tasks = [_Task(*common, case, root, volumes, preparation, superpatch) for case in manifest.cases]
    verdicts = {task.case.case: task.known_verdict() for task in tasks}
    todo = [task for task in tasks if verdicts[task.case.case] is None]
    log.info("%s: %d cases, %d to be read", manifest.dataset.name, len(tasks), len(todo))
    try:
        for n, verdict in enumerate(_verdicts(todo, workers), 1):
            verdicts[verdict["case"]] = verdict
            log.info("%d/%d %s: %s", n, len(todo), verdict["case"], "ok" if verdict["ok"] else "refused")
        content = {
            "volumes": Path(os.path.relpath(volumes, verdicts_path.parent)).as_posix(),
            "cases": [verdicts[task.case.case] for task in tasks],
        }
        write_text(verdicts_path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise NemesisError(Fault(str(volumes), what, "Make room there and run again: what is done is kept.")) from None
    except BrokenProcessPool:
        what = "a worker process died, perhaps for want of memory"
        raise NemesisError(Fault(str(volumes), what, "Run again with fewer workers: what is done is kept.")) from None


def _verdicts(todo: list[_Task], workers: int) -> Any:
    if min(workers, len(todo)) <= 1:
        yield from map(_ingest_case, todo)
        return
    # Spawned, not forked: the caller may hold threads (BLAS, Blosc2) that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(_ingest_case, task) for task in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Without this, workers whose parent was killed with -9 would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ingest_case(task: _Task) -> dict[str, Any]:
    case = task.case
    verdict: dict[str, Any] = {"dataset": case.dataset, "case": case.case, "patient": case.patient, "kind": case.kind}
    verdict["stem"] = case.stem
    verdict |= {"fingerprint": case.fingerprint, "label_fingerprint": case.label_fingerprint, "ok": True, "faults": []}
    try:
        volume, labels, annotated = _phantom(task) if isinstance(task.dataset, PhantomCohort) else _files(task)
        if task.preparation.spacing_mm is not None:
            volume, labels = resample(volume, labels, task.preparation.spacing_mm)
        verdict |= _measure(task, volume)
        if labels is not None:
            counts = _label_voxels(labels)
            numbers = task.label_numbers
            verdict["voxels"] = {organ: int(counts[n]) if n < len(counts) else 0 for organ, n in numbers.items()}
        verdict["annotated"] = annotated
        write_volume(task.volumes, f"{case.stem}.hu", volume.hu)
        if labels is not None:
            write_volume(task.volumes, f"{case.stem}.labels", labels)
    except NemesisError as error:
        verdict |= {"ok": False, "faults": [asdict(fault) for fault in error.faults]}
    write_text(task.record, json.dumps({"identity": task.identity, "verdict": verdict}, ensure_ascii=False))
    return verdict


Prepared = tuple[Volume, NDArray[Any] | None, list[str]]


def _phantom(task: _Task) -> Prepared:
    from nemesis.data.phantom import make_subject

    cohort = task.dataset
    assert isinstance(cohort, PhantomCohort)
    subject = make_subject(cohort.seed, int(task.case.image), cohort.base_spacing_mm)
    annotated = [organ for organ, number in task.label_numbers.items() if number in subject.annotated]
    return Volume(subject.hu, subject.spacing, subject.affine), subject.labels, annotated


def _files(task: _Task) -> Prepared:
    """Scan, label map and organs drawn; the faults of both files are told together."""
    case, root, numbers = task.case, task.root, task.label_numbers
    assert root is not None
    faults: list[Fault] = []
    volume: Volume | None = None
    labels: NDArray[Any] | None = None
    try:
        volume = read_volume(root / case.image)
    except NemesisError as error:
        faults += error.faults
    if case.label is not None:
        try:
            labels = read_labels(root / case.label, volume)
            found = {int(n) for n in np.flatnonzero(_label_voxels(labels)[1:]) + 1}
            declared = case.kind == "exhaustive" or bool(case.annotated)  # then an empty map says: none of them is here
            if not found & set(numbers.values()) and (found or not declared):
                only = ", ".join(str(n) for n in sorted(found)) or "background"
                what = f"holds none of the label numbers {', '.join(map(str, numbers.values()))}, only {only}"
                remedy = "Correct the numbers (`label_numbers`, dataset.json), or remove the map if nothing is drawn."
                faults.append(Fault(str(root / case.label), what, remedy))
        except NemesisError as error:
            faults += error.faults
    if faults or volume is None:
        raise NemesisError(faults)
    if labels is None:
        annotated: list[str] = []
    elif case.annotated is not None:
        annotated = list(case.annotated)
    else:
        annotated = [organ for organ, number in numbers.items() if case.kind == "exhaustive" or number in found]
    return volume, labels, annotated


def _label_voxels(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels of each number from 0 to the highest that occurs; plane by plane, for bincount widens what it counts."""
    top = int(labels.max())
    counts = np.zeros(top + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=top + 1)
    return counts


def _measure(task: _Task, volume: Volume) -> dict[str, Any]:
    """Figures of a prepared scan, and the refusal of one that would never yield a crop."""
    hu, edge, window, floor = volume.hu, task.superpatch, task.preparation.hu_window, task.preparation.foreground_floor
    where = task.case.name if task.root is None else str(task.root / task.case.image)
    if min(hu.shape) < SMALLEST:
        what = f"is too small after resampling ({'×'.join(map(str, hu.shape))} voxels)"
        raise NemesisError(Fault(where, what, "Choose a smaller `preparation.spacing_mm`."))
    _, share = brightest(hu, edge, window)
    if share < floor:
        what = f"is empty: even its brightest superpatch of {edge} voxels has a mean of {share:.3f} after windowing"
        remedy = f"Look at the scan: is it HU, and of a body? The foreground floor is {floor}."
        raise NemesisError(Fault(where, what, remedy))
    total = sum(int(plane.sum(dtype=np.int64)) for plane in hu)
    squares = sum(int(np.square(plane, dtype=np.int64).sum()) for plane in hu)
    digest = hashlib.sha256(repr(hu.shape).encode())
    digest.update(np.ascontiguousarray(hu, "<i2").data)
    return {
        "shape": list(hu.shape),
        "spacing": [float(s) for s in volume.spacing],
        "affine": [float(x) for x in volume.affine.ravel()],
        "hu_mean": total / hu.size,
        "hu_std": math.sqrt(hu.size * squares - total**2) / hu.size,
        "hu_min": int(hu.min()),
        "hu_max": int(hu.max()),
        "foreground": float((grid_foreground(hu, edge, window) >= floor).mean()),
        "content_hash": digest.hexdigest(),
    }


def check(verdict_paths: Sequence[Path], out: Path) -> None:
    """The gate: write the index of all datasets' scans, or stop with every fault of every one of them.

    The index is a Parquet file of one row per case, sorted by dataset and case: dataset, case, patient, kind, annotated
    (names of the organs drawn), store (path of its volumes without their endings, relative to the index), shape (voxels)
    and spacing (mm), both (D, H, W), affine (16 numbers, row by row, of the RAS array), hu_mean, hu_std, hu_min, hu_max,
    foreground (share of grid superpatches that are not empty), content_hash (sha256 of the HU), fingerprint,
    label_fingerprint. Equal stores give equal bytes.

    Raises:
        NemesisError: with every fault of every refused scan.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for path in verdict_paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        volumes = Path(os.path.relpath(path.parent / content["volumes"], out.parent))
        for verdict in content["cases"]:
            for fault in verdict["faults"]:
                remedy = f"{fault['remedy']} Or go on without it: `exclude: [{verdict['dataset']}/{verdict['case']}]`."
                faults.append(Fault(fault["where"], fault["what"], remedy))
            rows.append(verdict | {"store": (volumes / verdict["stem"]).as_posix()})
    if faults:
        raise NemesisError(faults)
    rows.sort(key=lambda row: (row["dataset"], row["case"]))
    text, number, whole = pa.string(), pa.float64(), pa.int64()
    columns = {
        "dataset": text,
        "case": text,
        "patient": text,
        "kind": text,
        "annotated": pa.list_(text),
        "store": text,
    }
    columns |= {"shape": pa.list_(whole), "spacing": pa.list_(number), "affine": pa.list_(number)}
    columns |= {"hu_mean": number, "hu_std": number, "hu_min": whole, "hu_max": whole, "foreground": number}
    columns |= {"content_hash": text, "fingerprint": text, "label_fingerprint": text}
    schema = pa.schema(list(columns.items()))
    write_parquet(out, pa.Table.from_pylist(rows, schema=schema))
